"""The handshake: what is sent, how it fails, and which sessions are resumed."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_pair, trio_test, wait_all_tasks_blocked

from tests.integration.pki import HOST, Pki
from tests.worker.memory_line import memory_stream_pair as windowed_pair
from tests.worker.tls_pair import MAY, Server, connect, server_context
from worker.status.events import Event, UnexpectedError
from worker.tls.contexts import Contexts, TlsFilesError
from worker.tls.handshake import HandshakeError, TlsEngine
from worker.tls.policy import Anchors, Level, TlsPolicy, Trust, Version
from worker.tls.session_file import SessionFile
from worker.tls.sessions import SessionStore
from worker.tls.stream import TlsStream

TLS12 = frozenset({Version.TLSV1_2})
TLS13 = frozenset({Version.TLSV1_3})
WHERE = {"host": HOST, "address": "127.0.0.1", "nexthop": "good.example"}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def server(pki: Pki) -> Server:
    return Server(server_context(pki.leaf("good")))


def plain_engine() -> TlsEngine:
    return TlsEngine(Contexts(), None, lambda _event: None)


# --- what is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servername", "sent"),
    [
        (HOST, HOST.encode()),
        ("", None),
        ("192.0.2.1", None),
        ("[192.0.2.1]", None),
        ("2001:db8::1", None),
    ],
)
@trio_test
async def test_the_server_name(servername: str, sent: bytes | None, server: Server) -> None:
    await connect(*memory_stream_pair(), server, replace(MAY, servername=servername))
    assert server.connections[0].get_servername() == sent


@pytest.mark.parametrize("servername", ["bücher.example", "a\0b", "a\r\nb"])
@trio_test
async def test_a_server_name_that_cannot_be_sent(servername: str) -> None:
    near, far = windowed_pair(1_000)
    with pytest.raises(HandshakeError, match="cannot be sent as a server name") as caught:
        await plain_engine().handshake(near, replace(MAY, servername=servername), port=25, **WHERE)
    assert caught.value.reason.isprintable()
    assert not far._incoming.data


# --- how it fails --------------------------------------------------------------------------------


async def failure(talk: Callable[[trio.abc.Stream], object]) -> str:
    """Why the handshake with a server that behaves as `talk` fails."""
    near, far = windowed_pair(100_000)
    reasons: list[str] = []

    async def shake() -> None:
        with pytest.raises(HandshakeError) as caught:
            await plain_engine().handshake(near, MAY, port=25, **WHERE)
        reasons.append(caught.value.reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake)
        await wait_all_tasks_blocked()
        await talk(far)  # type: ignore[misc]
    assert not near.closed, "whose it was, it is"
    [reason] = reasons
    assert reason.isprintable()
    return reason


@trio_test
async def test_a_server_that_closes() -> None:
    assert await failure(lambda far: far.aclose()) == "lost connection"


@trio_test
async def test_a_server_that_resets() -> None:
    async def reset(far: trio.abc.Stream) -> None:
        far.reset()  # type: ignore[attr-defined]

    assert await failure(reset) == "lost connection"


@trio_test
async def test_a_server_that_speaks_no_tls() -> None:
    reason = await failure(lambda far: far.send_all(b"220 mx.example.com ESMTP\r\n" * 10))
    assert reason in {"wrong version number", "packet length too long"}


@trio_test
async def test_a_server_that_sends_an_alert() -> None:
    reason = await failure(lambda far: far.send_all(bytes([21, 3, 3, 0, 2, 2, 40])))
    assert reason == "alert from the peer: handshake failure"


@trio_test
async def test_the_server_is_told_why(server: Server) -> None:
    """It speaks TLS 1.2 only, we do not."""
    server.context = server_context(None, tls12=True)
    with pytest.raises(HandshakeError, match="protocol version"):
        await connect(*memory_stream_pair(), server, replace(MAY, versions=TLS13))
    told: list[bytes] = []

    async def say_nonsense(far: trio.abc.Stream) -> None:
        await far.receive_some()  # ClientHello
        await far.send_all(bytes([22, 3, 3, 0, 4, 2, 0, 0, 0]))  # a ServerHello without content
        told.append(bytes(await far.receive_some()))

    assert await failure(say_nonsense) == "length mismatch"
    [alert] = told
    assert alert[:5] == bytes([21, 3, 3, 0, 2])
    assert len(alert) == 7


@trio_test
async def test_the_caller_limits_the_time(autojump_clock: trio.testing.MockClock) -> None:
    near, _ = windowed_pair(100_000)
    with trio.move_on_after(300) as scope:
        await plain_engine().handshake(near, MAY, port=25, **WHERE)
    assert scope.cancelled_caught
    assert not near.closed


@trio_test
async def test_files_that_cannot_be_read_are_our_own_failure() -> None:
    near, far = windowed_pair(100_000)
    policy = replace(MAY, anchors=Anchors(file="/nowhere/ca.pem"))
    with pytest.raises(TlsFilesError, match=r"^/nowhere/ca\.pem: cannot be read: No such file"):
        await plain_engine().handshake(near, policy, port=25, **WHERE)
    assert not far._incoming.data


# --- sessions ------------------------------------------------------------------------------------


class Site:
    """A server, and a client that remembers its sessions."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.contexts = Contexts()
        self.store = SessionStore(3600.0)
        self.events: list[Event] = []
        self.engine = TlsEngine(self.contexts, self.store, self.events.append)

    async def visit(self, policy: TlsPolicy, port: int = 25, **where: str) -> TlsStream:
        """Connect, hear a word, part politely."""
        near, far = memory_stream_pair()
        ends: list[TlsStream] = []

        async def serve() -> None:
            end = await self.server.handshake(far)
            assert end is not None, self.server.reason
            await end.send_all(b"250 yes\r\n")
            await end.receive_some()
            await end.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client = await self.engine.handshake(near, policy, port=port, **{**WHERE, **where})
            ends.append(client)
            assert await client.receive_some() == b"250 yes\r\n"
            await client.aclose()
        assert not self.events
        return client


