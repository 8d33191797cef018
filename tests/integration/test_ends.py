"""How a node ends when something in it does not: real processes, stopped or stuck.

A process that was sent SIGSTOP takes no other signal but SIGKILL.
"""

import os
import signal
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from tests.integration.node import LIMIT, Mailbox, Node, open_sink, port_of

CONTENT = b"Subject: test\r\n\r\nHello.\r\n"


def stop_one(node: Node, kind: str) -> int:
    """Make a process of the node take no more signals; its number."""
    (pid,) = node.cache_pids() if kind == "cache" else node.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    return pid


def exists(pid: int) -> bool:
    """Whether there is such a process, were it a dead one."""
    return Path(f"/proc/{pid}").exists()


async def settled(node: Node) -> None:
    """The node runs, and so do the processes that it keeps."""
    await node.start()
    await node.wait_for("worker process 0 is ready")
    await node.wait_for("connection cache started")


@pytest.mark.parametrize("kind", ["cache", "worker"])
@trio_test
async def test_a_process_that_does_not_end_is_killed_and_the_node_ends(
    tmp_path: Path, kind: str
) -> None:
    node = Node(tmp_path, {"postrio_shutdown_timeout": "0s"})
    try:
        await settled(node)
        pid = stop_one(node, kind)
        assert await node.stop() == 0
        assert node.count("did not end in time") == 1
        assert node.count("daemon stopped") == 1
        assert not exists(pid)
        assert not node.errors()
    finally:
        await node.abandon()


@pytest.mark.parametrize("kind", ["cache", "worker"])
@trio_test
async def test_a_second_sigterm_kills_a_process_that_takes_none(tmp_path: Path, kind: str) -> None:
    node = Node(tmp_path, {"postrio_shutdown_timeout": "300s"})
    try:
        await settled(node)
        pid = stop_one(node, kind)
        node.send_signal(signal.SIGTERM)
        await node.wait_for("stopping on SIGTERM")
        assert await node.stop() == 0
        assert node.count("daemon stopped") == 1
        assert not exists(pid)
        assert not node.errors()
    finally:
        await node.abandon()


@trio_test
async def test_a_second_sigterm_does_not_wait_for_a_reply_and_the_message_is_in_doubt(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(tmp_path, {"postrio_shutdown_timeout": "300s"})
        sink = await open_sink(
            nursery, Mailbox(lambda _: node.send_signal(signal.SIGTERM)), "silent=end"
        )
        node.configure({"default_transport": f"smtp:[127.0.0.1]:{port_of(sink)}"})
        try:
            await node.start()
            queue_id = await node.send(CONTENT, "a@to.example")
            await node.wait_for("stopping on SIGTERM")
            assert await node.stop() == 0
        finally:
            await node.abandon()
        assert not node.count("status=")
        assert not node.errors()
        nursery.cancel_scope.cancel()
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        node.configure({"default_transport": f"smtp:[127.0.0.1]:{port_of(sink)}"})
        async with node:
            await node.wait_for(f"{queue_id}: removed")
            assert node.count(f"{queue_id}: .*may be sent more than once")
        assert len(mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_main_cf_that_never_ends_does_not_keep_sigterm_from_ending_the_node(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    try:
        await settled(node)
        node.main_cf.unlink()
        os.mkfifo(node.main_cf)
        node.send_signal(signal.SIGHUP)
        with trio.fail_after(LIMIT):  # to be opened by both of us
            writer = await trio.to_thread.run_sync(
                os.open, node.main_cf, os.O_WRONLY, abandon_on_cancel=True
            )
        try:
            assert await node.stop() == 0
        finally:
            os.close(writer)
        assert not node.count("configuration reloaded")
        assert node.count("daemon stopped") == 1
        assert not node.errors()
    finally:
        await node.abandon()
