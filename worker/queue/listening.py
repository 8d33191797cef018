"""Listening at a UNIX socket of the queue directory: making it, counting clients, who they are.

What is said on a connection is in service.py.
"""

import errno
import os
import socket
import stat
import struct
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from protocol.errors import RemoteProtocolError
from worker.status.events import Emit, UnexpectedError, Warned

_PATH_LIMIT: Final = 100  # octets of a socket path; Linux takes 107
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred
_BACKLOG: Final = 128
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RELIEF: Final = 0.1  # seconds to wait for one of those to pass

Serve = Callable[[trio.SocketStream, int], Awaitable[None]]  # one client, and its uid


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What one door allows."""

    ipc_timeout: float = 3600.0  # seconds for one frame, either way: ipc_timeout
    clients: int = 200  # at the same time; more wait to be accepted


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What to bind or connect to for `path`, however long it is. Raises OSError.

    A socket address holds some hundred octets, a queue may lie deeper: then by way of a descriptor
    of the directory, which /proc lets us use as a short path.
    """
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@contextmanager
def listening(
    path: Path, *, directory_mode: int, socket_mode: int
) -> Iterator[trio.SocketListener]:
    """A listening socket at `path`, removed again at the end. Raises OSError.

    The directory is made with its mode, or must be one that others cannot write to. A socket that
    is there already belongs to a process that is gone; anything else there is left alone.
    """
    make_directory(path.parent, directory_mode)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "this is not a socket", str(path))
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with socket_address(path) as address:
            listener.bind(address)
        try:
            # No way in before the mode is right: nobody can connect before listen().
            path.chmod(socket_mode)
            listener.listen(_BACKLOG)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        finally:
            with suppress(OSError):
                path.unlink()


def make_directory(path: Path, mode: int) -> None:
    """Make a directory with exactly this mode; one that exists must be safe. Raises OSError."""
    try:
        path.mkdir()
    except FileExistsError:
        found = path.lstat()
        safe = found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022
        if not (stat.S_ISDIR(found.st_mode) and safe):
            raise PermissionError(
                errno.EPERM, "not a directory of ours, or others can write to it", str(path)
            ) from None
    else:
        path.chmod(mode)  # mkdir() obeys the umask


async def accept_clients(
    listener: trio.SocketListener, limits: DoorLimits, emit: Emit, serve: Serve
) -> None:
    """Give each client to `serve`, with its uid, until cancelled.

    A client that breaks off, stalls or talks nonsense ends alone; so does one that meets a bug.
    """
    slots = trio.CapacityLimiter(limits.clients)

    async def attend(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await _attend(stream, emit, serve)
        finally:
            slots.release_on_behalf_of(stream)

    async with trio.open_nursery() as nursery:
        while True:
            stream = await _accept(listener, slots, emit)
            nursery.start_soon(attend, stream)


async def _accept(
    listener: trio.SocketListener, slots: trio.CapacityLimiter, emit: Emit
) -> trio.SocketStream:
    """The next client, which holds a slot."""
    # Not accepted before there is a slot for it: the others wait in the kernel, at no cost to us.
    waiting = object()
    await slots.acquire_on_behalf_of(waiting)
    try:
        while True:
            try:
                stream = await listener.accept()
            except OSError as exc:
                if exc.errno not in _EXHAUSTED:
                    raise
                emit(Warned(f"cannot accept a connection: {exc.strerror}"))
                await trio.sleep(_RELIEF)
            else:
                break
    finally:
        slots.release_on_behalf_of(waiting)
    slots.acquire_on_behalf_of_nowait(stream)
    return stream


async def _attend(stream: trio.SocketStream, emit: Emit, serve: Serve) -> None:
    try:
        await serve(stream, peer_uid(stream))
    except (trio.BrokenResourceError, trio.TooSlowError, RemoteProtocolError):
        pass  # theirs to know; an unfinished message was never accepted
    # One client's trouble must not end the queue.
    except Exception:  # noqa: BLE001
        emit(UnexpectedError("serving a client of the queue", traceback.format_exc()))


def peer_uid(stream: trio.SocketStream) -> int:
    """Who is at the other end, as the kernel says."""
    octets = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(octets)
    return int(uid)


def is_trusted(uid: int) -> bool:
    """True for root and for who runs the queue."""
    return uid in (0, os.geteuid())
