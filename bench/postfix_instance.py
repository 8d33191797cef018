"""A real Postfix of our own in one directory: for figures to compare with, and as a peer in tests.

Answers for its configuration, its life from start to stop, and reading what it received. It never
touches the system's Postfix: own config, queue and data directories, and only the processes it
started itself end with it. Needs root (Postfix's master does) and Debian's package `postfix`.

Start reading at `PostfixInstance`. Everything here is synchronous; a trio program calls it through
`trio.to_thread.run_sync`, or before it starts.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.harness.scenario import LoadError
from bench.harness.trees import remove_tree

COMMANDS: Final = Path("/usr/sbin")
DAEMONS: Final = Path("/usr/lib/postfix/sbin")
START_LIMIT: Final = 20.0  # seconds until the first service must answer
STOP_LIMIT: Final = 10.0  # seconds for SIGTERM to work; SIGKILL to the process group after that
POLL: Final = 0.02  # seconds between two looks at a process or a directory
QUEUES: Final = ("maildrop", "incoming", "active", "deferred", "hold")
TRACE_FIELDS: Final = (b"return-path:", b"x-original-to:", b"delivered-to:", b"received:")

# name, type, private, unprivileged, wakeup, process limit, command: the services that receiving
# and delivering mail needs. Nothing runs chrooted: the jail would need files copied into it.
SERVICES: Final = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
showq unix n - n - - showq
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
"""
# The last one: when its socket is there, all others listen.
LAST_SERVICE: Final = "postlog unix-dgram n - n - 1 postlogd"


