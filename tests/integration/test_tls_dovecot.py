"""STARTTLS in LMTP to a real Dovecot; and its submission server, which wants a password, too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from bench.postfix_instance import free_port
from protocol.outcome import Action
from protocol.request import Protocol
from tests.integration.corpus import assert_arrived, canonical, deliver_corpus, write_corpus
from tests.integration.dovecot_instance import CONFIG, DovecotInstance, without_trace
from tests.integration.pki import HOST, Pki
from tests.integration.smtp_sink import SmtpSink
from tests.integration.tls_peers import Client

pytestmark = pytest.mark.peer("dovecot", "lmtp", "openssl")

PASSWORD = "a-long-secret"
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


# --- submission ---------------------------------------------------------------------------------

SUBMISSION = """\
protocols = lmtp submission
auth_mechanisms = plain login cram-md5 scram-sha-256
disable_plaintext_auth = yes
auth_failure_delay = 0
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
submission_client_workarounds =
service submission-login {{
  chroot =
  inet_listener submission {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


@pytest.fixture(scope="module")
def sink() -> Iterator[SmtpSink]:
    """Where Dovecot sends what was submitted."""
    with SmtpSink() as running:
        yield running


@pytest.fixture(scope="module")
def submission(certificates: Pki, sink: SmtpSink) -> Iterator[int]:
    """The port of a submission server: TLS by STARTTLS, and a password."""
    leaf, port = certificates.leaf("good"), free_port()
    ssl = SSL.format(certificate=leaf.chain, key=leaf.key)
    extra = SUBMISSION.format(relay=sink.port, port=port).replace("{", "{{").replace("}", "}}")
    config = CONFIG.replace("nopassword=y", f"password={PASSWORD}")
    with DovecotInstance(ssl + extra, config=config):
        yield port


def logged_in(certificates: Pki, password: str = PASSWORD, **more: str) -> dict[str, str]:
    """Parameters of a client that sends by a relay, as bob, and gives passwords to nobody else."""
    return {
        "smtp_tls_security_level": "verify",
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": HOST,
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": f"static:bob:{password}",
        "smtp_sasl_security_options": "noplaintext, noanonymous",
        "smtp_sasl_tls_security_options": "noanonymous",
    } | more


@pytest.mark.peer("submission-login", "smtp-sink")
@pytest.mark.parametrize("mechanism", ["plain", "login", "cram-md5", "scram-sha-256", ""])
@trio_test
async def test_a_relay_that_wants_tls_and_a_password(
    submission: int, sink: SmtpSink, certificates: Pki, mechanism: str
) -> None:
    before = len(list(sink.directory.iterdir()))
    parameters = logged_in(certificates, smtp_sasl_mechanism_filter=mechanism)
    attempt = await Client(parameters).attempt(f"[127.0.0.1]:{submission}")
    assert attempt.outcome.dsn == "2.0.0", attempt.brief
    assert len(list(sink.directory.iterdir())) == before + 1


@pytest.mark.peer("submission-login", "smtp-sink")
@trio_test
async def test_a_wrong_password_is_told_and_shown_nowhere(
    submission: int, certificates: Pki
) -> None:
    parameters = logged_in(certificates, "quite-wrong")
    attempt = await Client(parameters).attempt(f"[127.0.0.1]:{submission}")
    assert attempt.outcome.action is Action.DEFERRED
    assert "SASL authentication failed; server 127.0.0.1[127.0.0.1] said: " in attempt.brief
    for text in (attempt.brief, *attempt.log, *map(repr, attempt.events)):
        assert "quite-wrong" not in text


@pytest.mark.peer("submission-login", "smtp-sink")
@pytest.mark.parametrize(
    "more", [{"smtp_tls_verify_cert_match": "mx.other.example"}, {"smtp_tls_CAfile": ""}]
)
@trio_test
async def test_a_password_is_for_the_right_server_alone(
    submission: int, certificates: Pki, more: dict[str, str]
) -> None:
    attempt = await Client(logged_in(certificates, **more)).attempt(f"[127.0.0.1]:{submission}")
    assert attempt.brief == "4.7.5 deferred (Server certificate not verified)"
