"""One SMTP or LMTP dialogue from the server's side, as the sink speaks it. No I/O.

Answers for being right about the dialogue (RFC 5321, 2033, 2920, 3461, 6531, 3207, 4954) and about
what was received: the SHA-256 of every content, dots unstuffed, to the octet. Octets come and go
through `plain_lane.py` or `trio_lane.py`, TLS included. Start reading at `Session.receive`.

It is fast where most mail goes: a command is one search, one slice and one look into a table, its
reply a constant, and whatever a behaviour may change is asked only in phases that it changes.
"""

import hashlib
import re
from typing import Final

from bench.sink.auth import LONGEST, MECHANISMS, Exchange
from bench.sink.behaviour import Phase
from bench.sink.content_receiver import ContentReceiver
from bench.sink.record import Received
from bench.sink.sink import Sink

MAX_LINE: Final = 4_096  # octets of one command line; RFC 5321 section 4.5.3.1.4 asks for 512
HEAD_SIZE: Final = 65_536  # octets of content that are searched for Message-ID
MESSAGE_ID: Final = re.compile(rb"^message-id:\s*(\S[^\r\n]*)", re.IGNORECASE | re.MULTILINE)
PATH: Final = re.compile(
    rb'(?:MAIL FROM|RCPT TO): ?<((?:"(?:[^"\\]|\\.)*"|[^>"])*)>(?: +(.*))?', re.IGNORECASE
)
GO_AHEAD: Final = b"354 End data with <CR><LF>.<CR><LF>\r\n"
OK: Final = b"250 2.0.0 Ok\r\n"
SENDER_OK: Final = b"250 2.1.0 Ok\r\n"
RECIPIENT_OK: Final = b"250 2.1.5 Ok\r\n"
READY: Final = b"220 2.0.0 Ready to start TLS\r\n"
WELCOME: Final = b"235 2.7.0 Authentication successful\r\n"
UNKNOWN_USER: Final = b"535 5.7.8 Authentication failed\r\n"
TAKEN: Final = b"250 2.0.0 Ok: taken\r\n"
GREYLISTED: Final = b"450 4.2.0 greylisted, please come back later\r\n"
TOO_LARGE: Final = "552 5.3.4 message exceeds the size limit"


