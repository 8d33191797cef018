"""`postrio run --user` and `--chroot`, as root, with real processes.

Paths are made below a directory that everybody may pass through: pytest's own is root's alone. So
may be the Python that runs the tests; then the system's one runs postrio, with the same libraries.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

import tests.integration.node
from bench.dns import serve_dns
from bench.dns_zone import Zone
from tests.integration.node import Mailbox, Node, open_sink, port_of
from tests.integration.pki import HOST, Pki
from tests.integration.tls_peers import listening
from tests.worker.peer import Peer
from tests.worker.tls_server import ServerTls, server_context
from worker.config.table_files import LOOK_AGAIN

ROOT = Path(__file__).parents[2]
NOBODY = "nobody"
CONTENT = b"Subject: test\r\n\r\nHello.\r\n"
LIMIT = 60.0


@pytest.fixture(autouse=True)
def python(monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python that everybody may execute: it runs the nodes and commands of these tests."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        if everybody_may_execute(Path(candidate)) and version_of(candidate) == sys.version_info[:2]:
            break
    else:
        pytest.skip("an ordinary user can execute no Python of this version")
    libraries = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(libraries))
    monkeypatch.setattr(tests.integration.node, "POSTRIO", (candidate, "-m", "worker"))
    return candidate


def everybody_may_execute(path: Path) -> bool:
    """The file itself, and every directory on the way to it."""
    found = path.resolve()
    return found.exists() and all(one.stat().st_mode & 0o001 for one in (found, *found.parents))


def version_of(python: str) -> tuple[int, int]:
    """Its version, as far as libraries care."""
    text = "import sys; print(*sys.version_info[:2])"
    major, minor = subprocess.check_output([python, "-c", text], text=True).split()
    return int(major), int(minor)


def run(
    python: str, *options: str, user: str | None = None, command: str = "run"
) -> "subprocess.CompletedProcess[str]":
    """`postrio COMMAND OPTIONS`, which is to end by itself."""
    return subprocess.run(
        [python, "-m", "worker", command, *options],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        stdin=subprocess.DEVNULL,
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
    )


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's in which others may look around."""
    path = Path(tempfile.mkdtemp(prefix="postrio-rights-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def jail(place: Path) -> Path:
    """An empty directory that only root can change."""
    path = place / "jail"
    path.mkdir(mode=0o755)
    return path


def rights_of(pid: int) -> tuple[set[int], set[int], set[int]]:
    """(user ids, group ids, supplementary groups) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()

    def numbers(name: str) -> set[int]:
        found = re.search(rf"^{name}:(.*)$", status, re.MULTILINE)
        assert found is not None
        return {int(word) for word in found[1].split()}

    return numbers("Uid"), numbers("Gid"), numbers("Groups")


def root_of(pid: int) -> str:
    """What a process takes for the root directory."""
    return str(Path(f"/proc/{pid}/root").readlink())


def is_empty(directory: Path) -> bool:
    """Nothing is in it."""
    return not list(directory.iterdir())


NOBODYS = (
    {pwd.getpwnam(NOBODY).pw_uid},
    {pwd.getpwnam(NOBODY).pw_gid},
    set(os.getgrouplist(NOBODY, pwd.getpwnam(NOBODY).pw_gid)),
)


@pytest.mark.peer("root")
@trio_test
async def test_a_node_gives_up_roots_rights_and_delivers_as_an_ordinary_user(place: Path) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        main_cf = {
            "default_transport": f"smtp:[127.0.0.1]:{port_of(sink)}",
        }
        async with Node(place, main_cf, ["--user", NOBODY]) as node:
            await node.send(CONTENT, "a@to.example")
            await node.send(CONTENT + b"x" * 100_000, "b@to.example")  # a file of the queue
            await node.wait_for(": removed$", 2)
            assert node.worker_pids()
            for pid in (node.process.pid, *node.children()):
                assert rights_of(pid) == NOBODYS
            assert node.queue_directory.owner() == NOBODY
            (worker,) = node.worker_pids()
            os.kill(worker, signal.SIGKILL)
            await node.wait_for("worker process 0 was killed by signal SIGKILL")
            await node.send(CONTENT, "c@to.example")
            await node.wait_for(": removed$", 3)
        assert len(mailbox.messages) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.peer("root")
@trio_test
async def test_s183_jailed_workers_deliver_by_address_and_by_dns_from_an_empty_directory(
    place: Path, jail: Path
) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox)
        zone = Zone.from_text(
            "to.example MX 10 mx.to.example\nmx.to.example A 127.0.0.1\n"
            "xn--bcher-kva.example MX 10 mx.to.example"
        )
        dns_port = await nursery.start(serve_dns, zone)
        main_cf = {
            "transport_maps": f"inline:{{ address.example=smtp:[127.0.0.1]:{port_of(sink)} }}",
            "smtp_tcp_port": str(port_of(sink)),
            "postrio_dns_server": f"127.0.0.1:{dns_port}",
            "inet_interfaces": "127.0.0.9",  # not the sink's: that would be ourselves
            "smtp_bind_address": "127.0.0.1",
            "postrio_worker_processes": "2",
        }
        options = ["--user", NOBODY, "--chroot", str(jail)]
        async with Node(place, main_cf, options) as node:
            await node.send(CONTENT, "a@address.example")
            await node.send(CONTENT, "b@to.example", "c@bücher.example", "d@missing.example")
            await node.wait_for("status=sent", 3)
            await node.wait_for("to=<d@missing.example>.*status=bounced .*Host or domain name not")
            await node.wait_for(f"worker goes into {jail} as {NOBODY}", 2)
            await node.wait_for("is ready, process", 2)
            assert len(node.worker_pids()) == 2
            assert rights_of(node.process.pid) == NOBODYS
            for worker in node.worker_pids():
                assert rights_of(worker) == NOBODYS
                assert root_of(worker) == str(jail)
            # One that dies is started again, in the jail.
            os.kill(node.worker_pids()[0], signal.SIGKILL)
            await node.wait_for("was killed by signal SIGKILL -- restarting at once")
            await node.wait_for(f"worker goes into {jail} as {NOBODY}", 3)
            await node.send(CONTENT, "e@to.example")
            await node.wait_for("status=sent", 4)
            # They cannot read the configuration again: others are started that have.
            node.configure({"smtp_helo_name": "new.example"})
            node.send_signal(signal.SIGHUP)
            await node.wait_for(f"worker goes into {jail} as {NOBODY}", 5)
            await node.send(CONTENT, "f@to.example")
            await node.wait_for("status=sent", 5)
            assert node.count("-- restarting") == 1
            starter = next(iter(node.children()))
        assert is_empty(jail)
        with pytest.raises(ProcessLookupError):
            os.kill(starter, 0)
        assert len(mailbox.messages) == 5
        assert [item.helo for item in mailbox.messages[-2:]] == ["node.example", "new.example"]
        nursery.cancel_scope.cancel()


@pytest.mark.peer("root")
@trio_test
async def test_s009_in_the_jail_socket_paths_start_at_the_jail_or_at_the_queue_directory(
    jail: Path,
) -> None:
    home = jail / "home"  # and so the queue directory can be seen from the jail
    home.mkdir(mode=0o755)
    absolute, relative = Peer(lmtp=True), Peer(lmtp=True)
    main_cf = {
        "transport_maps": "inline:{ absolute.example=lmtp:unix:/sockets/lmtp,"
        " relative.example=lmtp:unix:sockets/lmtp }",
    }
    async with trio.open_nursery() as nursery:
        async with Node(home, main_cf, ["--user", NOBODY, "--chroot", str(jail)]) as node:
            for peer, directory in ((absolute, jail), (relative, node.queue_directory)):
                (directory / "sockets").mkdir(mode=0o755)
                listeners = [unix_listener(directory / "sockets/lmtp")]
                nursery.start_soon(partial(trio.serve_listeners, peer.serve, listeners))
            await node.send(CONTENT, "a@absolute.example")
            await node.send(CONTENT, "b@relative.example")
            await node.wait_for("status=sent", 2)
            assert {root_of(worker) for worker in node.worker_pids()} == {str(jail)}
        assert (absolute.served, relative.served) == (
            ["a@absolute.example"],
            ["b@relative.example"],
        )
        nursery.cancel_scope.cancel()


def unix_listener(path: Path) -> trio.SocketListener:
    """A socket that everybody may connect to."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    path.chmod(0o666)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


@pytest.mark.peer("root")
@trio_test
async def test_s086_jailed_workers_know_the_passwords_of_a_file_that_they_cannot_see(
    place: Path, jail: Path
) -> None:
    mailbox, passwords = Mailbox(), place / "passwords"
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, mailbox, "auth")
        nexthop = f"[127.0.0.1]:{port_of(sink)}"
        passwords.write_text(f"{nexthop} old:secret\n")
        main_cf = {
            "relayhost": nexthop,
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_security_options": "noanonymous",
            "smtp_sasl_password_maps": f"texthash:{passwords}",
        }
        async with Node(place, main_cf, ["--user", NOBODY, "--chroot", str(jail)]) as node:
            await node.wait_for(f"{passwords} is outside the jail: its contents count as they were")
            passwords.write_text(f"{nexthop} new:secret\n")
            started, sent = trio.current_time(), 0
            # Until a worker outside a jail would have looked again, and seen the change.
            while trio.current_time() < started + 2 * LOOK_AGAIN or sent < 2:
                await node.send(CONTENT, "a@to.example")
                sent += 1
                await node.wait_for("status=sent", sent)
            assert {message.user for message in mailbox.messages} == {"old"}
            node.send_signal(signal.SIGHUP)
            await node.wait_for(f"worker goes into {jail} as {NOBODY}", 2)
            await node.send(CONTENT, "b@to.example")
            await node.wait_for("status=sent", sent + 1)
            assert mailbox.messages[-1].user == "new"
        assert is_empty(jail)
        nursery.cancel_scope.cancel()


@pytest.mark.peer("root")
@trio_test
async def test_s102_jailed_workers_trace_tls_in_one_file_that_they_cannot_see(
    place: Path, jail: Path
) -> None:
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, Mailbox(), "tls")
        main_cf = {
            "relayhost": f"[127.0.0.1]:{port_of(sink)}",
            "smtp_tls_security_level": "encrypt",
            "smtp_tls_loglevel": "4",
            "smtp_tls_wrappermode": "yes",
            "postrio_worker_processes": "2",
        }
        trace = place / "queue/tls_trace"
        async with Node(place, main_cf, ["--user", NOBODY, "--chroot", str(jail)]) as node:
            await node.wait_for(f"smtp: TLS is traced in {trace}", 2)
            await node.send(CONTENT, "a@to.example")
            await node.wait_for("status=sent")
        assert is_empty(jail)
        assert trace.owner() == NOBODY
        text = trace.read_text()
        assert re.search(
            r" - smtp: handshake with 127\.0\.0\.1\[127\.0\.0\.1\]:\d+, level encrypt,", text
        )
        assert re.search(r" > handshake: client_hello, \d+ octets\n", text)
        assert re.search(r" - established: TLSv1.3, ", text)
        assert re.search(r" > encrypted, \d+ octets\n", text)
        nursery.cancel_scope.cancel()


