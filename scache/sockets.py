"""The sockets that the cache holds: taking in, hearing that a peer closed or spoke, ending.

One epoll object watches all of them, so that ten thousand idle connections cost no task each and
one system call tells who is no longer idle. A held peer has nothing to say: whatever is readable is
the end of the connection, a 421, or a reply that nobody asked for, and each makes it worthless.
"""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import trio

FAREWELL: Final = b"QUIT\r\n"
_WATCH: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI
_AT_ONCE: Final = 64  # events of one look


class UnfitDescriptor(Exception):
    """A descriptor that is no connected stream socket: why."""


class HeldSockets:
    """Owns the sockets, named by their descriptors ("handles")."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}

    def adopt(self, fd: int) -> int:
        """Own and watch the socket behind `fd`; returns its handle.

        Raises UnfitDescriptor if it is anything but a connected stream socket; `fd` is closed then.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as exc:
            os.close(fd)
            raise UnfitDescriptor(f"the descriptor is no socket: {exc.strerror}") from exc
        try:
            kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            sock.getpeername()
            if kind == socket.SOCK_STREAM:
                self._epoll.register(fd, _WATCH)
        except OSError as exc:
            sock.close()
            raise UnfitDescriptor(f"the socket cannot be held: {exc.strerror}") from exc
        if kind != socket.SOCK_STREAM:
            sock.close()
            raise UnfitDescriptor("the socket is not a stream socket")
        self._sockets[fd] = sock
        return fd

    def release(self, handle: int) -> socket.socket:
        """Give a socket away: the caller closes it."""
        # Not left to close(): the open file lives on in the process that gets it, and so would the
        # watch.
        self._epoll.unregister(handle)
        return self._sockets.pop(handle)

    def close(self, handle: int) -> None:
        """Close a socket without a word: its peer has ended it, or is on its way out."""
        self.release(handle).close()

    def quit(self, handle: int) -> None:
        """Say QUIT if that can be done at once, and close; nobody waits for the answer."""
        with self.release(handle) as sock, suppress(OSError):
            sock.send(FAREWELL, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def spoken(self) -> Iterator[int]:
        """The handles whose peers have closed or spoken by now; the caller closes each."""
        while found := self._epoll.poll(0, _AT_ONCE):
            for handle, _ in found:
                yield handle

    async def wait_spoken(self) -> None:
        """Return when spoken() has something to say."""
        await trio.lowlevel.wait_readable(self._epoll)

    def shut(self) -> None:
        """Close everything that is left, and the watch."""
        for handle in list(self._sockets):
            self.close(handle)
        self._epoll.close()
