"""A worker process: serves slots until told to stop.

It listens on an inherited UNIX socket; every connection is one slot of the queue process: requests
in, results out, one after another: a request begins only when the result of the one before was
written (the queue process relies on that, see queue/slot.py). Start at `run_worker`. Its standard
input is the lifeline: octets there ask for a reload; the end of file means that the queue process
is gone, and with it everybody who could record an outcome, so everything is cut off at once. If it
is a socket, the worker says there when it takes slots, and when it takes no more (child.py).

SIGTERM: deliveries whose content is under way finish within `postrio_shutdown_timeout`, the others
end now and are reported as stopped. SIGHUP: later requests see the new configuration.
"""

import os
import signal
import socket
import stat
import traceback
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final

import trio

from protocol.errors import RemoteProtocolError
from worker.delivery.environment import Environment
from worker.delivery.serve import serve
from worker.delivery.slot import DeliverySlot
from worker.pool.child import READY, STOPPING
from worker.pool.slots import FrameStream, RequestStream
from worker.status.events import Emit, Noted, UnexpectedError, Warned
from worker.tls.holder import Holder

LIFELINE_READ: Final = 64  # octets: any number of reloads asked for together is one
ACCEPT_PAUSE: Final = 0.1  # seconds to wait when no descriptor is left for another slot
STOP_PAUSE: Final = 1.0  # seconds in which a request that was on its way may still arrive


class Worker:
    """The slots of one process. `load` reads the configuration anew and may raise."""

    def __init__(
        self, load: Callable[[], Environment], emit: Emit, holder: Holder | None = None
    ) -> None:
        """`holder`: has the TLS connections that other processes use; it runs with the slots."""
        self._load = load
        self._holder = holder
        self._environment = load()
        self._emit = emit
        self._slots: dict[DeliverySlot, _Intake] = {}
        self._accepting = trio.CancelScope()
        self._stopping = False

    async def serve(self, listener: trio.socket.SocketType, stop_limit: float) -> None:
        """Accept slots until stop(); then wait at most `stop_limit` seconds for them. Once.

        Closes `listener`.
        """
        async with trio.open_nursery() as nursery:
            if self._holder is not None:
                await nursery.start(self._holder.run)
            with listener, self._accepting:
                await self._accept(listener, nursery)
            nursery.cancel_scope.deadline = trio.current_time() + stop_limit
            if self._holder is not None:
                self._holder.retire()
            for slot, stream in self._slots.items():
                slot.stop()
                stream.stop()

    def stop(self) -> None:
        """Take no more work; see serve()."""
        self._stopping = True
        self._accepting.cancel()

    def reload(self) -> None:
        """Read the configuration for later requests; a bad one is reported and not taken."""
        before = self._environment
        try:
            self._environment = self._load()
        except Exception as exc:  # noqa: BLE001  # a bad file must not end deliveries
            self._emit(Warned(f"configuration not reloaded: {exc}"))
        else:
            before.close()
            self._emit(Noted("configuration reloaded"))

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        trouble = 0  # told once, however often it comes before the next slot
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError as exc:
                if exc.errno != trouble:
                    self._emit(Warned(f"cannot accept a slot: {exc.strerror}"))
                trouble = exc.errno or 0
                await trio.sleep(ACCEPT_PAUSE)
                continue
            trouble = 0
            nursery.start_soon(self._serve_slot, sock)

    async def _serve_slot(self, sock: trio.socket.SocketType) -> None:
        """One slot until its stream ends. A failure here costs this slot, not the process."""
        stream = _Intake(FrameStream(sock))
        slot = DeliverySlot(stream.upcoming)
        self._slots[slot] = stream
        if self._stopping:
            slot.stop()
            stream.stop()
        try:
            try:
                await serve(stream, slot, lambda: self._environment)
            finally:
                stream.close()
                del self._slots[slot]
                await slot.release()
        except (OSError, RemoteProtocolError) as exc:
            self._emit(Warned(f"slot closed: {exc}"))
        except Exception as exc:  # noqa: BLE001  # the queue process sees the slot end
            text = "".join(traceback.format_exception(exc))
            self._emit(UnexpectedError("serving a slot", text))


class _Intake(RequestStream):
    """A slot's stream whose wait for the next request ends when we stop.

    What was on its way to us by then is still read and answered as stopped: the queue process knows
    then that it was never tried. Without an answer it would be in doubt.
    """

    def __init__(self, frames: FrameStream) -> None:
        super().__init__(frames)
        self._deadline = inf
        self._waiting: trio.CancelScope | None = None

    def stop(self) -> None:
        """From now on wait for STOP_PAUSE seconds at most."""
        self._deadline = trio.current_time() + STOP_PAUSE
        if self._waiting is not None:
            self._waiting.deadline = self._deadline

    async def wait(self) -> bool:
        """See RequestStream.wait(); False also after STOP_PAUSE, when stopping."""
        if self.upcoming() is not None:
            return True
        with trio.CancelScope(deadline=self._deadline) as self._waiting:
            return await super().wait()
        return False


async def run_worker(
    listener: socket.socket,
    load: Callable[[], Environment],
    emit: Emit,
    *,
    stop_limit: float,
    holder: Holder | None = None,
) -> None:
    """Serve slots on `listener`, which this closes, until SIGTERM or the end of standard input."""
    worker = Worker(load, emit, holder)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch_signals() -> None:
                async for number in signals:
                    if number == signal.SIGHUP:
                        worker.reload()
                    elif number == signal.SIGTERM:
                        _tell(STOPPING)
                        worker.stop()
                    # SIGINT comes from a terminal to the whole group: the parent decides.

            async def watch_lifeline() -> None:
                # Reloads come this way and not as SIGHUP, because a signal that finds no handler
                # yet ends the process.
                async with trio.lowlevel.FdStream(os.dup(0)) as lifeline:
                    with suppress(trio.BrokenResourceError):
                        while await lifeline.receive_some(LIFELINE_READ):
                            worker.reload()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_signals)
            nursery.start_soon(watch_lifeline)
            _tell(READY)
            await worker.serve(trio.socket.from_stdlib_socket(listener), stop_limit)
            nursery.cancel_scope.cancel()


def _tell(word: bytes) -> None:
    """Say something to the queue process, if it started us."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        with suppress(OSError):  # it is gone: its end of the lifeline says so, too
            os.write(0, word)


def inherited_listener(descriptor: int) -> socket.socket:
    """The listening socket that the queue process passed as `descriptor`.

    Raises OSError if it is no listening UNIX stream socket.
    """
    os.set_inheritable(descriptor, False)  # noqa: FBT003  # its parameters have no names
    listener = socket.socket(fileno=descriptor)
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        listener.detach()
        raise OSError(f"descriptor {descriptor} is not a listening UNIX socket")
    return listener
