"""Each TLS parameter at work, between the product under a real configuration and a server.

What each level makes of a server is in `test_tls_matrix.py`; here it is what the parameters and the
policy maps change, as the server saw it.
"""

import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from trio.testing import trio_test

from protocol.request import Protocol
from tests.integration.pki import HOST, Pki
from tests.integration.tls_peers import Attempt, Client, listening, named
from tests.worker.peer import Peer
from tests.worker.tls_server import OLD, Seen, ServerTls, server_context
from worker.config.problems import ConfigError
from worker.delivery.slot import DeliverySlot

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SENT = "2.0.0 sent (250 2.0.0 queued)"
UNVERIFIED = "4.7.5 deferred (Server certificate not verified)"
HANDSHAKE = "4.7.5 deferred (Cannot start TLS: handshake failure)"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


@asynccontextmanager
async def serving(
    context: ssl.SSLContext, *, lmtp: bool = False, wrapper: bool = False
) -> AsyncIterator[tuple[Peer, int]]:
    """A server with this context, and its port."""
    peer = Peer(tls=ServerTls(context, wrapper=wrapper), lmtp=lmtp)
    async with listening({"": peer}) as ports:
        yield peer, ports[""]


async def attempt(
    context: ssl.SSLContext, main_cf: Mapping[str, str], nexthop: str = "[127.0.0.1]:{}"
) -> tuple[Attempt, list[Seen]]:
    """One delivery to a server with this context, and the handshakes that the server saw."""
    async with serving(context) as (peer, port):
        assert peer.tls is not None
        found = await Client(main_cf).attempt(nexthop.format(port))
        return found, peer.tls.seen


def verify(certificates: Pki, **more: str) -> dict[str, str]:
    """Level verify, for whoever bears the good server's name."""
    return {
        "smtp_tls_security_level": "verify",
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": HOST,
    } | more


def encrypt(**more: str) -> dict[str, str]:
    """Level encrypt."""
    return {"smtp_tls_security_level": "encrypt"} | more


# --- whom we trust ------------------------------------------------------------------------------


@trio_test
async def test_s103_nobody_is_trusted_by_default(certificates: Pki) -> None:
    context = server_context(certificates.leaf("good"))
    found, _ = await attempt(context, verify(certificates, smtp_tls_CAfile=""))
    assert found.brief == UNVERIFIED


@pytest.mark.peer("openssl")
@trio_test
async def test_s104_a_directory_of_authorities(certificates: Pki) -> None:
    directory = str(certificates.ca_directory())
    parameters = verify(certificates, smtp_tls_CAfile="", smtp_tls_CApath=directory)
    found, _ = await attempt(server_context(certificates.leaf("chain")), parameters)
    assert found.brief == SENT
    found, _ = await attempt(server_context(certificates.leaf("unknown-ca")), parameters)
    assert found.brief == UNVERIFIED


@pytest.mark.parametrize(("depth", "brief"), [("2", UNVERIFIED), ("3", SENT)])
@trio_test
async def test_s116_a_chain_may_have_so_many_intermediates(
    certificates: Pki, depth: str, brief: str
) -> None:
    parameters = verify(certificates, smtp_tls_scert_verifydepth=depth)
    found, _ = await attempt(server_context(certificates.leaf("deep-chain")), parameters)
    assert found.brief == brief


@pytest.mark.parametrize("form", ["certificate", "key"])
@trio_test
async def test_anchors_of_a_policy_stand_alone(
    certificates: Pki, tmp_path: Path, form: str
) -> None:
    # An intermediate authority is enough, and who trusts it trusts no other; whatever is in CAfile.
    if form == "certificate":
        file = certificates.ca_file("middle")
    else:
        file = certificates.ca_key_file("middle")
    policy = tmp_path / "policy"
    policy.write_text(f"trusted.example verify tafile={file} match={HOST}\n")
    parameters = verify(certificates, smtp_tls_policy_maps=f"texthash:{policy}")
    found = {}
    async with named() as resolver:
        for leaf in ("chain", "good"):
            async with serving(server_context(certificates.leaf(leaf))) as (_, port):
                policy.write_text(f"[mx.good.example]:{port} verify tafile={file} match={HOST}\n")
                client = Client(parameters, resolver=resolver)
                found[leaf] = (await client.attempt(f"[mx.good.example]:{port}")).brief
    assert found == {"chain": SENT, "good": UNVERIFIED}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("smtp_tls_CAfile", None),
        ("smtp_tls_CAfile", "no certificate\n"),
        ("smtp_tls_cert_file", None),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_at_the_start(
    certificates: Pki, tmp_path: Path, name: str, content: str | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=str(file)):
        Client(verify(certificates, **{name: str(file)}))


