"""Checks, generic maps and conversion together, as octets that go in and octets that come out."""

import email
import email.policy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from protocol.capabilities import Capabilities
from protocol.data import DataEncoder
from protocol.mime import MimeError
from protocol.request import DeliveryRequest, Protocol, SendOptions
from tests.worker.world import make_request
from worker.config.config import Config
from worker.config.tables import TableError
from worker.delivery import content_transform
from worker.delivery.content_settings import ContentSettings
from worker.delivery.content_transform import make_transform
from worker.delivery.generic_maps import GenericMaps
from worker.status.events import ContentChecked, Event, LinesBroken, Warned

REQUEST = replace(make_request(), encoding="8bit")
SEVEN_BIT = Capabilities()
EIGHT_BIT = Capabilities(eightbitmime=True)
LEAF = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"


def settings(mapping: Mapping[str, str], protocol: Protocol = Protocol.SMTP) -> ContentSettings:
    """The settings of a main.cf."""
    return ContentSettings.from_config(Config.from_mapping(mapping), protocol)


async def transform(
    blocks: Sequence[bytes],
    of: ContentSettings,
    announced: Capabilities = EIGHT_BIT,
    request: DeliveryRequest = REQUEST,
) -> tuple[bytes, list[Event]]:
    """What becomes of the blocks, and what is told."""
    events: list[Event] = []
    changing = make_transform(of, request, announced, events.append)
    assert changing is not None
    out = [await changing.feed(block) for block in blocks]
    return b"".join(out) + await changing.finish(), events


async def convert(message: bytes, mapping: Mapping[str, str] | None = None) -> bytes:
    """The message for a server without 8BITMIME."""
    out, _ = await transform([message], settings(mapping or {}), SEVEN_BIT)
    return out


# --- when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "announced", "encoding", "needed"),
    [
        ({}, EIGHT_BIT, "8bit", False),
        ({}, SEVEN_BIT, "7bit", False),
        ({}, SEVEN_BIT, "8bit", True),
        ({}, SEVEN_BIT, "", True),
        ({"disable_mime_output_conversion": "yes"}, SEVEN_BIT, "8bit", False),
        ({"smtp_header_checks": "static:DUNNO"}, EIGHT_BIT, "7bit", True),
        ({"smtp_mime_header_checks": "static:DUNNO"}, EIGHT_BIT, "7bit", True),
        ({"smtp_nested_header_checks": "static:DUNNO"}, EIGHT_BIT, "7bit", True),
        ({"smtp_body_checks": "static:DUNNO"}, EIGHT_BIT, "7bit", True),
        ({"smtp_generic_maps": "static:a@b"}, EIGHT_BIT, "7bit", True),
        ({"lmtp_generic_maps": "static:a@b"}, EIGHT_BIT, "7bit", False),
    ],
)
def test_a_transform_is_made_only_where_one_is_needed(
    mapping: dict[str, str], announced: Capabilities, encoding: str, needed: bool
) -> None:
    request = replace(REQUEST, encoding=encoding)
    of = settings(mapping)
    assert (make_transform(of, request, announced, lambda _: None) is not None) == needed
    assert of.leaves(request, announced, b"x\r\n") == (not needed)


def test_s071_what_needs_smtputf8_is_never_converted() -> None:
    options = SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_HEADER
    request = replace(REQUEST, options=options)
    assert make_transform(ContentSettings(), request, SEVEN_BIT, lambda _: None) is None


def test_a_long_line_alone_is_a_reason_to_change_a_content() -> None:
    request = replace(REQUEST, encoding="7bit")
    for length, leaves in ((998, True), (999, False)):
        content = b"x" * length + b"\r\n"
        assert ContentSettings().leaves(request, EIGHT_BIT, content) == leaves
        assert ContentSettings(line_limit=0).leaves(request, EIGHT_BIT, content)


