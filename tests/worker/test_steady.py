"""A steady run: whatever happens in it ends as if each message had been delivered on its own.

Deterministic: scripted servers in memory, virtual time. `in_a_row()` serves a slot as a worker
does, or hands each request to a deliver() of its own; what servers saw and what became of the mail
must be the same.
"""

import os
import random
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import DeliveryRequest, Protocol
from tests.worker.memory_line import MemoryStream, memory_stream_pair
from tests.worker.peer import EXTENSIONS, Answer, Fault, Late, Peer, Phase, Script
from tests.worker.world import CONTENT, Row, World, make_request
from worker.config.config import Config
from worker.content import Content, FileContent
from worker.delivery import steady
from worker.delivery.deliver import deliver
from worker.delivery.serve import serve
from worker.delivery.settings import DeliverySettings, Limits
from worker.delivery.transaction import Begun
from worker.environment import make_environment
from worker.network.address import Endpoint
from worker.status.events import SessionReused, UnexpectedError

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED


def requests(*names: str, protocol: Protocol = Protocol.SMTP) -> list[DeliveryRequest]:
    """One request for each name; a name with commas has several recipients."""
    return [
        replace(
            make_request(*(f"{one}@example.com" for one in name.split(",")), protocol=protocol),
            queue_id=name[0].upper(),
        )
        for name in names
    ]


async def in_a_row(
    world: World, batch: Sequence[DeliveryRequest], *, steady: bool = True, late: bool = False
) -> list[RecipientOutcome]:
    """Deliver them through one slot; every outcome, without its times."""

    async def scenario() -> None:
        await world.deliver_in_a_row(batch, steady=steady, late=late)

    await world.play(scenario)
    assert not world.open_streams
    return [
        outcome.with_delays(Delays()) for result in world.results for outcome in result.outcomes
    ]


