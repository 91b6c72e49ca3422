# SPDX-License-Identifier: Apache-2.0
"""What a round costs besides training: three sites, 12 million parameters, TLS on the loopback, a warm job.

    python benchmarks/federation_round.py --json

Real processes in a network namespace of their own (as root; then the loopback's bytes are exactly ours), a
trainer that takes no time. Counted from the second to the last round: wall time between two stored models,
CPU time of all processes of the federation, bytes that passed the loopback; the model's own bytes that must
cross are 3 x (down + up). The peer is NVIDIA FLARE of the same release as its makers ship it: provisioned
with TLS, its FedAvg workflow over numpy arrays, its own intervals, an executor that takes no time either, and
each round's model stored as one file. Peer and ucadi run one after the other, twice, in turn.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
SITES = ("site-1", "site-2", "site-3")
MARK = "UCADI_ROUND_BENCHMARK"


def loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0


def cpu_seconds(mark: str) -> float:
    """Return the CPU time of all living processes of one federation."""
    total = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                times = process.cpu_times()
                total += times.user + times.system
    return total


def watch(file: Path, rounds: int, mark: str, check: Callable[[], None]) -> dict[str, Any]:
    """Measure from the first stored model to the last one."""

    def stored() -> list[float]:
        return [float(line) for line in file.read_text().split()] if file.exists() else []

    until, before = time.monotonic() + 400, None
    while len(times := stored()) < rounds:
        check()
        if before is None and times:
            before = (len(times), cpu_seconds(mark), loopback_bytes())
        if time.monotonic() > until:
            raise TimeoutError(f"{len(times)} of {rounds} rounds in {file}")
        time.sleep(0.05)
    assert before is not None, "the rounds were too fast to measure"
    counted = rounds - before[0]
    cpu, wire = cpu_seconds(mark) - before[1], loopback_bytes() - before[2]
    walls = [
        later - earlier for earlier, later in zip(times[before[0] - 1 :], times[before[0] :], strict=False)
    ]
    return {
        "rounds_counted": counted,
        "wall_s": round(statistics.median(walls), 2),
        "wall_s_each": [round(wall, 2) for wall in walls],
        "cpu_s": round(cpu / counted, 2),
        "loopback_mb": round(wire / counted / 1e6, 1),
    }


def ours(folder: Path, rounds: int, size: int) -> dict[str, Any]:
    """Run ucadi."""
    from ucadi.engines.flare.kit import FlareApp, make_kits
    from ucadi.engines.flare.local import FlareFederation
    from ucadi.engines.flare.process import free_port

    kits = make_kits(folder / "kits", SITES, FlareApp("app.Controller", "app.Executor"), port=free_port())
    settings = f"size = {size}\nrounds = {rounds}\nsites = {json.dumps(SITES)}\nfolder = {str(folder)!r}\n"
    for kit in (kits.coordinator, *kits.sites.values()):
        (kit / "local" / "ucadi.toml").write_text(settings)
    mark = f"ours-{time.time()}"
    env = {"PYTHONPATH": str(HERE / "rounds"), "OMP_NUM_THREADS": "1", MARK: mark}
    with FlareFederation(kits, env) as federation:
        job = federation.submit("round", len(SITES))

        def check() -> None:
            if int(time.monotonic() * 10) % 50 == 0 and federation.server.status(job.id).startswith("FIN"):
                time.sleep(1)
                if not (folder / "rounds.txt").exists():
                    raise RuntimeError("the job ended without a round")

        return watch(folder / "rounds.txt", rounds, mark, check)


PROJECT = """\
api_version: 3
name: peer
participants:
- {{name: localhost, type: server, org: hub, fed_learn_port: {port}, admin_port: {admin_port}}}
- {{name: site-1, type: client, org: hub}}
- {{name: site-2, type: client, org: hub}}
- {{name: site-3, type: client, org: hub}}
- {{name: admin@hub.org, type: admin, org: hub, role: project_admin}}
builders:
- path: nvflare.lighter.impl.workspace.WorkspaceBuilder
  args: {{template_file: master_template.yml}}
- path: nvflare.lighter.impl.static_file.StaticFileBuilder
  args: {{config_folder: config, overseer_agent: {{path: nvflare.ha.dummy_overseer_agent.DummyOverseerAgent,
    overseer_exists: false, args: {{sp_end_point: "localhost:{port}:{admin_port}"}}}}}}
- {{path: nvflare.lighter.impl.cert.CertBuilder, args: {{}}}}
- {{path: nvflare.lighter.impl.signature.SignatureBuilder, args: {{}}}}
"""


def write_peer_job(folder: Path, rounds: int) -> None:
    """Write a job of FLARE's own FedAvg."""
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    meta = {"name": "peer", "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": 3}
    server = {
        "format_version": 2,
        "workflows": [
            {
                "id": "fedavg",
                "path": "nvflare.app_common.workflows.fedavg.FedAvg",
                "args": {"num_clients": 3, "num_rounds": rounds},
            }
        ],
        "components": [{"id": "persistor", "path": "peer_app.PeerPersistor", "args": {}}],
    }
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": {"path": "peer_app.PeerExecutor", "args": {}}}],
        "components": [],
    }
    for path, document in (
        (folder / "meta.json", meta),
        (config / "config_fed_server.json", server),
        (config / "config_fed_client.json", client),
    ):
        path.write_text(json.dumps(document))
    (folder / "app" / "custom").mkdir()
    shutil.copy(HERE / "rounds" / "peer_app.py", folder / "app" / "custom")