def test_each_setting_has_its_parameter() -> None:
    mapping = {
        "smtp_line_length_limit": "70",
        "disable_mime_output_conversion": "yes",
        "mime_nesting_limit": "7",
        "mime_boundary_length_limit": "8",
        **{f"smtp_{name}": "static:x" for name in ("header_checks", "mime_header_checks")},
        **{f"smtp_{name}": "static:x" for name in ("nested_header_checks", "body_checks")},
        "smtp_generic_maps": "static:x@y",
    }
    found, default = settings(mapping), ContentSettings()
    assert settings({}) == default
    for field in fields(ContentSettings):
        assert getattr(found, field.name) != getattr(default, field.name), field.name
    lmtp = {name.replace("smtp_", "lmtp_"): value for name, value in mapping.items()}
    assert settings(lmtp, Protocol.LMTP).line_limit == 70
    assert settings(mapping, Protocol.LMTP).line_limit == 998


# --- conversion -----------------------------------------------------------------------------------


@trio_test
async def test_s071_an_eight_bit_leaf_becomes_quoted_printable_and_says_so() -> None:
    assert await convert(b"Subject: x\r\n" + LEAF + "Grüße = \r\n.\r\n".encode()) == (
        b"Subject: x\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Gr=C3=BC=C3=9Fe =3D=20\r\n=2E\r\n"
    )


@pytest.mark.parametrize(
    ("encoding", "converted"),
    [
        *((b"8bit", True), (b"8BIT.", True), (b"(c) binary ; x", True), (b"8bit, 7bit", True)),
        *((b"8bit/x", False), (b"=8bit", False), (b'"8bit"', False), (b"8bit?", False)),
    ],
)
@trio_test
async def test_s195_an_encoding_is_the_first_word_whatever_follows(
    encoding: bytes, converted: bool
) -> None:
    out = await convert(LEAF.replace(b"8bit", encoding) + b"\xc3\xa4\r\n")
    assert out.endswith(b"=C3=A4\r\n") == converted
    assert (b": quoted-printable\r\n" in out) == converted


@trio_test
async def test_s081_the_encoding_that_a_conversion_writes_is_a_mime_field() -> None:
    message = LEAF + b"\xc3\xa4\r\n"
    encoding = b"Content-Transfer-Encoding: quoted-printable\r\n"
    for others in ("smtp_header_checks", "smtp_nested_header_checks"):
        assert encoding in await convert(message, {others: "static:IGNORE"})
    assert encoding not in await convert(message, {"smtp_mime_header_checks": "static:IGNORE"})


@trio_test
async def test_s083_a_text_before_a_piece_of_a_long_line_is_a_line() -> None:
    of = settings({"smtp_body_checks": "regexp:{{/^x/ PREPEND y}}", "smtp_line_length_limit": "0"})
    out, _ = await transform([b"\r\n" + b"x" * 2050 + b"\r\n"], of)
    assert out == b"\r\ny\r\n" + b"x" * 2048 + b"\r\ny\r\nxx\r\n"


@pytest.mark.parametrize("kind", [b"message/delivery-status", b"message/news"])
@trio_test
async def test_s196_an_encoded_message_of_another_type_says_so(kind: bytes) -> None:
    out = await convert(LEAF.replace(b"text/plain", kind) + b"\xc3\xa4\r\n")
    assert b"\r\nContent-Transfer-Encoding: quoted-printable\r\n" in out
    assert out.endswith(b"=C3=A4\r\n")


GLOBAL = b"Content-Type: message/global\r\n%s\r\nSubject: \xc3\xa4\r\n" + LEAF + b"\xc3\xa4\r\n"


@pytest.mark.parametrize("label", [b"", b"Content-Transfer-Encoding: 8bit\r\n"])
@trio_test
async def test_s082_the_header_of_an_international_message_inside_is_checked(label: bytes) -> None:
    of = settings({"smtp_nested_header_checks": "regexp:{{/^Subject/ REPLACE X: 1}}"})
    out, _ = await transform([GLOBAL % label], of)
    assert out == (GLOBAL % label).replace(b"Subject: \xc3\xa4", b"X: 1")