@pytest.fixture
def own_deliveries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Queue ids of the requests that a serve() of this test hands to deliver()."""
    seen: list[str] = []

    async def counting(request: DeliveryRequest, *arguments: object) -> object:
        seen.append(request.queue_id)
        return await deliver(request, *arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr("worker.delivery.serve.deliver", counting)
    return seen


# --- the same as one by one ----------------------------------------------------------------------


@trio_test
async def test_all_but_the_first_message_of_a_busy_slot_are_of_the_run(
    autojump_clock: MockClock, own_deliveries: list[str]
) -> None:
    peer = Peer()
    world = World(peer)
    outcomes = await in_a_row(world, requests("a", "b,b2", "c", "d"))
    assert own_deliveries == ["A"]
    assert [outcome.action for outcome in outcomes] == [SENT] * 5
    assert [outcome.conn_use for outcome in outcomes] == [1, 2, 2, 3, 4]
    reused = [event.use for event in world.events if isinstance(event, SessionReused)]
    assert reused == [2, 3, 4]
    assert len(peer.links) == 1
    assert [message.content for message in peer.accepted] == [CONTENT] * 4


@trio_test
async def test_requests_that_come_one_by_one_are_of_the_run_too(
    autojump_clock: MockClock, own_deliveries: list[str]
) -> None:
    peer = Peer(extensions=("PIPELINING", "8BITMIME"))
    world = World(peer)
    outcomes = await in_a_row(world, requests("a", "b,b2", "c"), late=True)
    assert own_deliveries == ["A"]
    assert [outcome.action for outcome in outcomes] == [SENT] * 4
    assert [outcome.conn_use for outcome in outcomes] == [1, 2, 2, 3]
    mail = b"MAIL FROM:<sender@client.example>\r\n"
    assert peer.links[0].segments[3:5] == [
        mail + b"RCPT TO:<b@example.com>\r\nRCPT TO:<b2@example.com>\r\nDATA\r\n",
        CONTENT + b".\r\n",
    ]
    assert len(peer.links) == 1


@trio_test
async def test_a_session_that_was_idle_is_probed_first(
    autojump_clock: MockClock, own_deliveries: list[str]
) -> None:
    """By a delivery of its own: a run asks no question."""
    peer = Peer()
    world = World(peer)

    class Pausing(Row):
        async def wait(self) -> bool:
            await trio.sleep(1.5)
            return await super().wait()

    async def scenario() -> None:
        row = Pausing(world, requests(*"abc"), late=True)
        world.slot.upcoming = row.upcoming
        await serve(row, world.slot, lambda: world.environment)

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT] * 3
    assert own_deliveries == ["A", "B", "C"]
    assert peer.verbs.count("RSET") == 2


SCRIPTS: list[dict[Phase, Script]] = [
    {},
    {Phase.MAIL: ["250 ok", "250 ok", "450 4.7.1 later", "250 ok"]},
    {Phase.MAIL: ["250 ok", "250 ok", "550 5.7.1 never", "250 ok"]},
    {Phase.MAIL: ["250 ok", "250 ok", "250-two\n250 lines", "250 ok"]},
    {Phase.RCPT: {"c@example.com": "450 4.2.0 later"}},
    {Phase.RCPT: {"c@example.com": "550 5.1.1 who?"}},
    {Phase.RCPT: {"b2@example.com": "550 5.1.1 who?"}},
    {Phase.RCPT: {"b@example.com": "251 2.1.5 forwarded", "c@example.com": "252 2.1.5 we try"}},
    {Phase.DATA: ["354 go", "354 go", "451 4.3.0 no", "354 go"]},
    {Phase.DATA: ["354 go", "354 go", "250 ok", "354 go"]},
    {Phase.DOT: ["250 ok", "452 4.3.1 full", "250 ok"]},
    {Phase.DOT: ["250 ok", "554 5.6.0 spam", "250 ok"]},
    {Phase.DOT: ["250 ok", "250-2.0.0 two\n250 2.0.0 lines", "250 ok"]},
    {Phase.DOT: ["250 ok", "421 4.3.2 bye", "250 ok"]},
    {Phase.DOT: ["250 ok", "250 ok", "250 ok", "250 ok\n250 and again", "250 ok"]},
    {Phase.DOT: ["250 ok", "garbage", "250 ok"]},
    {Phase.DOT: ["250 ok", Late(5, "250 ok"), "250 ok"]},
    {Phase.DOT: ["250 ok", "250 ok", Fault.CUT]},
    {Phase.DOT: ["250 ok", "250 ok", Fault.RESET]},
    {Phase.DOT: ["250 ok", "250 ok", Fault.SILENCE]},
    {Phase.DATA: ["354 go", "354 go", Fault.CUT, "354 go"]},
    {Phase.RCPT: ["250 ok", "250 ok", "250 ok", Fault.SILENCE, "250 ok"]},
    {Phase.DATA: ["354 go", "354 go", "354 go\n421 4.3.2 bye", "354 go"]},
    {Phase.DATA: ["354 go", "354 go", "354 go\n250 ok", "354 go"]},
]


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("window", [65_536, 40])
@trio_test
async def test_a_run_ends_as_deliveries_of_their_own_do(
    autojump_clock: MockClock,
    script: dict[Phase, Script],
    protocol: Protocol,
    window: int,
    late: bool,
) -> None:
    seen = []
    for run in (True, False):
        lmtp = protocol is Protocol.LMTP
        peer = Peer(script, lmtp=lmtp, window=window)
        world = World(peer, Peer(lmtp=lmtp))
        batch = requests("a", "b,b2", "c", "d", "e", protocol=protocol)
        outcomes = await in_a_row(world, batch, steady=run, late=late)
        assert not [event for event in world.events if isinstance(event, UnexpectedError)]
        assert max(Counter(peer.served).values()) == 1
        octets = [b"".join(link.segments) for link in peer.links]
        seen.append((outcomes, octets, sorted(peer.served)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, reuse_count_limit=2),
        replace(SETTINGS, reuse_time_limit=3.0),
        replace(SETTINGS, limits=Limits(whole_request=True)),
        replace(SETTINGS, skip_quit_response=False),
    ],
    ids=["count", "age", "per request", "quit"],
)
@trio_test
async def test_the_limits_of_reuse_are_the_same(
    autojump_clock: MockClock, settings: DeliverySettings
) -> None:
    seen = []
    for run in (True, False):
        peer = Peer({Phase.DOT: Late(1.5, "250 ok")})
        world = World(peer, settings=settings)
        outcomes = await in_a_row(world, requests(*"abcdefgh"), steady=run)
        assert {outcome.action for outcome in outcomes} == {SENT}
        seen.append((outcomes, [link.commands for link in peer.links]))
    assert seen[0] == seen[1]


# --- time limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [2, 5])
@trio_test
async def test_a_dot_that_is_not_answered_is_waited_for_as_long_as_configured(
    autojump_clock: MockClock, messages: int
) -> None:
    """Within one second, that is: see LATENESS."""
    said: list[Answer] = ["250 ok"] * (messages - 1)
    peer = Peer({Phase.DOT: [*said, Fault.SILENCE, "250 ok"]})
    world = World(peer, Peer())
    outcomes = await in_a_row(world, requests(*"abcdef"[: messages + 1]))
    assert [outcome.action for outcome in outcomes] == [
        *[SENT] * (messages - 1),
        DEFERRED,
        SENT,
    ]
    lost = outcomes[messages - 1]
    assert lost.in_doubt
    assert lost.reason == (
        "conversation with mx1.example.com[192.0.2.1] timed out while sending end of data"
        " -- message may be sent more than once"
    )
    assert 600 <= world.took[messages - 1] <= 601
    assert peer.served == [o.recipient.address for o in outcomes if o.action is SENT]


@trio_test
async def test_an_envelope_that_is_not_answered_costs_a_connection_and_a_short_wait(
    autojump_clock: MockClock, own_deliveries: list[str]
) -> None:
    peer = Peer({Phase.MAIL: ["250 ok", "250 ok", Fault.SILENCE, "250 ok"]})
    world = World(peer)
    outcomes = await in_a_row(world, requests(*"abcd"))
    assert [outcome.action for outcome in outcomes] == [SENT] * 4
    assert not any(outcome.in_doubt for outcome in outcomes)
    assert own_deliveries == ["A", "C", "D"]  # the server is treated plainly from then on
    assert 20 <= world.took[2] <= 21
    assert len(peer.links) == 2


@pytest.mark.parametrize(
    "script",
    [
        {Phase.MAIL: ["250 ok", "250 ok", Fault.SILENCE, "250 ok"]},
        {Phase.DOT: ["250 ok", ("250 ok", Fault.STOP_READING), "250 ok"]},
    ],
    ids=["not answered", "not read"],
)
@trio_test
async def test_an_envelope_that_went_alone_has_the_time_of_its_own(
    autojump_clock: MockClock, script: dict[Phase, Script]
) -> None:
    peer = Peer(script, window=60)
    world = World(peer)
    outcomes = await in_a_row(world, requests(*"abcd"), late=True)
    assert [outcome.action for outcome in outcomes] == [SENT] * 4
    assert not any(outcome.in_doubt for outcome in outcomes)
    assert 300 <= world.took[2] <= 301
    assert len(peer.links) == 2


@pytest.mark.parametrize(
    ("phase", "limits"),
    [
        (Phase.RCPT, Limits(mail=10.0, data_init=10.0)),
        (Phase.DATA, Limits(mail=10.0, rcpt=10.0)),
    ],
)
@pytest.mark.parametrize("late", [False, True])
@trio_test
async def test_each_reply_to_an_envelope_has_its_own_time(
    autojump_clock: MockClock, phase: Phase, limits: Limits, late: bool
) -> None:
    usual = "354 go" if phase is Phase.DATA else "250 ok"
    peer = Peer({phase: [usual, usual, Late(60, usual), usual]})
    world = World(peer, settings=replace(SETTINGS, limits=limits))
    outcomes = await in_a_row(world, requests(*"abcd"), late=late)
    assert [outcome.action for outcome in outcomes] == [SENT] * 4
    assert len(peer.links) == 1
    assert world.took[2] == 60


@trio_test
async def test_what_a_run_began_is_logged_with_the_time_it_took(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.DOT: ["250 ok", Late(100, "554 5.6.0 spam"), "250 ok"]})
    world = World(peer)
    await in_a_row(world, requests(*"abc"))
    delays = world.results[1].outcomes[0].delays
    assert (delays.setup, delays.transmission) == (0.0, 100.0)


@pytest.mark.parametrize("late", [False, True])
@trio_test
async def test_a_server_is_distrusted_only_for_what_went_behind_a_dot(
    autojump_clock: MockClock, late: bool
) -> None:
    peer = Peer({Phase.DOT: ["250 ok", Fault.CUT]})
    world = World(peer)
    outcomes = await in_a_row(world, requests(*"ab"), late=late)
    assert [outcome.in_doubt for outcome in outcomes] == [False, True]
    endpoint = Endpoint(host="mx1.example.com", address="192.0.2.1", port=25, family=socket.AF_INET)
    assert world.environment.plain.holds(endpoint, trio.current_time()) == (not late)


# --- ends of a run ------------------------------------------------------------------------------


async def stopped_after(world: World, seconds: float, batch: Sequence[DeliveryRequest]) -> None:
    """Serve them, and stop the slot so much later."""

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await trio.sleep(seconds)
                world.slot.stop()

            nursery.start_soon(stop)
            await world.deliver_in_a_row(batch)

    await world.play(scenario)


@pytest.mark.parametrize("glued", [False, True])
@trio_test
async def test_a_stop_lets_the_message_finish_whose_content_is_under_way(
    autojump_clock: MockClock, glued: bool
) -> None:
    """And no other, even if all that it waits for has come with the reply (`glued`)."""
    peer = Peer({Phase.DOT: ["250 ok", Late(7, "250 ok"), "250 ok"]}, glued=glued)
    world = World(peer)
    await stopped_after(world, 1, requests(*"abc"))
    assert [result.stopped for result in world.results] == [False, False, True]
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT, DEFERRED]
    assert peer.served == ["a@example.com", "b@example.com"]
    assert not any(o.in_doubt for result in world.results for o in result.outcomes)
    assert not world.open_streams


@trio_test
async def test_a_stop_after_a_run_lets_the_message_finish_whose_content_it_began(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while results are flushed, before deliver() goes on."""
    monkeypatch.setattr("tests.worker.world.CONTENT", CONTENT + 30_000 * b"x\r\n")
    peer = Peer()  # takes less of it at once
    world = World(peer)

    async def stopping(*arguments: object) -> object:
        begun = arguments[-1]
        if isinstance(begun, Begun) and begun.sending:
            world.slot.stop()
        return await deliver(*arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr("worker.delivery.serve.deliver", stopping)
    outcomes = await in_a_row(world, requests(*"abc"))
    assert [outcome.action for outcome in outcomes] == [SENT, SENT, DEFERRED]
    assert [result.stopped for result in world.results] == [False, False, True]
    assert peer.served == ["a@example.com", "b@example.com"]


@trio_test
async def test_a_stop_before_the_content_sends_none(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.MAIL: ["250 ok", "250 ok", Late(5, "250 ok")]})
    world = World(peer)
    await stopped_after(world, 1, requests(*"abc"))
    assert [result.stopped for result in world.results] == [False, False, True]
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT, DEFERRED]
    assert peer.served == ["a@example.com", "b@example.com"]
    assert peer.links[0].dots == 2


