"""What a server's certificate is worth under a policy: whole handshakes, judged afterwards."""

import hashlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair, trio_test

from tests.integration.pki import HOST, IDN, NEXTHOP, Leaf, Pki
from tests.worker.tls_pair import Server, connect, server_context
from worker.tls.policy import Anchors, Level, TlsFacts, TlsPolicy, Trust, Version
from worker.tls.verdict import judge, key_octets

WEAK = "ALL:@SECLEVEL=0"  # so that a server takes a certificate that it should not


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def shown(leaf: Leaf | None, policy: TlsPolicy, *, tls12: bool = False) -> TlsFacts:
    """What `policy` makes of a server that shows `leaf`."""
    server = Server(server_context(leaf, ciphers=WEAK, tls12=tls12))
    client, _ = await connect(*memory_stream_pair(), server, policy)
    return client.facts


def verify(pki: Pki, *match: str) -> TlsPolicy:
    """Level verify, with the root of `pki` as the only authority."""
    return TlsPolicy(
        level=Level.VERIFY, match=match or (HOST,), anchors=Anchors(file=str(pki.ca_file()))
    )


# --- chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("good", ""),
        ("rsa", ""),
        ("chain", ""),
        ("deep-chain", ""),
        ("expired", "certificate has expired"),
        ("not-yet", "certificate not yet valid"),
        ("self-signed", "self-signed certificate"),
        ("expired-self-signed", "self-signed certificate"),
        ("unknown-ca", "untrusted issuer /CN=stranger authority"),
        ("missing-intermediate", "untrusted issuer /CN=middle authority"),
        ("expired-ca", "untrusted issuer /CN=old authority"),
        ("client", "not designated for use as a server certificate"),
        ("weak-key", "num=66:EE certificate key too weak"),
        ("weak-digest", "num=68:CA signature digest algorithm too weak"),
    ],
)
@trio_test
async def test_a_chain_is_good_or_it_is_told_why_not(case: str, why: str, pki: Pki) -> None:
    leaf = pki.leaf(case)
    name = HOST if case != "client" else "client.example"
    facts = await shown(leaf, verify(pki, name))
    assert facts.why == why
    assert facts.trust is (Trust.UNTRUSTED if why else Trust.VERIFIED)
    assert facts.matched == ("" if why else HOST)
    assert facts.meets(Level.VERIFY) is (not why)
    assert facts.subject == name
    assert facts.certificate_digest == leaf.digest()
    assert facts.key_digest == leaf.key_digest()
    # The same one where nobody asks who it is: mail goes out, and the log says what it is worth.
    facts = await shown(leaf, replace(verify(pki), level=Level.MAY))
    assert facts.trust is (Trust.UNTRUSTED if why else Trust.TRUSTED)
    assert facts.why == (why or "no name was asked for")
    assert facts.meets(Level.ENCRYPT)
    assert not facts.meets(Level.FINGERPRINT)


@trio_test
async def test_an_authority_that_has_expired_is_none(pki: Pki) -> None:
    policy = replace(verify(pki), anchors=Anchors(file=str(pki.ca_file("old"))))
    assert (await shown(pki.leaf("expired-ca"), policy)).why == "certificate has expired"


@pytest.mark.parametrize(("depth", "why"), [(2, "certificate chain longer than limit(2)"), (3, "")])
@trio_test
async def test_intermediate_certificates_are_counted(depth: int, why: str, pki: Pki) -> None:
    """root - middle - lower - deep - leaf has three of them."""
    facts = await shown(pki.leaf("deep-chain"), replace(verify(pki), depth=depth))
    assert facts.why == why
    assert facts.meets(Level.VERIFY) is (not why)


@trio_test
async def test_without_authorities_nobody_is_trusted(pki: Pki) -> None:
    policy = replace(verify(pki), anchors=Anchors())
    assert (await shown(pki.leaf("good"), policy)).why == "untrusted issuer /CN=root authority"


