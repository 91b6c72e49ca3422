# SPDX-License-Identifier: Apache-2.0
"""What a site does with its own data: the real `Trainer` behind the protocol."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ucadi.cohorts.cohort import read_cohort
from ucadi.config import SiteSettings
from ucadi.errors import CohortError, ConfigError, FederationError, StoreError, UcadiError
from ucadi.federation.aggregation import PlaintextCipher, difference
from ucadi.federation.evaluation import HIGH_METRIC, LOW_METRIC, STUDIES_METRIC
from ucadi.federation.messages import GlobalModel, Readiness, Update, Validation
from ucadi.federation.plans import RoundPlan, TrainingPlan
from ucadi.federation.ports import Gate
from ucadi.federation.records import SELECTION_METRIC
from ucadi.federation.site import MemoryOutbox, OpenGate, Site
from ucadi.learning.samples import ClassifierSamples
from ucadi.learning.supervised import FitSettings, cosine_rate
from ucadi.logs import event, get_logger
from ucadi.models.parameters import load_parameters, parameters_of
from ucadi.models.registry import build_network
from ucadi.store.site_state import WORK
from ucadi.types import FindingClass, Split
from ucadi.workflows.fit import Samples, fit, measure, score
from ucadi.workflows.prepare import prepare_samples
from ucadi.workflows.site_gate import SiteGate
from ucadi.workflows.site_home import SiteHome
from ucadi.workflows.site_outbox import SiteOutbox

__all__ = ["LOSS_METRIC", "LocalTrainer", "OnWork", "build_site", "make_site", "training_seed"]

_LOG = get_logger("workflows.site")


LOSS_METRIC = "loss"
"""Name of the mean training loss."""

OnWork = Callable[[Mapping[str, Any]], None]
"""Called with the run, round, phase and, while it trains, the step."""

_STATUS_S = 1.0
"""How often a step is worth a line for those who watch."""


class LocalTrainer:
    """Trains and validates on one site's cohort, within the site's own limits.

    Args:
        name: The site's name.
        settings: The site's own settings; a plan beyond them is declined.
        on_work: Told what is being done, for the site's own people.
        gate: Asked again while it trains, so that a pause or a rejection ends the training at once.
    """

    def __init__(
        self,
        name: str,
        settings: SiteSettings,
        on_work: OnWork = lambda work: None,
        gate: Gate | None = None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._on_work = on_work
        self._gate = gate or OpenGate()
        self._told = float("-inf")
        self._samples = cache(self._load_samples)

    def readiness(self, plan: RoundPlan) -> Readiness:
        """Tell how many studies take part; fewer than the site's own minimum are never told.

        Raises:
            FederationError: If the plan asks for more than the site allows (``site-declined``).
            CohortError: If there are no or too few studies for the task (``cohort-empty``).
        """
        try:
            studies = self._check_limits(plan)
        except UcadiError as error:  # only its code leaves; the site's own people see the reason
            declined = {"run": plan.run_id, "round": plan.round, "phase": f"declined: {error.detail}"}
            self._tell(declined, is_last=True)
            raise
        return Readiness(plan.run_id, plan.round, self._name, studies)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        """Validate the received model, train from it and return the difference (Alg. 1 ClientUpdate).

        Raises:
            FederationError: As the gate, when the site no longer takes part; nothing is kept then.
        """
        self._check_limits(plan)
        run, training = plan.run, plan.run.training
        network = self._network(plan, model)
        metrics = self._validation_metrics(plan, network)
        samples = self._samples(training, Split.TRAIN)
        settings = FitSettings(
            training.iterations,
            training.batch_size,
            cosine_rate(training.learning_rate, plan.round, run.rounds),
            training_seed(run.seed, self._name, plan.round),
        )
        loss = fit(network, samples, settings, self._step_writer(plan))
        if LOSS_METRIC in run.metrics and self._may_report(LOSS_METRIC, samples):
            metrics[LOSS_METRIC] = loss
        self._tell({"run": plan.run_id, "round": plan.round, "phase": "waiting"}, is_last=True)
        return Update(
            run_id=plan.run_id,
            round=plan.round,
            site=self._name,
            tensors=difference(parameters_of(network), model),
            iterations=training.iterations,
            aggregation_weight=run.client_weights.get(self._name, 1.0),
            num_studies=len(samples),
            metrics=metrics,
        )

    def validate(self, plan: RoundPlan, model: GlobalModel) -> Validation:
        """Score the received model on the site's validation studies."""
        self._check_limits(plan)
        metrics = self._validation_metrics(plan, self._network(plan, model))
        return Validation(plan.run_id, plan.round, self._name, metrics)

    def _check_limits(self, plan: RoundPlan) -> int:
        """Return the number of training studies; decline a plan beyond the site's own settings.

        Asked at every request, because a hostile coordinator's requests need not agree with each other.
        """
        training, limits = plan.run.training, self._settings
        for words, value, most in (
            ("iterations", training.iterations, limits.max_iterations),
            ("samples per step", training.batch_size, limits.max_batch_size),
            ("as learning rate", training.learning_rate, limits.max_learning_rate),
        ):
            if value > most:
                raise FederationError(
                    "site-declined", f"The plan asks for {value:g} {words}; this site allows {most:g}."
                )
        if limits.labels == "none":
            raise FederationError(
                "site-declined", f"The {training.task} learns from labels, which this site does not give."
            )
        if training.iterations * training.batch_size < limits.min_studies:
            raise FederationError(
                "site-declined",
                f"A round of {training.iterations} x {training.batch_size} samples would speak of fewer than "
                f"{limits.min_studies} studies.",
            )
        studies = len(self._samples(training, Split.TRAIN))
        if studies < limits.min_studies:
            raise CohortError("cohort-empty", f"{studies} studies; this site requires {limits.min_studies}.")
        return studies

    def _network(self, plan: RoundPlan, model: GlobalModel) -> nn.Module:
        """Build the plan's network with the global parameters."""
        torch.set_num_threads(self._settings.threads)
        training = plan.run.training
        network = build_network(training.network, training.task, plan.run.seed)
        load_parameters(network, model.parameters)
        return network

    def _validation_metrics(self, plan: RoundPlan, network: nn.Module) -> dict[str, float]:
        """Return the selection metric, or nothing when the site cannot compute or will not report it."""
        if SELECTION_METRIC not in plan.run.metrics:
            return {}
        self._tell({"run": plan.run_id, "round": plan.round, "phase": "validating"}, is_last=True)
        try:
            samples = self._samples(plan.run.training, Split.VALIDATION)
        except CohortError:
            return {}
        if not self._may_report(SELECTION_METRIC, samples):
            return {}
        return _scores(network, samples, plan.run.metrics)

    def _may_report(self, metric: str, samples: Samples) -> bool:
        """Tell whether a metric speaks of enough studies of each class that enters it."""
        least = self._settings.min_class_studies
        few = {name: count for name, count in _class_counts(samples).items() if count < least}
        if few:
            event(_LOG, "metric not reported", metric=metric, too_few=few, required=least)
        return not few

    def _load_samples(self, training: TrainingPlan, split: Split) -> Samples:
        """Read one split once per process."""
        cohort = read_cohort(self._settings.cohort)
        work = {"phase": f"preparing {split} studies"}
        return prepare_samples(
            [cohort],
            split,
            training.task,
            training.preset,
            self._settings.cache,
            lambda done, total: self._on_study({**work, "step": done, "steps": total}),
        )

    def _on_study(self, work: Mapping[str, Any]) -> None:
        """Tell those who watch that one more study is prepared."""
        self._tell(work, is_last=work["step"] == work["steps"])

    def _tell(self, work: Mapping[str, Any], *, is_last: bool = False) -> bool:
        """Tell those who watch, once in a while and at the end; return whether they were told."""
        is_due = is_last or time.monotonic() - self._told > _STATUS_S
        if is_due:
            self._told = time.monotonic()
            self._on_work(work)
        return is_due

    def _step_writer(self, plan: RoundPlan) -> Callable[[int, float], None]:
        """Return what writes the site's log, tells those who watch, and ends what may not go on."""
        steps = plan.run.training.iterations
        work = {"run": plan.run_id, "round": plan.round, "phase": "training", "steps": steps}

        def write(step: int, loss: float) -> None:
            event(_LOG, "step", step=step, loss=round(loss, 5))
            if self._tell({**work, "step": step, "loss": round(loss, 5)}, is_last=step == steps):
                self._gate.check(plan.run)

        return write