class _StopAt(trio.abc.Instrument):
    """Stops the slot of a world before one step of some task."""

    def __init__(self, world: World, step: int) -> None:
        self._world = world
        self._left = step
        self.stopped = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._left -= 1
        if not self._left:
            self.stopped = True
            self._world.slot.stop()


@pytest.mark.parametrize("real_sockets", [False, True])
@pytest.mark.parametrize("glued", [False, True])
def test_a_stop_at_any_step_leaves_no_message_in_doubt(glued: bool, real_sockets: bool) -> None:
    """Not even one in the very step in which the replies come that it waited for."""
    step, stopped = 0, True
    while stopped:
        step += 1
        peer = Peer(glued=glued, real_sockets=real_sockets)
        world = World(peer)
        stop = _StopAt(world, step)
        clock = None if real_sockets else MockClock(autojump_threshold=0)
        outcomes = trio.run(in_a_row, world, requests(*"abcd"), clock=clock, instruments=[stop])
        assert not any(outcome.in_doubt for outcome in outcomes), step
        sent = [o.recipient.address for o in outcomes if o.action is SENT]
        assert peer.served == sent
        stopped = stop.stopped
    assert step > 20


@trio_test
async def test_a_stop_ends_the_quit_of_a_session_that_has_served_enough(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.QUIT: Fault.SILENCE, Phase.DOT: Late(2, "250 ok")})
    settings = replace(SETTINGS, skip_quit_response=False, reuse_count_limit=2)
    world = World(peer, settings=settings)
    began = trio.current_time()
    await stopped_after(world, 7, requests(*"abcdef"))
    assert trio.current_time() - began == 7
    assert [result.stopped for result in world.results] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("reply", ["250-two\n250 lines", "452 4.3.1 full"])
