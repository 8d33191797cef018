"""`postrio run` as a real process in a directory of its own, for tests: `Node`.

Answers for starting it, submitting to it, waiting for what its log says, signals, and its end.
Nothing here sleeps: the node's log is a pipe, and who waits for something reads it. A node that
logs an error of its own ("unexpected error while ...") fails the test that used it.

Also here: `Mailbox`, what an in-process sink took, and `open_sink`, which starts one.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from bench.sink.listen import Listen
from bench.sink.record import Received
from bench.sink.sink import Sink
from bench.sink.trio_lane import serve_sinks
from bench.sink.words import parse_behaviour

POSTRIO: Final = (sys.executable, "-m", "worker")  # what the `postrio` script runs
LIMIT: Final = 40.0  # seconds for one thing that a test waits for; nothing takes nearly as long
STARTED: Final = "daemon started"
WORKER: Final = ["-P", "-m", "worker", "worker"]  # on a command line, after the interpreter
CACHE: Final = ["-P", "-m", "scache"]
SENDER: Final = "sender@from.example"

# Independent of the machine, and impatient where Postfix's defaults wait for minutes.
DEFAULTS: Final[Mapping[str, str]] = {
    "myhostname": "node.example",
    "inet_protocols": "ipv4",
    "queue_run_delay": "1s",
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "2s",
    "transport_retry_time": "1s",
    "postrio_worker_processes": "1",
}


def write_main_cf(path: Path, parameters: Mapping[str, str]) -> None:
    """A main.cf with these parameters and no others."""
    path.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))


async def run_command(
    *arguments: str, stdin: bytes = b"", cwd: Path | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """One `postrio ...` to its end, whatever its exit status."""
    with trio.fail_after(LIMIT):
        return await trio.run_process(
            [*POSTRIO, *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=cwd,
        )


class Node:
    """One node, from `start()` to `stop()` or `kill()`; `async with` starts and stops it.

    `log` is everything said so far by all its lives. Start it again after its end as often as
    wanted: the queue stays.
    """

    def __init__(
        self,
        directory: Path,
        main_cf: Mapping[str, str] | None = None,
        run_options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._run_options = run_options  # of `postrio run`
        self.main_cf = directory / "main.cf"
        self.queue_directory = directory / "queue"
        self.log: list[str] = []
        self.sessions: list[int] = []  # one for each life: its queue process's number
        self._parameters = {
            **DEFAULTS,
            "queue_directory": str(self.queue_directory),
            **(main_cf or {}),
        }
        self._process: trio.Process | None = None
        self._unread = b""
        self.configure({})

    def configure(self, main_cf: Mapping[str, str]) -> None:
        """Change parameters in main.cf; a running node hears of them with SIGHUP."""
        self._parameters |= main_cf
        write_main_cf(self.main_cf, self._parameters)

    # --- life -----------------------------------------------------------------------------------

    async def spawn(self) -> None:
        """Start it and return at once: its log is not read yet."""
        assert self._process is None, "already running"
        self._process = await trio.lowlevel.open_process(
            [*POSTRIO, "run", "-c", str(self.main_cf), *self._run_options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # kill() ends the whole tree: it is a group of its own
        )
        self.sessions.append(self._process.pid)
        self._unread = b""

    async def start(self) -> None:
        """Start it and wait until it takes submissions."""
        lives = self.count(STARTED)
        await self.spawn()
        await self.wait_for(STARTED, lives + 1)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it in good order, read its last words; its exit status."""
        self.send_signal(number)
        return await self.wait_until_ended()

    async def wait_until_ended(self) -> int:
        """Read its log to the end, and return its exit status."""
        process = self.process
        with trio.fail_after(LIMIT):
            while await self._read():
                pass
            status = await process.wait()
        await self._forget()
        return status

    async def kill(self) -> None:
        """SIGKILL to the queue process and its workers at once; their last words are kept."""
        self.kill_now()
        await self.wait_until_ended()

    def kill_now(self) -> None:
        """As kill(), but only sends the signal: for callbacks. Call wait_until_ended() after."""
        os.killpg(self.process.pid, signal.SIGKILL)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.abandon()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._process is not None and kind is None:
                status = await self.stop()
                assert status == 0, self.tail()
        finally:
            await self.abandon()
        if kind is None:
            assert not self.errors(), "\n".join(self.errors())

    async def abandon(self) -> None:
        """End what still runs, without asking."""
        if self._process is not None:
            self.kill_now()
            with trio.CancelScope(shield=True):  # nothing outlives SIGKILL
                await self._process.wait()
                await self._forget()

    async def _forget(self) -> None:
        process, self._process = self.process, None
        if process.stderr is not None:
            await trio.aclose_forcefully(process.stderr)

    # --- the process ----------------------------------------------------------------------------

    @property
    def process(self) -> trio.Process:
        """The queue process."""
        assert self._process is not None, f"not running\n{self.tail()}"
        return self._process

    def ready_pids(self) -> list[int]:
        """Process ids of the workers that have said, as far as the log was read, to be ready."""
        return [pid for pid in self.worker_pids() if self.count(f"is ready, process {pid}$")]

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for pid, words in self.children().items() if words[1:5] == WORKER]

    def cache_pids(self) -> list[int]:
        """Process ids of the connection cache: at most one."""
        return [pid for pid, words in self.children().items() if words[1:4] == CACHE]

    def children(self) -> dict[int, list[str]]:
        """Processes that came of the queue process, with their command lines."""
        found = {}
        parents = [self.process.pid]
        while parents:
            # By thread: children belong to the one that started them.
            for path in Path(f"/proc/{parents.pop()}/task").glob("*/children"):
                for word in path.read_text().split():
                    with suppress(OSError):  # it has just ended
                        found[int(word)] = Path(f"/proc/{word}/cmdline").read_text().split("\0")
                        parents.append(int(word))
        return found

    def send_signal(self, number: signal.Signals) -> None:
        """A signal to the queue process alone."""
        self.process.send_signal(number)

    # --- its log --------------------------------------------------------------------------------

    def count(self, pattern: str) -> int:
        """How many lines read so far hold a match of `pattern`."""
        return len(self.matches(pattern))

    def matches(self, pattern: str) -> list[str]:
        """The lines read so far that hold a match of `pattern`."""
        expression = re.compile(pattern)
        return [line for line in self.log if expression.search(line)]

    async def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Read until `count` lines match, those read before included; the matching lines."""
        with trio.move_on_after(LIMIT):
            while len(found := self.matches(pattern)) < count:
                if not await self._read():
                    raise AssertionError(f"ended before {pattern!r}\n{self.tail()}")
            return found
        raise AssertionError(f"no {pattern!r} in the log after {LIMIT:.0f} s\n{self.tail()}")

    async def follow(self) -> None:
        """Read for as long as it says something: for a task beside others that only look."""
        while await self._read():
            pass

    def errors(self) -> list[str]:
        """Lines that a node must never write."""
        return [line for line in self.log if ": error: " in line or "Traceback" in line]

    def tail(self, lines: int = 30) -> str:
        """The last lines of the log, for people."""
        return "\n".join(["--- log:", *self.log[-lines:]])

    async def _read(self) -> bool:
        """Take in some more of the log; False: it is at its end."""
        stream = self.process.stderr
        assert stream is not None
        data = await stream.receive_some()
        *lines, self._unread = (self._unread + data).split(b"\n")
        self.log += [line.decode("utf-8", "replace") for line in lines]
        return bool(data)

    # --- commands -------------------------------------------------------------------------------

    async def command(
        self, *arguments: str, stdin: bytes = b""
    ) -> "subprocess.CompletedProcess[bytes]":
        """`postrio ARGUMENTS -c main.cf`, whatever its exit status."""
        return await run_command(*arguments, "-c", str(self.main_cf), stdin=stdin)

    async def checked(self, *arguments: str, stdin: bytes = b"") -> str:
        """As command(), and it must end well; its standard output."""
        done = await self.command(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode() + self.tail()
        return done.stdout.decode()

    async def send(
        self,
        content: bytes,
        *recipients: str,
        sender: str = SENDER,
        options: Sequence[str] = (),
    ) -> str:
        """Submit with `postrio send`; the queue id."""
        arguments = ("send", "--sender", sender, *options, *recipients)
        return (await self.checked(*arguments, stdin=content)).strip()

    async def listed(self) -> list[dict[str, object]]:
        """What `postrio queue list --json` says, by message."""
        lines = (await self.checked("queue", "list", "--json")).splitlines()
        return [json.loads(line) for line in lines]


class Mailbox:
    """What sinks took, in order. `on_message` is called with each, before it is acknowledged."""

    def __init__(self, on_message: Callable[[Received], object] | None = None) -> None:
        self.messages: list[Received] = []
        self._on_message = on_message
        self._changed = trio.Event()

    def __call__(self, received: Received) -> None:
        """The sink has taken a message."""
        self.messages.append(received)
        self._changed.set()
        self._changed = trio.Event()
        if self._on_message is not None:
            self._on_message(received)

    async def wait_for(self, count: int) -> list[Received]:
        """All messages, once there are `count`."""
        with trio.move_on_after(LIMIT):
            while len(self.messages) < count:
                await self._changed.wait()
            return self.messages
        raise AssertionError(f"{len(self.messages)} of {count} messages after {LIMIT:.0f} s")

    async def content(self, number: int = 1) -> bytes:
        """The content of the message with this number, once it is there."""
        found = (await self.wait_for(number))[number - 1].content
        assert found is not None
        return found


async def open_sink(
    nursery: trio.Nursery,
    take: Callable[[Received], None],
    *words: str,
    host: str = "127.0.0.1",
    port: int = 0,
    path: str = "",
) -> Sink:
    """A sink with the behaviour that `words` spell, running in `nursery`; it keeps contents."""
    listen = Listen(
        host="" if path else host, port=port, path=path, behaviour=parse_behaviour(words)
    )

    async def serve(task_status: trio.TaskStatus[list[Sink]]) -> None:
        await serve_sinks([listen], take=take, keep=True, task_status=task_status)

    sinks: list[Sink] = await nursery.start(serve)
    return sinks[0]


def port_of(sink: Sink) -> int:
    """The TCP port of a sink."""
    return int(sink.name.rpartition(":")[2])
