"""Lists of protocol versions: what they leave, and which texts are none."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.values import BadValueError
from worker.tls.policy import Version
from worker.tls.versions import dead_versions, parse_versions

V10, V11, V12, V13 = Version
ALL = frozenset(Version)
NAMES = {"TLSv1": V10, "TLSv1.1": V11, "TLSv1.2": V12, "TLSv1.3": V13}
NUMBERS = {"SSLv2": 2, "SSLv3": 0x0300} | {name: int(version) for name, version in NAMES.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ALL),
        (">=TLSv1", ALL),
        (">=TLSv1.2", {V12, V13}),
        ("<=TLSv1.2", {V10, V11, V12}),
        (">=TLSv1.1, <=TLSv1.2", {V11, V12}),
        ("<=TLSv1.2:>=TLSv1.2", {V12}),
        (">=0303", {V12, V13}),
        (">=303", {V12, V13}),
        (">=0x303 <=0X0303", {V12}),
        ("TLSv1.3", {V13}),
        ("TLSv1.1 TLSv1.3", {V11, V13}),  # with a hole
        ("!TLSv1.2", {V10, V11, V13}),
        ("!SSLv2, !SSLv3", ALL),  # what guides say
        ("!SSLv2,!SSLv3,!TLSv1,!TLSv1.1", {V12, V13}),
        ("SSLv3, TLSv1", {V10}),  # Postfix 2.5's default
        (">=SSLv3", ALL),
        ("TLSv1.2, TLSv1.3, !TLSv1.3", {V12}),
        ("tlsV1.2", {V12}),
        (">=TLSv1 >=TLSv1.3", {V13}),
        (":, \n TLSv1.2 :", {V12}),
    ],
)
def test_a_list_leaves_what_all_of_its_items_allow(text: str, expected: set[Version]) -> None:
    assert parse_versions(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("TLSv1.4", "TLS", "TLSv1.0", ">=", "<=", "!", "!0303", "0303", ">= TLSv1.2", "=TLSv1.2"),
        *(">TLSv1.2", ">=TLSv1.2x", "!!TLSv1", "!>=TLSv1", ">=03", ">=00303", ">=0x", ">=-303"),
    ],
)
def test_what_is_no_version_is_named(text: str) -> None:
    with pytest.raises(BadValueError, match="is no protocol version") as caught:
        parse_versions(f"TLSv1.2, {text}")
    assert text.split()[0] in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["SSLv3", "SSLv2,SSLv3", "<=SSLv3", ">=TLSv1.3 <=TLSv1.2", "TLSv1.2 !TLSv1.2", ">=0305"],
)
def test_a_list_that_leaves_nothing_is_an_error(text: str) -> None:
    with pytest.raises(BadValueError, match="no protocol version is left"):
        parse_versions(text)


def test_only_to_ask_for_what_is_dead_is_worth_a_word() -> None:
    assert dead_versions("SSLv3, TLSv1, sslv2, SSLV3") == ("SSLv3", "SSLv2")
    assert dead_versions("!SSLv2, !SSLv3, >=SSLv3, TLSv1.2") == ()


ITEMS = st.tuples(st.sampled_from(["", "!", ">=", "<="]), st.sampled_from(sorted(NUMBERS)))


@given(st.lists(ITEMS, max_size=6), st.sampled_from([",", " ", ":", ", "]))
def test_each_version_is_judged_by_each_item(items: list[tuple[str, str]], separator: str) -> None:
    named = {name for sign, name in items if sign == ""}

    def allowed(name: str) -> bool:
        number = NUMBERS[name]
        return (
            (not named or name in named)
            and ("!", name) not in items
            and all(number >= NUMBERS[low] for sign, low in items if sign == ">=")
            and all(number <= NUMBERS[high] for sign, high in items if sign == "<=")
        )

    expected = {version for name, version in NAMES.items() if allowed(name)}
    text = separator.join(sign + name for sign, name in items)
    if expected:
        assert parse_versions(text) == expected
        assert parse_versions(text.upper()) == expected
    else:
        with pytest.raises(BadValueError):
            parse_versions(text)


@given(st.text(max_size=30) | st.text("<>=!TLSv1.230x,: ", max_size=20))
def test_any_text_is_a_list_or_an_error_in_words(text: str) -> None:
    with contextlib.suppress(BadValueError):
        assert frozenset() < parse_versions(text) <= ALL


def test_every_set_of_versions_can_be_said() -> None:
    for size in range(1, 5):
        for some in itertools.combinations(NAMES, size):
            assert parse_versions(",".join(some)) == {NAMES[name] for name in some}
            rest = [f"!{name}" for name in NAMES if name not in some]
            assert parse_versions(" ".join(rest)) == {NAMES[name] for name in some}
