"""SASL mechanisms: the examples of their RFCs, and servers that say what they like."""

import base64
import copy
import pickle
import re
import traceback
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramMechanism

from protocol.command import Auth, AuthResponse
from protocol.sasl.mechanism import ChannelBinding, Login, Mechanism, SaslError
from protocol.sasl.mechanisms import MECHANISMS, NAMES, Merit, Proof, choose, make, proof_of
from protocol.sasl.scram import MAX_ITERATIONS, Scram, ScramSha1, ScramSha256
from protocol.sasl.secret import Secret

CANARY = "tanstaaf-canary"
OWN = [name for name in NAMES if name != "GSSAPI"]  # that one has a file of tests for itself
BINDING = ChannelBinding("tls-exporter", b"0123456789abcdef0123456789abcdef")
LOGIN = Login(user="tim", secret=Secret(CANARY), host="mx.example", port=587, binding=BINDING)


def login(user: str, password: str, authzid: str = "") -> Login:
    """Without TLS."""
    return Login(user=user, secret=Secret(password), authzid=authzid)


# --- known examples ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "blob"),
    [
        (login("tim", "tanstaaftanstaaf"), b"\0tim\0tanstaaftanstaaf"),
        (login("Kurt", "xipj3plmq", authzid="Ursel"), b"Ursel\0Kurt\0xipj3plmq"),
        (login("j\xf6rg", "p:\u20ac"), b"\0j\xc3\xb6rg\0p:\xe2\x82\xac"),
    ],
)
def test_s087_plain_is_as_in_rfc_4616(who: Login, blob: bytes) -> None:
    assert make("PLAIN", who).begin() == blob


def test_login_gives_user_and_password_whatever_it_is_asked() -> None:
    mechanism = make("LOGIN", login("tim", "secret"))
    assert mechanism.begin() is None
    assert mechanism.respond(b"Username:") == b"tim"
    assert mechanism.respond(b"") == b"secret"
    with pytest.raises(SaslError, match="server asks for more than LOGIN has to say"):
        mechanism.respond(b"and?")


def test_s087_cram_md5_is_as_in_rfc_2195() -> None:
    mechanism = make("CRAM-MD5", login("tim", "tanstaaftanstaaf"))
    assert mechanism.begin() is None
    answer = mechanism.respond(b"<1896.697170952@postoffice.reston.mci.net>")
    assert answer == b"tim b913a602c7eda7a495b4e6e7334d3890"
    with pytest.raises(SaslError):
        mechanism.respond(b"<again>")


