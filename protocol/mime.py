"""A message as header fields and body octets, in a stream: MIME parsing for transforms (RFC 2045).

The parser takes canonical octets and returns events in their order; written one after another, with
CRLF after each Header, they are the message again, but for the white space before a field's colon,
and for the empty line that a primary header must have before a body. With `convert` the fields that
announce 8-bit or binary bodies are replaced on the way, and those bodies are marked.

What a message is taken for is what Postfix's mime_state(3) takes it for. Where we differ, a message
would have been spoilt: see `_end_header`. Nothing here grows with the message: a line is kept
only where it may be a field or a boundary, both of limited length.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol.header_field import FIELD_NAME, Domain, content_type, transfer_domain
from protocol.value import value

HEADER_LIMIT: Final = 102_400  # octets of one field that are looked at; as header_size_limit


class MimeError(ValueError):
    """The message cannot be converted; the text says why, for people."""


class Place(Enum):
    """Which header a field stands in."""

    PRIMARY = "primary"  # the message's own
    PART = "part"  # of a body part, behind a boundary
    NESTED = "nested"  # of a message in the message


@value()
class Header:
    """A field as `Name: value` with LF between its lines. `name` as written."""

    place: Place
    name: bytes
    text: bytes


@value()
class HeaderRest:
    """More of the last Header, which is too long to be looked at: octets to pass on, or not."""

    octets: bytes


@value()
class Separator:
    """The empty line between a header and its body."""


@value()
class Body:
    """Octets of a body, cut anywhere; `convert`: they are to be encoded, up to the next event
    that does not say so.
    """

    octets: bytes
    convert: bool


Event = Header | HeaderRest | Separator | Body


class _Content(Enum):
    """What follows a header."""

    LEAF = "leaf"
    MULTIPART = "multipart"
    SIGNED = "signed"  # multipart/signed: not to be altered (RFC 1847 section 2.1)
    MESSAGE = "message"  # message/rfc822: a header follows
    GLOBAL = "global"  # message/global: the same, but it may be encoded (RFC 6532 section 3.7)
    FIXED = "fixed"  # message/partial, message/external-body: never encoded (RFC 2046 section 5.2)


@dataclass(frozen=True, slots=True)
class _Boundary:
    """A multipart that is open."""

    text: bytes
    default: _Content  # of its parts
    signed: bool


class _State(Enum):
    HEADER = "header"
    REST = "rest"  # inside a line of a field that is too long
    BODY = "body"
    BOUNDARY = "boundary"  # inside the line of a boundary


class MimeParser:
    """Octets in, events out.

    `convert`: for 8-bit to quoted-printable; MimeError is raised if it cannot be done. `parts`:
    look into parts and nested messages; else all behind the primary header is one body.
    """

    def __init__(
        self,
        *,
        convert: bool = False,
        parts: bool = True,
        nesting_limit: int = 100,
        boundary_limit: int = 2048,
        header_limit: int = HEADER_LIMIT,
    ) -> None:
        """Limits: multiparts in each other; octets of a boundary that count; octets of a field."""
        self._convert = convert
        self._parts = parts or convert
        self._nesting_limit = nesting_limit
        self._boundary_limit = boundary_limit
        self._header_limit = header_limit
        self._buffer = b""
        self._at = 0  # how much of it is understood: to cut it off each time would be quadratic
        self._events: list[Event] = []
        self._state = _State.HEADER
        self._place = Place.PRIMARY
        self._lines: list[bytes] = []  # of the field that is being read
        self._size = 0  # octets in them, with one for each line end
        self._too_long = False  # the last field is; its rest may go on
        self._stack: list[_Boundary] = []
        self._outer = 0  # how many were open when this header began
        self._line_start = True  # the next octet of a body begins a line
        self._after_boundary = _State.BODY
        self._content = _Content.LEAF
        self._domain = Domain.SEVEN_BIT
        self._announced = b""  # the field that announced the domain, while it is held back

    def feed(self, block: bytes) -> list[Event]:
        """Return what can be said now. Raises MimeError; the parser is of no use after that."""
        self._buffer = self._buffer + block if self._buffer else block
        while self._step():
            pass
        self._buffer, self._at = self._buffer[self._at :], 0
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """Return the rest; a line that was kept gets its end if that is missing."""
        if self._buffer:
            self._buffer = self._buffer.removesuffix(b"\r") + b"\r\n"
            while self._step():
                pass
        if self._state is _State.HEADER:
            self._end_field()
            self._end_header()
        events, self._events = self._events, []
        return events

    def _step(self) -> bool:
        """Understand some more of the buffer; False: more is needed."""
        if self._at >= len(self._buffer):
            return False
        match self._state:
            case _State.HEADER:
                return self._read_header()
            case _State.REST | _State.BOUNDARY:
                return self._read_to_line_end()
            case _State.BODY:
                return self._read_body()

    # --- header -----------------------------------------------------------------------------

    def _read_header(self) -> bool:
        buffer, at = self._buffer, self._at
        goes_on = buffer.startswith((b" ", b"\t"), at)
        if self._too_long and goes_on:
            self._state = _State.REST
            return True
        self._too_long = False
        end = buffer.find(b"\r\n", at)
        line = buffer[at:end] if end >= 0 else buffer[at:].removesuffix(b"\r")
        if self._size + len(line) > self._header_limit:
            self._read_long_line(line)
            return True
        if end < 0:
            return False
        if self._lines and goes_on:
            self._add(line)
        else:
            self._end_field()
            field = FIELD_NAME.match(line)
            if field is None:
                self._begin_body(line)
                return True
            self._add(field[1] + line[field.end() - 1 :])
        self._at = end + 2
        return True

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line) + 1

    def _read_long_line(self, line: bytes) -> None:
        """A line that makes its field too long; its end may still be missing."""
        if self._lines:
            # If it continues the field, it is the first of its rest; else it is looked at again.
            self._too_long = line[:1] in (b" ", b"\t")
            self._end_field()
            return
        limit = self._header_limit
        field = FIELD_NAME.match(line, 0, limit)
        if field is None:
            self._begin_body(line)
            return
        self._add(field[1] + line[field.end() - 1 : limit])
        self._end_field()
        self._events.append(HeaderRest(b" "))  # it goes on in another line
        self._at += limit
        self._state = _State.REST
        self._too_long = True

    def _read_to_line_end(self) -> bool:
        """Pass on the rest of a line that is known for what it is."""
        end = self._buffer.find(b"\n", self._at) + 1 or len(self._buffer)
        octets = self._buffer[self._at : end]
        self._at = end
        if self._state is _State.REST:
            self._events.append(HeaderRest(octets))
            after = _State.HEADER
        else:
            self._events.append(Body(octets, convert=False))
            after = self._after_boundary
        if octets.endswith(b"\n"):
            self._state = after
        return True

    def _end_field(self) -> None:
        """The field that was read is complete."""
        if not self._lines:
            return
        text = b"\n".join(self._lines)
        self._lines.clear()
        self._size = 0
        name, _, content = text.partition(b":")
        known = name.lower()
        if self._parts and known == b"content-type":
            self._note_content_type(content)
        elif self._parts and known == b"content-transfer-encoding":
            self._domain = transfer_domain(content) or self._domain
            if self._converting and self._domain is not Domain.SEVEN_BIT:
                # What is right depends on the content type, which may come behind it.
                self._announced = text
                return
        self._events.append(Header(self._place, name, text))

    def _note_content_type(self, field: bytes) -> None:
        found = content_type(field)
        if found.main == "multipart":
            self._content = _Content.SIGNED if found.sub == "signed" else _Content.MULTIPART
            default = _Content.MESSAGE if found.sub == "digest" else _Content.LEAF
            for boundary in found.boundaries:
                self._open(boundary, default)
        elif found.main == "message" and found.sub == "rfc822":
            self._content = _Content.MESSAGE
        elif found.main == "message" and found.sub == "global":
            self._content = _Content.GLOBAL
        elif found.main == "message" and found.sub in ("partial", "external-body"):
            self._content = _Content.FIXED
        elif found.main:
            self._content = _Content.LEAF

    def _open(self, boundary: bytes, default: _Content) -> None:
        if len(self._stack) >= self._nesting_limit:
            if self._convert:
                raise MimeError("MIME nesting exceeds safety limit")
            return  # what is deeper is text
        text = boundary[: self._boundary_limit]
        self._stack.append(_Boundary(text, default, self._content is _Content.SIGNED))

    @property
    def _converting(self) -> bool:
        """Here, that is: not inside of what is signed."""
        return self._convert and not any(boundary.signed for boundary in self._stack[: self._outer])

    def _end_header(self) -> None:
        """The header is complete: it gets the field that tells of the body as it will be.

        Postfix encodes what is signed, too, and labels as 7bit, but encodes all the same, what is
        message/partial or no message that we know. Neither can be read afterwards.
        """
        converting = self._converting
        if self._content is _Content.GLOBAL:
            encoded = converting and self._domain is not Domain.SEVEN_BIT
            self._content = _Content.LEAF if encoded else _Content.MESSAGE
        if converting and self._domain is not Domain.SEVEN_BIT:
            if self._content in (_Content.SIGNED, _Content.FIXED):
                text = self._announced
            elif self._content is _Content.LEAF:
                text = b"Content-Transfer-Encoding: quoted-printable"
            else:
                text = b"Content-Transfer-Encoding: 7bit"
            name = text.partition(b":")[0]
            self._events.append(Header(self._place, name, text))
        self._announced = b""
        if self._content is not _Content.LEAF or not converting:
            self._domain = Domain.SEVEN_BIT  # what is left as it is, and what has parts of its own

    # --- body -------------------------------------------------------------------------------

    def _begin_body(self, line: bytes) -> None:
        """The header ends at `line`, with which the buffer begins: it is empty, or no field."""
        self._end_header()
        self._state = _State.BODY
        self._line_start = True
        if line:
            if self._place is Place.PRIMARY:
                self._events.append(Separator())
            return  # in a part, an empty line more would break signatures
        self._at += len(b"\r\n")
        self._events.append(Separator())
        if self._parts and self._content is _Content.MESSAGE:
            self._begin_header(Place.NESTED, _Content.LEAF)
            self._state = _State.HEADER

    def _begin_header(self, place: Place, default: _Content) -> None:
        self._place = place
        self._content = default
        self._domain = Domain.SEVEN_BIT
        self._outer = len(self._stack)

    def _read_body(self) -> bool:
        """Pass on what belongs to the body; stop at a boundary.

        Lines are not looked at one by one: only those that begin with two dashes.
        """
        buffer, start = self._buffer, self._at
        if not self._stack:
            self._take_body(len(buffer))
            return False
        boundary_first = self._line_start and buffer.startswith(b"--", start)
        at = start if boundary_first else buffer.find(b"\n--", start) + 1 or -1
        while at >= 0:
            end = buffer.find(b"\n", at)
            line = buffer[at:] if end < 0 else buffer[at:end].removesuffix(b"\r")
            # Enough to recognise the longest boundary with its two pairs of dashes, and a CR.
            if end < 0 and len(line) < self._boundary_limit + 5:
                self._take_body(at)
                return False
            for depth in range(len(self._stack) - 1, -1, -1):
                text = self._stack[depth].text
                if len(line) > 2 and line.startswith(text, 2):
                    self._take_body(at)
                    self._pass_boundary(depth, closes=line.startswith(b"--", 2 + len(text)))
                    return True
            at = buffer.find(b"\n--", at) + 1 or -1
        # A dash at the very end may be the first of two.
        only = self._line_start and start == len(buffer) - 1 and buffer.endswith(b"-")
        self._take_body(len(buffer) - (only or buffer.endswith(b"\n-", start)))
        return False

    def _take_body(self, end: int) -> None:
        """Pass on the buffer up to there."""
        if end == self._at:
            return
        octets = self._buffer[self._at : end]
        self._at = end
        self._line_start = octets.endswith(b"\n")
        convert = self._convert and self._domain is not Domain.SEVEN_BIT
        self._events.append(Body(octets, convert))

    def _pass_boundary(self, depth: int, *, closes: bool) -> None:
        """The buffer begins with the boundary of this multipart."""
        boundary = self._stack[depth]
        del self._stack[depth + (not closes) :]
        self._begin_header(Place.PART, _Content.LEAF if closes else boundary.default)
        self._after_boundary = _State.BODY if closes else _State.HEADER
        self._line_start = True
        self._state = _State.BOUNDARY
