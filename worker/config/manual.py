"""Writes the reference of all parameters from the table: docs/parameters.md and the manual page.

`python -m worker.config.manual` in the top directory of the sources writes both files; a test
compares what is there with what would be written.
"""

from collections.abc import Iterator
from pathlib import Path

from worker.config.parameters import PARAMETERS, TRANSPORT_SUFFIXES, Kind, Parameter
from worker.config.rows_cache import DAEMON, REUSE
from worker.config.rows_client import DESTINATIONS, DIALOGUE, LIMITS
from worker.config.rows_content import CONTENT
from worker.config.rows_general import IDENTITY, LOGGING, PROCESSES
from worker.config.rows_queue import NOTICES, RETRIES, ROUTING, SCHEDULER, STORE
from worker.config.rows_sasl import SASL
from worker.config.rows_tls import TLS_CIPHERS, TLS_FORMER, TLS_LEVEL, TLS_PROOF, TLS_SESSIONS
from worker.config.values import range_in_words

SECTIONS: tuple[tuple[str, tuple[Parameter, ...]], ...] = (
    ("Finding a server", DESTINATIONS),
    ("Time and other limits of a session", LIMITS),
    ("The dialogue with the server", DIALOGUE),
    ("Changing the content on its way out", CONTENT),
    ("TLS: what a server must do", TLS_LEVEL),
    ("TLS: whom to believe, and who we are", TLS_PROOF),
    ("TLS: versions and ciphers", TLS_CIPHERS),
    ("TLS: using sessions and connections again", TLS_SESSIONS),
    ("TLS: parameters of former times", TLS_FORMER),
    ("Logging in at a server", SASL),
    ("Keeping connections", REUSE),
    ("The connection cache", DAEMON),
    ("The queue", STORE),
    ("Routing", ROUTING),
    ("Retries and lifetimes", RETRIES),
    ("The scheduler", SCHEDULER),
    ("Notices", NOTICES),
    ("Names", IDENTITY),
    ("Logging", LOGGING),
    ("Processes and postrio's own additions", PROCESSES),
)

SYNTAX = (
    "A line is name = value. A line that begins with white space continues the one before. A line"
    " whose first visible character is # is a comment; comments and empty lines do not end a value."
    " Of two settings of one name the last one holds.",
    "In a value, $name, ${name} and $(name) stand for the value of another parameter, and $$ for a"
    " dollar sign. ${name?{x}:{y}} is x where name has a text, y where it has none; ${name?text}"
    " and ${name:text} are one half of that, and nothing otherwise. ${{a} == {b} ? {x} : {y}}"
    " compares (==, !=, <, <=, >=, >): as numbers where both sides are, and as release numbers with"
    " the word level after the operator.",
    "A time is a whole number with s, m, h, d or w (seconds to weeks); without a letter, in the"
    " parameter's own unit. Times marked so take decimals, too. Items of a list are separated by"
    " commas or white space.",
    "A lookup table is type:name. Types: texthash:/file (lines of key, white space, text),"
    " inline:{key=text, ...}, static:text, regexp:/file, pcre:/file, cidr:/file, environ:name and"
    " fail:name; of files that Postfix's postmap(1) makes, hash:/file, btree:/file, cdb:/file and"
    " lmdb:/file. Changed files are read again within a second.",
    "Tables of tables: unionmap:{type:name, ...} has what all of them have for a key, with commas"
    " between; pipemap:{type:name, ...} asks each of them for what the one before answered;"
    " randmap:{text, ...} has any of its texts. Tables of servers: socketmap:inet:host:port:name,"
    " socketmap:unix:/path:name, tcp:host:port. A query to a database: sqlite:/file, pgsql:/file,"
    " mysql:/file or ldap:/file, where to and what for as in sqlite_table(5), pgsql_table(5),"
    " mysql_table(5) and ldap_table(5); the last three need an extra of the same name.",
    "A table that cannot answer defers mail. Tables of patterns, randmap and those of servers are"
    " asked for whole addresses only, unionmap and pipemap as the first of their tables.",
    "A list to match is searched in order, and the first item that fits a key decides: a name fits"
    " itself, in any case of letters, and type:table every key that it has, whatever the text. A"
    " /file stands for the items in it; lines that begin with # are comments. !item takes what it"
    " fits off the list.",
    "An unknown name is a warning, a value that cannot be used an error: nothing starts until it is"
    " right.",
)

PER_TRANSPORT = (
    "For any transport, <transport>_... overrides the parameter for all transports. These endings"
    " exist:"
)


