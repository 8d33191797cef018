"""What happens inside the transactions of the SQLite store: SQL over rows, in whole groups.

Each method takes many requests and returns one result for each, and works on the group with a few
statements instead of a few for each request: `IN (SELECT value FROM json_each(?))` is a whole set
of row ids in one parameter. Runs in the writer thread; durability, grouping and waking callers are
the writer's (writer.py).

A *run* is what a message goes through between claim() and finish. A *pass* is one attempt for every
recipient: usually one run, but of a message with very many recipients a run takes only some, and
the pass ends when none is left that was not tried in it.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.outcome import Action
from protocol.request import Recipient
from protocol.value import value
from worker.queue import schema
from worker.queue.queue_id import make_queue_id
from worker.queue.records import Finish, NoticeDraft, QueuedMessage, Submission
from worker.queue.rows import (
    MESSAGE_COLUMNS,
    RECIPIENT_COLUMNS,
    MessageRow,
    RecipientRow,
    client_to_json,
    outcome_to_json,
    to_sql,
)
from worker.queue.spool import ContentDirectory, DiskSpace
from worker.queue.store import Settlement

_ROW_OCTETS: Final = 4096  # room for all of a message but its content, well counted
_IN = "IN (SELECT value FROM json_each(?))"

_INSERT_MESSAGE = """INSERT INTO message (id, last, queue_id, state, hold, next_attempt, attempts,
    warned, notice, arrival, size, encoding, options, ret, sender, envelope_id, client, hops, probe)
    VALUES (?, ?, ?, ?, 0, ?, 0, 0, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)"""
_INSERT_RECIPIENT = """INSERT INTO recipient (id, settled, begun, doubts, pass, notify, address,
    original, orcpt, outcome)
    VALUES (?, 0, 0, 0, 0, ?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), '')"""

# The recipients of message m.
_RECIPIENTS = "message AS m CROSS JOIN recipient AS r ON r.id > m.id AND r.id <= m.last"

# What a run loads: what is settled but not reported, and what was not yet tried in this pass.
_OF_THIS_RUN = "(r.settled = 1 OR r.pass <= m.attempts)"


@value()
class NewMessage:
    """A message to be queued. Exactly one of `data` and `file` holds the content."""

    submission: Submission
    arrival: float
    size: int
    encoding: str
    data: bytes
    file: str  # name in the content directory; empty: the content is `data`
    hops: int = 0  # Received fields of its header
    notice: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks for due messages: see Store.claim()."""

    now: float
    limit: int
    recipient_limit: int


@dataclass(frozen=True, slots=True)
class Settle:
    """See Store.settle()."""

    message_id: int
    settlements: Sequence[Settlement]
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Where the content of a message is. Exactly one of both."""

    data: bytes
    file: str


@dataclass(frozen=True, slots=True)
class Change:
    """An operator's change to some messages, given by row id."""

    ids: Sequence[int]
    now: float = 0.0


