"""Every phase of a session, and everything a server may do to us in it: the reason, the time, the
next endpoint.

Deterministic: servers are scripted (`peer.py`), names and connects are fakes, and time is virtual,
so a limit of ten minutes is asserted to the second and takes a millisecond.
"""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol import phrases
from protocol.outcome import Action, DeliveryResult, RecipientOutcome
from protocol.request import Protocol
from tests.worker.peer import EXTENSIONS, Answer, Fault, Late, Peer, Phase, Script
from tests.worker.world import RELAYS, World, actions, deliver_one, make_request
from worker.config.table import Table
from worker.config.tables import Maps
from worker.content import InlineContent
from worker.delivery.content_settings import ContentSettings
from worker.delivery.generic_maps import GenericMaps
from worker.delivery.settings import DeliverySettings, Limits
from worker.status.events import EndpointFailed, SessionOpened, Warned

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")

# A way to talk: the protocol, and what the server offers.
WAYS = {
    "smtp pipelined": (Protocol.SMTP, EXTENSIONS),
    "smtp in lock-step": (Protocol.SMTP, LOCK_STEP),
    "lmtp pipelined": (Protocol.LMTP, EXTENSIONS),
    "lmtp in lock-step": (Protocol.LMTP, LOCK_STEP),
}
WAY = pytest.mark.parametrize("way", WAYS)

# What we are doing in each phase, and for how long at most (S045 to S053).
INTRODUCTIONS = {
    Phase.GREETING: ("receiving the initial server greeting", 300.0),
    Phase.EHLO: ("performing the EHLO handshake", 300.0),
    Phase.LHLO: ("performing the LHLO handshake", 300.0),
}
TRANSACTION = {
    Phase.XFORWARD: ("sending XFORWARD command", 300.0),
    Phase.MAIL: ("sending MAIL FROM", 300.0),
    Phase.RCPT: ("sending RCPT TO", 300.0),
    Phase.DATA: ("sending DATA command", 120.0),
}
DOT = ("sending end of data -- message may be sent more than once", 600.0)
PHASES = {**INTRODUCTIONS, **TRANSACTION, Phase.DOT: DOT}
# EHLO is not said in LMTP, nor LHLO in SMTP.
ABSENT = {Protocol.SMTP: Phase.LHLO, Protocol.LMTP: Phase.EHLO}
ANY_PHASE = pytest.mark.parametrize(
    ("way", "phase"),
    [
        pytest.param(way, phase, id=f"{phase.value}, {way}")
        for phase in PHASES
        for way, (protocol, _) in WAYS.items()
        if phase is not ABSENT[protocol]
    ],
)
IN_REPLY_TO = {
    Phase.MAIL: "MAIL FROM command",
    Phase.RCPT: "RCPT TO command",
    Phase.DATA: "DATA command",
    Phase.DOT: "end of DATA command",
}
REFUSABLE = pytest.mark.parametrize("phase", IN_REPLY_TO, ids=lambda phase: phase.value)


def a_peer(way: str, script: dict[Phase, Script] | None = None, *, drip: float = 0.0) -> Peer:
    protocol, extensions = WAYS[way]
    offered = (*extensions, "XFORWARD NAME ADDR")
    return Peer(script, lmtp=protocol is Protocol.LMTP, extensions=offered, drip=drip)


def a_world(way: str, *peers: Peer, limits: Limits | None = None) -> World:
    settings = replace(SETTINGS, send_xforward=True, limits=limits or Limits())
    return World(*peers, settings=settings)


async def alone(way: str, phase: Phase, answer: Answer) -> tuple[World, RecipientOutcome]:
    """Deliver to one recipient at the only server, which misbehaves."""
    world = a_world(way, a_peer(way, {phase: answer}))
    result = await deliver_one(world, make_request(protocol=WAYS[way][0]))
    assert not world.open_streams
    assert len(result.outcomes) == 1
    return world, result.outcomes[0]


