"""What main.cf says about TLS with servers, read once for each protocol (S099 to S132).

Tables are not looked into here, and no certificate file is opened: `policies.py` and `contexts.py`
do that.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from protocol.request import Protocol
from worker.config.config import Config
from worker.config.problems import ConfigError, Problem
from worker.config.tables import Maps
from worker.config.values import BadValueError
from worker.tls.ciphers import CipherLists, Grade, parse_exclusions, parse_grade, parse_list
from worker.tls.entry import parse_level
from worker.tls.match import (
    FORGEABLE,
    HOSTNAME,
    parse_digest,
    parse_digest_name,
    parse_match,
    parse_servername,
)
from worker.tls.policy import Anchors, Identity, Level, Version
from worker.tls.versions import dead_versions, parse_versions

# S122: an entry of the session cache lives at least two minutes, and at most 100 days.
_SESSION_TIMES: Final = (120.0, 8_640_000.0)
_SEPARATORS: Final = re.compile(r"[,\s]+")
_MATCH_SEPARATORS: Final = re.compile(r"[,:\s]+")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """One protocol's settings: what holds where no table says otherwise. Comments: parameters."""

    protocol: Protocol
    level: Level  # smtp_tls_security_level, or what the switches before it say
    wrapper: bool  # smtp_tls_wrappermode
    versions: frozenset[Version]  # smtp_tls_protocols
    mandatory_versions: frozenset[Version]  # smtp_tls_mandatory_protocols
    grade: Grade  # smtp_tls_ciphers
    mandatory_grade: Grade  # smtp_tls_mandatory_ciphers
    exclude: tuple[str, ...]  # smtp_tls_exclude_ciphers
    mandatory_exclude: tuple[str, ...]  # smtp_tls_mandatory_exclude_ciphers
    lists: CipherLists
    verify_match: tuple[str, ...]  # smtp_tls_verify_cert_match; see `parse_match`
    secure_match: tuple[str, ...]  # smtp_tls_secure_cert_match
    digest: str  # smtp_tls_fingerprint_digest
    digests: tuple[str, ...]  # smtp_tls_fingerprint_cert_match
    servername: str  # smtp_tls_servername; see `parse_servername`
    anchors: Anchors  # smtp_tls_CAfile, smtp_tls_CApath, tls_append_default_CA
    trust_files: tuple[str, ...]  # smtp_tls_trust_anchor_file: at the levels verify and secure
    identity: Identity
    depth: int  # smtp_tls_scert_verifydepth
    many_labels: bool  # tls_wildcard_matches_multiple_labels
    shared: bool  # smtp_tls_connection_reuse
    entries: Maps  # smtp_tls_policy_maps
    per_site: Maps  # smtp_tls_per_site; not asked where there are policy maps
    note_offer: bool  # smtp_tls_note_starttls_offer
    loglevel: int  # smtp_tls_loglevel
    trace_file: str  # postrio_tls_trace_file
    session_timeout: float  # smtp_tls_session_cache_timeout, seconds; 0: nothing is resumed
    session_database: str  # smtp_tls_session_cache_database, as written
    warnings: tuple[str, ...]  # what is odd; a line each, with its place

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self:
        """Read the smtp_ or lmtp_ parameters. Raises ConfigError with all that is wrong."""
        reader = _Reader(config, protocol)
        lists = reader.cipher_lists()
        digest = reader.read("smtp_tls_fingerprint_digest", parse_digest_name, "sha256")
        settings = cls(
            protocol=protocol,
            level=reader.level(),
            wrapper=reader.boolean("smtp_tls_wrappermode"),
            versions=reader.versions("smtp_tls_protocols"),
            mandatory_versions=reader.versions("smtp_tls_mandatory_protocols"),
            grade=reader.grade("smtp_tls_ciphers", lists),
            mandatory_grade=reader.grade("smtp_tls_mandatory_ciphers", lists),
            exclude=reader.read("smtp_tls_exclude_ciphers", parse_exclusions, ()),
            mandatory_exclude=reader.read(
                "smtp_tls_mandatory_exclude_ciphers", parse_exclusions, ()
            ),
            lists=lists,
            verify_match=reader.match("smtp_tls_verify_cert_match"),
            secure_match=reader.match("smtp_tls_secure_cert_match"),
            digest=digest,
            digests=reader.read(
                "smtp_tls_fingerprint_cert_match",
                lambda text: tuple(parse_digest(word, digest) for word in _words(text)),
                (),
            ),
            servername=reader.read("smtp_tls_servername", parse_servername, ""),
            anchors=Anchors(
                file=reader.text("smtp_tls_CAfile"),
                directory=reader.text("smtp_tls_CApath"),
                system=config.boolean("tls_append_default_CA"),
            ),
            trust_files=_words(reader.text("smtp_tls_trust_anchor_file")),
            identity=reader.identity(),
            depth=config.integer(reader.name("smtp_tls_scert_verifydepth")),
            many_labels=config.boolean("tls_wildcard_matches_multiple_labels"),
            shared=reader.boolean("smtp_tls_connection_reuse"),
            entries=config.maps(reader.name("smtp_tls_policy_maps")),
            per_site=config.maps(reader.name("smtp_tls_per_site")),
            note_offer=reader.boolean("smtp_tls_note_starttls_offer"),
            loglevel=config.integer(reader.name("smtp_tls_loglevel")),
            trace_file=config.text("postrio_tls_trace_file"),
            session_timeout=_session_timeout(
                config.seconds(reader.name("smtp_tls_session_cache_timeout"))
            ),
            session_database=reader.text("smtp_tls_session_cache_database"),
            warnings=reader.oddities(digest),
        )
        if reader.problems:
            raise ConfigError(reader.problems)
        return settings


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, _SEPARATORS.split(text)))


