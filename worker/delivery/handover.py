"""Where mail goes that would loop back to us: to another transport of ours (best_mx_transport).

S026. Only what that comes to is here; which transport it is, routing says (`environment.py`).
"""

from collections.abc import Awaitable, Callable

from protocol.outcome import Action
from protocol.request import Protocol
from protocol.value import value


@value()
class Handover:
    """Another transport, whose protocol is spoken with `nexthop`."""

    transport: str
    nexthop: str
    protocol: Protocol


@value()
class Settled:
    """Another transport that needs no server: error, retry, discard, or one that is not there."""

    transport: str
    action: Action
    dsn: str
    reason: str


# Of the nexthop of a request that would loop. Does not raise.
HandOver = Callable[[str], Awaitable[Handover | Settled]]
