"""Servers behind a firewall that masks their greeting (smtp_pix_workarounds, S066 to S069).

Deterministic: scripted servers in memory, virtual time.
"""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, DeliveryResult
from protocol.request import DeliveryRequest, Protocol, RequestFlags
from tests.cancel_everywhere import cancel_everywhere
from tests.worker.memory_cache import MemoryCache
from tests.worker.peer import EXTENSIONS, Fault, Peer, Phase, Script
from tests.worker.world import World, deliver_one, make_request
from worker.config.config import Config
from worker.config.table_memory import Fail, Inline
from worker.config.tables import Maps
from worker.content import InlineContent
from worker.delivery.pix import DELAY_DOTCRLF, DISABLE_ESMTP, PixSettings
from worker.delivery.settings import DeliverySettings
from worker.status.events import PixWorkaroundsEnabled, UnexpectedError, Warned
from worker.status.log import render

SENT, DEFERRED = Action.SENT, Action.DEFERRED
MASKED = "220 " + "*" * 30 + "2**0" + "*" * 30
RELAY = "mx1.example.com[192.0.2.1]:25"
BOTH = (DISABLE_ESMTP, DELAY_DOTCRLF)


def aged(seconds: float, protocol: Protocol = Protocol.SMTP, *names: str) -> DeliveryRequest:
    """A request whose message has been queued for so long."""
    return replace(make_request(*names, protocol=protocol), arrival=999.0 - seconds, active=999.0)


def a_world(peer: Peer, pix: PixSettings, cache: MemoryCache | None = None) -> World:
    settings = DeliverySettings(hostname="client.example", helo_name="helo.example", pix=pix)
    return World(peer, settings=settings, cache=cache)


def masked(script: dict[Phase, Script] | None = None, *, lmtp: bool = False) -> Peer:
    return Peer({Phase.GREETING: MASKED, **(script or {})}, lmtp=lmtp)


def enabled(world: World) -> list[tuple[str, ...]]:
    return [e.workarounds for e in world.events if isinstance(e, PixWorkaroundsEnabled)]


@pytest.mark.parametrize(
    "greeting", [MASKED, "220-*****\n220 ******", "220", "220 2 0 * 02", "250 ***", "220 * ESMTP *"]
)
@trio_test
async def test_s066_a_masked_greeting_is_answered_with_helo_and_a_dot_that_comes_alone(
    autojump_clock: MockClock, greeting: str
) -> None:
    hit = greeting not in {"250 ***", "220 * ESMTP *"}
    peer = Peer({Phase.GREETING: greeting})
    world = a_world(peer, PixSettings())
    result = await deliver_one(world, aged(501))
    assert result.outcomes[0].action is SENT
    assert peer.verbs[0] == ("HELO" if hit else "EHLO")
    assert (b".\r\n" in peer.links[0].segments) == hit
    assert world.took == [10.0 if hit else 0.0]
    assert enabled(world) == ([BOTH] if hit else [])


@trio_test
async def test_s066_what_is_enabled_is_logged_as_postfix_does(autojump_clock: MockClock) -> None:
    world = a_world(masked(), PixSettings())
    await deliver_one(world, aged(501))
    lines = [line for event in world.events for line in render(event)]
    assert [(line.program, line.text) for line in lines] == [
        ("smtp", f"Q1: enabling PIX workarounds: disable_esmtp delay_dotcrlf for {RELAY}")
    ]


@pytest.mark.parametrize(("text", "chosen"), [("", ()), ("Delay_DotCRLF", (DELAY_DOTCRLF,))])
@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s066_each_workaround_can_be_had_alone(
    autojump_clock: MockClock, text: str, chosen: tuple[str, ...], protocol: Protocol
) -> None:
    name = f"{protocol.value}_pix_workarounds"
    peer = masked(lmtp=protocol is Protocol.LMTP)
    pix = PixSettings.from_config(Config.from_mapping({name: text}), protocol)
    world = a_world(peer, pix)
    result = await deliver_one(world, aged(501, protocol))
    assert result.outcomes[0].action is SENT
    assert peer.verbs[0] == ("LHLO" if protocol is Protocol.LMTP else "EHLO")
    assert (b".\r\n" in peer.links[0].segments) == bool(chosen)
    assert enabled(world) == ([chosen] if chosen else [])


@trio_test
async def test_s066_the_dot_is_alone_though_the_server_offers_pipelining(
    autojump_clock: MockClock,
) -> None:
    assert "PIPELINING" in EXTENSIONS
    peer = masked()
    world = a_world(peer, PixSettings(workarounds=(DELAY_DOTCRLF,)))

    async def scenario() -> None:
        await world.deliver_in_a_row([aged(501), aged(501)])

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT]
    assert peer.links[0].segments.count(b".\r\n") == 2
    assert world.took == [10.0, 10.0]
    assert len(peer.links) == 1


@pytest.mark.parametrize(
    ("age", "threshold", "waits"),
    [(499, 500.0, False), (500, 500.0, True), (501, 500.0, True), (0, 0.0, True)],
)
@trio_test
async def test_s067_only_a_message_that_waited_long_waits_for_its_dot(
    autojump_clock: MockClock, age: float, threshold: float, *, waits: bool
) -> None:
    peer = masked()
    world = a_world(peer, PixSettings(threshold=threshold))
    await deliver_one(world, aged(age))
    assert world.took == [10.0 if waits else 0.0]
    assert peer.verbs[0] == "HELO"  # that is done for every message
    assert enabled(world) == [BOTH if waits else (DISABLE_ESMTP,)]


