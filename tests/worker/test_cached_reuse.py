"""Sessions by way of the connection cache: who saves, who finds, who must not (S136 to S147).

Deterministic: scripted servers on socket pairs, an in-memory cache, virtual time. The daemon and
its client have tests of their own; here is what deliveries make of a cache.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Protocol, RequestFlags, SendOptions
from tests.cancel_everywhere import cancel_everywhere
from tests.descriptors import open_descriptors
from tests.worker.memory_cache import MemoryCache
from tests.worker.peer import EXTENSIONS, Answer, Fault, Peer, Phase
from tests.worker.world import CONTENT, REFUSED, Site, World, make_request
from worker.cache.client import Found, Saving
from worker.config.config import Config
from worker.config.parameters import PARAMETERS, Kind
from worker.content import InlineContent
from worker.delivery.deliver import deliver
from worker.delivery.reuse import CachedSessions, ReusePolicy, destination_label, endpoint_label
from worker.delivery.security import UNSECURED
from worker.delivery.session import SessionKey
from worker.delivery.settings import DeliverySettings
from worker.delivery.slot import DeliverySlot
from worker.network.address import Endpoint
from worker.status.events import EndpointFailed, Event, SessionOpened, SessionReused, Warned

SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
LOAD, SAVE = RequestFlags.CACHE_LOAD, RequestFlags.CACHE_SAVE
BOTH = LOAD | SAVE
SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
GREYLIST = "450 4.7.1 greylisted"


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    """Every descriptor that a session had is closed by somebody."""
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


def real(script: dict[Phase, Answer | list[Answer]] | None = None, **kwargs: object) -> Peer:
    """A server whose connections can be passed on."""
    return Peer(script, real_sockets=True, **kwargs)  # type: ignore[arg-type]  # Peer's own names


def request(
    *addresses: str, flags: RequestFlags = BOTH, protocol: Protocol = Protocol.SMTP
) -> DeliveryRequest:
    return replace(make_request(*addresses, protocol=protocol), flags=flags)


async def in_slots(world: World, *batch: DeliveryRequest, pause: float = 0.0) -> None:
    """Each request in a slot of its own, which ends before the next one begins."""
    for number, each in enumerate(batch):
        if number and pause:
            await trio.sleep(pause)
        await wait_all_tasks_blocked()
        await world.deliver(each)
        await world.slot.release()


async def play(world: World, cache: MemoryCache, scenario: Callable[[], Awaitable[object]]) -> None:
    """Run it; what the cache still holds is closed with it."""
    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert not world.open_streams


async def deliver_all(
    *batch: DeliveryRequest,
    sites: tuple[Site, ...],
    settings: DeliverySettings = SETTINGS,
    policy: ReusePolicy | None = None,
    pause: float = 0.0,
) -> tuple[World, MemoryCache]:
    cache = MemoryCache()
    world = World(*sites, settings=settings, policy=policy, cache=cache)

    async def scenario() -> None:
        await in_slots(world, *batch, pause=pause)

    await play(world, cache, scenario)
    return world, cache


def uses(world: World) -> list[int]:
    return [result.outcomes[0].conn_use for result in world.results]


def all_sent(world: World) -> bool:
    return {o.action for result in world.results for o in result.outcomes} == {SENT}


# --- the second level ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s136_a_session_of_one_slot_serves_in_another(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    peer = real(lmtp=protocol is Protocol.LMTP)
    first, second = request(protocol=protocol), request("b@example.com", protocol=protocol)
    world, cache = await deliver_all(first, second, sites=(peer,))
    assert uses(world) == [1, 2]
    assert len(peer.links) == 1
    assert cache.saves == 2
    relay = world.results[0].outcomes[0].relay
    assert world.events == [SessionOpened(relay), SessionReused(relay, 2)]
    # The probe costs no round trip of its own.
    assert peer.links[0].segments[3].startswith(b"RSET\r\nMAIL FROM:<")
    assert world.resolver.questions.count(("MX", "example.com")) <= 1


@pytest.mark.parametrize(
    ("flags", "links", "saves"),
    [
        ((SAVE, LOAD), 1, 1),
        ((BOTH, BOTH), 1, 2),
        ((BOTH, RequestFlags.NONE), 2, 1),
        ((LOAD, BOTH), 2, 1),
        ((RequestFlags.NONE, RequestFlags.NONE), 2, 0),
    ],
)
@trio_test
async def test_s138_the_flags_of_a_request_say_what_it_may(
    autojump_clock: MockClock, flags: tuple[RequestFlags, RequestFlags], links: int, saves: int
) -> None:
    peer = real()
    world, cache = await deliver_all(*(request(flags=each) for each in flags), sites=(peer,))
    assert len(peer.links) == links
    assert cache.saves == saves
    assert all_sent(world)


@trio_test
async def test_s138_a_tail_request_without_the_save_flag_ends_the_session_it_found(
    autojump_clock: MockClock,
) -> None:
    peer = real()
    await deliver_all(request(flags=BOTH), request(flags=LOAD), sites=(peer,))
    assert peer.links[0].verbs[-1] == "QUIT"
    assert len(peer.links) == 1


@pytest.mark.parametrize(("pause", "links"), [(1.9, 1), (2.1, 2)])
@trio_test
async def test_s145_an_idle_session_is_kept_for_the_time_limit(
    autojump_clock: MockClock, pause: float, links: int
) -> None:
    peer = real()
    await deliver_all(request(), request(), sites=(peer,), pause=pause)
    assert len(peer.links) == links


# --- policy -------------------------------------------------------------------------------------


def policy(**settings: str) -> ReusePolicy:
    return ReusePolicy.from_config(Config.from_mapping(settings), Protocol.SMTP)


@trio_test
async def test_s144_on_demand_no_means_no_reuse_at_all(autojump_clock: MockClock) -> None:
    peer = real()
    cache = MemoryCache()
    off = policy(smtp_connection_cache_on_demand="no")
    world = World(peer, settings=SETTINGS, policy=off, cache=cache)

    async def scenario() -> None:
        await in_slots(world, request(), request())
        await world.deliver(request())
        await world.deliver(request())

    await play(world, cache, scenario)
    assert [link.verbs.count("MAIL") for link in peer.links] == [1] * 4
    assert [result.session_kept for result in world.results] == [False] * 4
    assert cache.saves == 0


@pytest.mark.parametrize(
    ("listed", "links"),
    [("example.com", 1), ("other.example", 2), ("static:all", 1), ("!example.com", 2)],
)
@trio_test
async def test_s143_listed_destinations_are_always_kept(
    autojump_clock: MockClock, listed: str, links: int
) -> None:
    peer = real()
    chosen = policy(smtp_connection_cache_on_demand="no", smtp_connection_cache_destinations=listed)
    none = RequestFlags.NONE
    world, _ = await deliver_all(
        request(flags=none), request(flags=none), sites=(peer,), policy=chosen
    )
    assert len(peer.links) == links
    assert all_sent(world)


@pytest.mark.parametrize("nexthop", ["[mx1.example.com]:25", "mx1.example.com:25"])
@trio_test
async def test_s143_destinations_are_listed_without_brackets_and_port(
    autojump_clock: MockClock, nexthop: str
) -> None:
    kept = policy(smtp_connection_cache_destinations="mx1.example.com")
    events: list[Event] = []
    wishes = await kept.wishes(replace(make_request(), nexthop=nexthop), events.append)
    assert wishes.save
    assert wishes.load


@trio_test
async def test_a_list_that_fails_costs_caching_and_no_mail(autojump_clock: MockClock) -> None:
    peer = real()
    broken = policy(smtp_connection_cache_destinations="fail:1")
    none = RequestFlags.NONE
    world, cache = await deliver_all(
        request(flags=none), request(flags=none), sites=(peer,), policy=broken
    )
    assert all_sent(world)
    assert cache.saves == 0
    warned = [event.text for event in world.events if isinstance(event, Warned)]
    assert len(warned) == 2
    assert warned[0].startswith("smtp_connection_cache_destinations: ")


# --- by endpoint ----------------------------------------------------------------------------------


@trio_test
async def test_a_session_is_found_by_its_endpoint_from_another_nexthop(
    autojump_clock: MockClock,
) -> None:
    peer = real()
    other = replace(request(), nexthop="[mx1.example.com]")
    world, _ = await deliver_all(request(), other, sites=(peer,))
    assert len(peer.links) == 1
    assert uses(world) == [1, 2]


@trio_test
async def test_s139_backup_exchangers_are_looked_up_only_after_fresh_attempts(
    autojump_clock: MockClock,
) -> None:
    best, backup = real(), real()
    cache = MemoryCache()
    world = World(best, backup, settings=SETTINGS, cache=cache)

    async def scenario() -> None:
        await in_slots(world, replace(request(), nexthop="[mx2.example.com]"))
        await in_slots(world, request())  # the best one is alive: it gets the mail
        assert len(best.links) == 1
        await trio.sleep(3.0)
        await in_slots(world, replace(request(), nexthop="[mx2.example.com]"))
        world.dialer.sites["192.0.2.1"] = REFUSED
        await in_slots(world, request())

    await play(world, cache, scenario)
    assert len(best.links) == 1
    assert len(backup.links) == 2
    assert uses(world) == [1, 1, 1, 2]
    dialled = [address for _, address in world.dialer.dialled]
    assert dialled == ["192.0.2.2", "192.0.2.1", "192.0.2.2", "192.0.2.1"]


@trio_test
async def test_s136_the_first_good_session_is_found_by_nexthop_and_later_ones_by_endpoint(
    autojump_clock: MockClock,
) -> None:
    first, second = real({Phase.RCPT: [GREYLIST, "250 ok", "250 ok"]}), real()
    cache = MemoryCache()
    world = World(first, second, settings=SETTINGS, cache=cache)

    async def scenario() -> None:
        await in_slots(world, request())  # greylisted by the first, taken by the second
        assert len(cache.bindings) == 1
        assert cache.saves == 2
        await in_slots(world, request("b@example.com"))

    await play(world, cache, scenario)
    assert [len(first.links), len(second.links)] == [1, 1]
    assert first.served == ["b@example.com"]
    assert second.served == ["a@example.com"]


@trio_test
async def test_a_server_asked_on_a_cached_session_is_not_asked_again(
    autojump_clock: MockClock,
) -> None:
    first, second = real({Phase.RCPT: ["250 ok", GREYLIST]}), real()
    world, _ = await deliver_all(request(), request(), sites=(first, second))
    assert len(first.links) == 1
    assert second.served == ["a@example.com"]
    assert all_sent(world)


@trio_test
async def test_a_server_asked_on_the_slot_s_session_is_not_asked_on_a_cached_one(
    autojump_clock: MockClock,
) -> None:
    first, second = real({Phase.RCPT: ["250 ok", "250 ok", GREYLIST, "250 ok"]}), real()
    cache = MemoryCache()
    world = World(first, second, settings=SETTINGS, cache=cache)

    async def scenario() -> None:
        other = DeliverySlot()
        await world.deliver(request(flags=SAVE))
        await deliver(request(flags=SAVE), InlineContent(CONTENT), world.environment, other)
        await other.release()
        await world.deliver(request())

    await play(world, cache, scenario)
    assert cache.hits == 0
    assert second.served == ["a@example.com"]


@trio_test
async def test_only_as_many_sessions_are_taken_from_the_cache_as_are_needed(
    autojump_clock: MockClock,
) -> None:
    lmtp = Protocol.LMTP
    peers = [real(lmtp=True), real(lmtp=True)]
    direct = [
        replace(request(protocol=lmtp), nexthop=f"inet:[192.0.2.{number}]:24") for number in (1, 2)
    ]
    world, cache = await deliver_all(*direct, request(protocol=lmtp), sites=(*peers,))
    assert cache.hits == 1
    assert uses(world) == [1, 1, 2]


@trio_test
async def test_a_cached_session_counts_against_the_session_limit(
    autojump_clock: MockClock,
) -> None:
    peers = [real({Phase.RCPT: ["250 ok", GREYLIST]}), real({Phase.RCPT: GREYLIST}), real()]
    world, _ = await deliver_all(
        request(), request(), sites=(*peers,), settings=replace(SETTINGS, mx_session_limit=2)
    )
    assert peers[2].links == []
    assert world.results[1].outcomes[0].action is DEFERRED


# --- the key ------------------------------------------------------------------------------------

KEY = SessionKey(transport="smtp", nexthop="example.com", settings=SETTINGS)
ENDPOINT = Endpoint(host="mx1.example.com", address="192.0.2.1", port=25, family=2)  # type: ignore[arg-type]
PLACE = endpoint_label(KEY, ENDPOINT, UNSECURED)


@pytest.mark.parametrize(
    "change",
    [
        {"transport": "relay"},
        {"smtputf8": True},
        {"sender": "other@here.example"},
        {"settings": replace(SETTINGS, protocol=Protocol.LMTP)},
        {"settings": replace(SETTINGS, fingerprint="other")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_s137_each_part_of_the_key_alone_makes_another_label(change: dict[str, object]) -> None:
    other = replace(KEY, **change)  # type: ignore[arg-type]  # names and types as above
    assert destination_label(other) != destination_label(KEY)
    assert endpoint_label(other, ENDPOINT, UNSECURED) != PLACE


def test_nexthop_address_and_port_are_in_their_labels() -> None:
    assert destination_label(replace(KEY, nexthop="[example.com]")) != destination_label(KEY)
    assert destination_label(replace(KEY, nexthop="EXAMPLE.com")) == destination_label(KEY)
    for changed in (replace(ENDPOINT, address="192.0.2.2"), replace(ENDPOINT, port=26)):
        assert endpoint_label(KEY, changed, UNSECURED) != PLACE
    assert endpoint_label(KEY, replace(ENDPOINT, host="alias"), UNSECURED) == PLACE


OTHER_VALUES = {
    Kind.BOOLEAN: ("yes", "no"),
    Kind.INTEGER: ("7", "8"),
    Kind.TIME: ("7s", "8s"),
    Kind.TABLES: ("static:a", "static:b"),
    Kind.MATCHES: ("a.example", "b.example"),
}
SHAPING = {"myhostname", "inet_interfaces", "inet_protocols"}


@pytest.mark.parametrize(
    "name", [name for name in PARAMETERS if name.startswith("smtp_") or name in SHAPING]
)
def test_another_value_of_any_client_parameter_is_another_fingerprint(name: str) -> None:
    row = PARAMETERS[name]
    words = [word for word in row.choices if word][:2] or ["127.0.0.2", "127.0.0.3"]
    texts = OTHER_VALUES.get(row.kind, (words[0], words[-1]))
    if row.pattern is not None:
        texts = ("0.5", "1") if name.endswith("_feedback") else ("1", "2")
    prints = {
        DeliverySettings.from_config(Config.from_mapping({name: text}), Protocol.SMTP).fingerprint
        for text in texts
    }
    assert len(prints) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"transport": "relay"},
        {"options": SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_HEADER},
    ],
    ids=lambda change: next(iter(change)),
)
@trio_test
async def test_s137_a_request_with_another_key_finds_nothing(
    autojump_clock: MockClock, change: dict[str, object]
) -> None:
    peer = real()
    other = replace(request(), **change)  # type: ignore[arg-type]  # names and types as above
    world, _ = await deliver_all(request(), other, sites=(peer,))
    assert len(peer.links) == 2
    assert all_sent(world)


@trio_test
async def test_a_session_of_other_settings_is_not_found(autojump_clock: MockClock) -> None:
    peer = real()
    cache = MemoryCache()
    world = World(peer, settings=replace(SETTINGS, fingerprint="old"), cache=cache)

    async def scenario() -> None:
        await in_slots(world, request())
        old = world.environment.settings
        new = {
            protocol: replace(each, helo_name="new.example", fingerprint="new")
            for protocol, each in old.items()
        }
        world.environment = replace(world.environment, settings=new)
        await in_slots(world, request())

    await play(world, cache, scenario)
    assert [link.commands[0] for link in peer.links] == ["EHLO helo.example", "EHLO new.example"]


# --- stale sessions -----------------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [EXTENSIONS, ("SIZE",)], ids=["pipelined", "lock-step"])
@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (Fault.CUT, 0.0),
        (("421 4.3.2 bye", Fault.CUT), 0.0),
        ("502 5.5.1 what?", 0.0),
        ("what?\n250 ok", None),
        (Fault.SILENCE, 20.0),
    ],
    ids=str,
)
@trio_test
async def test_s139_a_stale_cached_session_is_not_the_destination_s_failure(
    autojump_clock: MockClock, answer: Answer, seconds: float | None, extensions: tuple[str, ...]
) -> None:
    peer = real({Phase.RSET: answer}, extensions=extensions)
    world, _ = await deliver_all(
        request(), request(), sites=(peer,), settings=replace(SETTINGS, mx_session_limit=1)
    )
    assert all_sent(world)
    assert not [event for event in world.events if isinstance(event, EndpointFailed)]
    assert not any(result.site_failure for result in world.results)
    if seconds is not None:
        assert world.took[1] == seconds
        assert len(peer.links) == 2


@pytest.mark.parametrize("way", [Peer.hang_up, Peer.speak_up, Peer.chatter])
@trio_test
async def test_s139_a_session_that_its_peer_ended_or_spoke_on_is_not_used(
    autojump_clock: MockClock, way: Callable[[Peer], None]
) -> None:
    peer = real()
    cache = MemoryCache()
    world = World(peer, settings=SETTINGS, cache=cache)

    async def scenario() -> None:
        await in_slots(world, request())
        way(peer)
        await in_slots(world, request())

    await play(world, cache, scenario)
    assert [link.verbs.count("MAIL") for link in peer.links] == [1, 1]
    assert all_sent(world)


# --- what is not saved --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "answer"),
    [
        (Phase.EHLO, "what?\n250 ok"),
        (Phase.RCPT, "501 5.5.4 what?"),
        (Phase.MAIL, "503 5.5.1 what?"),
        (Phase.DOT, "421 4.3.2 bye"),
        (Phase.DOT, "250 ok\n250 and more"),
        (Phase.DOT, Fault.CUT),
        (Phase.DATA, Fault.CUT),
    ],
)
@trio_test
async def test_s136_a_session_is_not_saved_after_trouble(
    autojump_clock: MockClock, phase: Phase, answer: Answer
) -> None:
    peer = real({phase: answer})
    _, cache = await deliver_all(request(), sites=(peer,))
    assert cache.saves == 0


@trio_test
async def test_an_unfinished_transaction_is_reset_by_whoever_finds_the_session(
    autojump_clock: MockClock,
) -> None:
    peer = real({Phase.RCPT: ["550 5.1.1 who?", "250 ok"]})
    world, _ = await deliver_all(request(), request(), sites=(peer,))
    assert len(peer.links) == 1
    assert [result.outcomes[0].action for result in world.results] == [BOUNCED, SENT]
    assert [verb for verb in peer.verbs if verb in ("RSET", "MAIL")] == ["MAIL", "RSET", "MAIL"]


@pytest.mark.parametrize(("limit", "links"), [(0, 1), (1, 2), (2, 2), (3, 1)])
@trio_test
async def test_uses_are_counted_across_slots(
    autojump_clock: MockClock, limit: int, links: int
) -> None:
    peer = real()
    settings = replace(SETTINGS, reuse_count_limit=limit)
    await deliver_all(*[request()] * 4, sites=(peer,), settings=settings)
    assert len(peer.links) == links


@trio_test
async def test_s146_the_age_of_a_session_is_carried_along(autojump_clock: MockClock) -> None:
    peer = real()
    settings = replace(SETTINGS, reuse_time_limit=4.0)
    await deliver_all(*[request()] * 4, sites=(peer,), settings=settings, pause=1.5)
    # Born at 0, used at 0, 1.5, 3; at 4.5 its time is over.
    assert [link.verbs.count("MAIL") for link in peer.links] == [3, 1]
    assert peer.links[0].verbs[-1] == "QUIT"


@trio_test
async def test_the_age_goes_by_the_clock_that_processes_share(autojump_clock: MockClock) -> None:
    """Each process's own clock begins somewhere else."""
    peer = real()
    cache = MemoryCache()
    world = World(peer, settings=replace(SETTINGS, reuse_time_limit=100.0), cache=cache)
    shared = 5_000.0

    async def scenario() -> None:
        nonlocal shared
        cached = CachedSessions(cache, lambda: shared)
        world.environment = replace(world.environment, cached=cached)
        await in_slots(world, request())
        shared += 99.0
        await in_slots(world, request())
        shared += 1.0
        await in_slots(world, request())

    await play(world, cache, scenario)
    assert [link.verbs.count("MAIL") for link in peer.links] == [2, 1]


