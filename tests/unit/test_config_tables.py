"""Lookup tables. Answers of types that Postfix has were checked against postmap -q (3.7)."""

import os
import re
import string
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.table_files import keep_out_of_sight
from worker.config.table_memory import Random
from worker.config.tables import Maps, Table, TableConfigError, TableError, open_maps, open_table

T = TypeVar("T")


def result(lookup: Coroutine[object, None, T]) -> T:
    """What a lookup answers that waits for nothing; no event loop needed."""
    with pytest.raises(StopIteration) as caught:
        lookup.send(None)
    value: T = caught.value.value
    return value


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def table(spec: str, clock: Clock | None = None, **environ: str) -> Table:
    return open_table(spec, environ=environ, clock=clock or Clock())


def find(spec: str, key: str) -> str | None:
    return result(table(spec).lookup(key))


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "table"
    path.write_text(text)
    return str(path)


# --- without a file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "key", "text"),
    [
        ("inline:{a=b, {A1 = x y, z}, { c=d }}", "a", "b"),
        ("inline:{a=b, {A1 = x y, z}, { c=d }}", "a1", "x y, z"),
        ("inline:{a=b,{c=d}}", "C", "d"),
        ("inline:{a=1 a=2}", "a", "2"),
        ("inline:{a=1}", "b", None),
        ("static:a", "x", "a"),
        ("static:{a  b}", "", "a  b"),
        ("environ:x", "HOME", "/here"),
        ("environ:x", "home", None),
    ],
)
def test_tables_without_a_file_answer(spec: str, key: str, text: str | None) -> None:
    assert result(table(spec, HOME="/here").lookup(key)) == text


def test_the_fail_table_never_answers() -> None:
    with pytest.raises(TableError, match="fail:x lookup of key fails"):
        result(table("fail:x").lookup("key"))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("transport", "is not a table"),
        ("static:", "is not a table"),
        ("dbm:/etc/x", '"dbm" is not supported yet; expected texthash:/etc/x'),
        ("proxy:sdbm:/etc/x", '"sdbm" is not supported yet; expected texthash:/etc/x'),
        ("memcache:/etc/x", '"memcache" is not supported yet; expected one of: btree, cdb'),
        ("hash:x", '"x" depends on the working directory'),
        ("hash:/no/x", "/no/x.db cannot be read: No such file or directory; expected a file made"),
        ("cdb:/no/x", "/no/x.cdb cannot be read"),
        ("lmdb:/no/x", "/no/x.lmdb cannot be read"),
        ("hsh:/etc/x", 'no table type "hsh"'),
        ("inline:{}", "without an entry"),
        ("inline:{a}", 'no "key=text" in "a"'),
        ("inline:{a = 1}", 'no "key=text"'),
        ("inline:a=b", "not in braces"),
        ("static:{a}b", "after the braces"),
        ("static:{a}{b}", "after the braces"),
        ("texthash:table", "depends on the working directory"),
        ("texthash:/nowhere/at/all", "cannot be read: No such file"),
        ("unionmap:{}", "unionmap without a table; expected unionmap:{type:name, ...}"),
        ("unionmap:static:x", "not in braces"),
        ("unionmap:{static:x", "not in braces"),
        ("pipemap:{static:x}y", "after the braces"),
        ("pipemap:{foo}", '"foo" is not a table'),
        ("pipemap:{hsh:x}", 'no table type "hsh"'),
        ("unionmap:{" * 2000 + "static:x" + "}" * 2000, "over 20 deep"),
        ("randmap:{}", "randmap without a text"),
        ("randmap:x", "not in braces"),
        ("regexp:{{/a/ $1}}", "$1, but there are 0 groups"),
        (r"regexp:{{/\d/ 1}}", r"\d has no meaning in a POSIX pattern"),
        ("regexp:{{/(?:a)/ 1}}", "have no (?...)"),
        ("regexp:{{/a{x}/ 1}}", '"{" without a number'),
        ("regexp:{{/a|{2}/ 1}}", "{2} repeats nothing"),
        ("regexp:{{/a{2}?/ 1}}", "{2}? repeats twice"),
        ("regexp:{{/[[.a.]]/ 1}}", "collating elements"),
        ("pcre:{{/a{,2}/ 1}}", "not the same in all versions of PCRE"),
    ],
)
def test_a_table_that_cannot_be_opened_says_why(spec: str, why: str) -> None:
    with pytest.raises(TableConfigError) as caught:
        table(spec)
    assert why in str(caught.value)


