"""The source's TLS and AUTH as a program: against our sink, and against a Postfix."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.postfix_instance import PostfixInstance
from bench.server_process import ServerProcess
from bench.sink.certificate import self_made

LIMIT = 60.0  # seconds: far more than any of these loads takes
ROOT = Path(__file__).parents[2]
SECRET = "pass:word"  # of nothing


def source(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The program, run to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "bench.source", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
        timeout=LIMIT,
        text=True,
    )


def figures(*arguments: str, status: int = 0, **environment: str) -> Mapping[str, Any]:
    """What a load came to, from the JSON on standard output."""
    done = source(*arguments, "--json", "-", **environment)
    assert done.returncode == status, done.stderr
    assert not done.stderr
    assert SECRET not in done.stdout
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def sink(*words: str, json_path: Path | None = None) -> ServerProcess:
    """Our sink with such a listener."""
    more = ["--json", str(json_path)] if json_path else []
    return ServerProcess("bench.sink", ["--listen", f"127.0.0.1:0 {' '.join(words)}", *more])


@pytest.mark.parametrize(
    ("words", "option", "ehlo"),
    [(["starttls"], "--starttls", 2), (["tls"], "--tls", 1)],
)
def test_each_connection_is_secured_and_authenticated_and_its_phases_are_timed(
    tmp_path: Path, words: list[str], option: str, ehlo: int
) -> None:
    report, certificate = tmp_path / "report", tmp_path / "certificate"
    certificate.write_bytes(self_made("sink.example"))
    words = [*words, f"certificate={certificate}", f"auth:me={SECRET}"]
    with sink(*words, json_path=report) as server:
        found = figures(
            *(server.addresses[0], option, "-s", "2", "-m", "8", "--per-connection", "2"),
            SSL_CERT_FILE=str(certificate),
            POSTRIO_SOURCE_AUTH=f"me:{SECRET}",
        )
    assert found["messages"]["accepted"] == 8
    assert found["failures"] == []
    times = {name: each["count"] for name, each in found["times"].items()}
    connections = found["connections"]
    assert connections >= 4
    assert times["TLS handshake"] == times["AUTH"] == times["greeting"] == connections
    assert times["EHLO"] == ehlo * connections
    assert times.get("STARTTLS", 0) == (connections if option == "--starttls" else 0)
    total = json.loads(report.read_text())["total"]
    assert (total["tls"], total["authenticated"]) == (connections, connections)


@pytest.mark.parametrize(
    ("words", "options", "phase", "what"),
    [
        (["starttls"], ["--starttls"], "TLS handshake", "verify failed: self-signed"),
        ([], ["--starttls"], "STARTTLS", "does not offer STARTTLS"),
        ([], ["--tls"], "TLS handshake", "wrong version number"),
        (["starttls", "cut=handshake"], ["--starttls"], "TLS handshake", r"closed the con|reset"),
        (["starttls", "silent=handshake"], ["--starttls"], "TLS handshake", "no answer within"),
        (["'starttls=454 4.7.0 no'"], ["--starttls"], "STARTTLS", "4.7.0 no"),
        ([], ["--auth", f"me:{SECRET}"], "AUTH", "the server offers no AUTH"),
        (["'announce=AUTH X Y'"], ["--auth", f"me:{SECRET}"], "AUTH", "offers X Y: PLAIN or"),
        (["auth:me=other"], ["--auth", f"me:{SECRET}"], "AUTH", "5.7.8 Authentication failed"),
    ],
)
def test_a_connection_that_cannot_be_secured_is_no_session(
    words: list[str], options: list[str], phase: str, what: str
) -> None:
    with sink(*words) as server:
        found = figures(
            *(server.addresses[0], *options, "-m", "2", "--time-limit", "handshake=0.2"),
            status=os.EX_UNAVAILABLE,
        )
    assert found["messages"]["accepted"] == 0
    seen = [*found["failures"], *found["replies"]]
    [one] = [each for each in seen if each["phase"] == phase]
    assert one["count"] == 2
    assert re.search(what, one["sample"])


@pytest.mark.parametrize("words", [["auth"], ["announce=AUTH=LOGIN", "auth"]])
def test_a_certificate_need_not_be_known_with_insecure(words: list[str]) -> None:
    with sink("starttls", *words) as server:
        found = figures(server.addresses[0], "--starttls", "--insecure", "--auth", f"any:{SECRET}")
    assert found["messages"]["accepted"] == 1


def test_login_is_spoken_where_plain_is_not_offered() -> None:
    asked = [b"334 VXNlcm5hbWU6", b"334 UGFzc3dvcmQ6", b"535 5.7.8 no", b"221 bye"]
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "bench.source", "--json", "-"),
                *(f"127.0.0.1:{server.getsockname()[1]}", "--auth", f"me:{SECRET}"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        server.settimeout(LIMIT)
        connection, _ = server.accept()
        with process, connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 hi\r\n")
            heard.append(lines.readline())
            connection.sendall(b"250-x\r\n250 AUTH LOGIN\r\n")
            for reply in asked:
                heard.append(lines.readline())
                connection.sendall(reply + b"\r\n")
    assert heard[1:] == [b"AUTH LOGIN\r\n", b"bWU=\r\n", b"cGFzczp3b3Jk\r\n", b"QUIT\r\n"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--starttls", "--tls"], "choose one"),
        (["--insecure"], "--insecure is for"),
        (["--auth", SECRET.replace(":", "")], "--auth: expected USER:PASSWORD"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: list[str], complaint: str) -> None:
    done = source("127.0.0.1:25", *options)
    assert done.returncode == os.EX_USAGE
    assert complaint in done.stderr
    assert SECRET.replace(":", "") not in done.stderr


@pytest.mark.peer("root", "postfix", "master", "smtpd")
def test_postfix_gets_mail_inside_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate"
    certificate.write_bytes(self_made("mx.example"))
    main_cf = {
        "smtpd_tls_security_level": "encrypt",
        "smtpd_tls_cert_file": str(certificate),
        "smtpd_tls_loglevel": "1",
    }
    with PostfixInstance(main_cf=main_cf) as postfix:
        server = f"localhost:{postfix.port}"
        found = figures(server, "--starttls", "-m", "3", SSL_CERT_FILE=str(certificate))
        assert found["messages"]["accepted"] == 3
        assert len(postfix.wait_until_received(3, LIMIT)) == 3
        assert "TLSv1.3 with cipher" in postfix.log()
