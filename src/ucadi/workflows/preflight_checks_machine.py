# SPDX-License-Identifier: Apache-2.0
"""The preflight's checks of the machine: versions, GPU, memory, disk, key files and certificate."""

import importlib.metadata
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ucadi import __version__
from ucadi.enrolment.chain import ChainFacts, read_chain
from ucadi.workflows.preflight_checks import Line, failed, ok, readable_bytes, warning

__all__ = [
    "READER_BYTES",
    "available_memory_bytes",
    "check_certificate",
    "check_disk",
    "check_gpu",
    "check_key_files",
    "check_memory",
    "check_versions",
]

READER_BYTES = 2 * 2**30
"""What the reading of one large study takes, beside training."""

_RENEW_DAYS = 30
_NAMED = ("nvflare", "torch")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITE_BYTES = 2**16
_CGROUP = Path("/sys/fs/cgroup")
_DRIVER = Path("/proc/driver/nvidia/version")


# -- software ---------------------------------------------------------------------------------------------


def check_versions() -> Line:
    """Compare what is installed with what this release of ucadi requires."""
    name = "versions"
    wrong = []
    for requirement in importlib.metadata.requires("ucadi") or ():
        matched = re.fullmatch(r"([A-Za-z0-9_.-]+)(==|>=)([0-9.]+)", requirement.replace(" ", ""))
        if matched is None:
            continue  # of an extra, or without a bound
        library, operator, wanted = matched.groups()
        try:
            have = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{library} is missing")
            continue
        fits = have == wanted if operator == "==" else _numbers(have) >= _numbers(wanted)
        if not fits:
            wrong.append(f"{library} {have}, required is {operator}{wanted}")
    if wrong:
        cure = "Install ucadi anew with its constraints: pip install -c constraints.txt ucadi."
        return failed(name, "; ".join(wrong), cure)
    python = ".".join(map(str, sys.version_info[:3]))
    named = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in _NAMED)
    return ok(name, f"ucadi {__version__}, Python {python}, {named}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers, for comparison."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^0-9.]", version)[0]))


def check_gpu(threads: int) -> Line:
    """Tell whether there is a GPU that torch could use. This release trains on the CPU all the same."""
    import torch

    name = "GPU"
    on_cpu = f"this release trains on the CPU, with {threads} thread(s) of {os.cpu_count()}"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return ok(name, f"{torch.cuda.get_device_name(0)}, {readable_bytes(memory)}; {on_cpu}")
    if not _DRIVER.exists() and shutil.which("nvidia-smi") is None:
        return ok(name, f"none; {on_cpu}")
    if torch.version.cuda is None:
        cure = "Nothing for this release; later ones need torch's CUDA build (see pytorch.org)."
        return warning(
            name, f"an NVIDIA driver, but torch {torch.__version__} is a CPU build; {on_cpu}", cure
        )
    found = (
        f"an NVIDIA driver that torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use; {on_cpu}"
    )
    return warning(name, found, "Nothing for this release; later ones need a driver for this CUDA.")


# -- memory and disk --------------------------------------------------------------------------------------


def available_memory_bytes() -> int:
    """Return what this process may still take: the machine's, or its container's if that is less."""
    available = int(psutil.virtual_memory().available)
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no container, another kernel, or the word "max"
        return available


def check_memory(step_peak_bytes: int) -> Line:
    """Compare what is free with what the dry step, or else the reader, took at its peak.

    Args:
        step_peak_bytes: Of the largest dry step; 0 when there was none.
    """
    name, free = "memory", available_memory_bytes()
    need = max(step_peak_bytes, READER_BYTES)
    what = "the dry step" if step_peak_bytes > READER_BYTES else "the reading of a large study"
    found = f"{readable_bytes(free)} free; {what} takes {readable_bytes(need)}"
    cure = "Close other programs, give the machine or the container more memory, or fewer threads."
    if free < need:
        return failed(name, found, cure)
    return warning(name, found, cure) if free < 1.5 * need else ok(name, found)