class Transactions:
    """The operations of one queue. Owned by the writer, used in its thread only."""

    def __init__(
        self,
        space: DiskSpace,
        content: ContentDirectory,
        wall: Callable[[], float],
    ) -> None:
        """`wall`: when notices arrive."""
        self._space = space
        self._content = content
        self._wall = wall
        self._unwanted: list[str] = []  # content files to remove once their rows are gone

    # --- around a group

    def committed(self) -> None:
        """The group is durable: the files of deleted messages can go."""
        if self._unwanted:
            unwanted, self._unwanted = self._unwanted, []
            self._content.remove(unwanted)

    def rolled_back(self) -> None:
        """Nothing of the group has happened."""
        self._unwanted.clear()

    # --- the way of a message

    def submit(self, database: sqlite3.Connection, requests: Sequence[NewMessage]) -> list[str]:
        """Queue new messages; returns their queue ids. Raises StoreFull."""
        (pages,) = database.execute("PRAGMA freelist_count").fetchone()
        octets = sum(len(request.data) + _ROW_OCTETS for request in requests)
        self._space.check(octets, pages * schema.PAGE_SIZE)
        return self._insert(database, requests)

    def claim(
        self, database: sqlite3.Connection, requests: Sequence[Claim]
    ) -> list[list[QueuedMessage]]:
        """Make due messages active, with the recipients of one run each."""
        return [self._claim(database, request) for request in requests]

    def begin(
        self,
        database: sqlite3.Connection,
        requests: Sequence[Sequence[tuple[int, Collection[int]]]],
    ) -> list[list[StoredContent | None]]:
        """Mark recipients as being attempted; returns the contents."""
        attempts = [attempt for request in requests for attempt in request]
        keys = json.dumps([key for _, some in attempts for key in some])
        database.execute(f"UPDATE recipient SET begun = 1 WHERE settled = 0 AND id {_IN}", (keys,))
        contents = find_contents(database, {message_id for message_id, _ in attempts})
        return [[contents.get(message_id) for message_id, _ in request] for request in requests]

    def settle(self, database: sqlite3.Connection, requests: Sequence[Settle]) -> list[list[str]]:
        """Record outcomes and ends of runs; returns the queue ids of new notices."""
        self._record(database, requests)
        finishes = [request.finish for request in requests if request.finish is not None]
        notices = iter(self._finish(database, finishes))
        return [[] if request.finish is None else next(notices) for request in requests]

    def finish(
        self,
        database: sqlite3.Connection,
        requests: Sequence[Sequence[tuple[int, Collection[int]]]],
    ) -> list[list[int]]:
        """End runs that went well; returns the ids of the messages that have recipients left."""
        runs = [run for request in requests for run in request]
        gone = _json(key for _, keys in runs for key in keys)
        database.execute(f"DELETE FROM recipient WHERE id {_IN}", (gone,))
        ids = [message_id for message_id, _ in runs]
        kept = {
            message_id
            for (message_id,) in database.execute(
                f"""SELECT m.id FROM message AS m WHERE m.id {_IN} AND EXISTS (
                    SELECT 1 FROM recipient AS r WHERE r.id > m.id AND r.id <= m.last)""",
                (_json(ids),),
            )
        }
        if kept:  # there are more than one run takes, or a run that was cut short left some
            self._finish(database, [Finish(message_id=message_id) for message_id in kept])
            ids = [message_id for message_id in ids if message_id not in kept]
        self._remove(database, ids)
        return [[key for key, _ in request if key in kept] for request in requests]

    def tell(
        self, database: sqlite3.Connection, requests: Sequence[None]
    ) -> list[list[tuple[str, str]]]:
        """What recover() found in doubt, since this was last asked: (queue id, address)."""
        # This looks at all recipients, a tenth of a second for a million; an index would cost each
        # of them something.
        found = database.execute(
            f"UPDATE recipient SET begun = 0 WHERE begun = {schema.UNTOLD} RETURNING id, address"
        ).fetchall()
        told = []
        for key, address in sorted(found):  # RETURNING keeps no order
            # Whose recipient it is: the last message before it.
            (queue_id,) = database.execute(
                "SELECT queue_id FROM message WHERE id < ? ORDER BY id DESC LIMIT 1", (key,)
            ).fetchone()
            told.append((queue_id, address))
        return [told, *([] for _ in requests[1:])]

    # --- what operators do

    def hold(self, database: sqlite3.Connection, requests: Sequence[Change]) -> list[list[str]]:
        """Put on hold; active ones when their run ends."""
        waiting = f"UPDATE message SET state = {schema.HOLD} WHERE state < 2 AND id {_IN}"
        active = f"UPDATE message SET hold = 1 WHERE state = 2 AND hold = 0 AND id {_IN}"
        return [
            _changed(database, waiting, _json(request.ids))
            + _changed(database, active, _json(request.ids))
            for request in requests
        ]

    def release(self, database: sqlite3.Connection, requests: Sequence[Change]) -> list[list[str]]:
        """Take off hold, due now; active ones will not go on hold after all."""
        held = (
            f"UPDATE message SET state = (attempts > 0), next_attempt = ?"
            f" WHERE state = {schema.HOLD} AND id {_IN}"
        )
        active = f"UPDATE message SET hold = 0 WHERE state = 2 AND hold = 1 AND id {_IN}"
        return [
            _changed(database, held, request.now, _json(request.ids))
            + _changed(database, active, _json(request.ids))
            for request in requests
        ]

    def make_due(self, database: sqlite3.Connection, requests: Sequence[Change]) -> list[list[str]]:
        """Flush: what waits for a later time is due now."""
        waiting = (
            f"UPDATE message SET next_attempt = ? WHERE state < 2 AND next_attempt > ? AND id {_IN}"
        )
        return [
            _changed(database, waiting, request.now, request.now, _json(request.ids))
            for request in requests
        ]

    def requeue(self, database: sqlite3.Connection, requests: Sequence[Change]) -> list[list[str]]:
        """As if submitted just now, but for the time of arrival. Not the active ones."""
        recipients = f"""UPDATE recipient SET pass = 0, outcome = '' WHERE id IN (
            SELECT r.id FROM {_RECIPIENTS}
            WHERE m.state != {schema.ACTIVE} AND m.id {_IN} AND r.settled = 0 AND r.pass > 0)"""
        messages = f"""UPDATE message SET state = {schema.INCOMING}, next_attempt = ?, attempts = 0,
            warned = 0, retry_at = NULL WHERE state != {schema.ACTIVE} AND id {_IN}"""
        changed = []
        for request in requests:
            database.execute(recipients, (_json(request.ids),))
            changed.append(_changed(database, messages, request.now, _json(request.ids)))
        return changed

    def delete(self, database: sqlite3.Connection, requests: Sequence[Change]) -> list[list[str]]:
        """Remove messages with all that belongs to them."""
        recipients = f"""DELETE FROM recipient WHERE id IN (
            SELECT r.id FROM {_RECIPIENTS}
            WHERE m.id {_IN})"""
        deleted = []
        for request in requests:
            database.execute(recipients, (_json(request.ids),))
            ids = _json(request.ids)
            deleted.append(_changed(database, f"DELETE FROM message WHERE id {_IN}", ids))
            self._remove_contents(database, ids)
        return deleted

    # --- parts

    def _insert(self, database: sqlite3.Connection, requests: Sequence[NewMessage]) -> list[str]:
        messages: list[tuple[object, ...]] = []
        recipients: list[tuple[object, ...]] = []
        contents: list[tuple[int, bytes]] = []
        files: list[tuple[int, str]] = []
        queue_ids: list[str] = []
        (row,) = database.execute("SELECT next FROM sequence").fetchone()
        for request in requests:
            queue_id = make_queue_id(request.arrival, row)
            queue_ids.append(queue_id)
            last = row + len(request.submission.recipients)
            messages.append(_message_values(request, row, last, queue_id))
            recipients.extend(
                _recipient_values(recipient, key)
                for key, recipient in enumerate(request.submission.recipients, row + 1)
            )
            if request.file:
                files.append((row, request.file))
            else:
                contents.append((row, request.data))
            row = last + 1
        database.execute("UPDATE sequence SET next = ?", (row,))
        database.executemany(_INSERT_MESSAGE, messages)
        database.executemany(_INSERT_RECIPIENT, recipients)
        database.executemany("INSERT INTO content VALUES (?, ?)", contents)
        database.executemany("INSERT INTO content_file VALUES (?, ?)", files)
        return queue_ids

    def _claim(self, database: sqlite3.Connection, request: Claim) -> list[QueuedMessage]:
        found = database.execute(
            f"""UPDATE message SET state = {schema.ACTIVE} WHERE id IN (
                SELECT id FROM message INDEXED BY message_due
                WHERE state < 2 AND next_attempt <= ? ORDER BY next_attempt, id LIMIT ?
            ) RETURNING {MESSAGE_COLUMNS}""",
            (request.now, request.limit),
        ).fetchall()
        messages = sorted(map(MessageRow._make, found))  # RETURNING keeps no order
        recipients: dict[int, list[RecipientRow]] = {row.id: [] for row in messages}
        small = [row.id for row in messages if row.last - row.id <= request.recipient_limit]
        for message_id, *columns in database.execute(
            f"""SELECT m.id, {RECIPIENT_COLUMNS}
                FROM {_RECIPIENTS} WHERE m.id {_IN} AND {_OF_THIS_RUN} ORDER BY r.id""",
            (_json(small),),
        ):
            recipients[message_id].append(RecipientRow(*columns))
        for row in messages:
            if row.last - row.id > request.recipient_limit:
                recipients[row.id] = _some_recipients(database, row.id, request.recipient_limit)
        return [row.message(recipients[row.id]) for row in messages]

    def _record(self, database: sqlite3.Connection, requests: Sequence[Settle]) -> None:
        gone: list[int] = []
        reported: list[tuple[object, ...]] = []
        deferred: list[tuple[object, ...]] = []
        for request in requests:
            for settlement in request.settlements:
                outcome = settlement.outcome
                key = outcome.recipient.key
                if outcome.action is Action.DEFERRED:
                    text = outcome_to_json(outcome)
                    deferred.append((outcome.in_doubt, text, request.message_id, key))
                elif settlement.report:
                    reported.append((outcome.in_doubt, outcome_to_json(outcome), key))
                else:
                    gone.append(key)
        database.execute(f"DELETE FROM recipient WHERE id {_IN}", (_json(gone),))
        if reported:
            database.executemany(
                "UPDATE recipient SET settled = 1, begun = 0, doubts = doubts + ?, outcome = ?"
                " WHERE id = ?",
                reported,
            )
        if deferred:
            database.executemany(
                "UPDATE recipient SET begun = 0, doubts = doubts + ?, outcome = ?,"
                " pass = 1 + (SELECT attempts FROM message WHERE id = ?) WHERE id = ?",
                deferred,
            )

    def _finish(self, database: sqlite3.Connection, finishes: Sequence[Finish]) -> list[list[str]]:
        if not finishes:
            return []
        reported = _json(finish.message_id for finish in finishes if finish.reported)
        if len(reported) > len("[]"):
            database.execute(
                f"""DELETE FROM recipient WHERE id IN (
                    SELECT r.id FROM {_RECIPIENTS} WHERE m.id {_IN} AND r.settled = 1)""",
                (reported,),
            )
        left = {
            message_id: (bool(any_left), bool(untried))
            for message_id, any_left, untried in database.execute(
                f"""SELECT m.id,
                    EXISTS (SELECT 1 FROM recipient AS r WHERE r.id > m.id AND r.id <= m.last),
                    EXISTS (SELECT 1 FROM recipient AS r WHERE r.id > m.id AND r.id <= m.last
                            AND r.settled = 0 AND r.pass <= m.attempts)
                    FROM message AS m WHERE m.state = {schema.ACTIVE} AND m.id {_IN}""",
                (_json(finish.message_id for finish in finishes),),
            )
        }
        self._remove(database, [key for key, (any_left, _) in left.items() if not any_left])
        for finish in finishes:
            any_left, untried = left.get(finish.message_id, (False, False))
            if any_left:
                _end_run(database, finish, untried=untried)
        return self._queue_notices(
            database, [f for f in finishes if f.message_id in left], finishes
        )

    def _queue_notices(
        self,
        database: sqlite3.Connection,
        existing: Sequence[Finish],
        finishes: Sequence[Finish],
    ) -> list[list[str]]:
        """Queue the notices of the `existing` messages; a deleted one reports nothing any more."""
        drafts = [draft for finish in existing for draft in finish.notices]
        if not drafts:
            return [[] for _ in finishes]
        now = self._wall()
        # No space check: a notice takes the place of what it reports, and must not be refused.
        queue_ids = iter(self._insert(database, [_notice(draft, now) for draft in drafts]))
        known = {id(finish) for finish in existing}
        return [
            [next(queue_ids) for _ in finish.notices] if id(finish) in known else []
            for finish in finishes
        ]

    def _remove(self, database: sqlite3.Connection, ids: Sequence[int]) -> None:
        """Remove messages whose recipients are gone."""
        if ids:
            rows = _json(ids)
            database.execute(f"DELETE FROM message WHERE id {_IN}", (rows,))
            self._remove_contents(database, rows)

    def _remove_contents(self, database: sqlite3.Connection, rows: str) -> None:
        """Remove the contents of messages that are gone; `rows`: their ids, as JSON."""
        database.execute(f"DELETE FROM content WHERE id {_IN}", (rows,))
        files = database.execute(f"DELETE FROM content_file WHERE id {_IN} RETURNING name", (rows,))
        self._unwanted.extend(name for (name,) in files.fetchall())


