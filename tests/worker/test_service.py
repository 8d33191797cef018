"""The doors of a running queue, over real UNIX sockets.

The store works without threads and time is virtual, so nothing depends on how fast anything is.
"""

import errno
import os
import socket
import stat
import tracemalloc
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.attributes import encode
from protocol.request import ClientFacts, Recipient
from worker.queue import door_client, listening
from worker.queue.client import (
    DOOR_PATIENCE,
    LOCK_PATIENCE,
    DirectCommands,
    QueueCommands,
    SubmitClient,
    connect_submit,
    open_queue,
    submit,
)
from worker.queue.door_client import BUSY_GRACE, IDLE_GRACE
from worker.queue.frames import FrameReader, frame
from worker.queue.listening import DoorLimits, socket_address
from worker.queue.orders import Order, encode_order
from worker.queue.records import MessageState, Submission
from worker.queue.service import (
    CONTROL_SOCKET,
    LONG_ENVELOPES,
    PAGE,
    SUBMIT_SOCKET,
    serve_control,
    serve_submissions,
)
from worker.queue.sqlite import SqliteStore, StoreSettings, open_store
from worker.queue.store import StoreError, StoreLocked, SubmissionRefused
from worker.queue.submission import (
    ANSWER_LIMIT,
    RECIPIENT_LIMIT,
    Answer,
    Verdict,
    decode_answer,
    encode_envelope,
)
from worker.status.events import Event, MessageSubmitted, UnexpectedError, Warned

NOW = 1_800_000_000.0
SUBMISSION = Submission(
    sender="a@example.com",
    recipients=(Recipient(address="b@example.org"),),
    message_id="<1@example.com>",
)
SETTINGS = StoreSettings(message_size_limit=300_000)


async def blocks(*some: bytes) -> AsyncIterator[bytes]:
    for block in some:
        yield block


@dataclass
class Running:
    """A queue with both doors open."""

    directory: Path
    store: SqliteStore
    events: list[Event] = field(default_factory=list)
    wakes: int = 0

    def wake(self) -> None:
        self.wakes += 1

    async def connect(self, door: Path = SUBMIT_SOCKET) -> trio.SocketStream:
        connection = trio.socket.socket(socket.AF_UNIX)
        with socket_address(self.directory / door) as address:
            await connection.connect(address)
        return trio.SocketStream(connection)

    async def client(self) -> SubmitClient:
        return SubmitClient(await self.connect())

    async def queue_ids(self) -> list[str]:
        return [one.queue_id for one in await self.store.summaries()]


@asynccontextmanager
async def running(
    directory: Path, limits: DoorLimits | None = None, settings: StoreSettings = SETTINGS
) -> AsyncIterator[Running]:
    limits = limits or DoorLimits()
    async with (
        await open_store(directory, settings=settings, threads=False) as store,
        trio.open_nursery() as nursery,
    ):
        one = Running(directory, store)
        emit = one.events.append
        await nursery.start(
            serve_submissions,
            directory / SUBMIT_SOCKET,
            store,
            limits,
            emit,
            lambda: NOW,
            one.wake,
        )
        await nursery.start(
            serve_control,
            directory / CONTROL_SOCKET,
            store,
            limits,
            emit,
            lambda: NOW,
            one.wake,
            lambda: {"slots": 7},
        )
        yield one
        nursery.cancel_scope.cancel()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "queue"


# --- submitting -------------------------------------------------------------------------------


@trio_test
async def test_a_submission_is_queued_logged_and_wakes_the_scheduler(directory: Path) -> None:
    async with running(directory) as queue:
        queue_id = await submit(directory, SUBMISSION, blocks(b"one\n", b"tw", b"o\n"))
        assert queue.events == [
            MessageSubmitted(queue_id, os.getuid(), "a@example.com", "<1@example.com>")
        ]
        assert queue.wakes == 1
        [message] = await queue.store.claim(NOW, 1)
        assert message.queue_id == queue_id
        assert message.arrival == NOW
        assert await queue.store.content_head(message.id, 100) == b"one\r\ntwo\r\n"


