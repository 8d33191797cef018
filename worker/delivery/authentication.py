"""Logging in at a server: the AUTH phase, between EHLO and the first MAIL (RFC 4954).

S087 to S091, S094 to S098. A server that offers no AUTH is not logged in at: whether mail may go
to it then, its own answers will say. Of one that does, any failure here ends the session.

What is sent here is secret. It is passed on in expressions, never kept in variables, and as a
memoryview, whose repr says nothing; and what the server says is searched for it: there are servers
that repeat a command they do not like.
"""

import binascii
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Final

import trio

from protocol import phrases
from protocol.command import AUTH_LINE, RESPONSE_LIMIT, Auth, AuthResponse, Command
from protocol.reply import Reply
from protocol.request import Protocol
from protocol.sasl.mechanism import ChannelBinding, Login, Mechanism, SaslError
from protocol.sasl.mechanisms import Merit, Proof, choose, lacking, make, proof_of
from protocol.sasl.secret import Secret
from protocol.spoken import BEGINNING, HIDDEN, SHORTEST
from worker.config.table import TableError
from worker.delivery.session import Conversation, Session
from worker.errors import SiteError
from worker.sasl.client import SaslClient
from worker.sasl.credentials import Credentials
from worker.sasl.refusals import Refusal
from worker.sasl.tokens import TokenError
from worker.tls.policy import Trust

ROUNDS: Final = 100  # replies 334 in one exchange
REFUSED: Final = 535  # RFC 4954 section 6: authentication credentials invalid
BEGINNINGS: Final = 20  # exchanges that are begun in threads at the same time

_LIMITER: Final = trio.lowlevel.RunVar[trio.CapacityLimiter]("beginnings")


async def authenticate(
    session: Session,
    talk: Conversation,
    sasl: SaslClient,
    credentials: Credentials,
    binding: ChannelBinding | None = None,
) -> None:
    """Log in; does nothing if the server offers no AUTH.

    `session` must be as secure as its TLS policy demands, and introduced. `binding`: of its TLS
    connection, where it has one. Raises SiteError: 4.7.0, or the server's own status.
    """
    if not session.capabilities.auth:
        return
    talk.pause()  # for tables, a token, or others who log in
    try:
        name = await _choose(session, sasl, credentials, bindable=binding is not None)
    except TableError as exc:
        raise SiteError(
            "4.3.0", f"local data error while talking to {session.peer}: {exc}"
        ) from exc
    secret = await _secret(session, sasl, credentials, name)
    login = Login(
        user=credentials.user,
        secret=secret,
        authzid=credentials.authzid,
        host=session.endpoint.host,
        port=session.endpoint.port,
        service=session.settings.protocol.value,
        binding=binding,
        server_binds=any(offer.endswith("-PLUS") for offer in session.capabilities.auth),
    )
    reply = await _try(session, talk, sasl, name, login)
    if not reply.positive:
        if sasl.tokens is not None and not credentials.secret and reply.permanent:
            sasl.tokens.forget(credentials.user, session.endpoint.host)
        raise _refused(session, sasl, reply)
    if sasl.dummy_mail_auth:
        session.capabilities = replace(session.capabilities, dummy_auth=True)


async def _try(
    session: Session, talk: Conversation, sasl: SaslClient, name: str, login: Login
) -> Reply:
    """The server's verdict, unless it is known and a refusal. Raises SiteError."""
    exchange, refusals = _Exchange(session, talk, login), sasl.refusals
    # A ticket is another one every few hours, and no key of a login says which.
    if refusals is None or proof_of(name) is Proof.TICKET:
        return await exchange.run(make(name, login))
    key = await refusals.key(login.host, (login.user, login.authzid), login.secret.reveal())
    known = await refusals.claim(key)
    if known is not None:
        raise _known(session, sasl, known)
    try:
        reply = await exchange.run(make(name, login))
        if reply.positive:
            refusals.accepted(key)
        elif reply.code == REFUSED:
            refusals.refused(key, Refusal(reply.dsn, reply.text))
        return reply
    finally:
        await refusals.settle(key)


async def _choose(
    session: Session, sasl: SaslClient, credentials: Credentials, *, bindable: bool
) -> str:
    """The mechanism to use. Raises SiteError if there is none, TableError."""
    offered = session.capabilities.auth
    allowed = await sasl.allowed(offered)
    if not allowed:
        raise SiteError(
            "4.7.0",
            f"SASL authentication failed: server {session.peer} offered no compatible"
            " authentication mechanisms for this type of connection security",
        )
    name = choose(
        allowed,
        sasl.proofs(credentials),
        sasl.demands(session.tls),
        encrypted=session.tls is not None,
        bindable=bindable,
    )
    if name is None:
        why = _why_none(session, sasl, credentials, allowed)
        raise _failed(session, f"no mechanism available ({why})")
    return name


