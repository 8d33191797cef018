"""Logging in at scripted servers: what is said, what follows from the answers, who sees secrets.

Deterministic: servers in memory, virtual time.
"""

import binascii
import hmac
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
import trustme
from OpenSSL import SSL
from scramp import ScramMechanism
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.capabilities import Capabilities
from protocol.dialogue import Dialogue, State
from protocol.envelope_parameters import mail_parameters
from protocol.request import Protocol
from protocol.sasl.gssapi import Gssapi
from protocol.sasl.mechanism import ChannelBinding
from protocol.sasl.simple import Plain
from tests.unit.fake_gssapi import FakeGssapi
from tests.worker.memory_line import MemoryStream, memory_stream_pair
from tests.worker.world import make_request
from worker.config.config import Config
from worker.delivery.authentication import ROUNDS, authenticate
from worker.delivery.session import Session
from worker.delivery.settings import DeliverySettings
from worker.errors import DeliveryError, SessionError, SiteError
from worker.network.address import Endpoint
from worker.sasl.client import SaslClient
from worker.sasl.tokens import TokenError, Tokens
from worker.tls.policy import Level, TlsFacts, TlsPolicy, Trust
from worker.tls.stream import Intake, TlsStream

PASSWORD = "canary-secret"
BASICS = {
    "smtp_sasl_auth_enable": "yes",
    "smtp_sasl_password_maps": f"inline:{{mx.example=user:{PASSWORD}}}",
    "smtp_sasl_security_options": "noanonymous",
}
PEER = "mx.example[192.0.2.1]"
ENDPOINT = Endpoint(host="mx.example", address="192.0.2.1", port=587, family=socket.AF_INET)
OK = "235 2.7.0 ok"
NO = "535 5.7.8 bad credentials"


def b64(octets: bytes) -> str:
    return binascii.b2a_base64(octets, newline=False).decode()


BLOB = b64(b"\0user\0" + PASSWORD.encode())
PLAIN = f"AUTH PLAIN {BLOB}"

# What a server says to a line; a text for any line, or a function of it.
Script = Sequence[str | Callable[[str], str]]


class Server:
    """Answers line after line as the script says, and writes down what it was told."""

    def __init__(self, *script: str | Callable[[str], str]) -> None:
        self.script = script
        self.told: list[str] = []

    async def serve(self, stream: MemoryStream) -> None:
        unread = b""
        for answer in self.script:
            while b"\r\n" not in unread:
                data = await stream.receive_some(65_536)
                if not data:
                    return
                unread += data
            line, _, unread = unread.partition(b"\r\n")
            self.told.append(line.decode())
            text = answer if isinstance(answer, str) else answer(self.told[-1])
            if text == "CUT":
                break
            with suppress(trio.BrokenResourceError):  # nobody waits for the answer to QUIT
                await stream.send_all(text.encode() + b"\r\n")
        await stream.aclose()


def facts(trust: Trust = Trust.UNTRUSTED) -> TlsFacts:
    return TlsFacts(trust=trust, protocol="TLSv1.3", cipher="X", bits=256)


def client(
    settings: Mapping[str, str] | None = None, protocol: Protocol = Protocol.SMTP
) -> SaslClient:
    sasl = SaslClient.from_config(Config.from_mapping({**BASICS, **(settings or {})}), protocol)
    assert sasl is not None
    return sasl


async def log_in(
    server: Server,
    sasl: SaslClient,
    offered: str = "PLAIN",
    *,
    tls: TlsFacts | None = None,
    binding: ChannelBinding | None = None,
    password: str | None = None,
) -> Session:
    """One session that logs in at `server`. Raises what authenticate() does."""
    ours, theirs = memory_stream_pair(65_536)
    session = Session(ENDPOINT, ours, DeliverySettings(), Dialogue(State.INTRODUCED))
    session.capabilities = Capabilities(auth=tuple(offered.split()))
    session.tls = tls
    credentials = await sasl.credentials(sender="a@b", host="mx.example", nexthop="example")
    assert credentials is not None
    if password is not None:
        again = client({"smtp_sasl_password_maps": f"inline:{{mx.example=user:{password}}}"})
        credentials = await again.credentials(sender="", host="mx.example", nexthop="")
        assert credentials is not None
    failure: DeliveryError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        try:
            with session.conversation() as talk:
                # As the phase before leaves it; in real seconds it is never reached.
                talk.scope.deadline = trio.current_time() + 250.0
                await authenticate(session, talk, sasl, credentials, binding)
        except DeliveryError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return session