@trio_test
async def test_a_message_that_a_run_began_ends_under_the_configuration_it_began_in(
    autojump_clock: MockClock, reply: str
) -> None:
    """Or its session would serve the new one, which would have opened another."""
    peer, other = Peer({Phase.DOT: ["250 ok", Late(5, reply), "250 ok"]}), Peer()
    world = World(peer)
    later = World(other, settings=replace(SETTINGS, helo_name="new.example"))
    current = world.environment

    async def reload() -> None:
        nonlocal current
        await trio.sleep(1)
        current = later.environment

    async def scenario() -> None:
        later.dialer.nursery = world.dialer.nursery
        row = Row(world, requests(*"abcd"))
        world.slot.upcoming = row.upcoming
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload)
            await serve(row, world.slot, lambda: current)

    await world.play(scenario)
    assert peer.served[0] == "a@example.com"
    assert other.served == ["c@example.com", "d@example.com"]
    assert other.links[0].commands[0] == "EHLO new.example"


@trio_test
async def test_a_new_configuration_holds_for_the_next_message(
    autojump_clock: MockClock, own_deliveries: list[str]
) -> None:
    peer = Peer()
    world = World(peer)
    later = World(peer, settings=replace(SETTINGS, helo_name="new.example"))
    current = world.environment

    class Reloading(Row):
        def put_result(self, result: object) -> bool:
            nonlocal current
            if len(world.results) == 1:
                current = later.environment
            return super().put_result(result)  # type: ignore[arg-type]  # passed through

    async def scenario() -> None:
        later.dialer.nursery = world.dialer.nursery
        row = Reloading(world, requests(*"abcd"))
        world.slot.upcoming = row.upcoming
        await serve(row, world.slot, lambda: current)

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT] * 4
    assert own_deliveries == ["A", "C"]
    assert [link.commands[0] for link in peer.links] == ["EHLO helo.example", "EHLO new.example"]