def _why_none(
    session: Session, sasl: SaslClient, credentials: Credentials, allowed: Collection[str]
) -> str:
    """What an administrator has to know when there is no mechanism to use."""
    offer = f"it offers {' '.join(allowed)}"
    proofs = sasl.proofs(credentials)
    known = choose(allowed, proofs, Merit.NONE, encrypted=True, bindable=True)
    if known is None and credentials.secret:
        return (
            f"{offer}; GSSAPI needs an entry without a password" if "GSSAPI" in allowed else offer
        )
    if known is None:
        lack = lacking(allowed, proofs)
        return f"{offer}; the password table has no password" + (f", and {lack}" if lack else "")
    if choose(allowed, proofs, Merit.NONE, encrypted=session.tls is not None, bindable=False):
        prefix = session.settings.protocol.value
        kind = ""
        if session.tls is not None:
            kind = "tls_verified_" if session.tls.trust is Trust.VERIFIED else "tls_"
        return f"{offer}; see {prefix}_sasl_{kind}security_options"
    return f"{offer}; {known} needs TLS"


async def _secret(
    session: Session, sasl: SaslClient, credentials: Credentials, name: str
) -> Secret:
    """The password or token to use: of the table, or of the command. Raises SiteError."""
    if credentials.secret or sasl.tokens is None or proof_of(name) is not Proof.TOKEN:
        return credentials.secret
    try:
        return await sasl.tokens.token(credentials.user, session.endpoint.host)
    except TokenError as exc:
        raise _failed(session, f"no token for {credentials.user}: {exc}") from None


class _Exchange:
    """One AUTH command and what follows it, up to the reply that ends it."""

    def __init__(self, session: Session, talk: Conversation, login: Login) -> None:
        self._session = session
        self._talk = talk
        self._held: Secret | None = None  # an initial response that AUTH has no room for
        self._hidden = [login.secret]  # what must not be seen in what the server says

    async def run(self, mechanism: Mechanism) -> Reply:
        """The reply that ends it, without our secrets. Raises SiteError."""
        lmtp = self._session.settings.protocol is Protocol.LMTP
        # Postfix has no words and no limit for this phase: it belongs to the one before.
        doing, limit = phrases.LHLO if lmtp else phrases.EHLO, self._session.settings.limits.helo
        try:
            initial = self._kept(_encoded(await _begun(mechanism)))
        except SaslError as exc:
            raise _failed(self._session, str(exc)) from None
        self._talk.phase(doing, limit)
        command: Command = Auth(mechanism.name, initial)
        if len(command.to_wire()) > AUTH_LINE:
            command, self._held = Auth(mechanism.name), initial
        rounds = 0
        while (reply := await self._ask(command)).intermediate:
            rounds += 1
            try:
                command = AuthResponse(await self._next(mechanism, reply, rounds))
            except SiteError:
                await self._ask(AuthResponse(None))
                raise
        if reply.positive and not mechanism.complete:
            # It would take our mail; but it is not who it should be.
            why = f"{mechanism.name}: {mechanism.unproved}"
            raise _failed(self._session, why)
        return reply

    async def _next(self, mechanism: Mechanism, reply: Reply, rounds: int) -> Secret:
        """What to answer to a 334. Raises SiteError if there is nothing to say to it."""
        peer = self._session.peer
        if rounds > ROUNDS:
            reply = self._without_secrets(reply)
            what = f"authentication protocol loop with server {peer}"
            raise SiteError("4.3.0", f"SASL authentication failed; {what}", reply, peer)
        held, self._held = self._held, None
        if held is not None:
            reply = self._without_secrets(reply)
            if any(line.strip() for line in reply.lines):
                # Postfix shows its own response at the end, which is secret.
                what = f"non-empty initial {mechanism.name} challenge from server {peer}"
                reason = f"SASL authentication failed; {what}: {reply.text}"
                raise SiteError("4.7.0", reason, reply, peer)
            return held
        try:
            response = self._kept(_encoded(await _respond(mechanism, _challenge(reply))))
        except SaslError as exc:
            raise _failed(self._session, str(exc)) from None
        assert response is not None
        return response

    async def _ask(self, command: Command) -> Reply:
        """Say `command`; the reply, which, if it is the last, has no secrets of ours."""
        await self._talk.send(memoryview(self._session.dialogue.send(command)))
        reply = await self._talk.answer()
        return reply if reply.intermediate else self._without_secrets(reply)

    def _kept(self, response: Secret | None) -> Secret | None:
        """The same response, which is looked for in replies from now on. Raises SaslError."""
        if response is not None:
            if len(response.reveal()) > RESPONSE_LIMIT:
                raise SaslError(f"the response is longer than {RESPONSE_LIMIT} octets")
            self._hidden.append(response)
        return response

    def _without_secrets(self, reply: Reply) -> Reply:
        """The same reply; there are servers that repeat what they do not understand."""
        for secret in self._hidden:
            if len(secret.reveal()) >= SHORTEST:
                reply = replace(reply, lines=tuple(_without(secret, reply.lines)))
        return reply


