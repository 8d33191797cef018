"""What the manual says of changing a content on its way out, as SMTP and LMTP servers see it.

Each test is about one row, with the parameters of a main.cf. Deterministic: scripted servers in
memory, and virtual time where it passes at all. Details are tested beside the code:
`test_content_*`, `test_mime`, `test_line_length`, `test_data`.
"""

import email
import email.policy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import ClientFacts, DeliveryRequest, Protocol
from tests.worker.peer import EXTENSIONS, Peer, Phase, Script
from tests.worker.world import World, deliver_one, make_request
from worker.config.config import Config
from worker.content import InlineContent
from worker.delivery.generic_maps import GenericMaps
from worker.delivery.settings import DeliverySettings
from worker.status.log import render

EITHER = pytest.mark.parametrize("protocol", Protocol)
SEVEN_BIT = ("PIPELINING", "SIZE")
HEAD = b"Subject: s\r\n"
LEAF = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"


async def delivered(
    content: bytes,
    protocol: Protocol,
    parameters: Mapping[str, str] | None = None,
    *,
    extensions: Sequence[str] = EXTENSIONS,
    script: Mapping[Phase, Script] | None = None,
    request: DeliveryRequest | None = None,
) -> tuple[Peer, World]:
    """One delivery; `parameters` by the names of SMTP, without "smtp_"."""
    names = {f"{protocol.value}_{name}": text for name, text in (parameters or {}).items()}
    # So named for both protocols.
    common = ("disable_mime_output_conversion", "mime_boundary_length_limit")
    for name in set(names):
        if (bare := name.partition("_")[2]) in common:
            names[bare] = names.pop(name)
    config = Config.from_mapping({"myhostname": "client.example", **names})
    peer = Peer(script, lmtp=protocol is Protocol.LMTP, extensions=extensions)
    world = World(peer, settings=DeliverySettings.from_config(config, protocol))
    request = request or make_request(protocol=protocol)
    if not request.encoding:
        request = replace(request, encoding="7bit" if content.isascii() else "8bit")
    await deliver_one(world, replace(request, size=len(content)), InlineContent(content))
    return peer, world


def lines_of(world: World) -> list[str]:
    """What the log says of what was done to the content."""
    return [f"{line.program}: {line.text}" for event in world.events for line in render(event)]


def mail_parameters(peer: Peer) -> list[str]:
    """What was said with MAIL, behind the address."""
    (mail,) = [line for line in peer.commands if line.startswith("MAIL FROM:")]
    return mail.split()[2:]


# --- lines and encodings --------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize(("length", "cut"), [(997, False), (998, False), (999, True)])
@trio_test
async def test_s070_lines_longer_than_998_octets_are_cut_and_told_of(
    protocol: Protocol, length: int, cut: bool
) -> None:
    line = b"x" * length + b"\r\n"
    peer, world = await delivered(HEAD + b"\r\n" + line * 2, protocol)
    sent = b"x" * 998 + b"\r\n " + b"x" * (length - 998) + b"\r\n" if cut else line
    assert peer.accepted[0].content == HEAD + b"\r\n" + sent * 2
    told = [text for text in lines_of(world) if "998" in text]
    assert len(told) == cut
    if cut:
        assert told[0].startswith(f"{protocol.value}: warning: Q1: ")


@EITHER
@trio_test
async def test_s070_with_a_limit_of_0_lines_go_whole(protocol: Protocol) -> None:
    content = HEAD + b"\r\n" + b"x" * 5000 + b"\r\n"
    peer, world = await delivered(content, protocol, {"line_length_limit": "0"})
    assert peer.accepted[0].content == content
    assert not [text for text in lines_of(world) if "warning" in text]


MIXED = (
    b"MIME-Version: 1.0\r\n"
    + HEAD
    + b"Content-Type: multipart/mixed; boundary=B\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    + b"--B\r\n"
    + LEAF
    + "Grüße\r\n.\r\n".encode()
    + b"--B\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n"
    + LEAF
    + "Für dich\r\n".encode()
    + b"--B--\r\n"
)


