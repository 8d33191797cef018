"""A connection in memory with a window, as TCP has one; it can be cut and it can be reset.

trio's own memory streams know no window that fills up octet by octet, and no reset.
"""

import trio

from worker.network.socket_stream import EagerStream


class _Pipe:
    """One direction of a connection: at most `window` octets under way."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.data = bytearray()
        self.ended = False  # the sender closed
        self.refused = False  # the receiver closed
        self.dropped = False  # reset
        self.changed = trio.lowlevel.ParkingLot()

    def change(self, *, ended: bool = False, refused: bool = False) -> None:
        self.ended = self.ended or ended
        self.refused = self.refused or refused
        self.changed.unpark_all()


class MemoryStream(EagerStream):
    """One end of a connection in memory, with a window as TCP has one."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; waits while the window is full."""
        await trio.lowlevel.checkpoint()
        pipe, view = self._outgoing, memoryview(data)
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if pipe.refused or pipe.dropped:
                raise trio.BrokenResourceError
            room = pipe.window - len(pipe.data)
            if room > 0 and len(view):
                pipe.data += view[:room]
                view = view[room:]
                pipe.change()
            if not len(view):
                return
            await pipe.changed.park()

    async def wait_send_all_might_not_block(self) -> None:
        """Not used by anybody here."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive; empty at the end."""
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if pipe.dropped:
                raise trio.BrokenResourceError
            if pipe.data:
                data = bytes(pipe.data[:max_bytes])
                del pipe.data[: len(data)]
                pipe.change()
                return data
            if pipe.ended:
                return b""
            await pipe.changed.park()

    def send_nowait(self, data: bytes) -> int:
        """Send what the window has room for."""
        pipe = self._outgoing
        if self.closed or pipe.refused or pipe.dropped:
            return 0
        sent = data[: max(0, pipe.window - len(pipe.data))]
        pipe.data += sent
        pipe.change()
        return len(sent)

    async def wait_and_receive(self, max_bytes: int) -> bytes:
        """Receive; empty at any end."""
        try:
            return await self.receive_some(max_bytes)
        except trio.BrokenResourceError:
            return b""

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Receive what has come; empty at any end."""
        pipe = self._incoming
        data = bytes(pipe.data[:max_bytes])
        del pipe.data[: len(data)]
        pipe.change()
        return data or (b"" if self.closed or pipe.ended or pipe.dropped else None)

    def is_quiet(self) -> bool:
        """Nothing has come."""
        pipe = self._incoming
        return not (pipe.data or pipe.ended or pipe.dropped)

    async def aclose(self) -> None:
        """Close both directions; what was sent still arrives."""
        self.closed = True
        self._incoming.change(refused=True)
        self._outgoing.change(ended=True)
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Drop the connection as a TCP reset does: what was sent may never arrive."""
        for pipe in (self._incoming, self._outgoing):
            pipe.dropped = True
            pipe.data.clear()
            pipe.change()


def memory_stream_pair(window: int) -> tuple[MemoryStream, MemoryStream]:
    """The two ends of a connection."""
    there, back = _Pipe(window), _Pipe(window)
    return MemoryStream(back, there), MemoryStream(there, back)
