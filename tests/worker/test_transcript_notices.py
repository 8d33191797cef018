"""Transcripts become notices to the postmaster, beside the delivery, on the virtual clock."""

import email
import email.policy
from dataclasses import replace
from typing import ClassVar

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.request import DeliveryRequest, Notify
from protocol.transcript import Transcript, Trouble
from tests.worker.memory_store import MemoryStore
from tests.worker.scripted_slots import BOUNCED, SENT, Answer
from tests.worker.test_scheduler import EPOCH, Node, wall
from worker.config.config import Config
from worker.queue.records import Submission
from worker.queue.routing import Router
from worker.queue.settings import NoticeSettings, QueueSettings
from worker.queue.store import Spool, StoreFull
from worker.queue.transcript_notices import KIND, WAITING_LIMIT, TranscriptNotices, compose
from worker.status.events import Event, NoticeQueued, RecipientSettled, Warned

TOLD = Transcript(
    peer="mx.example[192.0.2.1]:25",
    troubles=frozenset({Trouble.PROTOCOL}),
    lines=("In:  220 mx.example", "Out: RCPT TO:<u@one.example>", "In:  502 5.5.1 what?"),
)
NOTICES = NoticeSettings(
    origin="origin.example",
    double_bounce="double-bounce@me.example",
    error_recipient="errors",
)


def in_trouble(request: DeliveryRequest) -> Answer:
    """A server that knows no RCPT, except for the postmaster."""
    if request.sender.startswith("double-bounce"):
        return SENT
    return replace(BOUNCED, transcripts=(TOLD,))


async def work(node: Node) -> None:
    """Let the scheduler work for a minute of virtual time: notices come behind the delivery."""
    async with node.running():
        await trio.sleep(60.0)


@trio_test
async def test_s155_a_transcript_goes_to_error_notice_recipient_from_double_bounce(
    autojump_clock: MockClock,
) -> None:
    node = Node(in_trouble, QueueSettings(notices=NOTICES))
    queue_id = node.submit("u@one.example", sender="", notify=Notify.NEVER)
    await work(node)
    (event,) = node.of(NoticeQueued)
    assert isinstance(event, NoticeQueued)
    assert (event.queue_id, event.kind) == (queue_id, KIND)
    (notice,) = node.workers.requests[1:]
    assert notice.queue_id == event.notice_id
    assert notice.sender == "double-bounce@me.example"
    assert [each.address for each in notice.recipients] == ["errors@origin.example"]


@trio_test
async def test_s156_the_recipient_can_be_changed_by_a_reload(autojump_clock: MockClock) -> None:
    node = Node(in_trouble, QueueSettings(notices=NOTICES))
    later = replace(NOTICES, error_recipient="others@there.example")
    node.scheduler.reload(QueueSettings(notices=later), Router())
    node.submit("u@one.example", sender="", notify=Notify.NEVER)
    await work(node)
    assert node.workers.requests[1].recipients[0].address == "others@there.example"


def test_s156_error_notice_recipient_is_read_from_the_configuration() -> None:
    assert NoticeSettings.from_config(Config.from_mapping({})).error_recipient == "postmaster"
    config = Config.from_mapping({"error_notice_recipient": "a@b.example"})
    assert NoticeSettings.from_config(config).error_recipient == "a@b.example"


def test_s155_a_notice_says_which_message_and_session_it_is_about() -> None:
    octets = compose("Q17", TOLD, EPOCH, NOTICES)
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert message["Subject"] == "postrio SMTP client: errors from mx.example[192.0.2.1]:25"
    assert message["To"] == "errors@origin.example"
    assert message["Auto-Submitted"] == "auto-generated"
    text = message.get_content().replace("\r\n", "\n")
    assert "protocol" in text
    assert "Q17" in text
    assert "\n In:  220 mx.example\n Out: RCPT TO:<u@one.example>\n In:  502 5.5.1 what?\n" in text


