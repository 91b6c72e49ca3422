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
from enum import StrEnum
from pathlib import Path
from typing import Any

from ucadi.errors import EngineError

__all__ = ["ADMIN", "HEARTBEAT_S", "FlareApp", "KitCard", "Kits", "Role", "check_kit", "make_kits"]

_LOG = logging.getLogger("ucadi.engines.flare")

PROJECT = "ucadi"
ADMIN = "driver@ucadi.local"
"""The identity with which the driver submits jobs."""

HEARTBEAT_S = 4
"""Seconds between a site's signs of life; FLARE sleeps in steps of two."""

_SITE_LOST_S = 20
"""A site without a sign of life for so long has left the federation."""

_COMM = {
    "allow_adhoc_conns": False,  # nobody but the coordinator listens
    # FLARE keeps a thread for each received message as long as a sender may repeat it (65 s by default,
    # a thousand threads at our rate of polling); repeating is switched off anyway.
    "streaming_reliable": False,
    "streaming_retry_timeout": 4.0,
    "streaming_retry_wait": 1.0,
}

_CARD = "kit.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

_RIGHTS = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
    "byoc",
)
_GRANTED = frozenset({"submit_job", "manage_job", "view"})
_ROLES = ("project_admin", "org_admin", "lead", "member")
_ADMIN_ROLE = "lead"


class Role(StrEnum):
    """Whose kit it is."""

    COORDINATOR = "coordinator"
    SITE = "site"
    ADMIN = "admin"


@dataclass(frozen=True)
class FlareApp:
    """The two classes of a job, by their full names. They must be installed at both sides."""

    controller: str
    executor: str


@dataclass(frozen=True)
class KitCard:
    """What a kit says about itself.

    Attributes:
        role: Whose it is.
        name: The name in its certificate.
        port: Port of the coordinator.
        app: The classes of a job; the only ones that the kit's owner lets a job build.
        files: SHA-256 by path of every file that must be as it was made.
    """

    role: Role
    name: str
    port: int
    app: FlareApp
    files: Mapping[str, str]


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
    if shlex.quote(f"{folder}{sys.executable}") != f"{folder}{sys.executable}":
        raise EngineError(  # FLARE builds a job's command line without quoting
            "engine-failed",
            f"The engine cannot work with blanks or special letters in a path: {folder}.",
            cure="Choose another folder.",
        )
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
    for path, text in _hardened(folder, card).items():
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
    project.add_admin(ADMIN, PROJECT, {"role": _ADMIN_ROLE})
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
    start_file.write_text(_json(settings), encoding="utf-8")


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
    for name, text in _hardened(folder, card).items():
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


def _hardened(folder: Path, card: KitCard) -> dict[str, str]:
    """Return the text of every file that makes the kit safe, by path."""
    comm = {"local/comm_config.json": _json(_COMM)}
    if card.role is Role.ADMIN:
        admin = {"format_version": 1, "admin": {"idle_timeout": 86400.0}}
        return {"local/resources.json": _json(admin), **comm}
    resources = _site_resources(card) if card.role is Role.SITE else _coordinator_resources(folder, card)
    return {
        "local/resources.json": _json(resources),
        "local/authorization.json": _json(_authorization()),
        "local/log_config.json": _json(_log_config()),
        **comm,
    }


def _authorization() -> dict[str, Any]:
    """Return the rights: whoever it is may submit and stop jobs and see their state, nothing else."""
    rights = {right: "any" if right in _GRANTED else "none" for right in _RIGHTS}
    granted = {role: rights if role == _ADMIN_ROLE else dict.fromkeys(_RIGHTS, "none") for role in _ROLES}
    return {"format_version": "1.0", "permissions": granted}


def _site_resources(card: KitCard) -> dict[str, Any]:
    """Return a site's settings: one class may be built, no log leaves, no component that we do not need."""
    base = "nvflare.app_common"
    return {
        "format_version": 2,
        "class_allow_list": [card.app.executor],
        "class_list_enforcement_mode": "enforce",
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30},
        "components": [
            _component(
                "resource_manager",
                f"{base}.resource_managers.passthrough_resource_manager.PassthroughResourceManager",
            ),
            _component(
                "resource_consumer",
                f"{base}.resource_consumers.passthrough_resource_consumer.PassthroughResourceConsumer",
            ),
            _component(
                "process_launcher", f"{base}.job_launcher.client_process_launcher.ClientProcessJobLauncher"
            ),
        ],
    }


def _coordinator_resources(folder: Path, card: KitCard) -> dict[str, Any]:
    """Return the coordinator's settings: its stores are in its own kit, jobs start as soon as they come."""
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    return {
        "format_version": 2,
        "class_allow_list": [card.app.controller],
        "class_list_enforcement_mode": "enforce",
        "servers": [
            {
                "admin_storage": "transfer",
                "max_num_clients": 1000,
                "heart_beat_timeout": _SITE_LOST_S,
                "admin_timeout": 10.0,
            }
        ],
        "snapshot_persistor": {
            "path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {
                    "path": storage,
                    "args": {"root_dir": str(folder / "snapshots"), "uri_root": "/"},
                },
            },
        },
        "components": [
            _component(
                "job_scheduler",
                "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                {"max_jobs": 1, "min_schedule_interval": 1.0, "max_schedule_interval": 5.0},
            ),
            _component(
                "job_manager",
                "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                {"uri_root": str(folder / "jobs"), "job_store_id": "job_store"},
            ),
            _component("job_store", storage),
            _component(
                "process_launcher",
                "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
            ),
        ],
    }


def _component(name: str, path: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return an engine component's entry."""
    return {"id": name, "path": path, "args": dict(args or {})}


def _log_config() -> dict[str, Any]:
    """Return settings by which the engine writes one plain log to its standard output."""
    line = "%(asctime)s %(levelname)s %(name)s %(fl_ctx)s %(message)s"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "nvflare.fuel.utils.log_utils.BaseFormatter", "fmt": line}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}
        },
        "loggers": {"root": {"level": "INFO", "handlers": ["console"]}},
    }


def _json(document: Mapping[str, Any]) -> str:
    """Write settings as text, always the same way."""
    return json.dumps(document, indent=1) + "\n"
