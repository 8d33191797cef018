r"""Messages of Postfix's connection cache scache(8) as values: both directions, no I/O.

The server speaks first (ANNOUNCEMENT), then the client sends requests, strictly one at a time.
Attribute lists in the null-terminated flavour (`attributes.py`); `fd` is a descriptor that travels
with one octet, `dummy` an empty list of one attribute that keeps lists and descriptors apart:

    save_endp   C> request   S> dummy    C> fd   S> status
    find_endp   C> request   S> found    C> dummy   S> fd   C> dummy      (or S> status, not 0)
    save_dest   C> request   S> status
    find_dest   C> request   S> found    C> dummy   S> fd   C> dummy      (or S> status, not 0)

The last dummy of a find may arrive together with the next request. Labels and properties mean
nothing to the cache: texts with any octets but NUL, line ends among them. Names, order and number
of attributes are fixed: a real scache(8) and a real smtp(8) take and send exactly these.

Where to start: `decode_request()` on the server's side, the `encode()` methods on the client's, and
`ListReader` on both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, cast

from protocol.attributes import AttributeList, encode, parse_int
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import NEED_DATA, NeedData

MAX_TEXT: Final = 16_384  # octets of one label or property; Postfix sets no limit
MAX_MESSAGE: Final = 3 * MAX_TEXT + 256  # octets of one list: save_dest has three texts
MAX_TTL: Final = 0x7FFF_FFFF  # seconds: a C int
MAX_REPORT: Final = 4_194_304  # octets of the answer to a ReportRequest

ANNOUNCEMENT: Final[AttributeList] = (("protocol", "connection_cache_protocol"),)
DUMMY: Final[AttributeList] = (("dummy", ""),)
ANNOUNCEMENT_WIRE: Final = encode(ANNOUNCEMENT)
DUMMY_WIRE: Final = encode(DUMMY)
DESCRIPTOR_OCTET: Final = b"\0"  # what a descriptor travels with

_SAVE_ENDPOINT: Final = ("request", "ttl", "label", "property")
_SAVE_DESTINATION: Final = ("request", "ttl", "label", "property", "label")
_FIND: Final = ("request", "label")


class Status(IntEnum):
    """The server's verdict."""

    OK = 0
    MALFORMED = 1  # the request was
    FAILED = 2  # not found, or not saved


class BadRequest(RemoteProtocolError):
    """A complete list that is no request: why. The stream is still in step.

    properties: how many properties the answer has to carry, so that the client finds it in the
    form it expects: one for find_endp, two for find_dest, else none.
    """

    def __init__(self, text: str, properties: int = 0) -> None:
        super().__init__(text)
        self.properties = properties


class ListReader:
    """Splits a byte stream into this protocol's lists, which are flat; memory is bounded.

    Instead of `attributes.AttributeDecoder`, because four lists for each connection that is saved
    and found are much of the cache's work: here one decode, one split and one search for the empty
    name do it, in less than half the time.
    """

    def __init__(self, max_size: int = MAX_MESSAGE) -> None:
        """`max_size`: octets of one list."""
        self._max_size = max_size
        self._unread = b""

    def receive_data(self, data: bytes) -> None:
        """Take what the peer sent, cut anywhere."""
        self._unread += data

    def next_event(self) -> AttributeList | NeedData:
        """Return the next list, or NEED_DATA.

        Raises RemoteProtocolError for a list of more than `max_size` octets, and for a group.
        """
        if not self._unread:
            return NEED_DATA
        fields = self._unread.decode("utf-8", "surrogateescape").split("\0")
        # The last field is what follows the last NUL. Where a name is expected, "" ends the list.
        names = fields[:-1:2]
        try:
            count = names.index("")
        except ValueError:
            if len(self._unread) > self._max_size:
                raise RemoteProtocolError(
                    f"attribute list is longer than {self._max_size} octets"
                ) from None
            return NEED_DATA
        del names[count:]
        if "{" in names:
            raise RemoteProtocolError("attribute group in a list that has none")
        rest = "\0".join(fields[2 * count + 1 :]).encode("utf-8", "surrogateescape")
        if len(self._unread) - len(rest) > self._max_size:
            raise RemoteProtocolError(f"attribute list is longer than {self._max_size} octets")
        self._unread = rest
        return tuple(zip(names, fields[1 : 2 * count : 2], strict=True))

    @property
    def unread(self) -> int:
        """Octets received that are not part of a returned list."""
        return len(self._unread)

    def peek(self, octets: int) -> bytes:
        """The first ones of `unread`, as many as there are."""
        return self._unread[:octets]

    def take(self, octets: bytes) -> bool:
        """Take exactly these octets if they come next; False: they do not, or not all of them."""
        if not self._unread.startswith(octets):
            return False
        self._unread = self._unread[len(octets) :]
        return True


