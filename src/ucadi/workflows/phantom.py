# SPDX-License-Identifier: Apache-2.0
"""Make a site's cohort of phantom patients: NIfTI, masks, DICOM series and the study table."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ucadi.cohorts.cohort import Cohort, Study, write_cohort
from ucadi.errors import ConfigError, DataError
from ucadi.imaging.volume import Volume
from ucadi.io.dicom_write import SeriesHeader, TransferSyntax, write_ct_series
from ucadi.io.nifti import write_nifti
from ucadi.phantom.acquisition import STYLES, SiteStyle, acquire, scan_grid
from ucadi.phantom.patient import draw_patient
from ucadi.phantom.render import render_patient
from ucadi.types import FindingClass, Split

__all__ = [
    "GENERATOR_VERSION",
    "PHANTOM_FILE",
    "assign_classes",
    "assign_splits",
    "make_cohort",
    "patient_seed",
]

GENERATOR_VERSION = 1
"""Rises whenever the same seed gives another picture."""

PHANTOM_FILE = "phantom.json"


def make_cohort(
    site: str,
    patients: int,
    seed: int,
    out: Path,
    *,
    matrix: int = 128,
    masks: bool = True,
    dicom: bool = True,
    splits: tuple[float, float, float] = (0.75, 0.25, 0.0),
    on_progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Write a cohort of one site; the same arguments give the same bytes.

    Args:
        site: A key of `STYLES`.
        patients: Number of patients, one study each.
        seed: Seed of the cohort; patients of different sites, seeds and places in the cohort never coincide.
        out: Folder to fill; missing or empty.
        matrix: Rows and columns; the pixel size is the site's field of view over it.
        masks: Whether the true lesion masks are written; empty ones for healthy patients.
        dicom: Whether DICOM series are written beside the NIfTI files.
        splits: Shares of training, validation and test patients, summing to 1, kept within each class.
        on_progress: Called with (done, total) after each patient.

    Raises:
        ConfigError: If the site is unknown, or a number is out of bounds.
        DataError: If the folder holds something already.
    """
    _check(site, patients, matrix, splits)
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise DataError("output-exists", f"{out} is not empty.")
    style = STYLES[site]
    labels = assign_classes(style, patients, seed)
    parts = assign_splits(labels, splits, seed)
    for name in ("nifti", *(["dicom"] if dicom else [])):
        (out / name).mkdir(parents=True, exist_ok=True)
    studies = []
    for index, (label, split) in enumerate(zip(labels, parts, strict=True)):
        studies.append(_make_study(style, index, label, split, seed, out, matrix, masks, dicom))
        if on_progress is not None:
            on_progress(index + 1, patients)
    _write_description(out, style, seed, patients, matrix)
    return write_cohort(out, tuple(studies))


