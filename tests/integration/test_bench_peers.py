"""The Postfix of our own that figures and tests stand on, the sinks, and draining into them."""

import os
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from bench import drain
from bench.drain import UNCACHED, Load, drain_postfix, drain_postrio
from bench.engine_loops import LOOPS
from bench.harness.costs import PeakMemory, machine_cpu, process_cpu, session_cpu, session_memory
from bench.harness.scenario import LoadError
from bench.load import destinations
from bench.postfix_instance import PostfixError, PostfixInstance, missing_program, without_trace
from bench.scenarios import engine, tls
from bench.sink.far_lane import EARLY
from bench.sink_process import CountingSink, FarSink, OurSink, SinkProcess
from bench.tls_loops import AIOSMTPLIB, NEW, REUSED

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


# --- sinks ---------------------------------------------------------------------------------------


def send(sink: SinkProcess, connections: int, messages: int) -> None:
    """Messages on each of some connections."""
    for number in range(connections):
        with smtplib.SMTP(f"127.0.0.{number + 1}", sink.port) as client:
            for _ in range(messages):
                client.sendmail("a@example.com", ["b@example.com"], b"x\r\n")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(CountingSink, marks=pytest.mark.peer("smtp-sink")),
        pytest.param(partial(FarSink, 0.001), id="FarSink"),
    ],
)
def test_a_sink_counts_and_knows_what_it_costs(make: Callable[[], SinkProcess]) -> None:
    with make() as sink:
        assert sink.count() == 0
        send(sink, 1, 3)
        sink.wait_for(3, time.monotonic() + LIMIT)
        assert sink.count() == 3
        send(sink, 1, 2)
        sink.wait_for(5, time.monotonic() + LIMIT)
        assert sink.count() == 5
        assert sink.cpu() >= 0
    with pytest.raises(LoadError, match="gone"):
        sink.cpu()


def test_a_far_sink_knows_its_connections_and_is_far_away() -> None:
    with FarSink(0.02) as sink:
        began = time.monotonic()
        send(sink, 3, 2)
        # Greeting, EHLO and QUIT; for each message MAIL, RCPT, DATA and the final dot.
        assert time.monotonic() - began >= 3 * (3 + 2 * 4) * (0.02 - EARLY)
        assert sink.connections() == 3


def test_a_sink_that_does_not_come_is_told_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = FarSink(0.02)
    monkeypatch.setattr(sink, "_command", lambda: ["/bin/false"])
    with pytest.raises(LoadError, match=f"does not listen on port {sink.port}"), sink:
        pass
    assert not processes_of(sink._directory)
    assert not sink._directory.exists()


def test_time_is_up_for_messages_that_do_not_come() -> None:
    with FarSink(0.001) as sink:
        send(sink, 1, 1)
        with pytest.raises(LoadError, match="has 1 of 2 messages"):
            sink.wait_for(2, time.monotonic())


def test_cpu_is_counted_by_process_of_a_session() -> None:
    busy = ["/bin/sh", "-c", "while :; do :; done"]
    with subprocess.Popen(busy, start_new_session=True) as child:
        try:
            while not process_cpu(child.pid):
                os.sched_yield()
            assert list(session_cpu(child.pid)) == [child.pid]
            assert 0 < session_cpu(child.pid)[child.pid] < machine_cpu()
        finally:
            child.kill()
    assert session_cpu(child.pid) == {}
    with pytest.raises(LoadError, match=f"process {child.pid} is gone"):
        process_cpu(child.pid)


def test_memory_is_the_most_that_a_session_had_together() -> None:
    hungry = "import os, sys; x = b'x' * 30_000_000; os.fork(); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", hungry], start_new_session=True, stdin=pipe, stdout=pipe
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == child.stdout.readline() == b"\n"
        with PeakMemory(lambda: child.pid) as peak:
            pass  # it looks at least once
        # Two processes share the pages: their sum is not twice as much.
        assert 30e6 < peak.octets < 50e6
        child.communicate()
    assert session_memory(child.pid) == 0


# --- draining ------------------------------------------------------------------------------------


