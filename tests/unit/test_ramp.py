"""The node's slow start: how the ceiling for open slots rises and falls."""

from worker.queue.ramp import FAST, FREE, STEP, STEP_TIME, Ramp


def idle() -> bool:
    """Our own processes have time for more."""
    return False


def grow(ramp: Ramp, slots: int, limit: int, now: float) -> int:
    """Open slots until the ramp says no; how many are open then. Each gets its worker at once."""
    while ramp.allows(slots, limit, now):
        slots += 1
        ramp.opened(now)
    return slots


def test_the_first_slots_are_free_and_more_wait_for_a_step() -> None:
    ramp = Ramp(idle)
    assert grow(ramp, 0, 1000, now=0.0) == FREE
    assert ramp.rises_at == STEP_TIME
    assert grow(ramp, FREE, 1000, now=STEP_TIME / 2) == FREE
    assert grow(ramp, FREE, 1000, now=STEP_TIME) == FREE + STEP
    assert ramp.rises_at == 2 * STEP_TIME


def test_ten_seconds_of_demand_reach_a_thousand_slots_and_never_the_limit_more() -> None:
    ramp, slots, now = Ramp(idle), 0, 0.0
    while now < 12.0:
        slots = grow(ramp, slots, 1000, now)
        now += STEP_TIME / 2
    assert slots == 1000
    assert ramp.at_ceiling(slots, 1000)
    assert ramp.rises_at is None  # only a closed slot helps


def test_half_a_minute_of_demand_reaches_five_thousand_slots() -> None:
    ramp, slots, now = Ramp(idle), 0, 0.0
    while now < 27.0:
        slots = grow(ramp, slots, 5000, now)
        now += STEP_TIME / 2
    assert slots == 5000


def test_fast_slots_do_not_become_more() -> None:
    for rate, more in ((FAST + 1, 0), (FAST - 1, STEP)):
        ramp = Ramp(idle)
        slots = grow(ramp, 0, 1000, now=0.0)
        for _ in range(round(slots * rate * STEP_TIME)):
            ramp.answered()
        assert grow(ramp, slots, 1000, now=STEP_TIME) == FREE + more
        # What was answered before does not count in the next interval.
        assert grow(ramp, FREE + more, 1000, now=3 * STEP_TIME) > FREE


def test_slots_that_wait_for_workers_are_no_sign_of_slow_peers() -> None:
    ramp, slots = Ramp(idle), 0
    while ramp.allows(slots, 1000, now=0.0):
        slots += 1
    for step in range(1, 5):
        assert not ramp.allows(slots, 1000, now=step * STEP_TIME)
    ready = 4.5 * STEP_TIME
    for _ in range(slots):
        ramp.opened(ready)
    # They are given a whole interval from then on, and are slow if they did nothing in that.
    assert not ramp.allows(slots, 1000, now=5.25 * STEP_TIME)
    assert ramp.rises_at == ready + STEP_TIME
    assert ramp.allows(slots, 1000, now=ready + STEP_TIME)


def test_slots_that_have_left_their_workers_are_not_judged() -> None:
    ramp = Ramp(idle)
    slots = grow(ramp, 0, 1000, now=0.0)
    for _ in range(slots):
        ramp.closed()
    assert not ramp.allows(slots, 1000, now=STEP_TIME)


def test_slots_do_not_become_more_where_nobody_has_time_for_them() -> None:
    saturated = True
    ramp = Ramp(lambda: saturated)
    slots = grow(ramp, 0, 1000, now=0.0)
    for step in range(1, 10):
        assert grow(ramp, slots, 1000, now=step * STEP_TIME) == FREE
    saturated = False
    assert grow(ramp, slots, 1000, now=10 * STEP_TIME) == FREE + STEP


def test_a_freed_slot_is_to_be_had_where_nobody_has_time_for_more() -> None:
    ramp = Ramp(lambda: True)
    slots = grow(ramp, 0, 1000, now=0.0)
    assert ramp.allows(slots - 1, 1000, now=STEP_TIME)


def test_a_small_limit_holds_from_the_start() -> None:
    assert grow(Ramp(idle), 0, 4, now=0.0) == 4


def test_a_freed_slot_is_given_out_again_without_a_step() -> None:
    ramp = Ramp(idle)
    slots = grow(ramp, 0, 1000, now=0.0)
    ramp.closed()
    ramp.released(slots - 1)
    assert ramp.allows(slots - 1, 1000, now=0.01)
    assert not ramp.allows(slots, 1000, now=0.01)


def test_a_quiet_node_starts_slowly_again() -> None:
    ramp, slots = Ramp(idle), 0
    for step in range(20):
        slots = grow(ramp, slots, 1000, now=step * STEP_TIME)
    assert slots > FREE
    ramp.released(0)
    assert grow(ramp, 0, 1000, now=100.0) == FREE
