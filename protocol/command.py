"""Commands: what we say to a server, as values that know their octets (RFC 5321 section 4.1).

Answers for one command line being well formed; `dialogue.py` answers for their order. Texts that
came from outside (addresses, names, parameters) are refused here if they hold anything that
could end the line early: this is the last place that sees them before the wire.
"""

import re
from functools import lru_cache
from typing import ClassVar, Final

from protocol import xtext
from protocol.address import is_domain, quote
from protocol.errors import LocalProtocolError
from protocol.sasl.secret import Secret
from protocol.value import value

# Octets with CRLF. RFC 5321 section 4.5.3.1.4 has 512 and lets extensions add to it: DSN adds
# 500 for ORCPT, and long local parts pass (address.LOCAL_PART_LIMIT).
MAX_LINE: Final = 2048

# With CRLF: a longer initial response has to wait for the first 334 (RFC 4954 section 4).
AUTH_LINE: Final = 512

RESPONSE_LIMIT: Final = 12_288  # octets of a response in base64, RFC 4954 section 4

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)
_MECHANISM = re.compile(r"[A-Z0-9_-]{1,20}", re.ASCII)  # RFC 4422 section 3.1
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WORD = re.compile(r"[^\x00-\x20\x7f-\xa0]+")
# With smtp_quote_rfc821_envelope=no these are quoted all the same: unquoted they would end the
# path, or let the server find another domain in the local part.
_ALWAYS_QUOTED = re.compile(r'[<>@"\\]')


@value()
class Command:
    """Base of all commands. `phrase` completes "(in reply to ...)"."""

    phrase: ClassVar[str] = "command"

    def to_wire(self) -> bytes:
        """The command line with CRLF. Raises LocalProtocolError if a value must not be sent."""
        raise NotImplementedError


@value()
class _Introduction(Command):
    """Says who we are (`smtp_helo_name`, `lmtp_lhlo_name`): a host name or address literal."""

    name: str

    verb: ClassVar[str] = ""

    def to_wire(self) -> bytes:
        """The command line."""
        if not _WORD.fullmatch(self.name):
            raise LocalProtocolError(f"bad name in {self.verb} command: {self.name[:100]!r}")
        return _line(f"{self.verb} {self.name}", self.phrase)


@value()
class Helo(_Introduction):
    """HELO: no extensions."""

    phrase: ClassVar[str] = "HELO command"
    verb: ClassVar[str] = "HELO"


@value()
class Ehlo(_Introduction):
    """EHLO: the reply lists extensions (`capabilities.py`)."""

    phrase: ClassVar[str] = "EHLO command"
    verb: ClassVar[str] = "EHLO"


@value()
class Lhlo(_Introduction):
    """LHLO: EHLO of LMTP (RFC 2033)."""

    phrase: ClassVar[str] = "LHLO command"
    verb: ClassVar[str] = "LHLO"


@value()
class StartTls(Command):
    """STARTTLS (RFC 3207): after a positive reply the handshake begins, and all is forgotten."""

    phrase: ClassVar[str] = "STARTTLS command"

    def to_wire(self) -> bytes:
        """The command line."""
        return b"STARTTLS\r\n"


@value()
class Auth(Command):
    """AUTH (RFC 4954 section 4): logs in; each reply 334 asks for an AuthResponse.

    `initial`: the initial response in base64; None: to wait for the first 334.
    """

    mechanism: str
    initial: Secret | None = None

    phrase: ClassVar[str] = "AUTH command"

    def to_wire(self) -> bytes:
        """The command line. No error shows the response."""
        if not _MECHANISM.fullmatch(self.mechanism):
            raise LocalProtocolError(f"bad mechanism in {self.phrase}: {self.mechanism[:100]!r}")
        if self.initial is None:
            return b"AUTH %s\r\n" % self.mechanism.encode()
        # An empty one needs a sign of its own here.
        return b"AUTH %s %s\r\n" % (self.mechanism.encode(), _base64(self.initial) or b"=")


@value()
class AuthResponse(Command):
    """A line in answer to a 334: a response in base64, or None, "*": we give up."""

    response: Secret | None

    phrase: ClassVar[str] = "AUTH command"

    def to_wire(self) -> bytes:
        """The line. No error shows the response."""
        return b"*\r\n" if self.response is None else b"%s\r\n" % _base64(self.response)


@value()
class Mail(Command):
    """MAIL: begins a mail transaction. `reverse_path`: internal form, empty for the null one.

    `params` are words such as "SIZE=123" (`envelope_parameters.py`). `quote` False sends the
    internal, unquoted form (`smtp_quote_rfc821_envelope = no`) where that is not ambiguous.
    """

    reverse_path: str
    params: tuple[str, ...] = ()
    quote: bool = True

    phrase: ClassVar[str] = "MAIL FROM command"

    def to_wire(self) -> bytes:
        """The command line."""
        path = _path(self.reverse_path, self.phrase, quoted=self.quote)
        return _line(f"MAIL FROM:<{path}>", self.phrase, self.params)


