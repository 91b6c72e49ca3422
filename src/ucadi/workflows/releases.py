# SPDX-License-Identifier: Apache-2.0
"""The life of a model at the coordinator: release, promote, roll back, export.

HOME/releases/NAME/   one folder per release, as `ucadi.workflows.release_files` describes it

Which release is current stands in the coordinator's database, with its history and audited.
"""

import getpass
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ucadi import __version__
from ucadi.crypto.identity import Identity
from ucadi.errors import ConfigError, FederationError, UcadiError
from ucadi.federation.plans import plan_document
from ucadi.io.checkpoint import NetworkCard, write_bytes, write_json, write_model
from ucadi.store.database import Database
from ucadi.store.releases import Promotion, ReleaseStore
from ucadi.store.runs import RunStore
from ucadi.tensors import Tensors
from ucadi.types import Task
from ucadi.workflows.coordinator_home import COORDINATOR, CoordinatorHome
from ucadi.workflows.cross_site import read_matrix
from ucadi.workflows.kept_models import KeptRun, read_run, run_folder
from ucadi.workflows.release_card import CardWords, card_markdown, network_record, release_card
from ucadi.workflows.release_files import (
    CARD_FILE,
    CARD_RECORD,
    RELEASE_FILE,
    FolderSource,
    Statement,
    check_release,
    check_release_name,
    export_release,
    locked_folder,
    read_statement,
    sign_release,
)

__all__ = ["Shelf", "open_shelf", "release_models", "shelf_of"]