def _scores(network: nn.Module, samples: Samples, asked: Collection[str]) -> dict[str, float]:
    """Return the score and, where the plan asks, how sure it is; nothing when it is not defined.

    Rounded: more digits tell people nothing and could tell of single studies.
    """
    scores: dict[str, float | None]
    if {STUDIES_METRIC, LOW_METRIC, HIGH_METRIC}.isdisjoint(asked):
        scores = {SELECTION_METRIC: score(network, samples)}
    elif measured := measure(network, samples):
        scores = {
            SELECTION_METRIC: measured.value,
            STUDIES_METRIC: measured.studies,
            LOW_METRIC: measured.low,
            HIGH_METRIC: measured.high,
        }
    else:
        scores = {}
    return {name: round(float(v), 4) for name, v in scores.items() if v is not None and name in asked}


def _class_counts(samples: Samples) -> dict[str, int]:
    """Count the studies by class that enter a metric: finding classes, or studies with a lesion."""
    if isinstance(samples, ClassifierSamples):
        return {FindingClass(label).name: count for label, count in Counter(samples.labels.tolist()).items()}
    return {"LESION": sum(bool(mask.any()) for mask in samples.lesion_masks)}


def build_site(name: str, settings: SiteSettings) -> Site:
    """Build a site for simulation: it agrees to every plan within its settings, and forgets at its end."""
    return Site(name, LocalTrainer(name, settings), PlaintextCipher(), MemoryOutbox(), OpenGate())


