# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import warnings

import pytest

from ucadi.errors import ConfigError, EngineError
from ucadi.reporting.tracking import EXPERIMENT, Measurement, write_mlflow, write_tensorboard

MEASUREMENTS = (
    Measurement("validation/mean", 0, 0.25, 1_000.0),
    Measurement("validation/mean", 1, 0.5, 1_010.0),
    Measurement("validation/site/A", 0, 0.3, 1_000.0),
    Measurement("upload_bytes", 1, 48_000_000.0, 1_010.0),
)
TAGS = {"ucadi.plan": "ab" * 32, "ucadi.run": "run-1"}


def read_tensorboard(folder):
    """What TensorBoard itself reads: scalars by tag, and the tags of texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    scalars = {
        tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    return scalars, {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}


def test_tensorboard_reads_every_number_with_its_round_and_time(tmp_path):
    path = write_tensorboard(tmp_path / "run-1", MEASUREMENTS, "Learns: classifier")
    scalars, texts = read_tensorboard(path.parent)
    assert scalars["validation/mean"] == [(0, 0.25, 1_000.0), (1, 0.5, 1_010.0)]
    assert scalars["upload_bytes"] == [(1, 48_000_000.0, 1_010.0)]
    assert scalars.keys() == {m.series for m in MEASUREMENTS}
    assert texts["plan"][0].tensor_proto.string_val[0].decode() == "Learns: classifier"


def test_exporting_to_tensorboard_again_replaces_our_file_and_no_other(tmp_path):
    foreign = tmp_path / "events.out.tfevents.1.host"
    foreign.write_bytes(b"")
    first = write_tensorboard(tmp_path, MEASUREMENTS[:1], "plan")
    second = write_tensorboard(tmp_path, MEASUREMENTS, "plan")
    assert sorted(tmp_path.iterdir()) == sorted([foreign, second])
    assert first != second
    assert len(read_tensorboard(tmp_path)[0]["validation/mean"]) == 2


def test_a_run_without_numbers_can_be_exported(tmp_path):
    assert read_tensorboard(write_tensorboard(tmp_path, [], "plan").parent)[0] == {}


@pytest.mark.parametrize(
    ("package", "export"),
    [
        ("tensorboard", lambda folder: write_tensorboard(folder, MEASUREMENTS, "plan")),
        (
            "mlflow",
            lambda folder: write_mlflow(str(folder), "run-1", MEASUREMENTS, {}, tags=TAGS, state="failed"),
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, package, export):
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'ucadi\[tracking\]'") as caught:
        export(tmp_path / "out")
    assert caught.value.code == "extra-missing"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mlflow_reads_every_number_the_plan_and_the_state_and_doubles_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that MLflow uses
        from mlflow.tracking import MlflowClient

        folder = tmp_path / "tracking"
        plan = {"rounds": "2", "training.network": "densenet3d"}
        first = write_mlflow(str(folder), "run-1", MEASUREMENTS[:2], plan, tags=TAGS, state="running")
        again = write_mlflow(str(folder), "run-1", MEASUREMENTS, plan, tags=TAGS, state="completed")
        other = write_mlflow(
            str(folder),
            "run-2",
            MEASUREMENTS[:1],
            plan,
            tags={**TAGS, "ucadi.plan": "cd" * 32},
            state="failed",
        )
        client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        assert client.get_run(other).info.status == "FAILED"
        write_mlflow(str(folder), "run-2", [], plan, tags={**TAGS, "ucadi.plan": "cd" * 32}, state="queued")
        assert client.get_run(other).info.status == "RUNNING"
        run = client.get_run(first)
        history = client.get_metric_history(first, "validation/mean")
        runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert first == again != other
    assert len(runs) == 2
    assert (run.info.run_name, run.info.status) == ("run-1", "FINISHED")
    assert run.data.params == plan
    assert run.data.tags["ucadi.run"] == "run-1"
    assert sorted((m.step, m.value, m.timestamp) for m in history) == [
        (0, 0.25, 1_000_000),
        (1, 0.5, 1_010_000),
    ]
    assert run.data.metrics["validation/site/A"] == 0.3


@pytest.mark.slow
def test_mlflow_is_told_to_report_nothing_to_its_makers(tmp_path):
    code = (
        "import sys; from ucadi.reporting.tracking import write_mlflow; "
        "write_mlflow(sys.argv[1], 'run-1', [], {}, tags={'ucadi.plan': 'ab'}, state='running'); "
        "from mlflow.telemetry.utils import is_telemetry_disabled; sys.exit(not is_telemetry_disabled())"
    )
    environment = {"PATH": os.environ["PATH"]}  # no sign of a test: under one, MLflow is silent by itself
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=True)


@pytest.mark.slow
def test_a_tracking_server_that_is_not_there_is_said_at_once(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that MLflow uses
        with pytest.raises(EngineError) as caught:
            write_mlflow("http://127.0.0.1:9", "run-1", MEASUREMENTS, {}, tags=TAGS, state="running")
    assert caught.value.code == "tracking-failed"