# Postfix skips the rule with a warning, or reads what its author can hardly have meant.
@pytest.mark.parametrize(
    "pattern",
    [
        *("(?i)a", "{", "a{", "({a)", "a{2,1}", "(a", "[[:foo:]]", "[b-a]", "[[=a=]]"),
        *(r"\D", r"\n", r"\Aa", r"\x61", r"\0", "a{1}{2}", "a{2}*", "a*{2}"),
    ],
)
def test_s084_what_has_no_meaning_in_posix_is_refused(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "table"
    path.write_text(f"/{pattern}/ 1\n")
    with pytest.raises(TableConfigError, match=f"^{re.escape(str(path))}:1: "):
        table(f"regexp:{path}")


# --- proxy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["proxy:", "proxy:" * 2000])
def test_proxy_stands_for_the_table_behind_it(proxy: str) -> None:
    assert find(f"{proxy}inline:{{a=1}}", "A") == "1"
    assert find(f"unionmap:{{{proxy}inline:{{a=1}}, static:2}}", "a") == "1,2"
    assert table(f"{proxy}regexp:{{{{/a/ 1}}}}").whole_keys_only
    for wrong, why in [("", "is not a table"), ("hsh:x", 'no table type "hsh"')]:
        with pytest.raises(TableConfigError, match=why):
            table(f"{proxy}{wrong}")


# --- tables of tables ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "key", "text"),
    [
        ("unionmap:{static:1, static:2}", "a", "1,2"),
        ("unionmap:{inline:{a=1},inline:{b=2},inline:{a=3}}", "A", "1,3"),
        ("unionmap:{inline:{a=1},inline:{b=2}}", "c", None),
        ("unionmap:{static:{a b},  static:c , }", "", "a b,c"),
        ("unionmap:{inline:{a=}, static:x, inline:{a=}}", "a", "x,"),
        ("unionmap:{inline:{a=}}", "a", None),
        ("pipemap:{inline:{a=B} inline:{b=C},inline:{c=D}}", "A", "D"),
        ("pipemap:{inline:{a=b},inline:{x=c}}", "a", None),
        ("pipemap:{inline:{a=b},fail:x}", "z", None),
        ("pipemap:{inline:{a=}, static:x}", "a", "x"),
        ("unionmap:{pipemap:{static:a,inline:{a=1}},static:2}", "k", "1,2"),
        ("randmap:{x, x}", "a", "x"),
        ("randmap:{{a b}}", "a", "{a b}"),
    ],
)
def test_tables_of_tables_answer_as_in_postfix(spec: str, key: str, text: str | None) -> None:
    assert find(spec, key) == text


@pytest.mark.parametrize("kind", ["unionmap", "pipemap"])
def test_a_table_in_trouble_fails_the_tables_made_of_it(kind: str) -> None:
    with pytest.raises(TableError, match="fail:x"):
        find(f"{kind}:{{static:a, fail:x}}", "key")


@pytest.mark.parametrize(
    ("name", "partial"),
    [("{static:x,cidr:{{::1 x}}}", "x"), ("{regexp:{{/./ x}}, static:x}", None)],
)
@pytest.mark.parametrize("kind", ["unionmap", "pipemap"])
def test_the_first_table_says_whether_parts_of_an_address_are_asked_for(
    kind: str, name: str, partial: str | None
) -> None:
    maps = open_maps([f"{kind}:{name}"], environ={}, clock=Clock())
    assert result(maps.find("::1", partial=True)) == (
        partial and {"unionmap": "x,x", "pipemap": None}[kind]
    )


def test_randmap_draws_from_all_texts_for_whole_keys() -> None:
    texts: list[str] = []

    def choose(given: Sequence[str]) -> str:
        texts.extend(given)
        return given[-1]

    drawn = Random("randmap:{a, b c}", "{a, b c}", choose)
    assert result(drawn.lookup("key")) == "c"
    assert texts == ["a", "b", "c"]
    assert drawn.whole_keys_only


def test_warnings_of_the_tables_inside_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, "noval\n")
    assert table(f"unionmap:{{static:x, texthash:{path}}}").warnings == (
        f"{path}:1: left out; expected key, white space, text",
    )


# --- lists of tables -----------------------------------------------------------------------------