def find_contents(
    database: sqlite3.Connection, message_ids: Collection[int]
) -> dict[int, StoredContent]:
    """Where the contents of these messages are; those that do not exist are missing."""
    found = {
        row: StoredContent(data, "")
        for row, data in database.execute(
            f"SELECT id, data FROM content WHERE id {_IN}", (_json(message_ids),)
        )
    }
    missing = [row for row in message_ids if row not in found]
    if missing:
        for row, name in database.execute(
            f"SELECT id, name FROM content_file WHERE id {_IN}", (_json(missing),)
        ):
            found[row] = StoredContent(b"", name)
    return found


def recover(database: sqlite3.Connection) -> None:
    """Undo the claims of a process that is gone.

    Everything that was active is due again, or on hold if that was asked for. Recipients with an
    attempt under way get a mark that stays: the message may have been delivered to them. They
    have another one until tell() is asked: whoever opens the queue need not have a log.
    """
    database.execute(
        f"""UPDATE recipient SET begun = {schema.UNTOLD}, doubts = doubts + 1 WHERE id IN (
            SELECT r.id FROM {_RECIPIENTS} WHERE m.state = {schema.ACTIVE} AND r.begun = 1)"""
    )
    # Killed between the last outcome of a pass and its finish: nothing is left to try in it.
    database.execute(
        f"""UPDATE message AS m SET attempts = attempts + 1, retry_at = NULL
            WHERE m.state = {schema.ACTIVE}
            AND NOT EXISTS (SELECT 1 FROM recipient AS r
                WHERE r.id > m.id AND r.id <= m.last AND {_OF_THIS_RUN})"""
    )
    database.execute(
        f"UPDATE message SET state = CASE hold WHEN 1 THEN {schema.HOLD} ELSE (attempts > 0) END,"
        f" hold = 0 WHERE state = {schema.ACTIVE}"
    )


