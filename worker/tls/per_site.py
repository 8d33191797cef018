"""smtp_tls_per_site, the table that came before policies: levels by nexthop and by host (S129)."""

from collections.abc import Iterable
from typing import Final

from worker.config.values import BadValueError
from worker.tls.policy import Level

_WORDS: Final = {
    "none": Level.NONE,
    "may": Level.MAY,
    "must_nopeermatch": Level.ENCRYPT,
    "must": Level.VERIFY,
}
# Of two entries that are found the later one here wins: whatever is definite beats MAY, and what
# demands more beats NONE.
_ORDER: Final = (Level.MAY, Level.NONE, Level.ENCRYPT, Level.VERIFY)


def parse_site(text: str) -> Level:
    """The level of an entry, in any case of letters. Raises BadValueError."""
    level = _WORDS.get(text.strip().lower())
    if level is None:
        raise BadValueError(
            f'unknown TLS policy "{text[:100]}"', "NONE, MAY, MUST_NOPEERMATCH or MUST"
        )
    return level


def site_level(entries: Iterable[Level | None], general: Level) -> Level:
    """The level that entries come to; None: there was none. `general`: that of main.cf.

    An entry wins over main.cf, but for MAY, which cannot take back what main.cf demands.
    """
    found = [level for level in entries if level is not None]
    if not found:
        return general
    level = max(found, key=_ORDER.index)
    return max(level, general) if level is Level.MAY else level
