"""One mail transaction: MAIL, RCPT, DATA, content, final dot; outcomes as the replies come.

With PIPELINING (RFC 2920) MAIL, every RCPT and DATA travel in one flight and the content with the
final dot in the next; without it, in lock-step, nothing is sent that an earlier reply has made
pointless. An outcome is recorded in the step that reads its reply: there is no `await` between.

`transfer()` returns a `CleanSession`, the only thing that can be parked for reuse, if every reply
was read and the session is sound; any other way out leaves a session to be quit or closed.
"""

import typing
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol import phrases
from protocol.address import AddressError, to_ascii
from protocol.command import Command, Data, EndOfData, Mail, Quit, Rcpt, Rset
from protocol.data import DataEncoder
from protocol.envelope_parameters import mail_parameters, rcpt_parameters
from protocol.errors import LocalProtocolError
from protocol.reply import Reply
from protocol.request import DeliveryRequest, Protocol, Recipient
from worker.content import Content, FileContent, InlineContent
from worker.delivery.introduction import SERVICE_CLOSING
from worker.delivery.outcomes import Outcomes, SessionFacts
from worker.delivery.session import PIPELINE_WINDOW, Conversation, Session
from worker.errors import DeliveryError, MessageRefused, SessionError

# How long to look for the reason after the peer has cut the connection in mid content (S038).
EARLY_REPLY_LIMIT: Final = 5.0
SYNTAX_ERRORS: Final = range(500, 510)


class Commitment(typing.Protocol):
    """Who wants to know that the point of no easy return is passed (`slot.DeliverySlot`)."""

    def commit(self) -> None:
        """Content is about to be sent."""

    def settle(self) -> None:
        """Every reply to it was read."""


@dataclass(frozen=True, slots=True)
class CleanSession:
    """Proof that a transaction was answered to its last reply. Made by transfer() alone."""

    session: Session


class StaleSession(SessionError):
    """A reused session turned out to be dead before it took anything: not the site's failure."""


class ContentUnreadable(DeliveryError):
    """Our own copy of the message cannot be read: nothing is concluded, nobody else is tried."""


