"""A real Postfix: its smtp(8) with our cache daemon, our client with its scache(8)."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import trio
from trio.testing import trio_test

from bench.drain import fill_postfix
from bench.postfix_instance import PostfixInstance
from tests.integration.scache_process import ROOT, CacheProcess
from tests.worker import cache_conformance as conformance
from worker.cache.client import CacheClient
from worker.status.events import Event

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd", "smtp-source")

MESSAGES = 300
LIMIT = 60.0  # seconds
NAME = "pscache"  # our socket, beside Postfix's


@contextmanager
def counting_sink() -> Iterator[tuple[int, list[str]]]:
    """`bench.sink` on a port of its own; when it has ended, its last words are in the list."""
    words: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.sink", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            port = int(process.stdout.readline().rpartition(":")[2])
            yield port, words
        finally:
            process.terminate()
            words += process.stdout.read().splitlines()
            process.wait()


@dataclass(frozen=True)
class Delivered:
    """What came of a run."""

    connections: int  # that the sink has seen
    log: str  # Postfix's
    cache_log: str  # our daemon's; empty without it


def deliver(*, ours: bool) -> Delivered:
    """Have Postfix deliver MESSAGES to one destination, with our cache or its own."""
    postfix = PostfixInstance(
        main_cf={
            "connection_cache_service_name": NAME if ours else "scache",
            "smtp_connection_cache_destinations": "127.0.0.1",
        }
    )
    with ExitStack() as stack:
        port, words = stack.enter_context(counting_sink())
        route = f"smtp:[127.0.0.1]:{port}"
        postfix.configure({"transport_maps": f"inline:{{ {{ d.example = {route} }} }}"})
        stack.enter_context(postfix)
        cache_log = ""
        if ours:
            path = postfix.queue_directory / "private" / NAME
            cache = CacheProcess("--socket", str(path), "--trust", "postfix")
            stack.enter_context(cache)
        fill_postfix(postfix, MESSAGES, ["d.example"], 1000)
        postfix.wait_until_drained(LIMIT)
        log = postfix.log()
        if ours:
            assert cache.end(signal.SIGTERM) == 0
            cache_log = cache.said()
    (last,) = words
    assert f" messages={MESSAGES} " in last
    found = re.search(r" connections=(\d+) ", last)
    assert found is not None
    return Delivered(int(found[1]), log, cache_log)


def test_s140_smtp_reuses_connections_through_our_cache_as_through_its_own() -> None:
    real, ours = deliver(ours=False), deliver(ours=True)
    for run in (real, ours):
        assert run.log.count("status=sent") == MESSAGES
        uses = [int(number) for number in re.findall(r"conn_use=(\d+)", run.log)]
        assert len(uses) == MESSAGES - run.connections
        assert "warning" not in run.log
    # Every connection is used again and again, about as often as with the real cache.
    assert ours.connections <= max(40, 2 * real.connections)
    hits, misses = map(int, re.findall(r"domain lookup hits=(\d+) miss=(\d+)", ours.cache_log)[0])
    addresses = re.findall(r"address lookup hits=(\d+)", ours.cache_log)
    assert hits + sum(map(int, addresses)) == MESSAGES - ours.connections
    assert hits + misses == MESSAGES
    assert "warning" not in ours.cache_log


@pytest.fixture(scope="module")
def postfix() -> Iterator[PostfixInstance]:
    """A Postfix whose scache(8) the tests here share."""
    with PostfixInstance(smtpd=False) as instance:
        yield instance


@pytest.mark.parametrize("step", conformance.EVERYWHERE, ids=lambda step: step.__name__)
@trio_test
async def test_s140_our_client_gets_along_with_the_real_scache(
    step: conformance.Step, postfix: PostfixInstance
) -> None:
    events: list[Event] = []
    path = postfix.queue_directory / "private" / "scache"
    client = CacheClient(path, timeout=LIMIT, emit=events.append)
    try:
        await step(client)
    except AssertionError as exc:
        exc.add_note(f"the client said: {events}\nPostfix said:\n{postfix.log()}")
        raise
    client.close()
    assert [event for event in events if "ttl" not in str(event)] == []


@trio_test
async def test_s141_the_real_scache_forgets_in_time(postfix: PostfixInstance) -> None:
    path = postfix.queue_directory / "private" / "scache"
    client = CacheClient(path, timeout=10.0, emit=lambda _: None)

    async def wait(_: float) -> None:
        await trio.sleep(3)  # another program's clock; its timers fire up to a second late

    await conformance.forgets_in_time(client, wait)
    client.close()


@trio_test
async def test_many_tasks_share_the_real_scache(postfix: PostfixInstance) -> None:
    events: list[Event] = []
    path = postfix.queue_directory / "private" / "scache"
    client = CacheClient(path, timeout=10.0, emit=events.append)

    async def save_and_find(number: int) -> None:
        for _ in range(20):
            peer = await conformance.save(client, f"many {number}\n", f"{number}")
            found = await client.find_endpoint(f"many {number}\n")
            assert conformance.belongs_together(found, peer)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(save_and_find, number)
    client.close()
    assert events == []