class PostfixError(LoadError):
    """Postfix cannot be run here, or did not start: why, with the end of its log."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def missing_program() -> str:
    """What is missing to run Postfix here, for people; empty when nothing is."""
    if os.geteuid() != 0:
        return "root (Postfix's master needs it)"
    if not (COMMANDS / "postfix").exists() or not (DAEMONS / "master").exists():
        return "the Debian package postfix"
    return ""


class PostfixInstance:
    """One Postfix, from `start()` to `stop()`; also a context manager that does both.

    directory: empty or absent; None: a temporary one that goes with the instance. All its parents
    must be searchable by everybody, because Postfix's daemons run as another user (pytest's
    `tmp_path` is not).
    main_cf: parameters on top of the defaults here. master_cf: lines that replace the service
    of the same name and type, or add one.
    smtpd: whether an smtpd(8) listens on `host`:`port` (0: a free port).

    Without other parameters every recipient of every domain is taken and delivered into
    `maildir`, one file per message: see `received()`.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        main_cf: Mapping[str, str] | None = None,
        master_cf: Sequence[str] = (),
        smtpd: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._temporary = directory is None
        self.directory = (
            Path(tempfile.mkdtemp(prefix="postfix-")) if directory is None else directory
        )
        self.host = host
        self.port = (port or free_port(host)) if smtpd else 0
        self.config_directory = self.directory / "etc"
        self.queue_directory = self.directory / "queue"
        self.data_directory = self.directory / "data"
        self.maildir = self.directory / "mail"
        self.log_file = self.directory / "log"
        self._main_cf = dict(main_cf or {})
        self._master_cf = list(master_cf)
        self._smtpd = smtpd
        self._master: subprocess.Popen[bytes] | None = None

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Run master(8) and return when it answers. Raises PostfixError."""
        if missing := missing_program():
            raise PostfixError(f"missing: {missing}")
        if self._master is not None:
            raise PostfixError("already running")
        self._make_directories()
        self.write_configuration()
        self.run("postfix", "check")
        self._last_socket.unlink(missing_ok=True)  # of an earlier run
        # Not `postfix start`: that one leaves a daemon behind whose parent we are not. Its own
        # session, because master ends its children by process group.
        self._master = subprocess.Popen(
            [DAEMONS / "master", "-c", self.config_directory, "-s"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all processes of this instance; a temporary directory stays until `remove()`."""
        master, self._master = self._master, None
        if master is None:
            return
        master.terminate()  # its handler passes the signal on to its process group
        try:
            master.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # What did not listen. The group is ours: master was its leader.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(master.pid, signal.SIGKILL)
            master.wait()

    def remove(self) -> None:
        """Forget everything on disk."""
        remove_tree(self.directory)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        try:
            self.stop()
        finally:
            if self._temporary:
                self.remove()

    # --- configuration --------------------------------------------------------------------------

    def configure(
        self, main_cf: Mapping[str, str] | None = None, master_cf: Sequence[str] = ()
    ) -> None:
        """Change parameters and services; a stopped instance uses them from its next start on."""
        self._main_cf.update(main_cf or {})
        self._master_cf.extend(master_cf)

    def write_configuration(self) -> None:
        """Write main.cf and master.cf as they are configured now."""
        parameters = self._defaults() | self._main_cf
        lines = [f"{name} = {value}\n" for name, value in parameters.items()]
        (self.config_directory / "main.cf").write_text("".join(lines))
        (self.config_directory / "master.cf").write_text(self._services())

    def _defaults(self) -> dict[str, str]:
        return {
            "compatibility_level": "3.6",
            "command_directory": str(COMMANDS),
            "daemon_directory": str(DAEMONS),
            "queue_directory": str(self.queue_directory),
            "data_directory": str(self.data_directory),
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "multi_instance_enable": "no",
            "syslog_name": "postfix",
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.directory),
            "myhostname": "peer.example",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": self.host,
            "inet_protocols": "ipv6" if ":" in self.host else "ipv4",
            "alias_maps": "",
            "alias_database": "",
            "smtputf8_enable": "yes",
            "smtpd_tls_security_level": "none",
            "smtp_tls_security_level": "none",
            # Content is compared to the octet: nothing of it may be rewritten or completed.
            "local_header_rewrite_clients": "",
            "message_size_limit": "0",
            "virtual_mailbox_limit": "0",
            "mailbox_size_limit": "0",
            "smtpd_client_connection_count_limit": "0",
            # Everything of every domain ends in one maildir.
            "virtual_mailbox_domains": "static:all",
            "virtual_mailbox_base": str(self.maildir),
            "virtual_mailbox_maps": "static:all/",
            "virtual_uid_maps": f"static:{_owner(self.maildir)[0]}",
            "virtual_gid_maps": f"static:{_owner(self.maildir)[1]}",
            "virtual_minimum_uid": "1",
        }

    def _services(self) -> str:
        lines = SERVICES.splitlines()
        if self._smtpd:
            lines.insert(0, f"{_bracketed(self.host)}:{self.port} inet n - n - - smtpd")
        for line in self._master_cf:
            name_and_type = line.lstrip("#").split()[:2]
            lines = [known for known in lines if known.split()[:2] != name_and_type]
            lines.append(line)
        return "\n".join([*lines, LAST_SERVICE]) + "\n"

    def _make_directories(self) -> None:
        made = not self.config_directory.exists()
        for directory in (
            self.directory,
            self.config_directory,
            self.queue_directory,
            self.data_directory,
            self.maildir,
        ):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        for parent in self.directory.absolute().parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                raise PostfixError(f"{parent} cannot be entered by Postfix's user")
        if made:
            shutil.chown(self.data_directory, "postfix")
            shutil.chown(self.maildir, "nobody", "nogroup")

    # --- while it runs --------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of master(8), also its process group. Raises PostfixError when stopped."""
        if self._master is None:
            raise PostfixError("not running")
        return self._master.pid

    def run(self, program: str, *arguments: str, stdin: bytes = b"") -> str:
        """What a Postfix command says about this instance. Raises PostfixError when it fails."""
        done = subprocess.run(
            [COMMANDS / program, "-c", self.config_directory, *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        said = done.stdout.decode(errors="replace")
        if done.returncode:
            raise PostfixError(f"{program} {' '.join(arguments)}: {said.strip()}{self._log_tail()}")
        return said

    def log(self) -> str:
        """Everything it logged so far; empty with another maillog_file."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def queued(self, *queues: str) -> int:
        """How many messages are in these queues (all of them without a name)."""
        return sum(
            1
            for queue in queues or QUEUES
            for _, _, files in os.walk(self.queue_directory / queue)
            for name in files
            if not name.endswith((".defer", ".bounce"))
        )

    def wait_until_drained(self, limit: float) -> None:
        """Return when no message is queued. Raises PostfixError after `limit` seconds."""
        self.wait(lambda: self.queued() == 0, limit, "the queue is not empty")

    def received(self) -> list[bytes]:
        """The messages in the maildir, oldest first, as virtual(8) wrote them (LF line ends)."""
        new = self.maildir / "all" / "new"
        files = (
            sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns) if new.exists() else []
        )
        return [path.read_bytes() for path in files]

    def wait_until_received(self, count: int, limit: float) -> list[bytes]:
        """`received()` as soon as it holds `count` messages. Raises PostfixError."""
        self.wait(lambda: len(self.received()) >= count, limit, f"{count} messages did not arrive")
        return self.received()

    @property
    def _last_socket(self) -> Path:
        return self.queue_directory / "public" / LAST_SERVICE.split()[0]

    def _wait_until_ready(self) -> None:
        def ready() -> bool:
            if self._master is None or self._master.poll() is not None:
                raise PostfixError(f"master ended{self._log_tail()}")
            return self._last_socket.exists()

        self.wait(ready, START_LIMIT, "master does not answer")

    def wait(self, condition: Callable[[], bool], limit: float, complaint: str) -> None:
        """Wait until `condition` holds. Raises PostfixError with `complaint` after `limit` s."""
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise PostfixError(f"{complaint} after {limit:.0f} s{self._log_tail()}")
            time.sleep(POLL)

    def _log_tail(self) -> str:
        lines = self.log().splitlines()[-10:]
        return "".join(f"\n  {line}" for line in lines)


def without_trace(message: bytes) -> bytes:
    """A received message without the header fields that Postfix put in front of it.

    What remains is the content as submitted, with LF line ends. Only leading trace fields go, each
    with its continuation lines, up to and including the first Received: field (the one that our
    peer's smtpd(8) added); a Received: field of the message itself stays.
    """
    lines = message.split(b"\n")
    position, received = 0, False
    while position < len(lines):
        line = lines[position]
        if received and line[:1] not in (b" ", b"\t"):
            break
        if not received and line[:1] not in (b" ", b"\t"):
            if not line.lower().startswith(TRACE_FIELDS):
                break
            received = line.lower().startswith(b"received:")
        position += 1
    return b"\n".join(lines[position:])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _owner(path: Path) -> tuple[int, int]:
    """User and group id of a directory."""
    status = path.stat()
    return status.st_uid, status.st_gid
