"""The session a slot keeps from one request to the next: when it serves again, and when never.

Deterministic: scripted servers and virtual time. Tests that are about octets waiting on an idle
connection use socket pairs (in memory nobody could look at them) and wait for nothing but each
other.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Protocol
from tests.worker.peer import EXTENSIONS, Answer, Fault, Late, Peer, Phase
from tests.worker.world import World, make_request
from worker.delivery.settings import DeliverySettings
from worker.status.events import EndpointFailed, SessionOpened, SessionReused

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
GREYLIST = "450 4.7.1 greylisted"
RELAY = "mx1.example.com[192.0.2.1]:25"
REQUEST = make_request()


async def twice(
    world: World,
    second: DeliveryRequest = REQUEST,
    *,
    pause: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Two requests through one slot, the second one `pause` seconds after the first."""

    async def scenario() -> None:
        await world.deliver(make_request(protocol=second.protocol))
        if pause:
            await trio.sleep(pause)
        between()
        await wait_all_tasks_blocked()
        await world.deliver(second)

    await world.play(scenario)
    assert not world.open_streams


# --- reuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_the_next_request_uses_the_session_again(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    peer = Peer(lmtp=protocol is Protocol.LMTP)
    world = World(peer)
    await twice(world, make_request("b@example.com", protocol=protocol))
    assert len(peer.links) == 1
    assert peer.verbs[1:] == ["MAIL", "RCPT", "DATA"] * 2 + ["QUIT"]
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 2]
    assert [result.session_kept for result in world.results] == [True, True]
    relay = world.results[0].outcomes[0].relay
    assert world.events == [SessionOpened(relay), SessionReused(relay, 2)]
    assert world.results[1].outcomes[0].delays.setup == 0.0


@trio_test
async def test_reuse_asks_no_name(autojump_clock: MockClock) -> None:
    world = World(Peer())
    await twice(world)
    assert world.resolver.questions.count(("MX", "example.com")) == 1


@trio_test
async def test_an_idle_session_is_probed_with_rset_in_the_same_flight(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    await twice(World(peer), pause=30.0)
    assert peer.links[0].segments[3].startswith(b"RSET\r\nMAIL FROM:<")
    assert len(peer.accepted) == 2


@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP], ids=["pipelined", "lock-step"])
@trio_test
async def test_s036_an_unfinished_transaction_is_reset_in_the_next_flight(
    autojump_clock: MockClock, extensions: tuple[str, ...]
) -> None:
    peer = Peer({Phase.RCPT: ["550 5.1.1 no", "250 ok"]}, extensions=extensions)
    world = World(peer)
    await twice(world)
    assert len(peer.links) == 1
    assert [verb for verb in peer.verbs if verb in ("RSET", "MAIL")] == ["MAIL", "RSET", "MAIL"]
    assert [result.outcomes[0].action for result in world.results] == [BOUNCED, SENT]
    if extensions is EXTENSIONS:
        assert peer.links[0].segments[2].startswith(b"RSET\r\nMAIL FROM:<")


@trio_test
async def test_a_refused_mail_needs_no_reset(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.MAIL: ["450 4.7.1 no", "250 ok"]})
    world = World(peer)
    await twice(world)
    assert "RSET" not in peer.verbs
    assert world.results[1].outcomes[0].conn_use == 2


# --- another key --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"transport": "relay"}, {"nexthop": "[mx1.example.com]"}],
    ids=lambda c: next(iter(c)),
)
@trio_test
async def test_a_request_with_another_key_ends_the_session_politely(
    autojump_clock: MockClock, change: dict[str, str]
) -> None:
    peer = Peer()
    world = World(peer)
    other = replace(
        REQUEST,
        transport=change.get("transport", REQUEST.transport),
        nexthop=change.get("nexthop", REQUEST.nexthop),
    )
    await twice(world, other)
    assert [link.verbs[-1] for link in peer.links] == ["QUIT", "QUIT"]
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 1]


@trio_test
async def test_a_session_of_other_settings_does_not_serve(autojump_clock: MockClock) -> None:
    peer = Peer()
    world = World(peer)

    def reload() -> None:
        settings = dict(world.environment.settings)
        settings[Protocol.SMTP] = replace(settings[Protocol.SMTP], helo_name="other.example")
        world.environment = replace(world.environment, settings=settings)

    await twice(world, between=reload)
    assert [link.commands[0] for link in peer.links] == ["EHLO helo.example", "EHLO other.example"]


