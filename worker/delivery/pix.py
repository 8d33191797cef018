"""Workarounds for mail servers behind a Cisco PIX firewall that meddles with SMTP (S066 to S069).

Such a firewall blanks the greeting. It may also spoil extensions, and lose a message whose final
dot does not come in a packet of its own. The devices are museum pieces; masked greetings still are
seen. What is configured, and for whom it holds, is decided here; `introduction.py` and
`transaction.py` do it.
"""

from dataclasses import dataclass
from typing import Final, Self

from protocol.reply import Reply
from protocol.request import DeliveryRequest, Protocol
from worker.config.config import Config
from worker.config.tables import Maps
from worker.network.address import Endpoint

DISABLE_ESMTP: Final = "disable_esmtp"  # HELO only
DELAY_DOTCRLF: Final = "delay_dotcrlf"  # a pause, then the final dot alone
WORKAROUNDS: Final = (DISABLE_ESMTP, DELAY_DOTCRLF)  # in the order in which they are told
# One object for all: tables are equal only if they are the same, and settings are compared.
_NO_TABLES: Final = Maps()
_MASKED: Final = frozenset("20 *\t\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class PixSettings:
    """One protocol's settings. Field comments name the parameter; defaults are its defaults."""

    workarounds: tuple[str, ...] = WORKAROUNDS  # smtp_pix_workarounds
    maps: Maps = _NO_TABLES  # smtp_pix_workaround_maps, by server address
    threshold: float = 500.0  # smtp_pix_workaround_threshold_time, seconds
    pause: float = 10.0  # smtp_pix_workaround_delay_time, seconds

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self:
        """Read the smtp_ or lmtp_ parameters; ConfigError was raised at load if one is bad."""

        def name(parameter: str) -> str:
            return config.mirror(parameter, protocol)

        return cls(
            workarounds=known_among(config.words(name("smtp_pix_workarounds")))[0],
            maps=config.maps(name("smtp_pix_workaround_maps")) or _NO_TABLES,
            threshold=config.seconds(name("smtp_pix_workaround_threshold_time")),
            pause=config.seconds(name("smtp_pix_workaround_delay_time")),
        )

    async def listed(self, endpoint: Endpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The workarounds for a server with a masked greeting, and words that are none.

        By address and never by name: a server's name is what DNS says. Raises TableError.
        """
        found = await self.maps.find(endpoint.address)
        if found is None:
            return self.workarounds, ()
        return known_among(found.replace(",", " ").split())

    def delays(self, request: DeliveryRequest) -> bool:
        """The message has waited so long that an earlier attempt may have failed for its dot."""
        return request.active - request.arrival >= self.threshold


AS_USUAL: Final = PixSettings()


def is_masked(greeting: Reply) -> bool:
    """Nothing but what a firewall leaves of a greeting stands there."""
    return _MASKED.issuperset(f"{greeting.code:03}" + "".join(greeting.lines))


def known_among(words: list[str] | tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The workarounds among `words`, in any case of letters, and the words that are none."""
    lower = [word.lower() for word in words]
    known = tuple(name for name in WORKAROUNDS if name in lower)
    return known, tuple(word for word in lower if word not in WORKAROUNDS)
