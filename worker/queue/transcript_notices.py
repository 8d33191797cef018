"""Sessions in trouble are shown to the postmaster: error_notice_recipient (S155, S156, S160).

A notice is queued beside the delivery, whose outcome waits for nothing here: what cannot be queued
is one warning. It comes from the double-bounce address, so nobody is told if it fails itself. That
no notice is about a notice is seen to where sessions are written down (`delivery/recorder.py`).
"""

import textwrap
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from email.message import Message
from email.utils import format_datetime
from typing import Final

import trio

from protocol.request import Recipient
from protocol.transcript import Transcript
from worker.queue.mime import POLICY, Part, flatten
from worker.queue.notice_text import date
from worker.queue.notices import ascii_or_same, mailbox
from worker.queue.records import Submission
from worker.queue.settings import NoticeSettings
from worker.queue.store import Store, StoreError, SubmissionRefused
from worker.status.events import Emit, NoticeQueued, UnexpectedError, Warned

WAITING_LIMIT: Final = 100  # transcripts in memory: more is a flood, of which the first tell enough
KIND: Final = "postmaster notice with a transcript"  # how the log calls it
_OPENING: Final = (
    "Something went wrong in a session with {peer}: trouble of class {troubles} (notify_classes)."
    " The message that was to be delivered has the queue id {queue_id}; what became of it is in the"
    " log. This is what was said, as far as it concerns that message, and without its content;"
    " In: is the server, Out: is this host."
)


class TranscriptNotices:
    """Queues notices, one after another, for the life of one queue process."""

    def __init__(
        self,
        store: Store,
        emit: Emit,
        wall: Callable[[], float],
        settings: NoticeSettings,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when one was queued."""
        self.settings = settings
        self._store = store
        self._emit = emit
        self._wall = wall
        self._wake = wake
        self._waiting: deque[tuple[str, Transcript]] = deque()  # queue id of the message, and it
        self._news = trio.Event()
        self._quiet = trio.Event()  # all that was handed in is queued, or was said not to be
        self._quiet.set()
        self._flooded = False  # it was said that some are dropped

    def hand_in(self, queue_id: str, transcripts: Sequence[Transcript]) -> None:
        """Sessions in which the message `queue_id` was to be delivered."""
        for transcript in transcripts if self.settings.error_recipient else ():
            if len(self._waiting) < WAITING_LIMIT:
                self._waiting.append((queue_id, transcript))
                self._flooded = False
                if self._quiet.is_set():
                    self._quiet = trio.Event()
            elif not self._flooded:
                self._flooded = True
                self._emit(Warned("too many sessions in trouble: not all are told of", queue_id))
        self._news.set()

    async def drain(self) -> None:
        """Wait until what was handed in is queued."""
        await self._quiet.wait()

    async def run(self) -> None:
        """Queue what is handed in, until cancelled."""
        while True:
            if not self._waiting:
                self._quiet.set()
                self._news = trio.Event()
                await self._news.wait()
                continue
            queue_id, transcript = self._waiting.popleft()
            try:
                notice_id = await self._queue(queue_id, transcript)
            except (StoreError, SubmissionRefused, OSError) as exc:
                text = f"cannot queue a transcript for {self.settings.error_recipient}: {exc}"
                self._emit(Warned(text, queue_id))
            except Exception:  # noqa: BLE001 - one notice's trouble
                what = "writing a notice with a transcript"
                self._emit(UnexpectedError(what, traceback.format_exc(), queue_id))
            else:
                self._emit(NoticeQueued(queue_id, KIND, notice_id))
                self._wake()

    async def _queue(self, queue_id: str, transcript: Transcript) -> str:
        """Returns the queue id of the notice. Raises StoreError, SubmissionRefused."""
        settings, now = self.settings, self._wall()
        submission = Submission(
            sender=settings.double_bounce,
            recipients=(Recipient(address=settings.address(settings.error_recipient)),),
        )
        spool = self._store.spool()
        try:
            await spool.write(compose(queue_id, transcript, now, settings))
            return await self._store.submit(submission, spool, now)
        finally:
            with trio.CancelScope(shield=True):  # it only forgets
                await spool.aclose()


def compose(queue_id: str, transcript: Transcript, now: float, settings: NoticeSettings) -> bytes:
    """The notice about a session for the message `queue_id`. `now`: wall-clock seconds."""
    troubles = ", ".join(sorted(trouble.value for trouble in transcript.troubles))
    opening = _OPENING.format(peer=transcript.peer, troubles=troubles, queue_id=queue_id)
    text = "\n".join(
        [
            f"This is {settings.mail_name}, the mail system of {settings.hostname}.",
            "",
            textwrap.fill(opening, 72, break_on_hyphens=False, break_long_words=False),
            "",
            *(f" {line}" for line in transcript.lines),
            "",
        ]
    )
    origin = ascii_or_same(settings.origin)
    notice = Part(policy=POLICY)
    notice["From"] = f'"Mail system of {settings.hostname}" <MAILER-DAEMON@{origin}>'
    notice["To"] = mailbox(settings.address(settings.error_recipient), utf8=False)
    client = "LMTP" if transcript.lmtp else "SMTP"
    notice["Subject"] = (
        f"{settings.mail_name} {client} client: errors from {_ascii(transcript.peer)}"
    )
    notice["Date"] = format_datetime(date(now))
    notice["Message-ID"] = f"<{now:.6f}.{queue_id}.TRANSCRIPT@{settings.hostname}>"
    notice["Auto-Submitted"] = "auto-generated"
    notice["MIME-Version"] = "1.0"
    notice["Content-Type"] = f"text/plain; charset={'us-ascii' if text.isascii() else 'utf-8'}"
    body = text.encode("utf-8", "replace").replace(b"\n", b"\r\n")
    message: Message = notice.with_body(body)
    return flatten(message)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")
