"""From a destination to the endpoints to try, best first: MX search, sort, shuffle, loop cut.

The path of a domain (requirements S001 to S023), in this order:
1. its MX records; without any, the domain itself is the only exchanger;
2. the addresses of all exchangers, looked up at once;
3. if one of the addresses is ours, it and everything not better than it goes: mail must only move
   to better exchangers, or it circles (RFC 5321 section 5.1; not in LMTP, which relays nothing);
4. shuffle inside one preference, put the preferred family first, cut to the limit.
`[host]` starts at 2, `[address]` at 3, and a UNIX socket is its own and only endpoint.

Not here: DNS (`dns_resolver.py`), dialling (`connect.py`).
"""

import ipaddress
import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import idna
import trio

from protocol.destination import Destination, DestinationKind
from protocol.request import Protocol
from worker.errors import OwnExchanger, ResolveError
from worker.network.address import Endpoint
from worker.network.own import OwnAddresses
from worker.network.ports import ServicePorts, UnknownServiceError
from worker.network.resolver import (
    HostAddress,
    LookupFailure,
    LookupTrouble,
    MxAnswer,
    MxRecord,
    NameNotFound,
    Resolver,
)

SMTP_PORT = 25  # the only one where our own addresses would mean a loop, and none for LMTP
DEFAULT_KNOWN_PORTS = {"lmtp": 24, "smtp": 25, "smtps": 465, "submissions": 465, "submission": 587}


