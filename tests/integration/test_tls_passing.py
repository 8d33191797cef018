"""TLS connections that serve several processes: one makes and holds them, others use them.

Real workers (`postrio worker`), a real cache daemon, real connections; the server is a Postfix, or
a scripted one in the test, over TLS, that fails where it is told to.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import pytest
import trio
from trio.testing import trio_test

from bench.dns import serve_dns
from bench.dns_zone import Zone
from bench.postfix_instance import PostfixInstance
from protocol.outcome import Action, RecipientOutcome
from tests.integration import pki
from tests.integration.pki import Pki
from tests.integration.tls_fleet import Fleet, Local, Worker, big_content, until
from tests.integration.tls_peers import GnutlsServer, OpensslServer, listening
from tests.worker.peer import Answer, Fault, Once, Peer, Phase, Script
from tests.worker.tls_server import ServerTls, server_context
from worker.network.socket_stream import QuickStream
from worker.queue.slot import WorkerLost
from worker.status.events import Event
from worker.tls.contexts import Contexts
from worker.tls.handshake import TlsEngine
from worker.tls.holder import Holder
from worker.tls.policy import Level, TlsPolicy, Version
from worker.tls.stream import TlsStream

SENT, DEFERRED = Action.SENT, Action.DEFERRED
LIMIT: Final = 60.0  # seconds; a test that needs them has failed
ESTABLISHED: Final = "TLS connection established from"
NOTHING: Final = ()  # an answer: none


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """All certificates of this module."""
    return Pki(tmp_path_factory.mktemp("pki"))


def tls_peer(
    certificates: Pki,
    script: Mapping[Phase, Script] | None = None,
    *,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Peer:
    """A scripted server with a good certificate."""
    context = server_context(certificates.leaf("good"), newest=newest)
    return Peer(script, tls=ServerTls(context))


class Server(Protocol):
    """Something that serves connections."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One of them."""


@asynccontextmanager
async def scene(
    directory: Path, peer: Server, workers: int = 2, main_cf: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Fleet, list[Worker], int]]:
    """A fleet, so many workers of it, and the port of the server."""
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery, Fleet(directory, main_cf) as fleet:
            (listener,) = await nursery.start(
                partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1")
            )
            port = listener.socket.getsockname()[1]
            yield fleet, [await fleet.worker() for _ in range(workers)], port
            nursery.cancel_scope.cancel()


def brief(outcome: RecipientOutcome) -> tuple[Action, int]:
    """What became of it, and how often its session had been used."""
    return outcome.action, outcome.conn_use


# --- 1 and 2: one session, several processes ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Suite:
    """What the two sides shall agree on."""

    says: str  # in the server's log
    main_cf: Mapping[str, str]


def old(says: str, cipher: str) -> Suite:
    """One of TLS 1.2."""
    lists = dict.fromkeys(("tls_medium_cipherlist", "tls_high_cipherlist"), cipher)
    return Suite(f"TLSv1.2 with cipher {says}", {"smtp_tls_protocols": "TLSv1.2", **lists})


