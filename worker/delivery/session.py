"""A session: one connection, greeted and introduced, owned by one scope at a time.

Answers for the phases: every wait for the peer happens inside `Session.conversation()`, under the
time limit of its phase, and every failure there says what we were doing, in Postfix's words.
After any failure or cancellation inside a conversation the session is broken for good: a late
reply would answer the next command.

Start at `Conversation`; what is said in a mail transaction is in `transaction.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Final

import trio

from protocol import phrases
from protocol.capabilities import Capabilities
from protocol.command import Command, Quit
from protocol.dialogue import Dialogue, State
from protocol.errors import RemoteProtocolError
from protocol.reply import NEED_DATA, Reply, ReplyParser
from protocol.request import DeliveryRequest
from protocol.transcript import Trouble
from worker.delivery.envelope import Envelope
from worker.delivery.recorder import Recorder
from worker.delivery.security import UNSECURED, Security
from worker.delivery.settings import DeliverySettings
from worker.errors import SessionError
from worker.network.address import Endpoint
from worker.network.socket_stream import EagerStream
from worker.tls.policy import Level, TlsFacts
from worker.tls.stream import TlsStream

# Octets of content between two looks at the clock. Small enough for a reader that takes 100 octets
# a second to show progress within smtp_data_xfer_timeout; large enough not to cost anything.
PIECE: Final = 16_384
# A deadline is not moved for less than this (seconds): a reply would move it several times, and
# each time costs as much as reading the reply.
DEADLINE_SLACK: Final = 0.05
RECEIVE_SIZE: Final = 16_384
# Replies that complain of the command itself (RFC 5321 section 4.2.2), or of its parameters.
CONFUSED: Final = frozenset({*range(500, 510), 555})


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKey:
    """All that decides who we talk to and as whom: a parked session serves only an equal key."""

    transport: str
    nexthop: str
    # Protocol, HELO name, source address and everything else the dialogue depends on; another
    # process compares their fingerprint.
    settings: DeliverySettings
    smtputf8: bool = False  # the request needs it: a server may be chosen for it (S137)
    sender: str = ""  # where it decides as whom we log in (S093)
    # TLS policy and SASL identity depend on the server, too: see Session.security.

    @classmethod
    def of(cls, request: DeliveryRequest, settings: DeliverySettings) -> "SessionKey":
        """The key of sessions that serve `request` under `settings`."""
        return cls(
            transport=request.transport,
            nexthop=request.nexthop,
            settings=settings,
            smtputf8=request.options.requires_smtputf8,
            sender=request.sender if settings.by_sender else "",
        )

    def serves(self, request: DeliveryRequest) -> bool:
        """Its key under the same settings would be equal."""
        return (
            self.nexthop == request.nexthop
            and self.transport == request.transport
            and self.settings.protocol is request.protocol
            and self.smtputf8 == request.options.requires_smtputf8
            and (not self.settings.by_sender or self.sender == request.sender)
        )


class Session:
    """One connection and what we know of its peer. Whoever holds it closes it, or parks it."""

    def __init__(
        self,
        endpoint: Endpoint,
        stream: trio.abc.Stream,
        settings: DeliverySettings,
        dialogue: Dialogue | None = None,
        security: Security = UNSECURED,
    ) -> None:
        """Own `stream`. `dialogue`: where the conversation stands; None: before the greeting.

        `security`: what held when it was opened, and so for whom it may be used.
        """
        self.endpoint = endpoint
        self.stream = stream
        self.settings = settings
        self.replies = ReplyParser()
        self.dialogue = dialogue or Dialogue()
        self.capabilities = Capabilities()
        self.security = security
        self.tls: TlsFacts | None = None  # None: in the clear
        self.born = trio.current_time()  # seconds; reuse ends by age, not by count
        self.uses = 0  # requests it was used for
        self.idle_since = self.born  # parked then; seconds
        # RSET goes first: a transaction was left unfinished, or is the peer still there?
        self.needs_reset = False
        # The next message's, if it is under way: only that message can go on.
        self.ahead: Envelope | None = None
        # The final dot of a message that waited long goes alone (delay_dotcrlf, see pix.py). Only
        # this process knows that: such a session does not go to the cache.
        self.delays_dot = False
        self.broken = False  # nothing may be said any more
        self._closed = False
        self.unwanted = False  # may be ended politely, but not be used again
        self.recorder: Recorder | None = None  # writes down what is said

    @property
    def peer(self) -> str:
        """`host[address]`, as in every text about this session."""
        return self.endpoint.name_and_address

    @property
    def tls_status(self) -> str:
        """What `tls=` in the log says: level, ":none" if it is in the clear all the same."""
        level = self.security.policy.level
        downgraded = self.tls is None and level is not Level.NONE
        return f"{level.word}:none" if downgraded else level.word

    @property
    def sound(self) -> bool:
        """Neither broken nor on its way out."""
        return not (self.broken or self.unwanted)

    @property
    def wanted(self) -> bool:
        """Sound, and within the limits of age and count."""
        return self.wanted_at(trio.current_time())

    def wanted_at(self, now: float) -> bool:
        """Whether it is wanted, for who has looked at the clock."""
        settings = self.settings
        return not (
            self.broken
            or self.unwanted
            or now - self.born >= settings.reuse_time_limit
            # The limit counts reuses: the first use is none.
            or (settings.reuse_count_limit and self.uses > settings.reuse_count_limit)
        )

    @property
    def reusable(self) -> bool:
        """Wanted, and in step: every reply was read, and nothing else was said."""
        return self.wanted and self.dialogue.in_step and not self.replies.unread

    def is_silent(self) -> bool:
        """The peer has neither said anything nor closed since its last reply.

        Octets that wait before a question was asked would be taken for its answer.
        """
        return not self.replies.unread and self.is_quiet()

    def is_quiet(self) -> bool:
        """Nothing more has come from the peer than we have received, and it has not closed."""
        # Of another stream the next read will find out.
        return not isinstance(self.stream, EagerStream) or self.stream.is_quiet()

    def has_heard_all(self) -> bool:
        """Nothing that had come together with the last reply is left unread."""
        if self.replies.unread:
            return False
        stream = self.stream
        return not isinstance(stream, EagerStream) or stream.receives_all or stream.is_quiet()

    @contextmanager
    def conversation(self) -> "Iterator[Conversation]":
        """Talk to the peer, phase after phase; one failure ends it, and with it the session.

        Raises SessionError (4.4.2) for a timeout, a lost connection or an endless reply.
        """
        talk = Conversation(self)
        try:
            with talk.scope:
                yield talk
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as exc:
            self.broken = True
            raise SessionError("4.4.2", phrases.lost_connection(self.peer, talk.doing)) from exc
        except RemoteProtocolError as exc:
            self.broken = True
            self.note(Trouble.PROTOCOL)
            raise SessionError(
                "4.5.0", f"protocol error from {self.peer} while {talk.doing}: {exc}"
            ) from exc
        except SessionError:
            self.broken = True
            raise
        except trio.Cancelled:
            self.broken = True
            raise
        # Our own scope expired. An outer cancellation has passed through above.
        if talk.scope.cancelled_caught:
            self.broken = True
            raise SessionError("4.4.2", phrases.timed_out(self.peer, talk.doing))

    def record(self, recorder: Recorder | None) -> None:
        """`recorder` writes down what is said from now on, and no other; None: nobody does."""
        others = tuple(each for each in self.dialogue.witnesses if each is not self.recorder)
        self.recorder = recorder
        self.dialogue.witnesses = others if recorder is None else (*others, recorder)

    def note(self, trouble: Trouble) -> None:
        """Something has gone wrong that the postmaster may want to know."""
        if self.recorder is not None:
            self.recorder.troubles.add(trouble)

    def note_refusal(self, reply: Reply) -> None:
        """As note(), if `reply` refuses in a way that only a confused server, or client, meets."""
        if not (reply.transient or reply.permanent) or reply.code in CONFUSED:
            self.note(Trouble.PROTOCOL)

    def secured(self, stream: TlsStream) -> None:
        """From here on all is said over `stream`; what was learnt before counts no more (S124)."""
        self.stream = stream
        self.tls = stream.facts
        self.replies = ReplyParser()
        # In wrapper mode TLS comes before the greeting.
        wrapper = self.security.policy.wrapper
        dialogue = self.dialogue.anew(State.CONNECTED if wrapper else State.GREETED)
        dialogue.witnesses = self.dialogue.witnesses
        self.dialogue = dialogue
        self.capabilities = Capabilities()

    async def quit(self) -> None:
        """Say QUIT and close; wait for its reply only if the configuration wants it (S042, S055).

        Never raises for what the peer does.
        """
        if self.broken or not self.dialogue.in_step:  # or QUIT is already behind the final dot
            await self.aclose()
            return
        wait = not self.settings.skip_quit_response
        try:
            with self.conversation() as talk:
                talk.phase(phrases.QUIT, self.settings.limits.quit if wait else 1.0)
                await talk.say(Quit())
                if wait:
                    await talk.answer()
            if self.tls is not None:
                with trio.move_on_after(1.0):
                    await self.stream.aclose()  # tells the peer that this was all
        except SessionError:
            pass
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close at once, saying nothing: the way out after any failure or cancellation."""
        self.broken = True
        if not self._closed:  # those who quit, save or park it all see to it in the end
            self._closed = True
            await trio.aclose_forcefully(self.stream)


