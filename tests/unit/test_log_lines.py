"""Events as Postfix's log lines, and as JSON: golden lines, escapes, bounds."""

import json
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import Recipient
from worker.status.events import (
    ConnectFailed,
    ContentChecked,
    DeliveryInDoubt,
    DestinationSuspended,
    EhloKeywordsDiscarded,
    EndpointFailed,
    Event,
    LinesBroken,
    MessageActive,
    MessageExpired,
    MessageRemoved,
    MessageSubmitted,
    Noted,
    NoticeQueued,
    PixWorkaroundsEnabled,
    RecipientSettled,
    SessionOpened,
    SessionReused,
    StartTlsOffered,
    TlsEstablished,
    TlsHandshakeFailed,
    TlsNotVerified,
    UnexpectedError,
    Warned,
)
from worker.status.log import LINE_LIMIT, LogLine, Severity, render, to_json
from worker.tls.policy import TlsFacts, Trust


def settled(
    *,
    recipient: str = "user@example.com",
    original: str = "",
    action: Action = Action.SENT,
    dsn: str = "2.0.0",
    reason: str = "250 2.0.0 Ok: queued as 4Zx",
    relay: str = "mx.example.com[192.0.2.1]:25",
    conn_use: int = 1,
    tls: str = "",
) -> RecipientSettled:
    outcome = RecipientOutcome(
        recipient=Recipient(address=recipient, original=original),
        action=action,
        dsn=dsn,
        reason=reason,
        relay=relay,
        conn_use=conn_use,
        tls=tls,
        delays=Delays(0.126, 0.004, 1.26, 0.0),
    )
    return RecipientSettled("3kQ1", "smtp", outcome)


def line(event: Event) -> str:
    """The only line of an event, as `program: text`."""
    (found,) = render(event)
    return f"{found.program}: {found.text}"


def test_s151_a_sent_recipient_has_the_delivery_line_of_postfix() -> None:
    assert line(settled()) == (
        "smtp: 3kQ1: to=<user@example.com>, relay=mx.example.com[192.0.2.1]:25, delay=1.4, "
        "delays=0.13/0/1.3/0, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4Zx)"
    )


def test_s151_a_reused_connection_and_an_original_recipient_show_in_their_places() -> None:
    assert line(settled(original="alias@example.com", conn_use=2)).startswith(
        "smtp: 3kQ1: to=<user@example.com>, orig_to=<alias@example.com>, "
        "relay=mx.example.com[192.0.2.1]:25, conn_use=2, delay=1.4, "
    )


def test_an_original_recipient_that_differs_in_case_only_is_not_shown() -> None:
    assert "orig_to" not in line(settled(original="USER@example.com"))


def test_s151_without_a_session_the_relay_is_none() -> None:
    event = settled(relay="", action=Action.DEFERRED, dsn="4.4.1", reason="connect to x: refused")
    assert "relay=none, delay=" in line(event)
    assert line(event).endswith("dsn=4.4.1, status=deferred (connect to x: refused)")


