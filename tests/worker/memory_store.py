"""A Store in memory, with the behaviour of the real one: for tests on the virtual clock.

A crash is `reopened()`: claims are undone, and what was begun is in doubt. A commit takes
`commit_time` seconds; `trouble` makes calls fail for a while.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import trio

from protocol.hops import HopCounter
from protocol.outcome import Action, RecipientOutcome
from protocol.request import Recipient
from worker.content import Content, InlineContent
from worker.queue.records import (
    Finish,
    MessageState,
    MessageSummary,
    NoticeDraft,
    QueuedMessage,
    RecipientSummary,
    Submission,
)
from worker.queue.store import RECIPIENT_LIMIT, Settlement, Spool, StoreError, SubmissionRefused


@dataclass(slots=True, eq=False)
class RecipientRow:
    """One recipient of a message."""

    recipient: Recipient
    tried: int = 0  # the pass it was last tried in
    outcome: RecipientOutcome | None = None
    settled: bool = False  # waits for its notice
    begun: bool = False
    doubts: int = 0


@dataclass(slots=True, eq=False)
class MessageRow:
    """One message. `retry_at`: the earliest next attempt of the runs of this pass."""

    id: int
    queue_id: str
    submission: Submission
    content: bytes
    arrival: float
    next_attempt: float
    notice: bool = False
    state: MessageState = MessageState.INCOMING
    hold: bool = False
    attempts: int = 0
    warned: bool = False
    retry_at: float | None = None
    rows: dict[int, RecipientRow] = field(default_factory=dict)

    def of_this_run(self) -> list[RecipientRow]:
        """Settled ones first."""
        rows = [row for row in self.rows.values() if row.settled]
        return rows + [
            row for row in self.rows.values() if not row.settled and row.tried <= self.attempts
        ]


class MemorySpool:
    """Content on its way in."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        """Take octets."""
        await trio.lowlevel.checkpoint()
        self.data += data

    async def aclose(self) -> None:
        """Nothing to release."""
        await trio.lowlevel.checkpoint()


class CountedContent(InlineContent):
    """A content that knows whether it is open, so that a test can find leaks."""

    __slots__ = ("_open",)

    def __init__(self, data: bytes, opened: set["CountedContent"]) -> None:
        super().__init__(data)
        object.__setattr__(self, "_open", opened)
        opened.add(self)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def close(self) -> None:
        """It is not open any more."""
        opened: set[CountedContent] = object.__getattribute__(self, "_open")
        opened.discard(self)


def _hops(content: bytes) -> int:
    counter = HopCounter()
    counter.feed(content)
    return counter.count


class MemoryStore:
    """Implements worker.queue.store.Store."""

    def __init__(self, wall: Callable[[], float], commit_time: float = 0.0) -> None:
        self._wall = wall
        self.commit_time = commit_time
        self.messages: dict[int, MessageRow] = {}
        self.open_contents: set[CountedContent] = set()
        self.drafts: list[NoticeDraft] = []  # notices queued
        self.trouble = 0  # so many of the next calls fail
        self.calls: dict[str, int] = {}
        # How each recipient left, over all lives of the queue: "sent", "bounced", or, when it was
        # kept for the end of its run, "reported" or "dropped" (no notice was queued then).
        self.ends: dict[tuple[str, str], list[str]] = {}
        self.doubts: Counter[tuple[str, str]] = Counter()  # marks made, over all lives
        self._doubtful: list[tuple[str, str]] = []
        self._next = 1

    def reopened(self) -> "MemoryStore":
        """The queue as the next process finds it."""
        store = MemoryStore(self._wall, self.commit_time)
        store.messages, store._next = self.messages, self._next
        store.ends, store.doubts = self.ends, self.doubts
        store._doubtful = self._doubtful
        for message in store.messages.values():
            if message.state is MessageState.ACTIVE:
                for row in message.rows.values():
                    if row.begun:
                        store._doubtful.append((message.queue_id, row.recipient.address))
                        row.begun = False
                        row.doubts += 1
                        store.doubts[message.queue_id, row.recipient.address] += 1
                if not message.of_this_run():
                    message.attempts += 1
                    message.retry_at = None
                message.state = MessageState.DEFERRED
        return store

    async def _commit(self, call: str) -> None:
        self.calls[call] = self.calls.get(call, 0) + 1
        # As the real one: cancelled before it is handed over, or not at all.
        await trio.lowlevel.checkpoint()
        if self.commit_time:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.commit_time)
        if self.trouble:
            self.trouble -= 1
            raise StoreError("the disk is on fire")

    # --- the way of a message

    def spool(self) -> Spool:
        """See Store."""
        return MemorySpool()

    async def submit(self, submission: Submission, content: Spool, now: float) -> str:
        """See Store."""
        if not submission.recipients:
            raise SubmissionRefused("no recipient was given")
        assert isinstance(content, MemorySpool)
        await self._commit("submit")
        return self.put(submission, content.data, now)

    def put(
        self, submission: Submission, content: bytes, now: float, *, notice: bool = False
    ) -> str:
        """Queue a message at once."""
        row, self._next = self._next, self._next + 1 + len(submission.recipients)
        message = MessageRow(
            row, f"Q{row}", submission, content, arrival=now, next_attempt=now, notice=notice
        )
        for key, recipient in enumerate(submission.recipients, row + 1):
            message.rows[key] = RecipientRow(replace(recipient, key=key))
        if submission.held:
            message.state = MessageState.HOLD
        self.messages[row] = message
        return message.queue_id

    async def claim(
        self, now: float, limit: int, *, recipient_limit: int = RECIPIENT_LIMIT
    ) -> list[QueuedMessage]:
        """See Store."""
        await self._commit("claim")
        due = [m for m in self._waiting() if m.next_attempt <= now]
        due.sort(key=lambda message: (message.next_attempt, message.id))
        return [self._claimed(message, recipient_limit) for message in due[:limit]]

    def _claimed(self, message: MessageRow, recipient_limit: int) -> QueuedMessage:
        message.state = MessageState.ACTIVE
        rows = message.of_this_run()[:recipient_limit]
        submission = message.submission
        return QueuedMessage(
            id=message.id,
            queue_id=message.queue_id,
            sender=submission.sender,
            arrival=message.arrival,
            size=len(message.content),
            encoding=submission.encoding,
            options=submission.options,
            envelope_id=submission.envelope_id,
            ret=submission.ret,
            client=submission.client,
            attempts=message.attempts,
            warned=message.warned,
            notice=message.notice,
            recipients=tuple(row.recipient for row in rows if not row.settled),
            settled=tuple(row.outcome for row in rows if row.settled and row.outcome),
            due=message.next_attempt,
            hops=_hops(message.content),
            probe=submission.probe,
        )

    def _waiting(self) -> list[MessageRow]:
        states = {MessageState.INCOMING, MessageState.DEFERRED}
        return [message for message in self.messages.values() if message.state in states]

    async def next_due(self) -> float | None:
        """See Store."""
        await self._commit("next_due")
        return min((message.next_attempt for message in self._waiting()), default=None)

    async def begin(self, attempts: Sequence[tuple[int, Collection[int]]]) -> list[Content | None]:
        """See Store."""
        await self._commit("begin")
        contents: list[Content | None] = []
        for message_id, keys in attempts:
            message = self.messages.get(message_id)
            if message is None:
                contents.append(None)
                continue
            for key in keys:
                message.rows[key].begun = True
            contents.append(CountedContent(message.content, self.open_contents))
        return contents

    async def settle(
        self, message_id: int, settlements: Sequence[Settlement], finish: Finish | None = None
    ) -> list[str]:
        """See Store."""
        await self._commit("settle")
        message = self.messages.get(message_id)
        if message is None:
            return []
        for settlement in settlements:
            self._record(message, settlement)
        return [] if finish is None else self._finish(message, finish)

    async def finish(self, runs: Sequence[tuple[int, Collection[int]]]) -> list[int]:
        """See Store."""
        await self._commit("finish")
        kept = []
        for message_id, keys in runs:
            message = self.messages.get(message_id)
            if message is None:
                continue
            for key in keys:
                self._leaves(message, message.rows.pop(key), "finished")
            self._finish(message, Finish(message_id=message_id))
            if message_id in self.messages:
                kept.append(message_id)
        return kept

    def _record(self, message: MessageRow, settlement: Settlement) -> None:
        outcome = settlement.outcome
        row = message.rows[outcome.recipient.key]
        row.begun = False
        row.doubts += outcome.in_doubt
        self.doubts[message.queue_id, row.recipient.address] += outcome.in_doubt
        row.outcome = outcome
        if outcome.action is Action.DEFERRED:
            row.tried = message.attempts + 1
        elif settlement.report:
            row.settled = True
        else:
            del message.rows[outcome.recipient.key]
            self._leaves(message, row, outcome.action.value)

    def _leaves(self, message: MessageRow, row: RecipientRow, how: str) -> None:
        self.ends.setdefault((message.queue_id, row.recipient.address), []).append(how)

    def _finish(self, message: MessageRow, finish: Finish) -> list[str]:
        if finish.reported:
            for row in message.rows.values():
                if row.settled:
                    self._leaves(message, row, "reported" if finish.notices else "dropped")
            message.rows = {key: row for key, row in message.rows.items() if not row.settled}
        if not message.rows:
            del self.messages[message.id]
        else:
            self._end_run(message, finish)
        return [self._queue_notice(draft) for draft in finish.notices]

    def _end_run(self, message: MessageRow, finish: Finish) -> None:
        times = [time for time in (message.retry_at, finish.next_attempt) if time is not None]
        message.retry_at = min(times, default=None)
        if not any(row.tried <= message.attempts for row in message.rows.values()):
            message.attempts += 1
            if message.retry_at is not None:
                message.next_attempt = message.retry_at
            message.retry_at = None
        message.warned = message.warned or finish.warned
        message.state = MessageState.HOLD if message.hold else MessageState.DEFERRED

    def _queue_notice(self, draft: NoticeDraft) -> str:
        self.drafts.append(draft)
        submission = Submission(
            sender=draft.sender,
            recipients=(Recipient(address=draft.recipient),),
            encoding=draft.encoding,
            options=draft.options,
        )
        return self.put(submission, draft.content, self._wall(), notice=True)

    async def in_doubt(self) -> list[tuple[str, str]]:
        """See Store."""
        await self._commit("in_doubt")
        told, self._doubtful = self._doubtful, []
        return told

    # --- looking

    async def content_head(self, message_id: int, limit: int) -> bytes:
        """See Store."""
        await self._commit("content_head")
        message = self.messages.get(message_id)
        return message.content[:limit] if message else b""

    async def read_content(self, queue_id: str) -> Content | None:
        """See Store."""
        await self._commit("read_content")
        for message in self.messages.values():
            if message.queue_id == queue_id:
                return CountedContent(message.content, self.open_contents)
        return None

    async def summaries(
        self, queue_ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[MessageSummary]:
        """See Store."""
        await self._commit("summaries")
        found = [m for m in self.messages.values() if queue_ids is None or m.queue_id in queue_ids]
        if after:
            ids = [message.queue_id for message in found]
            found = found[ids.index(after) + 1 :]
        return [self._summary(message) for message in found[:limit]]

    def _summary(self, message: MessageRow) -> MessageSummary:
        return MessageSummary(
            queue_id=message.queue_id,
            state=message.state,
            sender=message.submission.sender,
            arrival=message.arrival,
            size=len(message.content),
            next_attempt=message.next_attempt,
            recipients=tuple(
                RecipientSummary(
                    address=row.recipient.address,
                    reason=row.outcome.reason if row.outcome else "",
                    in_doubt=row.begun or row.doubts > 0,
                )
                for row in message.rows.values()
            ),
            recipient_count=len(message.rows),
        )

    async def counts(self) -> dict[MessageState, int]:
        """See Store."""
        await self._commit("counts")
        states = [message.state for message in self.messages.values()]
        return {state: states.count(state) for state in MessageState}

    # --- changing

    async def _change(
        self, queue_ids: Collection[str] | None, change: Callable[[MessageRow], bool]
    ) -> list[str]:
        await self._commit("change")
        chosen = [m for m in self.messages.values() if queue_ids is None or m.queue_id in queue_ids]
        return [message.queue_id for message in chosen if change(message)]

    async def hold(self, queue_ids: Collection[str] | None) -> list[str]:
        """See Store."""

        def change(message: MessageRow) -> bool:
            changed = message.state is not MessageState.HOLD and not message.hold
            if message.state is MessageState.ACTIVE:
                message.hold = True
            else:
                message.state = MessageState.HOLD
            return changed

        return await self._change(queue_ids, change)

    async def release(self, queue_ids: Collection[str] | None, now: float) -> list[str]:
        """See Store."""

        def change(message: MessageRow) -> bool:
            changed = message.state is MessageState.HOLD or message.hold
            message.hold = False
            if message.state is MessageState.HOLD:
                message.state, message.next_attempt = MessageState.DEFERRED, now
            return changed

        return await self._change(queue_ids, change)

    async def make_due(
        self, queue_ids: Collection[str] | None, now: float, *, domain: str | None = None
    ) -> list[str]:
        """See Store."""

        def change(message: MessageRow) -> bool:
            domains = {row.recipient.address.partition("@")[2] for row in message.rows.values()}
            waiting = message.state in {MessageState.INCOMING, MessageState.DEFERRED}
            if not waiting or (domain is not None and domain not in domains):
                return False
            message.next_attempt = min(message.next_attempt, now)
            return True

        return await self._change(queue_ids, change)

    async def requeue(self, queue_ids: Collection[str] | None, now: float) -> list[str]:
        """See Store."""

        def change(message: MessageRow) -> bool:
            if message.state is MessageState.ACTIVE:
                return False
            message.state, message.next_attempt = MessageState.INCOMING, now
            message.attempts, message.warned, message.retry_at = 0, False, None
            for row in message.rows.values():
                row.tried = 0
            return True

        return await self._change(queue_ids, change)

    async def delete(self, queue_ids: Collection[str] | None) -> list[str]:
        """See Store."""
        chosen = await self._change(queue_ids, lambda _: True)
        self.messages = {
            key: message for key, message in self.messages.items() if message.queue_id not in chosen
        }
        return chosen

    async def aclose(self) -> None:
        """See Store."""
        await trio.lowlevel.checkpoint()
