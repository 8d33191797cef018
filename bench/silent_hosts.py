"""Addresses on loopback that never answer a SYN, without a firewall or any rights.

Linux drops the SYN of a connection that does not fit into a listener's queue. So a listener that
holds one connection and never accepts it is silent for everybody else, as a host that is down.
"""

import select
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bench.harness.scenario import LoadError

PROBE = 0.2  # seconds in which an address that is not silent would have answered


class SilentHosts:
    """Silence on one port of some addresses while this context is open."""

    def __init__(self, addresses: Sequence[str], port: int) -> None:
        self._addresses = addresses
        self._port = port
        self._sockets = ExitStack()

    def __enter__(self) -> Self:
        """Raises LoadError when an address is taken, or answers all the same."""
        try:
            for address in self._addresses:
                self._silence(address)
            self._check()
        except BaseException:
            self._sockets.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sockets.close()

    def _silence(self, address: str) -> None:
        listener = self._sockets.enter_context(socket.socket())
        try:
            listener.bind((address, self._port))
            listener.listen(0)  # room for one
        except OSError as exc:
            raise LoadError(f"{address}:{self._port}: {exc.strerror}") from exc
        self._sockets.enter_context(socket.create_connection((address, self._port), PROBE))

    def _check(self) -> None:
        probes = []
        with ExitStack() as opened:
            for address in self._addresses:
                probe = opened.enter_context(socket.socket())
                probe.setblocking(False)  # noqa: FBT003  # its parameter has no name
                probe.connect_ex((address, self._port))
                probes.append(probe)
            _, answered, _ = select.select([], probes, [], PROBE)
        if answered:
            raise LoadError("a full listener answers here: hosts that are down cannot be played")
