"""Where log lines go: standard error, standard output, a file, the system's log.

A sink takes records (`Record`) by the batch and writes them with as few system calls as it can.
`write` may block, so it is called in a thread of its own (`writer.py`); it never raises, but
returns how many records were lost. Nothing here is shared between threads without that writer.
"""

import contextlib
import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from protocol.value import value
from worker.config.config import Config
from worker.status.delays import DEFAULT_RESOLUTION
from worker.status.log import JsonValue, LogLine, Severity

BLOCKED_LIMIT: Final = 5.0  # seconds to wait for room in a pipe or in the system log's socket
SYSLOG_SOCKET: Final = "/dev/log"
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# syslog(3): facilities and priorities by name. Not logging.handlers: that is a handler for the
# logging module, formats one record at a time and prints its failures.
FACILITIES: Final = {
    name: number
    for number, name in enumerate(
        (
            *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron"),
            *("authpriv", "ftp"),
        )
    )
} | {f"local{number}": 16 + number for number in range(8)}
PRIORITIES: Final = {Severity.ERROR: 3, Severity.WARNING: 4, Severity.INFO: 6}


class LogFormat(Enum):
    """How a record is written."""

    TEXT = "text"  # Postfix's lines
    JSON = "json"  # one object for each event


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the configuration says about the log. Field comments name the parameter."""

    syslog_name: str = "postfix"  # syslog_name
    facility: str = "mail"  # syslog_facility
    maillog_file: str = ""  # maillog_file; empty: the caller's choice
    resolution: int = DEFAULT_RESOLUTION  # delay_logging_resolution_limit
    format: LogFormat = LogFormat.TEXT  # --log-format

    @classmethod
    def from_config(cls, config: Config, log_format: LogFormat = LogFormat.TEXT) -> "LogSettings":
        """Read the parameters; the configuration was checked when it was loaded."""
        return cls(
            syslog_name=config.text("syslog_name"),
            facility=config.choice("syslog_facility"),
            maillog_file=config.text("maillog_file"),
            resolution=config.integer("delay_logging_resolution_limit"),
            format=log_format,
        )


@value()
class Record:
    """What a sink writes: a line, or with `json` set the event as an object."""

    when: float  # wall-clock seconds
    line: LogLine
    json: dict[str, JsonValue] | None = None


class Sink(Protocol):
    """Takes batches of records."""

    def write(self, records: Sequence[Record]) -> int:
        """Write them, and return how many were lost. May block for seconds; never raises."""

    def reopen(self) -> None:
        """Start a new file where the old one was renamed (SIGHUP). Never raises."""

    def close(self) -> None:
        """Release what was opened."""


class Stamp:
    """The first part of a line: `Mon DD HH:MM:SS host syslog_name/program[pid]: `.

    Local time, English month names whatever the locale, as Postfix's and syslog's readers expect.
    """

    def __init__(
        self, syslog_name: str, *, host: str | None = None, pid: int | None = None
    ) -> None:
        self._name = syslog_name
        self._host = (socket.gethostname() if host is None else host).partition(".")[0]
        self._pid = os.getpid() if pid is None else pid
        self._second = -1
        self._time = ""
        self._heads: dict[str, str] = {}  # what lines of this second begin with, by program

    def text(self, record: Record) -> str:
        """One whole line, with its line end."""
        line, time = record.line, self.time(record.when)
        head = self._heads.get(line.program)
        if head is None:
            head = f"{time} {self._host} {self.tag(line.program)}: "
            self._heads[line.program] = head
        return f"{head}{line.text}\n"

    def tag(self, program: str) -> str:
        """`postfix/smtp[123]`."""
        return f"{self._name}/{program}[{self._pid}]"

    def time(self, when: float) -> str:
        """`Nov  3 08:52:53`."""
        second = int(when)
        if second != self._second:  # thousands of lines fall into one second
            local = time.localtime(second)
            self._second = second
            self._heads.clear()
            self._time = (
                f"{MONTHS[local.tm_mon - 1]} {local.tm_mday:2} {time.strftime('%H:%M:%S', local)}"
            )
        return self._time


class DescriptorSink:
    """Lines to an open descriptor, e.g. standard error. Does not own it."""

    def __init__(self, fd: int, stamp: Stamp) -> None:
        self._fd = fd
        self._stamp = stamp

    def write(self, records: Sequence[Record]) -> int:
        """One write for the batch, more where the descriptor takes less."""
        return _write_records(self._fd, records, self._stamp)

    def reopen(self) -> None:
        """Nothing to reopen."""

    def close(self) -> None:
        """Nothing to close: the descriptor is somebody else's."""