def verify(pki: Pki, versions: frozenset[Version]) -> TlsPolicy:
    return TlsPolicy(
        level=Level.VERIFY,
        match=(HOST,),
        versions=versions,
        anchors=Anchors(file=str(pki.ca_file())),
    )


@pytest.mark.parametrize("kind", ["file", "directory", "trust file", "trusted key"])
@trio_test
async def test_a_verdict_ends_with_the_trust_in_who_issued_the_certificate(
    kind: str, server: Server, pki: Pki, tmp_path: Path
) -> None:
    """Somebody takes an authority off the list and reloads: the sessions in the file are old."""
    name = tmp_path / "trusted"
    anchors = {
        "file": Anchors(file=str(name)),
        "directory": Anchors(directory=str(name)),
        "trust file": Anchors(trust_files=(str(name),)),
        "trusted key": Anchors(trust_files=(str(name),)),
    }[kind]
    policy = replace(verify(pki, TLS13), anchors=anchors)
    if kind == "directory":
        shutil.copytree(pki.ca_directory(), name, symlinks=True)
    else:
        make = pki.ca_key_file if kind == "trusted key" else pki.ca_file
        name.write_bytes(make("root").read_bytes())

    def load() -> Site:
        site = Site(server)
        file = SessionFile(tmp_path / "sessions", 3600.0, site.events.append)
        site.store = SessionStore(3600.0, file)
        site.engine = TlsEngine(site.contexts, site.store, site.events.append)
        return site

    before, other = load(), load()
    try:
        assert (await before.visit(policy)).facts.trust is Trust.VERIFIED
        assert (await before.visit(policy)).facts.resumed
        assert (await other.visit(policy)).facts.resumed
    finally:
        before.store.close()
        other.store.close()
    if kind == "directory":
        shutil.rmtree(name)
        name.mkdir()
    else:
        name.write_bytes(make("stranger").read_bytes())
    after = load()
    try:
        facts = (await after.visit(policy)).facts
    finally:
        after.store.close()
    assert not facts.resumed
    assert facts.trust is Trust.UNTRUSTED


@pytest.mark.parametrize("versions", [TLS12, TLS13], ids=["1.2", "1.3"])
@trio_test
async def test_a_session_is_resumed_with_its_verdict(
    versions: frozenset[Version], server: Server, pki: Pki
) -> None:
    site = Site(server)
    policy = verify(pki, versions)
    first = (await site.visit(policy)).facts
    assert first.meets(Level.VERIFY)
    for _ in range(3):
        again = (await site.visit(policy)).facts
        assert again.resumed
        assert replace(again, resumed=False) == first
    assert len(server.connections) == 4


@pytest.mark.parametrize("versions", [TLS12, TLS13], ids=["1.2", "1.3"])
@trio_test
async def test_what_was_good_enough_for_less_serves_nothing_more(
    versions: frozenset[Version], pki: Pki
) -> None:
    """The server's certificate is worthless; OpenSSL would resume, and say that all is well."""
    site = Site(Server(server_context(pki.leaf("self-signed"))))
    policy = verify(pki, versions)
    may = replace(policy, level=Level.MAY)
    await site.visit(may)
    again = (await site.visit(may)).facts
    assert again.resumed
    assert again.trust is Trust.UNTRUSTED
    assert again.why == "self-signed certificate"
    for _ in range(2):
        facts = (await site.visit(policy)).facts
        assert not facts.resumed
        assert not facts.meets(Level.VERIFY)


