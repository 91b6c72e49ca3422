# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end on one machine, with synthetic patients.

Three hospitals' cohorts, a coordinator and three sites in their own processes over mutual TLS, two
federated runs, each site's own models for comparison, a released model, and a CT read with it.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ucadi.cohorts.cohort import read_cohort
from ucadi.config import RunSettings, SiteSettings, TrainingSettings
from ucadi.engines.flare.kit import check_path
from ucadi.engines.flare.process import check_port
from ucadi.io.checkpoint import ModelFolder, NetworkCard, read_model, write_json, write_model
from ucadi.io.reader import load_ct
from ucadi.store.runs import RunEvent
from ucadi.tensors import hash_tensors
from ucadi.types import FindingClass, Task
from ucadi.versions import CONFIG_VERSION
from ucadi.workflows.children import run_commands
from ucadi.workflows.evaluate import measure_on_cohort
from ucadi.workflows.federate import RunOutcome, make_plan
from ucadi.workflows.fit import METRIC, Measured
from ucadi.workflows.local_federation import LocalFederation, local_federation
from ucadi.workflows.manifest import run_manifest
from ucadi.workflows.memory import PeakMemory
from ucadi.workflows.model_card import write_model_card
from ucadi.workflows.predict import RESULT_FILES, predict

__all__ = ["STAGES", "DemoSettings", "OnStage", "check_inputs", "run_demo"]

STAGES: dict[str, tuple[str, float]] = {
    "cohorts": ("Make the hospitals' synthetic patients", 45.0),
    "start": ("Start coordinator and sites over mutual TLS", 6.0),
    "classifier": ("Train the classifier together", 90.0),
    "segmentation": ("Train the lesion segmentation together", 100.0),
    "single": ("Train each hospital alone, for comparison", 160.0),
    "evaluate": ("Score all models on held-out patients", 25.0),
    "read": ("Read a CT with the released model", 5.0),
}
"""Title and usual seconds on two cores, by stage, in order."""

OnStage = Callable[[str, float, str], None]
"""Called with the stage, the share of it that is done, and what happens now."""

