"""Transcripts and probes by real processes, and beside Postfix's own.

The node's worker writes a session down, its queue process mails it; Postfix's smtp(8) meets the
same server. Nothing here waits for time to pass.
"""

import os
import re
import smtplib
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance
from tests.integration.node import Node
from tests.integration.test_node import CONTENT, open_peer, parse_report, routes

LIMIT = 40.0
SECRET = "canary-secret"


def transcript(content: bytes) -> list[str]:
    """The lines of a notice that say who spoke."""
    return re.findall(r"^ ((?:In:  |Out: ).*?)\r?$", content.decode(), re.MULTILINE)


@trio_test
async def test_s155_a_session_in_trouble_is_mailed_to_error_notice_recipient(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        odd = await open_peer(nursery, "to:u@odd.example=502 5.5.1 what?")
        errors, home = await open_peer(nursery), await open_peer(nursery)
        main_cf = {
            **routes(odd=odd, errors=errors, **{"from": home}),
            "notify_classes": "protocol",
            "error_notice_recipient": "staff@errors.example",
        }
        async with Node(tmp_path, main_cf) as node:
            queue_id = await node.send(CONTENT, "u@odd.example")
            notice = await errors.mailbox.content()
            await home.mailbox.wait_for(1)  # the bounce, as ever
            await node.wait_for(f"{queue_id}: postmaster notice with a transcript: ")
        (received,) = errors.mailbox.messages
        assert received.sender == "double-bounce@node.example"
        assert received.recipients == ["staff@errors.example"]
        assert queue_id in notice.decode()
        lines = transcript(notice)
        assert lines[0].startswith("In:  220 ")
        assert any(line.startswith("Out: RCPT TO:<u@odd.example>") for line in lines)
        assert "In:  502 5.5.1 what?" in lines
        nursery.cancel_scope.cancel()


@trio_test
async def test_s155_nobody_is_told_by_default(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        odd = await open_peer(nursery, "to:u@odd.example=502 5.5.1 what?")
        home = await open_peer(nursery)
        main_cf = {
            **routes(odd=odd, **{"from": home}),
            "error_notice_recipient": "staff@from.example",
        }
        async with Node(tmp_path, main_cf) as node:
            await node.send(CONTENT, "u@odd.example")
            await node.wait_for(": removed$", 2)
            assert node.count("transcript") == 0
        assert len(home.mailbox.messages) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_s098_no_secret_is_in_a_transcript_or_a_log(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        relay = await open_peer(nursery, "auth=503 5.5.1 not here")
        errors = await open_peer(nursery)
        main_cf = {
            **routes(relay=relay, errors=errors),
            "notify_classes": "protocol",
            "error_notice_recipient": "staff@errors.example",
            "smtp_sasl_auth_enable": "yes",
            # For the server of the message, not for that of the notice: they differ in the nexthop.
            "smtp_sasl_password_maps": (
                f"inline:{{ {relay.route.removeprefix('smtp:')}=user:{SECRET} }}"
            ),
            "smtp_sasl_security_options": "noanonymous",
            "smtp_sasl_mechanism_filter": "plain",
            "smtp_tls_security_level": "none",
        }
        async with Node(tmp_path, main_cf) as node:
            await node.send(CONTENT, "u@relay.example")
            notice = await errors.mailbox.content()
            log = "\n".join(node.log)
        lines = transcript(notice)
        assert "Out: AUTH PLAIN [...]" in lines
        assert "In:  503 5.5.1 [...]" in lines
        for text in (notice.decode(), log):
            assert SECRET not in text
            assert "AHVzZXIAY2FuYXJ5" not in text  # its beginning in base64
        nursery.cancel_scope.cancel()


@trio_test
async def test_s163_sendmail_bv_mails_a_report_and_sends_nothing(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        there = await open_peer(nursery, "to:no@there.example=550 5.1.1 nobody")
        home = await open_peer(nursery)
        async with Node(tmp_path, routes(there=there, home=home)) as node:
            done = await trio.run_process(
                [
                    *(sys.executable, "-m", "worker.cli.sendmail", "-C", str(node.main_cf), "-bv"),
                    *("-f", "me@home.example", "yes@there.example", "no@there.example"),
                ],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
            )
            content = await home.mailbox.content()
            await node.wait_for(": removed$", 2)
            found = {
                match[1]: match[2]
                for line in node.log
                if (match := re.search(r"to=<(.*?)>.* status=(\w+) \(", line))
            }
        assert done.stdout == b"Mail Delivery Status Report will be mailed to <me@home.example>.\n"
        assert found == {
            "yes@there.example": "deliverable",
            "no@there.example": "undeliverable",
            "me@home.example": "sent",
        }
        assert not there.mailbox.messages
        report = parse_report(content)
        assert {each["Final-Recipient"]: each["Action"] for each in report.recipients} == {
            "rfc822; yes@there.example": "deliverable",
            "rfc822; no@there.example": "undeliverable",
        }
        nursery.cancel_scope.cancel()


@trio_test
async def test_s163_deliver_can_probe(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        there = await open_peer(nursery, "to:no@there.example=550 5.1.1 nobody")
        where = there.route.removeprefix("smtp:")
        done = await trio.run_process(
            [
                *(sys.executable, "-m", "worker", "deliver", "--probe", "--nexthop", where),
                *("--sender", "a@x.example", "-r", "yes@there.example", "-r", "no@there.example"),
            ],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "MAIL_CONFIG": os.devnull},
        )
        assert done.returncode == os.EX_UNAVAILABLE, done.stderr
        first, second = done.stdout.decode().splitlines()
        assert first.startswith("yes@there.example: deliverable (250 ")
        assert second.startswith("no@there.example: undeliverable (host ")
        assert b"status=deliverable (250 " in done.stderr
        assert not there.mailbox.messages
        nursery.cancel_scope.cancel()


# --- beside Postfix ------------------------------------------------------------------------------


class _Odd(socketserver.StreamRequestHandler):
    """A server without PIPELINING that says 502 to the recipients of odd.example."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client need not wait for our last words
            self._converse()

    def _converse(self) -> None:
        self._say("220 mx.example ESMTP")
        while line := self.rfile.readline():
            word = line.split()[0].upper()
            if word == b"EHLO":
                self._say("250-mx.example\r\n250 X-ODD")
            elif word == b"RCPT" and b"@odd.example" in line:
                self._say("502 5.5.1 what?")
            elif word == b"DATA":
                self._say("354 go")
                while (text := self.rfile.readline()) not in (b".\r\n", b""):
                    self.server.contents[-1] += text  # type: ignore[attr-defined]
                self.server.contents.append(b"")  # type: ignore[attr-defined]
                self._say("250 2.0.0 taken")
            else:
                self._say("250 2.0.0 ok")

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


@contextmanager
def odd_server() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Odd) as server:
        server.daemon_threads = True
        server.contents = [b""]  # type: ignore[attr-defined]
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        yield server
        server.shutdown()
        thread.join()


NOTICES = {"notify_classes": "protocol", "error_notice_recipient": "staff@errors.example"}


def by_postfix(port: int) -> None:
    relay = f"smtp:[127.0.0.1]:{port}"
    main_cf = {
        **NOTICES,
        "default_transport": relay,
        "relay_transport": relay,
        "relay_domains": "static:all",
        "virtual_mailbox_domains": "",
        "smtpd_relay_restrictions": "permit_mynetworks, reject",
    }
    with PostfixInstance(main_cf=main_cf) as postfix:
        with smtplib.SMTP(postfix.host, postfix.port, timeout=LIMIT) as client:
            client.sendmail("sender@from.example", ["u@odd.example"], CONTENT.decode())
        postfix.wait_until_drained(LIMIT)


async def by_us(port: int, directory: Path) -> None:
    main_cf = {**NOTICES, "default_transport": f"smtp:[127.0.0.1]:{port}"}
    async with Node(directory, main_cf) as node:
        await node.send(CONTENT, "u@odd.example")
        await node.wait_for(": removed$", 3)  # the message, its bounce, and the transcript


def probed(where: str, target: str) -> dict[str, str]:
    """What a probe by `postrio deliver` finds out about each recipient."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "worker", "deliver", "--probe", "--nexthop", where),
            *("-o", f"smtp_address_verify_target={target}", "--sender", "a@x.example"),
            *("-r", "late@there.example"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=LIMIT,
        env={**os.environ, "MAIL_CONFIG": os.devnull},
    )
    return dict(line.split(": ", 1) for line in done.stdout.decode().splitlines())


@pytest.mark.peer("root", "postfix", "master", "smtpd")
@pytest.mark.parametrize(
    ("restriction", "found", "lost"),
    [
        ("reject", "undeliverable (host 127.0.0.1[127.0.0.1] said: 554 5.7.1 ", 0),
        ("permit", "deliverable (354 End data with <CR><LF>.<CR><LF>)", 1),
    ],
)
def test_s163_postfix_is_asked_up_to_data_and_gets_no_message(
    restriction: str, found: str, lost: int
) -> None:
    with PostfixInstance(main_cf={"smtpd_data_restrictions": restriction}) as postfix:
        where = f"[{postfix.host}]:{postfix.port}"
        assert probed(where, "rcpt")["late@there.example"].startswith("deliverable (250 2.1.5 ")
        assert probed(where, "data")["late@there.example"].startswith(found)
        postfix.wait(lambda: postfix.log().count("disconnect from") == 2, LIMIT, "still there")
        assert postfix.log().count("lost connection after DATA") == lost, postfix.log()
        assert not postfix.received()
        assert not postfix.queued()


@pytest.mark.peer("root", "postfix", "master", "smtpd")
@trio_test
async def test_s155_a_transcript_says_what_postfixs_says(tmp_path: Path) -> None:
    told = []
    for client in ("postfix", "ours"):
        with odd_server() as server:
            port = server.server_address[1]
            if client == "postfix":
                await trio.to_thread.run_sync(by_postfix, port)
            else:
                await by_us(port, tmp_path)
            contents: list[bytes] = server.contents  # type: ignore[attr-defined]
            (notice,) = [each for each in contents if b" client: errors from " in each]
        subject = re.search(rb"^Subject: \w+ (.*?)\r$", notice, re.MULTILINE)
        assert subject is not None
        assert subject[1] == b"SMTP client: errors from 127.0.0.1[127.0.0.1]:%d" % port
        # Who we are, and how the session ends, is not the same.
        lines = transcript(notice)
        assert lines[1].startswith("Out: EHLO ")
        del lines[1]
        told.append(lines[: lines.index("In:  502 5.5.1 what?") + 1])
    assert told[0] == told[1]
    assert told[0][-2] == "Out: RCPT TO:<u@odd.example>"
