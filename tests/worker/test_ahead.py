"""The next message's envelope travels with the final dot: what servers make of it, cut anywhere.

Deterministic: scripted servers in memory, virtual time. The rule that all tests here come down to:
whatever a server does to such a flight, the outcomes are those that it gives to messages one by
one, nothing is sent twice that is not marked in doubt, and nobody is bounced for another's reply.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Protocol, SendOptions
from tests.cancel_everywhere import cancel_everywhere
from tests.worker.memory_line import MemoryStream
from tests.worker.peer import EXTENSIONS, Answer, Fault, Late, Once, Peer, Phase, Script
from tests.worker.world import CONTENT, World, make_request
from worker.delivery.plain_peers import LIMIT, PLAIN_FOR, PLAIN_FOR_DOUBT, PlainPeers
from worker.delivery.settings import DeliverySettings
from worker.network.address import Endpoint
from worker.status.events import UnexpectedError

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
ENVELOPE = b"MAIL FROM:<%s@client.example> SIZE=25\r\nRCPT TO:<%s@example.com>\r\nDATA\r\n"


def requests(*names: str, protocol: Protocol = Protocol.SMTP) -> list[DeliveryRequest]:
    """One request for each name; a name with commas has several recipients."""
    return [
        replace(
            make_request(
                *(f"{one}@example.com" for one in name.split(",")),
                protocol=protocol,
                sender=f"{name[0]}@client.example",
            ),
            queue_id=name[0].upper(),
        )
        for name in names
    ]


async def in_a_row(world: World, batch: Sequence[DeliveryRequest]) -> list[dict[str, Action]]:
    """Deliver them through one slot; who got which action, by request."""

    async def scenario() -> None:
        await world.deliver_in_a_row(batch)

    await world.play(scenario)
    assert not world.open_streams
    assert not [event for event in world.events if isinstance(event, UnexpectedError)]
    return [
        {outcome.recipient.address.split("@")[0]: outcome.action for outcome in result.outcomes}
        for result in world.results
    ]


# --- the flight ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_the_next_envelope_is_in_one_segment_with_the_final_dot(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    peer = Peer(lmtp=protocol is Protocol.LMTP, extensions=("PIPELINING", "SIZE", "8BITMIME"))
    world = World(peer)
    assert await in_a_row(world, requests("a", "b", "c", protocol=protocol)) == [
        {"a": SENT},
        {"b": SENT},
        {"c": SENT},
    ]
    assert peer.links[0].segments[1:] == [
        ENVELOPE % (b"a", b"a"),
        CONTENT + b".\r\n" + ENVELOPE % (b"b", b"b"),
        CONTENT + b".\r\n" + ENVELOPE % (b"c", b"c"),
        CONTENT + b".\r\n",
        b"QUIT\r\n",
    ]
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 2, 3]


@trio_test
async def test_an_envelope_larger_than_the_window_goes_ahead_as_far_as_it_fits(
    autojump_clock: MockClock,
) -> None:
    peer = Peer(extensions=("PIPELINING",))
    many = ",".join(f"b{number:03}" for number in range(200))
    world = World(peer)
    _, second = await in_a_row(world, requests("a", many))
    assert set(second.values()) == {SENT}
    assert len(second) == 200
    flight = peer.links[0].segments[2]
    assert flight.startswith(CONTENT + b".\r\nMAIL FROM:<b@")
    assert len(flight) <= len(CONTENT) + 3 + 4096
    assert b"DATA" not in flight
    assert len(peer.links) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"nexthop": "[mx1.example.com]"},
        {"transport": "relay"},
        {"sender": "b\r\n@client.example"},
        {"size": 1_000_000},
        {"options": SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_HEADER},
    ],
    ids=lambda change: next(iter(change)),
)
@trio_test
async def test_a_message_that_needs_a_decision_first_does_not_travel_ahead(
    autojump_clock: MockClock, change: dict[str, str | int]
) -> None:
    peer = Peer(extensions=("PIPELINING", "SIZE 100000"))
    first, second = requests("a", "b")
    second = replace(second, **change)  # type: ignore[arg-type]  # names and types as above
    await in_a_row(World(peer), [first, second])
    assert peer.links[0].segments[2] == CONTENT + b".\r\n"


@pytest.mark.parametrize(
    ("extensions", "settings"),
    [
        (LOCK_STEP, SETTINGS),
        (("PIPELINING", "XFORWARD NAME"), replace(SETTINGS, send_xforward=True)),
        (EXTENSIONS, replace(SETTINGS, reuse_count_limit=1)),
    ],
    ids=["lock-step", "xforward", "count limit"],
)
@trio_test
async def test_nothing_travels_ahead_where_it_may_not(
    autojump_clock: MockClock, extensions: tuple[str, ...], settings: DeliverySettings
) -> None:
    peer = Peer(extensions=extensions)
    outcomes = await in_a_row(World(peer, settings=settings), requests("a", "b", "c"))
    assert [set(one.values()) for one in outcomes] == [{SENT}] * 3
    last = peer.links[0].segments[-2] if settings.reuse_count_limit else b""
    assert b"MAIL FROM:<c" not in last
    if not settings.reuse_count_limit:
        assert not [s for link in peer.links for s in link.segments if b".\r\nMAIL" in s]


# --- refusals: as one by one ----------------------------------------------------------------------

REFUSALS: list[dict[Phase, Script]] = [
    {Phase.MAIL: {"b@client.example": "450 4.7.1 later"}},
    {Phase.MAIL: {"b@client.example": "550 5.7.1 never"}},
    {Phase.RCPT: {"b@example.com": "450 4.2.0 later"}},
    {Phase.RCPT: {"b@example.com": "550 5.1.1 who?"}},
    {Phase.RCPT: {"b2@example.com": "550 5.1.1 who?", "b3@example.com": "450 4.2.0 later"}},
    {Phase.DATA: ["354 go", "451 4.3.0 no", "451 4.3.0 no", "354 go"]},
    {Phase.DATA: ["354 go", "554 5.7.1 no", "554 5.7.1 no", "354 go"]},
    {Phase.DOT: ["250 ok", "452 4.3.1 full", "250 ok"]},
    {Phase.DOT: ["250 ok", "554 5.6.0 spam", "250 ok"]},
    {Phase.DOT: ["452 4.3.1 full", "250 ok"]},
    {Phase.DOT: ["554 5.6.0 spam", "250 ok"]},
]


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("script", REFUSALS, ids=str)
@trio_test
async def test_a_refusal_ends_as_it_does_one_by_one(
    autojump_clock: MockClock, script: dict[Phase, Script], protocol: Protocol
) -> None:
    if protocol is Protocol.LMTP and Phase.DOT in script:
        return  # one answer for each recipient there: see the test of random servers
    batch = requests("a", "b,b2,b3", "c", protocol=protocol)
    told: list[list[dict[str, Action]]] = []
    for lookahead in (True, False):
        peer = Peer(script, lmtp=protocol is Protocol.LMTP)
        world = World(peer)
        if lookahead:
            told.append(await in_a_row(world, batch))
        else:
            one_by_one = {
                phase: [answer[0], *answer[2:]]
                if phase is Phase.DATA and isinstance(answer, list)
                else answer
                for phase, answer in script.items()
            }
            peer.script = dict(one_by_one)

            async def scenario(world: World = world) -> None:
                for request in batch:
                    await world.deliver(request)

            await world.play(scenario)
            told.append(
                [
                    {o.recipient.address.split("@")[0]: o.action for o in result.outcomes}
                    for result in world.results
                ]
            )
        served = Counter(peer.served)
        assert set(served.values()) <= {1}
    assert told[0] == told[1]


@trio_test
async def test_a_message_nobody_wants_costs_no_new_connection(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.RCPT: {"b@example.com": "550 5.1.1 who?"}})
    outcomes = await in_a_row(World(peer), requests("a", "b", "c"))
    assert outcomes == [{"a": SENT}, {"b": BOUNCED}, {"c": SENT}]
    assert len(peer.links) == 1


# --- servers that lose track --------------------------------------------------------------------


class _Filtered(MemoryStream):
    """What comes behind a final dot in one read goes through `change`."""

    def __init__(self, inner: MemoryStream, change: Callable[[bytes], bytes]) -> None:
        super().__init__(inner._incoming, inner._outgoing)
        self._change = change

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See MemoryStream."""
        data = await super().receive_some(max_bytes)
        head, dot, rest = data.partition(b"\r\n.\r\n")
        if not (dot and rest):
            return data
        return head + dot + self._change(rest)


