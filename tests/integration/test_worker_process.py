"""A worker process, started for real: requests over slots, signals, the lifeline, a reload.

The worker runs in a child process, the server it delivers to (`tests/worker/peer.py`, over TCP) in
the test. Nothing waits for time to pass: what has to happen first is waited for. The longest
test takes the second that a stopping worker gives to requests under way.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from protocol.outcome import Action, DeliveryResult
from protocol.request import DeliveryRequest
from tests.worker.peer import Fault, Once, Peer, Phase
from tests.worker.world import make_request
from worker.content import InlineContent
from worker.pool.child import RELOAD
from worker.pool.slots import StreamSlot
from worker.pool.worker import inherited_listener
from worker.queue.slot import WorkerLost

ROOT = Path(__file__).parents[2]
SENT, DEFERRED = Action.SENT, Action.DEFERRED
PATIENCE = 20.0  # seconds; a test that needs them has failed
STOP_LIMIT = 60.0  # longer than our patience: a worker that waits it out has failed, too

WORKER = """
import random, sys, time
from functools import partial
from pathlib import Path
import trio
from worker.config.config import Config
from worker.environment import make_environment
from worker.pool.worker import inherited_listener, run_worker

def emit(event):
    print(event, flush=True)

def load():
    config = Config.load(Path(sys.argv[2]))
    return make_environment(config, emit, time.time, random.Random())

