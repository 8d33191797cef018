"""From an open stream to a session that can take mail: greeting, EHLO, STARTTLS, AUTH.

S036 (order), S040, S041, S056 to S061, S065, S099, S124, S125. In this order, and mail goes out
only from the end of it: TLS as the policy wants it, EHLO again (nothing that was learnt before TLS
is used), what the server proved judged, and only then a name and a secret.
"""

from dataclasses import replace
from typing import Final

import trio

from protocol import phrases
from protocol.capabilities import Capabilities
from protocol.command import Ehlo, Helo, Lhlo, StartTls
from protocol.dialogue import Dialogue
from protocol.errors import RemoteProtocolError
from protocol.reply import Reply
from protocol.request import DeliveryRequest, Protocol
from protocol.sasl.mechanism import ChannelBinding
from worker.config.tables import TableError
from worker.delivery.authentication import authenticate
from worker.delivery.pix import DELAY_DOTCRLF, DISABLE_ESMTP, WORKAROUNDS, is_masked
from worker.delivery.recorder import Recorder
from worker.delivery.security import NO_RULES, UNSECURED, Security, SecurityRules
from worker.delivery.session import Conversation, Session
from worker.delivery.settings import DeliverySettings
from worker.errors import SessionError, SiteError, TlsFailed
from worker.network.address import Endpoint
from worker.status.events import (
    EhloKeywordsDiscarded,
    Emit,
    PixWorkaroundsEnabled,
    StartTlsOffered,
    TlsEstablished,
    TlsHandshakeFailed,
    TlsNotVerified,
    Warned,
)
from worker.tls.contexts import TlsFilesError
from worker.tls.handshake import HandshakeError, TlsEngine
from worker.tls.policies import TlsPolicyError
from worker.tls.policy import Level, Trust
from worker.tls.stream import TlsStream

SERVICE_CLOSING: Final = 421  # RFC 5321 section 3.8: whatever was asked, the session is over
SILENT_DISCARD: Final = "silent-discard"
SMTP_PORT: Final = 25
SUBMISSIONS_PORT: Final = 465  # RFC 8314 section 3.3: TLS from the first octet
WRAPPER_NEEDED: Final = (
    "port 465 needs smtp_tls_wrappermode = yes and smtp_tls_security_level = encrypt (or stronger),"
    " or both in an entry of smtp_tls_policy_maps: encrypt wrappermode=yes"
)


async def introduce(
    endpoint: Endpoint,
    stream: trio.abc.Stream,
    settings: DeliverySettings,
    emit: Emit,
    request: DeliveryRequest,
    security: Security = UNSECURED,
    rules: SecurityRules = NO_RULES,
    dialogue: Dialogue | None = None,
    recorder: Recorder | None = None,
) -> Session:
    """Read the greeting, say who we are, and return the session, which then owns `stream`.

    `request`: the one that the session is opened for, named in events and reasons. `security` was
    evaluated by `rules`. `dialogue`: a new one; None: any will do. `recorder`: writes down what is
    said. Raises SessionError (lost, timed out) or SiteError (refused, TLS not as it must be;
    TlsFailed if a handshake came to nothing); the stream is closed then.
    """
    session = Session(endpoint, stream, settings, dialogue, security)
    session.record(recorder)
    try:
        with session.conversation() as talk:
            await _Introduction(session, talk, emit, request, rules).run()
    except TlsFailed:
        await session.aclose()
        raise
    except SiteError:
        await _leave(session)
        raise
    except BaseException as exc:
        if isinstance(exc, SessionError):
            exc.secured = session.tls is not None
        await session.aclose()
        raise
    return session


async def _leave(session: Session) -> None:
    """The server is not for us: say QUIT, but wait for nothing."""
    with trio.move_on_after(1.0, shield=True):
        await session.quit()
    await session.aclose()