@trio_test
async def test_a_held_submission_wakes_nobody(directory: Path) -> None:
    async with running(directory) as queue:
        await submit(directory, replace(SUBMISSION, held=True), blocks(b"x"))
        assert queue.wakes == 0


@trio_test
async def test_many_messages_follow_each_other_on_many_connections(directory: Path) -> None:
    queue_ids: list[str] = []

    async def submit_some(queue: Running) -> None:
        async with await queue.client() as client:
            for size in (0, 10, 100_000):
                queue_id = await client.submit(SUBMISSION, blocks(b"x" * size))
                queue_ids.append(queue_id)

    async with running(directory) as queue:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(submit_some, queue)
        assert sorted(await queue.queue_ids()) == sorted(queue_ids)
        assert len(queue_ids) == 60


@pytest.mark.parametrize(
    ("submission", "content", "complaint"),
    [
        (replace(SUBMISSION, recipients=()), b"", "no recipient"),
        (replace(SUBMISSION, sender="a\nb@example.com"), b"x" * 200_000, "control character"),
        (SUBMISSION, b"x" * 400_000, "message_size_limit"),
        (
            replace(SUBMISSION, recipients=SUBMISSION.recipients * (RECIPIENT_LIMIT + 1)),
            b"x" * 200_000,
            "too many recipients: 50001, and at most 50000",
        ),
    ],
)
@trio_test
async def test_after_a_refusal_the_next_submission_is_taken(
    directory: Path, submission: Submission, content: bytes, complaint: str
) -> None:
    async with running(directory) as queue, await queue.client() as client:
        with pytest.raises(SubmissionRefused, match=complaint):
            await client.submit(submission, blocks(content))
        queue_id = await client.submit(SUBMISSION, blocks(b"fine"))
        assert await queue.queue_ids() == [queue_id]


@trio_test
async def test_a_long_frame_is_not_kept_by_the_reader() -> None:
    sending, receiving = trio.testing.memory_stream_one_way_pair()
    size = 4_000_000
    async with sending, receiving, trio.open_nursery() as nursery:
        nursery.start_soon(sending.send_all, frame(b"x" * size) + frame(b"next"))
        reader = FrameReader(receiving)
        tracemalloc.start()
        try:
            assert await reader.next_frame(size) == b"x" * size  # and it is gone
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < size / 10
        assert await reader.next_frame(size) == b"next"


@trio_test
async def test_a_full_disk_is_a_temporary_failure(directory: Path) -> None:
    settings = StoreSettings(queue_minfree=2**62)
    async with running(directory, settings=settings) as queue, await queue.client() as client:
        with pytest.raises(StoreError, match="queue_minfree"):
            await client.submit(SUBMISSION, blocks(b"x"))


