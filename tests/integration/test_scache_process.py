"""The cache daemon as a process: start, signals, options, who may come and where to."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from protocol.cache_wire import ANNOUNCEMENT_WIRE, Reply, Status
from scache.sockets import FAREWELL
from tests.integration.scache_process import PATIENCE, ROOT, STARTED, BlockingClient, CacheProcess
from tests.worker import cache_conformance as conformance
from worker.cache.client import CacheClient, Saving
from worker.status.events import Event

SAVED = Reply(Status.OK).encode()
NOBODY = 65_534

as_root = pytest.mark.peer("root")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that others can pass through; pytest's `tmp_path` is not."""
    with tempfile.TemporaryDirectory(prefix="scache-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


def run(*arguments: str, command: str = "scache") -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-P", "-m", command, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def as_nobody(path: Path) -> str:
    """What a client that runs as nobody hears first."""
    code = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.settimeout(20)\n"
        "sock.connect(sys.argv[1])\n"
        "try:\n    print(repr(sock.recv(100)))\n"
        "except ConnectionResetError:\n    print(repr(b''))\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        user=NOBODY,
        group=NOBODY,
    )
    return done.stdout.strip()


# --- its life ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_politely(number: int, directory: Path) -> None:
    path = directory / "private" / "scache"
    connection, peer = socket.socketpair()
    with CacheProcess("--socket", str(path), "--ttl-limit", "60") as daemon, connection, peer:
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600
        with BlockingClient(path) as client:
            assert client.save("a", connection) == SAVED
            connection.close()
            assert daemon.end(number) == 0
        assert peer.recv(100) == FAREWELL
        assert not path.exists()
        said = daemon.said()
    assert "statistics: max simultaneous domains=0 addresses=1 connection=1\n" in said
    assert said.splitlines()[-1].endswith(": connection cache stopped")
    assert f" postfix/scache[{daemon.pid}]: {STARTED}\n" in said


def test_with_a_lifeline_an_interrupt_is_its_parent_s_business(directory: Path) -> None:
    """SIGINT of a terminal goes to all processes of a node, and workers may still finish mail."""
    path = directory / "p" / "s"
    connection, peer = socket.socketpair()
    with CacheProcess("--socket", str(path), "--lifeline") as daemon, connection, peer:
        assert daemon.process is not None
        with BlockingClient(path) as client:
            assert client.save("a", connection) == SAVED
            daemon.process.send_signal(signal.SIGINT)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("statistics: max simultaneous")  # it has seen both
            assert client.save("b", connection) == SAVED


def test_the_lifeline_ends_it(directory: Path) -> None:
    with CacheProcess("--socket", str(directory / "p" / "s"), "--lifeline") as daemon:
        assert daemon.process is not None
        assert daemon.process.stdin is not None
        daemon.process.stdin.close()
        assert daemon.process.wait(PATIENCE) == 0
        daemon.process.stdin = None


def test_status_is_a_table_or_json(directory: Path) -> None:
    path = directory / "private" / "scache"
    connection, peer = socket.socketpair()
    with CacheProcess("--socket", str(path), "--ttl-limit", "60") as daemon, connection, peer:
        with BlockingClient(path) as client:
            assert client.save("smtp\n192.0.2.1\n25\n0\n", connection) == SAVED
        table = run("--socket", str(path), "--status").stdout
        assert f"process {daemon.pid}, 1 clients, 1 connections" in table
        assert "  smtp 192.0.2.1 25 0\n" in table
        report = json.loads(run("--socket", str(path), "--status", "--json").stdout)
        assert report["counts"]["max_connections"] == 1
    gone = run("--socket", str(path), "--status")
    assert (gone.returncode, gone.stdout) == (os.EX_UNAVAILABLE, "")
    assert gone.stderr.startswith(f"scache: nobody answers at {path}: ")


