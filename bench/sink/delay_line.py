"""A stream whose other end is far away: what is sent into it leaves a round-trip time later.

A network of that round-trip time delays octets and not people: while replies are on their way,
further commands arrive and are read. So a flight of ten commands is answered one round trip after
it was sent, all ten at once; a pause before each reply would make that ten. Both halves of the way
are put into one direction, because a client sees only their sum. TCP's handshake is not delayed.
"""

import math
from typing import Final

import trio

LIMIT: Final = 65_536  # octets on their way from which nothing more is taken


class DelayLine(trio.abc.Stream):
    """`stream`, slow to answer. The caller owns `stream`, and has `run` going in a nursery.

    Memory: LIMIT octets and one send. A session that waits for room does not read either, so a
    client that asks without listening is slowed down by TCP.
    """

    def __init__(self, stream: trio.abc.Stream, delay: float) -> None:
        """`delay`: seconds."""
        self._stream = stream
        self._delay = delay
        self._octets = 0  # on their way
        self._room = trio.lowlevel.ParkingLot()
        # Bounded by octets, so not by their number.
        self._enter, self._leave = trio.open_memory_channel[tuple[float, bytes]](math.inf)

    async def run(self) -> None:
        """Let octets out when they are due; returns when closed and empty, or the peer is gone."""
        with self._leave:
            try:
                async for due, octets in self._leave:
                    await trio.sleep_until(due)
                    await self._stream.send_all(octets)
                    self._octets -= len(octets)
                    self._room.unpark_all()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._octets = 0  # nobody is there to wait for
        self._room.unpark_all()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Put octets on their way. BrokenResourceError: the peer is gone."""
        await self.wait_send_all_might_not_block()
        self._enter.send_nowait((trio.current_time() + self._delay, bytes(data)))
        self._octets += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return when less than LIMIT octets are on their way."""
        await trio.lowlevel.checkpoint()
        while self._octets >= LIMIT:
            await self._room.park()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """What the stream receives, at once."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Take nothing more; what is on its way still leaves, and then `run` returns."""
        self._enter.close()
        await trio.lowlevel.checkpoint()
