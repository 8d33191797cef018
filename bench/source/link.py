"""One connection: opened, used for messages, ended. It says what it does, and tallies the answers.

Answers for the dialogue under the time limit of each phase; which messages, and what a failure
means for them, is in `client.py`. Start at `Link.send`. It is a load, not a delivery: nothing is
tried twice, and only as much is done about a refusal as the next message needs.
"""

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from bench.source.load import Load, Phase
from bench.source.messages import Message
from bench.source.security import answers, mechanism, secure, why
from bench.source.tally import Outcome, Tally, Trouble
from bench.source.target import Dial
from protocol.capabilities import Capabilities
from protocol.command import Ehlo, Helo, Lhlo
from protocol.errors import RemoteProtocolError
from protocol.reply import NEED_DATA, Reply, ReplyParser

RECEIVE_SIZE: Final = 65_536
# Octets of commands without an answer: who sends more than a window while the peer does the same
# with its replies waits for ever (RFC 2920 section 3.1).
FLIGHT: Final = 4096
# Seconds by which a time limit may be overdrawn: moving a deadline costs more than a reply.
SLACK: Final = 0.05
SERVICE_CLOSING: Final = 421

_DATA: Final = b"DATA\r\n"
_RSET: Final = b"RSET\r\n"
_QUIT: Final = b"QUIT\r\n"
_STARTTLS: Final = b"STARTTLS\r\n"


class LinkFailed(Exception):
    """The connection is of no further use: in which phase, in which way, and what was said."""

    def __init__(self, phase: Phase, trouble: Trouble, text: str) -> None:
        super().__init__(text)
        self.phase = phase
        self.trouble = trouble
        self.text = text


@dataclass(slots=True)
class Transaction:
    """How one message fared so far. `recipients`: how many it has; each is settled once."""

    recipients: int
    begun: bool = False  # MAIL was accepted
    permitted: bool = False  # DATA was answered by 354
    accepted: int = 0  # recipients; until the final dot was answered, so far
    deferred: int = 0
    refused: int = 0

    def judge(self, reply: Reply, recipients: int = 1) -> None:
        """A reply settles so many recipients."""
        if reply.positive:
            self.accepted += recipients
        elif reply.permanent:
            self.refused += recipients
        else:
            self.deferred += recipients

    def fail(self, reply: Reply) -> None:
        """A refusal settles all that were accepted or not asked for yet."""
        self.accepted = 0
        self.judge(reply, self.recipients - self.deferred - self.refused)

    @property
    def outcome(self) -> Outcome:
        """What it comes to."""
        if self.accepted:
            return Outcome.PARTLY if self.deferred or self.refused else Outcome.ACCEPTED
        return Outcome.DEFERRED if self.deferred else Outcome.REFUSED


