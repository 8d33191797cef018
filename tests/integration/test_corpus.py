"""Contents to the octet: what arrives at smtp-sink and at our own sink is what was submitted.

The same corpus goes to Postfix and Dovecot in test_peers_postfix.py and test_peers_dovecot.py.
"""

import json
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from tests.integration.corpus import (
    CORPUS,
    CORPUS_LIMITS,
    assert_arrived,
    canonical,
    deliver_corpus,
    large_content,
    queue_corpus,
    write_corpus,
)
from tests.integration.node import Mailbox, Node, open_sink, port_of, run_command
from tests.integration.smtp_sink import SmtpSink

pytestmark = pytest.mark.peer("smtp-sink")


def as_dumped(content: bytes) -> bytes:
    """What smtp-sink writes of a content: LF line ends."""
    return canonical(content).replace(b"\r\n", b"\n")


def test_the_canonical_form_is_what_the_rules_say() -> None:
    """The tests' own yardstick, by hand."""
    assert canonical(b"") == b""
    assert canonical(b"a") == b"a\r\n"
    assert canonical(b"a\nb\r\nc\n") == b"a\r\nb\r\nc\r\n"
    assert canonical(b"a\rb\r\r\nc\0d\r") == b"a b \r\nc d \r\n"


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_s175_smtp_sink_gets_the_corpus_from_deliver_to_the_octet(
    tmp_path: Path, protocol: str
) -> None:
    files = write_corpus(tmp_path)
    with SmtpSink(*(["-L"] if protocol == "lmtp" else [])) as sink:
        deliver_corpus(files, f"[127.0.0.1]:{sink.port}", protocol)
        assert_arrived(sink.received(), files, as_dumped)


@trio_test
async def test_s175_smtp_sink_gets_the_corpus_from_the_queue_to_the_octet(tmp_path: Path) -> None:
    files = write_corpus(tmp_path)
    with SmtpSink() as sink:
        await queue_corpus(files, tmp_path, f"smtp:[127.0.0.1]:{sink.port}")
        assert_arrived(sink.received(), files, as_dumped)


@trio_test
async def test_both_commands_as_processes_carry_25_mb_from_standard_input(tmp_path: Path) -> None:
    content = large_content()
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        port = port_of(await open_sink(nursery, mailbox))
        done = await run_command(
            *("deliver", "--nexthop", f"[127.0.0.1]:{port}", "--json"),
            *("-o", "smtp_line_length_limit=0"),
            *("--sender", "", "--recipient", "b@to.example"),
            stdin=content,
        )
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert (outcome["status"], outcome["relay"]) == ("sent", f"127.0.0.1[127.0.0.1]:{port}")
        main_cf = {**CORPUS_LIMITS, "default_transport": f"smtp:[127.0.0.1]:{port}"}
        async with Node(tmp_path, main_cf) as node:
            await node.send(content, "b@to.example")
            await node.wait_for(": removed$")
        wanted = canonical(content)
        for received in await mailbox.wait_for(2):
            assert (received.content == wanted, received.size) == (True, len(wanted))
            assert "BODY=8BITMIME" in received.mail_parameters
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_message_as_large_as_allowed_is_taken_and_one_octet_more_is_not(
    tmp_path: Path,
) -> None:
    content = CORPUS["plain"]
    main_cf = {"message_size_limit": str(len(content)), "default_transport": "smtp:[127.0.0.1]:9"}
    async with Node(tmp_path, main_cf) as node:
        await node.send(content, "b@to.example", options=["--hold"])
        done = await node.command("send", "b@to.example", stdin=content + b"x")
        assert done.returncode == 65
        assert b"message_size_limit" in done.stderr
        assert len(await node.listed()) == 1
