# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from dataclasses import replace

import pytest

from ucadi.cohorts.cohort import COHORT_FILE
from ucadi.config import SiteSettings
from ucadi.errors import ConfigError, UcadiError
from ucadi.federation.messages import Call, Phase, Refusal, decode_reply, encode_call
from ucadi.workflows.memory import PeakMemory
from ucadi.workflows.site_runtime import LocalTrainer, build_site, make_site, training_seed

PLANTED = "DOE^JANE-19570412"


@pytest.fixture
def settings(tmp_path):
    """A site whose cohort's table is empty and whose path names a patient."""
    cohort = tmp_path / PLANTED
    cohort.mkdir()
    (cohort / COHORT_FILE).write_text("patient_key,study_key,split,label,image\n")
    return SiteSettings(
        cohort=cohort, cache=tmp_path / "cache", max_iterations=10, max_learning_rate=0.05, min_studies=2
    )


def refusal(trainer, plan) -> UcadiError:
    with pytest.raises(UcadiError) as caught:
        trainer.readiness(plan)
    return caught.value


@pytest.mark.parametrize("change", [{"iterations": 11}, {"learning_rate": 0.06}])
def test_a_plan_beyond_the_sites_own_limits_is_declined(settings, make_model, make_round_plan, change):
    plan = make_round_plan(make_model())
    plan = replace(plan, training=replace(plan.training, **change))
    error = refusal(LocalTrainer("A", settings), plan)
    assert error.code == "site-declined"
    assert str(next(iter(change.values()))) in error.detail


def test_a_site_without_studies_for_the_task_says_so(settings, make_model, make_round_plan):
    assert refusal(LocalTrainer("A", settings), make_round_plan(make_model())).code == "cohort-empty"


def test_a_site_without_a_cohort_says_so(settings, make_model, make_round_plan):
    (settings.cohort / COHORT_FILE).unlink()
    assert refusal(LocalTrainer("A", settings), make_round_plan(make_model())).code == "cohort-invalid"


@pytest.mark.parametrize(
    "table",
    [
        "",
        f"patient_key,study_key\n{PLANTED}",
        f"patient_key,study_key,split,label,image\n{PLANTED},{PLANTED},train,HEALTHY,{PLANTED}.nii.gz\n",
    ],
    ids=["empty", "columns missing", "image missing"],
)
def test_nothing_of_a_refused_cohort_leaves_the_site(settings, make_model, make_round_plan, table):
    (settings.cohort / COHORT_FILE).write_text(table)
    body = encode_call(Call(Phase.READY, make_round_plan(make_model())))
    left = bytes(build_site("A", settings).answer(body))
    assert isinstance(decode_reply(left), Refusal)
    for part in (PLANTED, "DOE", str(settings.cohort.parent), COHORT_FILE, "column"):
        assert part.encode() not in left


def test_a_site_is_built_from_its_own_file(tmp_path):
    path = tmp_path / "ucadi.toml"
    path.write_text('config_version = 1\n[site]\ncohort = "c"\ncache = "d"\n')
    assert make_site("A", path).name == "A"
    path.write_text('config_version = 1\n[site]\ncohort = "c"\n')
    with pytest.raises(ConfigError, match=r"site\.cache"):
        make_site("A", path)


def test_every_site_and_round_trains_with_its_own_seed():
    seeds = {training_seed(seed, site, n) for seed in (0, 1) for site in ("A", "B") for n in range(1, 50)}
    assert len(seeds) == 2 * 2 * 49
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert training_seed(0, "A", 1) == training_seed(0, "A", 1)


def test_the_peak_of_memory_counts_child_processes():
    with PeakMemory() as watch:
        subprocess.run(
            [sys.executable, "-c", "import time; a = bytearray(300 * 2**20); time.sleep(1.2)"], check=True
        )
    own_only = PeakMemory()
    with own_only:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.7)"], check=True)
    assert watch.peak_mb > own_only.peak_mb + 250


def test_limits_hold_for_training_and_validation_without_a_call_before(settings, make_model, make_round_plan):
    model = make_model()
    plan = make_round_plan(model)
    greedy = replace(plan, training=replace(plan.training, iterations=settings.max_iterations + 1))
    for ask in (LocalTrainer("A", settings).train, LocalTrainer("A", settings).validate):
        with pytest.raises(UcadiError) as caught:
            ask(greedy, model)
        assert caught.value.code == "site-declined"


def test_a_round_that_speaks_of_a_few_patients_is_declined(settings, make_model, make_round_plan):
    plan = make_round_plan(make_model())
    tiny = replace(plan, training=replace(plan.training, iterations=1, batch_size=1))
    assert refusal(LocalTrainer("A", settings), tiny).code == "site-declined"
