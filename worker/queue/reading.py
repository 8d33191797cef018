"""What is read from the SQLite store outside of any transaction of ours.

Each function takes the reader's connection first, runs in a thread of its own, and ends its
statement before it returns: a statement left open would keep the WAL from being checkpointed.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from worker.queue.queue_id import row_of
from worker.queue.records import MessageState, MessageSummary, RecipientSummary
from worker.queue.rows import STATES, reason_from_json
from worker.queue.spool import ContentDirectory
from worker.queue.transactions import StoredContent, find_contents

SHOWN_RECIPIENTS: Final = 1000  # of one message, in a summary

_SUMMARY = """SELECT id, last, queue_id, state, sender, arrival, size, next_attempt FROM message"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages a queue command is about: by id, by recipient domain, or (both None) all."""

    queue_ids: frozenset[str] | None = None
    domain: str | None = None


def next_due(database: sqlite3.Connection) -> float | None:
    """When the next waiting message is due."""
    (due,) = database.execute("SELECT min(next_attempt) FROM message WHERE state < 2").fetchone()
    return None if due is None else float(due)


def select_rows(
    database: sqlite3.Connection, selection: Selection, after: int, limit: int
) -> tuple[list[int], int | None]:
    """The selected messages among the next `limit`, and where to go on; None: that was all."""
    if selection.queue_ids is None:
        found = database.execute(
            "SELECT id, queue_id FROM message WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        ).fetchall()
        position = found[-1][0] if found else None
    else:
        rows = sorted({row_of(queue_id) for queue_id in selection.queue_ids})
        rows = [row for row in rows if row > after][:limit]
        position = rows[-1] if rows else None
        found = database.execute(
            "SELECT id, queue_id FROM message WHERE id IN (SELECT value FROM json_each(?))"
            " ORDER BY id",
            (json.dumps(rows),),
        ).fetchall()
        found = [(row, queue_id) for row, queue_id in found if queue_id in selection.queue_ids]
    ids = [row for row, _ in found]
    if selection.domain is not None:
        ids = _with_recipient_at(database, ids, selection.domain)
    return ids, position


def _with_recipient_at(database: sqlite3.Connection, ids: Sequence[int], domain: str) -> list[int]:
    # No index on domains: flushing one is rare, and every submission would pay for the index.
    ending = "@" + domain.lower()
    found = database.execute(
        """SELECT m.id FROM message AS m WHERE m.id IN (SELECT value FROM json_each(?))
           AND EXISTS (SELECT 1 FROM recipient AS r WHERE r.id > m.id AND r.id <= m.last
                       AND r.settled = 0 AND lower(substr(r.address, -length(?2))) = ?2)
           ORDER BY m.id""",
        (json.dumps(ids), ending),
    )
    return [row for (row,) in found.fetchall()]


def summaries(
    database: sqlite3.Connection, queue_ids: Collection[str] | None, after: str, limit: int
) -> list[MessageSummary]:
    """One page for the queue commands, in order of acceptance."""
    if queue_ids is None:
        rows = database.execute(
            f"{_SUMMARY} WHERE id > ? ORDER BY id LIMIT ?", (row_of(after), limit)
        ).fetchall()
    else:
        wanted = json.dumps([row_of(queue_id) for queue_id in queue_ids])
        rows = database.execute(
            f"{_SUMMARY} WHERE id > ? AND id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (row_of(after), wanted),
        ).fetchall()
        rows = [row for row in rows if row[2] in queue_ids][:limit]
    return [_summary(database, *row) for row in rows]


def _summary(
    database: sqlite3.Connection,
    row: int,
    last: int,
    queue_id: str,
    state: int,
    sender: str,
    arrival: float,
    size: int,
    next_attempt: float,
) -> MessageSummary:
    (count,) = database.execute(
        "SELECT count(*) FROM recipient WHERE id > ? AND id <= ? AND settled = 0", (row, last)
    ).fetchone()
    recipients = database.execute(
        "SELECT address, outcome, doubts + begun FROM recipient"
        " WHERE id > ? AND id <= ? AND settled = 0 ORDER BY id LIMIT ?",
        (row, last, SHOWN_RECIPIENTS),
    ).fetchall()
    waiting = STATES[state] in (MessageState.INCOMING, MessageState.DEFERRED)
    return MessageSummary(
        queue_id=queue_id,
        state=STATES[state],
        sender=sender,
        arrival=arrival,
        size=size,
        next_attempt=next_attempt if waiting else None,
        recipients=tuple(
            RecipientSummary(
                address=address, reason=reason_from_json(outcome), in_doubt=bool(doubts)
            )
            for address, outcome, doubts in recipients
        ),
        recipient_count=count,
    )


def find_content(database: sqlite3.Connection, queue_id: str) -> StoredContent | None:
    """Where the content of this message is; None: there is no such message."""
    row = row_of(queue_id)
    found = database.execute("SELECT queue_id FROM message WHERE id = ?", (row,)).fetchone()
    return find_contents(database, [row]).get(row) if found == (queue_id,) else None


def content_head(
    database: sqlite3.Connection, directory: ContentDirectory, message_id: int, limit: int
) -> bytes:
    """The first `limit` octets of a content; empty if the message is gone. Raises OSError."""
    found = database.execute(
        "SELECT substr(data, 1, ?) FROM content WHERE id = ?", (limit, message_id)
    ).fetchone()
    if found is not None:
        return bytes(found[0] or b"")  # substr() of an empty blob is null
    stored = find_contents(database, [message_id]).get(message_id)
    if stored is None:
        return b""
    with directory.file(stored.file).open("rb") as file:
        return file.read(limit)


def count_messages(database: sqlite3.Connection) -> dict[MessageState, int]:
    """How many messages there are in each state."""
    counts = dict.fromkeys(MessageState, 0)
    for state, count in database.execute(
        "SELECT state, count(*) FROM message GROUP BY state"
    ).fetchall():
        counts[STATES[state]] = count
    return counts
