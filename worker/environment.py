"""From a configuration to what deliveries need: settings, resolvers and dialers, and the cache."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from protocol.request import Protocol
from worker.cache.client import CacheClient
from worker.config.config import Config
from worker.config.problems import ConfigError, Problem
from worker.delivery.debug_peers import DebugPeers
from worker.delivery.environment import Environment
from worker.delivery.handover import HandOver, Handover, Settled
from worker.delivery.recorder import RecordingRules
from worker.delivery.reuse import CachedSessions, ReusePolicy
from worker.delivery.security import SecurityRules
from worker.delivery.settings import DeliverySettings
from worker.errors import ResolveError
from worker.network.network import (
    DnsSettings,
    Network,
    NetworkSettings,
    check_nexthop,
    make_dialer,
    make_dns,
    make_resolver,
)
from worker.queue.routing import Router, Verdict
from worker.queue.settings import TRANSPORTS
from worker.sasl.client import SaslClient
from worker.status.events import Emit, Warned
from worker.tls.contexts import SYSTEM_CA, Contexts, TlsFilesError
from worker.tls.handshake import TlsEngine
from worker.tls.holder import Holder
from worker.tls.policies import TlsPolicies
from worker.tls.sessions import SessionStore
from worker.tls.settings import problem_of
from worker.tls.trace import TraceFile

STEPS, MESSAGES, RECORDS = 2, 3, 4  # smtp_tls_loglevel, from which on they are told


def make_environment(
    config: Config,
    emit: Emit,
    wall: Callable[[], float],
    rng: random.Random,
    *,
    resolver: str = "",
    cache_socket: Path | None = None,
    socket_directory: Path | None = None,
    holder: Holder | None = None,
) -> Environment:
    """Read everything once.

    `resolver`: "ADDR:PORT" that wins over postrio_dns_server. `cache_socket`: of a connection cache
    (`cache_command.cache_socket`); None: sessions stay in their slots. `socket_directory`: where
    relative paths of sockets start; None: in queue_directory. `holder`: keeps TLS connections that
    other processes use, in a worker. May block (names in inet_interfaces are looked up). Raises
    ConfigError.
    """
    dns, native = make_dns(DnsSettings.from_config(config, resolver=resolver))
    networks = {}
    for protocol in Protocol:
        settings = NetworkSettings.from_config(config, protocol)
        if socket_directory is not None:
            settings = replace(settings, socket_directory=socket_directory)
        networks[protocol] = Network(
            settings, make_resolver(settings, dns, native), make_dialer(settings, emit), rng
        )
    cached = None
    if cache_socket is not None:
        timeout = config.seconds("connection_cache_protocol_timeout")
        cached = CachedSessions(
            CacheClient(cache_socket, timeout=timeout, emit=emit), time.monotonic, holder
        )
    return Environment(
        settings={
            protocol: DeliverySettings.from_config(config, protocol) for protocol in Protocol
        },
        networks=networks,
        reuse={protocol: ReusePolicy.from_config(config, protocol) for protocol in Protocol},
        downgrade_after=config.seconds("minimal_backoff_time"),
        cached=cached,
        emit=emit,
        wall=wall,
        time_limit=config.seconds("daemon_timeout"),
        debug=DebugPeers.from_config(config, emit),
        hand_over=make_hand_over(config, emit),
        recording=RecordingRules.from_config(config),
        security=_all_rules(config, emit),  # last: it opens files
    )


def make_hand_over(config: Config, emit: Emit) -> HandOver | None:
    """Where mail goes that would loop back to us (best_mx_transport).

    Raises ConfigError if no transport is named or the nexthop is no destination; a transport that
    is not there is a warning.
    """
    text = config.text("best_mx_transport")
    if not text:
        return None
    # Routing knows what `transport:nexthop` means, and which transports need no server.
    router = Router(default_transport=text)
    transport, _, nexthop = (part.strip() for part in text.partition(":"))
    if not transport:
        raise ConfigError([problem_of(config, "best_mx_transport", "no transport is named")])
    protocol = TRANSPORTS.get(transport)
    if protocol is not None and nexthop:
        try:
            check_nexthop(nexthop, NetworkSettings.from_config(config, protocol).endpoints)
        except ResolveError as exc:
            raise ConfigError([problem_of(config, "best_mx_transport", exc.reason)]) from exc
    elif protocol is None and transport not in OTHERS:
        emit(Warned(f"best_mx_transport: there is no transport {transport}: such mail will wait"))

    async def hand_over(domain: str) -> Handover | Settled:
        route = await router.route("postmaster@localhost")  # whoever it is for
        if isinstance(route, Verdict):
            return Settled(transport, route.action, route.dsn, route.reason)
        return Handover(route.transport, nexthop or domain, route.protocol)

    return hand_over


def _all_rules(config: Config, emit: Emit) -> dict[Protocol, SecurityRules]:
    rules: dict[Protocol, SecurityRules] = {}
    try:
        for protocol in Protocol:
            rules[protocol] = make_rules(config, protocol, emit)
    except BaseException:
        for each in rules.values():
            each.close()
        raise
    return rules


def make_rules(
    config: Config, protocol: Protocol, emit: Emit, *, files: bool = True
) -> SecurityRules:
    """One protocol's TLS policies and log-ins; certificates are read. Raises ConfigError.

    `emit` is told of what is odd. `files`: open those that we keep, and make them if need be: of
    TLS sessions to resume, of refused logins, of the trace.
    """
    policies = TlsPolicies.from_config(config, protocol)
    contexts = Contexts()
    try:
        for policy in policies.sample():
            contexts.check(policy)
    except TlsFilesError as exc:
        raise ConfigError([_files_problem(config, protocol, exc)]) from exc
    sasl = SaslClient.from_config(config, protocol)
    sessions = trace = None
    if files:  # last: nothing that can fail comes behind it, and leaves them open
        if sasl is not None:
            sasl.share(emit)
        sessions = SessionStore.opened(policies.session_timeout, policies.session_database, emit)
        trace = _trace_file(policies, protocol, emit)
    steps_of = protocol.value if policies.loglevel >= STEPS else ""
    rules = SecurityRules(
        policies=policies,
        engine=TlsEngine(contexts, sessions, emit, steps_of=steps_of, trace=trace),
        sasl=sasl,
        emit=emit,
        fallback=config.words(config.mirror("smtp_fallback_relay", protocol)),
    )
    for warning in rules.warnings:
        emit(Warned(warning))
    return rules


def _trace_file(policies: TlsPolicies, protocol: Protocol, emit: Emit) -> TraceFile | None:
    """Where the handshakes of this protocol are told message by message, if that is wanted."""
    if policies.loglevel < MESSAGES or not policies.trace_file:
        return None
    path, whole = Path(policies.trace_file), policies.loglevel >= RECORDS
    return TraceFile.opened(path, emit, time.time, program=protocol.value, whole=whole)


OTHERS: Final = ("error", "retry", "discard")  # transports that need no server
_FILES: Final = (
    *("smtp_tls_CAfile", "smtp_tls_CApath", "smtp_tls_trust_anchor_file", "smtp_tls_chain_files"),
    *("smtp_tls_cert_file", "smtp_tls_key_file", "smtp_tls_eccert_file", "smtp_tls_eckey_file"),
)


def _files_problem(config: Config, protocol: Protocol, error: TlsFilesError) -> Problem:
    """The mistake, with the parameter that names the file, a set one if possible."""
    if error.file == SYSTEM_CA:
        return problem_of(config, SYSTEM_CA, error.reason)
    names = [config.mirror(name, protocol) for name in _FILES]
    named = [name for name in names if error.file in config.text(name)]
    name = min(named, key=lambda name: not config.is_set(name), default=names[0])
    said_before = config.text(name) == error.file
    return problem_of(config, name, error.reason if said_before else str(error))