@trio_test
async def test_a_server_without_a_certificate_is_anonymous() -> None:
    policy = TlsPolicy(
        level=Level.MAY, versions=frozenset({Version.TLSV1_2}), ciphers="aNULL:DEFAULT"
    )
    facts = await shown(None, policy, tls12=True)
    assert facts.trust is Trust.ANONYMOUS
    assert facts.why == "the server has shown no certificate"
    assert facts.cipher.startswith(("ADH", "AECDH"))


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "match", "matched"),
    [
        ("good", (HOST,), HOST),
        ("good", ("other.example", NEXTHOP), NEXTHOP),
        ("good", (f".{NEXTHOP}",), HOST),
        ("good", ("mx2.good.example",), ""),
        ("good", (), ""),
        ("wrong-name", (HOST,), ""),
        ("wildcard", (HOST,), "*.good.example"),
        ("wildcard", ("a.b.good.example",), "*.good.example"),
        ("wildcard", (NEXTHOP,), ""),
        ("idn", (IDN,), IDN),
        ("cn-only", (HOST,), HOST),
        ("san-wins", (HOST,), ""),
        ("san-wins", ("mx.other.example",), "mx.other.example"),
        ("nul-name", (HOST,), ""),
    ],
)
@trio_test
async def test_names(case: str, match: tuple[str, ...], matched: str, pki: Pki) -> None:
    facts = await shown(pki.leaf(case), replace(verify(pki), match=match))
    assert facts.matched == matched
    assert facts.trust is (Trust.VERIFIED if matched else Trust.TRUSTED)
    assert facts.meets(Level.SECURE) is bool(matched)
    if not matched:
        assert facts.why.startswith("name mismatch: certificate for ")
        assert facts.why.isprintable()


@trio_test
async def test_a_wildcard_stands_for_one_label_if_that_is_wanted(pki: Pki) -> None:
    policy = replace(verify(pki, "a.b.good.example"), many_labels=False)
    assert (await shown(pki.leaf("wildcard"), policy)).trust is Trust.TRUSTED


@trio_test
async def test_a_good_name_does_not_help_a_bad_chain(pki: Pki) -> None:
    facts = await shown(pki.leaf("unknown-ca"), verify(pki))
    assert not facts.matched
    assert not facts.meets(Level.VERIFY)


# --- fingerprints --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["good", "expired-self-signed", "weak-key", "client"])
@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@trio_test
async def test_a_fingerprint_needs_no_authority_and_no_dates(
    case: str, algorithm: str, pki: Pki
) -> None:
    leaf = pki.leaf(case)
    right, key = leaf.digest(algorithm), leaf.key_digest(algorithm)
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    policy = TlsPolicy(level=Level.FINGERPRINT, digest=algorithm)
    for match, matched in (((wrong, right), right), ((key,), key), ((wrong,), ""), ((), "")):
        facts = await shown(leaf, replace(policy, match=match))
        assert facts.matched == matched
        assert facts.meets(Level.FINGERPRINT) is bool(matched)
        assert (right in facts.why) is (not matched)


@given(data=st.data())
@settings(max_examples=200)
def test_the_key_is_found_in_a_certificate_and_nowhere_else(pki: Pki, data: st.DataObject) -> None:
    certificate = pki.leaf("rsa").certificate
    octets = certificate.public_bytes(serialization.Encoding.DER)
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert key_octets(octets) == key
    cut = data.draw(st.integers(0, len(octets) - 1))
    assert key_octets(octets[:cut]) == b""
    broken = bytearray(octets)
    broken[cut] = data.draw(st.integers(0, 255))
    assert key_octets(bytes(broken)) in bytes(broken)  # whatever it is, no exception
    assert key_octets(data.draw(st.binary(max_size=60))) is not None


# --- trust files ---------------------------------------------------------------------------------


def trusting(*files: Path) -> TlsPolicy:
    return TlsPolicy(
        level=Level.VERIFY, match=(HOST,), anchors=Anchors(trust_files=tuple(map(str, files)))
    )


@pytest.mark.parametrize("make", [Pki.ca_file, Pki.ca_key_file], ids=["certificate", "key"])
@pytest.mark.parametrize(
    ("case", "authority", "good"),
    [
        ("good", "root", True),
        ("chain", "root", True),
        ("deep-chain", "root", True),
        ("chain", "middle", True),  # no root, and yet trusted
        ("missing-intermediate", "middle", True),
        ("deep-chain", "lower", True),
        ("good", "stranger", False),
        ("good", "middle", False),
        ("missing-intermediate", "root", False),
        ("expired", "root", False),
        ("self-signed", "root", False),
        ("client", "root", False),
        ("weak-key", "root", False),
    ],
)
@trio_test
async def test_a_trust_file_trusts_what_it_holds_and_nothing_else(
    make: Callable[[Pki, str], Path], case: str, authority: str, good: bool, pki: Pki
) -> None:
    policy = trusting(make(pki, authority))
    facts = await shown(pki.leaf(case), replace(policy, match=(HOST, "client.example")))
    assert facts.meets(Level.VERIFY) is good
    if case == "client":
        assert facts.why == "not designated for use as a server certificate"
    if case == "weak-key":
        assert facts.why == "num=66:EE certificate key too weak"


