"""What a policy needs from files and from OpenSSL, and what is said when it cannot have it."""

import errno
import os
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from trio.testing import memory_stream_pair, trio_test

from tests.integration.pki import HOST, Leaf, Pki
from tests.worker.tls_pair import MAY, Server, connect, server_context
from worker.tls import contexts as contexts_module
from worker.tls.contexts import Contexts, TlsFilesError
from worker.tls.handshake import HandshakeError
from worker.tls.policy import Anchors, Identity, Level, TlsPolicy, Version

ALL_VERSIONS = frozenset(Version)
SECRET = b"correct horse battery staple"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def refusal(policy: TlsPolicy) -> TlsFilesError:
    """Why `policy` cannot be used."""
    with pytest.raises(TlsFilesError) as caught:
        Contexts().check(policy)
    assert str(caught.value) == f"{caught.value.file}: {caught.value.reason}"
    return caught.value


# --- one for all who agree -----------------------------------------------------------------------


def test_policies_that_differ_in_nothing_openssl_sees_share_a_context(pki: Pki) -> None:
    contexts = Contexts()
    policy = TlsPolicy(level=Level.VERIFY, match=("a",), anchors=Anchors(file=str(pki.ca_file())))
    context = contexts.context(policy)
    for other in (
        policy,
        replace(policy, match=("b",)),
        replace(policy, servername="c"),
        replace(policy, level=Level.SECURE),
        replace(policy, depth=1),
    ):
        assert contexts.context(other) is context
    for other in (
        replace(policy, level=Level.MAY),
        replace(policy, ciphers="HIGH"),
        replace(policy, versions=frozenset({Version.TLSV1_2})),
        replace(policy, anchors=Anchors()),
        replace(policy, identity=Identity(pairs=((str(pki.leaf("client").joined),) * 2,))),
    ):
        assert contexts.context(other) is not context


def test_the_context_that_was_not_used_longest_goes() -> None:
    contexts = Contexts(limit=2)
    policies = [replace(MAY, ciphers=name) for name in ("HIGH", "MEDIUM:HIGH", "DEFAULT")]
    first, second = contexts.context(policies[0]), contexts.context(policies[1])
    assert contexts.context(policies[0]) is first
    contexts.context(policies[2])
    assert contexts.context(policies[0]) is first
    assert contexts.context(policies[1]) is not second


def test_files_are_read_once(pki: Pki, tmp_path: Path) -> None:
    """Rights are given up after check(), and the file system may be another one."""
    leaf = pki.leaf("client")
    files = {}
    for name, octets in (
        ("ca", pki.ca_file().read_bytes()),
        ("ta", pki.ca_key_file().read_bytes()),
        ("own", leaf.joined.read_bytes()),
    ):
        files[name] = tmp_path / name
        files[name].write_bytes(octets)
    policy = replace(
        MAY,
        anchors=Anchors(file=str(files["ca"])),
        identity=Identity(pairs=((str(files["own"]), str(files["own"])),)),
    )
    anchored = replace(policy, anchors=Anchors(trust_files=(str(files["ta"]),)))
    contexts = Contexts()
    contexts.check(policy)
    contexts.check(anchored)
    for file in files.values():
        file.unlink()
    for each in (policy, anchored):
        contexts.check(replace(each, ciphers="HIGH"))  # a context of its own


