"""The sink's TLS and AUTH: its dialogue without any I/O, its handshakes over real sockets."""

import base64
import hashlib
import json
import random
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench.harness.scenario import LoadError
from bench.server_process import ServerProcess
from bench.sink.behaviour import Behaviour, BehaviourError, Phase
from bench.sink.certificate import self_made, server_context
from bench.sink.session import Session
from bench.sink.sink import Sink
from bench.sink.words import parse_behaviour

LIMIT = 60.0  # seconds: whoever waits so long waits for ever
LANES = [[], ["--processes", "2"], ["--behaviour", "rtt=0.001"]]
BOTH = pytest.mark.parametrize("more", [[], ["--behaviour", "latency:quit=0.001"]])


def dialogue(*lines: bytes, behaviour: Behaviour) -> tuple[Session, list[bytes]]:
    """What a session says to these lines, its greeting not counted."""
    session = Session(Sink(behaviour=behaviour))
    session.take()
    for line in lines:
        session.receive(line + b"\r\n")
    return session, session.take().splitlines()


def sixty_four(text: str) -> bytes:
    """Base64."""
    return base64.b64encode(text.encode())


# --- the dialogue -------------------------------------------------------------------------------


def test_starttls_is_offered_in_the_clear_only_and_nothing_from_before_survives() -> None:
    session, said = dialogue(b"EHLO x", b"MAIL FROM:<a@x>", behaviour=Behaviour(starttls=True))
    assert said[-2:] == [b"250 STARTTLS", b"250 2.1.0 Ok"]
    session.receive(b"STARTTLS\r\nRSET\r\n")
    assert session.take() == b"220 2.0.0 Ready to start TLS\r\n"  # and what came with it is lost
    assert session.upgrading
    session.secure("TLSv1.3", resumed=False)
    session.receive(b"RCPT TO:<b@x>\r\nEHLO x\r\nSTARTTLS\r\n")
    first, *offered, last = session.take().splitlines()
    assert (first[:3], last[:3]) == (b"503", b"503")
    assert not [line for line in offered if b"STARTTLS" in line]
    assert not session.closing


def test_starttls_is_unknown_unless_it_is_wanted() -> None:
    session, said = dialogue(b"EHLO x", b"STARTTLS", behaviour=Behaviour())
    assert b"STARTTLS" not in b"".join(said)
    assert said[-1].startswith(b"500")
    assert not session.upgrading


@pytest.mark.parametrize(
    ("word", "reply", "ends"),
    [
        ("starttls=454 4.7.0 no TLS today", b"454 4.7.0 no TLS today", False),
        ("starttls=421 4.3.2 no", b"421 4.3.2 no", True),
        ("cut=starttls", b"", True),
        ("silent=starttls", b"", False),
        ("cut=handshake", b"220 2.0.0 Ready to start TLS", True),
        ("silent=handshake", b"220 2.0.0 Ready to start TLS", False),
    ],
)
def test_starttls_fails_as_told_and_no_handshake_follows(
    word: str, reply: bytes, *, ends: bool
) -> None:
    session, said = dialogue(b"STARTTLS", b"NOOP", behaviour=parse_behaviour(["starttls", word]))
    assert said[0:1] == ([reply] if reply else [])
    assert (session.closing, session.upgrading) == (ends, False)
    assert len(said) == (2 if word.startswith("starttls=454") else bool(reply))


@pytest.mark.parametrize("word", ["cut=handshake", "silent=handshake"])
def test_a_wrapper_whose_handshake_fails_says_nothing_in_the_clear(word: str) -> None:
    session = Session(Sink(behaviour=parse_behaviour(["tls", word])))
    assert session.take() == b""
    assert (session.closing, session.upgrading) == (word == "cut=handshake", False)


def test_a_wrapper_greets_after_its_handshake_and_offers_no_starttls() -> None:
    session = Session(Sink(behaviour=parse_behaviour(["tls", "starttls"])))
    assert session.upgrading
    session.secure("TLSv1.2", resumed=True)
    session.receive(b"EHLO x\r\n")
    greeting, *rest = session.take().splitlines()
    assert greeting.startswith(b"220 ")
    assert not [line for line in rest if b"STARTTLS" in line]


