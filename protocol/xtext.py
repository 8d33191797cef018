"""xtext: how DSN and XFORWARD values are written as one word (RFC 3461 section 4)."""

import re

from protocol.errors import RemoteProtocolError

_PLAIN = re.compile(rb"[!-*,-<>-~]*")  # printable ASCII but space, "+" and "="
_TO_HEX = re.compile(rb"[^!-*,-<>-~]")
_HEX = re.compile(rb"\+([0-9A-F]{2})")
_VALID = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_TO_POINT = re.compile(r"[^!-*,-<>-\[\]-~]")  # as _TO_HEX, and the backslash


def encode(text: str) -> str:
    """Return `text` as xtext; characters beyond ASCII as the hex of their UTF-8 octets.

    Surrogate escapes stand for single octets. UnicodeEncodeError for other lone surrogates.
    """
    octets = text.encode("utf-8", "surrogateescape")
    if not _PLAIN.fullmatch(octets):
        octets = _TO_HEX.sub(lambda match: b"+%02X" % match[0][0], octets)
    return octets.decode("ascii")


def decode(text: str) -> str:
    """Return what encode() was given. Raises RemoteProtocolError if `text` is no xtext."""
    octets = text.encode("utf-8", "surrogatepass")
    if not _VALID.fullmatch(octets):
        raise RemoteProtocolError(f"bad xtext {text[:100]!r}")
    octets = _HEX.sub(lambda match: bytes([int(match[1], 16)]), octets)
    return octets.decode("utf-8", "surrogateescape")


def encode_utf8_address(text: str) -> str:
    r"""Return `text` as utf-8-addr-xtext (RFC 6533 section 3): `\x{E9}` for what is not plain.

    The form for ORCPT=utf-8;... that passes servers with and without SMTPUTF8. Raises
    UnicodeEncodeError for surrogates, which no Unicode text has.
    """
    text.encode("utf-8")
    return _TO_POINT.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", text)
