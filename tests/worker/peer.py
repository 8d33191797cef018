"""A scripted SMTP and LMTP server.

A fake with behaviour: a `Peer` follows the rules of the protocol except where its script says
otherwise, writes down what it was told and when, and takes a message only when it has said so. It
reads no real clock and waits for no real time. `world.py` has the network to reach it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import trio

from tests.worker.memory_line import MemoryStream
from tests.worker.tls_server import Seen, ServerStream, ServerTls


class Phase(Enum):
    """Where in the dialogue a script may interfere."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    LHLO = "LHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
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
    CUT = "closes the connection"  # inside TLS: without a word about it
    FAREWELL = "ends TLS properly, then closes the connection"
    RESET = "drops the connection, and all that is under way on it"
    STOP_READING = "reads nothing more"
    ENDLESS = "begins a reply that does not end"


@dataclass(frozen=True, slots=True)
class Late:
    """An answer after some seconds."""

    seconds: float
    answer: "Answer"


@dataclass(frozen=True, slots=True)
class Once:
    """An answer when something else has happened."""

    event: trio.Event
    answer: "Answer"


# A text is sent line by line with CRLF, whatever it is; a tuple is done step by step.
Answer = str | Fault | Late | Once | tuple["Answer", ...]
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
    encrypted: bool = False  # it came by TLS


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
    tls: Seen | None = None
    clear: list[str] = field(default_factory=list)  # the commands before TLS

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
        tls: ServerTls | None = None,
    ) -> None:
        """`window`: octets that may be under way in each direction. `drip`: seconds between single
        octets of replies (`drip_in`: of that phase only). `glued`: as many replies as possible in
        one segment. `real_sockets`: a socket pair instead of memory.
        `tls`: offers STARTTLS, or begins with TLS.
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
        self.tls = tls
        self.reads_per_second = 0  # octets; 0: whatever comes
        self.read_size = 65_536  # octets taken at once
        self.links: list[Link] = []
        self.accepted: list[Message] = []
        self._news = trio.Event()
        self._speak = trio.Event()
        self._chatter = trio.Event()
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

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition`, which is about what this server was told, holds."""
        while not condition():
            await self._news.wait()

    def note(self) -> None:
        """Something was told."""
        self._news.set()
        self._news = trio.Event()

    def speak_up(self) -> None:
        """Every connection, which should be idle, is told 421 and closed."""
        self._speak.set()
        self._speak = trio.Event()

    def chatter(self) -> None:
        """Every connection, which should be idle, is told what sounds like a reply."""
        self._chatter.set()
        self._chatter = trio.Event()

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

            async def on(event: trio.Event, words: bytes, *, end: bool = True) -> None:
                await event.wait()
                with suppress(trio.BrokenResourceError):
                    if words:
                        await stream.send_all(words)
                if end:
                    scope.cancel()

            nursery.start_soon(on, self._speak, b"421 4.3.2 going down\r\n")
            nursery.start_soon(on, self._hang_up, b"")
            nursery.start_soon(partial(on, self._chatter, b"250 2.0.0 ok\r\n", end=False))


class _Hangup(Exception):
    """The peer has closed the connection by itself."""


class _Dialogue:
    """The server's side of one connection."""

    def __init__(self, peer: Peer, link: Link, stream: trio.abc.Stream) -> None:
        self._peer = peer
        self._link = link
        self._stream = stream
        self._line_below = stream  # TLS or not
        self._unread = bytearray()
        self._unsent = bytearray()
        self._drip = peer.drip
        self._sender: str | None = None
        self._recipients: list[str] = []

    async def run(self) -> None:
        """Until the client is gone or the script says so."""
        if self._peer.tls is not None and self._peer.tls.wrapper:
            await self._secure(self._peer.tls)
        await self._do(Phase.GREETING, "", f"220 {self._peer.name} ESMTP")
        while (line := await self._line()) is not None:
            self._link.commands.append(line)
            self._link.times.append(trio.current_time())
            self._peer.note()
            await self._command(line)

    async def _command(self, line: str) -> None:
        verb = line.split()[0].upper()
        match = _PATH.match(line)
        if verb in ("EHLO", "LHLO"):
            *first, last = (f"{self._peer.name} hi", *self._extensions)
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
            if isinstance(self._stream, ServerStream):
                await self._stream.farewell()
            raise _Hangup
        elif verb == "STARTTLS":
            refusal = "" if "STARTTLS" in self._extensions else "502 5.5.1 not here"
            if refusal:
                await self._act(refusal)
            elif self._taken(await self._do(Phase.STARTTLS, "", "220 2.0.0 go ahead")):
                await self._flush()
                assert self._peer.tls is not None
                await self._secure(self._peer.tls)
        elif verb == "AUTH":
            await self._do(Phase.AUTH, "", "235 2.7.0 welcome")
        elif verb in Phase.__members__:
            await self._do(Phase[verb], "", "250 2.0.0 ok")
        else:
            await self._act("500 5.5.2 what?")

    @property
    def _extensions(self) -> tuple[str, ...]:
        """What EHLO tells."""
        tls, words = self._peer.tls, self._peer.extensions
        offers = tls is not None and (tls.again or self._link.tls is None)
        return (*words, "STARTTLS") if offers else words

    async def _secure(self, tls: ServerTls) -> None:
        """Shake hands; whatever was said before is forgotten (RFC 3207 section 4.2)."""
        self._link.clear = list(self._link.commands)
        self._stream = await tls.accept(self._stream)
        self._link.tls = tls.seen[-1]
        self._sender, self._recipients = None, []

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
        self._peer.note()
        await self._after_dot(octets)

    async def _after_dot(self, content: bytes) -> None:
        sender, recipients = self._sender or "", tuple(self._recipients)
        self._sender, self._recipients = None, []
        encrypted = self._link.tls is not None
        default = "250 2.0.0 queued" if recipients else "554 5.5.1 no valid recipients"
        if not self._peer.lmtp:
            if self._taken(await self._do(Phase.DOT, "", default)):
                self._peer.accepted.append(Message(sender, recipients, content, encrypted))
            return
        for recipient in recipients:
            if self._taken(await self._do(Phase.DOT, recipient, default)):
                self._peer.accepted.append(Message(sender, (recipient,), content, encrypted))

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
        if isinstance(answer, Once):
            await self._flush()
            await answer.event.wait()
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
        if fault is Fault.FAREWELL and isinstance(self._stream, ServerStream):
            await self._stream.farewell()
        if fault is Fault.RESET and isinstance(self._line_below, MemoryStream):
            self._line_below.reset()
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
        data = await self._stream.receive_some(pace or self._peer.read_size)
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
