"""From a configuration to what deliveries need: settings, resolvers and dialers, and the cache."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from protocol.request import Protocol
from worker.cache.client import CacheClient
from worker.config.config import Config
from worker.delivery.deliver import Environment
from worker.delivery.reuse import CachedSessions, ReusePolicy
from worker.delivery.settings import DeliverySettings
from worker.network.network import (
    DnsSettings,
    Network,
    NetworkSettings,
    make_dialer,
    make_dns,
    make_resolver,
)
from worker.status.events import Emit


def make_environment(
    config: Config,
    emit: Emit,
    wall: Callable[[], float],
    rng: random.Random,
    *,
    resolver: str = "",
    cache_socket: Path | None = None,
) -> Environment:
    """Read everything once.

    `resolver`: "ADDR:PORT" that wins over postrio_dns_server. `cache_socket`: of a connection cache
    (`cache_command.cache_socket`); None: sessions stay in their slots. May block (names in
    inet_interfaces are looked up). Raises ConfigError.
    """
    dns, native = make_dns(DnsSettings.from_config(config, resolver=resolver))
    networks = {}
    for protocol in Protocol:
        settings = NetworkSettings.from_config(config, protocol)
        networks[protocol] = Network(
            settings, make_resolver(settings, dns, native), make_dialer(settings, emit), rng
        )
    cached = None
    if cache_socket is not None:
        timeout = config.seconds("connection_cache_protocol_timeout")
        cached = CachedSessions(
            CacheClient(cache_socket, timeout=timeout, emit=emit), time.monotonic
        )
    return Environment(
        settings={
            protocol: DeliverySettings.from_config(config, protocol) for protocol in Protocol
        },
        networks=networks,
        reuse={protocol: ReusePolicy.from_config(config, protocol) for protocol in Protocol},
        cached=cached,
        emit=emit,
        wall=wall,
        time_limit=config.seconds("daemon_timeout"),
    )
