"""The SQLite store against a plain model, through any history that Hypothesis thinks of.

One step, one call; the store runs without threads, so a step is done when it returns. Restarts are
steps too, with and without a proper end of the process before.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Concatenate, ParamSpec, TypeVar

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.outcome import Action, RecipientOutcome
from protocol.request import Recipient
from worker.queue.records import Finish, MessageState, NoticeDraft, QueuedMessage, Submission
from worker.queue.sqlite import SqliteStore, open_store
from worker.queue.store import Settlement

Args = ParamSpec("Args")
Result = TypeVar("Result")

# In memory where there is such a place: nothing here is about the disk.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
WAITING = (MessageState.INCOMING, MessageState.DEFERRED)


@dataclass
class Row:
    """A recipient in the model."""

    address: str
    begun: bool = False
    doubts: int = 0
    tried: int = 0  # in which pass
    unreported: bool = False


@dataclass
class Message:
    """A message in the model."""

    content: bytes
    due: float
    state: MessageState
    rows: dict[int, Row] = field(default_factory=dict)
    hold: bool = False
    attempts: int = 0
    retry_at: float | None = None

    def of_this_run(self) -> list[int]:
        return [k for k, row in self.rows.items() if row.unreported or row.tried <= self.attempts]


class StoreMachine(RuleBasedStateMachine):
    """Every rule does the same to the store and to `self.messages`, by queue id."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = TemporaryDirectory(dir=SCRATCH)
        self.messages: dict[str, Message] = {}
        self.active: dict[str, QueuedMessage] = {}  # what claim() returned
        self.now = 1_800_000_000.0
        self.doubtful: list[tuple[str, str]] = []
        self.store = trio.run(self.open)

    async def open(self) -> SqliteStore:
        path = Path(self.scratch.name) / "queue"
        return await open_store(path, threads=False, wall=lambda: self.now)

    def run(
        self,
        method: Callable[Concatenate[SqliteStore, Args], Awaitable[Result]],
        *args: Args.args,
        **kwargs: Args.kwargs,
    ) -> Result:
        """One call of the store."""

        async def call() -> Result:
            return await method(self.store, *args, **kwargs)

        return trio.run(call)

    def teardown(self) -> None:
        self.run(SqliteStore.aclose)
        self.scratch.cleanup()

    # --- the way of a message

    @rule(
        count=st.integers(1, 4),
        held=st.booleans(),
        size=st.sampled_from([0, 100, 70_000]),
        pause=st.integers(0, 5),
    )
    def submit(self, count: int, held: bool, size: int, pause: int) -> None:
        self.now += pause
        content = b"%d\r\n" % len(self.messages) + b"x" * size + b"\r\n"
        recipients = tuple(Recipient(address=f"r{n}@d{n % 2}.example") for n in range(count))
        submission = Submission(sender="a@example.com", recipients=recipients, held=held)

        async def submit(store: SqliteStore) -> str:
            spool = store.spool()
            await spool.write(content)
            queue_id = await store.submit(submission, spool, self.now)
            await spool.aclose()
            return queue_id

        queue_id = self.run(submit)
        assert queue_id not in self.messages
        state = MessageState.HOLD if held else MessageState.INCOMING
        self.messages[queue_id] = Message(content, self.now, state)

    @rule(limit=st.integers(1, 4), recipient_limit=st.integers(1, 4), pause=st.integers(0, 50))
    def claim(self, limit: int, recipient_limit: int, pause: int) -> None:
        self.now += pause
        due = [
            queue_id
            for queue_id, message in self.messages.items()
            if message.state in WAITING and message.due <= self.now
        ]
        due.sort(key=lambda queue_id: self.messages[queue_id].due)  # then in order of acceptance
        claimed = self.run(SqliteStore.claim, self.now, limit, recipient_limit=recipient_limit)
        assert sorted(one.queue_id for one in claimed) == sorted(due[:limit])
        for one in claimed:
            message = self.messages[one.queue_id]
            self._learn_keys(one, message)
            keys = [o.recipient.key for o in one.settled] + [r.key for r in one.recipients]
            wanted = message.of_this_run()
            wanted.sort(key=lambda key: (not message.rows[key].unreported, key))
            assert keys == wanted[:recipient_limit]
            assert one.attempts == message.attempts
            message.state = MessageState.ACTIVE
            self.active[one.queue_id] = one

    def _learn_keys(self, claimed: QueuedMessage, message: Message) -> None:
        """Row ids are the store's: the model takes them over when it first sees the message."""
        if not message.rows:
            [summary] = self.run(SqliteStore.summaries, [claimed.queue_id])
            for key, recipient in enumerate(summary.recipients, claimed.id + 1):
                message.rows[key] = Row(recipient.address)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        queue_id = data.draw(st.sampled_from(sorted(self.active)))
        one = self.active[queue_id]
        keys = [recipient.key for recipient in one.recipients]

        async def begin(store: SqliteStore) -> bytes | None:
            [content] = await store.begin([(one.id, keys)])
            if content is None:
                return None
            try:
                return b"".join([block async for block in content.blocks()])
            finally:
                content.close()

        content = self.run(begin)
        message = self.messages.get(queue_id)
        assert content == (message.content if message else None)
        if message:
            for key in keys:
                if key in message.rows and not message.rows[key].unreported:
                    message.rows[key].begun = True

    @precondition(lambda self: self.active)
    @rule(data=st.data(), finish=st.booleans(), reported=st.booleans(), delay=st.integers(1, 60))
    def settle(self, data: st.DataObject, finish: bool, reported: bool, delay: int) -> None:
        queue_id = data.draw(st.sampled_from(sorted(self.active)))
        one, message = self.active[queue_id], self.messages.get(queue_id)
        settlements = []
        for recipient in one.recipients:
            row = message.rows.get(recipient.key) if message else None
            if message and (row is None or row.unreported or row.tried > message.attempts):
                continue  # settled before
            action = data.draw(st.sampled_from([None, *Action]))
            if action is not None:
                outcome = RecipientOutcome(
                    recipient=recipient,
                    action=action,
                    dsn="0.0.0",
                    reason="because",
                    in_doubt=action is Action.DEFERRED and data.draw(st.booleans()),
                )
                settlements.append(Settlement(outcome, report=data.draw(st.booleans())))
        drafts = [NoticeDraft(kind="k", sender="", recipient="a@example.com", content=b"n\r\n")]
        end = Finish(
            message_id=one.id,
            reported=reported,
            notices=drafts * reported,
            next_attempt=self.now + delay,
        )
        notices = self.run(SqliteStore.settle, one.id, settlements, end if finish else None)
        if message:
            self._record(message, settlements)
        assert len(notices) == int(finish and reported and message is not None)
        for notice in notices:
            self.messages[notice] = Message(b"n\r\n", self.now, MessageState.INCOMING)
        if finish:
            del self.active[queue_id]
            if message:
                self._finish(queue_id, message, end)

    def _record(self, message: Message, settlements: list[Settlement]) -> None:
        for settlement in settlements:
            outcome = settlement.outcome
            row = message.rows[outcome.recipient.key]
            row.begun = False
            row.doubts += outcome.in_doubt
            if outcome.action is Action.DEFERRED:
                row.tried = message.attempts + 1
            elif settlement.report:
                row.unreported = True
            else:
                del message.rows[outcome.recipient.key]

    def _finish(self, queue_id: str, message: Message, end: Finish) -> None:
        if end.reported:
            message.rows = {key: row for key, row in message.rows.items() if not row.unreported}
        if not message.rows:
            del self.messages[queue_id]
            return
        times = [at for at in (message.retry_at, end.next_attempt) if at is not None]
        message.retry_at = min(times)
        if not any(
            not row.unreported and row.tried <= message.attempts for row in message.rows.values()
        ):
            message.due, message.retry_at = message.retry_at, None
            message.attempts += 1
        message.state = MessageState.HOLD if message.hold else MessageState.DEFERRED
        message.hold = False

    # --- what operators do

    # One rule for all of them: the way of a message should be taken more often than a turn off it.
    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def operate(self, data: st.DataObject) -> None:
        orders = [self._hold, self._release, self._make_due, self._requeue, self._delete]
        data.draw(st.sampled_from(orders))(self._some(data))

    def _some(self, data: st.DataObject) -> list[str] | None:
        if data.draw(st.integers(0, 9)) == 0:
            return None
        return data.draw(st.lists(st.sampled_from(sorted(self.messages)), max_size=2, unique=True))

    def _chosen(self, queue_ids: list[str] | None) -> dict[str, Message]:
        chosen = self.messages if queue_ids is None else queue_ids
        return {queue_id: self.messages[queue_id] for queue_id in chosen}

    def _hold(self, queue_ids: list[str] | None) -> None:
        changed = []
        for queue_id, message in self._chosen(queue_ids).items():
            if message.state in WAITING:
                message.state = MessageState.HOLD
                changed.append(queue_id)
            elif message.state is MessageState.ACTIVE and not message.hold:
                message.hold = True
                changed.append(queue_id)
        assert sorted(self.run(SqliteStore.hold, queue_ids)) == sorted(changed)

    def _release(self, queue_ids: list[str] | None) -> None:
        changed = []
        for queue_id, message in self._chosen(queue_ids).items():
            if message.state is MessageState.HOLD:
                tried = message.attempts > 0
                message.state = MessageState.DEFERRED if tried else MessageState.INCOMING
                message.due = self.now
                changed.append(queue_id)
            elif message.hold:
                message.hold = False
                changed.append(queue_id)
        assert sorted(self.run(SqliteStore.release, queue_ids, self.now)) == sorted(changed)

    def _make_due(self, queue_ids: list[str] | None) -> None:
        changed = []
        for queue_id, message in self._chosen(queue_ids).items():
            if message.state in WAITING and message.due > self.now:
                message.due = self.now
                changed.append(queue_id)
        assert sorted(self.run(SqliteStore.make_due, queue_ids, self.now)) == sorted(changed)

    def _requeue(self, queue_ids: list[str] | None) -> None:
        changed = []
        for queue_id, message in self._chosen(queue_ids).items():
            if message.state is not MessageState.ACTIVE:
                message.state, message.due = MessageState.INCOMING, self.now
                message.attempts, message.retry_at = 0, None
                for row in message.rows.values():
                    row.tried = 0
                changed.append(queue_id)
        assert sorted(self.run(SqliteStore.requeue, queue_ids, self.now)) == sorted(changed)

    def _delete(self, queue_ids: list[str] | None) -> None:
        chosen = self._chosen(queue_ids)
        assert sorted(self.run(SqliteStore.delete, queue_ids)) == sorted(chosen)
        for queue_id in chosen:
            del self.messages[queue_id]

    # --- the process ends

    @precondition(lambda self: self.active)  # that is when it matters
    @rule(properly=st.booleans())
    def restart(self, properly: bool) -> None:
        if properly:
            self.run(SqliteStore.aclose)
        else:
            self.store._opening.undo()  # what the system does when a process is killed
        self.store = trio.run(self.open)
        self.active.clear()
        doubtful = []
        for queue_id, message in self.messages.items():
            if message.state is not MessageState.ACTIVE:
                continue
            for row in message.rows.values():
                if row.begun:
                    doubtful.append((queue_id, row.address))
                    row.begun = False
                    row.doubts += 1
            if not message.of_this_run():
                message.attempts += 1
                message.retry_at = None
            tried = message.attempts > 0
            message.state = MessageState.DEFERRED if tried else MessageState.INCOMING
            if message.hold:
                message.state, message.hold = MessageState.HOLD, False
        assert sorted(self.run(SqliteStore.in_doubt)) == sorted(doubtful)

    # --- what always holds

    @invariant()
    def the_same_is_queued(self) -> None:
        found = self.run(SqliteStore.summaries)
        assert [one.queue_id for one in found] == [*self.messages]
        for one in found:
            message = self.messages[one.queue_id]
            assert one.state is message.state
            assert one.next_attempt == (message.due if message.state in WAITING else None)
            if message.rows:
                assert [(r.address, r.in_doubt) for r in one.recipients] == [
                    (row.address, row.begun or row.doubts > 0)
                    for row in message.rows.values()
                    if not row.unreported
                ]
        due = [message.due for message in self.messages.values() if message.state in WAITING]
        assert self.run(SqliteStore.next_due) == min(due, default=None)

    @invariant()
    def no_file_is_left_over(self) -> None:
        large = sum(len(message.content) > 65_536 for message in self.messages.values())
        content = Path(self.scratch.name) / "queue" / "content"
        assert sum(path.is_file() for path in content.rglob("*")) == large


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # every step waits for the disk
)
