# SPDX-License-Identifier: Apache-2.0
"""Sites' homes for tests: a cohort's table, settings and a policy, under a path that names a patient."""

from pathlib import Path

from ucadi.cohorts.cohort import Study, write_cohort
from ucadi.config import CoordinatorAddress, SiteSettings
from ucadi.types import FindingClass, Split
from ucadi.workflows.site_home import SiteHome, site_text

PLANTED = "DOE_JANE_19570412"
"""Stands in every path and key of a home, and must never leave it."""

ADDRESS = CoordinatorAddress(site="A", name="hub", host="hub.example", port=8002, api_port=8003)


def write_policy(home: SiteHome, *lines: str) -> None:
    """Replace the policy by these lines."""
    home.policy_file.write_text("\n".join(["config_version = 1", "[policy]", *lines]) + "\n")


def write_studies(cohort: Path, patients: int, split: Split = Split.TRAIN, studies_each: int = 2) -> None:
    """Write a cohort's table; its images are empty files."""
    cohort.mkdir(parents=True, exist_ok=True)
    (cohort / "image.nii.gz").touch()
    studies = tuple(
        Study(
            patient_key=f"{PLANTED}-{patient}",
            study_key=f"{PLANTED}-{patient}-{number}",
            split=split,
            label=FindingClass(patient % len(FindingClass)),
            severity=None,
            image="image.nii.gz",
        )
        for patient in range(patients)
        for number in range(studies_each)
    )
    write_cohort(cohort, studies)


def make_home(folder: Path, *policy: str, patients: int = 12, **settings: object) -> SiteHome:
    """Make the home of site A, which has joined, and a kit's folder in it."""
    home = SiteHome(folder / PLANTED)
    (home.kit / "local").mkdir(parents=True)
    write_studies(folder / PLANTED / "cohort", patients)
    own = SiteSettings(cohort=Path("cohort"), cache=Path("cache"), **settings)
    home.settings_file.write_text(site_text(own, ADDRESS))
    write_policy(home, *policy)
    return home
