"""One SMTP or LMTP dialogue from the server's side, as the sink speaks it.

Answers for being right about the dialogue (RFC 5321, 2033, 2920, 3461, 6531) and about what was
received: the SHA-256 of every content, dots unstuffed, to the octet. Listeners, the record file
and the command are in `sink.py`. Start reading at `SinkSession.run`.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from bench.behaviour import Behaviour, Phase
from bench.content_receiver import ContentReceiver
from bench.delay_line import DelayLine

READ_SIZE: Final = 262_144  # octets: large, because the work per read is what costs
MAX_LINE: Final = 65_536  # octets of one command line
HEAD_SIZE: Final = 65_536  # octets of content that are searched for Message-ID
MESSAGE_ID: Final = re.compile(rb"^message-id:\s*(\S[^\r\n]*)", re.IGNORECASE | re.MULTILINE)
PATH: Final = re.compile(
    rb'(?:MAIL FROM|RCPT TO): ?<((?:"(?:[^"\\]|\\.)*"|[^>"])*)>(?: +(.*))?', re.IGNORECASE
)


@dataclass(slots=True)
class Received:
    """One message as the sink took it; what a line of the record file holds."""

    listener: str
    protocol: str
    helo: str
    sender: str
    recipients: list[str]  # those that the sink took responsibility for
    mail_parameters: str
    rcpt_parameters: list[str]
    connection: int  # which connection to this listener, from 1
    transaction: int  # which message on that connection, from 1
    message_id: str = ""
    size: int = 0  # octets of content
    sha256: str = ""
    content: bytes | None = None  # only with `keep`


Take = Callable[[Received], None]  # called before the reply to the final dot is sent


@dataclass(slots=True)
class Counters:
    """What one sink did so far."""

    connections: int = 0
    messages: int = 0
    recipients: int = 0
    refused: int = 0  # replies 4xx and 5xx
    octets: int = 0  # of content


@dataclass(slots=True, kw_only=True)
class Sink:
    """One listener's state: behaviour, greylist and counters. Shared by its sessions."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    name: str = "sink"
    take: Take | None = None
    keep: bool = False  # hand the content to `take`, not only its digest
    counters: Counters = field(default_factory=Counters)
    seen: dict[tuple[str, str], float] = field(default_factory=dict)  # greylist: first sight

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, to its end. Owns `stream`. A client that vanishes is no error."""
        self.counters.connections += 1
        connection = self.counters.connections
        async with stream:
            if not self.behaviour.rtt:
                await self._converse(stream, connection)
                return
            async with trio.open_nursery() as nursery:
                line = DelayLine(stream, self.behaviour.rtt)
                nursery.start_soon(line.run)
                async with line:
                    await self._converse(line, connection)

    async def _converse(self, stream: trio.abc.Stream, connection: int) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, _Hangup):
            await SinkSession(self, stream, connection).run()


class _Hangup(Exception):
    """The sink or its client ends this connection: an expected end, seen by Sink only."""


@dataclass(slots=True)
class _Transaction:
    """The mail transaction in progress."""

    sender: str | None = None
    recipients: list[str] = field(default_factory=list)
    mail_parameters: str = ""
    rcpt_parameters: list[str] = field(default_factory=list)


class SinkSession:
    """One dialogue with one client."""

    def __init__(self, sink: Sink, stream: trio.abc.Stream, connection: int) -> None:
        self._sink = sink
        self._behaviour = sink.behaviour
        self._stream = stream
        self._connection = connection
        self._unparsed = b""
        self._octets = 0
        self._replies: list[bytes] = []  # not sent yet: one segment answers one flight
        self._helo = ""
        self._transactions = 0
        self._transaction = _Transaction()

    async def run(self) -> None:
        """Greet, then answer commands until the client leaves; ends by _Hangup."""
        await self._reply(Phase.CONNECT, f"220 {self._behaviour.hostname} ESMTP sink")
        if self._behaviour.replies.get(Phase.CONNECT, "2")[0] != "2":
            await self._hang_up()
        while True:
            await self._command(await self._next_line())

    # --- octets ---------------------------------------------------------------------------------

    async def _receive(self) -> bytes | bytearray:
        """The next octets, after sending every reply that is due."""
        await self._flush()
        limit = self._behaviour.cut_after
        size = READ_SIZE if limit is None else min(READ_SIZE, limit - self._octets)
        data = await self._stream.receive_some(size) if size > 0 else b""
        if not data:
            raise _Hangup
        self._octets += len(data)
        return data

    async def _next_line(self) -> bytes:
        """The next command line without its line end."""
        while (end := self._unparsed.find(b"\n")) < 0:
            if len(self._unparsed) > MAX_LINE:
                raise _Hangup
            self._unparsed += await self._receive()
        line = self._unparsed[:end]
        self._unparsed = self._unparsed[end + 1 :]
        return line[:-1] if line.endswith(b"\r") else line

    async def _flush(self) -> None:
        if self._replies:
            wire = b"".join(self._replies)
            self._replies.clear()
            await self._stream.send_all(wire)

    async def _hang_up(self) -> None:
        await self._flush()
        raise _Hangup

    async def _reply(self, phase: Phase, text: str) -> bool:
        """Give the reply of one phase, or the one that replaces it. True: it was 2xx or 3xx."""
        await self._misbehave(phase)
        return await self._say(self._behaviour.replies.get(phase, text))

    async def _misbehave(self, phase: Phase) -> None:
        """What comes before the reply of a phase: latency, or no reply at all."""
        behaviour = self._behaviour
        if behaviour.latency:
            await self._flush()
            await trio.sleep(behaviour.latency)
        if behaviour.cut is phase:
            await self._hang_up()
        if behaviour.silent is phase:
            await self._drain()

    async def _say(self, text: str) -> bool:
        """Queue one reply; nothing follows a 421. True: it was 2xx or 3xx."""
        self._replies.append(text.encode("utf-8", "surrogateescape") + b"\r\n")
        if text.startswith("421"):
            await self._hang_up()
        accepted = text[:1] in "23"
        self._sink.counters.refused += not accepted
        return accepted

    async def _drain(self) -> None:
        """Read without answering, for as long as the client stays."""
        while True:
            await self._receive()

    # --- commands -------------------------------------------------------------------------------

    async def _command(self, line: bytes) -> None:
        """Answer one command."""
        verb = line.split(b" ", 1)[0].upper()
        match verb:
            case b"MAIL":
                await self._mail(line)
            case b"RCPT":
                await self._rcpt(line)
            case b"DATA":
                await self._data()
            case b"EHLO" | b"HELO" | b"LHLO":
                await self._ehlo(verb, line)
            case b"RSET":
                self._transaction = _Transaction()
                await self._reply(Phase.RSET, "250 2.0.0 Ok")
            case b"NOOP":
                await self._say("250 2.0.0 Ok")
            case b"VRFY":
                await self._say("252 2.0.0 Try it")
            case b"QUIT":
                await self._reply(Phase.QUIT, f"221 2.0.0 {self._behaviour.hostname} bye")
                await self._hang_up()
            case _:
                await self._say("500 5.5.2 unknown command")

    async def _ehlo(self, verb: bytes, line: bytes) -> bool:
        behaviour = self._behaviour
        if (verb == b"LHLO") is not behaviour.lmtp:
            return await self._say("500 5.5.1 wrong protocol")
        self._transaction = _Transaction()
        self._helo = _text(line[5:])
        text = f"250 {behaviour.hostname}"
        if verb != b"HELO" and behaviour.keywords:
            announced = [
                f"SIZE {behaviour.size_limit}" if keyword == "SIZE" else keyword
                for keyword in behaviour.keywords
            ]
            lines = [f"250-{behaviour.hostname}", *(f"250-{keyword}" for keyword in announced)]
            lines[-1] = f"250 {announced[-1]}"
            text = "\r\n".join(lines)
        return await self._reply(Phase.EHLO, text)

    async def _mail(self, line: bytes) -> bool:
        if self._transaction.sender is not None:
            return await self._say("503 5.5.1 nested MAIL command")
        match = PATH.fullmatch(line)
        if match is None:
            return await self._say("501 5.5.4 syntax: MAIL FROM:<address>")
        parameters = _text(match[2] or b"")
        if complaint := self._complain(match[1], parameters):
            return await self._say(complaint)
        if not await self._reply(Phase.MAIL, "250 2.1.0 Ok"):
            return False
        self._transaction.sender = _text(match[1])
        self._transaction.mail_parameters = parameters
        return True

    def _complain(self, path: bytes, parameters: str) -> str:
        """A reply about MAIL's address and parameters; empty when all is well."""
        # Names are case-insensitive (RFC 5321 section 2.4), and so are the values looked at here.
        words = [word.partition("=") for word in parameters.upper().split()]
        names = {name: value for name, _, value in words}
        limit = self._behaviour.size_limit
        size = names.get("SIZE", "0")
        if not size.isdigit():
            return "501 5.5.4 bad SIZE value"
        if limit and int(size) > limit:
            return "552 5.3.4 message exceeds the size limit"
        if names.get("BODY", "7BIT") not in ("7BIT", "8BITMIME"):
            return "501 5.5.4 bad BODY value"
        known = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8"}
        known |= {"RET": "DSN", "ENVID": "DSN"}
        for name in names:
            if known.get(name) not in self._behaviour.keywords:
                return f"555 5.5.4 unsupported parameter {name}"
        if not path.isascii() and "SMTPUTF8" not in names:
            return "553 5.6.7 SMTPUTF8 is needed for this address"
        return ""

    async def _rcpt(self, line: bytes) -> bool:
        transaction = self._transaction
        if transaction.sender is None:
            return await self._say("503 5.5.1 MAIL first")
        match = PATH.fullmatch(line)
        if match is None or not match[1]:
            return await self._say("501 5.5.4 syntax: RCPT TO:<address>")
        if not match[1].isascii() and "SMTPUTF8" not in transaction.mail_parameters.upper().split():
            return await self._say("553 5.6.7 SMTPUTF8 is needed for this address")
        recipient = _text(match[1])
        text = self._behaviour.recipients.get(recipient, "250 2.1.5 Ok")
        if self._is_new(transaction.sender, recipient):
            text = "450 4.2.0 greylisted, please come back later"
        if not await self._reply(Phase.RCPT, text):
            return False
        transaction.recipients.append(recipient)
        transaction.rcpt_parameters.append(_text(match[2] or b""))
        return True

    def _is_new(self, sender: str, recipient: str) -> bool:
        """Whether the greylist has this pair still waiting."""
        if self._behaviour.greylist is None:
            return False
        now = trio.current_time()
        pair = (sender, recipient)
        first = self._sink.seen.get(pair)
        if first is None:
            self._sink.seen[pair] = now
            return True
        return now - first < self._behaviour.greylist

    # --- content --------------------------------------------------------------------------------

    async def _data(self) -> bool:
        transaction = self._transaction
        if transaction.sender is None:
            return await self._say("503 5.5.1 MAIL first")
        if not transaction.recipients:
            # RFC 2033 section 4.2 prescribes 503, RFC 5321 section 3.3 allows either.
            code = "503" if self._behaviour.lmtp else "554"
            return await self._say(f"{code} 5.5.1 no valid recipients")
        if not await self._reply(Phase.DATA, "354 End data with <CR><LF>.<CR><LF>"):
            return False
        received = Received(
            listener=self._sink.name,
            protocol="lmtp" if self._behaviour.lmtp else "smtp",
            helo=self._helo,
            sender=transaction.sender,
            recipients=transaction.recipients,
            mail_parameters=transaction.mail_parameters,
            rcpt_parameters=transaction.rcpt_parameters,
            connection=self._connection,
            transaction=self._transactions + 1,
        )
        await self._content(received)
        self._transaction = _Transaction()
        await self._end_of_data(received)
        return True

    async def _content(self, received: Received) -> None:
        """Read to the final dot; fills in what `received` says about the content."""
        if self._behaviour.cut is Phase.CONTENT:
            if not self._unparsed:
                await self._receive()
            await self._hang_up()
        receiver = ContentReceiver()
        digest = hashlib.sha256()
        head = bytearray()
        kept = bytearray() if self._sink.keep else None
        data: bytes | bytearray = self._unparsed
        while True:
            piece = receiver.receive_data(data)
            digest.update(piece)
            received.size += len(piece)
            if len(head) < HEAD_SIZE:
                head += piece[: HEAD_SIZE - len(head)]
            if kept is not None:
                kept += piece
            if receiver.finished:
                break
            data = await self._receive()
        self._unparsed = receiver.rest
        received.sha256 = digest.hexdigest()
        received.message_id = _message_id(head)
        received.content = bytes(kept) if kept is not None else None

    async def _end_of_data(self, received: Received) -> None:
        """Take responsibility, then say so: one reply, or one per recipient (RFC 2033)."""
        behaviour = self._behaviour
        self._transactions += 1
        usual = "250 2.0.0 Ok: taken"
        if behaviour.size_limit and received.size > behaviour.size_limit:
            usual = "552 5.3.4 message exceeds the size limit"
        usual = behaviour.replies.get(Phase.END, usual)
        named = received.recipients if behaviour.lmtp else [""]
        texts = [behaviour.mailboxes.get(recipient, usual) for recipient in named]
        if behaviour.lmtp:
            verdicts = zip(received.recipients, received.rcpt_parameters, texts, strict=True)
            taken = [(rcpt, params) for rcpt, params, text in verdicts if text[0] == "2"]
            received.recipients = [recipient for recipient, _ in taken]
            received.rcpt_parameters = [parameters for _, parameters in taken]
        # A cut or silent sink has taken the message too: that is what makes a delivery doubtful.
        if received.recipients and (behaviour.lmtp or texts[0][0] == "2"):
            self._count(received)
        for text in texts:
            await self._misbehave(Phase.END)
            await self._say(text)

    def _count(self, received: Received) -> None:
        counters = self._sink.counters
        counters.messages += 1
        counters.recipients += len(received.recipients)
        counters.octets += received.size
        if self._sink.take is not None:
            self._sink.take(received)


def _text(octets: bytes) -> str:
    """Octets of a command as text that keeps what is not UTF-8."""
    return octets.decode("utf-8", "surrogateescape").strip()


def _message_id(head: bytes | bytearray) -> str:
    """The value of Message-ID in the header at the start of a content; empty when there is none."""
    if head.startswith(b"\r\n"):
        return ""
    header, _, _ = head.partition(b"\r\n\r\n")
    match = MESSAGE_ID.search(header)
    return match[1].decode("utf-8", "replace").strip() if match else ""