@trio_test
async def test_every_part_of_the_key_counts(server: Server, pki: Pki) -> None:
    site = Site(server)
    policy = replace(verify(pki, TLS13), match=(HOST, "x"))
    await site.visit(policy)
    for other in (
        replace(policy, level=Level.SECURE),
        replace(policy, level=Level.MAY),
        replace(policy, match=(HOST,)),
        replace(policy, servername="x"),
        replace(policy, ciphers="HIGH"),
        replace(policy, versions=TLS12 | TLS13),
        replace(policy, anchors=Anchors(file=str(pki.ca_file("root", "middle")))),
        replace(policy, depth=8),
        replace(policy, many_labels=False),
        replace(policy, wrapper=True),
    ):
        assert not (await site.visit(other)).facts.resumed
    for where in ("host", "address", "nexthop"):
        assert not (await site.visit(policy, 25, **{where: "x"})).facts.resumed
    assert not (await site.visit(policy, 587)).facts.resumed
    assert (await site.visit(policy)).facts.resumed


@trio_test
async def test_a_server_that_has_forgotten_shakes_hands_in_full(server: Server, pki: Pki) -> None:
    site = Site(server)
    policy = verify(pki, TLS13)
    await site.visit(policy)
    server.context = server_context(pki.leaf("wrong-name"))
    facts = (await site.visit(policy)).facts
    assert not facts.resumed
    assert not facts.meets(Level.VERIFY), "judged by what is shown now"
    server.context = server_context(pki.leaf("good"))
    assert (await site.visit(policy)).facts.meets(Level.VERIFY)
    assert (await site.visit(policy)).facts.resumed


@trio_test
async def test_a_session_is_given_up_after_a_handshake_that_failed(
    server: Server, pki: Pki
) -> None:
    site = Site(server)
    policy = verify(pki, TLS13)
    await site.visit(policy)
    good = server.context
    near, far = memory_stream_pair()
    await far.aclose()
    with pytest.raises(HandshakeError):
        await site.engine.handshake(near, policy, port=25, **WHERE)
    server.context = good
    assert not (await site.visit(policy)).facts.resumed


@trio_test
async def test_a_session_is_given_up_after_a_handshake_that_took_too_long(
    server: Server, pki: Pki, autojump_clock: trio.testing.MockClock
) -> None:
    """Or a server that falls silent at it would do so for as long as it is remembered."""
    site = Site(server)
    policy = verify(pki, TLS13)
    await site.visit(policy)
    near, _ = memory_stream_pair()
    with trio.move_on_after(300) as scope:
        await site.engine.handshake(near, policy, port=25, **WHERE)
    assert scope.cancelled_caught
    assert not (await site.visit(policy)).facts.resumed


@trio_test
async def test_a_session_is_given_up_if_the_server_says_no_word_in_it(
    server: Server, pki: Pki
) -> None:
    site = Site(server)
    where = {"host": "mx.good.example", "nexthop": "n"}  # as connect() has them
    policy = verify(pki, TLS13)
    await site.visit(policy, 25, **where)
    client, end = await connect(*memory_stream_pair(), server, policy, site.engine)
    assert client.facts.resumed
    await end.transport.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()
    assert not (await site.visit(policy, 25, **where)).facts.resumed
    assert (await site.visit(policy, 25, **where)).facts.resumed


@trio_test
async def test_a_step_that_comes_octet_by_octet_is_told_once(server: Server) -> None:
    told: list[Event] = []
    engine = TlsEngine(Contexts(), None, told.append, steps_of="smtp")
    near, far = windowed_pair(1)
    await connect(near, far, server, replace(MAY, versions=TLS12), engine)
    assert 0 < len(told) < 10


@trio_test
async def test_a_session_is_known_after_the_first_word_only(server: Server) -> None:
    site = Site(server)
    client, end = await connect(*memory_stream_pair(), server, MAY, site.engine)
    assert not site.store._entries
    await end.send_all(b"250 yes\r\n")
    await client.receive_some()
    assert len(site.store._entries) == 1


@trio_test
async def test_trouble_with_the_store_is_told_and_takes_no_word(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(server)

    def fail(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(site.store, "save", fail)
    client, end = await connect(*memory_stream_pair(), server, MAY, site.engine)
    await end.send_all(b"250 yes\r\n")
    assert await client.receive_some() == b"250 yes\r\n"
    [event] = site.events
    assert isinstance(event, UnexpectedError)


@trio_test
async def test_a_context_that_was_dropped_costs_no_more_than_a_handshake(
    server: Server, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a session cannot be had as octets it is bound to its context."""
    monkeypatch.setattr("worker.tls.sessions.encode_session", lambda _session: None)
    site = Site(server)
    policy = verify(pki, TLS12)
    await site.visit(policy)
    site.contexts._contexts.clear()
    assert not (await site.visit(policy)).facts.resumed


def test_the_binding_tells_whether_a_session_was_resumed() -> None:
    """Without it no session is ever offered."""
    engine = TlsEngine(Contexts(), SessionStore(3600.0, clock=lambda: 0.0), lambda _event: None)
    assert engine._sessions is not None