async def refused(
    server: Server,
    sasl: SaslClient,
    offered: str = "PLAIN",
    *,
    tls: TlsFacts | None = None,
    binding: ChannelBinding | None = None,
    password: str | None = None,
) -> tuple[str, str]:
    """Status and reason of a login that fails as it should."""
    with pytest.raises(SiteError) as caught:
        await log_in(server, sasl, offered, tls=tls, binding=binding, password=password)
    assert PASSWORD not in caught.value.reason
    return caught.value.dsn, caught.value.reason


# --- the exchange --------------------------------------------------------------------------------


@trio_test
async def test_s087_plain_is_said_in_one_line() -> None:
    server = Server(OK)
    session = await log_in(server, client())
    assert server.told == [PLAIN]
    assert session.dialogue.state is State.INTRODUCED
    assert session.dialogue.in_step


@trio_test
async def test_s089_a_server_without_auth_is_left_alone() -> None:
    server = Server(OK)
    await log_in(server, client(), "")
    assert server.told == []


@trio_test
async def test_s087_login_answers_two_questions() -> None:
    server = Server("334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", OK)
    await log_in(server, client(), "LOGIN")
    assert server.told == ["AUTH LOGIN", b64(b"user"), b64(PASSWORD.encode())]


@trio_test
async def test_s087_cram_md5_signs_the_challenge() -> None:
    server = Server(f"334 {b64(b'<1@mx.example>')}", OK)
    await log_in(server, client(), "CRAM-MD5 PLAIN")
    digest = hmac.new(PASSWORD.encode(), b"<1@mx.example>", "md5").hexdigest()
    assert server.told == ["AUTH CRAM-MD5", b64(f"user {digest}".encode())]


class ScramServer:
    """A server that knows the password, by scramp."""

    def __init__(self, name: str, password: str, iterations: int = 4096) -> None:
        mechanism = ScramMechanism(name)
        info = mechanism.make_auth_info(password, iteration_count=iterations)
        self._server = mechanism.make_server(lambda user: info)

    def first(self, line: str) -> str:
        self._server.set_client_first(binascii.a2b_base64(line.split()[2]).decode())
        return f"334 {b64(self._server.get_server_first().encode())}"

    def last(self, line: str) -> str:
        self._server.set_client_final(binascii.a2b_base64(line).decode())
        return f"334 {b64(self._server.get_server_final().encode())}"


@pytest.mark.parametrize("name", ["SCRAM-SHA-1", "SCRAM-SHA-256"])
@trio_test
async def test_s087_scram_proves_both_sides(name: str) -> None:
    scram = ScramServer(name, PASSWORD)
    server = Server(scram.first, scram.last, OK)
    await log_in(server, client(), f"PLAIN LOGIN CRAM-MD5 {name}")
    assert server.told[0].startswith(f"AUTH {name} ")
    assert server.told[2] == ""


@trio_test
async def test_success_without_the_servers_proof_is_none() -> None:
    scram = ScramServer("SCRAM-SHA-256", PASSWORD)
    for script in ([OK], [scram.first, OK]):
        dsn, reason = await refused(Server(*script), client(), "SCRAM-SHA-256")
        assert (dsn, reason) == (
            "4.7.0",
            f"SASL authentication failed; cannot authenticate to server {PEER}:"
            " SCRAM-SHA-256: the server has not proved that it knows the password",
        )


@trio_test
async def test_a_false_proof_cancels_the_exchange() -> None:
    scram = ScramServer("SCRAM-SHA-256", PASSWORD)
    server = Server(scram.first, f"334 {b64(b'v=AAAA')}", "501 5.7.0 cancelled")
    dsn, reason = await refused(server, client(), "SCRAM-SHA-256")
    assert server.told[-1] == "*"
    assert dsn == "4.7.0"
    assert "proof that it knows the password is wrong" in reason


@trio_test
async def test_channel_binding_is_used_where_there_is_one() -> None:
    binding = ChannelBinding("tls-exporter", b"x" * 32)
    server = Server("535 5.7.8 no", "")
    await refused(
        server, client(), "SCRAM-SHA-256 SCRAM-SHA-256-PLUS", tls=facts(), binding=binding
    )
    verb, name, first = server.told[0].split()
    assert (verb, name) == ("AUTH", "SCRAM-SHA-256-PLUS")
    assert binascii.a2b_base64(first).startswith(b"p=tls-exporter,,n=user,")


