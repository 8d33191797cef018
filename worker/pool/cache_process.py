"""The connection cache of this node: one daemon beside the workers, if the configuration wants it.

It listens on `$queue_directory/private/$connection_cache_service_name`, a socket that is bound and
kept here, and is supervised as a worker is. A name that is empty means no cache, an absolute path
one that somebody else serves. Losing it costs connections, never mail.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from worker.config.config import Config
from worker.config.problems import ConfigError, Problem
from worker.pool.cache_command import cache_socket
from worker.pool.child import Child
from worker.status.events import Emit, Warned

PARAMETER = "connection_cache_service_name"
TAKEN = ("control", "worker.")  # how the names of other sockets in private/ begin

Arguments = Callable[[Config], Sequence[str]]  # of the daemon, but for its listening socket


def own_socket(config: Config) -> Path | None:
    """Where a cache of our own listens; None: none is wanted. Raises ConfigError."""
    name = config.text(PARAMETER)
    if not name or name.startswith("/"):
        return None
    if "/" in name or name in (".", "..") or name.startswith(TAKEN):
        setting = config.settings.get(PARAMETER)
        file, line = (setting.file, setting.line) if setting else ("default", 0)
        why = "not a free name below private/; expected one without a slash, as scache"
        raise ConfigError([Problem(file=file, line=line, parameter=PARAMETER, value=name, why=why)])
    return cache_socket(config)


class CacheProcess:
    """The daemon under the configuration in force, from run() to stop()."""

    def __init__(self, config: Config, arguments: Arguments, emit: Emit) -> None:
        """Raises ConfigError."""
        self._arguments = arguments
        self._emit = emit
        self._wanted = self._read(config)
        self._child: Child | None = None
        self._changed = trio.Event()
        self._stopping = False

    def _read(self, config: Config) -> tuple[Path, tuple[str, ...]] | None:
        path = own_socket(config)
        return None if path is None else (path, tuple(self._arguments(config)))

    async def run(self) -> None:
        """Keep it running as it is wanted, until stop() and its end."""
        while not self._stopping:
            self._changed = trio.Event()
            if self._wanted is None:
                await self._changed.wait()
                continue
            path, arguments = self._wanted
            try:
                self._child = Child("connection cache", path, arguments, self._emit)
            except OSError as exc:
                self._emit(Warned(f"no connection cache at {path}: {exc.strerror}"))
                await self._changed.wait()
                continue
            await self._child.supervise()
            self._child = None

    def check(self, config: Config) -> None:
        """Whether reload() would take it. Raises ConfigError."""
        self._read(config)

    def reload(self, config: Config) -> None:
        """Start it anew if its command line is another one now. Raises ConfigError."""
        wanted = self._read(config)
        if wanted != self._wanted:
            self._wanted = wanted
            self._end()

    def stop(self) -> None:
        """Ask it to finish; run() returns when it has."""
        self._stopping = True
        self._end()

    def _end(self) -> None:
        self._changed.set()
        if self._child is not None:
            self._child.stop()
