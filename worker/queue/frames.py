"""Frames: how octets are kept apart on the queue's sockets.

A frame is its length, four octets in network order, then that many octets. What is in it depends
on the door: attribute lists, blocks of content, JSON objects. Every reader says how long a frame
it is ready to take, so no peer decides how much memory we use.
"""

import struct
from typing import Final

import trio

from protocol.errors import RemoteProtocolError

_LENGTH: Final = struct.Struct("!I")
_RECEIVE: Final = 65_536  # octets asked of the socket at a time


def frame(data: bytes) -> bytes:
    """One frame."""
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Takes the frames off a stream, which it does not own."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def next_frame(self, limit: int) -> bytes | None:
        """The next frame; None if the peer closed the stream instead.

        Raises RemoteProtocolError for a frame over `limit` octets and for an end in the middle of
        one, trio.BrokenResourceError. The stream is of no use after that.
        """
        if not await self._fill(_LENGTH.size):
            if self._received:
                raise RemoteProtocolError("the stream ended in the middle of a frame")
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > limit:
            raise RemoteProtocolError(f"a frame of {length} octets, and at most {limit} are taken")
        end = _LENGTH.size + length
        if not await self._fill(end):
            raise RemoteProtocolError("the stream ended in the middle of a frame")
        data = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return data

    async def expect_frame(self, limit: int) -> bytes:
        """The next frame, where the stream must not end: as next_frame(), but never None."""
        data = await self.next_frame(limit)
        if data is None:
            raise RemoteProtocolError("the stream ended where more was expected")
        return data

    async def _fill(self, octets: int) -> bool:
        while len(self._received) < octets:
            data = await self._stream.receive_some(_RECEIVE)
            if not data:
                return False
            self._received += data
        return True
