"""Trouble with the store passes or it does not: wait longer each time, say so, and lose nothing."""

import traceback
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from worker.queue.store import StoreError
from worker.status.events import Emit, UnexpectedError, Warned

FIRST_WAIT: Final = 1.0  # seconds
LONGEST_WAIT: Final = 60.0

T = TypeVar("T")


async def patiently(ask: Callable[[], Awaitable[T]], emit: Emit) -> T:
    """The answer of a call of the store, asked again after every failure until it comes.

    Only for calls that change nothing when they fail. Ends early only by cancellation. Even a
    mistake of ours is waited out, loudly: the alternative is to drop what became of a recipient.
    """
    wait = FIRST_WAIT
    while True:
        try:
            return await ask()
        except (StoreError, OSError) as exc:
            emit(Warned(f"queue: {exc}; trying again in {wait:.0f} s"))
        except Exception:  # noqa: BLE001 - see above
            emit(UnexpectedError("using the queue", traceback.format_exc()))
        await trio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)
