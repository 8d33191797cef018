"""What one parameter is: its kind, default, limits and its lmtp_ twin. The table of all of them is
in `parameters.py`; what a value's text means is decided in `values.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum


class Kind(Enum):
    """How the text of a value is read. The value is the word that people see."""

    TEXT = "text"
    BOOLEAN = "yes or no"
    INTEGER = "number"
    TIME = "time"
    WORDS = "list"
    TABLES = "lookup tables"
    MATCHES = "list to match"
    HOSTS = "list of hosts to match"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The lmtp_ parameter read in place of an smtp_ one (S172). `default` None: the same."""

    name: str
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One row of the table.

    `default` is text as it would stand in main.cf and may hold `$name`. `source` says where the
    name comes from: "Postfix 2.5" (first known there, or earlier), a later Postfix, or "postrio".
    `unit` is the unit of a time without one; with `fraction` decimals are read too (our own times
    only: Postfix knows whole numbers). `minimum` and `maximum` are in the number's own unit,
    seconds for a time. `choices` are the legal words of a choice or a list; none: any. `pattern`
    is a regular expression a text must match as a whole; `check` gets a text that does, and says
    what is wrong with it, or nothing. `expected` says in words what is legal: always of a pattern,
    and of choices where not each of them is to be recommended.
    """

    name: str
    kind: Kind
    default: str
    summary: str
    source: str = "Postfix 2.5"
    unit: str = "s"
    fraction: bool = False
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    check: Callable[[str], str] | None = None
    expected: str = ""
    mirror: Twin | None = None
    deprecated: str = ""  # what to say when it is set; empty: not deprecated
    no_effect: str = ""  # why setting it changes nothing here; empty: it has an effect
    read_only: bool = field(default=False)  # computed at start; setting it is an error

    def twin(self) -> "Parameter | None":
        """The generated lmtp_ row, or None. Raises nothing."""
        if self.mirror is None:
            return None
        default = self.mirror.default
        if default is None:
            default = self.default.replace("$smtp_", "$lmtp_")
        return replace(
            self,
            name=self.mirror.name,
            default=default,
            summary=f"As {self.name}, for LMTP.",
            mirror=None,
        )