def test_a_log_file_that_was_renamed_is_followed_at_sighup(directory: Path) -> None:
    path, log, old = directory / "p" / "s", directory / "log", directory / "log.1"
    options = ("--socket", str(path), "--log-file", str(log), "--log-format", "json")
    daemon = CacheProcess(*options)
    daemon.log = log
    log.touch()
    with daemon:
        log.rename(old)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        log.touch()
        daemon.wait_for("log reopened")
        assert daemon.end(signal.SIGTERM) == 0
    assert json.loads(old.read_text())["text"] == STARTED
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["text"] for record in records] == ["log reopened", "connection cache stopped"]
    assert {record["program"] for record in records} == {"scache"}


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@trio_test
async def test_s140_ten_thousand_cycles_leave_no_descriptor_open(directory: Path) -> None:
    path = directory / "private" / "scache"
    events: list[Event] = []
    connection, peer = socket.socketpair()
    with CacheProcess("--socket", str(path), "--ttl-limit", "600") as daemon, connection, peer:
        client = CacheClient(path, timeout=PATIENCE, emit=events.append)

        async def cycles(count: int) -> tuple[int, int]:
            """Save and find so often, and count what is open then on either side."""
            for _ in range(count):
                kept = await client.save_endpoint(600, "e\n", "text\n", connection.fileno())
                assert kept is Saving.KEPT
                found = await client.find_endpoint("e\n")
                assert found is not None
                found.sock.close()
            assert await client.find_endpoint("none\n") is None  # nothing is under way any more
            return descriptors(os.getpid()), descriptors(daemon.pid)

        before = await cycles(1)
        assert await cycles(10_000) == before
        client.close()
    assert events == []


@trio_test
async def test_a_client_survives_the_death_of_the_daemon(directory: Path) -> None:
    path, events = directory / "private" / "scache", list[Event]()
    client = CacheClient(path, timeout=PATIENCE, emit=events.append)
    for _ in range(3):  # each finds the socket of a daemon that was killed
        with CacheProcess("--socket", str(path)) as daemon:
            await conformance.keeps_connections_by_endpoint(client)
            assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    client.close()
    assert events == []


def test_without_room_for_a_descriptor_a_save_fails_and_later_ones_do_not(directory: Path) -> None:
    path = directory / "private" / "scache"
    connection, peer = socket.socketpair()
    with (
        CacheProcess("--socket", str(path), "--ttl-limit", "60") as daemon,
        BlockingClient(path) as client,
        connection,
        peer,
    ):
        assert client.save("a", connection) == SAVED
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        in_use = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (in_use, hard))
        assert client.save("a", connection) == Reply(Status.FAILED).encode()
        waiting = BlockingClient(path)
        daemon.wait_for("cannot accept a client: Too many open files")
        client.find("a").close()
        waiting.expect(ANNOUNCEMENT_WIRE)  # with the descriptor that was freed
        waiting.sock.close()
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert client.save("a", connection) == SAVED


# --- where clients come to -----------------------------------------------------------------------


def test_an_inherited_socket_is_served_and_left(directory: Path) -> None:
    path = directory / "inherited"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        daemon = CacheProcess("--listen-fd", str(fd), pass_fds=[fd])
        with daemon, BlockingClient(path):
            assert daemon.end(signal.SIGTERM) == 0
        assert path.exists()


def test_systemd_passes_a_socket(directory: Path) -> None:
    path = directory / "activated"
    activate = (
        "import os, sys\n"
        "os.dup2({}, 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.executable, [sys.executable, '-P', '-m', 'scache', *sys.argv[1:]])\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        command = [sys.executable, "-c", activate.format(fd)]
        with CacheProcess("--syslog-name", "mine", command=command, pass_fds=[fd]) as daemon:
            with BlockingClient(path):
                assert daemon.end(signal.SIGTERM) == 0
            assert " mine/scache[" in daemon.said()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "one of --socket and --listen-fd is needed"),
        (["--json"], "--json goes with --status"),
        (["--status"], "--status needs --socket"),
        (["--ttl-limit", "0"], "--ttl-limit"),
        (["--trust", "nobody-of-that-name"], "there is no user 'nobody-of-that-name'"),
        (["--make-tea"], "--make-tea"),
    ],
)
def test_wrong_use_is_said_in_a_line(options: list[str], complaint: str) -> None:
    done = run(*options)
    assert done.returncode == os.EX_USAGE
    assert done.stderr.startswith("scache: ")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        ("link", "is a symbolic link"),
        ("open directory", "has mode 0770, too open: "),
        ("open parent", "others can write to "),
        ("file", "exists and is no socket"),
        ("link to a socket", "exists and is no socket"),
        pytest.param("owner", "belongs to user id 65534", marks=as_root),
        pytest.param("owner of the parent", "belongs to user id 65534", marks=as_root),
    ],
)
def test_a_place_that_is_not_safe_is_refused(attack: str, complaint: str, directory: Path) -> None:
    private = directory / "parent" / "private"
    private.mkdir(parents=True, mode=0o700)
    match attack:
        case "link":
            private.rename(directory / "elsewhere")
            private.symlink_to(directory / "elsewhere")
        case "open directory":
            private.chmod(0o770)
        case "open parent":
            private.parent.chmod(0o777)
        case "file":
            (private / "scache").write_text("precious")
        case "link to a socket":
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(directory / "other"))
            (private / "scache").symlink_to(directory / "other")
        case "owner":
            os.chown(private, NOBODY, NOBODY)
        case _:
            os.chown(private.parent, NOBODY, NOBODY)
    done = run("--socket", str(private / "scache"))
    assert done.returncode == os.EX_NOPERM
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_parent_that_is_missing_is_not_made(directory: Path) -> None:
    done = run("--socket", str(directory / "absent" / "private" / "scache"))
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr == f"scache: {directory}/absent does not exist: make it first\n"


