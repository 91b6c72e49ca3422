# SPDX-License-Identifier: Apache-2.0
"""How right the lung mask is, per class of phantom patients, with and without the search for consolidation.

    python experiments/lung_masks.py --patients 48

Prints a Markdown table: means with 95 % intervals (bootstrap over patients), and the 5th percentile of the
share of each patient's lesions that lies inside the mask. The truth counts lesions as lung, fluid not.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np

from ucadi.imaging.lungs import Lungs, find_lungs
from ucadi.imaging.volume import Volume
from ucadi.phantom.acquisition import STYLES, acquire, scan_grid
from ucadi.phantom.patient import Patient, draw_patient
from ucadi.phantom.render import RenderedPatient, render_patient
from ucadi.types import FindingClass

SEARCH = "ucadi.imaging.lungs.fill_consolidation"


@dataclass(frozen=True)
class Scores:
    """One patient's figures.

    Attributes:
        dice: Overlap with the true lungs.
        volume, right, left: Relative error of the volumes in percent.
        inside: Share of the lesions inside the mask in percent; nan without lesions.
        fluid: Share of the pleural fluid inside the mask in percent; nan without fluid.
    """

    dice: float
    volume: float
    right: float
    left: float
    inside: float
    fluid: float


def score(lungs: Lungs, truth: RenderedPatient, fluid: np.ndarray) -> Scores:
    """Compare a mask with the truth."""
    x = truth.grid.origin_mm[2] + truth.grid.spacing_mm[2] * np.arange(truth.grid.shape[2])
    true = truth.lung_mask
    common = np.count_nonzero(lungs.mask & true)
    total = np.count_nonzero(lungs.mask) + np.count_nonzero(true)

    def error(mask: np.ndarray, reference: np.ndarray) -> float:
        return 100.0 * (np.count_nonzero(mask) / np.count_nonzero(reference) - 1.0)

    def share(region: np.ndarray) -> float:
        return 100.0 * float(lungs.mask[region].mean()) if region.any() else float("nan")

    return Scores(
        2.0 * common / total,
        error(lungs.mask, true),
        error(lungs.right, true & (x < 0.0)),
        error(lungs.left, true & (x >= 0.0)),
        share(truth.lesion_mask),
        share(fluid),
    )


def scans(
    patients: int, seed: int, matrix: int
) -> Iterator[tuple[FindingClass, Volume, RenderedPatient, np.ndarray]]:
    """Yield label, scan, truth and pleural fluid of each patient; classes and sites by turns."""
    labels, styles = list(FindingClass), list(STYLES.values())
    for number in range(patients):
        label, style = labels[number % len(labels)], styles[number // len(labels) % len(styles)]
        patient = draw_patient(seed + number, label)
        truth = render_patient(patient, scan_grid(patient, style, matrix))
        volume = acquire(truth, style, np.random.default_rng([seed, number]))
        yield label, volume, truth, _fluid(patient, truth)


def _fluid(patient: Patient, truth: RenderedPatient) -> np.ndarray:
    """Return where fluid took the lung's place: the same anatomy without disease has lung there."""
    twin = draw_patient(patient.seed, FindingClass.HEALTHY)
    if np.array_equal(twin.thorax.lung.nodes, patient.thorax.lung.nodes):
        return np.zeros_like(truth.lung_mask)
    return np.asarray(render_patient(twin, truth.grid).lung_mask & ~truth.lung_mask)


def interval(values: np.ndarray, of: Callable[..., np.ndarray]) -> str:
    """Return a figure over patients with its 95 % interval."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "-"
    draws = np.random.default_rng(0).integers(values.size, size=(2000, values.size))
    low, high = np.percentile(of(values[draws], axis=1), (2.5, 97.5))
    digits = 3 if np.abs(values).max() <= 1.0 else 1
    return f"{of(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def lowest(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the 5th percentile."""
    return np.asarray(np.percentile(values, 5.0, axis=axis))


def rows(name: str, found: list[Scores]) -> str:
    """Return one line of the table."""
    columns = {field: np.array([getattr(s, field) for s in found]) for field in Scores.__dataclass_fields__}
    cells = [
        name,
        str(len(found)),
        interval(columns["dice"], np.mean),
        interval(columns["volume"], np.mean),
        interval(np.abs(columns["right"]), np.mean),
        interval(np.abs(columns["left"]), np.mean),
        interval(columns["inside"], np.mean),
        interval(columns["inside"], lowest),
        interval(columns["fluid"], np.mean),
    ]
    return "| " + " | ".join(cells) + " |\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--matrix", type=int, default=128)
    options = parser.parse_args()
    results: dict[tuple[str, str], list[Scores]] = {}
    for number, (label, volume, truth, fluid) in enumerate(
        scans(options.patients, options.seed, options.matrix), start=1
    ):
        with mock.patch(SEARCH, lambda sides, *_: sides):
            air_only = find_lungs(volume)
        for method, lungs in (("air only", air_only), ("with search", find_lungs(volume))):
            scores = score(lungs, truth, fluid)
            results.setdefault((label.title, method), []).append(scores)
            sys.stderr.write(f"{number} {label.title} {method}: {scores}\n")
    head = "class, method|patients|Dice|volume error %|right: error in size %|left: error in size %|"
    head += "lesions inside %|its 5th percentile|fluid inside %"
    columns = head.split("|")
    sys.stdout.write("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns) + "\n")
    for (title, method), found in sorted(results.items()):
        sys.stdout.write(rows(f"{title}, {method}", found))


if __name__ == "__main__":
    main()