def _without(secret: Secret, lines: Sequence[str]) -> Iterator[str]:
    """The lines with HIDDEN for as much of the secret as stands there. Raises nothing.

    A server may fold what it repeats: where a line ends in the middle of it, all others are gone.
    """
    folded = False
    for line, following in zip(lines, (*lines[1:], ""), strict=True):
        if folded:
            yield HIDDEN
            continue
        shown, at = "", 0
        while (start := line.find(secret.reveal()[:BEGINNING], at)) >= 0:
            shown += line[at:start] + HIDDEN
            pairs = zip(line[start:], secret.reveal(), strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            at = start + same
            folded = at == len(line) and same < len(secret.reveal())
        shown += line[at:]
        for length in range(1, min(BEGINNING, len(secret.reveal()))):
            goes_on = secret.reveal()[length : length + BEGINNING] in following
            if goes_on and shown.endswith(secret.reveal()[:length]):
                shown, folded = shown[:-length] + HIDDEN, True
        yield shown


def _encoded(octets: bytes | None) -> Secret | None:
    """A response as it is sent, in base64. Raises nothing."""
    if octets is None:
        return None
    return Secret(binascii.b2a_base64(octets, newline=False).decode())


def _challenge(reply: Reply) -> bytes:
    """The octets of a 334. Raises SaslError."""
    try:
        if len(reply.lines) == 1:
            return binascii.a2b_base64(reply.lines[0].strip().encode("ascii"), strict_mode=True)
    except ValueError:
        pass
    raise SaslError("malformed challenge from server")


async def _begun(mechanism: Mechanism) -> bytes | None:
    if mechanism.is_slow(None):
        # Of all steps this is the one that may wait for others, such as a KDC that does not answer.
        return await trio.to_thread.run_sync(
            mechanism.begin, abandon_on_cancel=True, limiter=_limiter()
        )
    return mechanism.begin()


def _limiter() -> trio.CapacityLimiter:
    """For threads that may stand still: other work of this run must not wait for them."""
    try:
        return _LIMITER.get()
    except LookupError:
        _LIMITER.set(limiter := trio.CapacityLimiter(BEGINNINGS))
        return limiter


async def _respond(mechanism: Mechanism, challenge: bytes) -> bytes:
    if mechanism.is_slow(challenge):
        return await trio.to_thread.run_sync(mechanism.respond, challenge)
    return mechanism.respond(challenge)


def _failed(session: Session, why: str) -> SiteError:
    """We cannot, or do not want to go on."""
    reason = f"SASL authentication failed; cannot authenticate to server {session.peer}: {why}"
    return SiteError("4.7.0", reason)


def _refused(session: Session, sasl: SaslClient, reply: Reply) -> SiteError:
    """The server said no."""
    session.note_refusal(reply)
    reason = f"SASL authentication failed; server {session.peer} said: {reply.text}"
    return SiteError(_softened(reply.dsn, sasl), reason, reply, session.peer)


def _known(session: Session, sasl: SaslClient, refusal: Refusal) -> SiteError:
    """It said no before."""
    host = session.endpoint.host
    reason = f"SASL [CACHED] authentication failed; server {host} said: {refusal.text}"
    return SiteError(_softened(refusal.dsn, sasl), reason)


def _softened(dsn: str, sasl: SaslClient) -> str:
    """The status to report (smtp_sasl_auth_soft_bounce)."""
    return f"4{dsn[1:]}" if sasl.soft_bounce and dsn.startswith("5") else dsn
