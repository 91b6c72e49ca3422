# SPDX-License-Identifier: Apache-2.0
"""What is submitted to the engine for one run, or for a part of it between two changes of the members."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ucadi.engines.flare.settings import FlareApp

__all__ = ["write_job"]

_FORMAT: dict[str, Any] = {
    "format_version": 2,
    "components": [],
    "task_data_filters": [],
    "task_result_filters": [],
}


def write_job(folder: Path, app: FlareApp, run_id: str, sites: Collection[str]) -> None:
    """Write a job: one class name for the coordinator and the run's, one for the sites and nothing else.

    Args:
        folder: Where the job goes; must not exist.
        app: The two classes.
        run_id: Name of the run.
        sites: Who takes part, exactly.
    """
    server = {
        **_FORMAT,
        # Nothing is handed out as a task; sites that ask for one may do so seldom.
        "server": {"task_request_interval": 5.0},
        # Who is lost, the transport finds out by itself.
        "dead_client_check_lead_time": 3600.0,
        "workflows": [{"id": "run", "path": app.controller, "args": {"run_id": run_id}}],
    }
    client = {
        **_FORMAT,
        "get_task_timeout": 30.0,
        "executors": [{"tasks": ["none"], "executor": {"path": app.executor, "args": {}}}],
    }
    meta = {
        "name": "ucadi",
        "resource_spec": {},
        "deploy_map": {"coordinator": ["server"], "site": sorted(sites)},
        "min_clients": 1,
    }
    _write(folder / "meta.json", meta)
    _write(folder / "coordinator" / "config" / "config_fed_server.json", server)
    _write(folder / "site" / "config" / "config_fed_client.json", client)


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