async def transfer(
    session: Session,
    request: DeliveryRequest,
    content: Content,
    outcomes: Outcomes,
    facts: SessionFacts,
    commitment: Commitment,
    *,
    last: bool,
) -> CleanSession | None:
    """Offer the undecided recipients to this server; returns what may be parked, or None.

    `last`: no further message for this session is expected, so QUIT follows the final dot at once
    where the configuration lets it. Raises SessionError if the session broke: every recipient that
    was not decided by then still is undecided. Raises ContentUnreadable.
    """
    transaction = _Transaction(session, request, outcomes, facts, commitment, last=last)
    try:
        with session.conversation() as talk:
            await transaction.run(talk, content)
    except SessionError as exc:
        transaction.leave_in_doubt(exc)
        if session.uses > 1 and not transaction.heard:
            raise StaleSession(exc.dsn, exc.reason) from exc
        raise
    except BaseException:
        # Cancelled after the final dot: the server may have the message all the same.
        reason = phrases.lost_connection(session.peer, phrases.END_OF_DATA)
        transaction.leave_in_doubt(SessionError("4.4.2", reason))
        raise
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
        *,
        last: bool,
    ) -> None:
        self._session = session
        self._request = request
        self._outcomes = outcomes
        self._facts = facts
        self._commitment = commitment
        self._last = last
        self._accepted: list[Recipient] = []
        self._unanswered: list[Recipient] = []  # the final dot was sent for them
        self._limits = session.settings.limits
        self.heard = False  # the server has answered a command of this transaction, not with 421

    def leave_in_doubt(self, error: SessionError) -> None:
        """The session ended. Whoever the dot was sent for must not be offered elsewhere now."""
        now = trio.current_time()
        unanswered, self._unanswered = self._unanswered, []
        self._outcomes.deferred(unanswered, error, self._facts, now, in_doubt=True)

    async def run(self, talk: Conversation, content: Content) -> None:
        """The whole transaction; failures of the message are recorded, not raised."""
        session = self._session
        try:
            if self._lacks_smtputf8():
                return
            self._check_size()
            commands = self._envelope()
        except MessageRefused as exc:
            self._refuse(self._outcomes.undecided, exc)
            return
        if not self._outcomes.undecided:
            return  # no recipient's address can be sent: nothing to ask the server
        session.uses += 1
        go_ahead = await self._talk_envelope(talk, commands)
        if go_ahead is None:
            return
        if not self._accepted:
            await self._abandon_data(talk)
            return
        self._commitment.commit()
        if await self._send_content(talk, content):
            await self._read_final_replies(talk)
        self._commitment.settle()

    # --- before anything is sent -------------------------------------------------------------

    def _lacks_smtputf8(self) -> bool:
        """RFC 6531 section 3.2: bounce, but only if no other exchanger is able either."""
        peer = self._session.peer
        if not self._request.options.requires_smtputf8 or self._session.capabilities.smtputf8:
            return False
        error = MessageRefused("5.6.7", f"SMTPUTF8 is required, but was not offered by host {peer}")
        self._outcomes.postponed(error, self._facts)
        return True

    def _check_size(self) -> None:
        """What the server has said it will not take is not offered (S065)."""
        limit, size = self._session.capabilities.size_limit, self._request.size
        if limit and size > limit:
            raise MessageRefused("5.3.4", phrases.size_exceeded(size, limit, self._session.peer))

    def _envelope(self) -> list[Command]:
        """[RSET,] MAIL and the RCPTs of all undecided recipients whose address can be sent."""
        session, request = self._session, self._request
        announced, quote = session.capabilities, session.settings.quote_envelope
        utf8 = request.options.requires_smtputf8
        commands: list[Command] = [Rset()] if session.needs_reset else []
        try:
            sender = request.sender if utf8 else to_ascii(request.sender)
            mail = Mail(sender, mail_parameters(request, announced), quote)
            mail.to_wire()
        except (AddressError, LocalProtocolError) as exc:
            raise MessageRefused("5.1.7", f"bad sender address: {exc}") from exc
        commands.append(mail)
        for recipient in list(self._outcomes.undecided):
            try:
                address = recipient.address if utf8 else to_ascii(recipient.address)
                rcpt = Rcpt(address, rcpt_parameters(recipient, announced), quote)
                rcpt.to_wire()
            except (AddressError, LocalProtocolError) as exc:
                error = MessageRefused("5.1.3", f"bad recipient address: {exc}")
                self._refuse([recipient], error)
                continue
            commands.append(rcpt)
        return commands

    # --- envelope ----------------------------------------------------------------------------

    async def _talk_envelope(self, talk: Conversation, commands: list[Command]) -> Reply | None:
        """Ask MAIL, RCPT and DATA; the go-ahead (354), or None when it is over."""
        recipients = iter(list(self._outcomes.undecided))
        pipelining = self._session.capabilities.pipelining
        dialogue = self._session.dialogue
        waiting = deque(commands)
        waiting.append(Data())
        refused: DeliveryError | None = None
        while waiting or not dialogue.in_step:
            flight = bytearray()
            while waiting and (
                dialogue.in_step or (pipelining and dialogue.unanswered_octets < PIPELINE_WINDOW)
            ):
                flight += dialogue.send(waiting.popleft())
            self._await_phase(talk)
            if flight:
                await talk.send(flight)
            command, reply = dialogue.receive_reply(await talk.reply())
            self._hear(command, reply)
            if isinstance(command, Rset):
                self._session.needs_reset = False
            elif isinstance(command, Mail):
                self._session.needs_reset = reply.positive
                if not reply.positive:
                    refused = self._refused(reply, command)
                    self._refuse(self._outcomes.undecided, refused)
            elif isinstance(command, Rcpt):
                self._after_rcpt(next(recipients), command, reply, ignored=refused is not None)
            elif not reply.intermediate:
                if refused is None and self._accepted:
                    self._refuse(self._accepted, self._refused(reply, command))
                return None
            else:
                return reply
            if not pipelining and self._pointless(refused, waiting):
                return None
        return None

    def _pointless(self, refused: DeliveryError | None, waiting: Sequence[Command]) -> bool:
        """In lock-step: what is left to send (DATA at least) has nobody to go to."""
        if refused is not None:
            return True
        rcpts_done = not any(isinstance(command, (Mail, Rcpt)) for command in waiting)
        return rcpts_done and not self._accepted and len(waiting) == 1

    def _await_phase(self, talk: Conversation) -> None:
        """Which reply comes next decides what we are doing, and for how long."""
        command = self._session.dialogue.oldest
        if isinstance(command, Rcpt):
            talk.phase(phrases.RCPT, self._limits.rcpt)
        elif isinstance(command, Mail):
            talk.phase(phrases.MAIL, self._limits.mail)
        elif isinstance(command, Rset):
            talk.phase(phrases.RSET, self._limits.rset)
        else:
            talk.phase(phrases.DATA, self._limits.data_init)

    def _after_rcpt(
        self, recipient: Recipient, command: Command, reply: Reply, *, ignored: bool
    ) -> None:
        if ignored:
            return  # MAIL was refused: this is a 503 that says nothing about the recipient
        if reply.positive:
            self._accepted.append(recipient)
        else:
            self._refuse([recipient], self._refused(reply, command))

    async def _abandon_data(self, talk: Conversation) -> None:
        """The server wants content though it took no recipient: a lone dot, result thrown away.

        In LMTP nobody knows how many replies would follow (RFC 2033 has none): give up there.
        """
        if self._session.settings.protocol is Protocol.LMTP:
            self._session.broken = True
            return
        talk.phase(phrases.DATA, self._limits.data_done)
        self._session.dialogue.send(EndOfData())
        await talk.send(b".\r\n")
        await talk.answer()
        self._session.needs_reset = False

    # --- content -----------------------------------------------------------------------------

    async def _send_content(self, talk: Conversation, content: Content) -> bool:
        """Send it to the final dot; False: the server cut us off and had said why."""
        encoder = DataEncoder()
        talk.phase(phrases.CONTENT, self._limits.data_xfer)
        try:
            if isinstance(content, InlineContent):
                await self._send_end(talk, encoder.feed(content.data) + encoder.finish())
            else:
                await self._send_blocks(talk, encoder, content)
                await self._send_end(talk, encoder.finish())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._read_early_reply(talk)
            return False
        return True

    async def _send_blocks(
        self, talk: Conversation, encoder: DataEncoder, content: FileContent
    ) -> None:
        try:
            async for block in content.blocks():
                talk.phase(phrases.CONTENT, self._limits.data_xfer)  # reading took its time
                await talk.send(encoder.feed(block))
        except OSError as exc:
            # No dot may follow: the server would accept a truncated message.
            self._session.broken = True
            reason = f"cannot read the queued message: {exc.strerror}"
            raise ContentUnreadable("4.3.0", reason) from exc

    async def _send_end(self, talk: Conversation, octets: bytes) -> None:
        """The last octets with the final dot, and QUIT behind it if nothing else is to come."""
        session = self._session
        lmtp = session.settings.protocol is Protocol.LMTP
        session.dialogue.send(EndOfData(len(self._accepted) if lmtp else 1))
        if self._last and session.settings.skip_quit_response and session.capabilities.pipelining:
            octets += session.dialogue.send(Quit())
            session.unwanted = True
        if len(octets) > PIPELINE_WINDOW:
            # Only the octets around the dot put the message in doubt; those before them are
            # content, sent under the content's limit.
            view = memoryview(octets)
            await talk.send(view[:-PIPELINE_WINDOW])
            octets = bytes(view[-PIPELINE_WINDOW:])
        self._unanswered = list(self._accepted)
        await talk.send(octets)

    async def _read_early_reply(self, talk: Conversation) -> None:
        """The peer cut the connection in mid content: it may have said why before (S038).

        Raises EOFError if it had not.
        """
        session = self._session
        talk.phase(phrases.END_OF_DATA if self._unanswered else phrases.CONTENT, EARLY_REPLY_LIMIT)
        try:
            reply = await talk.reply()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise EOFError("the peer closed the connection") from None
        session.broken = True
        if not (reply.transient or reply.permanent):
            raise EOFError("the peer closed the connection")
        self._unanswered = []
        self._refuse(self._accepted, self._refused(reply, EndOfData()))

    async def _read_final_replies(self, talk: Conversation) -> None:
        """Settle the accepted recipients: one reply for all in SMTP, one for each in LMTP."""
        talk.phase(phrases.END_OF_DATA, self._limits.data_done)
        step = 1 if self._session.settings.protocol is Protocol.LMTP else len(self._accepted)
        while group := self._unanswered[:step]:
            reply = await talk.answer()
            self._note(reply)
            del self._unanswered[:step]
            if reply.positive:
                now = trio.current_time()
                for recipient in group:
                    self._outcomes.sent(recipient, reply, self._facts, now)
            else:
                self._refuse(group, self._refused(reply, EndOfData()))
        self._session.needs_reset = False

    # --- judgement ---------------------------------------------------------------------------

    def _refused(self, reply: Reply, command: Command) -> DeliveryError:
        """The error for a negative reply; anything but 4xx and 5xx is a soft protocol error."""
        peer = self._session.peer
        dsn = reply.dsn
        if not (reply.transient or reply.permanent):
            dsn = "4.5.0"
            self._session.unwanted = True
        return MessageRefused(dsn, phrases.said(peer, reply, command.phrase), reply, peer)

    def _refuse(self, recipients: list[Recipient], error: DeliveryError) -> None:
        self._outcomes.failed(recipients, error, self._facts, trio.current_time())

    def _note(self, reply: Reply) -> None:
        """Replies after which the session is not used again (S136)."""
        if reply.code == SERVICE_CLOSING or reply.code in SYNTAX_ERRORS:
            self._session.unwanted = True

    def _hear(self, command: Command, reply: Reply) -> None:
        """Judge what a reply before the content says about the session.

        Raises SessionError for 421, and for a refused RSET: the peer's state is unknown then,
        and what follows might land in the old transaction.
        """
        if reply.code == SERVICE_CLOSING or (isinstance(command, Rset) and not reply.positive):
            raise SessionError(
                f"4{reply.dsn[1:]}",
                phrases.said(self._session.peer, reply, command.phrase),
                reply,
                self._session.peer,
            )
        if not isinstance(command, Rset):
            self.heard = True
        if isinstance(command, Mail) or self._accepted:
            self._note(reply)  # else it may only answer what an earlier refusal made pointless