@trio_test
async def test_a_content_in_a_file_is_delivered_in_between(
    own_deliveries: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On the real clock: a virtual one would jump while a thread reads the file."""
    file = tmp_path_factory.mktemp("content") / "message"
    file.write_bytes(b"Subject: file\r\n\r\n.dot\r\n")
    peer = Peer()
    world = World(peer)

    class Filed(Row):
        def take_upcoming(self) -> tuple[DeliveryRequest, Content]:
            request, content = super().take_upcoming()
            if request.queue_id == "C":
                content = FileContent(os.open(file, os.O_RDONLY))
            return request, content

    async def scenario() -> None:
        row = Filed(world, requests(*"abcd"))
        world.slot.upcoming = row.upcoming
        await serve(row, world.slot, lambda: world.environment)

    await world.play(scenario)
    assert [message.content for message in peer.accepted] == [
        *(CONTENT, CONTENT, file.read_bytes(), CONTENT)
    ]
    assert own_deliveries == ["A", "C"]
    assert len(peer.links) == 1


@trio_test
async def test_results_that_must_wait_are_waited_for_outside_of_every_limit(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    world = World(peer)

    class Slow(Row):
        waits = 0

        def put_result(self, result: object) -> bool:
            super().put_result(result)  # type: ignore[arg-type]  # passed through
            self.waits += 1
            return False

        async def flush(self) -> None:
            if self.waits:
                self.waits -= 1
                await trio.sleep(10_000)

    async def scenario() -> None:
        row = Slow(world, requests(*"abcd"))
        world.slot.upcoming = row.upcoming
        await serve(row, world.slot, lambda: world.environment)
        assert row.waits == 0

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT] * 4


@trio_test
async def test_a_flight_cut_behind_the_dot_is_finished_though_the_reply_is_there(
    autojump_clock: MockClock,
) -> None:
    peer = Peer(window=len(CONTENT) + 15)
    world = World(peer)

    class Idle(Row):
        async def flush(self) -> None:
            await trio.sleep(1)  # the server has answered the dot meanwhile

    async def scenario() -> None:
        row = Idle(world, requests(*"abcd"))
        world.slot.upcoming = row.upcoming
        await serve(row, world.slot, lambda: world.environment)

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT] * 4
    assert len(peer.links) == 1


@pytest.mark.parametrize("late", [False, True])
@trio_test
async def test_nothing_is_said_to_a_server_that_has_spoken_meanwhile(
    autojump_clock: MockClock, late: bool
) -> None:
    """Neither content, to one that had the next envelope, nor an envelope."""
    bye = Late(0.4, "421 4.3.2 bye")
    script: dict[Phase, Script] = (
        {Phase.DOT: [("250 ok", bye), "250 ok"]}
        if late
        else {Phase.DATA: ["354 go", ("354 go", bye), "354 go"]}
    )
    peer = Peer(script, glued=True)
    world = World(peer, Peer())

    class Idle(Row):
        async def flush(self) -> None:
            await trio.sleep(0.6)

    async def scenario() -> None:
        row = Idle(world, requests(*"ab"), late=late)
        world.slot.upcoming = row.upcoming
        await serve(row, world.slot, lambda: world.environment)

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT] * 2
    assert peer.links[0].dots == 1
    assert peer.links[0].verbs.count("MAIL") == (1 if late else 2)


# --- what must not happen -----------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["encode", "next_envelope", "_result"])
@trio_test
async def test_a_fault_of_ours_defers_and_is_logged(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    place = steady._Run if broken == "_result" else steady
    whole = getattr(place, broken)
    calls = 0

    def faulty(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("a bug")
        return whole(*arguments)

    monkeypatch.setattr(place, broken, faulty)
    peer = Peer()
    world = World(peer)
    outcomes = await in_a_row(world, requests(*"abcde"))
    assert len(outcomes) == 5
    assert [o.action for o in outcomes] == [SENT, SENT, DEFERRED, SENT, SENT]
    assert "internal error: RuntimeError" in outcomes[2].reason
    assert outcomes[2].in_doubt
    errors = [event for event in world.events if isinstance(event, UnexpectedError)]
    assert len(errors) == 1
    assert "a bug" in errors[0].traceback


def test_a_yes_that_is_at_hand_counts_though_the_connection_was_reset() -> None:
    """Over real TCP: a server answers a dot and closes while our next envelope is unread."""

    async def serve_one(listener: socket.socket) -> None:
        with trio.socket.from_stdlib_socket(listener) as accepting:
            accepted, _ = await accepting.accept()
        with accepted:
            await accepted.send(b"220 mx\r\n")
            await accepted.recv(100)
            await accepted.send(b"250-mx\r\n250 PIPELINING\r\n")
            await accepted.recv(100)
            await accepted.send(b"250 ok\r\n250 ok\r\n354 go\r\n")
            await accepted.recv(1000)  # the first content, and the second envelope
            await accepted.send(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
            content = b""
            while b"\r\n.\r\n" not in content:
                content += await accepted.recv(len(CONTENT) + 3)  # its third envelope stays unread
            await accepted.send(b"250-two\r\n250 lines\r\n")

    async def main() -> None:
        world = World()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)  # noqa: FBT003  # its parameter has no name
            world.environment = make_environment(
                Config.from_mapping({"myhostname": "client.example", "inet_protocols": "ipv4"}),
                world.events.append,
                lambda: 1_000.0,
                random.Random(1),
            )
            nexthop = f"[127.0.0.1]:{listener.getsockname()[1]}"
            batch = [replace(request, nexthop=nexthop) for request in requests(*"abc")]

            class Waiting(Row):
                async def flush(self) -> None:
                    await trio.sleep(0.05)  # the reset has come

            async def scenario() -> None:
                row = Waiting(world, batch)
                world.slot.upcoming = row.upcoming
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve_one, listener)
                    await serve(row, world.slot, lambda: world.environment)

            await world.play(scenario)
        outcomes = [result.outcomes[0] for result in world.results]
        assert [outcome.action for outcome in outcomes] == [SENT, SENT, DEFERRED]
        assert outcomes[1].reason == "250 two lines"
        assert not any(outcome.in_doubt for outcome in outcomes)

    trio.run(main)


@trio_test
async def test_a_result_that_cannot_be_handed_over_ends_the_slot(autojump_clock: MockClock) -> None:
    """The next result would be taken for it."""
    peer = Peer()
    world = World(peer)

    class Broken(Row):
        def put_result(self, result: object) -> bool:
            super().put_result(result)  # type: ignore[arg-type]  # passed through
            if len(world.results) == 2:
                raise RuntimeError("not encodable")
            return True

    async def scenario() -> None:
        row = Broken(world, requests(*"abcd"))
        world.slot.upcoming = row.upcoming
        with pytest.raises(RuntimeError, match="not encodable"):
            await serve(row, world.slot, lambda: world.environment)

    await world.play(scenario)
    assert peer.served == ["a@example.com", "b@example.com"]
    assert not world.open_streams


@pytest.mark.parametrize("at", range(1, 60))
def test_a_run_that_is_cancelled_leaves_nothing_open(at: int) -> None:
    """Cut off at any step: results are those of messages that were answered."""

    async def main() -> None:
        peer = Peer({Phase.DOT: Late(0.1, "250 ok")}, extensions=EXTENSIONS)
        world = World(peer)
        with suppress(BaseExceptionGroup), trio.CancelScope(deadline=at * 0.01):
            await in_a_row(world, requests(*"abcdef"))
        assert not world.open_streams
        assert len(world.results) <= len(peer.accepted) <= len(world.results) + 1

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_the_memory_stream_tries_as_the_socket_stream_does() -> None:
    """What the tests above rely on."""

    async def main() -> None:
        ours, theirs = memory_stream_pair(4)
        assert isinstance(ours, MemoryStream)
        assert ours.is_quiet()
        assert theirs.send_nowait(b"abcdef") == 4
        assert not ours.is_quiet()
        assert await ours.wait_and_receive(100) == b"abcd"
        await theirs.aclose()
        assert not ours.is_quiet()
        assert await ours.wait_and_receive(100) == b""
        assert ours.send_nowait(b"x") == 0

    trio.run(main)
