"""The trace of TLS connections (S102): what it tells, what it never shows, and its file."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from trio.testing import memory_stream_pair, trio_test

from tests.integration.pki import Pki
from tests.worker.tls_pair import MAY, Server, connect, server_context
from worker.status.events import Event, Noted, Warned
from worker.tls import trace
from worker.tls.contexts import Contexts
from worker.tls.handshake import HandshakeError, TlsEngine
from worker.tls.policy import Version
from worker.tls.trace import Records, TraceFile

SECRET = b"AUTH PLAIN canary-secret\r\n"
PEER = "mx.good.example[127.0.0.1]:25"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@dataclass
class Host:
    """A place for the file, and what was said about it."""

    directory: Path
    events: list[Event] = field(default_factory=list)
    files: list[TraceFile] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.directory / "tls_trace"

    def open(self, level: int = 3, program: str = "smtp") -> TraceFile | None:
        """As a process does that starts."""
        file = TraceFile.opened(
            self.path, self.events.append, lambda: 1e9 + 0.25, program=program, whole=level > 3
        )
        if file is not None:
            self.files.append(file)
        return file

    def engine(self, level: int = 3) -> TlsEngine:
        """A client that traces."""
        return TlsEngine(Contexts(), None, self.events.append, trace=self.open(level))

    def lines(self) -> list[str]:
        """What the file tells, without times."""
        head = re.compile(rf"2001-09-09T01:46:40\.250Z {os.getpid()}\.(\d+) ")
        texts = self.path.read_text().splitlines()
        assert all(head.match(text) for text in texts)
        return [head.sub(r"\1 ", text) for text in texts]

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """One whose first connection is the first one."""
    monkeypatch.setattr(trace, "_numbers", count(1))
    found = Host(tmp_path)
    yield found
    for file in found.files:
        file.close()


def shape(lines: list[str]) -> list[str]:
    """The lines without the numbers of octets, which depend on certificates and versions."""
    return [re.sub(r"\d+ octets", "N octets", line) for line in lines]


async def conversation(host: Host, level: int, context: SSL.Context) -> None:
    """A handshake, and a secret that goes out behind it."""
    near, far = await connect(*memory_stream_pair(), Server(context), MAY, host.engine(level))
    await near.send_all(SECRET)
    assert await far.receive_some() == SECRET
    await far.send_all(b"235 ok\r\n")
    assert await near.receive_some() == b"235 ok\r\n"
    await near.aclose()


@trio_test
async def test_s102_level_3_names_the_messages_of_the_handshake(host: Host, pki: Pki) -> None:
    await conversation(host, 3, server_context(pki.leaf("good"), tls12=True))
    first, *lines, last = shape(host.lines())
    assert first == f"1 - smtp: handshake with {PEER}, level may, TLSV1_2 TLSV1_3"
    assert lines == [
        "1 > handshake: client_hello, N octets",
        "1 < handshake: server_hello, N octets",
        "1 < handshake: certificate, N octets",
        "1 < handshake: server_key_exchange, N octets",
        "1 < handshake: server_hello_done, N octets",
        "1 > handshake: client_key_exchange, N octets",
        "1 > change_cipher_spec",
        "1 > handshake (encrypted), N octets",
        "1 < handshake: new_session_ticket, N octets",
        "1 < change_cipher_spec",
        "1 < handshake (encrypted), N octets",
    ]
    assert re.fullmatch(r"1 - established: TLSv1.2, ECDHE-[A-Z0-9-]+, Untrusted", last)


@trio_test
async def test_s102_level_4_goes_on_with_the_sizes_of_all_records(host: Host, pki: Pki) -> None:
    await conversation(host, 4, server_context(pki.leaf("good")))
    lines = shape(host.lines())
    at = next(number for number, line in enumerate(lines) if "established" in line)
    assert lines[1:4] == [
        "1 > handshake: client_hello, N octets",
        "1 < handshake: server_hello, N octets",
        "1 < change_cipher_spec",
    ]
    after = host.lines()[at + 1 :]
    # 16 octets of a tag, and one that says what it is (RFC 8446 section 5.2).
    assert f"1 > encrypted, {len(SECRET) + 17} octets" in after
    assert f"1 < encrypted, {len(b'235 ok') + 2 + 17} octets" in after
    assert after[-1] == "1 > encrypted, 19 octets"  # close_notify


@pytest.mark.parametrize("level", [3, 4])
@pytest.mark.parametrize("tls12", [False, True])
@trio_test
async def test_no_contents_are_in_it(host: Host, pki: Pki, level: int, *, tls12: bool) -> None:
    context = server_context(pki.leaf("good"), tls12=tls12)
    master: list[bytes] = []
    context.set_keylog_callback(lambda _connection, line: master.append(line))
    await conversation(host, level, context)
    text = host.path.read_bytes()
    assert master
    for secret in (b"canary", b"AUTH", *(word for line in master for word in line.split()[1:])):
        assert secret not in text
        assert secret.hex().encode() not in text
    # Nothing but words that we know, numbers, and the peer.
    assert not re.search(rb"[0-9a-fA-F]{16}", text)


@trio_test
async def test_a_second_hello_is_told_from_what_is_encrypted(host: Host, pki: Pki) -> None:
    context = server_context(pki.leaf("good"))
    # None of the curves that a client sends a share for at once (RFC 8446 section 4.1.4).
    context.set_tmp_ecdh(ec.SECP521R1())
    await conversation(host, 3, context)
    lines = shape(host.lines())
    assert lines.count("1 > handshake: client_hello, N octets") == 2
    assert lines.count("1 < handshake: server_hello, N octets") == 2
    assert not [line for line in lines if "handshake (encrypted)" in line]


@trio_test
async def test_a_handshake_that_fails_says_why(host: Host, pki: Pki) -> None:
    engine = host.engine()
    server = Server(server_context(pki.leaf("good"), tls12=True))
    policy = replace(MAY, versions=frozenset({Version.TLSV1_3}), servername="mx.good.example")
    with pytest.raises(HandshakeError):
        await connect(*memory_stream_pair(), server, policy, engine)
    assert shape(host.lines()) == [
        f"1 - smtp: handshake with {PEER}, level may, TLSV1_3",
        "1 - server name mx.good.example",
        "1 > handshake: client_hello, N octets",
        "1 < alert: fatal, protocol_version",
        "1 - no TLS: alert from the peer: protocol version",
    ]
    # The next connection has the next number, and nobody's name can break the lines.
    with pytest.raises(HandshakeError):
        await engine.handshake(
            memory_stream_pair()[0],
            replace(MAY, servername="x\ny"),
            host="a\nb\x1b[m" + "x" * 1_000,
            address="",
            port=1,
            nexthop="",
        )
    *_, last = host.lines()
    assert last.startswith("2 - smtp: handshake with a?b?[mxxx")
    assert len(last) < 600


def recorded(*records: tuple[int, bytes]) -> bytes:
    return b"".join(
        bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body for kind, body in records
    )


WIRE = recorded(
    (22, b"\x02\x00\x00\x01x\x0b\x00\x01\x00" + bytes(200)),  # the second one goes on ...
    (22, bytes(56) + b"\x0e\x00\x00\x00\xfe\x00\x00\x00"),
    (21, b"\x01\x64"),
    (24, b"abc"),
    (20, b"\x01"),
    (22, b"\x01\x00\x00\x03abc"),
    (22, b"\x01\x00\x00\x04abc"),
    (22, bytes(40)),
    (21, bytes(26)),
    (23, bytes(300)),
    (23, b""),
)
TOLD = [
    "handshake: server_hello, 1 octets",
    "handshake: certificate, 256 octets",
    "handshake: server_hello_done, 0 octets",
    "handshake: message 254, 0 octets",
    "alert: warning, no_renegotiation",
    "heartbeat, 3 octets",
    "change_cipher_spec",
    "handshake: client_hello, 3 octets",
    "handshake (encrypted), 7 octets",
    "handshake (encrypted), 40 octets",
    "alert (encrypted), 26 octets",
    "encrypted, 300 octets",
    "encrypted, 0 octets",
]


@given(st.lists(st.integers(0, len(WIRE))))
def test_however_it_is_cut_the_same_is_told(cuts: list[int]) -> None:
    records = Records()
    places = [0, *sorted(cuts), len(WIRE)]
    pieces = [WIRE[start:end] for start, end in pairwise(places)]
    assert [text for piece in pieces for text in records.feed(piece)] == TOLD


@given(st.lists(st.binary(max_size=40)))
def test_whatever_comes_is_told_of_in_few_words_and_not_kept(pieces: list[bytes]) -> None:
    records = Records()
    for piece in pieces:
        for text in records.feed(piece):
            assert len(text) < 60
    kept = [value for value in vars(records).values() if isinstance(value, bytes)]
    assert sum(map(len, kept)) < 20


def test_what_is_no_tls_is_said_once() -> None:
    records = Records()
    assert records.feed(b"220 mx.example ESMTP\r\n") == ["no TLS; the rest is not shown"]
    assert records.feed(WIRE) == []


# --- the file ------------------------------------------------------------------------------------


def test_the_log_names_the_file_and_only_its_owner_can_read_it(host: Host) -> None:
    before = os.umask(0)
    try:
        host.open()
    finally:
        os.umask(before)
    assert host.events == [Noted(f"smtp: TLS is traced in {host.path}")]
    assert stat.S_IMODE(host.path.stat().st_mode) == 0o600
    host.path.chmod(0o644)
    host.open(program="lmtp")
    assert stat.S_IMODE(host.path.stat().st_mode) == 0o600


def test_several_processes_add_to_one_file_line_by_line(host: Host) -> None:
    first, second = host.open(), host.open()
    assert first is not None
    assert second is not None
    for number in range(3):
        first.write(number, "- a")
        second.write(number, "- b")
    assert host.lines() == ["0 - a", "0 - b", "1 - a", "1 - b", "2 - a", "2 - b"]


def link(host: Host) -> None:
    (host.directory / "target").touch()
    host.path.symlink_to(host.directory / "target")


def second_name(host: Host) -> None:
    (host.directory / "target").touch()
    host.path.hardlink_to(host.directory / "target")


def open_folder(host: Host) -> None:
    host.directory.chmod(0o777)


def no_folder(host: Host) -> None:
    host.directory.rename(f"{host.directory}.elsewhere")


def pipe(host: Host) -> None:
    os.mkfifo(host.path)


def folder(host: Host) -> None:
    host.path.mkdir()


@pytest.mark.parametrize("trap", [link, second_name, open_folder, no_folder, pipe, folder])
def test_a_file_that_is_not_ours_alone_is_not_used_and_that_is_told(
    host: Host, trap: Callable[[Host], None]
) -> None:
    trap(host)
    assert host.open() is None
    (warning,) = host.warnings()
    assert warning.startswith(f"{host.path}: ")
    assert warning.endswith(": TLS is not traced")
    target = host.directory / "target"
    assert not target.exists() or not target.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_a_file_that_root_makes_belongs_to_whom_the_directory_does(host: Host) -> None:
    os.chown(host.directory, 65_534, 65_534)
    host.open()
    assert host.path.stat().st_uid == 65_534
    os.chown(host.path, 65_533, 65_534)
    assert host.open() is None
    assert "it belongs to another user" in host.warnings()[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_another_file_of_root_is_given_to_nobody(host: Host) -> None:
    """Whoever owns a directory can move a file of root's in it to the name of the trace."""
    host.path.write_text("secret\n")
    host.path.chmod(0o600)
    os.chown(host.directory, 65_534, 65_534)
    assert host.open() is None
    assert "it belongs to another user" in host.warnings()[0]
    assert host.path.stat().st_uid == 0
    assert host.path.read_text() == "secret\n"


