"""The envelope of one message in one session: MAIL, the RCPTs and DATA, and how far they were said.

That of a probe (S163) has no DATA, unless smtp_address_verify_target says so.

Answers for what can be asked of this server at all, and for what may travel in one segment
(RFC 2920); how the answers are judged is in `transaction.py`.

An envelope may travel ahead: in one segment with the final dot of the message before it, as RFC
2920 section 3.1 allows (`ahead.py`). A busy session then costs one round trip for each message.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from protocol import phrases
from protocol.address import AddressError, to_ascii
from protocol.capabilities import Capabilities
from protocol.command import Command, Data, Mail, Rcpt, Rset
from protocol.dialogue import Dialogue
from protocol.envelope_parameters import mail_parameters, rcpt_parameters
from protocol.errors import LocalProtocolError
from protocol.request import DeliveryRequest, Recipient
from worker.errors import MessageRefused

# RFC 2920 section 3.1: we must not block in sending while the server blocks in replying. Our
# commands always fit into the kernel's send buffer if at most this many octets of them are
# unanswered. A nursery with a concurrent reader was turned down: it costs more than the flight.
PIPELINE_WINDOW: Final = 4096

_AS_THEY_ARE: Final[Mapping[str, str]] = MappingProxyType({})
_DATA: Final = (Data(), Data().to_wire())
_RSET: Final = (Rset(), Rset().to_wire())


class Envelope:
    """The commands of one transaction in their order, taken from the front as they are said."""

    def __init__(
        self,
        request: DeliveryRequest,
        recipients: Sequence[Recipient],
        announced: Capabilities,
        *,
        quote: bool,
        size: int | None = None,
        outside: Mapping[str, str] = _AS_THEY_ARE,
        data: bool = True,
    ) -> None:
        """Write the commands for `recipients` and a server that `announced` its extensions.

        `quote`: smtp_quote_rfc821_envelope. `size`: see mail_parameters(). `outside`: addresses
        that are called something else there (smtp_generic_maps). `data`: DATA follows. Who has an
        address that cannot be sent is left out, see `unsendable`. Raises MessageRefused if that is
        so of the sender.
        """
        self.request = request
        self.recipients: list[Recipient] = []  # whose RCPT is not answered yet
        self.unsendable: list[tuple[Recipient, MessageRefused]] = []
        self.behind_dot = False  # it went in one segment with another message's final dot
        self._announced = announced
        self._waiting: list[tuple[Command, bytes]] = []  # not said yet, with their octets
        self._write(recipients, quote, size, outside)
        if data:
            self._waiting.append(_DATA)

    def _write(
        self,
        recipients: Sequence[Recipient],
        quote: bool,  # noqa: FBT001  # as it was given, once
        size: int | None,
        outside: Mapping[str, str],
    ) -> None:
        request, announced = self.request, self._announced
        utf8 = request.options.requires_smtputf8
        waiting = self._waiting
        try:
            sender = outside.get(request.sender, request.sender)
            sender = sender if utf8 else to_ascii(sender)
            mail = Mail(sender, mail_parameters(request, announced, size), quote)
            waiting.append((mail, mail.to_wire()))
        except (AddressError, LocalProtocolError) as exc:
            raise MessageRefused("5.1.7", f"bad sender address: {exc}") from exc
        for recipient in recipients:
            try:
                address = outside.get(recipient.address, recipient.address)
                address = address if utf8 else to_ascii(address)
                rcpt = Rcpt(address, rcpt_parameters(recipient, announced), quote)
                waiting.append((rcpt, rcpt.to_wire()))
            except (AddressError, LocalProtocolError) as exc:
                error = MessageRefused("5.1.3", f"bad recipient address: {exc}")
                self.unsendable.append((recipient, error))
                continue
            self.recipients.append(recipient)

    def reset_first(self) -> None:
        """RSET goes in front of MAIL."""
        self._waiting.insert(0, _RSET)

    @property
    def waiting(self) -> int:
        """How many commands were not said yet; 1: DATA alone is left."""
        return len(self._waiting)

    def drop(self) -> None:
        """What was not said yet has become pointless."""
        self._waiting.clear()

    def flight(self, dialogue: Dialogue) -> bytes | bytearray:
        """Take what may be said now; the octets to send, in one segment if possible.

        With replies outstanding and no PIPELINING that is nothing.
        """
        pipelining, waiting = self._announced.pipelining, self._waiting
        if pipelining:
            octets = sum([len(wire) for _, wire in waiting])
            if dialogue.unanswered_octets + octets <= PIPELINE_WINDOW:
                whole = dialogue.send_all(waiting)
                waiting.clear()
                return whole
        flight = bytearray()
        if dialogue.in_step and self._waiting:
            flight += dialogue.send(*self._waiting.pop(0))
        if pipelining:
            # The server's window must have room for the next one behind all that is unanswered.
            while self._waiting and (
                dialogue.unanswered_octets + len(self._waiting[0][1]) <= PIPELINE_WINDOW
            ):
                flight += dialogue.send(*self._waiting.pop(0))
        return flight


def smtputf8_missing(
    request: DeliveryRequest, announced: Capabilities, peer: str
) -> MessageRefused | None:
    """RFC 6531 section 3.2: the message needs SMTPUTF8, and this server has not offered it."""
    if not request.options.requires_smtputf8 or announced.smtputf8:
        return None
    return MessageRefused("5.6.7", f"SMTPUTF8 is required, but was not offered by host {peer}")


def check_size(request: DeliveryRequest, announced: Capabilities, peer: str) -> None:
    """What the server has said it will not take is not offered (S065). Raises MessageRefused."""
    limit, size = announced.size_limit, request.size
    if limit and size > limit:
        raise MessageRefused("5.3.4", phrases.size_exceeded(size, limit, peer))
