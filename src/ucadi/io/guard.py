# SPDX-License-Identifier: Apache-2.0
"""Reading of inputs that nobody vouches for: in a process of its own, with limits, that can only fail alone.

A damaged or hostile file can make a decoder crash, run for hours or ask for all memory. Each input is
therefore read in a child process, which is ended when it exceeds its limits; what comes back is checked
(`ucadi.io.handover`), and a crash is a refusal like any other.

To start Python and the libraries costs more than to read a small study. So the child starts once (the
host), and splits off one process for each input, which ends with it: no input sees another one's memory.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any

from ucadi.errors import DataError
from ucadi.io.handover import receive, send
from ucadi.io.reader import LoadedCt, load_ct
from ucadi.io.report import LoaderReport
from ucadi.types import PathLikeStr

__all__ = ["DEFAULT_LIMITS", "GuardedReader", "Limits", "load_untrusted"]

# pydicom would load requests, to fetch example files: a fifth of the child's start.
_PROGRAM = "import sys; sys.modules['requests'] = None; from ucadi.io.guard import _serve; _serve()"
_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "SYSTEMROOT", "VIRTUAL_ENV")
_READY = b"R"
_ANSWERED, _NO_MEMORY = 89, 90  # exit statuses of the child; a library that ends it gives another
_CAN_SPLIT = hasattr(os, "fork")  # Windows cannot: there, each input has a host of its own
_SIGNALED = 128  # plus the signal, as shells say it
_MAX_FILES = 64
_PIPE_BYTES = 2**20
_STOPPED = {getattr(signal, name, None) for name in ("SIGALRM", "SIGKILL", "SIGXCPU")}


@dataclass(frozen=True)
class Limits:
    """What the reading of one input may take.

    Attributes:
        memory_bytes: Address space of the process, libraries (about 1 GiB) included.
        cpu_s: Computing time.
        wall_s: Time by the clock, waiting for slow disks included.
    """

    memory_bytes: int = 8 * 2**30
    cpu_s: int = 600
    wall_s: float = 900.0


DEFAULT_LIMITS = Limits()
"""2,000 slices at 0.1 s, as the slowest compression takes, are a third of the time; they fill 1 GiB."""


def load_untrusted(path: PathLikeStr, *, series: str = "", limits: Limits = DEFAULT_LIMITS) -> LoadedCt:
    """Read a chest CT as `ucadi.io.reader.load_ct` does, in a child process with limits.

    An input that is too costly (``input-too-costly``) or on which the reader crashes (``input-unreadable``)
    is refused in the report. For many inputs use one `GuardedReader`.

    Args:
        path: What the user named.
        series: SeriesInstanceUID, or key in a loader report; empty for the best series.
        limits: Those that the platform does not know are not applied: on macOS memory is not limited, on
            Windows only the time by the clock is.
    """
    with GuardedReader(limits) as reader:
        return reader.load(path, series=series)


class GuardedReader:
    """Reads inputs one after the other, each in a process of its own. Not for several threads at once.

    Args:
        limits: For each input.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._host: subprocess.Popen[bytes] | None = None
        self._is_late = False

    def __enter__(self) -> "GuardedReader":
        """Return the reader; the host starts with the first input."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the host."""
        self._end()

    def load(self, path: PathLikeStr, *, series: str = "") -> LoadedCt:
        """Read one input; see `load_untrusted`.

        Raises:
            RuntimeError: If the host does not start, so nothing is known about the input.
        """
        host = self._host or self._start()
        # Absolute, since the host is elsewhere; links are left as they are.
        place = os.path.abspath(path)  # noqa: PTH100 - a path may be a string
        request = {"path": place, "series": series, **asdict(self._limits)}
        self._is_late = is_done = False
        clock = threading.Timer(self._limits.wall_s, self._expire)
        clock.start()
        try:
            host.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]  # a pipe
            host.stdin.flush()  # type: ignore[union-attr]
            loaded = receive(host.stdout)  # type: ignore[arg-type]
            is_done = True
            return loaded
        except ValueError:
            return _refused("input-unreadable", "The reader gave a garbled answer.")
        except MemoryError:
            return _refused("input-too-costly", "The volume does not fit into this machine's memory.")
        except (EOFError, OSError):
            return self._why(host.wait)
        finally:
            clock.cancel()
            clock.join()
            if not is_done or self._is_late or not _CAN_SPLIT:
                self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the host and wait until it has loaded its libraries."""
        self._host = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings and traces quote values, which may be a patient's
            bufsize=-1,
            pipesize=_PIPE_BYTES if sys.platform == "linux" else -1,
            cwd=Path(sys.executable).anchor,
            env={
                "OPENBLAS_NUM_THREADS": "1",
                **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            },
            start_new_session=True,  # Ctrl-C reaches it through us only
        )
        if self._host.stdout.read(1) != _READY:  # type: ignore[union-attr]  # a pipe
            self._end()
            raise RuntimeError("the process that reads untrusted inputs did not start")
        return self._host

    def _expire(self) -> None:
        """Stop an input that takes too long."""
        self._is_late = True
        self._kill()

    def _kill(self) -> None:
        """Kill the host and what it split off."""
        if self._host is not None:
            with suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self._host.pid, signal.SIGKILL)
                else:
                    self._host.kill()

    def _end(self) -> None:
        """Kill the host, if there is one, and forget it."""
        if self._host is not None:
            self._kill()
            self._host.wait()
            for pipe in (self._host.stdin, self._host.stdout):
                with suppress(OSError):  # what could not be written any more
                    pipe.close()  # type: ignore[union-attr]
            self._host = None

    def _why(self, wait: Callable[[], int]) -> LoadedCt:
        """Say why the host ended before it had answered; when it only seems to have, its time is limited."""
        limits, status = self._limits, wait()
        if self._is_late:
            return _refused("input-too-costly", f"Reading it takes more than {limits.wall_s:g} s.")
        if status == _NO_MEMORY:
            gib = limits.memory_bytes / 2**30
            return _refused("input-too-costly", f"Reading it takes more than {gib:.1f} GiB of memory.")
        if (-status if status < 0 else status - _SIGNALED) in _STOPPED:
            return _refused(
                "input-too-costly",
                f"Reading it takes more than {limits.cpu_s} s of computing time, or all memory.",
            )
        return _refused("input-unreadable", f"The reader crashed on it (status {status}).")


def _refused(code: str, detail: str) -> LoadedCt:
    """Return a refusal."""
    return LoadedCt(None, None, LoaderReport.refusal(DataError(code, detail)))


# -- in the child -----------------------------------------------------------------------------------------


def _serve() -> None:
    """Read requests from stdin and answer each on stdout, until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get into the answers
    answers.write(_READY)
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if not _CAN_SPLIT:
            os._exit(_answer(request, answers))  # one input per host
        child = os.fork()
        if child == 0:
            os._exit(_answer(request, answers))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != _ANSWERED:  # the host ends too, so that our parent waits no longer
            os._exit(status if status > 0 else _SIGNALED - status)


def _answer(request: dict[str, Any], answers: BufferedIOBase) -> int:
    """Read one input within its limits; return the process' exit status."""
    try:
        _confine(Limits(request["memory_bytes"], request["cpu_s"], request["wall_s"]))
        send(load_ct(request["path"], series=request["series"]), answers)
    except MemoryError:
        return _NO_MEMORY
    except BaseException as error:  # the panic of a decoder in Rust is no Exception
        # A fault of ours: its place helps to mend it, its words may quote the patient.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
        send(_refused("input-unreadable", f"The reader failed on it ({where})."), answers)
    return _ANSWERED


def _confine(limits: Limits) -> None:
    """Set this process' limits, as far as the platform knows them."""
    with suppress(OSError):  # Linux: when the machine's memory ends, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, limits.wall_s)  # also when our parent is gone
    try:
        import resource
    except ImportError:
        return
    wanted = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CORE": 0,  # it would hold the patient's images
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": _MAX_FILES,
    }
    for name, value in wanted.items():
        with suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