def test_s106_a_key_of_another_certificate_is_an_error_at_the_start(certificates: Pki) -> None:
    # Postfix goes on without TLS; mail that must not go in the clear waits there.
    files = {
        "smtp_tls_cert_file": str(certificates.leaf("client").chain),
        "smtp_tls_key_file": str(certificates.leaf("good").key),
    }
    with pytest.raises(ConfigError, match=r"smtp_tls_(cert|key)_file"):
        Client(verify(certificates, **files))


# --- who it must be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "nexthop", "match", "brief"),
    [
        ("good", "good.example:{}", "hostname", SENT),
        ("good", "elsewhere.example:{}", "hostname", SENT),
        ("good", "good.example:{}", "nexthop", SENT),
        ("good", "elsewhere.example:{}", "nexthop", UNVERIFIED),
        ("good", "[mx.good.example]:{}", "nexthop", SENT),
        ("wildcard", "good.example:{}", "nexthop", UNVERIFIED),
        ("wildcard", "good.example:{}", "dot-nexthop", SENT),
        ("wildcard", "good.example:{}", "hostname", SENT),
        ("wrong-name", "good.example:{}", "hostname, nexthop, dot-nexthop", UNVERIFIED),
        ("wrong-name", "good.example:{}", "mx.other.example", SENT),
        ("wrong-name", "good.example:{}", ".other.example", SENT),
        ("wrong-name", "good.example:{}", ".example", SENT),
        ("wrong-name", "good.example:{}", ".her.example", UNVERIFIED),
        ("idn", "xn--bcher-kva.example:{}", "hostname", SENT),
        ("idn", "bücher.example:{}", "hostname", SENT),
        ("idn", "bücher.example:{}", "dot-nexthop", SENT),
    ],
)
@trio_test
async def test_s117_a_name_that_is_asked_for(
    certificates: Pki, leaf: str, nexthop: str, match: str, brief: str
) -> None:
    parameters = verify(certificates, smtp_tls_verify_cert_match=match)
    async with named() as resolver, serving(server_context(certificates.leaf(leaf))) as (_, port):
        client = Client(parameters, resolver=resolver)
        assert (await client.attempt(nexthop.format(port))).brief == brief


@pytest.mark.parametrize(("many", "brief"), [("yes", SENT), ("no", UNVERIFIED)])
@trio_test
async def test_a_wildcard_stands_for_one_label_or_many(
    certificates: Pki, many: str, brief: str
) -> None:
    parameters = verify(
        certificates,
        smtp_tls_verify_cert_match="a.b.good.example",
        tls_wildcard_matches_multiple_labels=many,
    )
    found, _ = await attempt(server_context(certificates.leaf("wildcard")), parameters)
    assert found.brief == brief


@pytest.mark.parametrize("digest", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("of", ["certificate", "key"])
@trio_test
async def test_s119_a_fingerprint_is_all_that_counts(
    certificates: Pki, of: str, digest: str
) -> None:
    leaf = certificates.leaf("expired-self-signed")
    text = leaf.digest(digest) if of == "certificate" else leaf.key_digest(digest)
    right = ":".join(text[at : at + 2] for at in range(0, len(text), 2)).upper()
    wrong = f"{int(text[0], 16) ^ 1:x}{text[1:]}"
    found = {}
    for expected in (right, text, f"{wrong}, {text}", wrong):
        parameters = {
            "smtp_tls_security_level": "fingerprint",
            "smtp_tls_fingerprint_digest": digest,
            "smtp_tls_fingerprint_cert_match": expected,
        }
        done, _ = await attempt(server_context(leaf), parameters)
        found[expected] = done.brief
    assert list(found.values()) == [SENT, SENT, SENT, UNVERIFIED]


# --- what is spoken -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocols", "version"),
    [
        (">=TLSv1.2", "TLSv1.3"),
        ("!TLSv1.3", "TLSv1.2"),
        (">=TLSv1.2, <=TLSv1.2", "TLSv1.2"),
        ("TLSv1.2", "TLSv1.2"),
        ("TLSv1.3", "TLSv1.3"),
    ],
)
@trio_test
async def test_s107_versions_of_the_protocol(
    certificates: Pki, protocols: str, version: str
) -> None:
    context = server_context(certificates.leaf("good"))
    for level, name in (("encrypt", "smtp_tls_mandatory_protocols"), ("may", "smtp_tls_protocols")):
        found, seen = await attempt(context, {"smtp_tls_security_level": level, name: protocols})
        assert found.brief == SENT
        assert [handshake.version for handshake in seen] == [version]


