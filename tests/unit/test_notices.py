"""Notices, parsed back by the standard library: RFC 3464 reports of anything at all."""

import re
from collections.abc import Sequence
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as modern

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.outcome import Action, RecipientOutcome
from protocol.request import ClientFacts, Recipient, Ret, SendOptions
from worker.queue.notices import NoticeKind, Occasion, ReportAction, Reported, compose
from worker.queue.records import NoticeDraft, QueuedMessage
from worker.queue.settings import NoticeSettings

SETTINGS = NoticeSettings(hostname="mx.here.example", origin="here.example")
ARRIVAL = 1_700_000_000.0
ORIGINAL = b"From: me@here.example\r\nSubject: hello\r\n\r\nbody\r\n"

MESSAGE = QueuedMessage(
    id=1,
    queue_id="4XyZ",
    sender="me@here.example",
    arrival=ARRIVAL,
    size=len(ORIGINAL),
    encoding="7bit",
    options=SendOptions.NONE,
    envelope_id="QQ314159",
    ret=Ret.UNSPECIFIED,
    client=ClientFacts(),
    attempts=1,
    warned=False,
    notice=False,
    recipients=(),
)

FAILED = RecipientOutcome(
    recipient=Recipient(address="gone@one.example", orcpt="rfc822;Gone@alias.example"),
    action=Action.BOUNCED,
    dsn="5.1.1",
    reason="host mx.one.example[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO)",
    reply="550 5.1.1 no such user",
    mta="mx.one.example",
)

UTF8 = SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_RECIPIENT


def notice(
    *outcomes: RecipientOutcome,
    head: bytes = ORIGINAL,
    kind: NoticeKind = NoticeKind.FAILURE,
    action: ReportAction = ReportAction.FAILED,
    message: QueuedMessage = MESSAGE,
    settings: NoticeSettings = SETTINGS,
) -> NoticeDraft:
    """A notice of these outcomes."""
    occasion = Occasion(
        kind=kind,
        message=message,
        reported=[Reported(outcome, action) for outcome in outcomes or [FAILED]],
        head=head,
        now=ARRIVAL + 60.0,
        give_up=ARRIVAL + 432_000.0,
    )
    return compose(occasion, "", message.sender, settings)


def parsed(draft: NoticeDraft) -> EmailMessage:
    """The notice as a mail program sees it; it must be without defects."""
    message = message_from_bytes(draft.content, policy=modern)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def parts(draft: NoticeDraft) -> Sequence[EmailMessage]:
    """Explanation, report, original."""
    found = list(parsed(draft).iter_parts())
    assert len(found) == 3
    return [part for part in found if isinstance(part, EmailMessage)]


def fields(draft: NoticeDraft) -> list[dict[str, str]]:
    """The blocks of the report: the message's, then one per recipient."""
    report = parts(draft)[1]
    assert report.get_content_type() == "message/delivery-status"
    payload = report.get_payload()
    assert isinstance(payload, list)
    return [
        {name: str(value) for name, value in block.items()}
        for block in payload
        if not isinstance(block, str)
    ]


# --- the report ----------------------------------------------------------------------------------


def test_a_notice_is_a_delivery_report_to_the_sender() -> None:
    message = parsed(notice())
    assert message.get_content_type() == "multipart/report"
    assert message["Content-Type"].params["report-type"] == "delivery-status"
    assert message["To"] == "me@here.example"
    assert message["From"].addresses[0].addr_spec == "MAILER-DAEMON@here.example"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Date"].datetime.timestamp() == ARRIVAL + 60.0
    assert [part.get_content_type() for part in parts(notice())] == [
        "text/plain",
        "message/delivery-status",
        "message/rfc822",
    ]


def test_s201_the_report_has_the_fields_of_rfc_3464() -> None:
    about, recipient = fields(notice())
    assert about == {
        "Original-Envelope-Id": "QQ314159",
        "Reporting-MTA": "dns; mx.here.example",
        "X-Postrio-Queue-ID": "4XyZ",
        "X-Postrio-Sender": "rfc822; me@here.example",
        "Arrival-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
    }
    assert recipient == {
        "Original-Recipient": "rfc822; Gone@alias.example",
        "Final-Recipient": "rfc822; gone@one.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.one.example",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
    }


