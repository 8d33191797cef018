"""TLS that breaks, at every record and every octet: nothing lost, nothing in the clear, no hang.

Scripted peers over lines in memory, by a virtual clock. What each break comes to in status and
reason is the table of `tests/integration/test_tls_matrix.py`; here it is promised what must hold
wherever it breaks. Deterministic, but for the keys of the sessions: a failure names its seed.
"""

import random
import ssl
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.outcome import Action, DeliveryResult
from protocol.request import Protocol
from tests.cancel_everywhere import cancel_everywhere
from tests.integration.pki import HOST, Pki
from tests.worker.peer import Fault, Peer, Phase
from tests.worker.test_deliver_faults import BrokenPeer, Damage
from tests.worker.tls_server import Break, Harm, ServerTls, server_context
from tests.worker.world import World, make_request
from worker.config.config import Config
from worker.content import InlineContent
from worker.delivery.security import SecurityRules
from worker.environment import make_rules
from worker.status.events import Event, UnexpectedError

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
STARTTLS_LIMIT = 300.0  # smtp_starttls_timeout
WAITED = 990.0 - 300.0  # when a message came that was queued for active at 999
SECRET = b"what nobody else may read"
CONTENT = InlineContent(b"Subject: x\r\n\r\n" + SECRET + b"\r\n")
LONG = InlineContent(SECRET + b"\r\nsome line of text" * 4000 + b"\r\n")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def rules(certificates: Pki) -> dict[tuple[str, Protocol], SecurityRules]:
    """The rules at each level. They keep no state but the contexts, which are slow to make."""
    found = {}
    for level in ("may", "encrypt", "verify"):
        for protocol in Protocol:
            name = protocol.value
            config = Config.from_mapping(
                {
                    f"{name}_tls_security_level": level,
                    f"{name}_tls_CAfile": str(certificates.ca_file()),
                    f"{name}_tls_verify_cert_match": HOST,
                }
            )
            found[level, protocol] = make_rules(config, protocol, _ignore)
    return found


def _ignore(event: Event) -> None:
    """Engines say nothing of their own that matters here."""


class Wire(Peer):
    """A peer that notes what came over its line, as it was on the line."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # as they came
        self.heard = bytearray()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """As a peer does."""
        await super().serve(_Tap(stream, self.heard))


class _Tap(trio.abc.Stream):
    """A stream; what is received is noted."""

    def __init__(self, stream: trio.abc.Stream, heard: bytearray) -> None:
        self._stream = stream
        self._heard = heard

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Not used."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive, and note it."""
        data = bytes(await self._stream.receive_some(max_bytes))
        self._heard += data
        return data

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()


def make_world(
    rules: dict[tuple[str, Protocol], SecurityRules],
    level: str,
    *peers: Peer,
) -> World:
    """A world whose client asks for this level of every server."""
    world = World(*peers)
    world.environment = replace(
        world.environment,
        security={protocol: rules[level, protocol] for protocol in Protocol},
    )
    return world


async def deliver(
    world: World,
    *,
    arrival: float = 990.0,
    protocol: Protocol = Protocol.SMTP,
    content: InlineContent = CONTENT,
) -> DeliveryResult:
    """One message, in a world that ends with it."""
    request = replace(make_request(protocol=protocol), arrival=arrival)

    async def scenario() -> None:
        await world.deliver(request, content)

    await world.play(scenario)
    assert not world.open_streams
    assert not [event for event in world.events if isinstance(event, UnexpectedError)]
    return world.results[-1]


BREAKS = [
    pytest.param(version, Break(records, harm), id=f"{version.name}-{records}-{harm.name}")
    for version, harm in product((V12, V13), Harm)
    for records in range(8)
]


@pytest.mark.parametrize(("version", "broken"), BREAKS)
@pytest.mark.parametrize("level", ["may", "encrypt", "verify"])
@trio_test
async def test_a_handshake_that_breaks_at_any_record_defers_new_mail(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    level: str,
    version: ssl.TLSVersion,
    broken: Break,
) -> None:
    context = server_context(certificates.leaf("good"), newest=version)
    peer = Wire(tls=ServerTls(context, broken=broken))
    world = make_world(rules, level, peer)
    (outcome,) = (await deliver(world)).outcomes
    assert outcome.action is Action.DEFERRED
    assert outcome.dsn in ("4.7.5", "4.4.2")
    assert peer.accepted == []
    assert SECRET not in peer.heard
    assert peer.heard.count(b"STARTTLS") == len(peer.links) == 1
    assert b"MAIL FROM" not in peer.heard
    # Nobody waits for ever: at most for the handshake, and then for EHLO.
    assert world.took[0] <= (STARTTLS_LIMIT if broken.harm is Harm.SILENCE else 0.0)


