"""The %-templates of tables in databases (sqlite_table(5), and the same in its kin).

    %%  a percent sign       %s  the value       %u  its local part       %d  its domain
    %S %U %D  the same of the key    %1 ... %9  the labels of the key's domain, the last one first

A query is SQL. What it takes from the key never becomes part of it: a text in single quotes with an
expansion in it becomes one parameter, as does an expansion without quotes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from worker.config.table import TableConfigError

LETTERS: Final = "%sudSUD123456789"
RESULT_LIMIT: Final = 100_000  # characters of all values together


@dataclass(frozen=True, slots=True)
class Parts:
    """A text, and what it has as an address. `domain` "": it is none."""

    whole: str
    local: str
    domain: str

    @classmethod
    def of(cls, text: str) -> "Parts":
        """The parts of a key or value; without "@" the local part is all of it."""
        local, at, domain = text.rpartition("@")
        return cls(text, local, domain) if at else cls(text, text, "")

    @property
    def labels(self) -> list[str]:
        """The labels of the domain, empty ones left out, as in Postfix."""
        return [label for label in self.domain.split(".") if label]


@dataclass(frozen=True, slots=True)
class Template:
    """A text with expansions: pairs of the literal text before one, and its letter ("": none)."""

    pieces: tuple[tuple[str, str], ...]

    @property
    def letters(self) -> frozenset[str]:
        """The expansions that it has."""
        return frozenset(letter for _, letter in self.pieces if letter)

    def expand(self, value: Parts, key: Parts) -> str:
        """The text for a value found with a key; for a query both are the key."""
        return "".join(
            text + (_expansion(letter, value, key) if letter else "")
            for text, letter in self.pieces
        )


def _expansion(letter: str, value: Parts, key: Parts) -> str:
    match letter:
        case "s" | "S":
            return (value if letter == "s" else key).whole
        case "u" | "U":
            return (value if letter == "u" else key).local
        case "d" | "D":
            return (value if letter == "d" else key).domain
    return key.labels[-int(letter)]


def read_template(text: str, what: str) -> Template:
    """The template of a text. `what` names it in errors. Raises TableConfigError."""
    pieces: list[tuple[str, str]] = []
    literal, at = "", 0
    while (percent := text.find("%", at)) >= 0:
        literal += text[at:percent]
        letter = text[percent + 1 : percent + 2]
        if not letter or letter not in LETTERS:
            raise TableConfigError(
                f'"%{letter}" in {what}', "%s, %u, %d, %S, %U, %D, %1 to %9, or %% for the sign"
            )
        if letter == "%":
            literal += "%"
        else:
            pieces.append((literal, letter))
            literal = ""
        at = percent + 2
    pieces.append((literal + text[at:], ""))
    return Template(tuple(pieces))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a key must have before it is looked up: else it is not found, and nobody is asked."""

    local: bool  # a local part, if it has a domain
    labels: int  # so many labels that are not empty; 0: no domain needed
    domain: bool

    @classmethod
    def of(cls, query: frozenset[str], result: frozenset[str]) -> "Needs":
        """The needs of these expansions in a query and in a result."""
        of_key = query | (result - set("sud"))
        labels = max((int(letter) for letter in of_key if letter.isdigit()), default=0)
        return cls(
            local=bool(of_key & set("uU")), labels=labels, domain=bool(of_key & set("dD") or labels)
        )

    def met_by(self, key: Parts) -> bool:
        """Whether this key is worth a query."""
        if not key.whole or (self.domain and not key.domain):
            return False
        if self.local and not key.local:
            return False
        return not self.labels or len(key.labels) >= self.labels


@dataclass(frozen=True, slots=True)
class ResultFormat:
    """result_format: what becomes of each value that a query found."""

    template: Template

    def apply(self, value: str, key: Parts) -> str | None:
        """The text for a value; None: it lacks what the format needs, and is left out."""
        parts, letters = Parts.of(value), self.template.letters
        if not value or ("d" in letters and not parts.domain):
            return None
        if "u" in letters and not parts.local:
            return None
        return self.template.expand(parts, key)


