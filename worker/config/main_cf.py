"""The syntax of main.cf: lines to `name = value`. What `$name` in a value means is in `macros.py`.

A line that begins with white space continues the one before; comments and empty lines do not end
it. A line whose first visible character is `#` is a comment. The last setting of a name wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.config.problems import Problem

SPACE = " \t\r\n\f\v"  # white space to Postfix; Unicode has more, which is text


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One `name = value` and where it stands. `line` 0: not from a file."""

    name: str
    value: str
    file: str
    line: int = 0

    @property
    def place(self) -> str:
        """`file:line`, or the file alone."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class MainCf:
    """What a file says: the settings that hold, what is broken, what is odd but legal."""

    settings: tuple[Setting, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def parse_main_cf(text: str, file: str) -> MainCf:
    """The settings of a main.cf; raises nothing: mistakes are in the result."""
    settings: dict[str, Setting] = {}
    problems, warnings = [], []
    for number, line in logical_lines(text):
        if line[0] in " \t":
            shown = line.strip(SPACE)[:60]
            warnings.append(f'{file}:{number}: "{shown}" continues no line and is left out')
            continue
        setting = parse_setting(line, file, number)
        if isinstance(setting, Problem):
            problems.append(setting)
            continue
        if (earlier := settings.get(setting.name)) is not None:
            warnings.append(
                f"{setting.place}: {setting.name} = {setting.value}"
                f" overrides the setting in line {earlier.line}"
            )
        settings[setting.name] = setting
    return MainCf(
        settings=tuple(settings.values()), problems=tuple(problems), warnings=tuple(warnings)
    )


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of the first line, joined text) of each logical line, white space kept.

    The same for main.cf and for the files of lookup tables. A continuation without a line to
    continue is yielded as it is, with its white space in front.
    """
    start, joined = 0, ""
    for number, line in enumerate(text.split("\n"), start=1):
        visible = line.strip(SPACE)
        if not visible or visible.startswith("#"):
            continue
        if joined and line[0] in " \t":
            joined += line.rstrip("\r")
            continue
        if joined:
            yield start, joined
        start, joined = number, line.rstrip("\r")
    if joined:
        yield start, joined


def parse_setting(line: str, file: str, number: int = 0) -> Setting | Problem:
    """The setting of one logical line (or of `-o name=value`), or what is wrong with it."""
    name, equals, value = line.partition("=")
    name = name.strip(SPACE)
    shown = line.strip(SPACE)[:60]
    form = "name = value"
    if not equals:
        return Problem(file=file, line=number, why=f'no "=" in "{shown}"', expected=form)
    if not name:
        return Problem(file=file, line=number, why=f'no name in "{shown}"', expected=form)
    if any(char in SPACE for char in name):
        return Problem(
            file=file, line=number, why=f'white space in the name "{name}"', expected=form
        )
    return Setting(name=name, value=value.strip(SPACE), file=file, line=number)
