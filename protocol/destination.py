"""Destinations: where a nexthop says to deliver (requirements S001 to S016).

SMTP: `domain`, `domain:port` (MX search); `[host]`, `[address]`, each with `:port` (no search).
LMTP: `inet:host`, `inet:[address]`, each with `:port`; the same without `inet:`; `unix:path`.
Syntax only: default ports and service names are for the network, and the text as written stays
the key for tables and caches (`verbatim`).
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum

from protocol.request import Protocol

_SEPARATOR = re.compile(r"[,\s]+")
# What no host name holds; the rest is for the resolver to judge. Non-ASCII is a U-label.
_NAME = re.compile(r'[^\x00-\x20\x7f-\xa0<>()\[\]\\,;:@"/]{1,255}')
_SERVICE = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_+.-]{0,31}")  # RFC 6335, loosely
_NUMBER = re.compile(r"[0-9]{1,6}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class DestinationError(ValueError):
    """This text is no destination; the message names it and says why. A configuration error."""


class DestinationKind(Enum):
    """How the endpoints of a destination are found."""

    DOMAIN = "domain"  # MX search, then addresses
    HOST = "host"  # addresses of this name
    ADDRESS = "address"  # no DNS at all
    UNIX = "unix"  # a UNIX stream socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One destination, taken apart.

    `name`: domain or host name as written, maybe internationalised; numeric address, without
    brackets and tag; or path. `port`: a number, a service name to be looked up, or None for the
    default of the protocol. Always None for UNIX.
    """

    kind: DestinationKind
    name: str
    port: int | str | None
    verbatim: str


def split_nexthops(text: str) -> tuple[str, ...]:
    """Return the nexthops of a comma or space separated list, in order: at least one.

    They are to be tried left to right (Postfix 3.5). Raises DestinationError if there is none.
    """
    nexthops = tuple(filter(None, _SEPARATOR.split(text)))
    if not nexthops:
        raise DestinationError(f"empty destination {text[:100]!r}")
    return nexthops


def parse_destination(text: str, protocol: Protocol) -> Destination:
    """Return the meaning of one nexthop. Raises DestinationError."""
    if protocol is Protocol.LMTP:
        if text.startswith("unix:"):
            return _unix(text)
        return _inet(text.removeprefix("inet:"), text, DestinationKind.HOST)
    if text.startswith("unix:"):
        raise DestinationError(f"destination {_shown(text)}: unix: is for LMTP only")
    return _inet(text, text, DestinationKind.DOMAIN)


def _unix(text: str) -> Destination:
    path = text.removeprefix("unix:")
    if not path or _CONTROL.search(path):
        raise DestinationError(f"destination {_shown(text)}: bad path {_shown(path)}")
    return Destination(kind=DestinationKind.UNIX, name=path, port=None, verbatim=text)


def _inet(text: str, verbatim: str, bare_kind: DestinationKind) -> Destination:
    """A host, address or (bare, in SMTP) domain, with or without port."""
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise DestinationError(f"destination {_shown(verbatim)}: unbalanced brackets")
        kind, name = _bracketed(name, verbatim)
        colon, port = rest[:1], rest[1:]
    else:
        name, colon, port = text.partition(":")
        if ":" in port:
            raise DestinationError(
                f"destination {_shown(verbatim)}: more than one colon; "
                "an IPv6 address is written [ipv6:address]"
            )
        kind = bare_kind
        if kind is DestinationKind.HOST and _ipv4(name):
            kind = DestinationKind.ADDRESS
    if kind is not DestinationKind.ADDRESS and not _NAME.fullmatch(name):
        raise DestinationError(f"destination {_shown(verbatim)}: bad name {_shown(name)}")
    number = _port(port, verbatim) if colon else None
    return Destination(kind=kind, name=name, port=number, verbatim=verbatim)


def _bracketed(name: str, verbatim: str) -> tuple[DestinationKind, str]:
    """What stands in brackets: an address, tagged or not (S007 takes both), or a host name."""
    tagged = name[:5].lower() == "ipv6:"
    if tagged or ":" in name:
        literal = name[5:] if tagged else name
        try:
            return DestinationKind.ADDRESS, str(ipaddress.IPv6Address(literal))
        except ValueError as exc:
            raise DestinationError(
                f"destination {_shown(verbatim)}: bad IPv6 address {_shown(literal)}"
            ) from exc
    if _ipv4(name):
        return DestinationKind.ADDRESS, name
    return DestinationKind.HOST, name


def _ipv4(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _port(text: str, verbatim: str) -> int | str:
    if _NUMBER.fullmatch(text) and 1 <= int(text) <= 65_535:
        return int(text)
    if _SERVICE.fullmatch(text):
        return text
    raise DestinationError(f"destination {_shown(verbatim)}: bad port {_shown(text)}")


def _shown(text: str) -> str:
    return repr(text[:100])
