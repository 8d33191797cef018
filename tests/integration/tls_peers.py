"""Servers that speak TLS, and a delivery to one of them.

Two kinds of servers: scripted ones on loopback (`listening`), which do what no real server would;
and real programs of other projects (`OpensslServer`, `GnutlsServer`; Postfix and Dovecot have
modules of their own), which end with their context. Deliveries are the product's own `deliver()`
in the environment that a configuration makes (`attempt`).
"""

import os
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from bench.dns import serve_dns
from bench.dns_zone import Zone
from bench.postfix_instance import free_port
from protocol.outcome import RecipientOutcome
from protocol.request import DeliveryRequest, Protocol, Recipient
from tests.integration import pki
from tests.integration.peers import find_program
from tests.integration.pki import Leaf
from tests.worker.peer import Peer
from worker.config.config import Config
from worker.content import InlineContent
from worker.delivery.deliver import deliver
from worker.delivery.environment import Environment
from worker.delivery.slot import DeliverySlot
from worker.environment import make_environment
from worker.network.socket_stream import QuickStream
from worker.status.events import Event
from worker.status.log import render
from worker.tls.handshake import TlsEngine
from worker.tls.policy import TlsPolicy
from worker.tls.stream import TlsStream

HOST: Final = "127.0.0.1"
CONTENT: Final = b"Subject: hello\r\n\r\nworld\r\n"
START_LIMIT: Final = 20.0  # seconds
# All servers answer on 127.0.0.1; what is in a certificate decides.
ZONE: Final = """\
good.example             MX 10 mx.good.example.
mx.good.example          A 127.0.0.1
elsewhere.example        MX 10 mx.good.example.
xn--bcher-kva.example    MX 10 mx.xn--bcher-kva.example.
mx.xn--bcher-kva.example A 127.0.0.1
"""


# --- deliveries ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What a delivery came to."""

    outcome: RecipientOutcome
    log: tuple[str, ...]  # lines of the log, without who logs
    events: tuple[Event, ...]

    @property
    def brief(self) -> str:
        """As in the log, without what differs from run to run: "4.7.4 deferred (why)"."""
        outcome = self.outcome
        return f"{outcome.dsn} {outcome.action.value} ({outcome.reason})"


class Client:
    """Our side under one configuration. With a `slot`, its deliveries reuse one session."""

    def __init__(
        self,
        main_cf: Mapping[str, str],
        *,
        resolver: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: by which tables are looked at again. Raises ConfigError."""
        self.events: list[Event] = []
        self.slot: DeliverySlot | None = None
        defaults = {"myhostname": "client.example", "smtp_tls_loglevel": "1"}
        self.environment: Environment = make_environment(
            Config.from_mapping({**defaults, **main_cf}, clock=clock),
            self.events.append,
            time.time,
            random.Random(1),
            resolver=resolver,
        )

    async def attempt(
        self, nexthop: str, *, age: float = 0.0, protocol: Protocol = Protocol.SMTP
    ) -> Attempt:
        """One message to one recipient. `age`: seconds since it came into the queue."""
        del self.events[:]
        now = time.time()
        request = DeliveryRequest(
            queue_id="Q1",
            transport=protocol.value,
            protocol=protocol,
            nexthop=nexthop,
            sender="sender@client.example",
            recipients=(Recipient(address="a@to.example", key=0),),
            size=len(CONTENT),
            arrival=now - age,
            active=now,
        )
        result = await deliver(request, InlineContent(CONTENT), self.environment, self.slot)
        (outcome,) = result.outcomes
        return Attempt(
            outcome=outcome,
            log=tuple(line.text for event in self.events for line in render(event)),
            events=tuple(self.events),
        )


@asynccontextmanager
async def listening(peers: Mapping[str, Peer]) -> AsyncIterator[dict[str, int]]:
    """Serve each scripted peer on 127.0.0.1; yields their ports by name."""
    async with trio.open_nursery() as nursery:
        ports = {}
        for name, peer in peers.items():
            (listener,) = await nursery.start(
                partial(trio.serve_tcp, peer.serve, 0, host=HOST, handler_nursery=nursery)
            )
            ports[name] = listener.socket.getsockname()[1]
        yield ports
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def named() -> AsyncIterator[str]:
    """A DNS server that knows ZONE; yields its address for `Client(resolver=)`."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_dns, Zone.from_text(ZONE)))
        yield f"{HOST}:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def shaken(
    engine: TlsEngine, port: int, policy: TlsPolicy, *, nexthop: str = "good.example"
) -> AsyncIterator[TlsStream]:
    """A TLS connection to a server on loopback, from the first octet. Raises HandshakeError."""
    sock = await trio.to_thread.run_sync(socket.create_connection, (HOST, port))
    transport = QuickStream(sock)
    try:
        stream = await engine.handshake(
            transport, policy, host=pki.HOST, address=HOST, port=port, nexthop=nexthop
        )
        yield stream
        await stream.aclose()
    finally:
        await trio.aclose_forcefully(transport)


