"""The sink itself: what it costs to take a message, beside smtp-sink.

Not called `sink`: that is the command which is measured here.

Both accept everything and keep nothing. The client is our own (`bench/sink/raw_client.py`), which
needs one round trip for a message, or smtp-source, which needs four. What counts is CPU of the
sink: a rate says as much about the client beside it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.load import message
from bench.sink.raw_client import ServerError, send_messages
from bench.sink_process import SINK_SESSIONS

SMTP_SINK: Final = Path("/usr/sbin/smtp-sink")
SMTP_SOURCE: Final = Path("/usr/sbin/smtp-source")
OURS: Final = "postrio sink"
START_LIMIT: Final = 20.0  # seconds until a sink takes connections
POLL: Final = 0.01  # seconds between two tries
Client = Literal["pipelined", "smtp-source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent to each sink in a turn."""

    count: int = 20_000  # messages
    sessions: int = field(default=20, metadata={"most": SINK_SESSIONS})  # at a time
    size: int = 4096  # octets of one message
    client: Client = "pipelined"  # or smtp-source


QUICK: Final = Load(count=500)


def scenario(load: Load) -> Scenario:
    """Our sink beside Postfix's."""
    commands: dict[str, Callable[[int], Sequence[str]]] = {OURS: our_command}
    missing = {}
    if SMTP_SINK.exists():
        commands["smtp-sink"] = smtp_sink_command
    else:
        missing["smtp-sink"] = "it is not there: install the Debian package postfix"
    return Scenario(
        name="sinks",
        about=f"messages from a client ({load.client}) to one process that takes and forgets them",
        figures=[
            Figure(name="per_cpu", unit="messages/CPU s"),
            Figure(name="rate", unit="messages/s"),
        ],
        contenders={name: partial(turn, command, load) for name, command in commands.items()},
        missing=missing,
        targets=[
            Target(figure=figure, contender=OURS, against="smtp-sink", at_least=0.5)
            for figure in ("per_cpu", "rate")
        ],
        base="smtp-sink",
    )


def our_command(port: int) -> Sequence[str]:
    """Our sink on a port of 127.0.0.1."""
    return [sys.executable, "-m", "bench.sink", "--listen", f"127.0.0.1:{port}"]


def smtp_sink_command(port: int) -> Sequence[str]:
    """Debian's smtp-sink on a port of 127.0.0.1."""
    # As root it would refuse to run; as anybody else it must not be told who to be.
    rights = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [str(SMTP_SINK), *rights, "-4", "-m", str(SINK_SESSIONS), f"127.0.0.1:{port}", "1024"]


def turn(command: Callable[[int], Sequence[str]], load: Load) -> Mapping[str, float]:
    """One turn of one sink, without its start. Raises LoadError."""
    with running(command) as (pid, port):
        cpu, began = cpu_seconds(pid), time.monotonic()
        send(load, port)
        took, cpu = time.monotonic() - began, cpu_seconds(pid) - cpu
    return {"per_cpu": load.count / cpu, "rate": load.count / took}


def send(load: Load, port: int) -> None:
    """All messages of a turn. Raises LoadError: not all were taken."""
    if load.client == "pipelined":
        try:
            send_messages(port, load.count, load.sessions, message(1, load.size))
        except (ServerError, OSError) as exc:
            raise LoadError(f"the sink did not take all messages: {exc}") from exc
        return
    if not SMTP_SOURCE.exists():
        raise LoadError("smtp-source is missing: install the Debian package postfix")
    words = {"-s": load.sessions, "-m": load.count, "-l": load.size}
    options = [str(part) for word in words.items() for part in word]
    done = subprocess.run(
        [SMTP_SOURCE, "-d", *options, f"127.0.0.1:{port}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise LoadError(f"smtp-source: {done.stderr.decode(errors='replace').strip()}")


@contextmanager
def running(command: Callable[[int], Sequence[str]]) -> Iterator[tuple[int, int]]:
    """A sink while the block runs: its process id and port. Raises LoadError."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command(port), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _wait_until_listening(process, port)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = process.stderr.read() if process.stderr is not None else b""
            raise LoadError(f"the sink ended: {said.decode(errors='replace').strip()}")
        try:
            socket.create_connection(("127.0.0.1", port), START_LIMIT).close()
        except OSError:
            time.sleep(POLL)
        else:
            return
    raise LoadError(f"the sink does not listen on port {port}")


def cpu_seconds(pid: int) -> float:
    """CPU seconds of one process of one thread, to the nanosecond. Raises LoadError."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError as exc:
        raise LoadError(f"process {pid} is gone") from exc
