"""What `postrio deliver` says of deliveries that a signal has cut off.

Deterministic: scripted servers in memory; nothing here waits for time to pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import trio
from trio.testing import trio_test, wait_all_tasks_blocked

from protocol.outcome import RecipientOutcome
from protocol.request import DeliveryRequest, RequestFlags
from tests.worker.peer import Fault, Peer, Phase
from tests.worker.world import CONTENT, World, make_request
from worker.cli.deliver import PARALLEL, _Deliveries
from worker.content import InlineContent
from worker.status.writer import LogWriter

DOUBT = "delivery was interrupted -- message may be sent more than once"


class Log:
    """Takes what there is to be told."""

    def emit(self, event: object) -> None:
        """Forget it."""


async def cut_off(
    peer: Peer, groups: Sequence[Sequence[DeliveryRequest]]
) -> list[RecipientOutcome]:
    """Serve each group, and cancel them all when nothing happens any more."""
    world = World(peer)
    log = cast(LogWriter, Log())
    deliveries = _Deliveries(InlineContent(CONTENT), world.environment, log, soft_bounce=False)

    async def scenario() -> None:
        async with trio.open_nursery() as serving:
            for requests in groups:
                serving.start_soon(deliveries._serve, requests)
            await wait_all_tasks_blocked()
            serving.cancel_scope.cancel()

    await world.play(scenario)
    return deliveries.outcomes


@trio_test
async def test_only_what_was_begun_may_be_sent_more_than_once() -> None:
    requests = [make_request(f"{name}@example.com") for name in "abc"]
    outcomes = await cut_off(Peer({Phase.DOT: Fault.SILENCE}), [requests])
    assert [(outcome.in_doubt, outcome.reason) for outcome in outcomes] == [
        (True, DOUBT),
        *[(False, "delivery was interrupted")] * 2,
    ]


@trio_test
async def test_what_waits_for_its_turn_was_not_begun() -> None:
    groups = [[make_request()] for _ in range(PARALLEL + 3)]
    outcomes = await cut_off(Peer({Phase.DOT: Fault.SILENCE}), groups)
    assert len(outcomes) == PARALLEL + 3
    assert len([outcome for outcome in outcomes if outcome.in_doubt]) == PARALLEL


@pytest.mark.parametrize("phase", [Phase.EHLO, Phase.RCPT])
@trio_test
async def test_a_probe_sends_nothing(phase: Phase) -> None:
    probe = replace(make_request(), flags=RequestFlags.USER_PROBE)
    [outcome] = await cut_off(Peer({phase: Fault.SILENCE}), [[probe]])
    assert not outcome.in_doubt
    assert outcome.reason == "delivery was interrupted"
