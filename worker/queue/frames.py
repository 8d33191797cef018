"""Frames: how octets are kept apart on the queue's sockets.

A frame is its length, four octets in network order, then that many octets. What is in it depends
on the door: attribute lists, blocks of content, JSON objects. Every reader says how long a frame
it is ready to take, so no peer decides how much memory we use.
"""

import struct
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protocol.errors import RemoteProtocolError

_LENGTH: Final = struct.Struct("!I")
_RECEIVE: Final = 65_536  # octets asked of the socket at a time
LONG: Final = _RECEIVE  # a longer frame is never here before it was waited for


def frame(data: bytes) -> bytes:
    """One frame."""
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Takes the frames off a stream, which it does not own."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._at = 0  # octets of those that were taken: a frame moves nothing but this

    async def next_frame(
        self, limit: int, before_long: Callable[[], Awaitable[None]] | None = None
    ) -> bytes | None:
        """The next frame; None if the peer closed the stream instead.

        `before_long` is awaited before a frame of more than LONG octets is received.
        Raises RemoteProtocolError for a frame over `limit` octets and for an end in the middle of
        one, trio.BrokenResourceError. The stream is of no use after that. No checkpoint if the
        frame is here already.
        """
        start = self._at + _LENGTH.size
        if start > len(self._received):
            if not await self._receive(_LENGTH.size):
                if self._received:
                    raise RemoteProtocolError("the stream ended in the middle of a frame")
                return None
            start = _LENGTH.size
        (length,) = _LENGTH.unpack_from(self._received, start - _LENGTH.size)
        if length > limit:
            raise RemoteProtocolError(f"a frame of {length} octets, and at most {limit} are taken")
        if start + length > len(self._received):
            if before_long is not None and length > LONG:
                await before_long()
            if not await self._receive(_LENGTH.size + length):
                raise RemoteProtocolError("the stream ended in the middle of a frame")
            start = _LENGTH.size
        self._at = start + length
        with memoryview(self._received) as received:
            data = bytes(received[start : self._at])
        if length > LONG:  # what held it may not be needed again for long
            del self._received[: self._at]
            self._at = 0
        return data

    async def expect_frame(self, limit: int) -> bytes:
        """The next frame, where the stream must not end: as next_frame(), but never None."""
        data = await self.next_frame(limit)
        if data is None:
            raise RemoteProtocolError("the stream ended where more was expected")
        return data

    async def _receive(self, octets: int) -> bool:
        """Have so many octets, from the beginning of `_received`; False: the stream ended."""
        del self._received[: self._at]
        self._at = 0
        while len(self._received) < octets:
            data = await self._stream.receive_some(_RECEIVE)
            if not data:
                return False
            self._received += data
        return True