class _Introduction:
    """One session on its way to taking mail."""

    def __init__(
        self,
        session: Session,
        talk: Conversation,
        emit: Emit,
        request: DeliveryRequest,
        rules: SecurityRules,
    ) -> None:
        self._session = session
        self._talk = talk
        self._emit = emit
        self._request = request
        self._rules = rules
        self._security = session.security
        self._settings = session.settings
        self._discard: tuple[str, ...] = ()  # keywords to overlook

    async def run(self) -> None:
        """The whole introduction. Raises SiteError."""
        session, talk = self._session, self._talk
        policy = self._security.policy
        if policy.wrapper and policy.level is not Level.NONE:
            await self._secure()
        elif session.endpoint.port == SUBMISSIONS_PORT:
            # The server waits for a handshake, and so will we for its greeting, for minutes.
            self._emit(Warned(WRAPPER_NEEDED, self._request.queue_id))
        talk.phase(phrases.GREETING, self._settings.limits.helo)
        greeting = await talk.reply()
        session.dialogue.receive_greeting(greeting)
        _check_greeting(session, greeting, self._emit)
        talk.pause()  # for tables
        workarounds = await self._workarounds() if is_masked(greeting) else ()
        self._discard = await _unwanted_keywords(session.endpoint, self._settings)
        extended = self._settings.protocol is Protocol.LMTP or (
            not self._settings.never_send_ehlo
            and DISABLE_ESMTP not in workarounds
            and (self._settings.always_send_ehlo or "ESMTP" in greeting.text.upper().split())
        )
        await self._say_hello(extended=extended)
        if session.tls is None and await self._start_tls():
            await self._say_hello(extended=True)
        self._check_level()
        credentials, sasl = self._security.credentials, self._rules.sasl
        if credentials is not None and sasl is not None:
            try:
                await authenticate(session, talk, sasl, credentials, _binding(session))
            except SiteError as exc:
                exc.login = True
                raise

    async def _workarounds(self) -> tuple[str, ...]:
        """What is to be done about a server whose greeting a firewall has masked (S066).

        Raises SiteError.
        """
        session, request, pix = self._session, self._request, self._settings.pix
        try:
            workarounds, unknown = await pix.listed(session.endpoint)
        except TableError as exc:
            raise _local_error(session.endpoint, exc) from exc
        if unknown:
            words = f"{' '.join(unknown)} (known are {', '.join(WORKAROUNDS)})"
            where = session.endpoint.address
            self._emit(Warned(f"PIX workarounds for {where}: ignoring {words}", request.queue_id))
        session.delays_dot = DELAY_DOTCRLF in workarounds
        enabled = tuple(w for w in workarounds if w != DELAY_DOTCRLF or pix.delays(request))
        if enabled:
            relay, protocol = session.endpoint.relay, request.protocol.value
            self._emit(PixWorkaroundsEnabled(request.queue_id, enabled, relay, protocol))
        return workarounds

    # --- who we are ----------------------------------------------------------------------------

    async def _say_hello(self, *, extended: bool) -> None:
        """EHLO, LHLO or HELO, and what the server says that it can do. Raises SiteError."""
        session, request = self._session, self._request
        reply = await self._introduce(extended=extended)
        if reply is None:
            return
        session.capabilities = Capabilities.from_reply(reply, self._discard)
        if session.delays_dot:  # a dot must not share its packet with commands
            session.capabilities = replace(session.capabilities, pipelining=False)
        dropped = session.capabilities.discarded
        if dropped and SILENT_DISCARD not in self._discard:
            self._emit(EhloKeywordsDiscarded(request.queue_id, dropped, request.protocol.value))
        _check_loop(session, request.nexthop)

    async def _introduce(self, *, extended: bool) -> Reply | None:
        """Say who we are; the reply that lists extensions, None after HELO. Raises SiteError."""
        session, talk = self._session, self._talk
        name, limit = self._settings.helo_name, self._settings.limits.helo
        if self._settings.protocol is Protocol.LMTP:
            reply = await talk.ask(Lhlo(name), phrases.LHLO, limit)
            _must_accept(session, reply)
            return reply
        if extended:
            reply = await talk.ask(Ehlo(name), phrases.EHLO, limit)
            if reply.positive:
                return reply
            if reply.code == SERVICE_CLOSING or session.tls is not None:
                _must_accept(session, reply)
        _must_accept(session, await talk.ask(Helo(name), phrases.HELO, limit))
        return None

    # --- TLS -----------------------------------------------------------------------------------

    async def _start_tls(self) -> bool:
        """STARTTLS, if it is offered and wanted; True: all is said over TLS from now on.

        Raises SiteError if it is a must and cannot be had.
        """
        session, talk = self._session, self._talk
        level, peer = self._security.policy.level, session.peer
        if self._security.clear:
            return False
        offered = session.capabilities.starttls
        if level is Level.NONE:
            if offered and self._rules.policies is not None and self._rules.policies.note_offer:
                self._emit(StartTlsOffered(session.endpoint.host, self._request.protocol.value))
            return False
        if not offered:
            if level.mandatory:
                reason = f"TLS is required, but was not offered by host {peer}"
                raise SiteError("4.7.4", reason)
            return False
        reply = await talk.ask(StartTls(), phrases.STARTTLS, self._settings.limits.starttls)
        if reply.positive:
            if session.replies.unread:
                # Somebody else may have put it there, to be taken for the server's own (S124).
                raise RemoteProtocolError("more was said behind the reply to STARTTLS")
            await self._secure()
            return True
        if reply.code == SERVICE_CLOSING:
            _must_accept(session, reply)
        if level.mandatory:
            reason = f"TLS is required, but host {peer} refused to start TLS: {reply.text}"
            raise SiteError("4.7.5", reason, reply, peer)
        return False

    async def _secure(self) -> None:
        """The handshake. Raises TlsFailed."""
        session, talk = self._session, self._talk
        endpoint, limit = session.endpoint, self._settings.limits.starttls
        engine = self._rules.engine
        assert engine is not None  # who has policies has it
        talk.phase(phrases.TLS, limit)
        talk.pause()  # the handshake has its own limit, and failure
        why = "Connection timed out"
        try:
            with trio.move_on_after(limit):
                stream = await self._handshake(engine)
                talk.secured(stream)
                self._tell(stream)
                return
        except TlsFilesError as exc:
            session.broken = True  # the server waits for a handshake, and takes no QUIT
            self._emit(Warned(f"TLS policy: {exc}", self._request.queue_id))
            raise SiteError(TlsPolicyError.dsn, TlsPolicyError.reason) from exc
        except HandshakeError as exc:
            why = exc.reason
        self._emit(TlsHandshakeFailed(endpoint.relay, why, self._request.protocol.value))
        raise TlsFailed("4.7.5", "Cannot start TLS: handshake failure")

    async def _handshake(self, engine: TlsEngine) -> TlsStream:
        endpoint = self._session.endpoint
        return await engine.handshake(
            self._session.stream,
            self._security.policy,
            host=endpoint.host,
            address=endpoint.address,
            port=endpoint.port,
            nexthop=self._request.nexthop,
        )

    def _tell(self, stream: TlsStream) -> None:
        """What came of the handshake (smtp_tls_loglevel)."""
        policies = self._rules.policies
        if policies is None or policies.loglevel < 1:
            return
        relay, protocol = self._session.endpoint.relay, self._request.protocol.value
        facts = stream.facts
        if self._security.policy.level.authenticated and facts.trust is not Trust.VERIFIED:
            self._emit(TlsNotVerified(relay, facts.why, protocol))
        self._emit(TlsEstablished(relay, facts, protocol))

    def _check_level(self) -> None:
        """The server must have proved what the policy asks for. Raises SiteError."""
        level, tls = self._security.policy.level, self._session.tls
        if tls is None:
            if level.mandatory:  # STARTTLS has seen to it: this must never be reached
                raise SiteError("4.7.4", "TLS is required, but was not started")
            return
        if tls.meets(level):
            return
        raise SiteError("4.7.5", "Server certificate not verified")