def _some_recipients(
    database: sqlite3.Connection, message_id: int, limit: int
) -> list[RecipientRow]:
    """At most `limit` rows of a run; the unreported first, so that they are reported soon."""
    rows = database.execute(
        f"""SELECT {RECIPIENT_COLUMNS}
            FROM {_RECIPIENTS} WHERE m.id = ? AND {_OF_THIS_RUN}
            ORDER BY r.settled DESC, r.id LIMIT ?""",
        (message_id, limit),
    )
    return [RecipientRow(*row) for row in rows]


def _end_run(database: sqlite3.Connection, finish: Finish, *, untried: bool) -> None:
    """A run ended and recipients are left: on with this pass at once, or the next one later."""
    # next_attempt still is the time for which the message was claimed, so leaving it makes the
    # message due at once, before those that became due later.
    if untried:
        ending = (
            "retry_at = CASE WHEN retry_at IS NULL OR retry_at > ?1 THEN ?1 ELSE retry_at END"
            if finish.next_attempt is not None
            else "retry_at = coalesce(retry_at, ?1)"
        )
    else:
        ending = (
            "attempts = attempts + 1, retry_at = NULL,"
            " next_attempt = min(coalesce(retry_at, ?1, next_attempt),"
            "                    coalesce(?1, retry_at, next_attempt))"
        )
    database.execute(
        f"""UPDATE message SET {ending}, warned = max(warned, ?2), hold = 0,
            state = CASE hold WHEN 1 THEN {schema.HOLD} ELSE {schema.DEFERRED} END WHERE id = ?3""",
        (finish.next_attempt, finish.warned, finish.message_id),
    )


