"""The source as a program, against servers that are not ours; and the scenario that uses it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.postfix_instance import PostfixInstance, free_port, without_trace
from bench.scenarios.submit import CLIENTS, Load, scenario
from tests.integration import dovecot_instance
from tests.integration.corpus import CORPUS, canonical
from tests.integration.dovecot_instance import DovecotInstance
from tests.integration.smtp_sink import SmtpSink

LIMIT = 60.0  # seconds: far more than any of these loads takes
ROOT = Path(__file__).parents[2]


def source(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """The program, run to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "bench.source", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )


def figures(*arguments: str, status: int = 0) -> Mapping[str, Any]:
    """What a load came to, from the JSON on standard output."""
    done = source(*arguments, "--json", "-")
    assert done.returncode == status, done.stderr
    assert not done.stderr  # no bar where there is no terminal
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


# Without those that Postfix completes: it puts an empty line where no header is.
MESSAGES = {name: CORPUS[name] for name in CORPUS if name not in ("empty", "no-header")}
WANTED = sorted(map(canonical, MESSAGES.values()))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Those messages, each in a file of one directory."""
    for name, content in MESSAGES.items():
        (tmp_path / f"{name}.eml").write_bytes(content)
    return tmp_path


@pytest.mark.peer("root", "postfix", "master", "smtpd")
def test_postfix_gets_real_messages_to_the_octet(corpus: Path) -> None:
    count = len(WANTED)
    with PostfixInstance() as postfix:
        found = figures(
            *(f"{postfix.host}:{postfix.port}", "--content", str(corpus), "-s", "3"),
            *("-m", str(count), "--per-connection", "2", "--sender", "s{n}@a.example"),
        )
        messages = postfix.wait_until_received(count, LIMIT)
        log = postfix.log()
    assert found["messages"]["accepted"] == count
    assert found["rate"] > 0
    assert found["times"]["whole message"]["count"] == count
    assert found["times"]["connect"]["count"] >= count // 2
    for number in range(count):
        assert log.count(f"from=<s{number}@a.example>") >= 1
    assert sorted(canonical(without_trace(message)) for message in messages) == WANTED


@pytest.mark.peer("root", "postfix", "master", "smtpd")
def test_what_postfix_refuses_is_counted_with_its_words() -> None:
    limits = {"message_size_limit": "10000", "smtpd_recipient_limit": "2"}
    with PostfixInstance(main_cf=limits) as postfix:
        server = f"{postfix.host}:{postfix.port}"
        large = figures(server, "--size", "20000", "-m", "3", status=os.EX_UNAVAILABLE)
        many = figures(server, "--recipients", "3", "-m", "3", status=os.EX_TEMPFAIL)
    assert large["messages"]["refused"] == 3
    [reply] = [reply for reply in large["replies"] if reply["code"] == 552]
    assert (reply["phase"], reply["count"]) == ("MAIL", 3)
    assert "exceeds fixed limit" in reply["sample"]
    assert large["connections"] == 1  # a refusal ends no connection
    assert many["messages"]["partly accepted"] == 3
    assert many["recipients"] == {"accepted": 6, "deferred": 3, "refused": 0}


@pytest.mark.peer("smtp-sink")
@pytest.mark.parametrize("pipelining", ["--pipelining", "--no-pipelining"])
def test_an_open_load_for_smtp_sink_from_two_addresses(pipelining: str) -> None:
    with SmtpSink() as sink:
        found = figures(
            *(f"127.0.0.1:{sink.port}", "-s", "2", "-m", "20", "--rate", "200", pipelining),
            *("--recipient", "u{n}@b.example", "--size", "uniform:300:9000"),
            *("--source", "127.0.0.7", "--source", "127.0.0.8"),
        )
        received = sink.received()
        dumps = [path.read_bytes() for path in sink.directory.iterdir()]
    assert found["messages"]["accepted"] == 20
    assert found["seconds"] >= 19 / 200  # the last one is due then
    assert found["times"]["late start"]["count"] == 20
    assert sorted(received) == sorted(f"u{number}" for number in range(20))
    # smtp-sink writes LF for CRLF.
    octets = sum(len(content) + content.count(b"\n") for content in received.values())
    assert octets == found["octets"]
    for address in (b"127.0.0.7", b"127.0.0.8"):
        assert any(b"X-Client-Addr: " + address + b"\n" in dump for dump in dumps)


@pytest.mark.peer("smtp-sink")
@pytest.mark.parametrize(
    ("options", "outcome", "phase", "kind"),
    [
        (("-r", "RCPT"), "deferred", "RCPT", "450"),
        (("-f", "MAIL"), "refused", "MAIL", "500"),
        (("-f", "DATA"), "refused", "DATA", "500"),
        (("-f", "."), "refused", "content", "500"),
        (("-Q", "DATA"), "deferred", "DATA", "421"),
        (("-q", "MAIL"), "failed", "MAIL", "connection lost"),
        (("-q", "."), "failed", "content", "connection lost"),
        (("-q", "CONNECT"), "failed", "greeting", "connection lost"),
    ],
)
def test_what_smtp_sink_does_wrong_is_counted(
    options: tuple[str, ...], outcome: str, phase: str, kind: str
) -> None:
    with SmtpSink(*options) as sink:
        found = figures(f"127.0.0.1:{sink.port}", "-m", "3", status=os.EX_UNAVAILABLE)
    assert found["messages"][outcome] == 3
    what = "failures" if outcome == "failed" else "replies"
    key = "kind" if outcome == "failed" else "code"
    counts = {(each["phase"], str(each[key])): each["count"] for each in found[what]}
    assert counts[phase, kind] == 3


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotInstance]:
    """A running Dovecot: it takes a second to stop, so that all tests here share one."""
    with DovecotInstance() as instance:
        yield instance


@pytest.mark.peer("dovecot", "lmtp")
@pytest.mark.parametrize("listener", ["inet", "unix"])
def test_dovecot_gets_each_message_for_each_recipient(
    dovecot: DovecotInstance, corpus: Path, listener: str
) -> None:
    dovecot.forget()
    server = f"unix:{dovecot.socket}" if listener == "unix" else f"127.0.0.1:{dovecot.port}"
    found = figures(
        *(server, "--lmtp", "--content", str(corpus), "-s", "2", "-m", str(len(WANTED))),
        *("--recipients", "2", "--recipient", "u{r}@b.example"),
    )
    assert found["messages"]["accepted"] == len(WANTED)
    assert found["recipients"]["accepted"] == 2 * len(WANTED)
    received = dovecot.received()
    assert sorted(received) == ["u0@b.example", "u1@b.example"]
    for messages in received.values():
        assert sorted(map(dovecot_instance.without_trace, messages)) == WANTED


def test_nobody_there_is_said_and_no_traceback() -> None:
    done = source(f"127.0.0.1:{free_port()}", "-m", "3")
    assert done.returncode == os.EX_UNAVAILABLE
    assert b"Connection refused" in done.stdout
    assert not done.stderr


def test_a_bad_word_is_a_usage_error_and_no_traceback() -> None:
    done = source("127.0.0.1:25", "--size", "4k")
    assert done.returncode == os.EX_USAGE
    assert done.stderr.startswith(b"source: size '4k': expected OCTETS")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_load_that_is_interrupted_reports_all_the_same(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # never says a word
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "bench.source", "--json", "-"),
                f"127.0.0.1:{server.getsockname()[1]}",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        with process:
            assert select.select([server], [], [], LIMIT)[0]  # it has connected: it runs
            process.send_signal(number)
            output = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 128 + number
    found = json.loads(output)
    assert found["messages_begun"] == 1
    assert sum(found["messages"].values()) == 0


def test_submit_measures_postrio_alone_where_there_is_no_postfix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.scenarios.submit.missing_program", lambda: "a Postfix")
    found = scenario(Load(messages=40, alone=4))
    assert set(found.missing.values()) == {"missing: a Postfix"}
    assert len(found.missing) == len(found.contenders) == len(CLIENTS)
    measured = found.contenders["postrio, 20 clients"]()
    assert list(measured) == [figure.name for figure in found.figures]
    assert all(value > 0 for value in measured.values())


@pytest.mark.peer("root", "postfix", "master", "smtpd")
def test_submit_measures_postfix_and_counts_what_is_in_its_queue() -> None:
    found = scenario(Load(messages=40, alone=4))
    assert not found.missing
    assert len(found.contenders) == 2 * len(CLIENTS)
    for name in ("Postfix, 1 client", "Postfix, 20 clients"):
        measured = found.contenders[name]()
        assert list(measured) == [figure.name for figure in found.figures]
        assert all(value > 0 for value in measured.values())
    [target] = found.targets
    assert {target.contender, target.against} <= set(found.contenders)
