"""Zones for scenarios: what the DNS responder answers, and where it fails on purpose. Pure.

Start at `Zone.answer`; the sockets are in `dns.py`. It delegates nothing and knows no DNSSEC, so NS
and DS records are data like any other.

A file holds records in master file syntax (RFC 1035 section 5; $ORIGIN, $TTL and $GENERATE
included), with three liberties: without an origin names need no final dot, a record without a TTL
lives for 300 s, and `#` starts a comment, too, at the start of a line or after a space. Lines of
another kind say how questions for a name fail, all of them or those for one type:

    NAME SERVFAIL [TYPE]          this reply code; also REFUSED, NXDOMAIN, FORMERR, NOTIMP
    NAME SILENT [TYPE]            no answer at all; TIMEOUT is the same
    NAME TRUNCATED [TYPE]         over UDP nothing but "ask again over TCP"
    NAME LATENCY SECONDS [TYPE]   the answer leaves so much later
    NAME SLOW-TCP SECONDS [TYPE]  over TCP the answer takes so long from its first octet to its last

A name of `*` stands for the names that do not exist beside it (RFC 4592), for failures, too.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

import dns.exception
import dns.flags
import dns.grange
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tokenizer
import dns.ttl
import dns.zone
import dns.zonefile

DEFAULT_TTL: Final = 300  # seconds
NEGATIVE_TTL: Final = 5  # seconds: in the SOA of an answer that says no, if the zone has none
MAX_CHAIN: Final = 16  # CNAMEs followed for one question
NAMES_COUNTED: Final = 100_000  # (name, type) pairs; further ones are counted as OTHER
GENERATED_MOST: Final = 100_000  # names that the $GENERATE of one file may make
OTHER: Final = "(other names)"

_CODES: Final = ("SERVFAIL", "REFUSED", "NXDOMAIN", "FORMERR", "NOTIMP")
_SILENT: Final = ("SILENT", "TIMEOUT")
_TIMES: Final = {"LATENCY": "latency", "SLOW-TCP": "slow_tcp"}
_WORDS: Final = frozenset((*_CODES, *_SILENT, "TRUNCATED", *_TIMES))
# A line up to its comment: quoted strings and escaped characters hide what would start one.
_UNCOMMENTED: Final = re.compile(r'(?:[^"#;\\]|"(?:[^"\\]|\\.)*"|\\.|(?<=\S)#)*')
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\\.')

Records = Mapping[dns.rdatatype.RdataType, dns.rrset.RRset]


class ZoneError(ValueError):
    """A line of a zone that cannot be read: which and why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How questions fail. Times are seconds."""

    code: dns.rcode.Rcode | None = None
    silent: bool = False
    truncated: bool = False
    latency: float = 0.0
    slow_tcp: float = 0.0

    def __or__(self, other: "Fault") -> "Fault":
        """Both: one after the other of two names of a chain, or of a name and its type."""
        return Fault(
            code=other.code or self.code,
            silent=self.silent or other.silent,
            truncated=self.truncated or other.truncated,
            latency=self.latency + other.latency,
            slow_tcp=self.slow_tcp + other.slow_tcp,
        )


@dataclass(slots=True)
class Counts:
    """What was asked, and what became of it."""

    queries: Counter[tuple[str, str]] = field(default_factory=Counter)  # (name, type) -> times
    transports: Counter[str] = field(default_factory=Counter)  # "udp", "tcp"
    # Reply codes; also "silent", "truncated" (counted beside its code), "dropped" (too many wait).
    answers: Counter[str] = field(default_factory=Counter)

    def asked(self, name: str, kind: str) -> None:
        """Count a question. Bounded, whatever names somebody makes up."""
        if len(self.queries) >= NAMES_COUNTED and (name, kind) not in self.queries:
            name = OTHER
        self.queries[name, kind] += 1

    def report(self) -> dict[str, object]:
        """As JSON shows it; the most asked names first."""
        return {
            "questions": sum(self.queries.values()),
            "transports": dict(self.transports),
            "answers": dict(self.answers),
            "names": [
                {"name": name, "type": kind, "questions": times}
                for (name, kind), times in self.queries.most_common()
            ],
        }


@dataclass(slots=True)
class Zone:
    """All records, how questions fail (by name and type; None: every type), and what was asked."""

    records: dict[dns.name.Name, dict[dns.rdatatype.RdataType, dns.rrset.RRset]] = field(
        default_factory=dict
    )
    faults: dict[tuple[dns.name.Name, dns.rdatatype.RdataType | None], Fault] = field(
        default_factory=dict
    )
    counts: Counts = field(default_factory=Counts)
    # Every name that exists: with records, with failures, or between those and the root.
    names: set[dns.name.Name] = field(default_factory=lambda: {dns.name.root})

    @classmethod
    def from_text(cls, text: str, *, file: str = "zone", origin: str = ".") -> "Zone":
        """Read one zone; `file` is its name in complaints. Raises ZoneError."""
        zone = cls()
        zone.read(text, file=file, origin=origin)
        return zone

    def read(self, text: str, *, file: str, origin: str = ".") -> None:
        """Add what a file holds. `origin`: of relative names. Raises ZoneError: file and line."""
        try:
            start = dns.name.root if origin == "." else dns.name.from_text(origin)
        except (dns.exception.DNSException, ValueError) as exc:
            raise ZoneError(f"{origin!r} (of {file}) is no domain name: {exc}") from exc
        lines = list(_lines(text, file, start))
        _check_generated(lines, file)
        # dnspython wants to know a zone's apex beforehand, and drops in silence what is not below.
        apex = next((line.owner for line in lines if line.is_soa and line.owner), dns.name.root)
        records = []
        for line in lines:
            if line.owner is not None and not line.owner.is_subdomain(apex):
                raise ZoneError(
                    f"{file}, line {line.number}: {line.words[0]} is not below {apex}:"
                    " it belongs in a file of its own"
                )
            if line.owner is not None and line.is_fault:
                self._add_fault(line.owner, line, file)
            records.append("" if line.is_fault else line.text)  # each in its place
        self._add_records("\n".join(records), file, start, apex)

    def _add_records(
        self, text: str, file: str, origin: dns.name.Name, apex: dns.name.Name
    ) -> None:
        zone = dns.zone.Zone(apex, relativize=False)
        try:
            with zone.writer(replacement=True) as transaction:
                reader = dns.zonefile.Reader(
                    dns.tokenizer.Tokenizer(text, file),
                    dns.rdataclass.IN,
                    transaction,
                    default_ttl=DEFAULT_TTL,
                )
                reader.current_origin = reader.last_name = origin
                reader.read()
        except (dns.exception.DNSException, ValueError) as exc:  # ValueError: a second apex
            said = re.sub(r"^.*?:\d+: ", "", str(exc) or type(exc).__name__, count=1)
            raise ZoneError(f"{file}, line {_line_of(reader.tok)}: {said}") from exc
        for owner, rdataset in zone.iterate_rdatasets():
            name = owner.canonicalize()
            rrsets = self.records.setdefault(name, {})
            rrset = rrsets.setdefault(
                rdataset.rdtype, dns.rrset.RRset(name, dns.rdataclass.IN, rdataset.rdtype)
            )
            for rdata in rdataset:
                rrset.add(rdata, rdataset.ttl)
            self._exists(name)

    def _add_fault(self, owner: dns.name.Name, line: "_Line", file: str) -> None:
        """One line that says how a name fails. Raises ZoneError."""
        word, *arguments = line.words[line.kind :]
        word = word.upper()
        where = f"{file}, line {line.number}"
        seconds = 0.0
        if word in _TIMES:
            try:
                seconds = float(arguments.pop(0)) if arguments else inf
            except ValueError:
                seconds = inf
            if not 0 <= seconds < inf:
                raise ZoneError(f"{where}: {word} needs a time in seconds, e.g. {word} 0.5")
        try:
            kind = dns.rdatatype.from_text(arguments.pop(0)) if arguments else None
        except (dns.exception.DNSException, ValueError) as exc:
            raise ZoneError(f"{where}: {line.words[-1]} is no record type") from exc
        if arguments:
            raise ZoneError(f"{where}: what does {' '.join(arguments)!r} mean after {word}?")
        name = owner.canonicalize()
        known = self.faults.get((name, kind), Fault())
        if word in _CODES:
            fault = replace(known, code=dns.rcode.from_text(word))
        elif word in _SILENT:
            fault = replace(known, silent=True)
        elif word == "LATENCY":
            fault = replace(known, latency=seconds)
        elif word == "SLOW-TCP":
            fault = replace(known, slow_tcp=seconds)
        else:
            fault = replace(known, truncated=True)
        self.faults[name, kind] = fault
        self._exists(name)

    def _exists(self, name: dns.name.Name) -> None:
        """The name exists, and with it all above it (empty non-terminals, RFC 4592 2.2.2)."""
        while name not in self.names:
            self.names.add(name)
            name = name.parent()

    # --- answers -----------------------------------------------------------------------------

    def answer(self, query: dns.message.Message) -> tuple[dns.message.Message, Fault]:
        """The response to a query, and what else goes wrong with it."""
        response = dns.message.make_response(query, recursion_available=True)
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
            return response, Fault()
        question = query.question[0]
        name, rdtype = question.name.canonicalize(), question.rdtype
        self.counts.asked(name.to_text(omit_final_dot=True), dns.rdatatype.to_text(rdtype))
        if question.rdclass != dns.rdataclass.IN:
            response.set_rcode(dns.rcode.REFUSED)
            return response, Fault()
        fault = Fault()
        for _ in range(MAX_CHAIN):
            place = self._place(name)
            fault |= self._fault(place, rdtype)
            if fault.code is not None:
                response.set_rcode(fault.code)
                if fault.code == dns.rcode.NXDOMAIN:
                    response.authority.append(self._soa(name))
                return response, fault
            rrsets = self.records.get(place, {})
            found = _of_type(rrsets, rdtype)
            if found:
                response.answer += [_owned(rrset, name) for rrset in found]
                return response, fault
            alias = rrsets.get(dns.rdatatype.CNAME)
            if alias is None:
                break
            response.answer.append(_owned(alias, name))
            name = dns.name.from_text(alias[0].to_text()).canonicalize()
        # "No data" where the name exists, even as an empty non-terminal.
        if self._place(name) not in self.names:
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(self._soa(name))
        return response, fault

    def _place(self, name: dns.name.Name) -> dns.name.Name:
        """The name, or the wildcard that answers for it (RFC 4592 section 3.3.1)."""
        if name in self.names:
            return name
        encloser = name
        while encloser not in self.names:
            encloser = encloser.parent()
        wildcard = dns.name.Name((b"*", *encloser.labels))
        return wildcard if wildcard in self.names else name

    def _fault(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Fault:
        nothing = Fault()
        return self.faults.get((name, None), nothing) | self.faults.get((name, rdtype), nothing)

    def _soa(self, name: dns.name.Name) -> dns.rrset.RRset:
        """What says how long a "no" may be remembered (RFC 2308 section 3)."""
        owner = name
        while owner != dns.name.root:
            if soa := self.records.get(owner, {}).get(dns.rdatatype.SOA):
                return soa
            owner = owner.parent()
        owner = dns.name.Name(name.labels[-2:]) if len(name.labels) > 1 else name
        text = f"ns.invalid. postmaster.invalid. 1 3600 600 86400 {NEGATIVE_TTL}"
        return dns.rrset.from_text(owner, NEGATIVE_TTL, dns.rdataclass.IN, dns.rdatatype.SOA, text)


def _of_type(rrsets: Records, rdtype: dns.rdatatype.RdataType) -> list[dns.rrset.RRset]:
    if rdtype == dns.rdatatype.ANY:
        return list(rrsets.values())
    return [rrsets[rdtype]] if rdtype in rrsets else []


def _owned(rrset: dns.rrset.RRset, name: dns.name.Name) -> dns.rrset.RRset:
    """The set as an answer for `name`, which a wildcard may have stood for."""
    if rrset.name == name:
        return rrset
    return dns.rrset.from_rdata_list(name, rrset.ttl, list(rrset))


# --- lines --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a zone file, as far as it must be understood before dnspython reads it."""

    number: int
    text: str  # without its comment
    words: list[str]
    owner: dns.name.Name | None  # whose record it is; None: of the name above, or no record
    kind: int  # the place of the type among the words

    @property
    def is_soa(self) -> bool:
        return self._kind == "SOA"

    @property
    def is_fault(self) -> bool:
        return self.owner is not None and self._kind in _WORDS

    @property
    def _kind(self) -> str:
        return self.words[self.kind].upper() if len(self.words) > self.kind else ""