@trio_test
async def test_a_session_of_equal_settings_serves_after_a_reload(autojump_clock: MockClock) -> None:
    peer = Peer()
    world = World(peer)

    def reload() -> None:
        settings = {protocol: replace(old) for protocol, old in world.environment.settings.items()}
        world.environment = replace(world.environment, settings=settings)

    await twice(world, between=reload)
    assert len(peer.links) == 1


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pause", "links"), [(299.0, 1), (300.0, 2)])
@trio_test
async def test_s146_a_session_serves_until_its_time_is_over(
    autojump_clock: MockClock, pause: float, links: int
) -> None:
    peer = Peer()
    await twice(World(peer), pause=pause)
    assert len(peer.links) == links
    assert peer.links[0].verbs[-1] == "QUIT"


@trio_test
async def test_s146_the_age_of_a_session_counts_from_its_connect(autojump_clock: MockClock) -> None:
    for pause, links in ((29.0, 1), (30.0, 2)):
        peer = Peer({Phase.GREETING: Late(250.0, "220 mx ESMTP")})
        world = World(peer)
        world.dialer.seconds = 20.0
        await twice(world, pause=pause)
        assert len(peer.links) == links


@pytest.mark.parametrize(
    ("limit", "uses"), [(0, [1, 2, 3, 4]), (1, [1, 2, 1, 2]), (2, [1, 2, 3, 1])]
)
@trio_test
async def test_s146_a_session_is_reused_as_often_as_the_limit_says(
    autojump_clock: MockClock, limit: int, uses: list[int]
) -> None:
    peer = Peer()
    world = World(peer, settings=replace(SETTINGS, reuse_count_limit=limit))

    async def scenario() -> None:
        for _ in uses:
            await world.deliver(REQUEST)

    await world.play(scenario)
    assert [result.outcomes[0].conn_use for result in world.results] == uses
    assert [link.verbs[-1] for link in peer.links] == ["QUIT"] * len(peer.links)


# --- stale sessions -----------------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP], ids=["pipelined", "lock-step"])
@pytest.mark.parametrize("pause", [0.0, 30.0])
@pytest.mark.parametrize(
    "answer", [Fault.CUT, ("421 4.3.2 bye", Fault.CUT), "421 4.3.2 bye", Fault.RESET], ids=str
)
@trio_test
async def test_a_session_that_dies_at_the_next_request_costs_a_connect_and_no_deferral(
    autojump_clock: MockClock, answer: Answer, pause: float, extensions: tuple[str, ...]
) -> None:
    script = {Phase.RSET: answer} if pause else {Phase.MAIL: ["250 ok", answer, "250 ok"]}
    peer = Peer(script, extensions=extensions)
    world = World(peer, session_limit=1)  # a dead session counts for nothing
    await twice(world, pause=pause)
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT]
    assert not [event for event in world.events if isinstance(event, EndpointFailed)]
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 1]
    assert len(peer.links) == 2
    assert len(peer.accepted) == 2
    assert world.results[1].site_failure is None


@trio_test
async def test_s054_a_session_that_hangs_costs_the_short_limit_of_rset(
    autojump_clock: MockClock,
) -> None:
    for answer, seconds in ((Fault.SILENCE, 20.0), ("502 what?", 0.0)):
        peer = Peer({Phase.RSET: answer})
        world = World(peer)
        await twice(world, pause=30.0)
        assert world.took[1] == seconds
        assert world.results[1].outcomes[0].action is SENT
        assert len(peer.links) == 2


@trio_test
async def test_a_session_that_breaks_after_it_had_answered_is_no_stale_one(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: ["250 ok", Fault.CUT, Fault.CUT]})
    world = World(peer)
    await twice(world)
    outcome = world.results[1].outcomes[0]
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.4.2")
    assert world.results[1].site_failure is not None
    told = [event.reason for event in world.events if isinstance(event, EndpointFailed)]
    assert told == ["lost connection with mx1.example.com[192.0.2.1] while sending RCPT TO"]


@trio_test
async def test_a_dead_session_is_noticed_at_xforward_too(autojump_clock: MockClock) -> None:
    peer = Peer(
        {Phase.XFORWARD: ["250 ok", Fault.CUT, "250 ok"]},
        extensions=("PIPELINING", "XFORWARD NAME"),
    )
    world = World(peer, settings=replace(SETTINGS, send_xforward=True))
    await twice(world)
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT]


@trio_test
async def test_a_lost_dot_on_a_reused_session_is_in_doubt_all_the_same(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.DOT: ["250 ok", Fault.CUT, "250 ok"]})
    world = World(peer)
    await twice(world)
    assert [o.in_doubt for o in world.results[1].outcomes] == [True]
    assert len(peer.links) == 1