def make_site(name: str, config_folder: Path) -> Site:
    """Build a site from its home, with its own decisions and its own memory.

    Args:
        name: The site's name, as its certificate states it.
        config_folder: The folder ``local`` of the kit, which lies in the site's home.

    Raises:
        ConfigError: If a file is wrong, or the home is another site's.
        StoreError: If the site's memory cannot be opened.
    """
    home = SiteHome.open(config_folder.absolute().parents[1])
    settings = home.read_settings()
    address = settings.coordinator
    if address is None or address.site != name:
        joined = f"joined as {address.site!r}" if address else "has not joined"
        raise ConfigError(
            "config-invalid",
            f"{home.settings_file}: this site {joined}, its certificate says {name!r}.",
            cure="Join again with `ucadi site join`.",
        )
    state = home.open_state()

    def tell(work: Mapping[str, Any]) -> None:
        try:
            state.set_status(WORK, dict(work))
        except StoreError as error:  # those who watch see less; the work goes on
            event(_LOG, "status not written", code=error.code, detail=error.detail)

    gate = SiteGate(name, state, home.read_policy, settings.site.cohort)
    trainer = LocalTrainer(name, settings.site, tell, gate)
    outbox = SiteOutbox(home.outbox, state, recipient=f"{address.name} at {address.host}")
    return Site(name, trainer, PlaintextCipher(), outbox, gate)


def training_seed(seed: int, site: str, number: int) -> int:
    """Return the seed of one site's training in one round: other sites and rounds draw other samples."""
    digest = hashlib.sha256(f"{seed}/{site}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
