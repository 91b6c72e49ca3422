# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a world, drawn from a seed: kills, cuts, and when."""

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from .links import Cut
from .world import HUB, SITES, World

__all__ = ["Killer"]

_ROLES = (
    "coordinator serve",
    "coordinator engine",
    "coordinator job",
    "site start",
    "site engine",
    "site job",
    "site child",
)
_CUT = "cut"
_CUTS = 3
_LONGEST_S = 60.0
"""How long a fault waits for a round."""


@dataclass
class Killer:
    """Draws one fault after the other from a shuffled deck, so that each kind has its turn.

    Which process a draw meets depends on what lives at that moment, so a seed repeats the plan of the faults
    and not their effect to the millisecond.

    Attributes:
        world: Whom it disturbs.
        seed: Of all draws.
        kills: What was killed, by role.
        cuts: What was cut, by direction.
        log: One line per fault.
    """

    world: World
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - a test's draws
        self._started = time.monotonic()
        self._next_at = self._started + self._chance.uniform(1, 8)
        self._mend_at: dict[str, float] = {}
        self._deck: list[str] = []
        self._strike: tuple[int, float] | None = None

    def step(self, most_kills: int) -> None:
        """Do what is due."""
        now = time.monotonic()
        for site in [site for site, at in self._mend_at.items() if at <= now]:
            self._mend(site)
        self._look_for_rounds(now)
        if now < self._next_at or self.kills.total() >= most_kills:
            return
        if not self._deck:
            self._deck = [*_ROLES, *([_CUT] * _CUTS if self.world.network else [])]
            self._chance.shuffle(self._deck)
        kind = self._deck.pop()
        is_done = self._cut(now) if kind == _CUT else self._kill(kind)
        if not is_done:  # nobody of that kind lives now: it comes later
            self._deck[:0] = [kind] if self._deck else []
            self._next_at = now + self._chance.uniform(0.2, 2)
            return
        self._strike = None
        self._plan_next(now)

    def _plan_next(self, now: float) -> None:
        """Draw when the next fault comes: at once, after a while, or in the midst of the next rounds."""
        when = self._chance.random()
        if when < 0.25:
            self._next_at = now + self._chance.uniform(0.1, 2)
        elif when < 0.5:
            self._next_at = now + self._chance.uniform(3, 25)
        else:
            self._next_at = now + _LONGEST_S
            self._strike = (self._rounds() + self._chance.randrange(1, 3), self._chance.uniform(0, 1.5))

    def _look_for_rounds(self, now: float) -> None:
        """Set the moment of a fault that waits for rounds, when they are complete."""
        if self._strike and self._rounds() >= self._strike[0]:
            self._next_at = min(self._next_at, now + self._strike[1])
            self._strike = None

    def _rounds(self) -> int:
        """Return how many rounds are complete in all runs."""
        return len(list(self.world.home(HUB).glob("runs/*/rounds/*.json")))

    def mend_all(self) -> None:
        """Undo all cuts."""
        for site in list(self._mend_at):
            self._mend(site)

    def _kill(self, role: str) -> bool:
        """Kill one process of a kind; tell whether there was one."""
        alive = [process for process in self.world.processes() if process.role == role and process.host]
        if not alive:
            return False
        victim = self._chance.choice(alive)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.handle.kill()
            self.kills[role] += 1
            self._note(f"kill {role} of {victim.host}")
        return True

    def _cut(self, now: float) -> bool:
        """Cut one site's link for a while; tell whether it was whole."""
        site, which = self._chance.choice(SITES), self._chance.choice(list(Cut))
        seconds = self._chance.choice([self._chance.uniform(0.5, 4), self._chance.uniform(5, 40)])
        if site in self._mend_at:
            return False
        assert self.world.network is not None
        self.world.network.cut(site, which)
        self._mend_at[site] = now + seconds
        self.cuts[which] += 1
        self._note(f"cut {site} {which} for {seconds:.1f} s")
        return True

    def _mend(self, site: str) -> None:
        """Undo a cut."""
        assert self.world.network is not None
        self.world.network.mend(site)
        del self._mend_at[site]
        self._note(f"mend {site}")

    def _note(self, words: str) -> None:
        """Write down what was done and when."""
        self.log.append(f"{time.monotonic() - self._started:8.1f} s  {words}")
