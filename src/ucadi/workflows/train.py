# SPDX-License-Identifier: Apache-2.0
"""Local training: one cohort, or several pooled, with the functions that a site uses in a round."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ucadi.cohorts.cohort import Cohort, read_cohort
from ucadi.config import TrainConfig
from ucadi.io.checkpoint import ModelFolder, NetworkCard, write_model
from ucadi.learning.supervised import FitSettings, cosine_rate
from ucadi.models.parameters import load_parameters, parameters_of
from ucadi.models.registry import build_network
from ucadi.tensors import hash_tensors
from ucadi.types import Split
from ucadi.workflows.fit import METRIC, Samples, fit, score
from ucadi.workflows.manifest import run_manifest
from ucadi.workflows.parallel import OnProgress
from ucadi.workflows.prepare import prepare_samples
from ucadi.workflows.site_runtime import training_seed

__all__ = ["OnEvaluation", "train_local"]

OnEvaluation = Callable[[int, int, float | None], None]
"""Called with steps done, of how many, and the validation score."""


def train_local(
    config: TrainConfig,
    folder: Path,
    on_evaluation: OnEvaluation,
    on_progress: OnProgress = lambda words, done, total: None,
) -> ModelFolder:
    """Train, keep the state with the best validation score, and write it as a model folder.

    The manifest's ``left_out`` counts the studies that could not be used, by the code that says why.

    Training is cut into ``evaluations`` legs; like a site in a round, each leg starts with a fresh optimizer
    and its own seed, so that a federation's single-site baseline differs from it in nothing but the others.
    """
    torch.set_num_threads(config.threads)
    cohorts = [read_cohort(root) for root in config.cohorts]
    plan = config.training
    left_out: Counter[str] = Counter()

    def load(split: Split) -> Samples:
        return prepare_samples(
            cohorts,
            split,
            plan.task,
            plan.preset,
            config.cache,
            lambda done, total: on_progress(f"Preparing {split} studies", done, total),
            jobs=config.threads,
            on_left_out=lambda study, code: left_out.update([code]),
        )

    samples, checks = load(Split.TRAIN), load(Split.VALIDATION)
    network = build_network(plan.network, plan.task, config.seed)
    best, best_score = parameters_of(network), score(network, checks)
    done = 0
    for leg in range(1, config.evaluations + 1):
        steps = plan.iterations * leg // config.evaluations - done
        if steps:
            settings = FitSettings(
                steps,
                plan.batch_size,
                cosine_rate(plan.learning_rate, leg, config.evaluations),
                training_seed(config.seed, "local", leg),
            )
            fit(network, samples, settings, lambda step, loss: None)
            done += steps
        value = score(network, checks)
        if best_score is None or (value is not None and value > best_score):
            best, best_score = parameters_of(network), value
        on_evaluation(done, plan.iterations, value)
    load_parameters(network, best)
    card = NetworkCard(
        network=plan.network,
        preset=plan.preset,
        parameters_hash=hash_tensors(best),
        rounds=0,
        sites=(),
        protection="none",
        metrics={} if best_score is None else {f"validation_{METRIC[plan.task]}": best_score},
    )
    return write_model(
        folder,
        name=f"local {plan.task}",
        trained_on=f"{len(cohorts)} cohort(s), {len(samples)} studies",
        cards={plan.task: card},
        parameters={plan.task: best},
        run=_manifest(config, cohorts, left_out),
    )


def _manifest(config: TrainConfig, cohorts: list[Cohort], left_out: Counter[str]) -> dict[str, Any]:
    """Return what the training was made with and what it could not use."""
    made_with = run_manifest(
        config=config.model_dump(mode="json", exclude={"cohorts", "cache"}),
        seed=config.seed,
        data_hashes={str(number): cohort.hash() for number, cohort in enumerate(cohorts)},
    )
    return {**made_with, "left_out": dict(left_out)}
