"""Destination syntax, S001 to S016."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.destination import (
    Destination,
    DestinationError,
    DestinationKind,
    parse_destination,
    split_nexthops,
)
from protocol.request import Protocol

DOMAIN, HOST, ADDRESS, UNIX = (
    DestinationKind.DOMAIN,
    DestinationKind.HOST,
    DestinationKind.ADDRESS,
    DestinationKind.UNIX,
)


@pytest.mark.parametrize(
    ("text", "kind", "name", "port"),
    [
        ("example.test", DOMAIN, "example.test", None),
        ("example.test:2525", DOMAIN, "example.test", 2525),
        ("example.test:submission", DOMAIN, "example.test", "submission"),
        ("bücher.example", DOMAIN, "bücher.example", None),
        ("[mx.example.test]", HOST, "mx.example.test", None),
        ("[mx.example.test]:587", HOST, "mx.example.test", 587),
        ("[192.0.2.1]", ADDRESS, "192.0.2.1", None),
        ("[192.0.2.1]:2525", ADDRESS, "192.0.2.1", 2525),
        ("[ipv6:::1]:2525", ADDRESS, "::1", 2525),
        ("[IPv6:2001:DB8::1]", ADDRESS, "2001:db8::1", None),
        ("[::1]:2525", ADDRESS, "::1", 2525),
        ("[::1]:smtp", ADDRESS, "::1", "smtp"),
        ("192.0.2.1", DOMAIN, "192.0.2.1", None),
        ("x:65535", DOMAIN, "x", 65535),
        ("x:1", DOMAIN, "x", 1),
    ],
)
def test_smtp_destinations(
    text: str, kind: DestinationKind, name: str, port: int | str | None
) -> None:
    assert parse_destination(text, Protocol.SMTP) == Destination(
        kind=kind, name=name, port=port, verbatim=text
    )


@pytest.mark.parametrize(
    ("text", "kind", "name", "port"),
    [
        ("unix:/run/lmtp", UNIX, "/run/lmtp", None),
        ("unix:private/lmtp", UNIX, "private/lmtp", None),
        ("inet:host.test", HOST, "host.test", None),
        ("inet:host.test:2003", HOST, "host.test", 2003),
        ("inet:[192.0.2.1]", ADDRESS, "192.0.2.1", None),
        ("inet:[192.0.2.1]:2003", ADDRESS, "192.0.2.1", 2003),
        ("inet:[ipv6:::1]:2003", ADDRESS, "::1", 2003),
        ("inet:[host.test]:lmtp", HOST, "host.test", "lmtp"),
        ("inet:192.0.2.1:24", ADDRESS, "192.0.2.1", 24),
        ("host.test", HOST, "host.test", None),
        ("host.test:2003", HOST, "host.test", 2003),
        ("[::1]", ADDRESS, "::1", None),
    ],
)
def test_lmtp_destinations(
    text: str, kind: DestinationKind, name: str, port: int | str | None
) -> None:
    assert parse_destination(text, Protocol.LMTP) == Destination(
        kind=kind, name=name, port=port, verbatim=text
    )


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "bad name"),
        ("host:0", "bad port '0'"),
        ("host:65536", "bad port '65536'"),
        ("host:999999", "bad port '999999'"),
        ("host:99999999999999999999", "bad port"),
        ("host:", "bad port ''"),
        ("host:-1", "bad port '-1'"),
        ("host:２５", "bad port"),
        ("host:no such", "bad port 'no such'"),
        ("host:25:26", "more than one colon"),
        ("::1", "more than one colon"),
        ("[host", "unbalanced brackets"),
        ("[host]25", "unbalanced brackets"),
        ("[host]]", "unbalanced brackets"),
        ("[]", "bad name ''"),
        ("[ipv6:zz]", "bad IPv6 address 'zz'"),
        ("[ipv6:192.0.2.1]", "bad IPv6 address '192.0.2.1'"),
        ("[a:b]", "bad IPv6 address 'a:b'"),
        ("a b", "bad name 'a b'"),
        ("a@b", "bad name 'a@b'"),
        ("a\r\nb", "bad name"),
        ("host]", "bad name"),
        ("/run/lmtp", "bad name"),
        ("x" * 256, "bad name"),
    ],
)
def test_what_is_no_destination_is_named(protocol: Protocol, text: str, named: str) -> None:
    with pytest.raises(DestinationError) as caught:
        parse_destination(text, protocol)
    assert named in str(caught.value)
    assert repr(text[:100]) in str(caught.value)


def test_a_unix_socket_is_for_lmtp_only_and_has_a_path() -> None:
    with pytest.raises(DestinationError, match="LMTP only"):
        parse_destination("unix:/run/lmtp", Protocol.SMTP)
    for text in ("unix:", "unix:/a\nb", "unix:/a\0b"):
        with pytest.raises(DestinationError, match="bad path"):
            parse_destination(text, Protocol.LMTP)


def test_a_list_of_nexthops_is_separated_by_commas_and_space() -> None:
    assert split_nexthops("a") == ("a",)
    assert split_nexthops(" a:25, [b]:26 ,\tc,,d\n") == ("a:25", "[b]:26", "c", "d")


@pytest.mark.parametrize("text", ["", " , "])
def test_an_empty_list_of_nexthops_is_an_error(text: str) -> None:
    with pytest.raises(DestinationError, match="empty destination"):
        split_nexthops(text)


@given(st.text(st.sampled_from("a1:[]./ipv6unxet,- é\0") | st.characters(), max_size=30))
def test_any_text_is_a_destination_or_a_destination_error(text: str) -> None:
    for protocol in Protocol:
        with suppress(DestinationError):
            destination = parse_destination(text, protocol)
            assert destination.verbatim == text
            assert destination.name in text or destination.kind is ADDRESS
            assert not isinstance(destination.port, int) or 1 <= destination.port <= 65535