SUITES: Final = {
    "1.3": Suite("TLSv1.3 with cipher TLS_AES_256_GCM_SHA384", {}),
    "1.2": old("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    "cbc": old("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-SHA256"),
    "chacha20": old("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-CHACHA20-POLY1305"),
}


@pytest.fixture(scope="module")
def postfix(certificates: Pki) -> Iterator[PostfixInstance]:
    """A Postfix that takes mail over TLS only. It takes seconds to start: all tests share it."""
    main_cf = {
        "smtpd_tls_security_level": "encrypt",
        "smtpd_tls_chain_files": str(certificates.leaf("good").joined),
        "smtpd_tls_loglevel": "1",
    }
    with PostfixInstance(main_cf=main_cf) as instance:
        yield instance


@pytest.mark.peer("root", "postfix", "master", "smtpd")
@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
@trio_test
async def test_one_tls_session_serves_three_processes(
    suite: Suite, postfix: PostfixInstance, tmp_path: Path
) -> None:
    before, received = len(postfix.log()), len(postfix.received())
    with trio.fail_after(LIMIT):
        async with Fleet(tmp_path, suite.main_cf) as fleet:
            workers = [await fleet.worker() for _ in range(3)]
            found = []
            for worker in workers:
                outcome = await worker.deliver(postfix.port)
                found.append(brief(outcome))
                await fleet.kept(1)
            assert found == [(SENT, 1), (SENT, 2), (SENT, 3)]
            # And back to the one that made it, and has held it all the time.
            assert brief(await workers[0].deliver(postfix.port)) == (SENT, 4)
            await fleet.kept(1)
        await trio.to_thread.run_sync(postfix.wait_until_received, received + 4, LIMIT)
        await until(lambda: "disconnect from" in postfix.log()[before:])
    said = postfix.log()[before:]
    assert said.count(ESTABLISHED) == 1, said
    assert suite.says in said
    assert "starttls=1" in said
    assert "data=4" in said


@asynccontextmanager
async def lent(port: int, version: Version) -> AsyncIterator[QuickStream]:
    """The user's end of a connection to a server that knows no SMTP."""
    events: list[Event] = []
    holder = Holder(events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(holder.run)
        stream = QuickStream(socket.create_connection(("127.0.0.1", port)))
        tls: TlsStream = await TlsEngine(Contexts(), None, events.append).handshake(
            stream,
            TlsPolicy(level=Level.MAY, versions=frozenset({version})),
            host="localhost",
            address="127.0.0.1",
            port=port,
            nexthop="localhost",
        )
        user = QuickStream(holder.lend(tls, "localhost"))
        yield user
        await user.aclose()
        holder.retire()
    assert events == []


async def read_until(stream: QuickStream, end: bytes) -> bytes:
    """All that comes, up to that."""
    received = b""
    while end not in received:
        data = await stream.receive_some()
        assert data, received
        received += data
    return received


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("word", ["k", "K"])  # new keys of the server; and of both
@trio_test
async def test_new_keys_in_the_middle_are_the_holder_s_business(
    word: str, certificates: Pki
) -> None:
    with OpensslServer(certificates.leaf("good"), "-tls1_3") as server, trio.fail_after(LIMIT):
        async with lent(server.port, Version.TLSV1_3) as user:
            for count in (1, 2, 3):
                server.say(word)
                await until(lambda count=count: server.said.count("write server key") == count)  # type: ignore[misc]
                await user.send_all(f"to server {count}\r\n".encode())
                await until(lambda count=count: f"to server {count}\r\n" in server.said)  # type: ignore[misc]
                server.say(f"to client {count}")
                await read_until(user, f"to client {count}\r\n".encode())
            both = server.said.count("read client key update")
            assert both == (3 if word == "K" else 0)


@pytest.mark.peer("gnutls-serv")
@pytest.mark.parametrize("version", [Version.TLSV1_2, Version.TLSV1_3])
@trio_test
async def test_a_connection_with_gnutls_serves_others(version: Version, certificates: Pki) -> None:
    with GnutlsServer(certificates.leaf("good")) as server, trio.fail_after(LIMIT):
        async with lent(server.port, version) as user:
            for size in (1, 1_000, 10_000):
                octets = b"x" * size + b"\n"
                await user.send_all(octets)
                assert await read_until(user, b"\n") == octets


# --- 3: who dies ----------------------------------------------------------------------------------


@trio_test
async def test_a_holder_that_dies_while_its_connection_is_cached_costs_a_connection(
    tmp_path: Path, certificates: Pki
) -> None:
    peer = tls_peer(certificates)
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        assert brief(await maker.deliver(port)) == (SENT, 1)
        await fleet.kept(1)
        await maker.kill()
        await fleet.kept(0)
        assert brief(await user.deliver(port)) == (SENT, 1)
    assert len(peer.accepted) == 2


# Where the user is when the other one dies, and what becomes of its message: what any lost
# connection makes of it. With the number of messages that the server takes for it.
STEPS: Final[Mapping[Phase, tuple[str, int]]] = MappingProxyType(
    {
        Phase.MAIL: ("2.0.0 sent (250 2.0.0 queued)", 1),  # on a new connection
        Phase.DATA: ("2.0.0 sent (250 2.0.0 queued)", 1),
        Phase.DOT: (
            "4.4.2 deferred (lost connection with 127.0.0.1[127.0.0.1] while sending end of data"
            " -- message may be sent more than once)",
            0,
        ),
    }
)
REACHED: Final[Mapping[Phase, Callable[[Peer], bool]]] = MappingProxyType(
    {
        Phase.MAIL: lambda peer: peer.verbs.count("MAIL") == 2,
        Phase.DATA: lambda peer: peer.verbs.count("DATA") == 2,
        Phase.DOT: lambda peer: sum(link.dots for link in peer.links) == 2,
    }
)
OK: Final[Mapping[Phase, Answer]] = MappingProxyType(
    {
        Phase.MAIL: "250 2.1.0 ok",
        Phase.DATA: "354 go",
        Phase.DOT: "250 2.0.0 queued",
    }
)


def silent_the_second_time(certificates: Pki, phase: Phase) -> Peer:
    """A server that does not answer this in the second transaction."""
    return tls_peer(certificates, {phase: [OK[phase], Fault.SILENCE, OK[phase]]})


@pytest.mark.parametrize("phase", STEPS)
@trio_test
async def test_a_holder_that_dies_is_a_lost_connection_for_the_user(
    phase: Phase, tmp_path: Path, certificates: Pki
) -> None:
    peer = silent_the_second_time(certificates, phase)
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        outcomes: list[RecipientOutcome] = []

        async def use() -> None:
            outcomes.append(await user.deliver(port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await peer.until(lambda: REACHED[phase](peer))
            await maker.kill()
        status, taken = STEPS[phase]
        (outcome,) = outcomes
        assert f"{outcome.dsn} {outcome.action.value} ({outcome.reason})" == status
        assert len(peer.accepted) == 1 + taken


@pytest.mark.parametrize("phase", STEPS)
@trio_test
async def test_a_user_that_dies_costs_its_message_and_the_connection_and_nothing_else(
    phase: Phase, tmp_path: Path, certificates: Pki
) -> None:
    peer = silent_the_second_time(certificates, phase)
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.serving()
        await maker.deliver(port)
        await fleet.kept(1)
        await maker.holds(1)

        async def use() -> None:
            with pytest.raises(WorkerLost):
                await user.deliver(port)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await peer.until(lambda: REACHED[phase](peer))
            await user.kill()
        await until(lambda: peer.links[0].ended)
        await maker.holds(0)
        assert len(peer.accepted) == 1
        assert brief(await maker.deliver(port)) == (SENT, 1)
        await fleet.kept(1)
        await maker.holds(1)


@trio_test
async def test_a_daemon_that_dies_costs_the_connections_it_holds(
    tmp_path: Path, certificates: Pki
) -> None:
    peer = tls_peer(certificates)
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.serving()
        await maker.deliver(port)
        await fleet.kept(1)
        await maker.holds(1)
        assert fleet.cache.process is not None
        fleet.cache.process.kill()
        await until(lambda: peer.links[0].ended)
        await maker.holds(0)
        assert brief(await user.deliver(port)) == (SENT, 1)
        assert brief(await maker.deliver(port)) == (SENT, 1)


# --- 4: what the server does ----------------------------------------------------------------------


@pytest.mark.parametrize("farewell", [False, True])
@trio_test
async def test_a_connection_that_the_server_closes_while_it_is_cached_is_nobody_s_failure(
    farewell: bool, tmp_path: Path, certificates: Pki
) -> None:
    peer = tls_peer(certificates)
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        if farewell:
            peer.speak_up()  # 421, and the end
        else:
            peer.hang_up()  # without close_notify
        await fleet.kept(0)
        assert brief(await user.deliver(port)) == (SENT, 1)
        assert len(peer.links) == 2


LOST: Final = "4.4.2 deferred (lost connection with 127.0.0.1[127.0.0.1] while "
# With the octets of the message that it happens to: more than fits between the two, or few.
CUTS: Final[Mapping[str, tuple[Phase, list[Answer], int, str]]] = MappingProxyType(
    {
        "in a reply": (
            Phase.DOT,
            [OK[Phase.DOT], ("250-2.0.0 que", Fault.CUT)],
            1_000,
            LOST + "sending end of data -- message may be sent more than once)",
        ),
        "in DATA": (
            Phase.CONTENT,
            [Fault.CUT],  # of the first message that is not there at once
            20_000_000,
            LOST + "sending message body)",
        ),
    }
)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@trio_test
async def test_a_connection_that_is_cut_is_lost_for_the_user_as_any_other(
    cut: tuple[Phase, list[Answer], int, str], tmp_path: Path, certificates: Pki
) -> None:
    phase, answers, size, status = cut
    peer = tls_peer(certificates, {phase: answers})
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        outcome = await user.deliver(port, big_content(tmp_path / "big", size))
        assert f"{outcome.dsn} {outcome.action.value} ({outcome.reason})" == status
        assert len(peer.accepted) == 1
        # The holder says it, too, with the connection's number.
        await until(lambda: "lent connection " in maker.log)


# --- 5: whom it serves ----------------------------------------------------------------------------


MAKER: Final[Mapping[str, str]] = MappingProxyType({"smtp_tls_security_level": "may"})
OTHERS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "encrypt": {"smtp_tls_security_level": "encrypt"},
        "fingerprint": {"smtp_tls_security_level": "fingerprint"},
        "verify": {"smtp_tls_security_level": "verify"},
        "secure": {"smtp_tls_security_level": "secure"},
        "protocols": {"smtp_tls_protocols": ">=TLSv1.3"},
        "ciphers": {"smtp_tls_ciphers": "high"},
        "exclude": {"smtp_tls_exclude_ciphers": "aNULL"},
        "CA": {"smtp_tls_CAfile": ""},
        "servername": {"smtp_tls_servername": "mx.good.example"},
        "depth": {"smtp_tls_scert_verifydepth": "3"},
        "HELO": {"smtp_helo_name": "other.example"},
        "no sharing": {"smtp_tls_connection_reuse": "no"},
    }
)


@trio_test
async def test_a_connection_serves_only_whoever_has_the_same_policy(
    tmp_path: Path, certificates: Pki
) -> None:
    common = {
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": pki.HOST,
        "smtp_tls_secure_cert_match": pki.HOST,
        "smtp_tls_fingerprint_digest": "sha256",
        "smtp_tls_fingerprint_cert_match": certificates.leaf("good").digest(),
    }
    found = {}
    with_peer = scene(tmp_path, tls_peer(certificates), workers=0)
    async with with_peer as (fleet, _, port), trio.open_nursery() as nursery:

        def local(**change: str) -> Local:
            return Local(fleet.socket, {**common, **MAKER, **change})

        async with local() as maker, local() as same:
            await maker.hold(nursery)
            await same.hold(nursery)
            for name, change in OTHERS.items():
                uses = (await maker.deliver(port)).conn_use
                async with local(**change) as other:
                    await other.hold(nursery)
                    found[name] = brief(await other.deliver(port))
                assert (await same.deliver(port)).conn_use == uses + 1, name
        nursery.cancel_scope.cancel()
    assert found == dict.fromkeys(OTHERS, (SENT, 1))


# As the policy map may say, while main.cf, all of which is part of every label, is equal.
POLICIES: Final = (
    "encrypt",
    "verify match=mx.good.example",
    "may protocols=TLSv1.3",
    "may ciphers=high",
    "may exclude=aNULL",
    "may servername=mx.good.example",
    "may connection_reuse=no",
)


@trio_test
async def test_a_connection_serves_nobody_whose_policy_map_says_something_else(
    tmp_path: Path, certificates: Pki
) -> None:
    names = {f"other{number}.example": policy for number, policy in enumerate(POLICIES)}
    names |= {"maker.example": "may", "same.example": "may"}
    zone = Zone.from_text("".join(f"{name} A 127.0.0.1\n" for name in names))
    table = trio.Path(tmp_path / "policy")
    main_cf = {
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_policy_maps": f"texthash:{table}",
    }
    found = {}
    with_peer = scene(tmp_path, tls_peer(certificates), workers=0)
    async with with_peer as (fleet, _, port), trio.open_nursery() as nursery:
        keys = (f"[{name}]:{port} {policy}\n" for name, policy in names.items())
        await table.write_text("".join(keys))
        dns = await nursery.start(partial(serve_dns, zone))
        async with Local(fleet.socket, main_cf, f"127.0.0.1:{dns}") as local:
            await local.hold(nursery)
            for name in names:
                if name.startswith("other"):
                    uses = (await local.deliver(port, "maker.example")).conn_use
                    found[names[name]] = brief(await local.deliver(port, name))
                    again = await local.deliver(port, "same.example")
                    assert again.conn_use == uses + 1, name
        nursery.cancel_scope.cancel()
    assert found == dict.fromkeys(POLICIES, (SENT, 1))


# --- 6: sessions that are resumed -----------------------------------------------------------------


VERSIONS: Final = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@trio_test
async def test_a_session_is_resumed_by_other_processes_at_the_same_level_alone(
    version: ssl.TLSVersion, tmp_path: Path, certificates: Pki
) -> None:
    peer = tls_peer(certificates, newest=version)
    assert peer.tls is not None
    common = {
        "smtp_tls_CAfile": str(certificates.ca_file()),
        "smtp_tls_verify_cert_match": pki.HOST,
        "smtp_tls_session_cache_database": f"btree:{tmp_path}/smtp_scache",
        "smtp_connection_cache_on_demand": "no",
    }
    established = []
    with trio.fail_after(LIMIT):
        async with listening({"peer": peer}) as ports:
            for level in ("may", "may", "verify", "verify", "may"):
                # Each is a process of its own as far as sessions go: they share a file alone.
                local = Local(None, {**common, "smtp_tls_security_level": level})
                assert (await local.deliver(ports["peer"])).action is SENT
                (line,) = (line for line in local.log if "TLS connection established" in line)
                established.append(line.partition(" ")[0])
    assert [seen.resumed for seen in peer.tls.seen] == [False, True, False, True, True]
    assert established == ["Trusted", "Trusted", "Verified", "Verified", "Trusted"]


# --- 7: cancelled ---------------------------------------------------------------------------------


@trio_test
async def test_a_delivery_that_is_cancelled_gives_no_connection_back(
    tmp_path: Path, certificates: Pki
) -> None:
    peer = silent_the_second_time(certificates, Phase.DOT)
    async with scene(tmp_path, peer, workers=1) as (fleet, (maker,), port):
        await maker.serving()
        await maker.deliver(port)
        await fleet.kept(1)
        await maker.holds(1)
        async with Local(fleet.socket, {}) as user, trio.open_nursery() as nursery:
            nursery.start_soon(user.deliver, port)
            await peer.until(lambda: REACHED[Phase.DOT](peer))
            nursery.cancel_scope.cancel()
        await until(lambda: peer.links[0].ended)
        await fleet.kept(0)
        await maker.holds(0)


# --- 8: retiring, and reloading -------------------------------------------------------------------


@trio_test
async def test_a_worker_that_retires_says_quit_where_nobody_else_does(
    tmp_path: Path, certificates: Pki
) -> None:
    peer = tls_peer(certificates)
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        maker.retire()
        assert await maker.ended() == 0
        await until(lambda: peer.links[0].ended)
        assert peer.links[0].verbs[-1] == "QUIT"
        await fleet.kept(0)
        assert brief(await user.deliver(port)) == (SENT, 1)


@trio_test
async def test_a_worker_that_retires_stays_for_who_uses_its_connection(
    tmp_path: Path, certificates: Pki
) -> None:
    go_on = trio.Event()
    peer = tls_peer(certificates, {Phase.DOT: [OK[Phase.DOT], Once(go_on, OK[Phase.DOT])]})
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        outcomes: list[RecipientOutcome] = []

        async def use() -> None:
            outcomes.append(await user.deliver(port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await peer.until(lambda: REACHED[Phase.DOT](peer))
            maker.retire()
            await until(lambda: not maker.takes_slots())
            go_on.set()
        assert [brief(outcome) for outcome in outcomes] == [(SENT, 2)]
        await fleet.kept(1)
        # The last one who has the end is the cache.
        assert fleet.cache.end(15) == 0
        assert await maker.ended() == 0
        await until(lambda: peer.links[0].ended)
        assert peer.links[0].verbs[-1] == "QUIT"


@trio_test
async def test_a_worker_that_retires_stays_no_longer_than_its_limit(
    tmp_path: Path, certificates: Pki
) -> None:
    peer = silent_the_second_time(certificates, Phase.DOT)
    impatient = {"postrio_shutdown_timeout": "1s"}
    async with scene(tmp_path, peer, main_cf=impatient) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        outcomes: list[RecipientOutcome] = []

        async def use() -> None:
            outcomes.append(await user.deliver(port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await peer.until(lambda: REACHED[Phase.DOT](peer))
            maker.retire()
            assert await maker.ended() == 0
        assert outcomes[0].action is DEFERRED


@trio_test
async def test_a_reload_takes_no_connection_from_who_uses_it(
    tmp_path: Path, certificates: Pki
) -> None:
    go_on = trio.Event()
    peer = tls_peer(certificates, {Phase.DOT: [OK[Phase.DOT], Once(go_on, OK[Phase.DOT])]})
    async with scene(tmp_path, peer) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        outcomes: list[RecipientOutcome] = []

        async def use() -> None:
            outcomes.append(await user.deliver(port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await peer.until(lambda: REACHED[Phase.DOT](peer))
            await maker.reload()
            go_on.set()
        assert [brief(outcome) for outcome in outcomes] == [(SENT, 2)]
        await fleet.kept(1)
        assert brief(await maker.deliver(port)) == (SENT, 3)


# --- 9: much, and slowly --------------------------------------------------------------------------


class Swallower:
    """A server that takes whatever comes, and counts it; a `Peer` would keep all of it."""

    def __init__(self, certificates: Pki) -> None:
        self._tls = ServerTls(server_context(certificates.leaf("good")))
        self.pause_at = 1_000_000  # octets of content; then it does not read
        self.paused = trio.Event()
        self.go_on = trio.Event()
        self.contents: list[int] = []  # octets of each, with its dot

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection."""
        await stream.send_all(b"220 swallower ESMTP\r\n")
        unread = b""
        while data := await stream.receive_some(65_536):
            *lines, unread = (unread + data).split(b"\r\n")
            for line in lines:
                reply = b"250 ok"
                if line == b"STARTTLS":
                    await stream.send_all(b"220 go ahead\r\n")
                    stream = await self._tls.accept(stream)
                    continue
                if line == b"DATA":
                    await stream.send_all(b"354 go\r\n")
                    self.contents.append(await self._content(stream))
                elif line.startswith(b"EHLO"):
                    reply = b"250-swallower\r\n250 STARTTLS"
                await stream.send_all(reply + b"\r\n")

    async def _content(self, stream: trio.abc.Stream) -> int:
        """Its size."""
        size, tail = 0, b""
        while tail != b"\r\n.\r\n":
            data = await stream.receive_some(65_536)
            size += len(data)
            tail = (tail + bytes(data[-5:]))[-5:]
            if size >= self.pause_at:
                self.paused.set()
                await self.go_on.wait()
        return size


@trio_test
async def test_a_large_message_to_a_server_that_stops_reading_fills_no_memory(
    tmp_path: Path, certificates: Pki
) -> None:
    size = 50_000_000
    server = Swallower(certificates)
    async with scene(tmp_path, server) as (fleet, (maker, user), port):
        await maker.deliver(port)
        await fleet.kept(1)
        await user.serving()  # what it needs for itself it has by then
        before = maker.peak(), user.peak()
        content = big_content(tmp_path / "big", size)
        outcomes: list[RecipientOutcome] = []

        async def use() -> None:
            outcomes.append(await user.deliver(port, content))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await server.paused.wait()
            for _ in range(100):  # looks, while the server does not read
                await fleet.kept(0)
            server.go_on.set()
        assert [brief(outcome) for outcome in outcomes] == [(SENT, 2)]
        assert server.contents[1] > size - 1_000
        # A message held back would show as its size.
        assert maker.peak() - before[0] < size / 3
        assert user.peak() - before[1] < size / 3