@trio_test
async def test_a_pledged_session_is_never_saved(autojump_clock: MockClock) -> None:
    peer = real()
    cache = MemoryCache()
    world = World(peer, settings=SETTINGS, cache=cache)

    async def scenario() -> None:
        world.slot.upcoming = lambda: request("b@example.com")
        await world.deliver(request())
        assert world.slot.holds_session
        await world.slot.release()

    await play(world, cache, scenario)
    assert cache.saves == 0


# --- a cache in trouble -------------------------------------------------------------------------


class Refusing(MemoryCache):
    """Takes nothing."""

    answer = Saving.REFUSED

    async def save_endpoint(self, *_: object) -> Saving:
        """See SessionCache."""
        await trio.lowlevel.checkpoint()
        return self.answer


class Silent(Refusing):
    """Takes what is passed and does not say so: somebody else may be using it by now."""

    answer = Saving.UNKNOWN


class Lying(MemoryCache):
    """Gives properties that nobody wrote."""

    async def find_destination(self, label: str) -> Found | None:
        """See SessionCache."""
        found = await super().find_destination(label)
        return found and replace(found, endpoint="tls_level=0\nreuse_count=1\n\n")


class Misplacing(MemoryCache):
    """The destination's property is of no use."""

    async def find_destination(self, label: str) -> Found | None:
        """See SessionCache."""
        found = await super().find_destination(label)
        return found and replace(found, destination=found.destination.replace("192.0.2.1", "x"))


