"""Certificates for tests: authorities, good servers, and everything that can be wrong with one.

Each is made when it is first asked for, and kept in one directory as PEM files, so that our own
client, and programs of other projects, read the same ones. Keys are EC P-256 unless the name says
otherwise: an RSA key takes a second to find. Start at `Pki.leaf`; `CASES` is the list.
"""

import datetime
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY: Final = datetime.timedelta(days=1)

# The names that the good server's certificate bears; servers answer on 127.0.0.1 whatever it says.
HOST: Final = "mx.good.example"
NEXTHOP: Final = "good.example"
# An address with umlauts, as a certificate holds it (RFC 5280 section 7.2), and as people write it.
IDN: Final = "mx.xn--bcher-kva.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is special about one server's certificate; the defaults make a good one."""

    names: tuple[str, ...] = (HOST, NEXTHOP, "localhost")  # subjectAltName; empty: there is none
    common_name: str = HOST
    issuer: str = "root"  # of AUTHORITIES; "": itself
    begins: int = -30  # days from now
    ends: int = 365
    bits: int = 0  # of an RSA key; 0: EC
    sha1: bool = False  # signed with SHA-1
    bare: bool = False  # the server leaves out the intermediate certificates
    client: bool = False  # it identifies a client


GOOD: Final = Case()
CASES: Final[Mapping[str, Case]] = MappingProxyType(
    {
        "good": GOOD,
        "rsa": replace(GOOD, bits=2048),
        "wrong-name": replace(GOOD, names=("mx.other.example",), common_name="mx.other.example"),
        "expired": replace(GOOD, begins=-60, ends=-1),
        "not-yet": replace(GOOD, begins=2),
        "self-signed": replace(GOOD, issuer=""),
        "unknown-ca": replace(GOOD, issuer="stranger"),
        "weak-key": replace(GOOD, bits=1024),
        "weak-digest": replace(GOOD, sha1=True, bits=2048),
        "chain": replace(GOOD, issuer="middle"),
        "deep-chain": replace(GOOD, issuer="deep"),
        "missing-intermediate": replace(GOOD, issuer="middle", bare=True),
        "expired-ca": replace(GOOD, issuer="old"),
        "wildcard": replace(GOOD, names=("*.good.example",), common_name="*.good.example"),
        "idn": replace(GOOD, names=(IDN,), common_name=IDN),
        "cn-only": replace(GOOD, names=()),
        "san-wins": replace(GOOD, names=("mx.other.example",)),
        # A NUL behind the name that is asked for: C programs once believed what stands before it.
        "nul-name": replace(GOOD, names=("mx.good.example\0.evil.example",)),
        "client": replace(
            GOOD, names=("client.example",), common_name="client.example", client=True
        ),
        "client-rsa": replace(
            GOOD, names=("client.example",), common_name="client.example", client=True, bits=2048
        ),
        "expired-self-signed": replace(GOOD, issuer="", begins=-60, ends=-1),
    }
)

