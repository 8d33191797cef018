"""How late timers fired: the distribution and its sentence."""

from worker.pool.lateness import LONGEST, Lateness


def test_shares_are_of_the_timers_and_rounded_up() -> None:
    lateness = Lateness()
    for _ in range(98):
        lateness.note(0.0004)
    lateness.note(0.0123)
    lateness.note(0.5)
    assert [lateness.of_share(share) for share in (0.5, 0.98, 0.99, 1.0)] == [1, 1, 13, 500]
    assert "100 timers, half of them at most 1 ms late, 99% at most 13 ms, the latest 500 ms" in (
        str(lateness)
    )


def test_a_timer_that_fires_early_or_never_has_its_place() -> None:
    lateness = Lateness()
    assert lateness.of_share(0.99) == 0
    lateness.note(-0.001)
    assert lateness.of_share(1.0) == 0
    lateness.note(3600.0)
    assert lateness.of_share(1.0) == LONGEST
