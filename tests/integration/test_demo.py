"""The demonstration of `make run`, and the commands of the bench below it, as processes."""

import os
import re
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 90.0  # seconds: far more than any of these takes


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python module as a process, once it said where it listens; that line."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()
            process.wait()


def test_a_sink_process_says_where_it_listens_and_ends_on_sigterm(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with running("bench.sink", "--listen", "127.0.0.1:0", "--record", str(record)) as (sink, line):
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", line)
        assert found is not None
        with smtplib.SMTP("127.0.0.1", int(found[1])) as client:
            client.sendmail("a@example.com", ["b@example.com"], b"Subject: x\r\n\r\n.dot\r\n")
        sink.send_signal(signal.SIGTERM)
        assert sink.stdout is not None
        assert "messages=1 recipients=1" in sink.stdout.read()
        assert sink.wait(LIMIT) == 0
    assert record.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["bench.sink", "--listen", "nonsense"], os.EX_USAGE, "expected ADDRESS:PORT"),
        (["bench.sink", "--listen", "127.0.0.1:0 nonsense"], os.EX_USAGE, "'nonsense'"),
        (["bench.sink", "--listen", "192.0.2.1:0"], os.EX_OSERR, "Cannot assign"),
        (["bench.dns", "--zone", "/nonexistent"], os.EX_NOINPUT, "No such file"),
        (["bench.dns", "--zone", __file__], os.EX_DATAERR, "line 1"),
    ],
)
def test_wrong_use_ends_with_its_status(arguments: list[str], status: int, complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demonstration_settles_every_example_twice_in_a_row(tmp_path: Path) -> None:
    for _ in range(2):  # the queue of the first run is still there in the second
        done = subprocess.run(
            [sys.executable, "-m", "bench.demo", "--once", "--var", str(tmp_path / "var")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        summary = done.stdout.splitlines()[-1]
        # Two recipients are refused, and their notices are delivered; two messages are greylisted.
        assert re.fullmatch(
            r"10 examples and 2 notices, 17 recipients: 15 sent, 0 still deferred, 2 bounced; "
            r"[2-9] attempts were deferred on the way",
            summary,
        ), summary
        assert "status=deferred" in done.stdout
        assert "relay=mx2.twin.example[127.0.0.7]" in done.stdout


def test_an_interrupted_demonstration_says_what_is_left(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.demo", "--once", "--var", str(tmp_path / "var")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()  # postrio speaks: it is running
    assert line
    process.send_signal(signal.SIGTERM)
    said, complaint = process.communicate(timeout=LIMIT)
    assert process.returncode == os.EX_TEMPFAIL
    assert "not settled" in complaint
    assert "examples and" in said
    assert "Traceback" not in complaint
