"""The watchdog's measure of its loop, on the virtual clock."""

import trio
from trio.testing import MockClock, trio_test

from worker.pool.watchdog import Watchdog


@trio_test
async def test_a_loop_that_is_kept_busy_is_late(autojump_clock: MockClock) -> None:
    dog = Watchdog(60.0, lambda event: None, end=lambda status: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dog.run)
        await trio.sleep(0.1)
        autojump_clock.jump(0.7)  # as if a task had computed for so long
        await trio.sleep(9.0)
        nursery.cancel_scope.cancel()
    assert dog.lateness.of_share(1.0) == 600
    assert dog.lateness.of_share(0.97) == 0
