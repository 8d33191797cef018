"""What a server must prove, and how it is talked to, before it gets mail: one TLS policy.

A policy is complete: names are expanded, files are named, nothing is left to look up. So two
deliveries may share a connection if, and only if, their policies are equal. How a policy comes
about is in `policies.py`; whether a server meets it, `verdict.py` says.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from enum import Enum, IntEnum
from functools import lru_cache
from typing import Final


class Level(IntEnum):
    """smtp_tls_security_level, weakest first. The name in lower case is Postfix's word."""

    NONE = 0
    MAY = 1
    ENCRYPT = 2
    FINGERPRINT = 3
    VERIFY = 4
    SECURE = 5

    @property
    def word(self) -> str:
        """As in main.cf and in `tls=` of the log."""
        return self.name.lower()

    @property
    def mandatory(self) -> bool:
        """Without TLS no mail goes out."""
        return self >= Level.ENCRYPT

    @property
    def authenticated(self) -> bool:
        """The server must prove who it is."""
        return self >= Level.FINGERPRINT


class Version(IntEnum):
    """Protocol versions that can be spoken; the numbers are those on the wire."""

    TLSV1 = 0x0301
    TLSV1_1 = 0x0302
    TLSV1_2 = 0x0303
    TLSV1_3 = 0x0304


MODERN: Final = frozenset({Version.TLSV1_2, Version.TLSV1_3})


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Whom we trust to issue certificates."""

    file: str = ""  # smtp_tls_CAfile
    directory: str = ""  # smtp_tls_CApath
    system: bool = False  # tls_append_default_CA
    # tafile= of a policy: PEM files with certificates or bare public keys that are trusted whether
    # or not they are roots, and then nothing else is.
    trust_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Our own certificates, shown to a server that asks: files of (key and) chain, each in PEM.

    A pair is (certificate file, key file); of smtp_tls_chain_files both are the same.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    # smtp_tls_chain_files: a file without a key goes on where the one before it ended.
    one_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPolicy:
    """Everything about TLS with one server for one nexthop. Equal policies may share sessions."""

    level: Level = Level.NONE
    wrapper: bool = False  # TLS from the first octet (smtp_tls_wrappermode)
    versions: frozenset[Version] = MODERN  # at least one
    ciphers: str = "DEFAULT"  # OpenSSL's list for TLS 1.2 and below
    # Level verify and secure: names in lower case, A-labels, ".suffix" for everything below it.
    # Level fingerprint: digests as lower case hexadecimal digits without colons.
    match: tuple[str, ...] = ()
    digest: str = "sha256"  # smtp_tls_fingerprint_digest
    servername: str = ""  # sent in the handshake (SNI); empty: nothing
    anchors: Anchors = Anchors()
    identity: Identity = Identity()
    depth: int = 9  # smtp_tls_scert_verifydepth: intermediate certificates at most
    many_labels: bool = True  # tls_wildcard_matches_multiple_labels
    shared: bool = True  # smtp_tls_connection_reuse: other processes may use the connection

    @property
    def fingerprint(self) -> str:
        """A digest that is equal in processes that agree on the policy; 32 hexadecimal digits."""
        return _fingerprint(self)


@lru_cache(4096)
def _fingerprint(policy: TlsPolicy) -> str:
    digest = hashlib.sha256()
    for item in fields(policy):
        value = getattr(policy, item.name)
        text = str(sorted(value)) if isinstance(value, frozenset) else repr(value)
        digest.update(f"{item.name}={text}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


PLAINTEXT: Final = TlsPolicy()  # no TLS, and none asked for


class Trust(Enum):
    """What the certificate was worth. The value is Postfix's word in the log."""

    ANONYMOUS = "Anonymous"  # there was none
    UNTRUSTED = "Untrusted"
    TRUSTED = "Trusted"  # issued by somebody we trust, for whomever
    VERIFIED = "Verified"  # and it is who the policy asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFacts:
    """What a handshake came to, for the log, for SASL, and for whoever gets the connection later.

    Texts come from a certificate: raw, but without control characters.
    """

    trust: Trust
    protocol: str  # "TLSv1.3"
    cipher: str  # "TLS_AES_256_GCM_SHA384"
    bits: int  # used by the cipher
    matched: str = ""  # the name or digest that met the policy; with VERIFIED only
    why: str = ""  # why it is worth no more, in words; empty: it is VERIFIED
    subject: str = ""  # common name of the certificate
    issuer: str = ""
    certificate_digest: str = ""  # with the policy's digest, hexadecimal
    key_digest: str = ""
    # In the log behind the cipher, " key-exchange X25519 ..."; empty where it is not known.
    details: str = ""
    resumed: bool = False  # an earlier session was; the verdict is the stored one

    def encode(self) -> str:
        """One line of JSON, for whoever gets the connection or resumes the session."""
        return _encoded(self)

    @staticmethod
    def decode(text: str) -> "TlsFacts":
        """What encode() was given. Raises ValueError."""
        return _decoded(text)

    def meets(self, level: Level) -> bool:
        """Whether mail may go out at this level."""
        return self.trust is Trust.VERIFIED or not level.authenticated


# A connection that is shared travels with its facts for every message, and they do not change.


@lru_cache(256)
def _encoded(facts: TlsFacts) -> str:
    return json.dumps({**asdict(facts), "trust": facts.trust.value})


@lru_cache(256)
def _decoded(text: str) -> TlsFacts:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("facts about TLS are no JSON object")  # noqa: TRY004  # bad data
    kinds = {item.name: item.type for item in fields(TlsFacts)}
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is not Trust and (kind is None or type(value) is not kind):
            raise ValueError(f"facts about TLS with a bad {name[:40]}")
    try:
        return TlsFacts(**{**values, "trust": Trust(values.get("trust"))})
    except TypeError as exc:  # something is missing
        raise ValueError(str(exc)) from exc
