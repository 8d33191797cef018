"""The scheduler with a store in memory and scripted workers, on the virtual clock.

Deterministic: no thread, no real clock. `Node` puts one together; its run() plays until nothing is
left to do before a time.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.delivery_wire import MAX_RECIPIENTS
from protocol.errors import RemoteProtocolError
from protocol.outcome import Action, Delays, DeliveryResult
from protocol.request import DeliveryRequest, Notify, Recipient, RequestFlags
from tests.cancel_everywhere import cancel_everywhere
from tests.worker.memory_store import MemoryStore
from tests.worker.scripted_slots import (
    BOUNCED,
    DEFERRED,
    SENT,
    Answer,
    ScriptedWorkers,
    site_failure,
)
from worker.config.config import Config
from worker.content import Content
from worker.queue.ramp import FREE
from worker.queue.records import MessageState, NoticeDraft, Submission
from worker.queue.routing import Router
from worker.queue.scheduler import Scheduler
from worker.queue.settings import NoticeSettings, QueueSettings, TransportSettings
from worker.queue.slot import MOST_UNANSWERED, DestinationKey, Slot, WorkerLost
from worker.queue.sqlite import open_store
from worker.queue.store import StoreFull
from worker.status.events import (
    DeliveryInDoubt,
    DestinationSuspended,
    Event,
    MessageExpired,
    MessageRemoved,
    NoticeQueued,
    RecipientSettled,
    UnexpectedError,
    Warned,
)

EPOCH = 1_700_000_000.0
HOUR = 3600.0
DAY = 86_400.0
CONTENT = b"Subject: hello\r\n\r\nbody\r\n"


def wall() -> float:
    """Wall-clock seconds that go with the virtual clock."""
    return EPOCH + trio.current_time()


class Node:
    """A queue with its scheduler; `events` has everything that was said."""

    def __init__(
        self,
        script: Callable[[DeliveryRequest], Answer] = lambda _: SENT,
        settings: QueueSettings | None = None,
        router: Router | None = None,
        store: MemoryStore | None = None,
    ) -> None:
        self.store = store or MemoryStore(wall)
        self.workers = ScriptedWorkers(script)
        self.events: list[Event] = []
        self._removed = trio.Event()
        self.settings = settings or QueueSettings()
        self.scheduler = Scheduler(
            self.store,
            self.workers,
            self.settings,
            router or Router(),
            self.emit,
            wall,
        )

    def emit(self, event: Event) -> None:
        """Take an event down, and note the end of a message."""
        self.events.append(event)
        if isinstance(event, MessageRemoved):
            self._removed.set()

    def submit(self, *addresses: str, sender: str = "me@here.example", **fields: object) -> str:
        """Queue a message at once; `notify` is for every recipient."""
        notify = fields.get("notify", Notify.UNSPECIFIED)
        assert isinstance(notify, Notify)
        submission = Submission(
            sender=sender,
            recipients=tuple(Recipient(address=address, notify=notify) for address in addresses),
        )
        return self.store.put(submission, CONTENT, wall(), notice=bool(fields.get("notice")))

    async def run(self, seconds: float = 10 * DAY) -> None:
        """Let the scheduler work until this much time has passed, or nothing is queued."""
        async with self.running():
            with trio.move_on_after(seconds):
                while self.store.messages:
                    self._removed = trio.Event()
                    await self._removed.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The scheduler at work."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.scheduler.run)
            yield
            self.scheduler.stop()

    def settled(self, address: str) -> list[RecipientSettled]:
        """What was logged about a recipient."""
        return [
            event
            for event in self.events
            if isinstance(event, RecipientSettled) and event.outcome.recipient.address == address
        ]

    def of(self, kind: type[Event]) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def notices(self) -> list[tuple[str, str, str]]:
        """(sender, recipient, content) of all requests from the null or double-bounce sender."""
        return [
            (request.sender, request.recipients[0].address, request.queue_id)
            for request in self.workers.requests
            if not request.sender or request.sender.startswith("double-bounce")
        ]


def transports(**changes: object) -> dict[str, TransportSettings]:
    """All transports with other limits than the usual ones."""
    usual = QueueSettings().transports
    return {name: replace(settings, **changes) for name, settings in usual.items()}  # type: ignore[arg-type]  # a test's keywords


# --- the usual way -------------------------------------------------------------------------------


@trio_test
async def test_a_message_is_sent_logged_and_removed(autojump_clock: MockClock) -> None:
    node = Node()
    queue_id = node.submit("a@one.example")
    await node.run()
    [request] = node.workers.requests
    assert (request.queue_id, request.nexthop, request.transport) == (
        queue_id,
        "one.example",
        "smtp",
    )
    assert [type(event).__name__ for event in node.events] == [
        "MessageActive",
        "RecipientSettled",
        "MessageRemoved",
    ]
    assert not node.store.messages
    assert not node.store.open_contents


@trio_test
async def test_a_message_sent_to_one_recipient_costs_one_begin_and_one_finish(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.submit("a@one.example")
    await node.run()
    assert node.store.calls["begin"] == 1
    assert node.store.calls["finish"] == 1
    assert "settle" not in node.store.calls


@trio_test
async def test_slots_that_ask_in_the_same_tick_share_one_begin(autojump_clock: MockClock) -> None:
    node = Node()
    for number in range(30):
        node.submit(f"a@d{number}.example")
    await node.run()
    assert node.store.calls["begin"] == 1


@trio_test
async def test_s178_a_message_is_logged_as_sent_only_after_that_is_durable(
    autojump_clock: MockClock,
) -> None:
    node = Node(store=MemoryStore(wall, commit_time=5.0))
    node.submit("a@one.example")
    times: list[float] = []

    def emit(event: Event) -> None:
        times.append(trio.current_time())
        node.emit(event)

    node.scheduler._books._emit = emit
    await node.run()
    # claim 5 s, begin 5 s, delivery 0.1 s, settle 5 s
    assert times[0] == pytest.approx(15.1 + 5.0)  # in_doubt() at the start is a call, too


@trio_test
async def test_s134_recipients_are_grouped_by_destination_and_recipient_limit(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.submit(*(f"u{number}@one.example" for number in range(120)), "x@two.example")
    await node.run()
    sizes = sorted(
        len(request.recipients)
        for request in node.workers.requests
        if request.nexthop == "one.example"
    )
    assert sizes == [20, 50, 50]
    assert len(node.of(MessageRemoved)) == 1


@pytest.mark.parametrize("limit", [0, 1200])
@trio_test
async def test_a_request_has_no_more_recipients_than_a_worker_takes(
    autojump_clock: MockClock, limit: int
) -> None:
    node = Node(settings=QueueSettings(transports=transports(recipient_limit=limit)))
    node.submit(*(f"u{number}@one.example" for number in range(1500)))
    await node.run(60.0)
    sizes = [len(request.recipients) for request in node.workers.requests]
    assert sorted(sizes) == [500, MAX_RECIPIENTS]
    assert not node.store.messages
    assert not node.of(UnexpectedError)


@trio_test
async def test_s134_a_recipient_limit_of_one_makes_each_recipient_a_destination(
    autojump_clock: MockClock,
) -> None:
    settings = QueueSettings(transports=transports(recipient_limit=1, concurrency_limit=1))
    node = Node(settings=settings)
    node.submit(*(f"u{number}@one.example" for number in range(12)))
    await node.run()
    assert [len(request.recipients) for request in node.workers.requests] == [1] * 12
    assert node.workers.busiest["one.example"] == 12  # one each, but all at once


@trio_test
async def test_five_thousand_messages_for_fifty_destinations_are_each_sent_once(
    autojump_clock: MockClock,
) -> None:
    node = Node(store=MemoryStore(wall, commit_time=0.01))
    for number in range(5000):
        node.submit(f"u{number}@d{number % 50}.example")
    await node.run(600.0)
    assert not node.store.messages
    assert len(node.workers.accepted) == 5000
    assert set(node.workers.accepted.values()) == {1}
    assert max(node.workers.busiest.values()) <= 20
    assert node.workers.deepest == MOST_UNANSWERED
    assert not node.store.open_contents
    assert len(node.of(MessageRemoved)) == 5000
    assert len(node.scheduler._destinations) == 0  # nothing to remember


@trio_test
async def test_a_new_message_is_delivered_when_wake_is_called(autojump_clock: MockClock) -> None:
    node = Node()
    async with node.running():
        await trio.sleep(1000.0)
        node.submit("a@one.example")
        node.scheduler.wake()
        await trio.sleep(1.0)
        assert not node.store.messages


@trio_test
async def test_a_held_message_stays_until_it_is_released(autojump_clock: MockClock) -> None:
    node = Node()
    node.store.put(
        Submission(sender="", recipients=(Recipient(address="a@one.example"),), held=True),
        CONTENT,
        wall(),
    )
    async with node.running():
        await trio.sleep(5 * DAY)
        assert not node.workers.requests
        await node.store.release(None, wall())
        node.scheduler.wake()
        await trio.sleep(1.0)
    assert not node.store.messages


# --- concurrency ---------------------------------------------------------------------------------


@trio_test
async def test_s133_the_first_wave_is_five_and_no_more_than_twenty_go_at_a_time(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    for number in range(200):
        node.submit(f"u{number}@one.example")
    await node.run()
    assert node.workers.times[5] > node.workers.times[4] == 0.0
    assert node.workers.busiest["one.example"] == 20


@trio_test
async def test_a_slot_has_more_requests_under_way_while_its_session_is_kept_and_most_if_fast(
    autojump_clock: MockClock,
) -> None:
    fast, slow = Answer(delay=0.1), Answer(delay=0.5)
    cases = ((fast, MOST_UNANSWERED), (slow, 3), (replace(fast, session_kept=False), 1))
    for answer, depth in cases:
        node = Node(lambda _, answer=answer: answer)  # type: ignore[misc]  # bound now
        for number in range(100):
            node.submit(f"u{number}@one.example")
        await node.run()
        assert node.workers.deepest == depth


@pytest.mark.parametrize(("count", "saving"), [(1, 0), (5, 0), (20, 15)])
@trio_test
async def test_s138_sessions_are_saved_once_slots_are_refilled(
    autojump_clock: MockClock, count: int, saving: int
) -> None:
    node = Node(lambda _: Answer(session_kept=False, delay=3.0))
    for number in range(count):
        node.submit(f"u{number}@one.example")
    await node.run()
    flags = [request.flags for request in node.workers.requests]
    both = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE
    assert flags == [RequestFlags.NONE] * (count - saving) + [both] * saving


@trio_test
async def test_slots_together_stay_below_their_limit_and_every_destination_gets_its_turn(
    autojump_clock: MockClock,
) -> None:
    node = Node(settings=QueueSettings(slot_limit=4))
    for _ in range(500):
        node.submit("u@busy.example")
    for number in range(10):
        node.submit(f"u@d{number}.example")
    await node.run()
    assert node.workers.most_slots <= 4
    last = max(
        place
        for place, request in enumerate(node.workers.requests)
        if request.nexthop != "busy.example"
    )
    assert last < 200  # not after all 500 of the busy one


@trio_test
async def test_no_more_slots_are_opened_because_workers_take_long_to_start(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, delay=0.01))
    node.workers.ready = 10.0
    for number in range(4_000):
        node.submit(f"u@d{number % 50}.example")
    await node.run()
    assert node.workers.accepted.total() == 4_000
    assert len(node.workers.opened) == FREE  # each is a session, and these were fast enough


@pytest.mark.parametrize("saturated", [False, True])
@trio_test
async def test_no_more_slots_are_opened_while_our_own_processes_have_no_time_for_them(
    autojump_clock: MockClock, saturated: bool
) -> None:
    node = Node(lambda _: replace(SENT, delay=0.5), QueueSettings(slot_limit=5000))
    node.workers.busy_all_the_time = saturated
    for number in range(3_000):
        node.submit(f"u@d{number % 50}.example")
    await node.run()
    assert node.workers.accepted.total() == 3_000
    assert (node.workers.most_slots > FREE) != saturated


@trio_test
async def test_no_slot_is_opened_for_what_will_be_gone_in_a_moment(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, delay=0.01), QueueSettings(slot_limit=2))
    for number in range(120):
        node.submit(f"u{number}@one.example")
        if number < 100:
            node.submit(f"u{number}@two.example")
    await node.run()
    assert len(node.workers.accepted) == 220
    # The one of two.example became free when the other place had twenty messages left.
    assert len(node.workers.opened) == 2


@trio_test
async def test_a_fast_destination_that_comes_to_a_stop_gets_slots_all_the_same(
    autojump_clock: MockClock,
) -> None:
    fast, stuck = (replace(SENT, delay=seconds) for seconds in (0.01, 1000.0))

    def script(request: DeliveryRequest) -> Answer:
        hangs = request.nexthop == "one.example" and 0.1 < trio.current_time() < 0.4
        return stuck if hangs else fast

    node = Node(script, QueueSettings(slot_limit=2))
    for number in range(50):
        node.submit(f"u{number}@one.example")
        if number < 15:
            node.submit(f"u{number}@two.example")
    async with node.running():
        await trio.sleep(2.0)
        # Its only slot hangs with what it has, and nothing ends there any more.
        assert 65 - MOST_UNANSWERED <= len(node.workers.accepted) < 65
        assert len(node.workers.opened) == 3
        node.scheduler.stop()


@trio_test
async def test_turns_end_although_time_goes_on_while_they_are_given(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A place may be found to clear soon, and a microsecond later not to. The virtual clock stands
    # still in between.
    answers = iter([False, True] * 1000)
    monkeypatch.setattr(
        "worker.queue.destinations.Destination.clears_soon",
        lambda place, _now: place.busy > 0 and next(answers),
    )
    node = Node()
    for number in range(20):
        node.submit(f"u{number}@one.example")
    await node.run()
    assert len(node.workers.accepted) == 20


@trio_test
async def test_s135_a_letter_does_not_wait_for_all_of_a_mailing_list(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.submit(*(f"u{number}@one.example" for number in range(2000)), sender="list@here.example")
    node.submit("friend@one.example")
    await node.run()
    senders = [request.sender for request in node.workers.requests]
    assert senders.index("me@here.example") <= 5  # the first wave is of five


@trio_test
async def test_rate_delay_spaces_deliveries_to_a_destination(autojump_clock: MockClock) -> None:
    node = Node(settings=QueueSettings(transports=transports(rate_delay=10.0)))
    for _ in range(5):
        node.submit("u@one.example")
    node.submit("u@two.example")
    await node.run()
    times = [
        time
        for time, request in zip(node.workers.times, node.workers.requests, strict=True)
        if request.nexthop == "one.example"
    ]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == pytest.approx([10.1] * 4)


@trio_test
async def test_s135_the_active_set_is_bounded_and_refilled(autojump_clock: MockClock) -> None:
    node = Node(settings=QueueSettings(active_limit=10))
    most = 0

    def script(_request: DeliveryRequest) -> Answer:
        nonlocal most
        most = max(most, node.scheduler.active_messages)
        return SENT

    node.workers.script = script
    for number in range(200):
        node.submit(f"u@d{number}.example")
    await node.run(60.0)
    assert not node.store.messages
    assert most == 10


@trio_test
async def test_a_message_with_more_recipients_than_fit_is_delivered_in_parts(
    autojump_clock: MockClock,
) -> None:
    node = Node(settings=QueueSettings(recipient_limit=100))
    node.submit(*(f"u{number}@one.example" for number in range(250)))
    await node.run(60.0)
    assert not node.store.messages
    assert len(node.workers.accepted) == 250
    assert len(node.of(MessageRemoved)) == 1


# --- dead destinations ---------------------------------------------------------------------------


@trio_test
async def test_s133_a_destination_that_fails_is_suspended_and_its_queue_deferred_at_once(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: site_failure())
    for number in range(100):
        node.submit(f"u{number}@one.example")
    node.submit("x@two.example")
    await node.run(10.0)
    [suspended] = [
        event
        for event in node.of(DestinationSuspended)
        if isinstance(event, DestinationSuspended) and event.nexthop == "one.example"
    ]
    assert suspended.reason == "connect: refused"
    assert suspended.until == pytest.approx(wall() - 10.0 + 300.0, abs=5.0)
    tried = sum(request.nexthop == "one.example" for request in node.workers.requests)
    assert tried == 5
    reasons = Counter(node.settled(f"u{n}@one.example")[0].outcome.reason for n in range(100))
    assert reasons == {
        "connect: refused": 5,
        "delivery temporarily suspended: connect: refused": 95,
    }
    assert {node.settled(f"u{n}@one.example")[0].outcome.dsn for n in range(100)} == {"4.4.1"}


@trio_test
async def test_s135_mail_for_a_dead_destination_is_deferred_on_arrival_until_its_time_is_over(
    autojump_clock: MockClock,
) -> None:
    failing = True
    node = Node(lambda _: site_failure() if failing else SENT)
    for number in range(5):
        node.submit(f"u{number}@one.example")
    async with node.running():
        await trio.sleep(100.0)
        failing = False
        node.submit("late@one.example")
        node.scheduler.wake()
        await trio.sleep(1.0)
        [late] = node.settled("late@one.example")
        assert late.outcome.reason == "delivery temporarily suspended: connect: refused"
        assert len(node.workers.requests) == 5
        await trio.sleep(1000.0)
        assert not node.store.messages


@trio_test
async def test_s179_a_recovered_destination_starts_again_at_the_initial_concurrency(
    autojump_clock: MockClock,
) -> None:
    down_until = 200.0
    node = Node(lambda _: site_failure() if trio.current_time() < down_until else SENT)
    for number in range(60):
        node.submit(f"u{number}@one.example")
    await node.run(2000.0)
    assert not node.store.messages
    again = [time for time in node.workers.times if time >= down_until]
    assert again[4] == again[0] < again[5]


@trio_test
async def test_flush_revives_dead_destinations(autojump_clock: MockClock) -> None:
    failing = True
    node = Node(lambda _: site_failure() if failing else SENT)
    for number in range(5):
        node.submit(f"u{number}@one.example")
    async with node.running():
        await trio.sleep(10.0)
        failing = False
        await node.store.make_due(None, wall())
        node.scheduler.flush()
        await trio.sleep(1.0)
        assert not node.store.messages


@trio_test
async def test_s179_a_refused_recipient_does_not_slow_its_destination(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: DEFERRED)
    for number in range(100):
        node.submit(f"u{number}@one.example")
    await node.run(60.0)
    assert not node.of(DestinationSuspended)
    assert len(node.workers.requests) == 100


# --- retry and expiry ----------------------------------------------------------------------------


@trio_test
async def test_s135_retry_times_double_between_the_backoff_limits(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(DEFERRED, delay=0.0))
    node.submit("a@one.example")
    await node.run(4 * HOUR)
    gaps = [later - earlier for earlier, later in pairwise(node.workers.times)]
    assert gaps == pytest.approx([300.0, 300.0, 600.0, 1200.0, 2400.0, 4000.0, 4000.0], abs=0.01)


@trio_test
async def test_a_retry_earlier_than_queue_run_delay_is_not_slept_through(
    autojump_clock: MockClock,
) -> None:
    settings = QueueSettings(minimal_backoff=10.0, maximal_backoff=10.0)
    node = Node(lambda _: DEFERRED if len(node.workers.requests) < 4 else SENT, settings)
    node.submit("a@one.example")
    await node.run(35.0)
    assert not node.store.messages


@trio_test
async def test_s135_after_its_lifetime_a_message_goes_back_with_its_last_reason(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda request: DEFERRED if request.sender else SENT)
    queue_id = node.submit("a@one.example")
    await node.run()
    [expired] = node.of(MessageExpired)
    assert expired == MessageExpired(queue_id, "me@here.example")
    assert 5 * DAY <= trio.current_time() < 5 * DAY + 2 * HOUR
    [(sender, recipient, _)] = node.notices()
    assert (sender, recipient) == ("", "me@here.example")
    assert not node.store.messages


@trio_test
async def test_what_failed_and_what_expired_in_one_run_are_reported_together(
    autojump_clock: MockClock,
) -> None:
    answer = Answer(
        per_recipient={"bad@one.example": Action.BOUNCED, "slow@one.example": Action.DEFERRED}
    )
    node = Node(
        lambda request: answer if request.sender else DEFERRED, QueueSettings(queue_lifetime=0.0)
    )
    node.submit("bad@one.example", "slow@one.example")
    await node.run(10.0)
    [notice] = node.store.messages.values()
    assert notice.content.count(b"Action: failed") == 2
    assert b"Status: 4.4.7" in notice.content
    assert b"Status: 5.0.0" in notice.content
    assert b"slow@one.example" in notice.content


@trio_test
async def test_a_notice_expires_by_the_lifetime_of_notices(autojump_clock: MockClock) -> None:
    settings = QueueSettings(bounce_lifetime=HOUR, notices=NoticeSettings(classes=frozenset()))
    node = Node(lambda _: DEFERRED, settings)
    node.submit("me@one.example", sender="", notice=True)
    node.submit("you@one.example")
    await node.run(3 * HOUR)
    assert [m.submission.sender for m in node.store.messages.values()] == ["me@here.example"]


@trio_test
async def test_a_lifetime_of_zero_means_one_attempt(autojump_clock: MockClock) -> None:
    node = Node(
        lambda request: DEFERRED if request.sender else SENT, QueueSettings(queue_lifetime=0.0)
    )
    node.submit("a@one.example")
    await node.run(10.0)
    assert not node.store.messages
    assert len(node.workers.requests) == 2


@trio_test
async def test_s135_the_sender_is_told_of_a_delay_once(autojump_clock: MockClock) -> None:
    node = Node(
        lambda request: DEFERRED if request.sender else SENT, QueueSettings(delay_warning=4 * HOUR)
    )
    node.submit("a@one.example")
    await node.run(3 * DAY)
    kinds = [event.kind for event in node.of(NoticeQueued) if isinstance(event, NoticeQueued)]
    assert kinds == ["sender delay notification"]


@trio_test
async def test_notify_without_delay_suppresses_the_warning(autojump_clock: MockClock) -> None:
    node = Node(lambda _: DEFERRED, QueueSettings(delay_warning=4 * HOUR))
    node.submit("a@one.example", notify=Notify.FAILURE)
    await node.run(DAY)
    assert not node.of(NoticeQueued)


# --- notices -------------------------------------------------------------------------------------


@trio_test
async def test_failed_recipients_are_reported_together_while_the_others_are_kept(
    autojump_clock: MockClock,
) -> None:
    answer = Answer(
        per_recipient={
            "bad@one.example": Action.BOUNCED,
            "worse@one.example": Action.BOUNCED,
            "later@one.example": Action.DEFERRED,
        }
    )
    node = Node(lambda request: answer if request.sender else SENT)
    node.submit("good@one.example", "bad@one.example", "worse@one.example", "later@one.example")
    await node.run(10.0)
    [message] = node.store.messages.values()
    assert [row.recipient.address for row in message.rows.values()] == ["later@one.example"]
    assert message.state is MessageState.DEFERRED
    assert len(node.notices()) == 1


@trio_test
async def test_a_bounce_names_the_recipient_and_returns_the_message(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda request: BOUNCED if request.sender else DEFERRED)
    node.submit("a@one.example")
    await node.run(10.0)
    [notice] = node.store.messages.values()
    assert notice.notice
    assert notice.submission.recipients[0].address == "me@here.example"
    assert b"Final-Recipient: rfc822; a@one.example" in notice.content
    assert b"Status: 5.1.1" in notice.content
    assert b"\r\nSubject: hello\r\n\r\nbody\r\n" in notice.content


@pytest.mark.parametrize(
    ("sender", "notify"),
    [
        ("", Notify.NEVER),
        ("me@here.example", Notify.NEVER),
        ("me@here.example", Notify.SUCCESS),
    ],
)
def test_nobody_is_told_of_a_failure(sender: str, notify: Notify) -> None:
    node = Node(lambda _: BOUNCED)

    async def main() -> None:
        node.submit("a@one.example", sender=sender, notify=notify)
        await node.run(10.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert not node.store.messages
    assert len(node.workers.requests) == 1
    assert not node.of(NoticeQueued)


@trio_test
async def test_a_bounce_that_bounces_goes_to_the_postmaster_and_there_it_ends(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: BOUNCED)
    node.submit("a@one.example")
    await node.run(60.0)
    assert [(sender, recipient) for sender, recipient, _ in node.notices()] == [
        ("", "me@here.example"),
        ("double-bounce@localhost", "postmaster@localhost"),
    ]
    assert not node.store.messages
    [warning] = node.of(Warned)
    assert isinstance(warning, Warned)
    assert "postmaster" in warning.text


@pytest.mark.parametrize("classes", [{"2bounce"}, {"bounce"}])
def test_s155_bounce_implies_2bounce(classes: set[str]) -> None:
    settings = QueueSettings(notices=NoticeSettings(classes=frozenset(classes)))
    node = Node(lambda request: SENT if request.sender else BOUNCED, settings)

    async def main() -> None:
        node.submit("a@one.example", sender="", notice=True)
        await node.run(60.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [request.sender for request in node.workers.requests] == ["", "double-bounce@localhost"]


@trio_test
async def test_s155_the_postmaster_is_told_of_mail_from_the_null_sender_that_bounced(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda request: SENT if request.sender else BOUNCED)
    node.submit("a@one.example", sender="")
    await node.run(60.0)
    _, told = node.workers.requests
    assert told.sender == "double-bounce@localhost"
    assert told.recipients[0].address == "postmaster@localhost"


@trio_test
async def test_s155_without_2bounce_mail_from_the_null_sender_is_dropped_with_a_warning(
    autojump_clock: MockClock,
) -> None:
    settings = QueueSettings(notices=NoticeSettings(classes=frozenset()))
    node = Node(lambda _: BOUNCED, settings)
    node.submit("a@one.example", sender="")
    await node.run(60.0)
    [warning] = node.of(Warned)
    assert isinstance(warning, Warned)
    assert "mail from the null sender" in warning.text
    assert not node.store.messages


@trio_test
async def test_a_double_bounce_comes_from_this_host_whatever_the_origin_is(
    autojump_clock: MockClock,
) -> None:
    notices = NoticeSettings.from_config(
        Config.from_mapping({"myhostname": "host.example", "myorigin": "domain.example"})
    )
    node = Node(lambda _: BOUNCED, QueueSettings(notices=notices))
    node.submit("a@one.example", sender="")
    await node.run(60.0)
    assert [(sender, recipient) for sender, recipient, _ in node.notices()] == [
        ("", "a@one.example"),
        ("double-bounce@host.example", "postmaster@domain.example"),
    ]
    assert not node.store.messages


@pytest.mark.parametrize(
    ("sender", "notice"),
    [("Double-Bounce@LOCALHOST", False), ("double-bounce@before.example", True)],
)
@trio_test
async def test_a_double_bounce_ends_in_any_spelling_and_after_a_change_of_names(
    sender: str, *, notice: bool, autojump_clock: MockClock
) -> None:
    node = Node(lambda _: BOUNCED)
    node.submit("a@one.example", sender=sender, notice=notice)
    await node.run(60.0)
    assert len(node.workers.requests) == 1
    assert not node.of(NoticeQueued)


@trio_test
async def test_without_2bounce_a_bounce_that_bounces_is_dropped_with_a_warning(
    autojump_clock: MockClock,
) -> None:
    settings = QueueSettings(notices=NoticeSettings(classes=frozenset()))
    node = Node(lambda _: BOUNCED, settings)
    node.submit("a@one.example")
    await node.run(60.0)
    assert len(node.notices()) == 1
    assert len(node.of(Warned)) == 1
    assert not node.store.messages


@trio_test
async def test_s079_success_is_reported_where_asked_for_and_not_taken_over_by_the_server(
    autojump_clock: MockClock,
) -> None:
    node = Node(
        lambda request: (
            replace(SENT, dsn_announced=request.nexthop == "knows.example")
            if request.sender
            else DEFERRED
        )
    )
    node.submit("a@plain.example", "b@knows.example", notify=Notify.SUCCESS)
    await node.run(10.0)
    [notice] = node.store.messages.values()
    assert b"Action: relayed" in notice.content
    assert b"a@plain.example" in notice.content
    assert b"b@knows.example" not in notice.content


@pytest.mark.parametrize(
    ("transport", "assumed", "action"),
    [
        ("lmtp:unix:/run/lmtp", "yes", b"Action: delivered"),
        ("lmtp:unix:/run/lmtp", "no", b"Action: relayed"),
        ("smtp", "yes", b"Action: relayed"),
    ],
)
@trio_test
async def test_s079_success_is_a_delivery_over_lmtp_if_that_is_assumed_to_be_final(
    autojump_clock: MockClock, transport: str, assumed: str, action: bytes
) -> None:
    config = Config.from_mapping({"lmtp_assume_final": assumed})
    node = Node(
        lambda request: SENT if request.sender else DEFERRED,
        QueueSettings(notices=NoticeSettings.from_config(config)),
        router=Router(default_transport=transport),
    )
    node.submit("a@plain.example", notify=Notify.SUCCESS)
    await node.run(10.0)
    [notice] = node.store.messages.values()
    assert action in notice.content


@trio_test
async def test_s181_soft_bounce_keeps_what_would_be_returned(autojump_clock: MockClock) -> None:
    node = Node(lambda _: BOUNCED, QueueSettings(soft_bounce=True))
    node.submit("a@one.example")
    await node.run(10.0)
    [event] = node.settled("a@one.example")
    assert (event.outcome.action, event.outcome.dsn) == (Action.DEFERRED, "4.1.1")
    assert len(node.store.messages) == 1


@trio_test
async def test_s180_a_mistake_in_writing_a_notice_keeps_the_failure_for_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(lambda request: BOUNCED if request.sender else SENT)
    node.submit("a@one.example")

    def broken(*_: object) -> list[NoticeDraft]:
        raise RuntimeError("bug")

    with monkeypatch.context() as patch:
        patch.setattr("worker.queue.books.write_notices", broken)
        await node.run(10.0)
    assert len(node.of(UnexpectedError)) == 1
    [message] = node.store.messages.values()
    assert [row.settled for row in message.rows.values()] == [True]
    again = Node(store=node.store.reopened())
    await again.run(2 * HOUR)
    assert [recipient for _, recipient, _ in again.notices()] == ["me@here.example"]
    assert not again.store.messages


# --- configuration -------------------------------------------------------------------------------


def test_the_slot_limit_counts_the_worker_processes_that_there_are() -> None:
    config = Config.from_mapping({"postrio_slot_limit": "10", "postrio_worker_processes": "2"})
    assert QueueSettings.from_config(config).slot_limit == 20
    assert QueueSettings.from_config(config, 5).slot_limit == 50


# --- routing -------------------------------------------------------------------------------------


@trio_test
async def test_error_retry_and_discard_are_settled_without_a_worker(
    autojump_clock: MockClock,
) -> None:
    config = Config.from_mapping(
        {
            "transport_maps": "inline:{ {gone.example=error:5.1.6 moved away},"
            " {slow.example=retry:4.3.2 not today}, {void.example=discard:},"
            " {odd.example=uucp:odd} }"
        }
    )
    node = Node(settings=QueueSettings.from_config(config), router=Router.from_config(config))
    addresses = [f"a@{name}.example" for name in ("gone", "slow", "void", "odd")]
    node.submit(*addresses, sender="", notify=Notify.NEVER)
    await node.run(10.0)
    assert not node.workers.requests
    seen = {
        event.outcome.recipient.address: (event.protocol, event.outcome.dsn, event.outcome.reason)
        for event in node.events
        if isinstance(event, RecipientSettled)
    }
    assert seen == {
        "a@gone.example": ("error", "5.1.6", "moved away"),
        "a@slow.example": ("error", "4.3.2", "not today"),
        "a@void.example": ("discard", "2.0.0", "thrown away as configured"),
        "a@odd.example": ("error", "4.3.0", "mail transport unavailable"),
    }
    assert all(
        event.outcome.delays == Delays()
        for event in node.events
        if isinstance(event, RecipientSettled)
    )


@trio_test
async def test_s184_reload_changes_routes_and_limits_of_what_comes_next(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    async with node.running():
        node.submit("a@one.example")
        node.scheduler.wake()
        await trio.sleep(1.0)
        limits = transports(initial_concurrency=1, concurrency_limit=1)
        node.scheduler.reload(QueueSettings(transports=limits), Router(relayhost="[hub.example]"))
        for _ in range(10):
            node.submit("a@one.example")
        node.scheduler.wake()
        await trio.sleep(10.0)
    assert {request.nexthop for request in node.workers.requests[1:]} == {"[hub.example]"}
    assert node.workers.busiest["[hub.example]"] == 1


@trio_test
async def test_s184_reload_changes_the_limits_of_destinations_that_have_mail(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, delay=10.0, session_kept=False))
    for _ in range(12):
        node.submit("a@one.example")
    async with node.running():
        await trio.sleep(1.0)
        limits = transports(initial_concurrency=1, concurrency_limit=1)
        node.scheduler.reload(QueueSettings(transports=limits), Router())
        await trio.sleep(200.0)
    assert len(node.workers.times) == 12
    assert node.workers.times[4] == 0.0
    assert all(later - earlier >= 10.0 for earlier, later in pairwise(node.workers.times[4:]))


# --- trouble -------------------------------------------------------------------------------------


@trio_test
async def test_only_the_oldest_request_in_a_lost_worker_is_in_doubt_those_behind_go_out_at_once(
    autojump_clock: MockClock,
) -> None:
    died = False

    def script(_request: DeliveryRequest) -> Answer:
        nonlocal died
        if len(node.workers.requests) == 3 and not died:
            died = True
            return replace(slow, lost=True)
        return slow

    slow = replace(SENT, delay=0.5)
    settings = QueueSettings(transports=transports(concurrency_limit=1))
    node = Node(script, settings)
    for number in range(10):
        node.submit(f"u{number}@one.example")
    await node.run(30.0)
    lost = [
        event.outcome
        for event in node.events
        if isinstance(event, RecipientSettled) and event.outcome.action is Action.DEFERRED
    ]
    addresses = sorted(outcome.recipient.address for outcome in lost)
    assert addresses == ["u2@one.example"]
    assert all(outcome.in_doubt and outcome.dsn == "4.3.0" for outcome in lost)
    assert "more than once" in lost[0].reason
    assert sum(row.doubts for m in node.store.messages.values() for row in m.rows.values()) == 1
    assert len(node.workers.accepted) == 10  # u2 was accepted before the worker died
    # u3 and u4 were behind it: back in front of the queue, not behind the others.
    sent = [request.recipients[0].address[:2] for request in node.workers.requests]
    assert sent[:7] == ["u0", "u1", "u2", "u3", "u4", "u3", "u4"]
    assert not node.of(UnexpectedError)


@trio_test
async def test_all_requests_in_a_slot_are_in_doubt_when_a_worker_that_lives_makes_no_sense(
    autojump_clock: MockClock,
) -> None:
    node = Node(
        lambda _: replace(SENT, delay=0.5),
        QueueSettings(transports=transports(concurrency_limit=1)),
    )
    usual = node.workers.open_slot

    async def open_slot(destination: DestinationKey) -> Slot:
        slot = await usual(destination)
        receive = slot.receive

        async def spoilt() -> DeliveryResult:
            result = await receive()
            if len(node.workers.accepted) == 3 and len(node.workers.opened) == 1:
                raise RemoteProtocolError("a result that makes no sense")
            return result

        slot.receive = spoilt  # type: ignore[method-assign]  # a fault injected
        return slot

    node.workers.open_slot = open_slot  # type: ignore[method-assign]  # a fault injected
    for number in range(10):
        node.submit(f"u{number}@one.example")
    await node.run(30.0)
    doubtful = [
        event.outcome.recipient.address[:2]
        for event in node.events
        if isinstance(event, RecipientSettled) and event.outcome.in_doubt
    ]
    assert sorted(doubtful) == ["u2", "u3", "u4"]  # the worker goes on with what it has
    sent = [request.recipients[0].address[:2] for request in node.workers.requests]
    assert sent == [f"u{number}" for number in range(10)]  # none of them again at once
    assert not node.of(UnexpectedError)


@trio_test
async def test_what_a_lost_worker_left_in_doubt_is_tried_again_soon_however_old_it_is(
    autojump_clock: MockClock,
) -> None:
    def script(_request: DeliveryRequest) -> Answer:
        first = len(node.workers.requests) == 1
        return replace(SENT, lost=True) if first else SENT

    node = Node(script)
    node.submit("a@one.example")
    await trio.sleep(2 * HOUR)  # the usual back-off would be as long, or 4000 s
    await node.run(HOUR)
    assert not node.store.messages
    assert node.workers.times[1] - node.workers.times[0] == pytest.approx(300.0, abs=2)


@trio_test
async def test_the_loss_of_a_worker_is_not_held_against_the_destination(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, lost=True))
    for number in range(30):
        node.submit(f"u{number}@one.example")
    await node.run(100.0)
    assert not node.of(DestinationSuspended)


@trio_test
async def test_a_result_that_a_lost_worker_has_sent_is_read_although_the_next_request_failed(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Answer:
        if request.recipients[0].address == "c@one.example" and trio.current_time() < 3.0:
            raise WorkerLost("cut while sending")
        return replace(SENT, delay=1.0)

    node = Node(script, QueueSettings(transports=transports(concurrency_limit=1)))
    for name in "abc":
        node.submit(f"{name}@one.example")
    await node.run(60.0)  # c is sent when b is under way
    assert not node.store.messages
    assert sorted(node.workers.accepted.values()) == [1, 1, 1]
    settled = [event for event in node.events if isinstance(event, RecipientSettled)]
    assert not any(event.outcome.in_doubt for event in settled)


@trio_test
async def test_a_worker_that_dies_of_every_request_does_not_make_slots_spin(
    autojump_clock: MockClock,
) -> None:
    def script(_request: DeliveryRequest) -> Answer:
        raise WorkerLost("cut while sending")

    node = Node(script, QueueSettings(transports=transports(concurrency_limit=1)))
    node.submit("a@one.example")
    await node.run(60.0)
    assert 50 <= len(node.workers.requests) <= 62  # once a second
    [left] = node.store.messages.values()
    assert not any(row.doubts for row in left.rows.values())


@trio_test
async def test_requests_that_an_ending_worker_did_not_try_go_to_another_slot_at_once(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Answer:
        if len(node.workers.requests) == 1:
            return replace(
                DEFERRED,
                stopped=True,
                session_kept=False,
                per_recipient={"b@one.example": SENT.action},
            )
        return SENT

    node = Node(script)
    node.submit("a@one.example", "b@one.example")
    await node.run(5.0)
    assert not node.store.messages
    first, second = node.workers.requests
    assert [item.address for item in first.recipients] == ["a@one.example", "b@one.example"]
    assert [item.address for item in second.recipients] == ["a@one.example"]
    assert len(node.workers.opened) == 2  # not the slot of the worker that ends
    assert [event.outcome.action for event in node.settled("a@one.example")] == [Action.SENT]


@trio_test
async def test_requests_that_an_ending_worker_did_not_try_keep_their_order(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Answer:
        number = len(node.workers.requests)
        return replace(DEFERRED, stopped=True) if 3 <= number <= 5 else replace(SENT, delay=0.5)

    node = Node(script, QueueSettings(transports=transports(concurrency_limit=1)))
    for number in range(7):
        node.submit(f"u{number}@one.example")
    await node.run(30.0)
    sent = [request.recipients[0].address[:2] for request in node.workers.requests]
    assert sent == ["u0", "u1", "u2", "u3", "u4", "u2", "u3", "u4", "u5", "u6"]


@trio_test
async def test_a_misplaced_slot_makes_room_for_a_better_one_and_others_do_not(
    autojump_clock: MockClock,
) -> None:
    for misplaced, slots in ((False, 1), (True, 3)):
        node = Node(settings=QueueSettings(transports=transports(concurrency_limit=1)))
        node.workers.misplaced = misplaced
        for number in range(60):
            node.submit(f"u{number}@one.example")
        await node.run(HOUR)
        assert len(node.workers.accepted) == 60
        assert len(node.workers.opened) == slots
        assert {key[:2] for key in node.workers.opened} == {("smtp", "one.example")}


@trio_test
async def test_mail_waits_while_no_worker_can_be_reached_for_a_moment(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.workers.unreachable = 7
    node.submit("a@one.example")
    await node.run(20.0)
    assert not node.store.messages


@trio_test
async def test_mail_is_deferred_when_no_worker_can_be_reached_for_long(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.workers.unreachable = 65
    node.submit("a@one.example")
    await node.run(100.0)
    [event] = node.settled("a@one.example")
    assert "mail transport unavailable" in event.outcome.reason
    assert event.outcome.action is Action.DEFERRED


@trio_test
async def test_a_destination_without_workers_is_suspended_once_with_all_its_mail(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.workers.unreachable = 1000
    for number in range(20):
        node.submit(f"u{number}@one.example")
    await node.run(100.0)
    assert len(node.of(DestinationSuspended)) == 1
    assert len(node.of(RecipientSettled)) == 20
    assert node.scheduler.active_messages == 0


@trio_test
async def test_contents_are_closed_when_the_worker_is_lost_between_two_requests(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Answer:
        if request.recipients[0].address == "b@one.example" and trio.current_time() < 10.0:
            raise WorkerLost("cut while sending")
        return replace(SENT, delay=5.0)

    node = Node(script, QueueSettings(transports=transports(concurrency_limit=1)))
    node.submit("a@one.example")
    async with node.running():
        await trio.sleep(1.0)
        node.submit("b@one.example")  # both wait for the slot, and come into its hands together
        node.submit("c@one.example")
        node.scheduler.wake()
        await trio.sleep(20.0)
        assert not node.store.open_contents
        assert not node.store.messages  # what did not arrive whole was not begun: it went again
        assert len(node.workers.accepted) == 3


@trio_test
async def test_a_bug_in_a_slot_defers_its_mail_and_the_scheduler_lives(
    autojump_clock: MockClock,
) -> None:
    node = Node()

    class BrokenSlot:
        async def send(self, request: DeliveryRequest, content: Content) -> None:
            content.close()
            raise RuntimeError("bug")

        async def receive(self) -> object:
            raise AssertionError

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    usual = node.workers.open_slot

    async def open_slot(destination: DestinationKey) -> Slot:
        node.workers.open_slot = usual  # type: ignore[method-assign]  # once only
        return BrokenSlot()  # type: ignore[return-value]  # its receive() is never called

    node.workers.open_slot = open_slot  # type: ignore[method-assign]  # a fault injected
    node.submit("a@one.example")
    node.submit("b@two.example")
    await node.run(10.0)
    [bug] = node.of(UnexpectedError)
    assert isinstance(bug, UnexpectedError)
    assert "RuntimeError: bug" in bug.traceback
    assert len(node.workers.accepted) == 1
    [event] = [
        event
        for event in node.events
        if isinstance(event, RecipientSettled) and event.outcome.action is Action.DEFERRED
    ]
    assert event.outcome.in_doubt
    assert not node.store.open_contents


@trio_test
async def test_a_request_that_must_not_be_sent_is_deferred_and_the_slot_goes_on(
    autojump_clock: MockClock,
) -> None:
    node = Node(
        lambda _: replace(SENT, delay=0.5),
        QueueSettings(transports=transports(concurrency_limit=1)),
    )
    for number in range(10):
        notify = Notify.NEVER | Notify.SUCCESS if number == 5 else Notify.UNSPECIFIED
        node.submit(f"u{number}@one.example", notify=notify)
    await node.run(60.0)
    [left] = node.store.messages.values()
    assert left.submission.recipients[0].address == "u5@one.example"
    assert sorted(node.workers.accepted.values()) == [1] * 9
    assert len(node.workers.opened) == 1
    settled = [event for event in node.events if isinstance(event, RecipientSettled)]
    assert not any(event.outcome.in_doubt for event in settled)
    [refused] = node.settled("u5@one.example")
    assert refused.outcome.action is Action.DEFERRED
    assert "cannot be handed to a worker: " in refused.outcome.reason
    assert len(node.of(UnexpectedError)) == 1
    assert not node.store.open_contents


@trio_test
async def test_s180_a_result_without_an_outcome_for_each_recipient_is_a_bug_and_loses_nobody(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    node.submit("a@one.example", "b@one.example")
    usual = node.workers.open_slot

    async def open_slot(destination: DestinationKey) -> Slot:
        slot = await usual(destination)
        receive = slot.receive

        async def short() -> object:
            result = await receive()
            return replace(result, outcomes=result.outcomes[:1])

        slot.receive = short  # type: ignore[method-assign,assignment]  # a fault injected
        return slot

    node.workers.open_slot = open_slot  # type: ignore[method-assign]  # a fault injected
    await node.run(10.0)
    assert len(node.of(UnexpectedError)) == 1
    [message] = node.store.messages.values()
    assert len(message.rows) == 2


@trio_test
async def test_s180_trouble_with_the_store_is_waited_out_and_nothing_is_lost(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    for number in range(20):
        node.submit(f"u{number}@d{number % 4}.example")
    node.store.trouble = 25
    await node.run(2 * HOUR)
    assert not node.store.messages
    assert len(node.workers.accepted) == 20
    assert node.of(Warned)
    assert not node.of(UnexpectedError)


@trio_test
async def test_what_is_under_way_is_not_in_doubt_when_the_store_cannot_begin_more(
    autojump_clock: MockClock,
) -> None:
    node = Node(
        lambda _: replace(SENT, delay=0.5),
        QueueSettings(transports=transports(concurrency_limit=1)),
    )
    for number in range(20):
        node.submit(f"u{number}@one.example")
    usual = node.store.begin

    async def begin(attempts: Sequence[tuple[int, Collection[int]]]) -> list[Content | None]:
        if 2.0 <= trio.current_time() < 100.0:
            await trio.lowlevel.checkpoint()
            raise StoreFull("no space")
        return await usual(attempts)

    node.store.begin = begin  # type: ignore[method-assign]  # a fault injected
    await node.run(2 * HOUR)
    assert not node.store.messages
    assert sorted(node.workers.accepted.values()) == [1] * 20
    settled = [event for event in node.events if isinstance(event, RecipientSettled)]
    assert any("no space" in event.outcome.reason for event in settled)
    assert not any(event.outcome.in_doubt for event in settled)


@trio_test
async def test_a_message_deleted_while_it_is_active_is_forgotten(autojump_clock: MockClock) -> None:
    node = Node(lambda _: replace(SENT, delay=10.0, session_kept=False))
    for number in range(10):
        node.submit(f"u{number}@one.example")
    async with node.running():
        await trio.sleep(5.0)
        await node.store.delete(None)
        await trio.sleep(100.0)
        assert node.scheduler.active_messages == 0
        assert node.scheduler.open_slots == 0
    assert len(node.workers.requests) == 5


@trio_test
async def test_what_was_under_way_of_a_deleted_message_is_logged_at_its_end(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Answer:
        seconds = 10.0 if request.nexthop == "one.example" else 30.0
        return replace(SENT, delay=seconds, session_kept=False)

    node = Node(script, QueueSettings(transports=transports(concurrency_limit=1)))
    node.submit("a@one.example")
    node.submit("b@one.example", "c@two.example")  # b waits for a
    async with node.running():
        await trio.sleep(5.0)
        await node.store.delete(None)
        await trio.sleep(100.0)
    settled = [event for event in node.events if isinstance(event, RecipientSettled)]
    assert [event.outcome.recipient.address for event in settled] == [
        "a@one.example",
        "c@two.example",
    ]


@trio_test
async def test_attempts_found_in_doubt_at_the_start_are_reported(autojump_clock: MockClock) -> None:
    node = Node(lambda _: replace(SENT, delay=100.0))
    queue_id = node.submit("a@one.example")
    async with trio.open_nursery() as nursery:
        await nursery.start(node.scheduler.run)
        await trio.sleep(50.0)
        nursery.cancel_scope.cancel()
    again = Node(store=node.store.reopened())
    await again.run(10.0)
    assert again.of(DeliveryInDoubt) == [DeliveryInDoubt(queue_id, "a@one.example")]
    assert not again.store.messages


@pytest.mark.parametrize(
    ("rest", "sender"),
    [
        (SENT, "me@here.example"),
        (BOUNCED, "me@here.example"),  # with a notice
        (BOUNCED, "double-bounce@localhost"),  # without
    ],
)
@trio_test
async def test_a_message_is_not_called_removed_while_an_earlier_run_left_something_of_it(
    autojump_clock: MockClock, rest: Answer, sender: str
) -> None:
    node = Node(
        lambda request: DEFERRED if request.nexthop == "a.example" else replace(SENT, delay=100.0)
    )
    queue_id = node.submit("x@a.example", "x@b.example", sender=sender)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.scheduler.run)
        await trio.sleep(50.0)
        nursery.cancel_scope.cancel()  # the end of the run never came
    again = Node(
        lambda request: rest if request.nexthop == "b.example" else SENT,
        store=node.store.reopened(),
    )
    await again.run(10.0)
    assert not again.store.messages  # what was deferred is looked at again at once
    assert [
        event.queue_id if isinstance(event, MessageRemoved) else event.outcome.recipient.address
        for event in again.events
        if isinstance(event, MessageRemoved | RecipientSettled) and event.queue_id == queue_id
    ] == ["x@b.example", "x@a.example", queue_id]


@trio_test
async def test_the_store_on_disk_and_the_scheduler_agree(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    answer = Answer(
        per_recipient={"bad@one.example": Action.BOUNCED, "later@one.example": Action.DEFERRED}
    )
    async with await open_store(tmp_path / "queue", wall=wall, threads=False) as store:
        workers = ScriptedWorkers(
            lambda request: answer if request.sender and trio.current_time() < 100.0 else SENT
        )
        events: list[Event] = []
        settings = QueueSettings(recipient_limit=2)
        scheduler = Scheduler(store, workers, settings, Router(), events.append, wall)
        content = store.spool()
        await content.write(CONTENT)
        names = ("good", "bad", "later")
        recipients = tuple(Recipient(address=f"{name}@one.example") for name in names)
        await store.submit(
            Submission(sender="me@here.example", recipients=recipients), content, wall()
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await trio.sleep(HOUR)
            scheduler.stop()
        assert await store.summaries() == []
    addresses = Counter(address for _, address in workers.accepted.elements())
    assert addresses == {"good@one.example": 1, "later@one.example": 1, "me@here.example": 1}
    assert sum(isinstance(event, MessageRemoved) for event in events) == 2


# --- stopping ------------------------------------------------------------------------------------


@trio_test
async def test_stop_lets_deliveries_under_way_finish_and_begins_no_others(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, delay=5.0))
    for number in range(50):
        node.submit(f"u{number}@one.example")
    async with node.running():
        await trio.sleep(1.0)
    assert trio.current_time() == pytest.approx(5.0)
    assert len(node.workers.accepted) == 5
    assert len(node.store.messages) == 45
    again = node.store.reopened()
    assert await again.in_doubt() == []


@trio_test
async def test_what_a_stopping_worker_did_not_try_is_due_again_and_not_in_doubt(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(DEFERRED, stopped=True, accepted=False))
    node.submit("a@one.example")
    async with node.running():
        await trio.sleep(1.0)
    again = node.store.reopened()
    assert await again.in_doubt() == []
    assert [m.sender for m in await again.claim(wall(), 10)] == ["me@here.example"]


@trio_test
async def test_stop_cuts_what_takes_longer_than_the_shutdown_timeout(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, delay=1000.0))
    node.submit("a@one.example")
    async with node.running():
        await trio.sleep(1.0)
    assert trio.current_time() == pytest.approx(11.0)
    assert await node.store.reopened().in_doubt() == [("Q1", "a@one.example")]


@trio_test
async def test_what_was_handed_in_becomes_durable_although_the_scheduler_is_cancelled(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.books.BOOKKEEPERS", 1)  # so that they queue up
    node = Node(store=MemoryStore(wall, commit_time=1.0))
    for number in range(5):
        node.submit(f"u{number}@d{number}.example")
    async with trio.open_nursery() as nursery:
        await nursery.start(node.scheduler.run)
        while len(node.workers.accepted) < 5:  # noqa: ASYNC110 - a fake has no event for it
            await trio.sleep(0.05)
        assert len(node.store.messages) == 5
        nursery.cancel_scope.cancel()
    assert not node.store.messages
    assert len(node.of(MessageRemoved)) == 5


def test_cancellation_at_any_step_loses_no_recipient_and_leaks_no_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.queue.books.BOOKKEEPERS", 3)  # the idle ones only cost steps

    def make_world() -> Node:
        script = {"a@one.example": SENT, "b@two.example": BOUNCED, "c@three.example": DEFERRED}
        return Node(lambda request: script.get(request.recipients[0].address, SENT))

    async def scenario(node: Node) -> None:
        node.store = node.scheduler._store = MemoryStore(wall)
        node.scheduler._begins._store = node.scheduler._books._store = node.store
        node.submit("a@one.example", "b@two.example", "c@three.example")
        node.submit("d@one.example")
        async with node.running():
            await trio.sleep(5.0)

    steps = 0
    for run in cancel_everywhere(make_world, scenario):
        steps = run.step
        node = run.world
        assert not node.store.open_contents, f"content leaked at step {run.step}"
        assert not node.of(UnexpectedError), f"bug at step {run.step}"
        assert node.workers.open_slots == 0, f"slot leaked at step {run.step}"
        store = node.store.reopened() if node.store.messages else node.store
        left = {
            row.recipient.address: row
            for message in store.messages.values()
            for row in message.rows.values()
        }
        for (_, address), times in node.workers.accepted.items():
            assert times == 1
            if address in left and address.endswith("one.example"):
                assert left[address].doubts, f"{address} silently again at step {run.step}"
        assert "c@three.example" in left or not node.events
        reported = [row for row in left if row == "me@here.example"]
        bounced = [
            event
            for event in node.settled("b@two.example")
            if event.outcome.action is Action.BOUNCED
        ]
        assert len(reported) <= 1
        if bounced and "b@two.example" not in left:
            sent = any(address == "me@here.example" for _, address in node.workers.accepted)
            assert reported or sent, f"bounce lost at step {run.step}"
    assert steps > 50