def texts(message: bytes) -> list[str]:
    """The texts of all leaves, decoded by the standard library."""
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    return [part.get_content() for part in parsed.walk() if part.get_content_maintype() == "text"]


@EITHER
@trio_test
async def test_s071_parts_become_seven_bit_and_decode_to_the_same(protocol: Protocol) -> None:
    peer, _ = await delivered(MIXED, protocol, extensions=SEVEN_BIT)
    content = peer.accepted[0].content
    assert content.isascii()
    assert texts(content) == texts(MIXED)
    assert len(texts(content)) == 2
    whole, _ = await delivered(
        MIXED, protocol, {"disable_mime_output_conversion": "yes"}, extensions=SEVEN_BIT
    )
    assert whole.accepted[0].content == MIXED


@EITHER
@pytest.mark.parametrize(
    ("limit", "same", "equal"),
    [("", 2047, False), ("", 2048, True), ("7", 6, False), ("7", 7, True)],
)
@trio_test
async def test_s072_boundaries_are_equal_if_their_first_2048_octets_are(
    protocol: Protocol, limit: str, same: int, equal: bool
) -> None:
    beginning = b"b" * same
    content = b"Content-Type: multipart/mixed; boundary=%sX\r\n\r\n--%sY\r\nX-Part: 1\r\n\r\n" % (
        beginning,
        beginning,
    )
    parameters = {"mime_header_checks": "regexp:{{/^X-Part/ IGNORE}}", "line_length_limit": "0"}
    if limit:
        parameters["mime_boundary_length_limit"] = limit
    peer, _ = await delivered(content, protocol, parameters)
    assert (b"X-Part" not in peer.accepted[0].content) == equal


@EITHER
@pytest.mark.parametrize(("depth", "action"), [(99, Action.SENT), (101, Action.BOUNCED)])
@trio_test
async def test_s073_99_levels_are_converted_and_101_are_an_error(
    protocol: Protocol, depth: int, action: Action
) -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=%d_\r\n\r\n--%d_\r\n" % (level, level)
        for level in range(depth)
    )
    peer, world = await delivered(deep + LEAF + b"\xc3\xbc\r\n", protocol, extensions=SEVEN_BIT)
    (outcome,) = world.results[0].outcomes
    assert (outcome.action, outcome.dsn) == (
        action,
        "2.0.0" if action is Action.SENT else "5.6.0",
    )
    assert [message.content.isascii() for message in peer.accepted] == [True] * (depth == 99)


# --- envelope -------------------------------------------------------------------------------------


@EITHER
@trio_test
async def test_s074_who_was_rewritten_is_reported_under_the_original_address(
    protocol: Protocol,
) -> None:
    table = "inline:{sender@client.example=out@o.ex, a@example.com=b@o.ex}"
    peer, world = await delivered(
        b"From: sender@client.example\r\n\r\n",
        protocol,
        {"generic_maps": table},
        script={Phase.RCPT: "550 5.1.1 who?"},
    )
    assert [line.split()[1] for line in peer.commands if line.startswith(("MAIL", "RCPT"))] == [
        "FROM:<out@o.ex>",
        "TO:<b@o.ex>",
    ]
    (outcome,) = world.results[0].outcomes
    assert (outcome.recipient.address, outcome.action) == ("a@example.com", Action.BOUNCED)


@EITHER
@trio_test
async def test_s075_only_announced_facts_are_forwarded_and_a_refusal_stops_nothing(
    protocol: Protocol,
) -> None:
    client = ClientFacts(name="c.example", address="198.51.100.7", helo="c")
    peer, world = await delivered(
        HEAD,
        protocol,
        {"send_xforward_command": "yes"},
        extensions=("XFORWARD NAME ADDR",),
        script={Phase.XFORWARD: "501 5.5.4 no"},
        request=replace(make_request(protocol=protocol), client=client),
    )
    assert [line for line in peer.commands if line.startswith("XFORWARD")] == [
        "XFORWARD NAME=c.example ADDR=198.51.100.7"
    ]
    assert len(peer.accepted) == 1
    assert [text for text in lines_of(world) if "501 5.5.4 no" in text]


