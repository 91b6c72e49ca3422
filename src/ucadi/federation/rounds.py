# SPDX-License-Identifier: Apache-2.0
"""A federated run as one loop over a transport."""

from collections.abc import Callable

from ucadi.federation.coordinator import Coordinator, RoundRecord
from ucadi.federation.messages import GlobalModel
from ucadi.federation.ports import Transport

__all__ = ["OnRound", "run_rounds"]

OnRound = Callable[[RoundRecord, GlobalModel], None]
"""Called after each round with its record and the model that it made: checkpoints and progress."""


def run_rounds(coordinator: Coordinator, transport: Transport, on_round: OnRound) -> GlobalModel:
    """Run all rounds and return the selected model.

    Raises:
        QuorumError: If too few sites take part in a round.
    """
    while (exchange := coordinator.next_exchange()) is not None:
        transport.exchange(exchange, coordinator.receive)
        record = coordinator.close_phase()
        if record is not None:
            on_round(record, coordinator.model)
    return coordinator.best