@trio_test
async def test_s087_external_needs_tls_and_an_entry_without_a_password() -> None:
    server = Server(OK)
    sasl = client({"smtp_sasl_password_maps": "inline:{mx.example=user:}"})
    await log_in(server, sasl, "PLAIN EXTERNAL", tls=facts())
    assert server.told == ["AUTH EXTERNAL ="]
    _, reason = await refused(Server(OK), sasl, "PLAIN EXTERNAL")
    assert "no mechanism available (it offers PLAIN EXTERNAL; EXTERNAL needs TLS)" in reason
    _, reason = await refused(Server(OK), sasl, "PLAIN", tls=facts())
    assert reason.endswith("(it offers PLAIN; the password table has no password)")


@trio_test
async def test_s097_the_authorization_identity_is_sent_if_told() -> None:
    server = Server(OK)
    await log_in(server, client({"send_cyrus_sasl_authzid": "yes"}))
    blob = b64(b"user\0user\0" + PASSWORD.encode())
    assert server.told == [f"AUTH PLAIN {blob}"]


@pytest.mark.parametrize(
    ("offered", "flag"), [("SCRAM-SHA-1 SCRAM-SHA-1-PLUS", b"n,,"), ("SCRAM-SHA-1", b"y,,")]
)
@trio_test
async def test_a_server_is_told_of_an_attack_only_if_it_hides_its_channel_binding(
    offered: str, flag: bytes
) -> None:
    binding = ChannelBinding("tls-exporter", b"x" * 32)
    sasl = client({"smtp_sasl_mechanism_filter": "scram-sha-1"})
    server = Server(NO)
    await refused(server, sasl, offered, tls=facts(), binding=binding)
    assert binascii.a2b_base64(server.told[0].split()[2]).startswith(flag)


@trio_test
async def test_only_tls_1_3_can_be_bound_to_and_both_ends_agree() -> None:
    for version in ("TLSv1.3", "TLSv1.2"):
        ours, theirs = handshake(version)
        policy, found = TlsPolicy(level=Level.MAY), replace(facts(), protocol=version)
        stream = TlsStream(memory_stream_pair(65_536)[0], Intake(ours), policy, found)
        agreed = theirs.export_keying_material(b"EXPORTER-Channel-Binding", 32)
        assert stream.channel_binding() == (agreed if version == "TLSv1.3" else None)


def handshake(version: str) -> tuple[SSL.Connection, SSL.Connection]:
    """A client and a server that have shaken hands in memory."""
    certificate = trustme.CA().issue_cert("mx.example")
    wanted = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}[version]
    ends = []
    for side in (SSL.TLS_CLIENT_METHOD, SSL.TLS_SERVER_METHOD):
        context = SSL.Context(side)
        context.set_min_proto_version(wanted)
        context.set_max_proto_version(wanted)
        if side == SSL.TLS_SERVER_METHOD:
            certificate.configure_cert(context)
        ends.append(SSL.Connection(context, None))
    ours, theirs = ends
    ours.set_connect_state()
    theirs.set_accept_state()
    for _ in range(3):
        for end, other in ((ours, theirs), (theirs, ours)):
            with suppress(SSL.WantReadError):
                end.do_handshake()
            with suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(65_536))
    return ours, theirs


@pytest.mark.parametrize("wanted", ["yes", "no"])
@trio_test
async def test_s197_an_empty_author_goes_with_mail_if_wanted(wanted: str) -> None:
    session = await log_in(Server(OK), client({"smtp_send_dummy_mail_auth": wanted}))
    params = mail_parameters(make_request(), session.capabilities)
    assert ("AUTH=<>" in params) is (wanted == "yes")


# --- what fits in a line -------------------------------------------------------------------------


@trio_test
async def test_s098_a_response_that_makes_the_line_too_long_waits_for_its_challenge() -> None:
    # With "AUTH PLAIN " and CRLF, 372 octets in base64 make 509, one more makes 513.
    for length, lines in ((372 - len("\0user\0"), 1), (373 - len("\0user\0"), 2)):
        server = Server(*(["334 "] * (lines - 1)), OK)
        await log_in(server, client(), password="x" * length)
        assert len(server.told) == lines
        blob = b64(b"\0user\0" + b"x" * length)
        assert server.told == ([f"AUTH PLAIN {blob}"] if lines == 1 else ["AUTH PLAIN", blob])


