"""A scripted SMTP and LMTP server, the network to reach it, and a world to deliver in.

Fakes with behaviour: a `Peer` follows the rules of the protocol except where its script says
otherwise, writes down what it was told and when, and takes a message only when it has said so. A
`World` is a handful of peers behind a resolver and a dialer, and `deliver()` run in it. Nothing
here reads a real clock or waits for real time.
"""

import random
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum

import trio
from trio.testing import wait_all_tasks_blocked

from protocol.outcome import Action, DeliveryResult
from protocol.request import DeliveryRequest, Protocol, Recipient
from tests.worker.fake_dns import FakeResolver
from worker.content import Content, InlineContent
from worker.delivery.deliver import Environment, deliver
from worker.delivery.settings import DeliverySettings
from worker.delivery.slot import DeliverySlot
from worker.network.address import Endpoint
from worker.network.endpoints import EndpointSettings
from worker.network.network import Network, NetworkSettings
from worker.status.events import Event


class Phase(Enum):
    """Where in the dialogue a script may interfere."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    LHLO = "LHLO"
    XFORWARD = "XFORWARD"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    CONTENT = "content"  # after `Peer.content_at` octets of it
    DOT = "final dot"
    RSET = "RSET"
    QUIT = "QUIT"


class Fault(Enum):
    """What a server does instead of answering."""

    SILENCE = "reads on, and never answers again"
    CUT = "closes the connection"
    RESET = "drops the connection, and all that is under way on it"
    STOP_READING = "reads nothing more"
    ENDLESS = "begins a reply that does not end"


@dataclass(frozen=True, slots=True)
class Late:
    """An answer after some seconds."""

    seconds: float
    answer: "Answer"


# A text is sent line by line with CRLF, whatever it is; a tuple is done step by step.
Answer = str | Fault | Late | tuple["Answer", ...]
# One answer for all; one for each argument (recipient), others being accepted; or one after
# another, the last one for ever.
Script = Answer | Mapping[str, Answer] | list[Answer]

EXTENSIONS = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")
_PATH = re.compile(r"(?:MAIL FROM|RCPT TO):<(.*?)>(?: (.*))?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Message:
    """What a peer took responsibility for."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes  # dots unstuffed


@dataclass(slots=True)
class Link:
    """One connection as the peer saw it."""

    began: float
    commands: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of the commands
    segments: list[bytes] = field(default_factory=list)  # as read
    contents: list[bytes] = field(default_factory=list)  # complete ones, accepted or not
    dots: int = 0  # ends of data that arrived
    ended: bool = False  # the client closed, or we did

    @property
    def verbs(self) -> list[str]:
        """The first word of each command."""
        return [command.split()[0].upper() for command in self.commands]


