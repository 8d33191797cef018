"""How the scheduler talks to a worker: one slot is one concurrent delivery to one destination.

The real slots are UNIX-socket streams (`worker/pool/slots.py`); tests script their own.

A worker begins a request only when the result of the one before has left it, whole. So when a
slot is lost, the oldest unanswered request may have been sent, and those behind it were certainly
not: no acknowledgement is needed to know that. A request whose send() failed did not arrive whole,
and was not begun either.
"""

from typing import Final, Protocol

from protocol.outcome import DeliveryResult
from protocol.request import DeliveryRequest
from worker.content import Content

MOST_UNANSWERED: Final = 8  # requests in one slot

DestinationKey = tuple[str, str, str]  # Destination.key; workers need not import that


class WorkerLost(Exception):
    """The worker behind a slot is gone; the oldest request there may or may not have been sent."""


class Slot(Protocol):
    """A stream of requests to one worker, answered in their order.

    A caller keeps at most MOST_UNANSWERED. send() and receive() may run in two tasks.
    """

    @property
    def misplaced(self) -> bool:
        """Another worker has so much less to do that a new slot would be better placed."""

    async def send(self, request: DeliveryRequest, content: Content) -> None:
        """Hand over a request. Closes `content`, whatever happens.

        Raises WorkerLost: it was not begun; results of earlier requests may still be received.
        Raises LocalProtocolError, and sends nothing, for a request that must not be sent.
        """

    async def receive(self) -> DeliveryResult:
        """The result of the oldest unanswered request.

        Raises WorkerLost. Raises RemoteProtocolError for what is no result of that request: the
        worker lives, and goes on with the requests that it has.
        """

    async def aclose(self) -> None:
        """Give the slot back: its session may be ended or cached. Never blocks for long."""


class SlotOpener(Protocol):
    """Gives out slots, spread over the workers."""

    async def open_slot(self, destination: DestinationKey) -> Slot:
        """A fresh slot for one destination, which the caller closes.

        Waits while no worker runs. Raises WorkerLost: none can be reached, or none will run.
        """

    def saturated(self) -> bool:
        """Whether all that can be done is being done: more slots would not change that.

        Over the time since it was asked last, or some moments. Cheap.
        """
