"""The daemon's log: Postfix's lines, JSON, and a thread that nobody waits for."""

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scache.log import JsonFormatter, LineFormatter, LogSettings, ThreadHandler, open_log, stamp

OOPS = "invalid literal for int() with base 10: 'oops'"
WHEN = 1_700_000_000.5


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The daemon's logger, put back afterwards as it was."""
    log = logging.getLogger("scache")
    before = (log.handlers, log.level, log.propagate, logging.raiseExceptions)
    yield log
    log.handlers, log.level, log.propagate, logging.raiseExceptions = before


def record(level: int, text: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    found = None
    if failed:
        try:
            int("oops")
        except ValueError:
            found = sys.exc_info()
    made = logging.LogRecord("scache", level, "", 0, text, arguments, found)
    made.created, made.process = WHEN, 42
    return made


def test_lines_are_postfixs() -> None:
    formatter = LineFormatter("postfix", dated=True)
    host = socket.gethostname().partition(".")[0]
    line = formatter.format(record(logging.INFO, "statistics: %s", "x"))
    assert line == f"{stamp(WHEN)} {host} postfix/scache[42]: statistics: x"
    plain = LineFormatter("mine", dated=False)
    assert plain.format(record(logging.WARNING, "w")) == "mine/scache[42]: warning: w"
    assert plain.format(record(logging.ERROR, "e")) == "mine/scache[42]: error: e"


def test_the_day_has_two_places_whatever_the_locale() -> None:
    assert stamp(0).startswith(("Jan  1 ", "Dec 31 "))


def test_each_line_of_a_traceback_is_a_line_of_the_log() -> None:
    lines = LineFormatter("p", dated=False).format(record(logging.ERROR, "bug", failed=True))
    assert lines.splitlines()[0] == "p/scache[42]: error: bug"
    assert lines.splitlines()[-1] == "p/scache[42]: error: ValueError: " + OOPS
    assert all(line.startswith("p/scache[42]: error: ") for line in lines.splitlines())


def test_json_is_an_object_on_one_line() -> None:
    line = JsonFormatter().format(record(logging.WARNING, "a %s", "b\nc"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": WHEN,
        "program": "scache",
        "pid": 42,
        "severity": "warning",
        "text": "a b\nc",
    }


class Blocked(logging.Handler):
    """A target that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.go.wait(20)
        self.texts.append(record.getMessage())


def test_a_log_that_is_stuck_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    target = Blocked()
    handler = ThreadHandler(target)
    for number in range(1100):
        handler.emit(record(logging.INFO, str(number)))
    handler.start()
    target.go.set()
    handler.close()
    assert target.texts[0] == "0"
    assert target.texts[1] == "100 log records were lost: the log is too slow"
    assert target.texts[-1] == "999"


def test_the_end_does_not_wait_long_for_a_log_that_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scache.log._LAST_WORDS", 0.01)
    target = Blocked()
    handler = ThreadHandler(target)
    handler.start()
    handler.emit(record(logging.INFO, "never written"))
    handler.close()  # returns
    assert target.texts == []
    target.go.set()


def test_the_system_log_gets_facility_and_name(
    tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(str(tmp_path / "log"))
        system.settimeout(20)
        monkeypatch.setattr("scache.log._SYSLOG", str(tmp_path / "log"))
        handler = open_log(LogSettings(syslog_name="mine", facility="local1", syslog=True))
        handler.start()
        logger.warning("hot")
        handler.close()
        octets = system.recv(1000)
    assert octets.startswith(b"<140>mine/scache[")  # local1 is 17, a warning 4
    assert octets.endswith(b"]: warning: hot")


def test_a_log_file_is_for_its_owner_alone_also_after_it_was_renamed(
    tmp_path: Path, logger: logging.Logger
) -> None:
    path = tmp_path / "log"
    handler = open_log(LogSettings(file=path))
    handler.start()
    path.rename(tmp_path / "log.1")
    logger.info("in the new one")
    handler.close()
    assert path.read_text().endswith(": in the new one\n")
    assert [one.stat().st_mode & 0o777 for one in sorted(tmp_path.iterdir())] == [0o600, 0o600]


def test_standard_output_is_not_opened_by_its_name(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = open_log(LogSettings(file=Path("/dev/stdout")))
    handler.start()
    logger.info("said")
    handler.close()
    assert capsys.readouterr().out.endswith("]: said\n")


def test_a_log_file_that_cannot_be_opened_is_an_error_at_once(
    tmp_path: Path, logger: logging.Logger
) -> None:
    del logger
    with pytest.raises(OSError, match="No such file"):
        open_log(LogSettings(file=tmp_path / "absent" / "log"))