# --- versions and ciphers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (ALL_VERSIONS, Version.TLSV1_3, "TLSv1.3"),
        (ALL_VERSIONS, Version.TLSV1_2, "TLSv1.2"),
        (ALL_VERSIONS, Version.TLSV1_1, "TLSv1.1"),
        (ALL_VERSIONS, Version.TLSV1, "TLSv1"),
        (frozenset({Version.TLSV1_2, Version.TLSV1_3}), Version.TLSV1_1, ""),
        (frozenset({Version.TLSV1_3}), Version.TLSV1_2, ""),
        (frozenset({Version.TLSV1, Version.TLSV1_2}), Version.TLSV1_1, "TLSv1"),  # a hole
        (frozenset({Version.TLSV1_1, Version.TLSV1_3}), Version.TLSV1_2, "TLSv1.1"),
    ],
)
@trio_test
async def test_versions(ours: frozenset[Version], theirs: Version, agreed: str, pki: Pki) -> None:
    """The server speaks every version up to `theirs`."""
    context = server_context(pki.leaf("good"), ciphers="ALL:@SECLEVEL=0")
    context.set_min_proto_version(SSL.TLS1_VERSION)
    context.set_max_proto_version(theirs)
    policy = replace(MAY, versions=ours)
    if agreed:
        client, _ = await connect(*memory_stream_pair(), Server(context), policy)
        assert client.facts.protocol == agreed
    else:
        with pytest.raises(HandshakeError, match="protocol version"):
            await connect(*memory_stream_pair(), Server(context), policy)


@trio_test
async def test_old_versions_can_be_asked_for_at_a_level_that_proves(pki: Pki) -> None:
    context = server_context(pki.leaf("good"), ciphers="ALL:@SECLEVEL=0")
    context.set_min_proto_version(SSL.TLS1_VERSION)
    context.set_max_proto_version(SSL.TLS1_VERSION)
    policy = TlsPolicy(
        level=Level.VERIFY,
        match=(HOST,),
        versions=ALL_VERSIONS,
        anchors=Anchors(file=str(pki.ca_file())),
    )
    client, _ = await connect(*memory_stream_pair(), Server(context), policy)
    assert client.facts.meets(Level.VERIFY)


