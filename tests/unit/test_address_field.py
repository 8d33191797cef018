"""Addresses in header fields are found where they stand, and nothing else changes with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.address_field import find_addresses, replace_addresses

CRUMBS = st.sampled_from(
    [*'<>@.,;:()[]"\\ \n', "a", "bc", "@x.example", "a@x", "(c)", '"q w"', "\n\t", "é", "[1]"]
)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (" a@x.example", ["a@x.example"]),
        (" John Doe <a@x>, b@x (Bob)", ["a@x", "b@x"]),
        (' "Doe, John" <a@x>,\n\t"<no@x>" <b@x>', ["a@x", "b@x"]),
        (' "a b"@x', ["a b@x"]),
        (' "a\\"b"@x', ['a"b@x']),
        (" friends: a@x, b@x; c@x", ["a@x", "b@x", "c@x"]),
        (" undisclosed-recipients:;", []),
        (" <@relay,@other:a@x>", ["a@x"]),
        (" a (one) @ (two) x . example", ["a@x.example"]),
        (" a@x b@x", ["a@x", "b@x"]),
        (" <>", []),
        (" local", ["local"]),
        (" a@[192.0.2.1]", ["a@[192.0.2.1]"]),
        (" a@@x, @x, a@.x, a@x., c@x", ["c@x"]),
        (" a.@x, N. <b..c.@x>, .d@x, e.(c)@x", ["a.@x", "b..c.@x", ".d@x", "e.@x"]),
        (" a., .a, a..b, c.d", ["c.d"]),
        (" (a@x) b@x (c@x", ["b@x"]),
        (" [192.0.2.1]@x, a@b.[192.0.2.1], [1], c@x", ["c@x"]),
        (' a@"x", a@x\\<, c@x', ["c@x"]),
        (" a@[@], c@x", ["c@x"]),
    ],
)
def test_s189_addresses_are_found(text: str, addresses: list[str]) -> None:
    assert [found.address for found in find_addresses(text)] == addresses


def test_s189_what_is_replaced_is_the_address_alone() -> None:
    assert replace_addresses(" N. <a.@x>, b.", {"a.@x": "c.@y"}) == ' N. <"c."@y>, b.'
    text = ' "A, B" <a@x>,\n\tfriends: b@x (Bob) ,\n (c) "d d"@x;, e (e) @x'
    new = {"a@x": "1@y", "b@x": "2 2@y", "d d@x": "3@y", "e@x": "4@y"}
    assert replace_addresses(text, new) == (
        ' "A, B" <1@y>,\n\tfriends: "2 2"@y (Bob) ,\n (c) 3@y;, 4@y (e)'
    )


@pytest.mark.parametrize("text", ['"a"b', 'b"a"', '"a""a"', 'b"a"b'])
def test_a_word_that_loses_its_quotation_marks_stays_a_word(text: str) -> None:
    other = replace_addresses(text, {"a": "c"})
    assert [found.address for found in find_addresses(other)] == [
        {"a": "c"}.get(found.address, found.address) for found in find_addresses(text)
    ]


@given(st.lists(CRUMBS, max_size=25).map("".join))
def test_places_are_in_order_and_an_address_replaced_by_itself_is_the_same(text: str) -> None:
    found = find_addresses(text)
    at = 0
    for one in found:
        assert at <= one.start < one.end <= len(text)
        at = one.end
    other = replace_addresses(text, {one.address: one.address for one in found})
    # Quoting may be another, comments move: the addresses are the same.
    assert [one.address for one in find_addresses(other)] == [one.address for one in found]
    assert replace_addresses(text, {"not@there": "x"}) is text


@pytest.mark.parametrize("piece", ["<", "(", '"', "a ", "a@", "<a@x>", "(c)", ":", "\\", "["])
def test_a_field_of_the_greatest_length_is_read_in_one_go(piece: str) -> None:
    # Quadratic work would take minutes.
    find_addresses(piece * (100_000 // len(piece)))
