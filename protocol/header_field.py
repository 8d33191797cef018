"""Header fields: their names, and the values of the two that say how a MIME body is built.

A field is here as `Name: value` with LF between its lines, without the last line end. Reading is
lenient, as in Postfix: who hides a part behind a broken header must not hide it from the checks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

# A field's name, and the white space that RFC 5322 section 4.5 tolerates before the colon.
FIELD_NAME: Final = re.compile(rb"([!-9;-~]+)[ \t]*:")

# Fields whose addresses are rewritten on the way out: those of RFC 5322, and what came before.
_SENDERS: Final = (
    *(b"disposition-notification-to", b"errors-to", b"from", b"mail-followup-to", b"reply-to"),
    *(b"resent-from", b"resent-sender", b"return-path", b"return-receipt-to", b"sender"),
)
_RECIPIENTS: Final = (
    *(b"apparently-to", b"bcc", b"cc", b"resent-bcc", b"resent-cc", b"resent-reply-to"),
    *(b"resent-to", b"to"),
)
_ADDRESSES: Final = frozenset((*_SENDERS, *_RECIPIENTS))
# RFC 2045 section 3, RFC 2183.
_MIME: Final = frozenset(
    (
        *(b"content-description", b"content-disposition", b"content-id"),
        *(b"content-transfer-encoding", b"content-type", b"mime-version"),
    )
)

_SKIPPED: Final = re.compile(r"[ \t\r\n]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?\Z)', re.DOTALL)
# Neither white space nor control nor tspecials (RFC 2045 section 5.1).
_WORD: Final = re.compile(r'[^\x00- \x7f()<>@,;:\\"/\[\]?=]+')
# Nor specials (RFC 822 section 3.3), by which Postfix reads the encoding: "8bit." is one, and
# "8bit/x" is none.
_ATOM: Final = re.compile(r'[^\x00- \x7f()<>@,;:\\".\[\]]+')
_IN_COMMENT: Final = re.compile(r"[()]|\\.", re.DOTALL)
_FOLD: Final = re.compile(r"[ \t\r\n]*\n")


def holds_addresses(name: bytes) -> bool:
    """Whether the field of this name is a list of senders or recipients."""
    return name.lower() in _ADDRESSES


def is_mime(name: bytes) -> bool:
    """Whether the field of this name is about a MIME body."""
    return name.lower() in _MIME


class Domain(Enum):
    """What octets a body holds (RFC 2045 section 6.2), whatever encodes them."""

    SEVEN_BIT = "7bit"
    EIGHT_BIT = "8bit"
    BINARY = "binary"


_DOMAINS: Final = {
    **{domain.value: domain for domain in Domain},
    "base64": Domain.SEVEN_BIT,
    "quoted-printable": Domain.SEVEN_BIT,
}


def transfer_domain(value: bytes) -> Domain | None:
    """The domain that Content-Transfer-Encoding tells; None: it says nothing that is known."""
    for kind, text in _tokens(value.decode("latin-1"), _ATOM):
        return _DOMAINS.get(text.lower()) if kind is _Kind.WORD else None
    return None


@dataclass(frozen=True, slots=True)
class ContentType:
    """Type and subtype in lower case, empty where there are none; every boundary parameter.

    More than one is illegal: each of them may be the one that a reader goes by.
    """

    main: str
    sub: str
    boundaries: tuple[bytes, ...] = ()


def content_type(value: bytes) -> ContentType:
    """What Content-Type tells; the parameters are read for multipart alone."""
    items = _items(value.decode("latin-1"))
    first = next(items, [])
    if not first:
        return ContentType("text", "plain")  # what a body is that nothing is said of
    main = first[0][1].lower() if first and first[0][0] is _Kind.WORD else ""
    sub = ""
    if len(first) == 3 and first[1] == (_Kind.SPECIAL, "/") and first[2][0] is _Kind.WORD:
        sub = first[2][1].lower()
    if main != "multipart":
        return ContentType(main, sub)
    return ContentType(
        main,
        sub,
        tuple(
            item[2][1].encode("latin-1")
            for item in items
            if len(item) == 3
            and item[0][0] is _Kind.WORD
            and item[0][1].lower() == "boundary"
            and item[1] == (_Kind.SPECIAL, "=")
        ),
    )


class _Kind(Enum):
    WORD = "word"
    QUOTED = "quoted"
    SPECIAL = "special"


_Token = tuple[_Kind, str]


def _items(value: str) -> Iterator[list[_Token]]:
    """The first three tokens of each item between semicolons."""
    item: list[_Token] = []
    for token in _tokens(value):
        if token == (_Kind.SPECIAL, ";"):
            yield item
            item = []
        elif len(item) < 3:
            item.append(token)
    yield item


def _tokens(value: str, word: re.Pattern[str] = _WORD) -> Iterator[_Token]:
    """The tokens of a structured field, without comments and white space."""
    at = 0
    while at < len(value):
        if match := _SKIPPED.match(value, at):
            pass
        elif match := word.match(value, at):
            yield _Kind.WORD, match[0]
        elif match := _QUOTED.match(value, at):
            # A fold goes with the white space before it; what follows belongs to the value.
            text = _FOLD.sub("", match[1])
            yield _Kind.QUOTED, re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
        elif value[at : at + 1] == "(":
            at = comment_end(value, at)
            continue
        else:
            yield _Kind.SPECIAL, value[at : at + 1]
            at += 1
            continue
        at = match.end()


def comment_end(text: str, start: int) -> int:
    """Where the comment that begins at `start` ends; comments nest. Unclosed: the end."""
    depth, at = 0, start
    while match := _IN_COMMENT.search(text, at):
        at = match.end()
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return at
    return len(text)
