"""Postfix's words for what we were doing and for how it failed.

They become the reason in the log, in notices and in the queue, where people and log analysers
expect exactly these (`status=deferred (lost connection with ... while ...)`). `mta` is always
`host[address]`, without port. Each function returns one line.
"""

from typing import Final

from protocol.reply import Reply

# What comes after "while", one phrase for each phase.
GREETING: Final = "receiving the initial server greeting"
EHLO: Final = "performing the EHLO handshake"
HELO: Final = "performing the HELO handshake"
LHLO: Final = "performing the LHLO handshake"
STARTTLS: Final = "receiving the STARTTLS response"
TLS: Final = "performing TLS handshake"
XFORWARD: Final = "sending XFORWARD command"
MAIL: Final = "sending MAIL FROM"
RCPT: Final = "sending RCPT TO"
DATA: Final = "sending DATA command"
CONTENT: Final = "sending message body"
END_OF_DATA: Final = "sending end of data -- message may be sent more than once"
RSET: Final = "sending RSET probe"  # before a session is used again
FINAL_RSET: Final = "sending final RSET"  # to end a transaction that came to nothing
QUIT: Final = "sending QUIT"


def said(mta: str, reply: Reply, in_reply_to: str) -> str:
    """The server refused a command; `in_reply_to` is `Command.phrase`."""
    return f"host {mta} said: {reply.text} (in reply to {in_reply_to})"


def refused_to_talk(mta: str, reply: Reply) -> str:
    """The greeting, or the reply to EHLO and HELO, was no."""
    return f"host {mta} refused to talk to me: {reply.text}"


def lost_connection(mta: str, doing: str) -> str:
    """The peer closed or reset the connection during the phase `doing`."""
    return f"lost connection with {mta} while {doing}"


def timed_out(mta: str, doing: str) -> str:
    """The time limit of the phase `doing` passed."""
    return f"conversation with {mta} timed out while {doing}"


def connect_failed(mta: str, port: int, why: str) -> str:
    """No connection; `why` is the error's text. Port 0: a UNIX socket, which has none."""
    return f"connect to {mta}:{port}: {why}" if port else f"connect to {mta}: {why}"


def size_exceeded(size: int, limit: int, mta: str) -> str:
    """The server announced a smaller limit (RFC 1870); both in octets."""
    return f"message size {size} exceeds size limit {limit} of server {mta}"
