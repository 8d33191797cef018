"""Sessions that can be resumed: whose, how long, and what they prove. Real OpenSSL at both ends.

Client and server are two pyOpenSSL connections over memory; what processes share is a real file.
"""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from OpenSSL import SSL

from worker import shared_file
from worker.status.events import Event, Noted, Warned
from worker.tls import session_der, session_file
from worker.tls.policy import TlsFacts, Trust
from worker.tls.session_der import decode_session, encode_session
from worker.tls.session_file import PURGED, SessionFile
from worker.tls.sessions import SessionStore

FACTS = TlsFacts(
    trust=Trust.UNTRUSTED,
    protocol="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    bits=256,
    why="self-signed certificate",
    subject="mx.ex\u00e4mple",
)
VERIFIED = TlsFacts(
    trust=Trust.VERIFIED, protocol="TLSv1.3", cipher="c", bits=256, matched="mx.example"
)
VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]
CA = trustme.CA()
CERTIFICATE = CA.issue_cert("mx.example")


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A server and the processes of one host that talk to it."""

    path: Path
    version: int = SSL.TLS1_3_VERSION
    clock: Clock = field(default_factory=Clock)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = SSL.Context(SSL.TLS_SERVER_METHOD)
        CERTIFICATE.private_key_and_cert_chain_pem.write_to_path(str(self.path / "server.pem"))
        self.server.use_certificate_chain_file(str(self.path / "server.pem"))
        self.server.use_privatekey_file(str(self.path / "server.pem"))
        self.server.set_session_id(b"server")

    @property
    def file(self) -> Path:
        return self.path / "smtp_scache.sqlite"

    def store(self, timeout: float = 3_600.0, limit: int = 1_000) -> SessionStore:
        """One that is alone."""
        return SessionStore(timeout, clock=self.clock, wall=self.clock, limit=limit)

    def process(self, timeout: float = 3_600.0) -> SessionStore:
        """One that shares."""
        file = SessionFile(self.file, timeout, self.events.append, self.clock)
        return SessionStore(timeout, file, clock=self.clock, wall=self.clock)

    def context(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(self.version)
        context.set_max_proto_version(self.version)
        return context

    def connect(
        self, context: SSL.Context, store: SessionStore | None = None, key: str = "key"
    ) -> tuple[SSL.Session, bool]:
        """The session that a handshake ended with, and whether that resumed one of the store."""
        client, server = SSL.Connection(context), SSL.Connection(self.server)
        client.set_connect_state()
        server.set_accept_state()
        if store is not None and (found := store.find(key)) is not None:
            assert found.offer(client)
        done = False
        while not done:
            done = True
            for side in (client, server):
                try:
                    side.do_handshake()
                except SSL.WantReadError:
                    done = False
                exchange(client, server)
        server.send(b"220 hello\r\n")  # the tickets of TLS 1.3 come before it
        exchange(client, server)
        assert client.recv(100) == b"220 hello\r\n"
        session = client.get_session()
        assert session is not None
        resumed = bool(session_der._lib.SSL_session_reused(client._ssl))
        return session, resumed


def ignore(_: Event) -> None:
    """Nothing is to be told, or it does not matter."""


def exchange(*sides: SSL.Connection) -> None:
    for source, target in (sides, sides[::-1]):
        with suppress(SSL.WantReadError):
            target.bio_write(source.bio_read(100_000))


@pytest.fixture(params=VERSIONS, ids=["1.2", "1.3"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    tmp_path.chmod(0o700)
    return World(tmp_path, request.param)


@pytest.fixture
def host(tmp_path: Path) -> World:
    """A world where the version does not matter."""
    tmp_path.chmod(0o700)
    return World(tmp_path)


# --- in one process -------------------------------------------------------------------------------


def test_s121_a_session_is_resumed_and_its_verdict_is_the_stored_one(world: World) -> None:
    store, context = world.store(), world.context()
    session, resumed = world.connect(context, store)
    assert not resumed
    store.save("key", session, FACTS)
    for _ in range(2):  # finding it does not take it away
        _, resumed = world.connect(context, store)
        assert resumed
        found = store.find("key")
        assert found is not None
        assert found.facts == FACTS


def test_s121_another_key_has_another_session(world: World) -> None:
    store, context = world.store(), world.context()
    session, _ = world.connect(context)
    store.save("level=may", session, FACTS)
    assert store.find("level=verify") is None
    store.forget("level=may")
    assert store.find("level=may") is None


def test_s122_a_session_ends_with_its_time(host: World) -> None:
    store = host.store(timeout=3_600.0)
    session, _ = host.connect(host.context())
    store.save("key", session, FACTS)
    host.clock.now += 3_599.0
    assert store.find("key") is not None
    host.clock.now += 1.0
    assert store.find("key") is None


def test_resuming_does_not_make_a_verdict_last_longer(host: World) -> None:
    store, context = host.store(timeout=3_600.0), host.context()
    session, _ = host.connect(context)
    store.save("key", session, FACTS)
    resumed_facts = TlsFacts(trust=FACTS.trust, protocol="p", cipher="c", bits=1, resumed=True)
    host.clock.now += 1_800.0
    again, _ = host.connect(context, store)
    store.save("key", again, resumed_facts)
    found = store.find("key")
    assert found is not None
    assert not found.facts.resumed
    host.clock.now += 1_800.0
    assert store.find("key") is None
    # Nor does a connection that outlived what it was resumed from.
    store.save("key", again, resumed_facts)
    assert store.find("key") is None
    store.save("key", session, FACTS)
    host.clock.now += 3_600.0
    store.save("key", again, resumed_facts)
    assert store.find("key") is None
    # A handshake with a certificate begins a new time.
    store.save("key", session, FACTS)
    assert store.find("key") is not None


def test_what_was_not_used_longest_goes_first(host: World) -> None:
    store = host.store(limit=2)
    session, _ = host.connect(host.context())
    store.save("a", session, FACTS)
    store.save("b", session, FACTS)
    assert store.find("a") is not None
    store.save("c", session, FACTS)
    assert store.find("b") is None
    assert store.find("a") is not None
    assert store.find("c") is not None


def test_without_the_binding_a_session_of_a_context_that_is_gone_is_not_offered(
    host: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_der, "_NEEDED", ("no_such_function",))
    store = host.store()
    session, _ = host.connect(host.context())
    store.save("key", session, FACTS)
    found = store.find("key")
    assert found is not None
    assert not found.offer(SSL.Connection(host.context()))


def test_secrets_do_not_show(host: World) -> None:
    first, second = host.process(), host.process()
    session, _ = host.connect(host.context())
    first.save("key", session, FACTS)
    der = encode_session(session)
    assert der is not None
    found = second.find("key")
    assert "_session" not in repr(found)
    row = SessionFile(host.file, 3_600.0, host.events.append, host.clock)
    assert "der" not in repr(row.find("key"))
    for each in (first, second, row):
        each.close()


@pytest.mark.parametrize(
    ("configured", "seconds"), [(1.0, 120.0), (3_600.0, 3_600.0), (1e9, 8_640_000.0)]
)
def test_the_time_limit_is_bounded_as_in_postfix(configured: float, seconds: float) -> None:
    store = SessionStore.opened(configured, "", ignore)
    assert store is not None
    assert store._timeout == seconds


@pytest.mark.parametrize("configured", [0.0, -1.0])
def test_no_time_is_no_store(configured: float, tmp_path: Path) -> None:
    assert SessionStore.opened(configured, f"btree:{tmp_path}/x", ignore) is None
    assert not list(tmp_path.iterdir())


# --- between processes ----------------------------------------------------------------------------


def test_a_session_of_another_process_is_resumed(world: World) -> None:
    first, second = world.process(), world.process()
    session, _ = world.connect(world.context())
    first.save("key", session, FACTS)
    _, resumed = world.connect(world.context(), second)
    assert resumed
    found = second.find("key")
    assert found is not None
    assert found.facts == FACTS
    first.close()
    second.close()
    assert world.events == []


def test_what_another_process_resumed_is_as_old_as_the_first_handshake(host: World) -> None:
    first, second, third = host.process(), host.process(), host.process()
    session, _ = host.connect(host.context())
    first.save("key", session, FACTS)
    host.clock.now += 3_000.0
    context = host.context()
    again, resumed = host.connect(context, second)
    assert resumed
    second.save(
        "key", again, TlsFacts(trust=FACTS.trust, protocol="p", cipher="c", bits=1, resumed=True)
    )
    assert third.find("key") is not None
    host.clock.now += 600.0
    for store in (first, second, third):
        assert store.find("key") is None
    for store in (first, second, third):
        store.close()


def test_what_one_forgets_is_not_found_by_others(host: World) -> None:
    first, second = host.process(), host.process()
    session, _ = host.connect(host.context())
    first.save("key", session, FACTS)
    first.forget("key")
    assert second.find("key") is None
    first.close()
    second.close()


def test_a_clock_that_was_set_back_makes_a_session_unknown(host: World) -> None:
    first, second = host.process(), host.process()
    session, _ = host.connect(host.context())
    first.save("key", session, FACTS)
    host.clock.now -= 10.0
    assert second.find("key") is None
    first.close()
    second.close()


@pytest.mark.parametrize("column", ["der", "facts", "proved", "name"])
def test_a_row_that_was_changed_is_not_believed(host: World, column: str) -> None:
    first, second = host.process(), host.process()
    session, _ = host.connect(host.context())
    first.save("key", session, FACTS)
    first.save("verified", session, VERIFIED)
    database = sqlite3.connect(host.file, isolation_level=None)
    # Each of them with what belongs to another row: the worst that could be believed.
    if column == "name":
        name = session_file._name("key")
        database.execute("DELETE FROM session WHERE name = ?", (name,))
        database.execute("UPDATE session SET name = ?", (name,))
    elif column == "facts":
        text = session_file._facts_text(VERIFIED)
        database.execute("UPDATE session SET facts = ?", (text,))
    elif column == "proved":
        database.execute("UPDATE session SET proved = proved + 1e-3")
        host.clock.now += 1.0
    else:
        database.execute("UPDATE session SET der = x'3000'")
    database.close()
    assert second.find("key") is None
    first.close()
    second.close()
    assert host.events == []


def test_a_session_that_openssl_does_not_know_is_not_offered(host: World) -> None:
    file = SessionFile(host.file, 3_600.0, host.events.append, host.clock)
    file.save("key", host.clock(), b"\x30\x03\x02\x01\x07", FACTS)
    file.close()
    store = host.process()
    found = store.find("key")
    assert found is not None
    assert not found.offer(SSL.Connection(host.context()))
    store.close()


def test_octets_that_are_no_session_are_none(host: World) -> None:
    session, _ = host.connect(host.context())
    der = encode_session(session)
    assert der is not None
    context = host.context()
    assert decode_session(der, context) is not None
    for bad in (b"", der[:-1], der[1:], b"\xff" * 200):
        assert decode_session(bad, context) is None
        assert session_der._lib.ERR_peek_error() == 0  # or the next call would fail for it


def test_old_rows_go_and_the_number_is_bounded(
    host: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "ROWS", 10)
    monkeypatch.setattr(session_file, "PURGE_EVERY", 5)
    file = SessionFile(host.file, 100.0, host.events.append, host.clock)
    for number in range(30):
        file.save(f"key {number}", host.clock(), b"der", FACTS)
        host.clock.now += 1.0
    kept = [n for n in range(30) if file.find(f"key {n}") is not None]
    assert kept == list(range(20, 30))
    host.clock.now += 75.0  # more than 100 since the first five of them
    for number in range(5):
        file.save(f"new {number}", host.clock(), b"der", FACTS)
    kept = [n for n in range(30) if file.find(f"key {n}") is not None]
    assert kept == list(range(25, 30))
    file.close()


def test_never_many_rows_go_at_once(host: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its time, and the loop stands still meanwhile."""
    file = SessionFile(host.file, 100.0, host.events.append, host.clock)
    monkeypatch.setattr(session_file, "PURGE_EVERY", 1_000)
    for number in range(200):
        file.save(f"key {number}", host.clock(), b"der", FACTS)
    monkeypatch.setattr(session_file, "PURGE_EVERY", 1)
    host.clock.now += 200.0
    left = []
    for number in range(4):
        file.save(f"new {number}", host.clock(), b"der", FACTS)
        left.append(sum(file.find(f"key {n}") is not None for n in range(200)))
    assert left == [200 - PURGED, 200 - 2 * PURGED, 200 - 3 * PURGED, 0]
    assert file.find("new 0") is not None
    file.close()


