"""daemon_timeout: one delivery that takes too long is cancelled, and nothing else."""

from dataclasses import replace

from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import Protocol
from tests.worker.peer import Fault, Peer, Phase
from tests.worker.world import World, actions, deliver_one, make_request
from worker.status.events import Warned


def limited(world: World, seconds: float) -> World:
    """The world with a daemon_timeout."""
    world.environment = replace(world.environment, time_limit=seconds)
    return world


@trio_test
async def test_s165_a_delivery_that_takes_too_long_is_cancelled_and_deferred_with_an_event(
    autojump_clock: MockClock,
) -> None:
    world = limited(World(Peer({Phase.RCPT: Fault.SILENCE})), 60.0)
    result = await deliver_one(world)
    assert world.took == [60.0]
    [outcome] = result.outcomes
    assert (outcome.action, outcome.dsn) == (Action.DEFERRED, "4.3.0")
    assert outcome.reason == "the delivery took longer than daemon_timeout"
    assert not outcome.in_doubt  # no content was sent
    assert not result.stopped  # it is tried again after the usual back-off
    assert result.site_failure is None
    assert not world.open_streams
    warnings = [event for event in world.events if isinstance(event, Warned)]
    assert [(event.queue_id, "daemon_timeout" in event.text) for event in warnings] == [
        ("Q1", True)
    ]


@trio_test
async def test_s165_who_was_decided_before_the_time_limit_stays_so_and_the_rest_may_be_in_doubt(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.DOT: {"b@example.com": Fault.SILENCE}}, lmtp=True)
    world = limited(World(peer), 60.0)
    request = make_request("a@example.com", "b@example.com", protocol=Protocol.LMTP)
    result = await deliver_one(world, request)
    assert world.took == [60.0]
    assert actions(result) == {"a@example.com": Action.SENT, "b@example.com": Action.DEFERRED}
    assert [outcome.in_doubt for outcome in result.outcomes] == [False, True]
