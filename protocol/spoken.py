"""What was said in a session, as text for people: commands and replies without any secret.

A witness of a dialogue (`dialogue.Witness`) is shown everything; this is what it may write down.
"""

from typing import Final

from protocol.command import Auth, AuthResponse, Command, EndOfData
from protocol.reply import Reply, printable

HIDDEN: Final = "[...]"  # instead of a secret, or of what may repeat one


def command_text(command: Command, wire: bytes) -> str:
    """The line of `command`, whose octets are `wire`; of a log-in only the mechanism."""
    if isinstance(command, Auth):
        return f"AUTH {command.mechanism}" + ("" if command.initial is None else f" {HIDDEN}")
    if isinstance(command, AuthResponse):
        return "*" if command.response is None else HIDDEN
    if isinstance(command, EndOfData):
        return "."  # its octets are the content's end
    return printable(wire.removesuffix(b"\r\n"))


def reply_lines(command: Command | None, reply: Reply) -> list[str]:
    """The lines of `reply` to `command`, code first, at least one.

    Of the replies to a log-in only code and status: a challenge helps to find out a password, and
    there are servers that repeat what they do not understand.
    """
    if isinstance(command, (Auth, AuthResponse)):
        status = f" {reply.enhanced}" if reply.enhanced else ""
        return [f"{reply.code:03}{status} {HIDDEN}"]
    *first, last = reply.lines
    return [*(f"{reply.code:03}-{line}" for line in first), f"{reply.code:03} {last}".rstrip()]