@trio_test
async def test_s107_old_versions_are_spoken_if_asked_for(certificates: Pki) -> None:
    context = server_context(
        certificates.leaf("rsa"),
        oldest=ssl.TLSVersion.TLSv1,
        newest=ssl.TLSVersion.TLSv1_1,
        ciphers=OLD,
    )
    found, seen = await attempt(context, encrypt(smtp_tls_mandatory_protocols=">=TLSv1"))
    assert found.brief == SENT
    assert seen[0].version == "TLSv1.1"
    found, _ = await attempt(context, encrypt())
    assert found.brief == HANDSHAKE


@trio_test
async def test_s109_ciphers_are_excluded_everywhere_or_where_tls_is_a_must(
    certificates: Pki,
) -> None:
    context = server_context(certificates.leaf("good"), newest=V12)
    found = {}
    for level in ("may", "encrypt"):
        for name in ("smtp_tls_exclude_ciphers", "smtp_tls_mandatory_exclude_ciphers"):
            done, seen = await attempt(
                context, {"smtp_tls_security_level": level, name: "AES256, CHACHA20"}
            )
            assert done.brief == SENT
            found[level, name] = "AES256" in seen[0].cipher
    assert found == {
        ("may", "smtp_tls_exclude_ciphers"): False,
        ("may", "smtp_tls_mandatory_exclude_ciphers"): True,
        ("encrypt", "smtp_tls_exclude_ciphers"): False,
        ("encrypt", "smtp_tls_mandatory_exclude_ciphers"): False,
    }


@pytest.mark.parametrize(("grade", "brief"), [("high", HANDSHAKE), ("medium", SENT)])
@trio_test
async def test_s108_a_suite_of_a_lower_grade(certificates: Pki, grade: str, brief: str) -> None:
    # SEED is medium to OpenSSL, but not in every build of it; the list says what medium is.
    context = server_context(certificates.leaf("rsa"), newest=V12, ciphers="AES128-SHA:@SECLEVEL=0")
    parameters = encrypt(
        smtp_tls_mandatory_ciphers=grade,
        tls_high_cipherlist="ECDHE+AESGCM",
        tls_medium_cipherlist="ECDHE+AESGCM:AES128-SHA",
    )
    found, _ = await attempt(context, parameters)
    assert found.brief == brief


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"smtp_tls_servername": "sni.example"}, "sni.example"),
        ({"smtp_tls_servername": "hostname"}, "mx.good.example"),
        ({"smtp_tls_servername": "nexthop"}, "good.example"),
        ({}, ""),
        ({"smtp_tls_security_level": "verify"}, "mx.good.example"),
        ({"smtp_tls_security_level": "secure"}, "good.example"),
    ],
)
@trio_test
async def test_the_server_is_told_whom_we_want(
    certificates: Pki, parameters: dict[str, str], name: str
) -> None:
    base = {"smtp_tls_security_level": "may", "smtp_tls_CAfile": str(certificates.ca_file())}
    context = server_context(certificates.leaf("good"))
    async with named() as resolver, serving(context) as (peer, port):
        client = Client(base | parameters, resolver=resolver)
        assert (await client.attempt(f"good.example:{port}")).brief == SENT
        assert peer.tls is not None
        assert [seen.servername for seen in peer.tls.seen] == [name]


@trio_test
async def test_s105_the_server_sees_our_certificate_if_it_asks(certificates: Pki) -> None:
    leaf = certificates.leaf("client")
    ours = encrypt(smtp_tls_chain_files=str(leaf.joined))
    asks = server_context(
        certificates.leaf("good"), client_ca=str(certificates.ca_file()), client_required=True
    )
    found, seen = await attempt(asks, ours)
    assert found.brief == SENT
    assert seen[0].subject == "client.example"
    found, seen = await attempt(server_context(certificates.leaf("good")), ours)
    assert found.brief == SENT
    assert seen[0].subject == ""


