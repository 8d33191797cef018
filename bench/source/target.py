"""Where the mail goes: an address to connect to, and from which address of ours."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from worker.network.socket_stream import QuickStream

# Of Linux' in.h; Python has the name since 3.12. The port is chosen at connect(), so that one
# address can have more connections than there are ports, to different peers or one after another.
IP_BIND_ADDRESS_NO_PORT: Final = 24

# Returns a connection for session number ...; the caller owns it. Raises OSError.
Dial = Callable[[int], Awaitable[trio.abc.Stream]]


class TargetError(Exception):
    """There is no such address: what was read, and what was expected."""


class UnknownHostError(TargetError):
    """No address is known of this name: the resolver's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Either `path`, of a UNIX socket, or `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """As it is written on a command line."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """`HOST:PORT`, `[ADDRESS]:PORT` or `unix:PATH`. Raises TargetError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise TargetError(f"{text!r}: the path of the socket is missing behind unix:")
        return Target(path=path)
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65_536:
        raise TargetError(f"{text!r}: expected HOST:PORT, [ADDRESS]:PORT or unix:PATH")
    return Target(host=host, port=int(port))


async def dialler(target: Target, sources: Sequence[str] = ()) -> Dial:
    """What connects to `target`: always to the first address of its name, which is looked up now.

    `sources`: numeric addresses of this machine, taken by turns of the sessions. Raises
    TargetError.
    """
    if target.path:
        if sources:
            raise TargetError("a UNIX socket is reached from no address: leave out --source")
        address: str | tuple[str | int | bytes, ...] = target.path
        family = socket.AF_UNIX
    else:
        try:
            found = await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise UnknownHostError(f"{target.host}: {_words(exc)}") from exc
        family, _, _, _, address = found[0]
        for source in sources:
            _check_source(source, family)

    async def dial(session: int) -> trio.abc.Stream:
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)  # noqa: FBT003  # its parameter has no name
            if sources:
                with contextlib.suppress(OSError):  # an old kernel: fewer connections, that is all
                    raw.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                raw.bind((sources[session % len(sources)], 0))
            await trio.socket.from_stdlib_socket(raw).connect(address)
        except BaseException:
            raw.close()
            raise
        return QuickStream(raw)

    return dial


def _check_source(source: str, family: int) -> None:
    """Raise TargetError if we cannot connect from `source`: better now than at each connection."""
    try:
        with socket.socket(family) as probe:
            probe.bind((source, 0))
    except (OSError, UnicodeError) as exc:
        raise TargetError(f"source address {source}: {_words(exc)}") from exc


def _words(error: OSError | UnicodeError) -> str:
    """The system's words without its number."""
    return getattr(error, "strerror", None) or str(error)