def markdown() -> str:
    """The text of docs/parameters.md."""
    lines = ["# Parameters of postrio", ""]
    lines += ["<!-- Written by `python -m worker.config.manual`; change the table instead. -->", ""]
    for paragraph in SYNTAX:
        lines += [_escape(paragraph), ""]
    for title, rows in SECTIONS:
        lines += [f"## {title}", "", "| parameter | default | meaning |", "|---|---|---|"]
        lines += [_markdown_row(row) for row in rows]
        lines.append("")
    lines += ["## For one transport", "", _escape(PER_TRANSPORT), ""]
    lines += [
        f"- `<transport>_{suffix}` (else `{fallback}`)"
        for suffix, fallback in sorted(TRANSPORT_SUFFIXES.items())
    ]
    return "\n".join(lines) + "\n"


def man_page() -> str:
    """The text of docs/man/postrio.cf.5, for man(1)."""
    lines = [
        '.\\" Written by python -m worker.config.manual; change the table instead.',
        '.TH POSTRIO.CF 5 "" postrio "postrio manual"',
        ".ad l",
        ".SH NAME",
        "postrio.cf \\- the parameters of postrio's main.cf",
        ".SH DESCRIPTION",
    ]
    for number, paragraph in enumerate(SYNTAX):
        lines += [".PP"] * (number > 0) + [_roff(paragraph)]
    for title, rows in SECTIONS:
        lines.append(f".SH {_roff(title).upper()}")
        for row in rows:
            # Lists of ciphers are longer than a line, and may be broken behind a colon.
            default = _roff(row.default).replace(":", ":\\:") if row.default else "empty"
            lines += [".TP", f"\\fB{_roff(row.name)}\\fR (default: {default})"]
            lines.append(_roff(row.summary))
            lines += [item for note in _notes(row) for item in (".br", _roff(note))]
    lines += [".SH FOR ONE TRANSPORT", _roff(PER_TRANSPORT)]
    for suffix, fallback in sorted(TRANSPORT_SUFFIXES.items()):
        lines += [
            ".TP",
            f"\\fI<transport>\\fB_{_roff(suffix)}\\fR",
            f"Else {_roff(fallback)}.",
        ]
    return "\n".join(lines) + "\n"


def _notes(row: Parameter) -> Iterator[str]:
    """What else there is to say of a row, a sentence each."""
    yield f"{_kind_in_words(row)}. Since {row.source}."
    if row.mirror is not None:
        yield _twin_in_words(row, PARAMETERS[row.mirror.name])
    if row.deprecated:
        yield f"Deprecated: {row.deprecated}."
    if row.no_effect:
        yield f"No effect: {row.no_effect}."
    if row.read_only:
        yield "Computed; it can be mentioned but not set."


def _kind_in_words(row: Parameter) -> str:
    match row.kind:
        case Kind.BOOLEAN:
            return "Yes or no"
        case Kind.INTEGER:
            return _capital(range_in_words(row))
        case Kind.TIME:
            unit = "" if row.unit == "s" else f"; without a unit: {row.unit}"
            decimals = "; takes decimals" if row.fraction else ""
            return _capital(range_in_words(row)) + unit + decimals
        case Kind.WORDS:
            return "List of " + ", ".join(row.choices) if row.choices else "List"
        case Kind.TABLES:
            return "Lookup tables"
        case Kind.MATCHES | Kind.HOSTS:
            return _capital(row.kind.value)
        case Kind.CHOICE:
            return "One of " + ", ".join(choice or "nothing" for choice in row.choices)
        case Kind.TEXT:
            return _capital(row.expected) if row.expected else "Text"


def _twin_in_words(row: Parameter, twin: Parameter) -> str:
    if twin.default in {row.default, row.default.replace("$smtp_", "$lmtp_")}:
        return f"For LMTP: {twin.name}."
    return f"For LMTP: {twin.name} (default: {twin.default or 'empty'})."


def _markdown_row(row: Parameter) -> str:
    default = f"`{row.default}`" if row.default else "empty"
    notes = " ".join(_notes(row))
    return f"| `{row.name}` | {default} | {_escape(row.summary)}<br>{_escape(notes)} |"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in {".", "'"} else escaped


def main(top: Path) -> None:
    """Write both files below `top`."""
    for path, text in ((PARAMETERS_MD, markdown()), (MAN_PAGE, man_page())):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text, encoding="utf-8")


PARAMETERS_MD = Path("docs/parameters.md")
MAN_PAGE = Path("docs/man/postrio.cf.5")

if __name__ == "__main__":
    main(Path.cwd())
