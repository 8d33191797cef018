"""Cancelled or stopped at every step there is: nothing stays open, nobody is forgotten.

Deterministic: a virtual clock and a seeded scheduler; each run is interrupted one scheduler step
later than the one before, until one runs undisturbed.
"""

import pytest
import trio
import trio.abc
import trio.lowlevel
from trio.testing import MockClock

from protocol.outcome import Action
from protocol.request import Protocol
from tests.cancel_everywhere import cancel_everywhere
from tests.worker.peer import EXTENSIONS, Late, Peer, Phase
from tests.worker.world import World, make_request
from worker.content import InlineContent
from worker.status.events import UnexpectedError

ABC = [f"{name}@example.com" for name in "abc"]
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")
LONG = InlineContent(b"some line of text\r\n" * 1000)


def make_world(protocol: Protocol, extensions: tuple[str, ...]) -> World:
    """Two servers: the first one takes a, refuses b for good and c for now; the second takes c."""
    lmtp = protocol is Protocol.LMTP
    replies = {ABC[1]: "550 5.1.1 who?", ABC[2]: "450 4.7.1 later"}
    first = Peer(
        {Phase.RCPT: replies, Phase.DOT: Late(1.0, "250 2.0.0 queued")},
        lmtp=lmtp,
        extensions=extensions,
        window=4096,
    )
    return World(first, Peer(lmtp=lmtp, extensions=extensions), stagger=0.0)


WAYS = pytest.mark.parametrize(
    ("protocol", "extensions"),
    [
        pytest.param(protocol, extensions, id=f"{protocol.value} {name}")
        for protocol in Protocol
        for name, extensions in (("pipelined", EXTENSIONS), ("lock-step", LOCK_STEP))
    ],
)


@WAYS
def test_a_delivery_may_be_cancelled_at_any_step(
    protocol: Protocol, extensions: tuple[str, ...]
) -> None:
    async def scenario(world: World) -> None:
        async def deliver() -> None:
            await world.deliver(make_request(*ABC, protocol=protocol), LONG)

        await world.play(deliver)

    steps = 0
    for run in cancel_everywhere(lambda: make_world(protocol, extensions), scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not run.world.slot.holds_session, f"parked when cancelled at step {run.step}"
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
        for result in run.world.results:  # the delivery was over before the cancellation
            assert [o.action for o in result.outcomes] == [SENT, BOUNCED, SENT]
    assert steps > 50


def test_a_slot_that_is_used_again_may_be_cancelled_at_any_step() -> None:
    async def scenario(world: World) -> None:
        async def deliver() -> None:
            for _ in range(3):
                await world.deliver(make_request(*ABC[:1]))

        await world.play(deliver)

    steps = 0
    for run in cancel_everywhere(lambda: World(Peer()), scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        for result in run.world.results:
            assert [o.action for o in result.outcomes] == [SENT]
    assert steps > 50


class StopAtStep(trio.abc.Instrument):
    """Stops a slot before the n-th step that any task makes."""

    def __init__(self, step: int, world: World) -> None:
        self._left = step
        self._world = world
        self.stopped = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count down, and stop at zero."""
        self._left -= 1
        if self._left == 0 and not self._world.results:
            self.stopped = True
            self._world.slot.stop()


@WAYS
def test_a_slot_may_be_stopped_at_any_step(protocol: Protocol, extensions: tuple[str, ...]) -> None:
    endings: set[tuple[Action, ...]] = set()
    for step in range(1, 5000):
        world = make_world(protocol, extensions)
        instrument = StopAtStep(step, world)

        async def main(world: World = world) -> None:
            async def deliver() -> None:
                await world.deliver(make_request(*ABC, protocol=protocol), LONG)

            await world.play(deliver)

        trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[instrument])
        (result,) = world.results
        endings.add(tuple(outcome.action for outcome in result.outcomes))
        first, second = (site for site in world.dialer.sites.values() if isinstance(site, Peer))
        assert not world.open_streams
        assert [outcome.recipient.address for outcome in result.outcomes] == ABC
        assert not any(outcome.in_doubt for outcome in result.outcomes)
        taken = first.served + second.served
        reported = [o.recipient.address for o in result.outcomes if o.action is SENT]
        assert sorted(taken) == sorted(reported), f"stopped at step {step}"
        for outcome in result.outcomes:
            assert outcome.action is not DEFERRED or outcome.dsn == "4.3.2"
        assert result.stopped == (DEFERRED in {outcome.action for outcome in result.outcomes})
        assert result.site_failure is None
        if not instrument.stopped:
            break
    else:
        raise AssertionError("no run without an interruption")
    assert endings == {
        (DEFERRED, DEFERRED, DEFERRED),
        (DEFERRED, BOUNCED, DEFERRED),
        (SENT, BOUNCED, DEFERRED),
        (SENT, BOUNCED, SENT),
    }
