# SPDX-License-Identifier: Apache-2.0
import tomllib
from datetime import time
from pathlib import Path

import pytest

from ucadi.config import Policy, PolicyFile, SimulateConfig, SiteFile, TrainConfig, load_config
from ucadi.errors import ConfigError, ExitStatus
from ucadi.types import Task
from ucadi.workflows.plan_file import PlanFile

CONFIGS = Path(__file__).parents[1] / "configs"
KIND_BY_PREFIX = {"train-": TrainConfig, "simulate-": SimulateConfig, "plan-": PlanFile}

TRAIN = """
config_version = 1
seed = 3
cohorts = ["a", "/data/b"]
cache = "cache"

[training]
task = "classifier"
network = "densenet3d"
preset = "compact"
iterations = 10
batch_size = 2
learning_rate = 0.01
"""

SIMULATE = """
config_version = 1

[run]
name = "run-1"
rounds = 2

[training]
task = "segmentation"
network = "unet3d"
iterations = 10
batch_size = 2
learning_rate = 0.01

[sites.A]
cohort = "a"
cache = "cache"

[sites.B]
cohort = "b"
cache = "cache"
"""

SITE = """
config_version = 1

[site]
cohort = "cohort"
cache = "cache"
"""

PLAN = """
config_version = 1

[run]
name = "run-1"
rounds = 2
sites = ["A", "B", "C"]
aggregation = "buffered"
buffer_size = 2

[training]
task = "classifier"
network = "densenet3d"
iterations = 10
batch_size = 2
learning_rate = 0.01
"""

TEXTS = {PlanFile: PLAN, TrainConfig: TRAIN, SimulateConfig: SIMULATE, SiteFile: SITE}


@pytest.fixture
def load(tmp_path):
    """Loads a configuration of a kind after changes of its text."""

    def read(kind, *changes):
        text = TEXTS[kind]
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load_config(kind, path)

    return read


def refusal(load, kind, *changes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, *changes)
    assert caught.value.code == "config-invalid"
    assert caught.value.exit_status == ExitStatus.USAGE
    assert "\n" not in caught.value.detail
    return caught.value.detail


def test_relative_paths_are_taken_from_the_files_folder(load, tmp_path):
    train = load(TrainConfig)
    assert train.cohorts == (tmp_path / "a", Path("/data/b"))
    assert train.cache == tmp_path / "cache"
    sites = load(SimulateConfig).sites
    assert (sites["A"].cohort, sites["B"].cache) == (tmp_path / "a", tmp_path / "cache")
    assert load(SiteFile).site.cohort == tmp_path / "cohort"


def test_what_is_not_set_has_the_documented_default(load):
    config = load(SimulateConfig)
    assert (config.run.seed, config.run.min_sites, config.run.weighting) == (0, 2, "normalized")
    assert (config.training.preset, config.training.task) == ("paper", Task.SEGMENTATION)
    assert config.sites["A"].min_studies == 5


def test_settings_cannot_be_changed_later(load):
    with pytest.raises(ValueError, match="frozen"):
        load(TrainConfig).seed = 5


@pytest.mark.parametrize("kind", TEXTS)
def test_dumped_settings_load_again(load, kind):
    config = load(kind)
    assert kind.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("kind", "old", "new", "key"),
    [
        (TrainConfig, "seed = 3", "sead = 3", "sead"),
        (TrainConfig, "batch_size = 2", "batch_size = 2\nlerning_rate = 1", "training.lerning_rate"),
        (SimulateConfig, "rounds = 2", "rounds = 2\nmin_site = 1", "run.min_site"),
        (SimulateConfig, 'cohort = "a"', 'cohort = "a"\nthread = 1', "sites.A.thread"),
        (SiteFile, 'cache = "cache"', 'cache = "cache"\npassword = "x"', "site.password"),
    ],
)
def test_an_unknown_setting_is_refused_by_name(load, kind, old, new, key):
    assert f": {key}:" in refusal(load, kind, (old, new))


@pytest.mark.parametrize(
    ("kind", "old", "key"),
    [
        (TrainConfig, "config_version = 1", "config_version"),
        (TrainConfig, 'cache = "cache"', "cache"),
        (TrainConfig, "iterations = 10", "training.iterations"),
        (SimulateConfig, 'name = "run-1"', "run.name"),
        (SimulateConfig, 'cohort = "b"', "sites.B.cohort"),
    ],
)
def test_a_missing_setting_is_refused_by_name(load, kind, old, key):
    assert f": {key}:" in refusal(load, kind, (old, ""))


