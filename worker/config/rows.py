"""Short ways to write a row of the parameter table, one for each kind of value.

Each takes the name, the default as main.cf text, and the summary; the rest by keyword. Names that
begin with `smtp_` get an lmtp_ twin unless `mirror=None` says no.
"""

import re
from collections.abc import Callable
from typing import TypedDict, Unpack

from worker.config.parameter import Kind, Parameter, Twin


class Details(TypedDict, total=False):
    """The columns most rows leave at their defaults; see Parameter."""

    source: str
    unit: str
    fraction: bool
    minimum: int | None
    maximum: int | None
    choices: tuple[str, ...]
    pattern: re.Pattern[str] | None
    check: Callable[[str], str] | None
    expected: str
    mirror: Twin | None
    deprecated: str
    no_effect: str
    read_only: bool


def text(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row whose value is taken as it is."""
    return _row(Kind.TEXT, name, default, summary, details)


def filled(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of text that must not be empty; `default` may be, where one is computed."""
    details["check"] = _emptiness
    details["expected"] = "text that is not empty"
    return _row(Kind.TEXT, name, default, summary, details)


def boolean(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of yes or no."""
    return _row(Kind.BOOLEAN, name, default, summary, details)


def integer(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of a whole number; at least 0 unless `minimum` says otherwise."""
    details.setdefault("minimum", 0)
    return _row(Kind.INTEGER, name, default, summary, details)


def time(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of a time; at least 1 s unless `minimum` says otherwise."""
    details.setdefault("minimum", 1)
    return _row(Kind.TIME, name, default, summary, details)


def words(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of a list of words."""
    return _row(Kind.WORDS, name, default, summary, details)


def tables(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of a list of lookup tables, `type:name`."""
    return _row(Kind.TABLES, name, default, summary, details)


def matches(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of a list that a key is on or not; see `match_list.py`."""
    return _row(Kind.MATCHES, name, default, summary, details)


def hosts(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of a list that a host is on or not; see `match_list.py`."""
    return _row(Kind.HOSTS, name, default, summary, details)


def choice(name: str, default: str, summary: str, **details: Unpack[Details]) -> Parameter:
    """A row of one word out of `choices`; an empty word among them: it may be left open."""
    return _row(Kind.CHOICE, name, default, summary, details)


def _emptiness(text: str) -> str:
    return "" if text else "is empty"


def _row(kind: Kind, name: str, default: str, summary: str, details: Details) -> Parameter:
    if name.startswith("smtp_"):
        details.setdefault("mirror", Twin(name="lmtp_" + name.removeprefix("smtp_")))
    return Parameter(name=name, kind=kind, default=default, summary=summary, **details)
