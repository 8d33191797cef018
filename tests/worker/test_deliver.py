"""One delivery over several endpoints: who is tried, who is offered to whom, what is reported.

Deterministic: scripted servers in memory, a scripted resolver, virtual time.
"""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, SiteFailure
from protocol.request import DeliveryRequest, Protocol
from tests.worker.fake_dns import NULL_MX, servfail
from tests.worker.peer import Fault, Late, Peer, Phase
from tests.worker.world import REFUSED, World, actions, deliver_one, make_request
from worker.config.table_memory import Fail, Inline
from worker.config.tables import Maps
from worker.delivery.settings import DeliverySettings
from worker.status.events import (
    ConnectFailed,
    EhloKeywordsDiscarded,
    EndpointFailed,
    Event,
    SessionOpened,
    UnexpectedError,
)

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
ABC = [f"{name}@example.com" for name in "abc"]
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
GREYLIST = "450 4.7.1 greylisted"


# --- the order of endpoints ---------------------------------------------------------------------


@trio_test
async def test_the_best_exchanger_serves_and_no_other_is_dialled(
    autojump_clock: MockClock,
) -> None:
    first, second = Peer(), Peer()
    world = World(first, second)
    result = await deliver_one(world)
    assert world.dialer.dialled == [(0.0, "192.0.2.1")]
    assert result.outcomes[0].relay == "mx1.example.com[192.0.2.1]:25"
    assert world.events == [SessionOpened("mx1.example.com[192.0.2.1]:25")]


@trio_test
async def test_s044_endpoints_that_cannot_be_reached_are_passed_over_in_order(
    autojump_clock: MockClock,
) -> None:
    world = World(REFUSED, None, Peer())
    result = await deliver_one(world)
    assert [address for _, address in world.dialer.dialled] == [f"192.0.2.{n}" for n in (1, 2, 3)]
    assert world.took == [30.0]  # smtp_connect_timeout for the one that does not answer
    assert world.events == [
        ConnectFailed("mx1.example.com", "192.0.2.1", 25, "Connection refused"),
        ConnectFailed("mx2.example.com", "192.0.2.2", 25, "Connection timed out"),
        SessionOpened("mx3.example.com[192.0.2.3]:25"),
    ]
    assert result.outcomes[0].action is SENT
    assert result.outcomes[0].delays.setup == 30.0
    assert result.site_failure is None


@pytest.mark.parametrize(
    ("arrival", "active", "waited"),
    [
        (990.0, 990.25, (0.25, 9.75)),
        (990.0, 989.0, (0.0, 11.0)),  # the clock was set back in between
        (1001.0, 1002.0, (1.0, 0.0)),
    ],
)
@trio_test
async def test_s151_the_wait_before_a_delivery_is_that_of_its_request(
    autojump_clock: MockClock, arrival: float, active: float, waited: tuple[float, float]
) -> None:
    request = replace(make_request(), arrival=arrival, active=active)
    delays = (await deliver_one(World(Peer()), request)).outcomes[0].delays
    assert (delays.before_active, delays.active) == waited


@trio_test
async def test_what_is_said_of_a_passed_over_endpoint_names_its_protocol(
    autojump_clock: MockClock,
) -> None:
    world = World(REFUSED, Peer({Phase.RCPT: GREYLIST}, lmtp=True), Peer(lmtp=True))
    await deliver_one(world, make_request(protocol=Protocol.LMTP))
    told = [e for e in world.events if isinstance(e, ConnectFailed | EndpointFailed)]
    assert {(type(event), event.protocol) for event in told} == {
        (ConnectFailed, "lmtp"),
        (EndpointFailed, "lmtp"),
    }


@trio_test
async def test_nobody_reachable_defers_and_the_site_failed(autojump_clock: MockClock) -> None:
    world = World(REFUSED, REFUSED)
    result = await deliver_one(world, make_request(*ABC))
    reason = "connect to mx2.example.com[192.0.2.2]:25: Connection refused"
    assert [(o.action, o.dsn, o.reason) for o in result.outcomes] == [
        (DEFERRED, "4.4.1", reason)
    ] * 3
    assert result.outcomes[0].relay == ""
    assert result.site_failure == SiteFailure(dsn="4.4.1", reason=reason)


