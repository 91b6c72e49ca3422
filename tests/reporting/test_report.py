# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import itertools
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ucadi.imaging.remarks import Remark
from ucadi.reporting.charts import draw_bars, draw_curves, keep_apart
from ucadi.reporting.record import RESEARCH_NOTICE, ModelIdentity, describe_probabilities
from ucadi.reporting.report import render_report, write_report

PNG = b"\x89PNG\r\n\x1a\n"  # only its bytes matter here
FEDERATION = {
    "seconds": 312.4,
    "peak_memory_mb": 2890.2,
    "engine": "nvflare",
    "protection": "plaintext",
    "classifier": {
        "metric": "macro_auc",
        "global": 0.91,
        "single_site": {"A": 0.8, "B": 0.7, "C": 0.75},
        "rounds": 2,
        "curve": [
            {"round": 0, "validation": 0.5, "sites": {"A": 0.48, "B": 0.52}},
            {"round": 1, "validation": 0.7, "sites": {"A": 0.72, "B": 0.68, "C": 0.7}},
            {"round": 2, "validation": None, "sites": {"A": 0.9}},
        ],
    },
    "segmentation": {
        "metric": "dice",
        "global": 0.71,
        "single_site": {},
        "rounds": 1,
        "curve": [],
    },
    "participants": {
        "classifier": {"1": ["A", "B", "C"], "2": ["A", "B"]},
        "segmentation": {"1": ["A", "B"]},
    },
    "missing": {"classifier": {"2": {"C": "no-answer"}}, "segmentation": {"1": {"C": "cohort-empty"}}},
}


class _Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_outside(make_chest) -> None:
    html = render_report(make_chest().reading(), PNG, FEDERATION)
    page = _Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    loading = [
        value for name, value in page.attributes if name in {"src", "href", "srcset", "action", "data"}
    ]
    assert loading == ["data:image/png;base64,iVBORw0KGgo="]
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_every_tag_that_opens_is_closed(make_chest) -> None:
    html = render_report(make_chest().reading(), PNG, FEDERATION)
    for tag in ("table", "tr", "td", "th", "section", "article", "div", "svg", "p", "ul", "b", "span"):
        assert html.count(f"</{tag}>") == _Page(html).tags.count(tag), tag


def test_the_notice_stands_at_top_and_bottom(make_chest) -> None:
    text = _Page(render_report(make_chest().reading(), PNG)).text
    words = " ".join(text.split())
    assert words.count(RESEARCH_NOTICE) == 2


def test_hostile_strings_stay_text(make_chest) -> None:
    hostile = '"><script>alert(1)</script>'
    chest = make_chest()
    loader = chest.reading().input
    report = dataclasses.replace(
        loader,
        reason=hostile,
        repairs=(Remark("duplicates-dropped", hostile),),
        warnings=(Remark("lossy", hostile),),
        series=(dataclasses.replace(loader.series[0], key=hostile, modality=hostile, reason=hostile),),
    )
    federation = copy.deepcopy(FEDERATION) | {"engine": hostile}
    federation["classifier"]["single_site"][hostile] = 0.5
    federation["classifier"]["curve"][0]["sites"][hostile] = 0.5
    federation["missing"]["classifier"]["2"][hostile] = hostile
    record = chest.reading(
        model=ModelIdentity(hostile, hostile, hostile, (hostile,), 1, hostile),
        input=report,
        files={"x": '"><script>'},
        seconds={hostile: 1.0},
    )
    html = render_report(record, PNG, federation)
    page = _Page(html)
    assert "script" not in page.tags
    assert page.text.count(hostile) > 10
    assert {name for name, _ in page.attributes} <= {name for name, _ in _plain_attributes(chest)}


def _plain_attributes(chest) -> list[tuple[str, str]]:
    return _Page(render_report(chest.reading(), PNG, FEDERATION)).attributes


def test_volumes_have_one_decimal_and_percents_are_whole(make_chest) -> None:
    chest = make_chest()
    record = chest.reading()
    text = _Page(render_report(record, PNG)).text
    assert f"{record.segmentation.lesion_ml:.1f}" in text
    assert f"{record.segmentation.lung_left_ml:,.1f}".replace(",", "\u2009") in text
    for percent in ("71 %", "17 %", "9 %", "3 %"):
        assert percent in text
    assert record.classification.statement in text


