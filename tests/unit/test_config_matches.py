"""Lists to match. Beside Postfix: tests/integration/test_config_postconf.py."""

import os
from collections.abc import Coroutine
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.config import Config, ConfigError
from worker.config.match_list import StringList, open_host_list, open_string_list
from worker.config.table import TableConfigError, TableError
from worker.config.values import split_list

NAME = "smtp_connection_cache_destinations"


def result(matches: Coroutine[object, None, bool]) -> bool:
    """What a list says that waits for nothing; no event loop needed."""
    with pytest.raises(StopIteration) as caught:
        matches.send(None)
    value: bool = caught.value.value
    return value


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def listed(value: str, clock: Clock | None = None) -> StringList:
    return open_string_list(split_list(value), environ={"here": "x"}, clock=clock or Clock())


def matches(value: str, key: str) -> bool:
    return result(listed(value).matches(key))


# --- without files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "key", "verdict"),
    [
        ("", "a.example", False),
        ("a.example, b.example", "b.example", True),
        ("a.example, b.example", "c.example", False),
        ("a.example", "sub.a.example", False),
        ("A.Example", "a.eXAMPLE", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:DB8::1", True),
        ("!2001:db8::1, static:all", "2001:db8::1", False),
        ("[2001:db8::1]", "2001:db8::1", False),
        ("[a]:25", "[a]:25", True),
        ("inline:{/run/lmtp=yes}", "/run/lmtp", True),
        ("inline:{a=no}", "A", True),
        ("inline:{a=b}", "b", False),
        ("static:{}", "a", True),
        ("environ:x", "here", True),
        ("!a, static:all", "a", False),
        ("!a, static:all", "b", True),
        ("a, !a", "a", True),
        ("!a, a", "a", False),
        ("!!a", "a", True),
        ("!inline:{a=x} static:all", "a", False),
        ("!a", "b", False),
    ],
)
def test_the_first_item_that_fits_decides(
    value: str,
    key: str,
    verdict: bool,
) -> None:
    assert matches(value, key) is verdict


def test_a_table_in_trouble_fails_the_list_where_it_is_reached() -> None:
    assert matches("a, fail:x, b", "a")
    with pytest.raises(TableError, match="fail:x lookup of b fails"):
        matches("a, fail:x, b", "b")


WORDS = st.sampled_from(["a", "B", "c.d", "[e]", "f"])


@given(st.lists(st.tuples(st.integers(0, 3), WORDS)), WORDS)
def test_long_lists_say_what_their_items_say_one_by_one(
    items: list[tuple[int, str]], key: str
) -> None:
    fitting = [negations for negations, word in items if word.lower() == key.lower()]
    value = ", ".join("!" * negations + word for negations, word in items)
    assert matches(value, key.swapcase()) is (bool(fitting) and fitting[0] % 2 == 0)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("!", 'nothing after "!"'),
        ("a, !! b", 'nothing after "!!"'),
        ("hash:/no/x", "expected a file made by: postmap hash:/no/x"),
        ("unix:/run/lmtp", '"unix" is not supported yet'),
        ("host:25", 'no table type "host"'),
        ("a:", '"a:" is not a table'),
        ("/nowhere/at/all", "/nowhere/at/all cannot be read: No such file"),
        ("!/nowhere/at/all", "/nowhere/at/all cannot be read: No such file"),
    ],
)
def test_an_item_that_means_nothing_is_refused_with_the_reason(value: str, why: str) -> None:
    with pytest.raises(TableConfigError) as caught:
        listed(value)
    assert why in str(caught.value)


# --- hosts ---------------------------------------------------------------------------------------