class Session:
    """One dialogue: receive() what the client sends, send what take() or take_paced() gives.

    A lane sends all that is due before it feeds more, so memory is bounded by what it feeds at
    once. When `closing` is true and all is sent, it closes the connection; or if `upgrading` is
    true as well, it begins TLS there, and calls secure() after the handshake. With a wrapper,
    `upgrading` is true from the beginning, before anything is sent. Whatever ends a connection, the
    lane calls end().
    """

    __slots__ = (
        "_behaviour",
        "_brought",
        "_client",
        "_connection",
        "_content",
        "_helo",
        "_mail_parameters",
        "_octets",
        "_out",
        "_pauses",
        "_phrases",
        "_rcpt_parameters",
        "_recipients",
        "_sender",
        "_silent",
        "_sink",
        "_special",
        "_tls",
        "_too_long",
        "_transactions",
        "_unparsed",
        "_user",
        "closing",
        "upgrading",
    )

    def __init__(self, sink: Sink, client: str = "") -> None:
        """Greets at once. `client`: its IP address; limits are kept by it."""
        self.closing = False  # nothing more is read; what is due is still sent
        self.upgrading = False  # TLS begins when that was sent; of a wrapper, at once
        self._sink = sink
        self._behaviour = sink.behaviour
        self._phrases = sink.phrases
        self._special = self._phrases.special
        self._client = client
        self._out: list[bytes] = []  # replies that are due
        self._pauses: list[float] = []  # before each of them; empty when there are none at all
        self._unparsed = b""
        self._octets = 0
        self._too_long = False  # the command line that we are in
        self._silent = False
        # Who takes what comes, and not as commands: between the 354 and the final dot, after a 334.
        self._content: _Content | Exchange | None = None
        self._helo = ""
        self._tls = ""  # version
        self._user: str | None = None  # None: not authenticated
        self._transactions = 0
        self._brought = False  # a message that was taken
        self._reset()
        self._connection, refusal = sink.open(client)
        if refusal:
            self._say(refusal)
            self.closing = True
        elif not self._reply(Phase.CONNECT, self._phrases.greeting) and not self._silent:
            self.closing = True
        if self._behaviour.cut_after == 0:
            self.closing = True
        if self._behaviour.wrapper:
            self._upgrade()

    def end(self) -> None:
        """The connection is gone. Called once."""
        self._sink.close(self._client)

    # --- octets ---------------------------------------------------------------------------------

    def take(self) -> bytes:
        """All replies that are due, in one piece: one segment answers one flight."""
        wire = b"".join(self._out)
        self._out.clear()
        return wire

    def take_paced(self) -> list[tuple[float, bytes]]:
        """All replies that are due, each with the seconds to wait before it; some are empty."""
        pauses = self._pauses or [0.0] * len(self._out)
        paced = list(zip(pauses, self._out, strict=True))
        self._out.clear()
        self._pauses.clear()
        return paced

    def receive(self, data: bytes) -> None:
        """Understand what the client sent; replies become due."""
        limit = self._behaviour.cut_after
        if limit is not None:
            data = data[: limit - self._octets]
            self._octets += len(data)
        if self._unparsed:
            data = self._unparsed + data
            self._unparsed = b""
        start = 0
        while not self.closing and not self._silent:
            if self._content is not None:
                if start == len(data):
                    break
                rest = data[start:] if start else data  # without a copy, if it is all content
                data, start = self._receive_content(self._content, rest), 0
                continue
            end = data.find(b"\n", start)
            if end < 0:
                self._keep(data[start:])
                break
            if end - start > MAX_LINE or self._too_long:
                self._too_long = False
                self._say("500 5.5.2 line too long")
            else:
                line = data[start : end - 1 if data[end - 1 : end] == b"\r" else end]
                self._command(line)
            start = end + 1
        if limit is not None and self._octets >= limit:
            self.closing = True

    def _keep(self, data: bytes) -> None:
        """The beginning of a line; of a line too long, nothing."""
        if len(data) > MAX_LINE:
            self._too_long = True
        elif not self._too_long:
            self._unparsed = data

    # --- TLS ------------------------------------------------------------------------------------

    def _upgrade(self) -> None:
        """A handshake is due, if the behaviour wants one to take place."""
        behaviour = self._behaviour
        if behaviour.cut is Phase.HANDSHAKE or behaviour.silent is Phase.HANDSHAKE:
            self.closing = behaviour.cut is Phase.HANDSHAKE
            self._silent = not self.closing
            if behaviour.wrapper:
                self.take_paced()  # there is no greeting in the clear
        else:
            self.upgrading = True

    def secure(self, protocol: str, *, resumed: bool) -> None:
        """The handshake is done; `protocol`: version of TLS."""
        self._tls = protocol
        self._sink.counters.tls += 1
        self._sink.counters.resumed += resumed
        self.upgrading = False
        if not self._behaviour.wrapper:  # nothing is known from before (RFC 3207 section 4.2)
            self.closing = False
            self._helo = ""
            self._user = None
            self._reset()

    # --- replies --------------------------------------------------------------------------------

    def _reply(self, phase: Phase, usual: bytes) -> bool:
        """Give the reply of one phase, or what the behaviour has for it. True: 2xx or 3xx."""
        special = self._special
        if special and phase in special:  # the hash of an Enum is slow
            return self._give(phase, self._verdict(phase, usual))
        return self._put(usual)

    def _verdict(self, phase: Phase, usual: bytes) -> bytes:
        """The usual reply of a phase, or what replaces it, or an error if chance says so."""
        behaviour = self._behaviour
        if phase in behaviour.errors:
            drawn = self._sink.random.random()
            for chance in behaviour.errors[phase]:
                drawn -= chance.share
                if drawn < 0:
                    return _wire(chance.reply)
        text = behaviour.replies.get(phase)
        return usual if text is None else _wire(text)

    def _give(self, phase: Phase, reply: bytes) -> bool:
        """Reply in a phase: late, or not at all, if the behaviour wants that. True: 2xx or 3xx."""
        behaviour = self._behaviour
        pause = behaviour.latency
        if phase in behaviour.delays:
            pause = behaviour.delays[phase].draw(self._sink.random)
        if behaviour.cut is phase:
            self._pause(pause, b"")
            self.closing = True
            return False
        if behaviour.silent is phase:
            self._silent = True
            return False
        return self._put(reply, pause)

    def _say(self, text: str) -> bool:
        """Give a reply that belongs to no phase. True: it is 2xx or 3xx."""
        return self._put(_wire(text), self._behaviour.latency)

    def _put(self, reply: bytes, pause: float = 0.0) -> bool:
        """A reply becomes due; nothing follows a 421. True: it is 2xx or 3xx."""
        if pause or self._pauses:
            self._pause(pause, reply)
        else:
            self._out.append(reply)
        if reply[0] in b"23":
            return True
        self._sink.counters.refuse(reply[:3].decode())
        self.closing |= reply.startswith(b"421")
        return False

    def _pause(self, pause: float, reply: bytes) -> None:
        """A reply becomes due `pause` seconds after the one before it."""
        self._pauses += [0.0] * (len(self._out) - len(self._pauses))
        self._pauses.append(pause)
        self._out.append(reply)

    # --- commands -------------------------------------------------------------------------------

    def _command(self, line: bytes) -> None:
        """Answer one command."""
        verb, _, argument = line.partition(b" ")
        match verb.upper():
            case b"MAIL":
                self._mail(line)
            case b"RCPT":
                self._rcpt(line)
            case b"DATA":
                self._data()
            case b"EHLO" | b"HELO" | b"LHLO" as hello:
                self._hello(hello, argument)
            case b"RSET":
                self._reset()
                self._reply(Phase.RSET, OK)
            case b"NOOP":
                self._put(OK, self._behaviour.latency)
            case b"VRFY":
                self._say("252 2.0.0 Try it")
            case b"QUIT":
                self._reply(Phase.QUIT, self._phrases.bye)
                self.closing = not self._silent
            case b"STARTTLS" if self._behaviour.starttls:
                self._starttls(argument)
            case b"AUTH" if self._behaviour.auth:
                self._auth(argument)
            case _:
                self._say("500 5.5.2 unknown command")

    def _reset(self) -> None:
        """No mail transaction is in progress."""
        self._sender: str | None = None
        self._mail_parameters = ""
        self._recipients: list[str] = []
        self._rcpt_parameters: list[str] = []

    def _hello(self, verb: bytes, name: bytes) -> None:
        if (verb == b"LHLO") is not self._behaviour.lmtp:
            self._say("500 5.5.1 wrong protocol")
            return
        self._reset()
        self._helo = _text(name)
        phrases = self._phrases
        ehlo = phrases.secured_ehlo if self._tls else phrases.ehlo
        self._reply(Phase.EHLO, phrases.helo if verb == b"HELO" else ehlo)

    def _starttls(self, argument: bytes) -> bool:
        if self._tls:
            return self._say("503 5.5.1 TLS is there already")
        if argument.strip():
            return self._say("501 5.5.4 syntax: STARTTLS")
        if not self._reply(Phase.STARTTLS, READY):
            return False
        self.closing = True
        self._upgrade()
        return True

    # --- AUTH -----------------------------------------------------------------------------------

    def _auth(self, argument: bytes) -> bool:
        if self._user is not None or self._sender is not None:
            return self._say("503 5.5.1 not now")
        name, _, initial = argument.strip().partition(b" ")
        mechanism = _text(name).upper()
        if mechanism not in MECHANISMS:
            return self._say("504 5.5.4 unknown mechanism")
        exchange = Exchange(mechanism)
        if initial:
            return self._answer(exchange, b"" if initial == b"=" else initial)
        self._content = exchange
        return self._say(f"334 {exchange.prompt}")

    def _receive_answer(self, exchange: Exchange, data: bytes) -> bytes:
        """Take one line of an AUTH exchange; what is left when it has ended."""
        line, newline, rest = data.partition(b"\n")
        exchange.line += line
        if len(exchange.line) > LONGEST:
            self._content = None
            self._too_long = True  # and what is left of it is refused as such
            return newline + rest
        if newline:
            self._content = None
            answer, exchange.line = exchange.line.removesuffix(b"\r"), b""
            self._answer(exchange, answer)
        return rest

    def _answer(self, exchange: Exchange, answer: bytes) -> bool:
        """Go on with AUTH, or end it."""
        if answer == b"*":
            return self._say("501 5.7.0 authentication cancelled")
        try:
            done = exchange.answer(answer)
        except ValueError as exc:
            return self._say(f"501 5.5.2 {exc}")
        if not done:
            self._content = exchange
            return self._say(f"334 {exchange.prompt}")
        users = self._behaviour.users
        known = not users or users.get(exchange.user) == exchange.password
        if not self._reply(Phase.AUTH, WELCOME if known else UNKNOWN_USER):
            return False
        self._user = exchange.user
        self._sink.counters.authenticated += 1
        return True

    def _mail(self, line: bytes) -> bool:
        if self._sender is not None:
            return self._say("503 5.5.1 nested MAIL command")
        match = PATH.fullmatch(line)
        if match is None:
            return self._say("501 5.5.4 syntax: MAIL FROM:<address>")
        path, parameters = match.groups()
        text = _text(parameters) if parameters else ""
        if (text or not path.isascii()) and (complaint := self._complain(path, text)):
            return self._say(complaint)
        behaviour = self._behaviour
        if behaviour.message_limit and self._transactions >= behaviour.message_limit:
            return self._say(f"421 4.7.0 {behaviour.hostname} too many messages on one connection")
        rate = behaviour.message_rate
        if rate is not None and self._sink.brought.exceeds(self._client, rate, self._sink.clock()):
            return self._say("450 4.7.1 you send too many messages, please come back later")
        if not self._reply(Phase.MAIL, SENDER_OK):
            return False
        self._sender = _text(path)
        self._mail_parameters = text
        return True

    def _complain(self, path: bytes, parameters: str) -> str:
        """A reply about MAIL's address and parameters; empty when all is well."""
        # Names are case-insensitive (RFC 5321 section 2.4), and so are the values looked at here.
        words = [word.partition("=") for word in parameters.upper().split()]
        names = {name: value for name, _, value in words}
        limit = self._behaviour.size_limit
        size = names.get("SIZE", "0")
        if not size.isascii() or not size.isdigit() or len(size) > 20:  # as RFC 1870 has it
            return "501 5.5.4 bad SIZE value"
        if limit and int(size) > limit:
            return TOO_LARGE
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

    def _rcpt(self, line: bytes) -> bool:
        sender = self._sender
        if sender is None:
            return self._say("503 5.5.1 MAIL first")
        match = PATH.fullmatch(line)
        if match is None or not match[1]:
            return self._say("501 5.5.4 syntax: RCPT TO:<address>")
        path, parameters = match.groups()
        if not path.isascii() and "SMTPUTF8" not in self._mail_parameters.upper().split():
            return self._say("553 5.6.7 SMTPUTF8 is needed for this address")
        behaviour = self._behaviour
        if len(self._recipients) >= behaviour.recipient_limit:
            return self._say("452 4.5.3 too many recipients")
        recipient = _text(path)
        text = behaviour.recipients.get(recipient, "")
        if text:  # told about this one, whatever happens to others
            accepted = self._give(Phase.RCPT, _wire(text))
        elif behaviour.greylist is not None and self._sink.greylist.waiting(
            sender, recipient, behaviour.greylist, self._sink.clock()
        ):
            accepted = self._give(Phase.RCPT, GREYLISTED)
        else:
            accepted = self._reply(Phase.RCPT, RECIPIENT_OK)
        if not accepted:
            return False
        self._recipients.append(recipient)
        self._rcpt_parameters.append(_text(parameters) if parameters else "")
        return True

    # --- content --------------------------------------------------------------------------------

    def _data(self) -> bool:
        if self._sender is None:
            return self._say("503 5.5.1 MAIL first")
        if not self._recipients:
            # RFC 2033 section 4.2 prescribes 503, RFC 5321 section 3.3 allows either.
            code = "503" if self._behaviour.lmtp else "554"
            return self._say(f"{code} 5.5.1 no valid recipients")
        if not self._reply(Phase.DATA, GO_AHEAD):
            return False
        sink = self._sink
        self._content = _Content() if sink.take is None else _RecordedContent(keep=sink.keep)
        return True

    def _receive_content(self, content: "_Content | Exchange", data: bytes) -> bytes:
        """Take what belongs to the content; what is left when it has ended."""
        if isinstance(content, Exchange):
            return self._receive_answer(content, data)
        if self._behaviour.cut is Phase.CONTENT:
            self.closing = True
            return b""
        if self._behaviour.silent is Phase.CONTENT:
            self._silent = True
            return b""
        content.receive(data)
        if not content.receiver.finished:
            return b""
        self._content = None
        self._end_of_data(content)
        self._reset()
        return content.receiver.rest

    def _end_of_data(self, content: "_Content") -> None:
        """Take responsibility, then say so: one reply, or one per recipient (RFC 2033)."""
        behaviour = self._behaviour
        self._transactions += 1
        usual = TAKEN
        if behaviour.size_limit and content.size > behaviour.size_limit:
            usual = _wire(TOO_LARGE)
        if not behaviour.lmtp:
            verdict = self._verdict(Phase.END, usual) if self._special else usual
            # A cut or silent sink takes the message too: that makes a delivery doubtful.
            if verdict[0] in b"2":
                self._take(content, self._recipients, self._rcpt_parameters)
            if self._special:
                self._give(Phase.END, verdict)
            else:
                self._put(verdict)
            return
        verdicts = [self._mailbox_verdict(recipient, usual) for recipient in self._recipients]
        taken = [number for number, verdict in enumerate(verdicts) if verdict[0] in b"2"]
        if taken:
            recipients = [self._recipients[number] for number in taken]
            self._take(content, recipients, [self._rcpt_parameters[number] for number in taken])
        for verdict in verdicts:
            self._give(Phase.END, verdict)
            if self.closing or self._silent:
                break

    def _mailbox_verdict(self, recipient: str, usual: bytes) -> bytes:
        text = self._behaviour.mailboxes.get(recipient)
        return self._verdict(Phase.END, usual) if text is None else _wire(text)

    def _take(self, content: "_Content", recipients: list[str], parameters: list[str]) -> None:
        """Count the message, and record it if anybody wants to know."""
        sink = self._sink
        sink.counters.take(len(recipients), content.size, sink.clock())
        if sink.count is not None:
            sink.count.add()
            if not self._brought:
                self._brought = True
                sink.count.add_connection()
        if sink.take is None or not isinstance(content, _RecordedContent):
            return
        received = Received(
            listener=sink.name,
            protocol="lmtp" if self._behaviour.lmtp else "smtp",
            helo=self._helo,
            sender=self._sender or "",
            recipients=recipients,
            mail_parameters=self._mail_parameters,
            rcpt_parameters=parameters,
            connection=self._connection,
            transaction=self._transactions,
            tls=self._tls,
            user=self._user or "",
            message_id=_message_id(content.head),
            size=content.size,
            sha256=content.digest.hexdigest(),
            content=None if content.kept is None else bytes(content.kept),
        )
        sink.take(received)


class _Content:
    """What is known of a content of which only the end matters: its size."""

    __slots__ = ("receiver", "size")

    def __init__(self) -> None:
        self.receiver = ContentReceiver()
        self.size = 0  # octets, dots unstuffed

    def receive(self, data: bytes) -> None:
        self.size += len(self.receiver.receive_data(data))


class _RecordedContent(_Content):
    """And more, for the record."""

    __slots__ = ("digest", "head", "kept")

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.head = bytearray()
        self.kept = bytearray() if keep else None

    def receive(self, data: bytes) -> None:
        piece = self.receiver.receive_data(data)
        self.size += len(piece)
        self.digest.update(piece)
        if len(self.head) < HEAD_SIZE:
            self.head += piece[: HEAD_SIZE - len(self.head)]
        if self.kept is not None:
            self.kept += piece


def _wire(text: str) -> bytes:
    """One reply as it is sent."""
    return text.encode("utf-8", "surrogateescape") + b"\r\n"


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