@trio_test
async def test_s025_connect_failures_count_against_no_session_limit(
    autojump_clock: MockClock,
) -> None:
    world = World(REFUSED, REFUSED, Peer(), session_limit=1)
    assert (await deliver_one(world)).outcomes[0].action is SENT


@pytest.mark.parametrize(("limit", "asked"), [(1, 1), (2, 2), (0, 3)])
@trio_test
async def test_s025_the_session_limit_bounds_how_many_servers_may_refuse(
    autojump_clock: MockClock, limit: int, asked: int
) -> None:
    peers = [Peer({Phase.RCPT: GREYLIST}) for _ in range(3)]
    world = World(*peers, session_limit=limit)
    result = await deliver_one(world)
    assert [bool(peer.offered) for peer in peers] == [number < asked for number in range(3)]
    assert result.outcomes[0].relay == f"mx{asked}.example.com[192.0.2.{asked}]:25"
    assert result.outcomes[0].dsn == "4.7.1"
    assert result.site_failure is None  # the site works: it only wants us to come again
    told = [event.reason for event in world.events if isinstance(event, EndpointFailed)]
    assert len(told) == asked - 1


@trio_test
async def test_s025_failed_handshakes_count_against_no_session_limit(
    autojump_clock: MockClock,
) -> None:
    unwilling = [Peer({Phase.GREETING: "450 busy"}), Peer({Phase.EHLO: "421 busy"})]
    world = World(*unwilling, Peer(), session_limit=1)
    assert (await deliver_one(world)).outcomes[0].action is SENT


@trio_test
async def test_equals_are_raced_when_a_stagger_is_configured(autojump_clock: MockClock) -> None:
    peer = Peer()
    world = World(None, peer, stagger=2.0)
    world.resolver.exchangers["example.com"] = [(10, "mx1.example.com"), (10, "mx2.example.com")]
    result = await deliver_one(world)
    assert world.took == [2.0]
    assert result.outcomes[0].relay == "mx2.example.com[192.0.2.2]:25"


# --- who is offered to whom ---------------------------------------------------------------------


@trio_test
async def test_s018_only_the_undecided_go_on_to_the_next_server(autojump_clock: MockClock) -> None:
    first = Peer({Phase.RCPT: {ABC[0]: "550 5.1.1 who?", ABC[1]: GREYLIST}})
    second = Peer()
    result = await deliver_one(World(first, second), make_request(*ABC))
    assert (first.served, second.offered, second.served) == ([ABC[2]], [ABC[1]], [ABC[1]])
    assert [(o.recipient.address, o.action, o.relay[:3]) for o in result.outcomes] == [
        (ABC[0], BOUNCED, "mx1"),
        (ABC[1], SENT, "mx2"),
        (ABC[2], SENT, "mx1"),
    ]


@trio_test
async def test_a_refused_message_goes_on_with_those_that_were_accepted(
    autojump_clock: MockClock,
) -> None:
    first = Peer({Phase.RCPT: {ABC[0]: "550 5.1.1 who?"}, Phase.DOT: "451 4.3.0 trouble"})
    second = Peer()
    await deliver_one(World(first, second), make_request(*ABC))
    assert (first.served, second.offered) == ([], ABC[1:])


@trio_test
async def test_a_site_whose_one_server_works_has_not_failed(autojump_clock: MockClock) -> None:
    world = World(Peer({Phase.RCPT: Fault.CUT}), Peer({Phase.RCPT: GREYLIST}))
    result = await deliver_one(world)
    assert result.outcomes[0].dsn == "4.7.1"
    assert result.site_failure is None


@trio_test
async def test_recipients_of_a_lost_dot_are_offered_to_nobody_else(
    autojump_clock: MockClock,
) -> None:
    for fault, seconds in ((Fault.CUT, 0.0), (Fault.SILENCE, 600.0)):
        first = Peer({Phase.RCPT: {ABC[0]: GREYLIST}, Phase.DOT: fault})
        second = Peer()
        world = World(first, second)
        result = await deliver_one(world, make_request(*ABC))
        assert [(o.action, o.in_doubt) for o in result.outcomes] == [
            (SENT, False),
            (DEFERRED, True),
            (DEFERRED, True),
        ]
        assert second.offered == [ABC[0]]
        assert world.took == [seconds]