class Peer:
    """A server. Give `script` the answers that differ from a friendly server's."""

    def __init__(
        self,
        script: Mapping[Phase, Script] | None = None,
        *,
        lmtp: bool = False,
        name: str = "mx.example.com",
        extensions: Sequence[str] = EXTENSIONS,
        window: int = 65_536,
        drip: float = 0.0,
        drip_in: Phase | None = None,
        glued: bool = False,
        content_at: int = 1,
        real_sockets: bool = False,
    ) -> None:
        """`window`: octets that may be under way in each direction. `drip`: seconds between single
        octets of replies (`drip_in`: of that phase only). `glued`: as many replies as possible in
        one segment. `real_sockets`: a socket pair instead of memory.
        """
        self.script = dict(script or {})
        self.lmtp = lmtp
        self.name = name
        self.extensions = tuple(extensions)
        self.window = window
        self.drip = drip
        self.drip_in = drip_in
        self.glued = glued
        self.content_at = content_at
        self.real_sockets = real_sockets
        self.reads_per_second = 0  # octets; 0: whatever comes
        self.links: list[Link] = []
        self.accepted: list[Message] = []
        self._speak = trio.Event()
        self._hang_up = trio.Event()
        self._uses: dict[Phase, int] = {}

    @property
    def commands(self) -> list[str]:
        """All commands of all connections."""
        return [command for link in self.links for command in link.commands]

    @property
    def verbs(self) -> list[str]:
        """Their first words."""
        return [verb for link in self.links for verb in link.verbs]

    @property
    def offered(self) -> list[str]:
        """The recipients of all RCPT commands."""
        matches = [_PATH.match(command) for command in self.commands if command[:4] == "RCPT"]
        return [match[1] for match in matches if match]

    @property
    def served(self) -> list[str]:
        """The recipients of all accepted messages."""
        return [recipient for message in self.accepted for recipient in message.recipients]

    def speak_up(self) -> None:
        """Every connection, which should be idle, is told 421 and closed."""
        self._speak.set()
        self._speak = trio.Event()

    def hang_up(self) -> None:
        """Every connection is closed."""
        self._hang_up.set()
        self._hang_up = trio.Event()

    def answer(self, phase: Phase, argument: str, default: str) -> Answer:
        """What to say in `phase`: the script's word, or `default`."""
        script = self.script.get(phase, default)
        if isinstance(script, Mapping):
            return script.get(argument, default)
        if isinstance(script, list):
            use = self._uses.get(phase, 0)
            self._uses[phase] = use + 1
            return script[min(use, len(script) - 1)]
        return script

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, from the greeting to its end."""
        link = Link(trio.current_time())
        self.links.append(link)
        gone = (trio.BrokenResourceError, trio.ClosedResourceError, _Hangup)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._interrupt, stream, nursery.cancel_scope)
                with suppress(*gone):
                    await _Dialogue(self, link, stream).run()
                nursery.cancel_scope.cancel()
        finally:
            link.ended = True
            await trio.aclose_forcefully(stream)

    async def _interrupt(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        async with trio.open_nursery() as nursery:

            async def on(event: trio.Event, last_words: bytes) -> None:
                await event.wait()
                with suppress(trio.BrokenResourceError):
                    if last_words:
                        await stream.send_all(last_words)
                scope.cancel()

            nursery.start_soon(on, self._speak, b"421 4.3.2 going down\r\n")
            nursery.start_soon(on, self._hang_up, b"")


class _Hangup(Exception):
    """The peer has closed the connection by itself."""


class _Dialogue:
    """The server's side of one connection."""

    def __init__(self, peer: Peer, link: Link, stream: trio.abc.Stream) -> None:
        self._peer = peer
        self._link = link
        self._stream = stream
        self._unread = bytearray()
        self._unsent = bytearray()
        self._drip = peer.drip
        self._sender: str | None = None
        self._recipients: list[str] = []

    async def run(self) -> None:
        """Until the client is gone or the script says so."""
        await self._do(Phase.GREETING, "", f"220 {self._peer.name} ESMTP")
        while (line := await self._line()) is not None:
            self._link.commands.append(line)
            self._link.times.append(trio.current_time())
            await self._command(line)

    async def _command(self, line: str) -> None:
        verb = line.split()[0].upper()
        match = _PATH.match(line)
        if verb in ("EHLO", "LHLO"):
            *first, last = (f"{self._peer.name} hi", *self._peer.extensions)
            lines = "\n".join([*(f"250-{word}" for word in first), f"250 {last}"])
            phase = Phase.LHLO if verb == "LHLO" else Phase.EHLO
            wrong = (verb == "LHLO") != self._peer.lmtp
            await self._do(phase, "", "500 5.5.1 not here" if wrong else lines)
        elif verb == "MAIL" and match:
            if self._taken(await self._do(Phase.MAIL, match[1], "250 2.1.0 ok")):
                self._sender, self._recipients = match[1], []
        elif verb == "RCPT" and match:
            default = "503 5.5.1 MAIL first" if self._sender is None else "250 2.1.5 ok"
            if self._taken(await self._do(Phase.RCPT, match[1], default)):
                self._recipients.append(match[1])
        elif verb == "DATA":
            default = "354 go" if self._recipients else "554 5.5.1 no valid recipients"
            if self._taken(await self._do(Phase.DATA, "", default), "3"):
                await self._content()
        elif verb == "RSET":
            self._sender, self._recipients = None, []
            await self._do(Phase.RSET, "", "250 2.0.0 ok")
        elif verb == "QUIT":
            await self._do(Phase.QUIT, "", "221 2.0.0 bye")
            await self._flush()
            raise _Hangup
        else:
            await self._do(Phase[verb], "", "250 2.0.0 ok")

    async def _content(self) -> None:
        content = bytearray()
        interfered = False
        while True:
            data = b"\r\n" + content
            end = data.find(b"\r\n.\r\n")
            if end >= 0:
                break
            if len(content) >= self._peer.content_at and not interfered:
                interfered = True
                if Phase.CONTENT in self._peer.script:
                    await self._do(Phase.CONTENT, "", "")
            if not self._unread:
                await self._read()
            content += self._unread
            self._unread.clear()
        self._unread += data[end + 5 :]
        octets = data[2 : end + 2].replace(b"\r\n.", b"\r\n")
        octets = octets[1:] if octets.startswith(b".") else octets
        self._link.dots += 1
        self._link.contents.append(octets)
        await self._after_dot(octets)

    async def _after_dot(self, content: bytes) -> None:
        sender, recipients = self._sender or "", tuple(self._recipients)
        self._sender, self._recipients = None, []
        default = "250 2.0.0 queued" if recipients else "554 5.5.1 no valid recipients"
        if not self._peer.lmtp:
            if self._taken(await self._do(Phase.DOT, "", default)):
                self._peer.accepted.append(Message(sender, recipients, content))
            return
        for recipient in recipients:
            if self._taken(await self._do(Phase.DOT, recipient, default)):
                self._peer.accepted.append(Message(sender, (recipient,), content))

    @staticmethod
    def _taken(said: str, first: str = "2") -> bool:
        """Whether the last line of what was said is a reply of class `first`."""
        return said.rstrip().split("\n")[-1][:1] == first

    async def _do(self, phase: Phase, argument: str, default: str) -> str:
        self._drip = self._peer.drip if self._peer.drip_in in (None, phase) else 0.0
        return await self._act(self._peer.answer(phase, argument, default))

    async def _act(self, answer: Answer) -> str:
        """Do it; what was said, if anything."""
        if isinstance(answer, tuple):
            return "".join([await self._act(step) for step in answer])
        if isinstance(answer, Late):
            await self._flush()
            await trio.sleep(answer.seconds)
            return await self._act(answer.answer)
        if isinstance(answer, Fault):
            await self._fail(answer)
            return ""
        octets = "".join(f"{line}\r\n" for line in answer.split("\n")).encode()
        self._unsent += octets
        if not self._peer.glued:
            await self._flush()
        return answer

    async def _fail(self, fault: Fault) -> None:
        if fault is not Fault.RESET:
            await self._flush()
        if fault is Fault.SILENCE:
            while True:
                await self._read()
                self._unread.clear()
        if fault is Fault.STOP_READING:
            await trio.sleep_forever()
        if fault is Fault.ENDLESS:
            while True:
                await self._stream.send_all(b"250-and so on\r\n")
        if fault is Fault.RESET and isinstance(self._stream, MemoryStream):
            self._stream.reset()
        raise _Hangup

    async def _line(self) -> str | None:
        while (end := self._unread.find(b"\r\n")) < 0:
            try:
                await self._read()
            except _Hangup:
                return None
        line = self._unread[:end].decode()
        del self._unread[: end + 2]
        return line

    async def _read(self) -> None:
        await self._flush()
        pace = self._peer.reads_per_second
        if pace:
            await trio.sleep(1)
        data = await self._stream.receive_some(pace or 65_536)
        if not data:
            raise _Hangup
        self._link.segments.append(bytes(data))
        self._unread += data

    async def _flush(self) -> None:
        octets, self._unsent = self._unsent, bytearray()
        if not self._drip:
            if octets:
                await self._stream.send_all(octets)
            return
        for octet in octets:
            await trio.sleep(self._drip)
            await self._stream.send_all(bytes([octet]))