def patient_seed(site: str, seed: int, index: int) -> int:
    """Return the seed of one patient: 63 bits of a hash, so sites and cohorts share no patient."""
    digest = hashlib.sha256(f"ucadi phantom {site} {seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def assign_classes(style: SiteStyle, patients: int, seed: int) -> tuple[FindingClass, ...]:
    """Return each patient's class: the site's mix to the nearest patient, in a drawn order.

    A class with a share gets at least one patient when there are as many patients as such classes.
    """
    shares = np.array([style.class_mix[label] for label in FindingClass])
    counts = _apportion(shares, patients)
    if patients >= np.count_nonzero(shares):
        for missing in np.flatnonzero((shares > 0) & (counts == 0)):
            counts[counts.argmax()] -= 1
            counts[missing] += 1
    labels = np.repeat(np.arange(len(shares)), counts)
    order = np.random.default_rng([patient_seed(style.name, seed, -1), 1]).permutation(labels)
    return tuple(FindingClass(int(label)) for label in order)


def assign_splits(
    labels: tuple[FindingClass, ...], splits: tuple[float, float, float], seed: int
) -> tuple[Split, ...]:
    """Return each patient's split, shared out within each class.

    Each wanted split gets at least one patient of a class that has enough; training comes first.
    """
    rng = np.random.default_rng([seed, 2])
    out = [Split.TRAIN] * len(labels)
    for label in FindingClass:
        members = rng.permutation([i for i, other in enumerate(labels) if other is label])
        counts = _apportion(np.array(splits), len(members))
        for empty in np.flatnonzero((np.array(splits) > 0) & (counts == 0)):
            if counts.max() > 1:
                counts[counts.argmax()] -= 1
                counts[empty] += 1
        names = np.repeat(np.arange(len(splits)), counts)
        for member, name in zip(members, names, strict=True):
            out[int(member)] = list(Split)[int(name)]
    return tuple(out)


def _apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Share out a whole number by largest remainders; the first wins a tie."""
    exact = shares / shares.sum() * total
    counts = np.floor(exact + 1e-9).astype(int)
    rest = np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]
    counts[rest] += 1
    return np.asarray(counts)


def _make_study(
    style: SiteStyle,
    index: int,
    label: FindingClass,
    split: Split,
    seed: int,
    out: Path,
    matrix: int,
    masks: bool,
    dicom: bool,
) -> Study:
    """Draw, scan and write one patient."""
    number = patient_seed(style.name, seed, index)
    patient = draw_patient(number, label)
    rendered = render_patient(patient, scan_grid(patient, style, matrix))
    volume = acquire(rendered, style, np.random.default_rng([number, 4]))
    patient_key = f"{style.name}{index + 1:04d}"
    key = f"{patient_key}-1"
    write_nifti(volume, out / "nifti" / f"{key}.nii.gz")
    if masks:
        write_nifti(Volume(rendered.lesion_mask, rendered.grid), out / "nifti" / f"{key}_lesion.nii.gz")
    if dicom:
        _write_series(volume, out / "dicom" / key, style, patient_key, f"{key} seed {seed}", index)
    return Study(
        patient_key=patient_key,
        study_key=key,
        split=split,
        label=label,
        severity=patient.severity,
        image=f"nifti/{key}.nii.gz",
        dicom=f"dicom/{key}" if dicom else "",
        lesion_mask=f"nifti/{key}_lesion.nii.gz" if masks else "",
        lesion_ml=round(float(rendered.lesion_mask.sum()) * rendered.grid.voxel_ml, 3),
    )


def _write_series(
    volume: Volume, folder: Path, style: SiteStyle, patient_key: str, study_key: str, index: int
) -> None:
    """Write a study as DICOM; every fourth one compressed, as archives are mixed."""
    header = SeriesHeader(
        patient_key=patient_key,
        study_key=study_key,
        manufacturer=style.manufacturer,
        kernel=style.kernel,
        intercept=style.intercept,
        is_signed=style.is_signed,
        padding_hu=style.padding_hu,
    )
    syntax = TransferSyntax.RLE if index % 4 == 3 else TransferSyntax.EXPLICIT_LE
    write_ct_series(volume, folder, header, transfer_syntax=syntax)


def _write_description(out: Path, style: SiteStyle, seed: int, patients: int, matrix: int) -> None:
    """Write what made the cohort."""
    described = asdict(style)
    described["class_mix"] = {label.name: share for label, share in style.class_mix.items()}
    text = json.dumps(
        {
            "generator_version": GENERATOR_VERSION,
            "site": style.name,
            "seed": seed,
            "patients": patients,
            "matrix": matrix,
            "style": described,
        },
        indent=2,
    )
    (out / PHANTOM_FILE).write_text(text + "\n", encoding="utf-8")


def _check(site: str, patients: int, matrix: int, splits: tuple[float, float, float]) -> None:
    """Refuse settings that make no cohort."""
    if site not in STYLES:
        known = ", ".join(STYLES)
        raise ConfigError("config-invalid", f"There is no phantom site {site[:40]!r}.", cure=f"Use {known}.")
    if patients < 1:
        raise ConfigError("config-invalid", f"patients is {patients}.", cure="Give 1 or more.")
    if not 32 <= matrix <= 1024:
        raise ConfigError("config-invalid", f"matrix is {matrix}.", cure="Give 32 to 1024.")
    if min(splits) < 0 or abs(sum(splits) - 1.0) > 1e-6:
        raise ConfigError("config-invalid", f"splits are {splits}.", cure="Give shares that sum to 1.")
