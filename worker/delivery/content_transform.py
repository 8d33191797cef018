"""What is done to a content between the queue and the wire, in a stream (S070 to S084).

    stored octets -> canonical -> MIME events -> checks, generic maps, quoted-printable
                  -> checks of the body -> long lines -> DataEncoder

A transform is made only for a message that needs one; others never come here. Lookups may wait, and
a table in trouble ends the delivery (TableError): nothing passes unchecked.
"""

from collections.abc import Iterable
from typing import Final

import trio

from protocol.address_field import find_addresses, replace_addresses
from protocol.capabilities import Capabilities
from protocol.data import Canonicaliser
from protocol.header_field import holds_addresses
from protocol.line_length import LineFolder
from protocol.mime import Body, Event, Header, HeaderRest, MimeParser, Place, Separator
from protocol.quoted_printable import QuotedPrintableEncoder
from protocol.request import DeliveryRequest
from worker.delivery.content_checks import PIECE, ContentChecks
from worker.delivery.content_settings import ContentSettings
from worker.delivery.generic_maps import GenericMaps
from worker.status.events import ContentChecked, Emit, LinesBroken, Warned

TURN: Final = 100  # lines of a body, or events, that are looked at before others get their turn
SHOWN: Final = 200  # characters of a checked line that others are told of


def make_transform(
    settings: ContentSettings, request: DeliveryRequest, announced: Capabilities, emit: Emit
) -> "ContentTransform | None":
    """The transform of this message for this server; None: no more than long lines can matter."""
    converts = settings.converts_for(request, announced)
    if not (converts or settings.has_checks or settings.generic):
        return None
    return ContentTransform(settings, request, emit, converts=converts)


class ContentTransform:
    """One message's content on its way. feed() each block, then finish(), once."""

    def __init__(
        self, settings: ContentSettings, request: DeliveryRequest, emit: Emit, *, converts: bool
    ) -> None:
        checks = ContentChecks(settings, self._log, self._warn)
        self._request = request
        self._emit = emit
        self._checks = checks if settings.has_checks else None
        self._generic = settings.generic
        self._canonicaliser = Canonicaliser()
        self._parser = MimeParser(
            convert=converts,
            parts=checks.looks_into_parts,
            nesting_limit=settings.nesting_limit,
            boundary_limit=settings.boundary_limit,
        )
        self._encoder = QuotedPrintableEncoder()
        self._body = BodyLines(checks) if settings.body_checks else None
        self._folder = BrokenLines(settings, request, emit)
        self._keeps_rest = True  # of a field that is too long to be looked at as a whole

    async def feed(self, block: bytes) -> bytes:
        """Return what comes of a block. Raises TableError and MimeError."""
        return await self._write(self._parser.feed(self._canonicaliser.feed(block)))

    async def finish(self) -> bytes:
        """Return the rest. Raises TableError and MimeError."""
        rest = await self._write(
            (*self._parser.feed(self._canonicaliser.finish()), *self._parser.finish())
        )
        last = await self._body_octets(self._encoder.finish())
        if self._body is not None:
            last += await self._body.finish()
        return rest + self._folder.feed(last) + self._folder.finish()

    async def _write(self, events: Iterable[Event]) -> bytes:
        out: list[bytes] = []
        for number, event in enumerate(events, 1):
            if number % TURN == 0:
                await trio.lowlevel.checkpoint()
            match event:
                case Body(octets, convert):
                    if convert:
                        octets = self._encoder.feed(octets)
                    out.append(await self._body_octets(octets))
                case Header():
                    out.append(await self._header(event))
                case HeaderRest(octets):
                    if self._keeps_rest:
                        out.append(octets)
                case Separator():
                    out.append(b"\r\n")
        return self._folder.feed(b"".join(out))

    async def _body_octets(self, octets: bytes) -> bytes:
        return octets if self._body is None else await self._body.feed(octets)

    async def _header(self, field: Header) -> bytes:
        before, text = b"", field.text
        self._keeps_rest = True
        if self._checks is not None:
            checked = await self._checks.header(field)
            self._keeps_rest = checked.text is not None and not checked.changed
            if checked.before:
                before = _as_lines(checked.before)
            if checked.text is None:
                return before
            text = checked.text
        generic = self._generic
        if generic and field.place is Place.PRIMARY and holds_addresses(field.name):
            text = await _rewritten(text, generic)
        return before + _as_lines(text)

    def _log(self, action: str, where: str, line: str, text: str) -> None:
        request = self._request
        program = request.protocol.value
        self._emit(ContentChecked(request.queue_id, action, where, line[:SHOWN], text, program))

    def _warn(self, text: str) -> None:
        self._emit(Warned(text, self._request.queue_id))