# --- streams -----------------------------------------------------------------------------------


class _Pipe:
    """One direction of a connection: at most `window` octets under way."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.data = bytearray()
        self.ended = False  # the sender closed
        self.refused = False  # the receiver closed
        self.dropped = False  # reset
        self.changed = trio.lowlevel.ParkingLot()

    def change(self, *, ended: bool = False, refused: bool = False) -> None:
        self.ended = self.ended or ended
        self.refused = self.refused or refused
        self.changed.unpark_all()


class MemoryStream(trio.abc.Stream):
    """One end of a connection in memory, with a window as TCP has one."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; waits while the window is full."""
        await trio.lowlevel.checkpoint()
        pipe, view = self._outgoing, memoryview(data)
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if pipe.refused or pipe.dropped:
                raise trio.BrokenResourceError
            room = pipe.window - len(pipe.data)
            if room > 0 and len(view):
                pipe.data += view[:room]
                view = view[room:]
                pipe.change()
            if not len(view):
                return
            await pipe.changed.park()

    async def wait_send_all_might_not_block(self) -> None:
        """Not used by anybody here."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive; empty at the end."""
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if pipe.dropped:
                raise trio.BrokenResourceError
            if pipe.data:
                data = bytes(pipe.data[:max_bytes])
                del pipe.data[: len(data)]
                pipe.change()
                return data
            if pipe.ended:
                return b""
            await pipe.changed.park()

    async def aclose(self) -> None:
        """Close both directions; what was sent still arrives."""
        self.closed = True
        self._incoming.change(refused=True)
        self._outgoing.change(ended=True)
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Drop the connection as a TCP reset does: what was sent may never arrive."""
        for pipe in (self._incoming, self._outgoing):
            pipe.dropped = True
            pipe.data.clear()
            pipe.change()


def memory_stream_pair(window: int) -> tuple[MemoryStream, MemoryStream]:
    """The two ends of a connection."""
    there, back = _Pipe(window), _Pipe(window)
    return MemoryStream(back, there), MemoryStream(there, back)


# --- the world ---------------------------------------------------------------------------------

# What dialling an address comes to: a server, a failure, or no answer for ever.
Site = Peer | Exception | None
REFUSED = ConnectionRefusedError(111, "Connection refused")


class FakeDialer:
    """Connects to the peers of its table; anything else refuses."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = dict(sites)
        self.dialled: list[tuple[float, str]] = []
        self.streams: list[trio.abc.Stream] = []  # client ends, all that were ever given out
        self.nursery: trio.Nursery | None = None  # where the peers run

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        """See `Dialer.dial`."""
        self.dialled.append((trio.current_time(), endpoint.address))
        await trio.lowlevel.checkpoint()
        site = self.sites.get(endpoint.address, REFUSED)
        if site is None:
            await trio.sleep_forever()
        if not isinstance(site, Peer):
            assert site is not None
            raise site
        assert self.nursery is not None
        ours: trio.abc.Stream
        theirs: trio.abc.Stream
        if site.real_sockets:
            a, b = socket.socketpair()
            ours, theirs = (
                trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (a, b)
            )
        else:
            ours, theirs = memory_stream_pair(site.window)
        self.nursery.start_soon(site.serve, theirs)
        self.streams.append(ours)
        return ours

    @property
    def open_streams(self) -> list[trio.abc.Stream]:
        """Client ends that nobody closed."""
        return [stream for stream in self.streams if not _closed(stream)]


