"""One worker process and two: what a second one brings where slots, not processors, are few.

Servers are a round trip of `rtt` away and each worker has `slots` deliveries at a time, far fewer
than the default, because one sink could not serve 2,000 sessions on the same machine.
`--set rtt=0` takes smtp-sink instead: then the processors are what is few.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.drain import Load as Queue
from bench.drain import drain_postrio
from bench.harness.scenario import Figure, Scenario
from bench.load import destinations
from bench.scenarios.drain import costs
from bench.sink_process import SMTP_SINK, CountingSink, FarSink

NAMES: Final[Mapping[str, int]] = {"postrio, one worker": 1, "postrio, two workers": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is in the queue, and how far its servers are."""

    count: int = 4_000  # messages
    destinations: int = 50
    size: int = 4096  # octets of one message
    rtt: float = 0.15  # seconds of a round trip; 0: smtp-sink
    slots: int = 50  # deliveries at a time in each worker (postrio_slot_limit)


QUICK: Final = Load(count=200, destinations=10, rtt=0.01, slots=5)


def scenario(load: Load) -> Scenario:
    """postrio against itself."""
    missing = {}
    if not load.rtt and not Path(SMTP_SINK).exists():
        why = "smtp-sink is missing: install the Debian package postfix"
        missing = dict.fromkeys(NAMES, why)
    return Scenario(
        name="workers",
        about="the same queue is drained by one worker process and by two",
        figures=[
            Figure(name="rate", unit="messages/s"),
            Figure(name="per_cpu", unit="messages/CPU s"),
        ],
        contenders={
            name: partial(turn, processes, load)
            for name, processes in NAMES.items()
            if name not in missing
        },
        missing=missing,
        base="postrio, one worker",
    )


def turn(processes: int, load: Load) -> Mapping[str, float]:
    """One queue drained by so many worker processes."""
    main_cf = {
        "postrio_worker_processes": str(processes),
        "postrio_slot_limit": str(load.slots),
    }
    with FarSink(load.rtt) if load.rtt else CountingSink() as sink:
        routes = destinations(load.destinations, sink.port)
        queue = Queue(count=load.count, size=load.size, routes=routes)
        drained = drain_postrio(sink, queue, main_cf)
    return {"rate": drained.rate, "per_cpu": drained.per_cpu, **costs(drained)}
