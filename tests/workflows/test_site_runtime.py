# SPDX-License-Identifier: Apache-2.0
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from site_homes import PLANTED, make_home, write_policy
from ucadi.cohorts.cohort import COHORT_FILE
from ucadi.config import SiteSettings
from ucadi.errors import ConfigError, FederationError, UcadiError
from ucadi.federation.messages import Call, GlobalModel, Phase, Refusal, decode_reply, encode_call
from ucadi.imaging.presets import preset_named
from ucadi.learning.samples import ClassifierSamples, SegmentationSamples
from ucadi.models.parameters import parameters_of
from ucadi.models.registry import build_network
from ucadi.store.site_state import LEFT, PAUSED, Decision
from ucadi.types import FindingClass, Split, Task
from ucadi.workflows.memory import PeakMemory
from ucadi.workflows.site_runtime import LocalTrainer, build_site, make_site, training_seed


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


def with_training(plan, **changes):
    return replace(plan, run=replace(plan.run, training=replace(plan.run.training, **changes)))


@pytest.mark.parametrize("change", [{"iterations": 11}, {"learning_rate": 0.06}, {"batch_size": 65}])
def test_a_plan_beyond_the_sites_own_limits_is_declined(settings, make_model, make_round_plan, change):
    plan = with_training(make_round_plan(make_model()), **change)
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
    greedy = with_training(plan, iterations=settings.max_iterations + 1)
    for ask in (LocalTrainer("A", settings).train, LocalTrainer("A", settings).validate):
        with pytest.raises(UcadiError) as caught:
            ask(greedy, model)
        assert caught.value.code == "site-declined"


def test_a_round_that_speaks_of_a_few_patients_is_declined(settings, make_model, make_round_plan):
    plan = make_round_plan(make_model())
    tiny = with_training(plan, iterations=1, batch_size=1)
    assert refusal(LocalTrainer("A", settings), tiny).code == "site-declined"


def test_a_site_that_gives_no_labels_declines_what_needs_them(settings, make_model, make_round_plan):
    trainer = LocalTrainer("A", settings.model_copy(update={"labels": "none"}))
    error = refusal(trainer, make_round_plan(make_model()))
    assert error.code == "site-declined"
    assert "labels" in error.detail


# -- metrics of small classes -----------------------------------------------------------------------------


def classifier_samples(counts) -> ClassifierSamples:
    """Noise; so many studies by class number."""
    labels = np.concatenate([np.full(count, label) for label, count in counts.items()])
    rng = np.random.default_rng(0)
    slices = tuple(rng.integers(-1000, 200, (12, 24, 24)).astype(np.int16) for _ in labels)
    return ClassifierSamples(slices, labels, preset_named("compact"))


def segmentation_samples(with_lesion: int, without: int) -> SegmentationSamples:
    """Noise; so many studies with a lesion, so many without."""
    rng = np.random.default_rng(0)
    count = with_lesion + without
    volumes = tuple(rng.integers(-1000, 200, (16, 48, 48)).astype(np.int16) for _ in range(count))
    masks = tuple(np.zeros((16, 48, 48), bool) for _ in range(count))
    for mask in masks[:with_lesion]:
        mask[4:8, 10:30, 10:30] = True
    return SegmentationSamples(volumes, masks, preset_named("compact"))


@pytest.fixture
def train_with(settings, monkeypatch, make_round_plan):
    """Trains one round on given samples, in truth or not; returns what the site sends and tells."""

    def train(
        splits,
        task=Task.CLASSIFIER,
        metrics=("loss", "validation"),
        gate=None,
        in_truth=False,
        **changes,
    ):
        monkeypatch.setattr(LocalTrainer, "_load_samples", lambda self, training, split: splits[split])
        if not in_truth:  # training and scoring take seconds and have tests of their own
            monkeypatch.setattr("ucadi.workflows.site_runtime.fit", lambda *asked: 0.5)
            monkeypatch.setattr("ucadi.workflows.site_runtime.score", lambda *asked: 0.75)
        network = {Task.CLASSIFIER: "densenet3d", Task.SEGMENTATION: "unet3d"}[task]
        model = GlobalModel(0, parameters_of(build_network(network, task, 0)))
        plan = make_round_plan(model, metrics=metrics)
        plan = with_training(plan, task=task, network=network, iterations=2)
        told = []
        trainer = LocalTrainer("A", settings.model_copy(update=changes), told.append, gate)
        return trainer.train(plan, model), told

    return train


