"""The doors of a running queue: where messages come in and where operators give orders.

`public/submit` is for everybody on this host, as the sendmail command is; who it was goes to the
log. `private/control` is for the queue's owner and root; anybody else is turned away before a word
is read. The client's side of both is in client.py, the submission's format in submission.py.

Every exchange has a time limit and every frame a size limit, clients are counted, and so are the
long envelopes of each user; whatever goes wrong with one of them ends that one only.
"""

import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from protocol.errors import RemoteProtocolError
from protocol.request import NOTHING_KNOWN
from worker.queue.door_client import DoorClient
from worker.queue.frames import FrameReader, frame
from worker.queue.listening import DoorLimits, accept_clients, is_trusted, listening
from worker.queue.orders import (
    ORDER_LIMIT,
    Order,
    decode_order,
    summary_to_json,
)
from worker.queue.orders import (
    encode_answer as encode_control_answer,
)
from worker.queue.records import Submission
from worker.queue.store import Store, StoreError, SubmissionRefused
from worker.queue.submission import (
    CONTENT_FRAME,
    ENVELOPE_LIMIT,
    Answer,
    Verdict,
    decode_envelope,
    encode_answer,
)
from worker.status.events import Emit, MessageSubmitted, Warned

SUBMIT_SOCKET: Final = Path("public/submit")  # below the queue directory
CONTROL_SOCKET: Final = Path("private/control")
PAGE: Final = 100  # messages read from the store at a time
IDS_PER_FRAME: Final = 1000

# Envelopes of more than frames.LONG octets that one user may submit at a time; more wait for their
# turn. One takes tens of megabytes while it is taken apart, and 200 clients might each send one.
LONG_ENVELOPES: Final = 4

_LINGER: Final = 1.0  # seconds in which a client takes its answer

Wake = Callable[[], None]  # tells the scheduler that something may be due; must not block
Status = Callable[[], Mapping[str, str | int | float]]


def _ignore() -> None:
    """Nobody needs to be woken."""


def _no_status() -> Mapping[str, str | int | float]:
    return {}


# --- the submission door ------------------------------------------------------------------------


