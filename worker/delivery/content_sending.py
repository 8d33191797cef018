"""The content of a message on its way out, up to its last octets; those go with the final dot.

Which way it goes (as it is, with broken lines, changed), and what ends it early: a server that
speaks before the dot, a copy of ours that cannot be read, a table that cannot say what is to become
of a line. The dot itself, and all that follows from it, is the transaction's (`transaction.py`).
"""

from contextlib import aclosing
from typing import Final

from protocol import phrases
from protocol.data import DataEncoder
from protocol.line_length import has_longer_line
from protocol.request import DeliveryRequest
from worker.config.tables import TableError
from worker.content import Content, FileContent, InlineContent
from worker.delivery.content_transform import BrokenLines, ContentTransform, make_transform
from worker.delivery.session import Conversation, Session
from worker.errors import DeliveryError
from worker.status.events import Emit

REASON_LIMIT: Final = 200  # characters


class ContentUnreadable(DeliveryError):
    """Our own copy of the message cannot be read, or a table cannot say what is to become of it:
    nothing is concluded, nobody else is tried.
    """


class SpokenEarly(Exception):
    """The server has said something, or is gone, before the final dot."""


def expect_silence(session: Session) -> None:
    """What the server says before the dot is no answer to it: it must never count as one.

    Raises SpokenEarly.
    """
    if not session.is_silent():
        raise SpokenEarly


async def send_content(
    session: Session, talk: Conversation, request: DeliveryRequest, content: Content, emit: Emit
) -> bytes:
    """Send all of it but the last octets, which are returned with the final dot behind them.

    Raises SpokenEarly, ContentUnreadable, MimeError; no dot may follow then: the server would take
    what there is for the whole message.
    """
    encoder = DataEncoder(vouched=isinstance(content, FileContent))
    settings = session.settings.content
    talk.phase(phrases.CONTENT, session.settings.limits.data_xfer)
    transform = make_transform(settings, request, session.capabilities, emit)
    if transform is not None:
        rest = await _send_changed(session, talk, encoder, content, transform)
        talk.phase(phrases.CONTENT, session.settings.limits.data_xfer)  # tables took their time
        return rest
    if isinstance(content, InlineContent):
        data = content.data
        if settings.line_limit and has_longer_line(data, settings.line_limit):
            lines = BrokenLines(settings, request, emit)
            data = lines.feed(data) + lines.finish()
        return encoder.feed(data) + encoder.finish()
    lines = BrokenLines(settings, request, emit)
    await _send_blocks(session, talk, encoder, content, lines)
    return encoder.feed(lines.finish()) + encoder.finish()


async def _send_changed(
    session: Session,
    talk: Conversation,
    encoder: DataEncoder,
    content: Content,
    transform: ContentTransform,
) -> bytes:
    """As send_content(), of what becomes of the content."""
    talk.pause()  # for tables
    try:
        if isinstance(content, InlineContent):
            first = await transform.feed(content.data)
            return encoder.feed(first + await transform.finish()) + encoder.finish()
        async with aclosing(content.blocks()) as blocks:
            async for block in blocks:
                octets = encoder.feed(await transform.feed(block))
                expect_silence(session)
                talk.phase(phrases.CONTENT, session.settings.limits.data_xfer)  # it took its time
                await talk.send(octets)
                talk.pause()
        return encoder.feed(await transform.finish()) + encoder.finish()
    except TableError as exc:
        raise undecided(exc) from exc
    except OSError as exc:
        raise _unreadable(exc) from exc


async def _send_blocks(
    session: Session,
    talk: Conversation,
    encoder: DataEncoder,
    content: FileContent,
    lines: BrokenLines,
) -> None:
    try:
        async with aclosing(content.blocks()) as blocks:
            async for block in blocks:
                expect_silence(session)
                talk.phase(phrases.CONTENT, session.settings.limits.data_xfer)  # it took its time
                await talk.send(encoder.feed(lines.feed(block)))
    except OSError as exc:
        raise _unreadable(exc) from exc


def _unreadable(error: OSError) -> ContentUnreadable:
    """No dot may follow, the server would accept a truncated message: the session is closed."""
    return ContentUnreadable("4.3.0", f"cannot read the queued message: {error.strerror}")


def undecided(error: TableError) -> ContentUnreadable:
    """In one line: a table may name its key, which is somebody's header field here."""
    text = str(error)[:REASON_LIMIT]
    return ContentUnreadable("4.3.0", "".join(c if c.isprintable() else "?" for c in text))
