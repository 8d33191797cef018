"""What was said in a session, as text for people: commands and replies without any secret.

A witness of a dialogue (`dialogue.Witness`) is shown everything; this is what it may write down.
"""

from collections.abc import Sequence
from typing import Final

from protocol.command import Auth, AuthResponse, Command, EndOfData
from protocol.reply import Reply, printable
from protocol.sasl.secret import Secret

HIDDEN: Final = "[...]"  # instead of a secret, or of what may repeat one
SHORTEST: Final = 4  # characters of a secret that is looked for in replies
# Of a longer one as many from its beginning are: what a server repeats may be cut anywhere.
BEGINNING: Final = 8


def command_text(command: Command, wire: bytes) -> str:
    """The line of `command`, whose octets are `wire`; of a log-in only the mechanism."""
    if isinstance(command, Auth):
        return f"AUTH {command.mechanism}" + ("" if command.initial is None else f" {HIDDEN}")
    if isinstance(command, AuthResponse):
        return "*" if command.response is None else HIDDEN
    if isinstance(command, EndOfData):
        return "."  # its octets are the content's end
    return printable(wire.removesuffix(b"\r\n"))


def response_of(command: Command) -> Secret | None:
    """What `command` says to prove who we are; replies may repeat it."""
    if isinstance(command, Auth):
        return command.initial
    return command.response if isinstance(command, AuthResponse) else None


def reply_lines(command: Command | None, reply: Reply, secrets: Sequence[Secret] = ()) -> list[str]:
    """The lines of `reply` to `command`, code first, at least one, without `secrets`.

    Of the replies to a log-in only code and status: a challenge helps to find out a password, and
    there are servers that repeat what they do not understand.
    """
    if isinstance(command, (Auth, AuthResponse)):
        status = f" {reply.enhanced}" if reply.enhanced else ""
        return [f"{reply.code:03}{status} {HIDDEN}"]
    *first, last = without_secrets(reply.lines, secrets)
    return [*(f"{reply.code:03}-{line}" for line in first), f"{reply.code:03} {last}".rstrip()]


def without_secrets(
    lines: Sequence[str], secrets: Sequence[Secret], hidden: str = HIDDEN
) -> list[str]:
    """The lines of a reply, `hidden` for each from the first on that has a secret of ours in it.

    A server that repeats one may fold it: the lines behind may go on with it.
    """
    for number, line in enumerate(lines):
        if any(
            len(secret.reveal()) >= SHORTEST and secret.reveal()[:BEGINNING] in line
            for secret in secrets
        ):
            return [*lines[:number], *[hidden] * (len(lines) - number)]
    return list(lines)
