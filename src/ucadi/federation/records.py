# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: one record per round, and what people who follow it are told."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["SELECTION_METRIC", "OnProgress", "Progress", "RoundRecord", "own_best"]

SELECTION_METRIC = "validation"
"""Name of the metric by which sites judge the global model that they received; in [0, 1], 1 is best."""


@dataclass(frozen=True)
class Progress:
    """Something that a person who follows the run wants to know.

    Attributes:
        kind: ``ready``, ``update``, ``validation``, ``missing``, ``waiting``, ``round`` (complete) or
            ``hand-over`` (to a job with other members).
        round: From 1.
        site: Whom it is about; empty when about the round.
        detail: The reason when a site is missing or a round waits.
    """

    kind: str
    round: int
    site: str
    detail: str = ""


OnProgress = Callable[[Progress], None]


@dataclass
class RoundRecord:
    """What happened in one round.

    Attributes:
        round: From 1.
        participants: Sites whose updates are in the sum.
        missing: Why the others are not: a registered code, ``site-lost`` or ``site-late``.
        metrics: What each participant reported.
        validation: Weighted mean of the participants' selection metric for the model that the round
            started from.
        upload_bytes: Bytes of all accepted updates.
        studies: Training studies of each participant, as it reported them.
    """

    round: int
    participants: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Mapping[str, float]] = field(default_factory=dict)
    validation: float | None = None
    upload_bytes: int = 0
    studies: dict[str, int] = field(default_factory=dict)


def own_best(records: Iterable[RoundRecord]) -> dict[str, int]:
    """Return for each site the round whose global model was best on its own validation studies.

    A record's metrics judge the model that its round started from. Of equal models the first counts.
    """
    best: dict[str, tuple[float, int]] = {}
    for record in records:
        for site, metrics in record.metrics.items():
            score = metrics.get(SELECTION_METRIC)
            if score is not None and (site not in best or score > best[site][0]):
                best[site] = (score, record.round - 1)
    return {site: number for site, (_, number) in sorted(best.items())}