@EITHER
@pytest.mark.parametrize("body", [b"x\r\n", b".\r\n..\r\n" * 100, b"", b"no line end"])
@trio_test
async def test_s077_the_size_is_announced_and_not_below_what_is_received(
    protocol: Protocol, body: bytes
) -> None:
    content = HEAD + b"\r\n" + body
    if not content.endswith(b"\r\n"):
        content += b"\r\n"  # as it is stored
    peer, _ = await delivered(content, protocol)
    (size,) = [word for word in mail_parameters(peer) if word.startswith("SIZE=")]
    assert peer.accepted[0].content == content
    assert int(size.partition("=")[2]) >= len(content)
    silent, _ = await delivered(content, protocol, extensions=("PIPELINING",))
    assert mail_parameters(silent) == []


@EITHER
@trio_test
async def test_s077_no_size_is_announced_for_what_is_converted(protocol: Protocol) -> None:
    peer, _ = await delivered(MIXED, protocol, extensions=SEVEN_BIT)
    assert mail_parameters(peer) == []


@EITHER
@pytest.mark.parametrize(
    ("encoding", "words"), [("7bit", ["BODY=7BIT"]), ("8bit", ["BODY=8BITMIME"]), ("", [])]
)
@trio_test
async def test_s078_the_body_type_is_that_of_the_stored_encoding(
    protocol: Protocol, encoding: str, words: list[str]
) -> None:
    peer = Peer(lmtp=protocol is Protocol.LMTP, extensions=("8BITMIME",))
    request = replace(make_request(protocol=protocol), encoding=encoding)
    await deliver_one(World(peer), request)
    assert mail_parameters(peer) == words
    unable = Peer(lmtp=protocol is Protocol.LMTP, extensions=())
    await deliver_one(World(unable), request)
    assert mail_parameters(unable) == []


# --- checks ---------------------------------------------------------------------------------------

RULES = """
    {/^X-Replace: (.*)$$/ REPLACE X-New: $$1}, {/^X-Prepend/ PREPEND X-Before: 1},
    {/^X-Ignore/ IGNORE}, {/^X-Strip/ STRIP it}, {/^X-Warn/ WARN of it}, {/^X-Info/ INFO on it},
    {/^X-Dunno/ DUNNO}, {/^X-Reject/ REJECT it}
"""
FIELDS = b"".join(
    b"X-%s: 1\r\n" % word.encode()
    for word in ("Replace", "Prepend", "Ignore", "Strip", "Warn", "Info", "Dunno", "Reject")
)


@EITHER
@trio_test
async def test_s080_each_action_shows_on_the_wire_and_in_the_log(protocol: Protocol) -> None:
    peer, world = await delivered(
        FIELDS + b"\r\n", protocol, {"header_checks": f"pcre:{{{RULES}}}"}
    )
    assert peer.accepted[0].content == (
        b"X-New: 1\r\nX-Before: 1\r\nX-Prepend: 1\r\nX-Warn: 1\r\nX-Info: 1\r\nX-Dunno: 1\r\n"
        b"X-Reject: 1\r\n\r\n"
    )
    program = protocol.value
    assert [text for text in lines_of(world) if "X-" in text] == [
        f"{program}: Q1: replace: header X-Replace: 1: X-New: 1",
        f"{program}: Q1: prepend: header X-Prepend: 1: X-Before: 1",
        f"{program}: Q1: strip: header X-Strip: 1: it",
        f"{program}: Q1: warning: header X-Warn: 1: of it",
        f"{program}: Q1: info: header X-Info: 1: on it",
    ]
    assert [text for text in lines_of(world) if "REJECT" in text]