def test_an_address_is_logged_in_its_quoted_form() -> None:
    assert 'to=<"a b"@example.com>' in line(settled(recipient="a b@example.com"))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            MessageActive("3kQ1", "a@b.example", 5012, 2),
            "qmgr: 3kQ1: from=<a@b.example>, size=5012, nrcpt=2 (queue active)",
        ),
        (MessageActive("3kQ1", "", 5, 1), "qmgr: 3kQ1: from=<>, size=5, nrcpt=1 (queue active)"),
        (MessageRemoved("3kQ1"), "qmgr: 3kQ1: removed"),
        (
            MessageExpired("3kQ1", "a@b.example"),
            "qmgr: 3kQ1: from=<a@b.example>, status=expired, returned to sender",
        ),
        (
            NoticeQueued("3kQ1", "sender non-delivery notification", "3kQ2"),
            "bounce: 3kQ1: sender non-delivery notification: 3kQ2",
        ),
        (
            DeliveryInDoubt("3kQ1", "c@d.example"),
            "qmgr: warning: 3kQ1: delivery to <c@d.example> was under way when the queue was "
            "closed -- message may be sent more than once",
        ),
        (
            DestinationSuspended("smtp", "d.example", "lost connection", 1_700_000_000.5),
            "qmgr: destination smtp:d.example suspended until 2023-11-14T22:13:20Z: "
            "lost connection",
        ),
        (
            ConnectFailed("mx.d.example", "192.0.2.1", 25, "Connection refused"),
            "smtp: connect to mx.d.example[192.0.2.1]:25: Connection refused",
        ),
        (
            ConnectFailed("client.example", "/run/lmtp", 0, "Connection refused", "lmtp"),
            "lmtp: connect to client.example[/run/lmtp]: Connection refused",
        ),
        (
            EndpointFailed("3kQ1", "lost connection with H[A] while sending RCPT TO"),
            "smtp: 3kQ1: lost connection with H[A] while sending RCPT TO",
        ),
        (EndpointFailed("3kQ1", "host said no", "lmtp"), "lmtp: 3kQ1: host said no"),
        (
            EhloKeywordsDiscarded("3kQ1", ("PIPELINING", "DSN")),
            "smtp: 3kQ1: discarding EHLO keywords: PIPELINING DSN",
        ),
        (
            EhloKeywordsDiscarded("3kQ1", ("DSN",), "lmtp"),
            "lmtp: 3kQ1: discarding EHLO keywords: DSN",
        ),
        (
            PixWorkaroundsEnabled("3kQ1", ("disable_esmtp", "delay_dotcrlf"), "H[A]:25", "lmtp"),
            "lmtp: 3kQ1: enabling PIX workarounds: disable_esmtp delay_dotcrlf for H[A]:25",
        ),
        (
            ContentChecked("3kQ1", "replace", "header", "Subject: " + "s" * 70, "X: 1"),
            "smtp: 3kQ1: replace: header Subject: " + "s" * 51 + ": X: 1",
        ),
        (
            ContentChecked("3kQ1", "strip", "body", "a\nb", "", "lmtp"),
            "lmtp: 3kQ1: strip: body a?b",
        ),
        (
            LinesBroken("3kQ1", 998),
            "smtp: warning: 3kQ1: breaking line > 998 bytes with <CR><LF>SPACE",
        ),
        (Warned("table is old"), "postrio: warning: table is old"),
        (Warned("bad key", "3kQ1"), "postrio: warning: 3kQ1: bad key"),
        (Noted("started"), "postrio: started"),
    ],
)
def test_every_other_event_has_its_line(event: Event, text: str) -> None:
    assert line(event) == text


def test_a_submission_is_logged_as_by_pickup_and_cleanup() -> None:
    assert render(MessageSubmitted("3kQ1", 1000, "a@b.example", "<1@b.example>")) == [
        LogLine("pickup", Severity.INFO, "3kQ1: uid=1000 from=<a@b.example>"),
        LogLine("cleanup", Severity.INFO, "3kQ1: message-id=<1@b.example>"),
    ]


def test_a_message_without_message_id_still_has_its_cleanup_line() -> None:
    assert render(MessageSubmitted("3kQ1", 0, "", ""))[1].text == "3kQ1: message-id=<>"


def test_sessions_are_no_lines() -> None:
    assert render(SessionOpened("mx[192.0.2.1]:25")) == []
    assert render(SessionReused("mx[192.0.2.1]:25", 2)) == []


def test_a_bug_is_logged_with_its_traceback_one_line_each() -> None:
    trace = 'Traceback (most recent call last):\n  File "x", line 1\nKeyError: 1\n'
    assert [found.text for found in render(UnexpectedError("delivering", trace, "3kQ1"))] == [
        "error: 3kQ1: unexpected error while delivering: KeyError: 1",
        "error: 3kQ1:   Traceback (most recent call last):",
        'error: 3kQ1:     File "x", line 1',
        "error: 3kQ1:   KeyError: 1",
    ]


def test_what_a_peer_says_cannot_forge_a_line() -> None:
    text = line(settled(reason="550 no\r\nNov  1 00:00:00 h postfix/smtp[1]: \x1b[2Jforged"))
    assert "\n" not in text
    assert "\x1b" not in text
    assert "550 no??Nov" in text


def test_a_long_reply_is_cut_and_the_line_keeps_its_shape() -> None:
    text = line(settled(reason="x" * 100_000))
    assert len(text.encode()) <= LINE_LIMIT + len("smtp: ")
    assert text.endswith("x...)")