def test_a_path_from_nowhere_is_none(host: Host) -> None:
    file = TraceFile.opened(
        Path("tls_trace"), host.events.append, lambda: 0.0, program="smtp", whole=False
    )
    assert file is None
    assert host.warnings() == ["tls_trace: not a path from the root: TLS is not traced"]


@trio_test
async def test_a_full_file_ends_the_trace_and_nothing_else(
    host: Host, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "LIMIT", 300)
    engine = host.engine(4)
    for _ in range(2):
        await connect(*memory_stream_pair(), Server(server_context(pki.leaf("good"))), MAY, engine)
    assert 300 <= host.path.stat().st_size < 300 + trace.LONGEST
    assert host.warnings() == [
        f"{host.path}: it has reached 300 octets; remove it and reload to go on: TLS is no longer"
        " traced"
    ]


@trio_test
async def test_a_full_disk_ends_the_trace_and_nothing_else(
    host: Host, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = host.engine(4)
    (file,) = host.files
    full = os.open("/dev/full", os.O_WRONLY)
    assert file._fd is not None
    os.dup2(full, file._fd)
    os.close(full)
    await connect(*memory_stream_pair(), Server(server_context(pki.leaf("good"))), MAY, engine)
    assert host.warnings() == [f"{host.path}: No space left on device: TLS is no longer traced"]


@trio_test
async def test_a_reload_ends_the_trace_of_connections_that_go_on(host: Host, pki: Pki) -> None:
    engine = host.engine(4)
    near, far = await connect(
        *memory_stream_pair(), Server(server_context(pki.leaf("good"))), MAY, engine
    )
    engine.close()
    before = host.lines()
    await near.send_all(b"EHLO x\r\n")
    assert await far.receive_some() == b"EHLO x\r\n"
    assert host.lines() == before
    assert host.warnings() == []
