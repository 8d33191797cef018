"""From an endpoint to an open stream: one connect, or a race among endpoints of equal preference.

Answers for: source addresses, the time limit of a connect, what a failed connect is called, and
that no stream is left open, whoever is cancelled when. Not here: which endpoints there are and
in which order (`endpoints.py`), nor anything that is said on the stream.

Only connects are raced, never a mail transaction: until the first command, closing a connection has
no consequence.
"""

import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import trio

from worker.errors import ConnectError
from worker.network.address import Endpoint
from worker.network.endpoints import SMTP_PORT
from worker.network.socket_stream import QuickStream
from worker.status.events import Emit, Warned


class Dialer(Protocol):
    """Opens streams: TCP and UNIX sockets in production, scripted peers in tests."""

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        """Return a connected stream, the caller's to close.

        Raises OSError. Whatever was opened is closed when this raises or is cancelled.
        """
        ...  # pragma: no cover


WRONG_PORT: Final = "LMTP must not be used at port 25, which is that of SMTP (RFC 2033 section 5)"


class SourceAddressError(OSError):
    """The configured source address cannot be used, and must be (smtp_bind_address_enforce)."""


@dataclass(slots=True, kw_only=True, eq=False)
class SocketDialer:
    """Dials TCP and UNIX stream sockets. They are close-on-exec, and TCP does not delay."""

    # Source address of each family (smtp_bind_address, smtp_bind_address6, inet_interfaces);
    # none for a family: the kernel's choice.
    sources: Mapping[socket.AddressFamily, str] = field(default_factory=dict)
    enforce_source: bool = False  # smtp_bind_address_enforce (no)
    # Where relative paths of UNIX sockets start (queue_directory).
    socket_directory: Path = Path("/")
    emit: Emit = lambda event: None
    lmtp: bool = False  # what will be spoken
    _warned: bool = field(default=False, init=False)  # of its port

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        """Return a connected stream; see `Dialer.dial`."""
        if self.lmtp and endpoint.port == SMTP_PORT and not self._warned:
            self._warned = True
            self.emit(Warned(f"LMTP to {endpoint.relay}: {WRONG_PORT}"))
        sock = trio.socket.socket(endpoint.family, socket.SOCK_STREAM)
        try:
            await self._bind(sock, endpoint)
            await sock.connect(self._target(endpoint))
            return QuickStream(socket.socket(fileno=sock.detach()))
        except BaseException:  # cancelled too: nobody else knows this socket
            sock.close()
            raise

    async def _bind(self, sock: trio.socket.SocketType, endpoint: Endpoint) -> None:
        source = self.sources.get(endpoint.family)
        if source is None:
            return
        try:
            await sock.bind((source, 0))
        except OSError as exc:
            text = f"cannot bind to source address {source}: {describe(exc)}"
            if self.enforce_source:
                raise SourceAddressError(exc.errno, text) from exc
            self.emit(Warned(text))

    def _target(self, endpoint: Endpoint) -> tuple[str, int] | bytes:
        if endpoint.family != socket.AF_UNIX:
            return endpoint.address, endpoint.port
        return os.fsencode(self.socket_directory / endpoint.address)


async def connect(endpoint: Endpoint, dialer: Dialer, limit: float) -> trio.abc.Stream:
    """Return a stream to `endpoint`, the caller's to close.

    `limit`: seconds (smtp_connect_timeout), 0: the kernel's own limit. Raises ConnectError.
    """
    try:
        with trio.move_on_after(limit or float("inf")):
            return await dialer.dial(endpoint)
    except SourceAddressError as exc:
        # Our own mistake, not the site's; the next endpoint may be of the other family.
        raise _failed(endpoint, "4.4.0", describe(exc)) from exc
    except OSError as exc:
        raise _failed(endpoint, "4.4.1", describe(exc)) from exc
    except ValueError as exc:  # what Python's own sockets refuse, such as a NUL in a path
        raise _failed(endpoint, "4.4.1", str(exc)) from exc
    raise _failed(endpoint, "4.4.1", "Connection timed out")


async def connect_any(
    endpoints: Sequence[Endpoint], dialer: Dialer, stagger: float, limit: float
) -> tuple[Endpoint, trio.abc.Stream]:
    """Return the first of `endpoints` to connect and its stream, the caller's to close.

    `endpoints`: at least one, all of equal preference (the caller's duty: a race must not prefer
    a worse MX). They start in order; the next one after `stagger` seconds or as soon as the last
    one failed; infinite: one after another. Losers are closed before this returns. `limit`: seconds
    for each of them, as for `connect()`. Raises ConnectError; its `failures` name every endpoint.
    """
    connected: list[tuple[Endpoint, trio.abc.Stream]] = []
    failures: list[ConnectError] = []

    async def attempt(endpoint: Endpoint, failed: trio.Event) -> None:
        try:
            connected.append((endpoint, await connect(endpoint, dialer, limit)))
        except ConnectError as exc:
            failures.append(exc)
            failed.set()  # the next endpoint need not wait out the stagger
        else:
            nursery.cancel_scope.cancel()  # the others lose; dial() closes what it opened

    async with closing_leftovers(connected):  # on success, error and cancellation alike
        async with trio.open_nursery() as nursery:
            for endpoint in endpoints:
                failed = trio.Event()
                nursery.start_soon(attempt, endpoint, failed)
                with trio.move_on_after(stagger):
                    await failed.wait()
        if connected:
            return connected.pop(0)  # a second winner of the same tick is closed
    last = failures[-1]
    raise ConnectError(last.dsn, last.reason, failures=tuple(failures)) from last


@asynccontextmanager
async def closing_leftovers(
    connected: list[tuple[Endpoint, trio.abc.Stream]],
) -> AsyncIterator[None]:
    """Close what is still in `connected` on the way out, also under cancellation."""
    try:
        yield
    finally:
        # Nothing here can block: a forceful close does not wait for the peer. The shield is for
        # the rest of the list, and for the winner that is on its way to the caller.
        with trio.CancelScope(shield=True):
            for _, stream in connected:
                await trio.aclose_forcefully(stream)


def describe(error: OSError) -> str:
    """Return the system's text for `error`, as in Postfix's logs."""
    # trio and Python put their own words around some errors; errno has the plain ones. Those of
    # getaddrinfo (a scope that does not exist) are negative, and of another table.
    if isinstance(error, SourceAddressError | socket.gaierror):
        return error.strerror or str(error)
    if error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _failed(endpoint: Endpoint, dsn: str, why: str) -> ConnectError:
    return ConnectError(dsn, f"connect to {endpoint.relay}: {why}", endpoint=endpoint)
