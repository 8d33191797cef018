"""Replies: what a server says, split from its byte stream (RFC 5321 section 4.2).

Answers for lines, limits and enhanced status codes; not for which command a reply belongs to
(`dialogue.py`). Start at `ReplyParser.next_event`.
"""

import re
from collections import deque
from enum import Enum
from functools import lru_cache
from typing import Final, Literal

from protocol.errors import RemoteProtocolError
from protocol.value import value

LINE_LIMIT: Final = 2048  # octets of one line that are kept; the rest is dropped (S039)
MAX_REPLY_SIZE: Final = 65_536  # octets of one reply, all lines, before the peer counts as endless

# RFC 3463 section 2, with leading zeros tolerated.
_ENHANCED = re.compile(r" *([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
# The usual reply: one line of plain text, no longer than LINE_LIMIT. A code of 200 to 599.
_PLAIN_REPLY = re.compile(rb"([2-5][0-9][0-9]) ([ -~]{0,2000})\r?\n")
# Lines whose replies are remembered: servers say the same few things, thrice for every message.
_REMEMBERED: Final = 256
_REMEMBERED_LIMIT: Final = 200  # octets of a line that is worth it


class NeedData(Enum):
    """The type of NEED_DATA: an Enum of one member, so that `is NEED_DATA` narrows a type."""

    NEED_DATA = "need data"


NEED_DATA: Final[Literal[NeedData.NEED_DATA]] = NeedData.NEED_DATA


@value()
class Reply:
    """One reply of one or more lines.

    `lines`: at least one line in replies from the parser; the text after the reply code and its
    separator, printable characters only. `well_formed` is False if a line was no reply line, if
    the codes of the lines differ, or if the code is none of RFC 5321's: such a session must not
    be used again. `enhanced`: the enhanced status code of the last line, as the server wrote it.
    """

    code: int  # 200..599 when well formed, else any three digits
    lines: tuple[str, ...]
    well_formed: bool = True
    enhanced: str | None = None

    @property
    def text(self) -> str:
        """The whole reply on one line, code first: "550 5.1.1 no such user"."""
        if len(self.lines) == 1 and self.lines[0]:
            return f"{self.code:03} {self.lines[0]}"  # most of them
        return " ".join([f"{self.code:03}", *filter(None, self.lines)])

    @property
    def dsn(self) -> str:
        """Enhanced status code to report (RFC 2034, RFC 3463).

        The server's own if its class is that of the reply code, else "X.0.0". Replies that are
        neither 2xx, 4xx nor 5xx have no class in RFC 3463: "4.5.0", a protocol error worth
        another try.
        """
        reply_class = self.code // 100
        if reply_class not in (2, 4, 5):
            return "4.5.0"
        if self.enhanced is not None and self.enhanced[0] == str(reply_class):
            return self.enhanced
        return f"{reply_class}.0.0"

    @property
    def positive(self) -> bool:
        """2xx: done."""
        return 200 <= self.code <= 299

    @property
    def intermediate(self) -> bool:
        """3xx: go on (354 after DATA)."""
        return 300 <= self.code <= 399

    @property
    def transient(self) -> bool:
        """4xx: try again later."""
        return 400 <= self.code <= 499

    @property
    def permanent(self) -> bool:
        """5xx: never."""
        return 500 <= self.code <= 599


def printable(octets: bytes | bytearray) -> str:
    """`octets` as UTF-8 text; what is invalid or not printable becomes `?`, one per character."""
    text = octets.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else "?" for char in text])