async def serve_submissions(
    path: Path,
    store: Store,
    limits: DoorLimits,
    emit: Emit,
    wall: Callable[[], float],
    on_submitted: Wake = _ignore,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept submissions at the socket `path` until cancelled; started when it is listening.

    The directory of the socket is made if it is missing (0755), a socket left there by a process
    that is gone is replaced: the caller holds the queue. `wall` gives times of arrival.
    Raises OSError if the socket cannot be made.
    """

    # By uid. Nobody waits for another user.
    turns: defaultdict[int, trio.CapacityLimiter] = defaultdict(
        lambda: trio.CapacityLimiter(LONG_ENVELOPES)
    )

    async def serve(client: DoorClient) -> None:
        turn = turns[client.uid]
        await _SubmissionDoor(client, turn, store, emit, wall, on_submitted).serve()

    with listening(path, directory_mode=0o755, socket_mode=0o666) as listener:
        task_status.started()
        await accept_clients(listener, limits, emit, serve)


class _SubmissionDoor:
    """One client that submits."""

    def __init__(
        self,
        client: DoorClient,
        turn: trio.CapacityLimiter,
        store: Store,
        emit: Emit,
        wall: Callable[[], float],
        on_submitted: Wake,
    ) -> None:
        self._client = client
        self._turn = turn
        self._has_turn = False
        self._frames = FrameReader(client)
        self._store = store
        self._emit = emit
        self._wall = wall
        self._on_submitted = on_submitted

    async def serve(self) -> None:
        try:
            while await self._serve_one():
                self._end_turn()
                self._client.ends()
        except RemoteProtocolError as exc:
            # Where the next frame would begin is not known any more.
            await self._answer(Answer(Verdict.REFUSED, f"not understood: {exc}"))
        finally:
            self._end_turn()

    async def _wait_for_turn(self) -> None:
        self._client.begins()
        await self._turn.acquire_on_behalf_of(self)
        self._has_turn = True

    def _end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turn.release_on_behalf_of(self)

    async def _serve_one(self) -> bool:
        """Take in one message and answer; False: the client has gone instead."""
        envelope = await self._frames.next_frame(ENVELOPE_LIMIT, self._wait_for_turn)
        if envelope is None:
            return False
        self._client.begins()
        try:
            submission = decode_envelope(envelope)
        except SubmissionRefused as exc:
            await self._skip_content()
            answer = _failure(exc)
        else:
            del envelope  # it may be large, and the content may be long in coming
            answer = await self._submit(submission)
        await self._answer(answer)
        return True

    async def _submit(self, submission: Submission) -> Answer:
        """Take in its content, all of it whatever happens: the client is still sending."""
        spool = self._store.spool()
        try:
            try:
                self._check_rights(submission)
                while block := await self._next_block():
                    await spool.write(block)
            except (SubmissionRefused, StoreError) as exc:
                await spool.aclose()
                await self._skip_content()
                return _failure(exc)
            try:
                queue_id = await self._store.submit(submission, spool, self._wall())
            except (SubmissionRefused, StoreError) as exc:
                return _failure(exc)
        finally:
            await spool.aclose()
        self._emit(
            MessageSubmitted(queue_id, self._client.uid, submission.sender, submission.message_id)
        )
        if not submission.held:
            self._on_submitted()
        return Answer(Verdict.ACCEPTED, queue_id)

    def _check_rights(self, submission: Submission) -> None:
        # They end up in XFORWARD, where servers base decisions on them.
        if submission.client != NOTHING_KNOWN and not is_trusted(self._client.uid):
            raise SubmissionRefused("only the queue's owner and root may name the client")

    async def _next_block(self) -> bytes:
        return await self._frames.expect_frame(CONTENT_FRAME)

    async def _skip_content(self) -> None:
        while await self._next_block():
            pass

    async def _answer(self, answer: Answer) -> None:
        # Shielded: an accepted message of which the client learns nothing is sent again. Answers
        # are short, so only a client that leaves hundreds of them unread makes us wait.
        octets = frame(encode_answer(answer))
        sent = self._client.send_nowait(octets)
        if sent == len(octets):
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _LINGER):
            await self._client.send_all(octets[sent:])
            return
        raise trio.BrokenResourceError("the client does not read its answer")


def _failure(error: SubmissionRefused | StoreError) -> Answer:
    verdict = Verdict.TEMPORARY if isinstance(error, StoreError) else Verdict.REFUSED
    return Answer(verdict, str(error))


# --- the control door ---------------------------------------------------------------------------


async def serve_control(
    path: Path,
    store: Store,
    limits: DoorLimits,
    emit: Emit,
    wall: Callable[[], float],
    wake: Wake = _ignore,
    status: Status = _no_status,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take orders at the socket `path` until cancelled; started when it is listening.

    As serve_submissions(), but private: 0600 in a directory 0700. `wake` is called before
    messages become due, and behind that; `status` adds to what the status request tells. Raises
    OSError.
    """

    async def serve(client: DoorClient) -> None:
        if is_trusted(client.uid):
            await _ControlDoor(client, store, wall, wake, status).serve()
        else:
            emit(Warned(f"uid {client.uid} was turned away from the control socket"))

    with listening(path, directory_mode=0o700, socket_mode=0o600) as listener:
        task_status.started()
        await accept_clients(listener, limits, emit, serve)


class _ControlDoor:
    """One client that gives orders."""

    def __init__(
        self,
        client: DoorClient,
        store: Store,
        wall: Callable[[], float],
        wake: Wake,
        status: Status,
    ) -> None:
        self._client = client
        self._frames = FrameReader(client)
        self._store = store
        self._wall = wall
        self._wake = wake
        self._status = status

    async def serve(self) -> None:
        requests = {
            "list": self._list,
            "content": self._content,
            "hold": self._hold,
            "release": self._release,
            "requeue": self._requeue,
            "delete": self._delete,
            "flush": self._flush,
            "status": self._tell_status,
        }
        try:
            while (data := await self._frames.next_frame(ORDER_LIMIT)) is not None:
                self._client.begins()
                self._client.take_time()
                order = decode_order(data)
                try:
                    await requests.get(order.request, self._unknown)(order)
                except StoreError as exc:
                    await self._send({"error": str(exc)})
                else:
                    await self._send({"end": True})
                self._client.ends()
        except RemoteProtocolError as exc:
            await self._send({"error": f"not understood: {exc}"})

    async def _unknown(self, order: Order) -> None:
        raise StoreError(f"the queue process does not know the order {order.request!r:.60}")

    async def _list(self, order: Order) -> None:
        after, left = order.after, order.limit
        while left > 0:
            size = min(left, PAGE)
            page = await self._store.summaries(order.queue_ids, after=after, limit=size)
            for summary in page:
                await self._send({"message": summary_to_json(summary)})
            if len(page) < size:
                return
            left -= size
            after = page[-1].queue_id

    async def _content(self, order: Order) -> None:
        content = None
        for queue_id in order.queue_ids or ():
            content = await self._store.read_content(queue_id)
        await self._send({"content": content is not None})
        if content is None:
            return
        try:
            async for block in content.blocks():
                for start in range(0, len(block), CONTENT_FRAME):
                    await self._send_octets(block[start : start + CONTENT_FRAME])
        except OSError as exc:
            raise RemoteProtocolError(f"cannot read the content: {exc.strerror}") from exc
        finally:
            content.close()
        await self._send_octets(b"")

    async def _hold(self, order: Order) -> None:
        await self._send_ids(await self._store.hold(order.queue_ids))

    async def _release(self, order: Order) -> None:
        await self._make_due(partial(self._store.release, order.queue_ids))

    async def _requeue(self, order: Order) -> None:
        await self._make_due(partial(self._store.requeue, order.queue_ids))

    async def _delete(self, order: Order) -> None:
        await self._send_ids(await self._store.delete(order.queue_ids))

    async def _flush(self, order: Order) -> None:
        domain = order.domain or None
        await self._make_due(partial(self._store.make_due, order.queue_ids, domain=domain))

    async def _make_due(self, change: Callable[[float], Awaitable[list[str]]]) -> None:
        """Make messages due now, by `change`.

        Many are changed in several commits, and whatever is due may be claimed between them. So the
        scheduler is told before the first: it would defer them for a destination that is dead, or
        for defer_transports. And it is told after the last, even if there was trouble in between.
        """
        now = self._wall()
        self._wake()
        try:
            changed = await change(now)
        finally:
            self._wake()
        await self._send_ids(changed)

    async def _tell_status(self, _order: Order) -> None:
        counts = await self._store.counts()
        told = {state.value: count for state, count in counts.items()}
        await self._send({"status": {"pid": os.getpid(), **told, **self._status()}})

    async def _send_ids(self, queue_ids: Sequence[str]) -> None:
        for start in range(0, len(queue_ids), IDS_PER_FRAME):
            await self._send({"queue_ids": queue_ids[start : start + IDS_PER_FRAME]})

    async def _send(self, answer: Mapping[str, object]) -> None:
        await self._send_octets(encode_control_answer(answer))

    async def _send_octets(self, data: bytes) -> None:
        await self._client.send_all(frame(data))
        self._client.take_time()