def _binding(session: Session) -> ChannelBinding | None:
    """What ties the log-in to the TLS connection, where it has that."""
    stream = session.stream
    data = stream.channel_binding() if isinstance(stream, TlsStream) else None
    return ChannelBinding("tls-exporter", data) if data is not None else None


def _check_greeting(session: Session, greeting: Reply, emit: Emit) -> None:
    if greeting.positive:
        name = greeting.lines[0].split(maxsplit=1)[:1]
        ours = [word.lower() for word in name] == [session.settings.hostname.lower()]
        if ours and _may_be_ourselves(session):
            emit(Warned(f"host {session.peer} greeted me with my own hostname {name[0]}"))
        return
    # A 5xx greeting says that this host takes no mail, not that nobody does (S040). A 4xx one
    # always moves on to the next host (S041).
    session.note_refusal(greeting)
    dsn = greeting.dsn
    if not (greeting.permanent and not session.settings.skip_5xx_greeting):
        dsn = f"4{dsn[1:]}"
    raise SiteError(dsn, phrases.refused_to_talk(session.peer, greeting), greeting, session.peer)


def _must_accept(session: Session, reply: Reply) -> None:
    """A refused introduction: hard only if the server says 5xx (as in Postfix)."""
    if reply.positive:
        return
    session.note_refusal(reply)
    if reply.code == SERVICE_CLOSING:
        session.unwanted = True
    dsn = reply.dsn if reply.permanent else f"4{reply.dsn[1:]}"
    raise SiteError(dsn, phrases.refused_to_talk(session.peer, reply), reply, session.peer)


async def _unwanted_keywords(endpoint: Endpoint, settings: DeliverySettings) -> tuple[str, ...]:
    """The extensions to overlook, lower case: those of the server's address, or of everybody.

    By address and never by name (S062): a server's name is what DNS says. Raises SiteError.
    """
    try:
        listed = await settings.discard_maps.find(endpoint.address)
    except TableError as exc:
        # Without the list we might use just what this server cannot do: wait until it is there.
        raise _local_error(endpoint, exc) from exc
    if listed is None:
        return settings.discard_keywords
    return tuple(listed.lower().replace(",", " ").split())


def _local_error(endpoint: Endpoint, error: TableError) -> SiteError:
    where = endpoint.name_and_address
    return SiteError("4.3.0", f"local data error while talking to {where}: {error}")


def _check_loop(session: Session, nexthop: str) -> None:
    """A server that introduces itself with our own name is ourselves (S019)."""
    name = session.capabilities.greeting_name.lower()
    if _may_be_ourselves(session) and name == session.settings.hostname.lower():
        raise SiteError("5.4.6", f"mail for {nexthop} loops back to myself")


def _may_be_ourselves(session: Session) -> bool:
    """Our own name means that the server is ourselves.

    Only on the mail port: behind another port the same host may well run another server. And not
    in LMTP, whose server may well be this host, and relays nothing.
    """
    return session.endpoint.port == SMTP_PORT and session.settings.protocol is Protocol.SMTP