@trio_test
async def test_ciphers(pki: Pki) -> None:
    context = server_context(pki.leaf("good"), tls12=True)
    policy = replace(MAY, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    client, _ = await connect(*memory_stream_pair(), Server(context), policy)
    assert client.facts.cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert client.facts.bits == 128
    with pytest.raises(HandshakeError, match="handshake failure"):
        await connect(*memory_stream_pair(), Server(context), replace(MAY, ciphers="AES256-SHA256"))


@pytest.mark.parametrize("ciphers", ["NO-SUCH-CIPHER", "€"])
def test_ciphers_that_nobody_knows(ciphers: str) -> None:
    error = refusal(replace(MAY, ciphers=ciphers))
    assert str(error) == f'cipher list "{ciphers}": OpenSSL knows none of these ciphers'


# --- who we are ----------------------------------------------------------------------------------


async def seen(policy: TlsPolicy, context: SSL.Context) -> list[bytes]:
    """The certificates that a server that asks for ours gets to see, as DER; the first is ours."""
    context.set_verify(SSL.VERIFY_PEER, lambda *_args: True)
    server = Server(context)
    client, _ = await connect(*memory_stream_pair(), server, policy)
    await client.aclose()
    [connection] = server.connections
    leaf = connection.get_peer_certificate(as_cryptography=True)
    chain = connection.get_peer_cert_chain(as_cryptography=True) or []
    return [
        each.public_bytes(serialization.Encoding.DER)
        for each in [leaf, *[one for one in chain if one != leaf]]
        if each is not None
    ]


def der(leaf: Leaf) -> bytes:
    return leaf.certificate.public_bytes(serialization.Encoding.DER)


@trio_test
async def test_no_certificate_is_shown_unless_there_is_one(pki: Pki) -> None:
    assert await seen(MAY, server_context(pki.leaf("good"))) == []


@trio_test
async def test_a_pair_in_one_file_or_in_two_in_any_order(pki: Pki, tmp_path: Path) -> None:
    leaf = pki.leaf("client")
    behind = tmp_path / "behind.pem"
    behind.write_bytes(leaf.chain.read_bytes() + leaf.key.read_bytes())
    for files in (
        (leaf.chain, leaf.key),
        (leaf.joined, leaf.joined),
        (behind, behind),
        (leaf.joined, leaf.key),
    ):
        policy = replace(MAY, identity=Identity(pairs=((str(files[0]), str(files[1])),)))
        assert await seen(policy, server_context(pki.leaf("good"))) == [der(leaf)]


@trio_test
async def test_chain_files_may_be_split_between_key_certificate_and_chain(
    pki: Pki, tmp_path: Path
) -> None:
    leaf = pki.leaf("chain")
    first, rest = tmp_path / "first.pem", tmp_path / "rest.pem"
    first.write_bytes(leaf.certificate.public_bytes(serialization.Encoding.PEM))
    rest.write_bytes(pki.signer("middle").certificate.public_bytes(serialization.Encoding.PEM))
    other = pki.leaf("client-rsa")
    for files in (
        (leaf.key, leaf.chain),
        (leaf.key, first, rest),
        (other.joined, leaf.key, leaf.chain),
        (leaf.key, leaf.chain, other.key, other.chain),
    ):
        pairs = tuple((str(file), str(file)) for file in files)
        policy = replace(MAY, identity=Identity(pairs=pairs, one_text=True))
        context = server_context(pki.leaf("good"))
        assert Binding.lib.SSL_CTX_set1_sigalgs_list(context._context, b"ECDSA+SHA256") == 1
        own = (await seen(policy, context))[:2]
        assert own == [
            der(leaf),
            pki.signer("middle").certificate.public_bytes(serialization.Encoding.DER),
        ]


@pytest.mark.parametrize("wrong", [("chain", "key"), ("key",), ("key", "key"), ("key", "joined")])
def test_chain_files_in_the_wrong_order_or_incomplete(pki: Pki, wrong: tuple[str, ...]) -> None:
    leaf = pki.leaf("client")
    files = [str(getattr(leaf, name)) for name in wrong]
    pairs = tuple((file, file) for file in files)
    error = refusal(replace(MAY, identity=Identity(pairs=pairs, one_text=True)))
    assert error.file == files[0]
    assert error.reason.startswith("there is no ")


def test_only_chain_files_go_on_in_the_next_one(pki: Pki) -> None:
    mine, other = pki.leaf("client"), pki.leaf("client-rsa")
    pairs = tuple((str(file), str(file)) for file in (mine.joined, other.chain))
    assert refusal(replace(MAY, identity=Identity(pairs=pairs))).file == str(other.chain)


@trio_test
async def test_the_chain_goes_along(pki: Pki) -> None:
    leaf = pki.leaf("deep-chain")
    policy = replace(MAY, identity=Identity(pairs=((str(leaf.joined), str(leaf.joined)),)))
    chain = [each.certificate for each in map(pki.signer, ("deep", "lower", "middle"))]
    assert await seen(policy, server_context(pki.leaf("good"))) == [
        der(leaf),
        *[each.public_bytes(serialization.Encoding.DER) for each in chain],
    ]


@pytest.mark.parametrize("one_file", [False, True])
@pytest.mark.parametrize(
    ("kind", "signatures", "own"),
    [("good", b"ECDSA+SHA256", "client"), ("rsa", b"RSA+SHA256:RSA-PSS+SHA256", "client-rsa")],
)
@trio_test
async def test_of_two_kinds_the_server_gets_the_one_it_can_use(
    one_file: bool, kind: str, signatures: bytes, own: str, pki: Pki, tmp_path: Path
) -> None:
    files = [pki.leaf("client").joined, pki.leaf("client-rsa").joined]
    if one_file:
        both = tmp_path / "both.pem"
        both.write_bytes(b"".join(file.read_bytes() for file in files))
        files = [both]
    context = server_context(pki.leaf(kind))
    assert Binding.lib.SSL_CTX_set1_sigalgs_list(context._context, signatures) == 1
    policy = replace(MAY, identity=Identity(pairs=tuple((str(file),) * 2 for file in files)))
    assert await seen(policy, context) == [der(pki.leaf(own))]


# --- what is wrong with a file -------------------------------------------------------------------


@pytest.fixture
def bad(pki: Pki, tmp_path: Path) -> dict[str, str]:
    """Files with something wrong in them, by what is wrong."""
    leaf = pki.leaf("client")
    encrypted = pki.signer("root").key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(SECRET),
    )
    octets = {
        "empty": b"",
        "text": b"This is no certificate.\n",
        "binary": bytes(range(256)) * 10,
        "half": leaf.chain.read_bytes()[:-40],
        "nonsense": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "bad key": b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        "bad public key": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "encrypted": leaf.chain.read_bytes() + encrypted,
        "two keys": leaf.key.read_bytes() * 2,
        "key without certificate": leaf.joined.read_bytes() + leaf.key.read_bytes(),
        "good and nonsense": b"",
    }
    octets["good and nonsense"] = leaf.chain.read_bytes() + octets["nonsense"]
    found = {"missing": str(tmp_path / "missing"), "directory": str(tmp_path)}
    for name, content in octets.items():
        path = tmp_path / f"{name}.pem"
        path.write_bytes(content)
        found[name] = str(path)
    os.mkfifo(tmp_path / "fifo")
    found["fifo"] = str(tmp_path / "fifo")
    found["zeros"] = "/dev/zero"
    found["NUL"] = "a\0b"
    return found