@pytest.mark.parametrize(
    ("kind", "old", "new", "key"),
    [
        (TrainConfig, "config_version = 1", "config_version = 2", "config_version"),
        (TrainConfig, "seed = 3", "seed = -1", "seed"),
        (TrainConfig, "seed = 3", "seed = 2147483648", "seed"),
        (TrainConfig, 'cohorts = ["a", "/data/b"]', "cohorts = []", "cohorts"),
        (TrainConfig, 'cohorts = ["a", "/data/b"]', 'cohorts = "a"', "cohorts"),
        (TrainConfig, 'cohorts = ["a", "/data/b"]', "cohorts = [1]", "cohorts.0"),
        (TrainConfig, 'cache = "cache"', "cache = 5", "cache"),
        (TrainConfig, "iterations = 10", "iterations = 0", "training.iterations"),
        (TrainConfig, "iterations = 10", "iterations = 100001", "training.iterations"),
        (TrainConfig, "iterations = 10", "iterations = 2.5", "training.iterations"),
        (TrainConfig, "batch_size = 2", "batch_size = 1025", "training.batch_size"),
        (TrainConfig, "learning_rate = 0.01", "learning_rate = 0", "training.learning_rate"),
        (TrainConfig, "learning_rate = 0.01", "learning_rate = 10.5", "training.learning_rate"),
        (TrainConfig, "learning_rate = 0.01", "learning_rate = nan", "training.learning_rate"),
        (TrainConfig, "learning_rate = 0.01", "learning_rate = inf", "training.learning_rate"),
        (TrainConfig, 'task = "classifier"', 'task = "surgery"', "training.task"),
        (TrainConfig, 'preset = "compact"', 'preset = "tiny"', "training.preset"),
        (SimulateConfig, 'name = "run-1"', 'name = "Run 1"', "run.name"),
        (SimulateConfig, 'name = "run-1"', 'name = "../run"', "run.name"),
        (SimulateConfig, "rounds = 2", "rounds = 0", "run.rounds"),
        (SimulateConfig, "rounds = 2", "rounds = 2\nmin_sites = 0", "run.min_sites"),
        (SimulateConfig, "rounds = 2", 'rounds = 2\nweighting = "equal"', "run.weighting"),
        (SimulateConfig, "rounds = 2", "rounds = 2\nclient_weights = {A = 0}", "run.client_weights.A"),
        (SimulateConfig, 'cohort = "a"', 'cohort = "a"\nmin_studies = 0', "sites.A.min_studies"),
        (SiteFile, 'cohort = "cohort"', "cohort = []", "site.cohort"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(load, kind, old, new, key):
    assert f": {key}:" in refusal(load, kind, (old, new))


def test_the_value_that_was_seen_is_shown_shortened(load):
    detail = refusal(load, TrainConfig, ('preset = "compact"', f'preset = "{"x" * 5000}"'))
    assert "xxx" in detail
    assert len(detail) < 10_500


def test_a_network_that_cannot_learn_the_task_is_refused_with_those_that_can(load):
    detail = refusal(load, TrainConfig, ("densenet3d", "unet3d"))
    assert ": training:" in detail
    assert "'unet3d' cannot learn classifier" in detail
    assert "densenet3d" in detail


def test_more_sites_needed_than_there_are_is_refused(load):
    assert "run.min_sites" in refusal(load, SimulateConfig, ("rounds = 2", "rounds = 2\nmin_sites = 3"))


def test_a_buffer_of_fewer_sites_than_promised_or_of_more_than_there_are_is_refused(load):
    assert load(PlanFile).plan().buffer_size == 2
    detail = refusal(load, PlanFile, ("buffer_size = 2", "buffer_size = 1"))
    assert "run.buffer_size is 1, but run.min_sites is 2" in detail
    detail = refusal(load, PlanFile, ("buffer_size = 2", "buffer_size = 4"))
    assert "run.buffer_size is 4, but run.sites names 3" in detail
    anybody = load(PlanFile, ("buffer_size = 2", "buffer_size = 4"), ('sites = ["A", "B", "C"]', ""))
    assert anybody.plan().buffer_size == 4


def test_a_weight_for_a_site_that_is_not_there_is_refused(load):
    detail = refusal(load, SimulateConfig, ("rounds = 2", "rounds = 2\nclient_weights = {C = 0.5}"))
    assert "run.client_weights" in detail
    assert "C" in detail


def test_a_federation_without_sites_is_refused(load):
    head = SIMULATE[: SIMULATE.index("[sites.A]")]
    assert ": sites:" in refusal(load, SimulateConfig, (SIMULATE, head + "[sites]\n"))


@pytest.mark.parametrize("content", [b"seed = ", b"[a", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="TOML"):
        load_config(TrainConfig, path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing.toml", tmp_path, tmp_path / "nothing" / "deeper.toml"):
        with pytest.raises(ConfigError) as caught:
            load_config(TrainConfig, path)
        assert str(path) in caught.value.detail


def test_every_setting_has_a_description():
    from ucadi.config import CoordinatorAddress, Hours, RunSettings, SiteSettings, TrainingSettings

    for kind in (CoordinatorAddress, Hours, Policy, RunSettings, SiteSettings, TrainingSettings):
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path):
    prefix = next((p for p in KIND_BY_PREFIX if path.name.startswith(p)), None)
    assert prefix, f"{path.name} begins with none of {', '.join(KIND_BY_PREFIX)}"
    load_config(KIND_BY_PREFIX[prefix], path)
    for value in _strings(tomllib.loads(path.read_text())):
        assert not Path(value).is_absolute(), value


def _strings(document):
    """All texts in a TOML document."""
    for value in document.values() if isinstance(document, dict) else document:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from _strings(value)


# -- a site's policy --------------------------------------------------------------------------------------

POLICY = """
config_version = 1

[policy]
approve = "ask"

[policy.hours]
start = "19:00"
end = 07:00:00
days = ["mon"]
time_zone = "Europe/Rome"
"""
TEXTS[PolicyFile] = POLICY


def test_a_policy_is_read_with_its_hours(load):
    policy = load(PolicyFile).policy
    assert (policy.hours.start, policy.hours.end, policy.hours.days) == (time(19), time(7), ("mon",))
    assert load(PolicyFile, (POLICY, "config_version = 1")).policy == Policy()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('approve = "ask"', 'approve = "always"', "policy.approve"),
        ('approve = "ask"', 'aprove = "ask"', "policy.aprove"),
        ('approve = "ask"', 'networks = ["resnet"]', "policy.networks"),
        ('approve = "ask"', 'presets = ["tiny"]', "policy.presets"),
        ('approve = "ask"', 'metrics = ["names"]', "policy.metrics"),
        ('approve = "ask"', 'tasks = ["surgery"]', "policy.tasks.0"),
        ('approve = "ask"', "min_sites = 0", "policy.min_sites"),
        ('approve = "ask"', "min_patients = -1", "policy.min_patients"),
        ('approve = "ask"', "max_rounds = 0", "policy.max_rounds"),
        ('approve = "ask"', "max_epochs = 0", "policy.max_epochs"),
        ('approve = "ask"', "max_learning_rate = nan", "policy.max_learning_rate"),
        ('approve = "ask"', "max_weight_ratio = 0.9", "policy.max_weight_ratio"),
        ('approve = "ask"', "max_batch_size = 2000", "policy.max_batch_size"),
        ("[policy.hours]", "[policy.hour]", "policy.hour"),
        ('start = "19:00"', "start = 19", "policy.hours.start"),
        ('start = "19:00"', 'start = "7 pm"', "policy.hours.start"),
        ('days = ["mon"]', 'days = ["monday"]', "policy.hours.days.0"),
        ("Europe/Rome", "Mars/Base", "policy.hours.time_zone"),
        ("end = 07:00:00", "", "policy.hours.end"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_by_name(load, old, new, key):
    assert f": {key}:" in refusal(load, PolicyFile, (old, new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('cache = "cache"', 'cache = "cache"\ndevice = "cuda"', "site.device"),
        ('cache = "cache"', 'cache = "cache"\nlabels = "some"', "site.labels"),
        ('cache = "cache"', 'cache = "cache"\nmax_batch_size = 0', "site.max_batch_size"),
        ('cache = "cache"', 'cache = "cache"\nmin_class_studies = 0', "site.min_class_studies"),
        ('cache = "cache"', 'cache = "cache"\n[coordinator]\nsite = "../A"', "coordinator.site"),
    ],
)
def test_a_sites_setting_that_is_wrong_is_refused_by_name(load, old, new, key):
    assert f": {key}:" in refusal(load, SiteFile, (old, new))
