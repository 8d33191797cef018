"""A load from its first to its last message."""

import time
from pathlib import Path

import trio

from bench.source.client import Client
from bench.source.load import Load
from bench.source.messages import Composer
from bench.source.pace import Pace
from bench.source.tally import Tally
from bench.source.target import Dial


async def run(load: Load, dial: Dial, composer: Composer, tally: Tally) -> None:
    """Put the load on whoever `dial` reaches. `tally` can be read meanwhile, and is complete
    afterwards, also when this is cancelled: messages under way are then among those begun only.
    """
    began, cpu, queued = trio.current_time(), time.process_time(), _run_queue_wait()
    pace, context = Pace(load), load.security.context()
    try:
        async with trio.open_nursery() as nursery:

            def give_up(why: str) -> None:
                tally.gave_up = why
                nursery.cancel_scope.cancel()

            # More sessions than messages would only wait for each other's turns.
            for number in range(min(load.sessions, load.messages or load.sessions)):
                client = Client(load, dial, composer, pace, tally, give_up, number, context)
                nursery.start_soon(client.run)
    finally:
        tally.seconds = trio.current_time() - began
        tally.cpu = time.process_time() - cpu
        tally.queued = _run_queue_wait() - queued


def _run_queue_wait() -> float:
    """Seconds that this thread was ready to run and had no processor; 0 if the kernel keeps no
    such account.
    """
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