class Shelf:
    """A coordinator's releases.

    Args:
        home: The coordinator's home.
        database: Its database.
        key: Its public key, base64: releases of another signer are not shown as its own.
        actor: Who acts, for the audit log.
    """

    def __init__(self, home: Path, database: Database, key: str, actor: str = "operator") -> None:
        self._home = home
        self._folder = home / "releases"
        self._database = database
        self._store = ReleaseStore(database)
        self._key = key
        self._actor = actor

    def release(
        self,
        name: str,
        run_ids: Sequence[str],
        rounds: Sequence[str],
        identity: Identity,
        words: CardWords,
    ) -> Statement:
        """Freeze models of runs as a signed release.

        Args:
            name: Never given twice.
            run_ids: One run for each task that the release is to have.
            rounds: ``best``, ``last`` or a number, for each run or one for all.
            identity: The coordinator's.
            words: What people add to the card.

        Raises:
            ConfigError: ``release-name``, ``release-exists``, or ``config-invalid`` for two runs of one task.
            FederationError: ``run-unknown``, ``model-not-kept`` or ``model-mismatch``.
        """
        target = self._folder / check_release_name(name)
        chosen = self._choose(run_ids, rounds)
        with locked_folder(self._folder):
            if target.exists():
                raise ConfigError("release-exists", f"There is a release {name} already.")
            draft = self._folder / f".{name}.partial"
            draft.mkdir(mode=0o700)
            try:
                statement = self._write(draft, name, chosen, identity, words)
                with self._database.begin() as connection:
                    self._store.note_release(connection, name, statement.hash, self._actor)
                    draft.rename(target)  # the last step: what was noted is there
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return statement

    def names(self) -> list[str]:
        """Return the names of all releases in the folder."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(path.name for path in found if (path / RELEASE_FILE).is_file() and path.name[0] != ".")

    def listing(self) -> dict[str, Any]:
        """Return all releases, oldest first, and which one is current; their files are not read."""
        entries = []
        for name in self.names():
            try:
                entries.append({**self.statement(name).summary(), "fault": None})
            except UcadiError as error:
                entries.append({"name": name, "created": "", "fault": error.code})
        entries.sort(key=lambda entry: (entry["created"], entry["name"]))
        current = self._store.current()
        return {"current": None if current is None else current.name, "releases": entries}

    def history(self) -> list[Promotion]:
        """Return which release became current when and by whom."""
        return self._store.history()

    def current(self) -> str:
        """Return the current release's name.

        Raises:
            ConfigError: ``release-unknown`` if none was promoted.
        """
        promotion = self._store.current()
        if promotion is None:
            raise ConfigError("release-unknown", "No release was promoted yet.")
        return promotion.name

    def statement(self, name: str) -> Statement:
        """Return a release's statement after a check of its signature.

        Raises:
            ConfigError: ``release-unknown``.
            UcadiError: ``release-altered`` or ``release-signer``.
        """
        return read_statement(FolderSource(self.folder(name)), self._key)

    def card(self, name: str) -> dict[str, Any]:
        """Return a release's card, after a check of the whole release."""
        self.verify(name)
        document: dict[str, Any] = json.loads((self.folder(name) / CARD_RECORD).read_bytes())
        return document

    def verify(self, name: str) -> Statement:
        """Check a release's signature and every file.

        Raises:
            UcadiError: ``release-unknown``, ``release-altered`` or ``release-signer``.
        """
        return check_release(FolderSource(self.folder(name)), self._key)

    def promote(self, name: str) -> Promotion:
        """Make a release the current one, after a check of every file.

        Raises:
            UcadiError: As `verify`; then nothing changes.
        """
        return self._store.promote(name, self.verify(name).hash, self._actor)

    def rollback(self) -> Promotion:
        """Make the release current that was before; it is checked first.

        Raises:
            ConfigError: ``release-unknown`` if there was none before.
            UcadiError: As `verify`; then nothing changes.
        """
        before = self._store.previous()
        if self.verify(before.name).hash != before.hash:
            raise ConfigError("release-altered", f"{before.name} is not the release that was promoted.")
        return self._store.rollback(self._actor, expected=before)

    def export(self, name: str, archive: Path) -> Statement:
        """Write a release into one archive, for sites without a connection."""
        return export_release(self.folder(name), archive, self._key)

    def file(self, name: str, file: str) -> Path:
        """Return where a file of a release is; only files that its signed statement names.

        Raises:
            UcadiError: ``release-unknown``, ``release-altered`` or ``release-signer``.
        """
        if file != RELEASE_FILE and file not in self.statement(name).files:
            raise ConfigError("release-unknown", f"{name} has no file {file[:80]!r}.")
        return self.folder(name) / file

    def folder(self, name: str) -> Path:
        """Return a release's folder.

        Raises:
            ConfigError: ``release-name`` or ``release-unknown``.
        """
        folder = self._folder / check_release_name(name)
        if not (folder / RELEASE_FILE).is_file():
            raise ConfigError("release-unknown", f"There is no release {name}.")
        return folder

    def _choose(self, run_ids: Sequence[str], rounds: Sequence[str]) -> dict[Task, tuple[KeptRun, int]]:
        """Return run and round by task."""
        words = list(rounds) * len(run_ids) if len(rounds) == 1 else list(rounds)
        if not run_ids or len(words) != len(run_ids):
            raise ConfigError(
                "config-invalid",
                f"{len(rounds)} rounds are given for {len(run_ids)} runs; give one or as many.",
            )
        chosen: dict[Task, tuple[KeptRun, int]] = {}
        for run_id, word in zip(run_ids, words, strict=True):
            run = read_run(run_folder(self._home, run_id))
            task = run.plan.training.task
            if task in chosen:
                raise ConfigError("config-invalid", f"Two of the runs train the {task}.")
            number = run.round_of(word)
            self._check_book(run, number)
            chosen[task] = (run, number)
        return dict(sorted(chosen.items()))

    def _check_book(self, run: KeptRun, number: int) -> None:
        """Refuse a model that is not the one of which the database and its audit log tell."""
        try:
            told = RunStore(self._database).state(run.plan.run_id).model_hashes
        except FederationError:  # a run that was simulated in the home's folder is in no book
            return
        if told.get(number) != run.hashes[number]:
            raise FederationError(
                "model-mismatch",
                f"Round {number} of {run.plan.run_id} on disk is not the one that the database tells of.",
            )

    def _write(
        self,
        draft: Path,
        name: str,
        chosen: Mapping[Task, tuple[KeptRun, int]],
        identity: Identity,
        words: CardWords,
    ) -> Statement:
        """Write all files of a release into a folder that nobody sees yet."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        current = self._store.current()
        parent = None if current is None else self.statement(current.name)
        records: dict[Task, dict[str, Any]] = {}
        parameters: dict[Task, Tensors] = {}
        for task, (run, number) in chosen.items():
            parameters[task] = run.model(number).parameters
            records[task] = network_record(run, number, read_matrix(run.folder))
        model = write_model(
            draft,
            name=name,
            trained_on=_trained_on(records),
            cards={task: _network_card(record) for task, record in records.items()},
            parameters=parameters,
            run={
                "created": created,
                "ucadi_version": __version__,
                "plans": {task.value: plan_document(run.plan) for task, (run, _) in chosen.items()},
            },
        )
        before = None if parent is None else {"name": parent.name, "hash": parent.hash}
        by_name = {task.value: record for task, record in records.items()}
        card = release_card(name, model.model_id, created, by_name, words, before)
        write_json(draft / CARD_RECORD, card)
        write_bytes(draft / CARD_FILE, card_markdown(card).encode())
        return sign_release(
            draft,
            identity,
            name=name,
            model_id=model.model_id,
            created=created,
            ucadi_version=__version__,
            parent=parent,
        )


def shelf_of(home: CoordinatorHome, database: Database, actor: str = COORDINATOR) -> Shelf:
    """Return a coordinator's releases, for example for `ucadi.enrolment.releases.release_routes`."""
    return Shelf(home.folder, database, home.identity().public_key, actor)


