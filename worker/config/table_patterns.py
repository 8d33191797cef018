"""Tables of patterns, the first that matches answers: cidr, regexp, pcre. See `rules.py`."""

from pathlib import Path

from worker.config.rules import CIDR, PCRE, REGEXP, Dialect, Rule, find_rule, read_rules
from worker.config.table import Table
from worker.config.table_files import Clock, FileTable
from worker.config.table_memory import unbraced
from worker.config.values import split_list


class PatternTable(Table):
    """Rules written in place: `type:{{rule}, {rule}}`."""

    whole_keys_only = True

    def __init__(self, spec: str, name: str, dialect: Dialect) -> None:
        super().__init__(spec)
        lines = [unbraced(item) for item in split_list(unbraced(name))]
        self._rules, self._warnings = read_rules("\n".join(lines), spec.partition(":")[0], dialect)

    async def lookup(self, key: str) -> str | None:
        """See Table."""
        return find_rule(self._rules, key)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Table."""
        return tuple(self._warnings)


class PatternFile(FileTable[tuple[Rule, ...]]):
    """Rules in a file."""

    whole_keys_only = True


def open_cidr(spec: str, name: str, clock: Clock) -> Table:
    """`cidr:/file`: networks, asked with an address. Raises TableConfigError."""
    return _open(spec, name, clock, CIDR)


def open_regexp(spec: str, name: str, clock: Clock) -> Table:
    """`regexp:/file`: POSIX extended expressions, by Python's engine. Raises TableConfigError."""
    return _open(spec, name, clock, REGEXP)


def open_pcre(spec: str, name: str, clock: Clock) -> Table:
    """`pcre:/file`: Perl's expressions as far as Python's engine has them.

    Raises TableConfigError.
    """
    return _open(spec, name, clock, PCRE)


def _open(spec: str, name: str, clock: Clock, dialect: Dialect) -> Table:
    if name.startswith("{"):
        return PatternTable(spec, name, dialect)
    return PatternFile(
        spec, Path(name), clock, lambda text, place: read_rules(text, place, dialect), find_rule
    )
