"""One mail transaction: MAIL, RCPT, DATA, content, final dot; outcomes as the replies come.

With PIPELINING (RFC 2920) MAIL, every RCPT and DATA travel in one flight and the content with the
final dot in the next; without it, in lock-step, nothing is sent that an earlier reply has made
pointless. An outcome is recorded in the step that reads its reply: there is no `await` between.

If the next message for the session is known when the dot is sent, its envelope travels with the dot
(`envelope.py`). Servers are known that lose such commands, or answer one too many. So nothing is
concluded from the replies to an envelope that travelled ahead until the reply to its DATA stands
where it must: that proves the pairing of all of them. Without that proof the session is closed and
the message, of which no octet was sent, is offered anew.

A probe (S163) ends behind the RCPTs: an accepted recipient counts as sent there. With
smtp_address_verify_target = data it asks DATA, too; a 354 says yes to those who were accepted, and
ends the session, since the server takes whatever comes then for a message.

`transfer()` returns what may be parked for reuse: a `CleanSession`, every reply was read and the
session is sound, or a `PledgedSession`, in which the next message's envelope is under way; any
other way out leaves a session to be quit or closed.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from protocol import phrases
from protocol.command import Command, Data, EndOfData, Mail, Quit, Rcpt, Rset, Xforward
from protocol.data import END_OF_DATA
from protocol.envelope_parameters import xforward_commands
from protocol.errors import RemoteProtocolError
from protocol.mime import MimeError
from protocol.reply import Reply
from protocol.request import DeliveryRequest, Protocol, Recipient
from worker.config.tables import TableError
from worker.content import Content
from worker.delivery.content_sending import (
    SpokenEarly,
    expect_silence,
    send_content,
    undecided,
)
from worker.delivery.envelope import PIPELINE_WINDOW, Envelope, check_size, smtputf8_missing
from worker.delivery.introduction import SERVICE_CLOSING
from worker.delivery.outcomes import Outcomes, SessionFacts
from worker.delivery.session import PIECE, Conversation, Session
from worker.errors import DeliveryError, MessageRefused, SessionError
from worker.status.events import Emit, Warned

# How long to look for the reason after the peer has cut the connection in mid content (S038).
EARLY_REPLY_LIMIT: Final = 5.0
SYNTAX_ERRORS: Final = range(500, 510)
TOO_MANY_RECIPIENTS: Final = 552  # of RFC 821; today it is 452 (RFC 5321 section 4.5.3.1.10)
PIPELINING_ADVICE: Final = (
    "if this comes again, list pipelining for this server in smtp_discard_ehlo_keyword_address_maps"
)


# What servers say to DATA when no recipient was accepted (RFC 5321 section 3.3, RFC 2033 section
# 4.2).
NO_VALID_RECIPIENTS: Final = (503, 554)
NOT_REWRITTEN: Final[dict[str, str]] = {}

Following = Callable[[], Envelope | None]  # the next message's envelope, if it may travel ahead


class Commitment(typing.Protocol):
    """Who wants to know that the point of no easy return is passed (`slot.DeliverySlot`)."""

    def commit(self) -> None:
        """Content is about to be sent."""

    def settle(self) -> None:
        """Every reply to it was read, or none will be."""


@dataclass(frozen=True, slots=True)
class CleanSession:
    """Proof that a transaction was answered to its last reply. Made by transfer() alone."""

    session: Session


@dataclass(frozen=True, slots=True)
class PledgedSession:
    """As CleanSession, but `session.ahead` is under way: of use for that message and no other."""

    session: Session


ParkableSession = CleanSession | PledgedSession


@dataclass(slots=True)
class Begun:
    """A message that a steady run (`steady.py`) has begun to deliver and could not finish."""

    request: DeliveryRequest
    content: Content
    session: Session
    started: float  # trio's clock, seconds
    handed_off: float  # seconds since the epoch, at the same moment
    travelled_ahead: bool = False  # its envelope went behind another's dot
    # Its envelope was accepted, and its content is being sent; False: the replies are still unread.
    sending: bool = False
    unsent: bytes = b""  # of the content with its dot, and the next envelope behind it
    behind_dot: int = 0  # octets of that envelope
    failed: SessionError | None = None  # what ended the session


class StaleSession(SessionError):
    """A reused session was of no use before it took anything: not the failure of the site."""


class RefusedAhead(StaleSession):
    """MAIL that had travelled ahead was refused as by a server that has not lost track.

    `hard`: for good, if it was meant for this message: the answer to it alone will show.
    """


async def transfer(
    session: Session,
    request: DeliveryRequest,
    content: Content,
    outcomes: Outcomes,
    facts: SessionFacts,
    commitment: Commitment,
    emit: Emit,
    *,
    following: Following | None,
    begun: Begun | None = None,
) -> ParkableSession | None:
    """Offer the undecided recipients to this server; returns what may be parked, or None.

    `following` is asked when the final dot is sent: the next message's envelope, if one is to
    travel with it. None: no further message for this session is expected, so QUIT does, where the
    configuration lets it. Raises SessionError if the session broke: every recipient that
    was not decided by then still is undecided. Raises ContentUnreadable. `begun`: how far it got.
    """
    if begun is None or not begun.sending:
        session.uses += 1
    transaction = _Transaction(session, request, outcomes, facts, commitment, emit, following)
    try:
        with session.conversation() as talk:
            if begun is None:
                await transaction.run(talk, content)
            else:
                await transaction.go_on(talk, begun)
    except SessionError as exc:
        transaction.leave_in_doubt(exc)
        if isinstance(exc, StaleSession):
            raise
        if session.uses > 1 and not transaction.heard:
            raise StaleSession(exc.dsn, exc.reason) from exc
        raise
    except BaseException:
        # Cancelled after the final dot: the server may have the message all the same.
        reason = phrases.lost_connection(session.peer, phrases.END_OF_DATA)
        transaction.leave_in_doubt(SessionError("4.4.2", reason))
        raise
    finally:
        commitment.settle()
    if session.ahead is not None:
        # Its next message is half said: a session that is too old now still serves that one.
        return PledgedSession(session) if session.sound else None
    return CleanSession(session) if session.reusable else None


class _Transaction:
    """The state of one mail transaction while it lasts."""

    def __init__(
        self,
        session: Session,
        request: DeliveryRequest,
        outcomes: Outcomes,
        facts: SessionFacts,
        commitment: Commitment,
        emit: Emit,
        following: Following | None,
    ) -> None:
        self._session = session
        self._request = request
        self._outcomes = outcomes
        self._facts = facts
        self._commitment = commitment
        self._emit = emit
        self._following = following
        self._limits = session.settings.limits
        self._lmtp = session.settings.protocol is Protocol.LMTP
        self._without_data = request.probe and not session.settings.probe_data
        self._unproven = False  # the envelope travelled ahead, and DATA is not answered yet
        self._held: list[tuple[Recipient, DeliveryError]] = []  # refusals that wait for that
        self._mail_refused = False
        self._accepted: list[Recipient] = []
        self._unanswered: list[Recipient] = []  # the final dot was sent for them
        self._garbled = False  # after a malformed reply others were due: they may be mispaired
        self.heard = False  # the server has answered a command of this transaction, not with 421

    def leave_in_doubt(self, error: SessionError) -> None:
        """The session ended. Whoever the dot was sent for must not be offered elsewhere now."""
        now = trio.current_time()
        unanswered, self._unanswered = self._unanswered, []
        self._outcomes.deferred(unanswered, error, self._facts, now, in_doubt=True)

    async def run(self, talk: Conversation, content: Content) -> None:
        """The whole transaction; failures of the message are recorded, not raised."""
        envelope = self._travelled_ahead() or await self._prepare(talk)
        if envelope is None or not await self._talk_envelope(talk, envelope):
            return
        if not self._accepted:
            await self._abandon_data(talk)
            return
        # To be stopped must show here: with every reply at hand nothing before had to wait, and
        # after commit() it would cut the wait for the reply to the dot.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._commitment.commit()
        if await self._send_content(talk, content):
            await self._read_final_replies(talk)

    async def go_on(self, talk: Conversation, begun: Begun) -> None:
        """The rest of a transaction that others began."""
        if not begun.sending:
            if begun.failed is None:
                await self.run(talk, begun.content)
                return
            self._travelled_ahead()
            raise begun.failed
        self._commitment.commit()
        self.heard = True
        self._accepted = list(self._outcomes.undecided)
        if begun.failed is not None or len(begun.unsent) <= begun.behind_dot:
            self._unanswered = list(self._accepted)  # the dot is out
        if begun.failed is not None:
            raise begun.failed
        talk.phase(phrases.END_OF_DATA, self._limits.data_done)
        if not begun.unsent or await self._send_rest(talk, begun.unsent):
            await self._read_final_replies(talk)

    # --- before anything is sent -------------------------------------------------------------

    def _travelled_ahead(self) -> Envelope | None:
        """This message's envelope, if it was sent before: most likely with another's final dot."""
        envelope, self._session.ahead = self._session.ahead, None
        if envelope is not None:
            assert envelope.request is self._request  # nobody else may be given such a session
            self._unproven = envelope.behind_dot
        return envelope

    async def _prepare(self, talk: Conversation) -> Envelope | None:
        """The envelope for whoever can be offered to this server; None: nobody."""
        session, request, outcomes = self._session, self._request, self._outcomes
        announced, settings = session.capabilities, session.settings
        if session.replies.unread:
            raise RemoteProtocolError("the server answers what it was not asked")
        if missing := smtputf8_missing(request, announced, session.peer):
            outcomes.postponed(missing, self._facts)  # bounced if no other exchanger is able either
            return None
        try:
            check_size(request, announced, session.peer)
            envelope = Envelope(
                request,
                outcomes.undecided,
                announced,
                quote=session.settings.quote_envelope,
                size=0 if settings.content.converts_for(request, announced) else None,
                outside=await self._outside() if settings.content.generic else NOT_REWRITTEN,
                data=not self._without_data,
            )
        except MessageRefused as exc:
            self._refuse(outcomes.undecided, exc)
            return None
        for recipient, error in envelope.unsendable:
            self._refuse([recipient], error)
        if not outcomes.undecided:
            return None  # no recipient's address can be sent: nothing to ask the server
        if session.settings.send_xforward:
            await self._forward_client(talk)
        if session.needs_reset:
            envelope.reset_first()
        return envelope

    async def _outside(self) -> dict[str, str]:
        """What addresses of the envelope are called outside, where it is something else (S074)."""
        generic = self._session.settings.content.generic
        if generic is None:
            return {}
        sender = self._request.sender
        addresses = [sender, *(recipient.address for recipient in self._outcomes.undecided)]
        new = {}
        try:
            for address in dict.fromkeys(addresses):
                other = await generic.find(address)
                if other is not None:
                    new[address] = other
        except TableError as exc:
            raise undecided(exc) from exc
        return new

    async def _forward_client(self, talk: Conversation) -> None:
        """XFORWARD: tell a content filter where the message came from (S048, S075).

        A refusal only warns. In lock-step: the extension does not say that it may be pipelined.
        """
        commands = xforward_commands(self._request.client, self._session.capabilities)
        introduction: list[Command] = [Rset()] if commands and self._session.needs_reset else []
        for command in (*introduction, *commands):
            octets = self._session.dialogue.send(command)
            self._await_phase(talk)
            await talk.send(octets)
            _, reply = await self._answer(talk)
            if not reply.positive:
                text = phrases.said(self._session.peer, reply, command.phrase)
                self._emit(Warned(text, self._request.queue_id))

    # --- envelope ----------------------------------------------------------------------------

    async def _talk_envelope(self, talk: Conversation, envelope: Envelope) -> bool:
        """Ask MAIL, RCPT and DATA; True: the server waits for content."""
        dialogue = self._session.dialogue
        while envelope.waiting or not dialogue.in_step:
            flight = envelope.flight(dialogue)
            self._await_phase(talk)
            if flight:
                await talk.send(flight)
            command, reply = await self._answer(talk)
            if isinstance(command, Data):
                return self._after_data(command, reply)
            if isinstance(command, Rcpt):
                self._after_rcpt(envelope.recipients.pop(0), command, reply)
            elif isinstance(command, Mail):
                self._after_mail(command, reply)
            if envelope.waiting and self._pointless(envelope):
                if self._unproven:
                    raise self._out_of_step(command, reply)  # and DATA will never prove anything
                envelope.drop()
        return False

    def _pointless(self, envelope: Envelope) -> bool:
        """What is left to send (DATA at least) has nobody to go to."""
        if self._mail_refused or self._without_data:
            return self._mail_refused
        # In order: once DATA is all that is left, every RCPT was sent; are they answered, too?
        return envelope.waiting == 1 and self._session.dialogue.in_step and not self._accepted

    def _await_phase(self, talk: Conversation) -> None:
        """Which reply comes next decides what we are doing, and for how long."""
        command = self._session.dialogue.oldest
        if isinstance(command, Rcpt):
            talk.phase(phrases.RCPT, self._limits.rcpt)
        elif isinstance(command, Mail):
            # Whether commands behind a dot were taken at all shows here: as short as a probe.
            limit = min(self._limits.rset, self._limits.mail) if self._unproven else None
            talk.phase(phrases.MAIL, limit or self._limits.mail)
        elif isinstance(command, Rset):
            talk.phase(phrases.RSET, self._limits.rset)
        elif isinstance(command, Xforward):
            talk.phase(phrases.XFORWARD, self._limits.xforward)
        else:
            talk.phase(phrases.DATA, self._limits.data_init)

    def _after_mail(self, command: Command, reply: Reply) -> None:
        self._session.needs_reset = reply.positive
        if reply.positive:
            return
        self._mail_refused = True
        if not self._unproven:
            self._refuse(self._outcomes.undecided, self._refused(reply, command))
            return
        if not reply.transient:
            # No bounce without proof. But only a complaint about the command itself shows that
            # the server has lost track: others may mean the sender.
            if reply.permanent and reply.code not in SYNTAX_ERRORS:
                text = phrases.said(self._session.peer, reply, command.phrase)
                raise RefusedAhead(reply.dsn, text)
            raise self._out_of_step(command, reply)
        error = self._refused(reply, command)
        self._held += [(recipient, error) for recipient in self._outcomes.undecided]

    def _after_rcpt(self, recipient: Recipient, command: Command, reply: Reply) -> None:
        if self._mail_refused:
            if self._unproven and reply.positive:
                raise self._out_of_step(command, reply)
            return  # this is a 503 that says nothing about the recipient
        if reply.positive and self._without_data:
            self._outcomes.sent(recipient, reply, self._facts, trio.current_time())
        elif reply.positive:
            self._accepted.append(recipient)
        elif self._unproven:
            self._held.append((recipient, self._refused(reply, command)))
        else:
            self._refuse([recipient], self._refused(reply, command))

    def _after_data(self, command: Command, reply: Reply) -> bool:
        """True: the server waits for content, and be it for none of our recipients."""
        if self._unproven:
            self._prove(command, reply)
        if reply.code == 354:
            self._garbled = False  # nothing else says 354: what came before was paired rightly
            if not self._request.probe:
                return True
            self._end_probe(reply)
            return False
        if self._accepted:
            self._refuse(self._accepted, self._refused(reply, command))
        return False

    def _end_probe(self, reply: Reply) -> None:
        """The server waits for content and gets none: those it accepted are deliverable.

        Nothing may be said any more: a dot would end an empty message, QUIT be its first line. RFC
        5321 section 4.1.1.10 wants no such end, but has the server give the transaction up then.
        """
        self._session.broken = True
        now = trio.current_time()
        for recipient in self._accepted:
            self._outcomes.sent(recipient, reply, self._facts, now)

    def _prove(self, command: Command, reply: Reply) -> None:
        """The reply to DATA stands where it must: what was held is concluded. Else SessionError.

        A server that answered one too many, or one too few, would have something else here: 354
        follows an accepted recipient and nothing else does, and a server that took no recipient
        says so and falls silent.
        """
        if self._accepted:
            proven = reply.code == 354
        else:
            silent = self._session.has_heard_all()
            proven = reply.code in NO_VALID_RECIPIENTS and silent and not self._holds_complaint()
        if not proven:
            raise self._out_of_step(command, reply)
        self._unproven = False
        self.heard = True
        for recipient, error in self._held:
            self._refuse([recipient], error)

    def _holds_complaint(self) -> bool:
        """Someone would be bounced for what is said to a command out of order.

        It may be the reply to DATA, one place too early, and the one behind it still to come.
        """
        return any(error.reply and error.reply.code in SYNTAX_ERRORS for _, error in self._held)

    def _out_of_step(self, command: Command, reply: Reply) -> SessionError:
        """What came ahead was not taken, or not as it was meant."""
        peer = self._session.peer
        return SessionError("4.5.0", phrases.said(peer, reply, command.phrase), reply, peer)

    async def _abandon_data(self, talk: Conversation) -> None:
        """The server wants content though it took no recipient: a lone dot, result thrown away.

        In LMTP nobody knows how many replies would follow (RFC 2033 has none), and a server that
        refused MAIL as well may think of recipients that we do not know of: give up there.
        """
        if self._lmtp or self._mail_refused:
            self._session.broken = True
            return
        talk.phase(phrases.DATA, self._limits.data_done)
        self._session.dialogue.send(EndOfData())
        await talk.send(b".\r\n")
        await self._answer(talk)
        self._session.needs_reset = False

    # --- content -----------------------------------------------------------------------------

    async def _send_content(self, talk: Conversation, content: Content) -> bool:
        """Send it to the final dot; False: the server had spoken before, and is obeyed."""
        try:
            rest = await send_content(self._session, talk, self._request, content, self._emit)
            await self._send_end(talk, rest)
        except MimeError as exc:
            # No dot may follow: the server would take what there is for the whole message.
            self._session.broken = True
            self._refuse(self._accepted, MessageRefused("5.6.0", str(exc)))
            return False
        except (trio.BrokenResourceError, SpokenEarly):
            await self._read_early_reply(talk)
            return False
        return True

    async def _send_rest(self, talk: Conversation, octets: bytes) -> bool:
        """The end of a content, with what stands behind its dot; as _send_content().

        Where the dot is out, its reply is what counts, whatever becomes of the rest.
        """
        dot_is_out = bool(self._unanswered)
        talk.phase(phrases.CONTENT, self._limits.data_xfer)
        try:
            if len(octets) > PIECE:
                # The dot is in the window before the last, or in that.
                await talk.send(memoryview(octets)[: -2 * PIPELINE_WINDOW])
                octets = octets[-2 * PIPELINE_WINDOW :]
            if not dot_is_out:
                expect_silence(self._session)
            await self._send_dot(talk, octets)
        except (trio.BrokenResourceError, SpokenEarly):
            if dot_is_out:
                talk.phase(phrases.END_OF_DATA, self._limits.data_done)
                return True
            await self._read_early_reply(talk)
            return False
        return True

    async def _send_end(self, talk: Conversation, octets: bytes) -> None:
        """The last octets with the final dot, and QUIT behind it if nothing else is to come."""
        session, following = self._session, self._following
        if len(octets) > PIECE:
            # Only the octets around the dot put the message in doubt; those before them are
            # content, sent under the content's limit.
            view = memoryview(octets)
            await talk.send(view[:-PIPELINE_WINDOW])
            octets = bytes(view[-PIPELINE_WINDOW:])
        expect_silence(session)
        if session.delays_dot and session.settings.pix.delays(self._request):
            octets = await self._wait_before_dot(talk, octets)
        session.dialogue.send(EndOfData(len(self._accepted) if self._lmtp else 1))
        if following is None:
            if session.settings.skip_quit_response and session.capabilities.pipelining:
                octets += session.dialogue.send(Quit())
                session.unwanted = True
        elif self._may_be_followed and (envelope := following()):
            octets += envelope.flight(session.dialogue)  # MAIL at least: none is near the window
            envelope.behind_dot = True
            session.ahead = envelope
        await self._send_dot(talk, octets)

    async def _wait_before_dot(self, talk: Conversation, octets: bytes) -> bytes:
        """Send `octets` but for the final dot, and pause; the dot, to be sent alone (S066)."""
        await talk.send(octets[: -len(END_OF_DATA)])
        talk.pause()
        await trio.sleep(self._session.settings.pix.pause)
        expect_silence(self._session)
        return END_OF_DATA

    async def _send_dot(self, talk: Conversation, octets: bytes) -> None:
        """Octets with the final dot among them: from now on the message may be delivered."""
        talk.phase(phrases.END_OF_DATA, self._limits.data_done)
        self._unanswered = list(self._accepted)
        await talk.send(octets)

    @property
    def _may_be_followed(self) -> bool:
        """Another envelope may travel with this dot.

        Not with one that several replies are due for (LMTP): were there one too few, the next
        reply, to MAIL, would be taken for a recipient's. Nor if recipients are left whom another
        server is asked for: the session ends before that.
        """
        accepted = len(self._accepted)
        return (not self._lmtp or accepted == 1) and len(self._outcomes.undecided) == accepted

    async def _read_early_reply(self, talk: Conversation) -> None:
        """The server spoke before the final dot, or cut us off: perhaps it says why (S038).

        Raises EOFError if it does not, and RemoteProtocolError if it says yes, because there was
        nothing to say yes to.
        """
        talk.phase(talk.doing, EARLY_REPLY_LIMIT)
        try:
            reply = await talk.reply()
        except trio.BrokenResourceError:
            raise EOFError("the peer closed the connection") from None
        self._session.broken = True
        if self._session.recorder is not None:  # it answers no command, so the dialogue has not
            self._session.recorder.heard(None, reply)  # seen it
        if not (reply.transient or reply.permanent):
            raise RemoteProtocolError(f"unexpected reply: {reply.text}")
        self._refuse(self._accepted, self._refused(reply, EndOfData()))

    async def _read_final_replies(self, talk: Conversation) -> None:
        """Settle the accepted recipients: one reply for all in SMTP, one for each in LMTP."""
        step = 1 if self._lmtp else len(self._accepted)
        while group := self._unanswered[:step]:
            command, reply = await self._answer(talk)
            if not reply.well_formed and len(self._unanswered) > step:
                # Which recipient would this and the next reply be about? Rather twice than never.
                raise RemoteProtocolError(f"malformed reply: {reply.text}")
            del self._unanswered[:step]
            if reply.positive:
                now = trio.current_time()
                for recipient in group:
                    self._outcomes.sent(recipient, reply, self._facts, now)
            else:
                self._refuse(group, self._refused(reply, command))
            talk.phase(phrases.END_OF_DATA, self._limits.data_done)
        self._session.needs_reset = False

    # --- judgement ---------------------------------------------------------------------------

    async def _answer(self, talk: Conversation) -> tuple[Command, Reply]:
        """The next reply and the command it answers, after a look at what it says of the session.

        Before the content SessionError is raised for 421, and for a refused RSET: the server's
        state is unknown then, and what follows might land in the old transaction.
        """
        session = self._session
        reply = await talk.reply()
        command, reply = session.dialogue.receive_reply(reply)
        refused_reset = isinstance(command, Rset) and not reply.positive
        if refused_reset or (reply.code == SERVICE_CLOSING and not isinstance(command, EndOfData)):
            text = phrases.said(session.peer, reply, command.phrase)
            if self._unproven and isinstance(command, Mail):
                raise RefusedAhead(f"4{reply.dsn[1:]}", text)  # a limit of messages, most likely
            raise SessionError(f"4{reply.dsn[1:]}", text, reply, session.peer)
        if self._unproven and not reply.well_formed:
            raise self._out_of_step(command, reply)
        if isinstance(command, Rset):
            session.needs_reset = False
        elif not self._unproven:
            self.heard = True
        if reply.code == SERVICE_CLOSING:
            session.unwanted = True
        if not reply.well_formed:
            self._note_malformed(command, reply)
        return command, reply

    def _note_malformed(self, command: Command, reply: Reply) -> None:
        """Tell the operator (S039); with more replies due, which one answers what is not sure."""
        phrase = command.phrase
        text = f"malformed reply from {self._session.peer}: {reply.text} (in reply to {phrase})"
        if not (self._session.dialogue.in_step or isinstance(command, EndOfData)):
            self._garbled = True
            text += f"; {PIPELINING_ADVICE}"
        self._emit(Warned(text, self._request.queue_id))

    def _refused(self, reply: Reply, command: Command) -> DeliveryError:
        """The error for a negative reply; anything but 4xx and 5xx is a soft protocol error."""
        peer = self._session.peer
        self._session.note_refusal(reply)
        dsn = reply.dsn
        if not (reply.transient or reply.permanent):
            dsn = "4.5.0"
            self._session.unwanted = True
        elif reply.permanent and self._garbled:
            dsn = f"4{dsn[1:]}"  # it may be about somebody else: nobody is bounced for that
        elif self._is_one_too_many(reply, command):
            dsn = f"4{dsn[1:]}"  # the next attempt begins with those who were too many
        if reply.code in SYNTAX_ERRORS:
            self._session.unwanted = True  # one of us is confused (S136)
        return MessageRefused(dsn, phrases.said(peer, reply, command.phrase), reply, peer)

    def _is_one_too_many(self, reply: Reply, command: Command) -> bool:
        """A 552 that RFC 5321 wants deferred, because it need not be about this recipient."""
        return (
            self._session.settings.defer_rcpt_552
            and reply.code == TOO_MANY_RECIPIENTS
            and isinstance(command, Rcpt)
            and bool(self._accepted)
        )

    def _refuse(self, recipients: list[Recipient], error: DeliveryError) -> None:
        self._outcomes.failed(recipients, error, self._facts, trio.current_time())
