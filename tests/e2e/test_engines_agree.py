# SPDX-License-Identifier: Apache-2.0
"""One plan, real cohorts and networks: in one process and over NVIDIA FLARE."""

import os
from pathlib import Path

import pytest

from ucadi.cli.launcher import ALLOCATOR
from ucadi.config import RunSettings, SimulateConfig, SiteSettings, TrainingSettings
from ucadi.tensors import hash_tensors
from ucadi.types import Task
from ucadi.workflows.federate import make_plan, simulate
from ucadi.workflows.local_federation import local_federation
from ucadi.workflows.phantom import make_cohort
from ucadi.workflows.site_runtime import build_site

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the engine's own
]

TRAINING = {
    Task.CLASSIFIER: TrainingSettings(
        task=Task.CLASSIFIER,
        network="densenet3d",
        preset="compact",
        iterations=1,
        batch_size=2,
        learning_rate=0.002,
    ),
    Task.SEGMENTATION: TrainingSettings(
        task=Task.SEGMENTATION,
        network="unet3d",
        preset="compact",
        iterations=2,
        batch_size=2,
        learning_rate=0.002,
    ),
}


def test_both_engines_give_the_same_parameters_bit_for_bit(tmp_path: Path) -> None:
    sites = {}
    for site in "ABC":
        cohort = make_cohort(
            site, 6, 5, tmp_path / "cohorts" / site, matrix=64, dicom=False, splits=(0.5, 0.5, 0.0)
        )
        sites[site] = SiteSettings(
            cohort=cohort.root, cache=tmp_path / "cache" / site, min_studies=1, min_class_studies=1
        )
    plans = {
        task: make_plan(
            RunSettings(name=f"both-{task}", rounds=2, seed=3, min_sites=3), training, ("A", "B", "C")
        )
        for task, training in TRAINING.items()
    }

    simulated = {}
    for task, training in TRAINING.items():
        config = SimulateConfig(
            config_version=1,
            run=RunSettings(name=f"both-{task}", rounds=2, seed=3, min_sites=3),
            training=training,
            sites=sites,
        )
        simulated[task] = simulate(
            config,
            tmp_path / f"inprocess-{task}",
            lambda name: build_site(name, sites[name]),
        )

    env = {**ALLOCATOR, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    (tmp_path / "homes").mkdir()
    with local_federation(
        tmp_path / "homes", sites, env, port=None, on_words=lambda words: None
    ) as federation:
        for task, plan in plans.items():
            over_flare = federation.run(plan, lambda event: None)
            for number in (1, 2):
                name = Path("rounds") / f"{number:04d}.safetensors"
                here = (tmp_path / f"inprocess-{task}" / name).read_bytes()
                there = (federation.home.runs / plan.run_id / name).read_bytes()
                assert here == there, f"{task} differs after round {number}"
            assert hash_tensors(over_flare.model) == hash_tensors(simulated[task].model)
            assert [r.participants for r in over_flare.records[:2]] == [["A", "B", "C"]] * 2