def check_disk(name: str, folder: Path, need_bytes: int) -> Line:
    """Write a little into a folder and compare the free space with what will be needed.

    Args:
        name: The line's name.
        folder: Where will be written; need not exist.
        need_bytes: What will come.
    """
    place = folder
    while not place.exists():
        place = place.parent
    cure = f"Free space on the disk of {place}, or name another folder in site.toml."
    free = shutil.disk_usage(place).free
    found = f"{readable_bytes(free)} free in {place}; {readable_bytes(need_bytes)} will be needed"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".preflight-") as file:
            file.write(bytes(_WRITE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return failed(name, f"{place} cannot be written: {error.strerror}; {found}", cure)
    if free < need_bytes:
        return failed(name, found, cure)
    return warning(name, found, cure) if free < 1.2 * need_bytes else ok(name, found)


# -- keys and certificate ---------------------------------------------------------------------------------


def check_key_files(home: Path) -> Line:
    """Make sure that nobody but the owner may read the keys or look into their folders."""
    name, keys = "key files", sorted([*home.glob("keys/*.key"), *home.glob("kit/**/*.key")])
    if not keys:
        return failed(name, f"there is no key in {home / 'keys'}", "Make them with `ucadi site init`.")
    exposed = [path for path in _with_folders(keys, home) if path.stat().st_mode & _OTHERS]
    if exposed:
        modes = ", ".join(
            f"{path.relative_to(home)} ({stat.S_IMODE(path.stat().st_mode):03o})" for path in exposed
        )
        cure = f"Run `chmod -R go= {home}`."
        return failed(name, f"others may read {modes}", cure)
    foreign = [path for path in keys if path.stat().st_uid != os.geteuid()]
    if foreign:
        cure = "Run ucadi as the owner of the keys."
        return warning(name, f"{foreign[0].relative_to(home)} belongs to another user", cure)
    return ok(name, f"{len(keys)} keys, readable by their owner only")


def _with_folders(keys: list[Path], home: Path) -> Iterator[Path]:
    """Yield the keys and, for those outside of a closed folder, that folder."""
    yield from keys
    yield from sorted({key.parent for key in keys if key.parent.name == "keys" and key.parent != home})


def check_certificate(authority: Path, certificate: Path, key: Path, site: str) -> Line:
    """Check the site's certificate: whose, of whom, until when, and with which key.

    Raises:
        NotAuthorizedError: If a file cannot be read.
    """
    facts = read_chain(authority, certificate, key)
    now = datetime.now(UTC)
    days = (facts.not_after - now).days
    wrong = list(_wrong(facts, site, now))
    if wrong:
        return failed("certificate", "; ".join(wrong), "Enrol again: `ucadi site join INVITATION`.")
    found = (
        f"{facts.name}, {days} days left, signed by the federation's authority "
        f"{facts.authority_fingerprint[:16]}"
    )
    if days < _RENEW_DAYS:
        cure = "Ask the coordinator for a new invitation before it ends."
        return warning("certificate", found, cure)
    return ok("certificate", found)


def _wrong(facts: ChainFacts, site: str, now: datetime) -> Iterator[str]:
    """Yield all that keeps a certificate from being used."""
    if facts.name != site:
        yield f"it is for {facts.name!r}, this site is {site!r}"
    if not facts.is_signed:
        yield "it is not signed by the federation's authority"
    if not facts.is_key_right:
        yield "the private key is not the certificate's"
    if now > facts.not_after:
        yield f"it ended on {facts.not_after:%Y-%m-%d}"
    elif now < facts.not_before:
        yield f"it begins on {facts.not_before:%Y-%m-%d %H:%M} UTC, by this machine's clock later"
    if now > facts.authority_ends:
        yield f"the authority's own certificate ended on {facts.authority_ends:%Y-%m-%d}"
