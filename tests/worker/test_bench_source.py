"""The source: loads for scripted peers in memory, on a virtual clock; its words, sizes and report.

Deterministic because the clock only moves when everybody waits, and peers answer by their script.
"""

import json
import mailbox
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import click
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from bench.source import report
from bench.source.command import exit_status, main, parse_limits
from bench.source.link import FLIGHT, SLACK
from bench.source.load import DIALOGUE, TIME_LIMIT, Load, Phase
from bench.source.messages import (
    BLOCK,
    Composer,
    Content,
    Envelopes,
    Generated,
    MessageError,
    Pattern,
    parse_sizes,
    read_contents,
)
from bench.source.pace import Pace
from bench.source.run import run
from bench.source.tally import SAMPLE_LENGTH, Latencies, Outcome, Tally, Trouble
from bench.source.target import Target, TargetError, dialler, parse_target
from tests.worker.memory_line import MemoryStream, memory_stream_pair
from tests.worker.peer import Fault, Late, Peer, Script
from tests.worker.peer import Phase as Act
from worker.cli.exits import CommandError

HUNG = 100_000.0  # virtual seconds: whoever waits so long waits for ever
ACTS = {
    Phase.GREETING: Act.GREETING,
    Phase.EHLO: Act.EHLO,
    Phase.MAIL: Act.MAIL,
    Phase.RCPT: Act.RCPT,
    Phase.DATA: Act.DATA,
    Phase.CONTENT: Act.DOT,
    Phase.QUIT: Act.QUIT,
}
TALKING = [phase for phase in ACTS if phase is not Phase.QUIT]  # a message is under way in them


def composer(recipients: int = 1, size: int = 500) -> Composer:
    envelopes = Envelopes("s{n}@a.example", "u{n}.{r}@b.example", recipients)
    return Composer(envelopes, Generated(lambda: size, "run"))


class Network:
    """Leads to one peer, or to nobody."""

    def __init__(self, peer: Peer, nursery: trio.Nursery) -> None:
        self.peer = peer
        self.nursery = nursery
        self.error: OSError | None = None
        self.takes = 0.0  # seconds to connect
        self.streams: list[MemoryStream] = []

    async def dial(self, session: int) -> trio.abc.Stream:
        del session
        await trio.sleep(self.takes)
        if self.error:
            raise self.error
        ours, theirs = memory_stream_pair(self.peer.window)
        self.streams.append(ours)
        self.nursery.start_soon(self.peer.serve, theirs)
        return ours


@asynccontextmanager
async def network(peer: Peer) -> AsyncIterator[Network]:
    """A network with `peer` in it; afterwards every connection is closed on our side."""
    with trio.fail_after(HUNG):
        async with trio.open_nursery() as nursery:
            net = Network(peer, nursery)
            yield net
            nursery.cancel_scope.cancel()
    assert all(stream.closed for stream in net.streams)


async def loaded(peer: Peer, load: Load, *, recipients: int = 1) -> Tally:
    """The tally of a load on `peer`."""
    tally = Tally()
    async with network(peer) as net:
        await run(load, net.dial, composer(recipients), tally)
    assert tally.begun == sum(tally.messages.values())
    return tally


def troubles(tally: Tally) -> dict[tuple[Phase, Trouble], int]:
    return {key: seen.count for key, seen in tally.failures.items()}


def mail_times(peer: Peer) -> list[float]:
    """When MAIL came, seconds after the first connection began."""
    return [
        when - peer.links[0].began
        for link in peer.links
        for verb, when in zip(link.verbs, link.times, strict=True)
        if verb == "MAIL"
    ]


# --- what is sent ---------------------------------------------------------------------------------


@trio_test
async def test_every_message_arrives_once_and_is_counted(autojump_clock: MockClock) -> None:
    peer = Peer()
    tally = await loaded(peer, Load(sessions=3, messages=7), recipients=2)
    assert tally.messages == {Outcome.ACCEPTED: 7}
    assert tally.recipients[Outcome.ACCEPTED] == 14
    assert sorted(message.sender for message in peer.accepted) == [
        f"s{number}@a.example" for number in range(7)
    ]
    one = next(message for message in peer.accepted if message.sender == "s3@a.example")
    assert one.recipients == ("u3.0@b.example", "u3.1@b.example")
    assert len(one.content) == 500
    assert b"Message-ID: <run.3@source.example>\r\n" in one.content
    assert tally.octets == 3500
    assert tally.connections == 3
    assert peer.verbs.count("QUIT") == 3