def _notice(draft: NoticeDraft, now: float) -> NewMessage:
    submission = Submission(
        sender=draft.sender, recipients=(Recipient(address=draft.recipient),), options=draft.options
    )
    return NewMessage(
        submission, now, len(draft.content), draft.encoding, draft.content, "", notice=True
    )


def _message_values(request: NewMessage, row: int, last: int, queue_id: str) -> tuple[object, ...]:
    submission = request.submission
    return (
        row,
        last,
        queue_id,
        schema.HOLD if submission.held else schema.INCOMING,
        request.arrival,
        request.notice,
        request.arrival,
        request.size,
        request.encoding,
        int(submission.options),
        int(submission.ret),
        to_sql(submission.sender),
        to_sql(submission.envelope_id),
        client_to_json(submission.client),
        request.hops,
        submission.probe,
    )


def _recipient_values(recipient: Recipient, key: int) -> tuple[object, ...]:
    return (
        key,
        int(recipient.notify),
        to_sql(recipient.address),
        to_sql(recipient.original),
        to_sql(recipient.orcpt),
    )


def _json(ids: Iterable[int]) -> str:
    return json.dumps(list(ids))


def _changed(database: sqlite3.Connection, statement: str, *parameters: object) -> list[str]:
    """Run a statement that changes messages; returns their queue ids, oldest first."""
    rows = database.execute(f"{statement} RETURNING id, queue_id", parameters).fetchall()
    return [queue_id for _, queue_id in sorted(rows)]
