"""Deliveries by TLS to a real Postfix smtpd(8): what it receives, and what it says about us."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance, free_port, without_trace
from tests.integration.corpus import (
    CORPUS,
    assert_arrived,
    canonical,
    deliver_corpus,
    queue_corpus,
    write_corpus,
)
from tests.integration.pki import HOST, Pki
from tests.integration.tls_peers import Client
from worker.cli import invoke
from worker.delivery.slot import DeliverySlot

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd", "openssl")

LIMIT = 40.0  # seconds for Postfix to deliver what it took


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module. Postfix opens files as root."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def wrapper_port() -> int:
    """Where TLS begins with the first octet."""
    return free_port()


@pytest.fixture(scope="module")
def running(certificates: Pki, wrapper_port: int) -> Iterator[PostfixInstance]:
    """A running Postfix that does TLS: it takes seconds to start, so that all tests share one."""
    leaf = certificates.leaf("good")
    main_cf = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_chain_files": str(leaf.joined),
        "smtpd_tls_loglevel": "2",
        "smtpd_tls_received_header": "yes",
        "smtpd_tls_ask_ccert": "yes",
        "smtpd_tls_CAfile": str(certificates.ca_file()),
        "smtpd_client_auth_rate_limit": "0",
    }
    wrapper = f"127.0.0.1:{wrapper_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes"
    with PostfixInstance(main_cf=main_cf, master_cf=[wrapper]) as instance:
        yield instance


@pytest.fixture
def postfix(running: PostfixInstance) -> PostfixInstance:
    """The Postfix, with an empty maildir."""
    shutil.rmtree(running.maildir / "all", ignore_errors=True)
    return running


def secured(certificates: Pki, level: str = "encrypt", **more: str) -> dict[str, str]:
    """Parameters of a client that trusts the servers' authority."""
    return {
        "smtp_tls_security_level": level,
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": HOST,
    } | more


def received(message: bytes) -> str:
    """The first Received: field of a message, on one line."""
    match = re.search(rb"^Received: .*\n([ \t].*\n)+", message, re.MULTILINE)
    assert match is not None
    return " ".join(match[0].decode().split())


def contents(postfix: PostfixInstance) -> dict[str, bytes]:
    """What arrived, by local part; each by TLS."""
    found = {}
    for message in postfix.wait_until_received(len(CORPUS) + 1, LIMIT):
        match = re.search(rb"^Delivered-To: (.*)@", message, re.MULTILINE)
        assert match is not None
        assert "(using TLSv1.3 with cipher " in received(message), match[1]
        found[match[1].decode()] = without_trace(message)
    return found


def as_stored(content: bytes) -> bytes:
    """What Postfix stores of a content: LF line ends, and an empty line before a lone body."""
    text = canonical(content).replace(b"\r\n", b"\n")
    first_line = text.partition(b"\n")[0]
    return text if not text or b":" in first_line else b"\n" + text


# --- contents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["STARTTLS", "wrapper"])
def test_postfix_gets_the_corpus_from_deliver_to_the_octet(
    postfix: PostfixInstance, certificates: Pki, wrapper_port: int, tmp_path: Path, way: str
) -> None:
    more = {"smtp_tls_wrappermode": "yes"} if way == "wrapper" else {}
    options = [
        word
        for name, value in secured(certificates, "verify", **more).items()
        for word in ("-o", f"{name}={value}")
    ]
    port = wrapper_port if way == "wrapper" else postfix.port
    files = write_corpus(tmp_path)
    deliver_corpus(files, f"[127.0.0.1]:{port}", "smtp", *options)
    assert_arrived(contents(postfix), files, as_stored)


@trio_test
async def test_postfix_gets_the_corpus_from_the_queue_to_the_octet(
    postfix: PostfixInstance, certificates: Pki, tmp_path: Path
) -> None:
    files = write_corpus(tmp_path)
    transport = f"smtp:[127.0.0.1]:{postfix.port}"
    await queue_corpus(files, tmp_path, transport, secured(certificates, "verify"))
    assert_arrived(contents(postfix), files, as_stored)


