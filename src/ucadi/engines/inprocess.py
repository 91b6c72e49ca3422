# SPDX-License-Identifier: Apache-2.0
"""All sites in this process, one after the other: simulation and tests.

Messages are the same bytes as over a network, so nothing but the wire and the clock differs from a real
run. The clock is virtual: each site takes a stated time for each answer, and answers come in the order of
that time, whatever this computer does meanwhile. So stragglers and buffered aggregation can be simulated,
always with the same result.
"""

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from ucadi.federation.ports import Answer, Exchange
from ucadi.federation.site import Site

__all__ = ["InProcessTransport"]


@dataclass(order=True, frozen=True)
class _Due:
    """What comes of one message at a moment; of the same moment, the first sent comes first.

    Attributes:
        moment: Virtual time in seconds.
        number: Counts the messages.
        site: To whom it went.
        body: The message; None when the site does not answer in time.
        reason: Why it does not.
    """

    moment: float
    number: int
    site: str = field(compare=False)
    body: bytearray | None = field(compare=False)
    reason: str = field(compare=False, default="")


class InProcessTransport:
    """Hands each message to its site when its virtual moment has come.

    A site does one thing at a time: a message that comes while it works waits. What comes after its deadline
    is done nevertheless, as by a real site, but the answer is late.

    Args:
        sites: The sites by name.
        seconds: Virtual time that a site takes for each message; 0 for those not named.
    """

    def __init__(self, sites: Mapping[str, Site], seconds: Mapping[str, float] | None = None) -> None:
        self._sites = sites
        self._seconds = dict(seconds or {})
        self._now = 0.0
        self._free_at: dict[str, float] = {}
        self._due: list[_Due] = []
        self._numbers = itertools.count()

    @property
    def now(self) -> float:
        """Virtual time in seconds since the start."""
        return self._now

    def send(self, exchange: Exchange) -> None:
        """Start to send a message; returns at once."""
        for site in exchange.sites:
            number = next(self._numbers)
            if site not in self._sites:
                heapq.heappush(self._due, _Due(self._now, number, site, None, "site-lost"))
                continue
            ends_at = max(self._now, self._free_at.get(site, 0.0)) + self._seconds.get(site, 0.0)
            self._free_at[site] = ends_at
            late_at = self._now + exchange.deadline_s
            if ends_at > late_at:
                heapq.heappush(self._due, _Due(late_at, number, site, None, "site-late"))
            else:
                heapq.heappush(self._due, _Due(ends_at, number, site, exchange.body))

    def receive(self) -> Answer | None:
        """Advance the clock to the next answer and return it; None when no message is under way."""
        if not self._due:
            return None
        due = heapq.heappop(self._due)
        self._now = due.moment
        if due.body is None:
            return Answer(due.site, None, due.reason)
        return Answer(due.site, self._sites[due.site].answer(due.body))

    def abandon(self) -> None:
        """Forget all messages under way; the sites are free at once."""
        self._due.clear()
        self._free_at.clear()
