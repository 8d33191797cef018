"""The delivery request: the one thing a worker takes in, whoever asks (our scheduler, qmgr(8)).

Facts only. How a request crosses a process border is in `delivery_wire.py`; what comes back is
in `outcome.py`.
"""

from enum import Enum, IntEnum, IntFlag
from typing import Final

from protocol.value import value


class Protocol(Enum):
    """The two dialogues of one engine (requirements S171)."""

    SMTP = "smtp"
    LMTP = "lmtp"


class Notify(IntFlag):
    """NOTIFY of RFC 3461 section 4.1, in Postfix's numbers. 0: the sender did not say."""

    UNSPECIFIED = 0
    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8


class Ret(IntEnum):
    """RET of RFC 3461 section 4.3, in Postfix's numbers."""

    UNSPECIFIED = 0
    FULL = 1
    HDRS = 2


class RequestFlags(IntFlag):
    """What the asker wants besides plain delivery; Postfix's bits (deliver request flags)."""

    NONE = 0
    MARK_DONE = 0x1
    MTA_PROBE = 0x100
    USER_PROBE = 0x200
    RECORD = 0x400
    CACHE_LOAD = 0x800
    CACHE_SAVE = 0x1000
    RECORD_DELAYED = 0x2000


_PROBE: Final = int(RequestFlags.MTA_PROBE | RequestFlags.USER_PROBE)


class SendOptions(IntFlag):
    """Why a message may need SMTPUTF8 (RFC 6531); Postfix's bits."""

    NONE = 0
    SMTPUTF8_REQUESTED = 1
    UTF8_HEADER = 2
    UTF8_SENDER = 4
    UTF8_RECIPIENT = 8

    @property
    def requires_smtputf8(self) -> bool:
        """Requested and really needed: by a header, the sender or a recipient."""
        return int(self) in _REQUIRE_SMTPUTF8


# Looked up, because it is asked for every message several times, and operators of flags are slow.
_REQUIRE_SMTPUTF8: Final = frozenset(
    bits for bits in range(16) if bits & SendOptions.SMTPUTF8_REQUESTED and bits > 1
)


@value(kw_only=True)
class Recipient:
    """One recipient of a request.

    `address` is the internal form: local part unquoted, UTF-8 text. `key` is the asker's handle
    for this recipient (the row in our store, the record offset in a Postfix queue file; -1: none).
    """

    address: str
    original: str = ""  # before aliasing; empty when the same
    orcpt: str = ""  # DSN ORCPT with its address type, e.g. "rfc822;a@b"; empty when not given
    notify: Notify = Notify.UNSPECIFIED
    key: int = -1


@value(kw_only=True)
class ClientFacts:
    """Where the message came from, for XFORWARD. Empty text: not known."""

    name: str = ""
    address: str = ""
    port: str = ""
    protocol: str = ""
    helo: str = ""
    ident: str = ""


NOTHING_KNOWN: Final = ClientFacts()  # of most messages: one object for all of them


@value(kw_only=True)
class DeliveryRequest:
    """One message, one nexthop, at least one recipient.

    Times are wall-clock seconds since the epoch, for logs only. `size` is in octets as the message
    will be sent, line ends as CRLF, before dot-stuffing. `encoding` is "7bit", "8bit" or ""
    (unknown).
    """

    queue_id: str
    transport: str  # name of the transport, e.g. "smtp", "relay": part of every key
    protocol: Protocol
    nexthop: str  # destination syntax of smtp(8), verbatim
    sender: str  # internal form; empty: the null reverse-path
    recipients: tuple[Recipient, ...]
    size: int
    encoding: str = ""
    options: SendOptions = SendOptions.NONE
    envelope_id: str = ""
    ret: Ret = Ret.UNSPECIFIED
    flags: RequestFlags = RequestFlags.NONE
    arrival: float = 0.0  # the message entered the queue
    active: float = 0.0  # it entered the active set
    client: ClientFacts = NOTHING_KNOWN

    @property
    def probe(self) -> bool:
        """Only the addresses are tried: nothing is sent, and what comes of it changes nothing."""
        return int(self.flags) & _PROBE != 0  # flags are slow to combine

    @property
    def each_recipient(self) -> list[Recipient]:
        """The recipients in their order, everyone once."""
        if len(self.recipients) == 1:
            return [*self.recipients]
        return list(dict.fromkeys(self.recipients))