def _lines(text: str, file: str, origin: dns.name.Name) -> Iterator[_Line]:
    """The lines, each with its owner. Raises ZoneError."""
    depth = 0  # of parentheses, which hold a record's further lines
    for number, line in enumerate(text.split("\n"), 1):
        matched = _UNCOMMENTED.match(line)
        kept = matched[0].rstrip() if matched else ""
        words = kept.split()
        owner = None
        if words and not depth and words[0].upper() == "$ORIGIN" and len(words) > 1:
            origin = _name(words[1], origin, file, number)
        elif words and not depth and not kept[0].isspace() and not words[0].startswith("$"):
            owner = _name(words[0], origin, file, number)
        kind = 1
        while kind < min(3, len(words)) and (words[kind].isdigit() or words[kind].upper() == "IN"):
            kind += 1  # a TTL, a class
        yield _Line(number, kept, words, owner, kind)
        bare = _QUOTED.sub("", kept)
        depth = max(0, depth + bare.count("(") - bare.count(")"))


def _check_generated(lines: Iterable[_Line], file: str) -> None:
    """Refuse more records than memory is for: `1-4000000000` is quickly written. ZoneError."""
    total = 0
    for line in lines:
        if len(line.words) > 1 and line.words[0].upper() == "$GENERATE":
            try:
                first, last, step = dns.grange.from_text(line.words[1])
            except dns.exception.DNSException as exc:
                raise ZoneError(
                    f"{file}, line {line.number}: {line.words[1]!r}: expected FIRST-LAST[/STEP]"
                ) from exc
            total += (last - first) // step + 1
            if total > GENERATED_MOST:
                raise ZoneError(
                    f"{file}, line {line.number}: more than {GENERATED_MOST} names by $GENERATE"
                )


