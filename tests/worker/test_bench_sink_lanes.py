"""The sink's plain lane and its processes, over real sockets and with real children.

Deterministic because nobody waits for time: clients block until what they expect is there, and a
lane runs in a thread until its stop descriptor says so.
"""

import errno
import hashlib
import json
import os
import random
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import cast

import pytest

from bench.sink.behaviour import Behaviour
from bench.sink.command import only_distance
from bench.sink.count import read_count
from bench.sink.counters import Counters, report
from bench.sink.far_lane import EARLY, FarLane
from bench.sink.listen import Listen, open_listener
from bench.sink.plain_lane import READ_SIZE, PlainLane
from bench.sink.raw_client import ServerError, send_messages
from bench.sink.record import Received
from bench.sink.session import OK
from bench.sink.sink import Phrases, Sink
from bench.sink.words import parse_behaviour

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds: whoever waits so long waits for ever
ENVELOPE = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n"
NEAR_AND_FAR = pytest.mark.parametrize("far", [[], ["rtt=0.001"]], ids=["near", "far"])


@contextmanager
def lane(*words: str, path: str = "") -> Iterator[tuple[Sink, list[Received], str, int]]:
    """A plain (with rtt, far) lane in a thread: its sink, what it takes, and where it listens."""
    taken: list[Received] = []
    listen = Listen(host="" if path else "127.0.0.1", path=path, behaviour=parse_behaviour(words))
    listener = open_listener(listen)
    sink = Sink(behaviour=listener.behaviour, take=taken.append, keep=True, random=Random(1))
    reading, writing = os.pipe()
    served, rtt = [(listener.socket, sink)], listener.behaviour.rtt
    one = FarLane(served, [reading], rtt) if rtt else PlainLane(served, [reading])
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        port = 0 if path else listener.socket.getsockname()[1]
        yield sink, taken, listener.name, port
    finally:
        os.close(writing)  # end of file is readable, too
        thread.join(LIMIT)
        assert not thread.is_alive()
        os.close(reading)
        listener.close()


def connect(port: int) -> socket.socket:
    """A client; it never waits longer than LIMIT."""
    return socket.create_connection(("127.0.0.1", port), LIMIT)


def received(sock: socket.socket, end: bytes) -> bytes:
    """What comes, until it ends so."""
    said = b""
    while not said.endswith(end):
        data = sock.recv(65_536)
        assert data, said
        said += data
    return said


def all_of(sock: socket.socket) -> bytes:
    """What comes until the sink closes."""
    said = bytearray()
    while data := sock.recv(65_536):
        said += data
    return bytes(said)


# --- the plain lane -----------------------------------------------------------------------------


@NEAR_AND_FAR
def test_contents_arrive_to_the_octet_over_many_sessions(far: list[str]) -> None:
    content = random.Random(1).randbytes(300_000).replace(b"\r\n", b"") + b"\r\n"
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    with lane(*far) as (sink, taken, _, port):
        send_messages(port, 50, 7, stuffed)
        assert sink.counters.messages == 50
    assert {one.sha256 for one in taken} == {hashlib.sha256(content).hexdigest()}
    assert sink.counters.connections == 7
    assert sink.counters.open == 0


@NEAR_AND_FAR
def test_a_dialogue_in_single_octets(far: list[str]) -> None:
    with lane(*far) as (_, taken, _, port), connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in b"EHLO x\r\n" + ENVELOPE + b"..\r\n.\r\nQUIT\r\n":
            client.sendall(bytes((octet,)))
        assert all_of(client).endswith(b"250 2.0.0 Ok: taken\r\n221 2.0.0 sink.example bye\r\n")
    assert [one.content for one in taken] == [b".\r\n"]


