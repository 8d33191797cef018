"""Listening at a UNIX socket of the queue directory: making it, and accepting clients.

Who they are and how long each may stay is in door_client.py, what is said in service.py.
"""

import errno
import os
import socket
import stat
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from protocol.errors import RemoteProtocolError
from worker.queue.door_client import DoorClient, Places
from worker.status.events import Emit, UnexpectedError, Warned

_PATH_LIMIT: Final = 100  # octets of a socket path; Linux takes 107
_BACKLOG: Final = 128
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_GONE: Final = frozenset({errno.EAGAIN, errno.ECONNABORTED})  # who waited does so no more
_RELIEF: Final = 0.1  # seconds to wait for one of those to pass

Serve = Callable[[DoorClient], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What one door allows."""

    ipc_timeout: float = 3600.0  # seconds of waiting for a client, either way: ipc_timeout
    clients: int = 200  # at the same time; more wait to be accepted (door_client.py)


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
def listening(path: Path, *, directory_mode: int, socket_mode: int) -> Iterator[socket.socket]:
    """A listening, non-blocking socket at `path`, removed again at the end. Raises OSError.

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
            listener.setblocking(False)  # noqa: FBT003  # its parameter has no name
            yield listener
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
    listener: socket.socket, limits: DoorLimits, emit: Emit, serve: Serve
) -> None:
    """Give each client to `serve`, until cancelled. `listener` is non-blocking.

    A client that breaks off, stalls or talks nonsense ends alone; so does one that meets a bug.
    """
    places = Places(limits.clients)

    async def attend(client: DoorClient) -> None:
        try:
            async with client:
                with client.scope:
                    await _attend(client, emit, serve)
        finally:
            places.leave(client)

    async with trio.open_nursery() as nursery:
        while True:
            # Not accepted before there is a place: the others wait in the kernel, at no cost to us.
            await trio.lowlevel.wait_readable(listener)
            await places.wait_for_one()
            try:
                sock, _ = listener.accept()
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    emit(Warned(f"cannot accept a connection: {exc.strerror}"))
                    await trio.sleep(_RELIEF)
                elif exc.errno not in _GONE:
                    raise
            else:
                client = DoorClient(sock, limits.ipc_timeout)
                places.take(client)
                nursery.start_soon(attend, client)


async def _attend(client: DoorClient, emit: Emit, serve: Serve) -> None:
    try:
        await serve(client)
    except (trio.BrokenResourceError, RemoteProtocolError):
        pass  # theirs to know; an unfinished message was never accepted
    # One client's trouble must not end the queue.
    except Exception:  # noqa: BLE001
        emit(UnexpectedError("serving a client of the queue", traceback.format_exc()))


def is_trusted(uid: int) -> bool:
    """True for root and for who runs the queue."""
    return uid in (0, os.geteuid())