@trio_test
async def test_a_connection_carries_as_many_messages_as_told(autojump_clock: MockClock) -> None:
    peer = Peer()
    tally = await loaded(peer, Load(messages=5, per_connection=2))
    assert [link.verbs.count("MAIL") for link in peer.links] == [2, 2, 1]
    assert [link.verbs[-1] for link in peer.links] == ["QUIT"] * 3
    assert tally.messages == {Outcome.ACCEPTED: 5}
    assert not tally.failures


@trio_test
async def test_an_envelope_is_one_write_with_pipelining_and_one_for_each_command_without(
    autojump_clock: MockClock,
) -> None:
    for extensions, pipelining, verbs in (
        (("PIPELINING", "SIZE"), True, 3),
        (("PIPELINING", "SIZE"), False, 1),
        (("SIZE",), True, 1),  # never where it was not announced
    ):
        peer = Peer(extensions=extensions)
        await loaded(peer, Load(pipelining=pipelining))
        first = next(part for part in peer.links[0].segments if part.startswith(b"MAIL"))
        assert first.count(b"\r\n") == verbs
        assert b" SIZE=500\r\n" in first
        assert len(peer.accepted) == 1


@trio_test
async def test_no_flight_is_larger_than_a_window(autojump_clock: MockClock) -> None:
    peer = Peer()
    tally = await loaded(peer, Load(messages=2), recipients=1000)
    assert tally.recipients[Outcome.ACCEPTED] == 2000
    assert FLIGHT - 100 < max(len(part) for part in peer.links[0].segments) <= FLIGHT


@trio_test
async def test_a_server_without_ehlo_is_told_helo(autojump_clock: MockClock) -> None:
    peer = Peer({Act.EHLO: "502 5.5.1 what?"})
    tally = await loaded(peer, Load(messages=2))
    assert peer.verbs[:2] == ["EHLO", "HELO"]
    assert tally.messages == {Outcome.ACCEPTED: 2}
    assert b" SIZE=" not in b"".join(peer.links[0].segments)


# --- when it is sent ------------------------------------------------------------------------------


@trio_test
async def test_with_a_rate_messages_begin_at_their_times(autojump_clock: MockClock) -> None:
    peer = Peer()
    tally = await loaded(peer, Load(sessions=4, messages=20, rate=8.0))
    assert sorted(mail_times(peer)) == pytest.approx([number / 8 for number in range(20)])
    assert tally.latencies[Phase.LATE].longest == 0.0
    assert tally.seconds == pytest.approx(19 / 8)


@trio_test
async def test_with_a_rate_the_time_of_a_message_counts_from_when_it_was_due(
    autojump_clock: MockClock,
) -> None:
    """A server of 1 message/s under 2 messages/s: each one waits half a second longer."""
    peer = Peer({Act.DOT: Late(1.0, "250 2.0.0 ok")})
    tally = await loaded(peer, Load(messages=5, rate=2.0))
    whole, late = tally.latencies[Phase.MESSAGE], tally.latencies[Phase.LATE]
    assert whole.count == late.count == 5
    assert whole.longest == pytest.approx(3.0)  # due at 2 s, answered at 5 s
    assert whole.mean == pytest.approx(2.0, rel=1e-3)
    assert whole.percentile(50) == pytest.approx(2.0, rel=1e-3)
    assert late.longest == pytest.approx(2.0)
    assert tally.latencies[Phase.CONTENT].longest == pytest.approx(1.0)


@trio_test
async def test_without_a_rate_the_time_of_a_message_counts_from_its_beginning(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Act.DOT: Late(1.0, "250 2.0.0 ok")})
    tally = await loaded(peer, Load(messages=5))
    assert tally.latencies[Phase.MESSAGE].longest == pytest.approx(1.0)
    assert Phase.LATE not in tally.latencies
    assert tally.seconds == pytest.approx(5.0)
    assert tally.rate == pytest.approx(1.0)


@trio_test
async def test_messages_begin_only_within_the_duration(autojump_clock: MockClock) -> None:
    slow = {Act.DOT: Late(2.0, "250 2.0.0 ok")}
    closed = await loaded(Peer(slow), Load(messages=None, duration=5.0))
    assert closed.messages == {Outcome.ACCEPTED: 3}  # at 0, 2 and 4 s; what was begun is finished
    assert closed.seconds == pytest.approx(6.0)
    opened = await loaded(Peer(), Load(messages=None, duration=5.0, rate=2.0))
    assert opened.messages == {Outcome.ACCEPTED: 10}
    both = await loaded(Peer(), Load(messages=3, duration=5.0, rate=2.0))
    assert both.messages == {Outcome.ACCEPTED: 3}


