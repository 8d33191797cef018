"""Several worker processes of one node, for real: limits, reloads, deaths, crash loops, stalls.

A `sitecustomize` module in a directory of the test makes processes of the node misbehave: it is
imported by every Python that finds it on its path, before anything of postrio.
"""

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from bench.sink.behaviour import Behaviour, Phase
from bench.sink.record import Received
from bench.sink.words import parse_behaviour
from protocol.request import Recipient
from tests.integration.node import SENDER, Mailbox, Node, open_sink, port_of
from worker.queue.client import connect_submit
from worker.queue.records import Submission

CONTENT = b"Subject: test\r\n\r\nHello.\r\n"
WORKERS = 3
LIMIT = 7  # deliveries at a time to one destination: no multiple of the workers
MESSAGES = 200

# FLAGS/dies: workers end at their start. SIGUSR1: the main thread, and its loop, computes for ever.
MISCHIEF = """
import os, signal, sys

def compute_for_ever(number, frame):
    while True:
        pass

if sys.orig_argv[2:5] == ["-m", "worker", "worker"] and os.path.exists(FLAGS + "/dies"):
    os._exit(3)
signal.signal(signal.SIGUSR1, compute_for_ever)
"""


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files make the processes of a node misbehave."""
    directory = tmp_path / "mischief"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(f"FLAGS = {str(directory)!r}\n{MISCHIEF}")
    monkeypatch.setenv("PYTHONPATH", str(directory))
    return directory


def flag(flags: Path, name: str) -> None:
    """Begin some mischief."""
    (flags / name).touch()


def unflag(flags: Path, name: str) -> None:
    """End it."""
    (flags / name).unlink()


class Gauge(dict[str, str]):
    """A sink's recipients, asked at RCPT; counts transactions between that and the final dot."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self.helos: set[str] = set()
        self.asked = trio.Event()

    def get(self, address: str, usual: str = "") -> str:  # type: ignore[override]
        """A transaction has got its recipient."""
        self.now += 1
        self.most = max(self.most, self.now)
        self.asked.set()
        return usual

    def take(self, received: Received) -> None:
        """A transaction has come to its final dot."""
        self.now -= 1
        self.helos.add(received.helo)


async def submit(node: Node, recipients: Sequence[str]) -> None:
    """A message for each of them, over one connection."""

    async def content() -> AsyncIterator[bytes]:
        yield CONTENT

    client = await connect_submit(node.queue_directory)
    assert client is not None
    async with client:
        for address in recipients:
            message = Submission(sender=SENDER, recipients=(Recipient(address=address),))
            await client.submit(message, content())


def towards(port: int, more: Mapping[str, str]) -> dict[str, str]:
    """Everything goes to this port of our own host."""
    return {"default_transport": f"smtp:[127.0.0.1]:{port}", **more}


@trio_test
async def test_s133_the_limit_of_a_destination_holds_across_all_workers(tmp_path: Path) -> None:
    gauge = Gauge()
    mailbox = Mailbox(gauge.take)
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        sink.behaviour = Behaviour(latency=0.02, recipients=gauge)
        main_cf = {
            "postrio_worker_processes": str(WORKERS),
            "default_destination_concurrency_limit": str(LIMIT),
            "smtp_helo_name": "w$process_id.example",
        }
        async with Node(tmp_path, towards(port_of(sink), main_cf)) as node:
            await node.wait_for("is ready, process", WORKERS)  # or the first does it all
            await submit(node, [f"m{number}@to.example" for number in range(MESSAGES)])
            await node.wait_for(": removed$", MESSAGES)
        assert gauge.most == LIMIT
        assert len(gauge.helos) == WORKERS
        nursery.cancel_scope.cancel()


@trio_test
async def test_s184_sighup_reaches_every_process(tmp_path: Path) -> None:
    gauge = Gauge()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, Mailbox(gauge.take))
        sink.behaviour = Behaviour(recipients=gauge)
        main_cf = {"postrio_worker_processes": str(WORKERS), "smtp_helo_name": "old.example"}
        async with Node(tmp_path, towards(port_of(sink), main_cf)) as node:
            node.configure({"smtp_helo_name": "w$process_id.example"})
            node.send_signal(signal.SIGHUP)
            await node.wait_for("configuration reloaded", 1 + WORKERS)
            sink.behaviour = Behaviour(recipients=gauge, latency=0.2)
            for number in range(2 * WORKERS):
                await node.send(CONTENT, f"m{number}@d{number}.example")
            await node.wait_for(": removed$", 2 * WORKERS)
            names = {f"w{pid}.example" for pid in node.worker_pids()}
        assert gauge.helos <= names
        nursery.cancel_scope.cancel()