def _session_timeout(seconds: float) -> float:
    low, high = _SESSION_TIMES
    return min(max(seconds, low), high) if seconds > 0 else 0.0


class _Reader:
    """Reads parameters of one protocol, and collects what is wrong."""

    def __init__(self, config: Config, protocol: Protocol) -> None:
        self._config = config
        self._protocol = protocol
        self.problems: list[Problem] = []

    def name(self, parameter: str) -> str:
        """The parameter's name for this protocol."""
        return self._config.mirror(parameter, self._protocol)

    def text(self, parameter: str) -> str:
        return self._config.text(self.name(parameter))

    def boolean(self, parameter: str) -> bool:
        return self._config.boolean(self.name(parameter))

    def read(self, parameter: str, parse: Callable[[str], _T], instead: _T) -> _T:
        """What `parse` makes of the text; `instead`, and a problem, where it raises."""
        try:
            return parse(self.text(parameter))
        except BadValueError as exc:
            self.problems.append(self.problem(parameter, exc))
            return instead

    def problem(self, parameter: str, error: BadValueError) -> Problem:
        return problem_of(self._config, self.name(parameter), error.why, error.expected)

    # --- parameters with a way of their own --------------------------------------------------

    def level(self) -> Level:
        """smtp_tls_security_level; where it is empty, or not set, maybe the switches before it.

        Ours is set by default, unlike Postfix's when it had the switches: so one that is set counts
        as if the level were not there.
        """
        name = self.name("smtp_tls_security_level")
        chosen = self._config.choice(name)
        if self._config.is_set(name) and chosen:
            return self.read("smtp_tls_security_level", parse_level, Level.NONE)
        if self.boolean("smtp_enforce_tls"):
            named = self.boolean("smtp_tls_enforce_peername")
            return Level.VERIFY if named else Level.ENCRYPT
        if self._config.is_set(self.name("smtp_use_tls")) or not chosen:
            return Level.MAY if self.boolean("smtp_use_tls") else Level.NONE
        return parse_level(chosen)

    def versions(self, parameter: str) -> frozenset[Version]:
        return self.read(parameter, parse_versions, frozenset(Version))

    def match(self, parameter: str) -> tuple[str, ...]:
        def parse(text: str) -> tuple[str, ...]:
            words = tuple(filter(None, _MATCH_SEPARATORS.split(text)))
            if not words:
                raise BadValueError("no name can match", "hostname, nexthop, or a name itself")
            return tuple(parse_match(word) for word in words)

        return self.read(parameter, parse, ())

    def cipher_lists(self) -> CipherLists:
        """The lists behind the grades; only those that somebody wrote are tried out."""
        for name in ("tls_high_cipherlist", "tls_medium_cipherlist", "tls_null_cipherlist"):
            if self._config.is_set(name):
                self.read(name, parse_list, "")
        return CipherLists.from_config(self._config)

    def grade(self, parameter: str, lists: CipherLists) -> Grade:
        return self.read(parameter, lambda text: lists.check(parse_grade(text)), Grade.MEDIUM)

    def identity(self) -> Identity:
        chains = _words(self.text("smtp_tls_chain_files"))
        if chains:
            return Identity(pairs=tuple((file, file) for file in chains), one_text=True)
        pairs = (
            (self.text("smtp_tls_cert_file"), self.text("smtp_tls_key_file")),
            (self.text("smtp_tls_eccert_file"), self.text("smtp_tls_eckey_file")),
        )
        return Identity(pairs=tuple(pair for pair in pairs if pair[0]))

    # --- what is odd ---------------------------------------------------------------------------

    def oddities(self, digest: str) -> tuple[str, ...]:
        """One line each, with its place. Former parameters are told by the configuration."""
        said: list[str] = []

        def say(parameter: str, what: str) -> None:
            name = self.name(parameter)
            setting = self._config.settings.get(name)
            said.append(f"{setting.place if setting else 'default'}: {name}: {what}")

        for parameter in ("smtp_tls_protocols", "smtp_tls_mandatory_protocols"):
            if dead := dead_versions(self.text(parameter)):
                say(parameter, f"{', '.join(dead)} cannot be spoken any more and is ignored")
        if HOSTNAME in self.text("smtp_tls_secure_cert_match").lower().replace(",", " ").split():
            say(
                "smtp_tls_secure_cert_match",
                "hostname comes from DNS, which is not secure; use nexthop or the name itself",
            )
        if digest in FORGEABLE:
            say("smtp_tls_fingerprint_digest", f"{digest} digests can be forged; use sha256")
        if self.boolean("smtp_tls_enable_rpk"):
            say("smtp_tls_enable_rpk", "bare public keys are not supported; certificates are used")
        if self.text("smtp_tls_per_site") and self.text("smtp_tls_policy_maps"):
            maps = self.name("smtp_tls_policy_maps")
            say("smtp_tls_per_site", f"ignored when {maps} is not empty")
        self._incomplete(say)
        if self.text("smtp_tls_chain_files"):
            for parameter in ("smtp_tls_cert_file", "smtp_tls_eccert_file"):
                if self.text(parameter):
                    say(parameter, f"ignored when {self.name('smtp_tls_chain_files')} is not empty")
        return tuple(said)

    def _incomplete(self, say: Callable[[str, str], None]) -> None:
        for key, certificate in (
            ("smtp_tls_key_file", "smtp_tls_cert_file"),
            ("smtp_tls_eckey_file", "smtp_tls_eccert_file"),
        ):
            if self.text(key) and not self.text(certificate):
                say(key, f"has no effect without {self.name(certificate)}, which is empty")


def problem_of(config: Config, name: str, why: str, expected: str = "") -> Problem:
    """A mistake in a parameter, with its place."""
    setting = config.settings.get(name)
    return Problem(
        file=setting.file if setting else "default",
        line=setting.line if setting else 0,
        parameter=name,
        value=config.text(name),
        why=why,
        expected=expected,
    )