def _line_of(tokens: dns.tokenizer.Tokenizer) -> int:
    """The line of the last token; the end of line behind it was read and put back."""
    line = tokens.where()[1]
    return line - 1 if tokens.ungotten_char == "\n" else line


def _name(text: str, origin: dns.name.Name, file: str, number: int) -> dns.name.Name:
    """Raises ZoneError."""
    try:
        return origin if text == "@" else dns.name.from_text(text, origin)
    except (dns.exception.DNSException, ValueError) as exc:
        raise ZoneError(f"{file}, line {number}: {text!r} is no domain name: {exc}") from exc


def respond(zone: Zone, wire: bytes, *, limit: int | None = None) -> tuple[bytes, Fault] | None:
    """The octets that answer `wire`, with the times of its failure; None: no answer.

    `limit`: octets over UDP to who does not say more (EDNS); None: over TCP.
    """
    try:
        query = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return None
    if query.flags & dns.flags.QR:  # an answer: two responders could talk for ever
        return None
    response, fault = zone.answer(query)
    answers = zone.counts.answers
    zone.counts.transports["tcp" if limit is None else "udp"] += 1
    if fault.silent:
        answers["silent"] += 1
        return None
    answers[dns.rcode.to_text(response.rcode())] += 1
    if limit is None or not fault.truncated:
        try:
            return response.to_wire(max_size=max(limit or 65_535, query.payload)), fault
        except dns.exception.TooBig:
            pass
    answers["truncated"] += 1
    truncated = dns.message.make_response(query, recursion_available=True)
    truncated.flags |= dns.flags.TC
    return truncated.to_wire(), fault