def test_a_reading_that_cannot_say_stresses_no_class(make_chest) -> None:
    unsure = describe_probabilities(np.array([[0.1, 0.8, 0.1, 0.0], [0.8, 0.1, 0.1, 0.0]]))
    html = render_report(make_chest().reading(classification=unsure), PNG)
    assert "Cannot say" in html
    assert "b" not in _Page(html).tags


@pytest.mark.parametrize(("protection", "is_red"), [("plaintext", True), ("masked sum", False)])
def test_plaintext_protection_is_shown_in_red(make_chest, protection: str, is_red: bool) -> None:
    chest = make_chest()
    model = dataclasses.replace(chest.reading().model, protection=protection)
    page = _Page(render_report(chest.reading(model=model), PNG))
    assert any(name == "class" and "danger" in value for name, value in page.attributes) == is_red
    assert ("the coordinator could read what each site sent" in page.text) == is_red


def test_the_training_story_tells_comparison_and_reasons_of_absence(make_chest) -> None:
    text = " ".join(_Page(render_report(make_chest().reading(), PNG, FEDERATION)).text.split())
    assert "macro AUC 0.91 on the held-out cohort; the sites' own models reach 0.75 on average" in text
    assert "○ no answer in time" in text
    assert "○ no study for this task" in text
    assert text.count("● took part") == 7
    assert "No value was reported." in text
    assert "No site trained a model of its own." in text


def test_without_a_federation_there_is_no_training_section(make_chest) -> None:
    assert "How the model was trained" not in render_report(make_chest().reading(), PNG)


def test_the_report_is_written_with_the_picture_inside(make_chest, tmp_path: Path) -> None:
    picture, path = tmp_path / "overview.png", tmp_path / "report.html"
    picture.write_bytes(PNG)
    write_report(path, make_chest().reading(), picture, FEDERATION)
    assert path.read_text(encoding="utf-8") == render_report(make_chest().reading(), PNG, FEDERATION)


def test_curves_skip_unknown_values_and_rise_with_the_metric() -> None:
    chart = draw_curves(FEDERATION["classifier"]["curve"])
    assert chart is not None
    lines = {line.name: line for line in chart.lines}
    assert [line.name for line in chart.lines] == ["A", "B", "C", "Mean of sites"]
    assert len(lines["Mean of sites"].points) == 2
    assert len(lines["C"].points) == 1
    heights = [y for _, y in lines["A"].points]
    assert heights == sorted(heights, reverse=True)
    assert all(chart.top <= y <= chart.bottom for line in chart.lines for _, y in line.points)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_curve_keeps_an_axis(value: float) -> None:
    chart = draw_curves([{"round": k, "validation": value, "sites": {"A": value}} for k in (0, 1)])
    assert chart is not None
    assert len(chart.values) >= 3
    assert all(chart.top <= tick.at <= chart.bottom + 1e-6 for tick in chart.values)
    assert min(line.label_at for line in chart.lines) >= chart.top


def test_bars_start_at_zero_and_their_length_is_the_metric() -> None:
    chart = draw_bars(0.9, {"B": 0.3, "A": 0.6})
    federated, a, b = (bar.end - chart.left for bar in chart.bars)
    assert (a / federated, b / federated) == pytest.approx((2 / 3, 1 / 3))
    assert chart.mean.at - chart.left == pytest.approx((a + b) / 2)


def test_labels_are_kept_apart_in_their_order_and_otherwise_left_alone() -> None:
    assert keep_apart([10.0, 50.0], 16.0) == pytest.approx([10.0, 50.0])
    moved = keep_apart([20.0, 19.0, 90.0, 20.5], 16.0)
    assert sorted(range(4), key=moved.__getitem__) == [1, 0, 3, 2]
    assert all(b - a >= 16 - 1e-9 for a, b in itertools.pairwise(sorted(moved)))
    assert moved[2] == pytest.approx(90.0)
