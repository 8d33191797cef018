r"""Attribute lists of Postfix's internal protocols, in the null-terminated flavour.

    list   = *( simple / group ) NUL
    simple = name NUL value NUL
    group  = "{" NUL *simple "}" NUL

So the empty list is one NUL, and an empty string ends a list only where a name is expected. Lists
carry no length, version or character set: texts here are UTF-8, with surrogate escapes for octets
that are not, so that any octets come through unchanged. Which names are expected in which order
is for the users of this module.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import NEED_DATA, NeedData

MAX_LIST_SIZE: Final = 262_144  # octets; Postfix itself sets no limit
MAX_GROUP: Final = 1024  # attributes in one group, as in Postfix

Value = str | Mapping[str, str]
AttributeList = tuple[tuple[str, Value], ...]


def encode(attributes: Iterable[tuple[str, Value | int]]) -> bytes:
    """Return one list with its terminator.

    Raises LocalProtocolError for a NUL in a name or value, an empty name, a name that is a brace,
    and for an `int` that is not from 0: negative ones have a width (unsigned_int, unsigned_long).
    """
    texts: list[str] = []
    for name, value in attributes:
        if isinstance(value, Mapping):
            texts.append("{")
            for key, entry in value.items():
                texts += (_name(key), entry)
            texts.append("}")
        elif isinstance(value, int):
            if value < 0:
                raise LocalProtocolError(f"negative attribute {name}: {value}")
            texts += (_name(name), str(value))
        else:
            texts += (_name(name), value)
    texts += ("", "")
    if len(texts) == 2:
        return b"\0"
    text = "\0".join(texts)
    if text.count("\0") != len(texts) - 1:
        raise LocalProtocolError("NUL in an attribute")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"attribute is not valid text: {exc.reason}") from exc


def _name(name: str) -> str:
    if name in ("", "{", "}"):
        raise LocalProtocolError(f"bad attribute name {name!r}")
    return name


def unsigned_int(value: int) -> str:
    """The text of a C int: -1 is "4294967295"."""
    return str(value & 0xFFFF_FFFF)


def unsigned_long(value: int) -> str:
    """The text of a C long: -1 is "18446744073709551615"."""
    return str(value & 0xFFFF_FFFF_FFFF_FFFF)


def parse_int(text: str) -> int:
    """The C int that unsigned_int() wrote. Raises RemoteProtocolError."""
    return _signed(text, 32)


def parse_long(text: str) -> int:
    """The C long that unsigned_long() wrote. Raises RemoteProtocolError."""
    return _signed(text, 64)


def _signed(text: str, bits: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise RemoteProtocolError(f"bad number {text[:40]!r}")
    value = int(text)
    if value >> bits:
        raise RemoteProtocolError(f"number {text} is too large")
    return value - (1 << bits) if value >> (bits - 1) else value


class AttributeDecoder:
    """Splits a byte stream into attribute lists; memory is bounded by `max_size`."""

    def __init__(self, max_size: int = MAX_LIST_SIZE) -> None:
        self._max_size = max_size  # octets of one list
        self._rest = bytearray()  # after the last NUL
        self._texts: list[bytes] = []  # complete texts not yet taken
        self._taken = 0  # of them, by the list under way
        self._size = 0  # octets of those, with their NULs
        self._attributes: list[tuple[str, Value]] = []
        self._group: dict[str, str] | None = None

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take what the peer sent, cut anywhere."""
        head, *others = data.split(b"\0")
        self._rest += head
        if others:
            del self._texts[: self._taken]
            self._taken = 0
            self._texts.append(bytes(self._rest))
            self._texts += map(bytes, others[:-1])
            self._rest = bytearray(others[-1])

    def next_event(self) -> AttributeList | NeedData:
        """Return the next list, or NEED_DATA. A group comes with the name "{" and a mapping.

        Raises RemoteProtocolError for a list over `max_size` octets, a group over MAX_GROUP
        entries and braces out of place; the stream is of no use after that.
        """
        texts = self._texts
        position = self._taken
        while position < len(texts):
            name = texts[position]
            single = name in (b"", b"{", b"}")
            if not single and position + 1 == len(texts):
                break  # the value is still on its way
            value = b"" if single else texts[position + 1]
            position += 1 if single else 2
            self._size += len(name) + len(value) + (1 if single else 2)
            self._check_size(self._size)
            self._taken = position
            if self._note(name, value):
                attributes = tuple(self._attributes)
                self._attributes.clear()
                self._size = 0
                return attributes
        waiting = len(texts[position]) + 1 if position < len(texts) else 0
        self._check_size(self._size + waiting + len(self._rest))
        return NEED_DATA

    @property
    def unread(self) -> int:
        """Octets received that are not part of a returned list."""
        texts = self._texts[self._taken :]
        return self._size + sum(map(len, texts)) + len(texts) + len(self._rest)

    def _note(self, name: bytes, value: bytes) -> bool:
        """Add one attribute or brace to the list under way; True if it is complete."""
        group = self._group
        if name == b"":
            if group is not None:
                raise RemoteProtocolError("attribute list ends inside a group")
            return True
        if name == b"{":
            if group is not None:
                raise RemoteProtocolError("attribute group inside a group")
            self._group = {}
        elif name == b"}":
            if group is None:
                raise RemoteProtocolError("attribute group ends that never began")
            self._attributes.append(("{", group))
            self._group = None
        elif group is None:
            self._attributes.append((_text(name), _text(value)))
        else:
            group[_text(name)] = _text(value)
            if len(group) > MAX_GROUP:
                raise RemoteProtocolError(f"attribute group has more than {MAX_GROUP} entries")
        return False

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise RemoteProtocolError(f"attribute list is longer than {self._max_size} octets")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")
