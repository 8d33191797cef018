"""What a handshake proves: from a finished connection to `TlsFacts`.

Nothing is refused while the handshake is under way: OpenSSL's findings are noted, and judged when
it is over. So a server that need not prove anything is not lost for a certificate that nobody asked
for, and one that must prove something fails before a word is said. Reasons are Postfix's words.
"""

import hashlib
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from worker.tls.names import find_match
from worker.tls.policy import Level, TlsFacts, TlsPolicy, Trust, Version

MAX_TEXT: Final = 255  # characters of a name that is taken from a certificate
MIN_RSA_BITS: Final = 2_048
MIN_EC_BITS: Final = 224  # as strong as RSA with 2048 bits (NIST SP 800-57)
WEAK_HASHES: Final = ("md5", "sha1")
# First octets of what a certificate is made of, and the fields before its key: serialNumber,
# signature, issuer, validity, subject (RFC 5280 section 4.1).
SEQUENCE: Final = 0x30
EXPLICIT_VERSION: Final = 0xA0
BEFORE_KEY: Final = (0x02, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE)
LONG_LENGTH: Final = 0x80  # above: so many octets of length follow; itself: it is indefinite
# What cryptography says of a certificate that OpenSSL could read; there is no class for all of it.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    crypto.Error,
)
Codes = SSL.X509VerificationCodes
UNKNOWN_ISSUER: Final = frozenset(
    {
        Codes.ERR_UNABLE_TO_GET_ISSUER_CERT,
        Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
        Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN,
    }
)
NOT_YET: Final = frozenset({Codes.ERR_CERT_NOT_YET_VALID, Codes.ERR_ERROR_IN_CERT_NOT_BEFORE_FIELD})
EXPIRED: Final = frozenset({Codes.ERR_CERT_HAS_EXPIRED, Codes.ERR_ERROR_IN_CERT_NOT_AFTER_FIELD})
ANY_USE: Final = frozenset(
    {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
)
# Of the codes that remain, those that are met in practice, in OpenSSL's words.
WORDS: Final = {
    7: "certificate signature failure",
    24: "invalid CA certificate",
    25: "path length constraint exceeded",
    28: "certificate rejected",
    32: "key usage does not include certificate signing",
    34: "unhandled critical extension",
    47: "permitted subtree violation",
    48: "excluded subtree violation",
    66: "EE certificate key too weak",
    67: "CA certificate key too weak",
    68: "CA signature digest algorithm too weak",
}


@dataclass(slots=True)
class Finding:
    """What OpenSSL had against the chain: the fault nearest to the server's own certificate."""

    code: int = 0  # X509_V_ERR_...; 0: nothing
    depth: int = -1  # 0: the server's own certificate


def note_finding(
    connection: SSL.Connection, _certificate: crypto.X509, code: int, depth: int, _ok: int
) -> bool:
    """OpenSSL's verify callback: note the fault, and go on."""
    finding = connection.get_app_data()
    if code and (not finding.code or depth < finding.depth):
        finding.code, finding.depth = code, depth
    return True


def judge(connection: SSL.Connection, policy: TlsPolicy) -> TlsFacts:
    """What the server has shown in a full handshake, measured by `policy`.

    The connection's app data is a Finding, that of its context the bare keys that are trusted.
    """
    facts = TlsFacts(
        trust=Trust.ANONYMOUS,
        protocol=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        bits=connection.get_cipher_bits() or 0,
        details=details(connection, None),
    )
    shown = connection.get_peer_certificate()
    if shown is None:
        return replace(facts, why="the server has shown no certificate")
    octets = crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)
    key = key_octets(octets)
    facts = replace(
        facts,
        trust=Trust.UNTRUSTED,
        certificate_digest=hashlib.new(policy.digest, octets).hexdigest(),
        key_digest=hashlib.new(policy.digest, key).hexdigest() if key else "",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cryptography's, of what is odd in a certificate
            certificate = x509.load_der_x509_certificate(octets)
            facts = replace(
                facts,
                details=details(connection, certificate),
                subject=_common_name(certificate.subject),
                issuer=_common_name(certificate.issuer) or _organization(certificate.issuer),
            )
            if policy.level is Level.FINGERPRINT:
                return _compare_digests(facts, policy)
            why = _distrust(connection, policy, certificate)
            if why:
                return replace(facts, why=why)
            return _compare_names(replace(facts, trust=Trust.TRUSTED), policy, certificate)
    except UNREADABLE as exc:
        if policy.level is Level.FINGERPRINT:  # not a word of it needs to be understood
            return _compare_digests(facts, policy)
        return replace(
            facts, trust=Trust.UNTRUSTED, why=f"unreadable certificate: {clean(str(exc))}"
        )


def resumed(connection: SSL.Connection, stored: TlsFacts) -> TlsFacts:
    """The facts of a resumed session: the verdict is the stored one, nothing was shown again."""
    return replace(
        stored,
        protocol=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        bits=connection.get_cipher_bits() or 0,
        resumed=True,
    )


def clean(text: str) -> str:
    """`text` without control characters, and not too long."""
    return "".join(char for char in text[:MAX_TEXT] if char.isprintable())


# --- the policy's own tests --------------------------------------------------------------------


def _compare_digests(facts: TlsFacts, policy: TlsPolicy) -> TlsFacts:
    """Level fingerprint: of the certificate, or of its key; no authority, and no dates."""
    for digest in (facts.certificate_digest, facts.key_digest):
        if digest and digest in policy.match:
            return replace(facts, trust=Trust.VERIFIED, matched=digest)
    return replace(
        facts,
        why=f"neither its fingerprint {facts.certificate_digest} nor that of its key "
        f"{facts.key_digest} is the expected one",
    )


def _compare_names(facts: TlsFacts, policy: TlsPolicy, certificate: x509.Certificate) -> TlsFacts:
    """Level verify and secure: a name in the certificate is one of those that are expected."""
    if not policy.level.authenticated:
        return replace(facts, why="no name was asked for")
    names = _names(certificate)
    if matched := find_match(names, policy.match, many_labels=policy.many_labels):
        return replace(facts, trust=Trust.VERIFIED, matched=matched)
    shown = clean(", ".join(names)) or "none"
    return replace(
        facts, why=f"name mismatch: certificate for {shown}, expected {', '.join(policy.match)}"
    )


def _names(certificate: x509.Certificate) -> list[str]:
    """The names that a certificate is for: the common name only where there are no others."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        names = []
    else:
        names = extension.value.get_values_for_type(x509.DNSName)
    return names or [_raw_name(certificate.subject, NameOID.COMMON_NAME)]


# --- the chain ---------------------------------------------------------------------------------


def _distrust(connection: SSL.Connection, policy: TlsPolicy, leaf: x509.Certificate) -> str:
    """Why the chain is not to be trusted; empty: it is."""
    finding = connection.get_app_data()
    keys = connection.get_context().get_app_data()
    if not finding.code:
        verified = connection.get_verified_chain(as_cryptography=True) or [leaf]
        return _weakness(verified, len(verified) - 2, policy.depth)
    if keys and (chain := _chain_to_key(connection, keys, policy.depth)):
        return _misuse(leaf) or _weakness(chain, len(chain) - 2, policy.depth)
    return _in_words(finding, connection, leaf)


def _weakness(chain: list[x509.Certificate], intermediates: int, limit: int) -> str:
    """A chain that holds, but is too long (smtp_tls_scert_verifydepth) or too weak."""
    if intermediates > limit:
        return f"certificate chain longer than limit({limit})"
    for depth, certificate in enumerate(chain):
        if _is_weak(certificate.public_key()):
            return _numbered(67 if depth else 66)
        is_anchor = depth == len(chain) - 1
        algorithm = None if is_anchor else certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.name in WEAK_HASHES:
            return _numbered(68)
    return ""


def _is_weak(key: object) -> bool:
    """Fewer than 112 bits of security (OpenSSL's security level 2)."""
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey):
        return key.key_size < MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < MIN_EC_BITS


def _misuse(leaf: x509.Certificate) -> str:
    """What OpenSSL asks of a server's certificate, where it was not OpenSSL that judged it."""
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ""
    return "" if ANY_USE.intersection(uses) else "not designated for use as a server certificate"


def _in_words(finding: Finding, connection: SSL.Connection, leaf: x509.Certificate) -> str:
    code = finding.code
    if code == Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return "self-signed certificate"
    if code in UNKNOWN_ISSUER:
        chain = connection.get_verified_chain(as_cryptography=True) or [leaf]
        last = chain[min(finding.depth, len(chain) - 1)]
        return f"untrusted issuer {_one_line(last.issuer)}"
    if code in NOT_YET:
        return "certificate not yet valid"
    if code in EXPIRED:
        return "certificate has expired"
    if code == Codes.ERR_INVALID_PURPOSE:
        return "not designated for use as a server certificate"
    return _numbered(code)


def _numbered(code: int) -> str:
    return f"num={code}:{WORDS.get(code, 'certificate verify failed')}"


def _chain_to_key(
    connection: SSL.Connection, keys: tuple[CertificateIssuerPublicKeyTypes, ...], depth: int
) -> list[x509.Certificate]:
    """From the server's certificate to one that a trusted bare key has signed, and that key's.

    Nothing if there is none.

    OpenSSL trusts certificates only. So the issuer of each certificate gets one that is made up of
    its name and the trusted key; only a signature by that key then leads to it.
    """
    shown = connection.get_peer_cert_chain() or []
    chain = [certificate.to_cryptography() for certificate in shown[: depth + 2]]
    for end, last in enumerate(chain, 1):
        for key in keys:
            issuer = _stand_in(last, key)
            for anchor in [chain[0], issuer] if end == 1 and _same(chain[0], key) else [issuer]:
                store = crypto.X509Store()
                store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
                store.add_cert(crypto.X509.from_cryptography(anchor))
                context = crypto.X509StoreContext(store, shown[0], shown[1:end])
                try:
                    context.verify_certificate()
                except crypto.X509StoreContextError:
                    _clear_errors()
                    continue
                return [*chain[:end], anchor]
    return []


def _clear_errors() -> None:
    """Of OpenSSL in this thread: pyOpenSSL would take them for those of the next call."""
    Binding.lib.ERR_clear_error()


def _same(certificate: x509.Certificate, key: CertificateIssuerPublicKeyTypes) -> bool:
    return certificate.public_key() == key


def _stand_in(issued: x509.Certificate, key: CertificateIssuerPublicKeyTypes) -> x509.Certificate:
    """A certificate for the issuer of `issued` with the key `key`; its signature means nothing."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(issued.issuer)
        .issuer_name(issued.issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )


# --- texts -------------------------------------------------------------------------------------


def key_octets(certificate: bytes) -> bytes:
    """The public key as it stands in a certificate in DER: subjectPublicKeyInfo (RFC 5280, 4.1).

    Nothing if it is not found. OpenSSL could tell, too, but takes 0.3 ms to write it anew. It also
    reads what is not DER: tags in several octets, and lengths that are told by the end alone. There
    nothing is found, because somebody else's key might stand where we would look for it.
    """
    try:
        outer, _ = _element(certificate, 0, SEQUENCE)
        position, end = _element(certificate, outer, SEQUENCE)  # tbsCertificate
        if certificate[position] == EXPLICIT_VERSION:
            _, position = _element(certificate, position, EXPLICIT_VERSION)
        for tag in BEFORE_KEY:
            _, position = _element(certificate, position, tag)
        _, after = _element(certificate, position, SEQUENCE)
    except IndexError:
        return b""
    return certificate[position:after] if after <= end else b""


def _element(octets: bytes, position: int, tag: int) -> tuple[int, int]:
    """Where the content of the DER element at `position` begins and ends.

    Raises IndexError if there is none that begins with `tag`.
    """
    length, begin = octets[position + 1], position + 2
    if octets[position] != tag or length == LONG_LENGTH:
        raise IndexError
    if length > LONG_LENGTH:
        size = length - LONG_LENGTH
        length = int.from_bytes(octets[begin : begin + size], "big")
        begin += size
    if begin + length > len(octets):
        raise IndexError
    return begin, begin + length


def _raw_name(name: x509.Name, kind: x509.ObjectIdentifier) -> str:
    values = [attribute.value for attribute in name.get_attributes_for_oid(kind)]
    return str(values[0]) if values else ""


def _common_name(name: x509.Name) -> str:
    return clean(_raw_name(name, NameOID.COMMON_NAME))


def _organization(name: x509.Name) -> str:
    return clean(_raw_name(name, NameOID.ORGANIZATION_NAME))


def _one_line(name: x509.Name) -> str:
    """As OpenSSL writes a name in one line: /C=DE/O=Example/CN=Root."""
    return clean("".join(f"/{item.rfc4514_attribute_name}={item.value!s}" for item in name))


def details(connection: SSL.Connection, certificate: x509.Certificate | None) -> str:
    """How the keys were agreed on and the handshake signed, as Postfix logs it for TLS 1.3.

    Left out is what pyOpenSSL does not tell: the digest of an RSA signature.
    """
    if connection.get_protocol_version() < Version.TLSV1_3:
        return ""
    text = ""
    get_group = getattr(connection, "get_group_name", None)  # since pyOpenSSL 25.2
    if get_group is not None and (group := get_group()):
        curve = CURVES.get(group, ("", ""))[0]
        text = f" key-exchange {f'ECDHE ({curve})' if curve else group.upper()}"
    key = certificate.public_key() if certificate is not None else None
    if isinstance(key, rsa.RSAPublicKey):
        text += f" server-signature RSA-PSS ({key.key_size} bits)"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        # TLS 1.3 knows one digest for each curve (RFC 8446 section 4.2.3).
        curve, digest = CURVES.get(key.curve.name, (key.curve.name, ""))
        text += f" server-signature ECDSA ({curve})"
        text += f" server-digest {digest}" if digest else ""
    return text


CURVES: Final = {
    "secp256r1": ("prime256v1", "SHA256"),
    "secp384r1": ("secp384r1", "SHA384"),
    "secp521r1": ("secp521r1", "SHA512"),
}
