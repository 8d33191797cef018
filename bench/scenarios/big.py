"""big: large messages from files, by the engine alone, and the octets that a CPU second sends.

One process for each contender (`bench/big_loops.py`), reused sessions, no queue; to smtp-sink. The
message is what large mail is: a short text and an attachment in base64. `content=text` makes it
lines of prose instead, each with dots in it: the engine then has to look at every line end.
"""

import base64
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from bench.big_loops import LOOPS
from bench.harness.scenario import Figure, LoadError, Scenario, Target, Turn
from bench.load import message
from bench.sink_process import SINK_SESSIONS, SMTP_SINK, CountingSink

Content = Literal["base64", "text"]

MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent."""

    count: int = 200  # messages in each turn
    size: int = 10_000_000  # octets of each
    sessions: int = field(default=10, metadata={"most": SINK_SESSIONS})  # at a time
    content: Content = "base64"  # or text


QUICK: Final = Load(count=4, size=1_000_000, sessions=2)


def scenario(load: Load) -> Scenario:
    """The scenario under this load."""
    missing = {}
    if find_spec("aiosmtplib") is None:
        missing["aiosmtplib"] = "it is not installed"
    if not Path(SMTP_SINK).exists():
        missing = dict.fromkeys(LOOPS, "smtp-sink is missing: install the Debian package postfix")
    contenders: dict[str, Turn] = {
        name: partial(_turn, name, load) for name in LOOPS if name not in missing
    }
    return Scenario(
        name="big",
        about=f"{load.count} messages of {load.size / MEGABYTE:g} MB ({load.content}) from a file,"
        f" over {load.sessions} sessions to smtp-sink",
        figures=(
            Figure(name="octets_per_cpu", unit="MB per CPU second"),
            Figure(name="peak_memory", unit="MB", more_is_better=False),
        ),
        contenders=contenders,
        missing=missing,
        targets=(Target(figure="octets_per_cpu", at_least=0.7, against="bare trio loop"),),
    )


def _turn(name: str, load: Load) -> Mapping[str, float]:
    """One turn of one contender, with a file and a sink of its own. Raises LoadError."""
    with tempfile.TemporaryDirectory(prefix="big-") as directory:
        path = Path(directory, "content")
        path.write_bytes(large_message(load.size, load.content))
        with CountingSink() as sink:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "bench.big_loops", name),
                    *map(str, (sink.port, load.count, load.sessions, path)),
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if done.returncode or (taken := sink.count()) < load.count:
                said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise LoadError(
                    f"{name} failed: {said or f'{taken} of {load.count} messages arrived'}"
                )
    cost: dict[str, float] = json.loads(done.stdout)
    return {
        "octets_per_cpu": load.count * load.size / cost["cpu"] / MEGABYTE,
        "peak_memory": cost["peak_memory"] / MEGABYTE,
    }


def large_message(size: int, content: Content) -> bytes:
    """A message of `size` octets with CRLF line ends, and no line that begins with a dot."""
    if content == "text":
        return message(1, size)
    head = message(1, min(size, 1000))
    octets = random.Random(size).randbytes(size * 3 // 4 + 1)
    attached = base64.encodebytes(octets).replace(b"\n", b"\r\n")
    return (head + attached)[: size - 2].rstrip(b"\r") + b"\r\n"
