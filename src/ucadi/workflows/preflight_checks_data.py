# SPDX-License-Identifier: Apache-2.0
"""The preflight's checks of the studies: the table, a sample read as for training, the own rules."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ucadi.cohorts.cohort import Cohort, Study
from ucadi.config import Policy, SiteSettings
from ucadi.errors import CohortError
from ucadi.imaging.presets import PRESETS
from ucadi.types import FindingClass, Split, Task
from ucadi.workflows.cohort_check import CohortSummary, check_cohort
from ucadi.workflows.preflight_checks import Line, failed, ok, readable_bytes, skipped, warning
from ucadi.workflows.prepare import prepare_samples
from ucadi.workflows.site_gate import count_data

__all__ = [
    "Sample",
    "check_classes",
    "check_counts",
    "check_rules",
    "check_table",
    "largest_preset",
    "read_sample",
]

_SAMPLE_STUDIES = 4
_SAMPLE_S = 15.0
_USUAL_STUDY_BYTES = 40 * 10**6
"""Of a study in the cache when none could be measured: a large chest with the preset ``paper``."""


@dataclass(frozen=True)
class Sample:
    """What the reading of some studies showed.

    Attributes:
        train: Training studies that can be used.
        study_bytes: What a study takes in the cache, on average.
    """

    train: tuple[Study, ...] = ()
    study_bytes: float = _USUAL_STUDY_BYTES


def check_table(root: Path) -> Line:
    """Check the cohort's table and that the files which it names are there; images stay unread."""
    result = check_cohort(root, is_quick=True)
    problems = [problem for problem in result.problems if not problem.is_note]
    if problems:
        counted = Counter(problem.code for problem in problems)
        codes = ", ".join(f"{code} {count}" for code, count in sorted(counted.items()))
        found = f"{result.studies} studies, {len(problems)} problems: {codes}"
        return failed("cohort", found, f"See each with `ucadi cohort check {root}`.")
    return ok("cohort", f"{result.studies} studies in {root}, the table is valid")


def check_counts(summary: CohortSummary) -> Line:
    """Tell how many studies there are of each class in each split."""
    parts = []
    for split, classes in summary.by_class.items():
        counts = ", ".join(f"{label} {count}" for label, count in sorted(classes.items()))
        parts.append(f"{split}: {counts or 'none'}")
    found = f"{'; '.join(parts)}; {summary.patients} patients, {summary.masks} masks"
    missing = [split.value for split in (Split.TRAIN, Split.VALIDATION) if not summary.by_class[split.value]]
    if missing:
        cure = "Import with other shares, or add studies: `ucadi cohort import --split`."
        return warning("studies by class", f"no {' and no '.join(missing)} study; {found}", cure)
    return ok("studies by class", found)


def check_rules(settings: SiteSettings, policy: Policy) -> Iterator[Line]:
    """Tell per task whether the site's own minimum rules let it take part."""
    if settings.labels == "none":
        cure = 'Set labels = "use" in site.toml if the readers\' labels may be learned from.'
        yield warning("own rules", "site.toml gives no labels, which all plans of this release need", cure)
        return
    for task in policy.tasks:
        name = f"own rules, {task}"
        own = count_data(settings.cohort, task)
        found = (
            f"{own.studies} training studies of {own.patients} patients; required are "
            f"{settings.min_studies} (min_studies) and {policy.min_patients} (min_patients)"
        )
        if own.studies >= settings.min_studies and own.patients >= policy.min_patients:
            yield ok(name, found)
        else:
            cure = f"Add studies, or lower the site's own rule; until then it declines every {task} plan."
            yield warning(name, found, cure)


def check_classes(summary: CohortSummary, settings: SiteSettings) -> Line:
    """Tell whether a validation score would speak of too few studies of a class to be reported."""
    name, least = "own rules, metrics", settings.min_class_studies
    validation = summary.by_class[Split.VALIDATION.value]
    few = {label.name: validation.get(label.name, 0) for label in FindingClass}
    few = {label: count for label, count in few.items() if 0 < count < least}
    if not few:
        return ok(name, f"every class of the validation studies has {least} or more (min_class_studies)")
    found = ", ".join(f"{label} {count}" for label, count in few.items())
    cure = "Nothing, if the score may stay here; else add validation studies of these classes."
    return warning(name, f"validation studies fewer than {least} (min_class_studies): {found}", cure)


def largest_preset(policy: Policy) -> str:
    """Return the allowed input preset with the largest patch: the costliest that may come."""
    return max(policy.presets, key=lambda name: PRESETS[name].patch)


def read_sample(cohort: Cohort, cache: Path, preset: str) -> tuple[Line, Sample]:
    """Read and cut some studies as training does, for a bounded time; what was cut stays in the cache.

    Args:
        cohort: The site's.
        cache: Where the cut arrays go.
        preset: Name of the input preset.
    """
    if not cohort.studies:
        return skipped("reading", "there are no studies"), Sample()
    started = time.monotonic()
    codes: Counter[str] = Counter()
    usable: list[Study] = []
    read = 0
    for study in _chosen(cohort):
        if read and time.monotonic() - started > _SAMPLE_S:
            break
        read += 1
        try:
            prepare_samples(
                [Cohort(cohort.root, (study,))],
                study.split,
                Task.CLASSIFIER,
                preset,
                cache,
                lambda done, total: None,
                on_left_out=lambda study, code: codes.update([code]),
            )
            usable.append(study)
        except CohortError as error:
            if codes.total() + len(usable) != read:  # left out without a code of its own
                codes.update([error.code])
    seconds = (time.monotonic() - started) / read
    sample = Sample(
        tuple(study for study in usable if study.split is Split.TRAIN),
        _bytes_per_study(cache) if usable else _USUAL_STUDY_BYTES,
    )
    of = f"{read} of {len(cohort.studies)} studies read as for training, {seconds:.1f} s each"
    if not codes:
        return ok("reading", f"{of}, {readable_bytes(sample.study_bytes)} each in the cache"), sample
    counts = ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))
    cure = f"See which and why with `ucadi cohort check {cohort.root}`."
    found = f"{of}; {codes.total()} cannot be used: {counts}"
    make = warning if usable else failed
    return make("reading", found, cure), sample


def _chosen(cohort: Cohort) -> Sequence[Study]:
    """Return a few studies from all over the table, with one for each task's dry step in front."""
    train = cohort.of_split(Split.TRAIN)
    first = [study for study in train if study.lesion_mask][:1] or list(train[:1])
    step = max(1, len(cohort.studies) // _SAMPLE_STUDIES)
    spread = [study for study in cohort.studies[::-step] if study not in first]
    return [*first, *spread][:_SAMPLE_STUDIES]


def _bytes_per_study(cache: Path) -> float:
    """Return the mean size of a study's folder in the cache."""
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.npy"))
        for folder in cache.iterdir()
        if folder.is_dir()
    ]
    return sum(sizes) / len(sizes) if sizes else _USUAL_STUDY_BYTES
