"""The cache client: with our server in the same process, and with daemons that misbehave.

Sockets are real, time is virtual. A daemon of a script (`Script`) says what a broken one might say.
"""

import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.cache_wire import (
    ANNOUNCEMENT_WIRE,
    DUMMY_WIRE,
    MAX_TEXT,
    Reply,
    Status,
)
from scache.server import Server, ServerSettings
from scache.store import StoreLimits
from tests.cancel_everywhere import cancel_everywhere
from tests.descriptors import open_descriptors
from tests.scache.world import OURSELVES, Talker, World, play, settle
from tests.worker import cache_conformance as conformance
from tests.worker.memory_cache import MemoryCache
from worker.cache.client import CHANNELS, CacheClient, Saving
from worker.status.events import Event, Noted, Warned

STEPS = [*conformance.EVERYWHERE, *conformance.OURS]
FOUND = Reply(Status.OK, ("text",)).encode()


@pytest.fixture
def events() -> list[Event]:
    return []


def make_client(path: Path, events: list[Event]) -> CacheClient:
    return CacheClient(path, timeout=5.0, emit=events.append)


# --- conformance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@trio_test
async def test_the_fake_conforms(step: conformance.Step) -> None:
    before = open_descriptors()
    cache = MemoryCache()
    await step(cache)
    cache.close()
    assert open_descriptors() <= before


@trio_test
async def test_the_fake_forgets_in_time(autojump_clock: MockClock) -> None:
    await conformance.forgets_in_time(MemoryCache(), trio.sleep)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@trio_test
async def test_the_client_of_our_daemon_conforms(
    step: conformance.Step, tmp_path: Path, events: list[Event]
) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)
        await step(client)
        client.close()

    await play(scenario, tmp_path)
    # What the client itself refuses, it says.
    assert [event for event in events if "ttl" not in str(event)] == []


@trio_test
async def test_our_daemon_forgets_in_time(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)
        await conformance.forgets_in_time(client, trio.sleep)
        client.close()

    await play(scenario, tmp_path)


@trio_test
async def test_a_saved_connection_is_in_blocking_mode_as_smtp_expects_it(
    tmp_path: Path, events: list[Event]
) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)
        connection, _ = world.pair()
        assert not os.get_blocking(connection.fileno())
        assert await client.save_endpoint(2, "a", "", connection.fileno())
        assert os.get_blocking(connection.fileno())
        client.close()

    await play(scenario, tmp_path)


# --- many calls ----------------------------------------------------------------------------------


@trio_test
async def test_many_tasks_share_a_few_connections(tmp_path: Path, events: list[Event]) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)

        async def save_and_find(number: int) -> None:
            for _ in range(5):
                peer = await conformance.save(client, f"{number}\n", f"{number}")
                found = await client.find_endpoint(f"{number}\n")
                assert conformance.belongs_together(found, peer)

        async with trio.open_nursery() as nursery:
            for number in range(CHANNELS):
                nursery.start_soon(save_and_find, number)
        await settle()
        assert 0 < len(world.server._clients) <= 8
        client.close()
        await settle()
        assert len(world.server._clients) == 0
        assert await client.find_endpoint("0\n") is None

    await play(scenario, tmp_path)
    assert events == []


@trio_test
async def test_idle_connections_are_not_used_for_ever(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)
        await client.find_endpoint("a")
        (first,) = world.server._clients._clients.values()
        await client.find_endpoint("a")
        assert list(world.server._clients._clients.values()) == [first]
        await trio.sleep(5.1)
        await client.find_endpoint("a")
        await settle()
        (second,) = world.server._clients._clients.values()
        assert second is not first
        client.close()

    await play(scenario, tmp_path)


# --- trouble -------------------------------------------------------------------------------------


@trio_test
async def test_a_daemon_that_was_restarted_is_not_noticed(
    tmp_path: Path, events: list[Event]
) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)
        assert await client.save_destination(2, "d", "", "e")
        for one in list(world.server._clients._clients.values()):
            world.server._clients._end(one)
        assert await client.save_destination(2, "d", "", "e")
        client.close()

    await play(scenario, tmp_path)
    assert events == []


