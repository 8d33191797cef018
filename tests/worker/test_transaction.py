"""One mail transaction as the server sees it: what is said, in which order, in which segments.

Deterministic: scripted servers in memory, virtual time.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import ClientFacts, Notify, Protocol, Recipient, Ret, SendOptions
from tests.worker.peer import EXTENSIONS, Fault, Peer, Phase
from tests.worker.world import CONTENT, World, actions, deliver_one, make_request
from worker.content import FileContent, InlineContent
from worker.delivery.settings import DeliverySettings
from worker.status.events import Warned

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")
BARE = ("SIZE",)
ABC = [f"{name}@example.com" for name in "abc"]
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED


# --- flights ------------------------------------------------------------------------------------


@trio_test
async def test_s036_mail_rcpt_and_data_travel_in_one_segment_and_the_content_in_the_next(
    autojump_clock: MockClock,
) -> None:
    peer = Peer(extensions=("PIPELINING",))
    await deliver_one(World(peer), make_request(*ABC))
    _, envelope, content, _ = peer.links[0].segments
    assert envelope == (
        b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<a@example.com>\r\n"
        b"RCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n"
    )
    assert content == CONTENT + b".\r\n"
    assert peer.accepted[0].content == CONTENT


@trio_test
async def test_s036_without_pipelining_each_command_waits_for_the_reply_before_it(
    autojump_clock: MockClock,
) -> None:
    peer = Peer(extensions=BARE)
    await deliver_one(World(peer), make_request(*ABC))
    assert [segment.count(b"\r\n") for segment in peer.links[0].segments[:6]] == [1] * 6
    assert len(peer.accepted) == 1


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP], ids=["pipelined", "lock-step"])
@trio_test
async def test_replies_may_come_glued_together(
    autojump_clock: MockClock, protocol: Protocol, extensions: tuple[str, ...]
) -> None:
    peer = Peer(lmtp=protocol is Protocol.LMTP, glued=True, extensions=extensions)
    result = await deliver_one(World(peer), make_request(*ABC, protocol=protocol))
    assert actions(result) == dict.fromkeys(ABC, SENT)
    assert result.session_kept


@pytest.mark.parametrize("window", [4096, 5000])
@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s199_two_thousand_recipients_with_long_replies_fit_through_a_small_window(
    autojump_clock: MockClock, window: int, protocol: Protocol
) -> None:
    names = [f"recipient-{number}@example.com" for number in range(2000)]
    peer = Peer(
        {Phase.RCPT: "250 2.1.5 " + "o" * 890},
        lmtp=protocol is Protocol.LMTP,
        window=window,
    )
    with trio.fail_after(10):
        result = await deliver_one(World(peer), make_request(*names, protocol=protocol))
    assert [outcome.action for outcome in result.outcomes] == [SENT] * 2000
    assert peer.served == names


@trio_test
async def test_s036_a_flight_never_exceeds_what_a_server_that_writes_can_leave_unread(
    autojump_clock: MockClock,
) -> None:
    # It reads as little as it can, and blocks in its first reply: what we send before we read
    # must fit into the window.
    peer = Peer({Phase.MAIL: "\n".join(["250-so much to say"] * 500 + ["250 ok"])}, window=4096)
    peer.read_size = 64
    recipients = tuple(
        Recipient(address=f"r{number}@example.com", original="o" * 450 + "@example.com", key=number)
        for number in range(20)
    )
    with trio.fail_after(10):
        result = await deliver_one(World(peer), replace(make_request(), recipients=recipients))
    assert {outcome.action for outcome in result.outcomes} == {SENT}


@trio_test
async def test_a_refused_mail_stops_the_recipients_that_were_not_sent_yet(
    autojump_clock: MockClock,
) -> None:
    names = [f"recipient-{number}@example.com" for number in range(500)]
    peer = Peer({Phase.MAIL: "450 4.7.1 later"})
    result = await deliver_one(World(peer), make_request(*names))
    assert {outcome.action for outcome in result.outcomes} == {DEFERRED}
    assert len(peer.offered) < 100
    assert "DATA" not in peer.verbs
    assert result.session_kept


@trio_test
async def test_in_lock_step_nothing_pointless_is_said(autojump_clock: MockClock) -> None:
    refused_mail = Peer({Phase.MAIL: "550 5.7.1 no"}, extensions=BARE)
    await deliver_one(World(refused_mail), make_request(*ABC))
    assert refused_mail.verbs == ["EHLO", "MAIL", "QUIT"]
    refused_all = Peer({Phase.RCPT: "550 5.1.1 no"}, extensions=BARE)
    await deliver_one(World(refused_all), make_request(*ABC))
    assert refused_all.verbs == ["EHLO", "MAIL", "RCPT", "RCPT", "RCPT", "QUIT"]


# --- all refused, and DATA accepted all the same ------------------------------------------------


@trio_test
async def test_s036_a_go_ahead_for_nobody_gets_a_lone_dot_and_nothing_is_accepted(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: "450 4.2.2 full", Phase.DATA: "354 go", Phase.DOT: "250 ok"})
    result = await deliver_one(World(peer), make_request(*ABC))
    assert {(o.action, o.dsn, o.in_doubt) for o in result.outcomes} == {(DEFERRED, "4.2.2", False)}
    assert peer.links[0].contents == [b""]
    assert result.session_kept


@trio_test
async def test_a_go_ahead_after_a_refused_mail_gets_no_dot(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.MAIL: "450 4.7.1 later", Phase.RCPT: "250 ok", Phase.DATA: "354 go"})
    result = await deliver_one(World(peer), make_request(*ABC))
    assert {(o.action, o.dsn, o.in_doubt) for o in result.outcomes} == {(DEFERRED, "4.7.1", False)}
    assert peer.links[0].dots == 0
    assert not result.session_kept


@trio_test
async def test_a_go_ahead_for_nobody_ends_the_session_in_lmtp(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.RCPT: "550 5.1.1 no", Phase.DATA: "354 go"}, lmtp=True)
    result = await deliver_one(World(peer), make_request(*ABC, protocol=Protocol.LMTP))
    assert actions(result) == dict.fromkeys(ABC, BOUNCED)
    assert not result.session_kept
    assert peer.links[0].dots == 0


# --- who gets which reply -----------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP], ids=["pipelined", "lock-step"])
@trio_test
async def test_each_recipient_has_its_own_reply(
    autojump_clock: MockClock, extensions: tuple[str, ...]
) -> None:
    script = {ABC[0]: "550 5.1.1 who?", ABC[1]: "452 4.2.2 full"}
    peer = Peer({Phase.RCPT: script}, extensions=extensions)
    result = await deliver_one(World(peer), make_request(*ABC))
    assert [(o.recipient.address, o.action, o.dsn) for o in result.outcomes] == [
        (ABC[0], BOUNCED, "5.1.1"),
        (ABC[1], DEFERRED, "4.2.2"),
        (ABC[2], SENT, "2.0.0"),
    ]
    assert peer.served == [ABC[2]]
    assert result.outcomes[2].reply == "250 2.0.0 queued"


@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP], ids=["pipelined", "lock-step"])
@trio_test
async def test_s037_lmtp_settles_each_accepted_recipient_by_its_own_final_reply(
    autojump_clock: MockClock, extensions: tuple[str, ...]
) -> None:
    names = [f"{name}@example.com" for name in "abcd"]
    peer = Peer(
        {
            Phase.RCPT: {names[1]: "550 5.1.1 who?"},
            Phase.DOT: {names[2]: "450 4.2.2 full", names[3]: "550 5.2.0 no"},
        },
        lmtp=True,
        extensions=extensions,
    )
    result = await deliver_one(World(peer), make_request(*names, protocol=Protocol.LMTP))
    assert [(o.action, o.dsn) for o in result.outcomes] == [
        (SENT, "2.0.0"),
        (BOUNCED, "5.1.1"),
        (DEFERRED, "4.2.2"),
        (BOUNCED, "5.2.0"),
    ]
    assert peer.served == [names[0]]
    assert result.session_kept


@trio_test
async def test_a_503_for_data_after_a_soft_refusal_bounces_nobody(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: "450 4.2.0 later", Phase.DATA: "503 5.5.1 no recipients"})
    result = await deliver_one(World(peer), make_request(*ABC))
    assert {(o.action, o.dsn) for o in result.outcomes} == {(DEFERRED, "4.2.0")}
    refused = Peer({Phase.MAIL: "450 4.2.0 later", Phase.RCPT: "503 5.5.1 MAIL first"})
    result = await deliver_one(World(refused), make_request(*ABC))
    assert {(o.action, o.dsn) for o in result.outcomes} == {(DEFERRED, "4.2.0")}


@trio_test
async def test_a_lmtp_server_that_dies_among_its_final_replies_leaves_the_rest_in_doubt(
    autojump_clock: MockClock,
) -> None:
    peer, other = Peer({Phase.DOT: {ABC[1]: Fault.CUT}}, lmtp=True), Peer(lmtp=True)
    result = await deliver_one(World(peer, other), make_request(*ABC, protocol=Protocol.LMTP))
    assert [(o.action, o.in_doubt) for o in result.outcomes] == [
        (SENT, False),
        (DEFERRED, True),
        (DEFERRED, True),
    ]
    assert other.links == []


# --- what the server says before it is asked ----------------------------------------------------


@pytest.mark.parametrize("real_sockets", [False, True])
@trio_test
async def test_a_yes_from_before_the_dot_is_no_answer_to_it(real_sockets: bool) -> None:
    peer = Peer({Phase.DATA: "354 go\n250 queued already"}, real_sockets=real_sockets)
    result = await deliver_one(World(peer))
    outcome = result.outcomes[0]
    assert (outcome.action, outcome.dsn, outcome.in_doubt) == (DEFERRED, "4.5.0", False)
    assert outcome.reason.startswith("protocol error from mx1.example.com[192.0.2.1] while sending")
    assert peer.accepted == []
    assert peer.links[0].dots == 0


@trio_test
async def test_a_no_from_before_the_dot_counts(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.DATA: "354 go\n552 5.3.4 changed my mind"})
    result = await deliver_one(World(peer))
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (BOUNCED, "5.3.4")
    assert not result.session_kept


@trio_test
async def test_replies_to_nothing_before_the_transaction_end_the_session(
    autojump_clock: MockClock,
) -> None:
    peer, other = Peer({Phase.EHLO: "250-mx\n250 PIPELINING\n250 ok\n250 ok"}), Peer()
    result = await deliver_one(World(peer, other))
    assert peer.verbs == ["EHLO"]
    assert actions(result) == {"a@example.com": SENT}
    assert other.served == ["a@example.com"]


@pytest.mark.parametrize("size", [100_000, 3_000_000])
@trio_test
async def test_s038_an_early_refusal_ends_a_long_content_at_once(tmp_path: Path, size: int) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"line of text\r\n" * (size // 14))
    peer = Peer({Phase.CONTENT: "552 5.3.4 too much"}, real_sockets=True)
    content = FileContent(os.open(file, os.O_RDONLY))
    try:
        result = await deliver_one(World(peer), None, content)
    finally:
        content.close()
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (BOUNCED, "5.3.4")
    if size > 1_000_000:
        assert sum(map(len, peer.links[0].segments)) < size
        assert peer.links[0].dots == 0


# --- content that cannot be read ----------------------------------------------------------------


@trio_test
async def test_s159_without_our_own_copy_no_dot_is_sent_and_nobody_else_is_asked() -> None:
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)  # reads fail with EISDIR
    peer, other = Peer(), Peer()
    world = World(peer, other)
    content = FileContent(directory)
    try:
        result = await deliver_one(world, make_request(*ABC), content)
    finally:
        content.close()
    assert {(o.action, o.dsn, o.in_doubt) for o in result.outcomes} == {(DEFERRED, "4.3.0", False)}
    assert result.outcomes[0].reason == "cannot read the queued message: Is a directory"
    assert (peer.links[0].dots, other.links) == (0, [])
    assert peer.verbs == ["EHLO", "MAIL", "RCPT", "RCPT", "RCPT", "DATA"]
    assert not result.session_kept
    assert result.site_failure is None
    assert not world.open_streams


@trio_test
async def test_a_large_content_arrives_octet_by_octet_as_it_was(tmp_path: Path) -> None:
    octets = b"".join(b".line %d\r\n\r\n..\r\n" % number for number in range(60_000))
    file = tmp_path / "content"
    file.write_bytes(octets)
    peer = Peer(window=4096)
    content = FileContent(os.open(file, os.O_RDONLY))
    try:
        await deliver_one(World(peer), None, content)
    finally:
        content.close()
    assert peer.accepted[0].content == octets


@trio_test
async def test_the_content_generator_is_closed_when_the_server_goes_away(tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"x" * 2_000_000)
    peer = Peer({Phase.CONTENT: Fault.CUT}, window=4096)
    content = FileContent(os.open(file, os.O_RDONLY))
    try:
        result = await deliver_one(World(peer), None, content)
    finally:
        content.close()
    # A generator left to the garbage collector would fail the test by its warning.
    assert result.outcomes[0].action is DEFERRED


# --- parameters ---------------------------------------------------------------------------------


@trio_test
async def test_s065_what_the_server_announced_too_small_is_not_offered(
    autojump_clock: MockClock,
) -> None:
    peer, other = Peer(extensions=("SIZE 1000",)), Peer()
    request = replace(make_request(*ABC), size=2000)
    result = await deliver_one(World(peer, other), request)
    assert {(o.action, o.dsn) for o in result.outcomes} == {(BOUNCED, "5.3.4")}
    assert result.outcomes[0].reason == (
        "message size 2000 exceeds size limit 1000 of server mx1.example.com[192.0.2.1]"
    )
    assert "MAIL" not in peer.verbs
    assert other.links == []


@trio_test
async def test_a_message_as_large_as_the_limit_is_offered(autojump_clock: MockClock) -> None:
    peer = Peer(extensions=("SIZE 2000",))
    result = await deliver_one(World(peer), replace(make_request(), size=2000))
    assert actions(result) == {"a@example.com": SENT}


@trio_test
async def test_s201_envelope_parameters_reach_servers_that_know_them(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    recipient = Recipient(address="a@example.com", notify=Notify.SUCCESS | Notify.FAILURE, key=1)
    request = replace(
        make_request(),
        recipients=(recipient,),
        encoding="8bit",
        ret=Ret.HDRS,
        envelope_id="id+1",
    )
    await deliver_one(World(peer), request)
    assert peer.commands[1] == (
        "MAIL FROM:<sender@client.example> SIZE=25 BODY=8BITMIME RET=HDRS ENVID=id+2B1"
    )
    assert peer.commands[2] == (
        "RCPT TO:<a@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a@example.com"
    )


@pytest.mark.parametrize(
    ("quote", "wire"), [(True, 'RCPT TO:<"a b"@example.com>'), (False, "RCPT TO:<a b@example.com>")]
)
@trio_test
async def test_s043_local_parts_are_quoted_as_configured(
    autojump_clock: MockClock, quote: bool, wire: str
) -> None:
    peer = Peer(extensions=BARE)
    world = World(peer, settings=replace(SETTINGS, quote_envelope=quote))
    await deliver_one(world, make_request("a b@example.com"))
    assert peer.commands[2] == wire


@trio_test
async def test_an_address_that_cannot_be_sent_bounces_alone(autojump_clock: MockClock) -> None:
    peer = Peer()
    names = [ABC[0], "b\r\nRCPT TO:<evil@example.com>@example.com", "jürgen@example.com", ABC[2]]
    result = await deliver_one(World(peer), make_request(*names))
    assert [(o.action, o.dsn) for o in result.outcomes] == [
        (SENT, "2.0.0"),
        (BOUNCED, "5.1.3"),
        (BOUNCED, "5.1.3"),
        (SENT, "2.0.0"),
    ]
    assert peer.served == [ABC[0], ABC[2]]
    assert not any("evil" in command for command in peer.commands)


@trio_test
async def test_nobody_is_asked_when_no_address_can_be_sent(autojump_clock: MockClock) -> None:
    peer = Peer()
    result = await deliver_one(World(peer), make_request("b\0@example.com"))
    assert [(o.action, o.dsn) for o in result.outcomes] == [(BOUNCED, "5.1.3")]
    assert "MAIL" not in peer.verbs
    sender = await deliver_one(World(Peer()), make_request(sender="b\n@example.com"))
    assert [(o.action, o.dsn) for o in sender.outcomes] == [(BOUNCED, "5.1.7")]


# --- SMTPUTF8 -----------------------------------------------------------------------------------

NEEDS_UTF8 = replace(
    make_request("jürgen@example.com"),
    options=SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_RECIPIENT,
)


@trio_test
async def test_smtputf8_is_asked_for_where_it_is_offered(autojump_clock: MockClock) -> None:
    able, unable = Peer(), Peer(extensions=BARE)
    world = World(unable, able)
    result = await deliver_one(world, NEEDS_UTF8)
    assert actions(result) == {"jürgen@example.com": SENT}
    assert "MAIL" not in unable.verbs
    assert able.commands[1].endswith(" SMTPUTF8")
    assert able.commands[2].startswith("RCPT TO:<jürgen@example.com>")


@trio_test
async def test_without_smtputf8_anywhere_the_message_bounces(autojump_clock: MockClock) -> None:
    result = await deliver_one(World(Peer(extensions=BARE), Peer(extensions=BARE)), NEEDS_UTF8)
    outcome = result.outcomes[0]
    assert (outcome.action, outcome.dsn) == (BOUNCED, "5.6.7")
    assert outcome.reason == (
        "SMTPUTF8 is required, but was not offered by host mx2.example.com[192.0.2.2]"
    )


@pytest.mark.parametrize("order", [0, 1])
@trio_test
async def test_an_unreachable_server_may_offer_smtputf8_so_the_message_waits(
    autojump_clock: MockClock, order: int
) -> None:
    sites = [Peer(extensions=BARE), Peer({Phase.GREETING: "450 4.3.2 busy"})]
    result = await deliver_one(World(*sites[:: 1 - 2 * order]), NEEDS_UTF8)
    assert [(o.action, o.dsn) for o in result.outcomes] == [(DEFERRED, "4.3.2")]


# --- XFORWARD -----------------------------------------------------------------------------------

CLIENT = ClientFacts(name="c.example", address="198.51.100.7", helo="c")


async def forwarded(peer: Peer) -> World:
    world = World(peer, settings=replace(SETTINGS, send_xforward=True))
    await deliver_one(world, replace(make_request(), client=CLIENT))
    return world


@trio_test
async def test_s075_xforward_tells_what_was_announced_and_no_more(
    autojump_clock: MockClock,
) -> None:
    peer = Peer(extensions=("PIPELINING", "XFORWARD NAME ADDR"))
    await forwarded(peer)
    assert peer.commands[1] == "XFORWARD NAME=c.example ADDR=198.51.100.7"
    assert peer.verbs == ["EHLO", "XFORWARD", "MAIL", "RCPT", "DATA", "QUIT"]
    full = Peer(extensions=("XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE",))
    await forwarded(full)
    assert full.commands[1:3] == [
        "XFORWARD NAME=c.example ADDR=198.51.100.7 PORT=[UNAVAILABLE]",
        "XFORWARD PROTO=[UNAVAILABLE] HELO=c IDENT=[UNAVAILABLE] SOURCE=REMOTE",
    ]


@trio_test
async def test_s075_xforward_is_silent_unless_configured_and_announced(
    autojump_clock: MockClock,
) -> None:
    peer = Peer()
    await forwarded(peer)
    assert "XFORWARD" not in peer.verbs
    announced = Peer(extensions=("XFORWARD NAME",))
    await deliver_one(World(announced), replace(make_request(), client=CLIENT))
    assert "XFORWARD" not in announced.verbs


@trio_test
async def test_s075_a_refused_xforward_only_warns(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.XFORWARD: "501 5.5.4 no"}, extensions=("XFORWARD NAME",))
    world = await forwarded(peer)
    assert world.results[0].outcomes[0].action is SENT
    warnings = [event.text for event in world.events if isinstance(event, Warned)]
    assert warnings == [
        "host mx1.example.com[192.0.2.1] said: 501 5.5.4 no (in reply to XFORWARD command)"
    ]


@trio_test
async def test_xforward_waits_for_the_reset_of_an_unfinished_transaction(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: ["550 5.1.1 no", "250 ok"]}, extensions=("XFORWARD NAME",))
    world = World(peer, settings=replace(SETTINGS, send_xforward=True))

    async def scenario() -> None:
        await world.deliver(make_request())
        await world.deliver(make_request())

    await world.play(scenario)
    first, second = ["XFORWARD", "MAIL", "RCPT"], ["RSET", "XFORWARD", "MAIL", "RCPT", "DATA"]
    assert peer.verbs == ["EHLO", *first, *second, "QUIT"]
    assert [result.outcomes[0].action for result in world.results] == [BOUNCED, SENT]


# --- nothing at all ---------------------------------------------------------------------------


@trio_test
async def test_an_inline_content_may_be_empty(autojump_clock: MockClock) -> None:
    peer = Peer()
    await deliver_one(World(peer), None, InlineContent(b""))
    assert peer.accepted[0].content == b""