class AddressPreference(Enum):
    """Which family goes first inside one preference (smtp_address_preference)."""

    ANY = "any"
    IPV4 = "ipv4"
    IPV6 = "ipv6"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """What the configuration says about finding endpoints. Comments: parameter and default."""

    protocol: Protocol = Protocol.SMTP
    hostname: str = "localhost"  # myhostname: the host of a UNIX socket
    families: tuple[socket.AddressFamily, ...] = (  # inet_protocols (all)
        socket.AF_INET,
        socket.AF_INET6,
    )
    default_port: int | str = "smtp"  # smtp_tcp_port (smtp), lmtp_tcp_port (24)
    ports: ServicePorts = field(  # known_tcp_ports
        default_factory=lambda: ServicePorts(DEFAULT_KNOWN_PORTS)
    )
    randomize: bool = True  # smtp_randomize_addresses (yes)
    address_limit: int = 5  # smtp_mx_address_limit (5); 0: no limit
    preference: AddressPreference = AddressPreference.ANY  # smtp_address_preference (any)
    balance: bool = True  # smtp_balance_inet_protocols (yes)
    ignore_mx_lookup_error: bool = False  # ignore_mx_lookup_error (no)
    defer_if_no_mx_address: bool = False  # smtp_defer_if_no_mx_address_found (no)
    # inet_interfaces (all) and proxy_interfaces (); here none, so that tests see no machine
    own: OwnAddresses = field(default_factory=OwnAddresses)


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search: at least one endpoint, best first.

    `own_mx`: we are an exchanger of the domain ourselves, and the endpoints are the better ones.
    Then no fallback relay may be used (S028): it could send the mail back to us.
    """

    endpoints: list[Endpoint]
    own_mx: bool = False


async def search(
    destination: Destination, settings: EndpointSettings, resolver: Resolver, rng: random.Random
) -> Found:
    """Return the endpoints of `destination` and whether we are one of its exchangers.

    Raises ResolveError: 4.3.5 an unusable port, 4.4.3 DNS trouble, 5.1.0 null MX, 5.4.3 unusable MX
    records, 5.4.4 no such host or domain; OwnExchanger: 4.4.4 a better exchanger than ourselves has
    no address, 5.4.6 a loop.
    """
    if destination.kind is DestinationKind.UNIX:
        return Found([_unix(destination, settings)])
    port = port_of(destination, settings)
    try:
        found = await _search_inet(destination, port, settings, resolver)
    except LookupFailure as exc:
        raise ResolveError(exc.dsn, exc.reason) from exc
    return Found(arrange(found.endpoints, settings, rng), found.own_mx)


def arrange(
    endpoints: Iterable[Endpoint], settings: EndpointSettings, rng: random.Random
) -> list[Endpoint]:
    """Return `endpoints` in the order to try them, cut to the address limit (S017, S023, S024)."""
    arranged = list(endpoints)
    if settings.randomize:
        rng.shuffle(arranged)
    first = {
        AddressPreference.ANY: None,
        AddressPreference.IPV4: socket.AF_INET,
        AddressPreference.IPV6: socket.AF_INET6,
    }[settings.preference]
    # The sort is stable: what the shuffle did inside one preference and family stays.
    arranged.sort(key=lambda endpoint: (endpoint.preference, first not in (None, endpoint.family)))
    limit = settings.address_limit
    if limit <= 0 or len(arranged) <= limit:
        return arranged
    return _balanced(arranged, limit) if settings.balance else arranged[:limit]


def _balanced(arranged: list[Endpoint], limit: int) -> list[Endpoint]:
    """Cut to `limit`, half of it for each family; what one does not need is the other's.

    Without this, five unreachable IPv6 addresses would hide a host's only IPv4 address.
    """
    first = arranged[0].family
    count = sum(endpoint.family == first for endpoint in arranged)
    others = len(arranged) - count
    keep_first = min(count, max(limit - others, (limit + 1) // 2))
    room = {True: keep_first, False: limit - keep_first}
    kept: list[Endpoint] = []
    for endpoint in arranged:
        same = endpoint.family == first
        if room[same] > 0:
            room[same] -= 1
            kept.append(endpoint)
    return kept


async def _search_inet(
    destination: Destination, port: int, settings: EndpointSettings, resolver: Resolver
) -> Found:
    if destination.kind is DestinationKind.ADDRESS:
        candidates = _of_host(MxRecord(0, destination.name), [_literal(destination.name)], port)
        _check_family(destination.name, settings)
        return Found(_without_self(destination.name, candidates, settings))
    name = _ascii_name(destination.name)
    if destination.kind is DestinationKind.HOST:
        return Found(await _search_host(name, port, settings, resolver))
    return await _search_domain(name, port, settings, resolver)


async def _search_domain(
    domain: str, port: int, settings: EndpointSettings, resolver: Resolver
) -> Found:
    unknown: NameNotFound | None = None
    try:
        answer = await resolver.mx(domain)
    except NameNotFound as exc:
        # Not the last word: the hosts file may know the name, and there are servers that deny a
        # name when they only lack the type.
        unknown, answer = exc, MxAnswer()
    except LookupTrouble:
        if not settings.ignore_mx_lookup_error:
            raise
        answer = MxAnswer()
    if answer.null_mx:
        raise ResolveError("5.1.0", f"Domain {domain} does not accept mail (nullMX)")
    if answer.unusable and not settings.ignore_mx_lookup_error:
        text = f"Name service error for name={domain} type=MX: Malformed or unexpected name server"
        raise ResolveError("5.4.3", f"{text} reply")
    if answer.records:
        return await _search_exchangers(domain, answer.records, port, settings, resolver)
    try:
        return Found(await _search_host(domain, port, settings, resolver))
    except NameNotFound as exc:
        raise unknown or exc from exc


async def _search_host(
    host: str, port: int, settings: EndpointSettings, resolver: Resolver
) -> list[Endpoint]:
    """The host is the only exchanger: `[host]`, or a domain without MX. Raises LookupFailure."""
    record = MxRecord(0, host)
    found = await _addresses(host, settings, resolver)
    return _without_self(host, _of_host(record, found, port), settings)


async def _search_exchangers(
    domain: str,
    records: Sequence[MxRecord],
    port: int,
    settings: EndpointSettings,
    resolver: Resolver,
) -> Found:
    """Look up all exchangers, take out ourselves. `records`: at least one, best first."""
    candidates, failures = await _resolve_all(records, port, settings, resolver)
    if not candidates:
        raise _nowhere(failures, settings)
    kept = _better_than_self(candidates, port, settings)
    if not kept:
        if records[0].preference < candidates[0].preference:
            # A better exchanger exists, only its address does not: not our fault, nor a loop.
            raise OwnExchanger("4.4.4", f"unable to find primary relay for {domain}")
        raise _loop(domain)
    return Found(kept, own_mx=len(kept) < len(candidates))


async def _resolve_all(
    records: Sequence[MxRecord], port: int, settings: EndpointSettings, resolver: Resolver
) -> tuple[list[Endpoint], list[LookupFailure]]:
    """Return the endpoints of all exchangers in MX order, and what failed.

    All look-ups run at once: the time is that of the slowest one, not their sum.
    """
    # A host that is listed twice counts once, with its better preference.
    unique = {record.exchanger.lower(): record for record in reversed(records)}
    hosts = sorted(unique.values(), key=records.index)
    found: list[Sequence[HostAddress]] = [()] * len(hosts)
    failures: list[LookupFailure] = []

    async def look_up(index: int, host: str) -> None:
        try:
            found[index] = await _addresses(host, settings, resolver)
        except LookupFailure as exc:
            failures.append(exc)

    if len(hosts) == 1:  # most domains; a nursery would cost more than a remembered answer
        await look_up(0, hosts[0].exchanger)
    else:
        async with trio.open_nursery() as nursery:
            for index, record in enumerate(hosts):
                nursery.start_soon(look_up, index, record.exchanger)
    endpoints = [
        endpoint
        for record, addresses in zip(hosts, found, strict=True)
        for endpoint in _of_host(record, addresses, port)
    ]
    return endpoints, failures


async def _addresses(
    host: str, settings: EndpointSettings, resolver: Resolver
) -> Sequence[HostAddress]:
    """Return the addresses of a host name; of a numeric one without asking (as Postfix does)."""
    if host[-1:].isdigit() or ":" in host:  # no top-level domain ends in a digit
        try:
            literal = _literal(host)
        except ValueError:
            pass
        else:
            _check_family(host, settings)
            return [literal]
    return await resolver.addresses(host, settings.families)


def _nowhere(failures: Sequence[LookupFailure], settings: EndpointSettings) -> ResolveError:
    """No exchanger has an address (S021). Trouble with one of them outweighs all that is known."""
    for failure in failures:
        if isinstance(failure, LookupTrouble):
            return ResolveError(failure.dsn, failure.reason)
    last = failures[-1]
    dsn = f"4{last.dsn[1:]}" if settings.defer_if_no_mx_address else last.dsn
    return ResolveError(dsn, last.reason)


def _better_than_self(
    candidates: Sequence[Endpoint], port: int, settings: EndpointSettings
) -> list[Endpoint]:
    if port != SMTP_PORT or settings.protocol is Protocol.LMTP:
        return list(candidates)
    own = [endpoint.preference for endpoint in candidates if endpoint.address in settings.own]
    if not own:
        return list(candidates)
    return [endpoint for endpoint in candidates if endpoint.preference < min(own)]


def _without_self(
    name: str, candidates: Sequence[Endpoint], settings: EndpointSettings
) -> list[Endpoint]:
    """The same for a single host: all its addresses are of one preference."""
    kept = _better_than_self(candidates, candidates[0].port, settings)
    if not kept:
        raise _loop(name)
    return kept


def _loop(name: str) -> OwnExchanger:
    return OwnExchanger("5.4.6", f"mail for {name} loops back to myself")


def _of_host(record: MxRecord, addresses: Sequence[HostAddress], port: int) -> list[Endpoint]:
    return [
        Endpoint(
            host=record.exchanger,
            address=address,
            port=port,
            family=family,
            preference=record.preference,
        )
        for family, address in dict.fromkeys(addresses)
    ]


def _literal(text: str) -> HostAddress:
    """Return the address that `text` is. Raises ValueError."""
    version = ipaddress.ip_address(text).version
    return HostAddress(socket.AF_INET if version == 4 else socket.AF_INET6, text)


def _check_family(address: str, settings: EndpointSettings) -> None:
    family = _literal(address).family
    if family not in settings.families:
        protocol = "IPv4" if family == socket.AF_INET else "IPv6"
        raise NameNotFound(
            f"unable to look up host {address}: {protocol} is not enabled in inet_protocols"
        )


def _ascii_name(name: str) -> str:
    """Return the A-label form of an internationalised name (RFC 5891). Raises NameNotFound."""
    if name.isascii():
        return name
    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as exc:
        raise NameNotFound(f"Name service error for {name}: invalid host or domain name") from exc


def _unix(destination: Destination, settings: EndpointSettings) -> Endpoint:
    return Endpoint(host=settings.hostname, address=destination.name, port=0, family=socket.AF_UNIX)


def port_of(destination: Destination, settings: EndpointSettings) -> int:
    """Return the port to dial (S002, S014 to S016). Raises ResolveError: never guesses."""
    service = destination.port
    try:
        if service is None and settings.protocol is Protocol.LMTP:
            service = settings.ports.of_system("lmtp")
        return settings.ports.number(settings.default_port if service is None else service)
    except UnknownServiceError as exc:
        raise ResolveError(
            "4.3.5", f"mail system configuration error: destination {destination.verbatim}: {exc}"
        ) from exc
