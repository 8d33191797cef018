"""`postrio run` as a process: retries, notices, orders, signals, restarts.

What peers do is decided by the sinks of this process, so a test acts exactly when a message is at a
certain point. Time passes only where the node waits by itself (a second until it tries again).
"""

import email
import email.policy
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import trio
from trio.testing import trio_test

from bench.sink.behaviour import Behaviour, Phase
from bench.sink.record import Received
from bench.sink.sink import Sink
from bench.sink.words import parse_behaviour
from tests.integration.node import SENDER, STARTED, Mailbox, Node, open_sink, port_of
from worker.queue.sqlite import open_store

CONTENT = b"From: sender@from.example\r\nSubject: test\r\nMessage-ID: <1@x>\r\n\r\nHello.\r\n"
IN_DOUBT = "may be sent more than once"


@dataclass(slots=True)
class Peer:
    """A sink, what it took, and the transport_maps value that leads to it."""

    sink: Sink
    mailbox: Mailbox

    @property
    def route(self) -> str:
        return f"smtp:[127.0.0.1]:{port_of(self.sink)}"

    def behave(self, *words: str) -> None:
        """Later sessions are treated like this."""
        self.sink.behaviour = parse_behaviour(words)


async def open_peer(
    nursery: trio.Nursery, *words: str, on_message: Callable[[Received], object] | None = None
) -> Peer:
    """A sink with this behaviour."""
    mailbox = Mailbox(on_message)
    return Peer(await open_sink(nursery, mailbox, *words), mailbox)


def routes(**peers: Peer) -> dict[str, str]:
    """transport_maps: `to=peer` leads mail for to.example there; everything else goes nowhere."""
    table = ", ".join(f"{name}.example={peer.route}" for name, peer in peers.items())
    return {"transport_maps": f"inline:{{ {table} }}", "default_transport": "smtp:[127.0.0.1]:9"}


@dataclass(slots=True)
class Report:
    """A notice, taken apart as RFC 3464 says."""

    notice: EmailMessage
    text: str
    message_fields: EmailMessage
    recipients: list[EmailMessage]
    returned: EmailMessage


def parse_report(content: bytes | None) -> Report:
    """Fails the test unless `content` is a multipart/report about delivery."""
    assert content is not None
    notice = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(notice, EmailMessage)
    assert notice.get_content_type() == "multipart/report"
    assert notice.get_param("report-type") == "delivery-status"
    assert not notice.defects
    text, status, returned = notice.iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    groups = status.get_payload()
    assert isinstance(groups, list)
    fields = [group for group in groups if isinstance(group, EmailMessage)]
    assert len(fields) == len(groups)
    about_message, *about_recipients = fields
    assert about_message["Reporting-MTA"] == "dns; node.example"
    body = text.get_content()
    assert isinstance(body, str)
    assert isinstance(returned, EmailMessage)
    return Report(notice, body, about_message, about_recipients, returned)


class Asked(dict[str, str]):
    """A sink's table of recipients that sets `event` when it is asked, at RCPT."""

    def __init__(self) -> None:
        super().__init__()
        self.event = trio.Event()

    def get(self, address: str, usual: str = "") -> str:  # type: ignore[override]
        """The usual reply."""
        self.event.set()
        return usual


# --- retries and notices ------------------------------------------------------------------------


