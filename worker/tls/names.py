"""Whether a certificate's names answer for the name that a policy asks for (RFC 6125, in part).

A pattern of a policy is a name, or ".example.com": everything below it. A name in a certificate may
begin with a wildcard: "*.example.com" stands for one label more, or for one or more
(tls_wildcard_matches_multiple_labels). Names are compared as A-labels (RFC 5891), without regard to
case and to a dot at their end. Nothing is read here but names.
"""

from collections.abc import Iterable
from typing import Final

import idna

MAX_NAME: Final = 253  # octets of a name without its last dot (RFC 1035 section 2.3.4)
MAX_LABEL: Final = 63
WILDCARD: Final = "*."
PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def find_match(names: Iterable[str], patterns: Iterable[str], *, many_labels: bool) -> str:
    """The first of a certificate's `names` that some pattern accepts, as it stands there, or ""."""
    wanted = [canonical for pattern in patterns if (canonical := _canonical_pattern(pattern))]
    for name in names:
        canonical = canonical_name(name)
        if canonical and any(_accepts(pattern, canonical, many_labels) for pattern in wanted):
            return name
    return ""


def canonical_name(name: str) -> str:
    """A certificate's name in lower case and A-labels; "" if it is none and must match nothing.

    A wildcard stays what it is: the whole of the first label.
    """
    wild = name.startswith(WILDCARD)
    base = _canonical(name[len(WILDCARD) :] if wild else name)
    if not base or not wild:
        return base
    if base.rpartition(".")[2].isdigit():
        return ""  # part of an address
    return WILDCARD + base


def _canonical_pattern(pattern: str) -> str:
    below = pattern.startswith(".")
    base = _canonical(pattern[1:] if below else pattern)
    return f".{base}" if base and below else base


def _canonical(name: str) -> str:
    """Lower case and A-labels; "" for what can be no host name."""
    name = name.removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            return ""
    name = name.lower()
    if len(name) > MAX_NAME:
        return ""
    for label in name.split("."):
        if not 0 < len(label) <= MAX_LABEL or not PLAIN.issuperset(label):
            return ""
    return name


def _accepts(pattern: str, name: str, many_labels: bool) -> bool:  # noqa: FBT001  # of three texts
    if pattern.startswith("."):
        # A wildcard below it stands for names below it, too.
        return name.endswith(pattern)
    if name.startswith(WILDCARD):
        suffix = name[1:]
        first, dot, rest = pattern.partition(".")
        if not first or not dot:
            return False
        return pattern.endswith(suffix) if many_labels else f".{rest}" == suffix
    return name == pattern
