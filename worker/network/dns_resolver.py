"""The DNS client: dnspython on trio, with a cache that keeps to TTLs. Start at `DnsResolver`.

Answers for: one question to the configured servers (UDP, TCP when truncated, retries), which
records of the reply count, CNAME chains, what is remembered for how long, and that equal
questions asked at once travel once. Not here: what an answer means for a delivery.

How equal questions share one query without a background task: the first asker sends it inside its
own call, the others wait for an event. When the first is cancelled, it wakes them without an
answer, and the first to run again becomes the asker. The price is one query begun anew; the gain is
that no task outlives the calls, so there is no nursery to own and no result that nobody wants.
"""

import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.resolver
import dns.rrset
import trio
from dns.rdatatype import RdataType

from worker.network.resolver import (
    MAX_RECORDS,
    HostAddress,
    LookupFailure,
    LookupTrouble,
    MxAnswer,
    MxRecord,
    NameNotFound,
)

MAX_CNAMES = 10  # links of one chain, over all replies; as Postfix's dns_lookup()
MAX_TTL = 86_400.0  # seconds; a longer TTL is a mistake that would outlive its correction
MAX_NEGATIVE_TTL = 3_600.0  # seconds; RFC 2308 section 5 advises one to three hours
ATTEMPTS = 6  # of one question, each with an equal share of the timeout

NOT_FOUND = "Host not found"
NO_DATA = "Host found but no data record of requested type"
TRY_AGAIN = "Host not found, try again"
INVALID_NAME = "invalid host or domain name"

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\Z")
_TYPE_OF_FAMILY = {socket.AF_INET: RdataType.A, socket.AF_INET6: RdataType.AAAA}

