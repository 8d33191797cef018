"""What a policy needs from files and from OpenSSL, and what is said when it cannot have it."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from trio.testing import memory_stream_pair, trio_test

from tests.integration.pki import HOST, Leaf, Pki
from tests.worker.tls_pair import MAY, Server, connect, server_context
from worker.tls.contexts import Contexts, TlsFilesError
from worker.tls.handshake import HandshakeError, TlsEngine
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
        await connect(*memory_stream_pair(), Server(context), replace(MAY, ciphers="DHE-RSA"))


@pytest.mark.parametrize("ciphers", ["NO-SUCH-CIPHER", "€"])
def test_ciphers_that_nobody_knows(ciphers: str) -> None:
    error = refusal(replace(MAY, ciphers=ciphers))
    assert str(error) == f'cipher list "{ciphers}": OpenSSL knows none of these ciphers'


# --- who we are ----------------------------------------------------------------------------------


async def seen(policy: TlsPolicy, pki: Pki, trusted: str = "DEFAULT") -> list[bytes]:
    """The certificates that a server that asks for ours gets to see, as DER; the first is ours."""
    context = server_context(pki.leaf("good"), ciphers=trusted)
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
    assert await seen(MAY, pki) == []


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
        assert await seen(policy, pki) == [der(leaf)]


@trio_test
async def test_the_chain_goes_along(pki: Pki) -> None:
    leaf = pki.leaf("deep-chain")
    policy = replace(MAY, identity=Identity(pairs=((str(leaf.joined), str(leaf.joined)),)))
    chain = [each.certificate for each in map(pki.signer, ("deep", "lower", "middle"))]
    assert await seen(policy, pki) == [
        der(leaf),
        *[each.public_bytes(serialization.Encoding.DER) for each in chain],
    ]


@pytest.mark.parametrize("one_file", [False, True])
@trio_test
async def test_of_two_kinds_the_server_gets_the_one_it_can_use(
    one_file: bool, pki: Pki, tmp_path: Path
) -> None:
    leaves = [pki.leaf("client"), pki.leaf("client-rsa")]
    files = [leaf.joined for leaf in leaves]
    if one_file:
        both = tmp_path / "both.pem"
        both.write_bytes(b"".join(file.read_bytes() for file in files))
        files = [both]
    policy = replace(
        MAY,
        versions=frozenset({Version.TLSV1_2}),
        identity=Identity(pairs=tuple((str(file), str(file)) for file in files)),
    )
    assert await seen(policy, pki) == [der(leaves[0])]
    context = server_context(pki.leaf("rsa"))
    context.set_verify(SSL.VERIFY_PEER, lambda *_args: True)
    assert len(Contexts()._make(policy, strict=False).get_app_data()) == 0
    loaded = next(iter(_identities(policy)))
    assert {pair.certificate for pair in loaded} == {leaf.certificate for leaf in leaves}


def _identities(policy: TlsPolicy) -> object:
    contexts = Contexts()
    contexts.check(policy)
    return contexts._identities.values()
