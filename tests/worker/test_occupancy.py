"""How much of its time a process has something to do."""

import os
import time
from pathlib import Path

import pytest

from worker.pool.occupancy import SPAN, Occupancy, occupied_seconds


def test_the_share_is_that_of_the_time_since_the_last_look() -> None:
    seconds = {7: 100.0}
    occupancy = Occupancy(seconds.get)
    assert occupancy.share(7, 50.0) == 0.0  # what was before is not looked at
    seconds[7] += 0.3
    assert occupancy.share(7, 50.4) == pytest.approx(0.75)
    seconds[7] += 5.0
    assert occupancy.share(7, 60.4) == pytest.approx(0.5)


def test_a_look_that_comes_too_soon_says_what_the_last_one_said() -> None:
    seconds = {7: 0.0}
    occupancy = Occupancy(seconds.get)
    occupancy.share(7, 0.0)
    seconds[7] = 1.0
    assert occupancy.share(7, 1.0) == 1.0
    seconds[7] = 1.5
    assert occupancy.share(7, 1.0 + SPAN / 2) == 1.0
    seconds[7] = 1.0 + SPAN
    assert occupancy.share(7, 1.0 + 2 * SPAN) == pytest.approx(0.5)


def test_another_process_begins_anew() -> None:
    seconds = {7: 0.0, 8: 500.0}
    occupancy = Occupancy(seconds.get)
    occupancy.share(7, 0.0)
    seconds[7] = 1.0
    assert occupancy.share(7, 1.0) == 1.0
    assert occupancy.share(8, 2.0) == 0.0
    seconds[8] = 500.25
    assert occupancy.share(8, 3.0) == 0.25


def test_of_what_nobody_counts_nothing_is_said() -> None:
    seconds: dict[int, float] = {}
    occupancy = Occupancy(seconds.get)
    assert occupancy.share(7, 0.0) == 0.0
    assert occupancy.share(7, 1.0) == 0.0
    seconds[7] = 100.0
    assert occupancy.share(7, 2.0) == 0.0
    seconds[7] = 101.0
    assert occupancy.share(7, 3.0) == 1.0
    del seconds[7]
    assert occupancy.share(7, 4.0) == 0.0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="a kernel without counts")
def test_the_system_counts_this_process() -> None:
    before = occupied_seconds(os.getpid())
    assert before is not None
    used = time.thread_time()
    while time.thread_time() < used + 0.05:
        pass
    after = occupied_seconds(os.getpid())
    assert after is not None
    assert after - before >= 0.03
    assert occupied_seconds(0) is None
