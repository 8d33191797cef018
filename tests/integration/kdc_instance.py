"""A Kerberos realm of our own in one directory, with a KDC on a port of the loopback interface.

It never touches the system's realm. Needs Debian's packages `krb5-kdc` and `krb5-admin-server`.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.postfix_instance import free_port
from tests.integration.peers import find_program

REALM: Final = "TEST.EXAMPLE"
PROGRAMS: Final = ("krb5kdc", "kdb5_util", "kadmin.local")
START_LIMIT: Final = 20.0  # seconds
STOP_LIMIT: Final = 10.0

KRB5_CONF: Final = """\
[libdefaults]
  default_realm = {realm}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
  udp_preference_limit = 1
[realms]
  {realm} = {{
    kdc = 127.0.0.1:{port}
  }}
"""
KDC_CONF: Final = """\
[kdcdefaults]
  kdc_listen = 127.0.0.1:{port}
  kdc_tcp_listen = 127.0.0.1:{port}
[realms]
  {realm} = {{
    database_name = {directory}/principal
    key_stash_file = {directory}/stash
    acl_file = {directory}/acl
  }}
[logging]
  kdc = FILE:{directory}/kdc.log
"""


class KdcError(Exception):
    """The KDC did not start."""


class KdcInstance:
    """One realm, from entering the context to leaving it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kdc-"))
        self.directory.chmod(0o755)  # others read its krb5.conf
        self.config = self.directory / "krb5.conf"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
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

    def keytab(self, principal: str, path: Path) -> Path:
        """Make a principal with a random key; the key goes into the file `path`."""
        self._run("kadmin.local", "-q", f"addprinc -randkey {principal}")
        self._run("kadmin.local", "-q", f"ktadd -k {path} {principal}")
        return path

    def stop(self) -> None:
        """Nobody answers from now on."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self) -> None:
        port = free_port()
        facts = {"realm": REALM, "port": port, "directory": self.directory}
        self.config.write_text(KRB5_CONF.format(**facts))
        (self.directory / "kdc.conf").write_text(KDC_CONF.format(**facts))
        self._run("kdb5_util", "create", "-s", "-r", REALM, "-P", "master")
        self._process = subprocess.Popen(
            [_path("krb5kdc"), "-n", "-P", str(self.directory / "pid")],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                time.sleep(0.02)
            else:
                return
        raise KdcError("krb5kdc did not start")

    def _run(self, program: str, *arguments: str) -> None:
        """Raises KdcError."""
        command = [_path(program), *arguments]
        done = subprocess.run(command, env=self._environment(), capture_output=True, check=False)
        if done.returncode:
            raise KdcError(f"{program}: {done.stderr.decode(errors='replace')}")

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
        }


def _path(program: str) -> str:
    return find_program(program) or program