@trio_test
async def test_an_answer_that_comes_too_late_stays_in_doubt(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.DOT: Late(601.0, "250 2.0.0 queued")})
    result = await deliver_one(World(peer))
    assert (result.outcomes[0].action, result.outcomes[0].in_doubt) == (DEFERRED, True)
    assert len(peer.links[0].contents) == 1


@trio_test
async def test_one_request_may_name_a_recipient_twice(autojump_clock: MockClock) -> None:
    request = make_request(ABC[0], ABC[0])
    peer = Peer()
    result = await deliver_one(World(peer), request)
    assert [outcome.recipient for outcome in result.outcomes] == list(request.recipients)
    assert peer.served == [ABC[0], ABC[0]]


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mx", "action", "dsn"),
    [
        (NULL_MX, BOUNCED, "5.1.0"),
        (servfail("example.com"), DEFERRED, "4.4.3"),
        ([(10, "nowhere.example.com")], BOUNCED, "5.4.4"),
    ],
    ids=["null MX", "servfail", "MX without address"],
)
@trio_test
async def test_a_name_that_leads_nowhere_settles_everybody(
    autojump_clock: MockClock, mx: list[tuple[int, str]], action: Action, dsn: str
) -> None:
    world = World(Peer())
    world.resolver.exchangers["example.com"] = mx
    result = await deliver_one(world, make_request(*ABC))
    assert [(o.action, o.dsn) for o in result.outcomes] == [(action, dsn)] * 3
    assert world.dialer.dialled == []
    assert (result.site_failure is None) == (action is BOUNCED)


# --- keywords -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("silent", [False, True])
@trio_test
async def test_s061_discarded_keywords_are_as_if_not_announced(
    autojump_clock: MockClock, protocol: Protocol, silent: bool
) -> None:
    peer = Peer(lmtp=protocol is Protocol.LMTP)
    words = ("pipelining", "dsn", *(["silent-discard"] if silent else []))
    world = World(peer, settings=replace(SETTINGS, discard_keywords=words))
    await deliver_one(world, make_request(protocol=protocol))
    assert peer.links[0].segments[1] == b"MAIL FROM:<sender@client.example> SIZE=25\r\n"
    assert peer.commands[2] == "RCPT TO:<a@example.com>"
    told = [event for event in world.events if isinstance(event, EhloKeywordsDiscarded)]
    event = EhloKeywordsDiscarded("Q1", ("PIPELINING", "DSN"), protocol.value)
    assert told == ([] if silent else [event])


@trio_test
async def test_s062_keywords_may_be_discarded_by_server_address(autojump_clock: MockClock) -> None:
    table = Inline("inline:{}", "{ {192.0.2.1 = size, pipelining} }")
    settings = replace(SETTINGS, discard_keywords=("dsn",), discard_maps=Maps([table]))
    first, second = Peer({Phase.RCPT: GREYLIST}), Peer()
    await deliver_one(World(first, second, settings=settings))
    assert first.commands[1:3] == [
        "MAIL FROM:<sender@client.example>",
        "RCPT TO:<a@example.com> ORCPT=rfc822;a@example.com",  # the list by address replaces
    ]
    assert second.commands[2] == "RCPT TO:<a@example.com>"


@trio_test
async def test_s062_a_keyword_table_in_trouble_defers(autojump_clock: MockClock) -> None:
    settings = replace(SETTINGS, discard_maps=Maps([Fail("fail:x")]))
    peer = Peer()
    result = await deliver_one(World(peer, settings=settings))
    assert [(o.action, o.dsn) for o in result.outcomes] == [(DEFERRED, "4.3.0")]
    assert peer.verbs == ["QUIT"]


# --- stopping -----------------------------------------------------------------------------------


async def stopped_at(peer: Peer, seconds: float, request: DeliveryRequest) -> World:
    world = World(peer, Peer())

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, request)
            await trio.sleep(seconds)
            world.slot.stop()

    await world.play(scenario)
    assert not world.open_streams
    return world


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.EHLO, Phase.MAIL, Phase.RCPT, Phase.DATA])
@trio_test
async def test_stopping_before_the_content_ends_the_delivery_now(
    autojump_clock: MockClock, phase: Phase
) -> None:
    peer = Peer({phase: Late(50.0, "250 ok")})
    world = await stopped_at(peer, 10.0, make_request(*ABC))
    result = world.results[0]
    assert world.took == [10.0]
    assert result.stopped
    assert {(o.action, o.dsn, o.in_doubt) for o in result.outcomes} == {(DEFERRED, "4.3.2", False)}
    assert result.site_failure is None
    assert not result.session_kept
    assert all(link.dots == 0 for link in peer.links)