@trio_test
async def test_a_closed_load_lets_others_run_even_if_nothing_ever_waits() -> None:
    pace, turns, seen = Pace(Load(messages=100)), list[int](), list[int]()

    async def take() -> None:
        while (turn := await pace.next()) is not None:
            turns.append(turn.number)

    async def watch() -> None:
        while len(turns) < 100:
            seen.append(len(turns))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        nursery.start_soon(watch)
    assert turns == list(range(100))
    assert len(seen) > 3


@trio_test
async def test_each_phase_has_its_own_time(autojump_clock: MockClock) -> None:
    """Replies come 1, 2, 4 ... s late, one command at a time: no two phases take the same."""
    ok = {Act.DATA: "354 go", Act.GREETING: "220 hello", Act.QUIT: "221 bye"}
    script = {
        act: Late(2.0**index, ok.get(act, "250 ok")) for index, act in enumerate(ACTS.values())
    }
    tally = Tally()
    async with network(Peer(script)) as net:
        net.takes = 0.5
        await run(Load(limits=parse_limits(("100",))), net.dial, composer(), tally)
    assert tally.messages == {Outcome.ACCEPTED: 1}
    assert {phase: times.longest for phase, times in tally.timed()} == pytest.approx(
        {
            Phase.CONNECT: 0.5,
            **{phase: 2.0**index for index, phase in enumerate(ACTS)},
            Phase.MESSAGE: 0.5 + sum(2.0**index for index in range(len(ACTS) - 1)),
        }
    )


@trio_test
async def test_pipelined_phases_count_from_their_flight(autojump_clock: MockClock) -> None:
    late = Late(1.0, "250 ok")
    peer = Peer({Act.MAIL: late, Act.RCPT: late, Act.DATA: Late(1.0, "354 go")})
    tally = await loaded(peer, Load())
    times = [tally.latencies[phase].longest for phase in (Phase.MAIL, Phase.RCPT, Phase.DATA)]
    assert times == pytest.approx([1.0, 2.0, 3.0])


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ACTS)
@trio_test
async def test_a_silent_server_is_left_when_the_phase_s_time_is_up(
    autojump_clock: MockClock, phase: Phase
) -> None:
    load = Load(messages=1, limits={phase: 7.0})
    tally = await loaded(Peer({ACTS[phase]: Fault.SILENCE}), load)
    assert troubles(tally) == {(phase, Trouble.TIMEOUT): 1}
    assert tally.failures[phase, Trouble.TIMEOUT].sample == "no answer within 7 s"
    expected = Outcome.ACCEPTED if phase is Phase.QUIT else Outcome.FAILED
    assert tally.messages == {expected: 1}
    assert 7.0 <= tally.seconds <= 7.0 + SLACK + 0.1  # and a pause if there was no session


@trio_test
async def test_a_connect_that_is_never_answered_ends_in_time(autojump_clock: MockClock) -> None:
    tally = Tally()
    async with network(Peer()) as net:
        net.takes = HUNG
        await run(Load(), net.dial, composer(), tally)
    assert troubles(tally) == {(Phase.CONNECT, Trouble.TIMEOUT): 1}
    assert tally.messages == {Outcome.FAILED: 1}
    assert tally.seconds == pytest.approx(TIME_LIMIT, abs=0.2)


@trio_test
async def test_a_server_that_stops_reading_content_is_left(autojump_clock: MockClock) -> None:
    tally = Tally()
    async with network(Peer({Act.CONTENT: Fault.STOP_READING}, window=1000)) as net:
        await run(Load(limits={Phase.CONTENT: 5.0}), net.dial, composer(size=300_000), tally)
    assert troubles(tally) == {(Phase.CONTENT, Trouble.TIMEOUT): 1}


@trio_test
async def test_waiting_for_the_next_turn_is_no_phase(autojump_clock: MockClock) -> None:
    tally = await loaded(Peer(), Load(messages=2, rate=0.001))
    assert tally.messages == {Outcome.ACCEPTED: 2}
    assert not tally.failures


