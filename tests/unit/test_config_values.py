"""The text of a value by its kind: what is taken, and what people are told otherwise."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.parameter import Kind, Parameter
from worker.config.values import BadValueError, Value, parse_seconds, parse_value, split_list


def row(kind: Kind, **details: object) -> Parameter:
    base = {"name": "x", "kind": kind, "default": "", "summary": "A row.", **details}
    return Parameter(**base)  # type: ignore[arg-type]  # the columns of each case


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.BOOLEAN, "yes", True),
        (Kind.BOOLEAN, "No", False),
        (Kind.INTEGER, "0042", 42),
        (Kind.INTEGER, "-1", -1),
        (Kind.TIME, "90", 90.0),
        (Kind.TIME, "2m", 120.0),
        (Kind.TIME, "1h", 3600.0),
        (Kind.TIME, "5d", 432_000.0),
        (Kind.TIME, "1w", 604_800.0),
        (Kind.WORDS, "a, b\n\tc,,", ("a", "b", "c")),
        (Kind.WORDS, "", ()),
        (
            Kind.TABLES,
            "inline:{a=b, {c = d e}} texthash:/x",
            ("inline:{a=b, {c = d e}}", "texthash:/x"),
        ),
        (Kind.MATCHES, "!a, static:{b  c}", ("!a", "static:{b  c}")),
        (Kind.TEXT, "any thing", "any thing"),
    ],
)
def test_a_text_has_the_value_of_its_kind(kind: Kind, text: str, value: Value) -> None:
    parsed = parse_value(row(kind), text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (Kind.BOOLEAN, "true", "not a truth value"),
        (Kind.BOOLEAN, "", "not a truth value"),
        (Kind.INTEGER, "5x", "not a number"),
        (Kind.INTEGER, "", "not a number"),
        (Kind.INTEGER, "٣", "not a number"),
        (Kind.INTEGER, "9" * 30, "not a number"),
        (Kind.INTEGER, "9" * 19, "too large"),
        (Kind.TIME, "5 m", "not a time"),
        (Kind.TIME, "5M", "not a time"),
        (Kind.TIME, "1.5s", "not a time"),
        (Kind.TIME, "-1s", "not a time"),
        (Kind.TIME, "s", "not a time"),
        (Kind.TIME, "9" * 20, "too large"),
        (Kind.TABLES, "inline:{a=b", '"{" without "}"'),
        (Kind.MATCHES, "a, inline:{a=b", '"{" without "}"'),
    ],
)
def test_a_text_of_another_kind_is_refused(kind: Kind, text: str, why: str) -> None:
    with pytest.raises(BadValueError, match=re.escape(why)) as caught:
        parse_value(row(kind), text)
    assert caught.value.expected


def test_a_time_without_a_letter_is_in_the_unit_of_its_parameter() -> None:
    assert parse_value(row(Kind.TIME, unit="d"), "5") == 432_000.0


def test_decimals_are_read_only_where_the_table_says_so() -> None:
    assert parse_value(row(Kind.TIME, fraction=True), "0.25s") == 0.25
    with pytest.raises(BadValueError, match="not a time"):
        parse_value(row(Kind.TIME), "0.25s")


def test_limits_are_named_in_the_refusal() -> None:
    bounded = row(Kind.INTEGER, minimum=0, maximum=6)
    assert parse_value(bounded, "6") == 6
    with pytest.raises(BadValueError, match="too large; expected a whole number from 0 to 6"):
        parse_value(bounded, "7")
    with pytest.raises(BadValueError, match="too small; expected a time of at least 1s"):
        parse_value(row(Kind.TIME, minimum=1), "0s")


def test_choices_are_lower_case_and_listed_in_the_refusal() -> None:
    choice = row(Kind.CHOICE, choices=("", "enabled"))
    assert parse_value(choice, "Enabled") == "enabled"
    assert parse_value(choice, "") == ""
    with pytest.raises(BadValueError, match="expected nothing, enabled"):
        parse_value(choice, "on")
    words = row(Kind.WORDS, choices=("dns", "native"))
    assert parse_value(words, "DNS, native") == ("dns", "native")
    with pytest.raises(BadValueError, match='"nsd" is not known here; expected dns, native'):
        parse_value(words, "dns, nsd")


def test_a_pattern_is_said_in_words() -> None:
    number = row(Kind.TEXT, pattern=re.compile("[0-9]+"), expected="digits")
    assert parse_value(number, "12") == "12"
    with pytest.raises(BadValueError, match="expected digits"):
        parse_value(number, "12x")


@given(st.integers(0, 10**9), st.sampled_from("smhdw"))
def test_a_time_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert parse_seconds(f"{number}{unit}", "s") == parse_seconds(f"{number}", unit)
    assert parse_seconds(f"{number}{unit}", "s") == number * parse_seconds(f"1{unit}", "s")


@given(st.lists(st.text("ab:/[]{}.=", min_size=1).filter(lambda word: "{" not in word)))
def test_a_list_survives_being_joined(words: list[str]) -> None:
    assert split_list(", ".join(words)) == tuple(words)