@pytest.mark.parametrize(
    ("kind", "nonce", "first", "final", "signature"),
    [
        (
            ScramSha1,
            "fyko+d2lbbFgONRv9qkxdawL",
            b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            ScramSha256,
            "rOprNGfwEbeRWgbNEkqO",
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ],
    ids=["RFC 5802", "RFC 7677"],
)
def test_s087_scram_is_as_in_its_rfcs(
    kind: type[Scram], nonce: str, first: bytes, final: bytes, signature: bytes
) -> None:
    mechanism = kind(login("user", "pencil"), nonce)
    assert mechanism.begin() == b"n,,n=user,r=" + nonce.encode()
    assert mechanism.respond(first) == final
    before = mechanism.complete
    assert mechanism.respond(signature) == b""
    assert (before, mechanism.complete) == (False, True)


def test_oauthbearer_is_as_in_rfc_7628() -> None:
    token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
    who = Login(user="user@example.com", secret=Secret(token), host="server.example.com", port=143)
    mechanism = make("OAUTHBEARER", who)
    assert mechanism.begin() == base64.b64decode(
        "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyI"
        "HZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
    )
    before = mechanism.complete
    assert mechanism.respond(b'{"status":"invalid_token"}') == b"\1"
    assert (before, mechanism.complete) == (True, False)
    with pytest.raises(SaslError):
        mechanism.respond(b"")


def test_xoauth2_is_as_google_documents_it() -> None:
    token = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"
    mechanism = make("XOAUTH2", login("someuser@example.com", token))
    assert mechanism.begin() == base64.b64decode(
        "dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSF"
        "JoZG1semRHRXVZMjl0Q2cBAQ=="
    )
    assert mechanism.respond(b"{}") == b""


def test_oauthbearer_quotes_the_user() -> None:
    begun = make("OAUTHBEARER", login("a,b=c", "t")).begin()
    assert begun == b"n,a=a=2Cb=3Dc,\1auth=Bearer t\1\1"


def test_external_says_whom_to_act_for_or_nothing() -> None:
    assert make("EXTERNAL", login("u", "")).begin() == b""
    assert make("EXTERNAL", login("u", "", authzid="u")).begin() == b"u"


# --- SCRAM and its server ------------------------------------------------------------------------


class Exchange:
    """The server's side, played by scramp."""

    def __init__(self, name: str, password: str, binding: tuple[str, bytes] | None) -> None:
        mechanism = ScramMechanism(name)
        info = mechanism.make_auth_info(password, iteration_count=4096)
        self.server = mechanism.make_server(lambda user: info, channel_binding=binding)

    def first(self, message: bytes | None) -> bytes:
        assert message is not None
        self.server.set_client_first(message.decode())
        text: str = self.server.get_server_first()
        return text.encode()

    def last(self, message: bytes) -> bytes:
        self.server.set_client_final(message.decode())
        text: str = self.server.get_server_final()
        return text.encode()


@pytest.mark.parametrize("name", ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"])
def test_scram_is_bound_to_the_channel(name: str) -> None:
    kind = "tls-server-end-point"
    who = Login(user="user", secret=Secret("pencil"), binding=ChannelBinding(kind, b"certificate"))
    server = Exchange(name, "pencil", (kind, b"certificate"))
    mechanism = make(name, who)
    mechanism.respond(server.last(mechanism.respond(server.first(mechanism.begin()))))
    assert mechanism.complete
    # Somebody in between has another certificate.
    server = Exchange(name, "pencil", (kind, b"another"))
    mechanism = make(name, who)
    first = server.first(mechanism.begin())
    with pytest.raises(Exception, match="channel-bindings-dont-match"):
        server.last(mechanism.respond(first))


def test_the_binding_of_tls_1_3_is_said_and_signed() -> None:
    mechanism = make("SCRAM-SHA-256-PLUS", LOGIN)
    begun = mechanism.begin()
    assert begun is not None
    assert begun.startswith(b"p=tls-exporter,,n=tim,r=")
    nonce = begun.rpartition(b"r=")[2]
    answer = mechanism.respond(b"r=" + nonce + b"more,s=QSXCR+Q6sek8bf92,i=4096")
    bound = base64.b64decode(answer.split(b",")[0].removeprefix(b"c="))
    assert bound == b"p=tls-exporter,," + BINDING.data


@pytest.mark.parametrize(
    ("binding", "server_binds", "flag"),
    [(None, False, b"n,,"), (BINDING, False, b"y,,"), (BINDING, True, b"n,,")],
)
def test_a_server_that_hides_its_channel_binding_is_told(
    binding: ChannelBinding | None, server_binds: bool, flag: bytes
) -> None:
    who = Login(user="u", secret=Secret("p"), binding=binding, server_binds=server_binds)
    begun = make("SCRAM-SHA-256", who).begin()
    assert begun is not None
    assert begun.startswith(flag + b"n=u,")


def test_scram_says_whom_to_act_for() -> None:
    begun = make("SCRAM-SHA-256", login("u", "p", authzid="a,b")).begin()
    assert begun is not None
    assert begun.startswith(b"n,a=a=2Cb,n=u,")


def first_message(mechanism: Mechanism, nonce: str = "more", rest: str = "") -> bytes:
    begun = mechanism.begin()
    assert begun is not None
    ours = begun.rpartition(b"r=")[2].decode()
    return f"r={ours}{nonce},{rest or 's=QSXCR+Q6sek8bf92,i=4096'}".encode()


@pytest.mark.parametrize(
    "rest",
    [
        f"s=QSXCR+Q6sek8bf92,i={MAX_ITERATIONS + 1}",
        "s=QSXCR+Q6sek8bf92,i=99999999999999999999999999999999",
        f"s=QSXCR+Q6sek8bf92,i=000{MAX_ITERATIONS + 1}",
        "s=QSXCR+Q6sek8bf92,i=1",
        "s=QSXCR+Q6sek8bf92,i=-5",
        "s=QSXCR+Q6sek8bf92",
        "s=!!!,i=4096",
        "e=other-error",
    ],
)
def test_a_server_that_starts_scram_wrongly_gets_no_proof(rest: str) -> None:
    mechanism = make("SCRAM-SHA-256", LOGIN)
    challenge = first_message(mechanism, rest=rest)
    assert not mechanism.is_slow(challenge)
    with pytest.raises(SaslError) as caught:
        mechanism.respond(challenge)
    assert "SCRAM-SHA-256" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_many_iterations_are_slow() -> None:
    mechanism = make("SCRAM-SHA-256", LOGIN)
    assert not mechanism.is_slow(b"r=x,s=QSXCR+Q6sek8bf92,i=4096")
    assert mechanism.is_slow(b"r=x,s=QSXCR+Q6sek8bf92,i=600000")


def test_a_nonce_that_is_not_ours_is_refused() -> None:
    mechanism = make("SCRAM-SHA-256", LOGIN)
    mechanism.begin()
    with pytest.raises(SaslError, match="the server's first message is wrong"):
        mechanism.respond(b"r=othersmore,s=QSXCR+Q6sek8bf92,i=4096")
    mechanism = make("SCRAM-SHA-256", LOGIN)
    with pytest.raises(SaslError, match="the server's first message is wrong"):
        mechanism.respond(first_message(mechanism, nonce=""))  # added nothing of its own


@pytest.mark.parametrize("signature", [b"v=AAAA", b"v=", b"", b"e=invalid-proof", b"\xff"])
def test_a_server_that_does_not_know_the_password_is_found_out(signature: bytes) -> None:
    mechanism = make("SCRAM-SHA-256", LOGIN)
    mechanism.respond(first_message(mechanism))
    with pytest.raises(SaslError, match="proof that it knows the password is wrong"):
        mechanism.respond(signature)
    assert not mechanism.complete


# --- any server ----------------------------------------------------------------------------------

CHALLENGE = st.binary(max_size=60) | st.sampled_from(
    [b"Username:", b"r=x,s=QSXCR+Q6sek8bf92,i=4096", b"v=AAAA", b"{}", b"\0" * 20_000]
)


@pytest.mark.parametrize("name", OWN)
@given(st.lists(CHALLENGE, max_size=5))
def test_whatever_a_server_asks_ends_in_answers_or_a_sentence(
    name: str, challenges: Sequence[bytes]
) -> None:
    mechanism = make(name, LOGIN)
    mechanism.begin()
    problem = ""
    for challenge in challenges:
        try:
            assert isinstance(mechanism.respond(challenge), bytes)
        except SaslError as exc:
            problem = str(exc)
            break
    assert CANARY not in problem
    assert "\n" not in problem


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("text", ["", "a\0b", "\1", "\udcff", "\u0627\u0031a", "\x07bell"])
def test_whatever_stands_in_the_table_is_sent_or_refused_in_a_sentence(
    name: str, text: str
) -> None:
    for user, secret in (("u", text), (text, "s")):
        who = Login(user=user, secret=Secret(secret), binding=BINDING)
        with suppress(SaslError):  # and nothing else
            make(name, who).begin()


@pytest.mark.parametrize("name", OWN)
def test_no_traceback_of_a_failing_mechanism_shows_the_secret(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken in ("_begin", "_respond"):
        mechanism = make(name, LOGIN)

        def fails(*_challenge: bytes) -> bytes:
            password = LOGIN.secret.reveal()
            raise RuntimeError(f"no {password}")

        monkeypatch.setattr(mechanism, broken, fails)
        if broken == "_respond":
            mechanism.begin()
        with pytest.raises(SaslError) as caught:
            _ = mechanism.begin() if broken == "_begin" else mechanism.respond(b"x")
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        text = "".join(shown.format())
        assert "RuntimeError" in str(caught.value)
        assert CANARY not in text.replace(f'CANARY = "{CANARY}"', "")


# --- which one -----------------------------------------------------------------------------------

PASSWORD = (Proof.PASSWORD, Proof.TOKEN)


def chosen(
    offered: str,
    demands: Merit = Merit.NONE,
    proofs: Sequence[Proof] = PASSWORD,
    *,
    encrypted: bool = True,
    bindable: bool = False,
) -> str | None:
    return choose(offered.split(), proofs, demands, encrypted=encrypted, bindable=bindable)


def test_the_strongest_that_is_allowed_is_chosen() -> None:
    everything = " ".join(reversed(OWN))
    assert chosen(everything, bindable=True) == "SCRAM-SHA-256-PLUS"
    assert chosen(everything) == "SCRAM-SHA-256"
    assert chosen("LOGIN PLAIN XOAUTH2 CRAM-MD5") == "CRAM-MD5"
    assert chosen("XOAUTH2 LOGIN PLAIN") == "PLAIN"
    assert chosen("XOAUTH2 OAUTHBEARER") == "OAUTHBEARER"
    assert chosen("NTLM GSSAPI DIGEST-MD5 ANONYMOUS") is None
    assert chosen(everything, proofs=[Proof.TOKEN]) == "OAUTHBEARER"
    assert chosen(everything, proofs=[Proof.CERTIFICATE]) == "EXTERNAL"
    assert chosen(everything, proofs=[Proof.CERTIFICATE], encrypted=False) is None


@pytest.mark.parametrize(
    ("demand", "left"),
    [
        (Merit.NOPLAINTEXT, "SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5"),
        (Merit.NOACTIVE, "SCRAM-SHA-256 SCRAM-SHA-1"),
        (Merit.NODICTIONARY, "OAUTHBEARER XOAUTH2"),
        (Merit.NOANONYMOUS, "SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 PLAIN LOGIN OAUTHBEARER XOAUTH2"),
        (Merit.MUTUAL_AUTH, "SCRAM-SHA-256 SCRAM-SHA-1"),
        (Merit.FORWARD_SECRECY, ""),
    ],
)
def test_security_options_leave_what_has_the_merit(demand: Merit, left: str) -> None:
    passing = [name for name in NAMES if chosen(name, demand) == name]
    assert passing == left.split()


def test_every_mechanism_is_in_the_table_once() -> None:
    assert len(set(NAMES)) == len(MECHANISMS)
    for name in NAMES:
        assert re.fullmatch("[A-Z0-9-]{1,20}", name)
        assert make(name, LOGIN).name == name
    assert proof_of("XOAUTH2") is Proof.TOKEN


# --- secrets -------------------------------------------------------------------------------------


def test_a_secret_is_shown_by_nothing_but_reveal() -> None:
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>20}", f"{secret!r}", f"{[secret]}"]
    shown += [repr(LOGIN), repr(BINDING), repr(Auth("PLAIN", secret)), repr(AuthResponse(secret))]
    assert not any(CANARY in text or "0123456789" in text for text in shown)
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copier(secret)
    assert secret == Secret(CANARY)
    assert secret != Secret("other")
    assert secret != CANARY
    assert Secret("x")
    assert not Secret("")
