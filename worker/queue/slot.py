"""How the scheduler talks to a worker: one slot is one concurrent delivery to one destination.

The real slots are UNIX-socket streams (`worker/slots.py`); tests script their own.
"""

from typing import Protocol

from protocol.outcome import DeliveryResult
from protocol.request import DeliveryRequest
from worker.content import Content


class WorkerLost(Exception):
    """The worker behind a slot is gone; what was in flight there may or may not have been sent."""


class Slot(Protocol):
    """A stream of requests to one worker, answered in their order.

    A caller keeps at most three requests unanswered. send() and receive() may run in two tasks.
    """

    async def send(self, request: DeliveryRequest, content: Content) -> None:
        """Hand over a request. Closes `content`, whatever happens. Raises WorkerLost."""

    async def receive(self) -> DeliveryResult:
        """The result of the oldest unanswered request. Raises WorkerLost."""

    async def aclose(self) -> None:
        """Give the slot back: its session may be ended or cached. Never blocks for long."""


class SlotOpener(Protocol):
    """Gives out slots, spread over the workers."""

    async def open_slot(self) -> Slot:
        """A fresh slot, which the caller closes. Raises WorkerLost: no worker can be reached."""