def test_the_first_table_that_has_the_key_answers() -> None:
    maps = open_maps(["inline:{a=1}", "inline:{a=2, b=3}"], environ={}, clock=Clock())
    assert result(maps.find("a")) == "1"
    assert result(maps.find("b")) == "3"
    assert result(maps.find("c")) is None
    assert maps
    assert not Maps()


def test_a_table_in_trouble_ends_the_search() -> None:
    maps = open_maps(["inline:{a=1}", "fail:x", "static:y"], environ={}, clock=Clock())
    assert result(maps.find("a")) == "1"
    with pytest.raises(TableError):
        result(maps.find("b"))


def test_patterns_are_not_asked_for_parts_of_an_address() -> None:
    maps = open_maps(["regexp:{{/./ pattern}}", "static:rest"], environ={}, clock=Clock())
    assert result(maps.find("a@example.com")) == "pattern"
    assert result(maps.find("example.com", partial=True)) == "rest"


# --- texthash ------------------------------------------------------------------------------------

TEXTHASH = """\
# a comment
A.com  one two  
"a b"@x y
noval
b: c
a.com dup
\\ x z
"un q
k"k l" m
cont
  more
  x # y
"""  # noqa: W291  # white space at the end of a line is what it tests


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a.com", "one two"),
        ("A.COM", "one two"),
        ('"a b"@x', "y"),
        ("a b@x", None),
        ("noval", None),
        ("b:", "c"),
        ("b", None),
        ("\\ x", "z"),
        ('k"k l"', "m"),
        ("cont", "more  x # y"),
    ],
)
def test_texthash_reads_what_postmap_reads(tmp_path: Path, key: str, text: str | None) -> None:
    assert find(f"texthash:{written(tmp_path, TEXTHASH)}", key) == text


def test_lines_left_out_are_warned_of(tmp_path: Path) -> None:
    path = written(tmp_path, " x y\n" + TEXTHASH)
    assert table(f"texthash:{path}").warnings == (
        f"{path}:1: a line that continues none is left out",
        f"{path}:5: left out; expected key, white space, text",
        f'{path}:6: the key ends in ":"; is this an alias file?',
        f"{path}:7: left out; an earlier line has this key",
        f"{path}:9: left out; expected key, white space, text",
    )


def test_a_changed_file_is_read_again_after_a_second(tmp_path: Path) -> None:
    path, clock = Path(written(tmp_path, "a one\n")), Clock()
    under_test = table(f"texthash:{path}", clock)
    path.write_text("a other\nb two\n")
    clock.now = 0.9
    assert result(under_test.lookup("b")) is None
    clock.now = 1.0
    assert result(under_test.lookup("b")) == "two"
    assert result(under_test.lookup("a")) == "other"
    path.write_text("a third\n")
    clock.now = 1.9
    assert result(under_test.lookup("a")) == "other"
    clock.now = 2.0
    assert result(under_test.lookup("a")) == "third"


def test_a_replaced_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    path, clock = Path(written(tmp_path, "a 1\n")), Clock()
    status = path.stat()
    under_test = table(f"texthash:{path}", clock)
    other = tmp_path / "other"
    other.write_text("a 2\n")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)
    clock.now = 1.0
    assert result(under_test.lookup("a")) == "2"


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    under_test = table(f"texthash:{written(tmp_path, 'a 1')}", clock)
    monkeypatch.setattr(Path, "open", None)
    clock.now = 5.0
    assert result(under_test.lookup("a")) == "1"


def test_a_file_that_is_gone_fails_lookups_until_it_is_back(tmp_path: Path) -> None:
    path, clock = Path(written(tmp_path, "a 1\n")), Clock()
    under_test = table(f"texthash:{path}", clock)
    path.unlink()
    clock.now = 1.0
    for _ in range(2):
        with pytest.raises(TableError, match="cannot be used: No such file"):
            result(under_test.lookup("a"))
    path.write_text("a 2\n")
    assert result(under_test.lookup("a")) == "2"


