"""Message after message in one session, as long as everything is answered as hoped.

The slot's requests follow each other, the server takes each envelope with the final dot of the
message before it, and says yes to all of it: most mail to a busy destination goes this way, and on
it nothing is decided that needs a scope, a task switch or an object more than one flight does. One
cancel scope serves the whole run; the one wait for each message is for the reply to its final dot.

Nothing here judges a reply. Whatever is not as hoped, or would have to wait elsewhere, ends the run
where it stands and is `deliver()`'s: before the content the session is parked as it was found, the
replies unread; after that a `Begun` says how far the message got.
"""

import traceback
import typing
from collections.abc import Callable
from math import inf
from typing import Final

import trio

from protocol import phrases
from protocol.command import EndOfData
from protocol.data import encode
from protocol.outcome import Action, Delays, DeliveryResult, RecipientOutcome
from protocol.reply import Reply
from protocol.request import DeliveryRequest, Protocol
from worker.content import Content, InlineContent
from worker.delivery.ahead import next_envelope
from worker.delivery.envelope import Envelope
from worker.delivery.environment import Environment
from worker.delivery.session import RECEIVE_SIZE, Session, SessionKey
from worker.delivery.slot import DeliverySlot, Save
from worker.delivery.transaction import Begun, CleanSession, PledgedSession
from worker.errors import SessionError
from worker.network.socket_stream import EagerStream
from worker.status.events import SessionReused, UnexpectedError

# Seconds that a time limit may be exceeded by: moving a deadline costs as much as a reply.
LATENESS: Final = 1.0
ACCEPTED: Final = range(200, 300)
GO_AHEAD: Final = 354
END_OF_DATA: Final = EndOfData()


class Requests(typing.Protocol):
    """Where a slot's requests come from, and where their results go, in the same order."""

    async def wait(self) -> bool:
        """Wait until there is an upcoming request; False: no more will come."""

    def upcoming(self) -> DeliveryRequest | None:
        """The next request if it is there already. Never waits and never raises."""

    def take_upcoming(self) -> tuple[DeliveryRequest, Content]:
        """The request that upcoming() has told, and its content, which the caller closes."""

    def put_result(self, result: DeliveryResult) -> bool:
        """Answer the oldest unanswered request; False: flush() is needed for that. Never raises."""

    async def flush(self) -> None:
        """Send what put_result() could not."""


async def run_steadily(
    requests: Requests,
    slot: DeliverySlot,
    environment: Environment,
    is_current: Callable[[], bool],
) -> Begun | None:
    """Serve what follows in the slot's session as long as all goes well.

    `is_current`: no other environment has taken the place of this one. Returns the message to go on
    with under the same environment, if there is one. Results may wait for flush(). Raises what
    put_result() raises.
    """
    upcoming = requests.upcoming()
    if upcoming is None or (at_hand := slot.at_hand(upcoming)) is None:
        return None
    key, session = at_hand
    limits = key.settings.limits
    if (
        slot.stopping
        or not isinstance(session.stream, EagerStream)
        or key.settings is not environment.settings[key.settings.protocol]
        or limits.whole_request
        or key.settings.status_filter is not None  # nothing is looked up here
        or environment.recording.troubles  # nobody here writes down what is said
        or environment.time_limit < limits.rset + limits.data_done
    ):
        return None
    run = _Run(requests, slot, environment, is_current, key, session, session.stream, slot.unpark())
    try:
        with slot.begin(inf) as scope:
            rest = await run.messages(scope)
        if scope.cancelled_caught:
            rest = run.interrupted()
        if rest is None:
            with slot.begin(environment.time_limit):
                await run.park()
    except Exception as exc:  # whatever it is: the mail waits, the worker lives
        await session.aclose()
        if run.answering:
            raise  # with a result lost the next one would be taken for it: the slot must end
        environment.emit(UnexpectedError("delivering", "".join(traceback.format_exception(exc))))
        if run.begun is not None:
            run.begun.failed = SessionError("4.3.0", f"internal error: {type(exc).__name__}")
        return run.begun
    except BaseException:
        await session.aclose()
        raise
    return rest