@pytest.mark.parametrize(
    ("train", "validation", "reported"),
    [
        ({0: 5, 1: 5}, {0: 5, 1: 5}, {"loss", "validation"}),
        ({0: 5, 1: 5}, {0: 5, 1: 4}, {"loss"}),
        ({0: 5, 1: 4}, {0: 6, 1: 5}, {"validation"}),
        ({0: 9, 1: 1}, {0: 9, 1: 1}, set()),
    ],
)
def test_a_metric_that_speaks_of_a_few_patients_is_not_reported(train_with, train, validation, reported):
    splits = {Split.TRAIN: classifier_samples(train), Split.VALIDATION: classifier_samples(validation)}
    update, _ = train_with(splits)
    assert update.metrics.keys() == reported


def test_a_score_leaves_with_four_digits(settings, make_round_plan, monkeypatch):
    monkeypatch.setattr(LocalTrainer, "_load_samples", lambda *asked: classifier_samples({0: 9, 1: 9}))
    monkeypatch.setattr("ucadi.workflows.site_runtime.fit", lambda *asked: 0.5)
    monkeypatch.setattr("ucadi.workflows.site_runtime.score", lambda *asked: 0.123456789)
    model = GlobalModel(0, parameters_of(build_network("densenet3d", Task.CLASSIFIER, 0)))
    plan, trainer = make_round_plan(model), LocalTrainer("A", settings)
    assert trainer.validate(plan, model).metrics == {"validation": 0.1235}
    assert trainer.train(plan, model).metrics["validation"] == 0.1235


def test_only_studies_with_a_lesion_enter_the_metrics_of_the_segmentation(train_with):
    splits = {Split.TRAIN: segmentation_samples(5, 0), Split.VALIDATION: segmentation_samples(4, 9)}
    update, _ = train_with(splits, Task.SEGMENTATION)
    assert update.metrics.keys() == {"loss"}
    update, _ = train_with(splits, Task.SEGMENTATION, min_class_studies=4)
    assert update.metrics.keys() == {"loss", "validation"}


def test_why_a_metric_is_missing_stands_in_the_sites_log(train_with, caplog):
    splits = {
        Split.TRAIN: classifier_samples({0: 5, 2: 2}),
        Split.VALIDATION: classifier_samples({0: 5, 1: 5}),
    }
    with caplog.at_level(logging.INFO, logger="ucadi"):
        train_with(splits)
    (record,) = [r for r in caplog.records if r.message == "metric not reported"]
    assert record.fields["too_few"] == {FindingClass.OTHER_VIRAL.name: 2}


def test_what_the_plan_does_not_name_is_not_even_computed(train_with):
    splits = {Split.TRAIN: classifier_samples({0: 5, 1: 5}), Split.VALIDATION: None}
    update, _ = train_with(splits, metrics=())
    assert update.metrics == {}


def test_those_who_watch_are_told_what_is_done(train_with):
    splits = {
        Split.TRAIN: classifier_samples({0: 5, 1: 5}),
        Split.VALIDATION: classifier_samples({0: 5, 1: 5}),
    }
    _, told = train_with(splits, in_truth=True)
    assert list(dict.fromkeys(work["phase"] for work in told)) == ["validating", "training", "waiting"]
    last = told[-2]
    assert (last["run"], last["round"], last["step"], last["steps"]) == ("run-1", 1, 2, 2)


def test_a_pause_ends_the_training_before_anything_leaves(train_with):
    class Paused:
        def check(self, plan):
            raise FederationError("site-paused", "Paused.")

    splits = {
        Split.TRAIN: classifier_samples({0: 5, 1: 5}),
        Split.VALIDATION: classifier_samples({0: 5, 1: 5}),
    }
    with pytest.raises(FederationError) as caught:
        train_with(splits, gate=Paused(), in_truth=True)
    assert caught.value.code == "site-paused"


