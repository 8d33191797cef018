"""Load for a connection cache, ours or the real scache(8): clients that save and find all the time.

One process plays all clients, each answering as soon as it is answered. They must not wait for each
other: the real scache(8) serves one exchange at a time, and stops until that client goes on. What
the cache answers is known to the octet, so the load parses nothing and costs little more than its
system calls.
"""

import os
import select
import socket
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.harness.scenario import LoadError
from protocol.cache_wire import (
    ANNOUNCEMENT_WIRE,
    DESCRIPTOR_OCTET,
    DUMMY_WIRE,
    FindEndpoint,
    Reply,
    SaveEndpoint,
    Status,
)

_LIMIT: Final = 10.0  # seconds for one answer
_ANCILLARY: Final = socket.CMSG_LEN(array("i").itemsize)
# As smtp(8) 3.7 writes it.
_PROPERTY: Final = "host=127.0.0.1\naddress=127.0.0.1\nport=2525\nfeatures=15\n"


_SAVED: Final = Reply(Status.OK).encode()


class _Client:
    """One client, and what it says over and over: save, descriptor, find, dummy, dummy and save."""

    def __init__(self, sock: socket.socket, number: int, connection: socket.socket) -> None:
        label, text = f"smtp\n127.0.0.1\n{2000 + number}\n0\n", f"{_PROPERTY}number={number}\n"
        self.sock = sock
        self.pairs = 0
        self._save = SaveEndpoint(60, label, text).encode()
        self._find = FindEndpoint(label).encode()
        self._found = Reply(Status.OK, (text,)).encode()
        self._rights = [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [connection.fileno()])),
        ]
        self._play = self._steps()

    def step(self) -> None:
        """Read the answer, which is there (the first step: nothing), and say what comes next."""
        next(self._play)

    def _steps(self) -> Iterator[None]:
        sock = self.sock
        sock.send(self._save)
        while True:
            yield
            self.expect(DUMMY_WIRE)
            sock.sendmsg([DESCRIPTOR_OCTET], self._rights)
            yield
            self.expect(_SAVED)
            sock.send(self._find)
            yield
            self.expect(self._found)
            sock.send(DUMMY_WIRE)
            yield
            _, ancillary, _, _ = sock.recvmsg(1, _ANCILLARY)
            if not ancillary:
                raise LoadError("the cache passed no descriptor")
            os.close(int.from_bytes(ancillary[0][2], "little"))
            self.pairs += 1
            sock.send(DUMMY_WIRE + self._save)

    def expect(self, octets: bytes) -> None:
        """Read exactly these octets. Raises LoadError for others."""
        got = self.sock.recv(65_536)
        while octets.startswith(got) and 0 < len(got) < len(octets):
            got += self.sock.recv(65_536)
        if got != octets:
            raise LoadError(f"the cache answered {got[:100]!r}, not {octets[:100]!r}")


def pairs_per_second(path: Path, clients: int, pairs: int) -> float:
    """The rate of so many pairs of a save and a find, in all. Raises LoadError."""
    with ExitStack() as stack:
        playing = [stack.enter_context(_client(path, number)) for number in range(clients)]
        by_fd = {client.sock.fileno(): client for client in playing}
        epoll = stack.enter_context(select.epoll())
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
        for client in playing:  # not before all of them are connected
            client.step()
        began = time.perf_counter()
        while sum(client.pairs for client in playing) < pairs:
            ready = epoll.poll(_LIMIT)
            if not ready:
                raise LoadError("the cache has stopped answering")
            for fd, _ in ready:
                by_fd[fd].step()
        return pairs / (time.perf_counter() - began)


@contextmanager
def _client(path: Path, number: int) -> Iterator[_Client]:
    """A connected client with one connection to save again and again."""
    connection, peer = socket.socketpair()
    with connection, peer, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_LIMIT)
        try:
            sock.connect(str(path))
        except OSError as exc:
            raise LoadError(f"no cache at {path}: {exc.strerror}") from exc
        if sock.recv(65_536) != ANNOUNCEMENT_WIRE:
            raise LoadError(f"{path} does not announce a connection cache")
        yield _Client(sock, number, connection)


def process_cpu(pid: int) -> float:
    """CPU seconds of one process so far, to the nanosecond of the scheduler. Raises LoadError."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError as exc:
        raise LoadError(f"process {pid} is gone") from exc
