"""Handshakes and streams with GnuTLS, which is no OpenSSL: versions, suites, verdicts, resumption.

`gnutls-serv` says again what it is told; it never speaks first, so that it can play no mail server.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
from trio.testing import trio_test

from tests.integration.pki import HOST, Pki
from tests.integration.tls_peers import GnutlsServer, shaken
from worker.status.events import Event
from worker.tls.contexts import Contexts
from worker.tls.handshake import HandshakeError, TlsEngine
from worker.tls.policy import Anchors, Identity, Level, TlsPolicy, Trust, Version
from worker.tls.sessions import SessionStore
from worker.tls.stream import TlsStream

pytestmark = pytest.mark.peer("gnutls-serv", "openssl")

LIMIT = 30.0  # seconds; nothing takes nearly as long
LINES = b"".join(b"%06d %s\n" % (number, b"x" * 900) for number in range(400))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def contexts() -> Contexts:
    """Where the contexts of one test are."""
    return Contexts()


@pytest.fixture(scope="module")
def server(certificates: Pki) -> Iterator[GnutlsServer]:
    """One that does what GnuTLS does by itself; it asks for a client's certificate."""
    with GnutlsServer(
        certificates.leaf("good"), "--crlf", "--x509cafile", certificates.ca_file()
    ) as running:
        yield running


def ignore(event: Event) -> None:
    """Nobody asks here what the engine says."""


def policy(certificates: Pki, level: Level = Level.VERIFY, match: str = HOST) -> TlsPolicy:
    """One that the good server meets."""
    anchors = Anchors(file=str(certificates.ca_file()))
    return TlsPolicy(level=level, match=(match,), anchors=anchors)


async def echo(stream: TlsStream, octets: bytes) -> bytes:
    """What comes back, while it is sent; as far as the server goes."""
    back = bytearray()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, octets)
            while len(back) < len(octets) and (data := await stream.receive_some()):
                back += data
    return bytes(back)


SUITES = {
    "+VERS-TLS1.3:+AES-128-GCM": ("TLSv1.3", "TLS_AES_128_GCM_SHA256"),
    "+VERS-TLS1.3:+AES-256-GCM": ("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    "+VERS-TLS1.3:+CHACHA20-POLY1305": ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256"),
    "+VERS-TLS1.2:+AES-128-GCM": ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    "+VERS-TLS1.2:+AES-256-GCM": ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    "+VERS-TLS1.2:+CHACHA20-POLY1305": ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    "+VERS-TLS1.2:+AES-256-CBC:+SHA1": ("TLSv1.2", "ECDHE-ECDSA-AES256-SHA"),
}


@pytest.mark.parametrize("priority", SUITES)
@trio_test
async def test_every_suite_carries_text_both_ways(
    certificates: Pki, contexts: Contexts, priority: str
) -> None:
    words = f"NORMAL:-VERS-ALL:-CIPHER-ALL:{priority}"
    with GnutlsServer(
        certificates.leaf("good"), "--crlf", "--disable-client-cert", "--priority", words
    ) as server:
        engine = TlsEngine(contexts, None, ignore)
        async with shaken(engine, server.port, policy(certificates)) as stream:
            facts = stream.facts
            assert (facts.protocol, facts.cipher) == SUITES[priority]
            assert (facts.trust, facts.matched, facts.why) == (Trust.VERIFIED, HOST, "")
            assert await echo(stream, LINES) == LINES


