"""What is odd in a configuration but no reason to refuse it: unknown, unused and deprecated names.

A name of the user's own is welcome when some value mentions it, as with postconf.
"""

import difflib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from worker.config.expander import Expander
from worker.config.foreign import of_other_programs, of_the_client, of_the_server
from worker.config.main_cf import Setting
from worker.config.parameters import PARAMETERS, find

_LIKELY = 0.75  # similarity from which a name is worth suggesting
_SURE = 0.93  # ... and from which it is a slip even where the beginning is another program's
_SHOWN = 5  # names of other programs' parameters that are spelled out


def remarks(
    settings: Mapping[str, Setting], expander: Expander, used: AbstractSet[str]
) -> Iterator[str]:
    """Yield one line for each oddity, with its place, in the order of the settings.

    `used` is what `used_names` says.
    """
    others = []
    theirs = _used_by_other_programs(settings, expander)
    for name, setting in settings.items():
        row = find(name)
        if row is None and name not in used:
            if name in theirs or _surely_of_other_programs(name):
                others.append(setting)
            else:
                yield f"{setting.place}: {_unknown(name)}"
            continue
        if row is not None and row.deprecated:
            yield f"{setting.place}: {name} is deprecated: {row.deprecated}"
        if row is not None and row.no_effect:
            yield f"{setting.place}: {name} has no effect: {row.no_effect}"
        for mentioned in sorted(expander.mentions(name)):
            if mentioned not in settings and find(mentioned) is None:
                yield (
                    f"{setting.place}: {name} mentions ${mentioned}, which is not defined"
                    f"{_nearest(mentioned)}"
                )
    if others:
        yield _about_others(others)


def used_names(settings: Mapping[str, Setting], expander: Expander) -> frozenset[str]:
    """The names that the values of known parameters lead to."""
    known = [*PARAMETERS, *(name for name in settings if find(name) is not None)]
    return frozenset(used for name in known for used in expander.reachable(name))


def _used_by_other_programs(settings: Mapping[str, Setting], expander: Expander) -> frozenset[str]:
    """The user's own names that parameters of other programs lead to (restriction classes)."""
    return frozenset(
        used
        for name in settings
        if _surely_of_other_programs(name)
        for used in expander.reachable(name)
    )


def _surely_of_other_programs(name: str) -> bool:
    """And no slip in a name of ours."""
    return of_other_programs(name) and (of_the_server(name) or not _near(name, _SURE))


def _unknown(name: str) -> str:
    if of_the_client(name):
        return f"{name} is not supported yet and has no effect"
    return f"unknown parameter {name} has no effect{_nearest(name)}"


def _about_others(others: list[Setting]) -> str:
    shown = ", ".join(setting.name for setting in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"{others[0].file}: parameters of other Postfix programs have no effect: {shown}{more}"


def _nearest(name: str) -> str:
    near = _near(name, _LIKELY)
    return f"; did you mean {near}?" if near else ""


def _near(name: str, cutoff: float) -> str:
    """The most similar name of the table, or nothing."""
    return next(iter(difflib.get_close_matches(name.lower(), PARAMETERS, n=1, cutoff=cutoff)), "")
