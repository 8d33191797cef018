"""Deliver one request: endpoints x recipients -> outcomes. This is the main path.

A session left in the slot by the request before serves first, then one to the nexthop from the
cache. Otherwise the destinations of the nexthop, and behind them the fallback relays, are resolved
to endpoints, best preference first, and they are tried in order (with a cached session, else by a
connect, raced among equals if so configured) until no recipient is undecided: recipients that a
server accepted or refused for good are settled, the others go on to the next endpoint, and what is
left at the end is deferred with the reason that came last. One outcome per recipient, always.

What is said in a session is in `transaction.py`, how it is opened in `introduction.py`, how it
comes from the cache and goes there in `reuse.py`, the ledger of recipients in `outcomes.py`, what
tables make of it in `status_filter.py`; what a delivery needs from outside is an `Environment`.
"""

import traceback
from dataclasses import replace
from functools import partial
from itertools import groupby

import trio

from protocol.dialogue import Dialogue, State
from protocol.outcome import Action, DeliveryResult, RecipientOutcome, SiteFailure
from protocol.request import DeliveryRequest, Recipient
from worker.content import Content
from worker.delivery.ahead import next_envelope
from worker.delivery.content_sending import ContentUnreadable
from worker.delivery.envelope import Envelope
from worker.delivery.environment import Environment
from worker.delivery.handover import Settled
from worker.delivery.introduction import introduce
from worker.delivery.outcomes import Outcomes, SessionFacts
from worker.delivery.reuse import NO_REUSE
from worker.delivery.security import Security
from worker.delivery.session import Session, SessionKey
from worker.delivery.slot import DeliverySlot, Save
from worker.delivery.status_filter import Filtering, StatusFilter
from worker.delivery.transaction import (
    Begun,
    RefusedAhead,
    StaleSession,
    transfer,
)
from worker.delivery.transcripts import Transcripts
from worker.errors import (
    ConnectError,
    DeliveryError,
    OwnExchanger,
    ResolveError,
    SessionError,
    SiteError,
    TlsFailed,
)
from worker.network.address import Endpoint
from worker.network.network import Choice
from worker.status.events import (
    ConnectFailed,
    EndpointFailed,
    PassedOn,
    SessionOpened,
    SessionReused,
    UnexpectedError,
    Warned,
)
from worker.tls.policy import Level

NOT_TRIED = DeliveryError("4.3.0", "no server could be tried")
STOPPED = DeliveryError("4.3.2", "the delivery agent is shutting down")
OVERDUE = DeliveryError("4.3.0", "the delivery took longer than daemon_timeout")


async def deliver(
    request: DeliveryRequest,
    content: Content,
    environment: Environment,
    slot: DeliverySlot | None = None,
    begun: Begun | None = None,
) -> DeliveryResult:
    """Try to deliver to every recipient of `request`; never raises for what goes wrong.

    With a `slot` its session or a cached one is used, and a good one is left in it; without, the
    session ends with this request. `begun`: it is under way already, in a session that this takes
    over. The caller closes `content`. An outer cancellation passes through.
    """
    delivery = _Delivery(request, content, environment, slot, begun)
    unexplained = NOT_TRIED
    committed = begun is not None and begun.sending
    scope = delivery.slot.begin(environment.time_limit, committed=committed)
    try:
        with scope:
            await delivery.run(begun)
    except Exception as exc:  # noqa: BLE001  # whatever it is: the mail waits, the worker lives
        environment.emit(
            UnexpectedError(
                "delivering", "".join(traceback.format_exception(exc)), request.queue_id
            )
        )
        unexplained = DeliveryError("4.3.0", f"internal error: {type(exc).__name__}")
        delivery.outcomes.postponed(unexplained, SessionFacts())
    if scope.cancelled_caught and not delivery.slot.stopping:
        environment.emit(Warned(f"{OVERDUE.reason}: cancelled", request.queue_id))
        delivery.outcomes.postponed(OVERDUE, SessionFacts())
    elif scope.cancelled_caught and delivery.outcomes.undecided:
        # What is left was not given a fair try: that is nobody's failure but ours.
        delivery.outcomes.postponed(STOPPED, SessionFacts())
        result = replace(delivery.result(STOPPED), stopped=True, site_failure=None)
        return await delivery.filtered(result)
    return await delivery.filtered(delivery.result(unexplained))