Question = tuple[str, RdataType]  # name in lower case, without final dot
Value = MxAnswer | tuple[HostAddress, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What a question came to, and until when that holds."""

    value: Value | None  # None: `failure` and `text` say why not
    expires: float  # trio's clock; not later than now: not to be remembered
    failure: type[LookupFailure] = LookupTrouble
    text: str = ""

    def error(self) -> LookupFailure:
        """Return a new exception: one object raised again and again collects tracebacks."""
        return self.failure(self.text)


@dataclass(slots=True, eq=False)
class Flight:
    """A question on its way. `known` stays None when its asker was cancelled."""

    landed: trio.Event = field(default_factory=trio.Event)
    known: Known | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reply says about one name: records, or none and why, or where to ask on."""

    records: dns.rrset.RRset | None
    target: dns.name.Name  # end of the CNAME chain within this reply
    links: int  # of the chain so far
    ttl: float  # seconds; of everything that was used
    exists: bool = True  # False: NXDOMAIN
    complete: bool = True  # False: the chain leaves the reply, ask for `target`


class DnsResolver:
    """A `Resolver` that asks DNS servers and remembers their answers for as long as they allow."""

    def __init__(
        self,
        server: tuple[str, int] | None = None,
        timeout: float = 10.0,
        *,
        max_entries: int = 20_000,
        max_queries: int = 200,
    ) -> None:
        """Ask `server` (numeric address, port), or those of /etc/resolv.conf.

        `timeout`: seconds for one question, retries and all servers included. `max_entries`:
        answers remembered. `max_queries`: questions (each an open socket) on their way at once.
        Raises ValueError when `server` is not a numeric address.
        """
        self._client = _client(server, timeout)
        self._timeout = timeout
        self._max_entries = max_entries
        self._known: dict[Question, Known] = {}
        self._flights: dict[Question, Flight] = {}
        self._sockets = trio.CapacityLimiter(max_queries)

    async def mx(self, domain: str) -> MxAnswer:
        """Return the exchangers of `domain`; see `Resolver.mx`."""
        question = (domain.lower().removesuffix("."), RdataType.MX)
        known = self._remembered(question) or await self._find(question)
        if not isinstance(known.value, MxAnswer):
            raise known.error()
        return known.value

    async def addresses(
        self, host: str, families: Collection[socket.AddressFamily]
    ) -> tuple[HostAddress, ...]:
        """Return the addresses of `host`, family by family as given; see `Resolver.addresses`."""
        name = host.lower().removesuffix(".")
        questions = [(name, _TYPE_OF_FAMILY[family]) for family in families]
        answers = {question: self._remembered(question) for question in questions}
        missing = [question for question, known in answers.items() if known is None]

        async def find(question: Question) -> None:
            answers[question] = await self._find(question)

        if len(missing) == 1:
            await find(missing[0])
        elif missing:
            async with trio.open_nursery() as nursery:
                for question in missing:
                    nursery.start_soon(find, question)
        return _merge([known for known in answers.values() if known is not None])

    def _remembered(self, question: Question) -> Known | None:
        known = self._known.get(question)
        return known if known is not None and known.expires > trio.current_time() else None

    async def _find(self, question: Question) -> Known:
        """Return what the servers say, sharing the query with whoever asks the same now."""
        while (flight := self._flights.get(question)) is not None:
            await flight.landed.wait()
            if flight.known is not None:  # also when its TTL was 0, and trouble
                return flight.known
        flight = self._flights[question] = Flight()
        try:
            flight.known = await self._ask(*question)
            self._remember(question, flight.known)
        finally:
            del self._flights[question]
            flight.landed.set()
        return flight.known

    def _remember(self, question: Question, known: Known) -> None:
        self._known.pop(question, None)
        if known.expires <= trio.current_time():
            return
        while len(self._known) >= self._max_entries:
            # The oldest goes, even if it was used a moment ago: a look-up stays one dict access,
            # and a name in use costs one query in max_entries.
            del self._known[next(iter(self._known))]
        self._known[question] = known

    async def _ask(self, name: str, kind: RdataType) -> Known:
        """Ask for one name and type, following the CNAMEs that the server left to us."""
        if not _HOST_NAME.match(name):
            text = f"Name service error for {name}: {INVALID_NAME}"
            return Known(None, 0.0, NameNotFound, text)
        target, links, ttl = dns.name.from_text(name, dns.name.root), 0, MAX_TTL
        while True:
            reply = await self._exchange(target, kind)
            if reply is None:
                return _failed(LookupTrouble, name, kind, TRY_AGAIN)
            try:
                reading = read_reply(reply, target, kind, links)
            except LookupTrouble as exc:
                return _failed(LookupTrouble, name, kind, exc.reason)
            target, links, ttl = reading.target, reading.links, min(ttl, reading.ttl)
            if reading.complete:
                return _conclude(name, kind, reading, trio.current_time() + ttl)

    async def _exchange(
        self, name: dns.name.Name, kind: RdataType
    ) -> dns.message.QueryMessage | None:
        """Return a reply with rcode NOERROR or NXDOMAIN; None when no server gave one in time."""
        async with self._sockets:
            # dnspython keeps its own account with the wall clock; ours is the one that counts.
            with trio.move_on_after(self._timeout):
                try:
                    answer = await self._client.resolve(
                        name,
                        kind,
                        raise_on_no_answer=False,
                        search=False,
                        lifetime=self._timeout,
                        backend=dns.asyncbackend.get_backend("trio"),
                    )
                except dns.resolver.NXDOMAIN as exc:
                    return _nxdomain_reply(exc, name)
                except (dns.exception.DNSException, OSError):
                    return None
                return answer.response
        return None


def read_reply(
    reply: dns.message.Message, name: dns.name.Name, kind: RdataType, links: int
) -> Reading:
    """Return what `reply` says about `name`; records of any other name are not looked at.

    `links`: CNAMEs followed before this reply. Raises LookupTrouble (its reason is the bare
    problem) for a chain that is too long, and for a referral: a server that refers us elsewhere
    does not know, which must not be taken for "no such record" (RFC 2308 section 2.2).
    """
    target, ttl = name, MAX_TTL
    records = _records(reply, reply.answer, target, kind)
    while records is None:
        alias = _records(reply, reply.answer, target, RdataType.CNAME)
        if alias is None:
            break
        links += 1
        if links > MAX_CNAMES:
            raise LookupTrouble(f"more than {MAX_CNAMES} CNAME records in a chain")
        target, ttl = alias[0].target, min(ttl, alias.ttl)
        records = _records(reply, reply.answer, target, kind)
    if records is not None:
        return Reading(records, target, links, min(ttl, records.ttl))
    exists = reply.rcode() != dns.rcode.NXDOMAIN
    negative_ttl = _negative_ttl(reply, target)
    if negative_ttl is None and exists:
        if target != name:
            return Reading(None, target, links, ttl, complete=False)
        if any(rrset.rdtype == RdataType.NS for rrset in reply.authority):
            raise LookupTrouble("the server refers to other servers")
    # Without an SOA record there is no leave to remember it (RFC 2308 section 5).
    return Reading(None, target, links, min(ttl, negative_ttl or 0.0), exists=exists)


def _nxdomain_reply(
    error: dns.resolver.NXDOMAIN, name: dns.name.Name
) -> dns.message.QueryMessage | None:
    reply: object = error.kwargs["responses"].get(name)
    return reply if isinstance(reply, dns.message.QueryMessage) else None


def _records(
    reply: dns.message.Message, section: list[dns.rrset.RRset], name: dns.name.Name, kind: RdataType
) -> dns.rrset.RRset | None:
    return reply.get_rrset(section, name, dns.rdataclass.IN, kind)


def _negative_ttl(reply: dns.message.Message, name: dns.name.Name) -> float | None:
    """Return how long "no" holds: the lesser of the SOA's TTL and MINIMUM (RFC 2308 section 5)."""
    zone = name
    while True:
        soa = _records(reply, reply.authority, zone, RdataType.SOA)
        if soa is not None and isinstance(soa[0], dns.rdtypes.ANY.SOA.SOA):
            return min(float(soa.ttl), float(soa[0].minimum), MAX_NEGATIVE_TTL)
        if zone == dns.name.root:
            return None
        zone = zone.parent()


def _conclude(name: str, kind: RdataType, reading: Reading, expires: float) -> Known:
    """Turn the last reading of a question into what is told and remembered."""
    if reading.records is None:
        if kind is RdataType.MX and reading.exists:
            return Known(MxAnswer(), expires)
        return _failed(NameNotFound, name, kind, NO_DATA if reading.exists else NOT_FOUND, expires)
    if kind is RdataType.MX:
        return Known(_mx_answer(reading.records), expires)
    return Known(tuple(_host_addresses(reading.records))[:MAX_RECORDS], expires)


def _failed(
    failure: type[LookupFailure], name: str, kind: RdataType, why: str, expires: float = 0.0
) -> Known:
    text = (
        f"Host or domain name not found. Name service error for name={name} type={kind.name}: {why}"
    )
    return Known(None, expires, failure, text)


def _mx_answer(records: dns.rrset.RRset) -> MxAnswer:
    usable: list[MxRecord] = []
    others = set[dns.name.Name]()
    for record in records:
        if isinstance(record, dns.rdtypes.ANY.MX.MX):
            exchanger = record.exchange.to_text(omit_final_dot=True)
            if _HOST_NAME.match(exchanger):
                usable.append(MxRecord(record.preference, exchanger))
            else:
                others.add(record.exchange)
    if not usable:
        null_mx = others == {dns.name.root}
        return MxAnswer(null_mx=null_mx, unusable=not null_mx)
    # Cut after sorting: whatever order the server chose, the best exchangers stay.
    usable.sort(key=lambda record: record.preference)
    return MxAnswer(tuple(usable[:MAX_RECORDS]))


def _host_addresses(records: dns.rrset.RRset) -> Iterator[HostAddress]:
    for record in records:
        if isinstance(record, dns.rdtypes.IN.A.A):
            yield HostAddress(socket.AF_INET, record.address)
        elif isinstance(record, dns.rdtypes.IN.AAAA.AAAA):
            yield HostAddress(socket.AF_INET6, record.address)


def _merge(answers: list[Known]) -> tuple[HostAddress, ...]:
    """Return all addresses; without any raise the trouble there was, or that there are none."""
    found: list[HostAddress] = []
    failed: Known | None = None
    for known in answers:
        if known.value is None:
            if failed is None or failed.failure is not LookupTrouble:
                failed = known
        elif not isinstance(known.value, MxAnswer):
            found += known.value
    if found:
        return tuple(found)
    if failed is None:  # no family was asked for
        raise NameNotFound("no address family is enabled")
    raise failed.error()


def _client(server: tuple[str, int] | None, timeout: float) -> dns.asyncresolver.Resolver:
    """Return dnspython's client for `server`, or for /etc/resolv.conf and its options."""
    try:
        client = dns.asyncresolver.Resolver(configure=server is None)
    except dns.resolver.NoResolverConfiguration:
        client = dns.asyncresolver.Resolver(configure=False)
        server = ("127.0.0.1", 53)  # as the C library does without resolv.conf
    if server is not None:
        client.nameservers = [dns.nameserver.Do53Nameserver(*server)]
    client.timeout = timeout / ATTEMPTS
    client.lifetime = timeout
    return client