@contextmanager
def open_shelf(home: CoordinatorHome) -> Iterator[Shelf]:
    """Open a coordinator's releases for one command.

    Raises:
        ConfigError: If a key is missing or exposed.
        StoreError: If the state cannot be used.
    """
    database = home.open_database()
    try:
        yield shelf_of(home, database, _actor())
    finally:
        database.close()


def release_models(
    home: CoordinatorHome, name: str, run_ids: Sequence[str], rounds: Sequence[str], words: CardWords
) -> Statement:
    """Freeze models of runs as a release that the coordinator signs.

    Raises:
        UcadiError: As `Shelf.release`.
    """
    with open_shelf(home) as shelf:
        return shelf.release(name, run_ids, rounds, home.identity(), words)


def _actor() -> str:
    """Return who gives the command, as this machine knows them."""
    try:
        return f"operator {getpass.getuser()}"[:100]
    except (OSError, KeyError):  # a container's user may have no name
        return "operator"


def _network_card(record: Mapping[str, Any]) -> NetworkCard:
    """Return what the model folder says about one network."""
    score = record["validation"]
    return NetworkCard(
        network=record["network"],
        preset=record["preset"],
        parameters_hash=record["parameters_hash"],
        rounds=record["round"],
        sites=tuple(site for site, entry in record["sites"].items() if entry["rounds"]),
        protection=record["protection"],
        metrics={} if score is None else {f"validation_{record['measure']}": score},
    )


def _trained_on(records: Mapping[Task, Mapping[str, Any]]) -> str:
    """Return in words what the models were trained on, as far as the sites reported it."""
    parts = []
    for task, record in records.items():
        trained = [entry for entry in record["sites"].values() if entry["rounds"]]
        counts = [entry["training_studies"] for entry in trained]
        known = counts and None not in counts
        studies = f"{sum(counts)} studies" if known else "studies, not all counted in the records,"
        parts.append(f"{task}: {studies} at {len(trained)} sites")
    return "; ".join(parts)