class _Delivery:
    """One request on its way through the endpoints."""

    def __init__(
        self,
        request: DeliveryRequest,
        content: Content,
        environment: Environment,
        slot: DeliverySlot | None,
        begun: Begun | None,
    ) -> None:
        self._request = request
        self._content = content
        self._environment = environment
        self._settings = environment.settings[request.protocol]
        self._network = environment.networks[request.protocol]
        self._key = SessionKey.of(request, self._settings)
        self._rules = environment.security[request.protocol]
        self._policy = environment.reuse[request.protocol] if slot else None
        self._wishes = NO_REUSE
        self._started = begun.started if begun else trio.current_time()
        self._choice = Choice(request.nexthop)  # the destination that is being tried
        self._sessions = 0  # that got as far as taking mail
        self._sessions_before = 0  # of them, with earlier destinations (smtp_mx_session_limit)
        self._site_failure: SiteFailure | None = None
        self._handed_over = False  # by another transport, whose mail looped
        self._filter = self._settings.status_filter
        self._passed_on: frozenset[Recipient] = frozenset()  # to another transport
        self._filter_there: StatusFilter | None = None  # of that one
        self._served = False  # some session came to the end of a transaction
        self._broke_off = False  # the last one that did not: it was no reply that ended it
        self._refused_ahead: Endpoint | None = None  # where MAIL was, for good, if it was ours
        self._asked: set[tuple[str, int]] = set()  # who has had its say on a reused session
        self._passed_over: list[str] = []  # reasons to log once another endpoint is tried
        self._transcripts = Transcripts(request, environment.recording)
        self.slot = slot or DeliverySlot()
        handed_off = begun.handed_off if begun else environment.wall()
        self.outcomes = Outcomes(request, handed_off, self._started)

    def result(self, unexplained: DeliveryError) -> DeliveryResult:
        """What it came to; the site failed only if nothing worked and mail is left over."""
        outcomes = self.outcomes.result(trio.current_time(), unexplained)
        deferred = any(outcome.action is Action.DEFERRED for outcome in outcomes)
        return DeliveryResult(
            outcomes=outcomes,
            site_failure=self._site_failure if deferred and not self._served else None,
            session_kept=self.slot.holds_session,
            transcripts=tuple(self._transcripts.kept),
        )

    async def filtered(self, result: DeliveryResult) -> DeliveryResult:
        """The result with the outcomes that status filters make of it (S181); all is decided.

        Lookups end when daemon_timeout has gone by, and when the slot stops. Never raises for what
        goes wrong; an outer cancellation passes through.
        """
        if self._filter is None and self._filter_there is None:
            return result
        emit, queue_id = self._environment.emit, self._request.queue_id
        filtering = Filtering(
            [(outcome, self._filter_of(outcome, result)) for outcome in result.outcomes],
            lambda text: emit(Warned(text, queue_id)),
        )
        spent = trio.current_time() - self._started
        scope = self.slot.begin(max(self._environment.time_limit - spent, 0.0))
        try:
            with scope:
                await filtering.look_up()
        except Exception as exc:  # noqa: BLE001  # a table's bug: nobody is bounced for that
            trace = "".join(traceback.format_exception(exc))
            emit(UnexpectedError("filtering delivery status", trace, queue_id))
        if scope.cancelled_caught and not self.slot.stopping:
            emit(Warned("delivery status filter: no answer within daemon_timeout", queue_id))
        return replace(result, outcomes=filtering.result())

    def _filter_of(self, outcome: RecipientOutcome, result: DeliveryResult) -> StatusFilter | None:
        """What the outcome goes through: the filter of the transport that it comes from."""
        if result.stopped and outcome.action is Action.DEFERRED:
            return None  # our own doing: not to be made a bounce
        return self._filter_there if outcome.recipient in self._passed_on else self._filter

    async def run(self, begun: Begun | None) -> None:
        """The way of the request: a session that is there, then endpoint after endpoint."""
        try:
            if self._policy is not None:
                self._wishes = await self._policy.wishes(self._request, self._environment.emit)
        except BaseException:
            if begun is not None:
                await begun.session.aclose()
            raise
        if begun is not None:
            await self._reuse(begun.session, begun)
        else:
            await self._try_parked()
        if not self._sessions:
            await self._try_cached_destination()
        if self.outcomes.undecided:
            await self._try_choices()

    @property
    def _wanted(self) -> bool:
        """Somebody is undecided, and another session may be used."""
        limit, used = self._settings.mx_session_limit, self._sessions - self._sessions_before
        return bool(self.outcomes.undecided) and not (limit and used >= limit)

    # --- which destination -------------------------------------------------------------------

    async def _try_choices(self) -> None:
        """The destinations of the nexthop, then the fallback relays (S028), each with its own
        number of sessions.

        One that leads nowhere counts only if no other leads anywhere. Where we are an exchanger
        ourselves there is no other: it could send the mail back to us.
        """
        try:
            choices = self._network.choices(self._request.nexthop)
        except ResolveError as exc:
            self._lead_nowhere(exc)
            return
        if not self._wanted and len(choices) == 1:
            return
        for self._choice in choices:
            if self._choice.place:
                self._sessions_before = self._sessions
            try:
                found = await self._network.find(self._choice)
            except ResolveError as exc:
                self._soften(exc)
                if isinstance(exc, OwnExchanger):
                    if not (exc.hard and await self._hand_over()):
                        self._lead_nowhere(exc)
                    break
                self._lead_nowhere(exc)
                self._passed_over.append(exc.reason)
                continue
            await self._try_endpoints(found.endpoints)
            if found.own_mx or not self.outcomes.undecided:
                break
        self._say_what_was_left_out()

    async def _hand_over(self) -> bool:
        """The request loops: give it to another of our transports (S026); False: bounce it.

        Once: what the other one has for the same domain may loop as well.
        """
        environment, request, outcomes = self._environment, self._request, self.outcomes
        if environment.hand_over is None or self._handed_over:
            return False
        to = await environment.hand_over(request.nexthop)
        for recipient in outcomes.undecided:
            environment.emit(PassedOn(request.queue_id, recipient.address, to.transport))
        if isinstance(to, Settled):
            why = DeliveryError(to.dsn, to.reason)
            self._passed_on = frozenset(outcomes.undecided)
            outcomes.settled(to.action, why, self._facts(""), trio.current_time())
            return True
        passed_on = replace(
            request, transport=to.transport, protocol=to.protocol, nexthop=to.nexthop
        )
        other = _Delivery(passed_on, self._content, environment, self.slot, None)
        self._passed_on, self._filter_there = frozenset(outcomes.undecided), other._filter
        other.outcomes = outcomes  # whatever interrupts it: nobody is lost, and nobody sent twice
        other._started = self._started
        other._transcripts.kept = self._transcripts.kept
        other._handed_over = True
        if self._policy is None:
            other._policy = None  # nobody would end a session in the slot
        await other.run(None)
        self._served, self._site_failure = other._served, other._site_failure
        return True

    def _lead_nowhere(self, error: ResolveError) -> None:
        self._failed(error, SessionFacts())
        self.outcomes.postponed(error, SessionFacts())

    def _soften(self, error: DeliveryError) -> None:
        """What we have chosen ourselves and cannot use is no reason to bounce mail: 4.3.5."""
        settings, protocol = self._network.settings, self._request.protocol
        if not error.hard:
            return
        if self._choice.fallback:
            culprit = f"{protocol.value}_fallback_relay"
        elif settings.relayhost and self._request.nexthop == settings.relayhost:
            culprit = "relayhost"
        else:
            return
        error.dsn = "4.3.5"
        self._environment.emit(Warned(f"{culprit} configuration problem"))

    def _say_what_was_left_out(self) -> None:
        request, fallback = self._request, self._network.settings.fallback
        if self.outcomes.undecided and fallback and request.nexthop.startswith("unix:"):
            text = f"lmtp_fallback_relay is for TCP, and not used for {request.nexthop}"
            self._environment.emit(Warned(text, request.queue_id))

    async def _try_endpoints(self, endpoints: list[Endpoint]) -> None:
        """Those of one destination, one preference after another."""
        for _, group in groupby(endpoints, key=lambda endpoint: endpoint.preference):
            equals = list(group)
            await self._try_cached_endpoints(equals)
            # Who has just had its say on a reused session is not asked again.
            await self._try_equals([e for e in equals if (e.address, e.port) not in self._asked])

    # --- which endpoint ----------------------------------------------------------------------

    async def _try_parked(self) -> None:
        """The session that the request before left in the slot, if it is still good."""
        session = await self.slot.take(self._key, self._request)
        if session is None:
            return
        # An envelope that is under way was found to fit when it was sent.
        if session.ahead is None:
            try:
                security = await self._security_at(session.endpoint)
            except BaseException:
                await session.aclose()
                raise
            if security is None or security.key != session.security.key:
                await session.quit()
                return
        await self._reuse(session)

    async def _security_at(self, endpoint: Endpoint) -> Security | None:
        """What must hold for a session that is there already; None: it cannot be said."""
        try:
            return await self._rules.security(self._request, endpoint)
        except SiteError:
            return None  # whoever opens a session meets it again

    async def _try_cached_destination(self) -> None:
        """A session to this nexthop from the cache, whichever endpoint it is with."""
        cached = self._environment.cached
        if cached is None or not self._wishes.load:
            return
        session = await cached.find_destination(self._key, self._security_at)
        if session is not None:
            await self._reuse_cached(session)

    async def _try_cached_endpoints(self, endpoints: list[Endpoint]) -> None:
        """Sessions with endpoints of one preference from the cache, in their order."""
        cached = self._environment.cached
        if cached is None or not self._wishes.load:
            return
        for endpoint in endpoints:
            # A UNIX socket is the only endpoint of its nexthop: it would have been found by that.
            if not self._wanted or not endpoint.port:
                return
            if (endpoint.address, endpoint.port) in self._asked:
                continue
            security = await self._security_at(endpoint)
            if security is None:
                continue
            session = await cached.find_endpoint(self._key, endpoint, security)
            if session is not None:
                self._log_passed_over()
                await self._reuse_cached(session)

    async def _reuse_cached(self, session: Session) -> None:
        """As _reuse(); whoever made the session may not have watched it."""
        try:
            dialogue = await self._dialogue(session.endpoint, session.security, State.INTRODUCED)
        except BaseException:
            await session.aclose()
            raise
        if dialogue is not None:
            session.dialogue = dialogue
        await self._reuse(session)

    async def _reuse(self, session: Session, begun: Begun | None = None) -> None:
        """Offer the message on a session that others have used; takes it over."""
        try:
            # A server that settled not everybody: one session is enough.
            await self.slot.release()
        except BaseException:
            await session.aclose()
            raise
        try:
            told = begun is not None and begun.sending
            news = None if told else SessionReused(session.endpoint.relay, session.uses + 1)
            if await self._use(session, news, begun):
                self._asked.add((session.endpoint.address, session.endpoint.port))
        except StaleSession:
            pass  # it died while it was idle: nothing was sent, no blame

    async def _try_equals(self, endpoints: list[Endpoint]) -> None:
        """Endpoints of one preference: one after another, or whichever connects first."""
        race = self._network.settings.stagger > 0
        while endpoints and self._wanted:
            candidates = endpoints if race else endpoints[:1]
            self._log_passed_over()
            await self.slot.release()
            setup = trio.current_time()
            try:
                endpoint, stream = await self._network.connect(candidates)
            except ConnectError as exc:
                self._connect_failed(exc)
                endpoints = endpoints[len(candidates) :]
                continue
            endpoints.remove(endpoint)
            await self._try_endpoint(endpoint, stream, setup)

    async def _try_endpoint(
        self, endpoint: Endpoint, stream: trio.abc.Stream, connected_since: float
    ) -> None:
        """From a fresh connection to outcomes; takes over `stream`."""
        try:
            security = await self._rules.security(self._request, endpoint)
        except BaseException as exc:
            await trio.aclose_forcefully(stream)
            if not isinstance(exc, SiteError):
                raise
            self._endpoint_failed(endpoint, exc)
            return
        broken = await self._try_secured(endpoint, stream, connected_since, security)
        if not (broken and self._may_downgrade(security)):
            return
        # The same server once more, in the clear (S099).
        setup = trio.current_time()
        try:
            _, stream = await self._network.connect([endpoint])
        except ConnectError as exc:
            self._connect_failed(exc)
            return
        await self._try_secured(endpoint, stream, setup, security.in_the_clear())

    async def _try_secured(
        self,
        endpoint: Endpoint,
        stream: trio.abc.Stream,
        connected_since: float,
        security: Security,
    ) -> bool:
        """As _try_endpoint(). True: TLS broke, and so far nothing has come of the connection."""
        emit, undecided = self._environment.emit, len(self.outcomes.undecided)
        recorder = self._transcripts.recorder(security)
        try:
            dialogue = await self._dialogue(endpoint, security, State.CONNECTED)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        try:
            session = await introduce(
                *(endpoint, stream, self._settings, emit, self._request, security, self._rules),
                dialogue,
                recorder,
            )
        except BaseException as exc:
            self._transcripts.keep(recorder, endpoint, exc)
            if not isinstance(exc, (SiteError, SessionError)):
                raise
            self._endpoint_failed(endpoint, exc, security)
            return isinstance(exc, TlsFailed) or (isinstance(exc, SessionError) and exc.secured)
        session.born = connected_since
        secured = session.tls is not None
        ended = await self._use(session, SessionOpened(endpoint.relay))
        # A server that takes its leave with a reply has no trouble with TLS.
        broke = not ended and self._broke_off
        return secured and broke and len(self.outcomes.undecided) == undecided

    async def _dialogue(
        self, endpoint: Endpoint, security: Security, state: State
    ) -> Dialogue | None:
        """A watched one, if somebody may be watched (debug_peer_list)."""
        debug = self._environment.debug
        if debug is None:
            return None
        return await debug.dialogue(self._request, endpoint, security, state)

    def _may_downgrade(self, security: Security) -> bool:
        """TLS is wished for, not asked for, and the message has waited long enough (S099).

        Never where a name and a secret would go out in the clear.
        """
        request = self._request
        waited = request.active - request.arrival
        return (
            security.policy.level is Level.MAY
            and not security.policy.wrapper
            and security.credentials is None
            and waited >= self._environment.downgrade_after
            and bool(self.outcomes.undecided)
        )

    def _endpoint_failed(
        self, endpoint: Endpoint, error: DeliveryError, security: Security | None = None
    ) -> None:
        """The endpoint was of no use. Undecided recipients go on to the next one."""
        facts = self._facts(endpoint.relay)
        before = self._site_failure
        if not (isinstance(error, SiteError) and error.login):  # smtp_sasl_auth_soft_bounce
            self._soften(error)
        self._failed(error, facts)
        if isinstance(error, TlsFailed) and security and not security.policy.level.mandatory:
            self._site_failure = before  # the site works: only its TLS does not (S125)
        self.outcomes.failed(self.outcomes.undecided, error, facts, trio.current_time())

    # --- one session -------------------------------------------------------------------------

    async def _use(
        self,
        session: Session,
        news: SessionOpened | SessionReused | None,
        begun: Begun | None = None,
    ) -> bool:
        """Transfer the message; then park the session, end it, or close it. Owns the session.

        True: the transaction came to its end. Raises StaleSession, and concludes nothing, if a
        reused session was dead.
        """
        use = session.uses if begun is not None and begun.sending else session.uses + 1
        facts = SessionFacts(
            relay=session.endpoint.relay,
            conn_use=use,
            dsn_announced=session.capabilities.dsn,
            tls=session.tls_status if session.settings.log_tls else "",
            setup=0.0 if begun else trio.current_time() - self._started,
        )
        ahead = session.ahead is not None and session.ahead.behind_dot
        if begun is not None and begun.sending:
            ahead = begun.travelled_ahead
        self._transcripts.record(session)
        # In the clear because TLS is broken: others may not have waited long enough for that.
        keep = self._wishes.keep and not session.security.clear
        # Whoever comes next is to try his own destination first: a session with a fallback relay
        # is found by its endpoint only.
        save = self._save(first=not self._sessions and not self._choice.fallback)
        keep = keep and (save is not None or not self._choice.fallback)
        try:
            if news is not None:
                self._environment.emit(news)
            parkable = await transfer(
                session,
                self._request,
                self._content,
                self.outcomes,
                facts,
                self.slot,
                self._environment.emit,
                following=partial(self._following, session) if keep else None,
                begun=begun,
            )
            self._passed_over += self.outcomes.reasons()
            if self._refused_ahead is not None and self.outcomes.any_sent:
                self._distrust(self._refused_ahead, doubt=False)  # that was not said to us
            if parkable is not None and keep:
                self.slot.park(self._key, parkable, save)
                if self._choice.fallback:
                    await self.slot.release()
            else:
                if session.ahead is not None:
                    self._distrust(session.endpoint, doubt=False)
                await session.quit()
            self._transcripts.keep(session.recorder, session.endpoint)
        except BaseException as exc:
            self._transcripts.keep(session.recorder, session.endpoint, exc)
            await session.aclose()
            if isinstance(exc, RefusedAhead):
                self._refused_ahead = session.endpoint if exc.hard else None
            elif isinstance(exc, SessionError) and (ahead or session.ahead is not None):
                self._distrust(session.endpoint, doubt=session.ahead is not None)
            if not self._concludes(exc, facts):
                raise
            self._sessions += 1
            return False
        self._served = True
        self._sessions += 1
        return True

    def _concludes(self, error: BaseException, facts: SessionFacts) -> bool:
        """Note what the end of a session means for its recipients; False: nothing, for now."""
        now = trio.current_time()
        if isinstance(error, ContentUnreadable):
            self.outcomes.deferred(self.outcomes.undecided, error, facts, now)
            return True
        if isinstance(error, SessionError) and not isinstance(error, StaleSession):
            self._broke_off = error.reply is None
            self._failed(error, facts)
            self.outcomes.failed(self.outcomes.undecided, error, facts, now)
            return True
        return False

    def _save(self, *, first: bool) -> Save | None:
        """How a session is given to the next one, if it may be; `first`: of this request."""
        if self._policy is None:
            return None
        return self._environment.saving(self._key, self._wishes, first=first)

    def _distrust(self, endpoint: Endpoint, *, doubt: bool) -> None:
        """A session ended while an envelope was under way: perhaps for that very reason."""
        self._environment.plain.note(endpoint, trio.current_time(), doubt=doubt)

    def _following(self, session: Session) -> Envelope | None:
        """The envelope of the slot's next request, if it may travel with this final dot."""
        if self.slot.stopping or self._choice.fallback:
            return None
        plain, now = self._environment.plain, trio.current_time()
        return next_envelope(session, self._key, self.slot.upcoming(), plain, now)

    # --- bookkeeping -------------------------------------------------------------------------

    def _facts(self, relay: str) -> SessionFacts:
        return SessionFacts(relay=relay, setup=trio.current_time() - self._started)

    def _failed(self, error: DeliveryError, facts: SessionFacts) -> None:
        """The endpoint or the whole nexthop was of no use."""
        self._site_failure = SiteFailure(dsn=error.dsn, reason=error.reason)
        if facts.relay:
            self._passed_over.append(error.reason)

    def _connect_failed(self, error: ConnectError) -> None:
        for failure in error.failures or (error,):
            if (endpoint := failure.endpoint) is not None:
                protocol = self._request.protocol.value
                why = failure.reason.removeprefix(f"connect to {endpoint.relay}: ")
                self._environment.emit(
                    ConnectFailed(endpoint.host, endpoint.address, endpoint.port, why, protocol)
                )
        facts = self._facts("")
        self._failed(error, facts)
        self.outcomes.failed(self.outcomes.undecided, error, facts, trio.current_time())

    def _log_passed_over(self) -> None:
        """Another endpoint is about to be tried: say why the last one was not the end of it."""
        request = self._request
        for reason in self._passed_over:
            self._environment.emit(EndpointFailed(request.queue_id, reason, request.protocol.value))
        self._passed_over.clear()