def filtered(
    change: Callable[[bytes], bytes], script: Mapping[Phase, Script] | None = None
) -> Peer:
    """A server to which what travels ahead arrives changed."""

    class Peculiar(Peer):
        async def serve(self, stream: trio.abc.Stream) -> None:
            assert isinstance(stream, MemoryStream)
            await super().serve(_Filtered(stream, change))

    return Peculiar(script)


def without(verb: bytes) -> Callable[[bytes], bytes]:
    """Drops the first command that begins with `verb`."""

    def change(rest: bytes) -> bytes:
        lines = rest.splitlines(keepends=True)
        index = next(i for i, line in enumerate(lines) if line.startswith(verb))
        return b"".join(lines[:index] + lines[index + 1 :])

    return change


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (lambda: filtered(lambda rest: b""), 20.0),
        (lambda: filtered(without(b"MAIL")), 0.0),
        (lambda: filtered(without(b"RCPT")), None),
        (lambda: filtered(without(b"DATA")), None),
        (lambda: filtered(lambda rest: b"RSET\r\n" + rest), 0.0),
        (lambda: filtered(lambda rest: b"VRFY\r\n" + rest), 0.0),
        (lambda: filtered(lambda rest: rest[3:]), 0.0),
        (lambda: Peer({Phase.DOT: ["250 ok\n250 and again", "250 ok"]}), 0.0),
        (lambda: Peer({Phase.DOT: ["250 ok\n550 5.7.1 and no", "250 ok"]}), 0.0),
        (lambda: Peer({Phase.DOT: ["250 ok\nwhat?", "250 ok"]}), 0.0),
        (lambda: Peer({Phase.DOT: ["250 ok\n354 go", "250 ok"]}), 0.0),
    ],
    ids=[
        *("flushes", "loses MAIL", "loses RCPT", "loses DATA", "one more 250", "one more 500"),
        *("cuts MAIL", "says yes twice", "says yes and no", "garbage", "invites content"),
    ],
)
@trio_test
async def test_a_server_that_loses_track_costs_a_connection_and_nobody_s_mail(
    autojump_clock: MockClock, make: Callable[[], Peer], seconds: float | None
) -> None:
    peer = make()
    world = World(peer)
    batch = requests("a", "b,b2", "c", "d")
    outcomes = await in_a_row(world, batch)
    assert [set(one.values()) for one in outcomes] == [{SENT}] * 4
    # A server that says several things after a dot has, by its own books, not taken the message.
    confused = ["a@example.com"] if Phase.DOT in peer.script else []
    assert Counter([*confused, *set(peer.served) - set(confused)]) == Counter(
        outcome.recipient.address for result in world.results for outcome in result.outcomes
    )
    assert set(Counter(peer.served).values()) == {1}
    assert not any(o.in_doubt for result in world.results for o in result.outcomes)
    assert len(peer.links) == 2
    # It is remembered, at the latest when the message was taken alone: nothing travels ahead.
    assert not [s for s in peer.links[1].segments if b".\r\nMAIL FROM:<d" in s]
    if seconds is not None:
        assert world.took[1] == seconds


