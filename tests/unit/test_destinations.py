"""Concurrency feedback, dead destinations, turns: pure arithmetic, time passed in."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.request import ClientFacts, Protocol, Recipient, RequestFlags, Ret, SendOptions
from worker.queue.active import ActiveMessage, Entry, FairQueue, Share
from worker.queue.destinations import Destination, Destinations
from worker.queue.destinations import Feedback as Change
from worker.queue.records import QueuedMessage
from worker.queue.routing import Delivery
from worker.queue.settings import Feedback, FeedbackScale, TransportSettings

LIMITS = TransportSettings()
ROUTE = Delivery("smtp", "one.example", Protocol.SMTP)


def destination(**changes: object) -> Destination:
    """A destination with other limits than the usual ones."""
    limits = replace(LIMITS, **changes)  # type: ignore[arg-type]  # a test's keywords
    return Destination(("smtp", "one.example", ""), ROUTE, limits)


def message(number: int, recipients: int = 1) -> ActiveMessage:
    """An active message to so many recipients."""
    return ActiveMessage(
        QueuedMessage(
            id=number * 1000,
            queue_id=f"Q{number}",
            sender="",
            arrival=0.0,
            size=1,
            encoding="",
            options=SendOptions.NONE,
            envelope_id="",
            ret=Ret.UNSPECIFIED,
            client=ClientFacts(),
            attempts=0,
            warned=False,
            notice=False,
            recipients=tuple(
                Recipient(address=f"u{key}@one.example", key=number * 1000 + key)
                for key in range(1, recipients + 1)
            ),
        ),
        0.0,
    )


def add(queue: FairQueue, active: ActiveMessage) -> None:
    """Queue all recipients of a message."""
    queue.add(Share(active, active.message.recipients))


# --- the connection cache ------------------------------------------------------------------------

LOAD, SAVE = RequestFlags.CACHE_LOAD, RequestFlags.CACHE_SAVE


def test_s138_saving_and_loading_begin_with_deliveries_back_to_back() -> None:
    place = destination()
    place.busy = 5  # parallel ones are not enough
    assert [place.reuse_flags(100.0) for _ in range(5)] == [RequestFlags.NONE] * 5
    place.delivered(103.0)
    assert place.reuse_flags(104.0) == LOAD | SAVE


def test_s138_saving_ends_when_deliveries_are_neither_parallel_nor_back_to_back() -> None:
    place = destination()
    place.delivered(100.0)
    place.busy = 2
    assert place.reuse_flags(100.5) == LOAD | SAVE
    assert place.reuse_flags(101.5) == LOAD | SAVE  # late, but parallel
    place.busy = 1
    assert place.reuse_flags(101.5) == LOAD
    assert place.reuse_flags(200.0) == LOAD  # what was saved is still used up
    place.delivered(200.5)
    assert place.reuse_flags(201.5) == LOAD | SAVE


# --- the window ----------------------------------------------------------------------------------


def test_the_window_starts_at_the_initial_concurrency_within_the_limit() -> None:
    assert destination().window == 5
    assert destination(concurrency_limit=3).window == 3
    assert destination(concurrency_limit=0).window == 5
    assert destination(rate_delay=1.0).window == 1


def test_s133_each_success_opens_a_busy_window_by_one_up_to_the_limit() -> None:
    place = destination()
    windows = []
    for _ in range(20):
        place.busy = place.window
        place.succeeded()
        windows.append(place.window)
    assert windows == [*range(6, 21), 20, 20, 20, 20, 20]


def test_the_window_never_exceeds_what_is_busy_by_more_than_the_initial_concurrency() -> None:
    place = destination()
    place.busy = 2
    for _ in range(50):
        place.succeeded()
    assert place.window == 7


def test_a_feedback_of_one_by_concurrency_opens_the_window_after_that_many_successes() -> None:
    place = destination(positive_feedback=Feedback(1.0, FeedbackScale.CONCURRENCY))
    place.busy = 5
    for _ in range(4):
        place.succeeded()
    assert place.window == 5
    place.succeeded()
    assert place.window == 6


def test_each_failure_closes_the_window_by_one_down_to_one() -> None:
    place = destination(failed_cohort_limit=0)
    windows = []
    for _ in range(6):
        place.failed("4.4.1", "no", 300.0)
        windows.append(place.window)
    assert windows == [4, 3, 2, 1, 1, 1]


def test_a_small_negative_feedback_closes_the_window_after_several_failures() -> None:
    place = destination(
        failed_cohort_limit=0,
        negative_feedback=Feedback(0.2),
    )
    windows = []
    for _ in range(10):
        place.failed("4.4.1", "no", 300.0)
        windows.append(place.window)
    assert windows == [5, 5, 4, 4, 4, 4, 4, 3, 3, 3]


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 30), st.integers(1, 10))
def test_the_window_stays_between_one_and_the_limit(
    successes: list[bool], limit: int, initial: int
) -> None:
    place = destination(concurrency_limit=limit, initial_concurrency=initial, failed_cohort_limit=0)
    for success in successes:
        place.busy = place.window
        if success:
            place.succeeded()
        else:
            place.failed("4.4.1", "no", 300.0)
        assert 1 <= place.window <= (limit or 300)


# --- dead destinations ---------------------------------------------------------------------------


def test_s133_a_cohort_of_failures_makes_a_destination_dead() -> None:
    place = destination(negative_feedback=Feedback(0.0))
    changes = [place.failed("5.4.1", "no", 300.0) for _ in range(5)]
    assert changes == [Change.NONE] * 4 + [Change.DEAD]
    assert place.is_dead(299.9)
    assert (place.dsn, place.reason) == ("4.4.1", "no")


def test_a_shrinking_window_makes_the_last_failures_weigh_more() -> None:
    place = destination()
    changes = [place.failed("4.4.1", "no", 300.0) for _ in range(4)]
    assert changes == [Change.NONE] * 3 + [Change.DEAD]  # 1/5 + 1/4 + 1/3 + 1/2


def test_a_success_begins_a_new_cohort() -> None:
    place = destination(negative_feedback=Feedback(0.0))
    for _ in range(4):
        place.failed("4.4.1", "no", 300.0)
    place.succeeded()
    assert place.failed("4.4.1", "no", 300.0) is Change.NONE


def test_a_cohort_limit_of_three_takes_three_rounds() -> None:
    place = destination(negative_feedback=Feedback(0.0), failed_cohort_limit=3)
    changes = [place.failed("4.4.1", "no", 300.0) for _ in range(15)]
    assert changes.index(Change.DEAD) == 14


def test_a_cohort_limit_of_zero_never_kills() -> None:
    place = destination(failed_cohort_limit=0)
    assert {place.failed("4.4.1", "no", 300.0) for _ in range(100)} == {Change.NONE}


def test_failures_of_a_dead_destination_change_nothing() -> None:
    place = destination(initial_concurrency=1)
    assert place.failed("4.4.1", "first", 300.0) is Change.DEAD
    assert place.failed("4.4.1", "second", 900.0) is Change.NONE
    assert place.reason == "first"
    assert not place.is_dead(300.0)


def test_a_dead_destination_revives_at_its_time_with_the_initial_concurrency() -> None:
    place = destination(initial_concurrency=2)
    place.failed("4.4.1", "no", 300.0)
    place.failed("4.4.1", "no", 300.0)
    assert place.is_dead(299.0)
    assert not place.is_dead(300.0)
    assert (place.window, place.cohorts) == (2, 0.0)


def test_a_success_that_began_before_the_death_revives() -> None:
    place = destination(initial_concurrency=1)
    place.failed("4.4.1", "no", 300.0)
    place.succeeded()
    assert not place.is_dead(0.0)


def test_new_limits_close_the_window() -> None:
    place = destination()
    place.limits = replace(LIMITS, concurrency_limit=2)
    assert place.window == 2


# --- turns ---------------------------------------------------------------------------------------


def test_destinations_take_turns() -> None:
    places = Destinations()
    found = []
    for name in ("a", "b", "c"):
        place = places.find(Delivery("smtp", name, Protocol.SMTP), "", LIMITS)
        for number in range(3):
            add(place.queue, message(number))
        places.offer(place, 0.0)
    for _ in range(6):
        turn = places.next_turn(0.0)
        assert turn is not None
        found.append(turn.route.nexthop)
        turn.take()
        places.offer(turn, 0.0)
    assert found == ["a", "b", "c", "a", "b", "c"]


def test_a_destination_without_room_gets_no_turn() -> None:
    places = Destinations()
    place = places.find(ROUTE, "", LIMITS)
    add(place.queue, message(1))
    place.busy = 5
    assert not places.offer(place, 0.0)
    place.busy = 4
    assert places.offer(place, 0.0)
    place.busy = 5
    assert places.next_turn(0.0) is None


def test_a_slot_changes_hands_only_if_that_makes_them_more_equal() -> None:
    places = Destinations()
    holder = places.find(ROUTE, "", LIMITS)
    holder.busy = 3
    assert not places.next_needs_it_more(holder)  # nobody waits
    waiting = {}
    for name, busy in (("same", 3), ("nearly", 2), ("fewer", 1), ("none", 0)):
        place = waiting[name] = places.find(Delivery("smtp", name, Protocol.SMTP), "", LIMITS)
        place.busy = busy
        add(place.queue, message(busy))
        places.offer(place, 0.0)
    assert not places.next_needs_it_more(holder)
    assert not places.next_needs_it_more(holder)
    assert places.next_needs_it_more(holder)
    assert places.next_needs_it_more(holder)  # asking again changes nothing
    assert places.next_turn(0.0) is waiting["fewer"]
    holder.busy = 1
    assert places.next_needs_it_more(holder)  # nobody waits for its first slot for ever
    assert places.next_turn(0.0) is waiting["none"]
    assert places.next_turn(0.0) is waiting["same"]


def test_a_slot_beyond_the_window_gets_no_more_work() -> None:
    place = destination()
    add(place.queue, message(1))
    place.busy = 5
    assert place.may_go_on()
    place.window = 4
    assert not place.may_go_on()


def test_the_case_of_a_nexthop_makes_no_other_destination_but_that_of_a_path_does() -> None:
    places = Destinations()
    one = places.find(Delivery("smtp", "[Hub.Example]:25", Protocol.SMTP), "", LIMITS)
    assert places.find(Delivery("smtp", "[hub.example]:25", Protocol.SMTP), "", LIMITS) is one
    path = places.find(Delivery("lmtp", "unix:/Run/x", Protocol.LMTP), "", LIMITS)
    assert places.find(Delivery("lmtp", "unix:/run/x", Protocol.LMTP), "", LIMITS) is not path


def test_only_what_must_be_remembered_is() -> None:
    places = Destinations()
    dead = places.find(ROUTE, "", LIMITS)
    dead.suspend("4.4.1", "no", 100.0)
    places.find(Delivery("smtp", "idle.example", Protocol.SMTP), "", LIMITS)
    places.sweep(50.0)
    assert [place for place in places] == [dead]  # noqa: C416 - its iterator is what we look at
    places.sweep(100.0)
    assert len(places) == 0


# --- the queue of one destination ----------------------------------------------------------------


def test_messages_of_one_destination_take_turns() -> None:
    queue = FairQueue()
    add(queue, message(1, recipients=5))
    add(queue, message(2))
    add(queue, message(3, recipients=3))
    order = []
    while queue:
        entry = queue.take(2)
        order.append((entry.active.message.queue_id, len(entry.recipients)))
    assert order == [("Q1", 2), ("Q2", 1), ("Q3", 2), ("Q1", 2), ("Q3", 1), ("Q1", 1)]


def test_what_is_put_back_is_next() -> None:
    queue = FairQueue()
    add(queue, message(1))
    add(queue, message(2))
    first = queue.take(0)
    queue.put_back(first)
    assert queue.take(0) is first


@given(st.lists(st.integers(1, 12), max_size=8), st.integers(0, 5), st.integers(0, 20))
def test_every_recipient_leaves_the_queue_once(
    sizes: list[int], limit: int, taken_before: int
) -> None:
    queue, keys = FairQueue(), []
    for number, size in enumerate(sizes, 1):
        add(queue, message(number, size))
    entries: list[Entry] = []
    while queue and len(entries) < taken_before:
        entries.append(queue.take(limit))
    if entries:
        queue.put_back(entries.pop())
    entries += queue.take_all()
    assert not queue
    for entry in entries:
        keys += [recipient.key for recipient in entry.recipients]
    expected = [
        number * 1000 + key for number, size in enumerate(sizes, 1) for key in range(1, size + 1)
    ]
    assert sorted(keys) == expected


# --- feedback parameters -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("1", 1.0),
        ("0.5", 0.5),
        ("1/5", 0.2),
        ("1 / concurrency", 0.25),
        ("2/concurrency", 0.5),
        ("1/sqrt_concurrency", 0.5),
    ],
)
def test_a_feedback_is_a_number_or_a_part_of_the_concurrency(text: str, step: float) -> None:
    assert Feedback.parse(text).at(4) == step


@pytest.mark.parametrize("text", ["", "x", "1/", "1/0", "1/speed"])
def test_what_is_no_feedback_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text of float() differs between Pythons
        Feedback.parse(text)
