"""What long-running processes (`run`, `worker`) have in common: their log and their limits."""

import gc
import resource
from contextlib import suppress
from typing import Final

from worker.config.config import Config
from worker.status.events import Warned
from worker.status.sinks import LogFormat, LogSettings, open_sink, standard_error
from worker.status.writer import LogWriter

COLLECT_AFTER: Final = 50_000  # container objects made and not freed since the last collection


class ProcessLog:
    """The log of this process under the configuration in force."""

    def __init__(self, config: Config, log_format: LogFormat) -> None:
        """Open it: maillog_file, else standard error. Raises OSError."""
        self._format = log_format
        self._settings = LogSettings.from_config(config, log_format)
        self.writer = LogWriter(open_sink(self._settings, fallback=standard_error), self._settings)
        self._warn(config)

    def reopen(self, config: Config) -> None:
        """SIGHUP: follow a renamed file and new settings. Raises OSError; the old log stays."""
        settings = LogSettings.from_config(config, self._format)
        if settings == self._settings:
            self.writer.reopen()
        else:
            self.writer.configure(settings, open_sink(settings, fallback=standard_error))
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
