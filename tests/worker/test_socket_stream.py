"""A socket that is tried before it is waited for. Real socket pairs; nothing waits for time."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import assert_no_checkpoints, trio_test, wait_all_tasks_blocked

from worker.network.socket_stream import QuickStream


@contextmanager
def pair() -> Iterator[tuple[QuickStream, socket.socket]]:
    """A stream and the blocking socket at its other end."""
    near, far = socket.socketpair()
    with near, far:
        yield QuickStream(near), far


@trio_test
async def test_what_can_be_done_at_once_is_done_without_a_switch_of_tasks() -> None:
    with pair() as (stream, far):
        far.send(b"220 hello\r\n")
        with assert_no_checkpoints():
            assert await stream.receive_some() == b"220 hello\r\n"
            await stream.send_all(b"EHLO me\r\n")
        assert far.recv(100) == b"EHLO me\r\n"


@trio_test
async def test_a_receiver_waits_for_what_is_not_there_yet() -> None:
    with pair() as (stream, far):
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await stream.receive_some(3))
            received.append(await stream.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            assert not received
            far.send(b"abcdef")
        assert received == [b"abc", b"def"]


@trio_test
async def test_a_sender_waits_for_a_slow_reader_and_nothing_is_lost() -> None:
    with pair() as (stream, far):
        octets = bytes(range(256)) * 20_000
        far.setblocking(False)  # noqa: FBT003  # its parameter has no name
        received = bytearray()

        async def read() -> None:
            while len(received) < len(octets):
                await trio.lowlevel.wait_readable(far)
                received.extend(far.recv(100_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await stream.send_all(memoryview(octets))
        assert received == octets


@trio_test
async def test_the_end_and_a_reset_are_told_apart() -> None:
    with pair() as (stream, far):
        far.shutdown(socket.SHUT_WR)
        assert await stream.receive_some() == b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        stream = QuickStream(near)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not near.getblocking()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")
        await stream.aclose()


@trio_test
async def test_closing_wakes_whoever_waits_and_bars_whoever_comes_later() -> None:
    with pair() as (stream, _):
        closed: list[str] = []

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            closed.append("receiver")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await stream.aclose()
        assert closed
        for call in (stream.receive_some(), stream.send_all(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                await call
        await stream.aclose()  # once more does no harm


@trio_test
async def test_a_call_that_waits_can_be_cancelled_and_loses_nothing() -> None:
    with pair() as (stream, far):
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_some()
        assert scope.cancelled_caught
        far.send(b"later")
        assert await stream.receive_some() == b"later"


@trio_test
async def test_looking_without_waiting_tells_nothing_yet_from_an_end() -> None:
    with pair() as (stream, far):
        with assert_no_checkpoints():
            assert stream.receive_nowait(3) is None
            assert stream.is_quiet()
        far.send(b"421 bye\r\n")
        assert not stream.is_quiet()
        assert stream.receive_nowait(3) == b"421"
        assert stream.receive_nowait(100) == b" bye\r\n"
        assert stream.receive_nowait(100) is None
        far.close()
        assert stream.receive_nowait(100) == b""
        await stream.aclose()
        assert stream.receive_nowait(100) == b""
