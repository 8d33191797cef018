"""What the configuration says about changing a message's content on its way out (S070 to S084)."""

from dataclasses import dataclass, field
from typing import Final, Self

from protocol.capabilities import Capabilities
from protocol.line_length import has_longer_line
from protocol.request import DeliveryRequest, Protocol
from worker.config.config import Config
from worker.config.tables import Maps
from worker.delivery.generic_maps import GenericMaps

# One object for all: tables are equal only if they are the same, and settings are compared.
_NO_TABLES: Final = Maps()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentSettings:
    """One protocol's settings. Field comments name the parameter; defaults are its defaults."""

    line_limit: int = 998  # smtp_line_length_limit, octets; 0: lines stay as they are
    converts: bool = True  # disable_mime_output_conversion, the other way round
    nesting_limit: int = 100  # mime_nesting_limit
    boundary_limit: int = 2048  # mime_boundary_length_limit, octets
    header_checks: Maps = _NO_TABLES  # smtp_header_checks
    mime_header_checks: Maps = _NO_TABLES  # smtp_mime_header_checks
    nested_header_checks: Maps = _NO_TABLES  # smtp_nested_header_checks
    body_checks: Maps = _NO_TABLES  # smtp_body_checks
    generic: GenericMaps | None = None  # smtp_generic_maps; None: empty
    # There are checks: every content is looked at. Kept, because it is asked for every message.
    has_checks: bool = field(init=False)

    def __post_init__(self) -> None:
        """Draw the conclusions."""
        checks = (self.header_checks, self.mime_header_checks, self.nested_header_checks)
        object.__setattr__(self, "has_checks", any(map(bool, (*checks, self.body_checks))))

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self:
        """Read the smtp_ or lmtp_ parameters; ConfigError was raised at load if one is bad."""

        def maps(parameter: str) -> Maps:
            return config.maps(config.mirror(parameter, protocol)) or _NO_TABLES

        limit = config.integer(config.mirror("smtp_line_length_limit", protocol))
        return cls(
            # A line that goes on holds a space, and should hold something else.
            line_limit=max(limit, 2) if limit else 0,
            converts=not config.boolean("disable_mime_output_conversion"),
            nesting_limit=config.integer("mime_nesting_limit"),
            boundary_limit=config.integer("mime_boundary_length_limit"),
            header_checks=maps("smtp_header_checks"),
            mime_header_checks=maps("smtp_mime_header_checks"),
            nested_header_checks=maps("smtp_nested_header_checks"),
            body_checks=maps("smtp_body_checks"),
            generic=GenericMaps.from_config(config, protocol),
        )

    def converts_for(self, request: DeliveryRequest, announced: Capabilities) -> bool:
        """8-bit parts are to be encoded: the server takes 7 bits only, and there may be more.

        Never for a message that needs SMTPUTF8: its header could not be converted.
        """
        return (
            not announced.eightbitmime
            and self.converts
            and request.encoding != "7bit"
            and not request.options.requires_smtputf8
        )

    def leaves(self, request: DeliveryRequest, announced: Capabilities, content: bytes) -> bool:
        """This content is sent as it is, but for line ends and dots."""
        if self.has_checks or self.generic is not None:
            return False
        if not announced.eightbitmime and self.converts_for(request, announced):
            return False
        limit = self.line_limit
        return not (0 < limit < len(content) and has_longer_line(content, limit))


AS_IT_IS: Final = ContentSettings()