@pytest.mark.parametrize(
    ("recipient", "original"),
    [
        (Recipient(address="a@one.example"), None),
        (Recipient(address="a@one.example", original="b@two.example"), "rfc822; b@two.example"),
        (
            Recipient(address="a@one.example", original="b@two.example", orcpt="x-local; c;d"),
            "x-local; c;d",
        ),
        (Recipient(address="a@one.example", orcpt="utf-8;jürgen@x.ex"), r"utf-8; j\x{FC}rgen@x.ex"),
    ],
)
def test_s201_the_original_recipient_is_what_the_sender_named(
    recipient: Recipient, original: str | None
) -> None:
    block = fields(notice(replace(FAILED, recipient=recipient)))[1]
    assert block.get("Original-Recipient") == original


def test_notices_of_one_moment_have_different_message_ids() -> None:
    ids = {str(parsed(notice(kind=kind))["Message-ID"]) for kind in NoticeKind}
    assert len(ids) == len(NoticeKind)
    assert all(re.fullmatch(r"<[^<>@ ]+@mx\.here\.example>", text) for text in ids)


def test_a_reason_of_our_own_is_no_smtp_diagnostic() -> None:
    ours = replace(FAILED, reply="", mta="", reason="connect to mx[192.0.2.1]:25: refused")
    recipient = fields(notice(ours))[1]
    assert recipient["Diagnostic-Code"] == "X-Postrio; connect to mx[192.0.2.1]:25: refused"
    assert "Remote-MTA" not in recipient


def test_every_recipient_has_a_block_of_its_own() -> None:
    others = [
        replace(FAILED, recipient=Recipient(address=f"u{number}@one.example"))
        for number in range(20)
    ]
    blocks = fields(notice(*others))
    assert [block["Final-Recipient"] for block in blocks[1:]] == [
        f"rfc822; u{number}@one.example" for number in range(20)
    ]


def test_a_local_part_is_quoted_where_it_must_be() -> None:
    odd = replace(FAILED, recipient=Recipient(address="two words@one.example"))
    assert fields(notice(odd))[1]["Final-Recipient"] == 'rfc822; "two words"@one.example'


def test_a_delay_says_until_when_attempts_go_on_and_returns_only_the_header() -> None:
    delayed = replace(FAILED, action=Action.DEFERRED, dsn="4.4.1")
    draft = notice(delayed, kind=NoticeKind.DELAY, action=ReportAction.DELAYED)
    block = fields(draft)[1]
    assert block["Action"] == "delayed"
    assert block["Will-Retry-Until"] == "Sun, 19 Nov 2023 22:13:20 +0000"
    explanation, _, original = parts(draft)
    assert "Sun, 19 Nov 2023" in " ".join(explanation.get_content().split())
    assert original.get_content_type() == "text/rfc822-headers"
    assert b"body" not in draft.content


def test_a_success_says_what_was_done() -> None:
    sent = replace(FAILED, action=Action.SENT, dsn="2.0.0", reply="250 ok")
    draft = notice(sent, kind=NoticeKind.SUCCESS, action=ReportAction.DELIVERED)
    assert parsed(draft)["Subject"] == "Your message was delivered"
    assert fields(draft)[1]["Action"] == "delivered"


def test_the_explanation_names_recipients_and_reasons() -> None:
    text = parts(notice())[0].get_content()
    assert "<gone@one.example>:" in text
    assert "no such user" in text
    assert "mx.here.example" in text


# --- the original --------------------------------------------------------------------------------


def test_the_original_comes_back_as_it_was() -> None:
    assert notice().content.count(ORIGINAL) == 1


def test_only_the_header_comes_back_if_the_sender_asked_for_that() -> None:
    draft = notice(message=replace(MESSAGE, ret=Ret.HDRS))
    assert parts(draft)[2].get_content_type() == "text/rfc822-headers"
    assert b"Subject: hello\r\n" in draft.content
    assert b"body" not in draft.content


def test_only_the_header_of_a_large_message_comes_back() -> None:
    draft = notice(head=ORIGINAL + b"x" * 100, message=replace(MESSAGE, size=60_000))
    assert parts(draft)[2].get_content_type() == "text/rfc822-headers"
    assert b"xxx" not in draft.content


def test_a_header_larger_than_the_limit_is_cut_between_lines() -> None:
    header = b"".join(b"X-%d: y\r\n" % number for number in range(1000))
    draft = notice(
        head=header + b"\r\nbody\r\n",
        message=replace(MESSAGE, size=len(header) + 8),
        settings=replace(SETTINGS, size_limit=100),
    )
    kept = str(parts(draft)[2].get_payload())
    assert len(kept) <= 100
    assert kept.endswith("y\r\n")


def test_a_boundary_in_the_original_does_not_end_the_part() -> None:
    first = parsed(notice()).get_boundary()
    assert first
    evil = ORIGINAL + b"--" + first.encode() + b"--\r\n"
    draft = notice(head=evil, message=replace(MESSAGE, size=len(evil)))
    assert parsed(draft).get_boundary() != first
    assert evil in draft.content


