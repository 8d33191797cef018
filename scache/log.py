"""The daemon's log: Postfix's lines or JSON, to standard error, a file or the system's log.

Modules log with the standard library; here is what becomes of it. Records are written by a thread
of its own, because a full pipe or a slow disk must not hold up the cache: what finds its queue full
is lost, and counted.
"""

import json
import logging
import logging.handlers
import os
import queue
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Final

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
FACILITIES: Final = tuple(logging.handlers.SysLogHandler.facility_names)
_SYSLOG: Final = "/dev/log"
_WAITING: Final = 1000  # records
_LAST_WORDS: Final = 0.5  # seconds to write what is left at the end
_SEVERITIES: Final = {"INFO": "", "WARNING": "warning", "ERROR": "error", "CRITICAL": "fatal"}


def stamp(when: float) -> str:
    """`Nov  3 08:52:53` in local time, English month names whatever the locale."""
    local = time.localtime(when)
    return f"{MONTHS[local.tm_mon - 1]} {local.tm_mday:2} {time.strftime('%H:%M:%S', local)}"


class LineFormatter(logging.Formatter):
    """Postfix's lines: `Mon DD HH:MM:SS host postfix/scache[pid]: warning: text`.

    Without the part before the name where the system's log adds it.
    """

    def __init__(self, syslog_name: str, *, dated: bool) -> None:
        super().__init__()
        self._name = syslog_name
        self._host = socket.gethostname().partition(".")[0]
        self._dated = dated

    def format(self, record: logging.LogRecord) -> str:
        """One line for each line of the text."""
        severity = _SEVERITIES.get(record.levelname, "")
        head = f"{self._name}/scache[{record.process}]: {severity + ': ' if severity else ''}"
        if self._dated:
            head = f"{stamp(record.created)} {self._host} {head}"
        return "\n".join(head + line for line in _text(self, record).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """The object on one line."""
        found = {
            "time": round(record.created, 6),
            "program": "scache",
            "pid": record.process,
            "severity": _SEVERITIES.get(record.levelname, "") or "info",
            "text": _text(self, record),
        }
        return json.dumps(found, separators=(",", ":"))


def _text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    return text


class ThreadHandler(logging.Handler):
    """Passes records to `target` in a thread, and never waits for it."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)

    def start(self) -> None:
        """Begin to write. After fork() and a change of user, which threads do not survive well."""
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; lose it if the queue is full."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is left, if that can be done soon."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(_LAST_WORDS)
        if not self._thread.is_alive():
            self._target.close()
        super().close()

    def _write(self) -> None:
        while (record := self._queue.get()) is not None:
            self._target.handle(record)
            if self._lost:
                lost, self._lost = self._lost, 0
                text = f"{lost} log records were lost: the log is too slow"
                self._target.handle(
                    logging.LogRecord("scache", logging.WARNING, "", 0, text, None, None)
                )


class LogFile(logging.handlers.WatchedFileHandler):
    """A file that is followed by its name: where the old one was renamed, a new one begins.

    For the owner alone, because other programs of the site may log into it, and what they log are
    people's addresses (Postfix: maillog_file_permissions).
    """

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Where the log goes. Field comments name the parameter."""

    syslog_name: str = "postfix"  # syslog_name
    facility: str = "mail"  # syslog_facility
    file: Path | None = None  # maillog_file; None: standard error, or the system's log
    syslog: bool = False
    json: bool = False


def open_log(settings: LogSettings) -> ThreadHandler:
    """Let the daemon's loggers write there; the caller starts and closes the handler.

    Raises OSError if the file cannot be opened.
    """
    target: logging.Handler
    match str(settings.file or ""):
        case "/dev/stdout":  # not opened by name: it may be a socket, and those have none
            target = logging.StreamHandler(sys.stdout)
        case "/dev/stderr":
            target = logging.StreamHandler()
        case "" if settings.syslog:
            system = logging.handlers.SysLogHandler(_SYSLOG, settings.facility)
            system.append_nul = False
            target = system
        case "":
            target = logging.StreamHandler()
        case name:
            target = LogFile(name)
    if settings.json:
        target.setFormatter(JsonFormatter())
    else:
        dated = settings.file is not None or not settings.syslog
        target.setFormatter(LineFormatter(settings.syslog_name, dated=dated))
    handler = ThreadHandler(target)
    log = logging.getLogger("scache")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [handler]
    logging.raiseExceptions = False  # a full disk is no reason for tracebacks
    return handler