NESTED = (
    b"Subject: s\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n"
    b"--B\r\nSubject: s\r\nContent-Type: text/html\r\n\r\nSubject: s\r\n"
    b"--B\r\nContent-Type: message/rfc822\r\n\r\n"
    b"Subject: s\r\nContent-Type: text/html\r\n\r\nSubject: s\r\n--B--\r\n"
)


async def checked(protocol: Protocol, parameters: dict[str, str]) -> list[bytes]:
    """The lines of NESTED as they arrive."""
    peer, _ = await delivered(NESTED, protocol, parameters)
    return peer.accepted[0].content.splitlines()


@EITHER
@trio_test
async def test_s081_mime_checks_see_mime_fields_everywhere_and_all_fields_of_parts(
    protocol: Protocol,
) -> None:
    rules = "regexp:{{/^Content-Type: text.html/ REPLACE Content-Type: text/plain}}"
    lines = NESTED.replace(b"text/html", b"text/plain").splitlines()
    assert await checked(protocol, {"mime_header_checks": rules}) == lines
    # header_checks say nothing about them.
    assert await checked(protocol, {"header_checks": rules}) == NESTED.splitlines()
    subject = "regexp:{{/^Subject/ REPLACE X-Subject: 1}}"
    found = await checked(protocol, {"mime_header_checks": subject})
    assert [number for number, line in enumerate(found) if line == b"X-Subject: 1"] == [4]


@EITHER
@trio_test
async def test_s082_nested_checks_see_the_header_of_an_attached_message_alone(
    protocol: Protocol,
) -> None:
    rules = "regexp:{{/^Subject/ REPLACE X-Subject: 1}, {/^Content/ IGNORE}}"
    found = await checked(protocol, {"nested_header_checks": rules})
    expected = NESTED.splitlines()
    expected[11] = b"X-Subject: 1"
    assert found == expected


@EITHER
@trio_test
async def test_s083_body_checks_see_line_by_line(protocol: Protocol) -> None:
    rules = "regexp:{{/^drop/ IGNORE}, {/^old (.*)$$/ REPLACE new $$1}}"
    body = b"drop this\r\nold text\r\nnot old text\r\n"
    peer, _ = await delivered(b"drop: 1\r\n\r\n" + body, protocol, {"body_checks": rules})
    assert peer.accepted[0].content == b"drop: 1\r\n\r\nnew text\r\nnot old text\r\n"


@EITHER
@trio_test
async def test_s083_body_checks_see_no_empty_line(protocol: Protocol) -> None:
    # Whatever the patterns are: Postfix asks no table for an empty key.
    rules = "regexp:{{!/text/ IGNORE}}"
    body = b"a text\r\n\r\ndrop this\r\n\r\ntext b\r\n"
    peer, _ = await delivered(b"A: 1\r\n\r\n" + body, protocol, {"body_checks": rules})
    assert peer.accepted[0].content == b"A: 1\r\n\r\na text\r\n\r\n\r\ntext b\r\n"


@trio_test
async def test_s074_lookups_are_not_counted_as_the_server_s_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a table takes: smtp_data_xfer_timeout is for what the server takes."""

    async def slow(maps: GenericMaps, address: str) -> str | None:
        del maps, address
        await trio.sleep(1_000)
        return None

    monkeypatch.setattr(GenericMaps, "find", slow)
    config = Config.from_mapping(
        {"smtp_generic_maps": "static:a@x.example", "myhostname": "client.example"}
    )
    world = World(Peer(), settings=DeliverySettings.from_config(config, Protocol.SMTP))
    content = InlineContent(b"From: a@b.example\r\nSubject: x\r\n\r\nx\r\n")
    result = await deliver_one(world, content=content)
    assert result.outcomes[0].action is Action.SENT
    assert world.took == [3_000]  # sender, recipient, and the header
