"""A world to deliver in: peers behind a resolver and a dialer, and `deliver()` run among them.

Names and connects are fakes with behaviour; the rest of the delivery is the real thing.
"""

import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import trio
from trio.testing import wait_all_tasks_blocked

from protocol.outcome import Action, DeliveryResult
from protocol.request import DeliveryRequest, Protocol, Recipient
from tests.worker.fake_dns import FakeResolver
from tests.worker.memory_line import MemoryStream, memory_stream_pair
from tests.worker.peer import Peer
from worker.cache.client import SessionCache
from worker.content import Content, InlineContent
from worker.delivery.deliver import deliver
from worker.delivery.environment import Environment
from worker.delivery.reuse import CachedSessions, ReusePolicy
from worker.delivery.security import NO_RULES, SecurityRules
from worker.delivery.serve import serve
from worker.delivery.settings import DeliverySettings
from worker.delivery.slot import DeliverySlot
from worker.network.address import Endpoint
from worker.network.endpoints import EndpointSettings
from worker.network.network import Network, NetworkSettings
from worker.network.socket_stream import QuickStream
from worker.status.events import Event
from worker.tls.holder import Holder

# What dialling an address comes to: a server, a failure, or no answer for ever.
Site = Peer | Exception | None
REFUSED = ConnectionRefusedError(111, "Connection refused")


class FakeDialer:
    """Connects to the peers of its table; anything else refuses."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = dict(sites)
        self.seconds = 0.0  # that a connect takes
        self.dialled: list[tuple[float, str]] = []
        self.streams: list[trio.abc.Stream] = []  # client ends, all that were ever given out
        self.nursery: trio.Nursery | None = None  # where the peers run

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        """See `Dialer.dial`."""
        self.dialled.append((trio.current_time(), endpoint.address))
        await trio.sleep(self.seconds)
        site = self.sites.get(endpoint.address, REFUSED)
        if site is None:
            await trio.sleep_forever()
        if not isinstance(site, Peer):
            assert site is not None
            raise site
        assert self.nursery is not None
        ours: trio.abc.Stream
        theirs: trio.abc.Stream
        if site.real_sockets:
            a, b = socket.socketpair()
            ours, theirs = (
                QuickStream(a),
                trio.SocketStream(trio.socket.from_stdlib_socket(b)),
            )
        else:
            ours, theirs = memory_stream_pair(site.window)
        self.nursery.start_soon(site.serve, theirs)
        self.streams.append(ours)
        return ours

    @property
    def open_streams(self) -> list[trio.abc.Stream]:
        """Client ends that nobody closed."""
        return [stream for stream in self.streams if not _closed(stream)]


def _closed(stream: trio.abc.Stream) -> bool:
    if isinstance(stream, MemoryStream):
        return stream.closed
    assert isinstance(stream, QuickStream)
    return stream.socket.fileno() < 0


MX = {"example.com": [(10, "mx1.example.com"), (20, "mx2.example.com"), (30, "mx3.example.com")]}
HOSTS = {
    "mx1.example.com": ["192.0.2.1"],
    "mx2.example.com": ["192.0.2.2"],
    "mx3.example.com": ["192.0.2.3"],
    "lmtp.example.com": ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
}
NEXTHOPS = {Protocol.SMTP: "example.com", Protocol.LMTP: "inet:lmtp.example.com:24"}
RELAYS = {
    Protocol.SMTP: [f"mx{n}.example.com[192.0.2.{n}]:25" for n in (1, 2, 3)],
    Protocol.LMTP: [f"lmtp.example.com[192.0.2.{n}]:24" for n in (1, 2, 3)],
}
CONTENT = b"Subject: hello\r\n\r\nworld\r\n"


class World:
    """Servers at 192.0.2.1, .2 and .3 (the MX hosts of example.com in this order) and a client."""

    def __init__(
        self,
        *sites: Site,
        settings: DeliverySettings | None = None,
        stagger: float = 0.0,
        session_limit: int | None = None,
        policy: ReusePolicy | None = None,
        cache: SessionCache | None = None,
        rules: SecurityRules = NO_RULES,
    ) -> None:
        settings = settings or DeliverySettings(hostname="client.example", helo_name="helo.example")
        if session_limit is not None:
            settings = replace(settings, mx_session_limit=session_limit)
        addresses = [f"192.0.2.{number}" for number in range(1, len(sites) + 1)]
        self.dialer = FakeDialer(dict(zip(addresses, sites, strict=True)))
        names = ["mx1.example.com", "mx2.example.com", "mx3.example.com"][: len(sites)]
        mx = {"example.com": [pair for pair in MX["example.com"] if pair[1] in names]}
        hosts = {**HOSTS, "lmtp.example.com": addresses}
        self.resolver = FakeResolver(mx=mx, hosts=hosts)
        self.events: list[Event] = []
        self.holder = Holder(self.events.append)
        self.results: list[DeliveryResult] = []
        self.took: list[float] = []  # virtual seconds of each delivery
        self.slot = DeliverySlot()
        self.environment = Environment(
            settings={
                protocol: replace(
                    settings,
                    protocol=protocol,
                    skip_quit_response=settings.skip_quit_response and protocol is Protocol.SMTP,
                )
                for protocol in Protocol
            },
            networks={
                protocol: Network(
                    NetworkSettings(
                        endpoints=EndpointSettings(protocol=protocol, randomize=False),
                        stagger=stagger,
                    ),
                    self.resolver,
                    self.dialer,
                    random.Random(1),
                )
                for protocol in Protocol
            },
            emit=self.events.append,
            wall=lambda: 1_000.0,
            reuse=dict.fromkeys(Protocol, policy or ReusePolicy()),
            cached=CachedSessions(cache, trio.current_time, self.holder) if cache else None,
            security=dict.fromkeys(Protocol, rules),
        )

    async def play(self, scenario: Callable[[], Awaitable[object]]) -> None:
        """Run `scenario` while the servers live; what is parked at the end is ended."""
        async with trio.open_nursery() as nursery:
            self.dialer.nursery = nursery
            await nursery.start(self.holder.run)
            try:
                await scenario()
            finally:
                await self.slot.release()
            # Servers read to the end what was sent to them; those that hang are cut off.
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def deliver(
        self,
        request: DeliveryRequest,
        content: Content | None = None,
        *,
        kept: bool = True,
    ) -> DeliveryResult:
        """Inside play(): one delivery, in the world's slot unless `kept` is False."""
        slot = self.slot if kept else None
        began = trio.current_time()
        result = await deliver(request, content or InlineContent(CONTENT), self.environment, slot)
        self.took.append(trio.current_time() - began)
        self.results.append(result)
        return result

    async def deliver_in_a_row(
        self, requests: Sequence[DeliveryRequest], *, steady: bool = True, late: bool = False
    ) -> list[DeliveryResult]:
        """Inside play(): one delivery after another, each next request being there early.

        `steady` False: none is delivered in a steady run, but by a deliver() of its own. `late`:
        each comes when the one before has its result.
        """
        row = Row(self, requests, late=late)
        self.slot.upcoming = row.upcoming
        if steady:
            await serve(row, self.slot, lambda: self.environment)
        else:
            while row.upcoming():
                request, content = row.take_upcoming()
                row.put_result(await deliver(request, content, self.environment, self.slot))
        return self.results

    @property
    def open_streams(self) -> list[trio.abc.Stream]:
        """Streams that the client has not closed."""
        return self.dialer.open_streams


