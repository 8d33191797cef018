"""Slot streams: requests to a worker process, results back, over one UNIX socket per slot.

A frame is eight octets of lengths, a payload of `protocol.delivery_wire`, and for a request its
content: inline if it is small, else as a descriptor (SCM_RIGHTS) that travels with the lengths,
so that the worker needs no right to the queue directory. Everything is length-bounded: a frame
that is not ends the stream, not the process.

`StreamSlot` is the queue's end, `RequestStream` the worker's.
"""

import os
import socket
import struct
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from protocol.delivery_wire import decode_request, decode_result, encode_request, encode_result
from protocol.errors import RemoteProtocolError
from protocol.outcome import DeliveryResult
from protocol.request import DeliveryRequest
from worker.content import INLINE_LIMIT, Content, FileContent, InlineContent
from worker.queue.listening import socket_address
from worker.queue.slot import MOST_UNANSWERED, WorkerLost

_LENGTHS: Final = struct.Struct("!II")  # octets of payload; octets of inline content
_DESCRIPTOR: Final = 0xFFFF_FFFF  # instead of a content length: the content is a descriptor
PAYLOAD_LIMIT: Final = 16 * 1024 * 1024  # some ten thousand recipients; a request has fewer
# What may come while a result is being sent; more is not our queue process.
_READ_AHEAD: Final = (MOST_UNANSWERED - 1) * (PAYLOAD_LIMIT + INLINE_LIMIT)
# More would be fetched from the system for each read: allocators map blocks of 128 kB anew.
_RECEIVE_SIZE: Final = 32_768
# Descriptors that no frame has claimed yet. One may arrive with the octets before its frame, and a
# caller keeps no more requests unanswered: more is not our queue process.
_UNCLAIMED_LIMIT: Final = MOST_UNANSWERED + 1
_ANCILLARY: Final = socket.CMSG_SPACE(4 * array("i").itemsize)


class StreamCut(RemoteProtocolError):
    """The stream ended in the middle of a frame: whoever was sending it is gone."""


