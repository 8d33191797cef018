"""OpenSSL contexts: what a policy allows, whom it trusts, and what we show of ourselves.

A context is costly (the certificates of all authorities), so policies that agree on what goes into
one share it. Files are read once, by `check()` before rights are given up where that matters; a new
configuration gets new `Contexts`.
"""

import errno
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
    PrivateKeyTypes,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from OpenSSL import SSL, crypto

from worker.tls.policy import Anchors, Identity, TlsPolicy, Version
from worker.tls.verdict import UNREADABLE, note_finding

MAX_CONTEXTS: Final = 256
MAX_FILE: Final = 16 * 1024 * 1024  # octets: a hundred times the usual bundle of authorities
PEM_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)
CERTIFICATE_LABELS: Final = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE"})
PUBLIC_KEY_LABEL: Final = b"PUBLIC KEY"
# Where distributions keep the authorities that they trust, all in one file.
SYSTEM_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # BSD
)
SYSTEM_CA: Final = "tls_append_default_CA"  # the parameter that asks for them
# Failures to read a file that say nothing about it: the next time it may work.
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE})
NOT_SPOKEN: Final = {
    Version.TLSV1: SSL.OP_NO_TLSv1,
    Version.TLSV1_1: SSL.OP_NO_TLSv1_1,
    Version.TLSV1_2: SSL.OP_NO_TLSv1_2,
    Version.TLSV1_3: SSL.OP_NO_TLSv1_3,
}


class TlsFilesError(Exception):
    """What is configured cannot be used. `file`: which file, or which setting; `reason`: why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Pair:
    """One of our certificates. Its key is in no text of this object."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes

    def __repr__(self) -> str:
        return f"_Pair({self.certificate!r})"