class FileSink:
    """Lines appended to a file (maillog_file), which may be renamed under us at any time.

    Several processes may append to one file: each batch is one write with O_APPEND.
    """

    def __init__(self, path: Path, stamp: Stamp) -> None:
        """Open the file now. Raises OSError, so that a wrong name is a start-up error."""
        self._path = path
        self._stamp = stamp
        self._fd = self._open()

    def write(self, records: Sequence[Record]) -> int:
        """Append the batch; to a new file if the old one was renamed or removed."""
        if self._renamed():
            self.reopen()
        if self._fd < 0:
            return len(records)
        return _write_records(self._fd, records, self._stamp)

    def reopen(self) -> None:
        """Open by name, and then close the old one; if that fails, the next write tries again.

        Until then lines go to the renamed file: better there than nowhere. A process that has gone
        into a jail stays with it.
        """
        with contextlib.suppress(OSError):
            opened = self._open()
            self.close()
            self._fd = opened

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        # Nobody but the owner: addresses are personal data (Postfix: maillog_file_permissions).
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _renamed(self) -> bool:
        if self._fd < 0:
            return True
        try:
            named, ours = self._path.stat(), os.fstat(self._fd)
        except OSError:
            return True
        return (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino)


class SyslogSink:
    """One datagram for each line to the system's log, connected again when it was restarted."""

    def __init__(self, facility: str, stamp: Stamp, path: str = SYSLOG_SOCKET) -> None:
        """Connect on first use: the log daemon may start after us."""
        self._facility = FACILITIES[facility]
        self._stamp = stamp
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, records: Sequence[Record]) -> int:
        """Send the batch; what the daemon does not take in BLOCKED_LIMIT seconds is lost."""
        lost = 0
        for position, line in enumerate(records):
            if self._send(line):
                continue
            self.close()
            if not self._send(line):  # a daemon restarted has a new socket: one more try
                lost = len(records) - position
                break
        return lost

    def reopen(self) -> None:
        """Connect anew at the next line."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, record: Record) -> bool:
        priority = self._facility * 8 + PRIORITIES[record.line.severity]
        text = _json_text(record) if record.json is not None else record.line.text
        tag = self._stamp.tag(record.line.program)
        line = f"<{priority}>{self._stamp.time(record.when)} {tag}: {text}"
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(BLOCKED_LIMIT)
                self._socket.connect(self._path)
            self._socket.send(line.encode("utf-8", "replace"))
        except OSError:
            return False
        return True


def open_sink(settings: LogSettings, *, fallback: Callable[[Stamp], Sink] | None = None) -> Sink:
    """The sink of maillog_file; when that is empty, `fallback` (default: the system's log).

    /dev/stdout and /dev/stderr mean our own descriptors. Raises OSError when the file cannot be
    opened.
    """
    stamp = Stamp(settings.syslog_name)
    match settings.maillog_file:
        case "":
            if fallback is not None:
                return fallback(stamp)
            return SyslogSink(settings.facility, stamp)
        case "/dev/stdout":
            return DescriptorSink(1, stamp)
        case "/dev/stderr":
            return DescriptorSink(2, stamp)
        case path:
            return FileSink(Path(path), stamp)


def standard_error(stamp: Stamp) -> Sink:
    """The fallback of commands that log to their standard error."""
    return DescriptorSink(2, stamp)


def _write_records(fd: int, records: Sequence[Record], stamp: Stamp) -> int:
    """Write whole lines; returns how many were not, or not wholly, written."""
    lines = [
        stamp.text(record) if record.json is None else _json_text(record) + "\n"
        for record in records
    ]
    unwritten = memoryview("".join(lines).encode("utf-8", "replace"))
    while unwritten:
        try:
            unwritten = unwritten[os.write(fd, unwritten) :]
        except BlockingIOError:  # somebody made the shared descriptor non-blocking
            if not select.select([], [fd], [], BLOCKED_LIMIT)[1]:
                break
        except OSError as exc:
            if exc.errno != errno.EINTR:
                break
    return bytes(unwritten).count(b"\n")  # no line has another one than that at its end


def _json_text(record: Record) -> str:
    found: dict[str, JsonValue] = {"time": round(record.when, 6), "program": record.line.program}
    found["severity"] = record.line.severity.value or "info"
    return json.dumps(found | (record.json or {}), separators=(",", ":"))
