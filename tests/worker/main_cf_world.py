"""A world whose client is set up by parameters of main.cf, as a process of ours would be.

For tests that are named after a row of the manual: what they set is what an operator sets.
"""

import random
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import trio

from protocol.outcome import DeliveryResult
from protocol.request import DeliveryRequest, Protocol
from tests.worker.fake_dns import FakeResolver
from tests.worker.world import FakeDialer, Site, World, make_request
from worker.config.config import Config
from worker.content import Content
from worker.delivery.reuse import ReusePolicy
from worker.delivery.settings import DeliverySettings
from worker.environment import make_rules
from worker.network.address import Endpoint
from worker.network.network import Network, NetworkSettings, make_resolver
from worker.network.resolver import LookupFailure, MxAnswer
from worker.status.log import render
from worker.tls.holder import Holder

BASE = {"myhostname": "client.example", "inet_interfaces": "198.51.100.1"}


class NotingDialer(FakeDialer):
    """Notes the endpoints, too, and so the ports."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__(sites)
        self.relays: list[str] = []

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        """See `Dialer.dial`."""
        self.relays.append(endpoint.relay)
        return await super().dial(endpoint)


class MainCfWorld(World):
    """Servers behind a resolver of their own, and a client under `main_cf`.

    `sites`: what dialling each address comes to; others refuse. `mx`, `hosts`: what DNS knows;
    `hosts_file`: what the system knows, too. `secured`: TLS policies and passwords count.
    """

    dialer: NotingDialer

    def __init__(
        self,
        main_cf: Mapping[str, str],
        sites: Mapping[str, Site],
        *,
        mx: Mapping[str, Sequence[tuple[int, str]] | MxAnswer | LookupFailure] | None = None,
        hosts: Mapping[str, Sequence[str] | LookupFailure] | None = None,
        hosts_file: Mapping[str, Sequence[str]] | None = None,
        secured: bool = False,
    ) -> None:
        super().__init__()
        config = Config.from_mapping({**BASE, **main_cf})
        self.dialer = NotingDialer(sites)
        self.resolver = FakeResolver(mx=mx, hosts=hosts)
        self.native = FakeResolver(hosts=hosts_file)
        rng = random.Random(1)

        def network(protocol: Protocol) -> Network:
            settings = NetworkSettings.from_config(config, protocol, local=list, look_up=_no_names)
            resolver = make_resolver(settings, self.resolver, self.native)
            return Network(settings, resolver, self.dialer, rng)

        self.environment = replace(
            self.environment,
            settings={each: DeliverySettings.from_config(config, each) for each in Protocol},
            networks={each: network(each) for each in Protocol},
            reuse={each: ReusePolicy.from_config(config, each) for each in Protocol},
        )
        if secured:
            rules = {each: make_rules(config, each, self.events.append) for each in Protocol}
            self.environment = replace(self.environment, security=rules)

    @property
    def log(self) -> list[str]:
        """The lines of the log so far, without time and process."""
        return [line.text for event in self.events for line in render(event)]


def _no_names(name: str) -> Collection[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def deliver_to(
    world: World,
    nexthop: str,
    *recipients: str,
    protocol: Protocol = Protocol.SMTP,
    content: Content | None = None,
) -> DeliveryResult:
    """One delivery to `nexthop` and nothing else."""
    request = replace(make_request(*recipients, protocol=protocol), nexthop=nexthop)
    return await deliver_request(world, request, content)


async def deliver_request(
    world: World, request: DeliveryRequest, content: Content | None = None
) -> DeliveryResult:
    """One delivery and nothing else, in no slot: the session ends with it."""

    async def scenario() -> None:
        await world.deliver(request, content, kept=False)

    await world.play(scenario)
    assert not world.open_streams
    world.holder = Holder(world.events.append)  # one runs once, and there may be another delivery
    return world.results[-1]
