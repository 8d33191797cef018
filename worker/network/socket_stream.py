"""A stream over a socket that is tried before it is waited for.

As trio.SocketStream, without its checkpoint around every call that could do at once what it was
asked to: on a busy session that is most of them, and a switch of tasks costs more than the system
call. So a call that need not wait is no checkpoint. Deliveries bear that: a dialogue is finite, and
waits for its peer after every flight.
"""

import select
import socket
from abc import abstractmethod
from contextlib import suppress
from typing import ClassVar, Final

import trio

RECEIVE_SIZE: Final = 65_536


class EagerStream(trio.abc.Stream):
    """A stream that can be asked to do what it can do at once."""

    # A receive returns all that has come, if there is room: whoever was not given more knows that
    # the peer has said no more. False: some of it may have been kept for the next one.
    receives_all: ClassVar[bool] = True

    @abstractmethod
    def send_nowait(self, data: bytes) -> int:
        """Send what can be sent at once; how much that was. Errors show at the next send_all()."""

    @abstractmethod
    async def wait_and_receive(self, max_bytes: int) -> bytes:
        """As receive_some(), for who knows that it has to wait; a broken connection is an end."""

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What is there to be received; none at any end; None: nothing is there yet."""

    @abstractmethod
    def is_quiet(self) -> bool:
        """Nothing is there to be received, not even an end."""


class QuickStream(EagerStream):
    """Owns `socket`, a connected stream socket of any family. One sender and one receiver."""

    def __init__(self, sock: socket.socket) -> None:
        """Make it non-blocking; of TCP, have it send at once what it is given."""
        self.socket = sock
        self._poll: select.poll | None = None
        sock.setblocking(False)  # noqa: FBT003  # its parameter has no name
        if sock.family != socket.AF_UNIX:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it; when cancelled, some of it may have been sent.

        Raises trio.BrokenResourceError, trio.ClosedResourceError.
        """
        unsent = data
        while True:
            try:
                sent = self.socket.send(unsent)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.socket)
            except OSError as exc:
                raise self._failure(exc) from exc
            else:
                if sent == len(unsent):
                    return
                unsent = memoryview(unsent)[sent:]

    def send_nowait(self, data: bytes) -> int:
        """See EagerStream.send_nowait()."""
        try:
            return self.socket.send(data)
        except OSError:
            return 0

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something can be sent."""
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one octet, or none at the end of the stream.

        Raises trio.BrokenResourceError, trio.ClosedResourceError.
        """
        while True:
            try:
                return self.socket.recv(max_bytes or RECEIVE_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket)
            except OSError as exc:
                raise self._failure(exc) from exc

    async def wait_and_receive(self, max_bytes: int) -> bytes:
        """See EagerStream.wait_and_receive()."""
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """See EagerStream.receive_nowait()."""
        try:
            return self.socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def is_quiet(self) -> bool:
        """See EagerStream.is_quiet(). The socket must be open."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.socket.fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def _failure(self, error: OSError) -> Exception:
        if self.socket.fileno() < 0:
            return trio.ClosedResourceError("this socket was already closed")
        return trio.BrokenResourceError(f"socket connection broken: {error}")

    async def aclose(self) -> None:
        """Close it; whoever waits for it gets trio.ClosedResourceError."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()
