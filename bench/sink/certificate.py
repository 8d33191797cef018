"""What a sink shows in a TLS handshake: certificates from files, or one that it makes itself."""

import datetime
import ipaddress
import ssl
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

from bench.sink.behaviour import Behaviour, BehaviourError

LIFETIME: Final = datetime.timedelta(days=30)
ADDRESSES: Final = ("127.0.0.1", "::1")


def server_context(behaviour: Behaviour) -> ssl.SSLContext | None:
    """The context for clients of this behaviour, None without TLS; one for all who agree on it.

    So sessions can be resumed at any of the listeners, and in any of the processes that were forked
    after the first call. Raises OSError (a file cannot be read) and BehaviourError (it is no
    certificate, or the key of another).
    """
    if not (behaviour.starttls or behaviour.wrapper):
        return None
    return _context(behaviour.hostname, behaviour.certificate, behaviour.key)


@lru_cache(256)
def _context(hostname: str, certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        _load(context, certificate, key or certificate)
    elif key:
        raise BehaviourError(f"key={key}: certificate=FILE is missing, which it is the key of")
    else:
        with tempfile.NamedTemporaryFile(prefix="sink-", suffix=".pem") as file:  # for us alone
            file.write(self_made(hostname))
            file.flush()
            _load(context, file.name, file.name)
    return context


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for path in (certificate, key):
        Path(path).open("rb").close()  # its OSError has a name; OpenSSL's has none
    try:
        # The password is never asked for: nobody may be there.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as exc:
        why = getattr(exc, "reason", None) or str(exc)
        raise BehaviourError(
            f"certificate={certificate}: {str(why).replace('_', ' ').lower()}; expected PEM with "
            "the certificate first, and its key without a password there or in key=FILE"
        ) from exc


def self_made(hostname: str) -> bytes:
    """A new key (P-256) and a certificate for `hostname`, localhost and the loopback addresses.

    PEM. It is signed by itself, so nobody trusts it who does not mean to.
    """
    from cryptography import x509  # slow to import, and only wanted here
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    if hostname.isascii():
        names.append(x509.DNSName(hostname))
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
