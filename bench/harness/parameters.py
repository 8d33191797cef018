"""The parameters of a load: what a scenario's `Load` says of each, and values from `--set`.

Answers for reading them off the dataclass: types and defaults from its fields, units from the
comments behind them, so that a scenario writes each of them once. Numbers are at least 1, or 0
where the default is 0 or the field is a float; `field(metadata={"least": 2, "most": 9})` narrows
that, and `Load.__post_init__` may refuse with a ValueError whatever hangs together.
"""

import difflib
import inspect
import math
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from io import StringIO
from types import NoneType, UnionType
from typing import Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

MOST: Final = 10**9  # whatever is counted: more would be a typing error, and fill a disk
Reader = Callable[[str], object]  # the value that a text stands for; raises click.BadParameter
_Load = TypeVar("_Load")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a load."""

    name: str
    default: object
    note: str  # unit and meaning; may be empty
    read: Reader


def parameters(load: object) -> list[Parameter]:
    """The parameters of a load, an instance of a dataclass. Raises TypeError for unknown types."""
    kind = type(load)
    hints, notes = get_type_hints(kind), _comments(kind)
    found = []
    for each in fields(load):  # type: ignore[arg-type]  # any dataclass; there is no name for that
        default = getattr(load, each.name)
        found.append(
            Parameter(
                name=each.name,
                default=default,
                note=notes.get(each.name, ""),
                read=_reader(hints[each.name], default, each.metadata),
            )
        )
    return found


def with_settings(load: _Load, settings: Sequence[str]) -> _Load:
    """The load with NAME=VALUE settings applied. Raises click.UsageError."""
    known = {each.name: each for each in parameters(load)}
    values = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: expected NAME=VALUE")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            names = ", ".join(known)
            raise click.UsageError(f"--set {text}: no such parameter{meant}; there are {names}")
        try:
            values[name] = known[name].read(value)
        except click.BadParameter as exc:
            raise click.UsageError(f"--set {text}: {exc.message.rstrip('.')}") from exc
    try:
        return replace(load, **values)  # type: ignore[type-var]  # as above
    except ValueError as exc:
        raise click.UsageError(f"--set {' --set '.join(settings)}: {exc}") from exc


def as_setting(value: object) -> str:
    """A value as --set takes it."""
    if isinstance(value, list | tuple):  # JSON makes lists of tuples
        return ",".join(as_setting(each) for each in value)
    return "none" if value is None else str(value)


# --- types ---------------------------------------------------------------------------------------


def _reader(hint: object, default: object, metadata: Mapping[object, object]) -> Reader:
    """How a value of this type is read. Raises TypeError for a type that has no words."""
    arguments = get_args(hint)
    origin = get_origin(hint)
    if hint is bool:
        return click.BOOL
    if hint is int:
        least = metadata.get("least", 0 if default == 0 else 1)
        limits = (_limit(least), _limit(metadata.get("most", MOST)))
        return partial(_number, click.IntRange(*limits), int, "a whole number")
    if hint is float:
        limits = (_limit(metadata.get("least", 0)), _limit(metadata.get("most", MOST)))
        return partial(_number, click.FloatRange(*limits), float, "a number")
    if hint is str:
        return click.STRING
    if origin is Literal:
        return click.Choice(arguments)
    if origin is tuple and arguments[1:] == (...,):
        first = min(default) if isinstance(default, tuple) and default else None
        each = _reader(arguments[0], first, metadata)
        return lambda text: tuple(each(part) for part in text.split(","))
    if origin in {Union, UnionType} and len(arguments) == 2 and NoneType in arguments:
        some = _reader(next(one for one in arguments if one is not NoneType), default, metadata)
        return lambda text: None if text in {"", "none"} else some(text)
    raise TypeError(f"a load has no parameters of type {hint}")


def _number(read: Reader, kind: Callable[[str], float], expected: str, text: str) -> object:
    try:
        number = kind(text)
    except ValueError as exc:
        raise click.BadParameter(f"expected {expected}") from exc
    if isinstance(number, float) and not math.isfinite(number):  # nan is in every range
        raise click.BadParameter(f"{text} is not a finite number")
    return read(text)


def _limit(found: object) -> int:
    assert isinstance(found, int)
    return found


def _comments(kind: type) -> dict[str, str]:
    """The comment behind each field in the source of a class; none without source."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return {}
    found: dict[str, str] = {}
    name = ""
    for token in tokenize.generate_tokens(StringIO(inspect.cleandoc(source)).readline):
        line = token.line.strip()
        if token.type == tokenize.NAME and line.startswith(token.string):
            name = token.string
        elif token.type == tokenize.COMMENT and not line.startswith("#"):
            found.setdefault(name, token.string.lstrip("# "))
    return found
