# SPDX-License-Identifier: Apache-2.0
"""The preflight's dry step: an optimizer step on real studies, in a process of its own.

In a process of its own because its peak memory can then be measured, and because a machine with too little
memory ends it and not the preflight.
"""

import contextlib
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from pydantic import TypeAdapter

from ucadi.cohorts.cohort import Cohort, Study
from ucadi.errors import UcadiError
from ucadi.types import Split, Task
from ucadi.workflows.preflight_checks import Line, failed, ok, readable_bytes, skipped, warning
from ucadi.workflows.preflight_checks_network import Bandwidth

__all__ = ["DryStep", "StepProcess", "StepRequest", "check_round", "check_step"]

_DEADLINE_S = 30.0
_SLOW_S = 10.0
_ROUND_STEPS = 100
"""Steps of the round whose time is estimated; plans differ, the time per step is what counts."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class StepRequest:
    """What the dry step does.

    Attributes:
        root: The cohort's folder.
        studies: Training studies that can be used.
        task: What is learned.
        networks: Names of the allowed networks; the one with the most parameters is taken.
        preset: Name of the input preset.
        cache: Where the cut studies are.
        batch_size: Samples of the step.
        threads: CPU threads.
    """

    root: Path
    studies: tuple[Study, ...]
    task: Task
    networks: tuple[str, ...]
    preset: str
    cache: Path
    batch_size: int
    threads: int


@dataclass(frozen=True)
class DryStep:
    """What a dry step took.

    Attributes:
        network: Name of the network.
        seconds: Of one step, after a first one that warms up.
        loss: Of that step.
        peak_bytes: Memory of its process at the peak, libraries included.
        model_bytes: Size of the shared parameters, which is that of an update.
        fault: Why there is nothing of all that; empty when all went well.
        cure: How to mend it.
        is_late: Whether it was ended because it took too long; a plan's deadline may be longer.
    """

    network: str = ""
    seconds: float = math.nan
    loss: float = math.nan
    peak_bytes: int = 0
    model_bytes: int = 0
    fault: str = ""
    cure: str = ""
    is_late: bool = False


_REQUEST, _ANSWER = TypeAdapter(StepRequest), TypeAdapter(DryStep)


class StepProcess:
    """The process that takes dry steps, started when first needed."""

    def __init__(self) -> None:
        self._child: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "StepProcess":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._end()

    def warm_up(self) -> None:
        """Start the process, so that it loads its libraries while other checks are made."""
        with contextlib.suppress(OSError):  # `take` will try again, and say it
            self._started()

    def take(self, request: StepRequest) -> DryStep:
        """Take one step. A process that was ended or takes too long is given up.

        Raises:
            OSError: If no process can be started.
        """
        child, pipe = self._started()
        try:
            pipe.send_bytes(_REQUEST.dump_json(request))
            if pipe.poll(_DEADLINE_S):
                return _ANSWER.validate_json(pipe.recv_bytes())
            cure = "Give training more threads in site.toml, or a faster machine."
            step = DryStep(fault=f"not done within {_DEADLINE_S:.0f} s", cure=cure, is_late=True)
        except (EOFError, OSError):
            child.join()
            cure = (
                "Give the machine or the container more memory, or forbid the larger preset in policy.toml."
            )
            step = DryStep(fault=f"its process was ended from outside (status {child.exitcode})", cure=cure)
        self._end()
        return step

    def _started(self) -> tuple[BaseProcess, Connection]:
        """Return the process and the pipe to it."""
        if self._child is None or self._pipe is None:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            child = context.Process(target=_serve, args=(theirs,), daemon=True)
            child.start()
            theirs.close()
            self._child, self._pipe = child, ours
        return self._child, self._pipe

    def _end(self) -> None:
        """End the process now."""
        if self._child is not None and self._pipe is not None:
            self._child.kill()
            self._child.join()
            self._pipe.close()
        self._child = self._pipe = None


def check_step(request: StepRequest, process: StepProcess) -> tuple[Line, DryStep | None]:
    """Take one step as training does; return what it took, or None if it could not be taken."""
    name = f"dry step, {request.task}"
    if not request.studies:
        return skipped(name, "no training study of the sample can be used for it"), None
    if not request.networks:
        return skipped(name, "policy.toml allows no network for it"), None
    step = process.take(request)
    if step.fault:
        return (warning if step.is_late else failed)(name, step.fault, step.cure), None
    found = (
        f"{step.network} with preset {request.preset}, batch of {request.batch_size}: {step.seconds:.2f} s, "
        f"peak {readable_bytes(step.peak_bytes)}, loss {step.loss:.3f}"
    )
    if step.seconds > _SLOW_S:
        cure = f"Give training more threads (site.toml: threads = {request.threads}) or a faster machine."
        return warning(name, found, cure), step
    return ok(name, found), step


def check_round(steps: Sequence[DryStep], bandwidth: Bandwidth) -> Line:
    """Estimate how long a round takes: training, and the model down and the update up."""
    parts = []
    for step in steps:
        training = f"{_ROUND_STEPS} steps of {step.network} {_duration(_ROUND_STEPS * step.seconds)}"
        if bandwidth.up is None or bandwidth.down is None:
            parts.append(f"{training}; model {readable_bytes(step.model_bytes)}, link not measured")
            continue
        carried = step.model_bytes / bandwidth.up + step.model_bytes / bandwidth.down
        parts.append(
            f"{training}, model of {readable_bytes(step.model_bytes)} down and up {_duration(carried)}"
        )
    return ok("time of a round", "; ".join(parts)) if parts else skipped("time of a round", "no dry step")


def _duration(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _serve(pipe: Connection) -> None:
    """Take steps until the other side is gone; errors travel as words."""
    import ucadi.workflows.fit  # noqa: F401 - what takes long to load, before it is asked for

    while True:
        try:
            request = _REQUEST.validate_json(pipe.recv_bytes())
        except EOFError:
            return
        try:
            step = _take(request)
        except UcadiError as error:
            step = DryStep(fault=error.detail, cure=error.cure)
        except MemoryError:
            step = DryStep(fault="the memory does not suffice", cure="Give the machine more memory.")
        except Exception as error:  # whatever training raises is a finding
            cure = "Report this with the line's text."
            words = " ".join(str(error).split())[:300]
            step = DryStep(fault=f"{type(error).__name__}: {words}", cure=cure)
        pipe.send_bytes(_ANSWER.dump_json(step))


def _take(request: StepRequest) -> DryStep:
    """Build the largest network and take two steps; the second is timed."""
    import torch

    from ucadi.learning.supervised import FitSettings
    from ucadi.models.parameters import parameters_of
    from ucadi.models.registry import build_network
    from ucadi.workflows.fit import fit
    from ucadi.workflows.prepare import prepare_samples

    with contextlib.suppress(OSError):
        _RESET.write_text("5", encoding="ascii")  # the peak of an earlier step does not count
    torch.set_num_threads(request.threads)
    samples = prepare_samples(
        [Cohort(request.root, request.studies)],
        Split.TRAIN,
        request.task,
        request.preset,
        request.cache,
        lambda done, total: None,
    )
    built = [(name, build_network(name, request.task, seed=0)) for name in request.networks]
    sizes = {name: sum(array.nbytes for array in parameters_of(net).values()) for name, net in built}
    name, network = max(built, key=lambda pair: sizes[pair[0]])
    ends: list[tuple[float, float]] = []

    def note(step: int, loss: float) -> None:
        ends.append((time.monotonic(), loss))

    settings = FitSettings(iterations=2, batch_size=request.batch_size, learning_rate=1e-4, seed=0)
    fit(network, samples, settings, note)
    return DryStep(name, ends[1][0] - ends[0][0], ends[1][1], _peak_bytes(), sizes[name])


def _peak_bytes() -> int:
    """Return the most memory that this process held since the step began."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
