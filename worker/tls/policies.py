"""Which TLS policy holds for a server: from main.cf and its tables to a TlsPolicy (S099 to S132).

`TlsPolicies.policy` is asked once for each delivery. The way there:
1. The level: that of main.cf, unless a table has an entry for the nexthop. smtp_tls_policy_maps is
   asked; smtp_tls_per_site, which came before it, only where there are no policy maps.
2. The rest of an entry's attributes over those of main.cf: versions, ciphers, names, files.
3. The names to match and to send, filled in for this nexthop and host.
Of these 1 is a lookup, 2 and 3 are remembered. What main.cf says is checked when it is read; a
mistake in a table defers the mail, because to go on could mean to send it with less than was asked
for.

What one entry may say is in `entry.py`, what main.cf says in `settings.py`. Levels that DNS decides
about (DANE) and policies found by HTTPS (MTA-STS) will be further sources beside the tables.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Self

from protocol.destination import DestinationError, DestinationKind, parse_destination
from protocol.request import Protocol
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.config.values import BadValueError
from worker.tls.entry import Entry
from worker.tls.match import (
    HOSTNAME,
    NEXTHOP,
    a_label,
    expand,
    expand_servername,
    is_address,
    parse_digest,
)
from worker.tls.per_site import parse_site, site_level
from worker.tls.policy import PLAINTEXT, Level, TlsPolicy
from worker.tls.settings import TlsSettings, problem_of

_REMEMBERED: Final = 4096  # policies, and nexthops taken apart


class TlsPolicyError(Exception):
    """No policy can be told for a destination: its mail waits, with `dsn` and `reason`.

    The text of the exception says what is wrong and where; `reason` is what Postfix gives as the
    reason, in the log and to the sender.
    """

    dsn: Final = "4.7.5"
    reason: Final = "client TLS configuration problem"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the level of a delivery comes from: main.cf or a table."""

    place: str  # for errors
    level: Level | None = None
    text: str = ""  # an entry of the policy maps, where there is no level


@dataclass(frozen=True, slots=True)
class _Nexthop:
    """A nexthop for us: the keys to look it up by, the most specific first, and its bare name."""

    keys: tuple[str, ...]
    name: str  # see `a_label`; empty for a UNIX socket


