"""The sink: its dialogue over in-memory streams on a virtual clock, its listeners on loopback.

Deterministic because nothing waits for time or for the scheduler: replies are read until the
expected number of lines is there.
"""

import base64
import hashlib
import itertools
import json
import math
import shlex
import socket
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, trio_test

from bench.sink import limits
from bench.sink.behaviour import Behaviour, BehaviourError, Phase, Rate
from bench.sink.content_receiver import ContentReceiver
from bench.sink.listen import Listen, parse_listen
from bench.sink.record import Received, RecordFile
from bench.sink.session import GREYLISTED, MAX_LINE, Session
from bench.sink.sink import Sink
from bench.sink.trio_lane import serve_sinks, serve_stream
from bench.sink.words import parse_behaviour, split_words

HUNG = 10_000.0  # virtual seconds: whoever waits so long waits for ever
EHLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"


class Client:
    """One end of a dialogue, with a reader of lines."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._unread = b""

    async def send(self, octets: bytes) -> None:
        """Send, whether or not the sink is still there."""
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(octets)

    async def lines(self, count: int) -> list[bytes]:
        """The next `count` lines; EOFError when the sink closes before."""
        while self._unread.count(b"\n") < count:
            data = await self._stream.receive_some()
            if not data:
                raise EOFError(self._unread)
            self._unread += data
        *lines, self._unread = self._unread.split(b"\r\n", count)
        return lines

    async def codes(self, count: int) -> list[int]:
        """The codes of the next `count` lines."""
        return [int(line[:3]) for line in await self.lines(count)]

    async def rest(self) -> bytes:
        """Everything until the sink closes."""
        data = self._unread
        while more := await self._stream.receive_some():
            data += more
        return data


@asynccontextmanager
async def talk(behaviour: Behaviour) -> AsyncIterator[tuple[Client, Sink, list[Received]]]:
    """A client of a sink with this behaviour, and what the sink took."""
    client_end, server_end = memory_stream_pair()
    taken: list[Received] = []
    sink = Sink(behaviour=behaviour, take=taken.append, keep=True, clock=trio.current_time)
    with trio.fail_after(HUNG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, sink, server_end)
            yield Client(client_end), sink, taken
            nursery.cancel_scope.cancel()


async def greet(client: Client) -> None:
    """Read the greeting, introduce ourselves."""
    await client.lines(1)
    await client.send(EHLO)
    await client.lines(7)


# --- content ------------------------------------------------------------------------------------


def stuffed(content: bytes) -> bytes:
    """Content as it travels: plain definition, line by line."""
    lines = content.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


PIECES = st.sampled_from([b".", b"..", b"\r\n", b"\r", b"\n", b"text", b"\0", b"\xff"])


@given(st.lists(PIECES).map(b"".join), st.lists(st.integers(0, 60)), st.binary(max_size=8))
@settings(max_examples=300)
def test_content_comes_out_as_it_went_in_however_it_is_cut(
    content: bytes, cuts: list[int], after: bytes
) -> None:
    content += b"\r\n"
    wire = stuffed(content) + b".\r\n" + after
    edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    receiver = ContentReceiver()
    got, rest = b"", b""
    for start, end in itertools.pairwise(edges):
        if receiver.finished:
            rest += wire[start:end]
        else:
            got += receiver.receive_data(wire[start:end])
    assert receiver.finished
    assert got == content
    assert receiver.rest + rest == after


def test_content_may_be_empty() -> None:
    receiver = ContentReceiver()
    assert receiver.receive_data(b".\r\nQUIT\r\n") == b""
    assert receiver.finished
    assert receiver.rest == b"QUIT\r\n"


@pytest.mark.parametrize("end", [b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n"])
def test_only_crlf_dot_crlf_ends_the_content(end: bytes) -> None:
    receiver = ContentReceiver()
    receiver.receive_data(b"text" + end)
    assert not receiver.finished


# --- dialogue -----------------------------------------------------------------------------------


@trio_test
async def test_a_pipelined_session_gets_its_replies_in_order(autojump_clock: MockClock) -> None:
    async with talk(Behaviour()) as (client, sink, taken):
        await greet(client)
        await client.send(ENVELOPE)
        assert await client.codes(3) == [250, 250, 354]
        await client.send(b"Message-ID: <1@x>\r\n\r\nhello\r\n.\r\n" + ENVELOPE)
        assert await client.codes(4) == [250, 250, 250, 354]
        await client.send(b"\r\nMessage-ID: <no@header>\r\n.\r\nQUIT\r\n")
        assert await client.codes(2) == [250, 221]
        assert await client.rest() == b""
    assert [(one.transaction, one.message_id) for one in taken] == [(1, "<1@x>"), (2, "")]
    assert (sink.counters.messages, sink.counters.connections) == (2, 1)


@trio_test
async def test_one_octet_at_a_time_is_understood(autojump_clock: MockClock) -> None:
    async with talk(Behaviour()) as (client, _, taken):
        await greet(client)
        for octet in ENVELOPE + b"..\r\n.\r\n":
            await client.send(bytes([octet]))
        assert await client.codes(4) == [250, 250, 354, 250]
    assert taken[0].content == b".\r\n"


@trio_test
async def test_the_digest_is_of_the_content_as_submitted(autojump_clock: MockClock) -> None:
    content = b"Subject: dots\r\n\r\n.one\r\n..two\r\n\0 \xe9 bare\rCR and\nLF\r\n"
    async with talk(Behaviour()) as (client, _, taken):
        await greet(client)
        await client.send(ENVELOPE + stuffed(content) + b".\r\n")
        assert await client.codes(4) == [250, 250, 354, 250]
    assert taken[0].sha256 == hashlib.sha256(content).hexdigest()
    assert taken[0].size == len(content)


@trio_test
async def test_lmtp_answers_for_each_accepted_recipient(autojump_clock: MockClock) -> None:
    behaviour = parse_behaviour(
        ["lmtp", "to:no@x=550 5.1.1 no", "mailbox:full@x=452 4.2.2 mailbox full"]
    )
    async with talk(behaviour) as (client, _, taken):
        await client.lines(1)
        await client.send(EHLO + b"LHLO client.example\r\n")
        assert await client.codes(8) == [500, *[250] * 7]
        await client.send(b"MAIL FROM:<>\r\n" + rcpt(b"no") + rcpt(b"full") + rcpt(b"b"))
        assert await client.codes(4) == [250, 550, 250, 250]
        await client.send(b"DATA\r\nhello\r\n.\r\n")
        assert await client.codes(3) == [354, 452, 250]
    assert [one.recipients for one in taken] == [["b@x"]]


def rcpt(local: bytes) -> bytes:
    """A RCPT command for somebody at x."""
    return b"RCPT TO:<" + local + b"@x>\r\n"


@trio_test
async def test_greylisting_accepts_a_pair_after_its_time(autojump_clock: MockClock) -> None:
    async with talk(Behaviour(greylist=60.0)) as (client, _, taken):
        await greet(client)
        await client.send(ENVELOPE)
        assert await client.codes(3) == [250, 450, 554]
        await trio.sleep(30)
        await client.send(b"RSET\r\n" + ENVELOPE)
        assert await client.codes(4) == [250, 250, 450, 554]
        await trio.sleep(30)
        await client.send(b"RSET\r\n" + ENVELOPE + b".\r\n")
        assert await client.codes(5) == [250, 250, 250, 354, 250]
    assert len(taken) == 1


@trio_test
async def test_refused_recipients_leave_no_transaction_to_send(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["refuse"])) as (client, sink, taken):
        await greet(client)
        await client.send(ENVELOPE)
        assert await client.codes(3) == [250, 550, 554]
    assert not taken
    assert sink.counters.refused == 2


@trio_test
async def test_a_refused_greeting_closes_the_connection(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["connect=554 5.3.2 no mail here"])) as (client, _, _taken):
        assert await client.rest() == b"554 5.3.2 no mail here\r\n"


@trio_test
async def test_nothing_follows_a_421(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["rcpt=421 4.3.2 shutting down"])) as (client, _, _taken):
        await greet(client)
        await client.send(ENVELOPE)
        assert (await client.rest()).endswith(b"421 4.3.2 shutting down\r\n")


@pytest.mark.parametrize(
    "phase", [one for one in Phase if one not in (Phase.STARTTLS, Phase.HANDSHAKE, Phase.AUTH)]
)
@trio_test
async def test_a_cut_closes_the_connection_in_its_phase(
    autojump_clock: MockClock, phase: Phase
) -> None:
    async with talk(Behaviour(cut=phase)) as (client, _, taken):
        await client.send(EHLO + ENVELOPE + b"x\r\n.\r\nRSET\r\nQUIT\r\n")
        replies = (await client.rest()).count(b"\r\n")
    reached = {
        Phase.CONNECT: 0,
        Phase.EHLO: 1,
        Phase.MAIL: 8,
        Phase.RCPT: 9,
        Phase.DATA: 10,
        Phase.CONTENT: 11,
        Phase.END: 11,
        Phase.RSET: 12,
        Phase.QUIT: 13,
    }
    assert replies == reached[phase]
    # Cut after the final dot, the message is taken all the same: that is a delivery in doubt.
    assert bool(taken) is (phase in (Phase.END, Phase.RSET, Phase.QUIT))


@trio_test
async def test_a_cut_after_octets_answers_what_came_before(autojump_clock: MockClock) -> None:
    async with talk(Behaviour(cut_after=len(EHLO) + 10)) as (client, _, _taken):
        await client.send(EHLO + ENVELOPE)
        assert (await client.rest()).endswith(b"250 ENHANCEDSTATUSCODES\r\n")


@trio_test
async def test_a_silent_phase_keeps_the_connection(autojump_clock: MockClock) -> None:
    async with talk(Behaviour(silent=Phase.END)) as (client, _, taken):
        await greet(client)
        await client.send(ENVELOPE + b"x\r\n.\r\n")
        assert await client.codes(3) == [250, 250, 354]
        with trio.move_on_after(3600) as scope:
            await client.lines(1)
        assert scope.cancelled_caught
    assert len(taken) == 1


@trio_test
async def test_each_reply_takes_its_latency(autojump_clock: MockClock) -> None:
    async with talk(Behaviour(latency=2.0)) as (client, _, _taken):
        await greet(client)
        assert trio.current_time() == 4.0
        await client.send(ENVELOPE)
        await client.lines(3)
        assert trio.current_time() == 10.0


# --- a round-trip time --------------------------------------------------------------------------


@trio_test
async def test_a_pipelined_flight_is_answered_one_round_trip_later(
    autojump_clock: MockClock,
) -> None:
    async with talk(Behaviour(rtt=2.0)) as (client, _, _taken):
        await client.lines(1)
        assert trio.current_time() == 2.0  # the greeting, too
        await client.send(EHLO)
        await client.lines(7)
        assert trio.current_time() == 4.0
        await client.send(b"MAIL FROM:<>\r\n" + rcpt(b"a") * 8 + b"DATA\r\n")
        assert await client.codes(10) == [250] * 9 + [354]
        assert trio.current_time() == 6.0


@trio_test
async def test_commands_are_read_while_replies_are_on_their_way(autojump_clock: MockClock) -> None:
    async with talk(Behaviour(rtt=2.0)) as (client, _, taken):
        await greet(client)
        began = trio.current_time()
        await client.send(ENVELOPE)
        await trio.sleep(0.5)
        await client.send(b"x\r\n.\r\n" + ENVELOPE)
        await trio.sleep(0.5)
        assert len(taken) == 1  # before its 354 has left
        await client.send(b"y\r\n.\r\nRSET\r\n")
        arrived = []
        for count in (3, 4, 2):
            await client.codes(count)
            arrived.append(trio.current_time() - began)
    assert arrived == [2.0, 2.5, 3.0]
    assert [one.content for one in taken] == [b"x\r\n", b"y\r\n"]


@trio_test
async def test_content_is_answered_one_round_trip_after_its_dot(autojump_clock: MockClock) -> None:
    async with talk(Behaviour(rtt=2.0)) as (client, _, _taken):
        await greet(client)
        await client.send(ENVELOPE)
        await client.lines(3)
        for piece in (b"x\r\n", b"y\r", b"\n.\r", b"\n"):
            await trio.sleep(1)
            last = trio.current_time()
            await client.send(piece)
        assert await client.codes(1) == [250]
        assert trio.current_time() == last + 2.0


@pytest.mark.parametrize(
    ("words", "sent", "last"),
    [
        ([], b"QUIT\r\n", b"221 2.0.0 sink.example bye\r\n"),
        (["mail=421 4.3.2 busy"], ENVELOPE, b"421 4.3.2 busy\r\n"),
        (["cut=data"], ENVELOPE, b"250 2.1.5 Ok\r\n"),
    ],
)
@trio_test
async def test_the_end_of_a_connection_is_as_far_away_as_its_replies(
    autojump_clock: MockClock, words: list[str], sent: bytes, last: bytes
) -> None:
    async with talk(parse_behaviour(["rtt=2", *words])) as (client, _, _taken):
        await greet(client)
        await client.send(sent)
        assert (await client.rest()).endswith(last)
        assert trio.current_time() == 6.0


@pytest.mark.parametrize(
    ("words", "command", "code"),
    [
        ([], "MAIL FROM:<a@b> SIZE=10 BODY=8BITMIME RET=HDRS ENVID=x", 250),
        ([], "MAIL FROM:<é@b>", 553),
        ([], "MAIL FROM:<é@b> SMTPUTF8", 250),
        ([], "mail from:<é@b> smtputf8 size=1 body=8bitmime", 250),
        ([], 'MAIL FROM:<"a> b"@c>', 250),
        ([], "MAIL FROM:a@b", 501),
        ([], "MAIL FROM:<a@b> SIZE=x", 501),
        ([], "MAIL FROM:<a@b> NOVEL=1", 555),
        (["without=DSN"], "MAIL FROM:<a@b> RET=HDRS", 555),
        (["size=100"], "MAIL FROM:<a@b> SIZE=101", 552),
        ([], "RCPT TO:<a@b>", 503),
        ([], "DATA", 503),
        ([], "LHLO x", 500),
        ([], "NONSENSE", 500),
    ],
)
@trio_test
async def test_commands_are_judged_by_what_was_announced(
    autojump_clock: MockClock, words: list[str], command: str, code: int
) -> None:
    async with talk(parse_behaviour(words)) as (client, _, _taken):
        await client.lines(1)
        await client.send(command.encode() + b"\r\n")
        assert await client.codes(1) == [code]


@trio_test
async def test_a_message_beyond_the_size_limit_is_refused_after_the_dot(
    autojump_clock: MockClock,
) -> None:
    async with talk(Behaviour(size_limit=10)) as (client, _, taken):
        await greet(client)
        await client.send(ENVELOPE + b"0123456789\r\n.\r\n")
        assert await client.codes(4) == [250, 250, 354, 552]
    assert not taken


# --- the dialogue without any line --------------------------------------------------------------

CONTENTS = st.lists(PIECES, max_size=12).map(b"".join)
COMMANDS = st.sampled_from(
    [b"NOOP\r\n", b"RSET\r\n", b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@x>\n", b"NONSENSE\r\n", b"\r\n"]
)


def replies_to(pieces: Iterable[bytes], behaviour: Behaviour) -> tuple[bytes, list[Received], Sink]:
    """What a sink says to a client that sends these pieces, and what it took."""
    taken: list[Received] = []
    sink = Sink(behaviour=behaviour, take=taken.append, keep=True, random=Random(1))
    session = Session(sink)
    said = session.take()
    for piece in pieces:
        session.receive(piece)
        said += session.take()
    return said, taken, sink


@given(
    st.lists(st.one_of(COMMANDS, CONTENTS.map(lambda one: ENVELOPE + stuffed(one) + b"\r\n.\r\n"))),
    st.lists(st.integers(0, 400)),
    st.sampled_from(
        [[], ["lmtp"], ["rcpt=40% 451 4.7.1 later"], ["cut-after=150"], ["messages=1"]]
    ),
)
@settings(max_examples=200)
def test_the_answers_do_not_depend_on_how_the_input_is_cut(
    parts: list[bytes], cuts: list[int], words: list[str]
) -> None:
    behaviour = parse_behaviour(words)
    wire = (b"LHLO x\r\n" if behaviour.lmtp else b"EHLO x\r\n") + b"".join(parts) + b"QUIT\r\n"
    edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    pieces = [wire[one:two] for one, two in itertools.pairwise(edges)]
    said, taken, _ = replies_to([wire], behaviour)
    for cut in (pieces, [bytes((octet,)) for octet in wire]):
        assert replies_to(cut, behaviour)[:2] == (said, taken)


def test_a_line_too_long_is_refused_and_not_kept() -> None:
    session = Session(Sink())
    session.take()
    for _ in range(1_000):
        session.receive(b"x" * 10_000)
    assert session.take() == b""
    session.receive(b"x\r\nNOOP\r\n" + b"y" * MAX_LINE + b"z\r\nNOOP\r\n")
    assert session.take() == (b"500 5.5.2 line too long\r\n250 2.0.0 Ok\r\n") * 2


def test_a_large_content_is_not_kept() -> None:
    session = Session(sink := Sink())
    session.receive(b"EHLO x\r\n" + ENVELOPE)
    session.take()
    piece = b"0123456789abcd\r\n" * 4_096
    tracemalloc.start()
    try:
        for _ in range(1_600):  # 105 MB
            session.receive(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    session.receive(b".\r\n")
    assert session.take() == b"250 2.0.0 Ok: taken\r\n"
    assert sink.counters.octets == 1_600 * len(piece)
    assert peak < 5 * len(piece)


def test_bdat_is_neither_announced_nor_known() -> None:
    said, _, _ = replies_to([EHLO, b"BDAT 10 LAST\r\n"], Behaviour())
    assert b"CHUNKING" not in said
    assert said.endswith(b"\r\n500 5.5.2 unknown command\r\n")


def test_more_recipients_than_the_limit_get_452() -> None:
    said, taken, _ = replies_to(
        [EHLO, b"MAIL FROM:<>\r\n" + rcpt(b"a") * 3 + b"DATA\r\n.\r\n"],
        parse_behaviour(["recipient-limit=2"]),
    )
    assert [line[:3] for line in said.splitlines()[9:]] == [
        *[b"250", b"250", b"452", b"354", b"250"]
    ]
    assert taken[0].recipients == ["a@x", "a@x"]


# --- errors by chance ---------------------------------------------------------------------------


def test_errors_come_as_often_as_they_should_and_as_the_seed_says() -> None:
    behaviour = parse_behaviour(["rcpt=10% 451 4.7.1 later", "rcpt=30%550 5.1.1 no", "rcpt=251 hm"])
    wire = EHLO + b"MAIL FROM:<>\r\n" + rcpt(b"a") * 5_000
    said, _, sink = replies_to([wire], behaviour)
    codes = Counter(line[:3] for line in said.splitlines()[8:])
    assert codes.keys() == {b"250", b"451", b"550", b"251"}  # 250: MAIL's
    assert 400 < codes[b"451"] < 600
    assert 1_350 < codes[b"550"] < 1_650
    assert sink.counters.codes == {"451": codes[b"451"], "550": codes[b"550"]}
    assert replies_to([wire], behaviour)[0] == said


def test_a_message_refused_by_chance_after_the_dot_is_not_taken() -> None:
    said, taken, sink = replies_to(
        [EHLO, *[ENVELOPE + b"x\r\n.\r\n"] * 200], parse_behaviour(["end=50% 451 4.3.0 no"])
    )
    assert sink.counters.messages == len(taken) == said.count(b"250 2.0.0 Ok: taken")
    assert sink.counters.codes == {"451": 200 - len(taken)}
    assert 60 < len(taken) < 140


def test_each_lmtp_recipient_has_its_own_chance() -> None:
    wire = b"LHLO x\r\nMAIL FROM:<>\r\n" + rcpt(b"a") * 400 + b"DATA\r\n.\r\n"
    said, taken, _ = replies_to([wire], parse_behaviour(["lmtp", "end=50% 451 4.3.0 no"]))
    assert said.count(b"250 2.0.0 Ok: taken") == len(taken[0].recipients)
    assert 140 < len(taken[0].recipients) < 260


def test_who_is_named_is_answered_as_said_whatever_happens_to_others() -> None:
    behaviour = parse_behaviour(["refuse", "greylist=60", "to:a@x=250 2.1.5 welcome"])
    said, _, _ = replies_to([EHLO, b"MAIL FROM:<>\r\n" + rcpt(b"a") + rcpt(b"b")], behaviour)
    assert said.splitlines()[-2:] == [b"250 2.1.5 welcome", GREYLISTED[:-2]]


# --- limits -------------------------------------------------------------------------------------


def test_after_so_many_messages_the_next_one_ends_the_connection() -> None:
    said, taken, _ = replies_to(
        [EHLO, *[ENVELOPE + b"x\r\n.\r\n"] * 3, b"NOOP\r\n"], parse_behaviour(["messages=2"])
    )
    assert len(taken) == 2
    assert said.splitlines()[-1][:3] == b"421"
    assert said.count(b"354") == 2


def test_a_connection_too_many_gets_421_until_another_one_ends() -> None:
    sink = Sink(behaviour=parse_behaviour(["connections=2"]))
    first, _, third = Session(sink), Session(sink), Session(sink)
    assert third.take().startswith(b"421 4.3.2 ")
    assert third.closing
    third.end()
    first.end()
    assert Session(sink).take().startswith(b"220 ")
    assert (sink.counters.connections, sink.counters.open, sink.counters.open_most) == (4, 2, 3)


def test_connections_of_a_client_are_counted_apart_from_others() -> None:
    sink = Sink(behaviour=parse_behaviour(["client-connections=1"]))
    said = [Session(sink, client).take()[:3] for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]
    assert said == [b"220", b"220", b"421"]


def test_a_client_that_connects_too_often_gets_421_until_its_interval_is_over() -> None:
    now = 100.0
    sink = Sink(behaviour=parse_behaviour(["connection-rate=2/60"]), clock=lambda: now)

    def connect(client: str) -> bytes:
        session = Session(sink, client)
        session.end()
        return session.take()[:3]

    assert [connect("a"), connect("a"), connect("a"), connect("b")] == [
        *[b"220", b"220", b"421", b"220"]
    ]
    now += 60.0
    assert connect("a") == b"220"


def test_a_client_that_sends_too_many_messages_gets_450_until_its_interval_is_over() -> None:
    now = 100.0
    sink = Sink(behaviour=parse_behaviour(["message-rate=1/60"]), clock=lambda: now)
    session = Session(sink, "a")
    session.receive(EHLO)
    answers = []
    for wait in (0.0, 59.0, 1.0):
        now += wait
        session.take()
        session.receive(b"RSET\r\nMAIL FROM:<>\r\n")
        answers.append(session.take().splitlines()[1][:3])
    assert answers == [b"250", b"450", b"250"]


def test_what_is_remembered_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST", 10)
    greylist, counts = limits.Greylist(), limits.ClientCounts()
    for number in range(100):
        assert greylist.waiting("", f"{number}@x", 60.0, 0.0)
        assert not counts.exceeds(f"{number}", Rate(1, 60.0), 0.0)
    assert len(greylist.seen) == len(counts.counts) == 10
    assert not greylist.waiting("", "99@x", 60.0, 60.0)
    assert counts.exceeds("99", Rate(1, 60.0), 1.0)


# --- time ---------------------------------------------------------------------------------------


@trio_test
async def test_latency_of_one_phase_delays_only_that(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["latency=1", "latency:rcpt=5", "latency:end=0"])) as (
        client,
        *_,
    ):
        await greet(client)
        assert trio.current_time() == 2.0
        await client.send(ENVELOPE)
        times = []
        for _ in range(3):
            await client.lines(1)
            times.append(trio.current_time())
        await client.send(b"x\r\n.\r\n")
        await client.lines(1)
    assert times == [3.0, 8.0, 9.0]
    assert trio.current_time() == 9.0


@trio_test
async def test_latency_may_be_drawn(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["latency=uniform:1:3"])) as (client, *_):
        await greet(client)
        began, pauses = trio.current_time(), []
        for _ in range(100):
            before = trio.current_time()
            await client.send(b"RSET\r\n")
            await client.lines(1)
            pauses.append(trio.current_time() - before)
    assert 1 <= min(pauses) < 1.2
    assert 2.8 < max(pauses) <= 3
    assert 180 < trio.current_time() - began < 220


@trio_test
async def test_a_tarpit_lets_one_octet_out_at_a_time(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["tarpit=2", "hostname=x"])) as (client, *_):
        assert await client.lines(1) == [b"220 x ESMTP sink"]
        assert trio.current_time() == 2.0 * len(b"220 x ESMTP sink\r\n")


@trio_test
async def test_a_slow_reader_takes_its_time(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["slow-read=10/3"])) as (client, _, taken):
        await client.lines(1)
        wire = EHLO + ENVELOPE + b"x" * 1_000 + b"\r\n.\r\n"
        await client.send(wire)
        await client.lines(11)
        assert trio.current_time() == 3.0 * math.ceil(len(wire) / 10)
    assert taken[0].size == 1_002


@trio_test
async def test_a_cut_comes_when_its_reply_would_have(autojump_clock: MockClock) -> None:
    async with talk(parse_behaviour(["latency=2", "cut=mail"])) as (client, *_):
        await greet(client)
        await client.send(ENVELOPE)
        assert await client.rest() == b""
        assert trio.current_time() == 6.0


# --- words and listeners ------------------------------------------------------------------------


def test_an_unknown_word_is_refused_with_what_it_could_be() -> None:
    with pytest.raises(BehaviourError, match=r"'rctp=550 no'.*connect, ehlo, .*mail, rcpt"):
        parse_behaviour(["rctp=550 no"])


@pytest.mark.parametrize("word", ["rtt=-1", "rtt=nan", "latency=inf", "greylist=-1", "rtt=", "rtt"])
def test_seconds_are_a_number_and_not_negative(word: str) -> None:
    with pytest.raises(BehaviourError, match=word):
        parse_behaviour([word])


def test_a_listener_takes_words_of_its_own() -> None:
    (listen,) = parse_listen("[::1]:25 lmtp 'end=452 4.3.1 disk full'", Behaviour(latency=1.0))
    assert (listen.host, listen.port) == ("::1", 25)
    assert listen.behaviour == Behaviour(
        latency=1.0, lmtp=True, replies={Phase.END: "452 4.3.1 disk full"}
    )
    assert parse_listen("unix:/run/x", Behaviour()) == [Listen(host="", path="/run/x")]
    assert split_words("a 'b c'") == ["a", "b c"]


@trio_test
async def test_listeners_share_one_record_file(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    record = RecordFile(path, wall=lambda: 12.5)
    listens = [
        Listen(host="127.0.0.1"),
        Listen(host="", path=str(tmp_path / "lmtp"), behaviour=Behaviour(lmtp=True)),
    ]
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[Sink]]) -> None:
            await serve_sinks(listens, take=record, keep=True, task_status=task_status)

        sinks: list[Sink] = await nursery.start(serve)
        port = int(sinks[0].name.rpartition(":")[2])
        for connected, hello in (
            (await trio.open_tcp_stream("127.0.0.1", port), b"EHLO a\r\n"),
            (await trio.open_unix_socket(tmp_path / "lmtp"), b"LHLO a\r\n"),
        ):
            async with connected:
                client = Client(connected)
                await client.send(hello + ENVELOPE + b"x\r\n.\r\n")
                await client.lines(12)
        nursery.cancel_scope.cancel()
    record.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["listener"], line["protocol"]) for line in lines] == [
        (sinks[0].name, "smtp"),
        (f"unix:{tmp_path}/lmtp", "lmtp"),
    ]
    assert lines[0]["recipients"] == ["b@example.com"]
    assert base64.b64decode(lines[0]["content"]) == b"x\r\n"
    assert lines[0]["time"] == 12.5


@trio_test
async def test_a_taken_port_is_an_os_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:"):
            await serve_sinks([Listen(host="127.0.0.1", port=taken.getsockname()[1])])


def test_the_quoting_that_the_readme_shows_is_understood() -> None:
    readme = (Path(__file__).parents[2] / "bench/README.md").read_text()
    shown = [
        shlex.split(line)
        for line in readme.splitlines()
        if line.startswith("    python -m bench.sink ") and "rcpt=" in line
    ]
    assert shown
    for words in shown:
        (listen,) = parse_listen(words[words.index("--listen") + 1], Behaviour())
        assert listen.behaviour == parse_behaviour(["rcpt=452 4.5.3 too many"])