@trio_test
async def test_s071_an_international_message_inside_is_encoded_where_it_is_labelled() -> None:
    # Its header may be 8-bit: then all of it is encoded (RFC 6532 section 3.7). Else its parts are.
    label = b"Content-Transfer-Encoding: 8bit\r\n"
    whole = await convert(GLOBAL % label)
    assert whole.isascii()
    assert whole.startswith(
        b"Content-Type: message/global\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\nSubject: =C3=A4\r\n"
    )
    assert (await convert(GLOBAL % b"")).endswith(
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=A4\r\n"
    )


@trio_test
async def test_s196_an_empty_content_type_in_a_digest_is_text() -> None:
    of = settings({"smtp_nested_header_checks": "static:IGNORE"})
    for field, checked in ((b"", True), (b"Content-Type:\r\n", False)):
        message = (
            b"Content-Type: multipart/digest; boundary=B\r\n\r\n--B\r\n%s\r\n" % field
            + b"X-Inside: 1\r\n\r\nx\r\n--B--\r\n"
        )
        out, _ = await transform([message], of)
        assert (b"X-Inside" not in out) == checked


@pytest.mark.parametrize(
    "kind", [b"multipart/signed", b"message/partial", b"message/external-body"]
)
@trio_test
async def test_s196_what_must_not_be_altered_is_not(kind: bytes) -> None:
    message = (
        b"Content-Transfer-Encoding: 8bit\r\nContent-Type: %s; boundary=B\r\n\r\n--B\r\n" % kind
        + LEAF
        + b"\xc3\xa4\r\n--B--\r\n"
    )
    out = await convert(message)
    head, _, body = message.partition(b"\r\n\r\n")
    assert out.partition(b"\r\n\r\n")[2] == body
    assert sorted(out.partition(b"\r\n\r\n")[0].split(b"\r\n")) == sorted(head.split(b"\r\n"))


@trio_test
async def test_what_stands_beside_something_signed_is_converted() -> None:
    message = (
        b"Content-Type: multipart/mixed; boundary=OUT\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"--OUT\r\nContent-Type: multipart/signed; boundary=IN\r\n\r\n--IN\r\n"
        + LEAF
        + b"\xc3\xa4\r\n--IN--\r\n--OUT\r\n"
        + LEAF
        + b"\xc3\xa4\r\n--OUT--\r\n"
    )
    out = await convert(message)
    assert out.count(b"\xc3\xa4") == 1
    assert out.count(b"=C3=A4") == 1


@trio_test
async def test_s073_nesting_beyond_the_limit_cannot_be_converted() -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=%d_\r\n\r\n--%d_\r\n" % (level, level)
        for level in range(101)
    )
    with pytest.raises(MimeError):
        await convert(deep + LEAF)
    await convert(deep.replace(b"boundary=100_", b"x=y") + LEAF)


PARTS = st.recursive(
    st.tuples(
        st.sampled_from([b"7bit", b"8bit", b"binary", b""]),
        st.lists(st.sampled_from(["a", "ä", " ", "=", "\r\n", ".", "-", "--", "x" * 90])).map(
            "".join
        ),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=3),
    max_leaves=6,
)


def build(part: object, depth: int = 0) -> bytes:
    """A MIME entity; what is labelled 7bit, or not at all, is ASCII."""
    if isinstance(part, tuple):
        encoding, text = part
        label = b"Content-Transfer-Encoding: %s\r\n" % encoding if encoding else b""
        if encoding in (b"7bit", b""):
            text = text.replace("ä", "a")
        body: bytes = text.encode()
        return b"Content-Type: text/plain; charset=utf-8\r\n" + label + b"\r\n" + body
    assert isinstance(part, list)
    between = b"\r\n--B%d_\r\n" % depth
    return (
        b"Content-Transfer-Encoding: 8bit\r\nContent-Type: multipart/mixed; boundary=B%d_\r\n\r\n"
        % depth
        + b"--B%d_\r\n" % depth
        + between.join(build(inner, depth + 1) for inner in part)
        + b"\r\n--B%d_--\r\n" % depth
    )


