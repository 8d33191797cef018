"""Logging in by Kerberos: a real KDC, and a Postfix smtpd(8) with Dovecot to check the tickets.

Needs python-gssapi, our extra `gssapi`, which `.ci/run` does not install, so that the Debian
packages krb5-kdc, krb5-admin-server and dovecot-gssapi are not in packages.txt either.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from bench.postfix_instance import PostfixInstance
from tests.integration.dovecot_instance import DovecotInstance
from tests.integration.kdc_instance import PROGRAMS, REALM, KdcInstance
from tests.integration.peers import find_program
from tests.integration.test_sasl_dovecot import LIMIT, Relay
from worker.cli import invoke
from worker.errors import SiteError

pytest.importorskip("gssapi", reason="not installed: python-gssapi (the extra gssapi)")

DOVECOT_MODULE = Path("/usr/lib/dovecot/modules/auth/libmech_gssapi.so")

pytestmark = [
    pytest.mark.peer("root", "postfix", "master", "smtpd", "dovecot"),
    pytest.mark.skipif(
        not DOVECOT_MODULE.exists() or not all(find_program(name) for name in PROGRAMS),
        reason="not installed: Debian packages krb5-kdc, krb5-admin-server, dovecot-gssapi",
    ),
]

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
auth_mechanisms = plain gssapi
auth_gssapi_hostname = "$ALL"
auth_krb5_keytab = {directory}/server.keytab
import_environment = KRB5_CONFIG={directory}/krb5.conf
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
service auth {{
  unix_listener {directory}/auth {{
    mode = 0666
  }}
}}
"""


@pytest.fixture(scope="module")
def kdc() -> Iterator[KdcInstance]:
    with KdcInstance() as instance:
        instance.keytab("mailer", instance.directory / "client.keytab")
        yield instance


@pytest.fixture(scope="module")
def postfix(kdc: KdcInstance) -> Iterator[PostfixInstance]:
    """A Postfix that lets in who has a ticket."""
    dovecot = DovecotInstance(config=CONFIG)
    keytab = kdc.keytab("smtp/mx.example", dovecot.directory / "server.keytab")
    kdc.keytab("smtp/127.0.0.1", keytab)
    keytab.chmod(0o644)
    shutil.copy(kdc.config, dovecot.directory / "krb5.conf")
    main_cf = {
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": str(dovecot.directory / "auth"),
        "smtpd_sasl_security_options": "noanonymous",
        "smtpd_error_sleep_time": "0",
    }
    with dovecot, PostfixInstance(main_cf=main_cf) as instance:
        yield instance


def realm(monkeypatch: pytest.MonkeyPatch, kdc: KdcInstance, cache: Path, keytab: str) -> None:
    """What tells the library where to look, in the environment of this process."""
    monkeypatch.setenv("KRB5_CONFIG", str(kdc.config))
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{cache}")
    monkeypatch.setenv("KRB5_CLIENT_KTNAME", f"FILE:{kdc.directory / keytab}")


def relay(postfix: PostfixInstance, host: str = "mx.example", **more: str) -> Relay:
    # By default: noplaintext, noanonymous.
    settings = {"smtp_sasl_password_maps": f"inline:{{{host}=mailer:}}", **more}
    return Relay(postfix, settings, host=host)


@trio_test
async def test_a_ticket_lets_us_in(
    postfix: PostfixInstance, kdc: KdcInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    realm(monkeypatch, kdc, tmp_path / "cache", "client.keytab")
    log = await relay(postfix).log_in()
    assert (
        f"sasl_method=GSSAPI, sasl_username=mailer@{REALM.lower()}\n" in log
    )  # as Dovecot says it


@trio_test
async def test_the_authorization_identity_is_understood(
    postfix: PostfixInstance, kdc: KdcInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    realm(monkeypatch, kdc, tmp_path / "cache", "client.keytab")
    log = await relay(postfix, send_cyrus_sasl_authzid="yes").log_in()
    assert "sasl_method=GSSAPI, sasl_username=mailer\n" in log


@trio_test
async def test_without_credentials_the_log_says_what_is_missing(
    postfix: PostfixInstance, kdc: KdcInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    realm(monkeypatch, kdc, tmp_path / "cache", "no.keytab")
    with pytest.raises(SiteError) as caught:
        await relay(postfix).log_in()
    assert caught.value.dsn == "4.7.0"
    assert "mx.example[127.0.0.1]: GSSAPI: " in caught.value.reason
    assert "credentials" in caught.value.reason


@trio_test
async def test_a_server_that_the_realm_does_not_know_is_not_logged_in_at(
    postfix: PostfixInstance, kdc: KdcInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    realm(monkeypatch, kdc, tmp_path / "cache", "client.keytab")
    with pytest.raises(SiteError) as caught:
        await relay(postfix, "other.example").log_in()
    assert "not found in Kerberos database" in caught.value.reason


def test_a_delivery_logs_in_first(
    postfix: PostfixInstance, kdc: KdcInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    realm(monkeypatch, kdc, tmp_path / "cache", "client.keytab")
    nexthop = f"[127.0.0.1]:{postfix.port}"
    main_cf, message = tmp_path / "main.cf", tmp_path / "message"
    main_cf.write_text(
        "smtp_sasl_auth_enable = yes\n"
        f"smtp_sasl_password_maps = inline:{{{{ {nexthop} = mailer: }}}}\n"
        "smtp_tls_security_level = none\n"
    )
    message.write_text("Subject: hello\n\nhello\n")
    before = len(postfix.log())
    arguments = ["deliver", "-c", str(main_cf), str(message), "--sender", "a@from.example"]
    assert invoke([*arguments, "--nexthop", nexthop, "--recipient", "b@to.example"]) == 0
    postfix.wait_until_drained(LIMIT)
    assert "sasl_method=GSSAPI, sasl_username=mailer@" in postfix.log()[before:]
