"""What is wrong with a configuration: every problem found, each with its place, at once."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. `line` 0: the place has no lines. Empty texts: does not apply."""

    file: str
    line: int
    why: str
    parameter: str = ""
    value: str = ""
    expected: str = ""  # what would be right

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        what = ""
        if self.parameter:
            what = f"{self.parameter} = {self.value}: "
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{place}: {what}{self.why}{expected}"


class ConfigError(Exception):
    """The configuration cannot be used. Its text has one line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
