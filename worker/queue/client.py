"""The other side of the doors: submitting, and giving orders, whether a queue process runs or not.

If one runs, it owns the queue and is asked over its sockets. If none does, the queue is opened here
and now, under its lock, and the same is done directly. Callers see no difference.
"""

import errno
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from pathlib import Path
from time import time
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from protocol.errors import RemoteProtocolError
from worker.network.socket_stream import QuickStream
from worker.queue.frames import FrameReader, frame
from worker.queue.listening import socket_address
from worker.queue.orders import (
    ANSWER_LIMIT as ORDER_ANSWER_LIMIT,
)
from worker.queue.orders import (
    Answer,
    Order,
    encode_order,
    summary_from_json,
)
from worker.queue.orders import (
    decode_answer as decode_order_answer,
)
from worker.queue.records import MessageSummary, Submission
from worker.queue.service import CONTROL_SOCKET, SUBMIT_SOCKET
from worker.queue.sqlite import SqliteStore, StoreSettings, open_store
from worker.queue.store import Store, StoreError, StoreLocked, SubmissionRefused
from worker.queue.submission import (
    ANSWER_LIMIT,
    CONTENT_FRAME,
    Verdict,
    decode_answer,
    encode_envelope,
)

# Another command may have the queue open for a moment, and a queue process opens it before it
# listens; so a lock is waited for, a little.
LOCK_PATIENCE: Final = 10.0  # seconds
LOCK_PAUSE: Final = 0.05  # seconds between attempts
DOOR_PATIENCE: Final = 300.0  # seconds: whoever has a place at a door leaves it within a minute
_DOOR_PAUSE: Final = 0.05

Facts = Mapping[str, str | int | float]


