# SPDX-License-Identifier: Apache-2.0
"""One edition of the chaos test: runs under faults until enough was killed, and what they came to."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .killer import Killer
from .links import Network, can_make_hosts
from .world import HUB, SITES, World, WorldError, hashes

__all__ = ["Result", "chaos", "disturb"]

_TURN_S = 0.25

OnWords = Callable[[str], None]


@dataclass
class Result:
    """What an edition came to.

    Attributes:
        runs: Runs that were submitted.
        kills: Processes that were killed.
        cuts: Links that were cut.
        identical: Runs that ended completed with the undisturbed run's models, in every round.
        rounds_lost: Rounds that had to be asked again.
        restarts: How often a program without supervisor was started again.
        seconds: Wall time under faults.
        hosts: ``namespaces``, or ``loopback`` when links cannot be cut here.
        audited: Verified entries of the chained logs of the coordinator and the sites.
        failures: What was wrong, in words.
        by_role: Kills by kind of process; cuts by direction.
    """

    runs: int = 0
    kills: int = 0
    cuts: int = 0
    identical: int = 0
    rounds_lost: int = 0
    restarts: int = 0
    seconds: float = 0.0
    hosts: str = "loopback"
    audited: int = 0
    failures: list[str] = field(default_factory=list)
    by_role: dict[str, int] = field(default_factory=dict)


def chaos(
    folder: Path, kills: int, seed: int, *, rounds: int = 4, patience_s: float = 420.0, on_words: OnWords
) -> Result:
    """Disturb runs until so many processes were killed; let the last one end in peace.

    Args:
        folder: For all homes; left as it is afterwards.
        kills: How many.
        seed: Of the faults.
        rounds: Of each run.
        patience_s: How long a run may take after the last fault, and after any one fault.
        on_words: Told what happens.
    """
    with ExitStack() as stack:
        network = stack.enter_context(Network([HUB, *SITES])) if can_make_hosts() else None
        world = stack.enter_context(World(folder, network, rounds=rounds))
        on_words("three sites have joined")
        expected = world.reference()
        on_words(f"reference: {expected[-1][:12]}")
        result = disturb(world, expected, kills, seed, patience_s=patience_s, on_words=on_words)
        if left := world.stop():
            result.failures.append(f"left after the stop: {', '.join(sorted(left))}")
    return result


def disturb(
    world: World,
    expected: list[str],
    kills: int,
    seed: int,
    *,
    patience_s: float = 420.0,
    on_words: OnWords = lambda words: None,
) -> Result:
    """Disturb the runs of a world that is up; it stays up.

    Args:
        world: With three sites.
        expected: The hashes of an undisturbed run's models.
        kills: How many processes to kill.
        seed: Of the faults.
        patience_s: How long a run may take after any one fault.
        on_words: Told what happens.
    """
    result = Result(hosts="namespaces" if world.network else "loopback")
    killer, started = Killer(world, seed), time.monotonic()
    while result.runs == 0 or killer.kills.total() < kills:
        result.runs += 1
        run = f"chaos-{seed}-{result.runs}"
        if not _disturb(world, killer, run, kills, patience_s, on_words):
            result.failures.append(f"{run} did not end: {_last_words(world)}")
            break
        found = hashes(world.run_folder(run))
        if found == expected:
            result.identical += 1
        else:
            result.failures.append(f"{run} gave {found}, undisturbed {expected}")
    killer.mend_all()
    result.seconds = round(time.monotonic() - started, 1)
    _judge(world, result, f"chaos-{seed}-")
    result.kills, result.cuts = killer.kills.total(), killer.cuts.total()
    result.by_role = {**killer.kills, **killer.cuts}
    result.restarts = world.restarts
    (world.folder / "faults.log").write_text("\n".join(killer.log) + "\n", encoding="utf-8")
    return result


def _disturb(
    world: World, killer: Killer, run: str, kills: int, patience_s: float, on_words: OnWords
) -> bool:
    """Let one run end under faults; tell whether it did."""
    _persist(lambda: world.submit(run), world)
    last, noted = time.monotonic(), len(killer.log)
    while not world.has_ended(run):
        world.keep_up()
        killer.step(kills)
        if len(killer.log) > noted:
            for words in killer.log[noted:]:
                on_words(words)
            last, noted = time.monotonic(), len(killer.log)
        if time.monotonic() - last > patience_s:
            return False
        time.sleep(_TURN_S)
    on_words(f"{run} has ended")
    return True


def _judge(world: World, result: Result, prefix: str) -> None:
    """Look at everything by the commands that people have."""
    until = time.monotonic() + 60
    states: dict[str, str] = {}
    while time.monotonic() < until:
        world.keep_up()
        listed = world.ask(HUB, "run", "list")["runs"]
        states = {run["run_id"]: run["state"] for run in listed if run["run_id"].startswith(prefix)}
        if set(states.values()) == {"completed"}:
            break
        time.sleep(1)
    result.failures += [f"{run} is {state}" for run, state in states.items() if state != "completed"]
    for number in range(1, result.runs + 1):
        result.rounds_lost += _rounds_lost(world.lines(HUB, "run", "logs", f"{prefix}{number}"))
    try:
        result.audited = world.ask(HUB, "coordinator", "audit", "--verify")["verified"]
    except WorldError as error:
        result.failures.append(str(error))
    for site in SITES:
        try:
            answer = world.ask(site, "site", "sent", "--verify", "--last", "1000000")
        except WorldError as error:
            result.failures.append(str(error))
            continue
        result.audited += answer["verified_entries"]
        result.failures += _changed_updates(site, answer["sent"])


def _rounds_lost(events: list[dict[str, Any]]) -> int:
    """Count how often a round was asked again, from who said how often to be ready for it."""
    ready: dict[tuple[int, str], int] = defaultdict(int)
    for event in events:
        if event.get("kind") == "ready":
            ready[event["round"], event["site"]] += 1
    attempts: dict[int, int] = defaultdict(int)
    for (number, _), count in ready.items():
        attempts[number] = max(attempts[number], count)
    return sum(count - 1 for count in attempts.values())


def _changed_updates(site: str, sent: list[dict[str, Any]]) -> list[str]:
    """Say which rounds a site answered with different updates."""
    digests: dict[tuple[str, int], set[str]] = defaultdict(set)
    for line in sent:
        if line.get("kind") == "update":
            digests[line["run_id"], line["round"]].add(line["sha256"])
    return [
        f"{site} sent {len(kinds)} different updates for round {number} of {run}"
        for (run, number), kinds in digests.items()
        if len(kinds) > 1
    ]


def _persist(action: Callable[[], None], world: World) -> None:
    """Do what may meet a coordinator that was just killed."""
    for _ in range(5):
        try:
            return action()
        except WorldError:
            world.keep_up()
            time.sleep(2)
    return action()


def _last_words(world: World) -> str:
    """Return the ends of all logs, for whoever looks into a failure."""
    words = {
        path.name: path.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        for path in sorted(world.folder.glob("*.log"))
    }
    return json.dumps(words)