# --- where it holds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nexthop", "encrypted"),
    [
        ("good.example", "good.example", True),
        (".example", "good.example", True),
        ("[mx.good.example]:{}", "[mx.good.example]:{}", True),
        ("mx.good.example", "[mx.good.example]:{}", False),
        ("good.example", "good.example:{}", False),
        ("other.example", "good.example:{}", False),
    ],
)
@trio_test
async def test_s100_a_policy_is_found_by_the_nexthop_as_it_is_written(
    certificates: Pki, tmp_path: Path, key: str, nexthop: str, encrypted: bool
) -> None:
    table = tmp_path / "policy"
    context = server_context(certificates.leaf("good"))
    async with named() as resolver, serving(context) as (peer, port):
        table.write_text(f"{key.format(port)} encrypt\n")
        parameters = {
            "smtp_tls_security_level": "none",
            "smtp_tls_policy_maps": f"texthash:{table}",
            "smtp_tcp_port": str(port),
        }
        client = Client(parameters, resolver=resolver)
        assert (await client.attempt(nexthop.format(port))).brief == SENT
        assert [message.encrypted for message in peer.accepted] == [encrypted]


@pytest.mark.parametrize(
    "policy",
    [
        "encript",
        "encrypt protocol=TLSv1.2",
        "encrypt protocols=TLSv9",
        "encrypt ciphers=strong",
        "verify match=",
        "fingerprint",
        "may tafile=/nonexistent/ta.pem match=x",
        "verify tafile=/nonexistent/ta.pem",
    ],
)
@trio_test
async def test_s100_a_broken_policy_defers_and_says_nothing_to_the_server(
    certificates: Pki, tmp_path: Path, policy: str
) -> None:
    table = tmp_path / "policy"
    async with serving(server_context(certificates.leaf("good"))) as (peer, port):
        table.write_text(f"[127.0.0.1]:{port} {policy}\n")
        client = Client(
            {"smtp_tls_security_level": "may", "smtp_tls_policy_maps": f"texthash:{table}"}
        )
        found = await client.attempt(f"[127.0.0.1]:{port}")
    assert found.brief == "4.7.5 deferred (client TLS configuration problem)"
    assert peer.accepted == []
    assert peer.verbs == []


@trio_test
async def test_tls_from_the_first_octet_for_one_destination(
    certificates: Pki, tmp_path: Path
) -> None:
    table = tmp_path / "policy"
    context = server_context(certificates.leaf("good"))
    async with (
        serving(context, wrapper=True) as (wrapped, wrapped_port),
        serving(context) as (plain, plain_port),
    ):
        table.write_text(f"[127.0.0.1]:{wrapped_port} encrypt wrappermode=yes\n")
        client = Client(encrypt(smtp_tls_policy_maps=f"texthash:{table}"))
        for port in (wrapped_port, plain_port):
            assert (await client.attempt(f"[127.0.0.1]:{port}")).brief == SENT
    assert "STARTTLS" not in wrapped.verbs
    assert "STARTTLS" in plain.verbs
    assert [message.encrypted for peer in (wrapped, plain) for message in peer.accepted] == [
        True,
        True,
    ]


@trio_test
async def test_lmtp_has_parameters_of_its_own(certificates: Pki) -> None:
    async with serving(server_context(certificates.leaf("good")), lmtp=True) as (peer, port):
        for level, encrypted in (("none", False), ("encrypt", True)):
            client = Client({"smtp_tls_security_level": "none", "lmtp_tls_security_level": level})
            found = await client.attempt(f"inet:[127.0.0.1]:{port}", protocol=Protocol.LMTP)
            assert found.brief == SENT
            assert peer.accepted[-1].encrypted is encrypted


@pytest.mark.parametrize(
    ("parameters", "encrypted"),
    [
        ({"smtp_use_tls": "yes"}, True),
        ({"smtp_enforce_tls": "yes", "smtp_tls_enforce_peername": "no"}, True),
        ({"smtp_use_tls": "yes", "smtp_tls_security_level": "none"}, False),
    ],
)
@trio_test
async def test_switches_of_old_still_mean_what_they_did(
    certificates: Pki, parameters: dict[str, str], encrypted: bool
) -> None:
    async with serving(server_context(certificates.leaf("good"))) as (peer, port):
        assert (await Client(parameters).attempt(f"[127.0.0.1]:{port}")).brief == SENT
    assert [message.encrypted for message in peer.accepted] == [encrypted]


@trio_test
async def test_s101_an_offer_is_noted_where_there_is_no_tls(certificates: Pki) -> None:
    context = server_context(certificates.leaf("good"))
    found, _ = await attempt(
        context, {"smtp_tls_security_level": "none", "smtp_tls_note_starttls_offer": "yes"}
    )
    assert "Host offered STARTTLS: [127.0.0.1]" in found.log


