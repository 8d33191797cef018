"""`$name` in the values of main.cf: parsed into pieces, then put together.

    $name ${name} $(name)           the value of another parameter; nothing where it has none
    ${name?text} ${name?{text}}     text where name has a text that is not empty, before its own
                                    pieces are replaced: as in Postfix, $nothing is a text
    ${name:text} ${name:{text}}     text where it has none, and nothing where it has one
    ${name?{x}:{y}}                 one or the other
    ${{a} == {b} ? {x} : {y}}       by comparison: == != < <= >= >, as numbers where both are;
                                    with the word level after it, as Postfix release numbers
    $$                              a dollar sign

Texts and operands may hold such pieces again. A text is parsed once and can be evaluated often;
only the branch that is chosen is evaluated. White space inside braces belongs to the text.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,1000}", re.ASCII)
_SPACE = " \t\r\n"
_OPERATOR = re.compile(r"(==|!=|<=|>=|<|>)(level)?")
_CLOSING = {"{": "}", "(": ")"}
_DEEPEST = 100  # as many levels of braces as Postfix follows


class MacroError(ValueError):
    """A text whose `$` syntax is broken."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The value of a name."""

    name: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Left and right side with the operator between; `level`: as release numbers."""

    left: "Text"
    operator: str
    level: bool
    right: "Text"


@dataclass(frozen=True, slots=True)
class Conditional:
    """`yes` or `no` by a test. A missing branch of a bare comparison is Postfix's truth text."""

    test: Reference | Comparison
    yes: "Text"
    no: "Text"


@dataclass(frozen=True, slots=True)
class Text:
    """A value: literal text and pieces, in order."""

    parts: tuple["str | Reference | Conditional", ...]


Lookup = Callable[[str], str]  # the expanded value of a name; empty where it has none
HasText = Callable[[str], bool]  # whether a name has a text, not expanded, that is not empty


def parse(text: str) -> Text:
    """The pieces of a value. Raises MacroError."""
    return _parse(text, 0)


def expand(text: Text, lookup: Lookup, has_text: HasText) -> str:
    """The text with every piece replaced; passes on what the functions raise."""
    return "".join(
        part
        if isinstance(part, str)
        else lookup(part.name)
        if isinstance(part, Reference)
        else expand(_chosen(part, lookup, has_text), lookup, has_text)
        for part in text.parts
    )


def names(text: Text) -> Iterator[str]:
    """Every name the text mentions, branches not taken included; repetitions too."""
    for part in text.parts:
        if isinstance(part, Reference):
            yield part.name
        elif isinstance(part, Conditional):
            if isinstance(part.test, Reference):
                yield part.test.name
            else:
                yield from names(part.test.left)
                yield from names(part.test.right)
            yield from names(part.yes)
            yield from names(part.no)


def _parse(text: str, depth: int) -> Text:
    if depth > _DEEPEST:
        raise MacroError("too many levels of braces")
    parts: list[str | Reference | Conditional] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        at = dollar + 1
        opening = text[at : at + 1]
        if opening == "$":
            parts.append("$")
            at += 1
        elif opening in _CLOSING:
            inner, at = _enclosed(text, at)
            parts.append(_parse_braced(inner, depth))
        elif match := _NAME.match(text, at):
            parts.append(Reference(match[0]))
            at = match.end()
        else:
            raise MacroError(f'no name after "$" in "{text}" (a dollar sign is written $$)')
    parts.append(text[at:])
    return Text(tuple(part for part in parts if part != ""))


def _enclosed(text: str, at: int) -> tuple[str, int]:
    """What stands between the brace at `at` and its partner, and the place after that."""
    opening, closing = text[at], _CLOSING[text[at]]
    depth = 0
    for place in range(at, len(text)):
        if text[place] == opening:
            depth += 1
        elif text[place] == closing:
            depth -= 1
            if depth == 0:
                return text[at + 1 : place], place + 1
    raise MacroError(f'"{opening}" without "{closing}" in "{text}"')


def _parse_braced(inner: str, depth: int) -> Reference | Conditional:
    inner = inner.lstrip(_SPACE)
    if inner.startswith("{"):
        test: Reference | Comparison
        test, rest = _parse_comparison(inner, depth)
        if not rest:  # bare: true or nothing, as in Postfix 3.7
            return Conditional(test, Text(("true",)), Text(()))
    else:
        match = _NAME.match(inner)
        if match is None:
            raise MacroError(f'no name in "${{{inner}}}"')
        test, rest = Reference(match[0]), inner[match.end() :].lstrip(_SPACE)
        if not rest:
            return test
    return _parse_branches(test, rest, inner, depth)


def _parse_branches(test: Reference | Comparison, rest: str, inner: str, depth: int) -> Conditional:
    operator, rest = rest[0], rest[1:]
    if operator not in "?:":
        raise MacroError(f'"{operator}" is not expected in "${{{inner}}}"')
    first, rest, braced = _branch(rest, depth)
    if operator == ":":
        if rest:
            raise MacroError(f'text after the last brace in "${{{inner}}}"')
        return Conditional(test, Text(()), first)
    second = Text(())
    if braced and rest.startswith(":"):
        second, rest, _ = _branch(rest[1:], depth)
    if rest:
        raise MacroError(f'text after the last brace in "${{{inner}}}"')
    return Conditional(test, first, second)


def _branch(text: str, depth: int) -> tuple[Text, str, bool]:
    """A branch, what follows it, and whether it stood in braces (else it goes to the end)."""
    stripped = text.lstrip(_SPACE)
    if not stripped.startswith("{"):
        return _parse(text, depth + 1), "", False
    content, end = _enclosed(stripped, 0)
    return _parse(content, depth + 1), stripped[end:].strip(_SPACE), True


def _parse_comparison(inner: str, depth: int) -> tuple[Comparison, str]:
    left, rest, _ = _branch(inner, depth)
    match = _OPERATOR.match(rest)
    if match is None:
        raise MacroError(f'no comparison (==, !=, <, <=, >=, >) in "${{{inner}}}"')
    rest = rest[match.end() :].lstrip(_SPACE)
    if not rest.startswith("{"):
        raise MacroError(f'no "{{" after "{match[0]}" in "${{{inner}}}"')
    right, rest, _ = _branch(rest, depth)
    return Comparison(left, match[1], match[2] is not None, right), rest


def _chosen(part: Conditional, lookup: Lookup, has_text: HasText) -> Text:
    return part.yes if _holds(part.test, lookup, has_text) else part.no


def _holds(test: Reference | Comparison, lookup: Lookup, has_text: HasText) -> bool:
    if isinstance(test, Reference):
        return has_text(test.name)
    left, right = (expand(side, lookup, has_text) for side in (test.left, test.right))
    if test.level:
        return _compare(_release(left), test.operator, _release(right))
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return _compare((int(left),), test.operator, (int(right),))
    return _compare(left, test.operator, right)


_Side = TypeVar("_Side", str, tuple[int, ...])


def _compare(left: _Side, operator: str, right: _Side) -> bool:
    less, equal = left < right, left == right
    return {
        "==": equal,
        "!=": not equal,
        "<": less,
        "<=": less or equal,
        ">=": not less,
        ">": not less and not equal,
    }[operator]


def _release(text: str) -> tuple[int, ...]:
    """A release number with its missing parts as 0. Raises MacroError."""
    parts = text.split(".")
    if len(parts) > 3 or not all(map(_NUMBER.fullmatch, parts)):
        raise MacroError(f'"{text}" is not a release number like 3.6')
    return tuple(int(part) for part in parts) + (0,) * (3 - len(parts))