class BrokenLines:
    """A LineFolder that may be switched off, and that tells once of what it does."""

    def __init__(self, settings: ContentSettings, request: DeliveryRequest, emit: Emit) -> None:
        self._limit = settings.line_limit
        self._folder = LineFolder(self._limit) if self._limit else None
        self._request = request
        self._emit = emit
        self._told = False

    def feed(self, block: bytes) -> bytes:
        """As LineFolder."""
        if self._folder is None:
            return block
        block = self._folder.feed(block)
        if self._folder.folded and not self._told:
            self._told = True
            request = self._request
            self._emit(LinesBroken(request.queue_id, self._limit, request.protocol.value))
        return block

    def finish(self) -> bytes:
        """As LineFolder."""
        return b"" if self._folder is None else self._folder.finish()


class BodyLines:
    """Cuts body octets into lines, and very long ones into pieces, and has them checked."""

    def __init__(self, checks: ContentChecks) -> None:
        self._checks = checks
        self._rest = b""  # the beginning of a line, or of its next piece
        self._in_line = False  # of the line before `rest` something was returned

    async def feed(self, octets: bytes) -> bytes:
        """Return the lines that are complete, as the checks leave them. Raises TableError."""
        *lines, rest = (self._rest + octets).split(b"\r\n")
        out: list[bytes] = []
        for number, line in enumerate(lines, 1):
            await self._line(await self._pieces(line, out), out)
            if number % TURN == 0:
                await trio.lowlevel.checkpoint()
        # A CR may be half of a line end.
        self._rest = await self._pieces(rest, out)
        return b"".join(out)

    async def finish(self) -> bytes:
        """Return what is left of a line without its end, with that."""
        if not self._rest:
            return b""
        out: list[bytes] = []
        rest, self._rest = self._rest, b""
        await self._line(rest, out)
        return b"".join(out)

    async def _pieces(self, line: bytes, out: list[bytes]) -> bytes:
        """Have all pieces but the last one checked; return that."""
        while len(line) - line.endswith(b"\r") > PIECE:
            checked = await self._checks.body(line[:PIECE])
            self._put_before(checked.before, out)
            if checked.text is not None:
                out.append(_inside(checked.text))
                self._in_line = True
            line = line[PIECE:]
        return line

    async def _line(self, line: bytes, out: list[bytes]) -> None:
        """The last piece of a line, and mostly the only one."""
        checked = await self._checks.body(line)
        self._put_before(checked.before, out)
        if checked.text is not None:
            out.append(_inside(checked.text) + b"\r\n")
        elif self._in_line:
            out.append(b"\r\n")  # the next line is not to be appended to what came before
        self._in_line = False

    def _put_before(self, text: bytes | None, out: list[bytes]) -> None:
        if text is not None:
            out.append((b"\r\n" if self._in_line else b"") + _inside(text) + b"\r\n")
            self._in_line = False


async def _rewritten(field: bytes, generic: GenericMaps) -> bytes:
    """A field with its addresses as they are called outside. Raises TableError."""
    name, _, content = field.partition(b":")
    text = content.decode("utf-8", "surrogateescape")
    new: dict[str, str] = {}
    for found in find_addresses(text):
        if found.address not in new:
            other = await generic.find(found.address)
            if other is not None:
                new[found.address] = other
    if not new:
        return field
    return name + b":" + replace_addresses(text, new).encode("utf-8", "surrogateescape")


def _as_lines(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n") + b"\r\n"


def _inside(text: bytes) -> bytes:
    """Text for the middle of a line."""
    return text.replace(b"\n", b"\r\n")
