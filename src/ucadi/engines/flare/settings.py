# SPDX-License-Identifier: Apache-2.0
"""The settings that make a kit safe, as text: the same card always gives the same files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = [
    "ADMIN",
    "ADMIN_ROLE",
    "HEARTBEAT_S",
    "PROJECT",
    "FlareApp",
    "KitCard",
    "Role",
    "hardened_files",
    "json_text",
]

PROJECT = "ucadi"
"""FLARE's name for what all kits of a federation share."""

ADMIN = "driver@ucadi.local"
"""The identity with which the driver submits jobs."""

HEARTBEAT_S = 4
"""Seconds between a site's signs of life; FLARE sleeps in steps of two."""

_SITE_LOST_S = 20
"""A site without a sign of life for so long has left the federation."""

_COMM = {
    "allow_adhoc_conns": False,  # nobody but the coordinator listens
    "streaming_max_blob_size": 64 << 20,  # FLARE's own messages; ours come in pieces
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
_GRANTED_AT_COORDINATOR = ("disable_client", "enable_client")
"""Single commands of the category ``operate``: to keep revoked sites from coming back."""

_ROLES = ("project_admin", "org_admin", "lead", "member")
ADMIN_ROLE = "lead"
_SCHEME = "http"  # web sockets over TLS, which hospitals' firewalls and proxies know


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
        host: Where the coordinator is reached from here; for its own kit, from outside.
        port: Port of the coordinator.
        coordinator: The name in the coordinator's certificate.
        app: The classes of a job; the only ones that the kit's owner lets a job build.
        files: SHA-256 by path of every file that must be as it was made.
    """

    role: Role
    name: str
    host: str
    port: int
    coordinator: str
    app: FlareApp
    files: Mapping[str, str]


def hardened_files(folder: Path, card: KitCard) -> dict[str, str]:
    """Return the text of every file that makes the kit safe, by path."""
    comm = {"local/comm_config.json": json_text(_COMM)}
    if card.role is Role.ADMIN:
        admin = {"format_version": 1, "admin": {"idle_timeout": 86400.0}}
        return {
            "startup/fed_admin.json": json_text(_start_admin(card)),
            "local/resources.json": json_text(admin),
            **comm,
        }
    is_site = card.role is Role.SITE
    resources = _site_resources(card) if is_site else _coordinator_resources(folder, card)
    start_file = "startup/fed_client.json" if is_site else "startup/fed_server.json"
    return {
        start_file: json_text(_start_site(card) if is_site else _start_coordinator(card)),
        "local/resources.json": json_text(resources),
        "local/authorization.json": json_text(_authorization(is_coordinator=not is_site)),
        "local/log_config.json": json_text(_log_config()),
        **comm,
    }


def _start_coordinator(card: KitCard) -> dict[str, Any]:
    """Return how the coordinator listens: on the loopback if that is its host, else on all addresses."""
    server = {
        "name": PROJECT,
        "service": {"target": f"{card.host}:{card.port}", "scheme": _SCHEME},
        "admin_server": card.name,
        "admin_port": card.port,
        "ssl_private_key": "server.key",
        "ssl_cert": "server.crt",
        "ssl_root_cert": "rootCA.pem",
        "connection_security": "mtls",
    }
    return {"format_version": 2, "require_signed_jobs": True, "servers": [server]}


def _start_site(card: KitCard) -> dict[str, Any]:
    """Return how a site connects."""
    server = {
        "name": PROJECT,
        "service": {"target": f"{card.host}:{card.port}", "scheme": _SCHEME},
        "identity": card.coordinator,
    }
    client = {
        "ssl_private_key": "client.key",
        "ssl_cert": "client.crt",
        "ssl_root_cert": "rootCA.pem",
        "fqsn": card.name,
        "is_leaf": True,
        "connection_security": "mtls",
    }
    return {"format_version": 2, "require_signed_jobs": True, "servers": [server], "client": client}


def _start_admin(card: KitCard) -> dict[str, Any]:
    """Return how the driver connects."""
    admin = {
        "project_name": PROJECT,
        "username": card.name,
        "server_identity": card.coordinator,
        "scheme": _SCHEME,
        "host": card.host,
        "port": card.port,
        "connection_security": "mtls",
        "uid_source": "user_input",
        "with_file_transfer": True,
        "upload_dir": "transfer",
        "download_dir": "transfer",
        "client_key": "client.key",
        "client_cert": "client.crt",
        "ca_cert": "rootCA.pem",
    }
    return {"format_version": 1, "admin": admin}


def _authorization(*, is_coordinator: bool) -> dict[str, Any]:
    """Return the rights: the driver may submit and stop jobs and see their state, nobody else anything.

    At the coordinator it may also bar sites.
    """
    rights = {right: "any" if right in _GRANTED else "none" for right in _RIGHTS}
    if is_coordinator:
        rights |= dict.fromkeys(_GRANTED_AT_COORDINATOR, "any")
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
            _component(
                "process_launcher",
                "ucadi.engines.flare.launcher.SiteLauncher",
                {"app_class": card.app.executor},
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
                # the next job may begin while FLARE still tidies up after the last one
                {"max_jobs": 4, "min_schedule_interval": 0.5, "max_schedule_interval": 2.0},
            ),
            _component(
                "job_manager",
                "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                {"uri_root": str(folder / "jobs"), "job_store_id": "job_store"},
            ),
            _component("job_store", storage),
            _component(
                "process_launcher",
                "ucadi.engines.flare.launcher.CoordinatorLauncher",
                {"app_class": card.app.controller},
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
