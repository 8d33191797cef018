"""From an envelope on a command line and a message on standard input to a queue id.

What `send` and `postrio-sendmail` share; how they are told, and what they do to the header, is
theirs.
"""

import os
import pwd
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from protocol.address import with_domain
from protocol.request import Notify, Recipient
from worker.cli.exits import CommandError
from worker.cli.message import HeaderError, Message, header_recipients, send_options
from worker.config.config import Config
from worker.queue.client import submit
from worker.queue.records import Submission
from worker.queue.sqlite import StoreSettings
from worker.queue.store import StoreNotMade, StoreUnusable

MESSAGE_ID_LIMIT: Final = 500  # characters of a Message-ID that the log is told
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def take_recipients(message: Message) -> list[str]:
    """The recipients in the header, which loses its Bcc for that. Raises CommandError."""
    try:
        addresses = header_recipients(message)
    except HeaderError as exc:
        raise CommandError(str(exc), os.EX_DATAERR) from exc
    if not addresses:
        raise CommandError("there is no recipient in the header", os.EX_USAGE)
    message.remove("bcc", "resent-bcc")
    return addresses


def store_settings(config: Config) -> StoreSettings:
    """What a queue is told when it is opened without a queue process."""
    return StoreSettings(
        message_size_limit=config.integer("message_size_limit"),
        queue_minfree=config.integer("queue_minfree"),
    )


def login_name() -> str:
    """The name of the user who runs us; the number where the system has no name for it."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def completed(address: str, config: Config) -> str:
    """An address with `$myorigin` as its domain where it has none; the null address stays."""
    return with_domain(address, config.text("myorigin"))


def recipients_of(
    addresses: Iterable[str], config: Config, notify: Notify
) -> tuple[Recipient, ...]:
    """A recipient for each address, each once, in order."""
    found = dict.fromkeys(completed(address, config) for address in addresses)
    return tuple(Recipient(address=address, notify=notify) for address in found)


def submit_message(config: Config, submission: Submission, message: Message) -> str:
    """Queue a message and return its queue id: it is on disk then.

    Fills in what the header says. Raises SubmissionRefused, StoreError, and
    CommandError for a message that cannot be read, and for a queue that cannot be used: that is the
    queue's trouble, not the message's, and a caller that took it for a refusal would drop the mail.
    """
    requested = None if config.boolean("smtputf8_enable") else False
    submission = replace(
        submission,
        message_id=_CONTROL.sub("?", message.first("message-id"))[:MESSAGE_ID_LIMIT],
        options=send_options(
            (recipient.address for recipient in submission.recipients),
            submission.sender,
            eight_bit_header=message.eight_bit_header,
            requested=requested,
        ),
    )
    directory = Path(config.text("queue_directory"))
    settings = store_settings(config)

    async def run() -> str:
        return await submit(directory, submission, _in_thread(message.blocks()), settings=settings)

    try:
        return trio.run(run)
    except (StoreUnusable, StoreNotMade) as exc:
        raise CommandError(str(exc), os.EX_TEMPFAIL) from exc


async def _in_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The blocks, read in a thread: standard input may keep us waiting, and Ctrl-C must work."""
    while block := await trio.to_thread.run_sync(next, blocks, b"", abandon_on_cancel=True):
        yield block
