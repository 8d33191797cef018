"""What we write on a session in the connection cache: labels, and the properties of a session.

The cache does not read any of it. Labels are Postfix's in form (fields with a line end each) but
our own in content, and begin with our name: no session of a Postfix process can be taken for ours,
or ours for theirs. Properties are attribute lists in Postfix's plain flavour: lines `name=value`,
ended by an empty line.

A property comes from another process of ours, perhaps of another release: anything odd is a
RemoteProtocolError, and then there is no session.
"""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from protocol.capabilities import Capabilities
from protocol.errors import RemoteProtocolError

OWNER: Final = "postrio"
FORMAT: Final = "2"  # of the properties below; another one is not read

_NUMBER = re.compile(r"[0-9]{1,18}")
_SECONDS = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_WORDS: Final = frozenset({"xforward", "auth", "discarded"})  # fields that hold several words


def label(*values: str | int) -> str:
    """The label of these fields: each with a line end, in base64 where it holds one itself."""
    return "".join(f"{_field(str(value))}\n" for value in (OWNER, *values))


def _field(text: str) -> str:
    if "\n" in text or "*" in text:
        return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")
    return text or "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationProperty:
    """Which endpoint a session to a destination goes to."""

    host: str
    address: str  # numeric, or the path of a UNIX socket
    port: int  # 0 for a UNIX socket
    preference: int  # of the MX host

    def encode(self) -> str:
        """The text for the cache."""
        return _encode(
            {
                "host_name": self.host,
                "host_addr": self.address,
                "host_port": str(self.port),
                "preference": str(self.preference),
            }
        )

    @staticmethod
    def decode(text: str) -> "DestinationProperty":
        """What encode() was given. Raises RemoteProtocolError."""
        values = _decode(text)
        found = DestinationProperty(
            host=_take(values, "host_name"),
            address=_take(values, "host_addr"),
            port=_number(_take(values, "host_port"), 65_535),
            preference=_number(_take(values, "preference")),
        )
        _nothing_else(values)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionProperty:
    """What the next user must know of a session."""

    uses: int  # requests it has served
    born: float  # seconds on the host's own clock (CLOCK_MONOTONIC): the start of its connect
    # How its server had to be talked to, and as whom: it serves only who would have it the same.
    security: str
    tls: str  # what the server proved, in our worker's own words; empty: it is in the clear
    capabilities: Capabilities

    def encode(self) -> str:
        """The text for the cache."""
        values = {
            "reuse_count": str(self.uses),
            "connect_time": f"{self.born:.6f}",
            "security": self.security,
            "tls": self.tls,
        }
        for item in fields(Capabilities):
            value = getattr(self.capabilities, item.name)
            if item.name in _WORDS:
                value = " ".join(sorted(value) if isinstance(value, frozenset) else value)
            values[item.name] = str(int(value)) if isinstance(value, bool | int) else value
        return _encode(values)

    @staticmethod
    def decode(text: str) -> "SessionProperty":
        """What encode() was given. Raises RemoteProtocolError."""
        values = _decode(text)
        uses = _number(_take(values, "reuse_count"))
        born = _take(values, "connect_time")
        if not _SECONDS.fullmatch(born) or not math.isfinite(float(born)):
            raise RemoteProtocolError(f"bad connect_time {born[:40]!r}")
        security, tls = _take(values, "security"), _take(values, "tls")
        found: dict[str, object] = {}
        for item in fields(Capabilities):
            value = _take(values, item.name)
            if item.name in _WORDS:
                words = tuple(value.split(" ")) if value else ()
                found[item.name] = frozenset(words) if item.name == "xforward" else words
            elif item.type is str:
                found[item.name] = value
            else:
                number = _number(value)
                found[item.name] = bool(number) if item.type is bool else number
        _nothing_else(values)
        capabilities = Capabilities(**found)  # type: ignore[arg-type]  # by the fields' own types
        return SessionProperty(
            uses=uses, born=float(born), security=security, tls=tls, capabilities=capabilities
        )


def _encode(values: Mapping[str, str]) -> str:
    lines = {"format": FORMAT, **values}
    return "".join(f"{name}={_printable(value)}\n" for name, value in lines.items()) + "\n"


def _printable(text: str) -> str:
    """A value must not end its line; what servers say of themselves is printable anyhow."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _decode(text: str) -> dict[str, str]:
    if not text.endswith("\n\n"):
        raise RemoteProtocolError("a cached property does not end")
    values: dict[str, str] = {}
    for line in text[:-2].split("\n"):
        name, equals, value = line.partition("=")
        if not equals or name in values:
            raise RemoteProtocolError(f"bad line in a cached property: {line[:80]!r}")
        values[name] = value
    if (found := values.pop("format", "")) != FORMAT:
        raise RemoteProtocolError(f"a cached property has the format {found[:20]!r}")
    return values


def _take(values: dict[str, str], name: str) -> str:
    try:
        return values.pop(name)
    except KeyError:
        raise RemoteProtocolError(f"a cached property has no {name}") from None


def _nothing_else(values: Mapping[str, str]) -> None:
    if values:
        raise RemoteProtocolError(f"a cached property has {', '.join(values)[:80]}")


def _number(text: str, largest: int = 10**18) -> int:
    if _NUMBER.fullmatch(text) and (number := int(text)) <= largest:
        return number
    raise RemoteProtocolError(f"bad number in a cached property: {text[:40]!r}")
