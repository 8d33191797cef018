"""When a deferred message is due again, and when it is given up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.queue.retry import expired, for_people, next_attempt, warning_due

DAY = 86_400.0


@pytest.mark.parametrize(
    ("age", "wait"),
    [
        (0.0, 300.0),
        (299.0, 300.0),
        (300.0, 300.0),
        (301.0, 301.0),
        (2000.0, 2000.0),
        (4000.0, 4000.0),
        (4001.0, 4000.0),
        (5 * DAY, 4000.0),
        (-100.0, 300.0),  # the clock was set back
    ],
)
def test_the_wait_is_the_age_of_the_message_within_the_limits(age: float, wait: float) -> None:
    assert next_attempt(1000.0 + age, 1000.0, 300.0, 4000.0) == 1000.0 + age + wait


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.floats(1, 1e5), st.floats(1, 1e5))
def test_the_next_attempt_is_never_before_the_minimal_backoff(
    now: float, arrival: float, minimal: float, maximal: float
) -> None:
    wait = next_attempt(now, arrival, minimal, maximal) - now
    assert wait >= minimal - 1e-3
    assert wait <= max(minimal, maximal) + 1e-3


@pytest.mark.parametrize(
    ("age", "lifetime", "gone"),
    [
        (0.0, 0.0, True),  # one attempt only
        (5 * DAY - 1, 5 * DAY, False),
        (5 * DAY, 5 * DAY, True),
        (-1.0, 5 * DAY, False),
    ],
)
def test_a_message_expires_at_its_lifetime(age: float, lifetime: float, gone: bool) -> None:
    assert expired(1000.0 + age, 1000.0, lifetime) is gone


def test_no_warning_is_due_when_delay_warning_time_is_zero() -> None:
    assert not warning_due(1e9, 0.0, 0.0)


def test_a_warning_is_due_from_its_time_on() -> None:
    assert not warning_due(3599.0, 0.0, 3600.0)
    assert warning_due(3600.0, 0.0, 3600.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (60, "1 minute"),
        (90, "90 seconds"),
        (5400, "90 minutes"),
        (7200, "2 hours"),
        (5 * DAY, "5 days"),
        (-5, "0 seconds"),
    ],
)
def test_a_span_is_written_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert for_people(seconds) == text
