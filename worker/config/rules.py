"""The rules of pattern tables (regexp_table(5), pcre_table(5), cidr_table(5)).

    /pattern/flags text     !/pattern/flags text     if /pattern/flags ... endif
    network/bits text       !network/bits text       if network/bits ... endif

Rules are tried in order; the first that matches gives the text, with $1, ${1} or $(1) replaced by
what a group matched and $$ by a dollar sign. A rule that is broken is an error, where Postfix warns
and goes on without it: mail must not take another way because of a typing mistake.

Patterns are run by Python's `re`, on ASCII classes. It differs from the two libraries: of several
alternatives the first is taken, not the longest (POSIX); PCRE's flags U and E are refused. What has
no meaning in POSIX, but one in Perl, is refused in a regexp table, where Postfix reads "\\d" as the
letter d, and skips a rule with "(?". So are collating elements, and intervals of repetitions.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from worker.config.main_cf import logical_lines
from worker.config.table import TableConfigError

# What a key yields for $1... where the rule applies to it; None: it does not.
Groups = Sequence[str]
Match = Callable[[str], Groups | None]


class Sense(Enum):
    """Whether a rule is for the keys that match, or (with !) for those that do not."""

    MATCH = "match"
    MISMATCH = "mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a pattern is read: (text from its first character on, sense) -> match, number of
    groups, the text after it. The match knows of the negation: what it means for a key that is of
    another sort than the pattern, only the dialect can say.
    """

    read: Callable[[str, Sense], tuple[Match, int, str]]
    substitutes: bool  # whether $1 means a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A pattern with its text, or with the rules that hold where it matches (if ... endif)."""

    match: Match
    text: tuple[str | int, ...] = ()  # literal text and numbers of groups
    inner: "tuple[Rule, ...] | None" = None


def find_rule(rules: Sequence[Rule], key: str) -> str | None:
    """The text of the first rule that matches; None: none does."""
    for rule in rules:
        groups = rule.match(key)
        if groups is None:
            continue
        if rule.inner is None:
            return "".join(
                part if isinstance(part, str) else groups[part - 1] for part in rule.text
            )
        nested = find_rule(rule.inner, key)
        if nested is not None:
            return nested
    return None


def read_rules(text: str, place: str, dialect: Dialect) -> tuple[tuple[Rule, ...], list[str]]:
    """The rules of a text, and warnings. Raises TableConfigError naming place and line."""
    reader = _Reader(dialect)
    for number, line in logical_lines(text):
        try:
            reader.line(line, number)
        except TableConfigError as exc:
            raise TableConfigError(f"{place}:{number}: {exc.why}", exc.expected) from exc
    if reader.opened:
        number = reader.opened[-1].number
        raise TableConfigError(f"{place}:{number}: if without endif", "a line endif")
    return tuple(reader.rules), [f"{place}:{warning}" for warning in reader.warnings]


@dataclass(frozen=True, slots=True)
class _If:
    """An `if` whose `endif` is still to come."""

    number: int
    match: Match
    outer: list[Rule]  # the rules among which it stands