class TlsPolicies:
    """The policies of one protocol. Any number of tasks may ask."""

    def __init__(self, settings: TlsSettings) -> None:
        self.settings = settings
        self.note_offer = settings.note_offer
        self.loglevel = settings.loglevel
        self.trace_file = settings.trace_file
        self.session_timeout = settings.session_timeout
        self.session_database = settings.session_database
        self.warnings = settings.warnings
        prefix = settings.protocol.value
        self._policy_maps = f"{prefix}_tls_policy_maps"
        self._per_site = f"{prefix}_tls_per_site"
        self._main = _Source(f"{prefix}_tls_security_level", settings.level)
        self._taken_apart = lru_cache(_REMEMBERED)(self._take_apart)
        self._made = lru_cache(_REMEMBERED)(self._make)
        self._nameless = lru_cache(_REMEMBERED)(self._without_names)

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self:
        """Read the smtp_ or lmtp_ parameters. Raises ConfigError. Opens no certificate file."""
        policies = cls(TlsSettings.from_config(config, protocol))
        try:
            policies.main_policy()
        except TlsPolicyError as exc:
            # Tables may cover every destination that mail is for; the others are meant to wait.
            if not (policies.settings.entries or policies.settings.per_site):
                name = config.mirror("smtp_tls_security_level", protocol)
                why = str(exc).removeprefix(f"{name}: ")
                raise ConfigError([problem_of(config, name, why)]) from exc
            policies.warnings += (f"{exc}; mail without a policy of its own waits",)
        return policies

    def main_policy(self) -> TlsPolicy:
        """The policy of main.cf alone, without names.

        Raises TlsPolicyError where main.cf alone makes none.
        """
        return self._made(self._main, "", "", unix=False)

    def sample(self) -> Iterator[TlsPolicy]:
        """Policies, without names, that hold every file of main.cf that some policy may need."""
        sources = [self._main]
        if self.settings.entries or self.settings.per_site:
            sources.append(_Source(self._main.place, Level.VERIFY))  # trust anchors, too
        for source in sources:
            with suppress(TlsPolicyError):
                yield self._made(source, "", "", unix=False)

    def listed(self) -> Iterator[TlsPolicy | TlsPolicyError]:
        """What the entries of the policy maps come to, without names, as far as they can be listed.

        For people who want to know before mail is deferred. Raises TableError.
        """
        for key, text in self.settings.entries.entries():
            try:
                yield self._make(self._entry_source(key, text), "", "", unix=False)
            except TlsPolicyError as exc:
                yield exc

    async def policy(self, nexthop: str, host: str, *, unix: bool = False) -> TlsPolicy:
        """The policy for a delivery to `nexthop`, one destination as written, at server `host`.

        `unix`: the endpoint is a UNIX socket, and `host` our own name. Equal arguments give equal
        policies as long as the tables do. Raises TlsPolicyError; TableError if a table is in
        trouble.
        """
        try:
            place = self._taken_apart(nexthop)
        except DestinationError as exc:
            raise TlsPolicyError(str(exc)) from exc
        source = self._main
        if self.settings.entries:
            source = await self._entry(place)
        elif self.settings.per_site:
            source = await self._old_entry(place.keys[0], host)
        return self._made(source, place.name, host, unix=unix or nexthop.startswith("unix:"))

    async def _entry(self, nexthop: _Nexthop) -> _Source:
        for key in nexthop.keys:
            text = await self.settings.entries.find(key)
            if text is not None:
                return self._entry_source(key, text)
        return self._main

    def _entry_source(self, key: str, text: str) -> _Source:
        return _Source(f'{self._policy_maps}, next-hop destination "{key}"', text=text)

    async def _old_entry(self, nexthop: str, host: str) -> _Source:
        """What smtp_tls_per_site says, by nexthop and by host; each entry must be sound."""
        found: list[Level | None] = []
        for key, what in ((nexthop, "next-hop destination"), (host, "server hostname")):
            text = await self.settings.per_site.find(key)
            try:
                found.append(None if text is None else parse_site(text))
            except BadValueError as exc:
                raise TlsPolicyError(f'{self._per_site}, {what} "{key}": {exc}') from exc
        place = f'{self._per_site}, next-hop destination "{nexthop}"'
        return _Source(place, site_level(found, self.settings.level))

    # --- from a source to a policy -----------------------------------------------------------

    def _make(self, source: _Source, nexthop: str, host: str, *, unix: bool) -> TlsPolicy:
        try:
            entry = Entry.parse(source.text) if source.level is None else Entry(level=source.level)
            if entry.level is Level.NONE:
                # An entry that says none means it, even where main.cf has the wrapper mode.
                if source is self._main:
                    self._wrapper(entry)
                return PLAINTEXT
            # On a UNIX socket nobody listens in: encryption without proof would be for nothing.
            if entry.level is Level.MAY and unix:
                return PLAINTEXT
            policy = self._nameless(entry)
            match, servername = self._names(entry)
        except BadValueError as exc:
            raise TlsPolicyError(f"{source.place}: {exc}") from exc
        host = a_label(host)
        nexthop = nexthop or host  # a UNIX socket's is our own name, as in Postfix
        match = expand(match, nexthop, host)
        servername = expand_servername(servername, nexthop, host)
        if not (match or servername):
            return policy
        return replace(policy, match=match, servername=servername)

    def _without_names(self, entry: Entry) -> TlsPolicy:
        """Everything but the names. Raises BadValueError."""
        main, level = self.settings, entry.level
        versions = main.mandatory_versions if level.mandatory else main.versions
        grade = main.mandatory_grade if level.mandatory else main.grade
        exclude = main.exclude + (main.mandatory_exclude if level.mandatory else ())
        if entry.versions is not None:
            versions = entry.versions
        if entry.grade is not None:
            grade = entry.grade
        if entry.exclude is not None:
            exclude = entry.exclude
        anchors = main.anchors
        if level >= Level.VERIFY:
            anchors = replace(anchors, trust_files=entry.trust_files or main.trust_files)
        return TlsPolicy(
            level=level,
            wrapper=self._wrapper(entry),
            versions=versions,
            ciphers=main.lists.suites(grade, level, exclude),
            digest=main.digest,
            anchors=anchors,
            identity=main.identity,
            depth=main.depth,
            many_labels=main.many_labels,
            shared=main.shared if entry.shared is None else entry.shared,
        )

    def _wrapper(self, entry: Entry) -> bool:
        wrapper = self.settings.wrapper if entry.wrapper is None else entry.wrapper
        if wrapper and not entry.level.mandatory:
            raise BadValueError(
                f'the wrapper mode cannot be used at security level "{entry.level.word}"',
                "encrypt or a stronger level",
            )
        return wrapper

    def _names(self, entry: Entry) -> tuple[tuple[str, ...], str]:
        """The words to match and to send, not filled in yet. Raises BadValueError."""
        main = self.settings
        servername = main.servername if entry.servername is None else entry.servername
        match entry.level:
            case Level.FINGERPRINT:
                digests = tuple(parse_digest(text, main.digest) for text in entry.match)
                if not (digests or main.digests):
                    raise BadValueError(
                        "security level fingerprint, but with no fingerprints to match",
                        "match=digest in the policy, or smtp_tls_fingerprint_cert_match",
                    )
                return digests or main.digests, servername
            case Level.VERIFY:
                return entry.match or main.verify_match, servername or HOSTNAME
            case Level.SECURE:
                return entry.match or main.secure_match, servername or NEXTHOP
            case _:
                return (), servername

    def _take_apart(self, nexthop: str) -> _Nexthop:
        """Keys and name of a nexthop. Raises DestinationError.

        The key is the text as written, without the socket type. A bare domain is also looked for
        by its parents, and each in A-labels, in case the table has only those.
        """
        destination = parse_destination(nexthop, self.settings.protocol)
        if destination.kind is DestinationKind.UNIX:
            return _Nexthop((destination.name,), "")
        lmtp = self.settings.protocol is Protocol.LMTP
        text = nexthop.removeprefix("inet:") if lmtp else nexthop
        name = a_label(destination.name)
        keys = [text]
        if text == destination.name and not is_address(name):
            # Whatever DNS may know below a domain, odd names too, is meant by its entry.
            written = text.removesuffix(".")
            # Of dots that are none in ASCII (RFC 3490 section 3.1) only the A-labels' show.
            forms = (written, name) if written.count(".") == name.count(".") else (name,)
            for step in zip(*(_with_parents(form) for form in forms), strict=True):
                keys += step
        return _Nexthop(tuple(dict.fromkeys(keys)), name)


def _with_parents(domain: str) -> Iterator[str]:
    """`a.b.c`, `.b.c`, `.c`."""
    yield domain
    at = domain.find(".")
    while at >= 0:
        yield domain[at:]
        at = domain.find(".", at + 1)
