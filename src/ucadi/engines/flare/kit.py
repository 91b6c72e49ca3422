# SPDX-License-Identifier: Apache-2.0
"""Kits: keys, certificates and hardened settings with which a coordinator and its sites find each other.

The engine's own defaults are open: jobs may bring code, administrators may read a site's files and a site's
log travels to the server. A kit closes all of that, and `check_kit` refuses one that was altered. What a
site may build in a job is one class of the installed package, and nothing else.
"""

import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ucadi.engines.flare.settings import ADMIN_ROLE, FlareApp, KitCard, Role, hardened_files, json_text
from ucadi.errors import EngineError

__all__ = ["ADMIN", "FlareApp", "KitCard", "Kits", "Role", "check_kit", "check_path", "make_kits"]

_LOG = logging.getLogger("ucadi.engines.flare")

PROJECT = "ucadi"
ADMIN = "driver@ucadi.local"
"""The identity with which the driver submits jobs."""

_CARD = "kit.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Kits:
    """The folders of one federation's kits."""

    coordinator: Path
    admin: Path
    sites: Mapping[str, Path]
    app: FlareApp


def make_kits(
    folder: Path,
    sites: Sequence[str],
    app: FlareApp,
    *,
    port: int,
    coordinator: str = "coordinator",
    host: str = "127.0.0.1",
) -> Kits:
    """Make keys, certificates and hardened settings for one federation on this machine.

    The certificate authority's key is forgotten afterwards, so nobody can be added to these kits.

    Args:
        folder: Where the kits go, one folder each; must be empty or missing.
        sites: Names of the sites: letters, digits, ``-`` and ``_``.
        app: The classes of a job.
        port: Where the coordinator listens.
        coordinator: The coordinator's name, as its certificate states it.
        host: The address at which the sites reach the coordinator.

    Raises:
        EngineError: If the engine cannot make them.
        ValueError: If a name cannot be used, or two are the same.
    """
    names = [coordinator, *sites]
    if len({name.lower() for name in names}) != len(names) or not all(map(_NAME.fullmatch, names)):
        raise ValueError(f"names must differ and be of letters, digits, '-' and '_': {', '.join(names)}")
    folder = folder.resolve()
    check_path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise ValueError(f"the folder for the kits is not empty: {folder}")
    with tempfile.TemporaryDirectory(dir=folder) as workbench:
        made = _provision(Path(workbench), names, port, host)
        _listen_at(made / coordinator / "startup" / "fed_server.json", host, port)
        for name in [*names, ADMIN]:
            shutil.move(made / name, folder / name)
    _finish(folder / coordinator, KitCard(Role.COORDINATOR, coordinator, port, app, {}))
    _finish(folder / ADMIN, KitCard(Role.ADMIN, ADMIN, port, app, {}))
    for site in sites:
        _finish(folder / site, KitCard(Role.SITE, site, port, app, {}))
    return Kits(folder / coordinator, folder / ADMIN, {site: folder / site for site in sites}, app)


def check_path(folder: Path) -> None:
    """Refuse paths with which FLARE cannot start a job: it builds command lines without quoting.

    Raises:
        EngineError: With the path at fault, the folder's or Python's own.
    """
    for path in (str(folder.resolve()), sys.executable):
        if shlex.quote(path) != path:
            raise EngineError(
                "engine-failed",
                f"The engine cannot work with blanks or special letters in a path: {path}.",
                cure="Choose a folder with a plain path, or install ucadi into one.",
            )


def check_kit(folder: Path) -> KitCard:
    """Return the kit's card after checking that every file is as it was made and none was added.

    Raises:
        EngineError: ``site-kit-altered``, with the first file that is wrong.
    """
    try:
        raw = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        card = KitCard(**{**raw, "role": Role(raw["role"]), "app": FlareApp(**raw["app"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("site-kit-altered", f"The kit's card {_CARD} cannot be read.") from error
    found = _files(folder)
    for path, digest in card.files.items():
        if path not in found:
            raise EngineError("site-kit-altered", f"The kit of {card.name} lacks {path}.")
        if _digest(found.pop(path)) != digest:
            raise EngineError("site-kit-altered", f"In the kit of {card.name}, {path} was changed.")
    if found:
        raise EngineError("site-kit-altered", f"The kit of {card.name} has a foreign file {min(found)}.")
    # The list alone could have been remade together with a loosened file.
    for path, text in hardened_files(folder, card).items():
        if (folder / path).read_text(encoding="utf-8") != text:
            raise EngineError("site-kit-altered", f"In the kit of {card.name}, {path} is not hardened.")
    return card


def _provision(workbench: Path, names: Sequence[str], port: int, host: str) -> Path:
    """Let FLARE's provisioning make all startup folders; return the folder that holds them."""
    from nvflare.lighter.constants import CtxKey
    from nvflare.lighter.entity import Project
    from nvflare.lighter.impl.cert import CertBuilder
    from nvflare.lighter.impl.static_file import StaticFileBuilder
    from nvflare.lighter.impl.workspace import WorkspaceBuilder
    from nvflare.lighter.provisioner import Provisioner

    project = Project(PROJECT, "A ucadi federation")
    project.set_server(names[0], PROJECT, {"fed_learn_port": port, "default_host": host})
    for site in names[1:]:
        project.add_client(site, re.sub(r"\W", "_", site), {})
    project.add_admin(ADMIN, PROJECT, {"role": ADMIN_ROLE})
    builders = [
        WorkspaceBuilder(["master_template.yml"]),
        StaticFileBuilder(config_folder="config", require_signed_jobs=True),
        CertBuilder(),
    ]
    context = Provisioner(str(workbench), builders).provision(project, logger=_Quiet())
    if context.get(CtxKey.BUILD_ERROR):
        raise EngineError("engine-failed", "The engine could not make the kits; its message is above.")
    return Path(context[CtxKey.CURRENT_PROD_DIR])


def _listen_at(start_file: Path, host: str, port: int) -> None:
    """Let the coordinator listen on the loopback alone when nobody else is to reach it."""
    settings = json.loads(start_file.read_text(encoding="utf-8"))
    settings["servers"][0]["service"]["target"] = f"{host}:{port}"  # a loopback address is bound as such
    start_file.write_text(json_text(settings), encoding="utf-8")


class _Quiet:
    """Takes the provisioning's messages."""

    def debug(self, message: str) -> None:
        """Log it."""
        _LOG.debug(message)

    info = warning = error = debug


def _finish(folder: Path, card: KitCard) -> None:
    """Replace the engine's open settings by ours and write the kit's card."""
    shutil.rmtree(folder / "local", ignore_errors=True)
    for path in folder.rglob("*"):
        if path.suffix not in {".json", ".crt", ".key", ".pem"} and path.is_file():
            path.unlink()  # start scripts and help texts that nothing here uses
    for name, text in hardened_files(folder, card).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "logs").mkdir()
    files = {path: _digest(where) for path, where in _files(folder).items()}
    card = KitCard(card.role, card.name, card.port, card.app, files)
    (folder / _CARD).write_text(json.dumps(asdict(card), indent=1), encoding="utf-8")


def _files(folder: Path) -> dict[str, Path]:
    """Return the files that must not change, by path; the site's own settings are not among them."""
    found = {
        path.relative_to(folder).as_posix(): path
        for part in ("startup", "local")
        for path in (folder / part).rglob("*")
        if not path.is_dir()
    }
    found.pop("local/ucadi.toml", None)
    return found


def _digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