_TRAINED_ON = "synthetic chest phantoms of three sites; never a patient"


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demonstration.

    Attributes:
        patients: Per hospital.
        held_out: Patients of an unseen scanner.
        seed: Same seed, same patients, same models.
        rounds: Rounds of both runs.
        training: What a site does in a round, by task.
    """

    patients: int = 32
    held_out: int = 32
    seed: int = 2020
    rounds: Mapping[Task, int] = field(default_factory=lambda: {Task.CLASSIFIER: 6, Task.SEGMENTATION: 12})
    training: Mapping[Task, TrainingSettings] = field(
        default_factory=lambda: {
            Task.CLASSIFIER: TrainingSettings(
                task=Task.CLASSIFIER,
                network="densenet3d",
                preset="compact",
                iterations=12,
                batch_size=8,
                learning_rate=0.004,
            ),
            Task.SEGMENTATION: TrainingSettings(
                task=Task.SEGMENTATION,
                network="unet3d",
                preset="compact",
                iterations=24,
                batch_size=4,
                learning_rate=0.004,
            ),
        }
    )


SITES = ("A", "B", "C")
UNMASKED = "C"
"""The hospital without lesion masks: it takes part in the classifier only."""
HELD_OUT = "D"


def run_demo(
    folder: Path, ct: Path | None, on_stage: OnStage, settings: DemoSettings, port: int | None = None
) -> dict[str, Any]:
    """Run everything and return the summary that is also in ``summary.json``.

    Args:
        folder: Empty; gets the result files and, under ``run``, everything behind them.
        ct: The CT to read at the end; None reads a synthetic one.
        on_stage: Progress.
        settings: Sizes.
        port: The coordinator's port on the loopback; None takes a free one.

    Raises:
        UcadiError: What `check_inputs` raises, and whatever ends the demonstration.
    """
    check_inputs(folder, ct, port)
    folder = folder.resolve()
    started = time.monotonic()
    demo = _Demo(folder, settings, on_stage)
    with PeakMemory() as memory:
        demo.make_cohorts()
        outcomes = demo.federate(port)
        demo.train_alone()
        scores = demo.evaluate(outcomes)
        model = demo.release(outcomes, scores)
        summary = demo.summarize(outcomes, scores)
        on_stage("read", 0.0, "reading")
        summary |= {"seconds": round(time.monotonic() - started, 1), "peak_memory_mb": round(memory.peak_mb)}
        predict(ct or demo.synthetic_ct(), folder, folder / "model", summary)
    summary |= {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(memory.peak_mb),
        "model_id": model.model_id,
        "files": {**RESULT_FILES, "model": "model/manifest.json"},
    }
    write_json(folder / "summary.json", summary)
    on_stage("read", 1.0, "done")
    return summary


def check_inputs(folder: Path, ct: Path | None, port: int | None) -> None:
    """Check everything that can be known before minutes of work.

    Raises:
        EngineError: If the port is taken or the engine cannot work with the folder's path.
        DataError: If the CT is refused.
    """
    check_path(folder)
    if port is not None:
        check_port(port)
    if ct is not None:
        load_ct(ct).require()


class _Demo:
    """The stages, sharing folders and settings."""

    def __init__(self, folder: Path, settings: DemoSettings, on_stage: OnStage) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.settings = settings
        self.on_stage = on_stage
        self.cores = len(os.sched_getaffinity(0))
        self.env = {"OMP_NUM_THREADS": "1"}

    def make_cohorts(self) -> None:
        """Make four cohorts and one CT to read, with the command that a user would use."""
        size = self.settings
        commands = {
            f"phantom-{site}": [
                *("phantom", "make", "--site", site, "--out", str(self.cohort(site))),
                *("--patients", str(size.held_out if site == HELD_OUT else size.patients)),
                *("--seed", str(size.seed), "--no-dicom"),
                *(("--no-masks",) if site == UNMASKED else ()),
                *(("--held-out",) if site == HELD_OUT else ()),
            ]
            for site in (HELD_OUT, *SITES)
        }
        commands["phantom-ct"] = [
            *("phantom", "make", "--site", HELD_OUT, "--out", str(self.run / "ct")),
            *("--patients", "4", "--seed", str(size.seed + 1), "--matrix", "256", "--held-out"),
        ]
        self._run_commands("cohorts", commands)

    def federate(self, port: int | None) -> dict[Task, RunOutcome]:
        """Train both networks over NVIDIA FLARE."""
        self.on_stage("start", 0.0, "making keys and certificates")
        sites = {site: self.site_settings(site) for site in SITES}
        connected: list[str] = []

        def tell(words: str) -> None:
            connected.append(words)
            self.on_stage("start", min(0.9, len(connected) / (2 * len(SITES) + 1)), words)

        homes = self.run / "federation"
        homes.mkdir(parents=True)
        with local_federation(homes, sites, self.env, port=port, on_words=tell) as federation:
            self.on_stage("start", 1.0, "all sites are connected")
            return {task: self._run(federation, task) for task in Task}

    def train_alone(self) -> None:
        """Train each hospital's own models with as many steps as it took in the federation."""
        commands = {}
        for task in Task:
            for site in self.sites_of(task):
                config = self.run / "single" / f"{task}-{site}.toml"
                config.parent.mkdir(parents=True, exist_ok=True)
                config.write_text(self._train_toml(task, site), encoding="utf-8")
                commands[f"{task}-{site}"] = ["train", str(config), "--out", str(config.with_suffix(""))]
        self._run_commands("single", commands)

    def evaluate(self, outcomes: Mapping[Task, RunOutcome]) -> dict[Task, dict[str, Measured]]:
        """Score the federated model (key ``global``) and each site's own on the held-out cohort."""
        cohort = read_cohort(self.cohort(HELD_OUT))
        cache = self.run / "cache" / HELD_OUT
        scores: dict[Task, dict[str, Measured]] = {}
        models = {
            (task, site): read_model(self.run / "single" / f"{task}-{site}")
            for task in Task
            for site in self.sites_of(task)
        }
        total = len(models) + len(outcomes)
        for task, outcome in outcomes.items():
            entries = {"global": (self._card(task, outcome, {}), outcome.model)}
            for site in self.sites_of(task):
                single = models[task, site]
                entries[site] = (single.cards[task], single.parameters[task])
            scores[task] = {}
            for name, (card, parameters) in entries.items():
                done = sum(map(len, scores.values()))
                self.on_stage("evaluate", done / total, f"{task}: {name}")
                measured = measure_on_cohort(task, card, parameters, cohort, cache)
                scores[task][name] = measured or Measured(0.0, 0, 0.0, 1.0)
        self.on_stage("evaluate", 1.0, "done")
        return scores

    def release(
        self, outcomes: Mapping[Task, RunOutcome], scores: Mapping[Task, Mapping[str, Measured]]
    ) -> ModelFolder:
        """Write the released model folder."""
        cards = {
            task: self._card(task, outcome, {f"held_out_{METRIC[task]}": scores[task]["global"].value})
            for task, outcome in outcomes.items()
        }
        config = {
            task.value: {
                **self.settings.training[task].model_dump(mode="json"),
                "rounds": self.settings.rounds[task],
            }
            for task in Task
        }
        model = write_model(
            self.folder / "model",
            name="ucadi demonstration",
            trained_on=_TRAINED_ON,
            cards=cards,
            parameters={task: outcome.model for task, outcome in outcomes.items()},
            run=run_manifest(
                config=config,
                seed=self.settings.seed,
                data_hashes={site: read_cohort(self.cohort(site)).hash() for site in (*SITES, HELD_OUT)},
            ),
        )
        write_model_card(self.folder / "model", model, scores)
        return model

    def summarize(
        self, outcomes: Mapping[Task, RunOutcome], scores: Mapping[Task, Mapping[str, Measured]]
    ) -> dict[str, Any]:
        """Return what happened in the federation as plain numbers."""
        summary: dict[str, Any] = {"engine": "nvflare", "protection": "plaintext"}
        for task, outcome in outcomes.items():
            summary[task.value] = {
                "metric": METRIC[task],
                "global": scores[task]["global"].value,
                "single_site": {site: scores[task][site].value for site in self.sites_of(task)},
                "rounds": self.settings.rounds[task],
                "selected_round": outcome.selected_round,
                "curve": [
                    {
                        "round": record.round - 1,
                        "validation": record.validation,
                        "sites": {
                            site: metrics["validation"]
                            for site, metrics in record.metrics.items()
                            if "validation" in metrics
                        },
                    }
                    for record in outcome.records
                ],
            }
        trained = {task: [r for r in outcome.records if r.participants] for task, outcome in outcomes.items()}
        for key, attribute in (("participants", "participants"), ("missing", "missing")):
            summary[key] = {
                task.value: {str(record.round): getattr(record, attribute) for record in records}
                for task, records in trained.items()
            }
        return summary

    def cohort(self, site: str) -> Path:
        """Return a cohort's folder."""
        return self.run / "cohorts" / site

    def sites_of(self, task: Task) -> tuple[str, ...]:
        """Return who can learn a task."""
        return SITES if task is Task.CLASSIFIER else tuple(site for site in SITES if site != UNMASKED)

    def site_settings(self, site: str) -> SiteSettings:
        """Return a site's own settings."""
        # Made-up patients: the validation splits are small, and nobody is protected by silence about them.
        return SiteSettings(cohort=self.cohort(site), cache=self.run / "cache" / site, min_class_studies=1)

    def synthetic_ct(self) -> Path:
        """Return the DICOM series of a synthetic patient with COVID-19."""
        cohort = read_cohort(self.run / "ct")
        study = next(s for s in cohort.studies if s.label is FindingClass.COVID_19)
        return cohort.root / study.dicom

    def _run(self, federation: LocalFederation, task: Task) -> RunOutcome:
        """Run one task's plan."""
        stage, rounds = task.value, self.settings.rounds[task]
        plan = make_plan(
            RunSettings(name=f"demo-{task}", rounds=rounds, seed=self.settings.seed),
            self.settings.training[task],
            SITES,
        )
        steps = len(self.sites_of(task)) * rounds
        updates: list[str] = []

        def tell(event: RunEvent) -> None:
            told = event.progress
            if told.kind == "update":
                updates.append(told.site)
                words = f"round {told.round} of {rounds}: update of site {told.site}"
            elif told.kind == "missing" and told.round <= rounds:
                words = f"round {told.round} of {rounds}: without site {told.site} ({told.detail})"
            elif told.kind == "validation":
                words = f"last model validated by site {told.site}"
            else:
                return
            self.on_stage(stage, min(0.98, len(updates) / steps), words)

        self.on_stage(stage, 0.0, "sites load their studies")
        outcome = federation.run(plan, tell)
        self.on_stage(stage, 1.0, f"round {outcome.selected_round} selected by validation")
        return outcome

    def _run_commands(self, stage: str, commands: Mapping[str, list[str]]) -> None:
        """Run commands side by side, one per core."""
        total = len(commands)
        self.on_stage(stage, 0.0, "starting")
        run_commands(
            commands,
            self.run / "logs",
            at_once=self.cores,
            env=self.env,
            on_poll=lambda done: self.on_stage(stage, done / total, f"{done} of {total} done"),
        )

    def _train_toml(self, task: Task, site: str) -> str:
        """Return the settings file of one site's own training."""
        training = self.settings.training[task].model_dump(mode="json")
        rounds = self.settings.rounds[task]
        training["iterations"] *= rounds
        lines = [
            f"config_version = {CONFIG_VERSION}",
            f"seed = {self.settings.seed}",
            f"cohorts = [{json.dumps(str(self.cohort(site)))}]",
            f"cache = {json.dumps(str(self.run / 'cache' / site))}",
            f"evaluations = {rounds}",
            "",
            "[training]",
            *(f"{key} = {json.dumps(value)}" for key, value in training.items()),
        ]
        return "\n".join(lines) + "\n"

    def _card(self, task: Task, outcome: RunOutcome, metrics: Mapping[str, float]) -> NetworkCard:
        """Return what the model folder says about a federated network."""
        training = self.settings.training[task]
        return NetworkCard(
            network=training.network,
            preset=training.preset,
            parameters_hash=hash_tensors(outcome.model),
            rounds=outcome.selected_round,
            sites=tuple(sorted({site for record in outcome.records for site in record.participants})),
            protection="plaintext",
            metrics=metrics,
        )