def test_a_long_reply_is_not_cut_inside_a_character() -> None:
    text = line(settled(reason="é" * 2000))
    assert len(text.encode()) <= LINE_LIMIT + len("smtp: ")
    assert text.endswith("é...)")


TEXT = st.text(max_size=60) | st.text(min_size=600, max_size=3000)


@given(TEXT, TEXT, TEXT)
def test_no_text_of_others_makes_a_bad_line(address: str, relay: str, reason: str) -> None:
    events = [
        settled(recipient=address, relay=relay, reason=reason),
        MessageSubmitted("3kQ1", 0, address, reason),
        ConnectFailed(relay, address, 25, reason),
        Warned(reason),
        UnexpectedError(relay, reason),
    ]
    for event in events:
        for found in render(event):
            assert len(found.text.encode()) <= LINE_LIMIT
            assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", found.text)


def test_s151_the_json_twin_of_a_delivery_has_the_facts_of_its_line() -> None:
    assert to_json(settled(conn_use=2)) == {
        "event": "recipient_settled",
        "queue_id": "3kQ1",
        "protocol": "smtp",
        "recipient": "user@example.com",
        "status": "sent",
        "dsn": "2.0.0",
        "relay": "mx.example.com[192.0.2.1]:25",
        "reply": "250 2.0.0 Ok: queued as 4Zx",
        "reason": "250 2.0.0 Ok: queued as 4Zx",
        "delays": [0.126, 0.004, 1.26, 0.0],
        "conn_use": 2,
        "tls": None,
        "in_doubt": False,
    }


def test_b14_a_delivery_line_says_what_tls_there_was() -> None:
    text = render(settled(tls="may:none"))[0].text
    assert ", delays=0.13/0/1.3/0, tls=may:none, dsn=2.0.0, status=sent (" in text
    assert "tls=" not in render(settled())[0].text
    assert to_json(settled(tls="encrypt"))["tls"] == "encrypt"


FACTS = TlsFacts(
    trust=Trust.UNTRUSTED,
    protocol="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    bits=256,
    why="untrusted issuer /CN=Somebody",
    details=" key-exchange X25519",
)


def test_s102_the_words_of_a_handshake_are_postfix_own() -> None:
    relay = "mx.example.com[192.0.2.1]:25"
    assert [line.text for line in render(TlsEstablished(relay, FACTS))] == [
        "Untrusted TLS connection established to mx.example.com[192.0.2.1]:25: TLSv1.3 with cipher"
        " TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519"
    ]
    assert [line.text for line in render(TlsNotVerified(relay, FACTS.why))] == [
        "certificate verification failed for mx.example.com[192.0.2.1]:25:"
        " untrusted issuer /CN=Somebody"
    ]
    assert [line.text for line in render(TlsHandshakeFailed(relay, "Connection timed out"))] == [
        "SSL_connect error to mx.example.com[192.0.2.1]:25: Connection timed out"
    ]
    assert [line.text for line in render(StartTlsOffered("mx.example.com"))] == [
        "Host offered STARTTLS: [mx.example.com]"
    ]


def test_the_json_twin_of_any_event_names_it_and_its_fields() -> None:
    event = EhloKeywordsDiscarded("3kQ1", ("DSN",))
    assert to_json(event) == {
        "event": "ehlo_keywords_discarded",
        "queue_id": "3kQ1",
        "keywords": ["DSN"],
        "protocol": "smtp",
    }


def test_json_keeps_no_unpaired_surrogate() -> None:
    assert json.dumps(to_json(Warned("a\udc80b"))) == (
        '{"event": "warned", "text": "a?b", "queue_id": ""}'
    )


def test_every_kind_of_event_has_a_json_form() -> None:
    samples: dict[object, object] = {
        str: "x",
        bool: True,
        int: 1,
        float: 1.0,
        tuple[str, ...]: ("x",),
        TlsFacts: FACTS,
    }
    # By name: a dataclass with slots is a second class beside the one that was written.
    kinds = {kind.__name__: kind for kind in Event.__subclasses__()}
    del kinds["RecipientSettled"], kinds["RecipientProbed"]
    for kind in kinds.values():
        event = kind(*[samples[item.type] for item in fields(kind)])
        assert json.loads(json.dumps(to_json(event)))["event"]
        render(event)
