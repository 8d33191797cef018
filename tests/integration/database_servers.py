"""Database servers of our own, each in one directory, on loopback and a UNIX socket.

They never touch the system's. Any user can run them; root runs them as nobody. Needs Debian's
packages `postgresql-15`, `mariadb-server-core`, or `slapd`.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
import pymysql

from bench.postfix_instance import free_port
from tests.integration.peers import find_program

START_LIMIT: Final = 60.0  # seconds
STOP_LIMIT: Final = 20.0
USER: Final = "reader"
PASSWORD: Final = "hunter2'\"\\ %s"  # with all that a file or a query could stumble over

SLAPD_CONF: Final = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix "dc=example,dc=com"
rootdn "cn=admin,dc=example,dc=com"
rootpw "secret word"
directory {directory}/data
access to * by users read by anonymous auth
"""
BIND_DN: Final = "cn=admin,dc=example,dc=com"
BIND_PW: Final = "secret word"


class ServerError(Exception):
    """A server did not start: why."""


class DatabaseServer:
    """One server, from entering the context to leaving it. It can be stopped and started again."""

    def __init__(self, kind: str) -> None:
        # Not pytest's tmp_path: nobody may enter that, and a socket's name there is too long.
        self.directory = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
        self.port = free_port()
        self._user: int | None = None
        self._group: int | None = None
        self._groups: list[int] | None = None
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody")
            self._user, self._group, self._groups = account.pw_uid, account.pw_gid, []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.directory.chmod(0o755)
            if self._user is not None and self._group is not None:
                os.chown(self.directory, self._user, self._group)
            self.make()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def make(self) -> None:
        """Make the database."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What runs the server in the foreground."""
        raise NotImplementedError

    def start(self) -> None:
        """It accepts connections at the end."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_ENVIRONMENT,
                user=self._user,
                group=self._group,
                extra_groups=self._groups,
            )
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until and self._process.poll() is None:
            if self.is_ready():
                return
            time.sleep(0.02)
        raise ServerError((self.directory / "log").read_text(errors="replace"))

    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def stop(self) -> None:
        """Nobody answers from now on."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self.stop_signal)
            try:
                process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    stop_signal = 15

    def run(self, *command: str) -> None:
        """Raises ServerError."""
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.directory,
            env=_ENVIRONMENT,
            user=self._user,
            group=self._group,
            extra_groups=self._groups,
        )
        if done.returncode:
            raise ServerError(f"{command[0]}: {(done.stdout + done.stderr).decode()}")

    def write(self, name: str, text: str) -> Path:
        """A file that the server may read."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o644)
        return path


_ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/nonexistent",
}


class PostgresServer(DatabaseServer):
    """PostgreSQL: anybody is `postgres` by way of the socket, USER has to say PASSWORD."""

    stop_signal = 2  # a "fast" stop, that waits for no client

    def __init__(self) -> None:
        super().__init__("pgsql")

    def make(self) -> None:
        """See DatabaseServer."""
        unused = self.write("pw", "unused")
        self.run(_path("initdb"), "-D", "data", "-U", "postgres", "-A", "scram-sha-256",
                 "--no-sync", "--no-locale", "-E", "UTF8", f"--pwfile={unused}")  # fmt: skip
        hba = (
            "local all postgres trust\n"
            "local all all scram-sha-256\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        (self.directory / "data/pg_hba.conf").write_text(hba)

    def command(self) -> list[str]:
        """See DatabaseServer."""
        settings = (f"unix_socket_directories={self.directory}", f"port={self.port}", "fsync=off",
                    "listen_addresses=127.0.0.1", "max_connections=30",
                    "shared_buffers=16MB")  # fmt: skip
        return [_path("postgres"), "-D", "data", *(f"--{setting}" for setting in settings)]

    def is_ready(self) -> bool:
        """See DatabaseServer. It listens before it has opened the database."""
        try:
            self.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, statements: str) -> None:
        """Run SQL as postgres."""
        with self._connected() as connection:
            connection.execute(statements.encode())

    def clients(self) -> int:
        """How many connections USER has."""
        with self._connected() as connection:
            [(count,)] = connection.execute(f"select count(*) {_CLIENTS}".encode())
        assert isinstance(count, int)
        return count

    def end_clients(self) -> None:
        """Close the connections of USER; they are closed at the end."""
        # The time limit (milliseconds) makes it wait for the end of each.
        self.execute(f"select pg_terminate_backend(pid, 60000) {_CLIENTS}")

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.directory), port=self.port, user="postgres", dbname="postgres"
        )


_CLIENTS: Final = f"from pg_stat_activity where usename = '{USER}'"


class MariaServer(DatabaseServer):
    """MariaDB: root has no password."""

    def __init__(self) -> None:
        super().__init__("mysql")
        self.socket = self.directory / "socket"

    def make(self) -> None:
        """See DatabaseServer."""
        self.run(_path("mariadb-install-db"), "--no-defaults", f"--datadir={self.directory}/data",
                 "--auth-root-authentication-method=normal", "--skip-test-db",
                 "--skip-name-resolve")  # fmt: skip

    def command(self) -> list[str]:
        """See DatabaseServer."""
        return [_path("mariadbd"), "--no-defaults", f"--datadir={self.directory}/data",
                f"--socket={self.socket}", f"--port={self.port}", "--bind-address=127.0.0.1",
                "--skip-name-resolve", f"--pid-file={self.directory}/pid",
                "--innodb-buffer-pool-size=8M", "--innodb-flush-log-at-trx-commit=0"]  # fmt: skip

    def execute(self, *statements: str) -> None:
        """Run SQL as root."""
        with pymysql.connect(
            unix_socket=str(self.socket), user="root", autocommit=True
        ) as connection:
            for statement in statements:
                connection.cursor().execute(statement)

    def clients(self) -> list[int]:
        """The connections of USER."""
        with pymysql.connect(unix_socket=str(self.socket), user="root") as connection:
            cursor = connection.cursor()
            cursor.execute("select id from information_schema.processlist where user = %s", [USER])
            return [number for (number,) in cursor.fetchall()]


class SlapdServer(DatabaseServer):
    """OpenLDAP's slapd with these entries (LDIF)."""

    def __init__(self, entries: str) -> None:
        super().__init__("ldap")
        self._entries = entries

    def make(self) -> None:
        """See DatabaseServer."""
        self.run("mkdir", "data")
        self.write("slapd.conf", SLAPD_CONF.format(directory=self.directory))
        self.run(
            _path("slapadd"), "-q", "-f", "slapd.conf", "-l", str(self.write("ldif", self._entries))
        )

    def command(self) -> list[str]:
        """See DatabaseServer."""
        return [
            _path("slapd"),
            "-f",
            "slapd.conf",
            "-h",
            f"ldap://127.0.0.1:{self.port}",
            "-d",
            "0",
        ]


def _path(program: str) -> str:
    path = find_program(program)
    if path is None:
        raise ServerError(f"{program} is not installed")
    return path
