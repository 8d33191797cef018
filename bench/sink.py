"""An SMTP and LMTP sink: many listeners in one process, each with its own manners.

Answers for listeners, the record of what was received, and the command; the dialogue is in
`sink_session.py`, the manners in `behaviour.py`. It keeps no mail, unless asked to (`--dump`).

Run it: `python -m bench.sink --listen 127.0.0.1:2525 --record messages.jsonl`.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio

from bench.behaviour import Behaviour, BehaviourError, parse_behaviour, split_words
from bench.sink_session import Received, Sink, Take


class RecordFile:
    """Appends one JSON line per message, in one write, so that readers never see half a line.

    No fsync: the file has to survive the death of a client, not of the machine.
    """

    def __init__(self, path: Path, *, wall: Callable[[], float]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self._wall = wall

    def __call__(self, received: Received) -> None:
        """Record one message."""
        fields: dict[str, object] = {
            name: getattr(received, name) for name in Received.__slots__ if name != "content"
        }
        if received.content is not None:
            fields["content"] = base64.b64encode(received.content).decode()
        fields["time"] = self._wall()
        os.write(self._fd, json.dumps(fields).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """One address to listen on, and the behaviour there."""

    host: str  # numeric; empty for a UNIX socket
    port: int = 0  # 0: any free one
    path: str = ""  # of a UNIX socket; replaced if it exists
    behaviour: Behaviour = field(default_factory=Behaviour)


def parse_listen(text: str, base: Behaviour) -> Listen:
    """`ADDRESS:PORT` or `unix:PATH`, then words of behaviour. Raises BehaviourError."""
    address, *words = split_words(text) or [""]
    behaviour = parse_behaviour(words, base)
    if address.startswith("unix:"):
        return Listen(host="", path=address[len("unix:") :], behaviour=behaviour)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BehaviourError(f"{address!r}: expected ADDRESS:PORT or unix:PATH")
    return Listen(host=host.strip("[]"), port=int(port), behaviour=behaviour)


async def open_listener(listen: Listen) -> tuple[trio.SocketListener, str]:
    """A listening socket and its name, e.g. "127.0.0.1:2525". The caller owns it. OSError."""
    if listen.path:
        with contextlib.suppress(FileNotFoundError):
            Path(listen.path).unlink()  # noqa: ASYNC240 - before anything runs
        server = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await server.bind(listen.path)
            server.listen(1024)
        except BaseException:
            server.close()
            raise
        return trio.SocketListener(server), f"unix:{listen.path}"
    listeners = await trio.open_tcp_listeners(listen.port, host=listen.host, backlog=1024)
    host, port = listeners[0].socket.getsockname()[:2]
    return listeners[0], f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        sinks = []
        for listen in listens:
            listener, name = await open_listener(listen)
            await stack.enter_async_context(listener)
            sink = Sink(behaviour=listen.behaviour, name=name, take=take, keep=keep)
            nursery.start_soon(trio.serve_listeners, sink.serve, [listener])
            sinks.append(sink)
        task_status.started(sinks)


async def _run(listens: Sequence[Listen], record: RecordFile | None, *, keep: bool) -> None:
    """Serve until SIGTERM or SIGINT; then say what was taken."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[list[Sink]]) -> None:
                await serve_sinks(listens, take=record, keep=keep, task_status=task_status)

            sinks = await nursery.start(serve)
            for sink in sinks:
                click.echo(f"listening on {sink.name}")
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    for sink in sinks:
        counters = sink.counters
        click.echo(
            f"{sink.name}: connections={counters.connections} messages={counters.messages} "
            f"recipients={counters.recipients} refused={counters.refused} octets={counters.octets}"
        )


def leaves(failure: BaseException) -> Iterator[BaseException]:
    """The plain exceptions in a group, however deep."""
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from leaves(inner)
    else:
        yield failure


@contextlib.contextmanager
def _record_file(path: str | None) -> Iterator[RecordFile | None]:
    """The record file, open as long as the block runs; None for no path."""
    if path is None:
        yield None
        return
    record = RecordFile(Path(path), wall=time.time)
    try:
        yield record
    finally:
        record.close()


@click.command()
@click.option(
    "--listen",
    "addresses",
    multiple=True,
    required=True,
    metavar="ADDRESS:PORT|unix:PATH [WORD...]",
    help="Where to listen, and words of behaviour for this listener. Port 0: any free one.",
)
@click.option("--lmtp", is_flag=True, help="Speak LMTP on every listener.")
@click.option(
    "--behaviour",
    "words",
    multiple=True,
    metavar="WORD",
    help="For every listener: greylist=SECONDS, refuse[=REPLY], PHASE=REPLY, cut=PHASE, "
    "silent=PHASE, cut-after=OCTETS, latency=SECONDS, rtt=SECONDS, size=OCTETS, "
    "without=KEYWORD, to:ADDRESS=REPLY, mailbox:ADDRESS=REPLY. Phases: connect, ehlo, mail, rcpt, "
    "data, content, end, rset, quit.",
)
@click.option("--record", metavar="FILE", help="Append one JSON line per message to FILE.")
@click.option("--dump", is_flag=True, help="Put the content into the record, in base64.")
def main(
    addresses: tuple[str, ...],
    words: tuple[str, ...],
    record: str | None,
    *,
    lmtp: bool,
    dump: bool,
) -> None:
    """Take mail and throw it away, or refuse it, in ways that tests and figures need."""
    try:
        base = parse_behaviour([*words, *(["lmtp"] if lmtp else [])])
        listens = [parse_listen(text, base) for text in addresses]
    except BehaviourError as exc:
        click.echo(f"sink: {exc}", err=True)
        sys.exit(os.EX_USAGE)
    failure: BaseException | None = None
    try:
        with _record_file(record) as take:
            trio.run(lambda: _run(listens, take, keep=dump))
    except* OSError as group:
        failure = group
    if failure is not None:
        for leaf in leaves(failure):
            click.echo(f"sink: {leaf}", err=True)
        sys.exit(os.EX_OSERR)


if __name__ == "__main__":
    main()