@pytest.mark.parametrize("kind", [Refusing, Silent, Lying, Misplacing])
@trio_test
async def test_s147_a_cache_in_trouble_costs_connections_and_no_mail(
    autojump_clock: MockClock, kind: type[MemoryCache]
) -> None:
    peer = real()
    cache = kind()
    world = World(peer, settings=SETTINGS, cache=cache)

    async def scenario() -> None:
        await in_slots(world, request(), request())

    await play(world, cache, scenario)
    assert all_sent(world)
    assert len(peer.links) == 2
    if kind is Refusing:
        assert [link.verbs[-1] for link in peer.links] == ["QUIT", "QUIT"]
    if kind is Silent:
        assert "QUIT" not in peer.verbs


# --- cancelled ----------------------------------------------------------------------------------


def test_reuse_by_way_of_the_cache_may_be_cancelled_at_any_step() -> None:
    caches: list[MemoryCache] = []

    def make_world() -> World:
        caches.append(MemoryCache())
        return World(
            real({Phase.RCPT: ["250 ok", GREYLIST, "250 ok"]}),
            real(),
            settings=SETTINGS,
            cache=caches[-1],
        )

    async def scenario(world: World) -> None:
        async def play_it() -> None:
            for each in (request(), request("b@example.com"), request("c@example.com")):
                slot = DeliverySlot()
                try:
                    content = InlineContent(CONTENT)
                    world.results.append(await deliver(each, content, world.environment, slot))
                finally:
                    await slot.release()
                    assert not slot.holds_session

        try:
            await world.play(play_it)
        finally:
            caches[-1].close()

    steps = 0
    for run in cancel_everywhere(make_world, scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        for result in run.world.results:
            assert {o.action for o in result.outcomes} == {SENT}
    assert steps > 60