@pytest.mark.parametrize("phase", TALKING)
@pytest.mark.parametrize(
    ("fault", "trouble"),
    [
        (Fault.CUT, Trouble.LOST),
        (Fault.RESET, Trouble.LOST),
        (Fault.ENDLESS, Trouble.NONSENSE),
        ("what a nice day\n250 it is", Trouble.NONSENSE),
        ("999 no", Trouble.NONSENSE),
    ],
)
@trio_test
async def test_a_server_that_breaks_off_or_talks_nonsense_is_counted(
    autojump_clock: MockClock, phase: Phase, fault: Fault | str, trouble: Trouble
) -> None:
    # A reset takes with it what was under way: in one flight an earlier reply may be missing.
    load = Load(messages=4, sessions=2, pipelining=False)
    tally = await loaded(Peer({ACTS[phase]: fault}), load)
    assert troubles(tally) == {(phase, trouble): 4}
    assert tally.messages == {Outcome.FAILED: 4}
    assert tally.connections == 4  # none of them is used again


@pytest.mark.parametrize("phase", TALKING)
@trio_test
async def test_a_reply_that_answers_another_question_is_nonsense(
    autojump_clock: MockClock, phase: Phase
) -> None:
    wrong = "250 ok" if phase is Phase.DATA else "354 go"
    tally = await loaded(Peer({ACTS[phase]: wrong}), Load())
    assert troubles(tally) == {(phase, Trouble.NONSENSE): 1}
    assert tally.messages == {Outcome.FAILED: 1}


@trio_test
async def test_a_reply_too_many_ends_the_connection(autojump_clock: MockClock) -> None:
    peer = Peer({Act.DOT: ("250 2.0.0 ok\n250 2.0.0 twice")}, glued=True)
    tally = await loaded(peer, Load(messages=2))
    assert troubles(tally) == {(Phase.MAIL, Trouble.NONSENSE): 1}
    assert tally.messages == {Outcome.ACCEPTED: 1, Outcome.FAILED: 1}


REFUSALS: list[tuple[Mapping[Act, Script], dict[Outcome, int], dict[Outcome, int]]] = [
    ({Act.MAIL: ["550 no", "250 ok"]}, {Outcome.REFUSED: 1}, {Outcome.REFUSED: 2}),
    ({Act.MAIL: ["451 no", "250 ok"]}, {Outcome.DEFERRED: 1}, {Outcome.DEFERRED: 2}),
    (
        {Act.RCPT: {"u0.0@b.example": "550 no"}},
        {Outcome.PARTLY: 1},
        {Outcome.ACCEPTED: 1, Outcome.REFUSED: 1},
    ),
    (
        {Act.RCPT: {"u0.0@b.example": "550 no", "u0.1@b.example": "450 no"}},
        {Outcome.DEFERRED: 1},
        {Outcome.REFUSED: 1, Outcome.DEFERRED: 1},
    ),
    ({Act.DATA: ["451 no", "354 go"]}, {Outcome.DEFERRED: 1}, {Outcome.DEFERRED: 2}),
    ({Act.DOT: ["554 no", "250 ok"]}, {Outcome.REFUSED: 1}, {Outcome.REFUSED: 2}),
]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(("script", "messages", "recipients"), REFUSALS)
@trio_test
async def test_refusals_are_counted_and_the_next_message_uses_the_same_connection(
    autojump_clock: MockClock,
    script: Mapping[Act, Script],
    messages: dict[Outcome, int],
    recipients: dict[Outcome, int],
    pipelining: bool,
) -> None:
    tally = await loaded(Peer(script), Load(messages=2, pipelining=pipelining), recipients=2)
    assert dict(tally.messages) == {**messages, Outcome.ACCEPTED: 1}
    recipients = {**recipients, Outcome.ACCEPTED: recipients.get(Outcome.ACCEPTED, 0) + 2}
    assert {outcome: count for outcome, count in tally.recipients.items() if count} == recipients
    assert tally.connections == 1
    assert not tally.failures
    # Refusals are quick: they are not among the times of messages.
    assert tally.latencies[Phase.MESSAGE].count == tally.accepted


@trio_test
async def test_a_pointless_command_is_not_said_without_pipelining(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Act.MAIL: ["550 no", "250 ok"], Act.RCPT: "550 no"})
    await loaded(peer, Load(messages=2, pipelining=False))
    assert peer.verbs == ["EHLO", "MAIL", "MAIL", "RCPT", "QUIT"]


@trio_test
async def test_a_transaction_that_was_not_finished_is_reset(autojump_clock: MockClock) -> None:
    peer = Peer({Act.RCPT: {"u0.0@b.example": "550 no"}})
    tally = await loaded(peer, Load(messages=2))
    assert peer.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA", "QUIT"]
    assert tally.latencies[Phase.RSET].count == 1
    assert tally.messages == {Outcome.REFUSED: 1, Outcome.ACCEPTED: 1}