@trio_test
async def test_nobody_is_bounced_for_the_reply_to_another(autojump_clock: MockClock) -> None:
    # One reply too many: the 550 to b stands where the reply to b2 is expected.
    peer = filtered(
        lambda rest: b"RSET\r\n" + rest, {Phase.RCPT: {"b@example.com": "550 5.1.1 who?"}}
    )
    outcomes = await in_a_row(World(peer), requests("a", "b,b2", "c"))
    assert outcomes == [{"a": SENT}, {"b": BOUNCED, "b2": SENT}, {"c": SENT}]


@trio_test
async def test_a_server_that_goes_on_talking_after_it_refused_proves_nothing(
    autojump_clock: MockClock,
) -> None:
    no = "554 5.5.1 no valid recipients"
    peer = Peer(
        {
            Phase.RCPT: {"b@example.com": "550 5.1.1 who?"},
            Phase.DATA: ["354 go", f"{no}\n250 2.0.0 more", no, "354 go"],
        }
    )
    outcomes = await in_a_row(World(peer), requests("a", "b", "c"))
    assert outcomes == [{"a": SENT}, {"b": BOUNCED}, {"c": SENT}]
    assert len(peer.links) == 2


@trio_test
async def test_a_server_that_lost_track_is_trusted_again_after_a_while(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.MAIL: ["250 ok", "503 5.5.1 nested MAIL", "250 ok"]})
    world = World(peer)

    async def scenario() -> None:
        await world.deliver_in_a_row(requests("a", "b", "c"))
        assert not [s for s in peer.links[1].segments if b".\r\nMAIL" in s]
        await trio.sleep(PLAIN_FOR)
        await world.deliver_in_a_row(requests("d", "e"))

    await world.play(scenario)
    assert [link.verbs.count("MAIL") for link in peer.links] == [2, 2, 2]
    assert [s for s in peer.links[2].segments if b".\r\nMAIL FROM:<e" in s]