@pytest.mark.parametrize("kind", ["texthash", "regexp"])
def test_s086_a_file_left_outside_the_jail_keeps_what_was_read_before(
    tmp_path: Path, kind: str
) -> None:
    outside, within, clock = tmp_path / "outside", tmp_path / "within", Clock()
    before, after = ("a 1\n", "a 2\n") if kind == "texthash" else ("/a/ 1\n", "/a/ 2\n")
    for path in (outside, within):
        path.write_text(before)
    left, seen = table(f"{kind}:{outside}", clock), table(f"{kind}:{within}", clock)
    outside.unlink()  # as who has gone into a jail sees it
    assert str(outside) in keep_out_of_sight()
    assert str(within) not in keep_out_of_sight()
    within.write_text(after)
    clock.now = 1.0
    assert result(left.lookup("a")) == "1"
    assert result(left.lookup("b")) is None
    assert result(seen.lookup("a")) == "2"
    # What was seen in the jail and is gone there is in trouble, as everywhere.
    within.unlink()
    clock.now = 2.0
    assert result(left.lookup("a")) == "1"
    with pytest.raises(TableError, match="cannot be used: No such file"):
        result(seen.lookup("a"))


def test_a_file_that_turns_bad_fails_lookups_until_it_is_right(tmp_path: Path) -> None:
    path, clock = Path(written(tmp_path, "/a/ 1\n")), Clock()
    under_test = table(f"regexp:{path}", clock)
    path.write_text("/a/ 2\n/(/ 3\n")
    clock.now = 1.0
    with pytest.raises(TableError, match="table:2: the pattern"):
        result(under_test.lookup("a"))
    path.write_text("/a/ 4\n")
    assert result(under_test.lookup("a")) == "4"


def test_a_file_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"a b\nc \xff\n")
    with pytest.raises(TableConfigError, match="table:2: not UTF-8 text"):
        table(f"texthash:{path}")


WORDS = st.text("abcxyz@.+", min_size=1, max_size=8).filter(lambda word: not word.endswith(":"))


@given(st.dictionaries(WORDS, st.lists(WORDS, min_size=1)))
def test_texthash_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[str]]
) -> None:
    text = "".join(f"{key}\t{' '.join(words)}\n" for key, words in rows.items())
    under_test = table(f"texthash:{written(tmp_path_factory.mktemp('t'), text)}")
    for key, words in rows.items():
        assert result(under_test.lookup(key.upper())) == " ".join(words)


# --- cidr ----------------------------------------------------------------------------------------

CIDR = """\
192.168.1.0/24 net one
10.0.0.1\tsingle
!127.0.0.0/8 notloop
if 127.0.0.0/16
127.0.1.0/24  inner
endif
::1 v6
[fd00::]/8 br
"""


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("192.168.1.7", "net one"),
        ("10.0.0.1", "single"),
        ("10.0.0.2", "notloop"),
        ("127.0.1.5", "inner"),
        ("127.0.2.5", None),
        ("127.1.1.1", None),
        ("::1", "v6"),
        ("fd00::3", "br"),
        ("fe00::3", None),  # the negated rule is for the other family
        ("host", None),
    ],
)
def test_cidr_answers_for_addresses(tmp_path: Path, key: str, text: str | None) -> None:
    assert find(f"cidr:{written(tmp_path, CIDR)}", key) == text


def test_cidr_refuses_host_bits(tmp_path: Path) -> None:
    with pytest.raises(TableConfigError, match=r"table:1: 10\.0\.0\.1/8 has host bits set"):
        table(f"cidr:{written(tmp_path, '10.0.0.1/8 x')}")


# --- regular expressions -------------------------------------------------------------------------

PATTERNS = """\
/^(a+)@(.*)$/  $1-${2}-$(1)-$$
/^foo$/i  casesens
!/@/ noat
if /^if/
/x$/ ifx
!/y/ nested
endif
if !/z/
/^nz/ never
endif
/[[:digit:]]+\\.com/ digits
/(x)|(y)/ [$1][$2]
/emp/
/b\\/c/ slash
#/n/ c
  cont
|^pipe| pp
"""


