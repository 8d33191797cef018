"""Limits of a whole transport, and what feedback says in the log, on the virtual clock."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.request import NOTHING_KNOWN, DeliveryRequest, Protocol, Recipient, Ret, SendOptions
from tests.worker.scripted_slots import SENT, Answer, site_failure
from tests.worker.test_scheduler import Node, transports
from worker.queue.active import ActiveMessage, Share
from worker.queue.destinations import Destinations
from worker.queue.gate import TransportGate
from worker.queue.records import QueuedMessage
from worker.queue.routing import Delivery, Router
from worker.queue.scheduler import QUANTUM
from worker.queue.settings import QueueSettings, TransportSettings
from worker.status.events import ConcurrencyChanged
from worker.status.log import render

MESSAGE = QueuedMessage(
    id=1,
    queue_id="Q1",
    sender="",
    arrival=0.0,
    size=1,
    encoding="7bit",
    options=SendOptions.NONE,
    envelope_id="",
    ret=Ret.UNSPECIFIED,
    client=NOTHING_KNOWN,
    attempts=0,
    warned=False,
    notice=False,
    recipients=(Recipient(address="u@one.example", key=2),),
)


def limited(**limits: float) -> QueueSettings:
    """Limits of the transport smtp; relay has none."""
    smtp = TransportSettings(
        transport_rate_delay=limits.get("rate_delay", 0.0),
        process_limit=int(limits.get("process_limit", 0)),
    )
    others = {"relay": TransportSettings(), "lmtp": TransportSettings(protocol=Protocol.LMTP)}
    return QueueSettings(transports={"smtp": smtp, **others})


@pytest.mark.parametrize("delay", [1.0, 10.0])
@trio_test
async def test_a_transport_rate_delay_spaces_deliveries_to_any_destination(
    autojump_clock: MockClock, delay: float
) -> None:
    node = Node(settings=limited(rate_delay=delay))
    for number in range(8):
        node.submit(f"u@d{number % 4}.example")
    await node.run(200.0)
    assert not node.store.messages
    gaps = [later - earlier for earlier, later in pairwise(node.workers.times)]
    assert gaps == pytest.approx([delay + 0.1] * 7)
    # Destinations take turns.
    nexthops = [request.nexthop for request in node.workers.requests]
    assert nexthops[:4] == [f"d{number}.example" for number in range(4)]
    assert sorted(nexthops[4:]) == nexthops[:4]


@trio_test
async def test_mail_that_comes_during_the_pause_waits_for_its_end(
    autojump_clock: MockClock,
) -> None:
    node = Node(settings=limited(rate_delay=10.0))
    async with node.running():
        for number in range(3):
            node.submit(f"u@d{number}.example")
            node.scheduler.wake()
            await trio.sleep(1.0)
        await trio.sleep(60.0)
    assert node.workers.times == pytest.approx([0.0, 10.1, 20.2])


@trio_test
async def test_other_transports_know_nothing_of_the_pause(autojump_clock: MockClock) -> None:
    class Tables:
        async def find(self, key: str, *, partial: bool = False) -> str | None:
            return "relay:" if key.startswith("relay") else None

    node = Node(settings=limited(rate_delay=1000.0), router=Router(tables=Tables()))
    for number in range(5):
        node.submit(f"u@d{number}.example")
        node.submit(f"relay@d{number}.example")
    async with node.running():
        await trio.sleep(60.0)
    assert Counter(request.transport for request in node.workers.requests) == {
        "relay": 5,
        "smtp": 1,
    }


@trio_test
async def test_a_dead_destination_does_not_stop_the_others_behind_a_pause(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Answer:
        return site_failure() if request.nexthop == "d0.example" else SENT

    node = Node(script, settings=limited(rate_delay=10.0))
    for number in (0, 0, 1, 0, 2, 0, 3):
        node.submit(f"u@d{number}.example")
    async with node.running():
        await trio.sleep(100.0)
    assert len(node.workers.accepted) == 3


def test_who_has_nothing_left_to_do_does_not_use_up_the_room_of_others() -> None:
    destinations = Destinations()
    limits = TransportSettings(process_limit=1)
    first, second = (
        destinations.find(Delivery("smtp", name, Protocol.SMTP), f"u@{name}", limits)
        for name in ("one.example", "two.example")
    )
    active = ActiveMessage(MESSAGE, 0.0)
    for destination in (first, second):
        destination.queue.add(Share(active, MESSAGE.recipients))
        assert destinations.offer(destination, 0.0)
    first.queue.take_all()  # it was declared dead, say
    destinations.admit(0.0)
    assert destinations.next_turn(0.0) is second
    assert destinations.next_turn(0.0) is None


@pytest.mark.parametrize("limit", [1, 7])
@trio_test
async def test_default_process_limit_bounds_the_deliveries_of_a_transport(
    limit: int, autojump_clock: MockClock
) -> None:
    node = Node(settings=limited(process_limit=limit))
    for number in range(60):
        node.submit(f"u@d{number % 20}.example")
    await node.run(200.0)
    assert not node.store.messages
    assert node.workers.most_slots == limit


@trio_test
async def test_a_busy_destination_gives_its_place_to_who_waits_for_the_transport(
    autojump_clock: MockClock,
) -> None:
    node = Node(settings=limited(process_limit=1))
    for _ in range(500):
        node.submit("u@busy.example")
    async with node.running():
        await trio.sleep(1.0)
        node.submit("u@other.example")
        node.scheduler.wake()
        await trio.sleep(QUANTUM)  # far more than it takes, far less than the rest
    nexthops = [request.nexthop for request in node.workers.requests]
    assert "other.example" in nexthops
    assert nexthops.index("other.example") <= 3 * QUANTUM


@trio_test
async def test_s184_a_reload_changes_the_limits_of_a_transport(autojump_clock: MockClock) -> None:
    node = Node(settings=limited(rate_delay=1000.0))
    for number in range(5):
        node.submit(f"u@d{number}.example")
    async with node.running():
        await trio.sleep(60.0)
        assert len(node.workers.accepted) == 1
        node.scheduler.reload(limited(), Router())
        await trio.sleep(60.0)
        assert len(node.workers.accepted) == 5
        node.scheduler.reload(limited(rate_delay=1000.0), Router())
        for number in range(5):
            node.submit(f"u@e{number}.example")
        node.scheduler.wake()
        await trio.sleep(500.0)
        assert len(node.workers.accepted) == 5  # the first pause is not over
        await trio.sleep(500.0)
        assert len(node.workers.accepted) == 6


def test_s184_a_lower_limit_leaves_no_room_until_enough_slots_have_ended() -> None:
    gate = TransportGate(TransportSettings(process_limit=5))
    gate.busy = 5
    gate.limits = TransportSettings(process_limit=2)
    rooms = []
    while gate.busy:
        rooms.append(gate.room(0.0))
        gate.ended(0.0)
    assert rooms == [0, 0, 0, 0, 1]


@trio_test
async def test_nothing_is_lost_when_limits_and_failures_meet(autojump_clock: MockClock) -> None:
    turn = 0

    def script(_: DeliveryRequest) -> Answer:
        nonlocal turn
        turn += 1
        return (SENT, site_failure(), replace(SENT, lost=True))[turn % 3]

    node = Node(script, settings=limited(process_limit=2, rate_delay=0.0))
    for number in range(30):
        node.submit(f"u@d{number % 7}.example")
    await node.run(5 * 86_400.0)
    assert not node.store.messages
    assert node.workers.most_slots <= 2


# --- destination_concurrency_feedback_debug ------------------------------------------------------


@trio_test
async def test_feedback_is_told_after_each_delivery_if_asked_for(
    autojump_clock: MockClock,
) -> None:
    settings = QueueSettings(
        feedback_debug=True, transports=transports(initial_concurrency=2, failed_cohort_limit=0)
    )
    node = Node(settings=settings)
    node.submit("u@one.example")
    async with node.running():
        await trio.sleep(60.0)
        node.workers.script = lambda _: site_failure()
        node.submit("u@two.example")
        node.scheduler.wake()
        await trio.sleep(60.0)
    first, second = node.of(ConcurrencyChanged)
    assert [line.text for line in render(first)] == [
        "qmgr_queue_unthrottle: queue one.example: limit 20 window 3 success 0 failure 0.5"
        " fail_cohorts 0"
    ]
    assert render(first)[0].program == "qmgr"
    assert [line.text for line in render(second)] == [
        "qmgr_queue_throttle: queue two.example: limit 20 window 1 success 0 failure 0.5"
        " fail_cohorts 0.5"
    ]


@trio_test
async def test_a_dead_destination_is_told_with_a_window_of_none(autojump_clock: MockClock) -> None:
    node = Node(lambda _: site_failure(), QueueSettings(feedback_debug=True))
    for _ in range(20):
        node.submit("u@one.example")
    await node.run(60.0)
    last = node.of(ConcurrencyChanged)[-1]
    assert isinstance(last, ConcurrencyChanged)
    assert (last.window, last.throttled) == (0, True)


@trio_test
async def test_feedback_is_not_told_by_default(autojump_clock: MockClock) -> None:
    node = Node()
    node.submit("u@one.example")
    await node.run(60.0)
    assert not node.of(ConcurrencyChanged)
