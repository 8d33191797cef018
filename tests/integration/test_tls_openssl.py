"""Mail by TLS to `openssl s_server`, which somebody in the test speaks SMTP for.

TLS begins with the first octet (smtp_tls_wrappermode): s_server knows no STARTTLS. What other
servers do at their leisure it does when it is told to: new keys in the middle of a message.
"""

import re
from collections.abc import Sequence

import pytest
import trio
from trio.testing import trio_test

from tests.integration.pki import HOST, Pki
from tests.integration.tls_peers import Attempt, Client, OpensslServer

pytestmark = pytest.mark.peer("openssl")

Script = Sequence[tuple[str, Sequence[str]]]
# What is heard, and what is said to it; "K" alone makes s_server ask for new keys of both sides.
GREETING = ("CIPHER is", ["220 mx.good.example ESMTP"])
MAIL: Script = [
    ("EHLO client.example", ["250 mx.good.example"]),
    ("MAIL FROM:<sender@client.example>", ["250 2.1.0 ok"]),
    ("RCPT TO:<a@to.example>", ["250 2.1.5 ok"]),
    ("DATA", ["354 go"]),
    (r"world\r?\n\.\r?\n", ["250 2.0.0 taken"]),
    ("QUIT", ["221 2.0.0 bye"]),
]
# Not before the reply to QUIT, which nobody waits for.
REKEYING: Script = [(heard, ["K", *said]) for heard, said in MAIL[:-1]] + [MAIL[-1]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


def main_cf(certificates: Pki, **more: str) -> dict[str, str]:
    """Parameters of a client that trusts the servers' authority."""
    return {
        "smtp_tls_wrappermode": "yes",
        "smtp_tls_security_level": "verify",
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": HOST,
    } | more


async def deliver(
    server: OpensslServer, parameters: dict[str, str], script: Script = (GREETING, *MAIL)
) -> Attempt:
    """One message, while the server follows the script."""
    client = Client(parameters)
    attempts = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, server.talk, script)
        attempts.append(await client.attempt(f"[127.0.0.1]:{server.port}"))
    return attempts[0]


@pytest.mark.parametrize(
    ("options", "cipher"),
    [
        (["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], "TLS_AES_128_GCM_SHA256"),
        (["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], "TLS_CHACHA20_POLY1305"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"], "ECDHE-ECDSA-AES128-SHA"),
        (["-tls1_2", "-no_ticket"], "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
)
@trio_test
async def test_a_message_by_each_kind_of_suite(
    certificates: Pki, options: list[str], cipher: str
) -> None:
    with OpensslServer(certificates.leaf("good"), *options) as server:
        attempt = await deliver(server, main_cf(certificates))
    assert attempt.brief == "2.0.0 sent (250 2.0.0 taken)"
    assert f" with cipher {cipher}" in attempt.log[0]


@trio_test
async def test_new_keys_may_be_asked_for_at_any_time(certificates: Pki) -> None:
    with OpensslServer(certificates.leaf("good"), "-tls1_3") as server:
        attempt = await deliver(server, main_cf(certificates), (GREETING, *REKEYING))
        said = server.said
    assert attempt.brief == "2.0.0 sent (250 2.0.0 taken)"
    assert said.count("read client key update") >= len(MAIL) - 1, said


@trio_test
async def test_the_server_sees_our_certificate_and_the_name_that_we_ask_for(
    certificates: Pki,
) -> None:
    leaf = certificates.leaf("client")
    parameters = main_cf(
        certificates,
        smtp_tls_chain_files=str(leaf.joined),
        smtp_tls_servername="mx.good.example",
    )
    good, other = certificates.leaf("good"), certificates.leaf("wrong-name")
    options = ["-Verify", "1", "-verify_return_error", "-CAfile", str(certificates.ca_file())]
    # By another name than this one it has another certificate.
    options += ["-servername", "mx.good.example", "-cert2", str(good.chain), "-key2", str(good.key)]
    with OpensslServer(other, *options) as server:
        attempt = await deliver(server, parameters)
        said = server.said
    assert attempt.brief == "2.0.0 sent (250 2.0.0 taken)"
    assert re.search("CN ?= ?client.example", said)
    assert 'Hostname in TLS extension: "mx.good.example"' in said


@pytest.mark.parametrize(
    "options",
    [
        ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"],
    ],
)
@trio_test
async def test_what_protects_nothing_is_not_spoken(certificates: Pki, options: list[str]) -> None:
    with OpensslServer(certificates.leaf("good"), *options) as server:
        client = Client(main_cf(certificates, smtp_tls_security_level="verify"))
        attempt = await client.attempt(f"[127.0.0.1]:{server.port}")
    assert attempt.brief == "4.7.5 deferred (Cannot start TLS: handshake failure)"
