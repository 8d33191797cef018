"""Questions about names, as the rest of the network layer asks them, and the kinds of answers.

Answers for: what a resolver promises (`Resolver`), what it answers (`MxAnswer`, `HostAddress`),
how it fails (`NameNotFound`: the name does not lead anywhere, `LookupTrouble`: nobody knows now),
and the rule which source is asked in which order (`HostLookup`).
Not here: the DNS client (`dns_resolver.py`), the system's own lookup (`native_resolver.py`), and
what follows from an answer for a delivery (`endpoints.py`).
"""

import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

MAX_RECORDS = 100  # of one answer that we use; the same bound as in Postfix 3.9 (S001)


class HostAddress(NamedTuple):
    """One address of a host. A tuple, because a busy resolver holds a great many of them."""

    family: socket.AddressFamily  # AF_INET or AF_INET6
    address: str  # numeric, without brackets


class MxRecord(NamedTuple):
    """One exchanger. Sorts by preference: lower is better."""

    preference: int  # 0..65535
    exchanger: str  # A-labels as the server wrote them, no final dot


@dataclass(frozen=True, slots=True)
class MxAnswer:
    """The mail exchangers of a domain that exists, or of one that may exist (see `Resolver.mx`).

    `records`: best first, at most `MAX_RECORDS`, only those whose exchanger can be a host name.
    `null_mx`: the domain says that it takes no mail (RFC 7505); `records` is empty then.
    `unusable`: there were MX records, and not one of them named a host; `records` is empty then.
    None of the three: there is no MX record, and the domain itself is its only exchanger
    (RFC 5321 section 5.1).
    """

    records: tuple[MxRecord, ...] = ()
    null_mx: bool = False
    unusable: bool = False


class LookupFailure(Exception):
    """A name gave no answer. `dsn`: enhanced status code; `reason`: one line in Postfix's words."""

    default_dsn = "4.4.3"

    def __init__(self, reason: str, dsn: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.dsn = dsn or self.default_dsn


class NameNotFound(LookupFailure):
    """The name does not exist, or has no address of the wanted families; asking again is no use."""

    default_dsn = "5.4.4"


class LookupTrouble(LookupFailure):
    """Timeout, SERVFAIL, REFUSED, a malformed answer: nothing is known about the name now."""

    default_dsn = "4.4.3"


class Resolver(Protocol):
    """Where names become exchangers and addresses. Safe for any number of tasks at once.

    A remembered answer may come back without a checkpoint.
    """

    async def mx(self, domain: str) -> MxAnswer:
        """Return the exchangers of `domain` (ASCII, A-labels).

        Raises NameNotFound (no such domain) or LookupTrouble.
        """
        ...  # pragma: no cover

    async def addresses(
        self, host: str, families: Collection[socket.AddressFamily]
    ) -> tuple[HostAddress, ...]:
        """Return the addresses of `host` (ASCII, A-labels) in `families`: at least one.

        One family is enough: trouble with the other is no failure then. Raises NameNotFound (no
        such name, or no address in these families) or LookupTrouble.
        """
        ...  # pragma: no cover


@dataclass(frozen=True, slots=True)
class HostLookup:
    """MX from DNS, addresses from several sources in their order (smtp_host_lookup, S022).

    The next source is asked only about a name that the one before does not know: after trouble
    nothing is known, and a stale hosts file must not take over from a DNS server that is down.
    """

    exchangers: Resolver
    hosts: tuple[Resolver, ...]  # at least one; DNS before native

    async def mx(self, domain: str) -> MxAnswer:
        """Return the exchangers; see `Resolver.mx`."""
        return await self.exchangers.mx(domain)

    async def addresses(
        self, host: str, families: Collection[socket.AddressFamily]
    ) -> tuple[HostAddress, ...]:
        """Return the addresses from the first source that knows any; see `Resolver.addresses`."""
        *earlier, last = self.hosts
        for source in earlier:
            try:
                return await source.addresses(host, families)
            except NameNotFound:
                continue
        return await last.addresses(host, families)
