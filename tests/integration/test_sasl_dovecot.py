"""Logging in at a real Postfix smtpd(8), with Dovecot to check the passwords and tokens.

Postfix's log says by which mechanism and as whom.
"""

import json
import re
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance
from protocol import phrases
from protocol.capabilities import Capabilities
from protocol.command import Ehlo, Mail, Rcpt, Rset
from protocol.request import Protocol
from tests.integration.dovecot_instance import DovecotInstance
from worker.cli import invoke
from worker.config.config import Config
from worker.delivery.authentication import authenticate
from worker.delivery.session import Session
from worker.delivery.settings import DeliverySettings
from worker.errors import SiteError
from worker.network.address import Endpoint
from worker.network.socket_stream import QuickStream
from worker.sasl.client import SaslClient
from worker.tls.policy import TlsFacts, Trust

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd", "dovecot")

PASSWORD = "p:\u00e4 ss%word"  # what tables, Dovecot and SCRAM might stumble over
USERS = ["bob", "by.sender", "by.host", "by.nexthop"]
LIMIT = 20.0  # seconds for a line of the log
ACCEPTED = re.compile(r"client=.*\n")
SCRAM = ["SCRAM-SHA-1", "SCRAM-SHA-256"]
TOKEN = "canary.token-1"
CONFIG = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
protocols =
ssl = no
disable_plaintext_auth = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256 oauthbearer xoauth2
auth_failure_delay = 0
passdb {{
  driver = oauth2
  mechanisms = oauthbearer xoauth2
  args = {directory}/oauth2.conf
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {directory}/passwords
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/mail/%u allow_all_users=yes
}}
service anvil {{
  chroot =
  # Who is wrong several times would have to wait.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
service auth {{
  unix_listener {directory}/auth {{
    mode = 0666
  }}
}}
"""
OAUTH2 = """\
introspection_url = http://127.0.0.1:{port}/
introspection_mode = auth
username_attribute = user
active_attribute = active
active_value = true
"""


class _Introspection(BaseHTTPRequestHandler):
    """Says whose token it is."""

    def do_GET(self) -> None:
        good = self.headers["Authorization"] == f"Bearer {TOKEN}"
        body = json.dumps({"active": "true", "user": "tim"} if good else {"active": "false"})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def introspection() -> Iterator[int]:
    """The port of a server that knows one token."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Introspection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def postfix(introspection: int) -> Iterator[PostfixInstance]:
    """A Postfix that lets in whom Dovecot knows."""
    dovecot = DovecotInstance(config=CONFIG)
    (dovecot.directory / "oauth2.conf").write_text(OAUTH2.format(port=introspection))
    lines = [f"{name}:{{PLAIN.b64}}{b64encode(PASSWORD.encode()).decode()}\n" for name in USERS]
    lines += [f"{name.lower()}:{_stored(name)}\n" for name in SCRAM]
    (dovecot.directory / "passwords").write_text("".join(lines))
    main_cf = {
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": str(dovecot.directory / "auth"),
        "smtpd_sasl_security_options": "noanonymous",
        "smtpd_error_sleep_time": "0",
    }
    with dovecot, PostfixInstance(main_cf=main_cf) as instance:
        yield instance


def _stored(scheme: str) -> str:
    """What Dovecot keeps of the password when it shall not be able to read it."""
    command = ["doveadm", "pw", "-s", scheme, "-p", PASSWORD]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(slots=True)
class Relay:
    """The Postfix, as a client with some settings sees it."""

    postfix: PostfixInstance
    settings: Mapping[str, str]
    sender: str = "sender@from.example"
    host: str = "mx.example"  # its name
    tls: TlsFacts | None = None  # pretended: there are no certificates here

    async def log_in(self) -> str:
        """What Postfix's log says of who sent MAIL and RCPT. Raises SiteError."""
        config = Config.from_mapping({"smtp_sasl_auth_enable": "yes", **self.settings})
        sasl = SaslClient.from_config(config, Protocol.SMTP)
        assert sasl is not None
        credentials = await sasl.credentials(
            sender=self.sender, host=self.host, nexthop="[relay.example]:587"
        )
        assert credentials is not None
        where = ("127.0.0.1", self.postfix.port)
        endpoint = Endpoint(host=self.host, address=where[0], port=where[1], family=socket.AF_INET)
        before = len(self.postfix.log())
        stream = QuickStream(socket.create_connection(where))
        session = Session(endpoint, stream, DeliverySettings(skip_quit_response=False))
        session.tls = self.tls
        try:
            with session.conversation() as talk:
                talk.phase(phrases.GREETING, 30.0)
                session.dialogue.receive_greeting(await talk.reply())
                reply = await talk.ask(Ehlo("client.example"), phrases.EHLO, 30.0)
                session.capabilities = Capabilities.from_reply(reply)
                await authenticate(session, talk, sasl, credentials)
                for command in (Mail(self.sender), Rcpt("a@to.example"), Rset()):
                    assert (await talk.ask(command, phrases.RSET, 30.0)).positive
        finally:
            await session.quit()
        # Another process writes the log, some time after the answer.
        with trio.fail_after(LIMIT):
            while not (match := ACCEPTED.search(self.postfix.log(), before)):  # noqa: ASYNC110
                await trio.sleep(0.02)
        return match[0]

    def helped_by(self, path: Path) -> "Relay":
        """The same, with tokens from a command that is made here."""
        path.write_text(f"#!{sys.executable}\nprint({json.dumps(TOKEN)})\n")
        path.chmod(0o755)
        settings = {"smtp_sasl_type": "postrio", "smtp_sasl_path": str(path)}
        return replace(self, settings={**self.settings, **settings})


def relay(
    postfix: PostfixInstance, passwords: str, mechanisms: str = "", options: str = "noanonymous"
) -> Relay:
    settings = {
        "smtp_sasl_password_maps": f"inline:{{{passwords}}}",
        "smtp_sasl_security_options": options,
        "smtp_sasl_mechanism_filter": mechanisms,
    }
    return Relay(postfix, settings)


@pytest.mark.parametrize("name", ["PLAIN", "LOGIN", "CRAM-MD5", *SCRAM])
@trio_test
async def test_a_password_lets_us_in_by_each_mechanism(postfix: PostfixInstance, name: str) -> None:
    log = await relay(postfix, f"{{mx.example=bob:{PASSWORD}}}", name).log_in()
    assert f"sasl_method={name}, sasl_username=bob\n" in log


@trio_test
async def test_by_itself_it_takes_the_strongest(postfix: PostfixInstance) -> None:
    log = await relay(postfix, f"{{mx.example=bob:{PASSWORD}}}", options="noplaintext").log_in()
    assert "sasl_method=SCRAM-SHA-256, sasl_username=bob\n" in log


@pytest.mark.parametrize("name", SCRAM)
@trio_test
async def test_scram_needs_no_readable_password_at_the_server(
    postfix: PostfixInstance, name: str
) -> None:
    passwords = f"{{mx.example={name.lower()}:{PASSWORD}}}"
    log = await relay(postfix, passwords, name).log_in()
    assert f"sasl_method={name}, sasl_username={name.lower()}\n" in log


@pytest.mark.parametrize("name", ["PLAIN", "LOGIN", "CRAM-MD5", *SCRAM])
@trio_test
async def test_a_wrong_password_is_refused_by_each_mechanism(
    postfix: PostfixInstance, name: str
) -> None:
    with pytest.raises(SiteError) as caught:
        await relay(postfix, "mx.example=bob:wrong-canary", name).log_in()
    assert caught.value.dsn == "4.7.8"
    assert caught.value.reason.startswith(
        "SASL authentication failed; server mx.example[127.0.0.1] said: 535 5.7.8 Error:"
        " authentication failed"
    )
    assert "canary" not in caught.value.reason


@pytest.mark.parametrize("name", ["OAUTHBEARER", "XOAUTH2"])
@trio_test
async def test_a_token_lets_us_in(postfix: PostfixInstance, name: str, tmp_path: Path) -> None:
    log = await relay(postfix, f"mx.example=tim:{TOKEN}", name).log_in()
    assert f"sasl_method={name}, sasl_username=tim\n" in log
    # The same from a command, and then passwords are out of the question.
    log = await relay(postfix, "mx.example=tim:").helped_by(tmp_path / "helper").log_in()
    assert "sasl_method=OAUTHBEARER, sasl_username=tim\n" in log
    with pytest.raises(SiteError) as caught:
        await relay(postfix, "mx.example=tim:canary", name).log_in()
    assert caught.value.dsn == "4.7.8"
    assert "said: 535 5.7.8 Error: authentication failed" in caught.value.reason
    assert "canary" not in caught.value.reason


@trio_test
async def test_s086_the_log_of_the_server_tells_which_entry_won(postfix: PostfixInstance) -> None:
    keys = ["sender@from.example", "mx.example", "[relay.example]:587"]
    for number, winner in enumerate(USERS[1:]):
        entries = zip(keys[number:], USERS[1 + number :], strict=True)
        passwords = ", ".join(f"{{{key}={user}:{PASSWORD}}}" for key, user in entries)
        there = relay(postfix, passwords)
        settings = {**there.settings, "smtp_sender_dependent_authentication": "yes"}
        log = await replace(there, settings=settings).log_in()
        assert f"sasl_username={winner}\n" in log


@trio_test
async def test_s090_passwords_stay_at_home_in_the_clear_and_go_out_under_tls(
    postfix: PostfixInstance,
) -> None:
    there = relay(postfix, f"{{mx.example=bob:{PASSWORD}}}", "plain", "noplaintext")
    with pytest.raises(SiteError) as caught:
        await there.log_in()
    assert caught.value.dsn == "4.7.0"
    assert "no mechanism available (it offers PLAIN; see smtp_sasl_security_options)" in str(
        caught.value
    )
    settings = {**there.settings, "smtp_sasl_tls_security_options": "noanonymous"}
    facts = TlsFacts(trust=Trust.UNTRUSTED, protocol="TLSv1.3", cipher="X", bits=256)
    log = await replace(there, settings=settings, tls=facts).log_in()
    assert "sasl_method=PLAIN, sasl_username=bob\n" in log


@pytest.mark.parametrize(("password", "dsn"), [(PASSWORD, "2.0.0"), ("wrong-canary", "4.7.8")])
def test_a_delivery_logs_in_first(
    postfix: PostfixInstance,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],  # the log is written to the descriptor
    password: str,
    dsn: str,
) -> None:
    nexthop = f"[127.0.0.1]:{postfix.port}"
    main_cf, message = tmp_path / "main.cf", tmp_path / "message"
    main_cf.write_text(
        "smtp_sasl_auth_enable = yes\n"
        f"smtp_sasl_password_maps = texthash:{tmp_path}/passwords\n"
        "smtp_tls_security_level = none\n"
    )
    (tmp_path / "passwords").write_text(f"{nexthop} bob:{password}\n")
    message.write_text("Subject: hello\n\nhello\n")
    before = len(postfix.log())
    arguments = ["deliver", "-c", str(main_cf), str(message), "--sender", "a@from.example"]
    arguments += ["--json", "--nexthop", nexthop, "--recipient", "b@to.example"]
    assert invoke(arguments) == (0 if dsn == "2.0.0" else 75)
    said = capfd.readouterr()
    (outcome,) = [json.loads(line) for line in said.out.splitlines()]
    assert outcome["dsn"] == dsn
    assert "canary" not in said.out + said.err
    if dsn == "2.0.0":
        postfix.wait_until_drained(LIMIT)
        assert "sasl_method=SCRAM-SHA-256, sasl_username=bob\n" in postfix.log()[before:]
    else:
        assert "SASL authentication failed; server 127.0.0.1[127.0.0.1] said: 535" in said.err
