"""Deliveries to Dovecot's LMTP, over TCP and over a UNIX socket."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from tests.integration.corpus import (
    CORPUS,
    assert_arrived,
    canonical,
    deliver_corpus,
    queue_corpus,
    write_corpus,
)
from tests.integration.dovecot_instance import DovecotInstance, without_trace
from tests.integration.node import Node
from worker.cli import invoke

pytestmark = pytest.mark.peer("dovecot", "lmtp")


@pytest.fixture(scope="module")
def running() -> Iterator[DovecotInstance]:
    """A running Dovecot: it takes a second to stop, so that all tests here share one."""
    with DovecotInstance() as instance:
        yield instance


@pytest.fixture
def dovecot(running: DovecotInstance) -> DovecotInstance:
    """The Dovecot, with empty mailboxes."""
    running.forget()
    return running


def contents(dovecot: DovecotInstance) -> dict[str, bytes]:
    """What arrived, by local part: one message each, without what Dovecot put in front."""
    found = {}
    for address, messages in dovecot.received().items():
        (message,) = messages
        found[address.partition("@")[0]] = without_trace(message)
    return found


@pytest.mark.parametrize("listener", ["inet", "unix"])
def test_dovecot_gets_the_corpus_from_deliver_to_the_octet(
    dovecot: DovecotInstance, tmp_path: Path, listener: str
) -> None:
    nexthop = f"[127.0.0.1]:{dovecot.port}" if listener == "inet" else f"unix:{dovecot.socket}"
    files = write_corpus(tmp_path)
    deliver_corpus(files, nexthop, "lmtp")
    assert_arrived(contents(dovecot), files, canonical)


@pytest.mark.parametrize("listener", ["inet", "unix"])
@trio_test
async def test_dovecot_gets_the_corpus_from_the_queue_to_the_octet(
    dovecot: DovecotInstance, tmp_path: Path, listener: str
) -> None:
    files = write_corpus(tmp_path)
    where = f"inet:[127.0.0.1]:{dovecot.port}" if listener == "inet" else f"unix:{dovecot.socket}"
    await queue_corpus(files, tmp_path, f"lmtp:{where}")
    assert_arrived(contents(dovecot), files, canonical)


def test_s008_each_recipient_has_the_reply_that_dovecot_gave_for_it(
    dovecot: DovecotInstance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Dovecot cannot make a mailbox below a file: that recipient fails after the final dot.
    (dovecot.directory / "mail" / "full@to.example").touch()
    file = tmp_path / "message"
    file.write_bytes(CORPUS["plain"])
    arguments = ["deliver", str(file), "--sender", "", "--protocol", "lmtp", "--json"]
    arguments += ["--nexthop", f"unix:{dovecot.socket}"]
    for name in ("one", "full", "two"):
        arguments += ["--recipient", f"{name}@to.example"]
    assert invoke(arguments) == 75
    outcomes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(item["recipient"], item["status"]) for item in outcomes] == [
        ("one@to.example", "sent"),
        ("full@to.example", "deferred"),
        ("two@to.example", "sent"),
    ]
    for item in outcomes:
        assert item["relay"].endswith(f"[{dovecot.socket}]")
    assert "<one@to.example>" in outcomes[0]["reply"]
    assert "<two@to.example>" in outcomes[2]["reply"]
    assert sorted(dovecot.received()) == ["one@to.example", "two@to.example"]


@trio_test
async def test_one_session_carries_message_after_message(
    dovecot: DovecotInstance, tmp_path: Path
) -> None:
    main_cf = {
        "default_transport": f"lmtp:unix:{dovecot.socket}",
        "lmtp_destination_concurrency_limit": "1",
        "initial_destination_concurrency": "1",
    }
    async with Node(tmp_path, main_cf) as node:
        for _ in range(5):
            await node.send(CORPUS["plain"], "b@to.example", options=["--hold"])
        await node.checked("queue", "release", "ALL")
        await node.wait_for(": removed$", 5)
        assert node.count("conn_use=5") == 1
    assert [len(messages) for messages in dovecot.received().values()] == [5]