def test_s155_a_notice_may_hold_what_is_not_ascii() -> None:
    told = replace(TOLD, peer="bücher.example[::1]:25", lines=("In:  500 nein, ä",))
    message = email.message_from_bytes(
        compose("Q1", told, EPOCH, NOTICES), policy=email.policy.default
    )
    assert "500 nein, ä" in message.get_content()
    assert message["Subject"].endswith("errors from b?cher.example[::1]:25")


class FullStore(MemoryStore):
    """Takes no new message."""

    async def submit(self, submission: Submission, content: Spool, now: float) -> str:
        """Refuse it."""
        await trio.lowlevel.checkpoint()
        raise StoreFull("no space left")


@trio_test
async def test_s160_a_notice_that_cannot_be_queued_is_one_warning_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    node = Node(in_trouble, QueueSettings(notices=NOTICES), store=FullStore(wall))
    node.submit("u@one.example", sender="", notify=Notify.NEVER)
    await work(node)
    (settled,) = node.of(RecipientSettled)
    assert isinstance(settled, RecipientSettled)
    assert settled.outcome.dsn == "5.1.1"
    assert [event.text for event in node.of(Warned) if isinstance(event, Warned)] == [
        "cannot queue a transcript for errors: no space left"
    ]
    assert not node.store.messages


class SlowStore(MemoryStore):
    """A new message takes an hour."""

    taken: ClassVar[int] = 0

    async def submit(self, submission: Submission, content: Spool, now: float) -> str:
        """Take it, late."""
        await trio.sleep(3600)
        return await super().submit(submission, content, now)


@trio_test
async def test_s160_a_delivery_does_not_wait_for_its_notice(autojump_clock: MockClock) -> None:
    node = Node(in_trouble, QueueSettings(notices=NOTICES), store=SlowStore(wall))
    for number in range(5):
        node.submit(f"u{number}@one.example", sender="", notify=Notify.NEVER)
    await work(node)
    assert len(node.of(RecipientSettled)) == 5
    assert not node.of(NoticeQueued)


class HesitantStore(MemoryStore):
    """Takes a new message after some seconds."""

    async def submit(self, submission: Submission, content: Spool, now: float) -> str:
        """Take it, a little late."""
        await trio.sleep(2.0)
        return await super().submit(submission, content, now)


@pytest.mark.parametrize(("limit", "told"), [(20.0, 3), (3.0, 1)])
@trio_test
async def test_s155_what_goes_wrong_while_we_end_is_told_as_far_as_there_is_time(
    limit: float, told: int, autojump_clock: MockClock
) -> None:
    store = HesitantStore(wall)
    settings = QueueSettings(notices=NOTICES, shutdown_timeout=limit)
    script = replace(BOUNCED, transcripts=(TOLD, TOLD, TOLD))
    node = Node(lambda _: script, settings, store=store)
    node.submit("u@one.example", sender="", notify=Notify.NEVER)
    async with node.running():
        await trio.sleep(0.05)  # it is under way
    assert len(node.of(RecipientSettled)) == 1
    assert len(node.of(NoticeQueued)) == told
    assert len(store.messages) == told


@trio_test
async def test_s155_a_flood_of_trouble_is_bounded(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    store = SlowStore(wall)
    notices = TranscriptNotices(store, events.append, wall, NOTICES, lambda: None)
    notices.hand_in("Q1", [TOLD] * (WAITING_LIMIT + 50))
    assert [type(event) for event in events] == [Warned]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notices.run)
        await trio.sleep(3600 * (WAITING_LIMIT + 100))
        nursery.cancel_scope.cancel()
    assert len(store.messages) == WAITING_LIMIT


@pytest.mark.parametrize("recipient", ["", "postmaster"])
@trio_test
async def test_s156_without_a_recipient_nobody_is_told(
    recipient: str, autojump_clock: MockClock
) -> None:
    node = Node(in_trouble, QueueSettings(notices=replace(NOTICES, error_recipient=recipient)))
    node.submit("u@one.example", sender="", notify=Notify.NEVER)
    await work(node)
    assert len(node.workers.requests) == (2 if recipient else 1)