async def with_a_second_server(way: str, phase: Phase, answer: Answer) -> tuple[Peer, Peer, World]:
    """Deliver to one recipient at a server that misbehaves, and a friendly one behind it."""
    bad, good = a_peer(way, {phase: answer}), a_peer(way)
    world = a_world(way, bad, good)
    await deliver_one(world, make_request(protocol=WAYS[way][0]))
    assert not world.open_streams
    return bad, good, world


def site_failed(result: DeliveryResult) -> bool:
    return result.site_failure is not None


def mta(way: str) -> str:
    return RELAYS[WAYS[way][0]][0].rpartition(":")[0]


# --- silence, cuts, endless replies -------------------------------------------------------------


@ANY_PHASE
@trio_test
async def test_silence_ends_when_the_limit_of_the_phase_has_passed(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    doing, limit = PHASES[phase]
    world, outcome = await alone(way, phase, Fault.SILENCE)
    assert outcome.action is Action.DEFERRED
    assert outcome.dsn == "4.4.2"
    assert outcome.reason == f"conversation with {mta(way)} timed out while {doing}"
    assert world.took == [limit]
    assert outcome.in_doubt == (phase is Phase.DOT)
    assert site_failed(world.results[0])
    assert not world.results[0].session_kept


@ANY_PHASE
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET], ids=lambda fault: fault.value)
@trio_test
async def test_a_lost_connection_is_named_with_its_phase(
    autojump_clock: MockClock, way: str, phase: Phase, fault: Fault
) -> None:
    # A second later, or a reset would take the replies before it along.
    world, outcome = await alone(way, phase, Late(1.0, fault))
    assert outcome.action is Action.DEFERRED
    assert outcome.dsn == "4.4.2"
    assert outcome.reason == f"lost connection with {mta(way)} while {PHASES[phase][0]}"
    assert world.took == [1.0]
    assert outcome.in_doubt == (phase is Phase.DOT)
    assert site_failed(world.results[0])