def test_a_second_daemon_leaves_the_first_alone(directory: Path) -> None:
    path = directory / "private" / "scache"
    with CacheProcess("--socket", str(path)):
        done = run("--socket", str(path))
        assert done.returncode == os.EX_UNAVAILABLE
        assert "another process serves" in done.stderr
        with BlockingClient(path):
            pass


def test_a_long_path_is_no_problem(directory: Path) -> None:
    path = directory / ("long" * 40) / "scache"
    with CacheProcess("--socket", str(path)) as daemon:
        assert path.exists()
        assert daemon.end(signal.SIGTERM) == 0
        assert not path.exists()


# --- who may come --------------------------------------------------------------------------------


@as_root
def test_a_stranger_is_refused_before_a_word(directory: Path) -> None:
    path = directory / "open"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        fd = listener.fileno()
        with CacheProcess("--listen-fd", str(fd), pass_fds=[fd]) as daemon:
            assert as_nobody(path) == "b''"
            daemon.wait_for("client refused: user id 65534 is not trusted")


@as_root
def test_a_trusted_user_is_served(directory: Path) -> None:
    path = directory / "private" / "scache"
    with CacheProcess("--socket", str(path), "--trust", "nobody"):
        assert path.stat().st_mode & 0o777 == 0o666
        assert as_nobody(path) == repr(ANNOUNCEMENT_WIRE)


@as_root
def test_rights_are_given_up(directory: Path) -> None:
    path = directory / "private" / "scache"
    jail = directory / "jail"
    jail.mkdir()
    with CacheProcess("--socket", str(path), "--user", "nobody", "--chroot", str(jail)) as daemon:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n" in status
        assert f"Gid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n" in status
        assert Path(f"/proc/{daemon.pid}/root").readlink() == jail
        assert as_nobody(path) == repr(ANNOUNCEMENT_WIRE)
        with BlockingClient(path):
            assert daemon.end(signal.SIGTERM) == 0


# --- postrio scache ------------------------------------------------------------------------------


def test_postrio_scache_takes_its_defaults_from_main_cf(directory: Path) -> None:
    queue, main_cf = directory / "queue", directory / "main.cf"
    queue.mkdir()
    main_cf.write_text(
        f"queue_directory = {queue}\nconnection_cache_service_name = pscache\n"
        "connection_cache_ttl_limit = 70s\nsyslog_name = site\n"
    )
    command = [sys.executable, "-m", "worker", "-c", str(main_cf), "scache"]
    with CacheProcess(command=command) as daemon:
        assert " site/scache[" in daemon.said()
        path = queue / "private" / "pscache"
        connection, peer = socket.socketpair()
        with connection, peer, BlockingClient(path) as client:
            assert client.save("a", connection) == SAVED
            done = run("-c", str(main_cf), "scache", "--status", "--json", command="worker")
        report = json.loads(done.stdout)
        assert report["pid"] == daemon.pid  # executed, not started
        assert 50 < report["endpoints"][0]["expires"] <= 60


def test_postrio_scache_without_a_socket_says_what_to_do(directory: Path) -> None:
    options = ["-o", f"queue_directory={directory}", "-o", "connection_cache_service_name="]
    done = run(*options, "scache", command="worker")
    assert done.returncode == os.EX_CONFIG
    assert "connection_cache_service_name is empty" in done.stderr
