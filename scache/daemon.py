"""The daemon's life: signals, the lifeline, statistics, and the end."""

import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from scache.log import stamp
from scache.server import Server, ServerSettings

log = logging.getLogger("scache")

_LIFELINE_READ: Final = 64  # octets; what they are does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """How the daemon runs. Field comments name the parameter and its default."""

    server: ServerSettings
    status_update_time: float = 600.0  # seconds: connection_cache_status_update_time
    lifeline: bool = False  # end when standard input does


async def run_daemon(listener: socket.socket, settings: DaemonSettings) -> None:
    """Serve until SIGTERM, SIGINT or the end of the lifeline; what is held gets a QUIT then.

    With a lifeline SIGINT is ignored: it comes from a terminal to the whole group, and the parent
    decides when its workers need no cache any more.
    SIGHUP logs the statistics, and with them begins a new log file where the old one was renamed.
    """
    daemon = _Daemon(Server(settings.server))
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.server.serve, listener)
                nursery.start_soon(daemon.log_regularly, settings.status_update_time)
                ended_by = (
                    {signal.SIGTERM} if settings.lifeline else {signal.SIGTERM, signal.SIGINT}
                )
                nursery.start_soon(daemon.obey, signals, ended_by, nursery.cancel_scope)
                if settings.lifeline:
                    nursery.start_soon(_hold_lifeline, nursery.cancel_scope)
                log.info("connection cache started")
    finally:
        daemon.server.shut()
        daemon.log_statistics()
        log.info("connection cache stopped")


class _Daemon:
    """A server and the interval that its statistics are about."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._begin = time.time()

    async def obey(
        self, signals: AsyncIterator[int], ended_by: Collection[int], everything: trio.CancelScope
    ) -> None:
        async for number in signals:
            if number in ended_by:
                everything.cancel()
                return
            if number == signal.SIGHUP:
                self.log_statistics()
                log.info("log reopened")  # the record that makes it so

    async def log_regularly(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            self.log_statistics()

    def log_statistics(self) -> None:
        for line in self.server.take_counts().lines(stamp(self._begin)):
            log.info("%s", line)
        self._begin = time.time()


async def _hold_lifeline(everything: trio.CancelScope) -> None:
    """End everything when standard input ends: our parent is gone."""
    async with trio.lowlevel.FdStream(os.dup(0)) as lifeline:
        with suppress(trio.BrokenResourceError):
            while await lifeline.receive_some(_LIFELINE_READ):
                pass
    everything.cancel()
