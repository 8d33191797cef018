"""The JSON request of `postrio deliver`: what is taken, and how each refusal names its place."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.request import ClientFacts, Notify, Protocol, Recipient, Ret
from worker.cli.deliver import check_order
from worker.cli.order import REQUEST_LIMIT, Order, OrderError, parse_order


def order(**keys: object) -> Order:
    """The order in the smallest request with these keys besides."""
    usual: dict[str, object] = {"sender": "", "recipients": [{"address": "b@y.example"}]}
    return parse_order(json.dumps(usual | keys).encode())


def test_a_request_with_every_key_is_taken() -> None:
    found = order(
        message="/tmp/mail",
        sender="a@x.example",
        recipients=[
            {"address": "b@y.example", "notify": "success,failure", "orcpt": "rfc822;b@y.example"},
            {"address": "<c@y.example>"},
        ],
        nexthop="[127.0.0.1]:2525",
        protocol="lmtp",
        envid="QQ314",
        ret="hdrs",
        body="8bitmime",
        smtputf8=True,
        xforward={"name": "client.example", "addr": "192.0.2.9", "proto": "ESMTP", "helo": "h"},
        age=3600,
        config={"smtp_helo_name": "x", "smtp_always_send_ehlo": True, "smtp_tcp_port": 2525},
        resolver="127.0.0.1:53",
        cache_socket="/run/cache",
    )
    assert found == Order(
        message="/tmp/mail",
        sender="a@x.example",
        recipients=(
            Recipient(
                address="b@y.example",
                notify=Notify.SUCCESS | Notify.FAILURE,
                orcpt="rfc822;b@y.example",
                key=0,
            ),
            Recipient(address="c@y.example", key=1),
        ),
        nexthop="[127.0.0.1]:2525",
        protocol=Protocol.LMTP,
        envelope_id="QQ314",
        ret=Ret.HDRS,
        encoding="8bit",
        smtputf8=True,
        client=ClientFacts(name="client.example", address="192.0.2.9", protocol="ESMTP", helo="h"),
        age=3600.0,
        config=("smtp_helo_name=x", "smtp_always_send_ehlo=yes", "smtp_tcp_port=2525"),
        resolver="127.0.0.1:53",
        cache_socket="/run/cache",
    )


def test_what_is_not_said_has_its_default_and_null_says_nothing() -> None:
    assert order(nexthop=None, age=None, smtputf8=None, xforward=None, config=None) == Order(
        sender="", recipients=(Recipient(address="b@y.example", key=0),)
    )


@pytest.mark.parametrize(
    ("keys", "refusal"),
    [
        ({"recipient": []}, "recipient: unknown key (message, sender, recipients, nexthop"),
        ({"recipients": []}, "recipients: the list is empty"),
        ({"recipients": "b@y"}, "recipients: expected a list, not a text"),
        ({"recipients": ["b@y"]}, "recipients[0]: expected an object, not a text"),
        ({"recipients": [{}]}, "recipients[0].address: missing"),
        ({"recipients": [{"address": 1}]}, "recipients[0].address: expected a text, not a number"),
        ({"recipients": [{"address": ""}]}, "recipients[0].address: "),
        ({"recipients": [{"address": "a\r\n@b"}]}, "recipients[0].address: "),
        (
            {"recipients": [{"address": "a@b"}, {"address": "c@d", "notify": "sucess"}]},
            "recipients[1].notify: unknown word 'sucess' (success, failure, delay, never)",
        ),
        (
            {"recipients": [{"address": "a@b", "notify": "never,delay"}]},
            "recipients[0].notify: never excludes the other words",
        ),
        (
            {"recipients": [{"address": "a@b", "orcpt": "a@b"}]},
            "recipients[0].orcpt: expected an address type",
        ),
        ({"recipients": [{"address": "a@b", "dsn": 1}]}, "recipients[0].dsn: unknown key"),
        ({"sender": 7}, "sender: expected a text, not a number"),
        ({"sender": "a b@"}, "sender: "),
        ({"protocol": "http"}, "protocol: unknown word 'http' (smtp, lmtp)"),
        ({"ret": "half"}, "ret: unknown word 'half' (full, hdrs)"),
        ({"body": "binary"}, "body: unknown word 'binary' (7bit, 8bitmime)"),
        ({"envid": "x" * 101}, "envid: expected at most 100 printable ASCII characters"),
        ({"smtputf8": 1}, "smtputf8: expected true or false, not a number"),
        ({"age": True}, "age: expected a number of seconds, not true or false"),
        ({"age": -1}, "age: expected a number of seconds, 0 or more"),
        ({"age": float("nan")}, "age: expected a number of seconds, 0 or more"),
        ({"age": 10**400}, "age: expected a number of seconds, 0 or more"),
        ({"xforward": []}, "xforward: expected an object, not a list"),
        ({"xforward": {"source": "x"}}, "xforward.source: unknown key (name, addr"),
        ({"xforward": {"addr": {}}}, "xforward.addr: expected a text, not an object"),
        ({"config": {"a": []}}, "config.a: expected a text, not a list"),
        ({"config": {"a": "b\nc"}}, "config.'a': not a line of a main.cf"),
        ({"nexthop": "x" * 5000}, "nexthop: longer than 4096 characters"),
        ({"message": "a\0b"}, "message: holds a character that no text has"),
    ],
)
def test_a_refusal_names_the_place_and_what_would_be_right(
    keys: dict[str, object], refusal: str
) -> None:
    with pytest.raises(OrderError) as caught:
        order(**keys)
    assert str(caught.value).startswith(refusal)


@pytest.mark.parametrize(
    ("octets", "refusal"),
    [
        (b"", "no JSON: Expecting value (line 1, column 1)"),
        (b"[]", "the request: expected an object, not a list"),
        (b"\xff", "the request is not UTF-8 text (octet 0)"),
        (b'{"sender": ""}', "recipients: missing"),
        (b'{"recipients": [{"address": "a@b"}]}', 'sender: missing ("" is the null sender)'),
        (b'{"sender": "", "sender": "a@b"}', "sender: stands there twice"),
        (b"[" * 100_000, "no JSON that could be meant: "),
        (b'{"age": ' + b"9" * 5000 + b"}", "no JSON that could be meant: "),
        (b" " * (REQUEST_LIMIT + 1), f"the request is larger than {REQUEST_LIMIT} octets"),
    ],
)
def test_what_is_no_request_at_all_is_refused(octets: bytes, refusal: str) -> None:
    with pytest.raises(OrderError) as caught:
        parse_order(octets)
    assert str(caught.value).startswith(refusal)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(["sender", "recipients", "notify", "address", "age", "config", "xforward"])


@given(st.dictionaries(KEYS, JSON))
def test_whatever_the_request_is_it_is_taken_or_refused(found: dict[str, object]) -> None:
    with suppress(OrderError):  # anything else is a bug
        assert parse_order(json.dumps(found).encode()).recipients


@given(st.binary(max_size=60))
def test_whatever_the_octets_are_they_are_taken_or_refused(octets: bytes) -> None:
    with pytest.raises(OrderError):
        parse_order(octets)


def test_s008_a_path_with_commas_and_brackets_is_one_nexthop() -> None:
    check_order(order(nexthop="unix:/run/a, [b", protocol="lmtp"))
    with pytest.raises(OrderError, match="unbalanced brackets"):
        check_order(order(nexthop="a, [b", protocol="lmtp"))
