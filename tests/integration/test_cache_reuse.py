"""Reuse across processes: one session for the messages of several, by way of a connection cache.

Real processes, real sockets; connections and messages are counted at the sink. The cache is ours
(`python -m scache`) or Postfix's scache(8). Time limits are long here, so that a busy machine does
not decide the outcome.
"""

import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance
from bench.sink.sink import Sink
from tests.integration.node import LIMIT, Mailbox, Node, open_sink, port_of, run_command

PATIENT = "60s"
MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"


@asynccontextmanager
async def our_cache(directory: Path) -> AsyncIterator[tuple[Path, trio.Process]]:
    """A daemon of ours: its socket, which listens from the start, and the process."""
    path = directory / "private" / "scache"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        process = await trio.lowlevel.open_process(
            [
                *(sys.executable, "-m", "scache", "--listen-fd", str(listener.fileno())),
                *("--ttl-limit", "60"),
            ],
            pass_fds=[listener.fileno()],
        )
    try:
        yield path, process
        process.terminate()
        with trio.fail_after(LIMIT):
            assert await process.wait() == 0
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def real_cache() -> AsyncIterator[Path]:
    """The scache(8) of a Postfix; its socket."""
    postfix = PostfixInstance(main_cf={"connection_cache_ttl_limit": PATIENT}, smtpd=False)
    try:
        await trio.to_thread.run_sync(postfix.start)
        yield postfix.queue_directory / "private" / "scache"
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(postfix.stop)
            postfix.remove()


async def deliver_once(cache: Path, sink: Sink, *options: str) -> dict[str, object]:
    """One `postrio deliver` with this cache; what it says of its only recipient."""
    done = await run_command(
        *("deliver", "--json", "--nexthop", f"[127.0.0.1]:{port_of(sink)}", "--sender", ""),
        *("--recipient", "b@there.example", "--cache-socket", str(cache)),
        *("-o", f"smtp_connection_cache_time_limit={PATIENT}", "-o", "inet_protocols=ipv4"),
        *options,
        stdin=MESSAGE,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@trio_test
async def test_s137_a_session_that_one_process_made_serves_another(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery, our_cache(tmp_path) as (cache, _):
        sink = await open_sink(nursery, mailbox)
        uses = [(await deliver_once(cache, sink))["conn_use"] for _ in range(3)]
        assert uses == [1, 2, 3]
        assert sink.counters.connections == 1
        # Another configuration is another session.
        other = await deliver_once(cache, sink, "-o", "smtp_helo_name=other.example")
        assert other["conn_use"] == 1
        assert sink.counters.connections == 2
        nursery.cancel_scope.cancel()
    assert [message.connection for message in mailbox.messages] == [1, 1, 1, 2]


@pytest.mark.peer("postfix", "root")
@trio_test
async def test_s140_postfix_s_own_scache_serves_our_processes() -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery, real_cache() as cache:
        sink = await open_sink(nursery, mailbox)
        uses = [(await deliver_once(cache, sink))["conn_use"] for _ in range(3)]
        assert uses == [1, 2, 3]
        assert sink.counters.connections == 1
        nursery.cancel_scope.cancel()


async def send_one_by_one(node: Node, mailbox: Mailbox, count: int) -> None:
    """Each message is taken before the next one is submitted: no slot has more than one."""
    for number in range(count):
        taken = len(mailbox.messages)
        await node.send(MESSAGE, f"u{number}@one.example")
        await mailbox.wait_for(taken + 1)
        await node.wait_for(": removed$", taken + 1)


def kept(port: int, **others: str) -> dict[str, str]:
    """Parameters of a node that always keeps sessions to the sink at `port`."""
    return {
        "default_transport": f"smtp:[127.0.0.1]:{port}",
        "smtp_connection_cache_destinations": "static:all",
        "smtp_connection_cache_time_limit": PATIENT,
        "connection_cache_ttl_limit": PATIENT,
        "postrio_worker_processes": "2",
        **others,
    }


@trio_test
async def test_s143_a_node_keeps_sessions_to_listed_destinations_in_its_cache(
    tmp_path: Path,
) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        async with Node(tmp_path, kept(port_of(sink))) as node:
            await send_one_by_one(node, mailbox, 5)
            assert sink.counters.connections == 1
            assert node.count(r"conn_use=5, .* status=sent") == 1
        nursery.cancel_scope.cancel()
    assert [message.transaction for message in mailbox.messages] == [1, 2, 3, 4, 5]


@pytest.mark.peer("postfix", "root")
@trio_test
async def test_s186_a_node_may_use_postfix_s_scache(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery, real_cache() as cache:
        sink = await open_sink(nursery, mailbox)
        settings = kept(port_of(sink), connection_cache_service_name=str(cache))
        async with Node(tmp_path, settings) as node:
            await send_one_by_one(node, mailbox, 5)
            assert sink.counters.connections == 1
            assert not (node.queue_directory / "private" / "scache").exists()
        nursery.cancel_scope.cancel()


@trio_test
async def test_s147_a_cache_that_hangs_costs_a_moment_and_no_mail(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery, our_cache(tmp_path) as (cache, daemon):
        sink = await open_sink(nursery, mailbox)
        settings = kept(
            port_of(sink),
            connection_cache_service_name=str(cache),
            connection_cache_protocol_timeout="1s",
        )
        async with Node(tmp_path, settings) as node:
            await send_one_by_one(node, mailbox, 1)
            daemon.send_signal(signal.SIGSTOP)
            try:
                await send_one_by_one(node, mailbox, 3)
            finally:
                daemon.send_signal(signal.SIGCONT)
            assert node.count("doing without it for a while") >= 1
            assert node.count("status=deferred") == 0
        nursery.cancel_scope.cancel()
