"""The file of settings that a table in a database or directory has: `name = value`, as in main.cf.

It may hold a password. So nothing of its values is in what is said about it, unless it is known to
be no secret.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.config.main_cf import logical_lines, parse_setting
from worker.config.match_list import StringList, open_string_list
from worker.config.problems import Problem
from worker.config.table import TableConfigError
from worker.config.table_files import Clock
from worker.config.values import BadValueError, split_list

_WORDS: Final[Mapping[str, bool]] = {"yes": True, "no": False}
_NAME: Final = re.compile("[A-Za-z_]+")


@dataclass(frozen=True, slots=True)
class Known:
    """The names that may stand in a file."""

    names: frozenset[str]
    ignored: frozenset[str] = frozenset()  # Postfix has them and does nothing with them, either
    unsupported: frozenset[str] = frozenset()  # Postfix has them


class TableSettings:
    """What a file says."""

    def __init__(self, text: str, place: str, known: Known) -> None:
        """Raises TableConfigError."""
        self.place = place
        self.warnings: list[str] = []
        self._values: dict[str, str] = {}
        for number, line in logical_lines(text):
            where = f"{place}:{number}"
            if line[0] in " \t":
                self.warnings.append(f"{where}: a line that continues none is left out")
                continue
            setting = parse_setting(line, place, number)
            if isinstance(setting, Problem):
                missing = "name" if "=" in line else '"="'  # and not the line, which has a value
                raise TableConfigError(f"{where}: no {missing} in the line", "name = value")
            name = setting.name
            if name in self._values:
                self.warnings.append(f"{where}: {name} overrides an earlier setting")
            elif name in known.ignored:
                self.warnings.append(f"{where}: {name} has no effect")
            elif name in known.unsupported:
                raise TableConfigError(f"{where}: {name} is not supported")
            elif name not in known.names:
                # It may be no name at all: password:secret==
                shown = name if _NAME.fullmatch(name) else 'what stands before the "="'
                raise TableConfigError(
                    f"{where}: {shown} is not known", f"one of: {', '.join(sorted(known.names))}"
                )
            self._values[name] = setting.value

    def text(self, name: str, default: str = "") -> str:
        """The value of a name; the default if there is none or it is empty."""
        return self._values.get(name) or default

    def is_set(self, name: str) -> bool:
        """Whether the file has this name, be its value empty."""
        return name in self._values

    def whole(self, name: str, default: int, least: int = 0) -> int:
        """A number. Raises TableConfigError."""
        text = self.text(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
            expected = "a whole number" + (f", {least} or more" if least else "")
            raise self.wrong(f"{name} = {text}", expected)
        return int(text)

    def is_yes(self, name: str, *, default: bool) -> bool:
        """A choice. Raises TableConfigError."""
        text = self.text(name)
        if not text:
            return default
        if text.lower() not in _WORDS:
            raise self.wrong(f"{name} = {text}", "yes or no")
        return _WORDS[text.lower()]

    def words(self, name: str, default: str = "") -> tuple[str, ...]:
        """The items of a list, with commas or white space between. Raises TableConfigError."""
        try:
            return split_list(self.text(name, default))
        except BadValueError as exc:
            raise self.wrong(f"{name}: {exc.why}", exc.expected) from exc

    def domains(self, environ: Mapping[str, str], clock: Clock) -> StringList | None:
        """The list in `domain`; None: all domains. Raises TableConfigError."""
        items = self.words("domain")
        if not items:
            return None
        try:
            found = open_string_list(items, environ=environ, clock=clock)
        except (TableConfigError, BadValueError) as exc:
            raise self.wrong(exc.why, exc.expected) from exc
        self.warnings += found.warnings
        return found

    def wrong(self, why: str, expected: str = "") -> TableConfigError:
        """The error for something in this file."""
        return TableConfigError(f"{self.place}: {why}", expected)
