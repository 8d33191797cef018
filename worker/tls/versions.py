"""Lists of protocol versions: smtp_tls_protocols, and `protocols=` of a policy (S107).

    >=TLSv1.2   <=TLSv1.3   >=0303     bounds; by name or by the hexadecimal number on the wire
    TLSv1.2                            only those that are named
    !TLSv1                             not this one

All that is said must hold. Unlike in Postfix, two bounds on one side are both kept, and what is
left may have holes: the library switches versions off one by one.
"""

import re
from typing import Final

from worker.config.values import BadValueError
from worker.tls.policy import Version

# Names of main.cf, in lower case, by the numbers on the wire (RFC 8446 section 4.2.1).
_NAMES: Final = {
    "sslv2": 0x0002,
    "sslv3": 0x0300,
    "tlsv1": int(Version.TLSV1),
    "tlsv1.1": int(Version.TLSV1_1),
    "tlsv1.2": int(Version.TLSV1_2),
    "tlsv1.3": int(Version.TLSV1_3),
}
_DEAD: Final = {"sslv2": "SSLv2", "sslv3": "SSLv3"}
_SEPARATORS: Final = re.compile(r"[,:\s]+")
_NUMBER: Final = re.compile(r"(0x)?0?[0-9a-f]{3}")
_EXPECTED: Final = ">=TLSv1.2, names from TLSv1 to TLSv1.3, or !name to exclude one"


def parse_versions(text: str) -> frozenset[Version]:
    """The versions that may be spoken: at least one; an empty text allows all.

    Raises BadValueError.
    """
    allowed = {int(version) for version in Version}
    named: set[int] = set()
    for item in _items(text):
        if item.startswith(">="):
            bound = _bound(item)
            allowed = {number for number in allowed if number >= bound}
        elif item.startswith("<="):
            bound = _bound(item)
            allowed = {number for number in allowed if number <= bound}
        elif item.startswith("!"):
            allowed.discard(_number(item[1:], item))
        else:
            named.add(_number(item, item))
    if named:
        allowed &= named
    if not allowed:
        raise BadValueError(f'no protocol version is left of "{text[:100]}"', _EXPECTED)
    return frozenset(Version(number) for number in allowed)


def dead_versions(text: str) -> tuple[str, ...]:
    """The names in a list that ask for what no library speaks any more; to exclude it is fine."""
    return tuple(dict.fromkeys(_DEAD[item.lower()] for item in _items(text) if _is_dead(item)))


def _is_dead(item: str) -> bool:
    return item.lower() in _DEAD


def _items(text: str) -> list[str]:
    return [item for item in _SEPARATORS.split(text) if item]


def _bound(item: str) -> int:
    name = item[2:].lower()
    if _NUMBER.fullmatch(name):
        return int(name, 16)
    return _number(name, item)


def _number(name: str, item: str) -> int:
    number = _NAMES.get(name.lower())
    if number is None:
        raise BadValueError(f'"{item[:100]}" is no protocol version', _EXPECTED)
    return number