@pytest.mark.parametrize(("version", "broken"), BREAKS)
@trio_test
async def test_mail_that_has_waited_goes_in_the_clear_where_tls_is_no_must(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    version: ssl.TLSVersion,
    broken: Break,
) -> None:
    context = server_context(certificates.leaf("good"), newest=version)
    peer = Wire(tls=ServerTls(context, broken=broken))
    (outcome,) = (await deliver(make_world(rules, "may", peer), arrival=WAITED)).outcomes
    assert outcome.action is Action.SENT
    assert len(peer.accepted) == 1
    assert [link.tls is None for link in peer.links][-1]
    assert len(peer.links) == 2


@pytest.mark.parametrize(("version", "broken"), BREAKS)
@trio_test
async def test_it_never_does_where_tls_is_a_must(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    version: ssl.TLSVersion,
    broken: Break,
) -> None:
    context = server_context(certificates.leaf("good"), newest=version)
    peers = [Wire(tls=ServerTls(context, broken=broken)) for _ in range(2)]
    (outcome,) = (await deliver(make_world(rules, "encrypt", *peers), arrival=WAITED)).outcomes
    assert outcome.action is Action.DEFERRED
    # The next server is tried, by TLS as well.
    assert [len(peer.links) for peer in peers] == [1, 1]
    for peer in peers:
        assert b"MAIL FROM" not in peer.heard


# The Finished of each: the last record of a flight, so that the server listens.
@pytest.mark.parametrize(("version", "records"), [(V12, 6), (V13, 5)])
@trio_test
async def test_a_server_whose_handshake_is_wrong_is_told_so(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    version: ssl.TLSVersion,
    records: int,
) -> None:
    tls = ServerTls(
        server_context(certificates.leaf("good"), newest=version),
        broken=Break(records, Harm.FLIPPED),
    )
    (outcome,) = (await deliver(make_world(rules, "encrypt", Peer(tls=tls)))).outcomes
    assert outcome.dsn == "4.7.5"
    (failure,) = tls.failures
    assert "alert" in failure


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.FAREWELL, Fault.RESET, Fault.SILENCE])
@pytest.mark.parametrize("phase", [Phase.EHLO, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
@trio_test
async def test_a_session_that_breaks_inside_tls_is_a_lost_connection(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    phase: Phase,
    fault: Fault,
) -> None:
    script = {phase: [_ehlo(), fault] if phase is Phase.EHLO else fault}
    peer = Wire(script, tls=ServerTls(server_context(certificates.leaf("good"))), window=4096)
    world = make_world(rules, "verify", peer)
    (outcome,) = (await deliver(world, content=LONG)).outcomes
    assert (outcome.action, outcome.dsn) == (Action.DEFERRED, "4.4.2")
    said = "timed out" if fault is Fault.SILENCE else "lost connection"
    assert "with mx1.example.com[192.0.2.1] " in outcome.reason
    assert said in outcome.reason
    # Who reads on has heard the final dot.
    assert outcome.in_doubt is (phase is Phase.CONTENT and fault is Fault.SILENCE)
    assert SECRET not in peer.heard


def _ehlo() -> str:
    """An answer to EHLO that offers TLS."""
    return "250-mx.example.com hi\n250-PIPELINING\n250 STARTTLS"


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.FAREWELL, Fault.RESET, Fault.SILENCE])
@trio_test
async def test_a_final_dot_that_is_not_answered_leaves_doubt(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    fault: Fault,
) -> None:
    peers = [
        Wire({Phase.DOT: fault}, tls=ServerTls(server_context(certificates.leaf("good"))))
        for _ in range(2)
    ]
    world = make_world(rules, "may", *peers)
    (outcome,) = (await deliver(world, arrival=WAITED)).outcomes
    assert outcome.action is Action.DEFERRED
    assert outcome.in_doubt
    # Neither in the clear nor to the next server: it may be there already.
    assert [len(peer.links) for peer in peers] == [1, 0]


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT])
@trio_test
async def test_mail_that_has_waited_goes_in_the_clear_if_tls_broke_before_anybody_was_settled(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    phase: Phase,
) -> None:
    peer = Peer(
        {phase: [Fault.CUT, "250 2.0.0 ok"]},
        tls=ServerTls(server_context(certificates.leaf("good"))),
    )
    (outcome,) = (await deliver(make_world(rules, "may", peer), arrival=WAITED)).outcomes
    assert outcome.action is Action.SENT
    assert [link.tls is None for link in peer.links] == [False, True]


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA])
@trio_test
async def test_a_server_that_ends_the_session_inside_tls_has_no_broken_tls(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    phase: Phase,
) -> None:
    peer = Peer(
        {phase: ["421 4.7.0 too many messages, come back later", "250 2.0.0 ok"]},
        tls=ServerTls(server_context(certificates.leaf("good"))),
    )
    (outcome,) = (await deliver(make_world(rules, "may", peer), arrival=WAITED)).outcomes
    assert outcome.action is Action.DEFERRED
    assert "421 4.7.0 too many messages" in outcome.reason
    assert [link.tls is None for link in peer.links] == [False]


