"""Cancel everywhere: run a scenario again and again, cancelled one scheduler step later each time.

Between any two steps of a task its caller may lose patience. This visits every such moment, so that
a stream opened and not yet owned, or an outcome made and not yet recorded, cannot hide:

    for run in cancel_everywhere(World, scenario):
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"

`World` makes what one run plays with, `scenario(world)` plays. Order of tasks and time are the same
in every run: a virtual clock, and a seeded scheduler.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio
import trio.abc
import trio.lowlevel
from trio._core import _run as scheduler
from trio.testing import MockClock

W = TypeVar("W")

_SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task makes while it is armed."""

    def __init__(self, step: int) -> None:
        self._left = step
        self._scope: trio.CancelScope | None = None

    def arm(self, scope: trio.CancelScope) -> None:
        """Begin to count: what trio did to start up was no step of the scenario."""
        self._scope = scope

    def disarm(self) -> None:
        """Stop counting: the scenario is over."""
        self._scope = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count down, and cancel at zero."""
        if self._scope is None:
            return
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@dataclass(frozen=True, slots=True)
class Run(Generic[W]):
    """One run: cancelled at `step`, or, in the last one, not cancelled."""

    step: int
    world: W  # as the scenario left it
    cancelled: bool


def cancel_everywhere(
    make_world: Callable[[], W],
    scenario: Callable[[W], Awaitable[object]],
    *,
    max_steps: int = 5_000,
    seed: int = 0,
) -> Iterator[Run[W]]:
    """Yield a run for every step at which `scenario` can be cancelled, and last one undisturbed.

    Raises whatever the scenario raises besides trio.Cancelled, and AssertionError when it takes
    more than `max_steps`.
    """
    for step in range(1, max_steps + 1):
        run = _run(make_world(), scenario, step, seed)
        yield run
        if not run.cancelled:
            return
    raise AssertionError(f"the scenario takes more than {max_steps} steps")


def _run(world: W, scenario: Callable[[W], Awaitable[object]], step: int, seed: int) -> Run[W]:
    instrument = CancelAtStep(step)

    async def main() -> bool:
        with trio.CancelScope() as scope:
            instrument.arm(scope)
            try:
                await scenario(world)
            finally:
                instrument.disarm()
        return scope.cancel_called

    with _seeded(seed):
        cancelled = trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[instrument])
    return Run(step, world, cancelled)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let trio's scheduler shuffle in a known way; there is no public switch for it.

    Otherwise step n of one run is not step n of the next, and a leak shows every other time.
    """
    names = vars(scheduler)  # the switch is Final, so that nobody uses it lightly
    before, state = names[_SWITCH], scheduler._r.getstate()
    names[_SWITCH] = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        names[_SWITCH] = before
        scheduler._r.setstate(state)
