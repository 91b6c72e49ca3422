# SPDX-License-Identifier: Apache-2.0
"""A run's numbers for other programs: TensorBoard event files and MLflow runs.

Both libraries are optional (``ucadi[tracking]``). Exporting again brings the other program up to date instead
of doubling what it has.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucadi.errors import ConfigError, EngineError

__all__ = ["EXPERIMENT", "Measurement", "write_mlflow", "write_tensorboard"]

EXPERIMENT = "ucadi"
"""The MLflow experiment that holds all runs."""

_SUFFIX = ".ucadi"
"""How the names of our TensorBoard files end, so that an export replaces its own files and no others."""

_BATCH = 1000
"""Most metrics that MLflow takes at once."""

_MLFLOW_STATES = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass(frozen=True)
class Measurement:
    """One number of a run.

    Attributes:
        series: What was measured, with a slash between its parts: ``validation/mean``, ``loss/site/A``.
        step: The round whose model was measured, or the round itself; 0 is the initial model.
        value: The number.
        time_s: When, in seconds since 1970.
    """

    series: str
    step: int
    value: float
    time_s: float


def write_tensorboard(folder: Path, measurements: Iterable[Measurement], plan: str) -> Path:
    """Write a run's numbers for TensorBoard, in place of what an earlier export wrote there.

    Args:
        folder: The log folder of this run; other programs' event files in it stay.
        measurements: The numbers.
        plan: The plan in words, shown under "Text".

    Returns:
        The event file.

    Raises:
        ConfigError: ``extra-missing``.
    """
    with _optional("tensorboard"):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        from tensorboard.util.tensor_util import make_tensor_proto

    def event(tag: str, step: int, time_s: float, **content: Any) -> Any:
        return Event(step=step, wall_time=time_s, summary=Summary(value=[Summary.Value(tag=tag, **content)]))

    folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.glob(f"events.out.tfevents.*{_SUFFIX}"))
    ordered = sorted(measurements, key=lambda m: (m.time_s, m.series))
    writer = EventFileWriter(str(folder), filename_suffix=_SUFFIX)
    try:
        words = {
            "tensor": make_tensor_proto([plan.encode()]),
            "metadata": create_summary_metadata(display_name="plan", description=""),
        }
        writer.add_event(event("plan", 0, ordered[0].time_s if ordered else 0.0, **words))
        for m in ordered:
            writer.add_event(event(m.series, m.step, m.time_s, simple_value=m.value))
    finally:
        writer.close()
    for path in earlier:  # only now: a failed export leaves the old one
        path.unlink()
    return next(folder.glob(f"events.out.tfevents.*{_SUFFIX}"))


def write_mlflow(
    where: str,
    run_id: str,
    measurements: Sequence[Measurement],
    parameters: Mapping[str, str],
    *,
    tags: Mapping[str, str],
    state: str,
) -> str:
    """Write a run's numbers into MLflow; numbers that it has already are left alone.

    Args:
        where: Address of a tracking server or database, or a folder for a local one (``mlflow.db`` in it).
        run_id: Name of the run.
        measurements: The numbers.
        parameters: The plan, flat.
        tags: Who and what, for search; ``ucadi.plan`` must be the plan's hash.
        state: The run's state.

    Returns:
        MLflow's own identifier of the run.

    Raises:
        ConfigError: ``extra-missing``.
        EngineError: ``tracking-failed``.
    """
    # MLflow reports its use to its makers unless told not to when it is loaded, and tries an address that
    # does not answer for four minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with _optional("mlflow-skinny"):
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    uri = where
    if "://" not in where:
        folder = Path(where).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    try:
        with _optional("mlflow-skinny"):  # a local database needs one package more
            client = MlflowClient(tracking_uri=uri)
        own_id = _find_or_make(client, run_id, tags)
        known = _logged(client, own_id, {m.series for m in measurements})
        fresh = [
            Metric(m.series, m.value, round(m.time_s * 1000), m.step)
            for m in measurements
            if (m.series, m.step, m.value) not in known
        ]
        client.log_batch(own_id, params=[Param(name, value[:500]) for name, value in parameters.items()])
        for start in range(0, len(fresh), _BATCH):
            client.log_batch(own_id, metrics=fresh[start : start + _BATCH])
        if state in _MLFLOW_STATES:
            client.set_terminated(own_id, _MLFLOW_STATES[state])
        else:
            client.update_run(own_id, "RUNNING")
    except MlflowException as error:
        raise EngineError("tracking-failed", f"MLflow at {where}: {error!s:.300}.") from error
    return str(own_id)


def _find_or_make(client: Any, run_id: str, tags: Mapping[str, str]) -> str:
    """Return the MLflow run of an earlier export of the same plan, or a new one."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    found = client.search_runs([experiment_id], f"tags.`ucadi.plan` = '{tags['ucadi.plan']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    made = client.create_run(experiment_id, tags=dict(tags), run_name=run_id)
    return str(made.info.run_id)


def _logged(client: Any, own_id: str, series: Iterable[str]) -> set[tuple[str, int, float]]:
    """Return which numbers an MLflow run has."""
    return {
        (name, metric.step, metric.value)
        for name in series
        for metric in client.get_metric_history(own_id, name)
    }


@contextmanager
def _optional(package: str) -> Iterator[None]:
    """Say how to install a package when what is imported, or what that needs, is missing.

    Raises:
        ConfigError: ``extra-missing``, with the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            "extra-missing",
            f"The package {package} is not installed, or lacks {error.name}.",
            cure="Install it: python -m pip install 'ucadi[tracking]'.",
        ) from error
