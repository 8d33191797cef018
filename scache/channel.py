"""One client's connection: attribute lists and descriptors, in the order of the protocol.

The functions are steps of a conversation: generators that yield what they wait for and are gone on
with when it is there (`clients.py` does both). Reading waits first, because a client that was just
answered has nothing to say yet; writing is tried first, because there is nearly always room.
"""

import os
import socket
from array import array
from collections.abc import Generator
from enum import Enum
from typing import Final, TypeAlias, TypeVar

from protocol.attributes import AttributeList
from protocol.cache_wire import DESCRIPTOR_OCTET, DUMMY_WIRE, ListReader
from protocol.errors import RemoteProtocolError
from protocol.reply import NEED_DATA

NEVER: Final = float("inf")
_RECEIVE_SIZE: Final = 16_384
_ONE_DESCRIPTOR: Final = socket.CMSG_LEN(array("i").itemsize)  # the kernel closes what exceeds it


class Wait(Enum):
    """What a conversation waits for."""

    REQUEST = "request"  # something to read, for as long as the client likes
    READ = "read"  # something to read, in the middle of an exchange
    WRITE = "write"  # room to write, in the middle of an exchange


T = TypeVar("T")
Steps: TypeAlias = Generator[Wait, None, T]


class Channel:
    """A client; owns `sock`, which is non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.busy_since = NEVER  # when the exchange under way first waited for the client
        self._sock = sock
        self._lists = ListReader()

    def next_request(self) -> Steps[AttributeList | None]:
        """The next list, after any silence; None: the client has ended.

        Raises RemoteProtocolError, OSError.
        """
        self.busy_since = NEVER
        if not self._lists.unread:  # or it came with the last dummy
            yield Wait.REQUEST
            if not self._receive():
                return None
        while (event := self._lists.next_event()) is NEED_DATA:
            yield Wait.READ
            self._receive_more()
        return event

    def expect_dummy(self) -> Steps[None]:
        """Take the list that acknowledges. Raises RemoteProtocolError, OSError."""
        while not self._lists.take(DUMMY_WIRE):
            if not DUMMY_WIRE.startswith(self._lists.peek(len(DUMMY_WIRE))):
                raise RemoteProtocolError("expected the empty dummy list")
            yield Wait.READ
            self._receive_more()

    def _receive_more(self) -> None:
        if not self._receive():
            raise RemoteProtocolError("the client ended in the middle of an exchange")

    def _receive(self) -> bool:
        """Take in what the client has sent; False: it has ended."""
        try:
            # Without room for descriptors: the kernel closes those that come uncalled for.
            data = self._sock.recv(_RECEIVE_SIZE)
        except BlockingIOError:  # woken for nothing
            return True
        self._lists.receive_data(data)
        return bool(data)

    def send(self, octets: bytes) -> Steps[None]:
        """Send it all, with one call where the client keeps up. Raises OSError."""
        while True:
            try:
                sent = self._sock.send(octets)
            except BlockingIOError:
                sent = 0
            if sent == len(octets):
                return
            octets = octets[sent:]
            yield Wait.WRITE

    def send_descriptor(self, fd: int) -> Steps[None]:
        """Give the client its own copy of `fd`. Raises OSError."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        while True:
            try:
                self._sock.sendmsg([DESCRIPTOR_OCTET], rights)
            except BlockingIOError:
                yield Wait.WRITE
            else:
                return

    def receive_descriptor(self) -> Steps[int | None]:
        """The descriptor that the client passes; the caller owns it.

        None: there was more than one, or this process has no room for another open file; all
        are closed. Raises RemoteProtocolError if the client sends something else, OSError.
        """
        if self._lists.unread:  # it would be out of order, whatever it is
            raise RemoteProtocolError("octets before the descriptor")
        while True:
            yield Wait.READ
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    1, _ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:  # woken for nothing
                continue
        found = array("i")
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(rights[: len(rights) - len(rights) % found.itemsize])
        cut = bool(flags & socket.MSG_CTRUNC)
        if len(found) == 1 and not cut:
            return found[0]
        for fd in found:
            os.close(fd)
        if not found and not cut:
            what = "octets came" if data else "the client ended"
            raise RemoteProtocolError(f"{what} in place of a descriptor")
        return None
