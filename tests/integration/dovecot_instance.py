"""A Dovecot of our own in one directory: LMTP over TCP and over a UNIX socket.

Answers for its configuration, its life, and what it stored. It never touches the system's Dovecot.
Needs Debian's packages `dovecot-core` and `dovecot-lmtpd`. Any user can run it; root runs its mail
processes as nobody, because Dovecot delivers no mail as root.
"""

import grp
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.postfix_instance import free_port
from tests.integration.peers import find_program

START_LIMIT: Final = 20  # seconds
STARTED: Final = "starting up"
STOP_LIMIT: Final = 10  # seconds for SIGTERM to work

# Every user exists. Contents are stored with CRLF, so that what is in the file is what came.
CONFIG: Final = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
protocols = lmtp
listen = 127.0.0.1
ssl = no
hostname = store.example
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
mail_uid = {user}
mail_gid = {group}
mail_home = {directory}/mail/%u
mail_location = maildir:~/box
mail_save_crlf = yes
# The journal of each mailbox would be flushed for each message.
mail_fsync = never
lmtp_save_to_detail_mailbox = no
auth_username_chars =
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/mail/%u allow_all_users=yes
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener {directory}/lmtp {{
    mode = 0666
  }}
}}
"""

# What Dovecot puts in front of a message; with several recipients it does not say which one.
TRACE: Final = re.compile(
    rb"(Return-Path: .*\r\n)?(Delivered-To: .*\r\n)?Received: .*\r\n([ \t].*\r\n)+"
)


class DovecotError(Exception):
    """Dovecot did not start: why, with its log."""


class DovecotInstance:
    """One Dovecot, from entering the context to leaving it."""

    def __init__(self, extra: str = "", *, config: str = CONFIG) -> None:
        """`config`: a template of dovecot.conf, with the fields that CONFIG has, and `extra` at its
        end.
        """
        self._config = config
        # Not pytest's tmp_path: nobody may enter that, and a socket's name there is too long.
        self.directory = Path(tempfile.mkdtemp(prefix="dovecot-"))
        self.port = free_port()
        self.socket = self.directory / "lmtp"
        self.log: list[str] = []  # what it said so far
        self._spoke = threading.Event()
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
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

    def received(self) -> dict[str, list[bytes]]:
        """The messages of each user (an address), as they are in the maildirs: CRLF line ends."""
        found: dict[str, list[bytes]] = {}
        for path in (self.directory / "mail").glob("*/box/new/*"):
            found.setdefault(path.parents[2].name, []).append(path.read_bytes())
        return found

    def forget(self) -> None:
        """Remove all mailboxes."""
        for path in (self.directory / "mail").iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _start(self) -> None:
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        config = self.directory / "dovecot.conf"
        mail = self.directory / "mail"
        mail.mkdir()
        self.directory.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(mail, account.pw_uid, account.pw_gid)
        config.write_text(
            (self._config + self._extra).format(
                directory=self.directory,
                port=self.port,
                user=account.pw_name,
                group=grp.getgrgid(account.pw_gid).gr_name,
                uid=account.pw_uid,
                gid=account.pw_gid,
            )
        )
        self._process = subprocess.Popen(
            [find_program("dovecot") or "dovecot", "-F", "-c", config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,))
        self._reader.start()
        if not self._spoke.wait(START_LIMIT) or not any(STARTED in line for line in self.log):
            raise DovecotError("dovecot did not start: " + "".join(self.log))

    def _read_log(self, process: "subprocess.Popen[bytes]") -> None:
        """Until Dovecot closes it. Its listeners are open before its first word."""
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.log.append(line.decode(errors="replace"))
                self._spoke.set()
        self._spoke.set()

    def _leave(self) -> None:
        try:
            process, self._process = self._process, None
            if process is not None:
                process.terminate()  # the master ends its children, and waits for them
                try:
                    process.wait(STOP_LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if self._reader is not None:
                self._reader.join()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def without_trace(message: bytes) -> bytes:
    """A received message without the header fields that Dovecot put in front of it."""
    match = TRACE.match(message)
    assert match is not None, message[:1000]
    return message[match.end() :]