NO_CERTIFICATE = "there is no certificate in it"
UNREADABLE = "a certificate in it cannot be read"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("directory", "it is not a file"),
        ("fifo", "it is not a file"),
        ("zeros", "it is not a file"),
        ("NUL", "cannot be read: embedded null byte"),
        ("empty", NO_CERTIFICATE),
        ("text", NO_CERTIFICATE),
        ("binary", NO_CERTIFICATE),
        ("half", NO_CERTIFICATE),
        ("bad key", NO_CERTIFICATE),
        ("nonsense", UNREADABLE),
        ("good and nonsense", UNREADABLE),
    ],
)
def test_a_file_of_authorities(name: str, reason: str, bad: dict[str, str]) -> None:
    error = refusal(replace(MAY, anchors=Anchors(file=bad[name])))
    assert (error.file, error.reason) == (bad[name], reason)
    trusted = refusal(replace(MAY, anchors=Anchors(trust_files=(bad[name],))))
    assert trusted.file == bad[name]
    if reason != NO_CERTIFICATE:
        assert trusted.reason == reason
    else:
        assert trusted.reason == "there is neither a certificate nor a public key in it"


def test_a_trust_file_that_is_broken_is_not_read_again_before_it_is_changed(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, contexts, read = tmp_path / "anchor.pem", Contexts(), []
    look = contexts_module._read_trust_file

    def counted(name: str) -> contexts_module.TrustFile:
        read.append(name)
        return look(name)

    monkeypatch.setattr(contexts_module, "_read_trust_file", counted)
    policy = replace(MAY, anchors=Anchors(trust_files=(str(file),)))

    def fails(reason: str) -> None:
        for _ in range(3):
            with pytest.raises(TlsFilesError, match=reason):
                contexts.check(policy)

    fails("No such file")
    assert len(read) == 1
    file.write_text("no certificate")
    fails("neither a certificate nor")
    assert len(read) == 2
    # Of the same size and time: a copy that is put in its place is another file.
    other = tmp_path / "other.pem"
    other.write_text("no certifikate")
    times = file.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    fails("neither a certificate nor")
    assert len(read) == 3
    file.write_bytes(pki.ca_file().read_bytes())
    contexts.check(policy)
    file.write_text("it was read, and stays as it was")
    contexts.check(replace(policy, ciphers="HIGH"))
    assert len(read) == 4


def test_a_trust_file_that_could_not_be_opened_for_a_moment_is_read_again(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, contexts = replace(MAY, anchors=Anchors(trust_files=(str(pki.ca_file()),))), Contexts()

    def too_many(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", too_many)
        with pytest.raises(TlsFilesError, match="Too many open files"):
            contexts.check(policy)
    contexts.check(policy)


def test_a_trust_file_with_a_broken_key(bad: dict[str, str]) -> None:
    error = refusal(replace(MAY, anchors=Anchors(trust_files=(bad["bad public key"],))))
    assert str(error) == f"{bad['bad public key']}: a public key in it cannot be read"


def test_a_directory_that_is_none(pki: Pki, tmp_path: Path) -> None:
    for directory in (tmp_path / "missing", pki.ca_file()):
        error = refusal(replace(MAY, anchors=Anchors(directory=str(directory))))
        assert str(error) == f"{directory}: there is no such directory"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("empty", "there is no certificate in it, or none for a key"),
        ("bad key", "there is no certificate in it, or none for a key"),
        ("good and nonsense", "there is no private key in it, or none for a certificate"),
        ("encrypted", "the private key is encrypted; it must be stored without a passphrase"),
        ("key without certificate", "there is no certificate in it, or none for a key"),
    ],
)
def test_our_own_files(name: str, reason: str, bad: dict[str, str]) -> None:
    error = refusal(replace(MAY, identity=Identity(pairs=((bad[name], bad[name]),))))
    assert (error.file, error.reason) == (bad[name], reason)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("text", "there is no private key in it, or none for a certificate"),
        ("bad key", "the private key cannot be read"),
        ("encrypted", "the private key is encrypted; it must be stored without a passphrase"),
        ("two keys", "there is more than one private key in it"),
    ],
)
def test_our_own_key(name: str, reason: str, bad: dict[str, str], pki: Pki) -> None:
    pair = (str(pki.leaf("client").chain), bad[name])
    error = refusal(replace(MAY, identity=Identity(pairs=(pair,))))
    assert (error.file, error.reason) == (bad[name], reason)


