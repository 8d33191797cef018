"""A DNS responder for scenario zones, over UDP and TCP on one port.

Answers for the sockets and the command; what is answered, and what a zone file holds, is told in
`dns_zone.py`. Start at `serve_dns`.

Run it: `python -m bench.dns --listen 127.0.0.1:5353 --zone FILE`.
"""

import json
import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import click
import trio

from bench.dns_zone import Fault, Zone, ZoneError, respond
from worker.cli.exits import CommandError, run_command

PORT_ATTEMPTS: Final = 20  # UDP's free port may be taken for TCP
UDP_LIMIT: Final = 512  # octets to who does not offer more (RFC 1035 section 4.2.1)
WAITING_LIMIT: Final = 10_000  # answers over UDP that wait for their time
CONNECTION_LIMIT: Final = 1_000  # over TCP, at one time
IDLE_LIMIT: Final = 60.0  # seconds that a connection may say nothing
PIECES: Final = 20  # of an answer over slow TCP

EPILOG = """\b
A zone file holds records in master file syntax (names without a final dot are
complete unless ORIGIN or $ORIGIN is given; TTL 300 without one), and failures:
  NAME SERVFAIL [TYPE]          also REFUSED, NXDOMAIN, FORMERR, NOTIMP
  NAME SILENT [TYPE]            no answer; TIMEOUT is the same
  NAME TRUNCATED [TYPE]         over UDP: ask again over TCP
  NAME LATENCY SECONDS [TYPE]   a late answer
  NAME SLOW-TCP SECONDS [TYPE]  a slow one over TCP
A NAME of * or *.example.com stands for names that do not exist.
It ends at SIGTERM or SIGINT, and tells what was asked.
"""


async def _serve_udp(zone: Zone, server: trio.socket.SocketType) -> None:
    waiting = 0

    async def answer_later(answer: bytes, fault: Fault, peer: tuple[str, int]) -> None:
        nonlocal waiting
        await trio.sleep(fault.latency)
        waiting -= 1
        with suppress(OSError):
            await server.sendto(answer, peer)

    async with trio.open_nursery() as nursery:
        while True:
            wire, peer = await server.recvfrom(65_535)
            response = respond(zone, wire, limit=UDP_LIMIT)
            if response is None:
                continue
            answer, fault = response
            if not fault.latency:
                with suppress(OSError):  # the peer's address may be none that can be reached
                    await server.sendto(answer, peer)
            elif waiting < WAITING_LIMIT:
                waiting += 1
                nursery.start_soon(answer_later, answer, fault, peer)
            else:
                zone.counts.answers["dropped"] += 1


async def _serve_tcp(zone: Zone, stream: trio.SocketStream) -> None:
    """Answer length-prefixed queries (RFC 1035 section 4.2.2) until the client leaves."""
    unread = b""
    async with stream:
        try:
            while True:
                data = b""
                with trio.move_on_after(IDLE_LIMIT):
                    data = await stream.receive_some()
                if not data:
                    return
                unread += data
                while len(unread) >= 2 and len(unread) >= 2 + int.from_bytes(unread[:2]):
                    end = 2 + int.from_bytes(unread[:2])
                    wire, unread = unread[2:end], unread[end:]
                    if response := respond(zone, wire):
                        await _send(stream, *response)
        except trio.BrokenResourceError:
            return


