# SPDX-License-Identifier: Apache-2.0
"""All sites in this process, one after the other: simulation and tests.

Messages are the same bytes as over a network, so nothing but the wire differs from a real run.
"""

from collections.abc import Mapping

from ucadi.federation.ports import Exchange, OnReply
from ucadi.federation.site import Site

__all__ = ["InProcessTransport"]


class InProcessTransport:
    """Hands each message to its site and the reply back, in the order of the sites."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites

    def exchange(self, exchange: Exchange, on_reply: OnReply) -> None:
        """Ask every addressed site in turn. Deadlines do not apply: nothing is ever late here."""
        for name in exchange.sites:
            if name in self._sites:
                on_reply(name, self._sites[name].answer(exchange.body))
