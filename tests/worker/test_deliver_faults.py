"""Many random dialogues, broken at random octets: no mail lost, none reported that was not taken.

Deterministic: each run has its number as seed; a failure names it. The figures of one run of the
suite are a tenth of those demanded before a release.
"""

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, DeliveryResult
from protocol.request import Protocol
from tests.worker.memory_line import MemoryStream
from tests.worker.peer import EXTENSIONS, Answer, Fault, Peer, Phase
from tests.worker.test_fallback import a_world
from tests.worker.world import World, make_request
from worker.config.config import Config
from worker.content import InlineContent
from worker.delivery.debug_peers import DebugPeers
from worker.delivery.pix import PixSettings
from worker.delivery.settings import DeliverySettings
from worker.status.events import UnexpectedError

SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")
BATCHES = 20


@dataclass(slots=True)
class Damage:
    """What happens to the octets of the server once `after` of them were sent."""

    after: int
    kind: str  # "cut", "reset", "garbage", "silence"


class BrokenPeer(Peer):
    """A server whose line breaks."""

    damage: Damage | None = None

    async def serve(self, stream: trio.abc.Stream) -> None:
        """As a peer does, over a line that breaks."""
        assert isinstance(stream, MemoryStream)
        await super().serve(stream if self.damage is None else BrokenLine(stream, self.damage))


class BrokenLine(trio.abc.Stream):
    """The server's end of a line that breaks after some octets of replies."""

    def __init__(self, stream: MemoryStream, damage: Damage) -> None:
        self._stream = stream
        self._left = damage.after
        self._kind = damage.kind
        self._broken = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, up to the break."""
        octets = bytes(data)
        if self._broken and self._kind == "silence":
            return
        if self._broken or len(octets) < self._left:
            self._left -= len(octets)
            await self._stream.send_all(octets)
            return
        self._broken = True
        await self._stream.send_all(octets[: self._left])
        rest = octets[self._left :]
        if self._kind == "garbage":
            # At the beginning of a line, or it would make another word of a reply.
            end = rest.find(b"\n") + 1
            await self._stream.send_all(rest[:end] + b"\xff what is this?\r\n" + rest[end:])
        elif self._kind == "cut":
            await self._stream.aclose()
        elif self._kind == "reset":
            self._stream.reset()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive, as if nothing were wrong."""
        return await self._stream.receive_some(max_bytes)

    async def wait_send_all_might_not_block(self) -> None:
        """Not used."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close, or leave a silent line standing."""
        await self._stream.aclose()


def random_peer(rng: random.Random, names: list[str], *, lmtp: bool) -> BrokenPeer:
    """A server with moods about each recipient, and at times about the whole message."""
    moods = ["250 2.1.5 ok", "450 4.2.2 {name} full", "550 5.1.1 {name} who?"]
    weights = [rng.random() for _ in moods]

    def answers() -> dict[str, Answer]:
        return {n: rng.choices(moods, weights)[0].format(name=n) for n in names}

    peer = BrokenPeer(
        {Phase.RCPT: answers()},
        lmtp=lmtp,
        extensions=rng.choice([EXTENSIONS, LOCK_STEP]),
        window=rng.choice([4096, 65_536]),
        glued=rng.random() < 0.3,
    )
    if rng.random() < 0.2:
        peer.script[Phase.GREETING] = "220 ****"  # its dots are sent alone, after a pause
    if lmtp:
        peer.script[Phase.DOT] = answers()
    elif rng.random() < 0.2:
        peer.script[Phase.DOT] = rng.choice(["450 4.3.0 later", "554 5.7.1 spam"])
    if rng.random() < 0.1:
        peer.script[Phase.DATA] = rng.choice(["451 4.3.0 later", "354 go"])
    if rng.random() < 0.1:
        peer.script[Phase.MAIL] = rng.choice(["451 4.7.1 later", "421 4.3.2 bye", Fault.CUT])
    return peer


def watching(world: World) -> DebugPeers | None:
    """Every dialogue is shown."""
    config = Config.from_mapping({"debug_peer_list": "static:all"})
    return DebugPeers.from_config(config, world.events.append)


def check(seed: int, result: DeliveryResult, names: list[str], peers: list[BrokenPeer]) -> None:
    """The promises that hold whatever happens."""
    said = [outcome.recipient.address for outcome in result.outcomes]
    assert said == names, f"seed {seed}: one outcome per recipient, in their order"
    served = Counter(name for peer in peers for name in peer.served)
    for outcome in result.outcomes:
        name = outcome.recipient.address
        where = f"seed {seed}, {name}: {outcome}"
        assert outcome.dsn[0] == {SENT: "2", DEFERRED: "4", BOUNCED: "5"}[outcome.action], where
        if outcome.action is SENT:
            assert served[name] == 1, f"reported sent, served {served[name]} times; {where}"
        else:
            # A server may have taken it without our learning so; then it must be in doubt.
            assert served[name] <= (1 if outcome.in_doubt else 0), where
        if outcome.reply and "who?" in outcome.reply:
            assert name in outcome.reply, f"somebody else's reply; {where}"
        if outcome.action is BOUNCED and outcome.reply.startswith("550 5.1.1"):
            assert name in outcome.reply, where
        if outcome.in_doubt:
            assert outcome.action is DEFERRED, where


async def one_run(seed: int, kinds: list[str], most: int) -> None:
    rng = random.Random(seed)
    lmtp = rng.random() < 0.4
    names = [f"r{number}@example.com" for number in range(rng.randint(1, most))]
    peers = [random_peer(rng, names, lmtp=lmtp) for _ in range(2)]
    for peer in peers:
        kind = rng.choice(kinds)
        if kind:
            octets = 350 + len(names) * 40
            peer.damage = Damage(int(octets * rng.random() ** 2) + 1, kind)
    settings = DeliverySettings(pix=PixSettings(threshold=0.0))
    if rng.random() < 0.3:
        world = a_world(peers[0], fallback={"[relay.example]": peers[1]}, settings=settings)
    else:
        world = World(*peers, settings=settings)
    if rng.random() < 0.1:
        world.environment = replace(world.environment, debug=watching(world))
    protocol = Protocol.LMTP if lmtp else Protocol.SMTP
    content = InlineContent(rng.randbytes(rng.choice([0, 50, 5000, 20_000])))

    async def scenario() -> None:
        await world.deliver(make_request(*names, protocol=protocol), content)

    await world.play(scenario)
    check(seed, world.results[0], names, peers)
    assert not world.open_streams, f"seed {seed}"
    assert not [e for e in world.events if isinstance(e, UnexpectedError)], f"seed {seed}"


@pytest.mark.parametrize("batch", range(BATCHES))
@trio_test
async def test_a_dialogue_broken_at_any_octet_loses_nothing(
    autojump_clock: MockClock, batch: int
) -> None:
    for number in range(100):
        await one_run(batch * 100 + number, ["cut", "reset", "silence", "garbage", ""], 6)


@pytest.mark.parametrize("batch", range(BATCHES))
@trio_test
async def test_s182_garbage_gives_nobody_somebody_elses_outcome(
    autojump_clock: MockClock, batch: int
) -> None:
    for number in range(50):
        await one_run(10_000 + batch * 50 + number, ["garbage"], 10)


@pytest.mark.parametrize("batch", range(BATCHES))
@trio_test
async def test_any_mix_of_recipients_over_two_servers_ends_in_one_outcome_each(
    autojump_clock: MockClock, batch: int
) -> None:
    for number in range(50 if batch < 4 else 8):
        seed = 20_000 + batch * 50 + number
        await one_run(seed, [""], 20 if batch < 4 else 200)
