"""`postrio send`: put a message on the queue, as it is."""

import os

import click

from worker.cli.exits import CommandError, OutputError
from worker.cli.message import STANDARD_INPUT, open_message, read_message
from worker.cli.options import config_choice, configured
from worker.cli.order import (
    OrderError,
    check_envelope_id,
    parse_notify,
    parse_recipient,
    parse_ret,
    parse_sender,
)
from worker.cli.submitting import (
    completed,
    login_name,
    recipients_of,
    submit_message,
    take_recipients,
)
from worker.queue.records import Submission

EPILOG = """\b
Examples:
  postrio send --sender a@here.example b@there.example < mail.eml
  postrio send -t --message mail.eml
  postrio send --hold --notify success,failure --sender a@here.example b@there.example < mail.eml

\b
The message is not changed, except that -t takes Bcc: out. Prints the queue id:
the message is on disk then.
"""


@click.command(epilog=EPILOG)
@click.argument("recipients", nargs=-1, metavar="[RECIPIENT]...")
@click.option("--sender", "-f", metavar="ADDRESS", help="Default: you at $myorigin; '': none.")
@click.option("-t", "from_header", is_flag=True, help="Recipients also from To, Cc and Bcc.")
@click.option("--message", "-m", default=STANDARD_INPUT, metavar="FILE", help="Default: stdin.")
@click.option("--notify", default="", metavar="WORDS", help="success,failure,delay or never.")
@click.option("--ret", default="", metavar="WORD", help="What a notice returns: full or hdrs.")
@click.option("--envid", default="", metavar="TEXT", help="Envelope id for notices.")
@click.option("--hold", is_flag=True, help="Keep it until 'postrio queue release'.")
@configured
@click.pass_context
def command(
    context: click.Context,
    recipients: tuple[str, ...],
    sender: str | None,
    message: str,
    notify: str,
    ret: str,
    envid: str,
    *,
    from_header: bool,
    hold: bool,
) -> int:
    """Put a message on the queue and print its queue id."""
    if not recipients and not from_header:
        raise click.UsageError("no recipient was given, and no -t")
    config = config_choice(context).load_without_tables()
    try:
        wanted = [parse_recipient(text) for text in recipients]
        reverse_path = login_name() if sender is None else parse_sender(sender)
        envelope_id = check_envelope_id(envid, "--envid")
        returned = parse_ret(ret, "--ret")
        notification = parse_notify(notify, "--notify")
    except OrderError as exc:
        raise click.UsageError(str(exc), context) from exc
    with open_message(message) as file:
        content = read_message(file)
        if from_header:
            wanted += take_recipients(content)
        submission = Submission(
            sender=completed(reverse_path, config),
            recipients=recipients_of(wanted, config, notification),
            envelope_id=envelope_id,
            ret=returned,
            held=hold,
        )
        queue_id = submit_message(config, submission, content)
    try:
        click.echo(queue_id)
    except OutputError as exc:  # nobody must think that it has to be sent again
        raise CommandError(f"{exc}; the message is queued as {queue_id}", exc.status) from exc
    return os.EX_OK
