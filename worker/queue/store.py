"""The queue's storage as the scheduler and the commands see it; `sqlite.py` implements it.

Every coroutine that changes something returns after its change is durable (fsync), grouped with
whatever else was waiting. Times are wall-clock seconds. Content arrives through a `Spool` so that
a large message never lies in memory.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from protocol.outcome import RecipientOutcome
from worker.content import Content
from worker.queue.records import (
    Finish,
    MessageState,
    MessageSummary,
    QueuedMessage,
    Submission,
)

RECIPIENT_LIMIT: Final = 20_000  # of one message in memory: qmgr_message_recipient_limit


class StoreError(Exception):
    """The queue cannot be used: locked, damaged, too new, disk full. The text says what to do."""


class StoreFull(StoreError):
    """No space: nothing was accepted."""


class StoreLocked(StoreError):
    """Another process has the queue open: the text names it. Passes by itself (EX_TEMPFAIL)."""


class StoreUnusable(StoreError):
    """Damaged, another program's, or made by a newer version: trying again does not help."""


class StoreNotMade(StoreError):
    """There is no queue directory, and none can be made."""


class SubmissionRefused(Exception):
    """This message cannot be accepted (too large, no recipient, bad address): what and why."""


class Spool(Protocol):
    """Content on its way into the queue. Accepts raw octets, keeps canonical ones (CRLF).

    In memory up to INLINE_LIMIT octets, beyond that in a file of the queue. Whoever opened it
    closes it; close() after a successful submit() releases nothing.
    """

    async def write(self, data: bytes) -> None:
        """Take the next octets. Raises StoreFull, SubmissionRefused (message_size_limit)."""

    async def aclose(self) -> None:
        """Forget what was spooled, unless it was submitted."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to record for one recipient.

    SENT and BOUNCED: the recipient goes, or, with `report`, stays as "settled, not yet reported"
    until a Finish with reported=True. DEFERRED: it stays to be tried again, with its reason.
    """

    outcome: RecipientOutcome  # outcome.recipient.key is the row id
    report: bool = False


class Store(Protocol):
    """One queue. Safe to call from any number of tasks of one trio loop."""

    def spool(self) -> Spool:
        """A new, empty content."""

    async def submit(self, submission: Submission, content: Spool, now: float) -> str:
        """Accept a message: durable when this returns its queue id.

        Raises SubmissionRefused, StoreError.
        """

    async def claim(
        self, now: float, limit: int, *, recipient_limit: int = RECIPIENT_LIMIT
    ) -> list[QueuedMessage]:
        """Move at most `limit` due messages to ACTIVE and return them, longest due first.

        A claimed message is not returned again until finish(), or until the store is reopened.
        Each comes with at most `recipient_limit` recipients, settled ones included and first (so
        there may be only those). The others come when the message is claimed again, which is due
        as soon as this run is finished; only when every recipient was tried in this pass do
        `attempts` grow and the earliest `next_attempt` of its runs apply.
        """

    async def next_due(self) -> float | None:
        """When the next unclaimed message becomes due; None: there is none."""

    async def begin(self, attempts: Sequence[tuple[int, Collection[int]]]) -> list[Content | None]:
        """Mark recipients in doubt, durably, and return each message's content.

        One entry per attempt: (message id, recipient keys). None: the message was deleted.
        """

    async def settle(
        self, message_id: int, settlements: Sequence[Settlement], finish: Finish | None = None
    ) -> list[str]:
        """Record outcomes, and with `finish` also end the run, all in one commit.

        Clears the in-doubt mark (unless outcome.in_doubt). Returns the queue ids of the notices
        queued by `finish`, in order; none if the message was deleted meanwhile. Retries by itself
        while the disk is full: an outcome is never dropped. A caller cancelled during such a retry
        is let go, and the retry goes on.
        """

    async def finish(self, runs: Sequence[tuple[int, Collection[int]]]) -> list[int]:
        """End runs in which all went well, many in one call and one commit.

        One entry per run: (message id, keys of the recipients that go now). What settle() does
        with outcomes that nobody reports and a Finish without anything: the recipients go, and
        with the last of them the message. Returns the ids of the messages that others keep in the
        queue. On failure nothing has happened to any of them.
        """

    async def in_doubt(self) -> list[tuple[str, str]]:
        """(queue id, address) of attempts that were under way when the queue was left.

        Each of them once, and in whatever life of the queue this is asked: not everybody who opens
        it after a crash has a log.
        """

    async def counts(self) -> dict[MessageState, int]:
        """How many messages there are in each state. Reads them all: for people, not for loops."""

    async def content_head(self, message_id: int, limit: int) -> bytes:
        """The first `limit` octets of the content (for notices)."""

    async def summaries(
        self, queue_ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[MessageSummary]:
        """Messages for the queue commands, in order of acceptance, in pages: those after `after`.

        Each with at most 1000 recipients. The last page is the one shorter than `limit`.
        """

    async def read_content(self, queue_id: str) -> Content | None:
        """The content of one message; the caller closes it."""

    async def hold(self, queue_ids: Collection[str] | None) -> list[str]:
        """Put messages on hold (None: all); returns the ids that changed. Active ones finish.

        That is: their run ends first; what is left of them then is on hold.
        """

    async def release(self, queue_ids: Collection[str] | None, now: float) -> list[str]:
        """Take messages off hold, due at `now`; returns the ids that changed."""

    async def make_due(
        self, queue_ids: Collection[str] | None, now: float, *, domain: str | None = None
    ) -> list[str]:
        """Flush: waiting messages (by id, by recipient domain, or all) become due at `now`."""

    async def requeue(self, queue_ids: Collection[str] | None, now: float) -> list[str]:
        """Start over: due now, attempts forgotten, transport and nexthop decided anew.

        Not the active ones.
        """

    async def delete(self, queue_ids: Collection[str] | None) -> list[str]:
        """Remove messages without any notice; returns the ids removed. None: all."""

    async def aclose(self) -> None:
        """Finish pending commits and release the queue."""
