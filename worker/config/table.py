"""What a lookup table is: a text by a key, or trouble. Types are listed in `tables.py`.

`lookup` is async for all types: some ask a server or a database, which may take its time. Those in
memory answer at once, without a checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping


class TableError(Exception):
    """A lookup without an answer: the caller must not take it for "not found", but defer."""


class TableConfigError(ValueError):
    """A table that cannot be opened. `why`: what is wrong; `expected`: what is right, or ""."""

    def __init__(self, why: str, expected: str = "") -> None:
        super().__init__(f"{why}; expected {expected}" if expected else why)
        self.why = why
        self.expected = expected


class Table(ABC):
    """One `type:name`.

    `whole_keys_only`: made for whole addresses, of no use with the parts of one that a search also
    tries (regexp, pcre, cidr: as in Postfix).
    """

    whole_keys_only = False

    def __init__(self, spec: str) -> None:
        self.spec = spec

    @abstractmethod
    async def lookup(self, key: str) -> str | None:
        """The text of a key; None: not found. Raises TableError. Letter case as the type says."""

    def entries(self) -> Mapping[str, str]:
        """Texts by key, for who wants to check them all; none where the table cannot list them.

        Raises TableError.
        """
        return {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd in the table when it was last read; one line each, with its place."""
        return ()
