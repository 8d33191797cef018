"""`postrio queue`: look at the queue, and change what is in it."""

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Final, TypeVar

import click
import trio

from worker.cli.exits import CommandError
from worker.cli.options import config_choice, configured
from worker.cli.submitting import store_settings
from worker.queue.client import QueueCommands, open_queue
from worker.queue.records import MessageState, MessageSummary
from worker.queue.schema import DATABASE
from worker.status.log import JsonValue, escape

ALL: Final = "ALL"
PAGE: Final = 1000  # messages asked for at a time
EPILOG = """\b
Examples:
  postrio queue list
  postrio queue list --json | jq -r .queue_id
  postrio queue flush --domain example.com
  postrio queue hold ALL
"""

_Result = TypeVar("_Result")
_Change = Callable[[QueueCommands, Collection[str] | None], Awaitable[list[str]]]
_MARKS: Final = {MessageState.ACTIVE: "*", MessageState.HOLD: "!"}


@click.group(epilog=EPILOG)
@configured
def command() -> None:
    """Look at the queue, and change what is in it.

    A QUEUE ID is what 'postrio send' printed and the log shows; ALL means every message.
    """


@command.command("list")
@click.argument("queue_ids", nargs=-1, metavar="[QUEUE ID]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each message.")
@configured
@click.pass_context
def list_messages(context: click.Context, queue_ids: tuple[str, ...], *, as_json: bool) -> int:
    """List messages as mailq does: * is being delivered, ! is on hold."""

    async def run(commands: QueueCommands) -> int:
        count = octets = 0
        missing = dict.fromkeys(queue_ids)
        async for message in _messages(commands, queue_ids or None):
            missing.pop(message.queue_id, None)
            if as_json:
                click.echo(json.dumps(message_json(message)))
                continue
            if not count:
                click.echo(HEADING)
            count += 1
            octets += message.size
            click.echo(message_text(message))
        if not as_json and (count or not queue_ids):  # of a queue that has others
            click.echo(total_text(count, octets))
        _complain_of(list(missing))
        return os.EX_OK

    return _with_queue(context, run)


@command.command()
@click.argument("queue_ids", nargs=-1, required=True, metavar="QUEUE ID...")
@click.option("--envelope", "part", flag_value="envelope", help="Only the envelope.")
@click.option("--content", "part", flag_value="content", help="Only the content, as it is.")
@configured
@click.pass_context
def show(context: click.Context, queue_ids: tuple[str, ...], part: str | None) -> int:
    """Show messages: the envelope, an empty line, the content as it is stored."""

    async def run(commands: QueueCommands) -> int:
        for queue_id in queue_ids:
            found = await commands.summaries([queue_id])
            if not found:
                raise CommandError(f"{queue_id}: no such message in the queue", os.EX_NOINPUT)
            if part != "content":
                click.echo(envelope_text(found[0]))
            if part is None:
                click.echo()
            if part != "envelope":
                sys.stdout.flush()
                # The message may have been delivered since the envelope was read.
                if not await commands.write_content(queue_id, sys.stdout.buffer.write):
                    raise CommandError(f"{queue_id}: left the queue just now", os.EX_NOINPUT)
        return os.EX_OK

    return _with_queue(context, run)


@command.command()
@click.argument("queue_ids", nargs=-1, required=True, metavar="QUEUE ID... | ALL")
@configured
@click.pass_context
def hold(context: click.Context, queue_ids: tuple[str, ...]) -> int:
    """Stop delivering these messages until they are released."""
    return _change(context, queue_ids, "put on hold", lambda queue, ids: queue.hold(ids))


@command.command()
@click.argument("queue_ids", nargs=-1, required=True, metavar="QUEUE ID... | ALL")
@configured
@click.pass_context
def release(context: click.Context, queue_ids: tuple[str, ...]) -> int:
    """Take messages off hold; they are delivered at once."""
    return _change(context, queue_ids, "released", lambda queue, ids: queue.release(ids))


@command.command()
@click.argument("queue_ids", nargs=-1, required=True, metavar="QUEUE ID... | ALL")
@configured
@click.pass_context
def requeue(context: click.Context, queue_ids: tuple[str, ...]) -> int:
    """Start over: routing is decided anew, and earlier attempts are forgotten."""
    return _change(context, queue_ids, "requeued", lambda queue, ids: queue.requeue(ids))


@command.command()
@click.argument("queue_ids", nargs=-1, required=True, metavar="QUEUE ID... | ALL")
@configured
@click.pass_context
def delete(context: click.Context, queue_ids: tuple[str, ...]) -> int:
    """Remove messages. Nobody is told, and nothing brings them back."""
    return _change(context, queue_ids, "deleted", lambda queue, ids: queue.delete(ids))


@command.command()
@click.argument("queue_ids", nargs=-1, metavar="[QUEUE ID]...")
@click.option("--domain", default="", metavar="DOMAIN", help="Mail for recipients there.")
@configured
@click.pass_context
def flush(context: click.Context, queue_ids: tuple[str, ...], domain: str) -> int:
    """Try deferred messages now instead of later: all, these, or those for a domain."""
    if domain and queue_ids:
        raise click.UsageError("--domain and queue ids exclude each other")
    return _change(
        context,
        queue_ids or (ALL,),
        "to be tried now",
        lambda queue, ids: queue.flush(ids, domain=domain),
    )