# --- the file -------------------------------------------------------------------------------------


def test_only_its_owner_can_read_the_file_and_what_lies_beside_it(host: World) -> None:
    before = os.umask(0)
    try:
        host.file.touch(0o666)
        store = host.process()
        session, _ = host.connect(host.context())
        store.save("key", session, FACTS)
        found = list(host.path.glob("smtp_scache.sqlite*"))
        assert len(found) == 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
        store.close()
    finally:
        os.umask(before)


def warning(events: list[Event]) -> str:
    (told,) = events
    assert isinstance(told, Warned)
    return told.text


def opened(host: World) -> SessionStore:
    name = str(host.file).removesuffix(".sqlite")
    times = {"clock": host.clock, "wall": host.clock}
    store = SessionStore.opened(3_600.0, f"btree:{name}", host.events.append, **times)
    assert store is not None
    return store


def link(host: World) -> None:
    (host.path / "target").touch()
    host.file.symlink_to(host.path / "target")


def second_name(host: World) -> None:
    (host.path / "target").touch()
    host.file.hardlink_to(host.path / "target")


def open_folder(host: World) -> None:
    host.path.chmod(0o777)


def no_folder(host: World) -> None:
    host.path.rename(host.path.with_name("elsewhere"))


def pipe(host: World) -> None:
    os.mkfifo(host.file)


