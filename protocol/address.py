"""Mail addresses: internal form (local part unquoted) <-> external form (RFC 5321 section 4.1.2).

The internal form is what queues and requests hold: the text after unquoting, UTF-8, octets that
are no UTF-8 as surrogate escapes. Its domain is what follows the *last* `@`. The external form is
what goes on the wire and into logs: the local part as a quoted string where it must be. A quoted
local part can therefore never be read as another domain, in either direction.
"""

import re
from typing import Final

import idna

LOCAL_PART_LIMIT: Final = 256  # octets; RFC 5321 says 64, but VERP and SRS make longer ones
DOMAIN_LIMIT: Final = 255  # octets, RFC 5321 section 4.5.3.1.2

# RFC 5322 atext, and every non-ASCII character that is no C1 control (RFC 6531 section 3.3).
_ATEXT: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\xa0-\U0010ffff]+"
_DOT_STRING = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_TO_ESCAPE = re.compile(r'["\\]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Loose about the shape of labels (DNS will tell), strict about what could end or split a path.
_DOMAIN = re.compile(
    r'[^\x00-\x20\x7f-\xa0<>()\[\]\\,;:@"]+|\[[^\x00-\x20\x7f-\xa0<>()\[\]\\,;@"]+\]'
)
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^"\\<>@]+)', re.DOTALL)


# Whole names, whatever the delimiters; with a hyphen among them also owner-list and list-request.
_WHOLE: Final = frozenset({"postmaster", "mailer-daemon", "double-bounce"})


class AddressError(ValueError):
    """This text is no mail address, or no domain; the message says why, for a person."""


def split_address(address: str) -> tuple[str, str]:
    """Return (local part, domain) of an internal-form address; the domain may be empty."""
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (domain, "")


def with_domain(address: str, domain: str) -> str:
    """An address with this domain where it has none; the null address stays."""
    return address if not address or "@" in address else f"{address}@{domain}"


def split_extension(local: str, delimiters: str) -> tuple[str, str]:
    """Return user and extension of a local part; the extension begins with its delimiter, if any.

    Not every local part is split (recipient_delimiter in postconf(5)): an address of the mail
    system or of a mailing list is nobody's with an extension.
    """
    places = [place for place, char in enumerate(local) if char in delimiters and place]
    if not places:
        return local, ""
    name = local.lower()
    if name in _WHOLE:
        return local, ""
    if "-" in delimiters and (
        name.startswith("owner-") or name.removesuffix("-request") not in {name, ""}
    ):
        return local, ""
    return local[: places[0]], local[places[0] :]


def quote(address: str) -> str:
    """Return the external form of an internal-form address. Never fails; the null one is empty.

    Only the local part is quoted, and only where RFC 5321 needs it. Control characters pass
    unchanged: who writes to a wire or log refuses or escapes them.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = domain, ""
    if _DOT_STRING.fullmatch(local) or not address:
        return address
    escaped = _TO_ESCAPE.sub(r"\\\g<0>", local)
    return f'"{escaped}"{at}{domain}'


def unquote(text: str) -> str:
    """Return the internal form of an external-form address, without angle brackets.

    Quoted words are taken wherever they stand in the local part (RFC 5322 `word . word`).
    Raises AddressError if quotes are unbalanced, if an unquoted `@` appears twice, or if the
    domain is quoted.
    """
    words, position = [], 0
    while match := _WORD.match(text, position):
        quoted, bare = match.groups()
        words.append(bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
        position = match.end()
    rest = text[position:]
    if not rest:
        return "".join(words)
    domain = rest[1:]
    if rest[0] == "@" and "@" in domain:
        raise AddressError(f"{_shown(text)} has more than one @; quote the local part")
    if rest[0] != "@" or '"' in domain or "\\" in domain:
        raise AddressError(f"{_shown(text)} is not quoted as an address should be")
    return f"{''.join(words)}@{domain}"


def parse_mailbox(text: str) -> str:
    """Return the checked internal form of what a person typed: `a@b`, `<a@b>`, `"a b"@x`.

    Raises AddressError, also for an empty address.
    """
    address = unquote(_without_brackets(text))
    check_address(address)
    return address


def parse_reverse_path(text: str) -> str:
    """As parse_mailbox(), but an empty text or `<>` is the null reverse-path: returns ""."""
    return parse_mailbox(text) if _without_brackets(text) else ""


def check_address(address: str) -> None:
    """Raise AddressError unless this internal-form address can be put on the wire safely.

    Refused: empty; control characters; a local part over LOCAL_PART_LIMIT or a domain over
    DOMAIN_LIMIT octets; an empty domain after `@`, or one with characters that no domain has. An
    address without `@` passes.
    """
    if not address:
        raise AddressError("the address is empty")
    if _CONTROL.search(address):
        raise AddressError(f"{_shown(address)} contains a control character")
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = domain, ""
    if _octets(local, address) > LOCAL_PART_LIMIT:
        raise AddressError(
            f"{_shown(address)}: local part is longer than {LOCAL_PART_LIMIT} octets"
        )
    if _octets(domain, address) > DOMAIN_LIMIT:
        raise AddressError(f"{_shown(address)}: domain is longer than {DOMAIN_LIMIT} octets")
    if at and not domain:
        raise AddressError(f"{_shown(address)} has no domain after the @")
    if at and not is_domain(domain):
        raise AddressError(f"{_shown(address)}: bad domain {_shown(domain)}")


def is_domain(domain: str) -> bool:
    """True if `domain` can follow an `@` on the wire: a name, or an address literal in brackets.

    Loose: it may still not exist, or not be a valid DNS name.
    """
    return _DOMAIN.fullmatch(domain) is not None


def domain_to_ascii(domain: str) -> str:
    """Return the A-label form of an internationalised domain (RFC 5890, UTS 46 mapping).

    ASCII domains and address literals come back unchanged. Raises AddressError naming the domain.
    """
    if domain.isascii():
        return domain
    if len(domain) > DOMAIN_LIMIT:
        raise AddressError(f"domain {_shown(domain)} is longer than {DOMAIN_LIMIT} characters")
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as exc:
        raise AddressError(f"bad internationalised domain {_shown(domain)}: {exc}") from exc


def needs_smtputf8(address: str) -> bool:
    """True if only SMTPUTF8 (RFC 6531) can carry this internal-form address.

    That is: its local part is not ASCII, or its domain has no A-label form.
    """
    if address.isascii():
        return False
    local, domain = split_address(address)
    if not local.isascii():
        return True
    try:
        domain_to_ascii(domain)
    except AddressError:
        return True
    return False


def to_ascii(address: str) -> str:
    """Return the address with its domain as A-labels, for a server without SMTPUTF8.

    Raises AddressError if needs_smtputf8(address).
    """
    if address.isascii():
        return address
    local, domain = split_address(address)
    if not local.isascii():
        raise AddressError(f"{_shown(address)}: the local part needs SMTPUTF8")
    return f"{local}@{domain_to_ascii(domain)}"


def _without_brackets(text: str) -> str:
    text = text.strip(" \t")
    if text.startswith("<") and text.endswith(">"):
        return text[1:-1]
    return text


def _octets(text: str, address: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as exc:
        raise AddressError(f"{_shown(address)} is not valid UTF-8 text") from exc


def _shown(text: str) -> str:
    """The text as a message shows it: at most 100 characters, nothing unprintable."""
    return "".join(char if char.isprintable() else "?" for char in text[:100])