@trio_test
async def test_s102_the_log_level_decides_what_is_told(certificates: Pki, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    parameters = verify(certificates, postrio_tls_trace_file=str(trace))
    context = server_context(certificates.leaf("good"))
    summaries, steps, sizes = [], [], []
    for level in range(6):
        found, _ = await attempt(context, {**parameters, "smtp_tls_loglevel": str(level)})
        assert found.brief == SENT
        summaries.append(sum("Verified TLS connection established" in line for line in found.log))
        steps.append(any("SSL_connect:" in line for line in found.log))
        # Of what is sent over TLS there is nothing before level 4.
        told = trace.read_text() if trace.exists() else ""
        sizes.append(told.partition(" - established: ")[2].count(" > encrypted, "))
        trace.unlink(missing_ok=True)
    assert summaries == [0, 1, 1, 1, 1, 1]
    assert steps == [False, False, True, True, True, True]
    assert sizes[:4] == [0, 0, 0, 0]
    assert min(sizes[4:]) > 3


# --- reuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V12, V13])
@trio_test
async def test_s121_a_session_is_resumed(certificates: Pki, version: ssl.TLSVersion) -> None:
    context = server_context(certificates.leaf("good"), newest=version)
    async with serving(context) as (peer, port):
        client = Client(verify(certificates))
        for _ in range(3):
            found = await client.attempt(f"[127.0.0.1]:{port}")
            assert found.brief == SENT
            assert found.log[0].startswith("Verified TLS connection established to ")
        assert peer.tls is not None
        assert [seen.resumed for seen in peer.tls.seen] == [False, True, True]


@trio_test
async def test_a_session_that_met_no_policy_is_not_resumed(certificates: Pki) -> None:
    async with serving(server_context(certificates.leaf("wrong-name"))) as (peer, port):
        client = Client(verify(certificates))
        for _ in range(2):
            assert (await client.attempt(f"[127.0.0.1]:{port}")).brief == UNVERIFIED
        assert peer.tls is not None
        assert [seen.resumed for seen in peer.tls.seen] == [False, False]
        assert peer.accepted == []


@trio_test
async def test_a_server_that_has_forgotten_the_session_is_no_trouble(certificates: Pki) -> None:
    contexts = [server_context(certificates.leaf("good")) for _ in range(2)]
    async with serving(contexts[0]) as (peer, port):
        client = Client(verify(certificates))
        assert peer.tls is not None
        for context in (contexts[0], contexts[1], contexts[1]):
            peer.tls.context = context  # with new keys for its tickets
            assert (await client.attempt(f"[127.0.0.1]:{port}")).brief == SENT
        assert [seen.resumed for seen in peer.tls.seen] == [False, False, True]


@trio_test
async def test_one_connection_carries_message_after_message(certificates: Pki) -> None:
    async with serving(server_context(certificates.leaf("good"))) as (peer, port):
        client = Client(verify(certificates))
        client.slot = DeliverySlot()
        for use in range(1, 4):
            found = await client.attempt(f"[127.0.0.1]:{port}")
            assert found.brief == SENT
            assert found.outcome.conn_use == use
        await client.slot.release()
        assert [link.verbs.count("EHLO") for link in peer.links] == [2]
        assert [link.verbs.count("MAIL") for link in peer.links] == [3]
        assert len(peer.accepted) == 3


@trio_test
async def test_a_connection_serves_nobody_under_another_policy(
    certificates: Pki, tmp_path: Path
) -> None:
    # The table changes while the session is parked.
    table = tmp_path / "policy"
    async with serving(server_context(certificates.leaf("good"))) as (peer, port):
        table.write_text("")
        client = Client(
            {"smtp_tls_security_level": "may", "smtp_tls_policy_maps": f"texthash:{table}"},
            clock=count().__next__,
        )
        client.slot = DeliverySlot()
        for number, policy in enumerate(("none", "encrypt", "encrypt", "may")):
            table.write_text(f"[127.0.0.1]:{port} {policy}\n")
            os.utime(table, (number, number))
            assert (await client.attempt(f"[127.0.0.1]:{port}")).brief == SENT
        await client.slot.release()
    assert [message.encrypted for message in peer.accepted] == [False, True, True, True]
    assert [link.verbs.count("MAIL") for link in peer.links] == [1, 2, 1]