@trio_test
async def test_a_host_without_a_cache_is_no_trouble(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    left_behind = tmp_path / "refused"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left_behind))
    for path in (tmp_path / "absent", left_behind, tmp_path / ("long" * 50) / "absent"):
        client = make_client(path, events)
        for _ in range(10):
            assert await client.find_endpoint("a") is None
            await trio.sleep(1)
        assert events == []


@trio_test
async def test_a_cache_that_comes_after_many_attempts_is_used(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    client = make_client(tmp_path / "socket", events)
    for _ in range(CHANNELS + 1):
        assert await client.find_endpoint("a") is None
        await trio.sleep(60)

    async def scenario(script: Script) -> None:
        assert await client.find_endpoint("a") is None
        assert script.clients == 1
        client.close()

    await with_script(tmp_path / "socket", serve_misses, scenario)
    assert events == []


@trio_test
async def test_a_label_that_cannot_be_sent_is_said_and_is_no_trouble_of_the_daemon(
    tmp_path: Path, events: list[Event]
) -> None:
    async def scenario(world: World) -> None:
        client = make_client(world.path, events)
        assert await client.find_endpoint("a\0b") is None
        assert not await client.save_destination(2, "a" * (MAX_TEXT + 1), "", "e")
        assert not await client.save_endpoint(2, "a", "", 999_999)
        assert await client.save_destination(2, "d", "", "e")
        client.close()

    await play(scenario, tmp_path)
    assert [type(event) for event in events] == [Warned] * 3


Handler = Callable[[Talker], Awaitable[None]]


class Script:
    """A daemon that does with every client what a function says, and then hangs up."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path = path
        self.handler = handler
        self.clients = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(str(self.path))
            listener.listen(100)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    sock, _ = await listener.accept()
                    self.clients += 1
                    nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        with sock, suppress(OSError):
            await self.handler(Talker(sock))


async def with_script(
    path: Path, handler: Handler, scenario: Callable[[Script], Awaitable[None]]
) -> None:
    """Run a scenario with a script; afterwards as many descriptors are open as before."""
    before = open_descriptors()
    script = Script(path, handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(script.run)
        await scenario(script)
        nursery.cancel_scope.cancel()
    assert open_descriptors() <= before


async def say_nothing(_: Talker) -> None:
    await trio.sleep_forever()


async def serve_misses(talker: Talker) -> None:
    """A daemon that has nothing."""
    await talker.say(ANNOUNCEMENT_WIRE)
    while await talker.hear() is not None:
        await talker.say(b"status\x002\0property\0\0\0")


@trio_test
async def test_s147_calls_to_a_frozen_daemon_end_together_and_then_there_is_a_pause(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        ends: list[float] = []

        async def call(begin: float) -> None:
            await trio.sleep(begin)
            assert await client.find_endpoint("a") is None
            ends.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(call, number / 10)
        assert ends == [5.0] * 10
        (warning,) = events
        assert isinstance(warning, Warned)
        assert "no answer within 5 seconds" in warning.text
        assert script.clients == 10
        # Until the pause is over, nobody waits; then one call does, the others still do not.
        await call(0.9)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call, 0.2)
        assert ends[10:] == [5.9] + [pytest.approx(6.1)] * 9 + [pytest.approx(11.1)]
        assert script.clients == 11
        # It was in vain, and the pause is two seconds now. Then the daemon thaws.
        script.handler = serve_misses
        await call(1.9)
        assert script.clients == 11
        await call(0.2)
        assert script.clients == 12
        assert [type(event) for event in events] == [Warned, Noted]
        client.close()

    await with_script(tmp_path / "socket", say_nothing, scenario)


@trio_test
async def test_the_pause_has_an_upper_bound(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        while trio.current_time() < 1000:
            await client.find_endpoint("a")
            await trio.sleep(0.5)
        # 1, 2, 4, ... 32, then 60 seconds, each after a probe of 5 seconds.
        assert 19 <= script.clients <= 22
        assert len(events) == 1
        client.close()

    await with_script(tmp_path / "socket", say_nothing, scenario)


@trio_test
async def test_a_probe_that_is_cancelled_leaves_the_next_call_to_probe(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        await client.find_endpoint("a")
        await trio.sleep(1)
        with trio.move_on_after(1) as scope:
            await client.find_endpoint("a")
        assert scope.cancelled_caught
        script.handler = serve_misses
        await client.find_endpoint("a")
        assert isinstance(events[-1], Noted)
        client.close()

    await with_script(tmp_path / "socket", say_nothing, scenario)


@trio_test
async def test_calls_beyond_the_bound_say_no_at_once(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        waited: list[float] = []

        async def call() -> None:
            await client.find_endpoint("a")
            waited.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(CHANNELS + 5):
                nursery.start_soon(call)
        assert waited == [0.0] * 5 + [5.0] * CHANNELS
        assert script.clients == CHANNELS
        # All that waited met one outage, and its pause is the first one.
        script.handler = serve_misses
        await trio.sleep(1)
        await client.find_endpoint("a")
        assert isinstance(events[-1], Noted)
        client.close()

    await with_script(tmp_path / "socket", say_nothing, scenario)


@trio_test
async def test_a_crowded_daemon_is_waited_for(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "socket"))  # and so the backlog is full
            client = make_client(tmp_path / "socket", events)

            async def call() -> None:
                assert await client.save_destination(1, "a", "", "b")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await trio.sleep(1)
                listener.accept()[0].close()
                await trio.sleep(1)
                talker = Talker(trio.socket.from_stdlib_socket(listener.accept()[0]))
                await talker.say(ANNOUNCEMENT_WIRE)
                await talker.hear()
                await talker.say(b"status\x000\0\0")
            talker.sock.close()
            client.close()
    assert events == []


def descriptors_of(*kinds: str) -> Iterator[int]:
    """Fresh descriptors to pass: connected sockets, files, and sockets that are not connected."""
    for kind in kinds:
        if kind == "file":
            yield os.open(os.devnull, os.O_RDONLY)
        elif kind == "unconnected":
            yield socket.socket(socket.AF_UNIX).detach()
        elif kind == "packets":
            first, second = socket.socketpair(type=socket.SOCK_SEQPACKET)
            second.close()
            yield first.detach()
        else:
            first, second = socket.socketpair()
            second.close()
            yield first.detach()


@pytest.mark.parametrize(
    "kinds",
    [[], ["file"], ["unconnected"], ["packets"], ["good", "good"], ["good"] * 20],
    ids=lambda kinds: " ".join(kinds[:2]) or "none",
)
@trio_test
async def test_what_is_no_single_connection_is_closed_and_not_found(
    kinds: list[str], tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def serve(talker: Talker) -> None:
        await talker.say(ANNOUNCEMENT_WIRE)
        await talker.hear()
        await talker.say(FOUND)
        await talker.hear()
        fds = list(descriptors_of(*kinds))
        await talker.pass_descriptors(*fds)
        for fd in fds:
            os.close(fd)
        await talker.hear()

    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        assert await client.find_endpoint("a") is None
        client.close()

    await with_script(tmp_path / "socket", serve, scenario)
    assert events == []


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([b"220 mail.example ESMTP\r\n\0\0\0"], id="another protocol"),
        pytest.param([b"protocol\0delivery_request_protocol\0\0"], id="another service"),
        pytest.param([ANNOUNCEMENT_WIRE, b"status\x000\0\0"], id="no property"),
        pytest.param([ANNOUNCEMENT_WIRE, b"status\x007\0property\0\0\0"], id="no status"),
        pytest.param([ANNOUNCEMENT_WIRE, FOUND + FOUND], id="more than asked"),
        pytest.param([ANNOUNCEMENT_WIRE, b"a" * 60_000], id="no end"),
    ],
)
@trio_test
async def test_nonsense_is_trouble(
    answers: list[bytes], tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def serve(talker: Talker) -> None:
        for answer in answers:
            await trio.SocketStream(talker.sock).send_all(answer)
            await talker.hear()

    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        assert await client.find_endpoint("a") is None
        assert [type(event) for event in events] == [Warned]
        assert trio.current_time() == 0.0
        assert await client.find_endpoint("a") is None
        assert script.clients == 1
        client.close()

    await with_script(tmp_path / "socket", serve, scenario)


@trio_test
async def test_a_daemon_that_hangs_up_in_the_middle_is_asked_again_by_the_next_call(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def serve(talker: Talker) -> None:
        await talker.say(ANNOUNCEMENT_WIRE)
        await talker.hear()
        await talker.say(FOUND)

    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        for calls in (1, 2, 3):
            assert await client.find_endpoint("a") is None
            assert script.clients == calls
        client.close()

    await with_script(tmp_path / "socket", serve, scenario)
    assert events == []


@trio_test
async def test_a_daemon_that_hangs_up_at_once_is_tried_twice(
    tmp_path: Path, events: list[Event], autojump_clock: MockClock
) -> None:
    async def serve(talker: Talker) -> None:
        del talker

    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        assert await client.find_endpoint("a") is None
        assert script.clients == 2
        assert [type(event) for event in events] == [Warned]
        client.close()

    await with_script(tmp_path / "socket", serve, scenario)


# --- cancelled -----------------------------------------------------------------------------------


class Stage:
    """What one cancelled run plays with: a server that goes on, a client that is cancelled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[bool] = []
        self.events: list[Event] = []

    async def play(self) -> None:
        server = Server(ServerSettings(trusted=OURSELVES, limits=StoreLimits()))
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            listener.setblocking(False)  # noqa: FBT003  # it has no name
            client = make_client(self.path, self.events)
            serving = trio.CancelScope(shield=True)

            async def serve() -> None:
                with serving:
                    await server.serve(listener)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                try:
                    await self._use(client)
                finally:
                    client.close()
                    with trio.CancelScope(shield=True):
                        await settle()
                    assert len(server._clients) == 0
                    serving.cancel()
                    server.shut()

    async def _use(self, client: CacheClient) -> None:
        for _ in range(2):
            connection, peer = socket.socketpair()
            with peer:
                with connection:
                    await client.save_destination(2, "d", "", "e")
                    await client.save_endpoint(2, "e", "text", connection.fileno())
                found = await client.find_destination("d")
                if found is not None:
                    found.sock.close()
                self.results.append(found is not None)


def test_calls_may_be_cancelled_at_any_step_and_nothing_stays_open(tmp_path: Path) -> None:
    before, steps = open_descriptors(), 0
    for run in cancel_everywhere(partial(Stage, tmp_path / "socket"), Stage.play):
        steps = run.step
        assert open_descriptors() <= before, f"leaked when cancelled at step {run.step}"
        assert run.world.events == []
    assert run.world.results == [True, True]
    assert steps > 30


# --- whose connection is it? --------------------------------------------------------------------


async def take_and_vanish(talker: Talker) -> None:
    """Takes the connection and dies before it can say so."""
    await talker.say(ANNOUNCEMENT_WIRE)
    await talker.hear()
    await talker.say(DUMMY_WIRE)
    (await talker.take_descriptor()).close()


async def take_and_refuse(talker: Talker) -> None:
    """Takes the connection and gives it up again."""
    await talker.say(ANNOUNCEMENT_WIRE)
    await talker.hear()
    await talker.say(DUMMY_WIRE)
    (await talker.take_descriptor()).close()
    await talker.say(Reply(Status.FAILED).encode())
    await talker.hear()


async def refuse_at_once(talker: Talker) -> None:
    """Does not want the connection at all."""
    await talker.say(ANNOUNCEMENT_WIRE)
    await talker.hear()
    await talker.say(Reply(Status.MALFORMED).encode())
    await talker.hear()


@pytest.mark.parametrize(
    ("handler", "saving"),
    [
        (take_and_vanish, Saving.UNKNOWN),
        (take_and_refuse, Saving.REFUSED),
        (refuse_at_once, Saving.REFUSED),
        (say_nothing, Saving.REFUSED),
    ],
)
@trio_test
async def test_a_connection_that_was_passed_and_not_confirmed_may_be_somebody_else_s(
    tmp_path: Path,
    events: list[Event],
    autojump_clock: MockClock,
    handler: Handler,
    saving: Saving,
) -> None:
    async def scenario(script: Script) -> None:
        client = make_client(script.path, events)
        connection, peer = socket.socketpair()
        connection.setblocking(False)  # noqa: FBT003  # its parameter has no name
        with connection, peer:
            assert await client.save_endpoint(2, "a", "", connection.fileno()) is saving
            # Whoever may still say QUIT finds the socket as it was.
            assert os.get_blocking(connection.fileno()) is (saving is Saving.UNKNOWN)
        client.close()

    await with_script(tmp_path / "scache", handler, scenario)