@pytest.mark.parametrize("kind", ["regexp", "pcre"])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("aaa@b", "aaa-b-aaa-$"),
        ("AAA@b", "AAA-b-AAA-$"),
        ("foo", "casesens"),
        ("FOO", "noat"),
        ("if@x", "ifx"),
        ("if@q", "nested"),
        ("nz@", None),
        ("zz@12.com", "digits"),
        ("zz@y", "[][y]"),
        ("zz@x", "[x][]"),
        ("emp@z", ""),
        ("zb/c@", "slash  cont"),
        ("pipe@z", "pp"),
        ("none@z", None),
    ],
)
def test_s084_patterns_answer_as_in_postfix(
    tmp_path: Path, kind: str, key: str, text: str | None
) -> None:
    assert find(f"{kind}:{written(tmp_path, PATTERNS)}", key) == text


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("/a/ $3", "$3, but there are 0 groups"),
        ("!/(a)/ $1", "$1, but there are 0 groups"),
        ("/a/ $x", '"$" without a number'),
        ("/(a)/ $0", "$0 is not a group"),
        ("/a/z q", 'the flag "z" is not supported'),
        ("/a/!q", '"!" is not a flag'),
        ("/a q", 'no second "/"'),
        ("a b", '"a" does not begin a pattern'),
        ("!", "no pattern"),
        ("/(/ q", "cannot be used"),
        ("/[/ q", '"[" without "]"'),
        ("/[[:foo:]]/ q", "there is no class [:foo:]"),
        ("if /a/", "if without endif"),
        ("endif", "endif without if"),
        (" /a/ x", "continues none"),
    ],
)
@pytest.mark.parametrize("kind", ["regexp", "pcre"])
def test_a_broken_rule_is_refused_with_its_line(
    tmp_path: Path, kind: str, rule: str, why: str
) -> None:
    path = written(tmp_path, f"\n{rule}\n")
    with pytest.raises(TableConfigError) as caught:
        table(f"{kind}:{path}")
    assert str(caught.value).startswith(f"{path}:2: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "key", "text"),
    [
        (r"regexp:{{/^[]x[]+$/ hit}}", "]x[", "hit"),
        (r"regexp:{{/^[\d]+$/ hit}}", r"\d", "hit"),  # no escapes in POSIX brackets
        (r"pcre:{{/^[\d]+$/ hit}}", "12", "hit"),
        ("regexp:{{/^[^a-c]+$/ hit}}", "xyz^", "hit"),
        ("regexp:{{/^[^a-c]+$/ hit}}", "xbz", None),
        ("regexp:{{/^[^]a]+$/ hit}}", "x[", "hit"),
        ("regexp:{{/^[^]a]+$/ hit}}", "x]", None),
        ("pcre:{{/^[^a-c]+$/ hit}}", "xaz", None),
        ("pcre:{{/^[a^]+$/ hit}}", "a^", "hit"),
        (r"regexp:{{/\<b\>/ hit}}", "a b c", "hit"),
        (r"regexp:{{/\<b\>/ hit}}", "abc", None),
        (r"pcre:{{/b/A hit}}", "ab", None),
        (r"pcre:{{/a b/x hit}}", "ab", "hit"),
        (r"pcre:{{/a.b/s hit}}", "a\nb", None),
        (r"pcre:{{/a.b/ hit}}", "a\nb", "hit"),
        (r"pcre:{{/^b/ hit}}", "a\nb", None),
        (r"pcre:{{/^b/m hit}}", "a\nb", "hit"),
        (r"pcre:{{!!/a/ hit}}", "a", "hit"),
        ("cidr:{{1.2.3.0/24 x}}", "1.2.3.4", "x"),
    ],
)
def test_flags_brackets_and_rules_in_place(spec: str, key: str, text: str | None) -> None:
    assert find(spec, key) == text


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("alpha", string.ascii_letters),
        ("digit", string.digits),
        ("alnum", string.ascii_letters + string.digits),
        ("upper", string.ascii_uppercase),
        ("lower", string.ascii_lowercase),
        ("space", string.whitespace),
        ("blank", " \t"),
        ("punct", string.punctuation),
        ("print", string.ascii_letters + string.digits + string.punctuation + " "),
        ("graph", string.ascii_letters + string.digits + string.punctuation),
        ("cntrl", "".join(map(chr, [*range(32), 127]))),
        ("xdigit", string.hexdigits),
        ("word", string.ascii_letters + string.digits + "_"),
    ],
)
@pytest.mark.parametrize("kind", ["regexp", "pcre"])
def test_a_class_has_the_characters_that_it_has_in_c(kind: str, name: str, members: str) -> None:
    found = table(f"{kind}:{{{{/^[[:{name}:]]/i hit}}}}")  # i: letters have their case
    hits = {char for char in map(chr, range(128)) if result(found.lookup(char)) == "hit"}
    assert hits == set(members)


def test_text_that_nobody_looks_at_is_warned_of(tmp_path: Path) -> None:
    path = written(tmp_path, "if /a/ b\n/c/\nendif d\n")
    assert set(table(f"regexp:{path}").warnings) == {
        f'{path}:1: "b" after if is not looked at',
        f"{path}:2: a pattern without text; its text is empty",
        f'{path}:3: "d" after endif is not looked at',
    }