class Row:
    """The `steady.Requests` of a slot: the next is always there, results go to the world's."""

    def __init__(
        self, world: World, requests: Sequence[DeliveryRequest], *, late: bool = False
    ) -> None:
        self._world = world
        self._late = late
        self._busy = False  # a request has no result yet
        self._waiting = deque(requests)
        self._began = trio.current_time()

    async def wait(self) -> bool:
        """Whether there is another one."""
        return bool(self._waiting)

    def upcoming(self) -> DeliveryRequest | None:
        """The next one, without taking it."""
        there = self._waiting and not (self._late and self._busy)
        return self._waiting[0] if there else None

    def take_upcoming(self) -> tuple[DeliveryRequest, Content]:
        """The next one."""
        self._busy = True
        return self._waiting.popleft(), InlineContent(CONTENT)

    def put_result(self, result: DeliveryResult) -> bool:
        """Into the world's results."""
        self._world.results.append(result)
        self._busy = False
        now = trio.current_time()
        self._world.took.append(now - self._began)
        self._began = now
        return True

    async def flush(self) -> None:
        """Nothing waits."""


def make_request(
    *addresses: str, protocol: Protocol = Protocol.SMTP, sender: str = "sender@client.example"
) -> DeliveryRequest:
    """A request for these recipients (default: one) at the nexthop of the world."""
    recipients = addresses or ("a@example.com",)
    return DeliveryRequest(
        queue_id="Q1",
        transport=protocol.value,
        protocol=protocol,
        nexthop=NEXTHOPS[protocol],
        sender=sender,
        recipients=tuple(
            Recipient(address=address, key=key) for key, address in enumerate(recipients)
        ),
        size=len(CONTENT),
        arrival=990.0,
        active=999.0,
    )


async def deliver_one(
    world: World, request: DeliveryRequest | None = None, content: Content | None = None
) -> DeliveryResult:
    """One delivery in `world` and nothing else, with its slot."""

    async def scenario() -> None:
        await world.deliver(request or make_request(), content)

    await world.play(scenario)
    return world.results[-1]


def actions(result: DeliveryResult) -> dict[str, Action]:
    """Who got which action."""
    return {outcome.recipient.address: outcome.action for outcome in result.outcomes}
