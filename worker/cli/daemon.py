"""What long-running processes (`run`, `worker`) have in common: their log and their limits."""

import gc
import os
import resource
from contextlib import suppress
from typing import Final

from worker.cli.exits import CommandError
from worker.config.config import Config
from worker.status.events import Warned
from worker.status.sinks import LogFormat, LogSettings, open_sink, standard_error
from worker.status.writer import LogWriter

COLLECT_AFTER: Final = 50_000  # container objects made and not freed since the last collection


class ProcessLog:
    """The log of this process under the configuration in force."""

    def __init__(self, config: Config, log_format: LogFormat, *, syslog: bool = False) -> None:
        """Open it: maillog_file, else the system's log (`syslog`) or standard error.

        Raises CommandError if the file cannot be opened.
        """
        self._format = log_format
        self._fallback = None if syslog else standard_error
        self._settings = LogSettings.from_config(config, log_format)
        try:
            sink = open_sink(self._settings, fallback=self._fallback)
        except OSError as exc:
            raise CommandError(
                f"cannot open the log, maillog_file = {self._settings.maillog_file}:"
                f" {exc.strerror}; make its directory writable, or name another file",
                os.EX_CANTCREAT,
            ) from exc
        self.writer = LogWriter(sink, self._settings)
        self._warn(config)

    def reopen(self, config: Config) -> None:
        """SIGHUP: follow a renamed file and new settings. Raises OSError; the old log stays."""
        settings = LogSettings.from_config(config, self._format)
        if settings == self._settings:
            self.writer.reopen()
        else:
            self.writer.configure(settings, open_sink(settings, fallback=self._fallback))
            self._settings = settings
        self._warn(config)

    def _warn(self, config: Config) -> None:
        for warning in config.warnings:
            self.writer.emit(Warned(warning))


def raise_descriptor_limit() -> None:
    """Allow ourselves all the open files that we may have: a delivery takes one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # an unlimited hard limit that the kernel does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_collector() -> None:
    """Collect cycles rarely: what a delivery makes is freed by counting references.

    Called when everything is imported. The collector's own pace, made for small programs, would
    walk over ten thousand waiting tasks again and again and find nothing.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)
