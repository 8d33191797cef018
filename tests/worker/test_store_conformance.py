"""What every Store does, whatever it is made of.

Each test gets a `MakeStore`: called again with the same directory it opens the same queue, as the
next process would. Another implementation joins by being added to FACTORIES. Nothing here depends
on time: all times are arguments, and every call returns when it is done.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import ClientFacts, Notify, Recipient, Ret, SendOptions
from worker.content import INLINE_LIMIT, Content
from worker.queue.records import (
    Finish,
    MessageState,
    MessageSummary,
    NoticeDraft,
    QueuedMessage,
    Submission,
)
from worker.queue.sqlite import SqliteStore, StoreSettings, open_store
from worker.queue.store import Settlement, SubmissionRefused

MakeStore = Callable[[], Awaitable[SqliteStore]]

NOW = 1_800_000_000.0
LATER = NOW + 1000.0
WALL = NOW + 7.0  # what the store's own clock says
SETTINGS = StoreSettings(message_size_limit=500_000, recipient_limit=100)


def threaded(directory: Path) -> MakeStore:
    """SQLite with its writer thread."""
    return lambda: open_store(directory, settings=SETTINGS, wall=lambda: WALL)


def inline(directory: Path) -> MakeStore:
    """SQLite without threads, as simulations use it."""
    return lambda: open_store(directory, settings=SETTINGS, wall=lambda: WALL, threads=False)


FACTORIES = [threaded, inline]


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.__name__)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Opens one and the same queue, again and again."""
    factory: Callable[[Path], MakeStore] = request.param
    return factory(tmp_path / "queue")


# --- what a caller does -----------------------------------------------------------------------


def envelope(*addresses: str, sender: str = "sender@example.com") -> Submission:
    recipients = tuple(Recipient(address=address) for address in addresses or ("a@example.org",))
    return Submission(sender=sender, recipients=recipients)


async def put(
    store: SqliteStore,
    submission: Submission | None = None,
    content: bytes = b"Subject: hello\r\n\r\nbody\r\n",
    now: float = NOW,
) -> str:
    spool = store.spool()
    try:
        await spool.write(content)
        return await store.submit(submission or envelope(), spool, now)
    finally:
        await spool.aclose()


async def read(content: Content | None) -> bytes:
    assert content is not None
    try:
        return b"".join([block async for block in content.blocks()])
    finally:
        content.close()


async def claim_one(store: SqliteStore, now: float = NOW) -> QueuedMessage:
    [message] = await store.claim(now, 10)
    return message


async def begin(store: SqliteStore, message: QueuedMessage) -> bytes:
    keys = [recipient.key for recipient in message.recipients]
    [content] = await store.begin([(message.id, keys)])
    return await read(content)


def outcome(recipient: Recipient, action: Action, reason: str = "") -> RecipientOutcome:
    dsn = {Action.SENT: "2.0.0", Action.DEFERRED: "4.0.0", Action.BOUNCED: "5.0.0"}[action]
    return RecipientOutcome(
        recipient=recipient, action=action, dsn=dsn, reason=reason or "so it is"
    )


def settled(recipients: Sequence[Recipient], action: Action) -> list[Settlement]:
    return [Settlement(outcome(recipient, action)) for recipient in recipients]


async def defer(store: SqliteStore, message: QueuedMessage, until: float) -> None:
    finish = Finish(message_id=message.id, next_attempt=until)
    await store.settle(message.id, settled(message.recipients, Action.DEFERRED), finish)


async def summary(store: SqliteStore, queue_id: str) -> MessageSummary | None:
    found = await store.summaries([queue_id])
    return found[0] if found else None


async def state(store: SqliteStore, queue_id: str) -> MessageState | None:
    found = await summary(store, queue_id)
    return found.state if found else None


# --- coming in --------------------------------------------------------------------------------