@dataclass(frozen=True, slots=True)
class SaveEndpoint:
    """Keep the connection that follows, for `ttl` seconds at most."""

    ttl: int  # seconds, 1 to MAX_TTL
    label: str  # of the endpoint
    property: str  # what the next user must know of the session

    def encode(self) -> bytes:
        """The list. Raises LocalProtocolError for what decode_request() would refuse."""
        return _encode("save_endp", ("ttl", self.ttl), (self.label, self.property))


@dataclass(frozen=True, slots=True)
class FindEndpoint:
    """Ask for a connection to an endpoint; it leaves the cache."""

    label: str

    def encode(self) -> bytes:
        """The list. Raises LocalProtocolError for what decode_request() would refuse."""
        return _encode("find_endp", None, (self.label,))


@dataclass(frozen=True, slots=True)
class SaveDestination:
    """Remember for `ttl` seconds that connections to `endpoint` serve a destination."""

    ttl: int  # seconds, 1 to MAX_TTL
    label: str  # of the destination
    property: str
    endpoint: str  # label of the endpoint

    def encode(self) -> bytes:
        """The list. Raises LocalProtocolError for what decode_request() would refuse."""
        texts = (self.label, self.property, self.endpoint)
        return _encode("save_dest", ("ttl", self.ttl), texts)


@dataclass(frozen=True, slots=True)
class FindDestination:
    """Ask for a connection to any endpoint that serves a destination; it leaves the cache."""

    label: str

    def encode(self) -> bytes:
        """The list. Raises LocalProtocolError for what decode_request() would refuse."""
        return _encode("find_dest", None, (self.label,))


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """Ask what the cache holds and has counted. Ours alone: a real scache(8) answers status 1."""

    def encode(self) -> bytes:
        """The list."""
        return encode((("request", "postrio_report"),))


