"""What the text of a value means, by the kind of its parameter; and why it means nothing.

Time values: a whole number and one of s, m, h, d, w; without a letter the parameter's own unit.
"""

import re
from typing import TypeVar

from worker.config.parameter import Kind, Parameter

Value = str | bool | int | float | tuple[str, ...]

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LARGEST = 2**63 - 1  # of any number: what Postfix's long holds on 64-bit systems

_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_SIGNED = re.compile(r"-?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_LIST_SEPARATORS = ", \t\r\n"


class BadValueError(ValueError):
    """A text that its parameter cannot take. `why`: what is wrong; `expected`: what is right."""

    def __init__(self, why: str, expected: str) -> None:
        super().__init__(f"{why}; expected {expected}")
        self.why = why
        self.expected = expected


def parse_value(parameter: Parameter, text: str) -> Value:
    """The value that an expanded text has for this parameter. Raises BadValueError.

    TEXT, CHOICE: str; BOOLEAN: bool; INTEGER: int; TIME: seconds as float; WORDS, TABLES and
    MATCHES, HOSTS: the items as a tuple of str (opening tables and files is not done here).
    """
    match parameter.kind:
        case Kind.BOOLEAN:
            return parse_boolean(text)
        case Kind.INTEGER:
            return _in_range(parameter, _integer(parameter, text))
        case Kind.TIME:
            seconds = parse_seconds(text, parameter.unit, fraction=parameter.fraction)
            return _in_range(parameter, seconds)
        case Kind.WORDS:
            return _words(parameter, text)
        case Kind.TABLES | Kind.MATCHES | Kind.HOSTS:
            return split_list(text)
        case Kind.CHOICE:
            return _choice(parameter, text)
        case Kind.TEXT:
            return _text(parameter, text)


def parse_boolean(text: str) -> bool:
    """True for "yes", False for "no", in any case of letters. Raises BadValueError."""
    word = text.lower()
    if word not in {"yes", "no"}:
        raise BadValueError("not a truth value", '"yes" or "no"')
    return word == "yes"


def parse_seconds(text: str, unit: str, *, fraction: bool = False) -> float:
    """Seconds of a time like "4h" or, in `unit`, "4". Raises BadValueError."""
    number, letter = (text[:-1], text[-1]) if text[-1:] in SECONDS_PER_UNIT else (text, unit)
    if not (_DECIMAL if fraction else _NUMBER).fullmatch(number):
        kind = "a number" if fraction else "a whole number"
        raise BadValueError("not a time", f"{kind} with s, m, h, d or w (without: {unit})")
    seconds = float(number) * SECONDS_PER_UNIT[letter]
    if seconds > LARGEST:
        raise BadValueError("too large", "a shorter time")
    return seconds


def split_list(text: str) -> tuple[str, ...]:
    """The items of a list: separated by commas and white space; `{...}` keeps an item together.

    Raises BadValueError where a brace is never closed. `type:{a, b}` is one item.
    """
    items, item, depth = [], "", 0
    for char in text:
        if depth == 0 and char in _LIST_SEPARATORS:
            items.append(item)
            item = ""
            continue
        # A brace in the middle of a word is text, except as the argument of a table type.
        if char == "{" and (depth > 0 or item == "" or item.endswith(":")):
            depth += 1
        elif char == "}" and depth > 0:
            depth -= 1
        item += char
    if depth:
        raise BadValueError('"{" without "}"', "balanced braces")
    items.append(item)
    return tuple(item for item in items if item)


def range_in_words(parameter: Parameter) -> str:
    """The legal numbers or times of a parameter, as a phrase."""
    low, high = parameter.minimum, parameter.maximum
    what, unit = ("a time", "s") if parameter.kind is Kind.TIME else ("a whole number", "")
    if low is not None and high is not None:
        return f"{what} from {low}{unit} to {high}{unit}"
    if low is not None:
        return f"{what} of at least {low}{unit}"
    return what if high is None else f"{what} of at most {high}{unit}"


def _integer(parameter: Parameter, text: str) -> int:
    if not _SIGNED.fullmatch(text) or len(text) > 20:
        raise BadValueError("not a number", range_in_words(parameter))
    return int(text)


_Number = TypeVar("_Number", int, float)


def _in_range(parameter: Parameter, number: _Number) -> _Number:
    low, high = parameter.minimum, parameter.maximum
    if low is not None and number < low:
        raise BadValueError("too small", range_in_words(parameter))
    if number > (LARGEST if high is None else high):
        raise BadValueError("too large", range_in_words(parameter))
    return number


def _words(parameter: Parameter, text: str) -> tuple[str, ...]:
    words = split_list(text)
    for word in words:
        if parameter.choices and word.lower() not in parameter.choices:
            raise BadValueError(f'"{word}" is not known here', _one_of(parameter.choices))
    return tuple(word.lower() for word in words) if parameter.choices else words


def _choice(parameter: Parameter, text: str) -> str:
    word = text.lower()
    if word not in parameter.choices:
        expected = parameter.expected or _one_of(parameter.choices)
        raise BadValueError("not one of the choices", expected)
    return word


def _text(parameter: Parameter, text: str) -> str:
    if parameter.pattern is not None and not parameter.pattern.fullmatch(text):
        raise BadValueError("not of the right form", parameter.expected)
    if parameter.check is not None and (why := parameter.check(text)):
        raise BadValueError(why, parameter.expected)
    return text


def _one_of(choices: tuple[str, ...]) -> str:
    return ", ".join(choice or "nothing" for choice in choices)
