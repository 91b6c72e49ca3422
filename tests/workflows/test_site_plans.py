# SPDX-License-Identifier: Apache-2.0
import pytest

from site_homes import make_home
from ucadi.workflows.site_plans import view_plan


@pytest.fixture
def words(tmp_path):
    """Says a plan in plain words, as a site's people read it."""
    home = make_home(tmp_path, 'approve = "ask"')
    state = home.open_state()
    yield lambda plan: dict(view_plan(home, state, state.see(plan).short).lines)
    state.close()


def test_how_unlike_the_sites_weigh_is_said(words, make_run_plan):
    assert "all sites weigh the same" in words(make_run_plan())["Aggregation"]
    said = words(make_run_plan(client_weights={"A": 0.5, "B": 20.0}))
    assert "the heaviest site counts 40 times as much as the lightest" in said["Aggregation"]
    assert "max_weight_ratio: the plan has 40, at most 10 is allowed." in said["Policy"]


def test_how_often_the_validation_studies_are_asked_is_said(words, make_run_plan):
    said = words(make_run_plan(rounds=10))["Scores"]
    assert said == "of at most 62 models, each rounded to four digits"  # 20 updates, 22 + 20 more
    assert words(make_run_plan(metrics=("loss",)))["Scores"].startswith("none leave")