class ReplyParser:
    """Splits a server's byte stream into replies. Does no I/O.

    Memory is bounded by `max_size` and by what is received at one time. `ready`: replies that
    next_event() will return next, for who wants to look at them before; not all of them may be
    there yet.
    """

    def __init__(self, max_size: int = MAX_REPLY_SIZE) -> None:
        self._max_size = max_size  # octets, all lines of one reply
        self.ready: deque[Reply] = deque()
        self._buffer = b""  # what is behind them
        self._start = 0  # of the first line not yet taken
        self._searched = 0  # no line end between _start and here
        self._size = 0  # octets of the lines taken for the reply under way
        self._code = b""  # of the lines so far
        self._lines: list[str] = []
        self._well_formed = True

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take what the peer sent, cut anywhere. End of file is the caller's to notice."""
        if self._start == len(self._buffer):
            self._buffer = bytes(data)
            self._searched = 0
        else:
            self._buffer = self._buffer[self._start :] + data
            self._searched -= self._start
        self._start = 0
        if not self._size:
            self._take_plain()

    def _take_plain(self) -> None:
        """Have the usual replies ready: next_event() takes twice as long for each of them."""
        buffer = self._buffer
        while end := buffer.find(b"\n", self._searched) + 1:
            reply = _plain_reply(buffer[self._start : end])
            if reply is None or end - self._start > self._max_size:
                return
            self.ready.append(reply)
            self._start = self._searched = end

    def next_event(self) -> Reply | NeedData:
        """Return the next reply, or NEED_DATA.

        Raises RemoteProtocolError, now and at every later call, if a reply exceeds `max_size`.
        """
        if self.ready:
            return self.ready.popleft()
        buffer = self._buffer
        while (end := buffer.find(b"\n", self._searched)) >= 0:
            start = self._start
            size = self._size + end + 1 - start
            if size > self._max_size:
                raise self._endless()
            line = buffer[start : min(end, start + LINE_LIMIT)]
            if end - start <= LINE_LIMIT:
                line = line.removesuffix(b"\r")
            self._start = self._searched = end + 1
            self._size = size
            if self._take_line(line):
                reply = self._take_reply()
                self._take_plain()
                return reply
        self._searched = len(buffer)
        if self._size + self._searched - self._start > self._max_size:
            raise self._endless()
        return NEED_DATA

    @property
    def unread(self) -> bool:
        """Something was received that is not part of a reply returned by next_event().

        That there is nothing is the precondition for reusing a session and for starting TLS:
        anything else was said before it was asked for.
        """
        return bool(self.ready) or self.unparsed

    @property
    def unparsed(self) -> bool:
        """Something was received that is not part of a reply that was returned or is ready."""
        return self._size + len(self._buffer) > self._start

    def _take_line(self, line: bytes) -> bool:
        """Keep one line without its line end; True if it is the last of its reply."""
        code, separator = line[:3], line[3:4]
        if len(code) != 3 or not code.isdigit() or (separator and separator not in b" -"):
            # Garbage is kept, not fatal, as in Postfix: the text may explain what is wrong.
            self._lines.append(printable(line))
            self._well_formed = False
            return False
        if self._code and code != self._code:
            self._well_formed = False  # RFC 5321 section 4.2.1; perhaps two replies in one
        self._code = code  # the last line's code counts
        self._lines.append(printable(line[4:]))
        return separator != b"-"

    def _take_reply(self) -> Reply:
        code, lines = int(self._code), tuple(self._lines)
        match = _ENHANCED.match(lines[-1])
        well_formed = self._well_formed and 200 <= code <= 599
        self._size = 0
        self._code = b""
        self._lines.clear()
        self._well_formed = True
        return Reply(code, lines, well_formed, match[1] if match else None)

    def _endless(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"reply is longer than {self._max_size} octets")


def _plain_reply(line: bytes) -> Reply | None:
    """The reply that is this one line, with its line end; None: it needs a closer look."""
    return _remembered_reply(line) if len(line) <= _REMEMBERED_LIMIT else _read_plain(line)


def _read_plain(line: bytes) -> Reply | None:
    plain = _PLAIN_REPLY.fullmatch(line)
    if plain is None:
        return None
    text = plain[2].decode("ascii")
    match = _ENHANCED.match(text)
    return Reply(int(plain[1]), (text,), enhanced=match[1] if match else None)


_remembered_reply = lru_cache(_REMEMBERED)(_read_plain)