def leaves(message: bytes) -> list[str]:
    """The texts of a message, decoded by the standard library."""
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    return [
        (part.get_payload(decode=True) or b"").decode().replace("\r\n", "\n").rstrip("\n")  # type: ignore[union-attr]
        for part in parsed.walk()
        if not part.is_multipart()
    ]


@given(PARTS, st.lists(st.integers(0, 400), max_size=5))
def test_s071_a_conversion_is_seven_bit_decodes_to_the_same_and_does_not_depend_on_cuts(
    part: object, cuts: list[int]
) -> None:
    message = b"MIME-Version: 1.0\r\nSubject: x\r\n" + build(part)

    async def both() -> tuple[bytes, bytes]:
        edges = [0, *sorted(at for at in cuts if at < len(message)), len(message)]
        pieces = [message[a:b] for a, b in itertools.pairwise(edges)]
        whole, _ = await transform([message], ContentSettings(), SEVEN_BIT)
        cut, _ = await transform(pieces, ContentSettings(), SEVEN_BIT)
        return whole, cut

    whole, cut = trio.run(both)
    assert whole == cut
    assert whole.isascii()
    assert max(map(len, whole.split(b"\r\n"))) <= 998
    assert leaves(whole) == leaves(message)


CRUMBS = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\r",
            b"\n",
            b".",
            b"\r\n.\r\n",
            b"--B\r\n",
            b"--B--\r\n",
            b"\xe4",
            b"\0",
            b"=",
        ),
        *(b"Subject: cut\r\n", b"To: a@x.example,\r\n\tb@x.example\r\n", b"drop\r\n", b"x" * 30),
        b"Content-Type: multipart/mixed; boundary=B\r\n",
        b"Content-Type: message/rfc822\r\n",
        b"Content-Transfer-Encoding: 8bit\r\n",
    ]
)
EVERYTHING = {
    "smtp_header_checks": "pcre:{{/^Subject: (.*)$$/ REPLACE X-S: $$1}, {/^X/ PREPEND X-P: .}}",
    "smtp_mime_header_checks": "regexp:{{/boundary/ INFO seen}}",
    "smtp_nested_header_checks": "regexp:{{/^Subject/ IGNORE}}",
    "smtp_body_checks": "regexp:{{/^drop/ IGNORE}, {/^\\./ REPLACE .}, {/x(.)/ PREPEND .$$1}}",
    "smtp_generic_maps": "inline:{a@x.example=long-name@outside.example}",
    "smtp_line_length_limit": "40",
}


@given(st.lists(CRUMBS, max_size=30).map(b"".join), st.lists(st.integers(0, 200), max_size=6))
def test_s076_all_of_it_together_does_not_depend_on_cuts_and_never_ends_data_early(
    message: bytes, cuts: list[int]
) -> None:
    of = settings(EVERYTHING)

    async def both() -> tuple[bytes, bytes, bytes]:
        edges = [0, *sorted(at for at in cuts if at < len(message)), len(message)]
        pieces = [message[a:b] for a, b in itertools.pairwise(edges)]
        octets = [bytes([octet]) for octet in message]
        return (
            (await transform([message], of, SEVEN_BIT))[0],
            (await transform(pieces, of, SEVEN_BIT))[0],
            (await transform(octets, of, SEVEN_BIT))[0],
        )

    whole, cut, single = trio.run(both)
    assert whole == cut == single
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", whole)
    assert max(map(len, whole.split(b"\r\n"))) <= 40
    encoder = DataEncoder()
    wire = encoder.feed(whole) + encoder.finish()
    assert (b"\r\n" + wire).count(b"\r\n.\r\n") == 1