PLAIN = sixty_four("\0me\0secret")


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([b"AUTH PLAIN " + PLAIN], [235]),
        ([b"auth plain " + PLAIN], [235]),
        ([b"AUTH PLAIN", PLAIN], [334, 235]),
        ([b"AUTH LOGIN", sixty_four("me"), sixty_four("secret")], [334, 334, 235]),
        ([b"AUTH LOGIN " + sixty_four("me"), sixty_four("secret")], [334, 235]),
        ([b"AUTH LOGIN", sixty_four("me"), sixty_four("wrong")], [334, 334, 535]),
        ([b"AUTH PLAIN " + sixty_four("\0you\0secret")], [535]),
        ([b"AUTH PLAIN ="], [501]),
        ([b"AUTH PLAIN ***"], [501]),
        ([b"AUTH PLAIN " + sixty_four("me\0secret")], [501]),
        ([b"AUTH PLAIN", b"*", b"NOOP"], [334, 501, 250]),
        ([b"AUTH CRAM-MD5"], [504]),
        ([b"AUTH"], [504]),
        ([b"AUTH PLAIN " + PLAIN, b"AUTH PLAIN " + PLAIN], [235, 503]),
        ([b"MAIL FROM:<a@x>", b"AUTH PLAIN " + PLAIN], [250, 503]),
        ([b"AUTH PLAIN", b"A" * 20_000, b"NOOP"], [334, 500, 250]),
        # Valid base64, and no command here.
        ([b"AUTH LOGIN", b"NOOP", b"QUIT"], [334, 501]),
    ],
)
def test_auth_is_answered_as_it_goes(lines: list[bytes], codes: list[int]) -> None:
    behaviour = parse_behaviour(["auth:me=secret", "auth:other=x"])
    session, said = dialogue(*lines, behaviour=behaviour)
    assert [int(line[:3]) for line in said][: len(codes)] == codes
    # Cut anywhere, it comes to the same.
    again = Session(Sink(behaviour=behaviour))
    again.take()
    for octet in b"".join(line + b"\r\n" for line in lines):
        again.receive(bytes((octet,)))
    assert again.take().splitlines() == said
    assert again.closing is session.closing


def test_auth_takes_anybody_or_nobody_and_is_unknown_unless_it_is_wanted() -> None:
    command = b"AUTH PLAIN " + sixty_four("\0any\0body")
    for words, code in ((["auth"], b"235"), (["auth=454 4.7.0 later"], b"454"), ([], b"500")):
        _, said = dialogue(b"EHLO x", command, behaviour=parse_behaviour(words))
        assert said[-1][:3] == code
        assert (b"AUTH PLAIN LOGIN" in b"".join(said)) is bool(words)


def test_a_password_shows_in_no_repr() -> None:
    assert "secret" not in repr(parse_behaviour(["auth:me=secret"]))


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("starttls=yes", "expected a reply"),
        ("starttls:x=454 no", "nothing can stand behind a colon"),
        ("tls=1", "takes no value"),
        ("certificate", "name of a file"),
        ("key=", "name of a file"),
        ("auth=secret", "expected a reply"),
        ("latency:handshake=1", "a handshake has no reply"),
    ],
)
def test_wrong_words_of_tls_are_named(word: str, complaint: str) -> None:
    with pytest.raises(BehaviourError, match=complaint):
        parse_behaviour([word])


def test_words_of_tls_are_undone_by_later_ones() -> None:
    behaviour = parse_behaviour(["starttls", "auth", "starttls=454 4.7.0 no"])
    assert behaviour.starttls
    assert behaviour.auth
    assert behaviour.replies == {Phase.STARTTLS: "454 4.7.0 no"}


# --- certificates -------------------------------------------------------------------------------


def test_one_context_serves_all_who_agree_on_it() -> None:
    assert server_context(Behaviour()) is None
    first = server_context(parse_behaviour(["starttls"]))
    assert first is not None
    assert server_context(parse_behaviour(["tls", "refuse"])) is first
    assert server_context(parse_behaviour(["tls", "hostname=other.example"])) is not first


def test_a_certificate_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    one, other, none = tmp_path / "one", tmp_path / "other", tmp_path / "none"
    one.write_bytes(self_made("a.example"))
    other.write_bytes(self_made("b.example"))
    none.write_text("nothing")
    assert server_context(Behaviour(starttls=True, certificate=str(one))) is not None
    for certificate, key, complaint in (
        (one, other, "key values mismatch"),
        (none, one, "expected PEM"),
        ("", one, "certificate=FILE is missing"),
    ):
        behaviour = Behaviour(starttls=True, certificate=str(certificate), key=str(key))
        with pytest.raises(BehaviourError, match=complaint):
            server_context(behaviour)
    with pytest.raises(FileNotFoundError):
        server_context(Behaviour(wrapper=True, certificate=str(tmp_path / "absent")))


# --- over sockets -------------------------------------------------------------------------------