Request = SaveEndpoint | FindEndpoint | SaveDestination | FindDestination | ReportRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's answer: endpoint property, or destination and endpoint property, or none."""

    status: Status
    properties: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The list. Raises LocalProtocolError for a property that decode_reply() would refuse."""
        _check(self.properties)
        text = "".join([f"property\0{text}\0" for text in self.properties])
        if text.count("\0") != 2 * len(self.properties):
            raise LocalProtocolError("NUL in a property")
        try:
            return f"status\0{self.status:d}\0{text}\0".encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as exc:
            raise LocalProtocolError(f"property is not valid text: {exc.reason}") from exc


def miss(properties: int, status: Status = Status.FAILED) -> Reply:
    """The answer to a request whose success would carry so many properties."""
    return Reply(status, ("",) * properties)


def decode_request(attributes: AttributeList) -> Request:
    """The request in a list as AttributeDecoder returns it. Raises BadRequest."""
    if not attributes or attributes[0][0] != "request":
        raise BadRequest("the list does not begin with a request")
    names, found = zip(*attributes, strict=True)
    values = cast("tuple[str, ...]", found)  # a group has a name that none of these have
    match values[0]:
        case "save_endp":
            _expect(names, _SAVE_ENDPOINT)
            return SaveEndpoint(_ttl(values[1]), _text(values[2]), _text(values[3]))
        case "find_endp":
            _expect(names, _FIND, properties=1)
            return FindEndpoint(_text(values[1], properties=1))
        case "save_dest":
            _expect(names, _SAVE_DESTINATION)
            ttl = _ttl(values[1])
            return SaveDestination(ttl, _text(values[2]), _text(values[3]), _text(values[4]))
        case "find_dest":
            _expect(names, _FIND, properties=2)
            return FindDestination(_text(values[1], properties=2))
        case "postrio_report":
            _expect(names, ("request",))
            return ReportRequest()
        case unknown:
            raise BadRequest(f"unknown request {unknown[:40]!r}")


def decode_reply(attributes: AttributeList, properties: int) -> Reply:
    """The reply in a list. Raises RemoteProtocolError.

    properties: how many the request's success carries. A refusal may come without them: that is how
    a server answers a request that it does not know.
    """
    names = [name for name, _ in attributes]
    if names[:1] != ["status"]:
        raise RemoteProtocolError(f"expected a status, got {names[:5]}")
    code = attributes[0][1]
    if code not in ("0", "1", "2"):
        raise RemoteProtocolError(f"status is {str(code)[:40]!r}")
    status = Status(int(code))
    bare = status is not Status.OK and len(names) == 1
    if names[1:] != ["property"] * properties and not bare:
        raise RemoteProtocolError(f"expected {properties} properties, got {names[1:6]}")
    texts = tuple(text for _, text in attributes[1:] if isinstance(text, str))
    for text in texts:
        if _octets(text) > MAX_TEXT:
            raise RemoteProtocolError(f"a property is longer than {MAX_TEXT} octets")
    return Reply(status, texts)


def encode_report(report: str) -> bytes:
    """The answer to a ReportRequest; `report` is JSON."""
    return encode((("status", int(Status.OK)), ("report", report)))


def decode_report(attributes: AttributeList) -> str:
    """What encode_report() was given. Raises RemoteProtocolError, also for a refusal."""
    match attributes:
        case (("status", "0"), ("report", str(report))):
            return report
        case _:
            raise RemoteProtocolError("the cache does not give reports: it is not postrio's")


def _encode(name: str, number: tuple[str, int] | None, texts: Sequence[str]) -> bytes:
    """One request: its name, ttl if it has one, then label, property, label as far as given."""
    attributes: list[tuple[str, str | int]] = [("request", name)]
    if number is not None:
        if not 1 <= number[1] <= MAX_TTL:
            raise LocalProtocolError(f"{number[0]} is {number[1]}, not 1 to {MAX_TTL}")
        attributes.append(number)
    _check(texts)
    attributes += zip(("label", "property", "label"), texts, strict=False)
    return encode(attributes)


def _check(texts: Iterable[str]) -> None:
    for text in texts:
        if _octets(text) > MAX_TEXT:
            raise LocalProtocolError(f"label or property is longer than {MAX_TEXT} octets")


def _expect(names: tuple[str, ...], expected: tuple[str, ...], properties: int = 0) -> None:
    if names != expected:
        shown = " ".join(name[:40] for name in names[:6])
        raise BadRequest(f"expected {' '.join(expected)}, got {shown}", properties)


def _ttl(text: str) -> int:
    try:
        ttl = parse_int(text)
    except RemoteProtocolError as exc:
        raise BadRequest(f"ttl: {exc}") from exc
    if ttl <= 0:
        raise BadRequest(f"ttl is {ttl}, not positive")
    return ttl


def _text(text: str, properties: int = 0) -> str:
    if _octets(text) > MAX_TEXT:
        raise BadRequest(f"label or property is longer than {MAX_TEXT} octets", properties)
    return text


def _octets(text: str) -> int:
    """Octets on the wire; for the usual short text an upper bound, which is cheaper."""
    if len(text) <= MAX_TEXT // 4:
        return 4 * len(text)
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"label or property is not valid text: {exc.reason}") from exc
