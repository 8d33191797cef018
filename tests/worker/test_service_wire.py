"""What crosses the queue's sockets: nothing gets lost, and nothing odd gets in."""

import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.request import ClientFacts, Notify, Recipient, Ret, SendOptions
from worker.queue.orders import (
    Order,
    decode_answer,
    decode_order,
    encode_answer,
    encode_order,
    summary_from_json,
    summary_to_json,
)
from worker.queue.records import MessageState, MessageSummary, RecipientSummary, Submission
from worker.queue.sqlite import StoreSettings
from worker.queue.store import SubmissionRefused
from worker.queue.submission import (
    ENVELOPE_LIMIT,
    RECIPIENT_LIMIT,
    Answer,
    Verdict,
    decode_envelope,
    encode_envelope,
)
from worker.queue.submission import (
    decode_answer as decode_submission_answer,
)
from worker.queue.submission import (
    encode_answer as encode_submission_answer,
)

# Any octets but NUL, as the rest of the program sees them: UTF-8 with surrogate escapes.
TEXTS = st.binary(max_size=20).map(
    lambda octets: octets.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)
RECIPIENTS = st.builds(
    Recipient,
    address=TEXTS,
    original=TEXTS,
    orcpt=TEXTS,
    notify=st.integers(0, 15).map(Notify),
)
SUBMISSIONS = st.builds(
    Submission,
    sender=TEXTS,
    recipients=st.lists(RECIPIENTS, max_size=4).map(tuple),
    envelope_id=TEXTS,
    ret=st.sampled_from(Ret),
    encoding=TEXTS,
    options=st.integers(0, 15).map(SendOptions),
    held=st.booleans(),
    message_id=TEXTS,
    client=st.builds(
        ClientFacts,
        name=TEXTS,
        address=TEXTS,
        port=TEXTS,
        protocol=TEXTS,
        helo=TEXTS,
        ident=TEXTS,
    ),
)
ORDERS = st.builds(
    Order,
    request=TEXTS,
    queue_ids=st.none() | st.frozensets(TEXTS, max_size=3),
    domain=TEXTS,
    after=TEXTS,
    limit=st.integers(0, 10**8),
)
SUMMARIES = st.builds(
    MessageSummary,
    queue_id=TEXTS,
    state=st.sampled_from(MessageState),
    sender=TEXTS,
    arrival=st.floats(0, 2e9),
    size=st.integers(0, 2**40),
    next_attempt=st.none() | st.floats(0, 2e9),
    recipients=st.lists(
        st.builds(RecipientSummary, address=TEXTS, reason=TEXTS, in_doubt=st.booleans()),
        max_size=3,
    ).map(tuple),
    recipient_count=st.integers(0, 100),
)
MUTATIONS = st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 5))


def mutated(octets: bytes, mutation: tuple[int, bytes, int]) -> bytes:
    at, inserted, removed = mutation
    at = min(at, len(octets))
    return octets[:at] + inserted + octets[at + removed :]


@given(SUBMISSIONS)
def test_an_envelope_arrives_as_it_was_sent(submission: Submission) -> None:
    assert decode_envelope(encode_envelope(submission)) == submission


@given(ORDERS)
def test_an_order_arrives_as_it_was_given(order: Order) -> None:
    assert decode_order(encode_order(order)) == order


@given(SUMMARIES)
def test_a_summary_arrives_as_it_was_made(summary: MessageSummary) -> None:
    assert summary_from_json(decode_answer(encode_answer(summary_to_json(summary)))) == summary


@given(st.sampled_from(Verdict), TEXTS)
def test_an_answer_arrives_as_it_was_given(verdict: Verdict, text: str) -> None:
    answer = Answer(verdict, text)
    assert decode_submission_answer(encode_submission_answer(answer)) == answer


@given(SUBMISSIONS, MUTATIONS)
def test_a_spoilt_envelope_is_understood_or_refused(
    submission: Submission, mutation: tuple[int, bytes, int]
) -> None:
    octets = mutated(encode_envelope(submission), mutation)
    with suppress(RemoteProtocolError):  # anything else would be a bug
        decode_envelope(octets)


@given(ORDERS, MUTATIONS)
def test_a_spoilt_order_is_understood_or_refused(
    order: Order, mutation: tuple[int, bytes, int]
) -> None:
    octets = mutated(encode_order(order), mutation)
    with suppress(RemoteProtocolError):
        decode_order(octets)


@given(SUMMARIES, MUTATIONS)
def test_a_spoilt_summary_is_understood_or_refused(
    summary: MessageSummary, mutation: tuple[int, bytes, int]
) -> None:
    octets = mutated(encode_answer(summary_to_json(summary)), mutation)
    with suppress(RemoteProtocolError):
        summary_from_json(decode_answer(octets))


def test_a_text_with_nul_cannot_be_submitted() -> None:
    submission = Submission(sender="a\0b", recipients=(Recipient(address="b@example.org"),))
    with pytest.raises(SubmissionRefused, match="NUL"):
        encode_envelope(submission)


def test_a_long_reason_still_makes_a_short_answer() -> None:
    answer = decode_submission_answer(
        encode_submission_answer(Answer(Verdict.TEMPORARY, "\N{SNOWMAN}" * 100_000))
    )
    assert answer.text.startswith("\N{SNOWMAN}\N{SNOWMAN}")


def filled_envelope(attributes: bytes) -> bytes:
    """The largest that is taken, with these again and again."""
    head = encode_envelope(Submission(sender="a@example.com", recipients=()))[:-1]
    return head + attributes * ((ENVELOPE_LIMIT - len(head) - 1) // len(attributes)) + b"\0"


@pytest.mark.parametrize(
    ("envelope", "error", "complaint"),
    [
        (filled_envelope(b"recipient\0a\0"), SubmissionRefused, "too many recipients: 699035, and"),
        (filled_envelope(b"orcpt\0a\0"), RemoteProtocolError, "too many attributes"),
        (filled_envelope(b"a\0b\0")[:-1], RemoteProtocolError, "too many attributes"),
        (b"\0" * ENVELOPE_LIMIT, RemoteProtocolError, "too many attributes"),
    ],
    ids=["recipients", "facts", "no end", "NUL"],
)
def test_an_envelope_of_too_many_parts_is_refused_before_it_is_taken_apart(
    envelope: bytes, error: type[Exception], complaint: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(error, match=complaint):
            decode_envelope(envelope)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_as_many_recipients_as_the_store_takes_come_through() -> None:
    assert StoreSettings().recipient_limit == RECIPIENT_LIMIT
    recipient = Recipient(address="recipient", original="b", orcpt="rfc822;c", notify=Notify.DELAY)
    submission = Submission(sender="a@example.com", recipients=(recipient,) * RECIPIENT_LIMIT)
    assert decode_envelope(encode_envelope(submission)) == submission