@trio_test
async def test_an_expired_authority_is_trusted_by_its_key(pki: Pki) -> None:
    assert (await shown(pki.leaf("expired-ca"), trusting(pki.ca_key_file("old")))).meets(
        Level.VERIFY
    )


@trio_test
async def test_the_key_of_the_certificate_itself_is_enough(pki: Pki, tmp_path: Path) -> None:
    leaf = pki.leaf("self-signed")
    file = tmp_path / "leaf.pem"
    file.write_bytes(
        leaf.certificate.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert (await shown(leaf, trusting(file))).meets(Level.VERIFY)
    assert not (await shown(pki.leaf("good"), trusting(file))).meets(Level.VERIFY)


@trio_test
async def test_the_depth_is_counted_up_to_a_trusted_key(pki: Pki) -> None:
    policy = trusting(pki.ca_key_file())
    assert (await shown(pki.leaf("deep-chain"), replace(policy, depth=3))).meets(Level.VERIFY)
    assert not (await shown(pki.leaf("deep-chain"), replace(policy, depth=2))).meets(Level.VERIFY)


@trio_test
async def test_a_search_in_vain_leaves_no_errors_behind(pki: Pki) -> None:
    """Before release 4 OpenSSL takes them for those of the next call, on whichever connection."""
    server = Server(server_context(pki.leaf("good")))
    policy = replace(trusting(pki.ca_key_file("old")), level=Level.MAY)
    client, _ = await connect(*memory_stream_pair(), server, policy)
    Binding.lib.ERR_clear_error()
    assert judge(client._connection, policy).trust is Trust.UNTRUSTED
    assert Binding.lib.ERR_peek_error() == 0


# --- odd certificates ----------------------------------------------------------------------------


def odd(
    path: Path,
    build: Callable[[x509.CertificateBuilder], x509.CertificateBuilder],
    name: str,
    spoil: Callable[[bytes], bytes] = lambda der: der,
) -> Leaf:
    """A certificate that signed itself, with something odd in it; `spoil` breaks its signature."""
    key = ec.generate_private_key(ec.SECP256R1())
    pki = Pki(path)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(pki.now)
        .not_valid_after(pki.now.replace(year=pki.now.year + 1))
    )
    certificate = build(builder).sign(key, hashes.SHA256())
    chain, secret = path / "odd.pem", path / "odd.key"
    chain.write_text(
        ssl.DER_cert_to_PEM_cert(spoil(certificate.public_bytes(serialization.Encoding.DER)))
    )
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Leaf(certificate=certificate, chain=chain, key=secret, joined=chain)


@trio_test
async def test_control_characters_in_a_certificate_do_not_get_out(tmp_path: Path) -> None:
    name = "a\r\nwarning: \x1b[31mforged\x00"
    leaf = odd(tmp_path, lambda builder: builder, name)
    policy = TlsPolicy(level=Level.VERIFY, match=(HOST,), anchors=Anchors(file=str(leaf.chain)))
    for each in (policy, replace(policy, level=Level.MAY, anchors=Anchors())):
        facts = await shown(leaf, each)
        assert facts.subject == facts.issuer == "awarning: [31mforged"
        assert facts.why.isprintable()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (bytes([42, 3, 5]), bytes([42, 3, 4])),  # the same extension twice
        (bytes([0xA0, 3, 2, 1, 2]), bytes([0xA0, 3, 2, 1, 7])),  # of version 8
    ],
    ids=["twice", "version"],
)
@trio_test
async def test_a_certificate_that_cannot_be_read_is_untrusted_and_no_crash(
    before: bytes, after: bytes, tmp_path: Path
) -> None:
    """OpenSSL does not mind, and trusts it as it is told to."""
    one, two = (
        x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{last}"), b"\x05\x00")
        for last in (4, 5)
    )
    leaf = odd(
        tmp_path,
        lambda builder: builder.add_extension(one, False).add_extension(two, False),  # noqa: FBT003
        HOST,
        lambda der: der.replace(before, after),
    )
    octets = ssl.PEM_cert_to_DER_cert(leaf.chain.read_text())
    digest = hashlib.sha256(octets).hexdigest()
    policy = TlsPolicy(
        level=Level.VERIFY, match=(HOST,), anchors=Anchors(trust_files=(str(leaf.chain),))
    )
    facts = await shown(leaf, policy)
    assert facts.trust is Trust.UNTRUSTED
    assert facts.why.startswith("unreadable certificate: ")
    assert facts.why.isprintable()
    assert facts.certificate_digest == digest
    facts = await shown(leaf, replace(policy, level=Level.FINGERPRINT, match=(digest,)))
    assert facts.meets(Level.FINGERPRINT)
    facts = await shown(leaf, replace(policy, level=Level.FINGERPRINT, match=("x",)))
    assert not facts.meets(Level.FINGERPRINT)
    assert (await shown(leaf, replace(policy, level=Level.MAY))).meets(Level.ENCRYPT)


