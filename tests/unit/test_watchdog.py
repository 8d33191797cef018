"""The count of looks without a sign of life."""

from worker.pool.watchdog import Stall


def test_looks_are_counted_until_there_is_a_new_sign_of_life() -> None:
    stall = Stall()
    assert [stall.look(beats) for beats in (1, 1, 1, 2, 2, 3)] == [0, 1, 2, 0, 1, 0]