class _Reader:
    """Takes line after line; `rules` are those of the innermost open `if`."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.rules: list[Rule] = []
        self.opened: list[_If] = []
        self.warnings: list[str] = []

    def line(self, line: str, number: int) -> None:
        """Raises TableConfigError."""
        word, rest = _first_word(line)
        if word == "if":
            match, _, rest = _read_pattern(rest, self._dialect)
            self.opened.append(_If(number, match, self.rules))
            self.rules = []
        elif word == "endif":
            if not self.opened:
                raise TableConfigError("endif without if")
            opened = self.opened.pop()
            rule = Rule(match=opened.match, inner=tuple(self.rules))
            self.rules = [*opened.outer, rule]
        else:
            rule = _read_rule(line, self._dialect)
            self.rules.append(rule)
            if not rule.text:
                self.warnings.append(f"{number}: a pattern without text; its text is empty")
            return
        if rest:
            self.warnings.append(f'{number}: "{rest}" after {word} is not looked at')


def _first_word(line: str) -> tuple[str, str]:
    """The word a line begins with, in lower case, and the rest; "" where it has no if, endif."""
    match = re.match(r"(if|endif)(?![a-z0-9])\s*", line, re.IGNORECASE)
    return (match[1].lower(), line[match.end() :].strip()) if match else ("", line)


def _read_rule(line: str, dialect: Dialect) -> Rule:
    if line[0] in " \t":
        raise TableConfigError("a line that continues none", "no white space in front")
    match, groups, text = _read_pattern(line, dialect)
    parts = _read_text(text) if dialect.substitutes else (text,)
    highest = max((part for part in parts if isinstance(part, int)), default=0)
    if highest > groups:
        raise TableConfigError(
            f"${highest}, but there are {groups} groups (none where it must not match)"
        )
    return Rule(match=match, text=tuple(part for part in parts if part != ""))


def _read_pattern(line: str, dialect: Dialect) -> tuple[Match, int, str]:
    """Match, number of groups, and the text after the pattern."""
    sense = Sense.MATCH
    while line.startswith("!"):
        sense = Sense.MISMATCH if sense is Sense.MATCH else Sense.MATCH
        line = line[1:].lstrip()
    if not line:
        raise TableConfigError("no pattern")
    match, groups, rest = dialect.read(line, sense)
    return match, groups, rest.strip()


_GROUP = re.compile(r"\$(?:(\$)|([0-9]{1,3})|\{([0-9]{1,3})\}|\(([0-9]{1,3})\))", re.ASCII)


def _read_text(text: str) -> tuple[str | int, ...]:
    """Literal text and group numbers. Raises TableConfigError for a `$` with neither meaning."""
    parts: list[str | int] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        match = _GROUP.match(text, dollar)
        if match is None:
            raise TableConfigError('"$" without a number', "$1, ${1}, $(1), or $$ for the sign")
        digits = match[2] or match[3] or match[4]
        parts.append("$" if match[1] else int(digits))
        if parts[-1] == 0:
            raise TableConfigError("$0 is not a group", "$1 or higher")
        at = match.end()
    return tuple(part for part in (*parts, text[at:]) if part != "")


# --- networks ------------------------------------------------------------------------------------


def _read_network(line: str, sense: Sense) -> tuple[Match, int, str]:
    head, *rest = line.split(maxsplit=1)
    try:
        network = ipaddress.ip_network(_unbracketed(head))
    except ValueError as exc:
        raise TableConfigError(f"{exc}", "address or network/bits, host bits zero") from exc

    def match(key: str) -> Groups | None:
        try:
            address = ipaddress.ip_address(_unbracketed(key))
        except ValueError:  # not an address: nothing is said about it
            return None
        if address.version != network.version:  # nor about the other family, negated or not
            return None
        return () if (address in network) is (sense is Sense.MATCH) else None

    return match, 0, rest[0] if rest else ""


def _unbracketed(text: str) -> str:
    if not text.startswith("["):
        return text
    address, _, bits = text[1:].partition("]")
    return address + bits


# --- regular expressions -------------------------------------------------------------------------


def _read_expression(line: str) -> tuple[str, str, str]:
    """Pattern, flags and the rest of `/pattern/flags rest`."""
    delimiter = line[0]
    if delimiter.isalnum() or delimiter.isspace() or delimiter == "\\":
        raise TableConfigError(f'"{delimiter}" does not begin a pattern', "/pattern/flags text")
    at = 1
    while at < len(line) and line[at] != delimiter:
        at += 2 if line[at] == "\\" else 1
    if at >= len(line):
        raise TableConfigError(f'no second "{delimiter}"', "/pattern/flags text")
    match = re.compile(r"[A-Za-z]*").match(line, at + 1)
    assert match is not None
    rest = line[match.end() :]
    if rest and rest[0] not in " \t":
        raise TableConfigError(f'"{rest[0]}" is not a flag', "white space after the flags")
    return line[1:at], match[0], rest


def _compile(pattern: str, flags: int, *, anchored: bool, sense: Sense) -> tuple[Match, int]:
    try:
        compiled = re.compile(pattern, flags | re.ASCII)
    except (re.error, OverflowError, RecursionError) as exc:
        raise TableConfigError(f"the pattern {pattern} cannot be used: {exc}") from exc
    search = compiled.match if anchored else compiled.search

    def match(key: str) -> Groups | None:
        found = search(key)
        return None if found is None else found.groups(default="")

    def mismatch(key: str) -> Groups | None:
        return () if search(key) is None else None

    return (match, compiled.groups) if sense is Sense.MATCH else (mismatch, 0)


def _flags(letters: str, known: dict[str, int], default: int) -> int:
    """Flags after each letter has switched its own; letters that need no switch have 0."""
    flags = default
    for letter in letters:
        if letter not in known:
            raise TableConfigError(
                f'the flag "{letter}" is not supported', f"any of {''.join(known)}"
            )
        flags ^= known[letter]
    return flags


def _read_pcre(line: str, sense: Sense) -> tuple[Match, int, str]:
    pattern, letters, rest = _read_expression(line)
    known = {
        "i": int(re.IGNORECASE),
        "m": int(re.MULTILINE),
        "s": int(re.DOTALL),
        "x": int(re.VERBOSE),
        "A": 0,
        "X": 0,  # stricter escapes: Python always is
    }
    flags = _flags(letters, known, re.IGNORECASE | re.DOTALL)
    python = _translate(pattern, posix=False)
    match, groups = _compile(python, flags, anchored="A" in letters, sense=sense)
    return match, groups, rest


def _read_regexp(line: str, sense: Sense) -> tuple[Match, int, str]:
    pattern, letters, rest = _read_expression(line)
    known = {"i": int(re.IGNORECASE), "m": int(re.MULTILINE), "x": 0}
    if letters.count("x") % 2:
        raise TableConfigError('the flag "x" (basic expressions) is not supported', "no x")
    # POSIX without REG_NEWLINE: a dot matches a newline, too.
    flags = _flags(letters, known, re.IGNORECASE | re.DOTALL)
    match, groups = _compile(_translate(pattern, posix=True), flags, anchored=False, sense=sense)
    return match, groups, rest


_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r" \t\n\r\f\v",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "print": r" -~",
    "graph": r"!-~",
    "cntrl": r"\x00-\x1f\x7f",
    "xdigit": "0-9A-Fa-f",
    "word": r"\w",
}
_GNU_ESCAPES = {"<": r"\b(?=\w)", ">": r"\b(?<=\w)", "`": r"\A", "'": r"\Z"}
_ESCAPES = frozenset("wWsSbB123456789")  # letters and digits that mean something after a backslash
_INTERVAL = re.compile(r"\{([0-9]*)(,[0-9]*)?\}")
_REPEATS = ("*", "+", "?")


def _translate(pattern: str, *, posix: bool) -> str:
    """The pattern in Python's words. Raises TableConfigError where it would mean something else."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            escape = pattern[at + 1 : at + 2]
            parts.append(_posix_escape(escape) if posix else char + escape)
            at += 2
        elif char == "[":
            bracket, at = _translate_bracket(pattern, at, posix=posix)
            parts.append(bracket)
        elif char == "{":
            interval = _INTERVAL.match(pattern, at)
            _check_interval(interval, parts, posix=posix)
            parts.append(interval[0] if interval else char)
            at += len(parts[-1])
        elif char == "$" and posix:
            parts.append(r"(?!\n)$")  # a POSIX $ is the very end
            at += 1
        elif char in _REPEATS and posix and parts and parts[-1] in _REPEATS:
            # Neither lazy nor possessive there: "a*?" is "(a*)?".
            parts[-1] = char if char == parts[-1] else "*"
            at += 1
        elif char in _REPEATS and posix and parts and parts[-1].startswith("{"):
            raise TableConfigError(f"{parts[-1]}{char} repeats twice", "parentheses between them")
        elif char == "(" and posix and pattern.startswith("(?", at):
            raise TableConfigError("POSIX patterns have no (?...)", "a table of type pcre")
        else:
            parts.append(char)
            at += 1
    return "".join(parts)