def element(tag: bytes, *content: bytes) -> bytes:
    """In DER."""
    octets = b"".join(content)
    return tag + b"\x82" + len(octets).to_bytes(2, "big") + octets


def fields_of(sequence: bytes) -> list[bytes]:
    """The parts of a SEQUENCE in DER."""
    parts, at = [], 2 + (sequence[1] & 0x7F if sequence[1] & 0x80 else 0)
    while at < len(sequence):
        octets = sequence[at + 1] & 0x7F if sequence[at + 1] & 0x80 else 0
        begin = at + 2 + octets
        length = int.from_bytes(sequence[at + 2 : begin], "big") if octets else sequence[at + 1]
        parts.append(sequence[at : begin + length])
        at = begin + length
    return parts


def with_key_of_another(der: bytes, key: bytes, where: str) -> bytes:
    """`key` where a reader of DER would look for it; OpenSSL takes BER, and sees its own key."""
    tbs, *rest = fields_of(der)
    version, serial, algorithm, *others = fields_of(tbs)
    if where == "indefinite length":  # of the parameters of an algorithm
        (oid,) = fields_of(algorithm)
        parameters = b"\x30\x80" + b"\x30\x00" + key + b"\0\0"
        algorithm = b"\x30\x80" + oid + parameters + b"\0\0"
    elif where == "a tag in two octets":  # of the serial number
        inside = b"\x01" + 4 * b"\x30\x00" + key  # as many fields as stand before a key
        serial = b"\x1f\x02" + bytes([len(inside)]) + inside
    return element(b"\x30", element(b"\x30", version, serial, algorithm, *others), *rest)


@pytest.mark.parametrize("where", ["nowhere", "indefinite length", "a tag in two octets"])
@trio_test
async def test_the_key_that_counts_is_the_one_of_the_handshake(
    where: str, pki: Pki, tmp_path: Path
) -> None:
    """Nobody passes for another with that one's public key somewhere in his certificate."""
    key = (
        pki.leaf("good")
        .certificate.public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    leaf = odd(
        tmp_path, lambda builder: builder, HOST, lambda der: with_key_of_another(der, key, where)
    )
    expected = hashlib.sha256(key).hexdigest()
    policy = TlsPolicy(level=Level.FINGERPRINT, match=(expected,))
    facts = await shown(leaf, policy)
    assert facts.key_digest != expected
    assert not facts.meets(Level.FINGERPRINT)
    own = hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf.chain.read_text())).hexdigest()
    if where == "nowhere":
        assert facts.key_digest == leaf.key_digest()
    else:
        assert facts.key_digest == ""
        assert facts.certificate_digest == own  # which is enough, if somebody wants it so


@trio_test
async def test_names_that_are_no_names_are_none(tmp_path: Path) -> None:
    # A subjectAltName that is no list of names.
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x04\x03abc")
    leaf = odd(tmp_path, lambda builder: builder.add_extension(extension, critical=False), HOST)
    policy = TlsPolicy(level=Level.VERIFY, match=(HOST,), anchors=Anchors(file=str(leaf.chain)))
    facts = await shown(leaf, policy)
    assert facts.trust is Trust.UNTRUSTED
    assert facts.why
    assert facts.why.isprintable()
    assert (await shown(leaf, replace(policy, level=Level.MAY))).meets(Level.MAY)


# --- what the log is told ------------------------------------------------------------------------


@trio_test
async def test_how_it_was_agreed_is_told_as_postfix_does(pki: Pki) -> None:
    facts = await shown(pki.leaf("good"), verify(pki))
    assert (facts.protocol, facts.cipher, facts.bits) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
    assert facts.details.endswith(" server-signature ECDSA (prime256v1) server-digest SHA256")
    assert facts.issuer == "root authority"
    assert not facts.resumed
    facts = await shown(pki.leaf("rsa"), verify(pki))
    assert facts.details.endswith(" server-signature RSA-PSS (2048 bits)")
    facts = await shown(pki.leaf("rsa"), verify(pki), tls12=True)
    assert facts.protocol == "TLSv1.2"
    assert facts.cipher == "ECDHE-RSA-AES256-GCM-SHA384"
    assert not facts.details
