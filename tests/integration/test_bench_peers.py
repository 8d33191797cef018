"""The Postfix of our own that figures and other tests stand on: it delivers, and leaves nothing."""

import os
import smtplib
from pathlib import Path

import pytest

from bench.load import CountingSink
from bench.postfix_instance import PostfixError, PostfixInstance, missing_program, without_trace

LIMIT = 20.0  # seconds: far more than a delivery takes


def processes_of(directory: Path) -> list[str]:
    """Command lines that name a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if str(directory).encode() in line:
            found.append(line.decode(errors="replace"))
    return found


@pytest.mark.peer("root", "postfix", "master", "smtpd")
def test_what_postfix_received_is_what_was_submitted_and_nothing_stays() -> None:
    content = b"Subject: x\r\n\r\n.dot\r\n..two\r\n\xe9 eight bits\r\n" + b"x" * 3000 + b"\r\n"
    with PostfixInstance(main_cf={"myhostname": "changed.example"}) as postfix:
        with smtplib.SMTP(postfix.host, postfix.port) as client:
            assert b"changed.example" in client.ehlo("client.example")[1]
            client.sendmail("a@example.com", ["b@example.com"], content)
        (message,) = postfix.wait_until_received(1, LIMIT)
        assert without_trace(message) == content.replace(b"\r\n", b"\n")
        postfix.wait_until_drained(LIMIT)
        assert "status=sent" in postfix.log()
        directory = postfix.directory
    assert not directory.exists()
    assert not processes_of(directory)


@pytest.mark.peer("root", "postfix", "master")
def test_a_postfix_that_does_not_start_says_why_and_leaves_nothing() -> None:
    postfix = PostfixInstance(master_cf=["broken line"])
    with pytest.raises(PostfixError, match="master"), postfix:
        pass
    assert not postfix.directory.exists()
    assert not processes_of(postfix.directory)


@pytest.mark.peer("root", "postfix", "master")
def test_a_directory_closed_to_others_is_refused_by_name(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(PostfixError, match="cannot be entered"):
        PostfixInstance(closed / "instance").start()


def test_an_ordinary_user_is_told_that_root_is_needed() -> None:
    assert ("root" in missing_program()) is (os.geteuid() != 0)


@pytest.mark.peer("smtp-sink")
def test_the_counting_sink_counts() -> None:
    with CountingSink() as sink:

        def send() -> None:
            while True:
                try:
                    client = smtplib.SMTP("127.0.0.9", sink.port)
                except ConnectionRefusedError:  # it is starting
                    continue
                with client:
                    for _ in range(3):
                        client.sendmail("a@example.com", ["b@example.com"], b"x\r\n")
                return

        assert sink.time_of(3, LIMIT, begin=send) >= 0
        assert sink.count() == 3
