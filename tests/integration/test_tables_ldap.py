"""Tables in a real slapd beside real `postmap -q`: the same files, the same keys.

Needs python-ldap, our extra `ldap`, which `.ci/run` does not install: there is no wheel of it, and
it would need a compiler. So the Debian packages slapd and postfix-ldap are not in packages.txt,
either.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.integration.database_servers import BIND_DN, BIND_PW, SlapdServer
from tests.integration.peers import find_program
from tests.integration.pki import Pki
from tests.integration.postmap import TROUBLE, Answer, age, postmap_query
from worker.config.tables import Table, TableConfigError, TableError, open_table

pytest.importorskip("ldap", reason="not installed: python-ldap (the extra ldap)")

pytestmark = pytest.mark.skipif(
    not (find_program("slapd") and find_program("postfix-ldap.so")),
    reason="not installed: Debian packages slapd, postfix-ldap",
)

ENTRIES = """\
dn: dc=example,dc=com
objectClass: dcObject
objectClass: organization
o: example
dc: example

dn: ou=odd\\2C (name)*,dc=example,dc=com
objectClass: organizationalUnit
ou: odd, (name)*

dn: cn=a,dc=example,dc=com
objectClass: inetOrgPerson
cn: a
sn: a
mail: a@b.c
title: smtp:[a]
title: second

dn: cn=b,dc=example,dc=com
objectClass: inetOrgPerson
cn: b
sn: b
mail: (b)*\\@b.c
title: odd
employeeType: final

dn: cn=group,dc=example,dc=com
objectClass: inetOrgPerson
cn: group
sn: group
mail: group@b.c
description: own
title: of the group
seeAlso: cn=a,dc=example,dc=com
seeAlso: cn=b,dc=example,dc=com
seeAlso: cn=nobody,dc=example,dc=com

dn: cn=urls,dc=example,dc=com
objectClass: inetOrgPerson
objectClass: labeledURIObject
cn: urls
sn: urls
mail: urls@b.c
labeledURI: ldap:///dc=example,dc=com?title?sub?(mail=a@b.c)
labeledURI: ldap:///cn=a,dc=example,dc=com?mail
labeledURI: ldap:///cn=b,dc=example,dc=com