@NEAR_AND_FAR
def test_who_does_not_take_replies_is_not_read_from_and_gets_them_all(far: list[str]) -> None:
    """More than sockets hold: the sink must wait without losing anything."""
    count = 120_000  # times 130 octets of reply
    hello = Phrases(Behaviour()).ehlo
    with lane(*far) as (_, _, _, port), socket.socket() as client:
        client.settimeout(LIMIT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # before the window is told
        client.connect(("127.0.0.1", port))
        received(client, b"\r\n")
        client.sendall(b"EHLO x\r\n" * count + b"QUIT\r\n")
        with connect(port) as other:  # others are served meanwhile, each in its turn
            received(other, b"\r\n")
            for _ in range(40):  # turns, of which the client needs fewer to fill its socket
                other.sendall(b"NOOP\r\n")
                received(other, b"\r\n")
        said = all_of(client)
    assert said == hello * count + b"221 2.0.0 sink.example bye\r\n"


class _Exhausted:
    """A listening socket that finds no descriptor after its first connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._accepted = False
        self.failures = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        """The first connection; then EMFILE."""
        if not self._accepted:
            self._accepted = True
            return self._sock.accept()
        self.failures += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_without_descriptors_it_waits_for_one_and_does_not_spin() -> None:
    listener = open_listener(Listen(host="127.0.0.1"))
    exhausted = _Exhausted(listener.socket)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            PlainLane([(cast("socket.socket", exhausted), Sink())], []).run()
        except OSError as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    port = listener.socket.getsockname()[1]
    with connect(port) as first, connect(port):
        received(first, b"\r\n")
        for _ in range(50):
            first.sendall(b"NOOP\r\n")
            received(first, b"\r\n")
        assert exhausted.failures == 1
        first.close()  # room for one; but there is none, and nobody who could make any
        thread.join(LIMIT)
    listener.close()
    assert [str(one) for one in failures] == [
        "[Errno 24] cannot accept any connection: Too many open files"
    ]


def test_a_unix_socket_is_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "lmtp"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with lane("lmtp", path=str(path)) as (_, taken, name, _):
        assert name == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            client.connect(str(path))
            client.sendall(b"LHLO x\r\n" + ENVELOPE + b"x\r\n.\r\nQUIT\r\n")
            all_of(client)
    assert [one.protocol for one in taken] == ["lmtp"]
    assert not path.exists()


def test_a_file_is_not_replaced_by_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(OSError, match=r"cannot listen on unix:.*precious"):
        open_listener(Listen(host="", path=str(path)))
    assert path.read_text() == "precious"


@NEAR_AND_FAR
def test_a_client_that_vanishes_leaves_the_others_alone(far: list[str]) -> None:
    with lane(*far) as (sink, _, _, port), connect(port) as client:
        received(client, b"\r\n")
        for _ in range(20):
            with connect(port) as other:
                # A reset: closed with the greeting unread.
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                other.sendall(ENVELOPE)
        client.sendall(b"NOOP\r\nQUIT\r\n")
        assert all_of(client).startswith(b"250 ")
    assert sink.counters.open == 0


@pytest.mark.parametrize(
    ("words", "last"),
    [
        (["rcpt=421 4.3.2 no"], b"421 4.3.2 no"),
        (["cut=data"], b"250 2.1.5 Ok"),
        (["cut=content"], b"354 End data with <CR><LF>.<CR><LF>"),
        (["cut-after=30"], b"250 2.1.0 Ok"),
        (["connections=0", "connect=554 5.3.2 no"], b"554 5.3.2 no"),
    ],
)
@NEAR_AND_FAR
def test_endings_are_the_same_in_all_lanes(words: list[str], last: bytes, far: list[str]) -> None:
    with lane(*words, *far) as (_, _, _, port), connect(port) as client:
        client.sendall(b"HELO x\r\n" + ENVELOPE + b"x")
        said = b""
        try:
            while data := client.recv(READ_SIZE):
                said += data
        except ConnectionResetError:  # what it sent was not read to the end
            pass
    assert said.splitlines()[-1] == last


# --- the far lane -------------------------------------------------------------------------------


def test_each_flight_is_answered_one_round_trip_later_and_others_do_not_wait_for_it() -> None:
    rtt = 0.05
    with lane(f"rtt={rtt}") as (_, _, _, port), connect(port) as one, connect(port) as other:
        began = time.monotonic()
        one.sendall(b"HELO x\r\n" + ENVELOPE)
        other.sendall(b"NOOP\r\n" * 3)
        assert received(one, b"<CR><LF>\r\n").count(b"\r\n") == 5
        assert received(other, OK * 3).count(b"\r\n") == 4
        assert time.monotonic() - began >= rtt - EARLY
        began = time.monotonic()
        one.sendall(b"x\r\n.\r\nQUIT\r\n")
        assert all_of(one).endswith(b" bye\r\n")
        assert time.monotonic() - began >= rtt - EARLY


def test_who_says_no_more_gets_what_is_on_its_way_and_who_has_gone_nothing() -> None:
    with lane("rtt=0.02") as (sink, _, _, port):
        with connect(port) as gone:
            gone.sendall(b"NOOP\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with connect(port) as client:
            client.sendall(b"NOOP\r\n")
            client.shutdown(socket.SHUT_WR)
            assert all_of(client).endswith(b" ESMTP sink\r\n250 2.0.0 Ok\r\n")
        with connect(port) as last:
            received(last, b"\r\n")
            assert sink.counters.open == 1


@pytest.mark.parametrize(
    ("words", "rtt"),
    [
        (["rtt=1"], 1.0),
        (["rtt=1", "rcpt=450 no"], 1.0),
        ([], 0.0),
        (["latency=1"], 0.0),
        (["rtt=1", "latency:end=1"], 0.0),
        (["rtt=1", "tarpit=1"], 0.0),
        (["rtt=1", "starttls"], 0.0),
        (["rtt=1", "tls"], 0.0),
    ],
)
def test_what_a_far_lane_can_serve(words: list[str], rtt: float) -> None:
    behaviour = parse_behaviour(words)
    assert only_distance([behaviour]) == only_distance([behaviour] * 2) == rtt
    assert only_distance([behaviour, parse_behaviour(["rtt=2"])]) == 0.0


def test_a_client_of_figures_says_what_a_server_refuses() -> None:
    with lane("rcpt=550 5.1.1 no") as (_, _, _, port), pytest.raises(ServerError, match="550"):
        send_messages(port, 1, 1, b"x\r\n")


# --- counters -----------------------------------------------------------------------------------


def test_counters_of_processes_are_added_by_listener() -> None:
    one, two, idle = Counters(), Counters(), Counters()
    one.open_one()
    one.take(2, 100, 10.0)
    one.take(1, 100, 12.0)
    two.open_one()
    two.take(1, 50, 9.0)
    two.refuse("451")
    final = json.loads(json.dumps(report(["a", "b"], [[one, idle], [two, idle]], [1, 1])))
    assert final["processes"] == 2
    assert [listener["name"] for listener in final["listeners"]] == ["a", "b"]
    a, b = final["listeners"]
    assert (a["messages"], a["recipients"], a["octets"], a["refused"]) == (3, 4, 250, 1)
    assert (a["first"], a["last"], a["seconds"]) == (9.0, 12.0, 3.0)
    assert a["rate"] == pytest.approx(2 / 3)
    assert a["codes"] == {"451": 1}
    assert (b["messages"], b["rate"]) == (0, 0.0)
    assert final["total"]["messages"] == 3
    assert final["total"]["open_most"] == 2


# --- the command --------------------------------------------------------------------------------


@contextmanager
def command(*arguments: str, words: Sequence[str] = ()) -> Iterator["subprocess.Popen[str]"]:
    """`python -m bench.sink` as a child, killed in the end if it still runs."""
    with subprocess.Popen(
        [*words, sys.executable, "-m", "bench.sink", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ports(process: "subprocess.Popen[str]", count: int) -> list[int]:
    """The ports that it listens on, read from its first lines."""
    assert process.stdout is not None
    return [int(process.stdout.readline().rpartition(":")[2]) for _ in range(count)]


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its status and what it said, once it has ended."""
    said, complaint = process.communicate(timeout=LIMIT)
    return process.returncode, said, complaint


@pytest.mark.parametrize("more", [[], ["--processes", "3"], ["--behaviour", "latency:quit=0.01"]])
def test_the_report_and_the_record_agree_with_what_was_sent(
    tmp_path: Path, more: list[str]
) -> None:
    record, final = tmp_path / "record", tmp_path / "report"
    contents = [f"Message-ID: <{n}@x>\r\n\r\n.{n}\r\n..\r\n".encode() * 50 for n in range(12)]
    with command(
        *("--listen", "127.0.0.1-127.0.0.2:0", "--record", str(record), "--json", str(final)), *more
    ) as process:
        for port in (both := ports(process, 2)):
            host = "127.0.0.1" if port == both[0] else "127.0.0.2"
            for content in contents:
                with smtplib.SMTP(host, port, timeout=LIMIT) as client:
                    client.sendmail("a@x", ["b@x", "c@x"], content)
        process.send_signal(signal.SIGTERM)
        status, said, complaint = ended(process)
    assert (status, complaint) == (0, "")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    digests = sorted(hashlib.sha256(content).hexdigest() for content in contents)
    for name in (f"127.0.0.1:{both[0]}", f"127.0.0.2:{both[1]}"):
        assert sorted(one["sha256"] for one in lines if one["listener"] == name) == digests
        assert f"{name}: connections=12 messages=12 recipients=24 refused=0 " in said
    numbers = {(one["process"], one["listener"], one["connection"]) for one in lines}
    assert len(numbers) == 24
    parsed = json.loads(final.read_text())
    assert parsed["total"]["messages"] == 24
    assert parsed["total"]["octets"] == 2 * sum(map(len, contents))
    assert parsed["total"]["rate"] > 0
    assert parsed["processes"] == (3 if "--processes" in more else 1)


@pytest.mark.parametrize("more", [[], ["--processes", "3"], ["--behaviour", "rtt=0.001"]])
def test_who_looks_at_the_count_knows_each_message_when_its_reply_is_there(
    tmp_path: Path, more: list[str]
) -> None:
    path = tmp_path / "count"
    with command("--listen", "127.0.0.1:0", "--count", str(path), *more) as process:
        port = ports(process, 1)[0]
        assert read_count(path) == (0, 0)
        connect(port).close()  # one that brings nothing
        for number in range(1, 9):
            with smtplib.SMTP("127.0.0.1", port, timeout=LIMIT) as client:
                client.sendmail("a@x", ["b@x"], b"x")
                assert read_count(path) == (2 * number - 1, number)
                client.sendmail("a@x", ["b@x", "c@x"], b"x")
                assert read_count(path) == (2 * number, number)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[::2] == (0, "")
    assert read_count(path) == (16, 8)


def children(pid: int) -> list[int]:
    """Process ids of its children."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def greeted(stack: ExitStack, port: int) -> None:
    """A session that stays until the stack ends: then the children are running."""
    client = stack.enter_context(connect(port))
    received(client, b"\r\n")


def test_a_signal_to_one_process_ends_all_with_a_report() -> None:
    with command("--listen", "127.0.0.1:0", "--processes", "3") as process, ExitStack() as stack:
        greeted(stack, *ports(process, 1))
        os.kill(children(process.pid)[1], signal.SIGTERM)
        status, said, complaint = ended(process)
    assert (status, complaint) == (0, "")
    assert "connections=1 " in said


def test_a_process_that_dies_takes_the_others_with_it() -> None:
    with command("--listen", "127.0.0.1:0", "--processes", "3") as process, ExitStack() as stack:
        greeted(stack, *ports(process, 1))
        family = children(process.pid)
        os.kill(family[1], signal.SIGKILL)
        status, _, complaint = ended(process)
    assert status == os.EX_SOFTWARE
    assert complaint == "sink: process 2 of 3 ended with signal 9\n"
    assert not any(Path(f"/proc/{pid}").exists() for pid in family)


def test_no_process_outlives_its_parent() -> None:
    with command("--listen", "127.0.0.1:0", "--processes", "2") as process, ExitStack() as stack:
        greeted(stack, *ports(process, 1))
        process.kill()
        # The children have its standard output: it ends when they have.
        ended(process)


def test_clients_beyond_the_descriptors_wait_for_their_turn() -> None:
    limited = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh"]
    with command("--listen", "127.0.0.1:0", words=limited) as process, ExitStack() as stack:
        (port,) = ports(process, 1)
        clients = [stack.enter_context(connect(port)) for _ in range(40)]
        for client in clients:  # each that leaves makes room for another one
            received(client, b"\r\n")
            client.close()
        process.send_signal(signal.SIGTERM)
        status, said, complaint = ended(process)
    assert (status, complaint) == (0, "")
    assert "connections=40 " in said


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        ([], os.EX_USAGE, "nowhere to listen"),
        (["--listen", "x"], os.EX_USAGE, "'x': expected ADDRESS:PORT"),
        (["--listen", "127.0.0.1:0 'x"], os.EX_USAGE, "No closing quotation"),
        (["--processes", "0"], os.EX_USAGE, "'--processes'"),
        (
            ["--listen", "127.0.0.1:0 greylist", "--processes", "2"],
            os.EX_USAGE,
            "leave --processes away",
        ),
        (["--scenario", "/nonexistent"], os.EX_NOINPUT, "/nonexistent: No such file"),
        (["--scenario", "/dev/null"], os.EX_USAGE, "nowhere to listen"),
        (["--scenario", "pyproject.toml"], os.EX_CONFIG, "pyproject.toml: 'build-system' is unk"),
        (["--listen", "127.0.0.1:0", "--record", "/none/x"], os.EX_CANTCREAT, "/none/x: No such"),
        (["--listen", "127.0.0.1:0", "--count", "/none/x"], os.EX_CANTCREAT, "/none/x: No such"),
        (["--listen", "127.0.0.1:0", "--count", "/dev/full"], os.EX_OSERR, "full: cannot count: "),
        (["--listen", "127.0.0.1:0", "--json", "/none/x"], os.EX_CANTCREAT, "/none/x: No such"),
        (["--listen", "127.0.0.1:0", "--dump"], os.EX_USAGE, "--record FILE"),
        (["--listen", "unix:/dev/null"], os.EX_OSERR, "/dev/null: this is somebody's file"),
        (["--listen", f"unix:/{'x' * 200}"], os.EX_OSERR, "path too long"),
    ],
)
def test_complaints_are_one_line_with_a_status(
    arguments: list[str], status: int, complaint: str
) -> None:
    with command(*arguments) as process:
        code, said, complained = ended(process)
    assert (code, said) == (status, "")
    assert complaint in complained
    assert complained.startswith("sink: ")
    assert "Traceback" not in complained


@pytest.mark.parametrize("more", [[], ["--processes", "2"], ["--behaviour", "rtt=0.001"]])
def test_a_record_that_cannot_be_written_ends_the_sink(more: list[str]) -> None:
    with command("--listen", "127.0.0.1:0", "--record", "/dev/full", *more) as process:
        with connect(*ports(process, 1)) as client:
            client.sendall(b"HELO x\r\n" + ENVELOPE + b".\r\n")
            assert b"taken" not in all_of(client)
        status, _, complaint = ended(process)
    assert status in (os.EX_OSERR, os.EX_SOFTWARE)
    assert "sink: /dev/full: cannot record: No space left on device\n" in complaint
    assert "Traceback" not in complaint
