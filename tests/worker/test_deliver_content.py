"""Content that has to be changed, as the server sees it in a whole delivery.

Deterministic: scripted servers in memory, and nothing here waits for time to pass. (A virtual clock
would run ahead while a file is read in a thread.)
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import trio_test

from protocol.outcome import Action, DeliveryResult
from tests.worker.peer import EXTENSIONS, Peer
from tests.worker.world import CONTENT, World, actions, make_request
from worker.config.config import Config
from worker.content import Content, FileContent, InlineContent
from worker.delivery.settings import DeliverySettings
from worker.status.events import LinesBroken

SEVEN_BIT = ("PIPELINING", "SIZE")
LEAF = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
LARGE = LEAF + "Grüße\r\n".encode() * 100_000

Store = Callable[[bytes], Content]


def configured(mapping: Mapping[str, str]) -> DeliverySettings:
    """The settings of a main.cf."""
    base = make_request()
    return DeliverySettings.from_config(
        Config.from_mapping({"myhostname": "client.example", **mapping}), base.protocol
    )


@pytest.fixture(params=["inline", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A content in memory, or in a file."""

    def make(octets: bytes) -> Content:
        if request.param == "inline":
            return InlineContent(octets)
        (tmp_path / "content").write_bytes(octets)
        return FileContent(os.open(tmp_path / "content", os.O_RDONLY))

    return make


async def deliver(
    world: World, content: Content, *recipients: str, encoding: str = "8bit", sender: str = "s@x.ex"
) -> DeliveryResult:
    """One delivery in the world."""
    request = replace(make_request(*recipients, sender=sender), encoding=encoding)

    async def scenario() -> None:
        await world.deliver(request, content)

    await world.play(scenario)
    content.close()
    assert not world.open_streams
    return world.results[0]


@trio_test
async def test_s071_a_server_without_8bitmime_gets_seven_bits_and_no_size(store: Store) -> None:
    peer = Peer(extensions=SEVEN_BIT)
    await deliver(World(peer), store(LARGE))
    assert peer.commands[1] == "MAIL FROM:<s@x.ex>"
    content = peer.accepted[0].content
    assert content.isascii()
    assert content.count(b"Gr=C3=BC=C3=9Fe\r\n") == 100_000
    assert b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" in content


@pytest.mark.parametrize("mapping", [{}, {"disable_mime_output_conversion": "yes"}])
@trio_test
async def test_s071_others_get_it_as_it_is(store: Store, mapping: dict[str, str]) -> None:
    peer = Peer(extensions=SEVEN_BIT if mapping else (*SEVEN_BIT, "8BITMIME"))
    await deliver(World(peer, settings=configured(mapping)), store(LARGE))
    assert "SIZE=" in peer.commands[1]
    assert peer.accepted[0].content == LARGE


@trio_test
async def test_s070_long_lines_are_broken_and_told_of_once(store: Store) -> None:
    peer = Peer()
    world = World(peer)
    lines = b"short\r\n" * 50_000 + b"." * 999 + b"\r\n"
    await deliver(world, store(CONTENT + lines * 2))
    assert (
        peer.accepted[0].content
        == CONTENT + (b"short\r\n" * 50_000 + b"." * 998 + b"\r\n .\r\n") * 2
    )
    assert [event for event in world.events if isinstance(event, LinesBroken)] == [
        LinesBroken("Q1", 998)
    ]


@trio_test
async def test_s073_a_message_that_cannot_be_converted_is_bounced_and_not_taken(
    store: Store,
) -> None:
    peer = Peer(extensions=SEVEN_BIT)
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=%d_\r\n\r\n--%d_\r\n" % (level, level)
        for level in range(101)
    )
    result = await deliver(World(peer), store(deep + LEAF), "a@example.com", "b@example.com")
    assert [(one.action, one.dsn) for one in result.outcomes] == [(Action.BOUNCED, "5.6.0")] * 2
    assert peer.accepted == []
    assert not result.session_kept


