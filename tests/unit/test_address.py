"""Addresses: one meaning, whichever form they are in."""

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.address import (
    DOMAIN_LIMIT,
    LOCAL_PART_LIMIT,
    AddressError,
    check_address,
    domain_to_ascii,
    needs_smtputf8,
    parse_mailbox,
    parse_reverse_path,
    quote,
    split_address,
    to_ascii,
    unquote,
)

LOCALS = st.text(
    st.sampled_from('ab.@<>" \\,:;()[]\té') | st.characters(codec="utf-8"), max_size=12
)
DOMAINS = st.sampled_from(["x", "good.example", "bücher.example", "[192.0.2.1]", "[IPv6:::1]"])
ADDRESSES = st.builds("{}@{}".format, LOCALS, DOMAINS) | LOCALS.filter(lambda text: "@" not in text)


@pytest.mark.parametrize(
    ("internal", "external"),
    [
        ("a@b", "a@b"),
        ("a.b+c@b", "a.b+c@b"),
        ("a", "a"),
        ("", ""),
        ("a b@x", '"a b"@x'),
        ("a.@x", '"a."@x'),
        (".a@x", '".a"@x'),
        ("a..b@x", '"a..b"@x'),
        ("@x", '""@x'),
        ('a"b\\c@x', '"a\\"b\\\\c"@x'),
        ("a@evil@good", '"a@evil"@good'),
        ("jörg@x", "jörg@x"),
        ("a,b@x", '"a,b"@x'),
        ("a b", '"a b"'),
    ],
)
def test_local_parts_are_quoted_where_they_must_be(internal: str, external: str) -> None:
    assert quote(internal) == external
    assert unquote(external) == internal


@given(ADDRESSES)
@example("@x")
@example("")
def test_quoting_is_undone_by_unquoting(address: str) -> None:
    assert unquote(quote(address)) == address


@given(ADDRESSES)
def test_a_receiver_finds_the_same_domain(address: str) -> None:
    """Read the external form as RFC 5321 says: skip the quoted string, then comes the @."""
    external = quote(address)
    if external.startswith('"'):
        at = 1
        while external[at] != '"':
            at += 2 if external[at] == "\\" else 1
        rest = external[at + 1 :]
    else:
        rest = external[external.find("@") :] if "@" in external else ""
    assert rest.removeprefix("@") == split_address(address)[1]


@given(st.text(max_size=30))
def test_parsing_gives_a_checked_address_that_survives_quoting(text: str) -> None:
    with suppress(AddressError):
        address = parse_mailbox(text)
        check_address(address)
        assert parse_mailbox(quote(address)) == address
        assert parse_mailbox(f"<{quote(address)}>") == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a@b", "a@b"),
        (" <a@b> ", "a@b"),
        ('"a b"@x', "a b@x"),
        ('<"a@evil"@good>', "a@evil@good"),
        ('"a".b@x', "a.b@x"),
        ("postmaster", "postmaster"),
        ("a b@x", "a b@x"),
    ],
)
def test_what_people_type(text: str, address: str) -> None:
    assert parse_mailbox(text) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("<>", "empty"),
        ("a@b@c", "more than one @"),
        ('"a@b', "not quoted"),
        ('a@"b"', "not quoted"),
        ("a@b\\c", "not quoted"),
        ("a\\b@c", "not quoted"),
        ("<a@b", "not quoted"),
        ("a@b>", "bad domain"),
        ("a@", "no domain"),
        ("a@b c", "bad domain"),
        ("a@b,c@d", "more than one @"),
        ("a\r\nb@c", "control character"),
        ("a@b\n", "control character"),
        ("a\0@b", "control character"),
        ("a\x85@b", "control character"),
        ("x" * (LOCAL_PART_LIMIT + 1) + "@b", "local part is longer"),
        ("a@" + "x" * (DOMAIN_LIMIT + 1), "domain is longer"),
        ("\ud800@b", "not valid UTF-8"),
        ("a@[1.2.3.4", "bad domain"),
    ],
)
def test_what_is_no_address_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint) as caught:
        parse_mailbox(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "<>", " <> "])
def test_the_null_reverse_path_is_an_empty_text(text: str) -> None:
    assert parse_reverse_path(text) == ""
    assert parse_reverse_path("<a@b>") == "a@b"


def test_the_domain_is_what_follows_the_last_at() -> None:
    assert split_address("a@evil@good") == ("a@evil", "good")
    assert split_address("postmaster") == ("postmaster", "")
    assert split_address("a@") == ("a", "")


def test_internationalised_domains_have_an_ascii_form() -> None:
    assert domain_to_ascii("bücher.example") == "xn--bcher-kva.example"
    assert domain_to_ascii("BÜCHER.example") == "xn--bcher-kva.example"
    assert domain_to_ascii("Plain.Example") == "Plain.Example"
    assert domain_to_ascii("[192.0.2.1]") == "[192.0.2.1]"
    assert to_ascii("a@bücher.example") == "a@xn--bcher-kva.example"
    assert to_ascii("a@b") == "a@b"


@pytest.mark.parametrize("domain", ["ü..example", "ü" * 300, "\u200dü.example", "ü\ud800"])
def test_a_domain_without_ascii_form_is_named(domain: str) -> None:
    with pytest.raises(AddressError, match="ü") as caught:
        domain_to_ascii(domain)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("address", "needed"),
    [
        ("a@b", False),
        ("a@bücher.example", False),
        ("jörg@b", True),
        ("jörg", True),
        ("a@ü..example", True),
        ("", False),
    ],
)
def test_smtputf8_is_needed_only_where_ascii_will_not_do(address: str, needed: bool) -> None:
    assert needs_smtputf8(address) is needed
    if needed:
        with pytest.raises(AddressError):
            to_ascii(address)


@given(st.text(max_size=40))
def test_no_domain_makes_conversion_fail_in_another_way(domain: str) -> None:
    with suppress(AddressError):
        assert domain_to_ascii(domain).isascii()
