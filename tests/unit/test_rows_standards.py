"""The standards that the manual names, where no other test is about one alone, and switches of old.

No I/O. What is said over a connection is in `tests/worker/test_rows_contract.py`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.capabilities import Capabilities
from protocol.envelope_parameters import mail_parameters
from protocol.reply import NeedData, Reply, ReplyParser
from protocol.request import DeliveryRequest, Protocol, Recipient
from protocol.sasl.mechanisms import Merit
from tests.unit.test_tls_policies import policy
from worker.config.config import Config
from worker.delivery.settings import Limits
from worker.sasl.client import SaslClient
from worker.tls.policy import Level, TlsFacts, Trust

TOP = Path(__file__).parents[2]


def read_reply(octets: bytes) -> Reply:
    """The only reply in these octets."""
    parser = ReplyParser()
    parser.receive_data(octets)
    reply = parser.next_event()
    assert not isinstance(reply, NeedData)
    assert not parser.unread
    return reply


# --- RFCs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"250 mx.example\r\n", Capabilities(greeting_name="mx.example")),
        (
            b"250-mx.example hello\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
            Capabilities(greeting_name="mx.example", pipelining=True, eightbitmime=True),
        ),
        (
            b"250-mx.example\r\n250-size 1000\r\n250-Dsn\r\n250 STARTTLS\r\n",
            Capabilities(
                greeting_name="mx.example",
                size_announced=True,
                size_limit=1000,
                dsn=True,
                starttls=True,
            ),
        ),
        # Line ends without CR, and keywords that nobody knows.
        (
            b"250-mx.example\n250-XYZZY PIPELINING\n250 SMTPUTF8\n",
            Capabilities(greeting_name="mx.example", smtputf8=True),
        ),
    ],
)
def test_s190_extensions_are_read_off_the_reply_to_ehlo(
    octets: bytes, expected: Capabilities
) -> None:
    assert Capabilities.from_reply(read_reply(octets)) == expected


REQUEST = DeliveryRequest(
    queue_id="A1",
    transport="smtp",
    protocol=Protocol.SMTP,
    nexthop="x",
    sender="a@b",
    recipients=(Recipient(address="c@d"),),
    size=1000,
    encoding="8bit",
)


def test_s191_body_is_said_to_servers_that_know_8bitmime_alone() -> None:
    assert mail_parameters(REQUEST, Capabilities(eightbitmime=True)) == ("BODY=8BITMIME",)
    assert mail_parameters(REQUEST, Capabilities(size_announced=True)) == ("SIZE=1000",)


@pytest.mark.parametrize("line", ["SIZE", "SIZE 0", "SIZE 5000"])
def test_s192_the_size_is_said_to_servers_that_know_size_alone(line: str) -> None:
    announced = Capabilities.from_reply(Reply(250, ("mx", line)))
    assert mail_parameters(REQUEST, announced) == ("SIZE=1000",)
    assert mail_parameters(REQUEST, Capabilities(eightbitmime=True)) == ("BODY=8BITMIME",)


@pytest.mark.parametrize(
    ("said", "dsn"),
    [
        ("250 2.1.5 ok", "2.1.5"),
        ("250 ok", "2.0.0"),
        ("450 4.2.1 later", "4.2.1"),
        ("450 5.2.1 of another class", "4.0.0"),
        ("450 2.2.1 of another class", "4.0.0"),
        ("550 5.1.1 no", "5.1.1"),
        ("550 4.1.1 of another class", "5.0.0"),
        ("550 5.1 no code", "5.0.0"),
        ("550 5.1.1no code", "5.0.0"),
        ("550 5.1.1", "5.1.1"),
        ("550 6.1.1 no class", "5.0.0"),
        ("550 5.999.999 no", "5.999.999"),
        ("550 5.1000.1 no code", "5.0.0"),
        ("354 go", "4.5.0"),
    ],
)
def test_s194_the_servers_code_counts_if_its_class_is_that_of_the_reply(
    said: str, dsn: str
) -> None:
    reply = read_reply(f"{said}\r\n".encode())
    assert reply.dsn == dsn
    assert (reply.transient, reply.permanent) == (said[0] == "4", said[0] == "5")


# RFC 5321 section 4.5.3.2: how long a client should wait at least, in seconds. The one exception
# is Postfix's: a block of content that makes no progress.
MINIMA = {
    "helo": 300.0,  # initial 220 message
    "mail": 300.0,
    "rcpt": 300.0,
    "data_init": 120.0,
    "data_xfer": 180.0,
    "data_done": 600.0,
}


@pytest.mark.parametrize("phase", MINIMA)
def test_s198_time_limits_are_those_of_rfc_5321(phase: str) -> None:
    assert getattr(Limits(), phase) >= MINIMA[phase]


# IANA's registry of enhanced status codes: how many details each subject has, from 0 on.
DETAILS = {0: 0, 1: 10, 2: 4, 3: 5, 4: 7, 5: 6, 6: 10, 7: 30}
STATUS = re.compile(r"([245])\.([0-9]+)\.([0-9]+)")


def codes_written() -> Iterator[tuple[str, str]]:
    """(place, code) of each enhanced status code that stands in the code."""
    for path in sorted((*(TOP / "protocol").rglob("*.py"), *(TOP / "worker").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and STATUS.fullmatch(text):
                yield str(path.relative_to(TOP)), text


def test_s202_our_own_codes_are_registered_ones() -> None:
    found = list(codes_written())
    assert len(found) > 30
    for place, code in found:
        match = STATUS.fullmatch(code)
        assert match is not None
        subject, detail = int(match[2]), int(match[3])
        assert detail <= DETAILS.get(subject, -1), f"{place}: {code}"


def test_s193_lmtp_has_a_port_of_its_own_and_never_that_of_mail() -> None:
    config = Config.from_mapping({})
    known = dict(word.rsplit("=", 1) for word in config.words("known_tcp_ports"))
    assert config.text("lmtp_tcp_port") == known["lmtp"] == "24"
    assert known["smtp"] == "25"


# --- the licence ----------------------------------------------------------------------------------


def test_s187_origin_and_licence_are_told_and_no_file_is_postfixs() -> None:
    told = (TOP / "README.md").read_text().partition("## Licence and origin")[2]
    assert "no code of Postfix" in told
    assert (TOP / "LICENSE").read_text().startswith("MIT License")
    # What stands at the end of each of Postfix's source files.
    marks = ("Secure " + "Mailer license", "Wietse " + "Venema")
    for part in ("protocol", "worker", "scache", "bench"):
        for path in (TOP / part).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not [mark for mark in marks if mark in text], path


# --- TLS and logging in, of old -------------------------------------------------------------------


def assert_without_effect(name: str, text: str) -> None:
    """A parameter changes no policy, with a must and without."""
    for settings in ({}, {"smtp_tls_security_level": "secure"}):
        for protocol in Protocol:
            assert policy({**settings, name: text}, protocol=protocol) == policy(
                settings, protocol=protocol
            )


def test_s114_the_grade_export_means_nothing_any_more() -> None:
    assert_without_effect("tls_export_cipherlist", "ALL")
    found = policy({"smtp_tls_security_level": "encrypt", "smtp_tls_mandatory_ciphers": "export"})
    assert found == policy({"smtp_tls_security_level": "encrypt"})


def test_s123_no_daemon_is_asked_for_random_octets() -> None:
    assert_without_effect("tls_daemon_random_bytes", "0")


@pytest.mark.parametrize("use", ["yes", "no"])
def test_s127_enforced_tls_is_verified_unless_the_name_may_be_any(use: str) -> None:
    settings = {"smtp_use_tls": use, "smtp_enforce_tls": "yes"}
    assert policy(settings).level is Level.VERIFY
    assert policy({**settings, "smtp_tls_enforce_peername": "yes"}).level is Level.VERIFY
    assert policy({**settings, "smtp_tls_enforce_peername": "no"}).level is Level.ENCRYPT


def test_s131_a_dsa_certificate_leads_to_one_warning() -> None:
    assert_without_effect("smtp_tls_dcert_file", "/nonexistent")
    (warning,) = Config.from_mapping({"smtp_tls_dcert_file": "/nonexistent"}).warnings
    assert "smtp_tls_dcert_file is deprecated" in warning


def test_s132_and_so_does_its_key() -> None:
    assert_without_effect("smtp_tls_dkey_file", "/nonexistent")
    (warning,) = Config.from_mapping({"smtp_tls_dkey_file": "/nonexistent"}).warnings
    assert "smtp_tls_dkey_file is deprecated" in warning


@pytest.mark.parametrize("trust", Trust)
def test_s091_only_a_session_that_was_verified_has_the_options_of_verified_ones(
    trust: Trust,
) -> None:
    sasl = SaslClient.from_config(
        Config.from_mapping(
            {
                "smtp_sasl_auth_enable": "yes",
                "smtp_sasl_password_maps": "static:u:p",
                "smtp_sasl_tls_security_options": "noplaintext",
                "smtp_sasl_tls_verified_security_options": "noanonymous",
            }
        ),
        Protocol.SMTP,
    )
    assert sasl is not None
    found = sasl.demands(TlsFacts(trust=trust, protocol="TLSv1.3", cipher="X", bits=256))
    assert found is (Merit.NOANONYMOUS if trust is Trust.VERIFIED else Merit.NOPLAINTEXT)
