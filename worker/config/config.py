"""The configuration in force: read once, checked as a whole, then only looked at.

`Config.load` is the way in for programs, `Config.from_mapping` for tests. Components do not keep a
Config: they read what they need into their own frozen dataclasses. To re-read the configuration,
load another one.

How a load goes: main.cf (`main_cf.py`) and `-o` give settings by name; each parameter of the table,
set or not, is expanded (`macros.py`) and its text read by its kind (`values.py`); tables are opened
(`tables.py`). Mistakes are collected all the way and raised together as one ConfigError.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from protocol.address import with_domain
from protocol.request import Protocol
from worker.config.expander import Expander, Facts
from worker.config.main_cf import SPACE, MainCf, Setting, parse_main_cf, parse_setting
from worker.config.match_list import HostList, StringList, open_host_list, open_string_list
from worker.config.parameters import (
    PARAMETERS,
    TRANSPORT_SUFFIXES,
    Kind,
    Parameter,
    find,
    mirror_name,
)
from worker.config.problems import ConfigError, Problem
from worker.config.remarks import remarks, used_names
from worker.config.tables import INDEXED, SERVED, TYPES, Maps, TableConfigError, open_maps
from worker.config.values import BadValueError, Value, parse_value

__all__ = ["Config", "ConfigError", "Facts", "Problem"]

DEFAULT_DIRECTORY = Path("/etc/postrio")
COMMAND_LINE = "-o"  # the place of settings from the command line
MAX_ORIGIN = 1024  # characters of a domain in a file
MAPPING = "configuration"  # the place of settings from a mapping

# What stands in main.cf itself would have an error show passwords: a table in place, or a user and
# a password where a table should be. Names of tables elsewhere may be shown.
_PASSWORDS = "_sasl_password_maps"
_IN_PLACE = frozenset({"inline", "pipemap", "randmap", "static", "unionmap"})
_ELSEWHERE = frozenset({*TYPES, *INDEXED, *SERVED}) - _IN_PLACE

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Config:
    """Every parameter's value. Getters raise LookupError for a name or kind that is not in the
    table: that is a mistake in our code, never in the user's file.
    """

    settings: Mapping[str, Setting]  # what was set, by whom; not expanded
    warnings: tuple[str, ...]  # one line each, with their places
    _expander: Expander = field(repr=False)
    _values: Mapping[str, Value] = field(repr=False)
    _maps: Mapping[str, Maps] = field(repr=False)
    _lists: Mapping[str, StringList] = field(repr=False)
    _hosts: Mapping[str, HostList] = field(repr=False)

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        overrides: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        *,
        facts: Facts | None = None,
        clock: Clock = time.monotonic,
        tables: bool = True,
    ) -> "Config":
        """Read main.cf and check everything. Raises ConfigError with all that is wrong.

        `path`: a main.cf, or the directory of one; None: the directory of MAIL_CONFIG, else
        /etc/postrio if it has a main.cf, else nothing but defaults. `overrides` are texts
        `name=value` (as after -o) and win. `environ` (default: the process's) serves MAIL_CONFIG
        and environ: tables; `clock` (seconds) bounds how often changed table files are looked for.
        `tables`: open tables and lists of files. Who does without them needs no right to read them
        (one holds passwords), and must not ask for any.
        """
        environ = os.environ if environ is None else environ
        facts = Facts.of_this_process() if facts is None else facts
        file = _find_file(path, environ)
        read = MainCf(settings=(), problems=(), warnings=())
        if file is not None:
            facts = facts.with_directory(str(file.absolute().parent))
            read = _read(file)
        problems = list(read.problems)
        settings = {setting.name: setting for setting in read.settings}
        for text in overrides:
            setting = parse_setting(text, COMMAND_LINE)
            if isinstance(setting, Problem):
                problems.append(setting)
            else:
                settings[setting.name] = setting
        _read_origin(settings, problems)
        opening = _Opening(environ, clock) if tables else None
        return cls._checked(settings, problems, read.warnings, facts, opening)

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, str],
        *,
        environ: Mapping[str, str] | None = None,
        facts: Facts | None = None,
        clock: Clock = time.monotonic,
    ) -> "Config":
        """The configuration with these settings, independent of the machine. Raises ConfigError.

        Without `facts` this host is called client.example, so that a test sees the same anywhere.
        """
        settings = {
            name: Setting(name=name, value=value.strip(SPACE), file=MAPPING)
            for name, value in mapping.items()
        }
        facts = Facts() if facts is None else facts
        return cls._checked(settings, [], (), facts, _Opening(environ or {}, clock))

    @classmethod
    def _checked(
        cls,
        settings: Mapping[str, Setting],
        problems: list[Problem],
        warnings: Sequence[str],
        facts: Facts,
        opening: "_Opening | None",
    ) -> "Config":
        expander = Expander(settings, facts)
        used = used_names(settings, expander)
        check = _Check(settings, expander, opening)
        check.everything(used)
        problems += check.problems
        if problems:
            raise ConfigError(problems)
        return cls(
            MappingProxyType(dict(settings)),
            (*warnings, *remarks(settings, expander, used), *check.warnings),
            expander,
            MappingProxyType(check.values),
            MappingProxyType(check.maps),
            MappingProxyType(check.lists),
            MappingProxyType(check.hosts),
        )

    # --- what a parameter says -----------------------------------------------------------------

    def text(self, name: str) -> str:
        """The expanded text of a parameter of any kind."""
        _row(name)
        return self._expander.value(name)

    def boolean(self, name: str) -> bool:
        """The value of a yes-or-no parameter."""
        value = self._value(name, Kind.BOOLEAN)
        assert isinstance(value, bool)
        return value

    def integer(self, name: str) -> int:
        """The value of a number parameter."""
        value = self._value(name, Kind.INTEGER)
        assert isinstance(value, int)
        return value

    def seconds(self, name: str) -> float:
        """The value of a time parameter, in seconds. What 0 means, the parameter says."""
        value = self._value(name, Kind.TIME)
        assert isinstance(value, float)
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """The items of a list parameter, in order; lower case where the legal words are listed."""
        value = self._value(name, Kind.WORDS)
        assert isinstance(value, tuple)
        return value

    def choice(self, name: str) -> str:
        """The word of a choice parameter, in lower case; may be empty where that is a choice."""
        value = self._value(name, Kind.CHOICE)
        assert isinstance(value, str)
        return value

    def maps(self, name: str) -> Maps:
        """The open lookup tables of a tables parameter; `find` of none at all answers None."""
        self._value(name, Kind.TABLES)
        return self._maps[name]

    def matches(self, name: str) -> StringList:
        """The open list of a parameter that keys are matched with; on an empty one is no key."""
        self._value(name, Kind.MATCHES)
        return self._lists[name]

    def hosts(self, name: str) -> HostList:
        """The open list of a parameter that hosts are matched with; on an empty one is none."""
        self._value(name, Kind.HOSTS)
        return self._hosts[name]

    # --- which parameter to ask ----------------------------------------------------------------

    def mirror(self, name: str, protocol: Protocol) -> str:
        """The parameter to read for this protocol in place of an smtp_ name (S172).

        `smtp_helo_timeout` is `lmtp_lhlo_timeout` for LMTP. A name without a twin stays itself.
        """
        return mirror_name(name, protocol)

    def for_transport(self, suffix: str, transport: str) -> str:
        """The parameter that holds for a transport, e.g. of "destination_concurrency_limit".

        `<transport>_<suffix>` where it is set or in the table, else the one for all transports
        (`default_<suffix>`, or `initial_destination_concurrency` for that one).
        """
        fallback = TRANSPORT_SUFFIXES[suffix]
        name = f"{transport}_{suffix}"
        return name if name in self._values and transport != "default" else fallback

    def is_set(self, name: str) -> bool:
        """Whether somebody set it, in main.cf or on the command line."""
        return name in self.settings

    def mentioned(self) -> frozenset[str]:
        """The names in the texts of all settings, those that nothing uses included."""
        return frozenset(used for name in self.settings for used in self._expander.mentions(name))

    def raw(self, name: str) -> str:
        """The text as set, or the default's, not expanded. LookupError: neither set nor known."""
        return self._expander.raw(name)

    def expanded(self, name: str) -> str:
        """The expanded text of any name, the user's own too; empty where it is not known.

        A text that nothing uses was not checked; where it is broken it is returned as it stands.
        """
        try:
            return self._expander.value(name)
        except BadValueError:
            return self._expander.raw(name)

    def default(self, name: str) -> str:
        """The text of the default, not expanded (computed ones: as computed here)."""
        _row(name)
        return self._expander.default(name)

    def default_expanded(self, name: str) -> str:
        """The value that the parameter would have if nothing at all were set."""
        _row(name)
        return self._expander.without_settings().value(name)

    def _value(self, name: str, kind: Kind) -> Value:
        row = _row(name)
        if row.kind is not kind:
            raise LookupError(f"{name} is of the kind {row.kind.value}, not {kind.value}")
        if name not in self._values:  # <transport>_... that nobody set
            raise LookupError(f"{name} is not set; ask for_transport() which name to read")
        return self._values[name]


def double_bounce_address(config: Config) -> str:
    """Where double bounces come from: $double_bounce_sender at this host, not at its myorigin."""
    return with_domain(config.text("double_bounce_sender"), config.text("myhostname"))


def _row(name: str) -> Parameter:
    row = find(name)
    if row is None:
        raise LookupError(f"{name} is not in the table of parameters")
    return row


def _read_origin(settings: dict[str, Setting], problems: list[Problem]) -> None:
    """Put the first line of the file in place of its name, as Debian's Postfix does for myorigin.

    Its main.cf has `myorigin = /etc/mailname`, and such a main.cf works here, too.
    """
    setting = settings.get("myorigin")
    if setting is None or not setting.value.startswith("/"):
        return
    try:
        with Path(setting.value).open(encoding="utf-8") as file:
            domain = file.readline(MAX_ORIGIN).strip()
        why = "" if domain else "the first line of that file is empty"
    except (OSError, ValueError) as exc:
        domain, why = "", f"cannot be read: {getattr(exc, 'strerror', None) or exc}"
    # $ is ours alone: a file is no main.cf. An unreadable one leaves the default, and is told of.
    if why:
        del settings["myorigin"]
        problems.append(
            Problem(
                file=setting.file,
                line=setting.line,
                parameter="myorigin",
                value=setting.value,
                why=why,
                expected="a domain, or a file with one in its first line",
            )
        )
    else:
        settings["myorigin"] = replace(setting, value=domain.replace("$", "$$"))


def _find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is None and (directory := environ.get("MAIL_CONFIG")):
        path = Path(directory)
    if path is None:
        usual = DEFAULT_DIRECTORY / "main.cf"
        with suppress(PermissionError):  # then it is not for us to say that there is none
            return usual if usual.exists() else None
        return usual
    with suppress(PermissionError):
        return path / "main.cf" if path.is_dir() else path
    return path


def _read(file: Path) -> MainCf:
    try:
        text = file.read_text(encoding="utf-8", errors="strict")
    except OSError as exc:
        why = f"cannot be read: {exc.strerror or exc}"
        raise ConfigError([Problem(file=str(file), line=0, why=why)]) from exc
    except UnicodeDecodeError as exc:
        line = file.read_bytes()[: exc.start].count(b"\n") + 1
        problem = Problem(file=str(file), line=line, why="not UTF-8 text", expected="UTF-8")
        raise ConfigError([problem]) from exc
    return parse_main_cf(text, str(file))


@dataclass(frozen=True, slots=True)
class _Opening:
    """What tables are opened with."""

    environ: Mapping[str, str]
    clock: Clock


class _Check:
    """Reads every value once and collects what is wrong."""

    def __init__(
        self,
        settings: Mapping[str, Setting],
        expander: Expander,
        opening: _Opening | None,
    ) -> None:
        self._settings = settings
        self._expander = expander
        self._opening = opening
        self._bad: set[str] = set()
        self.values: dict[str, Value] = {}
        self.maps: dict[str, Maps] = {}
        self.lists: dict[str, StringList] = {}
        self.hosts: dict[str, HostList] = {}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def everything(self, used: AbstractSet[str]) -> None:
        """Settings first, so that a mistake is reported where it was made, and once.

        Names that are not ours and that nothing uses may hold anything.
        """
        known = [row for name in self._settings if (row := find(name)) is not None]
        rest = [row for name, row in PARAMETERS.items() if name not in self._settings]
        for name in self._settings:
            if name in used and find(name) is None:
                self._expands(name)
        for row in (*known, *rest):
            self._parameter(row)

    def _parameter(self, row: Parameter) -> None:
        if row.read_only and row.name in self._settings:
            self._problem(row.name, "is computed and cannot be set", "the line removed")
            return
        text = self._expands(row.name)
        if text is None:
            return
        try:
            value = parse_value(row, text)
            self._open(row, value)
        except BadValueError as exc:
            self._problem(row.name, exc.why, exc.expected)
        except TableConfigError as exc:
            self._problem(row.name, exc.why, exc.expected)
        else:
            self.values[row.name] = value

    def _open(self, row: Parameter, value: Value) -> None:
        """Open what the value names, tables and files. Raises TableConfigError."""
        opened: Maps | StringList | HostList
        how = self._opening
        if how is None:
            return
        if row.kind is Kind.TABLES:
            assert isinstance(value, tuple)
            opened = open_maps(value, environ=how.environ, clock=how.clock)
            self.maps[row.name] = opened
        elif row.kind is Kind.MATCHES:
            assert isinstance(value, tuple)
            opened = open_string_list(value, environ=how.environ, clock=how.clock)
            self.lists[row.name] = opened
        elif row.kind is Kind.HOSTS:
            assert isinstance(value, tuple)
            features = self._readable("parent_domain_matches_subdomains")
            below = row.name in features.replace(",", " ").split()
            opened = open_host_list(value, environ=how.environ, clock=how.clock, below=below)
            self.hosts[row.name] = opened
        else:
            return
        self.warnings += (f"{row.name}: {text}" for text in opened.warnings)

    def _readable(self, name: str) -> str:
        """Its text, expanded if it can be."""
        try:
            return self._expander.value(name)
        except BadValueError:
            return self._expander.raw(name)

    def _expands(self, name: str) -> str | None:
        try:
            return self._expander.value(name)
        except BadValueError as exc:
            self._problem(name, exc.why, exc.expected)
            return None

    def _problem(self, name: str, why: str, expected: str) -> None:
        """Take down a mistake, unless it only follows from one that is already down."""
        involved = [used for used in self._expander.reachable(name) if used in self._settings]
        follows = any(used in self._bad for used in involved)
        self._bad.add(name)
        if follows:
            return
        setting = self._settings.get(name)
        if setting is None and involved:
            setting = self._settings[involved[0]]
        own = self._settings.get(name)
        value = own.value if own else PARAMETERS[name].default
        if name.endswith(_PASSWORDS) and _may_hold_passwords(self._readable(name)):
            kind = value.partition(":")[0]
            value = f"{kind}:..." if kind in _IN_PLACE else "..."
            why = "a table in it is wrong"
        self.problems.append(
            Problem(
                file=setting.file if setting else "default",
                line=setting.line if setting else 0,
                parameter=name,
                value=value if len(value) <= 200 else value[:200] + "...",
                why=why,
                expected=expected,
            )
        )


def _may_hold_passwords(text: str) -> bool:
    words = text.replace("proxy:", "").replace(",", " ").split()
    return any(word.partition(":")[0] not in _ELSEWHERE for word in words)