@pytest.mark.peer("root")
@trio_test
async def test_s183_tls_and_lmtp_from_an_empty_directory(place: Path, jail: Path) -> None:
    (place / "pki").mkdir(mode=0o755)
    certificates = Pki(place / "pki")
    tls = ServerTls(server_context(certificates.leaf("good")))
    peers = {"smtp": Peer(tls=tls), "lmtp": Peer(lmtp=True)}
    async with listening(peers) as ports:
        main_cf = {
            "transport_maps": f"inline:{{ tls.example=smtp:[127.0.0.1]:{ports['smtp']},"
            f" store.example=lmtp:inet:[127.0.0.1]:{ports['lmtp']} }}",
            "smtp_tls_security_level": "verify",
            "smtp_tls_CAfile": str(certificates.ca_file()),
            "smtp_tls_verify_cert_match": HOST,
            "smtp_tls_loglevel": "1",
        }
        options = ["--user", NOBODY, "--chroot", str(jail)]
        async with Node(place, main_cf, options) as node:
            await node.send(CONTENT, "a@tls.example", "b@store.example")
            await node.wait_for("status=sent", 2)
            await node.wait_for("Verified TLS connection established to ")
            assert [root_of(worker) for worker in node.worker_pids()] == [str(jail)]
        assert is_empty(jail)
    assert [message.encrypted for message in peers["smtp"].accepted] == [True]
    assert peers["lmtp"].verbs[0] == "LHLO"
    assert peers["lmtp"].served == ["b@store.example"]