@pytest.mark.parametrize("parameter", ["smtp_header_checks", "smtp_body_checks"])
@trio_test
async def test_s080_a_table_in_trouble_defers_and_nothing_is_taken(
    store: Store, parameter: str
) -> None:
    peer, other = Peer(), Peer()
    world = World(peer, other, settings=configured({parameter: "fail:it"}))
    result = await deliver(world, store(b"Subject: x\r\n \xffy\r\n" + LARGE))
    assert [(one.action, one.dsn) for one in result.outcomes] == [(Action.DEFERRED, "4.3.0")]
    assert "fail:it" in result.outcomes[0].reason
    assert result.outcomes[0].reason.isprintable()
    assert peer.accepted == other.accepted == []
    assert not other.links


@pytest.mark.parametrize("parameter", ["smtp_header_checks", "smtp_body_checks"])
@trio_test
async def test_s080_a_rule_whose_text_is_empty_defers_and_nothing_is_taken(
    store: Store, parameter: str
) -> None:
    peer = Peer()
    world = World(peer, settings=configured({parameter: "regexp:{{/secret/ }}"}))
    result = await deliver(world, store(b"Subject: secret\r\n\r\nsecret\r\n"))
    assert [(one.action, one.dsn) for one in result.outcomes] == [(Action.DEFERRED, "4.3.0")]
    assert f"{parameter.removeprefix('smtp_')}: the text for " in result.outcomes[0].reason
    assert peer.accepted == []


GENERIC = {"smtp_generic_maps": "inline:{s@x.ex=out@o.ex, a@example.com=b@o.ex}"}


@trio_test
async def test_s074_generic_maps_rewrite_the_envelope_and_not_the_outcome(store: Store) -> None:
    peer = Peer(extensions=(*EXTENSIONS, "DSN"))
    world = World(peer, settings=configured(GENERIC))
    result = await deliver(world, store(b"From: s@x.ex\r\n\r\nx\r\n"), "a@example.com", "c@d.ex")
    assert peer.commands[1].startswith("MAIL FROM:<out@o.ex>")
    assert peer.commands[2] == "RCPT TO:<b@o.ex> ORCPT=rfc822;a@example.com"
    assert peer.commands[3].startswith("RCPT TO:<c@d.ex>")
    assert peer.accepted[0].content == b"From: out@o.ex\r\n\r\nx\r\n"
    assert actions(result) == {"a@example.com": Action.SENT, "c@d.ex": Action.SENT}


@trio_test
async def test_s074_the_null_sender_is_never_looked_up(store: Store) -> None:
    peer = Peer()
    world = World(peer, settings=configured({"smtp_generic_maps": "static:x@o.ex"}))
    await deliver(world, store(CONTENT), sender="")
    assert peer.commands[1].startswith("MAIL FROM:<>")


@trio_test
async def test_s074_generic_maps_in_trouble_defer_before_anything_is_said(store: Store) -> None:
    peer = Peer()
    world = World(peer, settings=configured({"smtp_generic_maps": "fail:it"}))
    result = await deliver(world, store(CONTENT))
    assert [(one.action, one.dsn) for one in result.outcomes] == [(Action.DEFERRED, "4.3.0")]
    assert "MAIL" not in peer.verbs


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize(
    "mapping",
    [GENERIC, {"smtp_header_checks": "pcre:{{/^Subject: (.*)$$/ REPLACE Subject: [x] $$1}}"}, {}],
    ids=["generic", "checks", "conversion"],
)
@trio_test
async def test_messages_in_a_row_are_all_changed(mapping: dict[str, str], steady: bool) -> None:
    peer = Peer(extensions=("PIPELINING",) if not mapping else EXTENSIONS)
    world = World(peer, settings=configured(mapping))
    row = [replace(make_request(sender="s@x.ex"), queue_id=name) for name in "ABC"]

    async def scenario() -> None:
        await world.deliver_in_a_row(row, steady=steady)

    await world.play(scenario)
    assert [one.action for result in world.results for one in result.outcomes] == [Action.SENT] * 3
    mails = [line for line in peer.commands if line.startswith("MAIL")]
    assert len(peer.links) == 1
    assert all(("<out@o.ex>" in line) == (mapping is GENERIC) for line in mails)
    changed = b"Subject: [x]" if "smtp_header_checks" in mapping else b"Subject: hello"
    assert [message.content.startswith(changed) for message in peer.accepted] == [True] * 3
