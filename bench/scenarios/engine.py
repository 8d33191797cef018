"""The delivery engine alone: reused sessions, messages from memory, no queue, no log, one process.

Each contender (`bench/engine_loops.py`) is a process of its own that talks to a smtp-sink of its
own. It is about CPU: a rate would mostly tell how much of the machine the sink has left.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.engine_loops import LOOPS
from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.sink_process import SINK_SESSIONS, SMTP_SINK, CountingSink

TARGETS: Final = {"aiosmtplib": 2.5, "smtplib, threads": 1.5, "bare trio loop": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each contender delivers in a turn."""

    count: int = 10_000  # messages
    sessions: int = field(default=20, metadata={"most": SINK_SESSIONS})  # at a time
    size: int = 4096  # octets of one message


QUICK: Final = Load(count=300)


def scenario(load: Load) -> Scenario:
    """Our engine beside other SMTP clients."""
    missing = {}
    if find_spec("aiosmtplib") is None:
        missing["aiosmtplib"] = "it is not installed"
    if not Path(SMTP_SINK).exists():
        missing = dict.fromkeys(LOOPS, "smtp-sink is missing: install the Debian package postfix")
    return Scenario(
        name="engine",
        about="messages from memory over reused sessions, one process each, to smtp-sink",
        figures=[
            Figure(name="per_cpu", unit="messages/CPU s"),
            Figure(name="seconds", unit="s", more_is_better=False),
        ],
        contenders={name: partial(turn, name, load) for name in LOOPS if name not in missing},
        missing=missing,
        targets=[
            Target(figure="per_cpu", against=name, at_least=ratio)
            for name, ratio in TARGETS.items()
        ],
    )


def turn(name: str, load: Load) -> Mapping[str, float]:
    """One turn of one contender, against a sink of its own. Raises LoadError."""
    with CountingSink() as sink:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bench.engine_loops", name),
                *map(str, (sink.port, load.count, load.sessions, load.size)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode or (taken := sink.count()) < load.count:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise LoadError(f"{name}: {said or f'{taken} of {load.count} messages arrived'}")
    cost: dict[str, float] = json.loads(done.stdout)
    return {"per_cpu": load.count / cost["cpu"], "seconds": cost["seconds"]}