class QueueCommands(Protocol):
    """What operators do. All methods raise StoreError. `queue_ids` of None means all messages."""

    async def summaries(
        self, queue_ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[MessageSummary]:
        """A page of messages, in order of acceptance: those after `after`."""

    async def write_content(self, queue_id: str, write: Callable[[bytes], object]) -> bool:
        """Pass the content to `write` in blocks; False: there is no such message."""

    async def hold(self, queue_ids: Collection[str] | None) -> list[str]:
        """Put on hold; the ids that changed."""

    async def release(self, queue_ids: Collection[str] | None) -> list[str]:
        """Take off hold; the ids that changed."""

    async def requeue(self, queue_ids: Collection[str] | None) -> list[str]:
        """Start over; the ids that changed."""

    async def delete(self, queue_ids: Collection[str] | None) -> list[str]:
        """Remove without notice; the ids removed."""

    async def flush(self, queue_ids: Collection[str] | None, *, domain: str = "") -> list[str]:
        """Deliver now what waits: these, or those to recipients of `domain`; the ids changed."""

    async def status(self) -> Facts:
        """Messages by state; of a running queue process also its pid and what else it tells."""


async def submit(
    queue_directory: Path,
    submission: Submission,
    blocks: AsyncIterable[bytes],
    *,
    settings: StoreSettings | None = None,
    wall: Callable[[], float] = time,
) -> str:
    """Queue one message; durable when this returns its queue id.

    `blocks`: the content, cut anywhere. `settings` and `wall` matter only if no queue process runs.
    Raises SubmissionRefused, StoreError.
    """
    # Read before we have a place at the door, or the queue's lock: others wait for both, and what
    # comes from a pipe may take its time.
    rest = aiter(blocks)
    beginning = await _read(rest, CONTENT_FRAME)
    found = await _connect_or_open(queue_directory, SUBMIT_SOCKET, settings, wall)
    if isinstance(found, SqliteStore):
        async with found:
            return await _submit_directly(found, submission, _joined(beginning, rest), wall)
    async with SubmitClient(found) as client:
        return await client.submit(submission, _joined(beginning, rest))


async def _read(blocks: AsyncIterator[bytes], octets: int) -> list[bytes]:
    """The first of these blocks, so many octets or all there are."""
    some: list[bytes] = []
    async for block in blocks:
        some.append(block)
        octets -= len(block)
        if octets <= 0:
            break
    return some


async def _joined(beginning: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for block in beginning:
        yield block
    beginning.clear()
    async for block in rest:
        yield block


async def _submit_directly(
    store: Store,
    submission: Submission,
    blocks: AsyncIterable[bytes],
    wall: Callable[[], float],
) -> str:
    spool = store.spool()
    try:
        async for block in blocks:
            await spool.write(block)
        return await store.submit(submission, spool, wall())
    finally:
        await spool.aclose()


class SubmitClient:
    """A connection to the submission door. Owns the stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        """See connect_submit()."""
        self._stream = stream
        self._frames = FrameReader(stream)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await trio.aclose_forcefully(self._stream)

    async def submit(self, submission: Submission, blocks: AsyncIterable[bytes]) -> str:
        """As the function submit(). May be called again and again, one after another.

        After a StoreError the connection may be of no more use.
        """
        # One write for a small message: envelope, content and end leave together.
        waiting = bytearray(frame(encode_envelope(submission)))
        try:
            async for block in blocks:
                for start in range(0, len(block), CONTENT_FRAME):
                    waiting += frame(block[start : start + CONTENT_FRAME])
                    if len(waiting) >= CONTENT_FRAME:
                        await self._stream.send_all(waiting)
                        waiting.clear()
            await self._stream.send_all(waiting + frame(b""))
            answer = decode_answer(await self._frames.expect_frame(ANSWER_LIMIT))
        except (trio.BrokenResourceError, RemoteProtocolError) as exc:
            raise StoreError(f"lost connection with the queue process: {exc}") from exc
        match answer.verdict:
            case Verdict.ACCEPTED:
                return answer.text
            case Verdict.REFUSED:
                raise SubmissionRefused(answer.text)
            case Verdict.TEMPORARY:
                raise StoreError(answer.text)


async def connect_submit(queue_directory: Path) -> SubmitClient | None:
    """A connection to the running queue process; None: none is running. Raises StoreError."""
    stream = await _connect(queue_directory / SUBMIT_SOCKET)
    return None if stream is None else SubmitClient(stream)


@asynccontextmanager
async def open_queue(
    queue_directory: Path,
    *,
    settings: StoreSettings | None = None,
    wall: Callable[[], float] = time,
) -> AsyncIterator[QueueCommands]:
    """The commands of this queue, by way of the queue process if one runs. Raises StoreError."""
    found = await _connect_or_open(queue_directory, CONTROL_SOCKET, settings, wall)
    async with found:
        if isinstance(found, SqliteStore):
            yield DirectCommands(found, wall)
        else:
            yield SocketCommands(found)


class DirectCommands:
    """QueueCommands on a store of our own."""

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        """The caller closes the store."""
        self._store = store
        self._wall = wall

    async def summaries(
        self, queue_ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[MessageSummary]:
        """See QueueCommands."""
        return await self._store.summaries(queue_ids, after=after, limit=limit)

    async def write_content(self, queue_id: str, write: Callable[[bytes], object]) -> bool:
        """See QueueCommands."""
        content = await self._store.read_content(queue_id)
        if content is None:
            return False
        with closing(content):
            async with aclosing(content.blocks()) as blocks:
                while True:
                    try:  # what write() raises is not the content's trouble
                        block = await anext(blocks)
                    except StopAsyncIteration:
                        return True
                    except OSError as exc:
                        text = f"cannot read the content of {queue_id}: {exc.strerror}"
                        raise StoreError(text) from exc
                    write(block)

    async def hold(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._store.hold(queue_ids)

    async def release(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._store.release(queue_ids, self._wall())

    async def requeue(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._store.requeue(queue_ids, self._wall())

    async def delete(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._store.delete(queue_ids)

    async def flush(self, queue_ids: Collection[str] | None, *, domain: str = "") -> list[str]:
        """See QueueCommands."""
        return await self._store.make_due(queue_ids, self._wall(), domain=domain or None)

    async def status(self) -> Facts:
        """See QueueCommands."""
        counts = await self._store.counts()
        return {state.value: count for state, count in counts.items()}


class SocketCommands:
    """QueueCommands over the control socket of a running queue process."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        """The caller closes the stream."""
        self._stream = stream
        self._frames = FrameReader(stream)

    async def summaries(
        self, queue_ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[MessageSummary]:
        """See QueueCommands."""
        order = Order(request="list", queue_ids=_ids(queue_ids), after=after, limit=limit)
        found: list[MessageSummary] = []
        for answer in await self._ask(order):
            match answer:
                case {"message": dict(message)}:
                    found.append(summary_from_json(message))
        return found

    async def write_content(self, queue_id: str, write: Callable[[bytes], object]) -> bool:
        """See QueueCommands."""
        with _lost_connections():
            order = Order(request="content", queue_ids=frozenset([queue_id]))
            await self._stream.send_all(frame(encode_order(order)))
            answer = await self._next_answer()
            found = answer.get("content") is True
            while found and (block := await self._next_frame()):
                write(block)
            while answer.get("end") is not True:
                answer = await self._next_answer()
        return found

    async def hold(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._change("hold", queue_ids)

    async def release(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._change("release", queue_ids)

    async def requeue(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._change("requeue", queue_ids)

    async def delete(self, queue_ids: Collection[str] | None) -> list[str]:
        """See QueueCommands."""
        return await self._change("delete", queue_ids)

    async def flush(self, queue_ids: Collection[str] | None, *, domain: str = "") -> list[str]:
        """See QueueCommands."""
        return await self._change("flush", queue_ids, domain)

    async def status(self) -> Facts:
        """See QueueCommands."""
        told: dict[str, str | int | float] = {}
        for answer in await self._ask(Order(request="status")):
            match answer:
                case {"status": dict(facts)}:
                    told |= {
                        name: fact
                        for name, fact in facts.items()
                        if isinstance(fact, str | int | float)
                    }
        return told

    async def _change(
        self, request: str, queue_ids: Collection[str] | None, domain: str = ""
    ) -> list[str]:
        order = Order(request=request, queue_ids=_ids(queue_ids), domain=domain)
        changed: list[str] = []
        for answer in await self._ask(order):
            match answer:
                case {"queue_ids": list(some)}:
                    changed += map(str, some)
        return changed

    async def _ask(self, order: Order) -> list[Answer]:
        """All answers to one order but the last, which says that it was the last."""
        answers: list[Answer] = []
        with _lost_connections():
            await self._stream.send_all(frame(encode_order(order)))
            while (answer := await self._next_answer()).get("end") is not True:
                answers.append(answer)
        return answers

    async def _next_answer(self) -> Answer:
        answer = decode_order_answer(await self._next_frame())
        if "error" in answer:
            raise StoreError(str(answer["error"]))
        return answer

    async def _next_frame(self) -> bytes:
        return await self._frames.expect_frame(ORDER_ANSWER_LIMIT)


@contextmanager
def _lost_connections() -> Iterator[None]:
    """Makes StoreError of what says that the queue process is gone."""
    try:
        yield
    except (trio.BrokenResourceError, RemoteProtocolError) as exc:
        raise StoreError(f"lost connection with the queue process: {exc}") from exc


def _ids(queue_ids: Collection[str] | None) -> frozenset[str] | None:
    return None if queue_ids is None else frozenset(queue_ids)


async def is_served(queue_directory: Path) -> bool:
    """A queue process is at its control door. Raises StoreError."""
    stream = await _connect(queue_directory / CONTROL_SOCKET)
    if stream is not None:
        await stream.aclose()
    return stream is not None


async def _connect_or_open(
    queue_directory: Path,
    door: Path,
    settings: StoreSettings | None,
    wall: Callable[[], float],
) -> SqliteStore | QuickStream:
    """The queue process's door, or else the queue itself; the caller closes what it gets."""
    patience = trio.current_time() + LOCK_PATIENCE
    while True:
        stream = await _connect(queue_directory / door)
        if stream is not None:
            return stream
        try:
            return await open_store(queue_directory, settings=settings, wall=wall)
        except StoreLocked:
            if trio.current_time() >= patience:
                raise
        await trio.sleep(LOCK_PAUSE)


async def _connect(path: Path) -> QuickStream | None:
    """The door at `path`; None: nobody is there. Raises StoreError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        stream = QuickStream(connection)
        with socket_address(path) as address:
            await _stand_in_line(connection, address)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        return None
    except OSError as exc:
        connection.close()
        raise StoreError(f"cannot reach the queue process at {path}: {exc.strerror}") from exc
    except BaseException:
        connection.close()
        raise
    return stream


async def _stand_in_line(connection: socket.socket, address: str) -> None:
    """Connect, however many come at once. Raises OSError."""
    await trio.lowlevel.checkpoint()
    patience = trio.current_time() + DOOR_PATIENCE
    while not _connected(connection, address):
        if trio.current_time() >= patience:
            raise OSError(errno.EAGAIN, "too many others wait there, try again later")
        await trio.sleep(_DOOR_PAUSE)


def _connected(connection: socket.socket, address: str) -> bool:
    """Connect; False: as many wait there as the kernel lets. Raises OSError.

    Not trio's connect(), which takes that for a connection under way, and the socket for connected.
    """
    try:
        connection.connect(address)
    except BlockingIOError:
        return False
    return True