def test_the_command_says_that_it_went_by_tls(
    postfix: PostfixInstance,
    certificates: Pki,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "message"
    file.write_bytes(CORPUS["plain"])
    arguments = ["deliver", str(file), "--sender", "", "--recipient", "b@to.example", "--json"]
    arguments += ["--nexthop", f"[127.0.0.1]:{postfix.port}"]
    for name, value in secured(certificates, "verify", smtp_tls_loglevel="1").items():
        arguments += ["-o", f"{name}={value}"]
    assert invoke(arguments) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["tls"] == "verify"
    assert f"Verified TLS connection established to 127.0.0.1[127.0.0.1]:{postfix.port}" in said.err


# --- what Postfix says about us -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["cert and key", "joined file", "chain files", "RSA and EC"])
@trio_test
async def test_postfix_sees_our_certificate(
    postfix: PostfixInstance, certificates: Pki, form: str
) -> None:
    leaf, rsa = certificates.leaf("client"), certificates.leaf("client-rsa")
    more = {
        "cert and key": {
            "smtp_tls_cert_file": str(leaf.chain),
            "smtp_tls_key_file": str(leaf.key),
        },
        "joined file": {"smtp_tls_cert_file": str(leaf.joined)},
        "chain files": {"smtp_tls_chain_files": str(leaf.joined)},
        "RSA and EC": {"smtp_tls_chain_files": f"{rsa.joined}, {leaf.joined}"},
    }[form]
    client = Client(secured(certificates, **more))
    attempt = await client.attempt(f"[127.0.0.1]:{postfix.port}")
    assert attempt.outcome.dsn == "2.0.0", attempt.brief
    (message,) = await trio.to_thread.run_sync(postfix.wait_until_received, 1, LIMIT)
    assert '(Client CN "client.example", Issuer "root authority" (verified OK))' in received(
        message
    )


@trio_test
async def test_without_a_certificate_postfix_sees_none(
    postfix: PostfixInstance, certificates: Pki
) -> None:
    await Client(secured(certificates)).attempt(f"[127.0.0.1]:{postfix.port}")
    (message,) = await trio.to_thread.run_sync(postfix.wait_until_received, 1, LIMIT)
    assert "(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384" in received(message)
    assert "(No client certificate requested)" not in received(message)
    assert "(Client did not present a certificate)" in received(message)


@pytest.mark.parametrize("protocols", [">=TLSv1.2", "<=TLSv1.2"])
@trio_test
async def test_postfix_sees_a_session_resumed(
    postfix: PostfixInstance, certificates: Pki, protocols: str
) -> None:
    client = Client(
        secured(
            certificates,
            "verify",
            smtp_tls_mandatory_protocols=protocols,
            smtp_tls_session_cache_database="btree:unused",
        )
    )
    before = len(postfix.log())
    for _ in range(3):
        attempt = await client.attempt(f"[127.0.0.1]:{postfix.port}")
        assert attempt.outcome.dsn == "2.0.0", attempt.brief
        assert any("Verified TLS connection established" in line for line in attempt.log)
    await trio.to_thread.run_sync(postfix.wait_until_received, 3, LIMIT)
    assert len(re.findall("Reusing old session", postfix.log()[before:])) == 2


@trio_test
async def test_one_tls_session_carries_message_after_message(
    postfix: PostfixInstance, certificates: Pki
) -> None:
    client = Client(secured(certificates, "verify"))
    client.slot = DeliverySlot()
    before = len(postfix.log())
    for use in range(1, 6):
        attempt = await client.attempt(f"[127.0.0.1]:{postfix.port}")
        assert attempt.outcome.conn_use == use
    await client.slot.release()
    await trio.to_thread.run_sync(postfix.wait_until_received, 5, LIMIT)
    assert len(re.findall("TLS connection established from", postfix.log()[before:])) == 1