@trio_test
async def test_who_speaks_first_must_be_clear() -> None:
    server = Server(f"334 {b64(b'hello')}", "501 cancelled")
    dsn, reason = await refused(server, client(), password="x" * 400)
    assert server.told == ["AUTH PLAIN", "*"]
    assert (dsn, reason) == (
        "4.7.0",
        f"SASL authentication failed; non-empty initial PLAIN challenge from server {PEER}:"
        " 334 aGVsbG8=",
    )


@trio_test
async def test_a_response_that_no_line_can_hold_is_not_sent() -> None:
    server = Server("334 ", "501 cancelled")
    _, reason = await refused(server, client(), password="x" * 10_000)
    assert server.told == []
    assert reason.endswith("the response is longer than 12288 octets")


# --- servers that do not know what they want -----------------------------------------------------


@trio_test
async def test_s098_a_server_that_asks_for_ever_is_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No mechanism has so much to say; one that answers for ever has to be made up.
    monkeypatch.setattr(Plain, "_respond", lambda *_: b"more")
    server = Server(*(["334 "] * (ROUNDS + 1)), "501 cancelled")
    dsn, reason = await refused(server, client())
    assert server.told[-1] == "*"
    assert len(server.told) == 1 + ROUNDS + 1
    assert dsn == "4.3.0"
    assert reason == (
        f"SASL authentication failed; authentication protocol loop with server {PEER}"
    )


@pytest.mark.parametrize("challenge", ["334 !!!", "334 abc", "334-YQ==\r\n334 YQ==", "334 é"])
@trio_test
async def test_a_challenge_that_is_not_base64_ends_it(challenge: str) -> None:
    server = Server(challenge, "501 5.5.2 cancelled")
    dsn, reason = await refused(server, client(), "LOGIN")
    assert server.told == ["AUTH LOGIN", "*"]
    assert (dsn, reason) == (
        "4.7.0",
        f"SASL authentication failed; cannot authenticate to server {PEER}:"
        " malformed challenge from server",
    )


@trio_test
async def test_a_challenge_too_many_ends_it() -> None:
    server = Server("334 ", "501 cancelled")
    _, reason = await refused(server, client())
    assert server.told == [PLAIN, "*"]
    assert reason.endswith("server asks for more than PLAIN has to say")


@trio_test
async def test_a_lost_connection_is_told_in_postfixs_words() -> None:
    with pytest.raises(SessionError) as caught:
        await log_in(Server("CUT"), client())
    assert caught.value.reason == f"lost connection with {PEER} while performing the EHLO handshake"


@trio_test
async def test_a_silent_server_is_left_after_the_time_for_ehlo(autojump_clock: MockClock) -> None:
    ours, _theirs = memory_stream_pair(65_536)
    session = Session(ENDPOINT, ours, DeliverySettings(), Dialogue(State.INTRODUCED))
    session.capabilities = Capabilities(auth=("PLAIN",))
    sasl = client()
    credentials = await sasl.credentials(sender="", host="mx.example", nexthop="")
    assert credentials is not None

    async def attempt() -> None:
        with session.conversation() as talk:
            talk.phase("waiting", 1.0)
            talk.scope.deadline = trio.current_time() + 1.0  # of the phase before
            await authenticate(session, talk, sasl, credentials)

    with pytest.raises(SessionError) as caught:
        await attempt()
    assert trio.current_time() == 300.0
    assert "timed out while performing the EHLO handshake" in caught.value.reason


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "soft", "dsn"),
    [
        (NO, "yes", "4.7.8"),
        (NO, "no", "5.7.8"),
        ("504 5.5.4 no such mechanism", "yes", "4.5.4"),
        ("504 5.5.4 no such mechanism", "no", "5.5.4"),
        ("454 4.7.0 not now", "yes", "4.7.0"),
        ("454 4.7.0 not now", "no", "4.7.0"),
    ],
)
@trio_test
async def test_s096_what_a_refusal_comes_to_is_configured(reply: str, soft: str, dsn: str) -> None:
    found = await refused(Server(reply), client({"smtp_sasl_auth_soft_bounce": soft}))
    assert found == (dsn, f"SASL authentication failed; server {PEER} said: {reply}")