@pytest.mark.peer("root")
@trio_test
async def test_a_node_whose_starter_is_gone_ends_instead_of_living_without_workers(
    place: Path, jail: Path
) -> None:
    node = Node(place, {}, ["--user", NOBODY, "--chroot", str(jail)])
    async with trio.open_nursery():
        await node.start()
        await node.wait_for("worker goes into")
        starter = next(iter(node.children()))
        os.kill(starter, signal.SIGKILL)
        assert await node.wait_until_ended() == os.EX_SOFTWARE
    assert node.count("the process that starts workers is gone")


@pytest.mark.peer("root")
@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["--user", "no-such-user"], os.EX_NOUSER, "--user no-such-user: there is no such user"),
        (["--user", "root"], os.EX_USAGE, "--user root: that keeps every right"),
        (["--chroot", "JAIL"], os.EX_USAGE, "--chroot needs --user"),
        (["--user", NOBODY, "--chroot", "MISSING"], os.EX_CONFIG, "No such file or directory"),
        (["--user", NOBODY, "--chroot", "FILE"], os.EX_CONFIG, "not a directory"),
        (["--user", NOBODY, "--chroot", "OPEN"], os.EX_CONFIG, "must belong to root"),
        (["--user", NOBODY, "--chroot", "THEIRS"], os.EX_CONFIG, "must belong to root"),
        (["--user", NOBODY, "--chroot", "."], os.EX_CONFIG, "not an absolute path"),
        (["--user", NOBODY, "-o", "maillog_file=ROOTS/log"], os.EX_CANTCREAT, "Permission denied"),
        (["--user", NOBODY, "-o", "queue_directory=ROOTS/q/q"], os.EX_CANTCREAT, "No such file"),
    ],
)
def test_nonsense_is_refused_with_a_line_that_says_what_is_wrong(
    python: str, place: Path, jail: Path, options: list[str], status: int, complaint: str
) -> None:
    roots, theirs, free = place / "roots", place / "theirs", place / "open"
    for path in (roots, theirs, free):
        path.mkdir(mode=0o700)
    shutil.chown(theirs, NOBODY)
    free.chmod(0o777)
    (place / "file").touch()
    names = {"JAIL": jail, "MISSING": place / "missing", "FILE": place / "file"}
    names |= {"OPEN": free, "THEIRS": theirs, "ROOTS": roots}
    expression = re.compile("|".join(names))
    words = [expression.sub(lambda found: str(names[found[0]]), word) for word in options]
    done = run(python, "-o", f"queue_directory={place}/queue", *words)
    assert done.returncode == status, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.peer("root")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-c", "ROOTS/main.cf"], "ROOTS/main.cf: cannot be read: Permission denied"),
        (["-c", "ROOTS"], "ROOTS/main.cf: cannot be read: Permission denied"),
        (["-c", "ROOTS/below/main.cf"], "ROOTS/below/main.cf: cannot be read: Permission denied"),
        (["-o", "maillog_file=ROOTS/log"], "maillog_file: ROOTS is not a writable directory"),
        (["-o", "smtp_tls_CApath=ROOTS/CA"], "ROOTS/CA: cannot be read: Permission denied"),
        (
            ["-o", "smtp_tls_session_cache_database=btree:ROOTS/tls"],
            "smtp_tls_session_cache_database: ROOTS/tls.sqlite cannot be written",
        ),
    ],
)
def test_what_lies_behind_a_closed_door_is_no_bug(
    python: str, place: Path, options: list[str], complaint: str
) -> None:
    roots = place / "roots"
    (roots / "below").mkdir(mode=0o700, parents=True)
    roots.chmod(0o700)
    (roots / "main.cf").touch()
    words = [word.replace("ROOTS", str(roots)) for word in options]
    queue = f"queue_directory={place}/queue"
    done = run(python, "-o", queue, *words, command="check", user=NOBODY)
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert complaint.replace("ROOTS", str(roots)) in done.stderr


def test_who_is_not_root_cannot_become_somebody_else(python: str) -> None:
    done = run(python, "--user", "daemon", user=None if os.geteuid() else NOBODY)
    assert done.returncode == os.EX_NOPERM, done.stderr
    assert "works only for root" in done.stderr
