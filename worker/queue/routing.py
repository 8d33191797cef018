"""Which transport and nexthop a recipient gets: transport_maps, relayhost, default_transport.

The order is trivial-rewrite(8)'s for mail that leaves this host. What a worker is not needed for
(error:, retry:, discard:, trouble with a table) is decided here as well.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from typing import Protocol as TypingProtocol

from protocol.address import split_extension
from protocol.outcome import Action
from protocol.request import Protocol
from protocol.value import value
from worker.config.config import Config, double_bounce_address
from worker.config.tables import TableError
from worker.queue.settings import TRANSPORTS

UNAVAILABLE: Final = "mail transport unavailable"
_KNOWN_LIMIT: Final = 10_000  # domains
_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)", re.ASCII)


@value()
class Delivery:
    """A worker delivers to this destination."""

    transport: str
    nexthop: str
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decided without a worker. `program` is who says so in the log."""

    program: str  # "error", "discard"
    action: Action
    dsn: str
    reason: str


Route = Delivery | Verdict

# Whatever comes back to the sender of double bounces: the end of every loop of notices.
_DISCARDED: Final = Verdict("qmgr", Action.SENT, "2.0.0", "mail for double bounces is discarded")


class Lookup(TypingProtocol):
    """The lookup tables of transport_maps; worker.config.tables.Maps is one."""

    async def find(self, key: str, *, partial: bool = False) -> str | None:
        """The text of a key; None: not found. Raises TableError."""


class ParentDomains(Enum):
    """How a table entry for a domain reaches its subdomains."""

    DOTTED = "dotted"  # only where it is written with a leading dot
    PLAIN = "plain"  # always (parent_domain_matches_subdomains has transport_maps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """The routing of one configuration. route() may run in any number of tasks."""

    tables: Lookup | None = None  # transport_maps; None: empty
    default_transport: str = "smtp"  # default_transport: transport or transport:nexthop
    relayhost: str = ""  # relayhost
    origin: str = "localhost"  # myorigin: the domain of recipients without one
    delimiter: str = ""  # recipient_delimiter
    empty_recipient: str = "MAILER-DAEMON"  # empty_address_recipient
    double_bounce: str = ""  # the address that double bounces come from, in lower case
    parents: ParentDomains = ParentDomains.DOTTED
    transports: Mapping[str, Protocol] = field(default_factory=lambda: TRANSPORTS)
    # Routes without a table, by domain: the usual case, once per message.
    _known: dict[str, Route] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_config(cls, config: Config) -> "Router":
        """The routing that the configuration describes."""
        maps = config.maps("transport_maps")
        plain = "transport_maps" in config.words("parent_domain_matches_subdomains")
        return cls(
            tables=maps or None,
            default_transport=config.text("default_transport"),
            relayhost=config.text("relayhost"),
            origin=config.text("myorigin"),
            delimiter=config.text("recipient_delimiter"),
            empty_recipient=config.text("empty_address_recipient"),
            double_bounce=double_bounce_address(config).lower(),
            parents=ParentDomains.PLAIN if plain else ParentDomains.DOTTED,
        )

    @property
    def may_wait(self) -> bool:
        """route() may have to wait for others: a table may be on a server."""
        return self.tables is not None

    async def route(self, address: str) -> Route:
        """The route of a recipient (internal form). Trouble with a table is a deferral, 4.3.0."""
        if self.double_bounce and address.lower() == self.double_bounce:
            return _DISCARDED
        if self.tables is None:
            domain = self._domain(address)
            known = self._known.get(domain)
            if known is None:
                if len(self._known) >= _KNOWN_LIMIT:
                    self._known.clear()
                known = self._known[domain] = self._default(domain)
            return known
        address = address or self.empty_recipient
        try:
            found = await self._look_up(self.tables, address)
        except TableError as exc:
            return Verdict("error", Action.DEFERRED, "4.3.0", f"transport_maps: {exc}")
        return self._resolve(found, self._domain(address))

    async def _look_up(self, tables: Lookup, address: str) -> str:
        # Whole address first, then without extension, then its parts: transport(5). The first as
        # it is written, for patterns tell letters apart; what other tables do, they do themselves.
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, self.origin
        found = await tables.find(f"{local}@{domain}")
        if found is None:
            for key in self._partial_keys(local.lower(), domain.lower()):
                found = await tables.find(key, partial=True)
                if found is not None:
                    break
        return found or ""

    def _partial_keys(self, local: str, domain: str) -> Iterator[str]:
        user, extension = split_extension(local, self.delimiter)
        if extension:
            yield f"{user}@{domain}"
        if domain:
            yield domain
        if not domain.startswith("["):  # an address literal has no parent
            dot = "." if self.parents is ParentDomains.DOTTED else ""
            parent = domain
            while parent := parent.partition(".")[2]:
                yield dot + parent
        yield "*"

    def _domain(self, address: str) -> str:
        # Lower case, so that all spellings of a domain are one destination.
        return (address.rpartition("@")[2] if "@" in address else self.origin).lower()

    def _resolve(self, entry: str, domain: str) -> Route:
        """Of the text `transport:nexthop` from a table; each half may be missing."""
        transport, _, nexthop = (part.strip() for part in entry.partition(":"))
        if transport:
            return self._checked(transport, nexthop, domain)
        usual = self._default(domain)
        if nexthop and isinstance(usual, Delivery):
            return Delivery(usual.transport, nexthop, usual.protocol)
        return usual

    def _default(self, domain: str) -> Route:
        # A nexthop of default_transport's own comes before relayhost: postconf(5).
        transport, _, nexthop = (part.strip() for part in self.default_transport.partition(":"))
        return self._checked(transport or "smtp", nexthop or self.relayhost, domain)

    def _checked(self, transport: str, nexthop: str, domain: str) -> Route:
        protocol = self.transports.get(transport)
        if protocol is not None:
            return Delivery(transport, nexthop or domain, protocol)
        if transport == "error":
            return _verdict(Action.BOUNCED, "5.0.0", nexthop or "Address is undeliverable")
        if transport == "retry":
            return _verdict(Action.DEFERRED, "4.0.0", nexthop or "Delivery is put off")
        if transport == "discard":
            reason = nexthop or "thrown away as configured"
            return Verdict("discard", Action.SENT, "2.0.0", reason)
        return Verdict("error", Action.DEFERRED, "4.3.0", UNAVAILABLE)


def _verdict(action: Action, dsn: str, text: str) -> Verdict:
    """error: and retry: take a status before their text; its class must be that of the action."""
    match = _STATUS.match(text)
    if match is not None:
        text = text[match.end() :].strip()
        if match[1][0] == dsn[0]:
            dsn = match[1]
    return Verdict("error", action, dsn, text or "Address is undeliverable")