def test_postrio_drains_and_the_cost_of_each_process_is_known() -> None:
    with FarSink(0.001) as sink:
        load = Load(count=40, size=2000, routes=destinations(4, sink.port))
        drained = drain_postrio(sink, load, {"postrio_worker_processes": "3"})
        assert sink.count() == 40
    assert list(drained.cpu) == ["queue", "worker 1", "worker 2", "worker 3", "cache"]
    assert drained.cpu["queue"] > 0
    assert drained.rate > 0
    assert drained.per_cpu == pytest.approx(1000 / sum(drained.cpu.values()))
    assert drained.memory > 20e6  # five processes with Python in them
    # Clocks of one tick, read one after the other: nothing is lost but a few ticks.
    assert drained.others > -1


def test_a_drain_that_brings_nothing_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LIMIT", 0.05)
    with FarSink(0.001) as sink, drain.SinkWatch(sink, 2) as watch:
        with pytest.raises(LoadError, match="no message reached the sink"):
            watch.wait_for_first()
        send(sink, 1, 1)
        monkeypatch.setattr(drain, "LIMIT", LIMIT)
        watch.wait_for_first()
        monkeypatch.setattr(drain, "LIMIT", 0.05)
        with pytest.raises(LoadError, match="the sink has 1 of 2 messages"):
            watch.wait_for_all()
        send(sink, 1, 1)
        monkeypatch.setattr(drain, "LIMIT", LIMIT)
        assert watch.wait_for_all() > 0


@pytest.mark.peer("root", "postfix", "master", "smtp-source")
def test_postfix_drains_through_as_many_sessions_as_it_is_told() -> None:
    with FarSink(0.001) as sink:
        load = Load(count=5, size=2000, routes=destinations(1, sink.port))
        drained = drain_postfix(sink, load, UNCACHED)
        assert (sink.count(), sink.connections()) == (5, 5)
    assert list(drained.cpu) == ["Postfix"]
    assert drained.rate > 0


# --- the engine beside others --------------------------------------------------------------------


LITTLE = engine.Load(count=45, sessions=4, size=2000)


@pytest.mark.peer("smtp-sink")
@pytest.mark.parametrize("name", LOOPS)
def test_each_engine_delivers_what_it_is_measured_by(name: str) -> None:
    assert engine.turn(name, LITTLE)["per_cpu"] > 0


@pytest.mark.peer("smtp-sink")
def test_an_engine_that_fails_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingSink, "count", lambda _: 44)
    with pytest.raises(LoadError, match="44 of 45 messages arrived"):
        engine.turn("bare trio loop", LITTLE)
    with pytest.raises(LoadError, match="no such engine: "):
        engine.turn("no such engine", LITTLE)


# --- inside TLS ----------------------------------------------------------------------------------


INSIDE = tls.Load(count=12, connections=6, shared=9, sessions=3, size=2000)


def test_connections_of_another_process_are_used_and_each_process_is_counted() -> None:
    found = tls.shared_turn(INSIDE)
    assert found["cpu"] == found["user_cpu"] + found["holder_cpu"]
    assert found["all_cpu"] == found["cpu"] + found["cache_cpu"]
    assert min(found.values()) > 0


@pytest.mark.parametrize(("name", "made"), [(REUSED, 3), (NEW, 6), (AIOSMTPLIB, 6)])
def test_sessions_that_are_not_what_they_are_measured_as_are_no_figure(
    monkeypatch: pytest.MonkeyPatch, name: str, made: int
) -> None:
    assert tls.turn(name, INSIDE)["cpu"] > 0
    seen = []
    connections = OurSink.connections

    def one_more(sink: OurSink) -> int:
        seen.append(connections(sink))
        return seen[-1] + 1

    monkeypatch.setattr(OurSink, "connections", one_more)
    with pytest.raises(LoadError, match=f"{made + 1} connections brought"):
        tls.turn(name, INSIDE)
    assert seen == [made]


def test_a_lender_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = OurSink._command

    def in_the_clear(sink: OurSink) -> Sequence[str]:
        return [word.removesuffix(" starttls") for word in usual(sink)]

    monkeypatch.setattr(OurSink, "_command", in_the_clear)
    with pytest.raises(LoadError, match="could not be lent"):
        tls.shared_turn(INSIDE)
