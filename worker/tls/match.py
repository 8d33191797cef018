"""What a certificate must show: the words of `match`, and the names and digests they come to.

    hostname       the server's name, as MX records or the nexthop gave it
    nexthop        the nexthop without brackets and port
    dot-nexthop    anything below the nexthop
    example.com    this name             .example.com   anything below it

At level fingerprint the words are digests (S117 to S120).
"""

import hashlib
import ipaddress
import re
from typing import Final

import idna

from worker.config.values import BadValueError

HOSTNAME: Final = "hostname"
NEXTHOP: Final = "nexthop"
DOT_NEXTHOP: Final = "dot-nexthop"
WORDS: Final = frozenset({HOSTNAME, NEXTHOP, DOT_NEXTHOP})

FORGEABLE: Final = frozenset({"md5", "sha1"})

_LABELS: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_HEX: Final = re.compile(r"[0-9a-f]*")


def a_label(name: str) -> str:
    """A host or domain name as certificates hold it: A-labels, lower case, no dot at the end.

    What has no such form comes back in lower case: no certificate will match it.
    """
    name = name.removesuffix(".").lower()
    if name.isascii():
        return name
    try:
        return idna.encode(name, uts46=True).decode("ascii").removesuffix(".")
    except (idna.IDNAError, UnicodeError):
        return name


def is_host_name(name: str) -> bool:
    """Whether it has the form of a host name in A-labels: no address, no empty label."""
    return _LABELS.fullmatch(name) is not None and not is_address(name)


def is_address(name: str) -> bool:
    """Whether it is a numeric address, which is never sent as SNI (RFC 6066 section 3)."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def parse_match(word: str) -> str:
    """A word of `match` in the one form we compare. Raises BadValueError."""
    if word.lower() in WORDS:
        return word.lower()
    dot = "." if word.startswith(".") else ""
    name = a_label(word.removeprefix("."))
    if not is_host_name(name) and (dot or not is_address(name)):
        raise BadValueError(
            f'"{word[:100]}" is no name to match',
            "hostname, nexthop, dot-nexthop, example.com, or .example.com for all below it",
        )
    return dot + name


def parse_servername(text: str) -> str:
    """`hostname`, `nexthop`, a name in A-labels, or nothing. Raises BadValueError."""
    if not text or text.lower() in {HOSTNAME, NEXTHOP}:
        return text.lower()
    name = a_label(text)
    if not is_host_name(name):
        raise BadValueError(
            f'"{text[:100]}" specifies an invalid hostname', "hostname, nexthop or a host name"
        )
    return name


def parse_digest_name(text: str) -> str:
    """The digest algorithm of this name, as hashlib calls it. Raises BadValueError."""
    name = text.lower().replace("-", "_")
    if name in hashlib.algorithms_available and _digits(name):
        return name
    raise BadValueError(f'there is no digest "{text[:100]}"', "sha256, sha512 or the like")


def parse_digest(text: str, algorithm: str) -> str:
    """A digest as lower case digits without colons. Raises BadValueError."""
    digits = text.replace(":", "").lower()
    size = _digits(algorithm)
    if not _HEX.fullmatch(digits) or len(digits) != size:
        expected = f"{size} hexadecimal digits, maybe colons"
        # openssl x509 -fingerprint prints "sha256 Fingerprint=AB:CD:..."; all of it gets copied.
        if "fingerprint" in text.lower() or text.lower() in hashlib.algorithms_available:
            expected += ": of what openssl prints only what stands behind Fingerprint="
        raise BadValueError(f'"{text[:200]}" is no {algorithm} digest', expected)
    return digits


def _digits(algorithm: str) -> int:
    """Hexadecimal digits of a digest; 0: of any length (shake), or switched off in the library."""
    try:
        return 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size
    except ValueError:
        return 0


def expand(words: tuple[str, ...], nexthop: str, host: str) -> tuple[str, ...]:
    """The names that parsed words come to, each once.

    `nexthop` and `host`: as `a_label` makes them; empty: there is none.
    """
    meaning = {HOSTNAME: host, NEXTHOP: nexthop, DOT_NEXTHOP: f".{nexthop}" if nexthop else ""}
    names = (meaning.get(word, word) for word in words)
    return tuple(dict.fromkeys(name for name in names if name))


def expand_servername(word: str, nexthop: str, host: str) -> str:
    """The name to send; nothing where that is a numeric address, or no name of DNS."""
    name = {HOSTNAME: host, NEXTHOP: nexthop}.get(word, word)
    return name if is_host_name(name) else ""