@trio_test
async def test_after_a_refusal_the_dialogue_can_end_politely() -> None:
    ours, theirs = memory_stream_pair(65_536)
    session = Session(ENDPOINT, ours, DeliverySettings(), Dialogue(State.INTRODUCED))
    session.capabilities = Capabilities(auth=("PLAIN",))
    sasl = client()
    credentials = await sasl.credentials(sender="", host="mx.example", nexthop="")
    assert credentials is not None
    server = Server(NO, "221 bye")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        with session.conversation() as talk, pytest.raises(SiteError):
            await authenticate(session, talk, sasl, credentials)
        assert session.dialogue.state is State.INTRODUCED
        await session.quit()
    assert server.told == [PLAIN, "QUIT"]


CACHED = {"smtp_sasl_auth_cache_name": "proxy:btree:/x", "smtp_sasl_auth_soft_bounce": "no"}


@trio_test
async def test_s094_twenty_at_once_with_a_wrong_password_are_one_login(
    autojump_clock: MockClock,
) -> None:
    sasl = client(CACHED)
    assert not sasl.warnings
    servers = [Server(NO) for _ in range(20)]
    found: list[tuple[str, str]] = []

    async def attempt(server: Server) -> None:
        found.append(await refused(server, sasl))

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(attempt, server)
    assert sum(len(server.told) for server in servers) == 1
    said = f"failed; server {PEER} said: {NO}"
    again = ("5.7.8", f"SASL [CACHED] authentication failed; server mx.example said: {NO}")
    assert sorted(found) == sorted([("5.7.8", f"SASL authentication {said}"), *([again] * 19)])
    # Another password is another login; and so is the same one after 90 days.
    other = Server(OK)
    await log_in(other, sasl, password="other")
    assert len(other.told) == 1
    await trio.sleep(90 * 86_400 - 1)
    assert await refused(Server(OK), sasl) == again
    await trio.sleep(1)
    later = Server(OK)
    await log_in(later, sasl)
    assert later.told == [PLAIN]


@trio_test
async def test_what_has_worked_is_done_by_many_at_once(autojump_clock: MockClock) -> None:
    sasl = client(CACHED)
    asked, all_asked = 0, trio.Event()
    await log_in(Server(OK), sasl)

    class Waiting(Server):
        async def serve(self, stream: MemoryStream) -> None:
            nonlocal asked
            await stream.receive_some(1000)
            asked += 1
            if asked == 5:
                all_asked.set()
            await all_asked.wait()
            await stream.send_all(b"235 ok\r\n")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(log_in, Waiting(), sasl)
    assert asked == 5


@trio_test
async def test_s094_only_535_is_remembered_and_another_tries_after_a_lost_connection() -> None:
    sasl = client(CACHED)
    await refused(Server("454 4.7.0 not now"), sasl)
    with pytest.raises(SessionError):
        await log_in(Server("CUT"), sasl)
    server = Server(OK)
    await log_in(server, sasl)
    assert server.told == [PLAIN]


@trio_test
async def test_who_waits_for_others_is_not_timed_out_and_goes_on_when_they_give_up(
    autojump_clock: MockClock,
) -> None:
    sasl = client({**CACHED, "smtp_helo_timeout": "300s"})
    late = Server(OK)

    class Silent(Server):
        async def serve(self, stream: MemoryStream) -> None:
            await trio.sleep_forever()

    async def first() -> None:
        with pytest.raises(SessionError):
            await log_in(Silent(), sasl)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        nursery.start_soon(log_in, late, sasl)
    assert late.told == [PLAIN]
    assert trio.current_time() == 300.0


@trio_test
async def test_s094_without_a_name_for_the_memory_every_session_tries() -> None:
    sasl = client()
    for _ in range(2):
        server = Server(NO)
        await refused(server, sasl)
        assert server.told == [PLAIN]


# --- which mechanism -----------------------------------------------------------------------------

NONE_LEFT = (
    "4.7.0",
    f"SASL authentication failed: server {PEER} offered no compatible authentication mechanisms"
    " for this type of connection security",
)


@trio_test
async def test_s089_passwords_are_not_sent_in_the_clear_by_default() -> None:
    settings = {"smtp_sasl_security_options": "noplaintext, noanonymous"}
    server = Server(OK)
    dsn, reason = await refused(server, client(settings), "PLAIN LOGIN XOAUTH2")
    assert server.told == []
    assert dsn == "4.7.0"
    assert reason == (
        f"SASL authentication failed; cannot authenticate to server {PEER}: no mechanism available"
        " (it offers PLAIN LOGIN XOAUTH2; see smtp_sasl_security_options)"
    )