@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [b"\r", b"\n", b"\r\n", b"\0", b"\xff", b"A: b", b"--", b" ", b".", b"\xc3\xa9"]
        )
    ).map(b"".join)
)
def test_any_content_at_all_makes_a_sound_report(head: bytes) -> None:
    message = replace(MESSAGE, size=len(head))
    draft = notice(head=head, message=message)
    content = draft.content
    assert b"\0" not in content
    assert b"\r" not in content.replace(b"\r\n", b"")
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert content.isascii() or draft.encoding == "8bit"
    assert fields(draft)[1]["Status"] == "5.1.1"
    header_only = notice(head=head, message=replace(message, ret=Ret.HDRS))
    assert fields(header_only)[1]["Status"] == "5.1.1"


@given(st.text(max_size=100), st.text(max_size=100), st.text(max_size=30), st.booleans())
def test_no_text_can_break_out_of_its_field(
    reason: str, reply: str, local: str, utf8: bool
) -> None:
    text = reason.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    outcome = replace(
        FAILED,
        reason=text + "\r\nStatus: 2.0.0",
        reply=reply.encode("utf-8", "surrogatepass").decode("utf-8", "replace") + "\nX: y",
        recipient=Recipient(
            address=local.encode("utf-8", "surrogatepass").decode("utf-8", "replace") + "@x.example"
        ),
    )
    draft = notice(outcome, message=replace(MESSAGE, options=UTF8 if utf8 else SendOptions.NONE))
    report = draft.content.split(b"Content-Description: ")[2]
    names = [
        line.partition(b":")[0]
        for line in report.split(b"\r\n")[1:]
        if line[:1].isalpha() and b":" in line
    ]
    assert names.count(b"Status") == 1
    assert b"X" not in names
    assert max(len(line) for line in report.split(b"\r\n")) <= 998


# --- international mail --------------------------------------------------------------------------


def test_a_utf8_address_is_reported_in_ascii_to_who_did_not_ask_for_smtputf8() -> None:
    draft = notice(replace(FAILED, recipient=Recipient(address="jürgen@one.example")))
    assert fields(draft)[1]["Final-Recipient"] == r"utf-8; j\x{FC}rgen@one.example"
    assert not draft.options


def test_an_internationalised_domain_alone_is_reported_as_a_labels() -> None:
    draft = notice(replace(FAILED, recipient=Recipient(address="me@bücher.example")))
    assert fields(draft)[1]["Final-Recipient"] == "rfc822; me@xn--bcher-kva.example"


def test_international_mail_gets_an_international_report() -> None:
    message = replace(MESSAGE, options=UTF8, sender="ich@bücher.example")
    draft = notice(
        replace(FAILED, recipient=Recipient(address="jürgen@one.example")), message=message
    )
    assert draft.options.requires_smtputf8
    assert draft.encoding == "8bit"
    assert [part.get_content_type() for part in parts(draft)] == [
        "text/plain",
        "message/global-delivery-status",
        "message/global",
    ]
    assert "Final-Recipient: utf-8; jürgen@one.example\r\n".encode() in draft.content
    assert "To: <ich@bücher.example>\r\n".encode() in draft.content


def test_the_header_alone_of_international_mail_is_global_headers() -> None:
    message = replace(MESSAGE, options=UTF8, ret=Ret.HDRS)
    assert parts(notice(message=message))[2].get_content_type() == "message/global-headers"


@pytest.mark.parametrize(
    ("sender", "to"),
    [
        ("ich@bücher.example", "ich@xn--bcher-kva.example"),
        ("jürgen@bücher.example", "j?rgen@b?cher.example"),  # the envelope is what counts
    ],
)
def test_a_notice_without_smtputf8_is_addressed_in_ascii(sender: str, to: str) -> None:
    draft = notice(message=replace(MESSAGE, sender=sender))
    assert f"\r\nTo: <{to}>\r\n".encode() in draft.content


def test_an_eight_bit_original_makes_an_eight_bit_notice() -> None:
    original = b"Subject: x\r\n\r\ncaf\xe9\r\n"
    draft = notice(head=original, message=replace(MESSAGE, size=len(original)))
    assert draft.encoding == "8bit"
    assert original in draft.content
    assert notice().encoding == "7bit"


@pytest.mark.parametrize("kind", list(NoticeKind))
def test_every_kind_has_its_words(kind: NoticeKind) -> None:
    draft = notice(kind=kind)
    assert draft.kind.endswith("notification")
    assert parsed(draft)["Subject"]
