"""The starter: a process that keeps root's rights in order to start jailed workers.

A process that has given up its rights cannot put its children into a jail, and one inside a jail
cannot execute Python. So `postrio run --chroot` forks this process first and gives up its own
rights then. The starter knows one command line, that of a worker, fixed when it was forked; whoever
asks can have it executed with two descriptors, or have a signal sent to what was started. It opens
nothing, reads nothing else, and ends with the queue process.

Each process has a channel of its own, over which the starter tells its number and its end. A worker
outlives a starter that was killed, but not for long: its channel ends, and it is killed.
"""

import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

_START: Final = b"start"
_SIGNAL: Final = b"signal"  # process id, number
_REQUEST_SIZE: Final = 64  # octets
END_LIMIT: Final = 5.0  # seconds to wait for its end
_DESCRIPTORS: Final = 3  # listening socket, standard input, channel


class StarterGone(RuntimeError):
    """The starter has ended: no worker can be started any more."""


class Starter:
    """The way to the starter: a `worker.pool.child.Start`."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Fork it. `arguments`: of a worker, but for its listening socket.

        To be called before there are threads or a trio loop, while rights are still there.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            status = os.EX_SOFTWARE
            try:
                self._socket.close()
                _serve(theirs, arguments)
                status = os.EX_OK
            finally:
                os._exit(status)  # nothing of the parent's is ours to clean up
        theirs.close()
        self._socket.setblocking(False)  # noqa: FBT003  # its parameters have no names

    async def __call__(
        self, _arguments: Sequence[str], listener: int, lifeline: int
    ) -> "StartedProcess":
        """Start a worker; the command line is the starter's own. Raises OSError, StarterGone."""
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                descriptors = [listener, lifeline, theirs.fileno()]
                with suppress(BrokenPipeError, ConnectionResetError):  # then there is no answer
                    socket.send_fds(self._socket, [_START], descriptors)
            answer = await ours.recv(_REQUEST_SIZE)
        except BaseException:
            ours.close()
            raise
        number = int(answer or 0)
        if number > 0:
            return StartedProcess(number, ours, self)
        ours.close()
        if not number:
            raise StarterGone("the process that starts workers is gone")
        raise OSError(-number, os.strerror(-number))

    def send_signal(self, pid: int, number: signal.Signals) -> None:
        """Have a signal sent to a process that the starter has started."""
        with suppress(OSError):  # it is gone, and the channels say so
            self._socket.send(b"%s %d %d" % (_SIGNAL, pid, number))

    def close(self) -> None:
        """End the starter, and wait for that, END_LIMIT at most.

        One that is stopped or hangs cannot be killed, for it has root's rights and we have not. It
        ends when it goes on.
        """
        with self._socket:
            with suppress(OSError):  # it is gone
                self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(END_LIMIT)
            try:
                self._socket.recv(_REQUEST_SIZE)  # the end of file: it says nothing here
            except TimeoutError:
                return
            except OSError:  # it ended, and had not read everything
                pass
        os.waitpid(self.pid, 0)


class StartedProcess:
    """A process as `worker.pool.child.Process` has it."""

    def __init__(self, pid: int, channel: trio.socket.SocketType, starter: Starter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._channel = channel
        self._starter = starter

    async def wait(self) -> int:
        """Its exit status, when it has one."""
        if self.returncode is not None:
            return self.returncode
        answer = await self._channel.recv(_REQUEST_SIZE)
        self._channel.close()
        if answer:
            self.returncode = int(answer)
        else:  # the starter is gone, and with it everybody who could tell
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            self.returncode = -signal.SIGKILL
        return self.returncode

    def send_signal(self, sig: signal.Signals) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.returncode is None:
            self._starter.send_signal(self.pid, sig)


# --- in the starter ------------------------------------------------------------------------------


def _serve(requests: socket.socket, arguments: Sequence[str]) -> None:
    """Obey until the queue process is gone."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Meant for the queue process. Not SIG_IGN: a worker would inherit that.
        signal.signal(ignored, lambda *_: None)
    processes: dict[int, subprocess.Popen[bytes]] = {}
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_SIZE, _DESCRIPTORS)
        if not request:
            return
        if request == _START and len(descriptors) == _DESCRIPTORS:
            _start(arguments, descriptors, processes)
        elif request.startswith(_SIGNAL):
            _, pid, number = request.split()
            if (process := processes.get(int(pid))) is not None:
                process.send_signal(int(number))


def _start(
    arguments: Sequence[str], descriptors: list[int], processes: dict[int, subprocess.Popen[bytes]]
) -> None:
    """Start one process, and tell its number, or a negative errno."""
    listener, lifeline, channel_fd = descriptors
    channel = socket.socket(fileno=channel_fd)
    try:
        process = subprocess.Popen(
            [*arguments, "--listen-fd", str(listener)], stdin=lifeline, pass_fds=[listener]
        )
    except OSError as exc:
        with channel:
            _tell(channel, -(exc.errno or 1))
        return
    finally:
        os.close(listener)
        os.close(lifeline)
    processes[process.pid] = process

    def wait() -> None:
        with channel:
            _tell(channel, process.pid)
            status = process.wait()
            processes.pop(process.pid, None)
            _tell(channel, status)

    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:  # too many processes, and it was the last one
        process.kill()
        process.wait()
        del processes[process.pid]
        with channel:
            _tell(channel, -errno.EAGAIN)


def _tell(channel: socket.socket, number: int) -> None:
    """Tell it, unless nobody wants to know any more."""
    with suppress(OSError):
        channel.send(b"%d" % number)
