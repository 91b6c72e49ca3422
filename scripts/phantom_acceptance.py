# SPDX-License-Identifier: Apache-2.0
"""Measure the phantom and print it beside what real scans and lesion masks measure.

Run: python scripts/phantom_acceptance.py [patients per class] [site]
"""

import sys

import numpy as np
from scipy import ndimage

from ucadi.phantom.acquisition import STYLES, SiteStyle, acquire, scan_grid
from ucadi.phantom.patient import draw_patient
from ucadi.phantom.render import RenderedPatient, render_patient
from ucadi.types import FindingClass

_PIECE_ML = 0.05


def noise_of(hu: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Median sd of 9x9 patches of flat soft tissue, and the lag-1 correlation along rows."""
    sds, lags = [], []
    flat = ndimage.maximum_filter(truth, (1, 9, 9)) - ndimage.minimum_filter(truth, (1, 9, 9)) < 14.0
    for k, j, i in np.argwhere(flat & (truth > 20.0) & (truth < 70.0))[::97]:
        patch = hu[k, j - 4 : j + 5, i - 4 : i + 5].astype(np.float64)
        if patch.shape == (9, 9):
            rest = patch - patch.mean()
            sds.append(rest.std())
            lags.append((rest[:, 1:] * rest[:, :-1]).mean() / rest.var())
    return float(np.median(sds)), float(np.median(lags))


def lesion_measures(rendered: RenderedPatient) -> dict[str, float]:
    """Share, pieces, depth and position of one patient's lesion, as measured on real masks."""
    lesion, lung = rendered.lesion_mask, rendered.lung_mask
    ml = rendered.grid.voxel_ml
    _, spacing_y, spacing_x = rendered.grid.spacing_mm
    labels, count = ndimage.label(lesion)
    sizes = np.bincount(labels.ravel())[1:] * ml if count else np.zeros(0)
    pieces, areas, depths, backs = [], [], [], []
    for k in np.flatnonzero(lesion.any(axis=(1, 2))):
        pieces.append(ndimage.label(lesion[k])[1])
        areas.append(lesion[k].sum() / max(1, lung[k].sum()))
        distance = ndimage.distance_transform_edt(lung[k], sampling=(spacing_y, spacing_x))
        depths.append((distance[lesion[k]] / distance.max()).mean())
        rows = np.flatnonzero(lung[k].any(axis=1))
        backs.append(((np.nonzero(lesion[k])[0] - rows[0]) / max(1, rows[-1] - rows[0])).mean())
    middle = int(
        np.searchsorted(
            rendered.grid.to_world(np.array([[0.0, 0.0, i] for i in range(lung.shape[2])]))[:, 0], 0
        )
    )
    right, left = (
        lesion[:, :, part].sum() / max(1, lung[:, :, part].sum())
        for part in (slice(0, middle), slice(middle, None))
    )
    return {
        "share": lesion.sum() / lung.sum(),
        "ml": lesion.sum() * ml,
        "pieces": float((sizes >= _PIECE_ML).sum()),
        "piece_ml": float(np.median(sizes[sizes >= _PIECE_ML])) if (sizes >= _PIECE_ML).any() else 0.0,
        "pieces_slice": float(np.mean(pieces)),
        "area": float(np.mean(areas)),
        "depth": float(np.mean(depths)),
        "back": float(np.mean(backs)),
        "both": float(min(left, right) >= 0.1 * max(left, right)),
    }


def show(name: str, values: list[float], reference: str) -> None:
    low, middle, high = np.percentile(values, (10, 50, 90))
    print(f"  {name:28s} {low:9.2f} {middle:9.2f} {high:9.2f}   real: {reference}")


def measure_site(style: SiteStyle, count: int) -> None:
    print(f"site {style.name}: 10 %, 50 %, 90 % over patients")
    for label in FindingClass:
        lungs, lesions = [], []
        for seed in range(count):
            patient = draw_patient(1000 * label + seed, label)
            rendered = render_patient(patient, scan_grid(patient, style, 128))
            volume = acquire(rendered, style, np.random.default_rng(seed))
            lung = volume.voxels[rendered.lung_mask]
            air = lung[lung < -400]  # a threshold mask, as on the real scans
            lungs.append(
                (
                    *np.percentile(air, (5, 50, 95)),
                    air.mean(),
                    rendered.lung_mask.sum() * rendered.grid.voxel_ml / 1000,
                )
            )
            if label is not FindingClass.HEALTHY:
                lesions.append(lesion_measures(rendered))
        print(f" {label.title}")
        for name, column, reference in (
            ("lung HU 5 %", 0, "-901..-959"), ("lung HU median", 1, "-838..-881"),
            ("lung HU 95 %", 2, "-509..-588"),
            ("lung HU mean", 3, "-808..-839"), ("lung volume, L", 4, "2.8-6.1"),
        ):  # fmt: skip
            show(name, [row[column] for row in lungs], reference)
        references = {
            "share": "", "ml": "17 66 156; 404", "pieces": "4 17 42", "piece_ml": "0.06 0.38 7 (all)",
            "pieces_slice": "1.1-5.5, median 2.8", "area": "0.02-0.61, median 0.07",
            "depth": "0.23-0.36", "back": "0.60-0.85", "both": "65 %",
        }  # fmt: skip
        for name, reference in references.items() if lesions else ():
            values = [row[name] for row in lesions]
            show(name, values, reference if label is FindingClass.COVID_19 else "")
            if name == "both":
                print(f"  both lungs: {np.mean(values):.2f}")


def measure_noise() -> None:
    print("soft-tissue noise: sd, lag-1 (256 matrix and 512 matrix)")
    for style in STYLES.values():
        patient = draw_patient(7, FindingClass.HEALTHY)
        cells = []
        for matrix in (256, 512):
            grid = scan_grid(patient, style, matrix)
            middle = grid.shape[0] // 3
            grid = grid.crop((slice(middle, middle + 4), slice(0, matrix), slice(0, matrix)))
            rendered = render_patient(patient, grid)
            volume = acquire(rendered, style, np.random.default_rng(0))
            sd, lag = noise_of(volume.voxels, rendered.hu)
            cells.append(f"sd {sd:.1f} lag-1 {lag:.2f}")
        print(f"  {style.name}: stated {style.noise_sd_hu}  " + "   ".join(cells))


if __name__ == "__main__":
    measure_noise()
    measure_site(
        STYLES[sys.argv[2] if len(sys.argv) > 2 else "A"], int(sys.argv[1]) if len(sys.argv) > 1 else 20
    )