@pytest.mark.parametrize(
    ("tls", "parameter"),
    [
        (None, "smtp_sasl_security_options"),
        (facts(), "smtp_sasl_tls_security_options"),
        (facts(Trust.TRUSTED), "smtp_sasl_tls_security_options"),
        (facts(Trust.ANONYMOUS), "smtp_sasl_tls_security_options"),
        (facts(Trust.VERIFIED), "smtp_sasl_tls_verified_security_options"),
    ],
)
@trio_test
async def test_s090_each_kind_of_session_has_options_of_its_own(
    tls: TlsFacts | None, parameter: str
) -> None:
    names = ["smtp_sasl_security_options"]
    names += ["smtp_sasl_tls_security_options", "smtp_sasl_tls_verified_security_options"]
    strict = dict.fromkeys(names, "noplaintext")
    await log_in(Server(OK), client({**strict, parameter: "noanonymous"}), tls=tls)
    lax = dict.fromkeys(names, "noanonymous")
    _, reason = await refused(Server(OK), client({**lax, parameter: "noplaintext"}), tls=tls)
    assert f"see {parameter}" in reason


@trio_test
async def test_s092_the_filter_decides_what_is_left_of_the_offer() -> None:
    sasl = client({"smtp_sasl_mechanism_filter": "!gssapi, !login, !cram-md5, static:rest"})
    server = Server(OK)
    await log_in(server, sasl, "GSSAPI LOGIN CRAM-MD5 PLAIN")
    assert server.told == [PLAIN]
    assert await refused(Server(OK), sasl, "GSSAPI LOGIN") == NONE_LEFT
    broken = client({"smtp_sasl_mechanism_filter": "fail:down"})
    dsn, reason = await refused(Server(OK), broken)
    assert dsn == "4.3.0"
    assert reason.startswith(f"local data error while talking to {PEER}: ")


# --- tokens --------------------------------------------------------------------------------------


@trio_test
async def test_s087_a_token_of_the_table_is_used_where_the_filter_leaves_nothing_else() -> None:
    sasl = client({"smtp_sasl_mechanism_filter": "xoauth2"})
    server = Server(OK)
    await log_in(server, sasl, "PLAIN LOGIN XOAUTH2")
    blob = f"user=user\1auth=Bearer {PASSWORD}\1\1".encode()
    assert server.told == [f"AUTH XOAUTH2 {b64(blob)}"]


@trio_test
async def test_a_refused_token_is_complained_about_before_the_refusal() -> None:
    complaint = b64(b'{"status":"401"}')
    for name, answer in (("XOAUTH2", ""), ("OAUTHBEARER", b64(b"\1"))):
        server = Server(f"334 {complaint}", NO)
        await refused(server, client(), name)
        assert server.told[1] == answer