@trio_test
async def test_when_somebody_was_settled_the_others_wait_for_tls(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
) -> None:
    names = ["a@example.com", "b@example.com"]
    peer = Peer(
        {Phase.RCPT: {names[0]: "550 5.1.1 who?"}, Phase.DATA: [Fault.CUT, "354 go"]},
        tls=ServerTls(server_context(certificates.leaf("good"))),
    )
    world = make_world(rules, "may", peer)
    request = replace(make_request(*names), arrival=WAITED)
    await world.play(partial(world.deliver, request, CONTENT))
    found = [outcome.action for outcome in world.results[0].outcomes]
    assert found == [Action.BOUNCED, Action.DEFERRED]
    assert len(peer.links) == 1


class SlowPeer(Peer):
    """A server whose line carries one octet at a time, both ways."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """As a peer does."""
        await super().serve(_SlowLine(stream, bytearray()))


class _SlowLine(_Tap):
    """The server's end of such a line."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; each octet is received alone."""
        for octet in bytes(data):
            await super().send_all(bytes([octet]))
            await wait_all_tasks_blocked()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive one octet."""
        return await super().receive_some(1)


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("protocol", list(Protocol))
@trio_test
async def test_a_handshake_octet_by_octet_is_a_handshake(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    protocol: Protocol,
    version: ssl.TLSVersion,
) -> None:
    context = server_context(certificates.leaf("good"), newest=version)
    peer = SlowPeer(lmtp=protocol is Protocol.LMTP, tls=ServerTls(context))
    result = await deliver(make_world(rules, "verify", peer), protocol=protocol)
    assert [outcome.action for outcome in result.outcomes] == [Action.SENT]
    assert [message.encrypted for message in peer.accepted] == [True]


@pytest.mark.parametrize("level", ["may", "encrypt"])
@trio_test
async def test_s124_what_stands_behind_the_reply_to_starttls_is_no_reply(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    level: str,
) -> None:
    peer = Wire(
        {Phase.STARTTLS: "220 2.0.0 go ahead\n250-mx.example.com\n250 AUTH PLAIN"},
        tls=ServerTls(server_context(certificates.leaf("good"))),
    )
    (outcome,) = (await deliver(make_world(rules, level, peer), arrival=WAITED)).outcomes
    assert outcome.action is Action.DEFERRED
    assert peer.accepted == []
    assert b"MAIL FROM" not in peer.heard


@trio_test
async def test_s124_what_was_said_before_tls_is_forgotten(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
) -> None:
    # Before TLS it offers 8BITMIME and PIPELINING, inside TLS neither; and STARTTLS once more.
    peer = Peer(
        {
            Phase.EHLO: [
                "250-mx.example.com\n250-8BITMIME\n250-PIPELINING\n250 STARTTLS",
                "250-mx.example.com\n250 STARTTLS",
            ]
        },
        tls=ServerTls(server_context(certificates.leaf("good"))),
    )
    (outcome,) = (await deliver(make_world(rules, "encrypt", peer))).outcomes
    assert outcome.action is Action.SENT
    (link,) = peer.links
    assert link.clear == ["EHLO helo.example", "STARTTLS"]
    assert link.commands[2] == "EHLO helo.example"
    assert "STARTTLS" not in link.commands[2:]
    assert [
        segment
        for segment in link.segments
        if segment.count(b"\r\n") > 1 and segment.startswith(b"MAIL")
    ] == []


@trio_test
async def test_s200_ehlo_refused_inside_tls_is_not_followed_by_helo_in_the_clear(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
) -> None:
    peer = Wire(
        {Phase.EHLO: [_ehlo(), "550 5.7.1 go away"], Phase.HELO: "550 5.7.1 go away"},
        tls=ServerTls(server_context(certificates.leaf("good"))),
    )
    (outcome,) = (await deliver(make_world(rules, "encrypt", peer))).outcomes
    assert outcome.action is not Action.SENT
    assert len(peer.links) == 1
    assert b"HELO" not in peer.heard.replace(b"EHLO", b"")


# --- at random ----------------------------------------------------------------------------------


class FlippedPeer(Peer):
    """A server of whose octets one, somewhere, arrives wrong."""

    place = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        """As a peer does, over a line that changes a bit."""
        await super().serve(_FlippingLine(stream, self.place))


class _FlippingLine(_Tap):
    """The server's end of a line that changes a bit of what is sent."""

    def __init__(self, stream: trio.abc.Stream, place: int) -> None:
        super().__init__(stream, bytearray())
        self._left = place

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, with the bit wrong if its time has come."""
        octets = bytearray(data)
        if 0 <= self._left < len(octets):
            octets[self._left] ^= 1 << self._left % 8
        self._left -= len(octets)
        await super().send_all(octets)


def check(seed: int, world: World, peers: Iterable[Peer], *, must: bool) -> None:
    """What holds wherever it broke."""
    (result,) = world.results
    (outcome,) = result.outcomes
    taken = [message for peer in peers for message in peer.accepted]
    where = f"seed {seed}: {outcome}"
    if outcome.action is Action.SENT:
        assert len(taken) == 1, where
    else:
        assert outcome.action is Action.DEFERRED, where
        assert len(taken) <= (1 if outcome.in_doubt else 0), where
    assert not (must and [message for message in taken if not message.encrypted]), where
    assert not world.open_streams, where
    assert not [event for event in world.events if isinstance(event, UnexpectedError)], where


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize("level", ["may", "verify"])
@trio_test
async def test_tls_broken_at_any_octet_loses_nothing(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    level: str,
    batch: int,
) -> None:
    contexts = [server_context(certificates.leaf("good"), newest=v) for v in (V12, V13)]
    for seed in range(batch * 60, batch * 60 + 60):
        rng = random.Random(seed)
        lmtp = rng.random() < 0.3
        peers = [
            BrokenPeer(
                lmtp=lmtp, tls=ServerTls(rng.choice(contexts)), window=rng.choice([64, 8192])
            )
            for _ in range(2)
        ]
        for peer in peers:
            kind = rng.choice(["cut", "reset", "silence", "garbage", ""])
            if kind:
                peer.damage = Damage(rng.randrange(1, 2600), kind)
        world = make_world(rules, level, *peers)
        protocol = Protocol.LMTP if lmtp else Protocol.SMTP
        arrival = rng.choice([990.0, WAITED])
        request = replace(make_request(protocol=protocol), arrival=arrival)
        await world.play(partial(world.deliver, request, CONTENT))
        check(seed, world, peers, must=level != "may")


@pytest.mark.parametrize("batch", range(4))
@trio_test
async def test_s182_one_wrong_bit_is_never_taken_for_something_else(
    autojump_clock: MockClock,
    certificates: Pki,
    rules: dict[tuple[str, Protocol], SecurityRules],
    batch: int,
) -> None:
    contexts = [server_context(certificates.leaf("good"), newest=v) for v in (V12, V13)]
    for seed in range(batch * 100, batch * 100 + 100):
        rng = random.Random(seed)
        peer = FlippedPeer(tls=ServerTls(rng.choice(contexts)))
        # Behind the reply to STARTTLS: before it SMTP has nothing that would notice.
        peer.place = rng.randrange(195, 2200)
        world = make_world(rules, "verify", peer)
        await world.play(partial(world.deliver, make_request(), CONTENT))
        check(seed, world, [peer], must=True)


def test_a_delivery_by_tls_may_be_cancelled_at_any_step(
    certificates: Pki, rules: dict[tuple[str, Protocol], SecurityRules]
) -> None:
    context = server_context(certificates.leaf("good"))

    def world() -> World:
        return make_world(rules, "verify", Peer(tls=ServerTls(context), window=512))

    async def scenario(world: World) -> None:
        await world.play(partial(world.deliver, make_request(), CONTENT))

    steps = 0
    for run in cancel_everywhere(world, scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not run.world.slot.holds_session, f"parked when cancelled at step {run.step}"
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
        for result in run.world.results:
            assert [outcome.action for outcome in result.outcomes] == [Action.SENT]
    assert steps > 30