@dataclass(frozen=True, slots=True)
class Query:
    """SQL with parameters, and the template of each parameter's text."""

    sql: str
    parameters: Mapping[str, Template]

    @property
    def letters(self) -> frozenset[str]:
        """The expansions that it has."""
        return frozenset[str]().union(*(each.letters for each in self.parameters.values()))

    def texts(self, key: Parts) -> dict[str, str]:
        """The parameters for a key."""
        return {name: each.expand(key, key) for name, each in self.parameters.items()}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What must be known of an SQL to find its texts."""

    quotes: str  # of texts; a text has its own quote twice for one
    backslashes: bool  # mean something in a text
    names: str  # how names in quotes begin
    doubles: bool  # the driver wants a percent sign twice, too
    # In this order: texts and names in quotes, comments, expansions, anything else.
    token: re.Pattern[str]


def _dialect(
    quotes: str, names: str, *kinds: str, backslashes: bool = False, doubles: bool = False
) -> Dialect:
    """`kinds`: what else must be passed over as a whole, as patterns."""
    plain = r"(?:[^'\\]|''|\\.)*" if backslashes else "(?:[^']|'')*"
    texts = [f"{quote}{plain.replace(chr(39), quote)}{quote}" for quote in quotes]
    pattern = "|".join((*texts, *kinds, r"/\*.*?\*/", "%.?", r"[\w\s]+", "."))
    return Dialect(quotes, backslashes, names, doubles, re.compile(pattern, re.DOTALL))


_DOUBLE_QUOTED: Final = '"(?:[^"]|"")*"'
_BACK_QUOTED: Final = "`(?:[^`]|``)*`"
SQLITE: Final = _dialect("'", '"`[', _DOUBLE_QUOTED, _BACK_QUOTED, r"\[[^\]]*\]", "--[^\n]*")
PGSQL: Final = _dialect("'", '"', _DOUBLE_QUOTED, "--[^\n]*", r"\$(\w*)\$.*?\$\1\$")
MYSQL: Final = _dialect(
    "'\"", "`", _BACK_QUOTED, r"--\s[^\n]*", "\\#[^\n]*", backslashes=True, doubles=True
)

# What may stand right before a text and is one with it: E'...', N'...', _utf8'...', U&'...'.
_PREFIX = re.compile(r"(?:\b[BENX]|\bU&|\b_\w+)\Z", re.IGNORECASE)


def read_query(text: str, mark: Callable[[str], str], dialect: Dialect = SQLITE) -> Query:
    """The query of a template. `mark` makes a parameter's place of its name, such as ":name".

    Raises TableConfigError where an expansion could not be a parameter.
    """
    sql: list[str] = []
    parameters: dict[str, Template] = {}
    after_expansion = False  # without quotes
    for match in dialect.token.finditer(text):
        token = match[0]
        if len(token) == 1 and token in dialect.quotes + dialect.names:
            raise TableConfigError(f"the query has {token} without its partner")
        quoted = token[0] in dialect.quotes
        inside = token[1:-1].replace(token[0] * 2, token[0]) if quoted else token
        template = read_template(inside, "the query")
        if after_expansion and (token[0].isalnum() or token[0] == "_"):
            raise TableConfigError(f"the query has an expansion before {token.split()[0]}", _QUOTED)
        after_expansion = bool(template.letters) and not quoted
        if template.letters:
            _check_place(token, text[: match.start()], dialect, quoted=quoted)
            name = f"postrio{len(parameters) + 1}"
            parameters[name] = template
            sql.append(mark(name))
        else:
            sql.append(token if dialect.doubles else token.replace("%%", "%"))
    return Query("".join(sql), parameters)


_QUOTED: Final = "expansions in single quotes, as '%s'"


def _check_place(token: str, before: str, dialect: Dialect, *, quoted: bool) -> None:
    """Whether an expansion can be a parameter there. Raises TableConfigError."""
    if not quoted and not token.startswith("%"):
        raise TableConfigError(f"the query has an expansion in {token}", _QUOTED)
    if quoted and dialect.backslashes and "\\" in token:
        raise TableConfigError(
            f"the query has an expansion beside a backslash in {token}",
            "CONCAT(...) of that text and one with the expansion",
        )
    glued = _PREFIX.search(before) if quoted else re.search(r"\w\Z", before)
    if glued:
        raise TableConfigError(f"the query has an expansion in {glued[0]}{token}", _QUOTED)


class TooMuchError(Exception):
    """More was found than may be. The text says what."""


def joined(values: Iterable[str], result: ResultFormat, key: Parts, limit: int) -> str | None:
    """The values, as the format has them, with commas between; None: there is none.

    `limit` of values: expansion_limit, 0 for none. Raises TooMuchError.
    """
    found: list[str] = []
    size = 0
    for value in values:
        text = result.apply(value, key)
        if text is None:
            continue
        found.append(text)
        size += len(text) + 1
        if len(found) > limit > 0:
            raise TooMuchError(f"more than {limit} values")
        if size > RESULT_LIMIT:
            raise TooMuchError(f"more than {RESULT_LIMIT} characters")
    return ",".join(found) or None