@trio_test
async def test_a_greylisted_recipient_is_tried_again_and_the_others_are_not(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        slow, quick = await open_peer(nursery, "greylist=0"), await open_peer(nursery)
        async with Node(tmp_path, routes(slow=slow, quick=quick)) as node:
            queue_id = await node.send(CONTENT, "a@slow.example", "b@quick.example")
            await node.wait_for(f"{queue_id}: removed")
            statuses = node.matches(f"{queue_id}: to=")
        assert sum("status=deferred (host" in line for line in statuses) == 1
        assert sum("status=sent" in line for line in statuses) == 2
        assert [item.recipients for item in slow.mailbox.messages] == [["a@slow.example"]]
        assert [item.recipients for item in quick.mailbox.messages] == [["b@quick.example"]]
        nursery.cancel_scope.cancel()


@trio_test
async def test_s186_a_refused_recipient_is_reported_to_the_sender(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        home = await open_peer(nursery)
        strict = await open_peer(nursery, "hostname=mx.to.example", "to:no@to.example=550 5.1.1 x")
        async with Node(
            tmp_path, {**routes(to=strict), **routes(to=strict, **{"from": home})}
        ) as node:
            options = ["--envid", "env-1", "--ret", "full"]
            queue_id = await node.send(CONTENT, "no@to.example", "yes@to.example", options=options)
            await node.wait_for(": removed$", 2)
            assert node.count(f"{queue_id}: sender non-delivery notification: ") == 1
        (notice,) = home.mailbox.messages
        assert (notice.sender, notice.recipients) == ("", [SENDER])
        report = parse_report(notice.content)
        assert report.notice["To"] == SENDER
        assert report.notice["Auto-Submitted"] == "auto-replied"
        assert report.message_fields["Original-Envelope-Id"] == "env-1"
        (refused,) = report.recipients
        assert refused["Final-Recipient"] == "rfc822; no@to.example"
        assert refused["Action"] == "failed"
        assert refused["Status"] == "5.1.1"
        assert refused["Diagnostic-Code"] == "smtp; 550 5.1.1 x"
        assert "no@to.example" in report.text
        assert report.returned.get_content_type() == "message/rfc822"
        assert b"Hello." in report.returned.as_bytes()
        nursery.cancel_scope.cancel()


@trio_test
async def test_success_is_reported_where_it_was_asked_for_and_nobody_else_will(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        home, able = await open_peer(nursery), await open_peer(nursery)
        unable = await open_peer(nursery, "without=DSN")
        async with Node(tmp_path, routes(able=able, unable=unable, **{"from": home})) as node:
            for recipient in ("a@able.example", "b@unable.example"):
                await node.send(CONTENT, recipient, options=["--notify", "success"])
            await node.wait_for(": removed$", 3)
        (notice,) = home.mailbox.messages
        (relayed,) = parse_report(notice.content).recipients
        assert relayed["Final-Recipient"] == "rfc822; b@unable.example"
        assert relayed["Action"] == "relayed"
        assert relayed["Status"].startswith("2.")
        # The other server understood the wish: the report is its business now.
        (passed_on,) = able.mailbox.messages
        assert "NOTIFY=SUCCESS" in passed_on.rcpt_parameters[0]
        nursery.cancel_scope.cancel()


@trio_test
async def test_nobody_is_told_who_does_not_want_to_know(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        home, strict = await open_peer(nursery), await open_peer(nursery, "refuse")
        async with Node(tmp_path, routes(to=strict, node=home, **{"from": home})) as node:
            await node.send(CONTENT, "never@to.example", options=["--notify", "never"])
            never = ["--notify", "never"]
            await node.send(CONTENT, "null@to.example", sender="", options=never)
            await node.wait_for(": removed$", 2)
            assert node.count("status=bounced") == 2
            assert await node.listed() == []
        assert not home.mailbox.messages
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_notice_that_cannot_be_delivered_goes_to_the_postmaster_and_there_ends(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        strict, ours = await open_peer(nursery, "refuse"), await open_peer(nursery)
        async with Node(tmp_path, routes(to=strict, node=ours, **{"from": strict})) as node:
            await node.send(CONTENT, "no@to.example")
            await node.wait_for(": removed$", 3)  # the message, its notice, the double bounce
            (notice,) = ours.mailbox.messages
            assert notice.recipients == ["postmaster@node.example"]
            assert notice.sender == "double-bounce@node.example"
            (failed,) = parse_report(notice.content).recipients
            assert failed["Final-Recipient"] == f"rfc822; {SENDER}"
            ours.behave("refuse")
            await node.send(CONTENT, "no@to.example")
            await node.wait_for(": removed$", 6)
            assert await node.listed() == []
            assert node.count("status=bounced") == 5
        nursery.cancel_scope.cancel()


@trio_test
async def test_an_expired_message_is_returned(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        home, busy = await open_peer(nursery), await open_peer(nursery, "rcpt=450 4.2.1 later")
        main_cf = {**routes(to=busy, **{"from": home}), "maximal_queue_lifetime": "0"}
        async with Node(tmp_path, main_cf) as node:
            queue_id = await node.send(CONTENT, "b@to.example")
            await node.wait_for(f"{queue_id}: from=<{SENDER}>, status=expired, returned to sender")
            await node.wait_for(": removed$", 2)
        (notice,) = home.mailbox.messages
        (expired,) = parse_report(notice.content).recipients
        assert (expired["Action"], expired["Status"]) == ("failed", "4.4.7")
        assert expired["Diagnostic-Code"] == "smtp; 450 4.2.1 later"
        nursery.cancel_scope.cancel()


# --- orders -------------------------------------------------------------------------------------


@trio_test
async def test_orders_are_obeyed_by_a_running_node(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        peer = await open_peer(nursery)
        busy = await open_peer(nursery, "rcpt=450 4.2.1 later")
        main_cf = {
            **routes(to=peer, busy=busy),
            **dict.fromkeys(("minimal_backoff_time", "maximal_backoff_time"), "1h"),
        }
        async with Node(tmp_path, main_cf) as node:
            held = await node.send(CONTENT, "a@to.example", options=["--hold"])
            deferred = await node.send(CONTENT, "b@busy.example")
            await node.wait_for(f"{deferred}: .*status=deferred")
            found = {message["queue_id"]: message["queue_name"] for message in await node.listed()}
            assert found == {held: "hold", deferred: "deferred"}
            assert "1 message put on hold" in await node.checked("queue", "hold", deferred)
            assert CONTENT.decode() in await node.checked("queue", "show", held)

            assert "1 message deleted" in await node.checked("queue", "delete", held)
            assert [message["queue_id"] for message in await node.listed()] == [deferred]
            gone = await node.command("queue", "release", held)
            assert (gone.returncode, held in gone.stderr.decode()) == (os.EX_NOINPUT, True)

            await node.checked("queue", "release", deferred)
            await node.wait_for(f"{deferred}: .*status=deferred", 2)
            await node.checked("queue", "flush", "--domain", "elsewhere.example")
            await node.checked("queue", "flush", "--domain", "busy.example")
            await node.wait_for(f"{deferred}: .*status=deferred", 3)
            busy.behave()
            await node.checked("queue", "requeue", deferred)
            await node.wait_for(f"{deferred}: removed")
            assert node.count(f"{deferred}: .*status=deferred") == 3
            assert await node.checked("queue", "list") == "Mail queue is empty\n"
        assert not peer.mailbox.messages
        assert len(busy.mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_the_queue_of_a_stopped_node_can_be_seen_and_changed(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        peer = await open_peer(nursery)
        node = Node(tmp_path, routes(to=peer))
        async with node:
            await node.send(CONTENT, "a@to.example", options=["--hold"])
        later = await node.send(CONTENT, "b@to.example")
        (first, second) = await node.listed()
        assert (first["queue_name"], second["queue_id"]) == ("hold", later)
        assert "a@to.example" in await node.checked("queue", "list")
        await node.checked("queue", "release", "ALL")
        async with node:
            await node.wait_for(": removed$", 2)
        assert len(peer.mailbox.messages) == 2
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_second_node_on_the_same_queue_is_told_who_holds_it(tmp_path: Path) -> None:
    async with Node(tmp_path) as node:
        second = await node.command("run")
        complaint = second.stderr.decode()
        assert second.returncode == os.EX_TEMPFAIL
        assert str(node.process.pid) in complaint
        assert str(node.queue_directory) in complaint
        assert "Traceback" not in complaint
        await node.send(CONTENT, "a@to.example")  # the first one is none the worse for it


# --- signals and ends ---------------------------------------------------------------------------


@trio_test
async def test_s184_sighup_changes_the_helo_name_of_the_next_session(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        peer = await open_peer(nursery)
        async with Node(tmp_path, routes(to=peer)) as node:
            await node.send(CONTENT, "a@to.example")
            await node.wait_for(": removed$")
            node.configure({"smtp_helo_name": "new.example"})
            node.send_signal(signal.SIGHUP)
            await node.wait_for("configuration reloaded", 2)  # the queue process, the worker
            await node.send(CONTENT, "a@to.example")
            await node.wait_for(": removed$", 2)
            node.configure({"smtp_mail_timeout": "soon"})
            node.send_signal(signal.SIGHUP)
            await node.wait_for("configuration not reloaded: .*smtp_mail_timeout")
            node.configure({"smtp_mail_timeout": "300s"})  # for the command below
            await node.send(CONTENT, "a@to.example")
            await node.wait_for(": removed$", 3)
        assert [item.helo for item in peer.mailbox.messages] == [
            "node.example",
            "new.example",
            "new.example",
        ]
        nursery.cancel_scope.cancel()


@trio_test
async def test_sigterm_before_data_ends_at_once_and_the_message_is_still_queued(
    tmp_path: Path,
) -> None:
    asked = Asked()
    async with trio.open_nursery() as nursery:
        peer = await open_peer(nursery)
        peer.sink.behaviour = Behaviour(silent=Phase.RCPT, recipients=asked)
        node = Node(tmp_path, {**routes(to=peer), "postrio_shutdown_timeout": "300s"})
        async with node:
            await node.send(CONTENT, "a@to.example")
            await asked.event.wait()
        assert node.count("daemon stopped") == 1
        assert [message["queue_name"] for message in await node.listed()] != ["hold"]
        peer.behave()
        async with node:
            await node.wait_for(": removed$")
        assert not node.count(IN_DOUBT)
        assert len(peer.mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_sigterm_after_data_lets_the_delivery_finish(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(tmp_path)
        peer = await open_peer(
            nursery,
            "latency=0.3",
            on_message=lambda _: node.send_signal(signal.SIGTERM),
        )
        node.configure(routes(to=peer))
        await node.start()
        queue_id = await node.send(CONTENT, "a@to.example")
        assert await node.wait_until_ended() == 0
        assert node.count(f"{queue_id}: .*status=sent") == 1
        assert node.count(f"{queue_id}: removed") == 1
        assert await node.listed() == []
        assert len(peer.mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_sigterm_does_not_wait_for_ever_for_a_reply_to_the_final_dot(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(tmp_path)
        peer = await open_peer(
            nursery, "silent=end", on_message=lambda _: node.send_signal(signal.SIGTERM)
        )
        node.configure({**routes(to=peer), "postrio_shutdown_timeout": "1s"})
        await node.start()
        queue_id = await node.send(CONTENT, "a@to.example")
        assert await node.wait_until_ended() == 0
        # It may have arrived: it is sent again, and the log has said so.
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        peer = await open_peer(nursery)
        node.configure(routes(to=peer))
        async with node:
            await node.wait_for(f"{queue_id}: removed")
            assert node.count(f"{queue_id}: .*{IN_DOUBT}")
        assert len(peer.mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_s176_a_killed_worker_is_replaced_and_the_mail_goes_out(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(tmp_path)

        def kill_worker(_: Received) -> None:
            if len(peer.mailbox.messages) == 1:
                (worker,) = node.worker_pids()
                os.kill(worker, signal.SIGKILL)

        peer = await open_peer(nursery, on_message=kill_worker)
        node.configure(routes(to=peer))
        async with node:
            queue_id = await node.send(CONTENT, "a@to.example")
            await node.wait_for(f"{queue_id}: removed")
            assert (
                node.count("worker process 0 was killed by signal SIGKILL -- restarting at once")
                == 1
            )
            assert node.count(f"{queue_id}: .*status=deferred .*{IN_DOUBT}") == 1
            await node.send(CONTENT, "b@to.example")
            await node.wait_for(": removed$", 2)
        assert [item.recipients for item in peer.mailbox.messages] == [
            ["a@to.example"],
            ["a@to.example"],
            ["b@to.example"],
        ]
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_command_that_has_the_queue_open_does_not_keep_a_node_from_starting(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    try:
        async with await open_store(node.queue_directory):
            await node.spawn()
            await node.wait_for("is in use by process .*: waiting for it$")
            node.process.send_signal(signal.SIGHUP)  # it must neither end the node nor be lost
        await node.wait_for(STARTED)
        await node.wait_for("configuration reloaded$")
        assert await node.stop() == 0
    finally:
        await node.abandon()
