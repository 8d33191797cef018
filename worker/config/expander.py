"""The expanded value of every name, settings over defaults, with loops found; and the defaults that
are computed from the machine: myhostname, mydomain and the read-only ones.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import PurePath

from worker.config import macros
from worker.config.main_cf import SPACE, Setting
from worker.config.parameters import find
from worker.config.values import BadValueError

_DEEPEST = 100  # names within names, as many as Postfix follows
_LARGEST = 100_000  # characters of an expanded value; doubling references end here


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the machine and the process say. The defaults are for tests."""

    hostname: str = "client.example"
    process_id: int = 1
    process_name: str = "postrio"
    mail_version: str = "0"
    config_directory: str = "/etc/postrio"

    @classmethod
    def of_this_process(cls) -> "Facts":
        """As they are here and now."""
        return cls(
            hostname=socket.gethostname(),
            process_id=os.getpid(),
            process_name=_program(sys.argv[0]),
            mail_version=_version(),
        )

    def with_directory(self, directory: str) -> "Facts":
        """The same with the directory that main.cf was read from."""
        return replace(self, config_directory=directory)


class Expander:
    """Expands names over settings and defaults; remembers what it has expanded."""

    def __init__(self, settings: Mapping[str, Setting], facts: Facts) -> None:
        self._settings = settings
        self._facts = facts
        self._parsed: dict[str, macros.Text] = {}
        self._values: dict[str, str] = {}
        self._under_way: list[str] = []

    def without_settings(self) -> "Expander":
        """One over the defaults alone."""
        return Expander({}, self._facts)

    def value(self, name: str) -> str:
        """The expanded value; empty for a name that is neither set nor known.

        Raises BadValueError for broken `$` syntax, and for a loop, naming the parameters in it.
        """
        return self._expanded(name).strip(SPACE)

    def _expanded(self, name: str) -> str:
        """The same with white space at its ends, which counts where it is part of another value."""
        if name in self._values:
            return self._values[name]
        if name in self._under_way:
            loop = [*self._under_way[self._under_way.index(name) :], name]
            raise BadValueError(
                f"refers to itself: {' -> '.join(loop)}", "a value that does not lead back"
            )
        if len(self._under_way) > _DEEPEST:
            raise BadValueError(
                f"leads to {name} over too many other names", f"at most {_DEEPEST} levels of $name"
            )
        self._under_way.append(name)
        try:
            value = macros.expand(self._parse(name), self._expanded, self._has_text)
        except macros.MacroError as exc:
            raise BadValueError(str(exc), "$name, ${name}, ${name?text}, ${name:text}") from exc
        finally:
            self._under_way.pop()
        if len(value) > _LARGEST:
            raise BadValueError("too long when expanded", f"at most {_LARGEST} characters")
        self._values[name] = value
        return value

    def raw(self, name: str) -> str:
        """What is set, else the default. LookupError: neither set nor known."""
        setting = self._settings.get(name)
        return self.default(name) if setting is None else setting.value

    def default(self, name: str) -> str:
        """The default's text; computed where it depends on the machine. LookupError: not known."""
        row = find(name)
        if row is None:
            raise LookupError(f"{name} is not in the table of parameters")
        facts = self._facts
        match name:
            case "myhostname":
                domain = "$mydomain" if "mydomain" in self._settings else "localdomain"
                return facts.hostname if "." in facts.hostname else f"{facts.hostname}.{domain}"
            case "mydomain":
                return self.value("myhostname").partition(".")[2] or "localdomain"
            case "process_id":
                return str(facts.process_id)
            case "process_name":
                return facts.process_name
            case "mail_version":
                return facts.mail_version
            case "config_directory":
                return facts.config_directory
        return row.default

    def mentions(self, name: str) -> frozenset[str]:
        """The names in the value's text, branches not taken included; none where it is broken."""
        if name == "mydomain" and name not in self._settings:
            return frozenset({"myhostname"})  # what it is computed from
        try:
            return frozenset(macros.names(self._parse(name)))
        except (macros.MacroError, BadValueError):
            return frozenset()

    def reachable(self, name: str) -> Iterator[str]:
        """Every other name that the value may depend on, nearest first, each once."""
        seen, queue = {name}, [name]
        for current in queue:
            for mentioned in sorted(self.mentions(current) - seen):
                seen.add(mentioned)
                queue.append(mentioned)
                yield mentioned

    def _has_text(self, name: str) -> bool:
        known = name in self._settings or find(name) is not None
        return known and self.raw(name) != ""

    def _parse(self, name: str) -> macros.Text:
        if name not in self._parsed:
            self._parsed[name] = macros.parse(self.raw(name) if self._has_text(name) else "")
        return self._parsed[name]


def _program(path: str) -> str:
    """The name that a process was started by; run as a module (a worker is) it is `postrio`."""
    name = PurePath(path).name
    return "postrio" if name in {"", "-", "-c", "__main__.py"} else name


def _version() -> str:
    try:
        return metadata.version("postrio")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0"
