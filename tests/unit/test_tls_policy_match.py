"""Names and digests that a certificate is compared with."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.values import BadValueError
from worker.tls.match import (
    a_label,
    expand,
    expand_servername,
    is_host_name,
    parse_digest,
    parse_digest_name,
    parse_match,
    parse_servername,
)


def test_names_are_compared_as_certificates_hold_them() -> None:
    assert a_label("MX.Example.COM.") == "mx.example.com"
    assert a_label("Bücher.example") == "xn--bcher-kva.example"
    assert a_label("_under.example") == "_under.example"
    assert a_label("\N{SNOWMAN}" * 300) == "\N{SNOWMAN}" * 300  # no such form


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *(("example", True), ("a-b.c_d.example", True), ("x" * 63, True), ("xn--bcher-kva", True)),
        *(("", False), (".a", False), ("a.", False), ("a..b", False), ("-a", False), ("a-", False)),
        *(("x" * 64, False), ("a." * 127, False), ("*.a", False), ("192.0.2.1", False)),
        *(("::1", False), ("a b", False), ("ä", False), ("A", False), ("a\n", False)),
    ],
)
def test_what_is_a_host_name(name: str, is_one: bool) -> None:
    assert is_host_name(name) is is_one


def test_words_of_a_match_in_one_form() -> None:
    assert parse_match("HostName") == "hostname"
    assert parse_match("Dot-Nexthop") == "dot-nexthop"
    assert parse_match(".Bücher.example.") == ".xn--bcher-kva.example"
    assert parse_match("192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize("word", ["", ".", "..", "..a", "*.a", ".192.0.2.1", "a b", "a/b", "[a]"])
def test_a_word_that_no_certificate_can_match_is_an_error(word: str) -> None:
    with pytest.raises(BadValueError, match="is no name to match"):
        parse_match(word)


def test_words_are_filled_in_once_each_in_their_order() -> None:
    words = ("dot-nexthop", "hostname", "x.example", "nexthop", ".y.example")
    assert expand(words, "a.example", "mx.example") == (
        *(".a.example", "mx.example", "x.example", "a.example", ".y.example"),
    )
    assert expand(("hostname", "nexthop"), "a.example", "a.example") == ("a.example",)


def test_a_name_that_is_not_there_matches_nothing() -> None:
    assert expand(("nexthop", "dot-nexthop", "hostname"), "", "") == ()


def test_addresses_are_never_sent_as_a_server_name() -> None:
    assert expand_servername("hostname", "a.example", "mx.example") == "mx.example"
    assert expand_servername("nexthop", "a.example", "mx.example") == "a.example"
    assert expand_servername("x.example", "a.example", "mx.example") == "x.example"
    assert expand_servername("nexthop", "192.0.2.1", "mx.example") == ""
    assert expand_servername("hostname", "a.example", "2001:db8::1") == ""
    assert expand_servername("", "a.example", "mx.example") == ""


def test_a_server_name_is_a_host_name_or_one_of_two_words() -> None:
    assert parse_servername("NextHop") == "nexthop"
    assert parse_servername("MX.example") == "mx.example"
    assert parse_servername("") == ""
    for text in ("192.0.2.1", ".a", "a b", "[a]", "*.a"):
        with pytest.raises(BadValueError, match="specifies an invalid hostname"):
            parse_servername(text)


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256", "sha512", "sha3_256"])
def test_digests_of_any_way_of_writing_are_the_same(name: str) -> None:
    digits = hashlib.new(name, b"x").hexdigest()
    colons = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).upper()
    assert parse_digest_name(name.upper()) == name
    assert parse_digest(digits, name) == parse_digest(colons, name) == digits


def test_names_of_digests_may_be_written_with_a_hyphen() -> None:
    assert parse_digest_name("SHA3-256") == "sha3_256"


@pytest.mark.parametrize("text", ["", "sha", "shake_128", "sha256 ,", "\0", "sh\N{SNOWMAN}"])
def test_what_is_no_digest_algorithm_is_an_error(text: str) -> None:
    with pytest.raises(BadValueError, match="there is no digest"):
        parse_digest_name(text)


@given(st.text("0123456789abcdefABCDEF:gx ", max_size=100))
def test_a_digest_has_all_its_digits_and_nothing_else(text: str) -> None:
    digits = text.replace(":", "").lower()
    if len(digits) == 64 and set(digits) <= set("0123456789abcdef"):
        assert parse_digest(text, "sha256") == digits
    else:
        with pytest.raises(BadValueError, match="is no sha256 digest"):
            parse_digest(text, "sha256")


@pytest.mark.parametrize("copied", ["sha256", "Fingerprint=AB:CD", "SHA256_Fingerprint=AB:CD"])
def test_who_copies_all_that_openssl_prints_is_told_which_part_counts(copied: str) -> None:
    with pytest.raises(BadValueError, match="only what stands behind Fingerprint="):
        parse_digest(copied, "sha256")