class FrameStream:
    """Frames over a UNIX stream socket; owns the socket. One sender and one receiver at a time.

    Its methods wait only where the socket makes them: what is there is taken without a checkpoint.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        # A plain socket, because trio's cannot be asked what is there without waiting for it.
        self._sock = socket.socket(fileno=sock.detach())
        self._sock.setblocking(False)  # noqa: FBT003  # its parameter has no name
        self._buffer: bytes | bytearray = b""  # bytearray: a frame that came in pieces
        self._start = 0  # of what was not yet taken
        self._descriptors: list[int] = []  # arrived, not yet claimed by a frame
        self._unsent = b""  # of frames that were put
        self._failure: RemoteProtocolError | None = None  # nothing more can be made of the stream

    async def send(self, payload: bytes, content: Content | None = None) -> None:
        """Send one frame; a cancelled or failed send leaves the stream unusable."""
        if isinstance(content, FileContent):
            head = _LENGTHS.pack(len(payload), _DESCRIPTOR)
            # The lengths alone: eight octets are sent whole or not at all, with the descriptor.
            while True:
                try:
                    socket.send_fds(self._sock, [head], [content.fd])
                    break
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
            await self._send_all(payload)
            return
        data = content.data if content is not None else b""
        await self._send_all(_LENGTHS.pack(len(payload), len(data)) + payload + data)

    async def _send_all(self, octets: bytes, *, reading: bool = False) -> None:
        try:
            sent = self._sock.send(octets)
        except BlockingIOError:
            sent = 0
        if sent < len(octets):
            await self._send_rest(memoryview(octets)[sent:], reading=reading)

    async def _send_rest(self, view: memoryview, *, reading: bool) -> None:
        """Send what the socket did not take at once."""
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                async with trio.open_nursery() as nursery:
                    if reading:
                        nursery.start_soon(self._read_ahead)
                    await trio.lowlevel.wait_writable(self._sock)
                    nursery.cancel_scope.cancel()

    def put(self, payload: bytes) -> bool:
        """Send one frame as far as it can be done at once; False: flush() must do the rest."""
        octets = _LENGTHS.pack(len(payload), 0) + payload
        if not self._unsent:
            with suppress(OSError):  # flush() meets it again, if it is more than having to wait
                octets = octets[self._sock.send(octets) :]
        self._unsent += octets
        return not self._unsent

    async def flush(self) -> None:
        """Send the rest of what was put, and take in what comes while that has to wait.

        The other side may be sending, too, and read nothing before it is done: two full sockets
        would wait for each other for ever.
        """
        if self._unsent:
            await self._send_all(self._unsent, reading=True)
            self._unsent = b""

    async def _read_ahead(self) -> None:
        """Take in what comes, to the end of the stream; what is wrong the next receive() says."""
        while len(self._buffer) < _READ_AHEAD:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                if not self._take_in():
                    return
            except BlockingIOError:
                continue
            except OSError:
                return
            except RemoteProtocolError as exc:
                self._failure = exc
                return

    async def receive(self) -> tuple[bytes, Content] | None:
        """The next frame, or None at the end of the stream; the caller closes the content.

        Raises StreamCut, RemoteProtocolError for a frame that breaks a rule, OSError.
        """
        while (frame := self._next_frame()) is None:
            try:
                ended = not self._take_in()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if ended and self._buffer:
                raise StreamCut("slot stream ended in the middle of a frame")
            if ended:
                return None
        return frame

    def receive_nowait(self) -> tuple[bytes, Content] | None:
        """The next frame if all of it is there, else None; what is wrong receive() will say."""
        try:
            while (frame := self._next_frame()) is None:
                if not self._take_in():
                    break
        except (OSError, RemoteProtocolError) as exc:
            if isinstance(exc, RemoteProtocolError):
                self._failure = exc
            return None
        return frame

    def _next_frame(self) -> tuple[bytes, Content] | None:
        """Take a frame off the buffer; None: it is not whole yet. Raises RemoteProtocolError."""
        if self._failure is not None:
            raise self._failure
        buffer, start = self._buffer, self._start
        payload_start = start + _LENGTHS.size
        if len(buffer) < payload_start:
            return None
        payload_length: int
        content_length: int
        payload_length, content_length = _LENGTHS.unpack_from(buffer, start)
        inline = 0 if content_length == _DESCRIPTOR else content_length
        if payload_length > PAYLOAD_LIMIT or inline > INLINE_LIMIT:
            raise RemoteProtocolError(
                f"slot frame of {payload_length} + {inline} octets exceeds the limit"
            )
        content_start = payload_start + payload_length
        end = content_start + inline
        if len(buffer) < end:
            return None
        payload = bytes(buffer[payload_start:content_start])
        data = bytes(buffer[content_start:end])
        if end == len(buffer):  # nearly always
            self._buffer, self._start = b"", 0
        else:
            self._start = end
        if content_length != _DESCRIPTOR:
            return payload, InlineContent(data)
        if not self._descriptors:
            raise RemoteProtocolError("slot frame without its descriptor")
        return payload, FileContent(self._descriptors.pop(0))

    def _take_in(self) -> bool:
        """Have more in the buffer; False: the stream has ended.

        Raises BlockingIOError (nothing is there), other OSErrors, RemoteProtocolError.
        """
        data, ancillary, flags, _ = self._sock.recvmsg(
            _RECEIVE_SIZE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array("i")
                received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                self._descriptors.extend(received)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > _UNCLAIMED_LIMIT:
            raise RemoteProtocolError("too many descriptors in a slot frame")
        if not self._buffer:
            self._buffer = data  # nearly always, and all of it is whole frames
            return len(data) > 0
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        del self._buffer[: self._start]
        self._start = 0
        self._buffer += data
        return len(data) > 0

    def close(self) -> None:
        """Close the socket and every descriptor that nobody claimed."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        while self._descriptors:
            os.close(self._descriptors.pop(0))