def folder(host: World) -> None:
    host.file.mkdir()


@pytest.mark.parametrize("trap", [link, second_name, open_folder, no_folder, pipe, folder])
def test_a_file_that_is_not_ours_alone_is_not_used_and_that_is_told(
    host: World, trap: Callable[[World], None]
) -> None:
    trap(host)
    store = opened(host)
    assert store._file is None
    assert str(host.file) in warning(host.events)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_a_file_of_somebody_else_is_not_used(host: World) -> None:
    host.file.touch()
    os.chown(host.file, 65_534, 65_534)
    assert opened(host)._file is None
    assert "another user" in warning(host.events)


@pytest.mark.parametrize("name", ["btree:", "btree", "btree:relative/name", "proxy:btree:/x"])
def test_a_name_that_is_none_is_told(name: str) -> None:
    events: list[Event] = []
    store = SessionStore.opened(3_600.0, name, events.append)
    assert store is not None
    assert store._file is None
    assert f"smtp_tls_session_cache_database = {name}" in warning(events)


def test_a_file_that_is_no_database_is_made_anew(host: World) -> None:
    host.file.write_bytes(b"not a database at all" * 100)
    host.file.chmod(0o600)
    first = opened(host)
    session, _ = host.connect(host.context())
    first.save("key", session, FACTS)
    second = host.process()
    assert second.find("key") is not None
    first.close()
    second.close()
    assert host.events == []