@trio_test
async def test_stopping_during_the_content_lets_it_finish(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.DOT: Late(50.0, "250 2.0.0 queued")})
    world = await stopped_at(peer, 10.0, make_request(*ABC))
    assert world.took == [50.0]
    assert actions(world.results[0]) == dict.fromkeys(ABC, SENT)
    assert not world.results[0].stopped


@trio_test
async def test_stopping_during_the_content_ends_the_rest_after_it(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: {ABC[1]: GREYLIST}, Phase.DOT: Late(50.0, "250 2.0.0 queued")})
    world = await stopped_at(peer, 10.0, make_request(*ABC))
    result = world.results[0]
    assert [(o.action, o.dsn) for o in result.outcomes] == [
        (SENT, "2.0.0"),
        (DEFERRED, "4.3.2"),
        (SENT, "2.0.0"),
    ]
    assert result.stopped
    assert [address for _, address in world.dialer.dialled] == ["192.0.2.1"]


@trio_test
async def test_a_lost_dot_while_stopping_is_in_doubt_and_the_rest_ends(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: {ABC[1]: GREYLIST}, Phase.DOT: Late(50.0, Fault.CUT)})
    world = await stopped_at(peer, 10.0, make_request(*ABC))
    result = world.results[0]
    assert [(o.dsn, o.in_doubt) for o in result.outcomes] == [
        ("4.4.2", True),
        ("4.3.2", False),
        ("4.4.2", True),
    ]
    assert result.stopped


@trio_test
async def test_stopping_blames_no_site_that_was_not_tried_to_the_end(
    autojump_clock: MockClock,
) -> None:
    world = World(REFUSED, Peer({Phase.GREETING: Fault.SILENCE}))

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, make_request())
            await trio.sleep(10.0)
            world.slot.stop()

    await world.play(scenario)
    assert world.results[0].stopped
    assert world.results[0].site_failure is None


@trio_test
async def test_a_stopped_slot_begins_nothing(autojump_clock: MockClock) -> None:
    world = World(Peer())

    async def scenario() -> None:
        world.slot.stop()
        await world.deliver(make_request(*ABC))

    await world.play(scenario)
    assert world.results[0].stopped
    assert world.dialer.dialled == []


# --- bugs ---------------------------------------------------------------------------------------


@trio_test
async def test_a_bug_defers_who_is_undecided_and_is_told_with_its_traceback(
    autojump_clock: MockClock,
) -> None:
    first = Peer({Phase.RCPT: {ABC[0]: "550 5.1.1 who?", ABC[1]: GREYLIST}})
    world = World(first, RuntimeError("a bug in the dialer"))
    result = await deliver_one(world, make_request(*ABC))
    assert [(o.action, o.dsn) for o in result.outcomes] == [
        (BOUNCED, "5.1.1"),
        (DEFERRED, "4.3.0"),
        (SENT, "2.0.0"),
    ]
    assert result.outcomes[1].reason == "internal error: ExceptionGroup"
    bugs = [event for event in world.events if isinstance(event, UnexpectedError)]
    assert len(bugs) == 1
    assert "RuntimeError: a bug in the dialer" in bugs[0].traceback
    assert bugs[0].queue_id == "Q1"
    assert not world.open_streams


@trio_test
async def test_a_bug_with_a_session_at_hand_closes_it(autojump_clock: MockClock) -> None:
    world = World(Peer())
    events = world.events

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, SessionOpened):
            raise RuntimeError("a bug in a subscriber")  # noqa: TRY004 - it checks no type

    world.environment = replace(world.environment, emit=emit)
    result = await deliver_one(world, make_request(*ABC))
    assert {(o.action, o.dsn) for o in result.outcomes} == {(DEFERRED, "4.3.0")}
    assert result.outcomes[0].reason == "internal error: RuntimeError"
    assert not world.open_streams
