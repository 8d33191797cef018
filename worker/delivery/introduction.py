"""Greeting and EHLO/HELO/LHLO: from an open stream to a session that can take mail.

S036 (order), S040, S041, S056 to S061, S065. STARTTLS and AUTH join here.
"""

from typing import Final

import trio

from protocol import phrases
from protocol.capabilities import Capabilities
from protocol.command import Ehlo, Helo, Lhlo
from protocol.reply import Reply
from protocol.request import Protocol
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
    queue_id: str,
) -> Session:
    """Read the greeting, say who we are, and return the session, which then owns `stream`.

    Raises SessionError (lost, timed out) or SiteError (refused); the stream is closed then.
    """
    session = Session(endpoint, stream, settings)
    try:
        with session.conversation() as talk:
            talk.phase(phrases.GREETING, settings.limits.helo)
            greeting = await talk.reply()
            session.dialogue.receive_greeting(greeting)
            _check_greeting(session, greeting, emit)
            await _introduce(session, talk, greeting, emit, queue_id)
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


async def _introduce(
    session: Session, talk: Conversation, greeting: Reply, emit: Emit, queue_id: str
) -> None:
    settings = session.settings
    name, limit = settings.helo_name, settings.limits.helo
    if settings.protocol is Protocol.LMTP:
        reply = await talk.ask(Lhlo(name), phrases.LHLO, limit)
        _must_accept(session, reply)
        session.capabilities = _capabilities(session, reply, emit, queue_id)
        return
    extended = not settings.never_send_ehlo and (
        settings.always_send_ehlo or "ESMTP" in greeting.text.upper()
    )
    if extended:
        reply = await talk.ask(Ehlo(name), phrases.EHLO, limit)
        if reply.positive:
            session.capabilities = _capabilities(session, reply, emit, queue_id)
            _check_loop(session)
            return
        if reply.code == SERVICE_CLOSING:
            _must_accept(session, reply)
    reply = await talk.ask(Helo(name), phrases.HELO, limit)
    _must_accept(session, reply)


def _must_accept(session: Session, reply: Reply) -> None:
    """A refused introduction: hard only if the server says 5xx (as in Postfix)."""
    if reply.positive:
        return
    if reply.code == SERVICE_CLOSING:
        session.unwanted = True
    dsn = reply.dsn if reply.permanent else f"4{reply.dsn[1:]}"
    raise SiteError(dsn, phrases.refused_to_talk(session.peer, reply), reply, session.peer)


def _capabilities(session: Session, reply: Reply, emit: Emit, queue_id: str) -> Capabilities:
    discard = session.settings.discard_keywords
    capabilities = Capabilities.from_reply(reply, discard)
    if capabilities.discarded and SILENT_DISCARD not in discard:
        emit(EhloKeywordsDiscarded(queue_id, capabilities.discarded))
    return capabilities


def _check_loop(session: Session) -> None:
    """A server that introduces itself with our own name is ourselves (S019).

    Only on the mail port: behind another port the same host may well run another server.
    """
    name = session.capabilities.greeting_name.lower()
    if session.endpoint.port == SMTP_PORT and name == session.settings.hostname.lower():
        raise SiteError("5.4.6", f"mail for {session.endpoint.host} loops back to myself")