class Contexts:
    """The contexts that policies need, the least recently used one dropped when they are many."""

    def __init__(self, limit: int = MAX_CONTEXTS) -> None:
        """`limit`: contexts kept at most."""
        self._limit = limit
        self._contexts: OrderedDict[tuple[object, ...], SSL.Context] = OrderedDict()
        self._files: dict[str, tuple[crypto.X509, ...]] = {}
        self._trust_files: dict[str, TrustFile] = {}
        # Those that cannot be used, as long as they stay as they are: a table may name them, and
        # each delivery asks for them again.
        self._broken: dict[str, tuple[tuple[int, ...], str]] = {}
        self._identities: dict[Identity, tuple[_Pair, ...]] = {}
        self._digests: dict[Anchors, str] = {}  # of the files; see trust()

    def check(self, policy: TlsPolicy) -> None:
        """Read all that `policy` names. Raises TlsFilesError."""
        self.context(policy)

    def context(self, policy: TlsPolicy) -> SSL.Context:
        """The context for `policy`. Raises TlsFilesError."""
        strict = policy.level.authenticated and min(policy.versions) >= Version.TLSV1_2
        key = (policy.versions, policy.ciphers, strict, policy.anchors, policy.identity)
        context = self._contexts.get(key)
        if context is None:
            context = self._make(policy, strict=strict)
            if len(self._contexts) >= self._limit:
                self._contexts.popitem(last=False)
            self._contexts[key] = context
        else:
            self._contexts.move_to_end(key)
        return context

    def trust(self, anchors: Anchors) -> str:
        """A digest of whom these anchors trust, now; they were read for some context.

        A policy only names files. What was proved by what stood in them is proved no more when that
        has changed. Of a directory, which OpenSSL reads whenever it needs one of its files, the
        time of its last change must do.
        """
        digest = self._digests.get(anchors)
        if digest is None:
            digest = self._digests[anchors] = self._digest(anchors)
        if not anchors.directory:
            return digest
        try:
            return f"{digest} {Path(anchors.directory).stat().st_mtime_ns}"
        except OSError:
            return f"{digest} -"

    def _digest(self, anchors: Anchors) -> str:
        digest = hashlib.sha256()
        for file in anchors.trust_files or _anchor_files(anchors):
            if anchors.trust_files:
                trusted = self._trust_file(file)
            else:
                trusted = TrustFile(self._certificates(file), ())
            for certificate in trusted.certificates:
                digest.update(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
            for key in trusted.keys:
                digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        return digest.hexdigest()[:32]

    def _make(self, policy: TlsPolicy, *, strict: bool) -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(min(policy.versions))
        context.set_max_proto_version(max(policy.versions))
        options = SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION
        for version, option in NOT_SPOKEN.items():
            if version not in policy.versions:
                options |= option
        context.set_options(options)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # most sessions of a busy worker are idle
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # see handshake.py
        self._set_ciphers(context, policy.ciphers, strict=strict)
        # Nothing ends the handshake: what was found is judged afterwards, with its level in mind.
        context.set_verify(SSL.VERIFY_PEER, note_finding)
        context.set_app_data(self._trust(context, policy.anchors))
        self._show(context, policy.identity)
        return context

    def _set_ciphers(self, context: SSL.Context, ciphers: str, *, strict: bool) -> None:
        # A server that need not prove anything may be as weak as it likes: in the clear would be
        # weaker. And TLS 1.1 knows no signature that OpenSSL takes at level 1.
        level = "" if "@SECLEVEL" in ciphers else f":@SECLEVEL={1 if strict else 0}"
        try:
            context.set_cipher_list(f"{ciphers}{level}".encode())
        except (SSL.Error, UnicodeEncodeError) as exc:
            reason = "OpenSSL knows none of these ciphers"
            raise TlsFilesError(f'cipher list "{ciphers}"', reason) from exc

    # --- whom we trust -----------------------------------------------------------------------

    def _trust(self, context: SSL.Context, anchors: Anchors) -> "TrustedKeys":
        """Put the anchors into `context`; returns those that are bare keys."""
        store = context.get_cert_store()
        if store is None:
            raise TlsFilesError("OpenSSL", "a context without a certificate store")
        if anchors.trust_files:
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            keys: list[CertificateIssuerPublicKeyTypes] = []
            for file in anchors.trust_files:
                trusted = self._trust_file(file)
                for certificate in trusted.certificates:
                    store.add_cert(certificate)
                keys += trusted.keys
            return tuple(keys)
        for file in _anchor_files(anchors):
            for certificate in self._certificates(file):
                store.add_cert(certificate)
        if anchors.directory:
            _check_directory(anchors.directory)
            store.load_locations(None, anchors.directory)
        return ()

    def _certificates(self, file: str) -> tuple[crypto.X509, ...]:
        found = self._files.get(file)
        if found is None:
            found = tuple(
                _certificate(file, block)
                for label, block in _blocks(file)
                if label in CERTIFICATE_LABELS
            )
            if not found:
                raise TlsFilesError(file, "there is no certificate in it")
            self._files[file] = found
        return found

    def _trust_file(self, file: str) -> "TrustFile":
        found = self._trust_files.get(file)
        if found is None:
            state = _state(file)  # before it is read: a change while we read is seen
            broken = self._broken.get(file)
            if broken is not None and broken[0] == state:
                raise TlsFilesError(file, broken[1])
            try:
                found = self._trust_files[file] = _read_trust_file(file)
            except TlsFilesError as exc:
                if getattr(exc.__cause__, "errno", None) not in _PASSING:
                    self._broken[file] = state, exc.reason
                raise
            self._broken.pop(file, None)
        return found

    # --- who we are --------------------------------------------------------------------------

    def _show(self, context: SSL.Context, identity: Identity) -> None:
        pairs = self._identities.get(identity)
        if pairs is None:
            pairs = self._identities[identity] = tuple(map(_pair, _groups(identity)))
        shown: set[bytes] = set()
        for pair in pairs:
            try:
                context.use_certificate(pair.certificate)
                context.use_privatekey(pair.key)  # type: ignore[arg-type]  # checked in _pair()
            except (SSL.Error, TypeError) as exc:
                subject = pair.certificate.subject.rfc4514_string()
                reason = "OpenSSL cannot use this certificate with its key"
                raise TlsFilesError(f"certificate of {subject}", reason) from exc
            # One list for all our certificates: peers leave out what they have no use for.
            for certificate in pair.chain:
                octets = certificate.public_bytes(Encoding.DER)
                if octets not in shown:
                    shown.add(octets)
                    context.add_extra_chain_cert(certificate)


TrustedKeys = tuple[CertificateIssuerPublicKeyTypes, ...]


@dataclass(frozen=True, slots=True)
class TrustFile:
    """What a trust file holds."""

    certificates: tuple[crypto.X509, ...]
    keys: TrustedKeys


def _state(file: str) -> tuple[int, ...]:
    """Equal as long as nobody has changed the file, or who may read it; of none: empty."""
    try:
        found = Path(file).stat()
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_trust_file(file: str) -> TrustFile:
    """Raises TlsFilesError."""
    certificates: list[crypto.X509] = []
    keys: list[CertificateIssuerPublicKeyTypes] = []
    for label, block in _blocks(file):
        if label in CERTIFICATE_LABELS:
            certificates.append(_certificate(file, block))
        elif label == PUBLIC_KEY_LABEL:
            keys.append(_public_key(file, block))
    if not certificates and not keys:
        raise TlsFilesError(file, "there is neither a certificate nor a public key in it")
    return TrustFile(tuple(certificates), tuple(keys))


def _anchor_files(anchors: Anchors) -> list[str]:
    """The files of authorities. Raises TlsFilesError."""
    files = [anchors.file] if anchors.file else []
    return [*files, system_file()] if anchors.system else files


def system_file() -> str:
    """The system's own list of authorities. Raises TlsFilesError if none is known."""
    named = os.environ.get("SSL_CERT_FILE")
    for file in (named,) if named else SYSTEM_FILES:
        if Path(file).is_file():
            return file
    raise TlsFilesError(SYSTEM_CA, "no list of authorities was found in this system")


def _blocks(file: str) -> Iterator[tuple[bytes, bytes]]:
    """The label and the text of each PEM block of `file`."""
    try:
        path = Path(file)
        if path.exists() and not path.is_file():
            raise TlsFilesError(file, "it is not a file")
        with path.open("rb") as opened:
            text = opened.read(MAX_FILE + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise TlsFilesError(file, f"cannot be read: {reason}") from exc
    if len(text) > MAX_FILE:
        raise TlsFilesError(file, f"it is longer than {MAX_FILE} octets")
    for block in PEM_BLOCK.finditer(text):
        yield block[1], block[0] + b"\n"


def _check_directory(directory: str) -> None:
    path = Path(directory)
    try:
        there = path.is_dir()
    except OSError as exc:  # what is above it lets nobody pass
        raise TlsFilesError(directory, f"cannot be read: {exc.strerror}") from exc
    if not there:
        raise TlsFilesError(directory, "there is no such directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise TlsFilesError(directory, "may not be read")


def _certificate(file: str, block: bytes) -> crypto.X509:
    try:
        return crypto.load_certificate(crypto.FILETYPE_PEM, block)
    except crypto.Error as exc:
        raise TlsFilesError(file, "a certificate in it cannot be read") from exc


def _public_key(file: str, block: bytes) -> CertificateIssuerPublicKeyTypes:
    try:
        return load_pem_public_key(block)  # type: ignore[return-value]  # an odd kind signs nothing
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise TlsFilesError(file, "a public key in it cannot be read") from exc


@dataclass(slots=True)
class _Group:
    """PEM blocks of one of our certificates, and the files that they are in."""

    certificate_file: str
    key_file: str
    certificates: list[bytes]
    keys: list[bytes] = field(repr=False)  # one; whatever else is a mistake


def _groups(identity: Identity) -> list[_Group]:
    """All of them. Raises TlsFilesError for a file that cannot be read.

    In smtp_tls_chain_files key, certificate and chain may lie in files of their own, one behind the
    other, as some who issue certificates hand them out: privkey.pem, fullchain.pem.
    """
    groups: list[_Group] = []
    for files in identity.pairs:
        for group in _groups_of(*files):
            last = groups[-1] if groups and identity.one_text else None
            if last is None or group.keys or not last.keys:
                groups.append(group)
                continue
            if not last.certificates:
                last.certificate_file = group.certificate_file
            last.certificates += group.certificates
    return groups


def _groups_of(certificate_file: str, key_file: str) -> list[_Group]:
    """Our certificates in a pair of files, which may be one file, as smtp_tls_chain_files has them.

    In a file with several keys each key stands before its certificates.
    """
    blocks = list(_blocks(certificate_file))
    if key_file != certificate_file:
        certificates = [block for label, block in blocks if label in CERTIFICATE_LABELS]
        keys = [block for label, block in _blocks(key_file) if label.endswith(b"PRIVATE KEY")]
        if len(keys) > 1:
            raise TlsFilesError(key_file, "there is more than one private key in it")
        return [_Group(certificate_file, key_file, certificates, keys)]
    groups = [_Group(certificate_file, key_file, [], [])]
    several = sum(label.endswith(b"PRIVATE KEY") for label, _ in blocks) > 1
    for label, block in blocks:
        group = groups[-1]
        if label in CERTIFICATE_LABELS:
            group.certificates.append(block)
        elif label.endswith(b"PRIVATE KEY"):
            if several and (group.keys or group.certificates):
                groups.append(_Group(certificate_file, key_file, [], [block]))
            else:
                group.keys.append(block)
    return groups


def _pair(group: _Group) -> _Pair:
    certificate_file, key_file = group.certificate_file, group.key_file
    if not group.certificates:
        raise TlsFilesError(certificate_file, "there is no certificate in it, or none for a key")
    if not group.keys:
        raise TlsFilesError(key_file, "there is no private key in it, or none for a certificate")
    key = _private_key(key_file, group.keys[0])
    try:
        leaf, *chain = [x509.load_pem_x509_certificate(block) for block in group.certificates]
        public = leaf.public_key()
    except UNREADABLE as exc:
        raise TlsFilesError(certificate_file, "a certificate in it cannot be read") from exc
    ours, theirs = (
        each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for each in (key.public_key(), public)
    )
    if ours != theirs:
        reason = f"the key does not belong to the first certificate in {certificate_file}"
        raise TlsFilesError(key_file, reason)
    return _Pair(leaf, tuple(chain), key)


def _private_key(file: str, block: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(block, password=None)
    except TypeError:  # cryptography says so of a key that needs a password
        reason = "the private key is encrypted; it must be stored without a passphrase"
    except (ValueError, UnsupportedAlgorithm):
        reason = "the private key cannot be read"
    # The cause is not told: it might quote what it could not read.
    raise TlsFilesError(file, reason)
