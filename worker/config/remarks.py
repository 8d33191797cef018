"""What is odd in a configuration but no reason to refuse it: unknown, unused and deprecated names.

A name of the user's own is welcome when some value mentions it, as with postconf.
"""

import difflib
from collections.abc import Iterator, Mapping

from worker.config.expander import Expander
from worker.config.main_cf import Setting
from worker.config.parameters import PARAMETERS, find


def remarks(settings: Mapping[str, Setting], expander: Expander) -> Iterator[str]:
    """Yield one line for each oddity, with its place, in the order of the settings."""
    used = _used(settings, expander)
    for name, setting in settings.items():
        row = find(name)
        if row is not None:
            if row.deprecated:
                yield f"{setting.place}: {name} is deprecated: {row.deprecated}"
        elif name not in used:
            yield f"{setting.place}: unknown parameter {name} has no effect{_nearest(name)}"
        for mentioned in sorted(expander.mentions(name)):
            if mentioned not in settings and find(mentioned) is None:
                yield (
                    f"{setting.place}: {name} mentions ${mentioned}, which is not defined"
                    f"{_nearest(mentioned)}"
                )


def _used(settings: Mapping[str, Setting], expander: Expander) -> set[str]:
    """The names that the values of known parameters lead to."""
    known = [*PARAMETERS, *(name for name in settings if find(name) is not None)]
    return {used for name in known for used in expander.reachable(name)}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), PARAMETERS, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
