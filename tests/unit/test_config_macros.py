"""`$name` in values. Expected texts were checked against postconf -x of Postfix 3.7."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.expander import Expander, Facts
from worker.config.macros import MacroError, expand, names, parse
from worker.config.main_cf import Setting
from worker.config.values import BadValueError

KNOWN = {"h": "a.example", "one": "1"}


def expanded(text: str) -> str:
    return expand(parse(text), lambda name: KNOWN.get(name, ""), lambda name: name in KNOWN)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$h/$one-x", "a.example/1-x"),
        ("${h}x $(h)x ${ h }", "a.examplex a.examplex a.example"),
        ("$$h $${h}", "$h ${h}"),
        ("<$nope>", "<>"),
        ("<${h? t }>", "< t >"),
        ("<${h?{ t }}>", "< t >"),
        ("<${nope? t }>", "<>"),
        ("<${nope: {u u}}>", "<u u>"),
        ("<${h:u}>", "<>"),
        ("<$(h:x)${h:{y}}>", "<>"),
        ("<${h?x}${h:y}|${nope?x}${nope:y}>", "<x|y>"),
        ("<${h ? {x} : {y}}>", "<x>"),
        ("<${nope?{x}:{y}}>", "<y>"),
        ("<${nope?{x}:y z}>", "<y z>"),
        ("<${h?x}:{y}>", "<x:{y}>"),
        ("<${h?x:y}>", "<x:y>"),
        ("<${h?a$(h)b}>", "<aa.exampleb>"),
        ("<$(h?a(b)c)>", "<a(b)c>"),
        ("<${h?${one?{deep $h}}}>", "<deep a.example>"),
        ("<${{$h} == {a.example} ? {x} : {y}}>", "<x>"),
        ("<${{a}!={b}?{x}:{y}}>", "<x>"),
        ("<${{a}=={x}?a:b}>", "<>"),  # without braces the branch goes on to the end
        ("<${{a}=={a}?a:b}>", "<a:b>"),
        ("<${{ 1 } == {1}?x}>", "<>"),
        ("<${{1}<{10}?{y}:{n}}>", "<y>"),
        ("<${{01}=={1}?x}>", "<x>"),
        ("<${{2}<={2}?x}${{2}>={2}?x}${{2}>{2}?x}${{2}<{2}?x}>", "<xx>"),
        ("<${{1}<={2}?x}${{3}>={2}?x}${{3}>{2}?x}${{3}<={2}?x}>", "<xxx>"),
        ("<${{a}<{B}?{x}:{y}}>", "<y>"),
        ("<${{3.6} <level {3.10}?{x}}>", "<x>"),
        ("<${{3.6}<{3.10}?{x}:{y}}>", "<y>"),
        ("<${{2}==level{2.0}?x}>", "<x>"),
        ("<${{2}>=level{2.0.1}?{x}:{y}}>", "<y>"),
        ("<${{a}=={a}}|${{a}=={b}}>", "<true|>"),
        ("<${{a}=={a}:{x}}|${{a}!={a}:{x}}>", "<|x>"),
        ("<${h}}>", "<a.example}>"),
    ],
)
def test_a_text_expands_as_in_postfix(text: str, result: str) -> None:
    assert expanded(text) == result


BROKEN = (
    *("$", "$-x", "${}", "${a", "$(a}", "${a-b}", "${a!x}", "${my.host}", "< $ {a}>", "$é"),
    *("${{a}~{b}?x}", "${{a}==b?x}", "${{x}}", "${{x} ? {y}}", "${h?{a} b}", "${h?{a}:{b} c}"),
    *("${h:{a}:b}", "${{3.x} <level {3} ?a}", "${{} <level {3} ?a}", "${{1.2.3.4} <level {3}?a}"),
)


@pytest.mark.parametrize("text", BROKEN)
def test_broken_syntax_is_refused(text: str) -> None:
    with pytest.raises(MacroError):
        expanded(text)


def test_only_the_chosen_branch_is_looked_up() -> None:
    asked = []

    def lookup(name: str) -> str:
        asked.append(name)
        return "x"

    assert expand(parse("${a?{$b}:{$c}}"), lookup, lambda name: name == "a") == "x"
    assert asked == ["b"]


def test_all_mentioned_names_are_found() -> None:
    text = parse("$a ${b?{$c}:{$(d)}} ${{$e}=={$f}?{$g}:{$h}} ${i:$j}$$k")
    assert set(names(text)) == set("abcdefghij")


def test_braces_nest_to_a_bound() -> None:
    assert expanded("${h?{" * 50 + "x" + "}}" * 50) == "x"
    with pytest.raises(MacroError, match="too many levels"):
        expanded("${h?{" * 200 + "x" + "}}" * 200)


def expander(values: dict[str, str]) -> Expander:
    settings = {name: Setting(name=name, value=text, file="f") for name, text in values.items()}
    return Expander(settings, Facts())


def test_a_loop_is_refused_and_names_its_members() -> None:
    looping = expander({"a": "x$b", "b": "${c}", "c": "$a", "d": "$b"})
    with pytest.raises(BadValueError, match="refers to itself: a -> b -> c -> a"):
        looping.value("a")
    with pytest.raises(BadValueError, match="refers to itself: b -> c -> a -> b"):
        looping.value("d")


def test_names_lead_to_names_to_a_bound() -> None:
    """The same one as Postfix's."""
    chain = expander({**{f"n{number}": f"$n{number + 1}" for number in range(1000)}, "n1000": "x"})
    with pytest.raises(BadValueError, match="leads to n101 over too many other names"):
        chain.value("n0")
    assert chain.value("n900") == "x"