@trio_test
async def test_what_an_ending_worker_has_not_sent_goes_out_at_once_through_another(
    tmp_path: Path,
) -> None:
    gauge = Gauge()
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        sink.behaviour = Behaviour(silent=Phase.RCPT, recipients=gauge)
        main_cf = {"postrio_worker_processes": "2", "minimal_backoff_time": "1h"}
        async with Node(tmp_path, towards(port_of(sink), main_cf)) as node:
            await node.send(CONTENT, "a@to.example")
            await gauge.asked.wait()
            sink.behaviour = parse_behaviour([])
            for worker in node.worker_pids():
                os.kill(worker, signal.SIGTERM)
            await node.wait_for(": removed$")
            await node.wait_for("worker process [01] .* -- restarting at once", 2)
            assert not node.count("status=deferred")
        assert len(mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_mail_stays_queued_while_every_worker_is_in_a_crash_loop(
    tmp_path: Path, flags: Path
) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        main_cf = {"postrio_worker_processes": "2", "transport_retry_time": "1s"}
        flag(flags, "dies")
        async with Node(tmp_path, towards(port_of(sink), main_cf)) as node:
            await node.send(CONTENT, "a@to.example")
            for number in range(2):
                (line, *_) = await node.wait_for(f"worker process {number} .*a crash loop")
                assert "ended with status 3, its end number 3 in " in line
            assert [message["queue_name"] for message in await node.listed()] == ["active"]
            unflag(flags, "dies")
            await node.wait_for(": removed$")
            assert not node.count("status=deferred")
        assert len(mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_what_only_workers_see_of_a_wrong_configuration_stops_the_start_too(
    tmp_path: Path,
) -> None:
    wrong = {"smtp_fallback_relay": "[::1", "postrio_worker_processes": "2"}
    node = Node(tmp_path, wrong)
    await node.spawn()
    assert await node.wait_until_ended() == os.EX_CONFIG
    assert node.count("no worker can start with this configuration: run 'postrio check'")
    assert node.count(r"smtp_fallback_relay = \[::1: .*unbalanced brackets") >= 2
    # Once it was right, mail and its workers wait for better times.
    node.configure({"smtp_fallback_relay": ""})
    async with node:
        await node.wait_for("worker process [01] is ready", 2)
        node.configure(wrong)
        os.kill(node.ready_pids()[0], signal.SIGKILL)
        await node.wait_for("worker process [01] ended with status 78")
        await node.wait_for("worker process [01] .*a crash loop")


@trio_test
async def test_a_stalled_worker_is_replaced_and_a_stalled_queue_process_ends_with_its_workers(
    tmp_path: Path, flags: Path
) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        node = Node(tmp_path, towards(port_of(sink), {"daemon_timeout": "3s"}))
        await node.start()
        await node.send(CONTENT, "a@to.example")
        await node.wait_for(": removed$")  # everybody has handlers of signals by now
        (worker,) = node.worker_pids()
        os.kill(worker, signal.SIGUSR1)
        await node.wait_for("watchdog: thread MainThread: compute_for_ever ")
        await node.wait_for("x task worker.pool.worker.Worker._accept|x task .*watch_lifeline")
        await node.wait_for("worker process 0 ended with status 70 -- restarting at once")
        await node.send(CONTENT, "b@to.example")
        await node.wait_for(": removed$", 2)
        node.send_signal(signal.SIGUSR1)
        assert await node.wait_until_ended() == os.EX_SOFTWARE  # its workers have ended, too
        assert node.count(r"x task .*Scheduler\._claim_due")
        nursery.cancel_scope.cancel()


@trio_test
async def test_the_cache_is_replaced_when_it_dies_or_is_configured_anew_and_ends_politely(
    tmp_path: Path,
) -> None:
    async with Node(tmp_path) as node:
        await node.wait_for("connection cache started")
        (first,) = node.cache_pids()
        os.kill(first, signal.SIGKILL)
        await node.wait_for("connection cache was killed by signal SIGKILL -- restarting at once")
        await node.wait_for("connection cache started", 2)
        (second,) = node.cache_pids()
        node.configure({"smtp_helo_name": "other.example"})
        node.send_signal(signal.SIGHUP)
        await node.wait_for("configuration reloaded", 2)
        assert node.cache_pids() == [second]
        node.configure({"connection_cache_ttl_limit": "5s"})
        node.send_signal(signal.SIGHUP)
        await node.wait_for("connection cache started", 3)
        assert node.cache_pids() != [second]
        assert node.count("connection cache .* -- restarting") == 1
    assert node.count("connection cache stopped") == 2  # for its replacement, and at the end