@pytest.mark.parametrize(
    ("script", "links"),
    [
        (["250 ok"] * 3 + ["421 4.7.0 too many messages", "250 ok"], 2),
        ({"d@client.example": "550 5.7.1 not from you"}, 2),
    ],
    ids=["limit of messages", "bad sender"],
)
@trio_test
async def test_a_server_that_refuses_a_sender_has_not_lost_track(
    autojump_clock: MockClock, script: Script, links: int
) -> None:
    peer = Peer({Phase.MAIL: script})
    outcomes = await in_a_row(World(peer), requests(*"abcdefgh"))
    refused = BOUNCED if isinstance(script, dict) else SENT
    assert [one.popitem()[1] for one in outcomes] == [SENT] * 3 + [refused] + [SENT] * 4
    assert len(peer.links) == links
    assert [s for s in peer.links[1].segments if b".\r\nMAIL FROM:<h" in s]


@trio_test
async def test_an_envelope_behind_an_unanswered_dot_is_remembered_for_longer(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.DOT: [Fault.SILENCE, "250 ok"]})
    world = World(peer)

    async def scenario() -> None:
        await world.deliver_in_a_row(requests("a", "b"))
        await trio.sleep(PLAIN_FOR_DOUBT - 1)
        await world.deliver_in_a_row(requests("c", "d"))
        await trio.sleep(1)
        await world.deliver_in_a_row(requests("e", "f"))

    await world.play(scenario)
    segments = [segment for link in peer.links for segment in link.segments]
    assert world.results[0].outcomes[0].in_doubt
    ahead = [s.partition(b"MAIL FROM:<")[2][:1] for s in segments if b".\r\nMAIL" in s]
    assert ahead == [b"b", b"f"]


@trio_test
async def test_a_session_that_grows_too_old_behind_a_dot_still_serves_what_went_ahead(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.DOT: Late(1.0, "250 ok")})
    world = World(peer, settings=replace(SETTINGS, reuse_time_limit=2.5))
    outcomes = await in_a_row(world, requests(*"abcdefgh"))
    assert [set(one.values()) for one in outcomes] == [{SENT}] * 8
    assert [link.verbs.count("MAIL") for link in peer.links] == [4, 4]
    assert all(link.verbs[-1] == "QUIT" for link in peer.links)
    assert [s for s in peer.links[1].segments if b".\r\nMAIL" in s]


@trio_test
async def test_a_reply_too_few_to_a_dot_is_never_made_up_by_the_next_message(
    autojump_clock: MockClock,
) -> None:
    # Two recipients, one final reply: the reply to another MAIL must not count as the second.
    peer = Peer({Phase.DOT: {"a2@example.com": ()}}, lmtp=True)
    outcomes = await in_a_row(World(peer), requests("a,a2", "b", protocol=Protocol.LMTP))
    assert outcomes == [{"a": SENT, "a2": DEFERRED}, {"b": SENT}]


@pytest.mark.parametrize("real_sockets", [False, True])
@trio_test
async def test_a_complaint_about_the_order_of_commands_bounces_nobody(
    autojump_clock: MockClock, *, real_sockets: bool
) -> None:
    # One 250 too many, MAIL deferred: the 503 to b2 stands where the one to DATA is expected.
    peer = Peer(
        {
            Phase.DOT: ["250 ok\n250 and again", "250 ok"],
            Phase.MAIL: {"b@client.example": "450 4.7.1 later"},
            Phase.DATA: ["354 go", Late(0.01, "503 5.5.1 no")],
        },
        real_sockets=real_sockets,
    )
    outcomes = await in_a_row(World(peer), requests("a", "b,b2"))
    assert outcomes[1] == {"b": DEFERRED, "b2": DEFERRED}


@trio_test
async def test_nothing_travels_behind_a_dot_if_another_server_is_asked_next(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: {"a2@example.com": "450 4.2.0 greylisted"}})
    outcomes = await in_a_row(World(peer), requests("a,a2", "b"))
    assert outcomes == [{"a": SENT, "a2": DEFERRED}, {"b": SENT}]
    assert not [s for link in peer.links for s in link.segments if b".\r\nMAIL" in s]


