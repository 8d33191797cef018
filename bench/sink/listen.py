"""Where a sink listens: addresses, ranges of them, and their sockets."""

import errno
import ipaddress
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.sink.behaviour import Behaviour, BehaviourError
from bench.sink.words import parse_behaviour, split_words

BACKLOG: Final = 1_024  # connects that the kernel holds for us
MOST: Final = 20_000  # listeners of one sink
EXPECTED: Final = "expected ADDRESS:PORT, where each may be a range (FIRST-LAST), or unix:PATH"
SLOW_BUFFER: Final = 4_096  # octets that the kernel may read ahead of a slow reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """One address to listen on, and the behaviour there."""

    host: str  # numeric; empty for a UNIX socket
    port: int = 0  # 0: any free one
    path: str = ""  # of a UNIX socket; replaced if it exists
    behaviour: Behaviour = field(default_factory=Behaviour)

    @property
    def name(self) -> str:
        """As in messages for people."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, owned by whoever opened it. `name` has the real port."""

    socket: socket.socket
    name: str
    behaviour: Behaviour

    def close(self) -> None:
        """Close it; a UNIX socket's path goes, too."""
        self.socket.close()
        if self.name.startswith("unix:"):
            with suppress(OSError):
                Path(self.name.removeprefix("unix:")).unlink()


def parse_listen(text: str, base: Behaviour) -> list[Listen]:
    """An address (see `parse_addresses`), then words of behaviour. Raises BehaviourError."""
    address, *words = split_words(text) or [""]
    return parse_addresses(address, parse_behaviour(words, base))


def parse_addresses(text: str, behaviour: Behaviour) -> list[Listen]:
    """All of `127.0.1.1-127.0.1.250:2525-2530`, at least one. Raises BehaviourError."""
    if text.startswith("unix:") and text != "unix:":
        return [Listen(host="", path=text.removeprefix("unix:"), behaviour=behaviour)]
    host, _, port = text.rpartition(":")
    try:
        hosts, ports = _hosts(host), _ports(port)
    except ValueError as exc:
        raise BehaviourError(f"{text!r}: {exc}") from exc
    if len(hosts) * len(ports) > MOST:
        raise BehaviourError(f"{text!r}: these are more than {MOST} listeners")
    return [Listen(host=host, port=port, behaviour=behaviour) for host in hosts for port in ports]


def _hosts(text: str) -> Sequence[str]:
    first_text, dash, last_text = text.replace("[", "").replace("]", "").partition("-")
    try:
        first = ipaddress.ip_address(first_text)
        last = ipaddress.ip_address(last_text) if dash else first
    except ValueError:
        raise ValueError(f"{EXPECTED}; addresses are numbers") from None
    count = int(last) - int(first) + 1
    if first.version != last.version or count < 1:
        raise ValueError("the last address comes before the first")
    return [str(first + number) for number in range(min(count, MOST + 1))]


def _ports(text: str) -> Sequence[int]:
    first, dash, last = text.partition("-")
    texts = (first, last) if dash else (first, first)
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in texts):
        raise ValueError(EXPECTED)
    low, high = int(texts[0]), int(texts[1])
    if high > 65_535 or low > high or (dash and not low):
        raise ValueError("ports go from 1 to 65535, the smaller one first")
    return range(low, high + 1)


def open_listeners(listens: Sequence[Listen]) -> list[Listener]:
    """Listen on all of them; the caller owns the sockets. OSError names the one that cannot."""
    listeners: list[Listener] = []
    try:
        for listen in listens:
            listeners.append(open_listener(listen))  # noqa: PERF401 - closed when one fails
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def open_listener(listen: Listen) -> Listener:
    """Listen on one address. The caller owns the socket, which does not block. Raises OSError."""
    family = socket.AF_UNIX
    if listen.host:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            _bind(sock, listen)
            sock.listen(BACKLOG)
            sock.setblocking(False)  # noqa: FBT003  # its parameter has no name
            bound = Listen(host=listen.host, port=_port(sock, listen), path=listen.path)
            return Listener(sock, bound.name, listen.behaviour)
        except BaseException:
            sock.close()
            raise
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on {listen.name}: {exc.strerror or exc}") from exc


def _bind(sock: socket.socket, listen: Listen) -> None:
    if listen.behaviour.slow_read is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
    if listen.path:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(Path(listen.path).lstat().st_mode):
                raise OSError(errno.EEXIST, "this is somebody's file, and no socket")
            Path(listen.path).unlink()
        sock.bind(listen.path)
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it: replies to two flights must not wait for one another's ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((listen.host, listen.port))


def _port(sock: socket.socket, listen: Listen) -> int:
    return int(sock.getsockname()[1]) if listen.host else 0
