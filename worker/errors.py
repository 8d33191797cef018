"""How a delivery can fail: the class says how far the failure reaches.

Soft or hard follows from the class of the enhanced status ("4.x.x" or "5.x.x"). Texts are
Postfix's words, without the queue id: they become the reason in the log and in bounces.
"""

from protocol.reply import Reply
from worker.network.address import Endpoint


class DeliveryError(Exception):
    """An attempt failed. `dsn`: enhanced status code; `reason`: one line; `reply`: the peer's."""

    def __init__(self, dsn: str, reason: str, reply: Reply | None = None, mta: str = "") -> None:
        super().__init__(reason)
        self.dsn = dsn
        self.reason = reason
        self.reply = reply
        self.mta = mta  # who said `reply`; empty when the reason is ours

    @property
    def hard(self) -> bool:
        """True: bounce. False: try again later, or elsewhere."""
        return self.dsn.startswith("5")


class ResolveError(DeliveryError):
    """The destination has no usable endpoint: DNS trouble, null MX, loop. Ends the request."""


class OwnExchanger(ResolveError):
    """We are an exchanger of the domain ourselves, and nobody better can be used."""


class SiteError(DeliveryError):
    """This endpoint is of no use (connect, greeting, EHLO, TLS): try the next one."""

    login = False  # it is about our log-in


class TlsFailed(SiteError):
    """A TLS handshake came to nothing: where TLS is no must, it may go in the clear (S099)."""


class ConnectError(SiteError):
    """No connection to the endpoint, or to none of several.

    `endpoint`: the one that was dialled, None when several were. `failures`: one for each endpoint
    that was dialled, in the order of failing; empty on an error that is about one endpoint.
    """

    def __init__(
        self,
        dsn: str,
        reason: str,
        *,
        endpoint: Endpoint | None = None,
        failures: "tuple[ConnectError, ...]" = (),
    ) -> None:
        super().__init__(dsn, reason)
        self.endpoint = endpoint
        self.failures = failures


class SessionError(DeliveryError):
    """The session broke in the middle of a phase; it must not be used again."""

    secured = False  # it broke inside TLS, before it took mail


class MessageRefused(DeliveryError):
    """The server refused the message as a whole (MAIL, DATA, final dot): session still sound."""
