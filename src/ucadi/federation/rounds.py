# SPDX-License-Identifier: Apache-2.0
"""A federated run as one loop over a transport, in rounds or as updates come."""

from ucadi.errors import QuorumError
from ucadi.federation.buffered import BufferedCoordinator
from ucadi.federation.coordinator import Coordinator
from ucadi.federation.ports import Desk, Transport, Wish

__all__ = ["run_buffered", "run_rounds"]


def run_rounds(coordinator: Coordinator, transport: Transport, desk: Desk) -> Wish:
    """Run all rounds, or until the desk wishes otherwise.

    Returns:
        ``go_on`` when the run is complete, else the wish that ended it before.

    Raises:
        QuorumError: If too few sites take part for longer than the run's patience.
    """
    while not coordinator.is_done:
        if coordinator.is_between_rounds and (wish := desk.wish()) is not Wish.GO_ON:
            return wish
        transport.send(coordinator.call(desk.members()))
        while (answer := transport.receive()) is not None:
            coordinator.receive(answer)
        record = coordinator.close_phase()
        if record is not None:
            desk.keep(record, coordinator.model)
        elif coordinator.shortfall and not desk.wait(coordinator.shortfall):
            raise QuorumError("quorum-missed", coordinator.shortfall)
    return Wish.GO_ON


def run_buffered(coordinator: BufferedCoordinator, transport: Transport, desk: Desk) -> Wish:
    """Make a model of every few updates that come; the last one is left to be validated as in any run.

    Returns:
        As `run_rounds`. Trainings that are under way at the end are given up.

    Raises:
        QuorumError: If no site takes part for longer than the run's patience.
    """
    while not coordinator.is_trained:
        if (wish := desk.wish()) is not Wish.GO_ON:
            transport.abandon()
            return wish
        for exchange in coordinator.calls(desk.members()):
            transport.send(exchange)
        answer = transport.receive()
        if answer is None:
            if not desk.wait(coordinator.shortfall):
                raise QuorumError("quorum-missed", coordinator.shortfall)
            coordinator.ask_again()
        elif (record := coordinator.receive(answer)) is not None:
            desk.keep(record, coordinator.model)
    transport.abandon()  # trainings under way start from models that are past
    return Wish.GO_ON