# Each with the one that signs it; "": itself. "stranger" is trusted by nobody.
AUTHORITIES: Final[Mapping[str, str]] = MappingProxyType(
    {"root": "", "stranger": "", "middle": "root", "lower": "middle", "deep": "lower", "old": ""}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A certificate that can sign others, with its key."""

    certificate: x509.Certificate
    key: PrivateKey
    above: "Signer | None"  # None: it signed itself

    @property
    def chain(self) -> list[x509.Certificate]:
        """What a server sends of it: all but the root."""
        return [self.certificate, *self.above.chain] if self.above is not None else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate of a server or a client, as files."""

    certificate: x509.Certificate
    chain: Path  # the certificate, then what leads to the root, without the root
    key: Path  # not encrypted
    joined: Path  # key, then chain (smtp_tls_chain_files)

    def digest(self, algorithm: str = "sha256") -> str:
        """Of the certificate, lower case hexadecimal digits."""
        return self.certificate.fingerprint(_algorithm(algorithm)).hex()

    def key_digest(self, algorithm: str = "sha256") -> str:
        """Of its public key (subjectPublicKeyInfo), lower case hexadecimal digits."""
        hashed = hashes.Hash(_algorithm(algorithm))
        hashed.update(
            self.certificate.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return hashed.finalize().hex()


class Pki:
    """All certificates of a test run, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = datetime.datetime.now(datetime.UTC)
        self.leaf: Callable[[str], Leaf] = cache(self._leaf)
        self.signer: Callable[[str], Signer] = cache(self._signer)
        self.ca_directory: Callable[[], Path] = cache(self._ca_directory)

    def ca_file(self, *names: str) -> Path:
        """The certificates of these authorities (default: the root) in one file."""
        names = names or ("root",)
        return self._write(
            f"ca-{'-'.join(names)}.pem",
            b"".join(_pem(self.signer(name).certificate) for name in names),
        )

    def ca_key_file(self, name: str = "root") -> Path:
        """The public key of an authority, for a trust anchor file that holds no certificate."""
        octets = self.signer(name).key.public_key()
        return self._write(
            f"ca-key-{name}.pem",
            octets.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        )

    def _ca_directory(self) -> Path:
        """A directory of the root's certificate as OpenSSL looks for it. Needs `openssl`."""
        directory = self.directory / "hashed"
        directory.mkdir()
        (directory / "root.pem").write_bytes(_pem(self.signer("root").certificate))
        subprocess.run(["openssl", "rehash", directory], check=True, stdin=subprocess.DEVNULL)
        return directory

    def _leaf(self, name: str) -> Leaf:
        """The certificate of CASES[name]."""
        case = CASES[name]
        key = _new_key(case.bits)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if case.client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = self._builder(case.common_name, key, case.begins, case.ends).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if case.names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in case.names]),
                critical=False,
            )
        above = self.signer(case.issuer) if case.issuer else None
        if above is None or case.sha1:
            certificate = builder.issuer_name(_name(case.common_name)).sign(key, hashes.SHA256())
        else:
            builder = builder.issuer_name(above.certificate.subject)
            certificate = builder.sign(above.key, hashes.SHA256())
        if above is not None and case.sha1:
            certificate = self._signed_with_sha1(certificate, above)
        chain = [certificate, *(above.chain if above and not case.bare else [])]
        secret = _secret(key)
        pem = b"".join(map(_pem, chain))
        return Leaf(
            certificate=certificate,
            chain=self._write(f"{name}.pem", pem),
            key=self._write(f"{name}.key", secret),
            joined=self._write(f"{name}.joined.pem", secret + pem),
        )

    def _signed_with_sha1(self, certificate: x509.Certificate, above: Signer) -> x509.Certificate:
        """One that signed itself, signed by `above`; `cryptography` does that no more."""
        issuer = self._write("sha1-issuer.pem", _pem(above.certificate) + _secret(above.key))
        signed = subprocess.run(
            ["openssl", "x509", "-sha1", "-set_serial", "1", "-CA", issuer, "-CAkey", issuer],
            input=_pem(certificate),
            capture_output=True,
            check=True,
        )
        return x509.load_pem_x509_certificate(signed.stdout)

    def _signer(self, name: str) -> Signer:
        """The authority of that name in AUTHORITIES."""
        above = self.signer(AUTHORITIES[name]) if AUTHORITIES[name] else None
        key = _new_key(0)
        common_name = f"{name} authority"
        builder = self._builder(common_name, key, -90, -1 if name == "old" else 3650)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        ).issuer_name(above.certificate.subject if above else _name(common_name))
        certificate = builder.sign(above.key if above else key, hashes.SHA256())
        return Signer(certificate=certificate, key=key, above=above)

    def _builder(
        self, common_name: str, key: PrivateKey, begins: int, ends: int
    ) -> x509.CertificateBuilder:
        """Everything but the issuer and the signature; times are days from now."""
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + begins * DAY)
            .not_valid_after(self.now + ends * DAY)
        )

    def _write(self, name: str, octets: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(octets)
        return path


def _new_key(bits: int) -> PrivateKey:
    if bits:
        return rsa.generate_private_key(65_537, bits)
    return ec.generate_private_key(ec.SECP256R1())


def _secret(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _algorithm(name: str) -> hashes.HashAlgorithm:
    found: dict[str, hashes.HashAlgorithm] = {
        "md5": hashes.MD5(),
        "sha1": hashes.SHA1(),
        "sha256": hashes.SHA256(),
    }
    return found[name]