def has_host(value: str, name: str, address: str = "", *, below: bool = True) -> bool:
    items = split_list(value)
    hosts = open_host_list(items, environ={}, clock=Clock(), below=below)
    return result(hosts.matches(name, address))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("mx.a.example", True),
        ("MX.a.Example", True),
        ("a.example", True),
        ("example", True),
        (".a.example", False),  # of no use where a domain stands for what is below it
        ("x.a.example", False),
        ("192.0.2.1", True),
        ("192.0.2.0/24", True),
        ("!192.0.2.0/24, mx.a.example", False),
        ("mx.a.example, !192.0.2.0/24", True),
        ("192.0.2.0/32", False),
        ("0.0.0.0/0", True),
        ("[2001:db8::]/32", False),
        ("2001:db8::/32, ::1", False),
        ("inline:{192.0.2.1=x}", True),
        ("inline:{a.example=x}", True),
        ("inline:{.a.example=x}", False),
        ("cidr:{{192.0.2.0/24 x}}", True),
        ("regexp:{{/^a.example/ x}}", False),  # parts of a name are not for patterns
        ("regexp:{{/^mx/ x}}", True),
    ],
)
def test_s153_a_host_is_listed_by_name_domain_address_or_network(
    value: str, *, verdict: bool
) -> None:
    assert has_host(value, "mx.a.example", "192.0.2.1") is verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("a.example", False),
        (".a.example", True),
        (".example", True),
        (".mx.a.example", False),
        ("inline:{.a.example=x}", True),
        ("inline:{a.example=x}", False),
    ],
)
def test_s153_a_domain_may_have_to_be_written_with_a_dot(value: str, *, verdict: bool) -> None:
    assert has_host(value, "mx.a.example", below=False) is verdict


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("[2001:db8::]/32", "2001:db8::9"),
        ("2001:db8::/32", "2001:DB8::9"),
        ("[2001:db8::9]", "2001:db8:0::9"),
        ("2001:db8::9", "2001:db8:0::9"),
    ],
)
def test_s153_an_ipv6_address_is_known_in_any_spelling(value: str, address: str) -> None:
    assert has_host(value, "mx.a.example", address)


def test_s153_a_socket_has_a_path_for_an_address() -> None:
    assert has_host("client.example", "client.example", "/run/lmtp")
    assert not has_host("127.0.0.0/8", "", "/run/lmtp")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("192.0.2.1/24", "host bits"),
        ("192.0.2.0/33", "192.0.2.0/33"),
        ("2001:db8::1/x", "2001:db8::1/x"),
    ],
)
def test_s153_a_network_that_is_none_is_refused(value: str, why: str) -> None:
    with pytest.raises(TableConfigError, match=why):
        has_host(value, "a")


def test_s153_networks_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("192.0.2.0/24\n!192.0.3.0/24\n")
    assert has_host(f"{tmp_path}/hosts", "a", "192.0.2.7")
    assert not has_host(f"{tmp_path}/hosts static:all", "a", "192.0.3.7")


# --- files ---------------------------------------------------------------------------------------


def test_the_items_of_a_file_stand_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("# off\n\n  one, !two\n\tinline:{three=x}\n")
    value = f"zero {tmp_path}/names !three two"
    assert [key for key in ("zero", "one", "two", "three", "off") if matches(value, key)] == [
        *("zero", "one", "three")
    ]
    assert [key for key in ("one", "two", "x") if matches(f"!{tmp_path}/names", key)] == ["two"]


def test_a_file_may_name_other_files(tmp_path: Path) -> None:
    (tmp_path / "outer").write_text(f"a\n!{tmp_path}/inner\n")
    (tmp_path / "inner").write_text("b !c\n")
    value = f"{tmp_path}/outer static:all"
    assert [key for key in "abcd" if matches(value, key)] == ["a", "c", "d"]


def test_files_that_name_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(f"a\n{tmp_path}/two\n")
    (tmp_path / "two").write_text(f"{tmp_path}/one\n")
    with pytest.raises(TableConfigError) as caught:
        listed(f"{tmp_path}/one")
    assert str(caught.value) == (
        f"{tmp_path}/one:2: {tmp_path}/two:1: "
        f"{tmp_path}/one names itself, directly or through another file"
    )


