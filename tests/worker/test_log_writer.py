"""The log of a process: batches, losses, shutdown, renamed files, the system's log."""

import json
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from worker.status.events import MessageRemoved, Noted, SessionOpened, Warned
from worker.status.sinks import (
    DescriptorSink,
    FileSink,
    LogFormat,
    LogSettings,
    Record,
    Stamp,
    SyslogSink,
    open_sink,
)
from worker.status.writer import LogWriter, fan_out

STAMP = Stamp("postfix", host="mail.example", pid=7)


class ListSink:
    """Keeps texts; refuses `fail` batches first."""

    def __init__(self, fail: int = 0) -> None:
        self.batches: list[list[str]] = []
        self.fail = fail
        self.reopened = 0
        self.closed = False

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    def write(self, records: Sequence[Record]) -> int:
        if self.fail:
            self.fail -= 1
            return len(records)
        self.batches.append([record.line.text for record in records])
        return 0

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True


class HangingSink(ListSink):
    """Hangs in write() until released, as a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.entered = trio.Event()
        self.token = trio.lowlevel.current_trio_token()

    def write(self, records: Sequence[Record]) -> int:
        self.token.run_sync_soon(self.entered.set)
        self.release.wait()
        return super().write(records)


def writer(sink: ListSink, limit: int = 100) -> LogWriter:
    return LogWriter(sink, LogSettings(), wall=lambda: 1_000.0, buffer_limit=limit)


@trio_test
async def test_events_between_two_turns_are_one_batch() -> None:
    sink = ListSink()
    log = writer(sink)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        for number in range(3):
            log.emit(Noted(f"{number}"))
        nursery.cancel_scope.cancel()
    assert sink.batches == [["0", "1", "2"]]


@trio_test
async def test_what_is_buffered_at_the_end_is_written() -> None:
    sink = ListSink()
    log = writer(sink, 5_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        nursery.cancel_scope.cancel()
        for number in range(1_200):
            log.emit(Noted(f"{number}"))
    assert sink.texts == [f"{number}" for number in range(1_200)]


@trio_test
async def test_a_full_buffer_loses_lines_and_says_how_many() -> None:
    sink = ListSink()
    log = writer(sink, limit=2)
    for number in range(5):
        log.emit(Noted(f"{number}"))
    log.flush()
    assert sink.texts == ["0", "1", "warning: 3 log records were lost: the log was full or failed"]


@trio_test
async def test_lines_that_a_sink_lost_are_reported_when_it_works_again() -> None:
    sink = ListSink(fail=2)
    log = writer(sink)
    log.emit(Noted("a"))
    log.emit(Noted("b"))
    log.flush()
    assert (sink.texts, log.lost) == ([], 2)
    log.emit(Noted("c"))
    log.flush()
    assert sink.texts == ["c", "warning: 2 log records were lost: the log was full or failed"]


@trio_test
async def test_a_sink_that_hangs_stops_neither_emit_nor_the_shutdown(
    autojump_clock: MockClock,
) -> None:
    sink = HangingSink()
    log = writer(sink, limit=3)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.emit(Noted("stuck"))
        await sink.entered.wait()
        for _ in range(10):
            log.emit(Noted("more"))
        assert log.lost == 7
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(2.0)  # FINAL_LIMIT, on the virtual clock
    log.close()  # leaves the sink to the thread that hangs in it
    assert not sink.closed
    sink.release.set()


@trio_test
async def test_a_new_sink_takes_over_and_the_old_one_is_closed() -> None:
    old, new = ListSink(), ListSink()
    log = writer(old)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.emit(Noted("a"))
        await wait_all_tasks_blocked()
        log.flush()
        log.configure(LogSettings(), new)
        log.reopen()
        log.emit(Noted("b"))
        nursery.cancel_scope.cancel()
    assert "b" in new.texts
    assert old.closed
    assert new.reopened == 1
    log.close()
    assert new.closed


def test_a_renamed_file_is_followed_by_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "maillog"
    log = LogWriter(FileSink(path, STAMP), LogSettings(), wall=lambda: 0.0)
    log.emit(Noted("first"))
    log.flush()
    path.rename(tmp_path / "maillog.1")
    log.emit(Noted("second"))
    log.close()
    assert (tmp_path / "maillog.1").read_text().endswith("mail postfix/postrio[7]: first\n")
    assert path.read_text().endswith("mail postfix/postrio[7]: second\n")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_opened_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_sink(LogSettings(maillog_file=str(tmp_path / "no" / "maillog")))


def test_a_closed_pipe_counts_losses_and_raises_nothing() -> None:
    receiving, sending = os.pipe()
    os.close(receiving)
    log = LogWriter(DescriptorSink(sending, STAMP), LogSettings(), wall=lambda: 0.0)
    log.emit(Noted("x"))
    log.flush()
    log.close()
    os.close(sending)
    assert log.lost == 1


def test_a_json_log_has_one_object_for_each_event(tmp_path: Path) -> None:
    path = tmp_path / "log"
    settings = LogSettings(format=LogFormat.JSON)
    log = LogWriter(FileSink(path, STAMP), settings, wall=lambda: 12.5)
    log.emit(Warned("x\ny"))
    log.emit(SessionOpened("mx[192.0.2.1]:25"))
    log.close()
    first, second = [json.loads(text) for text in path.read_text().splitlines()]
    assert first == {
        "time": 12.5,
        "program": "postrio",
        "severity": "warning",
        "event": "warned",
        "text": "x\ny",
        "queue_id": "",
    }
    assert second["event"] == "session_opened"


def test_s161_syslog_gets_a_datagram_for_each_line_with_facility_and_severity(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "dev-log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        log = LogWriter(SyslogSink("local3", STAMP, path), LogSettings(), wall=lambda: 0.0)
        log.emit(MessageRemoved("3kQ1"))
        log.emit(Warned("x"))
        log.flush()
        texts = [server.recv(4096).decode() for _ in range(2)]
        log.close()
    assert texts[0].startswith(f"<{19 * 8 + 6}>")
    assert texts[0].endswith(" postfix/qmgr[7]: 3kQ1: removed")
    assert texts[1].startswith(f"<{19 * 8 + 4}>")
    assert texts[1].endswith(" postfix/postrio[7]: warning: x")


def test_a_restarted_log_daemon_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "dev-log"
    log = LogWriter(SyslogSink("mail", STAMP, str(path)), LogSettings(), wall=lambda: 0.0)
    for text in ("one", "two"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(str(path))
            log.emit(Noted(text))
            log.flush()
            assert server.recv(4096).decode().endswith(text)
        path.unlink()
    log.emit(Noted("three"))
    log.flush()
    assert log.lost == 1
    log.close()


def test_a_line_has_the_time_of_its_event_as_syslog_writes_it() -> None:
    assert STAMP.time(0.0)[3] == " "
    assert len(STAMP.time(1_700_000_000.9)) == len("Nov 14 22:13:20")


def test_every_subscriber_sees_every_event() -> None:
    seen: list[tuple[int, object]] = []
    emit = fan_out(lambda event: seen.append((1, event)), lambda event: seen.append((2, event)))
    emit(Noted("x"))
    assert seen == [(1, Noted("x")), (2, Noted("x"))]
