"""STARTTLS in LMTP to a real Dovecot; and its submission server, which wants a password, too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from protocol.request import Protocol
from tests.integration.corpus import assert_arrived, canonical, deliver_corpus, write_corpus
from tests.integration.dovecot_instance import DovecotInstance, without_trace
from tests.integration.pki import HOST, Pki
from tests.integration.tls_peers import Client

pytestmark = pytest.mark.peer("dovecot", "lmtp", "openssl")

SSL = """\
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
ssl_min_protocol = TLSv1.2
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def running(certificates: Pki) -> Iterator[DovecotInstance]:
    """A running Dovecot: it takes a second to stop, so that all tests here share one."""
    leaf = certificates.leaf("good")
    with DovecotInstance(SSL.format(certificate=leaf.chain, key=leaf.key)) as instance:
        yield instance


@pytest.fixture
def dovecot(running: DovecotInstance) -> DovecotInstance:
    """The Dovecot, with empty mailboxes."""
    running.forget()
    return running


def secured(certificates: Pki, level: str, match: str = HOST) -> dict[str, str]:
    """Parameters of an LMTP client that trusts the servers' authority."""
    return {
        "lmtp_tls_security_level": level,
        "lmtp_tls_CAfile": str(certificates.ca_file()),
        "lmtp_tls_verify_cert_match": match,
    }


@trio_test
async def test_dovecot_is_verified(dovecot: DovecotInstance, certificates: Pki) -> None:
    client = Client({**secured(certificates, "verify"), "lmtp_tls_loglevel": "1"})
    attempt = await client.attempt(f"inet:[127.0.0.1]:{dovecot.port}", protocol=Protocol.LMTP)
    assert attempt.outcome.dsn == "2.0.0", attempt.brief
    assert attempt.log[0].startswith("Verified TLS connection established to 127.0.0.1")
    (messages,) = dovecot.received().values()
    assert b"(using TLSv1.3 with cipher " in messages[0] or b"with LMTPS" in messages[0]


@trio_test
async def test_another_name_gets_no_mail(dovecot: DovecotInstance, certificates: Pki) -> None:
    client = Client(secured(certificates, "verify", "mx.other.example"))
    attempt = await client.attempt(f"inet:[127.0.0.1]:{dovecot.port}", protocol=Protocol.LMTP)
    assert attempt.brief == "4.7.5 deferred (Server certificate not verified)"
    assert dovecot.received() == {}


def test_dovecot_gets_the_corpus_by_tls_to_the_octet(
    dovecot: DovecotInstance, certificates: Pki, tmp_path: Path
) -> None:
    options = [
        word
        for name, value in secured(certificates, "verify").items()
        for word in ("-o", f"{name}={value}")
    ]
    files = write_corpus(tmp_path)
    deliver_corpus(files, f"[127.0.0.1]:{dovecot.port}", "lmtp", *options)
    arrived = {}
    for address, messages in dovecot.received().items():
        (message,) = messages
        arrived[address.partition("@")[0]] = without_trace(message)
    assert_arrived(arrived, files, canonical)


@trio_test
async def test_a_unix_socket_has_no_use_for_tls(
    dovecot: DovecotInstance, certificates: Pki
) -> None:
    # lmtp_tls_security_level is empty by default: mail to a socket beside us goes as it did.
    attempt = await Client({}).attempt(f"unix:{dovecot.socket}", protocol=Protocol.LMTP)
    assert attempt.outcome.dsn == "2.0.0", attempt.brief