@trio_test
async def test_only_the_owner_may_name_the_client(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = replace(SUBMISSION, client=ClientFacts(name="client.example"))
    async with running(directory) as queue:
        await submit(directory, submission, blocks())
        monkeypatch.setattr(door_client, "peer_uid", lambda _: 12345)
        with pytest.raises(SubmissionRefused, match="only the queue's owner"):
            await submit(directory, submission, blocks())
        await submit(directory, SUBMISSION, blocks())
        assert [event.uid for event in queue.events if isinstance(event, MessageSubmitted)] == [
            os.getuid(),
            12345,
        ]


async def answer_to(stream: trio.SocketStream, octets: bytes) -> Answer:
    await stream.send_all(octets)
    data = await FrameReader(stream).next_frame(ANSWER_LIMIT)
    assert data is not None
    return decode_answer(data)


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (b"EHLO client.example\r\n", "a frame of 1162366031 octets"),
        (frame(b"") + frame(b""), "has no end"),
        (frame(b"\0"), "expected the attribute request"),
        (frame(encode([("request", "reboot")])), "expected the attribute sender"),
        (frame(encode_envelope(SUBMISSION)[:-1]), "has no end"),
        (frame(encode_envelope(SUBMISSION) + b"x"), "octets after"),
        (
            frame(encode_envelope(SUBMISSION).replace(b"held\x000", b"held\x00-1")),
            "bad number",
        ),
        (
            frame(encode_envelope(SUBMISSION).replace(b"recipient\0", b"notify\0001\0recipient\0")),
            "unexpected attribute 'notify'",
        ),
        (frame(encode_envelope(SUBMISSION)) + b"\x7f\xff\xff\xff", "a frame of 2147483647"),
    ],
)
@trio_test
async def test_nonsense_is_answered_and_ends_only_that_connection(
    directory: Path, octets: bytes, complaint: str
) -> None:
    async with running(directory) as queue, await queue.client() as other:
        async with await queue.connect() as stream:
            answer = await answer_to(stream, octets)
            assert answer.text.startswith("not understood: ")
            assert complaint in answer.text
            assert await stream.receive_some() == b""
        await other.submit(SUBMISSION, blocks(b"fine"))
        assert not [event for event in queue.events if isinstance(event, UnexpectedError)]


@pytest.mark.parametrize("size", [10, 100_000])
@trio_test
async def test_a_client_gone_in_mid_message_leaves_nothing(directory: Path, size: int) -> None:
    async with running(directory) as queue:
        async with await queue.connect() as stream:
            await stream.send_all(frame(encode_envelope(SUBMISSION)))
            for start in range(0, size, 50_000):
                await stream.send_all(frame(b"x" * min(size - start, 50_000)))
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert await queue.queue_ids() == []
        assert not any(path.is_file() for path in (directory / "content").rglob("*"))


@trio_test
async def test_s166_a_stalled_client_is_dropped_and_delays_nobody(
    autojump_clock: MockClock, directory: Path
) -> None:
    limits = DoorLimits(ipc_timeout=60.0)
    async with running(directory, limits) as queue, await queue.connect() as stalled:
        await stalled.send_all(frame(encode_envelope(SUBMISSION)) + b"\0\0")
        await submit(directory, SUBMISSION, blocks(b"fine"))
        assert trio.current_time() == 0.0
        assert await stalled.receive_some() == b""
        assert trio.current_time() == 60.0


@trio_test
async def test_clients_over_the_limit_wait_for_their_turn(directory: Path) -> None:
    done: list[str] = []

    async def submit_one() -> None:
        done.append(await submit(directory, SUBMISSION, blocks(b"x")))

    async with running(directory, DoorLimits(clients=2)) as queue:
        first, second = await queue.client(), await queue.client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit_one)
            await wait_all_tasks_blocked()
            assert done == []
            async with second:
                await second.submit(SUBMISSION, blocks(b"x"))
        assert len(done) == 1
        async with first:
            pass