def test_a_loop_through_a_branch_not_taken_does_no_harm() -> None:
    assert expander({"a": "${b?{x}:{$a}}", "b": "y"}).value("a") == "x"


def test_a_name_has_a_text_before_it_is_expanded() -> None:
    values = {"a": "${b?{x}:{y}}${c?{x}:{y}}", "b": "$nope", "c": ""}
    assert expander(values).value("a") == "xy"
    assert expander({"a": "${b?{x}}", "b": "$a"}).value("a") == "x"  # no loop: b is not expanded


def test_white_space_around_a_value_counts_inside_another_one() -> None:
    values = {"a": "1$b.", "b": "${c?{ x }}", "c": "y"}
    assert expander(values).value("a") == "1 x ."
    assert expander(values).value("b") == "x"


def test_values_that_double_end_at_a_bound() -> None:
    doubling = {f"a{n}": f"$a{n + 1}$a{n + 1}" for n in range(40)} | {"a40": "x"}
    with pytest.raises(BadValueError, match="too long"):
        expander(doubling).value("a0")


PIECES = st.sampled_from(
    (
        *("$a", "$b", "${c}", "$(d)", "${a?{$b}}", "${b:{$c}}", "${{$a}=={x}?{$d}:{e}}"),
        *("x", "$$", " ", "$", "{", "}", "?", ":", "${", "$("),
    )
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)


@given(st.dictionaries(st.sampled_from("abcd"), TEXTS))
def test_expansion_always_ends_in_a_value_or_a_reason(values: dict[str, str]) -> None:
    under_test = expander(values)
    for name in "abcd":
        with contextlib.suppress(BadValueError):
            assert isinstance(under_test.value(name), str)


@given(st.text("ab $", max_size=20))
def test_a_text_with_doubled_dollar_signs_means_itself(text: str) -> None:
    assert expanded(text.replace("$", "$$")) == text


# A piece as it is written, and what has to come of it.
Written = tuple[str, str]
PLAIN = st.text("ab.,= #\t", max_size=4).map(lambda text: (text, text))
NAMED = st.sampled_from([*KNOWN, "nope"]).flatmap(
    lambda name: st.sampled_from([f"${{{name}}}", f"$({name})", f"${{ {name} }}"]).map(
        lambda text: (text, KNOWN.get(name, ""))
    )
)
DOLLAR = st.just(("$$", "$"))
GAPS = st.sampled_from(["", " ", "  "])


def joined(pieces: list[Written]) -> Written:
    return "".join(text for text, _ in pieces), "".join(value for _, value in pieces)


@st.composite
def chosen_by_name(draw: st.DrawFn, inner: st.SearchStrategy[Written]) -> Written:
    name, gap = draw(st.sampled_from([*KNOWN, "nope"])), draw(GAPS)
    (yes, then), (no, otherwise) = draw(inner), draw(inner)
    text = f"${{{gap}{name}{gap}?{gap}{{{yes}}}{gap}:{gap}{{{no}}}{gap}}}"
    return text, then if name in KNOWN else otherwise


@st.composite
def half_a_choice(draw: st.DrawFn, inner: st.SearchStrategy[Written]) -> Written:
    name, operator = draw(st.sampled_from([*KNOWN, "nope"])), draw(st.sampled_from("?:"))
    text, value = draw(inner)
    holds = (name in KNOWN) is (operator == "?")
    return f"${{{name}{operator}{{{text}}}}}", value if holds else ""


@st.composite
def chosen_by_comparison(draw: st.DrawFn, inner: st.SearchStrategy[Written]) -> Written:
    (left, one), (right, two) = draw(inner), draw(inner)
    (yes, then), (no, otherwise) = draw(inner), draw(inner)
    gap = draw(GAPS)
    text = f"${{{{{left}}}{gap}=={gap}{{{right}}}{gap}?{gap}{{{yes}}}{gap}:{gap}{{{no}}}}}"
    equal = int(one) == int(two) if one.isdigit() and two.isdigit() else one == two
    return text, then if equal else otherwise


WRITTEN = st.recursive(
    PLAIN | NAMED | DOLLAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(joined),
        chosen_by_name(inner),
        half_a_choice(inner),
        chosen_by_comparison(inner),
    ),
    max_leaves=12,
)


@given(WRITTEN)
def test_what_is_put_together_is_expanded_piece_by_piece(written: Written) -> None:
    text, value = written
    assert expanded(text) == value
