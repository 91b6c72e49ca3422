# SPDX-License-Identifier: Apache-2.0
"""Starts the coordinator's or a site's FLARE process from its kit, after checking the kit.

``python -m ucadi.engines.flare.start KIT``. The process ends when its standard input closes, so it does not
outlive the program that started it.
"""

import os
import sys
import threading
from argparse import Namespace
from pathlib import Path

from ucadi.engines.flare.guard import close_commands, hear_coordinator_only
from ucadi.engines.flare.kit import Role, check_kit
from ucadi.engines.flare.settings import HEARTBEAT_S
from ucadi.engines.flare.wires import make_fit
from ucadi.errors import EngineError
from ucadi.logs import log_to_file

__all__ = ["main"]


def main(folder: Path) -> int:
    """Check the kit, then run until told to stop."""
    try:
        card = check_kit(folder)
    except EngineError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log yet
        return int(error.exit_status)
    log_to_file(folder / "logs" / "ucadi.jsonl")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Heavy imports only after the check.
    from nvflare.fuel.f3.mpm import MainProcessMonitor

    make_fit()

    if card.role is Role.COORDINATOR:
        from nvflare.private.fed.app.server import server_train as program

        start_file, name = "fed_server.json", "org=coordinator"
        # A site that was lost must not hold up the next job for FLARE's default of 15 minutes.
        os.environ["NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT"] = "15"
    else:
        from nvflare.private.fed.app.client import client_train as program

        close_commands(card.app.executor)
        hear_coordinator_only()
        start_file, name = "fed_client.json", f"uid={card.name}"
    settings = ["secure_train=true", "config_folder=config", name, f"heart_beat_interval={HEARTBEAT_S}"]
    arguments = Namespace(
        workspace=str(folder), fed_server=start_file, fed_client=start_file, set=settings, local_rank=0
    )
    return int(MainProcessMonitor.run(main_func=program.main, run_dir=str(folder), args=arguments) or 0)


def _end_with_parent() -> None:
    """Leave when the starting program is gone; the processes of jobs do the same."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
