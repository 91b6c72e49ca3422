# SPDX-License-Identifier: Apache-2.0
"""The settings that make a kit safe, as text: the same card always gives the same files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = ["ADMIN_ROLE", "HEARTBEAT_S", "FlareApp", "KitCard", "Role", "hardened_files", "json_text"]

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
ADMIN_ROLE = "lead"


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


def hardened_files(folder: Path, card: KitCard) -> dict[str, str]:
    """Return the text of every file that makes the kit safe, by path."""
    comm = {"local/comm_config.json": json_text(_COMM)}
    if card.role is Role.ADMIN:
        admin = {"format_version": 1, "admin": {"idle_timeout": 86400.0}}
        return {"local/resources.json": json_text(admin), **comm}
    resources = _site_resources(card) if card.role is Role.SITE else _coordinator_resources(folder, card)
    return {
        "local/resources.json": json_text(resources),
        "local/authorization.json": json_text(_authorization()),
        "local/log_config.json": json_text(_log_config()),
        **comm,
    }


def _authorization() -> dict[str, Any]:
    """Return the rights: the driver may submit and stop jobs and see their state, nobody else anything."""
    rights = {right: "any" if right in _GRANTED else "none" for right in _RIGHTS}
    granted = {role: rights if role == ADMIN_ROLE else dict.fromkeys(_RIGHTS, "none") for role in _ROLES}
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
            _component("process_launcher", "ucadi.engines.flare.launcher.SiteLauncher"),
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


def json_text(document: Mapping[str, Any]) -> str:
    """Write settings as text, always the same way."""
    return json.dumps(document, indent=1) + "\n"
