"""The demonstration's view and scene: what it makes of log lines, and the world it builds."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.demo import sender_of
from bench.demo_scene import HOSTS, ZONE, free_common_port, listens, write_main_cf
from bench.demo_view import Deliveries
from bench.dns_zone import Zone
from bench.load import destinations, message
from bench.postfix_instance import without_trace
from bench.sink.behaviour import Behaviour

PREFIX = "Nov  2 10:00:00 host postfix/smtp[7]: "
DEFERRED = (
    f"{PREFIX}4F1: to=<b@x.example>, relay=mx.x.example[127.0.0.4]:2525, delay=0.1, "
    "delays=0/0/0.1/0, dsn=4.2.0, status=deferred (host mx.x.example[127.0.0.4] said: 450 4.2.0 "
    "later (in reply to RCPT TO command))"
)
BOUNCED = (
    f"{PREFIX}4F1: to=<c@y.example>, orig_to=<d@y.example>, relay=none, delay=1, delays=0/0/1/0, "
    "dsn=5.4.4, status=bounced (Host or domain name not found)"
)


def test_a_greylisted_recipient_is_counted_once_and_its_tries_too() -> None:
    deliveries = Deliveries()
    deliveries.submit("4F1", "example")
    assert deliveries.feed(DEFERRED)
    assert deliveries.feed(DEFERRED.replace("status=deferred", "status=sent"))
    assert deliveries.feed(BOUNCED)
    rows = list(deliveries.rows.values())
    assert [(row.recipient, row.status, row.attempts) for row in rows] == [
        ("b@x.example", "sent", 2),
        ("c@y.example", "bounced", 1),
    ]
    assert deliveries.summary() == (
        "1 examples and 0 notices, 2 recipients: 1 sent, 0 still deferred, 1 bounced; "
        "1 attempts were deferred on the way"
    )


def test_an_example_is_settled_when_it_and_its_notice_are_removed() -> None:
    deliveries = Deliveries()
    deliveries.feed(f"{PREFIX}4F1: removed")  # the log may be faster than `postrio send`
    deliveries.submit("4F1", "first")
    assert deliveries.unsettled == []
    deliveries.feed(f"{PREFIX}4F2: sender non-delivery notification: 4F3")
    deliveries.submit("4F2", "second")
    deliveries.feed(f"{PREFIX}4F2: removed")
    assert deliveries.unsettled == ["sender non-delivery notice: second"]
    deliveries.feed(f"{PREFIX}4F3: removed")
    assert deliveries.unsettled == []


def test_other_lines_change_nothing() -> None:
    deliveries = Deliveries()
    assert not deliveries.feed(f"{PREFIX}4F1: from=<a@x>, size=1, nrcpt=1 (queue active)")
    assert not deliveries.feed("garbage")


def test_peer_text_is_not_taken_for_markup() -> None:
    deliveries = Deliveries()
    deliveries.submit("4F2", "waiting")
    deliveries.feed(DEFERRED.replace("later", "[bold]later[/bold]"))
    output = io.StringIO()
    Console(file=output, width=300).print(deliveries.table())
    assert "[bold]later[/bold]" in output.getvalue()
    assert "waiting" in output.getvalue()


@pytest.mark.parametrize(
    ("header", "sender"),
    [
        ("From: A <a@x>\nTo: b@y\n\nFrom: c@z\n", "a@x"),
        ("Subject: x\nFrom:\n Grünufer <grüße@x>\n\n", "grüße@x"),
        ("Subject: x\n\nFrom: c@z\n", ""),
    ],
)
def test_the_sender_is_the_one_of_the_header(header: str, sender: str) -> None:
    assert sender_of(header.encode()) == sender


def test_every_mail_host_of_the_zone_is_in_the_scene(tmp_path: Path) -> None:
    zone = Zone.from_text(ZONE)
    addresses = {
        record.to_text()
        for rrsets in zone.records.values()
        for rrset in rrsets.values()
        for record in rrset
        if rrset.rdtype == 1
    }
    assert addresses <= {host.address for host in HOSTS}
    port = free_common_port()
    assert port > 1024
    assert len(listens(port)) == len([host for host in HOSTS if host.words is not None])
    assert all(isinstance(listen.behaviour, Behaviour) for listen in listens(port))
    text = write_main_cf(tmp_path / "var", dns_port=5353, smtp_port=port).read_text()
    assert "postrio_dns_server = 127.0.0.1:5353\n" in text
    assert f"queue_directory = {tmp_path}/var/queue\n" in text


# --- parts of the figures ------------------------------------------------------------------------


def test_messages_have_the_size_asked_for_and_no_bare_line_end() -> None:
    for size in (200, 4096, 4097, 4098):
        content = message(7, size)
        assert abs(len(content) - size) <= 2
        assert content.endswith(b"\r\n")
        assert b"\r" not in content.replace(b"\r\n", b"")
        assert b"\n" not in content.replace(b"\r\n", b"")


def test_destinations_do_not_share_an_address() -> None:
    routes = destinations(300, 25)
    assert len(set(routes.values())) == len(routes) == 300
    assert routes["d0.example"] == "smtp:[127.0.0.2]:25"


def test_only_the_trace_of_the_last_hop_is_taken_off() -> None:
    trace = b"Return-Path: <a@b>\nDelivered-To: c@d\nReceived: from x\n\tby y; now\n"
    for content in (b"Received: earlier\nSubject: x\n\nbody", b"\nbody", b" odd\n", b""):
        expected = content if not content.startswith(b" ") else b""
        assert without_trace(trace + content) == expected