def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("a\n\ninline:{\n")
    with pytest.raises(TableConfigError, match=r'names:3: "\{" without "\}"; expected balanced'):
        listed(f"{tmp_path}/names")
    (tmp_path / "names").write_text("!\n")
    with pytest.raises(TableConfigError, match='names:1: nothing after "!"'):
        listed(f"{tmp_path}/names")


def test_a_changed_file_is_read_again_after_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "names", Clock()
    path.write_text("a\n")
    under_test = listed(str(path), clock)
    path.write_text("other\n")
    clock.now = 0.9
    assert result(under_test.matches("a"))
    clock.now = 1.0
    assert not result(under_test.matches("a"))
    assert result(under_test.matches("other"))


def test_a_changed_file_within_an_unchanged_one_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "outer").write_text(f"{tmp_path}/inner\n")
    (tmp_path / "inner").write_text("a\n")
    clock = Clock()
    under_test = listed(f"{tmp_path}/outer", clock)
    (tmp_path / "inner").write_text("other\n")
    clock.now = 1.0
    assert result(under_test.matches("other"))


def test_a_file_that_is_gone_or_broken_fails_the_list_until_it_is_right(tmp_path: Path) -> None:
    path, clock = tmp_path / "names", Clock()
    path.write_text("a\n")
    under_test = listed(f"first {path}", clock)
    path.unlink()
    clock.now = 1.0
    assert result(under_test.matches("first"))
    with pytest.raises(TableError, match="names cannot be used: No such file"):
        result(under_test.matches("a"))
    path.write_text("nosuch:x\n")
    with pytest.raises(TableError, match='names:1: there is no table type "nosuch"'):
        result(under_test.matches("a"))
    path.write_text("a")
    os.utime(path, (1, 1))
    assert result(under_test.matches("a"))


def test_what_is_odd_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "outer").write_text(f"a #b c\nd\n{tmp_path}/inner # x\n")
    (tmp_path / "inner").write_text("e\n#f\ng # h\n")
    (tmp_path / "table").write_text("key\n")
    clock = Clock()
    under_test = listed(f"{tmp_path}/outer, texthash:{tmp_path}/table, #i j", clock)
    odd = "and what follows is left out: a comment must be a line of its own"
    assert under_test.warnings == (
        f'"#i" {odd}',
        f'{tmp_path}/outer:1: "#b" {odd}',
        f'{tmp_path}/outer:3: "#" {odd}',
        f'{tmp_path}/inner:3: "#" {odd}',
        f"{tmp_path}/table:1: left out; expected key, white space, text",
    )
    assert [key for key in "abcdefghij" if result(under_test.matches(key))] == [*"adeg"]


# --- as a parameter ------------------------------------------------------------------------------


def test_a_parameter_opens_its_list_and_its_twin_another(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("# the big ones\n$mydomain\n")
    config = Config.from_mapping({NAME: f"$mydomain {tmp_path}/names", "mydomain": "d.example"})
    assert result(config.matches(NAME).matches("D.EXAMPLE"))
    assert result(config.matches(NAME).matches("$mydomain"))  # files are not expanded
    assert not result(config.matches("lmtp_connection_cache_destinations").matches("d.example"))
    assert config.text(NAME) == f"d.example {tmp_path}/names"


def test_mistakes_and_oddities_of_a_list_name_the_parameter(tmp_path: Path) -> None:
    main_cf = tmp_path / "main.cf"
    main_cf.write_text(f"\n{NAME} = a, {tmp_path}/none\n")
    with pytest.raises(ConfigError) as caught:
        Config.load(main_cf, environ={})
    assert str(caught.value) == (
        f"{main_cf}:2: {NAME} = a, {tmp_path}/none: {tmp_path}/none cannot be read:"
        " No such file or directory; expected a file that can be read"
    )
    main_cf.write_text(f"{NAME} = a # b\n")
    (warning,) = Config.load(main_cf, environ={}).warnings
    assert warning.startswith(f'{NAME}: "#" and what follows is left out')