# --- checks ---------------------------------------------------------------------------------------

HEADER = "smtp_header_checks"


async def checked(message: bytes, mapping: Mapping[str, str]) -> tuple[bytes, list[Event]]:
    """The message after the checks, for a server that takes 8 bits."""
    return await transform([message], settings(mapping))


@pytest.mark.parametrize(
    ("action", "lines", "logged"),
    [
        ("REPLACE X-New: $$1", b"X-New: b\r\n", "replace"),
        ("replace X-New: $$1", b"X-New: b\r\n", "replace"),
        ("PREPEND X-New: $$1", b"X-New: b\r\nX-Old: b\r\n", "prepend"),
        ("IGNORE as it may be", b"", ""),
        ("STRIP it", b"", "strip"),
        ("WARN of it", b"X-Old: b\r\n", "warning"),
        ("INFO of it", b"X-Old: b\r\n", "info"),
        ("DUNNO", b"X-Old: b\r\n", ""),
        ("OK", b"X-Old: b\r\n", ""),
    ],
)
@trio_test
async def test_s080_actions_on_a_header(action: str, lines: bytes, logged: str) -> None:
    table = f"pcre:{{{{/^X-Old: (.*)$$/ {action}}}}}"
    out, events = await checked(b"A: 1\r\nX-Old: b\r\nZ: 1\r\n\r\nX-Old: b\r\n", {HEADER: table})
    assert out == b"A: 1\r\n" + lines + b"Z: 1\r\n\r\nX-Old: b\r\n"
    assert [event.action for event in events if isinstance(event, ContentChecked)] == (
        [logged] if logged else []
    )
    if logged:
        assert len(events) == 1


@pytest.mark.parametrize(
    "action",
    [
        *("REJECT no", "DISCARD", "FILTER x:y", "HOLD", "REDIRECT a@b", "BCC a@b", "DELAY 5"),
        *("FOO", "REPLACE", "REPLACE no field", "PREPEND", "PREPEND no field"),
    ],
)
@trio_test
async def test_s080_what_a_delivery_agent_cannot_do_is_a_warning_and_nothing_else(
    action: str,
) -> None:
    out, events = await checked(b"A: 1\r\n\r\nx\r\n", {HEADER: f"regexp:{{{{/^A/ {action}}}}}"})
    assert out == b"A: 1\r\n\r\nx\r\n"
    assert [type(event) for event in events] == [Warned]


@trio_test
async def test_s080_a_header_is_matched_as_a_whole_and_its_first_match_wins() -> None:
    table = "pcre:{{/^A: 1\\n 2$$/ REPLACE B: both}, {/^A/ IGNORE}}"
    out, _ = await checked(b"A: 1\r\n 2\r\nA: 1\r\n\r\n", {HEADER: table})
    assert out == b"B: both\r\n\r\n"


@trio_test
async def test_s080_what_an_action_makes_of_a_folded_header_stays_one_field() -> None:
    table = "pcre:{{/^A: 1\\n (x.*\\n) (.*)$$/ REPLACE B: $$1$$2}}"
    out, _ = await checked(b"A: 1\r\n x\r\n Subject: y\r\n\r\n", {HEADER: table})
    assert out == b"B: x\r\n Subject: y\r\n\r\n"


NESTED = (
    b"Subject: s\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n"
    b"--B\r\nX-Part: s\r\nContent-Type: message/rfc822\r\n\r\n"
    b"Subject: s\r\nContent-Type: text/plain\r\n\r\nSubject: s\r\n--B--\r\n"
)


