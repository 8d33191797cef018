"""One entry of smtp_tls_policy_maps: a level, and attributes that differ from main.cf (S100).

    secure match=example.net:.example.net servername=hostname protocols=>=TLSv1.3

Attributes: protocols, ciphers, exclude, servername, wrappermode, each once; match and tafile, any
number of times; connection_reuse and enable_rpk, the last one counts. An attribute whose value
holds white space stands in braces: {name = value}.

Whatever is not understood is an error: an entry was written to demand something.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from worker.config.values import BadValueError, parse_boolean
from worker.tls.ciphers import Grade, parse_exclusions, parse_grade
from worker.tls.match import parse_match, parse_servername
from worker.tls.policy import Level, Version
from worker.tls.versions import parse_versions

LEVEL_WORDS: Final = tuple(level.word for level in Level)
# The levels that DNS decides about (RFC 7672); once they are, this is the place.
_DANE: Final = frozenset({"dane", "dane-only", "half-dane"})
_SEPARATORS: Final = ", \t\r\n"
_ONCE: Final = frozenset({"protocols", "ciphers", "exclude", "servername", "wrappermode"})
# What plug-ins for MTA-STS (RFC 8461) tell for reports (RFC 8460). Level and names are in the entry
# itself, so nothing is lost by not looking. Reports and a policy source of our own come later.
_FOR_REPORTS: Final = frozenset(
    {"policy_type", "policy_domain", "policy_ttl", "policy_string", "mx_host_pattern"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one entry says. None, or an empty tuple of names: as in main.cf."""

    level: Level
    versions: frozenset[Version] | None = None
    grade: Grade | None = None
    exclude: tuple[str, ...] | None = None  # in place of all exclusions of main.cf
    match: tuple[str, ...] = ()  # see `parse_match`; at level fingerprint: digests as written
    servername: str | None = None  # see `parse_servername`
    trust_files: tuple[str, ...] = ()
    shared: bool | None = None
    wrapper: bool | None = None

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """The meaning of an entry. Raises BadValueError."""
        items = _items(text)
        word = next(items, "")
        if not word:
            raise BadValueError("invalid empty policy", _levels())
        entry = cls(level=parse_level(word))
        if entry.level is Level.NONE:
            return entry  # attributes of TLS that is not there, as in Postfix
        seen: set[str] = set()
        for item in items:
            name, value = _pair(item)
            if name in _ONCE and name in seen:
                raise BadValueError(f'attribute "{name}" is specified multiple times', "it once")
            seen.add(name)
            entry = _with(entry, name, value)
        return entry


def parse_level(word: str) -> Level:
    """The level of its word, in any case of letters. Raises BadValueError."""
    lower = word.lower()
    if lower in _DANE:
        raise BadValueError(f'the security level "{lower}" is not supported yet', _levels())
    if lower not in LEVEL_WORDS:
        raise BadValueError(f'invalid security level "{word[:100]}"', _levels())
    return Level[lower.upper()]


def _levels() -> str:
    return ", ".join(LEVEL_WORDS)


# --- attributes ----------------------------------------------------------------------------------


def _with(entry: Entry, name: str, value: str) -> Entry:
    """The entry with one attribute more. Raises BadValueError."""
    if name in _FOR_REPORTS:
        return entry
    read = _ATTRIBUTES.get(name)
    if read is None:
        raise BadValueError(f'invalid attribute name: "{name[:100]}"', ", ".join(_ATTRIBUTES))
    least = _LEAST.get(name, Level.NONE)
    if entry.level < least:
        raise BadValueError(
            f'attribute "{name}" invalid at security level "{entry.level.word}"',
            f"{least.word} or a stronger level",
        )
    # An empty list of exclusions, or no name at all, is something to ask for.
    if not value and name not in {"exclude", "servername"}:
        raise BadValueError(f'attribute "{name}" has empty value', f"{name}=value")
    try:
        return read(entry, value)
    except BadValueError as exc:
        raise BadValueError(f'attribute "{name}" has bad value: {exc.why}', exc.expected) from exc


def _match(entry: Entry, value: str) -> Entry:
    if entry.level is Level.FINGERPRINT:  # digests hold colons
        words = _split(value, "|")
    else:
        words = tuple(parse_match(word) for word in _split(value.replace("|", ":"), ":"))
    return replace(entry, match=entry.match + words)


def _tafile(entry: Entry, value: str) -> Entry:
    return replace(entry, trust_files=(*entry.trust_files, value))


def _wrappermode(entry: Entry, value: str) -> Entry:
    wrapper = parse_boolean(value)
    if wrapper and not entry.level.mandatory:
        raise BadValueError(
            f'there is no way back to plain text for security level "{entry.level.word}"',
            "encrypt or a stronger level",
        )
    return replace(entry, wrapper=wrapper)


def _enable_rpk(entry: Entry, value: str) -> Entry:
    parse_boolean(value)  # certificates are asked for in either case
    return entry


def _policy_failure(entry: Entry, value: str) -> Entry:
    """The plug-in found the policy of the domain broken: nothing can prove anything then."""
    if entry.level.authenticated:
        raise BadValueError(f"the policy of the domain failed: {value[:100]}", "another policy")
    return entry


# Attributes that say something about proof, and from which level on there is any.
_LEAST: Final = {"match": Level.FINGERPRINT, "tafile": Level.VERIFY}

_ATTRIBUTES: Final[Mapping[str, Callable[[Entry, str], Entry]]] = {
    "protocols": lambda entry, value: replace(entry, versions=parse_versions(value)),
    "ciphers": lambda entry, value: replace(entry, grade=parse_grade(value)),
    "exclude": lambda entry, value: replace(entry, exclude=parse_exclusions(value)),
    "match": _match,
    "servername": lambda entry, value: replace(entry, servername=parse_servername(value)),
    "tafile": _tafile,
    "connection_reuse": lambda entry, value: replace(entry, shared=parse_boolean(value)),
    "wrappermode": _wrappermode,
    "enable_rpk": _enable_rpk,
    "policy_failure": _policy_failure,
}


# --- syntax --------------------------------------------------------------------------------------


def _items(text: str) -> Iterator[str]:
    """The parts between commas and white space; braces keep a part together.

    Raises BadValueError where braces are not balanced.
    """
    item, depth = "", 0
    for char in text:
        if depth == 0 and char in _SEPARATORS:
            if item:
                yield item
            item = ""
            continue
        depth += (char == "{") - (char == "}")
        if depth < 0:
            break
        item += char
    if depth != 0:
        raise BadValueError(f'braces are not balanced in "{text[:200]}"', "{name = value}")
    if item:
        yield item


def _pair(item: str) -> tuple[str, str]:
    """Name, in lower case, and value of `name=value` or `{name = value}`. Raises BadValueError."""
    text = item
    if text.startswith("{"):
        if not text.endswith("}"):
            raise BadValueError(f'text after the braces of "{item[:200]}"', "{name = value}")
        text = text[1:-1].strip()
    name, equals, value = text.partition("=")
    name = name.strip().lower()
    if not equals or not name or len(name.split()) > 1:
        raise BadValueError(f'malformed attribute/value pair "{item[:200]}"', "name=value")
    return name, value.strip()


def _split(value: str, separator: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in value.split(separator))
    if not all(words):
        raise BadValueError(f'an empty word in "{value[:200]}"', f"words between {separator}")
    return words
