"""What delivery code gets of the network: endpoints of a nexthop, and a stream to one of them.

Answers for putting the parts together, and for what the configuration says about them. Start at
`Network`; the way of a nexthop is told in `endpoints.py`.
"""

import ipaddress
import math
import random
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import trio

from protocol.destination import (
    DestinationError,
    DestinationKind,
    parse_destination,
    split_nexthops,
)
from protocol.request import Protocol
from worker.config.config import Config
from worker.config.problems import ConfigError, Problem
from worker.errors import ResolveError
from worker.network.address import Endpoint
from worker.network.connect import Dialer, SocketDialer, connect_any
from worker.network.dns_resolver import DnsResolver
from worker.network.endpoints import (
    AddressPreference,
    EndpointSettings,
    Found,
    port_of,
    search,
)
from worker.network.native_resolver import NativeResolver
from worker.network.own import (
    IPAddress,
    LookUp,
    OwnAddressError,
    OwnAddresses,
    interface_addresses,
    local_addresses,
    source_addresses,
    system_look_up,
)
from worker.network.ports import ServicePorts, UnknownServiceError, parse_known_ports
from worker.network.resolver import HostLookup, Resolver
from worker.status.events import Emit

_FAMILIES = {
    "ipv4": (socket.AF_INET,),
    "ipv6": (socket.AF_INET6,),
    "all": (socket.AF_INET, socket.AF_INET6),
}
_MX_PREFERENCES = 65_536  # so many values has an MX preference


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """Which DNS servers are asked, for every protocol alike."""

    server: tuple[str, int] | None = None  # postrio_dns_server (); None: /etc/resolv.conf
    timeout: float = 30.0  # postrio_dns_timeout (30s): one question with all its repetitions

    @classmethod
    def from_config(cls, config: Config, *, resolver: str = "") -> Self:
        """Read the parameters; `resolver` (of the command line) wins. Raises ConfigError."""
        text = resolver or config.text("postrio_dns_server")
        try:
            server = parse_dns_server(text) if text else None
        except ValueError as exc:
            raise _problem(config, "postrio_dns_server", text, str(exc)) from exc
        return cls(server=server, timeout=config.seconds("postrio_dns_timeout"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """One protocol's settings. Comments: parameter and default; times in seconds."""

    endpoints: EndpointSettings = field(default_factory=EndpointSettings)
    connect_timeout: float = 30.0  # smtp_connect_timeout (30s), lmtp_ (0s); 0: the kernel's limit
    stagger: float = 0.0  # postrio_connect_stagger (0s); 0: one after another
    # smtp_bind_address (), smtp_bind_address6 (), or the only address in inet_interfaces
    sources: Mapping[socket.AddressFamily, str] = field(default_factory=dict)
    enforce_source: bool = False  # smtp_bind_address_enforce (no)
    socket_directory: Path = Path("/")  # queue_directory: where relative socket paths start
    dns: bool = True  # smtp_dns_support_level (), disable_dns_lookups (no)
    host_lookup: tuple[str, ...] = ("dns",)  # smtp_host_lookup (dns): "dns", "native"
    fallback: tuple[str, ...] = ()  # smtp_fallback_relay ($fallback_relay): destinations
    relayhost: str = ""  # relayhost (), for SMTP: a nexthop that is our own choice

    @classmethod
    def from_config(
        cls,
        config: Config,
        protocol: Protocol,
        *,
        local: Callable[[], Iterable[str]] = local_addresses,
        look_up: LookUp = system_look_up,
    ) -> Self:
        """Read the smtp_ or lmtp_ parameters. Raises ConfigError.

        `local` tells this host's addresses, `look_up` those of names in inet_interfaces and
        proxy_interfaces; both may block.
        """
        own = _own(config, "inet_interfaces", local, look_up)
        proxies = _own(config, "proxy_interfaces", local, look_up)
        sources = source_addresses(config.words("inet_interfaces"), own)
        for parameter, family in (
            ("smtp_bind_address", socket.AF_INET),
            ("smtp_bind_address6", socket.AF_INET6),
        ):
            source = _bind_address(config, config.mirror(parameter, protocol), family)
            sources |= {family: source} if source else {}
        endpoints = _endpoint_settings(config, protocol, OwnAddresses(frozenset(own + proxies)))
        level = config.choice(config.mirror("smtp_dns_support_level", protocol))
        return cls(
            endpoints=endpoints,
            connect_timeout=config.seconds(config.mirror("smtp_connect_timeout", protocol)),
            stagger=config.seconds("postrio_connect_stagger"),
            sources=sources,
            enforce_source=config.boolean(config.mirror("smtp_bind_address_enforce", protocol)),
            socket_directory=Path(config.text("queue_directory")),
            dns=level != "disabled" and (bool(level) or not config.boolean("disable_dns_lookups")),
            host_lookup=config.words(config.mirror("smtp_host_lookup", protocol)),
            fallback=_fallback(config, endpoints),
            relayhost=config.text("relayhost") if protocol is Protocol.SMTP else "",
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the destinations that mail for a nexthop may go to."""

    text: str
    place: int = 0  # among them all
    fallback: bool = False  # it is a fallback relay


@dataclass(frozen=True, slots=True)
class Network:
    """One protocol's way to its servers. Holds nothing open; any number of tasks may use it."""

    settings: NetworkSettings
    resolver: Resolver
    dialer: Dialer
    rng: random.Random

    def choices(self, nexthop: str) -> list[Choice]:
        """The destinations for a nexthop, at least one: its own, then the fallback relays.

        `nexthop` may be a list of destinations, separated by comma or space (Postfix 3.5). Raises
        ResolveError.
        """
        texts = destinations(nexthop, self.settings.fallback)
        own = len(texts) if _is_path(nexthop) else len(texts) - len(self.settings.fallback)
        return [Choice(text, place, fallback=place >= own) for place, text in enumerate(texts)]

    async def find(self, choice: Choice) -> Found:
        """Where `choice` leads: at least one endpoint, in the order to try them.

        Those of a later choice have worse preferences than those of an earlier one. Raises
        ResolveError.
        """
        settings = self.settings.endpoints
        try:
            destination = parse_destination(choice.text, settings.protocol)
        except DestinationError as exc:
            raise _unusable(exc) from exc
        found = await search(destination, settings, self.resolver, self.rng)
        worse = choice.place * _MX_PREFERENCES
        if not worse:
            return found
        moved = [replace(e, preference=e.preference + worse) for e in found.endpoints]
        return Found(moved, found.own_mx)

    async def connect(self, candidates: Sequence[Endpoint]) -> tuple[Endpoint, trio.abc.Stream]:
        """Return a stream to one of `candidates` and which one; the stream is the caller's.

        `candidates`: at least one, all of equal preference. One after another, or staggered with
        postrio_connect_stagger. Raises ConnectError; its `failures` name every endpoint.
        """
        stagger = self.settings.stagger or math.inf
        return await connect_any(candidates, self.dialer, stagger, self.settings.connect_timeout)


def destinations(nexthop: str, fallback: Sequence[str] = ()) -> tuple[str, ...]:
    """The destinations of a nexthop as written, `fallback` behind them. Raises ResolveError."""
    if _is_path(nexthop):
        return (nexthop,)  # it may hold spaces and commas; a list of them was never possible
    try:
        return (*split_nexthops(nexthop), *fallback)
    except DestinationError as exc:
        raise _unusable(exc) from exc


def check_nexthop(nexthop: str, settings: EndpointSettings) -> set[int]:
    """Return the ports it leads to; ResolveError for bad syntax or a port that nobody knows.

    `nexthop` may be a list. Nobody is asked: for who wants to know before there is mail.
    """
    ports = set()
    for text in destinations(nexthop):
        try:
            destination = parse_destination(text, settings.protocol)
        except DestinationError as exc:
            raise _unusable(exc) from exc
        if destination.kind is not DestinationKind.UNIX:
            ports.add(port_of(destination, settings))
    return ports


def destination_of(nexthop: str, endpoint: Endpoint, fallback: Sequence[str] = ()) -> str:
    """The destination that an endpoint of `Network.find` belongs to, as written.

    What is known of a destination by its text, its TLS policy or a password, is not known by the
    text of a list.
    """
    texts = destinations(nexthop, fallback)
    return texts[min(endpoint.preference // _MX_PREFERENCES, len(texts) - 1)]


def make_resolver(settings: NetworkSettings, dns: Resolver, native: Resolver) -> Resolver:
    """Return what turns names into addresses: DNS, the system, or both (S022, S029).

    `dns` and `native` are made once per process and shared by the protocols: they hold the cache
    and the threads.
    """
    if not settings.dns:
        return native
    sources = {"dns": dns, "native": native}
    # DNS first, in whatever order the two were written.
    hosts = tuple(sources[word] for word in sorted(set(settings.host_lookup)))
    return dns if hosts in ((), (dns,)) else HostLookup(dns, hosts)


def make_dns(settings: DnsSettings) -> tuple[DnsResolver, NativeResolver]:
    """Return a DNS client with an empty cache, and the system's lookup: once per process."""
    return DnsResolver(settings.server, settings.timeout), NativeResolver(settings.timeout)


def make_dialer(settings: NetworkSettings, emit: Emit) -> SocketDialer:
    """Return the dialer of real sockets for `settings`."""
    return SocketDialer(
        sources=settings.sources,
        enforce_source=settings.enforce_source,
        socket_directory=settings.socket_directory,
        emit=emit,
        lmtp=settings.endpoints.protocol is Protocol.LMTP,
    )


def parse_dns_server(text: str) -> tuple[str, int]:
    """Return address and port of `1.2.3.4`, `1.2.3.4:53`, `::1`, `[::1]` or `[::1]:53`.

    Raises ValueError: a DNS server is named by its address, there is nobody yet to ask its name.
    """
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("unbalanced brackets")
        port = port[1:] if port else "53"
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text, "53"
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise ValueError(f"bad port {port!r}")
    return str(ipaddress.ip_address(address)), int(port)


def _is_path(nexthop: str) -> bool:
    return nexthop.startswith("unix:")


def _unusable(error: DestinationError) -> ResolveError:
    return ResolveError("4.3.5", f"mail system configuration error: {error}")


def _endpoint_settings(config: Config, protocol: Protocol, own: OwnAddresses) -> EndpointSettings:
    def name(parameter: str) -> str:
        return config.mirror(parameter, protocol)

    try:
        known = parse_known_ports(config.words("known_tcp_ports"))
    except UnknownServiceError as exc:
        text = config.text("known_tcp_ports")
        raise _problem(config, "known_tcp_ports", text, str(exc)) from exc
    ports = ServicePorts(known)
    default_port = config.text(name("smtp_tcp_port"))
    try:
        ports.number(default_port)
    except UnknownServiceError as exc:
        raise _problem(config, name("smtp_tcp_port"), default_port, str(exc)) from exc
    return EndpointSettings(
        protocol=protocol,
        hostname=config.text("myhostname"),
        families=_families(config.words("inet_protocols")),
        default_port=default_port,
        ports=ports,
        randomize=config.boolean(name("smtp_randomize_addresses")),
        address_limit=config.integer(name("smtp_mx_address_limit")),
        preference=AddressPreference(config.choice(name("smtp_address_preference"))),
        balance=config.boolean(name("smtp_balance_inet_protocols")),
        ignore_mx_lookup_error=config.boolean("ignore_mx_lookup_error"),
        defer_if_no_mx_address=config.boolean(name("smtp_defer_if_no_mx_address_found")),
        own=own,
    )


def _families(words: Iterable[str]) -> tuple[socket.AddressFamily, ...]:
    wanted = {family for word in words for family in _FAMILIES[word]}
    return tuple(family for family in _FAMILIES["all"] if family in wanted)


def _own(
    config: Config, parameter: str, local: Callable[[], Iterable[str]], look_up: LookUp
) -> list[IPAddress]:
    words = config.words(parameter)
    try:
        return interface_addresses(words, local, look_up)
    except OwnAddressError as exc:
        raise _problem(config, parameter, config.text(parameter), str(exc)) from exc


def _bind_address(config: Config, parameter: str, family: socket.AddressFamily) -> str:
    """Return the source address that `parameter` names; empty: none (S033, S034)."""
    text = config.text(parameter)
    literal = text.removeprefix("[").removesuffix("]")
    if literal.lower().startswith("ipv6:"):
        literal = literal[len("ipv6:") :]
    if not literal:
        return ""
    kind = ipaddress.IPv4Address if family == socket.AF_INET else ipaddress.IPv6Address
    try:
        return str(kind(literal))
    except ValueError as exc:
        raise _problem(config, parameter, text, str(exc)) from exc


def _fallback(config: Config, endpoints: EndpointSettings) -> tuple[str, ...]:
    """The fallback relays. Raises ConfigError for what is no destination, or none by TCP."""
    parameter = config.mirror("smtp_fallback_relay", endpoints.protocol)
    found = config.words(parameter)
    for text in found:
        try:
            check_nexthop(text, endpoints)
        except ResolveError as exc:
            raise _problem(config, parameter, text, exc.reason) from exc
        if _is_path(text):
            raise _problem(config, parameter, text, "a fallback relay must be reached by TCP")
    return found


def _problem(config: Config, parameter: str, value: str, why: str) -> ConfigError:
    setting = config.settings.get(parameter)
    place, line = (setting.file, setting.line) if setting else ("default", 0)
    return ConfigError([Problem(file=place, line=line, parameter=parameter, value=value, why=why)])