listener = inherited_listener(int(sys.argv[1]))
trio.run(partial(run_worker, listener, load, emit, stop_limit=float(sys.argv[3])))
print("ended", flush=True)
"""


@dataclass(slots=True)
class Child:
    """The worker process and the way to it."""

    process: trio.Process
    path: Path
    main_cf: Path
    port: int
    output: bytes = b""
    slots: list[StreamSlot] = field(default_factory=list)

    async def slot(self) -> StreamSlot:
        """A slot, closed at the end if not before."""
        slot = await StreamSlot.connect(self.path)
        self.slots.append(slot)
        return slot

    def request(self) -> DeliveryRequest:
        return replace(make_request(), nexthop=f"[127.0.0.1]:{self.port}")

    async def said(self, text: str) -> None:
        """Wait until the worker has said `text`."""
        assert self.process.stdout is not None
        while text.encode() not in self.output:
            data = await self.process.stdout.receive_some()
            assert data, f"the worker ended without saying {text}: {self.output!r}"
            self.output += data

    def configure(self, text: str) -> None:
        self.main_cf.write_text(f"myhostname = client.example\n{text}\n")


@asynccontextmanager
async def a_worker(
    directory: Path, nursery: trio.Nursery, peer: Peer, stop_limit: float
) -> AsyncIterator[Child]:
    """A worker process, and `peer` on a port of its own. `nursery` is the test's."""
    listeners = await nursery.start(partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = directory / "worker"
    with listener:
        listener.bind(str(path))
        listener.listen()
        script = directory / "serve.py"
        script.write_text(WORKER)
        main_cf = directory / "main.cf"
        child = Child(None, path, main_cf, port)  # type: ignore[arg-type]  # two lines below
        child.configure("smtp_helo_name = first.example")
        child.process = await trio.lowlevel.open_process(
            [sys.executable, str(script), str(listener.fileno()), str(main_cf), str(stop_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        yield child
    finally:
        for slot in child.slots:
            await slot.aclose()
        child.process.kill()
        with trio.CancelScope(shield=True):
            await child.process.wait()
            for pipe in (child.process.stdin, child.process.stdout):
                if pipe is not None:
                    await pipe.aclose()


async def play(
    directory: Path,
    peer: Peer,
    scenario: Callable[[Child], Awaitable[None]],
    *,
    stop_limit: float = STOP_LIMIT,
) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            async with a_worker(directory, nursery, peer, stop_limit) as child:
                await scenario(child)
            nursery.cancel_scope.cancel()


async def heard(peer: Peer, verb: str) -> None:
    """Wait until the server was told `verb`."""
    await peer.until(lambda: verb in peer.verbs)


async def dot_sent(peer: Peer) -> None:
    """Wait until the server has the whole content."""
    await peer.until(lambda: any(link.dots for link in peer.links))


def action(result: DeliveryResult) -> Action:
    return result.outcomes[0].action


@trio_test
async def test_a_worker_serves_slots_and_keeps_sessions_in_them(tmp_path: Path) -> None:
    peer = Peer()

    async def scenario(child: Child) -> None:
        slot = await child.slot()
        for use in (1, 2):
            await slot.send(child.request(), InlineContent(b"Subject: x\n\nbody\n"))
            result = await slot.receive()
            assert (action(result), result.outcomes[0].conn_use) == (SENT, use)
            assert result.session_kept
        await slot.aclose()
        await heard(peer, "QUIT")  # the worker ends the session of a slot that ends

    await play(tmp_path, peer, scenario)
    assert [message.content for message in peer.accepted] == [b"Subject: x\r\n\r\nbody\r\n"] * 2


@trio_test
async def test_sigterm_lets_content_finish_and_ends_the_process(tmp_path: Path) -> None:
    go_on = trio.Event()
    peer = Peer({Phase.DOT: Once(go_on, "250 2.0.0 queued")})

    async def scenario(child: Child) -> None:
        slot, idle = await child.slot(), await child.slot()
        await slot.send(child.request(), InlineContent(b"body\n"))
        await dot_sent(peer)
        child.process.send_signal(signal.SIGTERM)
        with pytest.raises(WorkerLost):
            await idle.receive()  # closed soon: there is nothing to wait for
        go_on.set()
        assert action(await slot.receive()) is SENT
        assert await child.process.wait() == 0

    await play(tmp_path, peer, scenario)


@trio_test
async def test_sigterm_ends_what_has_not_come_to_its_content(tmp_path: Path) -> None:
    peer = Peer({Phase.MAIL: Fault.SILENCE})

    async def scenario(child: Child) -> None:
        slot = await child.slot()
        for _ in range(2):  # one under way, one waiting behind it
            await slot.send(child.request(), InlineContent(b"body\n"))
        await heard(peer, "MAIL")
        child.process.send_signal(signal.SIGTERM)
        for _ in range(2):
            result = await slot.receive()
            assert (action(result), result.outcomes[0].dsn) == (DEFERRED, "4.3.2")
            assert result.stopped
        assert await child.process.wait() == 0

    await play(tmp_path, peer, scenario)
    assert len(peer.links) == 1


@trio_test
async def test_sigterm_is_bounded_by_the_stop_limit(tmp_path: Path) -> None:
    peer = Peer({Phase.DOT: Fault.SILENCE})

    async def scenario(child: Child) -> None:
        slot = await child.slot()
        await slot.send(child.request(), InlineContent(b"body\n"))
        await dot_sent(peer)
        child.process.send_signal(signal.SIGTERM)
        with pytest.raises(WorkerLost):
            await slot.receive()
        assert await child.process.wait() == 0

    await play(tmp_path, peer, scenario, stop_limit=0.5)


@trio_test
async def test_the_end_of_the_lifeline_ends_everything_at_once(tmp_path: Path) -> None:
    peer = Peer({Phase.DOT: Fault.SILENCE})

    async def scenario(child: Child) -> None:
        slot = await child.slot()
        await slot.send(child.request(), InlineContent(b"body\n"))
        await dot_sent(peer)
        assert child.process.stdin is not None
        await child.process.stdin.aclose()
        with pytest.raises(WorkerLost):
            await slot.receive()
        assert await child.process.wait() == 0
        await child.said("ended")

    await play(tmp_path, peer, scenario)


@trio_test
async def test_sigint_is_left_to_the_parent(tmp_path: Path) -> None:
    async def scenario(child: Child) -> None:
        slot = await child.slot()
        await slot.send(child.request(), InlineContent(b"body\n"))
        await slot.receive()
        child.process.send_signal(signal.SIGINT)
        await slot.send(child.request(), InlineContent(b"body\n"))
        assert action(await slot.receive()) is SENT

    await play(tmp_path, Peer(), scenario)


@trio_test
async def test_sighup_takes_a_good_configuration_and_refuses_a_bad_one(tmp_path: Path) -> None:
    peer = Peer()

    async def scenario(child: Child) -> None:
        slot = await child.slot()

        async def deliver() -> None:
            await slot.send(child.request(), InlineContent(b"body\n"))
            assert action(await slot.receive()) is SENT

        await deliver()
        child.configure("smtp_helo_timeout = soon")
        child.process.send_signal(signal.SIGHUP)
        await child.said("configuration not reloaded")
        await deliver()
        child.configure("smtp_helo_name = second.example")
        child.process.send_signal(signal.SIGHUP)
        await child.said("configuration reloaded")
        await deliver()

    await play(tmp_path, peer, scenario)
    assert [link.commands[0] for link in peer.links] == [
        "EHLO first.example",
        "EHLO second.example",
    ]
    assert [link.verbs.count("MAIL") for link in peer.links] == [2, 1]


@trio_test
async def test_octets_that_are_no_frame_cost_their_slot_only(tmp_path: Path) -> None:
    async def scenario(child: Child) -> None:
        stream = await trio.open_unix_socket(child.path)
        await stream.send_all(b"\xff" * 100)
        assert await stream.receive_some() == b""
        await stream.aclose()
        await child.said("slot closed: slot frame of")
        slot = await child.slot()
        await slot.send(child.request(), InlineContent(b"body\n"))
        assert action(await slot.receive()) is SENT

    await play(tmp_path, Peer(), scenario)


@trio_test
async def test_no_content_is_sent_before_the_result_of_the_request_before_is_out(
    tmp_path: Path,
) -> None:
    # Its envelope travels with the final dot of the first; that takes nobody's responsibility.
    peer = Peer({Phase.DOT: ["250 2.0.0 queued", Fault.SILENCE]})

    async def scenario(child: Child) -> None:
        slot = await child.slot()
        first = child.request()
        second = replace(make_request("second@example.com"), nexthop=first.nexthop)
        for request in (first, second):
            await slot.send(request, InlineContent(b"body\n"))
        await peer.until(lambda: sum(link.dots for link in peer.links) == 2)
        child.process.kill()  # and nothing has been received from the slot yet
        assert action(await slot.receive()) is SENT
        with pytest.raises(WorkerLost):
            await slot.receive()

    await play(tmp_path, peer, scenario)


def test_only_a_listening_unix_socket_is_taken_over() -> None:
    pair = socket.socketpair()
    with pair[0], pair[1], pytest.raises(OSError, match="not a listening UNIX socket"):
        inherited_listener(pair[0].fileno())


@trio_test
async def test_a_reload_asked_for_while_the_worker_starts_is_not_lost(tmp_path: Path) -> None:
    async def scenario(child: Child) -> None:
        assert child.process.stdin is not None
        await child.process.stdin.send_all(RELOAD)  # nothing was awaited: it may just be forking
        await child.said("configuration reloaded")
        slot = await child.slot()
        await slot.send(child.request(), InlineContent(b"body\n"))
        assert action(await slot.receive()) is SENT

    await play(tmp_path, Peer(), scenario)