@pytest.mark.parametrize(
    ("parameter", "gone"),
    [
        ("smtp_header_checks", [0]),
        ("smtp_mime_header_checks", [1, 4, 5, 8]),
        ("smtp_nested_header_checks", [7]),
        ("smtp_body_checks", [3, 10, 11]),
    ],
)
@trio_test
async def test_each_table_is_asked_about_its_own_lines(parameter: str, gone: list[int]) -> None:
    out, _ = await checked(NESTED, {parameter: "static:IGNORE"})
    lines = NESTED.splitlines(keepends=True)
    assert out.splitlines(keepends=True) == [
        line for number, line in enumerate(lines) if number not in gone
    ]


@trio_test
async def test_s083_body_lines_are_checked_one_by_one() -> None:
    table = "regexp:{{/^drop/ IGNORE}, {/^old (.*)$$/ REPLACE new $$1}, {/^mark/ PREPEND mark:}}"
    body = b"drop me\r\nold text\r\nmark\r\nlast"
    out, _ = await checked(b"drop: 1\r\n\r\n" + body, {"smtp_body_checks": table})
    assert out == b"drop: 1\r\n\r\nnew text\r\nmark:\r\nmark\r\nlast\r\n"


@trio_test
async def test_s083_a_very_long_line_is_checked_in_pieces() -> None:
    table = "regexp:{{/^b+$$/ REPLACE -}, {/^c/ IGNORE}}"
    body = b"a" * 2048 + b"b" * 2048 + b"c\r\nd\r\n"
    out, _ = await checked(
        b"A: 1\r\n\r\n" + body, {"smtp_body_checks": table, "smtp_line_length_limit": "0"}
    )
    assert out == b"A: 1\r\n\r\n" + b"a" * 2048 + b"-\r\nd\r\n"


@trio_test
async def test_a_field_too_long_to_be_looked_at_goes_or_stays_as_a_whole() -> None:
    message = b"X-Long: 1\r\n" + b" \tx y z\r\n" * 20_000 + b"B: 1\r\n\r\nx\r\n"
    out, _ = await checked(message, {HEADER: "regexp:{{/^X-Long/ IGNORE}}"})
    assert out == b"B: 1\r\n\r\nx\r\n"
    out, _ = await checked(message, {HEADER: "regexp:{{/^X-Long/ DUNNO}}"})
    assert out == message


@pytest.mark.parametrize("parameter", ["smtp_header_checks", "smtp_body_checks"])
@trio_test
async def test_a_table_in_trouble_lets_nothing_through(parameter: str) -> None:
    with pytest.raises(TableError):
        await checked(b"A: 1\r\n\r\nx\r\n", {parameter: "fail:it"})


@trio_test
async def test_a_body_of_many_lines_lets_others_have_their_turn() -> None:
    body = b"A: 1\r\n\r\n" + b"x\r\n" * (10 * content_transform.TURN)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await checked(body, {"smtp_body_checks": "static:DUNNO"})
        nursery.cancel_scope.cancel()
    assert turns >= 5


# --- long lines -----------------------------------------------------------------------------------


@trio_test
async def test_broken_lines_are_told_once() -> None:
    line = b"x" * 999 + b"\r\n"
    out, events = await checked(b"A: 1\r\n\r\n" + line * 3, {HEADER: "static:DUNNO"})
    assert out == b"A: 1\r\n\r\n" + (b"x" * 998 + b"\r\n x\r\n") * 3
    assert [event for event in events if isinstance(event, LinesBroken)] == [
        LinesBroken(REQUEST.queue_id, 998)
    ]


# --- generic maps ---------------------------------------------------------------------------------

GENERIC = {
    "myorigin": "home.example",
    "mydestination": "here.example",
    "recipient_delimiter": "+",
}