@trio_test
async def test_permission_to_send_to_nobody_is_not_used(autojump_clock: MockClock) -> None:
    peer = Peer({Act.RCPT: {"u0.0@b.example": "550 no"}, Act.DATA: "354 go"})
    tally = await loaded(peer, Load(messages=2))
    assert tally.messages == {Outcome.REFUSED: 1, Outcome.ACCEPTED: 1}
    assert [len(link.contents) for link in peer.links] == [0, 1]
    assert not tally.failures


@trio_test
async def test_lmtp_has_a_reply_for_each_recipient(autojump_clock: MockClock) -> None:
    peer = Peer(
        {
            Act.RCPT: {"u0.0@b.example": "550 no"},
            Act.DOT: {"u0.1@b.example": "452 full", "u1.2@b.example": "552 full"},
        },
        lmtp=True,
    )
    tally = await loaded(peer, Load(messages=2, lmtp=True), recipients=3)
    assert tally.messages == {Outcome.PARTLY: 2}
    assert tally.recipients == {Outcome.ACCEPTED: 3, Outcome.DEFERRED: 1, Outcome.REFUSED: 2}
    assert peer.verbs[0] == "LHLO"
    assert tally.latencies[Phase.CONTENT].count == 2  # to the last reply


@trio_test
async def test_421_amid_the_replies_of_lmtp_defers_the_rest(autojump_clock: MockClock) -> None:
    peer = Peer({Act.DOT: {"u0.1@b.example": ("421 bye", Fault.CUT)}}, lmtp=True)
    tally = await loaded(peer, Load(messages=2, lmtp=True), recipients=3)
    assert tally.messages == {Outcome.PARTLY: 1, Outcome.ACCEPTED: 1}
    assert tally.recipients == {
        Outcome.ACCEPTED: 4,
        Outcome.DEFERRED: 2,
        Outcome.REFUSED: 0,
    }
    assert not tally.failures


@pytest.mark.parametrize("act", [Act.MAIL, Act.RCPT, Act.DATA, Act.DOT])
@trio_test
async def test_421_defers_the_message_and_ends_the_connection(
    autojump_clock: MockClock, act: Act
) -> None:
    peer = Peer({act: [("421 4.3.2 bye", Fault.CUT), "354 go" if act is Act.DATA else "250 ok"]})
    tally = await loaded(peer, Load(messages=2))
    assert tally.messages == {Outcome.DEFERRED: 1, Outcome.ACCEPTED: 1}
    assert tally.connections == 2
    assert not tally.failures
    assert peer.verbs.count("QUIT") == 1


@pytest.mark.parametrize("word", ["speak_up", "hang_up"])
@trio_test
async def test_a_message_is_not_lost_with_a_connection_that_ended_before_it(
    autojump_clock: MockClock, word: str
) -> None:
    peer = Peer()
    tally = Tally()
    async with network(peer) as net, trio.open_nursery() as nursery:
        nursery.start_soon(run, Load(messages=2, rate=0.1), net.dial, composer(), tally)
        await trio.sleep(5)
        getattr(peer, word)()
    assert tally.messages == {Outcome.ACCEPTED: 2}
    assert (tally.connections, tally.stale) == (2, 1)
    assert not tally.failures
    assert tally.latencies[Phase.LATE].count == 2  # the one that was offered twice counts once


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ({Act.GREETING: "554 5.7.1 no"}, Outcome.REFUSED),
        ({Act.GREETING: ("421 4.7.0 busy", Fault.CUT)}, Outcome.DEFERRED),
        ({Act.EHLO: "450 4.7.0 later"}, Outcome.DEFERRED),
        ({Act.EHLO: "550 no", Act.HELO: "550 no"}, Outcome.REFUSED),
    ],
)
@trio_test
async def test_a_server_that_does_not_want_us_is_counted(
    autojump_clock: MockClock, script: Mapping[Act, Script], outcome: Outcome
) -> None:
    tally = await loaded(Peer(script), Load(messages=3))
    assert tally.messages == {outcome: 3}
    assert not tally.failures
    assert tally.seconds == pytest.approx(0.3)  # a pause after each


