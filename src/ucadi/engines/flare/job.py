# SPDX-License-Identifier: Apache-2.0
"""What is submitted to the engine for one run."""

import json
from pathlib import Path
from typing import Any

from ucadi.engines.flare.app import CALL
from ucadi.engines.flare.settings import FlareApp

__all__ = ["write_job"]


def write_job(folder: Path, app: FlareApp, run_folder: Path, num_sites: int) -> None:
    """Write the job of a run: two class names, the run's folder for the coordinator, and timings."""
    # Sites ask for work; the more there are, the longer each waits, so that the coordinator keeps up.
    ask_every_s = min(2.0, max(0.2, 0.05 * num_sites))
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    meta = {"name": "ucadi", "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": 1}
    lists: dict[str, list[Any]] = {"components": [], "task_data_filters": [], "task_result_filters": []}
    server = {
        "format_version": 2,
        "server": {"task_request_interval": ask_every_s},
        "dead_client_check_lead_time": 5.0,
        "dead_client_grace_period": 5.0,
        "workflows": [
            {"id": "run", "path": app.controller, "args": {"run_folder": str(run_folder.resolve())}}
        ],
        **lists,
    }
    client = {
        "format_version": 2,
        "get_task_timeout": 120.0,
        "submit_task_result_timeout": 300.0,
        "task_check_interval": 1.0,
        "executors": [{"tasks": [CALL], "executor": {"path": app.executor, "args": {}}}],
        **lists,
    }
    for path, document in (
        (folder / "meta.json", meta),
        (config / "config_fed_server.json", server),
        (config / "config_fed_client.json", client),
    ):
        path.write_text(json.dumps(document, indent=1), encoding="utf-8")
