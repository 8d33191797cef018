"""Deliveries to a real Postfix smtpd(8), an own instance that stores what it gets."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance, without_trace
from tests.integration.corpus import (
    CORPUS,
    assert_arrived,
    canonical,
    deliver_corpus,
    queue_corpus,
    write_corpus,
)

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd")

LIMIT = 40.0  # seconds for Postfix to deliver what it took


@pytest.fixture(scope="module")
def running() -> Iterator[PostfixInstance]:
    """A running Postfix: it takes seconds to start, so that all tests here share one."""
    with PostfixInstance() as instance:
        yield instance


@pytest.fixture
def postfix(running: PostfixInstance) -> PostfixInstance:
    """The Postfix, with an empty maildir."""
    shutil.rmtree(running.maildir / "all", ignore_errors=True)
    return running


def contents(postfix: PostfixInstance) -> dict[str, bytes]:
    """What arrived, by local part, without what Postfix put in front."""
    found = {}
    for message in postfix.wait_until_received(len(CORPUS) + 1, LIMIT):
        match = re.search(rb"^Delivered-To: (.*)@", message, re.MULTILINE)
        assert match is not None
        found[match[1].decode()] = without_trace(message)
    return found


def as_stored(content: bytes) -> bytes:
    """What Postfix stores of a content: LF line ends, and an empty line before a lone body."""
    text = canonical(content).replace(b"\r\n", b"\n")
    first_line = text.partition(b"\n")[0]
    return text if not text or b":" in first_line else b"\n" + text


def test_postfix_gets_the_corpus_from_deliver_to_the_octet(
    postfix: PostfixInstance, tmp_path: Path
) -> None:
    files = write_corpus(tmp_path)
    deliver_corpus(files, f"[{postfix.host}]:{postfix.port}", "smtp")
    assert_arrived(contents(postfix), files, as_stored)


@trio_test
async def test_postfix_gets_the_corpus_from_the_queue_to_the_octet(
    postfix: PostfixInstance, tmp_path: Path
) -> None:
    files = write_corpus(tmp_path)
    await queue_corpus(files, tmp_path, f"smtp:[{postfix.host}]:{postfix.port}")
    assert_arrived(contents(postfix), files, as_stored)