def with_tokens(call: Callable[[str, str], str]) -> SaslClient:
    """A client whose tokens come from `call(user, host)`; its entry has no password."""

    async def asked(user: str, host: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return call(user, host).encode()

    maps = {"smtp_sasl_password_maps": "inline:{mx.example=user:}"}
    return replace(client(maps), tokens=Tokens(asked))


@trio_test
async def test_a_token_of_the_command_is_used_for_entries_without_a_password() -> None:
    calls = []

    def call(user: str, host: str) -> str:
        calls.append((user, host))
        return f"token{len(calls)}"

    sasl = with_tokens(call)
    for number, reply in ((1, OK), (1, NO), (2, OK)):
        server = Server(reply)
        if reply == OK:
            await log_in(server, sasl, "PLAIN XOAUTH2")
        else:
            await refused(server, sasl, "PLAIN XOAUTH2")  # and forgotten
        blob = f"user=user\1auth=Bearer token{number}\1\1".encode()
        assert server.told == [f"AUTH XOAUTH2 {b64(blob)}"]
    assert calls == [("user", "mx.example")] * 2


@trio_test
async def test_without_a_token_the_mail_waits_and_the_log_says_why() -> None:
    def call(user: str, host: str) -> str:
        raise TokenError("/bin/helper ended with status 1; run it by hand")

    dsn, reason = await refused(Server(OK), with_tokens(call), "XOAUTH2")
    assert (dsn, reason) == (
        "4.7.0",
        f"SASL authentication failed; cannot authenticate to server {PEER}:"
        " no token for user: /bin/helper ended with status 1; run it by hand",
    )


# --- secrets -------------------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """All that a traceback can show, locals included; without the sources of this file."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(report.format(chain=True))


def assert_hidden(text: str) -> None:
    for secret in (PASSWORD, BLOB, b64(PASSWORD.encode()), BLOB[4:-4]):
        assert secret not in text


@pytest.mark.parametrize("echo", [f"500 what? {PLAIN}", f"535 {PASSWORD} is wrong"])
@trio_test
async def test_a_server_that_repeats_what_we_say_is_not_believed_on_that(echo: str) -> None:
    _, reason = await refused(Server(echo), client())
    assert_hidden(reason)
    assert "[...]" in reason


@pytest.mark.parametrize("length", [10, 30, 203, 2048])
@trio_test
async def test_the_beginning_of_a_secret_is_not_seen_either(length: int) -> None:
    """Servers cut what they repeat, and so do we cut a line that is too long."""
    token = "".join(f"{number:04}" for number in range(600))
    server = Server("334 ", lambda line: f"500 what? {line[:length]}")
    settings = {"smtp_sasl_mechanism_filter": "xoauth2"}
    _, reason = await refused(server, client(settings), "XOAUTH2", password=token)
    assert reason.endswith("said: 500 what? [...]")
    server = Server(f"535 {length} {token[:length]} {token[:length]}is wrong")
    _, reason = await refused(server, client(), password=token[:300])
    assert token[:10] not in reason
    assert reason.startswith(f"SASL authentication failed; server {PEER} said: 535 {length} [...]")


@pytest.mark.parametrize("width", range(12, 28))
@trio_test
async def test_the_rest_of_a_secret_is_not_seen_where_a_server_folds_it(width: int) -> None:
    token = "".join(f"{number:04}" for number in range(60))

    def fold(line: str) -> str:
        parts = [line[start : start + width] for start in range(0, len(line), width)]
        return "\r\n".join([*(f"535-5.7.8 {part}" for part in parts), "535 5.7.8 no"])

    _, reason = await refused(Server(fold), client(), password=token)
    blob = b64(b"\0user\0" + token.encode())
    said = reason.partition(" said: ")[2].split()
    assert not [word for word in said if len(word) > 4 and word in blob]
    _, reason = await refused(Server(lambda _: fold(f"{token} is wrong")), client(), password=token)
    said = reason.partition(" said: ")[2].split()
    assert not [word for word in said if len(word) > 4 and word in token]


@trio_test
async def test_what_a_server_says_beside_a_secret_is_seen() -> None:
    server = Server(f"535-5.7.8 bad {PLAIN}\r\n535-5.7.8 go to {PASSWORD} example\r\n535 5.7.8 bye")
    _, reason = await refused(server, client())
    assert reason.endswith("535 5.7.8 bad AUTH PLAIN [...] 5.7.8 go to [...] example 5.7.8 bye")


STEPS = [
    ("PLAIN", ["CUT"]),
    ("PLAIN", [NO]),
    ("PLAIN", ["334 "]),
    ("LOGIN", ["334 VXNlcm5hbWU6", "CUT"]),
    ("LOGIN", ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "CUT"]),
    ("LOGIN", ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "334 "]),
    ("CRAM-MD5", ["334 ***", "501 x"]),
    ("SCRAM-SHA-256", ["334 eA==", "501 x"]),
    ("XOAUTH2", ["334 ", "334 "]),
]


@pytest.mark.parametrize(("name", "script"), STEPS)
@trio_test
async def test_s098_no_failure_at_any_step_shows_the_secret(
    name: str, script: Sequence[str]
) -> None:
    with pytest.raises(DeliveryError) as caught:
        await log_in(Server(*script), client(), name)
    hidden = shown(caught.value)
    for step in [caught.value.__context__, caught.value.__cause__]:
        if step is not None:
            hidden += shown(step) + repr(step)
    assert_hidden(hidden)
    assert "authenticat" in hidden  # it is about what we think