@trio_test
async def test_s067_each_message_of_a_session_is_judged_by_its_own_age(
    autojump_clock: MockClock,
) -> None:
    peer = masked()
    world = a_world(peer, PixSettings())

    async def scenario() -> None:
        for age in (1, 501, 1):
            await world.deliver(aged(age))

    await world.play(scenario)
    assert world.took == [0.0, 10.0, 0.0]
    assert len(peer.links) == 1


@pytest.mark.parametrize("pause", [1.0, 25.0, 400.0])
@trio_test
async def test_s068_the_pause_lies_between_the_content_and_its_dot(
    autojump_clock: MockClock, pause: float
) -> None:
    peer = masked()
    body = b".a line that begins with a dot\r\n" * 2000 + b"and no line end"
    content = InlineContent(b"Subject: dots\r\n\r\n" + body)
    world = a_world(peer, PixSettings(pause=pause))  # 400: longer than smtp_data_xfer_timeout

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, aged(501), content)
            await peer.until(lambda: "DATA" in peer.verbs)
            await trio.sleep(pause - 0.5)
            link = peer.links[0]
            assert link.dots == 0
            assert link.segments[-1].endswith(b"no line end\r\n")
            await trio.sleep(1.0)
            assert link.dots == 1

    await world.play(scenario)
    assert peer.links[0].contents == [content.data + b"\r\n"]
    assert world.took == [pause]
    assert world.results[0].outcomes[0].action is SENT


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ("", ()),
        (",", ()),
        ("delay_dotcrlf", (DELAY_DOTCRLF,)),
        ("DISABLE_ESMTP, delay_dotcrlf", BOTH),
        ("disable_esmtp nonsense", (DISABLE_ESMTP,)),
    ],
)
@trio_test
async def test_s069_a_table_decides_by_server_address(
    autojump_clock: MockClock, listed: str, chosen: tuple[str, ...]
) -> None:
    table = Inline("test", f"{{ {{192.0.2.1 = {listed}}} }}")
    peer = masked()
    world = a_world(peer, PixSettings(workarounds=BOTH, maps=Maps([table])))
    result = await deliver_one(world, aged(501))
    assert result.outcomes[0].action is SENT
    assert peer.verbs[0] == ("HELO" if DISABLE_ESMTP in chosen else "EHLO")
    assert world.took == [10.0 if DELAY_DOTCRLF in chosen else 0.0]
    warnings = [event.text for event in world.events if isinstance(event, Warned)]
    assert warnings == (
        [
            "PIX workarounds for 192.0.2.1: ignoring nonsense"
            " (known are disable_esmtp, delay_dotcrlf)"
        ]
        if "nonsense" in listed
        else []
    )


@trio_test
async def test_s069_other_addresses_have_the_list_of_all(autojump_clock: MockClock) -> None:
    table = Inline("test", "{ {192.0.2.9 = delay_dotcrlf} {mx1.example.com = delay_dotcrlf} }")
    peer = masked()
    pix = PixSettings(workarounds=(DISABLE_ESMTP,), maps=Maps([table]))
    await deliver_one(a_world(peer, pix), aged(501))
    assert peer.verbs[0] == "HELO"


@trio_test
async def test_s069_a_table_in_trouble_defers(autojump_clock: MockClock) -> None:
    peer = masked()
    result = await deliver_one(a_world(peer, PixSettings(maps=Maps([Fail("fail:no")]))), aged(501))
    assert result.outcomes[0].action is DEFERRED
    assert result.outcomes[0].dsn == "4.3.0"
    assert "local data error while talking to mx1.example.com[192.0.2.1]" in (
        result.outcomes[0].reason
    )
    assert not peer.accepted


@pytest.mark.parametrize("ending", ["421 4.3.2 no patience\n", Fault.CUT, Fault.RESET])
@trio_test
async def test_s066_a_server_that_leaves_in_the_pause_leaves_no_doubt(
    autojump_clock: MockClock, ending: str | Fault
) -> None:
    peer = masked({Phase.CONTENT: ending})
    result = await deliver_one(a_world(peer, PixSettings()), aged(501))
    (outcome,) = result.outcomes
    assert outcome.action is DEFERRED
    assert not outcome.in_doubt
    assert peer.links[0].dots == 0


@pytest.mark.parametrize(
    ("workarounds", "saves"), [((DISABLE_ESMTP,), 1), ((DELAY_DOTCRLF,), 0), (BOTH, 0)]
)
@trio_test
async def test_s066_a_session_whose_dots_are_delayed_does_not_go_to_other_processes(
    autojump_clock: MockClock, workarounds: tuple[str, ...], saves: int
) -> None:
    cache, peer = MemoryCache(), masked()
    peer.real_sockets = True
    world = a_world(peer, PixSettings(workarounds=workarounds), cache)
    try:
        await deliver_one(world, replace(aged(1), flags=RequestFlags.CACHE_SAVE))
    finally:
        cache.close()
    assert cache.saves == saves
    assert world.results[0].outcomes[0].action is SENT


def test_s066_a_pause_may_be_cancelled_at_any_step() -> None:
    results: list[DeliveryResult] = []

    async def scenario(world: World) -> None:
        async def deliver() -> None:
            await world.deliver(aged(501))

        await world.play(deliver)

    for run in cancel_everywhere(lambda: a_world(masked(), PixSettings()), scenario):
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
        results += run.world.results
    assert results[-1].outcomes[0].action is SENT


@trio_test
async def test_s066_a_slot_that_is_stopped_in_the_pause_sends_the_dot(
    autojump_clock: MockClock,
) -> None:
    peer = masked()
    world = a_world(peer, PixSettings())

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, aged(501))
            await peer.until(lambda: "DATA" in peer.verbs)
            await trio.sleep(5.0)
            world.slot.stop()

    await world.play(scenario)
    assert world.results[0].outcomes[0].action is SENT
    assert peer.links[0].dots == 1