def _posix_escape(char: str) -> str:
    """What a backslash and this character mean in a POSIX pattern, GNU's additions included."""
    if char.isascii() and char.isalnum() and char not in _ESCAPES:
        expected = "a class as [[:digit:]], or a table of type pcre"
        raise TableConfigError(f"\\{char} has no meaning in a POSIX pattern", expected)
    return _GNU_ESCAPES.get(char, f"\\{char}")


def _check_interval(interval: re.Match[str] | None, before: list[str], *, posix: bool) -> None:
    """Refuse what POSIX refuses, and what the two libraries, or two versions, read differently."""
    if interval is not None and not interval[1] and not posix:
        raise TableConfigError(f"{interval[0]} is not the same in all versions of PCRE", "{0,n}")
    if not posix:
        return
    if interval is None:
        raise TableConfigError('"{" without a number and "}"', "\\{ for the character")
    if not before or before[-1] in ("(", "|"):
        raise TableConfigError(f"{interval[0]} repeats nothing", "\\{ for the character")


def _translate_bracket(pattern: str, start: int, *, posix: bool) -> tuple[str, int]:
    """A bracket expression for Python, and the place after it."""
    at = start + 1
    out = "["
    if pattern[at : at + 1] == "^":
        out, at = "[^", at + 1
    first = at
    while at < len(pattern):
        char = pattern[at]
        if char == "]" and at > first:
            return out + "]", at + 1
        if pattern.startswith("[:", at) and (end := pattern.find(":]", at)) > 0:
            name = pattern[at + 2 : end]
            if name not in _CLASSES:
                raise TableConfigError(f"there is no class [:{name}:]", ", ".join(_CLASSES))
            out += _CLASSES[name]
            at = end + 2
        elif posix and pattern.startswith(("[.", "[="), at):
            raise TableConfigError(f"collating elements ({pattern[at : at + 2]}) are not supported")
        elif char == "\\" and not posix:
            out += pattern[at : at + 2]
            at += 2
        else:
            out += "\\" + char if char in "[]\\&~|" else char
            at += 1
    raise TableConfigError(f'"[" without "]" in {pattern[start:]}', "[...]")


CIDR = Dialect(read=_read_network, substitutes=False)
PCRE = Dialect(read=_read_pcre, substitutes=True)
REGEXP = Dialect(read=_read_regexp, substitutes=True)