def test_the_memory_of_peers_is_bounded() -> None:
    peers = PlainPeers()

    def endpoint(number: int) -> Endpoint:
        return Endpoint(host="mx", address=str(number), port=25, family=2)  # type: ignore[arg-type]

    for number in range(LIMIT + 1):
        peers.note(endpoint(number), 0.0, doubt=False)
    assert not peers.holds(endpoint(0), 0.0)
    assert peers.holds(endpoint(1), PLAIN_FOR - 1.0)
    assert not peers.holds(endpoint(1), PLAIN_FOR)


# --- 421 and silence ----------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["421 4.3.2 bye", Fault.CUT, Fault.SILENCE], ids=str)
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA])
@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_a_session_that_ends_while_an_envelope_is_under_way_is_nobody_s_failure(
    autojump_clock: MockClock, phase: Phase, answer: Answer, protocol: Protocol
) -> None:
    fine = "354 go" if phase is Phase.DATA else "250 ok"
    peer = Peer({phase: [fine, answer, fine]}, lmtp=protocol is Protocol.LMTP)
    world = World(peer)
    outcomes = await in_a_row(world, requests("a", "b", "c", protocol=protocol))
    assert outcomes == [{"a": SENT}, {"b": SENT}, {"c": SENT}]
    assert len(peer.accepted) == 3
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 1, 2]
    assert not any(result.site_failure for result in world.results)


@pytest.mark.parametrize(
    "answer", ["421 4.3.2 bye", Fault.CUT, Fault.RESET, Fault.SILENCE], ids=str
)
@trio_test
async def test_a_dot_that_is_not_answered_leaves_the_next_message_out_of_it(
    autojump_clock: MockClock, answer: Answer
) -> None:
    peer = Peer({Phase.DOT: [answer, "250 ok"]})
    world = World(peer)
    outcomes = await in_a_row(world, requests("a", "b", "c"))
    assert outcomes == [{"a": DEFERRED}, {"b": SENT}, {"c": SENT}]
    assert peer.served == ["b@example.com", "c@example.com"]
    # Perhaps it was what came behind the dot that it did not bear.
    assert not [s for s in peer.links[1].segments if b".\r\nMAIL" in s]
    assert [o.in_doubt for o in world.results[0].outcomes] == [answer != "421 4.3.2 bye"]


# --- every cut point ----------------------------------------------------------------------------


class _Cut(MemoryStream):
    """Ends after so many octets, in one direction."""

    def __init__(self, inner: MemoryStream, *, reads: int | None, writes: int | None) -> None:
        super().__init__(inner._incoming, inner._outgoing)
        self._reads = reads
        self._writes = writes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See MemoryStream; at the cut the end of file."""
        if self._reads is None:
            return await super().receive_some(max_bytes)
        if not self._reads:
            return b""
        data = await super().receive_some(min(self._reads, max_bytes or self._reads))
        self._reads -= len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See MemoryStream; at the cut the connection is gone."""
        if self._writes is None:
            await super().send_all(data)
            return
        rest = self._writes - len(data)
        await super().send_all(bytes(data)[: self._writes])
        self._writes = max(0, rest)
        if rest < 0:
            raise trio.BrokenResourceError


class CutPeer(Peer):
    """A server whose first connection ends after so many octets; the others live."""

    def __init__(self, *, lmtp: bool, reads: int | None = None, writes: int | None = None) -> None:
        super().__init__(lmtp=lmtp)
        self._cut = (reads, writes)
        self.sizes = [0, 0]  # octets of the first connection: read, written

    async def serve(self, stream: trio.abc.Stream) -> None:
        """See Peer."""
        assert isinstance(stream, MemoryStream)
        if not self.links:
            reads, writes = self._cut
            stream = _Counted(_Cut(stream, reads=reads, writes=writes), self.sizes)
        await super().serve(stream)


class _Counted(MemoryStream):
    """Counts what goes through."""

    def __init__(self, inner: _Cut, sizes: list[int]) -> None:
        super().__init__(inner._incoming, inner._outgoing)
        self._inner = inner
        self._sizes = sizes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See MemoryStream."""
        data = await self._inner.receive_some(max_bytes)
        self._sizes[0] += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See MemoryStream."""
        self._sizes[1] += len(data)
        await self._inner.send_all(data)