class _Run:
    """One run: a session, and the message that is under way in it."""

    def __init__(
        self,
        requests: Requests,
        slot: DeliverySlot,
        environment: Environment,
        is_current: Callable[[], bool],
        key: SessionKey,
        session: Session,
        stream: EagerStream,
        save: Save | None,
    ) -> None:
        self._requests = requests
        self._slot = slot
        self._environment = environment
        self._is_current = is_current
        self._key = key
        self._session = session
        self._stream = stream
        self._save = save  # what was to be done with the session when it was found
        self._relay = session.endpoint.relay
        self._tls = session.tls_status if session.settings.log_tls else ""
        self._now = trio.lowlevel.current_clock().current_time
        limits = key.settings.limits
        self._lmtp = key.settings.protocol is Protocol.LMTP
        self._limits = limits
        # What the server had said was read, and nothing was waited for since.
        self._up_to_date = False
        self._last: DeliveryRequest | None = None  # the last that was sent
        self.begun: Begun | None = None  # under way: its content is being sent, or was
        self.answering = False  # a result is being handed over

    async def messages(self, scope: trio.CancelScope) -> Begun | None:
        """Message after message; returns as run_steadily()."""
        session, slot, requests = self._session, self._slot, self._requests
        replies, dialogue = session.replies, session.dialogue
        now = self._now()
        while not slot.stopping and self._is_current():
            ahead = session.ahead or await self._ask(scope, now)
            if ahead is None or ahead.waiting:
                return None  # nothing to do, or the envelope was too large for one flight
            due = len(ahead.recipients) + 2  # MAIL, RCPTs, DATA
            if self._lmtp and due > 3:
                return None  # several replies to the dot
            while len(replies.ready) < due and not replies.unparsed:
                if not all(reply.positive for reply in replies.ready):
                    return None  # there may be less to come than is due
                if not await self._receive(scope, self._limit(ahead, due)):
                    return None
            if not self._may_send(due):
                return None
            # The scope may have been cancelled just when the replies came. To be stopped must show
            # here, and not in the wait for the reply to the dot.
            await trio.lowlevel.checkpoint_if_cancelled()
            handed_off = self._environment.wall()
            request, content = requests.take_upcoming()
            begun = Begun(request, content, session, now, handed_off, ahead.behind_dot)
            if not isinstance(content, InlineContent) or not self._leaves(request, content.data):
                return begun
            begun.sending = True
            self.begun = begun
            self._send(begun, content.data)
            while not (begun.unsent or replies.unread):
                if not await self._receive(scope, self._limits.data_done):
                    return begun
            if begun.unsent or not replies.ready or not replies.ready[0].positive:
                return begun
            final = replies.ready.popleft()
            dialogue.receive_reply(final)
            session.needs_reset = False
            now = self._now()
            result = self._result(begun, final, now)
            self.begun = None
            slot.settle()
            self.answering = True
            if not requests.put_result(result):
                return None  # whoever reads results is slow: wait outside of our scope
            self.answering = False
        return None

    def _leaves(self, request: DeliveryRequest, content: bytes) -> bool:
        """The content goes as it is: what has to be changed may have to be looked up."""
        session = self._session
        return session.settings.content.leaves(request, session.capabilities, content)

    def interrupted(self) -> Begun | None:
        """The scope was cancelled while it waited: by its deadline, or because we shall stop."""
        begun, doing = self.begun, phrases.END_OF_DATA
        if begun is None:
            if self._slot.stopping:
                return None
            request, content = self._requests.take_upcoming()
            begun = Begun(request, content, self._session, self._now(), self._environment.wall())
            doing = phrases.MAIL
        begun.failed = SessionError("4.4.2", phrases.timed_out(self._session.peer, doing))
        return begun

    async def park(self) -> None:
        """Leave the session in the slot for what comes next."""
        session, environment = self._session, self._environment
        if session.ahead is not None:
            self._slot.park(self._key, PledgedSession(session), None)
            return
        if self._last is None:  # nothing was said: it is as it was found
            self._slot.park(self._key, CleanSession(session), self._save)
            return
        policy = environment.reuse[self._last.protocol]
        wishes = await policy.wishes(self._last, environment.emit)
        if wishes.keep and session.reusable:
            save = environment.saving(self._key, wishes, first=True)
            self._slot.park(self._key, CleanSession(session), save)
        else:
            await session.quit()

    async def _receive(self, scope: trio.CancelScope, limit: float) -> bool:
        """Wait for more from the server, at most `limit` seconds; False: it has ended."""
        until = self._now() + limit
        if not until <= scope.deadline <= until + LATENESS:
            scope.deadline = until if scope.deadline == inf else until + LATENESS
        data = await self._stream.wait_and_receive(RECEIVE_SIZE)
        self._up_to_date = self._stream.receives_all
        self._session.replies.receive_data(data)
        return bool(data)

    def _limit(self, ahead: Envelope, due: int) -> float:
        """Seconds for the next of `due` replies to an envelope."""
        limits, ready = self._limits, len(self._session.replies.ready)
        if ready == due - 1:
            return limits.data_init
        if ready:
            return limits.rcpt
        return min(limits.rset, limits.mail) if ahead.behind_dot else limits.mail

    async def _ask(self, scope: trio.CancelScope, now: float) -> Envelope | None:
        """Send the next message's envelope, if there is one that may go on here."""
        session = self._session
        if session.replies.unread:
            return None  # the server answers what it was not asked
        upcoming = self._requests.upcoming()
        envelope = next_envelope(session, self._key, upcoming, self._environment.plain, now)
        if envelope is not None:
            flight = bytes(envelope.flight(session.dialogue))
            session.ahead = envelope
            if unsent := flight[self._stream.send_nowait(flight) :]:
                scope.deadline = now + self._limits.mail
                try:
                    await self._stream.send_all(unsent)
                except trio.BrokenResourceError:
                    return None  # whoever reads meets it again
        return envelope

    def _may_send(self, due: int) -> bool:
        """MAIL and every RCPT were accepted, DATA waits for content, and nothing else was said."""
        replies = self._session.replies
        said = [reply.code for reply in replies.ready]
        return (
            len(said) == due
            and said.pop() == GO_AHEAD
            and min(said) >= ACCEPTED.start
            and max(said) < ACCEPTED.stop
            and not replies.unparsed
            and (self._up_to_date or self._session.is_quiet())
        )

    def _send(self, begun: Begun, content: bytes) -> None:
        """The content, its dot, and behind that the next envelope, if there is one."""
        session, slot = self._session, self._slot
        dialogue = session.dialogue
        for reply in session.replies.ready:
            dialogue.receive_reply(reply)
        session.replies.ready.clear()
        session.needs_reset = True
        session.ahead = None
        session.uses += 1
        self._environment.emit(SessionReused(self._relay, session.uses))
        octets = encode(content)
        dialogue.send(END_OF_DATA)
        self._last = begun.request
        if not slot.stopping:
            upcoming, plain = self._requests.upcoming(), self._environment.plain
            if envelope := next_envelope(session, self._key, upcoming, plain, begun.started):
                flight = envelope.flight(dialogue)
                begun.behind_dot = len(flight)
                octets += flight
                envelope.behind_dot = True
                session.ahead = envelope
        slot.commit()
        sent = self._stream.send_nowait(octets)
        if sent < len(octets):
            begun.unsent = octets[sent:]

    def _result(self, begun: Begun, reply: Reply, now: float) -> DeliveryResult:
        session, request = self._session, begun.request
        delays = Delays(
            max(request.active - request.arrival, 0.0),
            max(begun.handed_off - request.active, 0.0),
            0.0,
            now - begun.started,
        )
        text, dsn = reply.text, reply.dsn
        return DeliveryResult(
            outcomes=tuple(
                [
                    RecipientOutcome(
                        recipient=recipient,
                        action=Action.SENT,
                        dsn=dsn,
                        reason=text,
                        reply=text,
                        relay=self._relay,
                        conn_use=session.uses,
                        dsn_announced=session.capabilities.dsn,
                        tls=self._tls,
                        delays=delays,
                    )
                    for recipient in request.recipients
                ]
            ),
            session_kept=True,
        )