@trio_test
async def test_a_load_that_nobody_takes_is_given_up(autojump_clock: MockClock) -> None:
    tally = Tally()
    async with network(Peer()) as net:
        net.error = ConnectionRefusedError(111, "Connection refused")
        await run(Load(sessions=5, messages=1000, give_up=20), net.dial, composer(), tally)
    assert troubles(tally) == {(Phase.CONNECT, Trouble.UNREACHABLE): 20}
    assert tally.gave_up == ("20 connections in a row led to no session: Connection refused")
    assert exit_status(tally) == os.EX_UNAVAILABLE


@trio_test
async def test_a_session_in_between_is_reason_to_go_on(autojump_clock: MockClock) -> None:
    peer = Peer({Act.GREETING: ["421 busy", "421 busy", "220 hello", "421 busy", "421 busy"]})
    tally = await loaded(peer, Load(messages=5, per_connection=1, give_up=3))
    assert tally.messages == {Outcome.DEFERRED: 4, Outcome.ACCEPTED: 1}
    assert not tally.gave_up


@trio_test
async def test_a_load_that_is_cancelled_says_what_was_under_way(autojump_clock: MockClock) -> None:
    tally = Tally()
    async with network(Peer({Act.DOT: Late(10.0, "250 ok")})) as net:
        with trio.move_on_after(25.0):
            await run(Load(sessions=2, messages=100), net.dial, composer(), tally)
    assert tally.messages == {Outcome.ACCEPTED: 4}
    assert tally.begun == 6
    assert tally.seconds == pytest.approx(25.0)
    assert exit_status(tally) == os.EX_TEMPFAIL
    assert "2 cut off" in shown(tally)


# --- its words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:25", Target(host="127.0.0.1", port=25)),
        ("[::1]:2525", Target(host="::1", port=2525)),
        ("mx.example:24", Target(host="mx.example", port=24)),
        ("unix:/run/lmtp", Target(path="/run/lmtp")),
    ],
)
def test_targets_are_read_and_written_alike(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":25", "host:0", "host:99999", "h:²", "unix:"]
)
def test_a_bad_target_is_named(text: str) -> None:
    with pytest.raises(TargetError, match="unix:"):
        parse_target(text)


@trio_test
async def test_source_addresses_are_checked_before_the_load() -> None:
    with pytest.raises(TargetError, match=r"source address 192\.0\.2\.1"):
        await dialler(Target(host="127.0.0.1", port=25), ["192.0.2.1"])
    with pytest.raises(TargetError, match="leave out --source"):
        await dialler(Target(path="/x"), ["127.0.0.1"])


def test_patterns_count() -> None:
    assert Pattern("a{n}.{r}@x")(12, 3) == "a12.3@x"
    assert Pattern("a{n%10}.{r%2}@x")(12, 3) == "a2.1@x"
    assert Pattern("a@x")(12, 3) == "a@x"
    assert Pattern("")(1) == ""


@pytest.mark.parametrize("text", ["{x}@y", "{n@y", "n}@y", "{n%0}@y", "{n%}@y", "ü@y"])
def test_a_bad_pattern_is_named(text: str) -> None:
    with pytest.raises(MessageError) as caught:
        Pattern(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("sender", "recipient"),
    [("a@b\nc", "x@y"), ("a@b", ""), ("a@b", "x@y z"), ("a" * 2030 + "{n}@b", "x@y")],
)
def test_what_smtp_cannot_carry_is_refused_before_the_load(sender: str, recipient: str) -> None:
    with pytest.raises(MessageError, match=r"sender|recipient"):
        Envelopes(sender, recipient)


def test_limits_are_for_all_phases_or_for_one() -> None:
    assert parse_limits(()) == {}
    limits = parse_limits(("5", "content=60"))
    assert limits == {**dict.fromkeys(DIALOGUE, 5.0), Phase.CONTENT: 60.0}
    assert Load(limits=limits).limit(Phase.RCPT) == 5.0
    for word in ("x", "0", "-1", "nan", "inf", "late=5", "=5", "data=", "content:5"):
        with pytest.raises(click.BadParameter):
            parse_limits((word,))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["127.0.0.1:9", "--size", "4k"],
        ["127.0.0.1:9", "--size", "uniform:5:2"],
        ["127.0.0.1:9", "--size", "lognormal:5:x"],
        ["127.0.0.1:9", "--size", "lognormal:5:nan"],
        ["127.0.0.1:9", "--size", "0"],
        ["127.0.0.1:9", "--sender", "{q}@x"],
        ["127.0.0.1:9", "--helo", "two words"],
        ["127.0.0.1:9", "--content", "/dev/null"],
        ["127.0.0.1:9", "--time-limit", "soon"],
        ["127.0.0.1:9", "--sessions", "2000000000"],
        ["127.0.0.1:9", "--rate", "0"],
    ],
)
def test_bad_options_are_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError) as caught:
        main.main(arguments, standalone_mode=False)
    assert caught.value.format_message()


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["127.0.0.1:9", "--content", "/none"], os.EX_NOINPUT, "/none: No such file"),
        (["127.0.0.1:9", "--json", "/none/x"], os.EX_CANTCREAT, "--json /none/x: No such file"),
        (["none.invalid:9"], os.EX_NOHOST, "none.invalid: "),
    ],
)
def test_what_is_not_there_has_a_status_of_its_own(
    arguments: list[str], status: int, complaint: str
) -> None:
    with pytest.raises(CommandError, match=complaint) as caught:
        main.main(arguments, standalone_mode=False)
    assert caught.value.status == status
    assert "Errno" not in str(caught.value)