# -- a site in its home -----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path, max_iterations=3)  # fewer than the plans want


@pytest.fixture
def ask(home, make_model, make_round_plan):
    """Asks the site of the home as a new process would; returns the reply and its bytes."""

    def send(phase=Phase.READY, site="A", **changes):
        model = make_model()
        plan = make_round_plan(model, **changes)
        body = encode_call(Call(phase, plan, None if phase is Phase.READY else model))
        left = bytes(make_site(site, home.kit / "local").answer(body))
        return decode_reply(left), left

    return send


def test_a_site_in_its_home_decides_and_lists_what_leaves(home, ask):
    reply, left = ask()
    assert reply == Refusal("run-1", 1, "A", "plan-waiting")
    state = home.open_state()
    (row,) = state.sent()
    assert (row.kind, row.size_bytes, row.recipient) == ("refusal", len(left), "hub at hub.example")
    (seen,) = state.plans()
    assert state.decide(seen, Decision.APPROVED, "ann")
    assert ask()[0].code == "site-declined", "the gate let it pass, the site's own limits do not"
    state.set_flag(PAUSED, True, "ann")
    assert ask()[0].code == "site-paused"
    assert state.verify() == 6
    state.close()


def test_nothing_that_names_a_patient_or_a_place_leaves_whatever_goes_wrong(home, ask):
    state = home.open_state()
    seen: list[tuple[str, bytes]] = []

    def expect(code, **changes):
        reply, left = ask(**changes)
        assert isinstance(reply, Refusal)
        assert reply.code == code
        seen.append((code, left))

    expect("plan-waiting")
    assert state.decide(state.plans()[0], Decision.REJECTED, PLANTED, f"asks about {PLANTED}")
    expect("plan-rejected")
    write_policy(home, "min_patients = 500")
    expect("plan-forbidden", run_id="run-2")
    write_policy(home, f'networks = ["{PLANTED}"]')
    expect("config-invalid", run_id="run-2")
    write_policy(
        home, 'approve = "within-policy"', "[policy.hours]", 'start = "00:00"', 'end = "00:01"', "days = []"
    )
    expect("site-closed", run_id="run-3")
    expect("plan-changed", run_id="run-3", rounds=9)
    write_policy(home, 'approve = "within-policy"')
    expect("site-declined", run_id="run-3")
    expect("model-mismatch", run_id="run-3", phase=Phase.TRAIN, model_hash=PLANTED)
    text = home.settings_file.read_text()
    home.settings_file.write_text(text.replace("max_iterations = 3", "max_iterations = 9"))
    (home.folder / "cohort" / COHORT_FILE).write_text(f"{PLANTED}\n")
    expect("cohort-invalid", run_id="run-3")
    state.set_flag(PAUSED, True, PLANTED)
    expect("site-paused", run_id="run-3")
    state.set_flag(LEFT, True, PLANTED)
    expect("site-unknown", run_id="run-3")
    state.close()
    for code, left in seen:
        for part in (PLANTED, "DOE", "1957", str(home.folder.parent), COHORT_FILE, "policy", "500"):
            if not (part == PLANTED and code == "model-mismatch"):
                assert part.encode() not in left, code


def test_a_home_of_another_site_or_without_a_federation_is_refused(home):
    with pytest.raises(ConfigError, match="'B'"):
        make_site("B", home.kit / "local")
    text = home.settings_file.read_text()
    home.settings_file.write_text(text[: text.index("[coordinator]")])
    with pytest.raises(ConfigError, match="has not joined"):
        make_site("A", home.kit / "local")


def test_only_a_home_makes_a_site_whatever_lies_beside_the_kit(home, ask):
    own = 'config_version = 1\n[site]\ncohort = "c"\ncache = "d"\n'
    (home.kit / "local" / "ucadi.toml").write_text(own)
    assert ask()[0].code == "plan-waiting"
    home.settings_file.unlink()
    with pytest.raises(ConfigError) as caught:
        make_site("A", home.kit / "local")
    assert caught.value.code == "site-home-missing"