@pytest.mark.parametrize(
    ("leaf", "trust", "why"),
    [
        ("good", Trust.VERIFIED, ""),
        ("rsa", Trust.VERIFIED, ""),
        ("deep-chain", Trust.VERIFIED, ""),
        ("wrong-name", Trust.TRUSTED, "mx.other.example"),
        ("expired", Trust.UNTRUSTED, "certificate has expired"),
        ("not-yet", Trust.UNTRUSTED, "certificate not yet valid"),
        ("self-signed", Trust.UNTRUSTED, "self-signed certificate"),
        ("unknown-ca", Trust.UNTRUSTED, "untrusted issuer /CN=stranger authority"),
        ("missing-intermediate", Trust.UNTRUSTED, "untrusted issuer /CN=middle authority"),
        ("client", Trust.UNTRUSTED, "not designated for use as a server certificate"),
    ],
)
@trio_test
async def test_its_certificates_are_judged_as_any(
    certificates: Pki, contexts: Contexts, leaf: str, trust: Trust, why: str
) -> None:
    with GnutlsServer(certificates.leaf(leaf), "--crlf", "--disable-client-cert") as server:
        engine = TlsEngine(contexts, None, ignore)
        async with shaken(engine, server.port, policy(certificates)) as stream:
            assert stream.facts.trust is trust
            assert why in stream.facts.why
            assert stream.facts.meets(Level.VERIFY) is (trust is Trust.VERIFIED)
            # Whatever it is worth, it is a connection.
            assert await echo(stream, b"hello\r\n") == b"hello\r\n"


@trio_test
async def test_it_sees_our_certificate(
    server: GnutlsServer, certificates: Pki, contexts: Contexts
) -> None:
    leaf = certificates.leaf("client")
    ours = Identity(pairs=((str(leaf.chain), str(leaf.key)),))
    asked = replace(policy(certificates), identity=ours)
    async with shaken(TlsEngine(contexts, None, ignore), server.port, asked) as stream:
        assert await echo(stream, b"hello\r\n") == b"hello\r\n"
    pattern = re.compile("CN=client.example")
    await trio.to_thread.run_sync(server.wait_until, pattern)


@pytest.mark.parametrize("version", [Version.TLSV1_2, Version.TLSV1_3])
@trio_test
async def test_a_session_is_resumed_with_its_verdict_and_for_its_policy_alone(
    server: GnutlsServer, certificates: Pki, contexts: Contexts, version: Version
) -> None:
    store = SessionStore(3600.0)
    engine = TlsEngine(contexts, store, ignore)
    only = frozenset({version})
    anchors = Anchors(file=str(certificates.ca_file()))
    strict = TlsPolicy(level=Level.VERIFY, match=(HOST,), anchors=anchors, versions=only)
    loose = TlsPolicy(level=Level.MAY, versions=only)
    wrong = TlsPolicy(level=Level.VERIFY, match=("a.example",), anchors=anchors, versions=only)
    found = []
    for asked in (loose, loose, strict, strict, wrong, wrong):
        async with shaken(engine, server.port, asked) as stream:
            assert await echo(stream, b"hello\r\n") == b"hello\r\n"
            found.append((stream.facts.resumed, stream.facts.trust))
    assert found == [
        (False, Trust.UNTRUSTED),
        (True, Trust.UNTRUSTED),
        (False, Trust.VERIFIED),
        (True, Trust.VERIFIED),
        (False, Trust.TRUSTED),
        (False, Trust.TRUSTED),
    ]


@trio_test
async def test_a_server_of_old_versions_is_refused_and_told(
    certificates: Pki, contexts: Contexts
) -> None:
    words = "NORMAL:-VERS-ALL:+VERS-TLS1.1"
    with GnutlsServer(certificates.leaf("good"), "--priority", words) as server:
        engine = TlsEngine(contexts, None, ignore)
        with pytest.raises(HandshakeError):
            async with shaken(engine, server.port, policy(certificates)):
                pass


@trio_test
async def test_it_asks_for_another_handshake_in_vain(certificates: Pki, contexts: Contexts) -> None:
    # RFC 5246 section 7.4.1.1: a client of TLS 1.2 may leave it at the handshake that was.
    words = "NORMAL:-VERS-ALL:+VERS-TLS1.2"
    with GnutlsServer(
        certificates.leaf("good"), "--crlf", "--disable-client-cert", "--priority", words
    ) as server:
        async with shaken(
            TlsEngine(contexts, None, ignore), server.port, policy(certificates)
        ) as stream:
            with trio.fail_after(LIMIT):
                await stream.send_all(b"**REHANDSHAKE**\r\n")
                assert await stream.receive_some() == b"Successfully executed command\n"
                # It takes no for no answer. That we said so, and wait for nothing, is what counts.
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
