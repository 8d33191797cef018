"""Greeting and EHLO/HELO/LHLO: from an open stream to a session that can take mail.

S036 (order), S040, S041, S056 to S061, S065. STARTTLS and AUTH join here.
"""

from typing import Final

import trio

from protocol import phrases
from protocol.capabilities import Capabilities
from protocol.command import Ehlo, Helo, Lhlo
from protocol.reply import Reply
from protocol.request import DeliveryRequest, Protocol
from worker.config.tables import TableError
from worker.delivery.session import Conversation, Session
from worker.delivery.settings import DeliverySettings
from worker.errors import SiteError
from worker.network.address import Endpoint
from worker.status.events import EhloKeywordsDiscarded, Emit, Warned

SERVICE_CLOSING: Final = 421  # RFC 5321 section 3.8: whatever was asked, the session is over
SILENT_DISCARD: Final = "silent-discard"
SMTP_PORT: Final = 25


async def introduce(
    endpoint: Endpoint,
    stream: trio.abc.Stream,
    settings: DeliverySettings,
    emit: Emit,
    request: DeliveryRequest,
) -> Session:
    """Read the greeting, say who we are, and return the session, which then owns `stream`.

    `request`: the one that the session is opened for, named in events and reasons. Raises
    SessionError (lost, timed out) or SiteError (refused); the stream is closed then.
    """
    session = Session(endpoint, stream, settings)
    try:
        with session.conversation() as talk:
            talk.phase(phrases.GREETING, settings.limits.helo)
            greeting = await talk.reply()
            session.dialogue.receive_greeting(greeting)
            _check_greeting(session, greeting, emit)
            discard = await _unwanted_keywords(endpoint, settings)
            reply = await _introduce(session, talk, greeting)
        if reply is not None:
            session.capabilities = Capabilities.from_reply(reply, discard)
            dropped = session.capabilities.discarded
            if dropped and SILENT_DISCARD not in discard:
                emit(EhloKeywordsDiscarded(request.queue_id, dropped, request.protocol.value))
            _check_loop(session, request.nexthop)
    except SiteError:
        await _leave(session)
        raise
    except BaseException:
        await session.aclose()
        raise
    return session


async def _leave(session: Session) -> None:
    """The server is not for us: say QUIT, but wait for nothing."""
    with trio.move_on_after(1.0, shield=True):
        await session.quit()
    await session.aclose()


def _check_greeting(session: Session, greeting: Reply, emit: Emit) -> None:
    if greeting.positive:
        name = greeting.lines[0].split(maxsplit=1)[:1]
        if [word.lower() for word in name] == [session.settings.hostname.lower()]:
            emit(Warned(f"host {session.peer} greeted me with my own hostname {name[0]}"))
        return
    # A 5xx greeting says that this host takes no mail, not that nobody does (S040). A 4xx one
    # always moves on to the next host (S041).
    dsn = greeting.dsn
    if not (greeting.permanent and not session.settings.skip_5xx_greeting):
        dsn = f"4{dsn[1:]}"
    raise SiteError(dsn, phrases.refused_to_talk(session.peer, greeting), greeting, session.peer)


async def _introduce(session: Session, talk: Conversation, greeting: Reply) -> Reply | None:
    """Say who we are; the reply that lists extensions, None after HELO. Raises SiteError."""
    settings = session.settings
    name, limit = settings.helo_name, settings.limits.helo
    if settings.protocol is Protocol.LMTP:
        reply = await talk.ask(Lhlo(name), phrases.LHLO, limit)
        _must_accept(session, reply)
        return reply
    extended = not settings.never_send_ehlo and (
        settings.always_send_ehlo or "ESMTP" in greeting.text.upper().split()
    )
    if extended:
        reply = await talk.ask(Ehlo(name), phrases.EHLO, limit)
        if reply.positive:
            return reply
        if reply.code == SERVICE_CLOSING:
            _must_accept(session, reply)
    _must_accept(session, await talk.ask(Helo(name), phrases.HELO, limit))
    return None


def _must_accept(session: Session, reply: Reply) -> None:
    """A refused introduction: hard only if the server says 5xx (as in Postfix)."""
    if reply.positive:
        return
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
        reason = f"local data error while talking to {endpoint.name_and_address}: {exc}"
        raise SiteError("4.3.0", reason) from exc
    if listed is None:
        return settings.discard_keywords
    return tuple(listed.lower().replace(",", " ").split())


def _check_loop(session: Session, nexthop: str) -> None:
    """A server that introduces itself with our own name is ourselves (S019).

    Only on the mail port: behind another port the same host may well run another server.
    """
    name = session.capabilities.greeting_name.lower()
    if session.endpoint.port == SMTP_PORT and name == session.settings.hostname.lower():
        raise SiteError("5.4.6", f"mail for {nexthop} loops back to myself")