@contextlib.contextmanager
def peer_processes(kits: Path, env: dict[str, str], log: Path) -> Iterator[None]:
    """Start the server and the clients as their kits' start scripts do."""
    base = "nvflare.private.fed.app"
    commands = {
        "localhost": (f"{base}.server.server_train", "fed_server.json", "org=hub"),
        **{site: (f"{base}.client.client_train", "fed_client.json", f"uid={site}") for site in SITES},
    }
    started = []
    try:
        for name, (module, config, own) in commands.items():
            words = [sys.executable, "-u", "-m", module, "-m", str(kits / name), "-s", config, "--set"]
            words += [
                "secure_train=true",
                "config_folder=config",
                own,
                *(["org=hub"] if "uid" in own else []),
            ]
            with log.open("ab") as output:
                started.append(
                    subprocess.Popen(
                        words, env=env, cwd=kits / name, stdout=output, stderr=output, start_new_session=True
                    )
                )
        yield
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == env[MARK]:
                    process.kill()
        for one in started:
            one.wait()


def peer(folder: Path, rounds: int, size: int) -> dict[str, Any]:
    """Run plain FLARE."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    from ucadi.engines.flare.process import free_port

    folder.mkdir(parents=True)
    port = free_port()
    (folder / "project.yml").write_text(PROJECT.format(port=port, admin_port=port))
    command = [
        str(Path(sys.executable).with_name("nvflare")),
        "provision",
        "-p",
        "project.yml",
        "-w",
        "ws",
        "--force",
    ]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    kits = folder / "ws" / "peer" / "prod_00"
    if not kits.exists():
        raise RuntimeError(made.stdout[-2000:] + made.stderr[-2000:])
    for site in (*SITES, "localhost"):
        local = kits / site / "local"
        shutil.copy(local / "resources.json.default", local / "resources.json")
    mark = f"peer-{time.time()}"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        MARK: mark,
        "PEER_SIZE": str(size),
        "PEER_FOLDER": str(folder),
    }
    write_peer_job(folder / "job", rounds)
    with peer_processes(kits, env, folder / "log"):
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                session = new_secure_session("admin@hub.org", str(kits / "admin@hub.org"), timeout=5)
                if len(session.check_status("server").get("clients", [])) == len(SITES):
                    break
            if time.monotonic() > until:
                raise TimeoutError((folder / "log").read_text()[-3000:])
            time.sleep(1)
        try:
            session.submit_job(str(folder / "job"))
            return watch(folder / "rounds.txt", rounds, mark, lambda: None)
        finally:
            session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a small model, few rounds")
    parser.add_argument("--only", choices=["ucadi", "peer"], help="one of both")
    options = parser.parse_args()
    if os.geteuid() == 0 and "UCADI_OWN_LOOPBACK" not in os.environ:
        os.environ["UCADI_OWN_LOOPBACK"] = "1"
        script = 'ip link set lo up && exec "$0" "$@"'
        os.execvp("unshare", ["unshare", "-n", "sh", "-c", script, sys.executable, *sys.argv])  # noqa: S606
    size, rounds, repeats = (600_000, 4, 1) if options.quick else (12_000_000, 7, 2)
    variants = {"ucadi": ours, "peer": peer}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in range(repeats):
            for name, run in variants.items():
                if options.only in (None, name):
                    load = os.getloadavg()[0]
                    row = run(Path(temporary) / f"{name}-{repeat}", rounds, size)
                    results[name].append({**row, "load_before": round(load, 1)})
                    sys.stderr.write(f"{name}: {results[name][-1]}\n")
    best = {name: min(rows, key=lambda row: row["wall_s"]) for name, rows in results.items() if rows}
    ucadi = best.get("ucadi")
    document = {
        "benchmark": "federation_round",
        "sites": len(SITES),
        "parameters": size,
        "payload_mb": round(2 * len(SITES) * size * 4 / 1e6, 1),
        "own_loopback": "UCADI_OWN_LOOPBACK" in os.environ,
        "results": results,
        "best": {
            name: {key: row[key] for key in ("wall_s", "cpu_s", "loopback_mb")} for name, row in best.items()
        },
        "targets_met": ucadi
        and {"wall_under_3_s": ucadi["wall_s"] < 3, "cpu_under_25_s": ucadi["cpu_s"] < 25},
        "versions": {"python": platform.python_version(), "nvflare": version("nvflare")},
    }
    print(json.dumps(document, indent=2) if options.json else document)


if __name__ == "__main__":
    main()