@ANY_PHASE
@trio_test
async def test_a_reply_without_end_is_cut_off(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    _, outcome = await alone(way, phase, Fault.ENDLESS)
    assert outcome.action is Action.DEFERRED
    assert outcome.dsn == "4.5.0"
    assert outcome.reason == (
        f"protocol error from {mta(way)} while {PHASES[phase][0]}:"
        " reply is longer than 65536 octets"
    )
    assert outcome.in_doubt == (phase is Phase.DOT)


@ANY_PHASE
@pytest.mark.parametrize(
    "fault", [Fault.SILENCE, Fault.CUT, Fault.ENDLESS], ids=lambda fault: fault.value
)
@trio_test
async def test_a_broken_session_sends_the_recipient_on_unless_the_dot_was_sent(
    autojump_clock: MockClock, way: str, phase: Phase, fault: Fault
) -> None:
    bad, good, world = await with_a_second_server(way, phase, fault)
    assert bad.accepted == []
    if phase is Phase.DOT:
        assert good.links == []
        assert world.results[0].outcomes[0].in_doubt
        return
    assert good.served == ["a@example.com"]
    outcome = world.results[0].outcomes[0]
    assert (outcome.action, outcome.relay) == (Action.SENT, RELAYS[WAYS[way][0]][1])
    assert world.results[0].site_failure is None
    # The first server's failure is told, because it was not the end of it.
    assert [event for event in world.events if isinstance(event, EndpointFailed)]


# --- refusals -----------------------------------------------------------------------------------


@WAY
@REFUSABLE
@pytest.mark.parametrize("enhanced", ["4.7.1 ", ""])
@trio_test
async def test_a_soft_refusal_defers_and_the_site_is_not_to_blame(
    autojump_clock: MockClock, way: str, phase: Phase, enhanced: str
) -> None:
    said = f"451 {enhanced}later"
    world, outcome = await alone(way, phase, said)
    assert outcome.action is Action.DEFERRED
    assert outcome.dsn == (enhanced.strip() or "4.0.0")
    assert outcome.reason == f"host {mta(way)} said: {said} (in reply to {IN_REPLY_TO[phase]})"
    assert (outcome.reply, outcome.mta) == (said, mta(way))
    assert not site_failed(world.results[0])
    assert world.results[0].session_kept


@WAY
@REFUSABLE
@trio_test
async def test_a_soft_refusal_sends_the_recipient_on(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    bad, good, world = await with_a_second_server(way, phase, "451 4.7.1 later")
    assert (bad.accepted, good.served) == ([], ["a@example.com"])
    told = [event.reason for event in world.events if isinstance(event, EndpointFailed)]
    assert told == [f"host {mta(way)} said: 451 4.7.1 later (in reply to {IN_REPLY_TO[phase]})"]


@WAY
@REFUSABLE
@trio_test
async def test_a_hard_refusal_bounces_and_nobody_else_is_asked(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    _, good, world = await with_a_second_server(way, phase, "550 5.7.1 never")
    outcome = world.results[0].outcomes[0]
    assert (outcome.action, outcome.dsn) == (Action.BOUNCED, "5.7.1")
    assert outcome.reason == (
        f"host {mta(way)} said: 550 5.7.1 never (in reply to {IN_REPLY_TO[phase]})"
    )
    assert good.links == []
    assert world.results[0].session_kept


@WAY
@REFUSABLE
@trio_test
async def test_421_ends_the_session_softly(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    bad, good, world = await with_a_second_server(way, phase, ("421 4.3.2 bye", Fault.CUT))
    assert (bad.accepted, good.served) == ([], ["a@example.com"])
    assert bad.verbs.count("QUIT") == 0
    alone_world, outcome = await alone(way, phase, ("421 4.3.2 bye", Fault.CUT))
    assert (outcome.action, outcome.dsn) == (Action.DEFERRED, "4.3.2")
    assert outcome.reason.startswith(f"host {mta(way)} said: 421 4.3.2 bye (in reply to ")
    assert not outcome.in_doubt
    assert not alone_world.results[0].session_kept
    assert len(world.events) > 0


@WAY
@REFUSABLE
@pytest.mark.parametrize("code", ["200", "334", "999", "100"])
@trio_test
async def test_a_reply_code_out_of_place_never_sends_and_never_bounces(
    autojump_clock: MockClock, way: str, phase: Phase, code: str
) -> None:
    said = f"{code} hm" if code != "200" or phase is Phase.DATA else "399 hm"  # elsewhere a yes
    world, outcome = await alone(way, phase, said)
    assert (outcome.action, outcome.dsn) == (Action.DEFERRED, "4.5.0")
    assert not world.results[0].session_kept
    peer = world.dialer.sites["192.0.2.1"]
    assert isinstance(peer, Peer)
    assert peer.accepted == []


@WAY
@pytest.mark.parametrize(
    ("said", "dsn"),
    [
        ("450 4.3.0 busy", "4.3.0"),
        ("421 busy", "4.0.0"),
        ("554 5.7.1 unwilling", "4.7.1"),
        ("554 unwilling", "4.0.0"),
        ("354 hm", "4.5.0"),
    ],
)
@trio_test
async def test_s040_an_unwilling_greeting_is_soft_and_sends_on(
    autojump_clock: MockClock, way: str, said: str, dsn: str
) -> None:
    world, outcome = await alone(way, Phase.GREETING, said)
    assert (outcome.action, outcome.dsn) == (Action.DEFERRED, dsn)
    assert outcome.reason == f"host {mta(way)} refused to talk to me: {said}"
    assert site_failed(world.results[0])
    bad, good, _ = await with_a_second_server(way, Phase.GREETING, said)
    assert good.served == ["a@example.com"]
    assert bad.verbs == ["QUIT"]


@trio_test
async def test_s040_a_5xx_greeting_bounces_without_skip_5xx_greeting(
    autojump_clock: MockClock,
) -> None:
    bad, good = Peer({Phase.GREETING: "554 5.7.1 never"}), Peer()
    world = World(bad, good, settings=replace(SETTINGS, skip_5xx_greeting=False))
    result = await deliver_one(world)
    assert [(o.action, o.dsn) for o in result.outcomes] == [(Action.BOUNCED, "5.7.1")]
    assert good.links == []


# --- garbage ------------------------------------------------------------------------------------


@ANY_PHASE
@trio_test
async def test_s039_a_garbage_line_is_skipped_but_the_session_is_not_kept(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    yes = {Phase.GREETING: "220 mx ESMTP", Phase.DATA: "354 go"}.get(phase, "250 ok")
    world, outcome = await alone(way, phase, f"what is this?\n{yes}")
    assert outcome.action is Action.SENT
    assert not world.results[0].session_kept
    if phase in IN_REPLY_TO:
        warnings = [event.text for event in world.events if isinstance(event, Warned)]
        assert len(warnings) == 1
        assert warnings[0].startswith(f"malformed reply from {mta(way)}: ")
        others_due = "pipelined" in way and phase in (Phase.MAIL, Phase.RCPT)
        assert ("list pipelining" in warnings[0]) == others_due


@WAY
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT], ids=lambda phase: phase.value)
@trio_test
async def test_garbage_bounces_nobody_while_other_replies_are_due(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    _, outcome = await alone(way, phase, "250-what\n550 5.1.1 no")
    if "pipelined" in way:
        assert (outcome.action, outcome.dsn) == (Action.DEFERRED, "4.1.1")
    else:
        assert (outcome.action, outcome.dsn) == (Action.BOUNCED, "5.1.1")


@WAY
@trio_test
async def test_garbage_before_the_content_casts_no_doubt_on_the_final_reply(
    autojump_clock: MockClock, way: str
) -> None:
    world = a_world(way, a_peer(way, {Phase.MAIL: "what?\n250 ok", Phase.DOT: "550 5.7.1 no"}))
    result = await deliver_one(world, make_request(protocol=WAYS[way][0]))
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (Action.BOUNCED, "5.7.1")


@trio_test
async def test_garbage_among_final_replies_of_lmtp_puts_the_rest_in_doubt(
    autojump_clock: MockClock,
) -> None:
    names = [f"{name}@example.com" for name in "abcd"]
    peer = Peer({Phase.DOT: {names[1]: "250-b is\n550 not c"}}, lmtp=True)
    result = await deliver_one(World(peer), make_request(*names, protocol=Protocol.LMTP))
    sent, *rest = result.outcomes
    assert sent.action is Action.SENT
    assert [(o.action, o.in_doubt, o.dsn) for o in rest] == [(Action.DEFERRED, True, "4.5.0")] * 3


# --- slow servers -------------------------------------------------------------------------------


@WAY
@trio_test
async def test_replies_may_come_octet_by_octet(autojump_clock: MockClock, way: str) -> None:
    world = a_world(way, a_peer(way, drip=0.5))
    result = await deliver_one(world, make_request(protocol=WAYS[way][0]))
    assert [outcome.action for outcome in result.outcomes] == [Action.SENT]
    assert result.session_kept
    assert world.took[0] > 60.0


@ANY_PHASE
@trio_test
async def test_s045_a_dripping_reply_outlives_its_limit_only_without_the_request_deadline(
    autojump_clock: MockClock, way: str, phase: Phase
) -> None:
    limit = PHASES[phase][1]
    yes = {Phase.GREETING: "220 mx ESMTP", Phase.DATA: "354 go"}.get(phase, "250 ok")
    pause = limit - 1
    for whole in (False, True):
        peer = a_peer(way, {phase: yes})
        peer.drip, peer.drip_in = pause, phase
        world = a_world(way, peer, limits=Limits(whole_request=whole))
        result = await deliver_one(world, make_request(protocol=WAYS[way][0]))
        if whole:
            assert world.took == [limit]
            assert result.outcomes[0].dsn == "4.4.2"
            assert result.outcomes[0].in_doubt == (phase is Phase.DOT)
        else:
            octets = len(yes) + 2
            assert world.took == [pause * octets]
            assert result.outcomes[0].action is Action.SENT


@trio_test
async def test_s050_each_recipient_has_its_own_limit(autojump_clock: MockClock) -> None:
    names = [f"{name}@example.com" for name in "abc"]
    for whole in (False, True):
        peer = Peer({Phase.RCPT: Late(299.0, "250 ok")})
        settings = replace(SETTINGS, limits=Limits(whole_request=whole))
        world = World(peer, settings=settings)
        result = await deliver_one(world, make_request(*names))
        assert world.took == [897.0]
        assert set(actions(result).values()) == {Action.SENT}


@trio_test
async def test_s053_each_final_reply_of_lmtp_has_its_own_limit(autojump_clock: MockClock) -> None:
    names = [f"{name}@example.com" for name in "abc"]
    for whole in (False, True):
        peer = Peer({Phase.DOT: Late(599.0, "250 ok")}, lmtp=True)
        world = World(peer, settings=replace(SETTINGS, limits=Limits(whole_request=whole)))
        result = await deliver_one(world, make_request(*names, protocol=Protocol.LMTP))
        assert world.took == [1797.0]
        assert set(actions(result).values()) == {Action.SENT}


@trio_test
async def test_s050_a_recipient_without_reply_makes_the_one_before_soft_too(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: {"b@example.com": Fault.SILENCE}})
    world = World(peer)
    result = await deliver_one(world, make_request("a@example.com", "b@example.com"))
    assert [o.dsn for o in result.outcomes] == ["4.4.2", "4.4.2"]
    assert world.took == [300.0]
    assert peer.links[0].contents == []


# --- content ------------------------------------------------------------------------------------

LARGE = InlineContent(b"x" * 62 + b"\r\n" + b"y" * 62 + b"\r\n" * 400_000)


@WAY
@trio_test
async def test_s052_a_server_that_stops_reading_content_is_given_up(
    autojump_clock: MockClock, way: str
) -> None:
    peer = a_peer(way, {Phase.CONTENT: Fault.STOP_READING})
    peer.window = 4096
    world = a_world(way, peer, a_peer(way))
    result = await deliver_one(world, make_request(protocol=WAYS[way][0]), LARGE)
    assert world.took == [180.0]
    assert [o.action for o in result.outcomes] == [Action.SENT]
    told = [event.reason for event in world.events if isinstance(event, EndpointFailed)]
    assert told == [f"conversation with {mta(way)} timed out while sending message body"]
    assert peer.links[0].dots == 0


@WAY
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET], ids=lambda fault: fault.value)
@trio_test
async def test_s038_a_connection_lost_in_mid_content_is_soft_and_not_in_doubt(
    autojump_clock: MockClock, way: str, fault: Fault
) -> None:
    peer, good = a_peer(way, {Phase.CONTENT: fault}), a_peer(way)
    peer.window = 4096
    world = a_world(way, peer)
    result = await deliver_one(world, make_request(protocol=WAYS[way][0]), LARGE)
    assert result.outcomes[0].reason == f"lost connection with {mta(way)} while {phrases.CONTENT}"
    assert not result.outcomes[0].in_doubt
    again = a_world(way, a_peer(way, {Phase.CONTENT: fault}), good)
    await deliver_one(again, make_request(protocol=WAYS[way][0]), LARGE)
    assert good.served == ["a@example.com"]


@WAY
@pytest.mark.parametrize("ending", [Fault.CUT, Fault.STOP_READING], ids=lambda fault: fault.value)
@trio_test
async def test_s038_an_early_refusal_in_mid_content_decides(
    autojump_clock: MockClock, way: str, ending: Fault
) -> None:
    peer = a_peer(way, {Phase.CONTENT: ("552 5.3.4 too much", ending)})
    peer.window = 4096
    world = a_world(way, peer, a_peer(way))
    result = await deliver_one(world, make_request(protocol=WAYS[way][0]), LARGE)
    outcome = result.outcomes[0]
    if ending is Fault.CUT:
        assert (outcome.action, outcome.dsn) == (Action.BOUNCED, "5.3.4")
        assert outcome.reason == (
            f"host {mta(way)} said: 552 5.3.4 too much (in reply to end of DATA command)"
        )
        assert world.took == [0.0]
    else:
        assert outcome.action is Action.SENT  # elsewhere
        assert world.took == [180.0]


@trio_test
async def test_s052_the_limit_of_content_holds_for_what_makes_no_progress(
    autojump_clock: MockClock,
) -> None:
    # 100 octets a second: slow, but never stuck. With the request deadline it is too slow.
    for whole in (False, True):
        peer = Peer(window=4096)
        peer.reads_per_second = 100
        world = World(peer, settings=replace(SETTINGS, limits=Limits(whole_request=whole)))
        result = await deliver_one(world, None, InlineContent(b"z" * 62 + b"\r\n" * 20_000))
        if whole:
            assert result.outcomes[0].reason.endswith("timed out while sending message body")
            assert world.took[0] < 250.0
        else:
            assert result.outcomes[0].action is Action.SENT
            assert world.took[0] > 350.0


# --- QUIT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Fault.SILENCE, Fault.CUT, "500 what"], ids=str)
@trio_test
async def test_s042_quit_costs_no_time_unless_its_reply_is_awaited(
    autojump_clock: MockClock, answer: Answer
) -> None:
    for wait in (False, True):
        peer = Peer({Phase.QUIT: answer}, extensions=LOCK_STEP)
        world = World(peer, settings=replace(SETTINGS, skip_quit_response=not wait))

        async def scenario(world: World = world) -> None:
            await world.deliver(make_request(), kept=False)

        await world.play(scenario)
        assert world.results[0].outcomes[0].action is Action.SENT
        assert world.took == [300.0 if wait and answer is Fault.SILENCE else 0.0]
        assert peer.links[0].segments[-1] == b"QUIT\r\n"  # not behind the dot, in lock-step
        assert not world.open_streams


@trio_test
async def test_s042_quit_travels_behind_the_dot_when_nothing_else_is_to_come(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    world = World(peer)

    async def scenario() -> None:
        await world.deliver(make_request(), kept=False)

    await world.play(scenario)
    assert peer.links[0].segments[-1].endswith(b"\r\n.\r\nQUIT\r\n")
    assert world.results[0].outcomes[0].action is Action.SENT
    assert not world.results[0].session_kept
    assert [type(event) for event in world.events] == [SessionOpened]


# --- waiting for others ---------------------------------------------------------------------------


class SlowTable(Table):
    """Answers, after a while, that it has no such key."""

    async def lookup(self, key: str) -> str | None:
        """See Table.lookup."""
        await trio.sleep(1_000.0)
        return None


SLOW = Maps([SlowTable("slow:table")])
LINES = b"Subject: hello\r\n\r\n" + (b"x" * 900 + b"\r\n") * 30  # more than one piece


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, discard_maps=SLOW),
        replace(SETTINGS, pix=replace(SETTINGS.pix, maps=SLOW, workarounds=())),
        replace(SETTINGS, content=ContentSettings(body_checks=SLOW)),
        replace(SETTINGS, content=ContentSettings(generic=GenericMaps(maps=SLOW))),
    ],
    ids=["keywords", "workarounds", "content", "addresses"],
)
@trio_test
async def test_a_table_that_takes_its_time_is_no_failure_of_the_server(
    autojump_clock: MockClock, settings: DeliverySettings, *, whole: bool
) -> None:
    settings = replace(settings, limits=replace(settings.limits, whole_request=whole))
    peer = Peer({Phase.GREETING: "220 ****"})
    world = World(peer, settings=settings)

    async def scenario() -> None:
        await world.deliver(make_request(), InlineContent(LINES))

    await world.play(scenario)
    (result,) = world.results
    assert [outcome.action for outcome in result.outcomes] == [Action.SENT]
    assert world.took[0] >= 1_000.0


@trio_test
async def test_s052_after_a_slow_table_the_limit_of_the_content_holds_again(
    autojump_clock: MockClock,
) -> None:
    settings = replace(SETTINGS, content=ContentSettings(header_checks=SLOW))
    content = InlineContent(b"Subject: hello\r\n\r\n" + LARGE.data)
    peer = Peer({Phase.CONTENT: Fault.STOP_READING})
    peer.window = 4096
    world = World(peer, settings=settings)

    async def scenario() -> None:
        await world.deliver(make_request(), content)

    await world.play(scenario)
    assert world.took == [1_000.0 + 180.0]
    assert "timed out while sending message body" in world.results[0].outcomes[0].reason