@contextmanager
def sink(tmp_path: Path, words: str, *more: str) -> Iterator[tuple[int, ssl.SSLContext]]:
    """A sink's port, and the context of a client that trusts it and nobody else."""
    path = tmp_path / "certificate"
    path.write_bytes(self_made("mx.example"))
    listen = f"127.0.0.1:0 certificate={path} {words}"
    with ServerProcess("bench.sink", ["--listen", listen, *more]) as server:
        yield int(server.addresses[0].rpartition(":")[2]), ssl.create_default_context(cafile=path)


@pytest.mark.parametrize("words", ["starttls", "tls"])
@pytest.mark.parametrize("more", LANES)
def test_mail_inside_tls_arrives_to_the_octet(tmp_path: Path, words: str, more: list[str]) -> None:
    record = tmp_path / "record"
    content = random.Random(1).randbytes(300_000).replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
    with sink(tmp_path, f"{words} auth:me=secret", "--record", str(record), *more) as (port, trust):
        for user in ("", "me"):
            if words == "tls":
                client: smtplib.SMTP = smtplib.SMTP_SSL(
                    "localhost", port, timeout=LIMIT, context=trust
                )
            else:
                client = smtplib.SMTP("localhost", port, timeout=LIMIT)
                client.starttls(context=trust)
            with client:
                if user:
                    client.login(user, "secret")
                for _ in range(2):
                    client.sendmail("a@x", ["b@x"], content)
        raw = socket.create_connection(("127.0.0.1", port), LIMIT)
        with raw, pytest.raises(ssl.SSLCertVerificationError):
            wrapped(raw, trust, "starttls" in words, name="else.example")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {one["sha256"] for one in lines} == {hashlib.sha256(content).hexdigest()}
    assert [(one["tls"], one["user"]) for one in lines] == [("TLSv1.3", "")] * 2 + [
        ("TLSv1.3", "me")
    ] * 2


def wrapped(
    raw: socket.socket,
    trust: ssl.SSLContext,
    starttls: bool = True,  # noqa: FBT002
    *,
    name: str = "mx.example",
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """A client's end after its handshake; of STARTTLS, after that."""
    if starttls:
        assert raw.recv(65_536).startswith(b"220 ")
        raw.sendall(b"STARTTLS\r\n")
        assert raw.recv(65_536).startswith(b"220 ")
    return trust.wrap_socket(raw, server_hostname=name, session=session, suppress_ragged_eofs=False)


@BOTH
def test_a_client_that_breaks_off_its_handshake_disturbs_nobody(
    tmp_path: Path, more: list[str]
) -> None:
    with sink(tmp_path, "tls", *more) as (port, trust):
        with socket.create_connection(("127.0.0.1", port), LIMIT) as raw:
            raw.sendall(b"EHLO is no way to begin a handshake\r\n")
            with suppress(ConnectionError):  # an alert, and then an end or a reset
                while raw.recv(1_000):
                    pass
        socket.create_connection(("127.0.0.1", port), LIMIT).close()
        with smtplib.SMTP_SSL("localhost", port, timeout=LIMIT, context=trust) as client:
            assert client.noop()[0] == 250


@BOTH
def test_a_session_goes_on_and_ends_with_close_notify(tmp_path: Path, more: list[str]) -> None:
    report = tmp_path / "report"
    with sink(tmp_path, "starttls", "--json", str(report), *more) as (port, trust):
        session = None
        for _ in range(2):
            raw = socket.create_connection(("127.0.0.1", port), LIMIT)
            with raw, wrapped(raw, trust, session=session) as client:
                client.sendall(b"QUIT\r\n")
                said = b""
                while data := client.recv(1_000):  # raises at an end without close_notify
                    said += data
                assert said.startswith(b"221 ")
                session = client.session  # TLS 1.3: known since something was read
    total = json.loads(report.read_text())["total"]
    assert (total["connections"], total["tls"], total["resumed"]) == (2, 2, 1)


def test_a_slow_client_gets_all_replies_inside_tls(tmp_path: Path) -> None:
    count = 60_000  # more replies than sockets hold
    with sink(tmp_path, "starttls") as (port, trust), socket.socket() as raw:
        raw.settimeout(LIMIT)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # before the window is told
        raw.connect(("127.0.0.1", port))
        with wrapped(raw, trust) as client:
            client.sendall(b"EHLO x\r\n" * count + b"QUIT\r\n")
            said = bytearray()
            while data := client.recv(65_536):
                said += data
    assert said.count(b"250 ENHANCEDSTATUSCODES\r\n") == count
    assert said.endswith(b"bye\r\n")


def test_a_sink_without_a_usable_certificate_does_not_start(tmp_path: Path) -> None:
    words = f"127.0.0.1:0 starttls certificate={tmp_path / 'absent'}"
    with (
        pytest.raises(LoadError, match="absent: No such file"),
        ServerProcess("bench.sink", ["--listen", words]),
    ):
        pass
