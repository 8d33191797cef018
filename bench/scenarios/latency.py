"""latency: a full queue is delivered to servers that answer 50 ms later, over 100 connections.

What it counts is round trips: the figure is messages in the time of one round trip, for each
connection that may be open. A client that sends the next envelope with the final dot comes to 1 at
best, one that waits for the 354 and for the reply to the final dot to 0.5, one that sends RSET as a
question of its own to 0.33, one that connects anew for each message to 0.25 (greeting, EHLO,
envelope, dot).

Both sides may have as many deliveries at a time, for each destination from the first message on
and in all, so neither wins by opening more connections. How often they connected in all is the
second figure. The handshake of TCP is not delayed, which flatters whoever connects often; contents
of 4 kB fit into one window, so bandwidth and slow start play no part. Time runs from the first to
the last message at the sink: the first round trips of each connection are in it, and the end, when
not all are busy any more. `sink_cpu` tells whether the sink was the limit, being near 1.
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
from bench.sink_process import FarSink, SinkProcess

Drain = Callable[[SinkProcess, Queue, Mapping[str, str] | None], Drained]

# Processes of Postfix beyond those that deliver: a delivery agent that has just ended one message
# is still counted when the next one is asked for.
SPARE_PROCESSES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is queued, and how far away it goes."""

    count: int = 10_000  # messages: 5 s at one for each round trip and connection
    size: int = 4096  # octets of each
    destinations: int = 20  # with an address each
    connections: int = 5  # to each destination at a time
    rtt: float = 0.05  # seconds from a command to its reply


QUICK: Final = Load(count=80, destinations=2, connections=2)


def scenario(load: Load) -> Scenario:
    """The scenario under this load."""
    limits = {
        "initial_destination_concurrency": str(load.connections),
        "default_destination_concurrency_limit": str(load.connections),
    }
    processes = load.destinations * load.connections + SPARE_PROCESSES
    postfix = {**limits, "default_process_limit": str(processes)}
    contenders: dict[str, Turn] = {POSTRIO: partial(_turn, load, drain_postrio, limits)}
    missing = {}
    if lacking := missing_program() or ("" if Path(SMTP_SOURCE).exists() else SMTP_SOURCE):
        missing = dict.fromkeys((POSTFIX, POSTFIX_PLAIN), f"missing: {lacking}")
    else:
        contenders[POSTFIX] = partial(_turn, load, drain_postfix, postfix)
        contenders[POSTFIX_PLAIN] = partial(_turn, load, drain_postfix, {**postfix, **UNCACHED})
    return Scenario(
        name="latency",
        about=f"{load.count} queued messages of {load.size} octets for {load.destinations}"
        f" destinations {load.rtt * 1000:g} ms away, {load.connections} connections to each",
        figures=(
            Figure(name="per_round_trip", unit="messages per round trip and connection"),
            Figure(name="connections", unit="made in all", more_is_better=False),
            Figure(name="sink_cpu", unit="processors used by the sink", more_is_better=False),
        ),
        contenders=contenders,
        missing=missing,
        targets=(
            Target(figure="per_round_trip", at_least=0.9),
            Target(figure="per_round_trip", at_least=2.5, against=POSTFIX),
        ),
    )


def _turn(load: Load, drain: Drain, main_cf: Mapping[str, str]) -> Mapping[str, float]:
    """One turn, with a sink and a queue of its own. Raises LoadError and what `drain` raises."""
    with FarSink(load.rtt) as sink:
        routes = destinations(load.destinations, sink.port)
        drained = drain(sink, Queue(count=load.count, size=load.size, routes=routes), main_cf)
        made = sink.connections()
    at_a_time = load.destinations * load.connections
    return {
        "per_round_trip": drained.rate * load.rtt / at_a_time,
        "connections": made,
        "sink_cpu": drained.sink_cpu / 1000 * drained.rate,
    }