class Link:
    """One connection. Whoever made it runs all of it inside `scope`, and closes it afterwards.

    A phase that takes too long cancels the scope; `phase` says which one it was. All methods raise
    what `failure` translates.
    """

    def __init__(self, load: Load, tally: Tally, context: ssl.SSLContext | None = None) -> None:
        """`context`: for TLS, if `load` wants any."""
        self._context = context
        self._load = load
        self._tally = tally
        self._stream: trio.abc.Stream | None = None
        self._parser = ReplyParser()
        self._capabilities = Capabilities()
        self._unfinished = False  # a transaction: the server must be told to forget it
        self.scope = trio.CancelScope()
        self.phase = Phase.CONNECT
        self.messages = 0  # begun on it
        self.refusal: Reply | None = None  # why open() led to no session
        # The connection may have ended before the message under way: it is not the first one, and
        # had no reply yet, or 421 for a first one. Such a message is not lost with it.
        self.stale = False
        self.ended = False  # nothing may be said any more

    def failure(self, error: Exception) -> LinkFailed:
        """What an exception of these methods means."""
        match error:
            case LinkFailed():
                return error
            case RemoteProtocolError():
                return LinkFailed(self.phase, Trouble.NONSENSE, str(error))
            case OSError():  # only of connect(): a stream has exceptions of its own
                text = error.strerror or str(error)
                return LinkFailed(self.phase, Trouble.UNREACHABLE, text)
        cause = error.__cause__
        if isinstance(cause, ssl.SSLEOFError):
            cause = None  # it only says in other words that the connection has ended
        elif isinstance(cause, ssl.SSLError):
            return LinkFailed(self.phase, Trouble.SECURITY, why(cause))
        reset = cause.strerror if isinstance(cause, OSError) else None
        text = reset or "the server closed the connection"
        return LinkFailed(self.phase, Trouble.LOST, text)

    def overdue(self) -> LinkFailed:
        """What it means that `scope` was cancelled by its deadline."""
        limit = self._load.limit(self.phase)
        return LinkFailed(self.phase, Trouble.TIMEOUT, f"no answer within {limit:g} s")

    # --- from nothing to a session ----------------------------------------------------------------

    async def open(self, dial: Dial, session: int) -> bool:
        """Connect and introduce ourselves; False: we are not welcome, see `refusal`."""
        began = self._enter(Phase.CONNECT)
        self._stream = await dial(session)
        self._tally.connections += 1
        self._tally.took(Phase.CONNECT, trio.current_time() - began)
        security = self._load.security
        if security.wrapper:
            await self._secure()
        reply = await self._reply(Phase.GREETING, self._enter(Phase.GREETING))
        if reply.positive:
            reply = await self._introduce()
        if reply.positive and security.starttls:
            reply = await self._starttls()
        if reply.positive and security.user:
            reply = await self._authenticate()
        if not reply.positive:
            self.refusal = reply
            self.ended = reply.code == SERVICE_CLOSING
        return reply.positive

    async def _introduce(self) -> Reply:
        name = self._load.helo
        reply = await self._ask(Phase.EHLO, (Lhlo if self._load.lmtp else Ehlo)(name).to_wire())
        if reply.positive:
            self._capabilities = Capabilities.from_reply(reply)
        elif reply.permanent and not self._load.lmtp:
            reply = await self._ask(Phase.EHLO, Helo(name).to_wire())
        return reply

    async def _starttls(self) -> Reply:
        """Go on inside TLS; the reply to the second EHLO, or a refusal."""
        if not self._capabilities.starttls:
            raise LinkFailed(Phase.STARTTLS, Trouble.SECURITY, "the server does not offer STARTTLS")
        reply = await self._ask(Phase.STARTTLS, _STARTTLS)
        if not reply.positive:
            return reply
        if self._parser.unread:  # whoever put that there is not the one that is authenticated now
            raise LinkFailed(
                Phase.STARTTLS, Trouble.NONSENSE, "the server said more than it was asked for"
            )
        await self._secure()
        self._capabilities = Capabilities()  # RFC 3207 section 4.2
        return await self._introduce()

    async def _secure(self) -> None:
        assert self._context is not None  # it is there if `load` wants it
        began = self._enter(Phase.HANDSHAKE)
        name = self._load.security.server_name
        self._stream = await secure(self._stream_open, self._context, name)
        self._tally.took(Phase.HANDSHAKE, trio.current_time() - began)

    async def _authenticate(self) -> Reply:
        """Say who we are; the last reply."""
        security = self._load.security
        name = mechanism(self._capabilities.auth)
        if not name:
            offered = " ".join(self._capabilities.auth) or "no AUTH"
            why_not = f"the server offers {offered}: PLAIN or LOGIN is needed"
            raise LinkFailed(Phase.AUTH, Trouble.SECURITY, why_not)
        lines = answers(name, security.user, security.password)
        reply = await self._ask(Phase.AUTH, next(lines))
        while reply.intermediate:
            line = next(lines, None)
            if line is None:
                raise LinkFailed(Phase.AUTH, Trouble.NONSENSE, "the server asks on and on")
            reply = await self._ask(Phase.AUTH, line)
        return reply

    async def quit(self) -> None:
        """Take leave, and wait for the answer."""
        if not self.ended:
            self.ended = True
            await self._ask(Phase.QUIT, _QUIT)

    def rest(self) -> None:
        """Nothing is expected from the server until the next message."""
        self.scope.deadline = float("inf")

    async def aclose(self) -> None:
        """Close it, saying nothing."""
        self.ended = True
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    # --- one message ------------------------------------------------------------------------------

    async def send(self, message: Message) -> Transaction:
        """Offer one message, and say what became of its recipients."""
        self.phase = Phase.MAIL
        self.messages += 1
        self.stale = self.messages > 1
        if self._parser.unread:
            raise LinkFailed(
                Phase.MAIL, Trouble.NONSENSE, "the server said more than it was asked for"
            )
        transaction = Transaction(len(message.recipients))
        for octets, phases in self._flights(message, transaction):
            began = self._enter(phases[0])
            await self._stream_open.send_all(octets)
            for phase in phases:
                reply = await self._reply(phase, began)
                self._note(phase, reply, transaction)
                if self.ended:
                    return transaction
        if transaction.permitted:
            await self._content(message, transaction)
        self._unfinished = transaction.begun and not transaction.permitted
        return transaction

    def _flights(
        self, message: Message, transaction: Transaction
    ) -> Iterator[tuple[bytes, Sequence[Phase]]]:
        """The commands, as many in one write as may be; none that `transaction` makes pointless."""
        commands = self._commands(message)
        octets, phases = b"", list[Phase]()
        room = FLIGHT if self._load.pipelining and self._capabilities.pipelining else 0
        for phase, command in commands:
            if phases and len(octets) + len(command) > room:
                yield octets, phases
                octets, phases = b"", []
                if phase is not Phase.MAIL and not transaction.begun:
                    return
                if phase is Phase.DATA and not transaction.accepted:
                    return
            octets += command
            phases.append(phase)
        yield octets, phases

    def _commands(self, message: Message) -> list[tuple[Phase, bytes]]:
        mail = message.mail
        if self._capabilities.size_announced:
            mail = b"%s SIZE=%d" % (mail, message.content.octets)
        if message.content.eight_bit and self._capabilities.eightbitmime:
            mail += b" BODY=8BITMIME"
        return [
            *([(Phase.RSET, _RSET)] if self._unfinished else ()),
            (Phase.MAIL, mail + b"\r\n"),
            *[(Phase.RCPT, recipient + b"\r\n") for recipient in message.recipients],
            (Phase.DATA, _DATA),
        ]

    def _note(self, phase: Phase, reply: Reply, transaction: Transaction) -> None:
        """What the reply to a command of the envelope means for the message, and for us."""
        self.stale = self.stale and reply.code == SERVICE_CLOSING
        if reply.code == SERVICE_CLOSING:  # RFC 5321 section 3.8: it closes, whatever was asked
            self.ended = True
            transaction.fail(reply)
        elif phase is Phase.MAIL:
            transaction.begun = reply.positive
            if not transaction.begun:
                transaction.fail(reply)
        elif phase is Phase.RCPT and transaction.begun:
            transaction.judge(reply)
        elif phase is Phase.DATA:
            transaction.permitted = reply.intermediate
            if not transaction.accepted:
                # It was pipelined, and is pointless. If it was permitted all the same, closing the
                # connection is the one way of saying so that everybody understands.
                self.ended = reply.intermediate
            elif not reply.intermediate:
                transaction.fail(reply)

    async def _content(self, message: Message, transaction: Transaction) -> None:
        """The content, and one reply; in LMTP one for each accepted recipient."""
        began = self._enter(Phase.CONTENT)
        for piece in message.content.pieces:
            await self._stream_open.send_all(piece)
        waiting = transaction.accepted
        if self._load.lmtp:
            transaction.accepted = 0
            for _ in range(waiting):
                reply = await self._answer(Phase.CONTENT)
                if reply.code == SERVICE_CLOSING:
                    self.ended = True
                    left = transaction.recipients - transaction.accepted
                    transaction.deferred = left - transaction.refused
                    break
                transaction.judge(reply)
        else:
            reply = await self._answer(Phase.CONTENT)
            if not reply.positive:
                transaction.fail(reply)
            self.ended = reply.code == SERVICE_CLOSING
        self._tally.took(Phase.CONTENT, trio.current_time() - began)

    # --- octets -----------------------------------------------------------------------------------

    async def _ask(self, phase: Phase, octets: bytes) -> Reply:
        began = self._enter(phase)
        await self._stream_open.send_all(octets)
        return await self._reply(phase, began)

    async def _reply(self, phase: Phase, began: float) -> Reply:
        """The next reply, which ends `phase`."""
        reply = await self._answer(phase)
        self._tally.took(phase, trio.current_time() - began)
        return reply

    async def _answer(self, phase: Phase) -> Reply:
        """The next reply. EOFError at the end; LinkFailed if it cannot be the answer."""
        if phase is not self.phase:
            self._enter(phase)
        parser = self._parser
        while (reply := parser.next_event()) is NEED_DATA:
            data = await self._stream_open.receive_some(RECEIVE_SIZE)
            if not data:
                raise EOFError
            parser.receive_data(data)
        self._tally.reply(phase, reply)
        # 354 is for DATA, 334 for AUTH, 2xx for all others and AUTH: whatever else, question and
        # answer do not match.
        wrong = reply.positive if phase is Phase.DATA else reply.intermediate
        if not reply.well_formed or (wrong and phase is not Phase.AUTH):
            raise LinkFailed(phase, Trouble.NONSENSE, reply.text)
        return reply

    @property
    def _stream_open(self) -> trio.abc.Stream:
        assert self._stream is not None  # open() comes first
        return self._stream

    def _enter(self, phase: Phase) -> float:
        """Begin a phase, or to wait for its reply: it has its whole limit from now on."""
        self.phase = phase
        now = trio.current_time()
        deadline = now + self._load.limit(phase)
        if not deadline <= self.scope.deadline <= deadline + SLACK:
            self.scope.deadline = deadline + SLACK
        return now