# --- contents -------------------------------------------------------------------------------------


def octets_of(content: Content) -> bytes:
    """What a server stores of it: no dot in it was doubled, so none is to be taken away."""
    wire = b"".join(content.pieces)
    assert wire.endswith(b"\r\n.\r\n")
    assert b"\r\n." not in wire[:-5]
    return wire[:-3]


@given(st.integers(1, 3 * BLOCK), st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_generated_contents_have_their_size_and_canonical_lines(size: int, number: int) -> None:
    content = Generated(lambda: size, "run")(number)
    octets = octets_of(content)
    head = octets.partition(b"\r\n\r\n")[0]
    assert len(octets) == content.octets == max(size, len(head) + 6)
    assert octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    assert all(len(piece) <= 2 * BLOCK for piece in content.pieces)


def test_contents_of_changing_sizes_differ_in_size() -> None:
    sizes = iter((1000, 2000, 1000, 200_000))
    contents = Generated(lambda: next(sizes), "run")
    drawn = [len(octets_of(contents(number))) for number in range(4)]
    assert drawn == [1000, 2000, 1000, 200_000]


def test_sizes_come_from_their_distribution() -> None:
    rng = random.Random(1)
    assert parse_sizes("4096", rng)() == 4096
    uniform = [parse_sizes("uniform:10:13", rng)() for _ in range(200)]
    assert set(uniform) == {10, 11, 12, 13}
    draw = parse_sizes("lognormal:5000:1.5:20000", rng)
    drawn = sorted(draw() for _ in range(2001))
    assert drawn[1000] == pytest.approx(5000, rel=0.2)
    assert drawn[-1] == 20_000
    assert drawn[317] == pytest.approx(5000 / 2.718**1.5, rel=0.2)  # one sigma below


def test_real_messages_are_sent_in_turn_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "cur").mkdir()
    (tmp_path / "a").write_bytes(b"Subject: a\n\n.dot\n")
    (tmp_path / "cur" / "b").write_bytes("Subject: b\r\n\r\nü".encode())
    contents = read_contents(tmp_path)
    first, second = contents(0), contents(1)
    assert first.pieces == (b"Subject: a\r\n\r\n..dot\r\n.\r\n",)
    assert (first.octets, first.eight_bit) == (20, False)
    assert second.pieces == ("Subject: b\r\n\r\nü\r\n.\r\n".encode(),)
    assert second.eight_bit
    assert contents(2) == first
    assert read_contents(tmp_path / "a")(5) == first


def test_an_mbox_holds_many_messages(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "box")
    for number in range(3):
        box.add(f"Subject: {number}\n\nFrom here\n".encode())
    box.close()
    contents = read_contents(tmp_path / "box")
    assert [contents(number).pieces[0][9:10] for number in range(4)] == [b"0", b"1", b"2", b"0"]


def test_files_that_are_no_messages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MessageError, match="no message there"):
        read_contents(tmp_path)
    with pytest.raises(MessageError, match="No such file"):
        read_contents(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MessageError, match="neither a file nor a directory"):
        read_contents(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 2000)
    monkeypatch.setattr("bench.source.messages.FILES_LIMIT", 1999)
    with pytest.raises(MessageError, match="use fewer"):
        read_contents(tmp_path / "large")


