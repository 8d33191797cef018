"""The lane for sinks that wait: latency, distance, tarpits and slow readers, by trio's clock.

It serves everything else, too: for tests that run a sink in their own loop, and when one process
has listeners of both kinds. For speed there is `plain_lane.py`.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from bench.sink.delay_line import DelayLine
from bench.sink.listen import Listen, Listener, open_listeners
from bench.sink.record import Take
from bench.sink.session import Session
from bench.sink.sink import Gauge, Sink

READ_SIZE: Final = 65_536  # octets


async def serve_sinks(
    listens: Sequence[Listen],
    *,
    take: Take | None = None,
    keep: bool = False,
    task_status: trio.TaskStatus[list[Sink]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve all listeners until cancelled. Started: the sinks, in the order of `listens`.

    OSError when an address cannot be used.
    """
    listeners = open_listeners(listens)
    try:
        gauge = Gauge()
        sinks = [
            Sink(
                behaviour=listener.behaviour, name=listener.name, take=take, keep=keep, gauge=gauge
            )
            for listener in listeners
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_listeners, listeners, sinks)
            task_status.started(sinks)
    finally:
        for listener in listeners:
            listener.close()


async def serve_listeners(listeners: Sequence[Listener], sinks: Sequence[Sink]) -> None:
    """Serve each listener by its sink, until cancelled. The sockets stay the caller's."""
    async with trio.open_nursery() as nursery:
        for listener, sink in zip(listeners, sinks, strict=True):
            sink.clock = trio.current_time
            # Its own descriptor, because trio closes what it serves.
            sock = trio.socket.from_stdlib_socket(listener.socket.dup())
            nursery.start_soon(trio.serve_listeners, _handler(sink), [trio.SocketListener(sock)])


def _handler(sink: Sink) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def handle(stream: trio.SocketStream) -> None:
        address: object = None
        with suppress(OSError):  # it is gone already
            address = stream.socket.getpeername()
        await serve_stream(sink, stream, address[0] if isinstance(address, tuple) else "unix")

    return handle


async def serve_stream(sink: Sink, stream: trio.abc.Stream, client: str = "") -> None:
    """One connection, to its end. Owns `stream`. A client that vanishes is no error."""
    async with stream:
        rtt = sink.behaviour.rtt
        if not rtt:
            await _converse(sink, stream, client)
            return
        async with trio.open_nursery() as nursery:
            line = DelayLine(stream, rtt)
            nursery.start_soon(line.run)
            async with line:
                await _converse(sink, line, client)


async def _converse(sink: Sink, stream: trio.abc.Stream, client: str) -> None:
    """Carry octets until either side ends it."""
    behaviour = sink.behaviour
    size, pause = READ_SIZE, 0.0
    if behaviour.slow_read is not None:
        size, pause = behaviour.slow_read.limit, behaviour.slow_read.interval
    session = Session(sink, client)
    try:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if session.upgrading:
                stream = await _secure(session, stream, sink)
            while True:
                await _send(session, stream, behaviour.tarpit)
                if session.upgrading:
                    stream = await _secure(session, stream, sink)
                if session.closing:
                    if isinstance(stream, trio.SSLStream):
                        await stream.aclose()  # says close_notify
                    return
                if pause:
                    await trio.sleep(pause)
                data = await stream.receive_some(size)
                if not data:
                    return
                session.receive(bytes(data))
    finally:
        session.end()


async def _secure(
    session: Session, stream: trio.abc.Stream, sink: Sink
) -> trio.SSLStream[trio.abc.Stream]:
    """The stream inside TLS, after the handshake. Raises trio.BrokenResourceError."""
    context = sink.context
    assert context is not None  # or the session would have none
    secured = trio.SSLStream(stream, context, server_side=True)
    await secured.do_handshake()
    session.secure(secured.version() or "", resumed=bool(secured.session_reused))
    return secured


async def _send(session: Session, stream: trio.abc.Stream, tarpit: float) -> None:
    """Send what is due, when it is; replies without a pause between them go as one."""
    ready = b""
    for wait, octets in session.take_paced():
        if wait:
            if ready:
                await stream.send_all(ready)
                ready = b""
            await trio.sleep(wait)
        ready += octets
        if tarpit:
            for octet in ready:
                await trio.sleep(tarpit)
                await stream.send_all(bytes((octet,)))
            ready = b""
    if ready:
        await stream.send_all(ready)
