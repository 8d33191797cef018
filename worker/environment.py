"""From a configuration to what deliveries need: settings, resolvers and dialers by protocol."""

import random
from collections.abc import Callable

from protocol.request import Protocol
from worker.config.config import Config
from worker.delivery.deliver import Environment
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
) -> Environment:
    """Read everything once. `resolver`: "ADDR:PORT" that wins over postrio_dns_server.

    May block (names in inet_interfaces are looked up). Raises ConfigError.
    """
    dns, native = make_dns(DnsSettings.from_config(config, resolver=resolver))
    networks = {}
    for protocol in Protocol:
        settings = NetworkSettings.from_config(config, protocol)
        networks[protocol] = Network(
            settings, make_resolver(settings, dns, native), make_dialer(settings, emit), rng
        )
    return Environment(
        settings={
            protocol: DeliverySettings.from_config(config, protocol) for protocol in Protocol
        },
        networks=networks,
        emit=emit,
        wall=wall,
        time_limit=config.seconds("daemon_timeout"),
    )
