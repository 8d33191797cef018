"""Draining a full queue into a fast sink: everything durable, everything logged, beside Postfix.

Each destination has an address of its own, so that none shares a session with another. How a queue
is filled and watched is in `bench/drain.py`, the same for both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.drain import (
    POSTFIX,
    POSTFIX_PLAIN,
    POSTRIO,
    SMTP_SOURCE,
    UNCACHED,
    Drained,
    drain_postfix,
    drain_postrio,
)
from bench.drain import Load as Queue
from bench.harness.scenario import Figure, Scenario, Target, Turn
from bench.load import destinations
from bench.postfix_instance import missing_program
from bench.sink_process import SMTP_SINK, CountingSink, SinkProcess

Side = Callable[[SinkProcess, Queue], Drained]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is in the queue."""

    count: int = 10_000  # messages
    destinations: int = 50
    size: int = 4096  # octets of one message


QUICK: Final = Load(count=200, destinations=5)


def scenario(load: Load) -> Scenario:
    """postrio, Postfix as it is, and Postfix that connects anew for each message."""
    sides: Mapping[str, Side] = {
        POSTRIO: drain_postrio,
        POSTFIX: drain_postfix,
        POSTFIX_PLAIN: partial(drain_postfix, main_cf=UNCACHED),
    }
    missing = missing_sides(POSTFIX, POSTFIX_PLAIN)
    contenders: Mapping[str, Turn] = {
        name: partial(turn, side, load) for name, side in sides.items() if name not in missing
    }
    return Scenario(
        name="drain",
        about="a full queue is delivered to smtp-sink, durably and with a log",
        figures=[
            Figure(name="rate", unit="messages/s"),
            Figure(name="per_cpu", unit="messages/CPU s"),
            Figure(name="peak_memory", unit="MB", more_is_better=False),
        ],
        contenders=contenders,
        missing=missing,
        targets=[
            Target(figure=figure, against=peer, at_least=ratio)
            for peer, ratio in ((POSTFIX, 3.0), (POSTFIX_PLAIN, 2.0))
            for figure in ("rate", "per_cpu")
        ],
    )


def missing_sides(*postfix: str) -> dict[str, str]:
    """Why sides cannot be run here: those named for Postfix, or all for want of a sink."""
    if not Path(SMTP_SINK).exists():
        why = "smtp-sink is missing: install the Debian package postfix"
        return dict.fromkeys((POSTRIO, *postfix), why)
    why = missing_program() or ("" if Path(SMTP_SOURCE).exists() else "the Debian package postfix")
    return dict.fromkeys(postfix, f"missing: {why}") if why else {}


def turn(side: Side, load: Load) -> Mapping[str, float]:
    """One queue drained into a sink of its own: nobody inherits its connections."""
    with CountingSink() as sink:
        routes = destinations(load.destinations, sink.port)
        drained = side(sink, Queue(count=load.count, size=load.size, routes=routes))
    return {
        "rate": drained.rate,
        "per_cpu": drained.per_cpu,
        "peak_memory": drained.memory / 1e6,
        **costs(drained),
    }


def costs(drained: Drained) -> dict[str, float]:
    """CPU by process, for the JSON: milliseconds for each message, and processors of others."""
    own = {f"cpu_ms {name}": cpu for name, cpu in drained.cpu.items()}
    return {**own, "cpu_ms sink": drained.sink_cpu, "processors_of_others": drained.others}
