"""When a process is started again, and what an operator reads about it."""

import os
import signal

import pytest

from worker.pool.restarts import HEALTHY_AFTER, LONGEST_PAUSE, Restarts


def pauses(lives: list[float]) -> list[float]:
    """The pauses after lives of these lengths."""
    restarts, now, found = Restarts(), 1000.0, []
    for life in lives:
        started, now = now, now + life
        pause = restarts.ended(started, now)
        found.append(pause)
        now += pause
    return found


def test_the_first_end_costs_nothing_and_each_early_one_after_it_twice_as_much() -> None:
    assert pauses([1.0] * 9) == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_the_pause_stays_bounded_however_long_the_loop_goes_on() -> None:
    assert pauses([0.0] * 3000)[-1] == LONGEST_PAUSE


def test_a_long_life_clears_the_record() -> None:
    assert pauses([1.0, 1.0, 1.0, HEALTHY_AFTER + 1, 1.0]) == [0, 1, 2, 0, 1]


def described(status: int, ends: int) -> str:
    """The line about the last of so many ends, one every ten seconds."""
    restarts, line = Restarts(), ""
    for number in range(ends):
        now = 10.0 * number
        line = restarts.describe("worker process 1", status, restarts.ended(now - 5.0, now), now)
    return line


@pytest.mark.parametrize(
    ("status", "ends", "text"),
    [
        (-9, 1, "worker process 1 was killed by signal SIGKILL -- restarting at once"),
        (3, 2, "worker process 1 ended with status 3 -- restarting in 1 s"),
        (
            os.EX_CONFIG,
            3,
            "worker process 1 ended with status 78, its end number 3 in 20 s: a crash loop"
            " -- restarting in 2 s; run 'postrio check'",
        ),
        (
            -signal.SIGSEGV,
            5,
            "worker process 1 was killed by signal SIGSEGV, its end number 5 in 40 s: a crash loop"
            " -- restarting in 8 s; a bug in an extension module? see the kernel's log",
        ),
        (-60, 1, "worker process 1 was killed by signal 60 -- restarting at once"),
    ],
)
def test_an_end_is_described_in_one_line(status: int, ends: int, text: str) -> None:
    assert described(status, ends) == text
