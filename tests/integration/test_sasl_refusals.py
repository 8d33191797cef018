"""Refused logins (S094) as a node with several processes has them, at a server that counts."""

import os
import pwd
import shutil
import signal
import socketserver
import stat
import tempfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from tests.integration.node import Node
from tests.integration.recording_server import RecordingServer
from tests.integration.test_rights import NOBODY, is_empty, python

__all__ = ["python"]  # a fixture, used by all: an ordinary user must be able to run it

pytestmark = pytest.mark.peer("root")
CONTENT = b"Subject: test\r\n\r\nHello.\r\n"
RECIPIENTS = [f"{number}@to.example" for number in range(20)]


class Gate(RecordingServer):
    """Lets in one password, and keeps all that it was offered."""

    def __init__(self, password: str) -> None:
        super().__init__("AUTH PLAIN")
        self.password = password
        self.offered: list[str] = []

    def converse(self, link: socketserver.StreamRequestHandler) -> None:
        """One client, who has to log in before anything else."""
        link.wfile.write(b"220 gate.example ESMTP\r\n")
        while line := link.rfile.readline():
            verb, *words = line.decode().split()
            if verb == "EHLO":
                link.wfile.write(b"250-gate.example\r\n250 AUTH PLAIN\r\n")
            elif verb == "AUTH":
                self.offered.append(b64decode(words[1]).decode().rpartition("\0")[2])
                if self.offered[-1] == self.password:
                    link.wfile.write(b"235 2.7.0 welcome\r\n")
                else:
                    link.wfile.write(b"535 5.7.8 who are you\r\n")
            elif verb == "DATA":
                link.wfile.write(b"354 go on\r\n")
                while (line := link.rfile.readline()) not in {b".\r\n", b""}:
                    pass
                link.wfile.write(b"250 2.0.0 taken\r\n")
            elif verb == "QUIT":
                link.wfile.write(b"221 2.0.0 bye\r\n")
                return
            else:
                link.wfile.write(b"250 2.0.0 ok\r\n")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's in which others may look around."""
    path = Path(tempfile.mkdtemp(prefix="postrio-refusals-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def main_cf(port: int, passwords: str, cache: Path) -> dict[str, str]:
    """Each recipient is a delivery of its own, all are under way at once, and tried once."""
    return {
        "relayhost": f"[127.0.0.1]:{port}",
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_security_options": "noanonymous",
        "smtp_sasl_password_maps": passwords,
        "smtp_sasl_auth_cache_name": f"proxy:btree:{cache}",
        "postrio_worker_processes": "2",
        "smtp_destination_recipient_limit": "1",
        "minimal_backoff_time": "1000s",
        "maximal_backoff_time": "1000s",
    }


@trio_test
async def test_s094_many_messages_with_a_wrong_password_are_one_login(place: Path) -> None:
    with Gate("right") as gate:
        passwords, cache = place / "passwords", place / "cache"
        passwords.write_text(f"[127.0.0.1]:{gate.port} me:wrong-canary\n")
        cache.mkdir()
        shutil.chown(cache, NOBODY)
        settings = main_cf(gate.port, f"texthash:{passwords}", cache / "refused")
        async with Node(place, settings, ["--user", NOBODY]) as node:
            await node.wait_for("is ready, process", 2)
            await node.send(CONTENT, *RECIPIENTS)
            await node.wait_for("status=deferred", 20)
            assert gate.offered == ["wrong-canary"]
            assert node.count("status=deferred .*server 127.0.0.1.* said: 535 5.7.8 who") == 20
            assert node.count(r"status=deferred .*SASL \[CACHED\] authentication failed") == 19
            # Who takes the place of a process that was killed knows what it knew.
            for pid in node.worker_pids():
                os.kill(pid, signal.SIGKILL)
            await node.wait_for("is ready, process", 4)
            await node.send(CONTENT, *RECIPIENTS)
            await node.wait_for("status=deferred", 40)
            assert gate.offered == ["wrong-canary"]
            # Another password is another login.
            passwords.write_text(f"[127.0.0.1]:{gate.port} me:other-canary\n")
            node.send_signal(signal.SIGHUP)  # or else it would count within a second
            await node.wait_for("postrio.*: configuration reloaded", 3)
            await node.send(CONTENT, *RECIPIENTS)
            await node.wait_for("status=deferred", 60)
            assert gate.offered == ["wrong-canary", "other-canary"]
            file = cache / "refused.sqlite"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert file.owner() == NOBODY
            for each in cache.iterdir():
                assert b"canary" not in each.read_bytes()
        assert not [line for line in node.log if "canary" in line]
        # And a node that was stopped remembers, too.
        async with node:
            await node.send(CONTENT, *RECIPIENTS)
            await node.wait_for("status=deferred", 80)
            assert gate.offered == ["wrong-canary", "other-canary"]


@trio_test
async def test_s094_jailed_workers_share_what_was_refused(place: Path) -> None:
    jail = place / "jail"
    jail.mkdir(mode=0o755)
    with Gate("right") as gate:
        passwords = f"inline:{{{{ [127.0.0.1]:{gate.port} = me:wrong }}}}"
        settings = main_cf(gate.port, passwords, Path("$data_directory/refused"))
        options = ["--user", NOBODY, "--chroot", str(jail)]
        async with Node(place, settings, options) as node:
            await node.wait_for("is ready, process", 2)
            await node.send(CONTENT, *RECIPIENTS)
            await node.wait_for("status=deferred", 20)
            for pid in node.worker_pids():
                os.kill(pid, signal.SIGKILL)
            await node.wait_for("is ready, process", 4)
            await node.send(CONTENT, *RECIPIENTS)
            await node.wait_for("status=deferred", 40)
            assert gate.offered == ["wrong"]
            assert not node.matches("not shared between processes")
        assert is_empty(jail)
    assert pwd.getpwuid((place / "queue/refused.sqlite").stat().st_uid).pw_name == NOBODY
