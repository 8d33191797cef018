"""The addresses in a header field, and their replacement (RFC 5322 section 3.4), in place.

What is no address stays as it was written: display names, comments, groups, folds. Postfix writes
the whole field anew; to change less is kinder to what we do not understand.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.address import quote
from protocol.header_field import comment_end

_SPACE: Final = re.compile(r"[ \t\r\n]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LITERAL: Final = re.compile(r"\[(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ATOM: Final = re.compile(r'(?:[^ \t\r\n()<>@,;:\\".\[\]]|\\.)+', re.DOTALL)
_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BESIDE: Final = " \t\r\n<>(),;:"  # what ends a word
_WORDS: Final = ("word", "literal")


@dataclass(frozen=True, slots=True)
class FieldAddress:
    """An address and where it stands: `text[start:end]`. Internal form, see `address.py`."""

    address: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "word", "literal", "comment", or the special character
    text: str  # of a word: unquoted
    start: int
    end: int


def find_addresses(text: str) -> list[FieldAddress]:
    """The addresses of a field's value, in order. Never fails: there may be none."""
    return [found for item in _items(text) for found in _of_item(item)]


def replace_addresses(text: str, new: Mapping[str, str]) -> str:
    """The value with each address that `new` has replaced by its entry; both in internal form."""
    pieces, at = [], 0
    for found in find_addresses(text):
        other = new.get(found.address)
        if other is None:
            continue
        # Quotation marks that go may have been all that kept this word and the next one apart.
        pieces += [text[at : found.start], _gap(text[found.start - 1 : found.start]), quote(other)]
        # A comment in the middle of an address is kept behind it.
        inside = _tokens(text[found.start : found.end])
        pieces += (f" {token.text}" for token in inside if token.kind == "comment")
        pieces.append(_gap(text[found.end : found.end + 1]))
        at = found.end
    return "".join(pieces) + text[at:] if pieces else text


def _gap(neighbour: str) -> str:
    """What has to stand between a word and the character beside it, which may be none."""
    return "" if not neighbour or neighbour in _BESIDE else " "


def _items(text: str) -> Iterator[list[_Token]]:
    """The tokens between commas, and what else separates addresses outside of angle brackets."""
    item: list[_Token] = []
    inside = False
    for token in _tokens(text):
        if token.kind == "comment":
            continue
        if token.kind in (",", ";", ":") and not inside:
            if token.kind != ":":  # what it ends is the name of a group
                yield item
            item = []
            continue
        inside = token.kind == "<" or (inside and token.kind != ">")
        item.append(token)
    yield item


def _of_item(item: list[_Token]) -> Iterator[FieldAddress]:
    """What stands in angle brackets; without those, everything."""
    begin, bracketed = 0, False
    for at, token in enumerate(item):
        if token.kind == "<":
            begin, bracketed = at + 1, True
        elif token.kind == ":":  # the end of a source route (RFC 5322 section 4.4)
            begin = at + 1
        elif token.kind == ">" and bracketed:
            found = list(_of_words(item[begin:at]))
            if len(found) == 1:
                yield found[0]
            begin = at + 1
    if not bracketed:
        yield from _of_words(item)


def _of_words(tokens: list[_Token]) -> Iterator[FieldAddress]:
    """Addresses without brackets; between words that no dot joins a comma was forgotten."""
    run: list[_Token] = []
    for token in tokens:
        if run and run[-1].kind in _WORDS and token.kind in _WORDS:
            yield from _address(run)
            run = []
        run.append(token)
    yield from _address(run)


def _address(run: list[_Token]) -> Iterator[FieldAddress]:
    """One address, if it is one.

    Dots in a local part may stand anywhere: "a.@x" and "a..b@x" are illegal, but in use, and would
    leave as they are. A text without a domain is more often a name than such an address.
    """
    kinds = [token.kind for token in run]
    text = "".join(token.text for token in run)
    if not text or _CONTROL.search(text) or kinds.count("@") > 1:
        return
    if "@" in kinds:
        at = kinds.index("@")
        if not at or any(kind not in ("word", ".") for kind in kinds[:at]):
            return
        if not _is_dotted(kinds[at + 1 :]) or not _is_domain(run[at + 1 :: 2]):
            return
    # Internal form cannot tell a quoted @ without a domain from the one before a domain.
    elif "@" in text or "literal" in kinds or not _is_dotted(kinds):
        return
    yield FieldAddress(text, run[0].start, run[-1].end)


def _is_dotted(kinds: list[str]) -> bool:
    """Words, or a literal, with a dot between each two."""
    return len(kinds) % 2 == 1 and all(kind == "." for kind in kinds[1::2])


def _is_domain(words: list[_Token]) -> bool:
    """A literal, or words as they stand: internal form has no quotes for a domain."""
    if [word.kind for word in words] == ["literal"]:
        return "@" not in words[0].text  # which would be taken for the one before the domain
    return all(word.kind == "word" and len(word.text) == word.end - word.start for word in words)


def _tokens(text: str) -> Iterator[_Token]:
    """Words, comments and special characters, without white space."""
    at = 0
    while at < len(text):
        start, kind = at, "word"
        if match := _SPACE.match(text, at):
            at = match.end()
            continue
        if text[at] == "(":
            at = comment_end(text, at)
            yield _Token("comment", text[start:at], start, at)
            continue
        if match := _QUOTED.match(text, at):
            word = _PAIR.sub(r"\1", re.sub(r"\r?\n", "", match[1]))
        elif match := _LITERAL.match(text, at):
            kind, word = "literal", match[0]
        elif match := _ATOM.match(text, at):
            word = _PAIR.sub(r"\1", match[0])
        else:
            # A quoted word or literal that is not closed swallows the rest.
            at = len(text) if text[at] in '"[' else at + 1
            yield _Token(text[start], text[start], start, at)
            continue
        at = match.end()
        yield _Token(kind, word, start, at)