# --- what is printed ---------------------------------------------------------------------------

HEADING: Final = "----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------"
_INDENT: Final = " " * 47


def message_text(message: MessageSummary) -> str:
    """One message in mailq's form, ended by an empty line.

    Recipients with the same reason stand together after it, those not tried yet at the end.
    """
    mark = _MARKS.get(message.state, " ")
    arrival = time.strftime("%a %b %d %H:%M:%S", time.localtime(message.arrival))
    sender = escape(message.sender) or "MAILER-DAEMON"
    lines = [f"{message.queue_id + mark:<17} {message.size:8} {arrival}  {sender}"]
    reasons: dict[str, list[str]] = {}
    for recipient in message.recipients:
        reasons.setdefault(recipient.reason, []).append(escape(recipient.address))
    for reason, addresses in sorted(reasons.items(), key=lambda item: not item[0]):
        if reason:
            lines.append(f"({escape(reason)})".rjust(78))
        lines += (_INDENT + address for address in addresses)
    if left_out := message.recipient_count - len(message.recipients):
        lines.append(f"{_INDENT}and {left_out} more")
    return "\n".join([*lines, ""])


def total_text(count: int, octets: int) -> str:
    """The last line of a list, as mailq's."""
    if not count:
        return "Mail queue is empty"
    noun = "Request" if count == 1 else "Requests"
    return f"-- {octets // 1024} Kbytes in {count} {noun}."


def message_json(message: MessageSummary) -> dict[str, JsonValue]:
    """One message for programs. Times are seconds since the epoch; a reason may be empty."""
    return {
        "queue_id": message.queue_id,
        "queue_name": message.state.value,
        "arrival_time": message.arrival,
        "message_size": message.size,
        "sender": message.sender,
        "next_attempt": message.next_attempt,
        "recipients": [
            {
                "address": recipient.address,
                "delay_reason": recipient.reason,
                "in_doubt": recipient.in_doubt,
            }
            for recipient in message.recipients
        ],
        "recipient_count": max(message.recipient_count, len(message.recipients)),
    }


def envelope_text(message: MessageSummary) -> str:
    """The envelope for people: a line for each fact and for each recipient."""
    lines = [
        f"queue_id: {message.queue_id}",
        f"state: {message.state.value}",
        f"sender: {escape(message.sender)}",
        f"arrival: {_iso(message.arrival)}",
        f"size: {message.size}",
    ]
    if message.next_attempt is not None:
        lines.append(f"next_attempt: {_iso(message.next_attempt)}")
    for recipient in message.recipients:
        reason = f" ({escape(recipient.reason)})" if recipient.reason else ""
        doubt = " in doubt: it may have been delivered" if recipient.in_doubt else ""
        lines.append(f"recipient: {escape(recipient.address)}{reason}{doubt}")
    return "\n".join(lines)


def _iso(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(when))


# --- the queue ---------------------------------------------------------------------------------


def _with_queue(
    context: click.Context, run: Callable[[QueueCommands], Awaitable[_Result]]
) -> _Result:
    config = config_choice(context).load_without_tables()
    directory = Path(config.text("queue_directory"))
    settings = store_settings(config)
    try:
        (directory / DATABASE).stat()
    except (FileNotFoundError, NotADirectoryError):  # looking at a queue must not make one
        raise CommandError(f"there is no queue in {directory}", os.EX_NOINPUT) from None
    except OSError as exc:
        raise CommandError(f"queue_directory {directory}: {exc.strerror}", os.EX_NOPERM) from exc

    async def opened() -> _Result:
        async with open_queue(directory, settings=settings) as commands:
            return await run(commands)

    return trio.run(opened)


async def _messages(
    commands: QueueCommands, queue_ids: Collection[str] | None
) -> AsyncIterator[MessageSummary]:
    """The messages, a page at a time: a queue may be larger than memory."""
    after = ""
    while page := await commands.summaries(queue_ids, after=after, limit=PAGE):
        for message in page:
            yield message
        after = page[-1].queue_id


def _change(context: click.Context, queue_ids: Sequence[str], done: str, change: _Change) -> int:
    """Do it, say to how many messages, and complain of ids that no message has."""
    if ALL in queue_ids and len(queue_ids) > 1:
        raise click.UsageError("ALL stands alone")
    wanted = None if ALL in queue_ids else queue_ids

    async def run(commands: QueueCommands) -> tuple[list[str], list[str]]:
        changed = await change(commands, wanted)
        if wanted is None:
            return changed, []
        rest = [queue_id for queue_id in wanted if queue_id not in changed]
        there = {item.queue_id for item in await commands.summaries(rest)} if rest else set()
        return changed, [queue_id for queue_id in rest if queue_id not in there]

    changed, missing = _with_queue(context, run)
    noun = "message" if len(changed) == 1 else "messages"
    click.echo(f"{len(changed)} {noun} {done}")
    _complain_of(missing)
    return os.EX_OK


def _complain_of(missing: Sequence[str]) -> None:
    """Raises CommandError for queue ids that no message has, if there are any."""
    if missing:
        text = "\n".join(f"{queue_id}: no such message in the queue" for queue_id in missing)
        raise CommandError(text, os.EX_NOINPUT)