def generic(table: str, **more: str) -> GenericMaps:
    """The generic maps of a main.cf."""
    found = settings({**GENERIC, "smtp_generic_maps": table, **more}).generic
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("table", "address", "expected"),
    [
        ("u+e@x.example=1@o, u@x.example=2@o", "u+e@x.example", "1@o"),
        ("u@x.example=2@o, u+e=3@o", "u+e@x.example", "2@o"),
        ("u+e=3@o, u=4@o, @here.example=5@o", "u+e@here.example", "3@o"),
        ("u=4@o, @here.example=5@o", "u+e@here.example", "4@o"),
        ("u=4@o", "u@home.example", "4@o"),
        ("u=4@o", "u@x.example", None),
        ("@x.example=5@o", "u+e@x.example", "5@o"),
        ("@x.example=@o", "u+e@x.example", "u+e@o"),
        ("u@x.example=@o", "u+e@x.example", "u+e@o"),
        ("u@x.example=new", "u@x.example", "new@home.example"),
        ("U@X.example=1@o", "u@x.EXAMPLE", "1@o"),
        ('"a b"@x.example=1@o', "a b@x.example", "1@o"),
        ("a b@x.example=1@o", "a b@x.example", "1@o"),
        ("u=4@o", "u", "4@o"),
        ("u@x.example=1@o", "", None),
    ],
)
@trio_test
async def test_s074_keys_are_asked_in_their_order(
    table: str, address: str, expected: str | None
) -> None:
    items = ", ".join(f"{{{item}}}" for item in table.split(", "))
    assert await generic(f"inline:{{{items}}}").find(address) == expected


@trio_test
async def test_s074_addresses_of_a_list_have_no_extension() -> None:
    maps = generic("inline:{list@x.example=new@o, owner@x.example=new@o}", recipient_delimiter="-")
    assert await maps.find("list-x@x.example") == "new@o"
    assert await maps.find("list-request@x.example") is None
    assert await maps.find("owner-list@x.example") is None


@trio_test
async def test_s074_an_extension_is_added_to_the_result_only_if_generic_propagates_it() -> None:
    table = "inline:{u@x.example=new@o}"
    assert await generic(table).find("u+e@x.example") == "new@o"
    more = {"propagate_unmatched_extensions": "canonical, generic"}
    assert await generic(table, **more).find("u+e@x.example") == "new+e@o"
    assert await generic("inline:{u+e@x.example=new@o}", **more).find("u+e@x.example") == "new@o"
    assert await generic("inline:{@x.example=new@o}", **more).find("u+e@x.example") == "new@o"
    assert await generic("inline:{u@x.example=@o}", **more).find("u+e@x.example") == "u+e@o"


@trio_test
async def test_s074_patterns_see_the_whole_address_once() -> None:
    maps = generic("regexp:{{/^u@(.*)$$/ v@$$1.o}, {/^@/ no@o}}")
    assert await maps.find("u@X.example") == "v@X.example.o"
    assert await maps.find("w@x.example") is None


@pytest.mark.parametrize("text", ["two@o, three@o", "no address", "<>"])
@trio_test
async def test_a_result_that_is_no_address_is_trouble(text: str) -> None:
    with pytest.raises(TableError, match="not one address"):
        await generic(f"static:{{{text}}}").find("u@x.example")


@pytest.mark.parametrize("more", [{}, {"smtp_mime_header_checks": "static:DUNNO"}])
@trio_test
async def test_s074_addresses_in_the_primary_header_are_rewritten_and_nowhere_else(
    more: dict[str, str],
) -> None:
    inner = b"From: u@x.example\r\n\r\nFrom: u@x.example\r\n"
    message = (
        b'From: "U, Ser" <u@x.example>\r\nTo: a@y.example,\r\n\tu@x.example (me)\r\n'
        b"Subject: u@x.example\r\nContent-Type: message/rfc822\r\n\r\n"
    )
    mapping = {"smtp_generic_maps": "inline:{u@x.example=n@o.ex}", **more}
    out, _ = await checked(message + inner, mapping)
    assert out == (
        b'From: "U, Ser" <n@o.ex>\r\nTo: a@y.example,\r\n\tn@o.ex (me)\r\n'
        b"Subject: u@x.example\r\nContent-Type: message/rfc822\r\n\r\n" + inner
    )
