# SPDX-License-Identifier: Apache-2.0
"""Cross-site evaluations in the coordinator's database: how each model of a run did at each site."""

from dataclasses import dataclass

import sqlalchemy as sa

from ucadi.federation.evaluation import Cell, Matrix
from ucadi.store.audit import Audit
from ucadi.store.database import METADATA, Database
from ucadi.store.run_tables import find_run

__all__ = ["EvaluationStore", "SiteScore"]

_SCORES = sa.Table(
    "site_scores",
    METADATA,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.seq"), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("model_hash", sa.Text, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("studies", sa.BigInteger),
    sa.Column("low", sa.Double),
    sa.Column("high", sa.Double),
)


@dataclass(frozen=True)
class SiteScore:
    """One model's score at one site.

    Attributes:
        round: The round that made the model.
        site: Who measured it.
        model_hash: SHA-256 over names, shapes and values.
        value: In [0, 1].
        studies: On how many studies; None when the site did not say.
        low: Lower end of the site's 95 % interval; None when it sent none.
        high: Upper end.
    """

    round: int
    site: str
    model_hash: str
    value: float
    studies: int | None
    low: float | None
    high: float | None


class EvaluationStore:
    """The scores of a coordinator's database.

    Args:
        database: The coordinator's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = Audit(database)

    def keep(self, matrix: Matrix, actor: str = "coordinator") -> int:
        """Keep a matrix's scores, audited, in place of earlier ones of the same models; return their number.

        Raises:
            FederationError: ``run-unknown``.
        """
        scores = [
            SiteScore(row.candidate.round, site, row.candidate.model_hash, cell.value, *_sureness(cell))
            for row in matrix.rows
            for site, cell in row.cells.items()
            if cell.value is not None
        ]
        with self._database.begin() as connection:
            run = find_run(connection, matrix.run_id)["seq"]
            for score in scores:
                place = (_SCORES.c.run == run, _SCORES.c.round == score.round, _SCORES.c.site == score.site)
                connection.execute(_SCORES.delete().where(*place))
                connection.execute(_SCORES.insert().values(run=run, **vars(score)))
            details = {"rounds": [row.candidate.round for row in matrix.rows], "scores": len(scores)}
            self._audit.append(connection, actor, "models-evaluated", matrix.run_id, details)
        return len(scores)

    def scores(self, run_id: str) -> list[SiteScore]:
        """Return all scores of a run, by round and site.

        Raises:
            FederationError: ``run-unknown``.
        """
        with self._database.read() as connection:
            run = find_run(connection, run_id)["seq"]
            query = sa.select(_SCORES).where(_SCORES.c.run == run).order_by(_SCORES.c.round, _SCORES.c.site)
            rows = connection.execute(query).mappings()
            return [SiteScore(**{name: row[name] for name in SiteScore.__match_args__}) for row in rows]


def _sureness(cell: Cell) -> tuple[int | None, float | None, float | None]:
    """Return what a site said about how sure its score is."""
    return cell.studies, cell.low, cell.high
