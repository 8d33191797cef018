"""What `postrio config` prints, line by line, as postconf(1) would.

The commands that call this are elsewhere. What is printed for all or for changed parameters is a
main.cf again, with the same values.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from enum import Enum

from worker.config.config import Config
from worker.config.foreign import of_other_programs, of_the_client
from worker.config.main_cf import SPACE
from worker.config.parameters import PARAMETERS, find

_RUN = re.compile(f"[{SPACE}]+")


class Which(Enum):
    """Which parameters and which of their texts."""

    ALL = "all"  # every known name, as it is in force
    DEFAULTS = "defaults"  # -d: every known name, its default
    CHANGED = "changed"  # -n: what was set


class Form(Enum):
    """How a line looks."""

    BOTH = "name = value"
    VALUES = "value"  # -h
    NAMES = "name"  # -H


class UnknownParameterError(LookupError):
    """A name that is neither known nor set; its text suggests the nearest one."""


def show(
    config: Config,
    names: Sequence[str] = (),
    *,
    which: Which = Which.ALL,
    form: Form = Form.BOTH,
    expanded: bool = False,
) -> Iterator[str]:
    """Yield one line for each parameter: those named, in that order, else all of `which`, sorted.

    `expanded` (-x): with every `$name` replaced. White space in a value is printed as one space.
    A named parameter that CHANGED does not hold is left out, as by postconf.
    Raises UnknownParameterError.
    """
    for name in names or _names(config, which):
        if not config.is_set(name) and find(name) is None:
            raise UnknownParameterError(_unknown(name))
        if which is Which.CHANGED and not config.is_set(name):
            continue
        if which is Which.DEFAULTS and find(name) is None:
            continue
        value = _RUN.sub(" ", _value(config, name, which, expanded=expanded)).strip(" ")
        match form:
            case Form.BOTH:
                yield f"{name} = {value}" if value else f"{name} ="
            case Form.VALUES:
                yield value
            case Form.NAMES:
                yield name


def _names(config: Config, which: Which) -> list[str]:
    mentioned = config.mentioned()  # what a name of the user's own needs to be shown by postconf
    changed = {
        name
        for name in config.settings
        if find(name) is not None
        or name in mentioned
        or of_other_programs(name)
        or of_the_client(name)
    }
    match which:
        case Which.CHANGED:
            return sorted(changed)
        case Which.DEFAULTS:
            return sorted(PARAMETERS)
        case Which.ALL:
            return sorted(changed | set(PARAMETERS))


def _value(config: Config, name: str, which: Which, *, expanded: bool) -> str:
    if which is Which.DEFAULTS:
        return config.default_expanded(name) if expanded else config.default(name)
    return config.expanded(name) if expanded else config.raw(name)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), PARAMETERS, n=1, cutoff=0.6)
    return f"{name}: unknown parameter" + (f"; did you mean {near[0]}?" if near else "")