@trio_test
async def test_everything_of_an_envelope_is_there_after_a_restart(make_store: MakeStore) -> None:
    submission = Submission(
        sender="\N{SNOWMAN}@example.com",
        recipients=(
            Recipient(
                address="caf\udce9 x@example.org",  # an octet that is no UTF-8
                original="first@example.org",
                orcpt="rfc822;first@example.org",
                notify=Notify.SUCCESS | Notify.DELAY,
            ),
            Recipient(address="plain@example.net"),
        ),
        envelope_id="QQ314159",
        ret=Ret.HDRS,
        encoding="8bit",
        options=SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_SENDER,
        client=ClientFacts(name="client.example", address="192.0.2.1", port="1", helo="\udcff"),
    )
    async with await make_store() as store:
        queue_id = await put(store, submission)
    async with await make_store() as store:
        message = await claim_one(store)
    assert message.queue_id == queue_id
    assert message.sender == submission.sender
    assert [replace(one, key=-1) for one in message.recipients] == [*submission.recipients]
    assert message.envelope_id == submission.envelope_id
    assert message.ret is submission.ret
    assert message.encoding == "8bit"
    assert message.options == submission.options
    assert message.client == submission.client
    assert message.arrival == NOW
    assert (message.attempts, message.warned, message.notice) == (0, False, False)
    assert message.settled == ()


@trio_test
async def test_content_is_kept_in_canonical_form_with_its_facts(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store, content=b"one\ntwo\r\nth\xe9\0ree\rfour")
        canonical = b"one\r\ntwo\r\nth\xe9 ree four\r\n"
        assert await read(await store.read_content(queue_id)) == canonical
        message = await claim_one(store)
    assert message.size == len(canonical)
    assert message.encoding == "8bit"