# --- programs -----------------------------------------------------------------------------------


class ProgramError(Exception):
    """A server did not start: why, in its own words."""


class _Program:
    """One process with a port, from entering the context to leaving it."""

    def __init__(self) -> None:
        self.port = free_port()
        self._said = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []
        self._news = threading.Condition()
        self._ended = False

    def _command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def _ready(self, said: str) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        reader = threading.Thread(target=self._read, args=(self._process,))
        reader.start()
        self._readers.append(reader)
        try:
            self.wait_until(re.compile(""), ready=True)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return self._said.decode(errors="replace")

    def wait_until(
        self, pattern: re.Pattern[str], *, start: int = 0, ready: bool = False
    ) -> "re.Match[str]":
        """Block until it has printed that, from `start` on. Raises ProgramError with all of it."""
        with self._news:
            deadline = time.monotonic() + START_LIMIT
            while True:
                match = pattern.search(self.said, start)
                if match is not None and (not ready or self._ready(self.said)):
                    return match
                left = deadline - time.monotonic()
                if self._ended or left <= 0 or not self._news.wait(left):
                    raise ProgramError(f"{self._command()[0]} said: {self.said}")

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 65_536):
            with self._news:
                self._said += data
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class OpensslServer(_Program):
    """`openssl s_server`: prints what it hears, and says what it is told to.

    `options` as for the command (-tls1_2, -cipher, -Verify 1, -no_ticket ...).
    """

    def __init__(self, leaf: Leaf, *options: str | Path) -> None:
        super().__init__()
        self._leaf = leaf
        self._options = options

    def say(self, *lines: str) -> None:
        """Send lines to whoever is connected.

        A line "K" asks for new keys of both sides; it must come alone, and first: s_server
        throws away what it reads together with it.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self._process.stdin.flush()

    def talk(self, script: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Wait for one pattern after another, and answer each with its lines. Blocks."""
        place = 0
        for pattern, lines in script:
            place = self.wait_until(re.compile(pattern), start=place).end()
            for line in lines:
                self.say(line)
                if line == "K":
                    place = self.wait_until(
                        re.compile("write server key update"), start=place
                    ).end()

    def _command(self) -> Sequence[str | Path]:
        certificate = ("-cert", self._leaf.chain, "-cert_chain", self._leaf.chain)
        return (
            *("openssl", "s_server", "-accept", f"{HOST}:{self.port}", "-crlf", "-state"),
            *("-key", self._leaf.key, *certificate, *self._options),
        )

    def _ready(self, said: str) -> bool:
        return "ACCEPT" in said


class GnutlsServer(_Program):
    """`gnutls-serv`: TLS from the first octet; whatever it is told it says again."""

    def __init__(self, leaf: Leaf, *options: str | Path) -> None:
        super().__init__()
        self._leaf = leaf
        self._options = options

    def _command(self) -> Sequence[str | Path]:
        certificate = ("--x509certfile", self._leaf.chain, "--x509keyfile", self._leaf.key)
        program = find_program("gnutls-serv") or "gnutls-serv"
        return (program, "--port", str(self.port), "--echo", *certificate, *self._options)

    def _ready(self, said: str) -> bool:
        return f"port {self.port}" in said and "done" in said