# --- octets nobody asked for (real sockets) -----------------------------------------------------


@trio_test
async def test_a_session_that_was_closed_while_idle_is_not_used() -> None:
    peer = Peer(real_sockets=True)
    world = World(peer)
    await twice(world, between=peer.hang_up)
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 1]


@trio_test
async def test_a_session_that_spoke_while_idle_is_not_used() -> None:
    peer = Peer(real_sockets=True)
    world = World(peer)
    await twice(world, between=peer.speak_up)
    assert [link.verbs.count("MAIL") for link in peer.links] == [1, 1]
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT]


@trio_test
async def test_a_yes_said_to_an_idle_session_never_answers_the_next_message() -> None:
    peer = Peer({Phase.RCPT: ["250 ok", "550 5.1.1 who?"]}, real_sockets=True)
    world = World(peer)
    await twice(world, between=peer.chatter)
    assert [link.verbs.count("MAIL") for link in peer.links] == [1, 1]
    assert peer.links[0].verbs[-1] == "QUIT"
    assert [result.outcomes[0].action for result in world.results] == [SENT, BOUNCED]


@pytest.mark.parametrize("real_sockets", [False, True])
@trio_test
async def test_octets_behind_the_last_reply_bar_reuse(real_sockets: bool) -> None:
    peer = Peer({Phase.DOT: "250 queued\n250 and more"}, real_sockets=real_sockets)
    world = World(peer)
    await twice(world)
    assert len(peer.links) == 2
    assert [result.session_kept for result in world.results] == [False, False]


# --- sessions that must not be kept -------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "answer"),
    [
        (Phase.EHLO, "what?\n250 ok"),
        (Phase.MAIL, "what?\n250 ok"),
        (Phase.RCPT, "501 5.5.4 what?"),
        (Phase.MAIL, "503 5.5.1 what?"),
        (Phase.DATA, "502 5.5.1 what?"),
        (Phase.DOT, "what?\n250 ok"),
        (Phase.DOT, "500 5.5.1 what?"),
        (Phase.DOT, "421 4.3.2 bye"),
        (Phase.DOT, "250-ok\n550 no"),
    ],
)
@trio_test
async def test_s136_a_confused_or_leaving_server_gets_a_quit_instead_of_another_message(
    autojump_clock: MockClock, phase: Phase, answer: str
) -> None:
    peer = Peer({phase: answer})
    world = World(peer)
    await twice(world)
    assert len(peer.links) == 2
    assert [result.session_kept for result in world.results] == [False, False]
    assert [link.verbs[-1] for link in peer.links] == ["QUIT", "QUIT"]


@trio_test
async def test_a_cancelled_delivery_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.RCPT: Late(10.0, "250 ok")})
    world = World(peer)

    async def scenario() -> None:
        with trio.move_on_after(5.0):
            await world.deliver(REQUEST)
        assert not world.slot.holds_session
        assert not world.open_streams
        await world.deliver(REQUEST)

    await world.play(scenario)
    assert len(peer.links) == 2
    assert len(peer.accepted) == 1


# --- soft refusals and the session that is kept -------------------------------------------------


@trio_test
async def test_a_server_asked_on_a_kept_session_is_not_asked_again(
    autojump_clock: MockClock,
) -> None:
    first, second = Peer({Phase.RCPT: ["250 ok", GREYLIST]}), Peer()
    world = World(first, second)
    await twice(world)
    assert len(first.links) == 1
    assert second.served == ["a@example.com"]
    assert world.results[1].outcomes[0].action is SENT


@trio_test
async def test_a_kept_session_counts_against_the_session_limit(autojump_clock: MockClock) -> None:
    peers = [Peer({Phase.RCPT: ["250 ok", GREYLIST]}), Peer({Phase.RCPT: GREYLIST}), Peer()]
    world = World(*peers, session_limit=2)
    await twice(world)
    assert peers[2].links == []
    assert world.results[1].outcomes[0].relay == "mx2.example.com[192.0.2.2]:25"


@trio_test
async def test_only_one_session_is_kept_of_several(autojump_clock: MockClock) -> None:
    first, second = Peer({Phase.RCPT: GREYLIST}), Peer()
    world = World(first, second)

    async def scenario() -> None:
        await world.deliver(REQUEST)
        assert len(world.open_streams) == 1
        await world.deliver(REQUEST)

    await world.play(scenario)
    assert first.verbs[-1] == "QUIT"
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 2]
    assert len(second.links) == 1