def _closed(stream: trio.abc.Stream) -> bool:
    if isinstance(stream, MemoryStream):
        return stream.closed
    assert isinstance(stream, trio.SocketStream)
    return stream.socket.fileno() < 0


MX = {"example.com": [(10, "mx1.example.com"), (20, "mx2.example.com"), (30, "mx3.example.com")]}
HOSTS = {
    "mx1.example.com": ["192.0.2.1"],
    "mx2.example.com": ["192.0.2.2"],
    "mx3.example.com": ["192.0.2.3"],
    "lmtp.example.com": ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
}
NEXTHOPS = {Protocol.SMTP: "example.com", Protocol.LMTP: "inet:lmtp.example.com:24"}
RELAYS = {
    Protocol.SMTP: [f"mx{n}.example.com[192.0.2.{n}]:25" for n in (1, 2, 3)],
    Protocol.LMTP: [f"lmtp.example.com[192.0.2.{n}]:24" for n in (1, 2, 3)],
}
CONTENT = b"Subject: hello\r\n\r\nworld\r\n"


class World:
    """Servers at 192.0.2.1, .2 and .3 (the MX hosts of example.com in this order) and a client."""

    def __init__(
        self,
        *sites: Site,
        settings: DeliverySettings | None = None,
        stagger: float = 0.0,
        session_limit: int | None = None,
    ) -> None:
        settings = settings or DeliverySettings(hostname="client.example", helo_name="helo.example")
        if session_limit is not None:
            settings = replace(settings, mx_session_limit=session_limit)
        addresses = [f"192.0.2.{number}" for number in range(1, len(sites) + 1)]
        self.dialer = FakeDialer(dict(zip(addresses, sites, strict=True)))
        names = ["mx1.example.com", "mx2.example.com", "mx3.example.com"][: len(sites)]
        mx = {"example.com": [pair for pair in MX["example.com"] if pair[1] in names]}
        hosts = {**HOSTS, "lmtp.example.com": addresses}
        self.resolver = FakeResolver(mx=mx, hosts=hosts)
        self.events: list[Event] = []
        self.results: list[DeliveryResult] = []
        self.took: list[float] = []  # virtual seconds of each delivery
        self.slot = DeliverySlot()
        self.environment = Environment(
            settings={
                protocol: replace(
                    settings,
                    protocol=protocol,
                    skip_quit_response=settings.skip_quit_response and protocol is Protocol.SMTP,
                )
                for protocol in Protocol
            },
            networks={
                protocol: Network(
                    NetworkSettings(
                        endpoints=EndpointSettings(protocol=protocol, randomize=False),
                        stagger=stagger,
                    ),
                    self.resolver,
                    self.dialer,
                    random.Random(1),
                )
                for protocol in Protocol
            },
            emit=self.events.append,
            wall=lambda: 1_000.0,
        )

    async def play(self, scenario: Callable[[], Awaitable[object]]) -> None:
        """Run `scenario` while the servers live; what is parked at the end is ended."""
        async with trio.open_nursery() as nursery:
            self.dialer.nursery = nursery
            try:
                await scenario()
            finally:
                await self.slot.aclose()
            # Servers read to the end what was sent to them; those that hang are cut off.
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def deliver(
        self,
        request: DeliveryRequest,
        content: Content | None = None,
        *,
        kept: bool = True,
    ) -> DeliveryResult:
        """Inside play(): one delivery, in the world's slot unless `kept` is False."""
        slot = self.slot if kept else None
        began = trio.current_time()
        result = await deliver(request, content or InlineContent(CONTENT), self.environment, slot)
        self.took.append(trio.current_time() - began)
        self.results.append(result)
        return result

    @property
    def open_streams(self) -> list[trio.abc.Stream]:
        """Streams that the client has not closed."""
        return self.dialer.open_streams


def make_request(
    *addresses: str, protocol: Protocol = Protocol.SMTP, sender: str = "sender@client.example"
) -> DeliveryRequest:
    """A request for these recipients (default: one) at the nexthop of the world."""
    recipients = addresses or ("a@example.com",)
    return DeliveryRequest(
        queue_id="Q1",
        transport=protocol.value,
        protocol=protocol,
        nexthop=NEXTHOPS[protocol],
        sender=sender,
        recipients=tuple(
            Recipient(address=address, key=key) for key, address in enumerate(recipients)
        ),
        size=len(CONTENT),
        arrival=990.0,
        active=999.0,
    )


async def deliver_one(
    world: World, request: DeliveryRequest | None = None, content: Content | None = None
) -> DeliveryResult:
    """One delivery in `world` and nothing else, with its slot."""

    async def scenario() -> None:
        await world.deliver(request or make_request(), content)

    await world.play(scenario)
    return world.results[-1]


def actions(result: DeliveryResult) -> dict[str, Action]:
    """Who got which action."""
    return {outcome.recipient.address: outcome.action for outcome in result.outcomes}