@pytest.mark.parametrize("size", [0, INLINE_LIMIT - 2, INLINE_LIMIT - 1, INLINE_LIMIT, 400_000])
@trio_test
async def test_content_of_any_size_comes_back_whole(make_store: MakeStore, size: int) -> None:
    content = b"".join(b"%07d\r\n" % number for number in range(size // 9)) + b"x" * (size % 9)
    async with await make_store() as store:
        spool = store.spool()
        for start in range(0, len(content), 10_000):
            await spool.write(content[start : start + 10_000])
        queue_id = await store.submit(envelope(), spool, NOW)
        await spool.aclose()
        expected = content if not content or content.endswith(b"\n") else content + b"\r\n"
        assert await read(await store.read_content(queue_id)) == expected
        message = await claim_one(store)
        assert message.size == len(expected)
        assert await store.content_head(message.id, 100) == expected[:100]
        assert await begin(store, message) == expected


@trio_test
async def test_too_large_a_content_is_refused_while_it_is_written(make_store: MakeStore) -> None:
    async with await make_store() as store:
        spool = store.spool()
        for _ in range(5):
            await spool.write(b"x" * 100_000)
        with pytest.raises(SubmissionRefused, match="message_size_limit"):
            await spool.write(b"x")
        await spool.aclose()
        assert await store.claim(NOW, 10) == []


@pytest.mark.parametrize(
    ("submission", "complaint"),
    [
        (Submission(sender="a@b.example", recipients=()), "no recipient"),
        (envelope(*(f"r{number}@example.org" for number in range(101))), "at most 100"),
        (envelope("a@example.org\r\nDATA"), "control character"),
        (envelope("a@"), "domain"),
        (envelope(sender="a@b@[c"), "domain"),
        (replace(envelope(), envelope_id="x" * 2000), "envelope id"),
        (replace(envelope(), encoding="base64"), "encoding"),
        (replace(envelope(), client=ClientFacts(helo="a\nb")), "client helo"),
        *(
            (
                replace(
                    envelope(), recipients=(Recipient(address="a@b.example", notify=Notify(bits)),)
                ),
                "NEVER stands alone",
            )
            for bits in (3, 5, 9, 15, 16)
        ),
    ],
)
@trio_test
async def test_an_envelope_that_cannot_be_delivered_is_refused(
    make_store: MakeStore, submission: Submission, complaint: str
) -> None:
    async with await make_store() as store:
        with pytest.raises(SubmissionRefused, match=complaint):
            await put(store, submission)
        assert await store.claim(NOW, 10) == []


@trio_test
async def test_a_spool_that_is_closed_leaves_nothing(make_store: MakeStore) -> None:
    async with await make_store() as store:
        spool = store.spool()
        await spool.write(b"x" * 300_000)
        await spool.aclose()
        assert await store.summaries() == []


@trio_test
async def test_queue_ids_are_never_used_twice(make_store: MakeStore) -> None:
    seen = set[str]()
    for _ in range(3):
        async with await make_store() as store:
            for _ in range(5):
                seen.add(await put(store))
            await store.delete(None)
    assert len(seen) == 15


@trio_test
async def test_many_submissions_at_once_are_all_accepted(make_store: MakeStore) -> None:
    queue_ids: list[str] = []

    async def submit_some(store: SqliteStore, number: int) -> None:
        queue_ids.append(await put(store, envelope(f"r{number}@example.org")))

    async with await make_store() as store:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(submit_some, store, number)
        claimed = await store.claim(NOW, 100)
    assert sorted(message.queue_id for message in claimed) == sorted(queue_ids)
    assert len({message.recipients[0].address for message in claimed}) == 50


# --- claiming ---------------------------------------------------------------------------------


@trio_test
async def test_the_longest_due_are_claimed_first_and_only_once(make_store: MakeStore) -> None:
    async with await make_store() as store:
        late, early, middle = [await put(store, now=NOW + at) for at in (30.0, 10.0, 20.0)]
        claimed = await store.claim(NOW + 25.0, 1) + await store.claim(NOW + 25.0, 10)
        assert [message.queue_id for message in claimed] == [early, middle]
        assert await store.next_due() == NOW + 30.0
        assert [message.queue_id for message in await store.claim(NOW + 30.0, 10)] == [late]
        assert await store.next_due() is None


@trio_test
async def test_what_was_claimed_is_due_again_after_a_restart(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store)
        await claim_one(store)
        assert await state(store, queue_id) is MessageState.ACTIVE
    async with await make_store() as store:
        assert await state(store, queue_id) is MessageState.INCOMING
        assert (await claim_one(store)).queue_id == queue_id
        assert await store.in_doubt() == []


@trio_test
async def test_an_attempt_cut_short_is_in_doubt_after_a_restart(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        await store.begin([(message.id, [message.recipients[1].key])])
    async with await make_store() as store:
        assert await store.in_doubt() == [(queue_id, "b@example.org")]
        assert await store.in_doubt() == []
        found = await summary(store, queue_id)
        assert found is not None
        assert [one.in_doubt for one in found.recipients] == [False, True]
    async with await make_store() as store:
        assert await store.in_doubt() == []  # told once


@trio_test
async def test_s178_what_is_in_doubt_waits_for_somebody_who_asks(make_store: MakeStore) -> None:
    # A command that opens the queue, after a crash, has no log that could name them.
    async with await make_store() as store:
        first = await put(store, envelope("a@example.org", "b@example.org"))
        await begin(store, await claim_one(store))
        second = await put(store, envelope("c@example.org"))
        await begin(store, await claim_one(store))
    for _ in range(2):
        async with await make_store() as store:
            found = await summary(store, first)
            assert found is not None
            assert [one.in_doubt for one in found.recipients] == [True, True]
    async with await make_store() as store:
        assert await store.in_doubt() == [
            *((first, "a@example.org"), (first, "b@example.org"), (second, "c@example.org"))
        ]
    async with await make_store() as store:
        assert await store.in_doubt() == []
        third = await put(store, envelope("d@example.org"))
        assert await store.hold([first, second])
        await begin(store, await claim_one(store))
    async with await make_store() as store:
        assert await store.in_doubt() == [(third, "d@example.org")]


@trio_test
async def test_an_outcome_ends_the_doubt_unless_it_is_doubtful_itself(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        queue_id = await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        await begin(store, message)
        first, second = (outcome(one, Action.DEFERRED) for one in message.recipients)
        await store.settle(
            message.id,
            [Settlement(first), Settlement(replace(second, in_doubt=True))],
            Finish(message_id=message.id, next_attempt=LATER),
        )
    async with await make_store() as store:
        assert await store.in_doubt() == []
        found = await summary(store, queue_id)
        assert found is not None
        assert [one.in_doubt for one in found.recipients] == [False, True]


@trio_test
async def test_what_is_settled_cannot_come_into_doubt(make_store: MakeStore) -> None:
    async with await make_store() as store:
        await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        failed = Settlement(outcome(message.recipients[0], Action.BOUNCED), report=True)
        await store.settle(message.id, [failed])
        await begin(store, message)  # both of them, though one is settled
    async with await make_store() as store:
        assert [address for _, address in await store.in_doubt()] == ["b@example.org"]


@trio_test
async def test_begin_returns_contents_in_order_and_none_for_a_deleted_message(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        for number in range(3):
            await put(store, content=b"%d\r\n" % number)
        messages = await store.claim(NOW, 10)
        await store.delete([messages[1].queue_id])
        contents = await store.begin([(message.id, []) for message in reversed(messages)])
        assert contents[1] is None
        assert await read(contents[0]) == b"2\r\n"
        assert await read(contents[2]) == b"0\r\n"


# --- settling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [Action.SENT, Action.BOUNCED])
@trio_test
async def test_a_message_goes_with_its_last_recipient(
    make_store: MakeStore, action: Action
) -> None:
    async with await make_store() as store:
        queue_id = await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        first, second = message.recipients
        await store.settle(message.id, settled([first], action))
        found = await summary(store, queue_id)
        assert found is not None
        assert [one.address for one in found.recipients] == ["b@example.org"]
        await store.settle(message.id, settled([second], action), Finish(message_id=message.id))
        assert await summary(store, queue_id) is None
        assert await store.read_content(queue_id) is None
        assert await store.content_head(message.id, 10) == b""
    async with await make_store() as store:
        assert await store.summaries() == []


@trio_test
async def test_runs_that_went_well_end_together_and_take_their_messages_along(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        for content in (b"small\r\n", b"x" * INLINE_LIMIT + b"\r\n", b"gone\r\n"):
            await put(store, envelope("a@example.org", "b@example.org"), content)
        long = await put(store, envelope(*(f"r{number}@example.org" for number in range(4))))
        messages = await store.claim(NOW, 10, recipient_limit=3)
        await store.delete([messages[2].queue_id])
        runs = [(one.id, [each.key for each in one.recipients]) for one in messages]
        kept = await store.finish(runs)
        assert kept == [messages[3].id]
        [left] = await store.summaries()
        assert (left.queue_id, left.state) == (long, MessageState.DEFERRED)
        assert [await store.read_content(one.queue_id) for one in messages[:3]] == [None] * 3
        rest = await claim_one(store)  # due at once, and the pass goes on with what it left out
        assert (rest.id, rest.attempts) == (messages[3].id, 0)
        assert rest.recipients[0].address == "r3@example.org"


@trio_test
async def test_deferred_recipients_stay_with_their_reason_until_their_time(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        queue_id = await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        first, second = message.recipients
        sent = Settlement(outcome(first, Action.SENT))
        deferred = Settlement(outcome(second, Action.DEFERRED, reason="busy: caf\udce9"))
        finish = Finish(message_id=message.id, next_attempt=LATER, warned=True)
        assert await store.settle(message.id, [sent, deferred], finish) == []
    async with await make_store() as store:
        found = await summary(store, queue_id)
        assert found is not None
        assert (found.state, found.next_attempt) == (MessageState.DEFERRED, LATER)
        [recipient] = found.recipients
        assert (recipient.address, recipient.reason) == ("b@example.org", "busy: caf\udce9")
        assert await store.claim(LATER - 1.0, 10) == []
        message = await claim_one(store, LATER)
        assert message.recipients == (second,)
        assert (message.attempts, message.warned) == (1, True)


@trio_test
async def test_what_is_to_be_reported_stays_until_it_is(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        first, second = message.recipients
        failure = RecipientOutcome(
            recipient=first,
            action=Action.BOUNCED,
            dsn="5.1.1",
            reason="no such user",
            reply="550 5.1.1 no such user",
            mta="mx.example.org",
            relay="mx.example.org[192.0.2.1]:25",
            conn_use=3,
            delays=Delays(0.5, 0.25, 1.0, 2.0),
            dsn_announced=True,
        )
        await store.settle(
            message.id,
            [Settlement(failure, report=True), Settlement(outcome(second, Action.DEFERRED))],
        )
    async with await make_store() as store:  # killed before the report was written
        message = await claim_one(store, LATER)
        assert message.settled == (failure,)
        found = await summary(store, queue_id)
        assert found is not None
        assert [one.address for one in found.recipients] == ["b@example.org"]
        draft = NoticeDraft(
            kind="sender non-delivery notification",
            sender="",
            recipient="sender@example.com",
            content=b"Subject: sorry\r\n\r\n",
        )
        finish = Finish(message_id=message.id, reported=True, notices=[draft], next_attempt=LATER)
        [notice_id] = await store.settle(message.id, [], finish)
    async with await make_store() as store:
        notice, again = sorted(await store.claim(LATER, 10), key=lambda one: one.id, reverse=True)
        assert again.settled == ()
        assert again.recipients == (second,)
        assert notice.queue_id == notice_id
        assert (notice.notice, notice.sender, notice.arrival) == (True, "", WALL)
        assert [one.address for one in notice.recipients] == ["sender@example.com"]
        assert await begin(store, notice) == draft.content
        assert notice.size == len(draft.content)


@trio_test
async def test_a_message_that_ends_in_a_notice_leaves_only_the_notice(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        await put(store)
        message = await claim_one(store)
        drafts = [
            NoticeDraft(kind="k", sender="", recipient=f"{n}@c.example", content=b"")
            for n in range(2)
        ]
        queue_ids = await store.settle(
            message.id,
            [Settlement(outcome(message.recipients[0], Action.BOUNCED), report=True)],
            Finish(message_id=message.id, reported=True, notices=drafts),
        )
        assert [one.queue_id for one in await store.summaries()] == queue_ids
        notices = await store.claim(WALL, 10)
    assert [one.recipients[0].address for one in notices] == ["0@c.example", "1@c.example"]


@trio_test
async def test_a_deleted_message_leaves_no_notice(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store)
        message = await claim_one(store)
        assert await store.delete([queue_id]) == [queue_id]
        draft = NoticeDraft(kind="k", sender="", recipient="x@example.com", content=b"")
        finish = Finish(message_id=message.id, reported=True, notices=[draft])
        failed = settled(message.recipients, Action.BOUNCED)
        assert await store.settle(message.id, failed, finish) == []
        assert await store.summaries() == []


@trio_test
async def test_a_run_that_left_recipients_untried_is_due_again_at_once(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        finish = Finish(message_id=message.id, next_attempt=LATER)
        await store.settle(message.id, settled(message.recipients[:1], Action.DEFERRED), finish)
        assert await store.next_due() == NOW
        again = await claim_one(store)
        assert again.attempts == 0
        assert again.recipients == message.recipients[1:]  # the deferred one keeps its distance
        await store.settle(
            again.id,
            settled(again.recipients, Action.SENT),
            Finish(message_id=again.id),
        )
        assert await store.next_due() == LATER
        last = await claim_one(store, LATER)
        assert last.attempts == 1
        assert last.recipients == message.recipients[:1]


@pytest.mark.parametrize("delays", [(300.0, 100.0, 200.0), (300.0, 200.0, 100.0)])
@trio_test
async def test_many_recipients_come_in_several_runs_of_one_pass(
    make_store: MakeStore, delays: tuple[float, ...]
) -> None:
    addresses = [f"r{number}@example.org" for number in range(10)]
    async with await make_store() as store:
        await put(store, envelope(*addresses))
        seen: list[str] = []
        for run, until in enumerate(delays):
            [message] = await store.claim(NOW, 5, recipient_limit=4)
            assert message.attempts == 0
            assert len(message.recipients) == (4, 4, 2)[run]
            seen += [one.address for one in message.recipients]
            await defer(store, message, NOW + until)
        assert seen == addresses
        assert await store.next_due() == NOW + 100.0  # the earliest of the pass
        [message] = await store.claim(NOW + 100.0, 5, recipient_limit=4)
        assert message.attempts == 1


@trio_test
async def test_unreported_outcomes_count_against_the_recipient_limit(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        await put(store, envelope(*(f"r{number}@example.org" for number in range(6))))
        [message] = await store.claim(NOW, 5, recipient_limit=4)
        failed = [
            Settlement(outcome(one, Action.BOUNCED), report=True) for one in message.recipients
        ]
        await store.settle(message.id, failed, Finish(message_id=message.id))
        [message] = await store.claim(NOW, 5, recipient_limit=4)
        assert (len(message.settled), message.recipients) == (4, ())
        finish = Finish(message_id=message.id, reported=True)
        await store.settle(message.id, [], finish)
        [message] = await store.claim(NOW, 5, recipient_limit=4)
        assert (len(message.settled), len(message.recipients)) == (0, 2)


@trio_test
async def test_a_pass_cut_short_goes_on_with_the_untried_ones(make_store: MakeStore) -> None:
    async with await make_store() as store:
        await put(store, envelope("a@example.org", "b@example.org"))
        message = await claim_one(store)
        await store.settle(message.id, settled(message.recipients[:1], Action.DEFERRED))
    async with await make_store() as store:
        again = await claim_one(store)
        assert again.recipients == message.recipients[1:]
        await store.settle(again.id, settled(again.recipients, Action.DEFERRED))
    async with await make_store() as store:  # every recipient was tried, only the end is missing
        last = await claim_one(store)
        assert last.recipients == message.recipients
        assert last.attempts == 1


# --- operators --------------------------------------------------------------------------------


@trio_test
async def test_held_messages_wait_for_their_release(make_store: MakeStore) -> None:
    async with await make_store() as store:
        held = await put(store, replace(envelope(), held=True))
        other = await put(store)
        assert await state(store, held) is MessageState.HOLD
        assert await store.hold(None) == [other]
        assert await store.hold([other, "nonsense", ""]) == []
        assert await store.claim(LATER, 10) == []
        assert await store.next_due() is None
    async with await make_store() as store:
        assert await store.release([held], LATER) == [held]
        assert await store.next_due() == LATER
        assert await store.release(None, LATER) == [other]
        assert await state(store, other) is MessageState.INCOMING


@trio_test
async def test_an_active_message_goes_on_hold_when_its_run_ends(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store)
        message = await claim_one(store)
        assert await store.hold([queue_id]) == [queue_id]
        assert await state(store, queue_id) is MessageState.ACTIVE
        await defer(store, message, LATER)
        assert await state(store, queue_id) is MessageState.HOLD
        assert await store.release([queue_id], LATER) == [queue_id]
        assert await state(store, queue_id) is MessageState.DEFERRED
        await claim_one(store, LATER)
        await store.hold(None)
    async with await make_store() as store:
        assert await state(store, queue_id) is MessageState.HOLD


@trio_test
async def test_flushing_makes_waiting_messages_due(make_store: MakeStore) -> None:
    async with await make_store() as store:
        one = await put(store, envelope("a@example.org"))
        two = await put(store, envelope("a@example.com", "b@sub.Example.ORG"))
        held = await put(store, replace(envelope("a@example.org"), held=True))
        for message in await store.claim(NOW, 10):
            await defer(store, message, LATER)
        now = NOW + 5.0
        assert await store.make_due([held, "x"], now) == []
        assert await store.make_due(None, now, domain="example.net") == []
        assert await store.make_due(None, now, domain="EXAMPLE.org") == [one]
        assert await store.next_due() == now
        assert await store.make_due(None, now) == [two]  # the other is due already
        assert len(await store.claim(now, 10)) == 2


@trio_test
async def test_requeueing_forgets_attempts_but_not_the_age(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_id = await put(store)
        message = await claim_one(store)
        finish = Finish(message_id=message.id, next_attempt=LATER, warned=True)
        await store.settle(message.id, settled(message.recipients, Action.DEFERRED), finish)
        assert await store.requeue([queue_id], NOW + 5.0) == [queue_id]
        found = await summary(store, queue_id)
        assert found is not None
        assert (found.state, found.recipients[0].reason) == (MessageState.INCOMING, "")
        message = await claim_one(store, NOW + 5.0)
        assert (message.attempts, message.warned, message.arrival) == (0, False, NOW)
        assert len(message.recipients) == 1
        assert await store.requeue(None, NOW) == []  # active


@trio_test
async def test_deleting_removes_messages_in_any_state(make_store: MakeStore) -> None:
    async with await make_store() as store:
        active = await put(store, now=NOW - 1.0, content=b"x" * 100_000)
        await store.claim(NOW - 1.0, 1)
        held = await put(store, replace(envelope(), held=True))
        incoming = await put(store)
        assert await store.delete([active, "no", held]) == [active, held]
        assert [one.queue_id for one in await store.summaries()] == [incoming]
        assert await store.delete(None) == [incoming]
        assert await store.delete(None) == []
        assert set((await store.counts()).values()) == {0}


@trio_test
async def test_summaries_come_in_pages_in_order_of_acceptance(make_store: MakeStore) -> None:
    async with await make_store() as store:
        queue_ids = [await put(store, now=NOW + number) for number in range(5)]
        pages: list[list[str]] = []
        after = ""
        while page := await store.summaries(after=after, limit=2):
            pages.append([one.queue_id for one in page])
            after = pages[-1][-1]
        assert pages == [queue_ids[:2], queue_ids[2:4], queue_ids[4:]]
        some = await store.summaries([queue_ids[3], queue_ids[1], "0" * 1000, "0z"])
        assert [one.queue_id for one in some] == [queue_ids[1], queue_ids[3]]
        assert some[0].recipient_count == 1


@trio_test
async def test_counts_tell_how_many_are_in_each_state(make_store: MakeStore) -> None:
    async with await make_store() as store:
        for _ in range(3):
            await put(store)
        await put(store, replace(envelope(), held=True))
        first, _second = await store.claim(NOW, 2)
        await defer(store, first, LATER)
        assert await store.counts() == dict.fromkeys(MessageState, 1)


@trio_test
async def test_an_id_of_the_same_row_with_another_time_is_another_message(
    make_store: MakeStore,
) -> None:
    async with await make_store() as store:
        queue_id = await put(store)
        other = "0" + queue_id[1:]
        assert other != queue_id
        assert await store.delete([other]) == []
        assert await store.read_content(other) is None
        assert await store.summaries([other]) == []
        assert await state(store, queue_id) is MessageState.INCOMING