dn: cn=loop,dc=example,dc=com
objectClass: inetOrgPerson
cn: loop
sn: loop
mail: loop@b.c
seeAlso: cn=loop,dc=example,dc=com
"""
PLAIN = "query_filter = (mail=%s)\nresult_attribute = title\n"
GROUP = "query_filter = (mail=%s)\nspecial_result_attribute = seeAlso\n"


@pytest.fixture(scope="module")
def slapd() -> Iterator[SlapdServer]:
    with SlapdServer(ENTRIES) as server:
        yield server


def file_of(directory: Path, port: int, settings: str, password: str = BIND_PW) -> str:
    path = directory / "table.cf"
    where = "" if "search_base" in settings else "search_base = dc=example,dc=com\n"
    path.write_text(
        f"server_host = 127.0.0.1:{port}\nversion = 3\n{where}bind_dn = {BIND_DN}\n"
        f"bind_pw = {password}\n{settings}\n"
    )
    return f"ldap:{age(path)}"


def opened(spec: str) -> Table:
    return open_table(spec, environ={}, clock=lambda: 0.0)


def ours(table: Table, key: str) -> Answer:
    try:
        return trio.run(table.lookup, key)
    except TableError:
        return TROUBLE


@pytest.mark.parametrize(
    ("settings", "key", "answer"),
    [
        (PLAIN, "A@b.C", "smtp:[a],second"),
        (PLAIN, "(b)*\\@b.c", "odd"),
        (PLAIN, "*@b.c", None),
        (PLAIN, "x)(mail=*", None),
        (PLAIN, "nobody@b.c", None),
        (PLAIN + "result_format = [%s]%U", "a@b.c", "[smtp:[a]]a,[second]a"),
        (PLAIN + "result_filter = <%s>", "(b)*\\@b.c", "<odd>"),
        (PLAIN + "expansion_limit = 2", "a@b.c", "smtp:[a],second"),
        (PLAIN + "expansion_limit = 1", "a@b.c", TROUBLE),
        (PLAIN + "domain = b.c", "a@b.c", "smtp:[a],second"),
        (PLAIN + "domain = d.e", "a@b.c", None),
        ("query_filter = cn=%u\nresult_attribute = title, mail", "a@b.c", "a@b.c,smtp:[a],second"),
        ("query_filter = mail=*\nresult_attribute = title\nsize_limit = 1", "x", TROUBLE),
        ("query_filter = (mail=%s\nresult_attribute = title", "x", TROUBLE),
        (PLAIN + "search_base = cn=%u,dc=example,dc=com\nscope = base", "a@b.c", "smtp:[a],second"),
        (PLAIN + "search_base = cn=%u,dc=example,dc=com\nscope = base", "no@b.c", None),
        ("query_filter = (objectClass=*)\nresult_attribute = ou\nscope = base\n"
         "search_base = ou=%s,dc=example,dc=com", "odd, (name)*", "odd, (name)*"),
        (PLAIN + "search_base = dc=example,dc=com\nscope = one", "a@b.c", "smtp:[a],second"),
        (PLAIN + "search_base = dc=nowhere", "a@b.c", TROUBLE),
        (PLAIN + "search_base = no dn", "a@b.c", TROUBLE),
        (GROUP + "result_attribute = title", "group@b.c", "of the group,smtp:[a],second,odd"),
        (GROUP + "result_attribute =\nleaf_result_attribute = title", "group@b.c",
         "smtp:[a],second,odd"),
        (GROUP + "result_attribute = title\nterminal_result_attribute = employeeType", "group@b.c",
         "of the group,smtp:[a],second,final"),
        (GROUP + "result_attribute = title\nterminal_result_attribute = description", "group@b.c",
         "own"),
        (GROUP + "result_attribute = title\nrecursion_limit = 1", "group@b.c", TROUBLE),
        (GROUP + "result_attribute = title\nrecursion_limit = 20", "loop@b.c", TROUBLE),
        ("query_filter = (mail=%s)\nspecial_result_attribute = labeledURI\n"
         "result_attribute = title", "urls@b.c", "smtp:[a],second,odd"),
        ("query_filter = (mail=%s)\nspecial_result_attribute = labeledURI\n"
         "result_attribute = title, mail", "urls@b.c",
         "urls@b.c,smtp:[a],second,a@b.c,(b)*\\@b.c,odd"),
    ],
)  # fmt: skip
def test_s084_ldap_answers_as_postmap(
    tmp_path: Path, slapd: SlapdServer, settings: str, key: str, answer: Answer
) -> None:
    spec = file_of(tmp_path, slapd.port, settings)
    assert ours(opened(spec), key) == answer
    assert postmap_query(tmp_path, spec, key) == answer


def failure(table: Table, key: str) -> str:
    """Why there is no answer."""
    with pytest.raises(TableError) as caught:
        trio.run(table.lookup, key)
    return str(caught.value)


def test_s084_a_password_of_ldap_is_never_shown(tmp_path: Path, slapd: SlapdServer) -> None:
    spec = file_of(tmp_path, slapd.port, PLAIN, password="canary")
    why = failure(opened(spec), "a@b.c")
    assert "Invalid credentials" in why
    assert f"ldap://127.0.0.1:{slapd.port}" in why
    assert "canary" not in why


def test_s084_ldap_asks_the_next_server_and_a_restarted_one(
    tmp_path: Path, slapd: SlapdServer
) -> None:
    spec = file_of(tmp_path, slapd.port, PLAIN)
    path = Path(spec.removeprefix("ldap:"))
    text = path.read_text()
    path.write_text(text.replace("server_host = ", "server_host = ldap://127.0.0.1:1 "))
    now = 0.0
    table = open_table(spec, environ={}, clock=lambda: now)
    assert ours(table, "a@b.c") == "smtp:[a],second"
    slapd.stop()
    try:
        assert "Can't contact LDAP server" in failure(table, "a@b.c")
        assert failure(table, "a@b.c").endswith(", lately")
    finally:
        slapd.start()
    now = 2.0
    assert ours(table, "a@b.c") == "smtp:[a],second"


def test_s084_ldap_without_the_tls_that_was_asked_for_is_trouble(
    tmp_path: Path, slapd: SlapdServer
) -> None:
    spec = file_of(tmp_path, slapd.port, PLAIN + "start_tls = yes")
    assert "Protocol error" in failure(opened(spec), "a@b.c")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("bind = sasl", "bind = sasl is not supported; expected yes or no"),
        ("sasl_mechs = GSSAPI", "sasl_mechs is not supported"),
        ("scope = all", "scope = all; expected sub, base or one"),
        ("version = 4", "version = 4; expected 2 or 3"),
        ("dereference = 4", "dereference = 4; expected"),
        ("chase_referrals = maybe", "chase_referrals = maybe; expected yes or no"),
        ("server_host = http://x", "server_host = http://x; expected ldap://"),
        ("server_host = a:0", '"a:0" names no server'),
        ("server_host = ldap://127.0.0.1/dc=x??bad", "server_host: an LDAP URL that libldap"),
        ("tls_ca_cert_file = /no/where", "TLS cannot be set up"),
        ("tls_cipher_suite = nonsense", "TLS cannot be set up"),
        ("server_port = 0", "server_port = 0; expected a whole number, 1 or more"),
        ("timeout = 1s", "timeout = 1s; expected a whole number"),
        ("query_filter = %x", '"%x" in query_filter'),
        ("result_attribute =", "no attribute to return"),
    ],
)
def test_settings_of_ldap_that_cannot_be_used_are_refused(
    tmp_path: Path, settings: str, why: str
) -> None:
    path = tmp_path / "table.cf"
    path.write_text(f"search_base = dc=x\n{settings}\n")
    with pytest.raises(TableConfigError) as caught:
        opened(f"ldap:{path}")
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


def test_s084_a_file_for_tls_that_vanishes_is_trouble(tmp_path: Path) -> None:
    authorities, settings = Pki(tmp_path).ca_file(), tmp_path / "table.cf"
    settings.write_text(f"search_base = dc=x\ntls_ca_cert_file = {authorities}\n")
    table = opened(f"ldap:{settings}")
    authorities.unlink()
    assert "TLS cannot be set up" in failure(table, "a")


def test_settings_of_ldap_that_do_nothing_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "table.cf"
    path.write_text("search_base = dc=x\ncache = yes\n")
    assert opened(f"ldap:{path}").warnings == (f"{path}:2: cache has no effect",)