@trio_test
async def test_eight_bit_contents_are_announced(autojump_clock: MockClock, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes("Subject: ü\n\n".encode())
    words = Composer(Envelopes("a@b.example", "c@d.example"), read_contents(tmp_path))
    for extensions, parameters in (
        (("SIZE", "8BITMIME"), " SIZE=15 BODY=8BITMIME"),
        (("DSN",), ""),  # sent all the same: it is a load
    ):
        peer = Peer(extensions=extensions)
        async with network(peer) as net:
            await run(Load(), net.dial, words, Tally())
        assert peer.commands[1] == f"MAIL FROM:<a@b.example>{parameters}"
        assert len(peer.accepted) == 1


# --- figures --------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 3000.0), min_size=1, max_size=60), st.sampled_from([50, 90, 99]))
@settings(deadline=None)
def test_percentiles_are_those_of_the_sorted_list(seconds: list[float], percent: int) -> None:
    latencies = Latencies()
    for value in seconds:
        latencies.add(value)
    rank = max(1, int(len(seconds) * percent / 100 + 0.5))
    exact = sorted(seconds)[rank - 1]
    assert latencies.percentile(percent) == pytest.approx(exact, rel=2e-3, abs=1.1e-6)
    assert latencies.percentile(100) <= latencies.longest == max(seconds)
    assert latencies.count == len(seconds)


def test_times_beyond_the_histogram_are_kept_at_its_ends() -> None:
    latencies = Latencies()
    latencies.add(0.0)
    latencies.add(1e9)
    assert latencies.count == 2
    assert latencies.longest == 1e9
    assert latencies.percentile(50) == pytest.approx(1e-6)


def shown(tally: Tally) -> str:
    """What people read, on one line of any length."""
    output = StringIO()
    report.show(tally, Console(file=output, width=300))
    return output.getvalue()


@trio_test
async def test_the_report_shows_a_sample_of_each_reply_as_it_was(
    autojump_clock: MockClock,
) -> None:
    long = "x" * 1000
    peer = Peer(
        {
            Act.RCPT: {
                "u0.0@b.example": "550 5.1.1 [red]no[/red] \x1b[31m",
                "u1.0@b.example": f"450 {long}",
            },
            Act.QUIT: Fault.CUT,
        }
    )
    tally = await loaded(peer, Load(messages=3))
    text = shown(tally)
    assert "1 accepted, 1 deferred, 1 refused" in text
    assert "550 5.1.1 [red]no[/red] ?[31m" in text
    assert long[:SAMPLE_LENGTH] not in text
    assert "connection lost" in text
    assert "STARTTLS" not in text
    found = json.loads(json.dumps(report.as_json(tally)))
    assert found["messages"]["refused"] == 1
    rcpt = [reply for reply in found["replies"] if reply["phase"] == "RCPT"]
    assert [(reply["code"], reply["count"]) for reply in rcpt] == [(250, 1), (450, 1), (550, 1)]
    assert found["failures"][0]["kind"] == "connection lost"
    assert found["times"]["MAIL"]["count"] == 3


@trio_test
async def test_the_report_names_what_it_cannot_do_and_what_spoils_its_figures(
    autojump_clock: MockClock,
) -> None:
    tally = await loaded(Peer({Act.MAIL: "530 5.7.0 Must issue STARTTLS first"}), Load())
    tally.seconds, tally.cpu, tally.queued = 10.0, 9.0, 0.1
    assert "STARTTLS" in shown(tally)
    assert "busy 90% of the time" in shown(tally)
    tally.cpu, tally.queued = 1.0, 2.0
    assert "busy" not in shown(tally)
    assert "waited 20% of the time for a processor" in shown(tally)


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ({Outcome.ACCEPTED: 2}, os.EX_OK),
        ({Outcome.ACCEPTED: 1, Outcome.DEFERRED: 1}, os.EX_TEMPFAIL),
        ({Outcome.PARTLY: 2}, os.EX_TEMPFAIL),
        ({Outcome.REFUSED: 1, Outcome.FAILED: 1}, os.EX_UNAVAILABLE),
        ({}, os.EX_UNAVAILABLE),
    ],
)
def test_the_exit_status_says_how_much_was_accepted(
    messages: dict[Outcome, int], status: int
) -> None:
    tally = Tally(begun=sum(messages.values()))
    tally.messages.update(messages)
    assert exit_status(tally) == status


@trio_test
async def test_a_tally_does_not_grow_with_the_load(autojump_clock: MockClock) -> None:
    tally = await loaded(
        Peer({Act.DOT: ["250 ok", "451 no"]}), Load(messages=300, per_connection=7)
    )
    await wait_all_tasks_blocked()
    assert len(tally.replies) + len(tally.failures) + len(tally.latencies) < 20