@pytest.mark.parametrize("direction", ["reads", "writes"])
@pytest.mark.parametrize("protocol", Protocol)
def test_cut_at_any_octet_nothing_is_lost_and_nothing_doubled_in_silence(
    protocol: Protocol, direction: str
) -> None:
    batch = requests("a", "b,b2", "c", protocol=protocol)
    whole = CutPeer(lmtp=protocol is Protocol.LMTP)
    trio.run(in_a_row, World(whole), batch, clock=MockClock(autojump_threshold=0))
    octets = whole.sizes[0 if direction == "reads" else 1]
    assert octets > 250
    doubts = 0
    for cut in range(octets):
        peer = CutPeer(lmtp=protocol is Protocol.LMTP, **{direction: cut})
        world = World(peer, Peer(lmtp=protocol is Protocol.LMTP))
        trio.run(in_a_row, world, batch, clock=MockClock(autojump_threshold=0))
        served = Counter(
            recipient
            for site in world.dialer.sites.values()
            if isinstance(site, Peer)
            for recipient in site.served
        )
        assert len(world.results) == 3
        for request, result in zip(batch, world.results, strict=True):
            assert [o.recipient for o in result.outcomes] == list(request.recipients)
            for outcome in result.outcomes:
                times = served[outcome.recipient.address]
                doubts += outcome.in_doubt
                if outcome.action is SENT:
                    assert times == 1, f"cut at {cut}"
                else:
                    assert outcome.action is DEFERRED
                    assert outcome.in_doubt, f"cut at {cut}: {outcome.reason}"
                    assert times <= 1
    assert doubts  # some cuts were between the dot and its reply


# --- cancelled and stopped ----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
def test_a_slot_whose_envelopes_travel_ahead_may_be_cancelled_at_any_step(
    protocol: Protocol,
) -> None:
    batch = requests("a", "b,b2", "c", protocol=protocol)

    async def scenario(world: World) -> None:
        async def deliver() -> None:
            await world.deliver_in_a_row(batch)

        await world.play(deliver)

    steps = 0
    for run in cancel_everywhere(lambda: World(Peer(lmtp=protocol is Protocol.LMTP)), scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not run.world.slot.holds_session
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
        for result in run.world.results:
            assert {o.action for o in result.outcomes} == {SENT}
    assert steps > 60


@trio_test
async def test_a_slot_that_is_stopped_reports_the_message_that_had_gone_ahead_as_stopped(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    world = World(peer)
    first, second = requests("a", "b")

    async def scenario() -> None:
        world.slot.upcoming = lambda: second
        await world.deliver(first)
        assert world.slot.holds_session
        await wait_all_tasks_blocked()  # the server has read what came ahead
        world.slot.stop()
        await world.deliver(second)

    await world.play(scenario)
    assert world.results[1].stopped
    assert peer.served == ["a@example.com"]
    assert peer.links[0].verbs[-1] == "DATA"  # cut, not continued and not ended with a lone dot
    assert not world.open_streams


@pytest.mark.parametrize("real_sockets", [False, True])
@trio_test
async def test_a_stop_with_every_reply_at_hand_sends_no_content(
    autojump_clock: MockClock, *, real_sockets: bool
) -> None:
    # The replies to the dot and to what came ahead arrive at once, right after the stop.
    gate = trio.Event()
    peer = Peer(
        {Phase.DOT: ["250 ok", Once(gate, "250 ok"), "250 ok"]},
        real_sockets=real_sockets,
        glued=True,
    )
    world = World(peer)
    waiting = deque(requests("a", "b", "c"))
    world.slot.upcoming = lambda: waiting[0] if waiting else None

    async def deliver_all() -> None:
        while waiting:
            await world.deliver(waiting.popleft())

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver_all)
            await peer.until(lambda: sum(link.dots for link in peer.links) == 2)
            if not real_sockets:
                await wait_all_tasks_blocked()
            world.slot.stop()
            gate.set()

    await world.play(scenario)
    assert [result.stopped for result in world.results] == [False, False, True]
    assert not world.results[2].outcomes[0].in_doubt
    assert [link.dots for link in peer.links] == [2]


@trio_test
async def test_a_pledged_session_serves_no_other_request(autojump_clock: MockClock) -> None:
    peer = Peer()
    world = World(peer)
    first, second, other = requests("a", "b", "c")

    async def scenario() -> None:
        world.slot.upcoming = lambda: second
        await world.deliver(first)
        await wait_all_tasks_blocked()
        world.slot.upcoming = lambda: None
        await world.deliver(other)

    await world.play(scenario)
    assert [link.verbs.count("MAIL") for link in peer.links] == [2, 1]
    assert peer.served == ["a@example.com", "c@example.com"]