async def _send(stream: trio.SocketStream, answer: bytes, fault: Fault) -> None:
    """One answer, late and in pieces if the zone says so."""
    framed = len(answer).to_bytes(2) + answer
    await trio.sleep(fault.latency)
    if not fault.slow_tcp:
        await stream.send_all(framed)
        return
    size = -(-len(framed) // PIECES)
    pieces = [framed[start : start + size] for start in range(0, len(framed), size)]
    for piece in pieces:
        await stream.send_all(piece)
        if piece is not pieces[-1]:
            await trio.sleep(fault.slow_tcp / (len(pieces) - 1))


async def _bind(host: str, port: int) -> tuple[trio.socket.SocketType, trio.SocketListener]:
    """A UDP socket and a TCP listener on the same port. The caller owns both. OSError."""
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    for attempt in range(PORT_ATTEMPTS):
        server = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
        try:
            await server.bind((host, port))
            chosen = server.getsockname()[1]
            listeners = await trio.open_tcp_listeners(chosen, host=host)
        except OSError:
            server.close()
            if port or attempt == PORT_ATTEMPTS - 1:
                raise
        except BaseException:
            server.close()
            raise
        else:
            return server, listeners[0]
    raise AssertionError("unreachable: the last attempt returns or raises")


async def serve_dns(
    zone: Zone,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer from `zone` until cancelled. Started: the port. OSError: the address is not free."""
    server, listener = await _bind(host, port)
    await _serve(zone, server, listener, task_status=task_status)


async def _serve(
    zone: Zone,
    server: trio.socket.SocketType,
    listener: trio.SocketListener,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Owns both sockets."""
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        if connections >= CONNECTION_LIMIT:
            await trio.aclose_forcefully(stream)
            return
        connections += 1
        try:
            await _serve_tcp(zone, stream)
        finally:
            connections -= 1

    with server:
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(_serve_udp, zone, server)
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            task_status.started(server.getsockname()[1])


class _CannotListen(Exception):
    """No listener on an address: which and why."""


async def _run(zone: Zone, addresses: Sequence[tuple[str, int]]) -> None:
    """Serve until SIGTERM or SIGINT. Raises _CannotListen."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with AsyncExitStack() as opened:
            sockets = []
            for host, port in addresses:
                try:
                    server, listener = await _bind(host, port)
                except OSError as exc:
                    why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc
                    raise _CannotListen(f"{_shown(host, port)}: {why}") from exc
                opened.enter_context(server)
                await opened.enter_async_context(listener)
                sockets.append((server, listener))
            async with trio.open_nursery() as nursery:
                for (host, _), (server, listener) in zip(addresses, sockets, strict=True):
                    nursery.start_soon(_serve, zone, server, listener)
                    click.echo(f"listening on {_shown(host, server.getsockname()[1])}")
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(text: str) -> tuple[str, int]:
    """Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65_535:
        raise ValueError(f"{text!r}: expected ADDRESS:PORT, e.g. 127.0.0.1:5353")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _read_zones(files: Sequence[str]) -> Zone:
    """All of them as one. Raises ZoneError; OSError with the file's name."""
    zone = Zone()
    for text in files:
        # A file whose name has a "=" is still itself, if it is there.
        origin, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            origin, path = ".", text
        try:
            zone.read(Path(path).read_text("utf-8"), file=path, origin=origin)
        except UnicodeDecodeError as exc:
            raise ZoneError(f"{path}: not UTF-8 at octet {exc.start}") from exc
    return zone


@click.command(epilog=EPILOG)
@click.option(
    "--listen",
    "listen",
    multiple=True,
    default=["127.0.0.1:0"],
    metavar="ADDRESS:PORT",
    show_default=True,
    help="Where to answer; may be repeated. Port 0: any free one, which is printed.",
)
@click.option(
    "--zone",
    "zones",
    required=True,
    multiple=True,
    metavar="[ORIGIN=]FILE",
    help="What to answer; may be repeated. ORIGIN completes names without a final dot.",
)
@click.option(
    "--json",
    "report",
    metavar="FILE",
    help="Write what was asked there at the end, by name and type; - for standard output.",
)
def main(listen: Sequence[str], zones: Sequence[str], report: str | None) -> None:
    """Answer DNS queries from small zone files, over UDP and TCP, failures included."""
    try:
        addresses = [_address(text) for text in listen]
    except ValueError as exc:
        raise CommandError(str(exc), os.EX_USAGE) from exc
    try:
        zone = _read_zones(zones)
    except ZoneError as exc:
        raise CommandError(str(exc), os.EX_DATAERR) from exc
    except OSError as exc:
        raise CommandError(f"{exc.filename}: {exc.strerror}", os.EX_NOINPUT) from exc
    try:
        file = None if report is None else click.open_file(report, "w")
    except OSError as exc:
        raise CommandError(f"--json {report}: {exc.strerror}", os.EX_CANTCREAT) from exc
    failed: list[str] = []
    try:
        trio.run(_run, zone, addresses)
    except* _CannotListen as group:
        failed += [str(exc) for exc in group.exceptions]
    if failed:
        raise CommandError(f"cannot listen on {failed[0]}", os.EX_OSERR)
    counts = zone.counts.report()
    if file is not None:
        with file:
            file.write(json.dumps(counts, indent=2) + "\n")
    else:
        click.echo(f"{counts['questions']} questions; answers: {counts['answers'] or 'none'}")


if __name__ == "__main__":
    run_command("dns", lambda words: main.main(list(words), standalone_mode=False))
