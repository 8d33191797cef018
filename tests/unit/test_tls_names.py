"""Names of certificates against what a policy asks for. Pure: texts in, a text out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tls.names import canonical_name, find_match

LABEL = st.text("abcxyz019", min_size=1, max_size=8)
NAME = (
    st.lists(LABEL, min_size=2, max_size=5)
    .map(".".join)
    .filter(lambda name: not name.rpartition(".")[2].isdigit())
)
# What an attacker may get into a certificate of his own: made of what names are made of.
PIECES = ["*", ".", "a", "mx", "example", "com", "ü", "Ü", "\0", "-", "xn--tda", "1"]
ODD_TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
PLAIN_NAME = st.lists(st.sampled_from(["a", "mx", "example", "com", "xn--tda"]), min_size=1).map(
    ".".join
)


def matches(name: str, pattern: str, *, many: bool = True) -> bool:
    found = find_match([name], [pattern], many_labels=many)
    assert found in ("", name)
    return bool(found)


@pytest.mark.parametrize(
    ("name", "pattern", "one", "many"),  # a wildcard stands for one label, or for many
    [
        ("mx.example.com", "mx.example.com", True, True),
        ("MX.Example.COM", "mx.example.com", True, True),
        ("mx.example.com.", "mx.example.com", True, True),
        ("mx.example.com", "mx.example.com.", True, True),
        ("mx.example.com", "example.com", False, False),
        ("example.com", "mx.example.com", False, False),
        ("xmx.example.com", "mx.example.com", False, False),
        # ".suffix": one label below or more, and not the name itself.
        ("mx.example.com", ".example.com", True, True),
        ("a.mx.example.com", ".example.com", True, True),
        ("example.com", ".example.com", False, False),
        ("badexample.com", ".example.com", False, False),
        ("*.example.com", ".example.com", True, True),
        ("*.mx.example.com", ".example.com", True, True),
        ("*.com", ".example.com", False, False),
        # Wildcards: the whole of the first label, for one label or for more.
        ("*.example.com", "mx.example.com", True, True),
        ("*.example.com", "a.mx.example.com", False, True),
        ("*.example.com", "example.com", False, False),
        ("*.example.com", "mx.badexample.com", False, False),
        ("*", "mx", False, False),
        ("*.", "mx.", False, False),
        ("*", "example.com", False, False),
        ("m*.example.com", "mx.example.com", False, False),
        ("*x.example.com", "mx.example.com", False, False),
        ("mx.*.com", "mx.example.com", False, False),
        ("*.*.com", "mx.example.com", False, False),
        # Both ways of writing the same name.
        ("xn--bcher-kva.example", "xn--bcher-kva.example", True, True),
        ("bücher.example", "xn--bcher-kva.example", True, True),
        ("BÜCHER.example", "xn--bcher-kva.example", True, True),
        ("xn--bcher-kva.example", "bücher.example", True, True),
        ("*.bücher.example", "mx.xn--bcher-kva.example", True, True),
        ("mx.bücher.example", ".xn--bcher-kva.example", True, True),
        ("bucher.example", "xn--bcher-kva.example", False, False),
        # What is not a name at all.
        ("mx.example.com\0.evil.org", "mx.example.com", False, False),
        ("mx.example.com\0", "mx.example.com", False, False),
        ("mx.example.com\n", "mx.example.com", False, False),
        ("mx.example.com ", "mx.example.com", False, False),
        ("mx..example.com", "mx..example.com", False, False),
        (".example.com", ".example.com", False, False),
        ("", "", False, False),
        (".", ".", False, False),
        ("*.2.3.4", "1.2.3.4", False, False),
        ("a" * 64 + ".com", "a" * 64 + ".com", False, False),
        ("a." * 127 + "com", "a." * 127 + "com", False, False),
    ],
)
def test_the_table(name: str, pattern: str, one: bool, many: bool) -> None:
    assert matches(name, pattern, many=False) is one
    assert matches(name, pattern, many=True) is many


def test_the_first_name_that_matches_is_told_as_it_stands_there() -> None:
    names = ["a.example", "MX.Example.com", "mx.example.com"]
    assert find_match(names, ["other", "mx.example.com"], many_labels=True) == "MX.Example.com"
    assert find_match(names, [], many_labels=True) == ""
    assert find_match([], ["mx.example.com"], many_labels=True) == ""


@given(NAME, st.booleans())
def test_a_name_matches_itself_however_it_is_written(name: str, many: bool) -> None:
    for written in (name, name.upper(), f"{name}."):
        assert matches(written, name, many=many)


@given(NAME, LABEL, st.booleans())
def test_a_name_below_is_matched_by_suffix_and_wildcard_only(
    name: str, label: str, many: bool
) -> None:
    below = f"{label}.{name}"
    assert matches(below, f".{name}", many=many)
    assert matches(f"*.{name}", below, many=many)
    assert not matches(below, name, many=many)
    assert not matches(name, below, many=many)
    assert not matches(name, f".{name}", many=many)
    assert not matches(f"*.{name}", name, many=many)
    assert matches(f"*.{name}", f"{label}.{below}", many=True)
    assert not matches(f"*.{name}", f"{label}.{below}", many=False)


@given(ODD_TEXT, PLAIN_NAME, st.booleans())
def test_no_text_matches_a_name_but_that_name_or_a_wildcard_above(
    text: str, name: str, many: bool
) -> None:
    if matches(text, name, many=many):
        canonical = canonical_name(text)
        assert canonical == name or (canonical[:2] == "*." and name.endswith(canonical[1:]))


@given(NAME, st.integers(0, 60), st.characters(categories=["Cc", "Zs"]))
def test_a_control_character_or_space_anywhere_spoils_a_name(
    name: str, place: int, spoiler: str
) -> None:
    place %= len(name) + 1
    spoiled = name[:place] + spoiler + name[place:]
    for pattern in (name, f".{name.partition('.')[2]}", spoiled):
        assert not matches(spoiled, pattern)


@given(ODD_TEXT | st.text(max_size=80))
def test_what_is_canonical_stays_what_it_is(text: str) -> None:
    canonical = canonical_name(text)
    assert canonical.isascii()
    assert canonical == canonical.lower()
    assert canonical_name(canonical) == canonical