def test_a_key_that_belongs_to_another_certificate(pki: Pki) -> None:
    mine, other = pki.leaf("client"), pki.leaf("client-rsa")
    error = refusal(replace(MAY, identity=Identity(pairs=((str(mine.chain), str(other.key)),))))
    assert error.file == str(other.key)
    assert error.reason == f"the key does not belong to the first certificate in {mine.chain}"


def test_no_key_in_any_text(pki: Pki, bad: dict[str, str]) -> None:
    leaf = pki.leaf("client")
    pair = contexts_pairs(replace(MAY, identity=Identity(pairs=((str(leaf.joined),) * 2,))))
    assert "key=" not in repr(pair)
    try:
        Contexts().check(
            replace(MAY, identity=Identity(pairs=((str(leaf.chain), bad["bad key"]),)))
        )
    except TlsFilesError as exc:
        text = "".join(traceback.format_exception(exc))
    assert "c2VjcmV0" not in text
    assert "secret" not in text


def contexts_pairs(policy: TlsPolicy) -> object:
    """What is kept of our certificates."""
    contexts = Contexts()
    contexts.check(policy)
    return contexts._identities


# --- the system's authorities --------------------------------------------------------------------


@trio_test
async def test_the_systems_authorities_if_they_are_wanted(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca_file()))
    server = Server(server_context(pki.leaf("good")))
    for system, own in ((True, ""), (True, str(pki.ca_file("stranger"))), (False, "")):
        policy = TlsPolicy(
            level=Level.VERIFY, match=(HOST,), anchors=Anchors(file=own, system=system)
        )
        client, _ = await connect(*memory_stream_pair(), server, policy)
        assert client.facts.meets(Level.VERIFY) is system
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    error = refusal(replace(MAY, anchors=Anchors(system=True)))
    assert error.file == "tls_append_default_CA"


@trio_test
async def test_a_hashed_directory(pki: Pki) -> None:
    server = Server(server_context(pki.leaf("good")))
    policy = TlsPolicy(
        level=Level.VERIFY, match=(HOST,), anchors=Anchors(directory=str(pki.ca_directory()))
    )
    client, _ = await connect(*memory_stream_pair(), server, policy)
    assert client.facts.meets(Level.VERIFY)
    server = Server(server_context(pki.leaf("unknown-ca")))
    client, _ = await connect(*memory_stream_pair(), server, policy)
    assert not client.facts.meets(Level.VERIFY)
