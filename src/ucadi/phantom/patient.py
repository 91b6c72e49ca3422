# SPDX-License-Identifier: Apache-2.0
"""A seeded patient: continuous anatomy and disease that can be rendered on any grid."""

from dataclasses import dataclass

import numpy as np

from ucadi.phantom.anatomy import HILA_MM, Thorax, draw_thorax, with_effusion
from ucadi.phantom.fields import Field, noise_field
from ucadi.phantom.lesions import SEVERITY_SHARE, Lesions, draw_lesions, draw_severity
from ucadi.phantom.lobes import Fissures, draw_fissures
from ucadi.phantom.trees import Tubes, draw_airways, draw_vessels, join, points_in_lung
from ucadi.types import FindingClass, Severity

__all__ = ["SEVERITY_SHARE", "Patient", "draw_patient"]


@dataclass(frozen=True, eq=False)
class Patient:
    """Anatomy and disease of one patient.

    Attributes:
        seed: What the patient was drawn from.
        label: Class of the disease.
        severity: COVID-19 grade; None for the other classes.
        thorax: Large anatomy.
        fissures: Borders of the lobes.
        vessels: Arteries and veins in the lungs.
        windpipe: Trachea and main bronchi (lumen).
        bronchi: Bronchi inside the lungs (lumen).
        scars: Bands and small nodules that are no lesion.
        lesions: The disease; None when healthy.
        coarse_noise: Slow variation of tissue density.
        fine_noise: Fine texture.
    """

    seed: int
    label: FindingClass
    severity: Severity | None
    thorax: Thorax
    fissures: Fissures
    vessels: Tubes
    windpipe: Tubes
    bronchi: Tubes
    scars: Tubes
    lesions: Lesions | None
    coarse_noise: Field
    fine_noise: Field


def draw_patient(seed: int, label: FindingClass, severity: Severity | None = None) -> Patient:
    """Draw a patient.

    Args:
        seed: Non-negative. The same seed gives the same healthy anatomy for every label.
        label: Class of the disease.
        severity: COVID-19 grade; drawn when None.

    Raises:
        ValueError: If a severity is given for another class than COVID-19.
    """
    if severity is not None and label is not FindingClass.COVID_19:
        raise ValueError(f"only COVID-19 has a severity, not {label.title}")
    anatomy, disease = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    thorax = draw_thorax(anatomy)
    fissures = draw_fissures(anatomy, thorax.build.scale)
    windpipe, bronchi = draw_airways(anatomy, thorax)
    vessels = draw_vessels(anatomy, thorax)
    scars = _draw_scars(anatomy, thorax)
    noise = noise_field(anatomy, 16, 11.0), noise_field(anatomy, 48, 2.4)
    if label is FindingClass.COVID_19 and severity is None:
        severity = draw_severity(disease)
    lesions = None
    if label is not FindingClass.HEALTHY:
        thorax = _draw_effusion(disease, thorax, label)
        lesions = draw_lesions(disease, thorax, fissures, label, severity)
    return Patient(
        seed, label, severity, thorax, fissures, vessels, windpipe, bronchi, scars, lesions, *noise
    )


def _draw_effusion(rng: np.random.Generator, thorax: Thorax, label: FindingClass) -> Thorax:
    """Add pleural fluid to some patients: a quarter of the bacterial ones, few others."""
    share = 0.25 if label is FindingClass.BACTERIAL else 0.04
    has_fluid, is_right, thickness_mm = rng.random() < share, rng.random() < 0.5, rng.uniform(10.0, 32.0)
    return with_effusion(thorax, is_right, thickness_mm) if has_fluid else thorax


def _draw_scars(rng: np.random.Generator, thorax: Thorax) -> Tubes:
    """Draw bands near the pleura and small nodules, as in many healthy people."""
    bands = int(rng.integers(0, 4))
    balls = int(rng.integers(0, 4))
    sides = list(HILA_MM)
    start = np.concatenate([points_in_lung(rng, thorax, 8, 2.0, side) for side in sides])
    start = start[rng.permutation(len(start))[: bands + balls]]
    reach = rng.normal(0.0, 9.0, (bands + balls, 3))
    reach[bands:] = 0.0
    radius = np.concatenate([rng.uniform(0.7, 1.6, bands), rng.uniform(1.2, 4.5, balls)])
    return join(Tubes(start, start + reach, radius))
