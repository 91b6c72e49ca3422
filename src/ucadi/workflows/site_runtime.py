# SPDX-License-Identifier: Apache-2.0
"""What a site does with its own data: the real `Trainer` behind the protocol."""

import hashlib
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ucadi.cohorts.cohort import read_cohort
from ucadi.config import SiteFile, SiteSettings, load_config
from ucadi.errors import CohortError, FederationError
from ucadi.federation.aggregation import PlaintextCipher, difference
from ucadi.federation.coordinator import SELECTION_METRIC
from ucadi.federation.messages import GlobalModel, Readiness, RoundPlan, TrainingPlan, Update, Validation
from ucadi.federation.site import Site
from ucadi.learning.supervised import FitSettings, cosine_rate
from ucadi.logs import event, get_logger
from ucadi.models.parameters import load_parameters, parameters_of
from ucadi.models.registry import build_network
from ucadi.types import Split
from ucadi.workflows.fit import Samples, fit, score
from ucadi.workflows.prepare import prepare_samples

__all__ = ["LocalTrainer", "build_site", "make_site", "training_seed"]

_LOG = get_logger("workflows.site")


class LocalTrainer:
    """Trains and validates on one site's cohort, within the site's own limits.

    Args:
        name: The site's name.
        settings: The site's own settings; a plan beyond them is declined.
    """

    def __init__(self, name: str, settings: SiteSettings) -> None:
        self._name = name
        self._settings = settings
        self._samples = cache(self._load_samples)

    def readiness(self, plan: RoundPlan) -> Readiness:
        """Tell how many studies take part.

        Raises:
            FederationError: If the plan asks for more than the site allows (``site-declined``).
            CohortError: If there are no or too few studies for the task (``cohort-empty``).
        """
        studies = self._check_limits(plan)
        return Readiness(plan.run_id, plan.round, self._name, studies)

    def train(self, plan: RoundPlan, model: GlobalModel) -> Update:
        """Validate the received model, train from it and return the difference (Alg. 1 ClientUpdate)."""
        self._check_limits(plan)
        network = self._network(plan, model)
        metrics = self._validation_metrics(plan, network)
        samples = self._samples(plan.training, Split.TRAIN)
        settings = FitSettings(
            plan.training.iterations,
            plan.training.batch_size,
            cosine_rate(plan.training.learning_rate, plan.round, plan.rounds),
            training_seed(plan.seed, self._name, plan.round),
        )
        metrics["loss"] = fit(network, samples, settings, self._log_step)
        return Update(
            run_id=plan.run_id,
            round=plan.round,
            site=self._name,
            tensors=difference(parameters_of(network), model),
            iterations=plan.training.iterations,
            aggregation_weight=plan.aggregation_weights.get(self._name, 1.0),
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
        training, limits = plan.training, self._settings
        if training.iterations > limits.max_iterations or training.learning_rate > limits.max_learning_rate:
            raise FederationError(
                "site-declined",
                f"The plan asks for {training.iterations} iterations at learning rate "
                f"{training.learning_rate}; this site allows {limits.max_iterations} at "
                f"{limits.max_learning_rate}.",
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
        network = build_network(plan.training.network, plan.training.task, plan.seed)
        load_parameters(network, model.parameters)
        return network

    def _validation_metrics(self, plan: RoundPlan, network: nn.Module) -> dict[str, float]:
        """Return the selection metric, or nothing when the site cannot compute it."""
        try:
            value = score(network, self._samples(plan.training, Split.VALIDATION))
        except CohortError:
            value = None
        return {} if value is None else {SELECTION_METRIC: value}

    def _load_samples(self, training: TrainingPlan, split: Split) -> Samples:
        """Read one split once per process."""
        cohort = read_cohort(self._settings.cohort)
        return prepare_samples(
            [cohort], split, training.task, training.preset, self._settings.cache, lambda ready, total: None
        )

    def _log_step(self, step: int, loss: float) -> None:
        """Keep a trace of training in the site's own log."""
        event(_LOG, "step", step=step, loss=round(loss, 5))


def build_site(name: str, settings: SiteSettings) -> Site:
    """Build a site that trains on its own cohort and sends its updates in plaintext."""
    return Site(name, LocalTrainer(name, settings), PlaintextCipher())


def make_site(name: str, config_path: Path) -> Site:
    """Build a site from its own settings file.

    Raises:
        ConfigError: If the file is wrong.
    """
    return build_site(name, load_config(SiteFile, config_path).site)


def training_seed(seed: int, site: str, number: int) -> int:
    """Return the seed of one site's training in one round: other sites and rounds draw other samples."""
    digest = hashlib.sha256(f"{seed}/{site}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