@trio_test
async def test_long_envelopes_of_one_user_wait_for_their_turn(
    autojump_clock: MockClock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(SUBMISSION, recipients=SUBMISSION.recipients * 5000)
    envelope = frame(encode_envelope(long))
    async with running(directory) as queue, trio.open_nursery() as nursery:
        slow = [await queue.connect() for _ in range(LONG_ENVELOPES)]
        for stream in slow[1:]:
            await stream.send_all(envelope[:-1])  # taken in, and not more
        await slow[0].send_all(envelope)

        async def submit_long() -> None:
            await submit(directory, long, blocks(b"x"))
            done.append(trio.current_time())

        done: list[float] = []
        nursery.start_soon(submit_long)
        await submit(directory, SUBMISSION, blocks(b"x"))  # a short one has no need to
        await trio.sleep(100.0)
        assert done == []
        with monkeypatch.context() as patch:
            patch.setattr(door_client, "peer_uid", lambda _: 12345)
            await submit(directory, long, blocks(b"x"))  # nor has another user
        assert trio.current_time() == 100.0
        await trio.sleep(1.0)
        assert (await answer_to(slow[0], frame(b""))).verdict is Verdict.ACCEPTED
        await trio.sleep(1.0)
        assert done == [101.0]
        # Whoever goes in the middle of one gives its turn back.
        for stream in slow:
            await stream.aclose()
        for _ in range(LONG_ENVELOPES + 1):
            await submit(directory, long, blocks(b"x"))


async def wait_for_end(stream: trio.SocketStream) -> float:
    """When the other side closed it."""
    async with stream:
        assert await stream.receive_some() == b""
        return trio.current_time()


@trio_test
async def test_who_has_been_idle_longest_makes_room_for_one_who_waits(
    autojump_clock: MockClock, directory: Path
) -> None:
    async with running(directory, DoorLimits(clients=2)) as queue:
        first, second = await queue.connect(), await queue.connect()
        await trio.sleep(100.0)  # nobody waits, and nobody has to go
        answer = await answer_to(first, frame(encode_envelope(SUBMISSION)) + frame(b""))
        assert answer.verdict is Verdict.ACCEPTED
        await submit(directory, SUBMISSION, blocks(b"x"))
        assert await wait_for_end(second) == 100.0
        async with await queue.connect():
            await submit(directory, SUBMISSION, blocks(b"x"))
            assert await wait_for_end(first) == 100.0 + IDLE_GRACE


@trio_test
async def test_who_takes_a_place_for_a_minute_makes_room_however_busy(
    autojump_clock: MockClock, directory: Path
) -> None:
    async with running(directory, DoorLimits(clients=1)) as queue:
        async with await queue.connect() as trickling, trio.open_nursery() as nursery:
            await trickling.send_all(frame(encode_envelope(SUBMISSION)))
            nursery.start_soon(submit, directory, SUBMISSION, blocks(b"x"))
            with suppress(trio.BrokenResourceError):
                while trio.current_time() < 2 * BUSY_GRACE:
                    await trickling.send_all(frame(b"x"))
                    await trio.sleep(0.5)
            await trickling.aclose()
        assert BUSY_GRACE <= trio.current_time() <= BUSY_GRACE + 1.0
        assert len(await queue.queue_ids()) == 1


@trio_test
async def test_a_minute_of_one_request_does_not_begin_before_the_request(
    autojump_clock: MockClock, directory: Path
) -> None:
    async with (
        running(directory, DoorLimits(clients=1)) as queue,
        trio.open_nursery() as nursery,
        await queue.connect() as client,
    ):
        await trio.sleep(BUSY_GRACE + 10.0)  # idle, while nobody waits
        await client.send_all(frame(encode_envelope(SUBMISSION)) + frame(b"x"))
        await wait_all_tasks_blocked()
        nursery.start_soon(submit, directory, SUBMISSION, blocks(b"x"))
        await trio.sleep(BUSY_GRACE - 10.0)
        assert (await answer_to(client, frame(b""))).verdict is Verdict.ACCEPTED


async def keep_asking(queue: Running, times: list[float]) -> None:
    """Have request after request answered, without ever being idle for long."""
    async with await queue.client() as client:
        with suppress(StoreError):
            while True:
                with pytest.raises(SubmissionRefused):
                    await client.submit(replace(SUBMISSION, recipients=()), blocks())
                await trio.sleep(IDLE_GRACE / 4)
    times.append(trio.current_time())


@trio_test
async def test_who_asks_again_and_again_makes_room_after_an_answer(
    autojump_clock: MockClock, directory: Path
) -> None:
    ended: list[float] = []
    async with running(directory, DoorLimits(clients=3)) as queue, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(keep_asking, queue, ended)
        await trio.sleep(10.1)
        began = trio.current_time()
        with trio.fail_after(BUSY_GRACE):
            await submit(directory, SUBMISSION, blocks(b"x"))
        assert IDLE_GRACE <= trio.current_time() - began <= IDLE_GRACE * 1.5
        await trio.sleep(10.0)
        assert len(ended) == 1  # and no more than that
        nursery.cancel_scope.cancel()


@trio_test
async def test_who_was_to_make_room_stays_when_another_did(
    autojump_clock: MockClock, directory: Path
) -> None:
    async with (
        running(directory, DoorLimits(clients=2)) as queue,
        await queue.connect() as chosen,
        trio.open_nursery() as nursery,
    ):
        async with await queue.connect() as other:
            for stream in (chosen, other):
                await stream.send_all(frame(encode_envelope(SUBMISSION)))
            await wait_all_tasks_blocked()
            nursery.start_soon(submit, directory, SUBMISSION, blocks(b"x"))
            await trio.sleep(IDLE_GRACE * 2)
        await wait_all_tasks_blocked()
        for octets in (frame(b""), frame(encode_envelope(SUBMISSION)) + frame(b"")):
            assert (await answer_to(chosen, octets)).verdict is Verdict.ACCEPTED
            await wait_all_tasks_blocked()


@trio_test
async def test_the_user_with_most_places_makes_room(
    autojump_clock: MockClock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: dict[int, list[float]] = {1: [], 2: []}
    async with running(directory, DoorLimits(clients=3)) as queue, trio.open_nursery() as nursery:
        for uid in (1, 2, 2):
            monkeypatch.setattr(door_client, "peer_uid", lambda _, uid=uid: uid)
            nursery.start_soon(keep_asking, queue, ended[uid])
            await wait_all_tasks_blocked()
        with trio.fail_after(BUSY_GRACE):
            await submit(directory, SUBMISSION, blocks(b"x"))
        await trio.sleep(10.0)
        assert [len(times) for times in ended.values()] == [0, 1]
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_message_under_way_is_answered_before_its_client_makes_room(
    autojump_clock: MockClock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = SqliteStore.submit

    async def slow(store: SqliteStore, *args: Any) -> str:
        queue_id = await submitted(store, *args)
        with trio.CancelScope(shield=True):  # as a commit: not to be stopped by anybody
            await trio.sleep(2 * BUSY_GRACE)
        return queue_id

    async with running(directory, DoorLimits(clients=1)) as queue, await queue.client() as client:
        monkeypatch.setattr(SqliteStore, "submit", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, directory, SUBMISSION, blocks(b"x"))
            await client.submit(SUBMISSION, blocks(b"x"))
        assert len(await queue.queue_ids()) == 2


@trio_test
async def test_no_more_clients_go_than_wait(autojump_clock: MockClock, directory: Path) -> None:
    async with running(directory, DoorLimits(clients=3)) as queue:
        idle = [await queue.connect() for _ in range(3)]
        await trio.sleep(10.0)
        await submit(directory, SUBMISSION, blocks(b"x"))
        assert await wait_for_end(idle[0]) == 10.0
        for stream in idle[1:]:
            async with stream:
                answer = await answer_to(stream, frame(encode_envelope(SUBMISSION)) + frame(b""))
                assert answer.verdict is Verdict.ACCEPTED


@trio_test
async def test_a_bug_met_by_one_client_is_told_and_contained(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_store: SqliteStore) -> None:
        raise RuntimeError("a bug of ours")

    async with running(directory) as queue, await queue.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "spool", broken)
            with pytest.raises(StoreError, match="lost connection with the queue process"):
                await client.submit(SUBMISSION, blocks(b"x"))
        [event] = queue.events
        assert isinstance(event, UnexpectedError)
        assert "a bug of ours" in event.traceback
        await submit(directory, SUBMISSION, blocks(b"x"))


@trio_test
async def test_nobody_is_turned_away_however_many_come_at_once(
    autojump_clock: MockClock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_BACKLOG", 1)
    queue_ids: list[str] = []

    async def submit_one() -> None:
        queue_ids.append(await submit(directory, SUBMISSION, blocks(b"x")))

    async with running(directory, DoorLimits(clients=1)) as queue:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(submit_one)
        assert sorted(await queue.queue_ids()) == sorted(queue_ids)
        assert len(queue_ids) == 20


@trio_test
async def test_a_door_that_nobody_opens_is_given_up(
    autojump_clock: MockClock, directory: Path
) -> None:
    door = directory / SUBMIT_SOCKET
    door.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stopped, closing(socket.socket(socket.AF_UNIX)) as first:
        stopped.bind(str(door))
        stopped.listen(0)
        first.connect(str(door))
        with pytest.raises(StoreError, match="too many others wait"):
            await submit(directory, SUBMISSION, blocks(b"x"))
    assert trio.current_time() >= DOOR_PATIENCE


@trio_test
async def test_a_slow_message_takes_no_place_before_it_is_there(
    autojump_clock: MockClock, directory: Path
) -> None:
    async def slow_blocks() -> AsyncIterator[bytes]:
        yield b"x"
        await trio.sleep(10.0)
        yield b"y"

    async with running(directory, DoorLimits(clients=1)), trio.open_nursery() as nursery:
        nursery.start_soon(submit, directory, SUBMISSION, slow_blocks())
        await wait_all_tasks_blocked()
        await submit(directory, SUBMISSION, blocks(b"x"))
        assert trio.current_time() == 0.0


# --- with and without a queue process ---------------------------------------------------------


@trio_test
async def test_without_a_queue_process_the_message_is_queued_directly(directory: Path) -> None:
    assert await connect_submit(directory) is None
    queue_id = await submit(directory, SUBMISSION, blocks(b"x"), wall=lambda: NOW)
    async with await open_store(directory) as store:
        [message] = await store.claim(NOW, 1)
    assert message.queue_id == queue_id


@trio_test
async def test_a_locked_queue_without_doors_is_waited_for(
    autojump_clock: MockClock, directory: Path
) -> None:
    async with await open_store(directory, threads=False):
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            await submit(directory, SUBMISSION, blocks(b"x"))
    assert trio.current_time() >= LOCK_PATIENCE


CommandsOf = Callable[[Running], AbstractAsyncContextManager[QueueCommands]]


@pytest.fixture(params=["asked", "direct"])
def commands_of(request: pytest.FixtureRequest) -> CommandsOf:
    """The same commands, over the socket and on the store itself."""

    @asynccontextmanager
    async def commands(queue: Running) -> AsyncIterator[QueueCommands]:
        if request.param == "direct":
            yield DirectCommands(queue.store, lambda: NOW)
        else:
            async with open_queue(queue.directory) as asked:
                yield asked

    return commands


async def put(queue: Running, count: int = 1) -> list[str]:
    async with await queue.client() as client:
        return [await client.submit(SUBMISSION, blocks(b"%d\n" % n)) for n in range(count)]


@trio_test
async def test_messages_are_listed_in_pages(directory: Path, commands_of: CommandsOf) -> None:
    count = 2 * PAGE + 5
    async with running(directory) as queue, commands_of(queue) as commands:
        queue_ids = await put(queue, count)
        assert await commands.summaries() == await queue.store.summaries()
        some = await commands.summaries(after=queue_ids[9], limit=PAGE + 1)
        assert [one.queue_id for one in some] == queue_ids[10 : 10 + PAGE + 1]
        assert await commands.summaries(queue_ids[:1]) == await queue.store.summaries(queue_ids[:1])
        assert await commands.summaries([]) == []


@trio_test
async def test_orders_change_what_they_name(directory: Path, commands_of: CommandsOf) -> None:
    async with running(directory) as queue, commands_of(queue) as commands:
        one, two, three = await put(queue, 3)
        assert await commands.hold([one, "unknown"]) == [one]
        assert await commands.hold(None) == [two, three]
        assert await commands.release([two]) == [two]
        assert await commands.requeue([one, two]) == [one, two]
        assert await commands.delete([one]) == [one]
        assert await commands.delete([]) == []
        states = [message.state for message in await queue.store.summaries()]
        assert states == [MessageState.INCOMING, MessageState.HOLD]


@trio_test
async def test_an_order_may_take_longer_than_a_client(
    autojump_clock: MockClock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = SqliteStore.hold

    async def slow(store: SqliteStore, queue_ids: Collection[str] | None) -> list[str]:
        await trio.sleep(1000.0)
        return await held(store, queue_ids)

    async with (
        running(directory, DoorLimits(ipc_timeout=60.0)) as queue,
        open_queue(directory) as commands,
    ):
        queue_ids = await put(queue)
        monkeypatch.setattr(SqliteStore, "hold", slow)
        assert await commands.hold(None) == queue_ids
        assert await commands.hold(None) == []
        # And the limit holds for the client again.
        async with await queue.connect(CONTROL_SOCKET) as stalled:
            began = trio.current_time()
            assert await stalled.receive_some() == b""
            assert trio.current_time() - began == 60.0


@trio_test
async def test_flushing_may_be_narrowed_down(directory: Path, commands_of: CommandsOf) -> None:
    async with running(directory) as queue, commands_of(queue) as commands:
        queue_ids = await put(queue, 2)
        await queue.store.hold(None)
        await queue.store.release(None, NOW + 1000.0)
        assert await commands.flush(None, domain="example.net") == []
        assert await commands.flush(queue_ids[:1], domain="example.org") == queue_ids[:1]
        assert await commands.flush(None) == queue_ids[1:]
        assert await queue.store.next_due() == NOW


@trio_test
async def test_a_reader_of_a_content_who_has_gone_is_no_trouble_of_the_content(
    directory: Path, commands_of: CommandsOf
) -> None:
    def write(_: bytes) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    async with running(directory) as queue, commands_of(queue) as commands:
        queue_id = await submit(directory, SUBMISSION, blocks(b"Subject: x\r\n\r\n"))
        with pytest.raises(BrokenPipeError):
            await commands.write_content(queue_id, write)


@trio_test
async def test_a_content_can_be_shown(directory: Path, commands_of: CommandsOf) -> None:
    shown: list[bytes] = []
    content = b"0123456\r\n" * 30_000
    async with running(directory) as queue, commands_of(queue) as commands:
        queue_id = await submit(directory, SUBMISSION, blocks(content))
        assert await commands.write_content(queue_id, shown.append)
        assert b"".join(shown) == content
        assert max(map(len, shown)) < len(content)
        assert not await commands.write_content("unknown", shown.append)
        assert await commands.delete([queue_id]) == [queue_id]  # still in step


@trio_test
async def test_the_status_tells_how_many_are_where(
    directory: Path, commands_of: CommandsOf
) -> None:
    async with running(directory) as queue, commands_of(queue) as commands:
        await put(queue, 3)
        await queue.store.claim(NOW, 1)
        status = await commands.status()
        counts = {"incoming": 2, "active": 1, "deferred": 0, "hold": 0}
        assert counts.items() <= status.items()
        if not isinstance(commands, DirectCommands):
            assert (status["slots"], status["pid"]) == (7, os.getpid())


@trio_test
async def test_orders_that_make_messages_due_wake_the_scheduler(directory: Path) -> None:
    async with running(directory) as queue, open_queue(directory) as commands:
        await commands.hold(None)
        await commands.delete(None)
        assert queue.wakes == 0
        for order in (commands.release, commands.requeue, commands.flush):
            before = queue.wakes
            await order(None)
            assert queue.wakes > before


@pytest.mark.parametrize("order", ["release", "requeue", "make_due"])
@trio_test
async def test_the_scheduler_knows_of_a_flush_before_the_first_of_many_is_due(
    directory: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(directory) as queue, open_queue(directory) as commands:
        told: list[tuple[int, float]] = []

        async def fail(_queue_ids: object, now: float, **_: object) -> list[str]:
            told.append((queue.wakes, now))
            raise StoreError("no space left after the first thousand")

        monkeypatch.setattr(queue.store, order, fail)
        with pytest.raises(StoreError, match="no space left"):
            await getattr(commands, order if order != "make_due" else "flush")(None)
        assert told == [(1, NOW)]
        assert queue.wakes == 2


@trio_test
async def test_commands_work_without_a_queue_process(directory: Path) -> None:
    queue_id = await submit(directory, SUBMISSION, blocks(b"x"))
    async with open_queue(directory) as commands:
        assert await commands.hold(None) == [queue_id]


@trio_test
async def test_an_unknown_order_is_an_error_and_a_broken_one_the_end(directory: Path) -> None:
    async with running(directory) as queue, await queue.connect(CONTROL_SOCKET) as stream:
        frames = FrameReader(stream)
        await stream.send_all(frame(encode_order(Order(request="explode"))))
        assert b"does not know the order 'explode'" in (await frames.next_frame(1000) or b"")
        await stream.send_all(frame(encode([("request", "hold"), ("all", 2)])))
        assert b"not understood" in (await frames.next_frame(1000) or b"")
        assert await stream.receive_some() == b""


@trio_test
async def test_strangers_are_turned_away_from_the_control_socket(
    autojump_clock: MockClock, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(directory) as queue:
        monkeypatch.setattr(door_client, "peer_uid", lambda _: 12345)
        async with await queue.connect(CONTROL_SOCKET) as stream:
            assert await stream.receive_some() == b""
        assert trio.current_time() == 0.0  # at once, not when it has been silent for too long
        assert queue.events == [Warned("uid 12345 was turned away from the control socket")]


# --- the sockets themselves -------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o077])
@trio_test
async def test_one_door_is_open_to_all_and_the_other_is_not(directory: Path, mask: int) -> None:
    with umask(mask):
        async with running(directory):
            doors = [directory / SUBMIT_SOCKET, directory / CONTROL_SOCKET]
            assert [mode(door.parent) for door in doors] == [0o755, 0o700]
            assert [mode(door) for door in doors] == [0o666, 0o600]
    assert list(doors[0].parent.iterdir()) == list(doors[1].parent.iterdir()) == []


@trio_test
async def test_a_socket_left_by_a_killed_process_is_replaced(directory: Path) -> None:
    (directory / SUBMIT_SOCKET).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left, socket_address(directory / SUBMIT_SOCKET) as name:
        left.bind(name)
    assert await connect_submit(directory) is None
    async with running(directory):
        await submit(directory, SUBMISSION, blocks(b"x"))


@pytest.mark.parametrize("danger", ["writable", "link"])
@trio_test
async def test_a_directory_that_others_control_is_refused(directory: Path, danger: str) -> None:
    public = (directory / SUBMIT_SOCKET).parent
    public.mkdir(parents=True)
    if danger == "writable":
        public.chmod(0o777)
    else:
        public.rename(directory / "elsewhere")
        public.symlink_to(directory / "elsewhere")
    with pytest.RaisesGroup(pytest.RaisesExc(PermissionError, match="others can write")):
        async with running(directory):
            pass


@trio_test
async def test_what_is_no_socket_is_not_replaced(directory: Path) -> None:
    path = directory / SUBMIT_SOCKET
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.RaisesGroup(pytest.RaisesExc(FileExistsError, match="not a socket")):
        async with running(directory):
            pass
    assert path.read_text() == "precious"


@trio_test
async def test_a_queue_may_lie_deeper_than_a_socket_address_reaches(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100) / ("y" * 100)
    async with running(directory):
        await submit(directory, SUBMISSION, blocks(b"x"))
        async with open_queue(directory) as commands:
            assert len(await commands.summaries()) == 1