@value()
class Rcpt(Command):
    """RCPT: one recipient of the transaction. Fields as in Mail; the path must not be empty."""

    forward_path: str
    params: tuple[str, ...] = ()
    quote: bool = True

    phrase: ClassVar[str] = "RCPT TO command"

    def to_wire(self) -> bytes:
        """The command line."""
        if not self.forward_path:
            raise LocalProtocolError("empty forward-path")
        path = _path(self.forward_path, self.phrase, quoted=self.quote)
        return _line(f"RCPT TO:<{path}>", self.phrase, self.params)


@value()
class Data(Command):
    """DATA: asks for permission (354) to send the content."""

    phrase: ClassVar[str] = "DATA command"

    def to_wire(self) -> bytes:
        """The command line."""
        return b"DATA\r\n"


@value()
class EndOfData(Command):
    """The final dot: registers in the dialogue that the content's replies are now awaited.

    Its octets are not its own: `data.DataEncoder.finish()` writes the dot, because only the
    encoder knows whether a line end must come first. So to_wire() is empty. `replies`: how many
    replies follow; one in SMTP, one for each accepted recipient in LMTP (RFC 2033 section 4.2).
    """

    replies: int = 1

    phrase: ClassVar[str] = "end of DATA command"

    def to_wire(self) -> bytes:
        """Nothing: see above."""
        if self.replies < 1:
            raise LocalProtocolError("end of DATA without an accepted recipient to answer for")
        return b""


@value()
class Rset(Command):
    """RSET: aborts a transaction, or probes a session before it is used again."""

    phrase: ClassVar[str] = "RSET command"

    def to_wire(self) -> bytes:
        """The command line."""
        return b"RSET\r\n"


@value()
class Noop(Command):
    """NOOP: a sign of life."""

    phrase: ClassVar[str] = "NOOP command"

    def to_wire(self) -> bytes:
        """The command line."""
        return b"NOOP\r\n"


@value()
class Quit(Command):
    """QUIT: ends the session."""

    phrase: ClassVar[str] = "QUIT command"

    def to_wire(self) -> bytes:
        """The command line."""
        return b"QUIT\r\n"


@value()
class Xforward(Command):
    """XFORWARD: where the message came from, for a content filter behind us.

    `attributes`: pairs of an announced name ("NAME", "ADDR", ...) and its value as it is; an
    empty value is sent as "[UNAVAILABLE]". At least one pair.
    """

    attributes: tuple[tuple[str, str], ...]

    phrase: ClassVar[str] = "XFORWARD command"

    def to_wire(self) -> bytes:
        """The command line, values in xtext."""
        if not self.attributes:
            raise LocalProtocolError("XFORWARD without attributes")
        try:
            words = tuple(
                f"{name}={xtext.encode(value) if value else '[UNAVAILABLE]'}"
                for name, value in self.attributes
            )
        except UnicodeEncodeError as exc:
            raise LocalProtocolError("XFORWARD value is not valid text") from exc
        return _line("XFORWARD", self.phrase, words)


def _base64(response: Secret) -> bytes:
    if not _BASE64.fullmatch(response.reveal()):
        raise LocalProtocolError("a response of AUTH is not base64")
    if len(response.reveal()) > RESPONSE_LIMIT:
        raise LocalProtocolError(f"a response of AUTH is longer than {RESPONSE_LIMIT} octets")
    return response.reveal().encode()


@lru_cache(1024)  # the same senders, and often the same recipients, come again and again
def _path(address: str, phrase: str, *, quoted: bool) -> str:
    """What stands between the angle brackets: external form, its domain checked."""
    _, at, domain = address.rpartition("@")
    if at and not is_domain(domain):
        raise LocalProtocolError(f"bad domain in {phrase}: {domain[:100]!r}")
    if not quoted and not _ALWAYS_QUOTED.search(address, 0, len(address) - len(at + domain)):
        return address
    return quote(address)


def _line(text: str, phrase: str, params: tuple[str, ...] = ()) -> bytes:
    """Encode one command line; the only place where CRLF is added to what others gave us."""
    if params:
        for param in params:
            if not _WORD.fullmatch(param):
                raise LocalProtocolError(f"bad parameter in {phrase}: {param[:100]!r}")
        text = f"{text} {' '.join(params)}"
    if not (text.isascii() and text.isprintable()) and _CONTROL.search(text):
        raise LocalProtocolError(f"control character in {phrase}: {text[:100]!r}")
    try:
        wire = text.encode("utf-8", "surrogateescape") + b"\r\n"
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"{phrase} is not valid text: {text[:100]!r}") from exc
    if len(wire) > MAX_LINE:
        raise LocalProtocolError(f"{phrase} is longer than {MAX_LINE} octets")
    return wire
