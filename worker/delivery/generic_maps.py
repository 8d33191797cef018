"""smtp_generic_maps: what an address is called outside (S074, generic(5)).

Answers for one address: which keys are asked in which order, and what is made of the text that is
found. Only what goes over the wire is rewritten; whoever is told of a failure is told of the
address as it was.
"""

from dataclasses import dataclass
from typing import Self

from protocol.address import quote, split_extension
from protocol.address_field import find_addresses
from protocol.request import Protocol
from worker.config.config import Config
from worker.config.match_list import StringList
from worker.config.tables import Maps, TableError


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericMaps:
    """The tables, and what the search in them needs to know."""

    maps: Maps
    origin: str = "localhost"  # myorigin
    local_domains: StringList | None = None  # mydestination; None: no domain but the origin
    delimiter: str = ""  # recipient_delimiter
    propagates: bool = False  # propagate_unmatched_extensions has generic

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self | None:
        """The tables of smtp_generic_maps or lmtp_generic_maps; None: there are none."""
        maps = config.maps(config.mirror("smtp_generic_maps", protocol))
        if not maps:
            return None
        return cls(
            maps=maps,
            origin=config.text("myorigin"),
            local_domains=config.matches("mydestination"),
            delimiter=config.text("recipient_delimiter"),
            propagates="generic" in config.words("propagate_unmatched_extensions"),
        )

    async def find(self, address: str) -> str | None:
        """What takes the place of an address, both in internal form; None: it stays.

        The null address always stays. Raises TableError, also for a text that is no address: mail
        would leave under a name that nobody has chosen.
        """
        if not address:
            return None
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = domain, ""
        bare, extension = split_extension(local, self.delimiter)
        # Each key with the extension that it leaves out: the first is the whole address.
        keys = [(address, "")]
        if extension:
            keys.append((f"{bare}{at}{domain}", extension))
        if domain and await self._is_local(domain):
            keys.append((local, ""))
            if extension:
                keys.append((bare, extension))
        if domain:
            keys.append((f"@{domain}", ""))
        for number, (key, rest) in enumerate(keys):
            text = await self._look_up(key, partial=number > 0)
            if text is not None:
                return self._result(text, address, local, rest)
        return None

    async def _look_up(self, key: str, *, partial: bool) -> str | None:
        """As it is written, and then as it is meant, if that is something else."""
        for form in dict.fromkeys((quote(key) if not key.startswith("@") else key, key)):
            text = await self.maps.find(form, partial=partial)
            if text is not None:
                return text
        return None

    async def _is_local(self, domain: str) -> bool:
        if domain.casefold() == self.origin.casefold():
            return True
        return self.local_domains is not None and await self.local_domains.matches(domain)

    def _result(self, text: str, address: str, local: str, extension: str) -> str:
        text = text.strip()
        if text.startswith("@"):
            return f"{local}{text}"  # the extension is part of what is kept
        found = find_addresses(text)
        if len(found) != 1:
            raise TableError(f'generic maps: "{text}" for {address} is not one address')
        user, _, domain = found[0].address.rpartition("@")
        if not user:
            user, domain = domain, self.origin
        kept = extension if self.propagates else ""
        return f"{user}{kept}@{domain}"