class Conversation:
    """Sends and receives under the current phase's time limit.

    One cancel scope serves all phases: changing its deadline costs far less than a scope for each
    command. As in Postfix a limit bounds each read or write that gets on, and the whole command
    and its reply only with smtp_per_request_deadline.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stream = session.stream
        self._whole = session.settings.limits.whole_request
        self._limit = 0.0
        self._until = 0.0  # when this phase ends, with smtp_per_request_deadline
        self.doing = ""
        self.scope = trio.CancelScope()

    def phase(self, doing: str, limit: float) -> None:
        """From now on we are `doing` this, for at most `limit` seconds."""
        self.doing = doing
        self._limit = limit
        self._until = trio.current_time() + limit if self._whole else 0.0

    def pause(self) -> None:
        """What is waited for until the next phase is not the peer: no limit of its holds."""
        self.scope.deadline = inf

    def secured(self, stream: TlsStream) -> None:
        """Go on over `stream`; see Session.secured()."""
        self._session.secured(stream)
        self._stream = stream

    async def send(self, octets: bytes | bytearray | memoryview) -> None:
        """Send, in pieces, so that a slow reader is told from one that has stopped reading."""
        if len(octets) <= PIECE:
            self._arm()
            await self._stream.send_all(octets)
            if self._whole:
                self._earn(len(octets))
            return
        view = memoryview(octets)
        for start in range(0, len(octets), PIECE):
            await self.send(view[start : start + PIECE])

    async def say(self, command: Command) -> None:
        """Send one command."""
        await self.send(self._session.dialogue.send(command))

    async def reply(self) -> Reply:
        """The next reply on the wire, whichever command it answers."""
        parser = self._session.replies
        while (event := parser.next_event()) is NEED_DATA:
            self._arm()
            data = await self._stream.receive_some(RECEIVE_SIZE)
            if not data:
                raise EOFError("the peer closed the connection")
            parser.receive_data(data)
        if not event.well_formed:
            self._session.unwanted = True
            self._session.note(Trouble.PROTOCOL)
        return event

    async def answer(self) -> Reply:
        """The next reply, paired with the command it answers."""
        return self._session.dialogue.receive_reply(await self.reply())[1]

    async def ask(self, command: Command, doing: str, limit: float) -> Reply:
        """One command, one reply: a phase of its own."""
        self.phase(doing, limit)
        await self.say(command)
        return await self.answer()

    def _arm(self) -> None:
        """Set the scope's deadline; only here, where we may have to wait.

        Each read or write has the whole limit, or, with smtp_per_request_deadline, what is left
        of it.
        """
        deadline = self._until if self._whole else trio.current_time() + self._limit
        if abs(deadline - self.scope.deadline) > DEADLINE_SLACK:
            self.scope.deadline = deadline

    def _earn(self, octets: int) -> None:
        """The peer took `octets`: smtp_min_data_rate grants time for more, up to the limit."""
        rate = self._session.settings.limits.min_data_rate
        if rate:
            self._until = min(self._until + octets / rate, trio.current_time() + self._limit)