class StreamSlot:
    """The queue's end of a slot (`worker.queue.slot.Slot`)."""

    def __init__(self, frames: FrameStream) -> None:
        self._frames = frames
        # A list: a deque takes 700 octets, and thousands of slots have three requests at most.
        self._unanswered: list[DeliveryRequest] = []

    @classmethod
    async def connect(cls, path: Path) -> "StreamSlot":
        """Open a slot at the worker that listens on `path`. Raises WorkerLost."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(path) as address:
                await sock.connect(address)
        except OSError as exc:
            sock.close()
            raise WorkerLost(f"no worker listens on {path.name}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise
        return cls(FrameStream(sock))

    async def send(self, request: DeliveryRequest, content: Content) -> None:
        """Hand over a request; see `Slot.send`.

        Raises LocalProtocolError, and sends nothing, for a request that must not be sent.
        """
        try:
            payload = encode_request(request)
            self._unanswered.append(request)
            await self._frames.send(payload, content)
        except (OSError, trio.ClosedResourceError) as exc:
            raise WorkerLost(f"worker went away: {exc}") from exc
        finally:
            content.close()

    async def receive(self) -> DeliveryResult:
        """The result of the oldest unanswered request; see `Slot.receive`."""
        try:
            frame = await self._frames.receive()
            if frame is None:
                raise WorkerLost("worker closed the slot")
            payload, content = frame
            content.close()  # a result has none; a descriptor that came all the same ends here
            if not self._unanswered:
                raise WorkerLost("worker answered what it was not asked")
            return decode_result(payload, self._unanswered.pop(0))
        except (OSError, trio.ClosedResourceError, StreamCut) as exc:
            raise WorkerLost(f"worker went away: {exc}") from exc

    async def aclose(self) -> None:
        """Close the stream; the worker ends or parks the session by itself."""
        self._frames.close()


class RequestStream:
    """The worker's end of a slot."""

    def __init__(self, frames: FrameStream) -> None:
        self._frames = frames
        self._upcoming: tuple[DeliveryRequest, Content] | RemoteProtocolError | None = None

    async def wait(self) -> bool:
        """Wait until there is an upcoming request; False: no more will come.

        Raises RemoteProtocolError, OSError.
        """
        if self.upcoming() is not None:
            return True
        wrong, self._upcoming = self._upcoming, None
        if isinstance(wrong, RemoteProtocolError):
            raise wrong
        frame = await self._frames.receive()
        if frame is not None:
            self._upcoming = _request(*frame)
        return frame is not None

    async def next_request(self) -> tuple[DeliveryRequest, Content] | None:
        """The next request and its content, which the caller closes; None: no more will come.

        Raises as wait().
        """
        return self.take_upcoming() if await self.wait() else None

    def upcoming(self) -> DeliveryRequest | None:
        """The next request, if it is there already; None: nobody knows.

        Never waits and never raises: what is wrong, wait() will say.
        """
        if self._upcoming is None and (frame := self._frames.receive_nowait()) is not None:
            try:
                self._upcoming = _request(*frame)
            except RemoteProtocolError as exc:
                self._upcoming = exc
        return self._upcoming[0] if isinstance(self._upcoming, tuple) else None

    def take_upcoming(self) -> tuple[DeliveryRequest, Content]:
        """The request that upcoming() has told, and its content, which the caller closes."""
        upcoming, self._upcoming = self._upcoming, None
        assert isinstance(upcoming, tuple)
        return upcoming

    def put_result(self, result: DeliveryResult) -> bool:
        """Answer the oldest unanswered request; False: flush() must see to it. Never raises."""
        return self._frames.put(encode_result(result))

    async def flush(self) -> None:
        """Send what put_result() could not. Raises OSError."""
        await self._frames.flush()

    def close(self) -> None:
        """Close the stream, and the content of a request that nobody took."""
        if isinstance(self._upcoming, tuple):
            self._upcoming[1].close()
        self._frames.close()


def _request(payload: bytes, content: Content) -> tuple[DeliveryRequest, Content]:
    """The request of a frame. Raises RemoteProtocolError, with `content` closed."""
    try:
        return decode_request(payload), content
    except BaseException:
        content.close()
        raise