def test_a_file_whose_damage_is_no_text_is_made_anew(host: World) -> None:
    opened(host).close()
    octets = host.file.read_bytes()
    # SQLite's error quotes the name.
    damaged = octets.replace(b"sessionsession", b"\xffessionsession")
    damaged = damaged.replace(b"CREATE TABLE session", b"CREATX TABLE session")
    assert damaged != octets
    host.file.write_bytes(damaged)
    store = opened(host)
    session, _ = host.connect(host.context())
    store.save("key", session, FACTS)
    assert host.process().find("key") is not None
    assert host.events == []


def test_a_file_of_another_format_begins_anew(host: World) -> None:
    database = sqlite3.connect(host.file)
    database.execute("CREATE TABLE session (something)")
    database.execute("PRAGMA user_version = 99")
    database.close()
    store = host.process()
    session, _ = host.connect(host.context())
    store.save("key", session, FACTS)
    second = host.process()
    assert second.find("key") is not None
    store.close()
    second.close()
    assert host.events == []


def test_a_busy_file_is_a_miss_and_nothing_to_tell(host: World) -> None:
    first, second = host.process(), host.process()
    session, _ = host.connect(host.context())
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    first.save("key", session, FACTS)
    assert first.find("key") is not None  # in memory
    other.execute("COMMIT")
    other.close()
    assert second.find("key") is None
    first.save("key", session, FACTS)
    assert second.find("key") is not None
    first.close()
    second.close()
    assert host.events == []


def test_who_opens_a_busy_file_waits_for_nobody(
    host: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reload does, in a running loop."""
    host.process().close()
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(shared_file, "OPENING", 0.0)  # and whoever would wait fails
    store = host.process()
    other.execute("COMMIT")
    other.close()
    session, _ = host.connect(host.context())
    store.save("key", session, FACTS)
    again = host.process()
    assert again.find("key") is not None
    again.close()
    store.close()
    assert host.events == []


def test_a_file_that_breaks_is_told_once_and_memory_goes_on(host: World) -> None:
    store = host.process()
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("DROP TABLE session")
    other.close()
    session, _ = host.connect(host.context())
    for key in ("a", "b"):
        store.save(key, session, FACTS)
        assert store.find(key) is not None
    assert store.find("c") is None
    assert "no longer shared" in warning(host.events)
    store.close()


def test_without_the_binding_each_process_remembers_its_own(
    host: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_der, "_NEEDED", ("no_such_function",))
    store = opened(host)
    session, _ = host.connect(host.context())
    store.save("key", session, FACTS)
    assert store.find("key") is not None
    (told,) = host.events
    assert isinstance(told, Noted)
    assert not host.file.exists()


def test_processes_that_start_together_all_get_the_file(host: World) -> None:
    script = (
        "import sys; from pathlib import Path; from worker.tls.session_file import SessionFile\n"
        "from worker.tls.policy import TlsFacts, Trust\n"
        "sys.stdin.readline()\n"
        "file = SessionFile(Path(sys.argv[1]), 3600.0, print)\n"
        "facts = TlsFacts(trust=Trust.TRUSTED, protocol='p', cipher='c', bits=1)\n"
        "file.save(sys.argv[2], __import__('time').time(), b'der', facts)\n"
        "print('done', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(host.file), f"key {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert said == ["done\n"] * 4


def test_who_opens_the_file_twice_keeps_what_sqlite_locks(host: World) -> None:
    """To close a descriptor of a file gives up all locks that its process has on it."""
    first, second = host.process(), host.process()
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute(sys.argv[2])"
    # Nobody may do this while others use the file.
    arguments = [str(host.file), "PRAGMA journal_mode = DELETE"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert "database is locked" in done.stderr
    first.close()
    second.close()
