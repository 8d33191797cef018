"""Workers that share TLS connections: real processes and a real cache daemon, driven one by one.

Each delivery has a slot of its own, which ends with it, so its session goes to the cache, and
`Fleet.kept` says when it is there. `Local` is a worker in the test's own process, for what needs no
process of its own. Nothing here waits for time: what has to happen first is asked for.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from protocol.outcome import RecipientOutcome
from protocol.request import DeliveryRequest, RequestFlags
from scache.report import ask_report
from tests.integration.node import POSTRIO, write_main_cf
from tests.integration.scache_process import CacheProcess
from tests.worker.world import make_request
from worker.config.config import Config
from worker.content import Content, FileContent, InlineContent
from worker.delivery.deliver import deliver
from worker.delivery.slot import DeliverySlot
from worker.environment import make_environment
from worker.pool.slots import StreamSlot
from worker.status.events import Event
from worker.status.log import render
from worker.tls.holder import Holder

CONTENT: Final = b"Subject: hello\r\n\r\nworld\r\n"
LIMIT: Final = 15.0
PATIENT: Final = "60s"  # longer than any test: a busy machine decides nothing
DEFAULTS: Final[Mapping[str, str]] = {
    "myhostname": "client.example",
    "inet_protocols": "ipv4",
    "smtp_tls_loglevel": "1",
    "smtp_connection_cache_time_limit": PATIENT,
    "connection_cache_ttl_limit": PATIENT,
    "postrio_shutdown_timeout": PATIENT,
}


def request_to(port: int, host: str = "127.0.0.1") -> DeliveryRequest:
    """One message for the server at `port`, whose session may come from the cache and go there."""
    flags = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE
    return replace(make_request(), nexthop=f"[{host}]:{port}", flags=flags)


class Fleet:
    """A cache daemon and its workers, from entering the context to leaving it."""

    def __init__(self, directory: Path, main_cf: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.main_cf = dict(main_cf or {})
        self.socket = directory / "scache"
        self.cache = CacheProcess("--socket", str(self.socket), "--ttl-limit", "60")
        self._workers: list[Worker] = []

    async def __aenter__(self) -> Self:
        self.cache.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for worker in self._workers:
                await worker.abandon()
        finally:
            self.cache.__exit__(kind, exc, traceback)

    async def worker(self, **main_cf: str) -> "Worker":
        """One more process, that takes slots."""
        number = len(self._workers)
        parameters = {**DEFAULTS, "connection_cache_service_name": str(self.socket)}
        worker = Worker(self.directory, number, {**parameters, **self.main_cf, **main_cf})
        self._workers.append(worker)
        await worker.start()
        return worker

    async def kept(self, count: int) -> None:
        """Wait until the daemon holds so many connections."""

        def held() -> bool:
            return f'"connections": {count},' in ask_report(self.socket)

        await until(held)


class Worker:
    """`postrio worker`, and the way to it."""

    def __init__(self, directory: Path, number: int, main_cf: Mapping[str, str]) -> None:
        self._path = directory / f"worker.{number}"
        self._main_cf = directory / f"main.cf.{number}"
        self._log = directory / f"log.{number}"
        write_main_cf(self._main_cf, main_cf)
        self._process: trio.Process | None = None
        self._idle = 0  # descriptors that it has without slots and connections

    @property
    def process(self) -> trio.Process:
        """The process."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    async def start(self) -> None:
        """Start it; it takes slots from the start."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._path))
            listener.listen()
            descriptor = listener.fileno()
            with self._log.open("wb") as log:
                self._process = await trio.lowlevel.open_process(
                    [*POSTRIO, "worker", "--listen-fd", str(descriptor), "-c", str(self._main_cf)],
                    stdin=subprocess.PIPE,
                    stderr=log,
                    pass_fds=[descriptor],
                )

    async def deliver(self, port: int, content: Content | None = None) -> RecipientOutcome:
        """One message, in a slot that ends with it; what became of it. Raises WorkerLost."""
        slot = await StreamSlot.connect(self._path)
        try:
            await slot.send(request_to(port), content or InlineContent(CONTENT))
            (outcome,) = (await slot.receive()).outcomes
        finally:
            await slot.aclose()
        return outcome

    async def reload(self) -> None:
        """Have it read its configuration again, and wait until it has."""
        before = self.log.count("configuration reloaded")
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"x")
        await until(lambda: self.log.count("configuration reloaded") > before)

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.ended()

    def retire(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for its end; its exit status."""
        with trio.fail_after(LIMIT):
            return await self.process.wait()

    async def abandon(self) -> None:
        """End it without asking."""
        if self._process is not None:
            self._process.kill()
            with trio.CancelScope(shield=True):
                await self._process.wait()
                if self._process.stdin is not None:
                    await self._process.stdin.aclose()

    def takes_slots(self) -> bool:
        """Whether anybody listens for them."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self._path)) == 0

    async def serving(self) -> None:
        """Wait until it serves slots, and count what it has open while it has none."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await sock.connect(str(self._path))
        sock.shutdown(socket.SHUT_WR)
        with sock, trio.fail_after(LIMIT):
            assert await sock.recv(1) == b""  # the last that it does with a slot
        self._idle = self._descriptors()

    async def holds(self, count: int) -> None:
        """Wait until all it has open is what so many lent connections take. After serving().

        Two descriptors each, and once the way to the cache daemon. To count only once would be a
        race: what it used for a delivery, and its copy of what the daemon has, it closes later.
        """
        await until(lambda: self._descriptors() == self._idle + 1 + 2 * count)

    def _descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def peak(self) -> int:
        """The most memory it ever had, in octets."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class Local:
    """A worker in this process. It lends only after `hold()`."""

    def __init__(self, cache: Path | None, main_cf: Mapping[str, str], resolver: str = "") -> None:
        self.events: list[Event] = []
        self.holder = Holder(self.events.append)
        self.environment = make_environment(
            Config.from_mapping({**DEFAULTS, **main_cf}),
            self.events.append,
            time.time,
            random.Random(1),
            resolver=resolver,
            cache_socket=cache,
            holder=self.holder,
        )

    @property
    def log(self) -> list[str]:
        """Its lines, without who logs."""
        return [line.text for event in self.events for line in render(event)]

    async def deliver(self, port: int, host: str = "127.0.0.1") -> RecipientOutcome:
        """One message, in a slot that ends with it; what became of it."""
        slot = DeliverySlot()
        content = InlineContent(CONTENT)
        try:
            result = await deliver(request_to(port, host), content, self.environment, slot)
        finally:
            await slot.release()
        (outcome,) = result.outcomes
        return outcome

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.environment.cached is not None:
            self.environment.cached.close()

    async def hold(self, nursery: trio.Nursery) -> Self:
        """Have it lend what it makes, as long as `nursery` is open."""
        await nursery.start(self.holder.run)
        return self


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that another process brings about and nobody tells."""
    with trio.move_on_after(LIMIT):
        while not await trio.to_thread.run_sync(condition):
            pass
        return
    raise AssertionError(f"not within {LIMIT:.0f} s")


def big_content(path: Path, size: int) -> Content:
    """A message of about `size` octets, in a file as the queue would have it."""
    line = b"0123456789" * 7 + b"\r\n"
    path.write_bytes(b"Subject: big\r\n\r\n" + line * (size // len(line)))
    return FileContent(os.open(path, os.O_RDONLY))