@pytest.mark.parametrize("broken", ["send", "to_wire", "receive_reply"])
@trio_test
async def test_no_bug_at_any_step_shows_the_secret(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("a bug")

    where = {
        "send": "worker.delivery.session.Conversation.send",
        "to_wire": "protocol.command.Auth.to_wire",
        "receive_reply": "protocol.dialogue.Dialogue.receive_reply",
    }
    monkeypatch.setattr(where[broken], fails)
    with pytest.raises(ExceptionGroup) as caught:
        await log_in(Server(OK), client())
    (error,) = caught.value.exceptions
    assert isinstance(error, RuntimeError)
    assert_hidden(shown(error))


# --- tickets -------------------------------------------------------------------------------------

NO_PASSWORD = {"smtp_sasl_password_maps": "inline:{mx.example=user:}"}
GSSAPI = ["334 " + b64(b"AP-REP"), "334 " + b64(b"wrapped offer")]
ANSWERS = ["", b64(b"wrapped \1\0\0\0")]


@pytest.mark.parametrize("tls", [None, facts()])
@trio_test
async def test_a_ticket_lets_in_who_has_no_password(
    monkeypatch: pytest.MonkeyPatch, tls: TlsFacts | None
) -> None:
    library = FakeGssapi().install(monkeypatch)
    server = Server(*GSSAPI, OK)
    settings = {**NO_PASSWORD, "smtp_sasl_security_options": "noplaintext, mutual_auth"}
    session = await log_in(server, client(settings), "PLAIN GSSAPI", tls=tls)
    assert server.told == ["AUTH GSSAPI " + b64(b"AP-REQ"), *ANSWERS]
    assert session.dialogue.in_step
    assert library.seen[0]["name"] == ("smtp@mx.example", "hostbased")
    assert threading.get_ident() not in library.threads


@trio_test
async def test_a_ticket_that_makes_the_line_too_long_waits_for_its_challenge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticket = b"t" * 700
    FakeGssapi(tokens=(ticket, None)).install(monkeypatch)
    server = Server("334 ", *GSSAPI, OK)
    await log_in(server, client(NO_PASSWORD), "GSSAPI")
    assert server.told == ["AUTH GSSAPI", b64(ticket), *ANSWERS]


@trio_test
async def test_without_a_ticket_nothing_is_said_to_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeGssapi(failure="Major (1): x, Minor (2): No Kerberos credentials").install(monkeypatch)
    server = Server(OK)
    dsn, reason = await refused(server, client(NO_PASSWORD), "GSSAPI")
    assert dsn == "4.7.0"
    assert reason.endswith(f"to server {PEER}: GSSAPI: No Kerberos credentials")
    assert server.told == []


@trio_test
async def test_a_server_that_accepts_a_ticket_too_soon_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeGssapi().install(monkeypatch)
    _, reason = await refused(Server(OK), client(NO_PASSWORD), "GSSAPI")
    assert reason.endswith("GSSAPI: the server has not proved who it is")


@trio_test
async def test_a_refused_ticket_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGssapi().install(monkeypatch)
    sasl = client({**NO_PASSWORD, "smtp_sasl_auth_cache_name": "any"})
    for _ in range(2):
        server = Server(*GSSAPI, NO)
        _, reason = await refused(server, sasl, "GSSAPI")
        assert len(server.told) == 3
        assert "said: 535" in reason


@trio_test
async def test_gssapi_without_the_package_or_with_a_password_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Gssapi, "lacks", lambda: "GSSAPI needs X")
    none = "the password table has no password"
    for offer in ("GSSAPI", "GSSAPI NTLM"):
        _, reason = await refused(Server(OK), client(NO_PASSWORD), offer)
        assert reason.endswith(f"(it offers {offer}; {none}, and GSSAPI needs X)")
        _, reason = await refused(Server(OK), client(), offer)
        assert reason.endswith(f"(it offers {offer}; GSSAPI needs an entry without a password)")


# --- what each code of RFC 4954 comes to ---------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "soft", "hard"),
    [
        ("432 4.7.12 a password transition is needed", "4.7.12", "4.7.12"),
        ("454 4.7.0 temporary authentication failure", "4.7.0", "4.7.0"),
        ("500 5.5.6 authentication exchange line is too long", "4.5.6", "5.5.6"),
        ("534 5.7.9 authentication mechanism is too weak", "4.7.9", "5.7.9"),
        ("535 5.7.8 authentication credentials invalid", "4.7.8", "5.7.8"),
        ("538 5.7.11 encryption required for the mechanism", "4.7.11", "5.7.11"),
    ],
)
@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s203_each_refusal_has_its_code(
    protocol: Protocol, reply: str, soft: str, hard: str
) -> None:
    prefix = protocol.value
    for text, dsn in (("yes", soft), ("no", hard)):
        settings = {
            f"{prefix}_sasl_auth_enable": "yes",
            f"{prefix}_sasl_password_maps": f"static:user:{PASSWORD}",
            f"{prefix}_sasl_security_options": "noanonymous",
            f"{prefix}_sasl_auth_soft_bounce": text,
        }
        found = await refused(Server(reply), client(settings, protocol))
        assert found == (dsn, f"SASL authentication failed; server {PEER} said: {reply}")
