"""Probes (S163): addresses are tried up to RCPT or DATA, nothing is sent, a report is mailed."""

import os
from collections.abc import Mapping
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, DeliveryResult
from protocol.request import DeliveryRequest, Notify, Protocol, Recipient, RequestFlags
from tests.worker.peer import EXTENSIONS, Answer, Fault, Peer, Phase, Script
from tests.worker.scripted_slots import BOUNCED, DEFERRED, SENT
from tests.worker.scripted_slots import Answer as Scripted
from tests.worker.test_scheduler import Node, wall
from tests.worker.world import World, actions, deliver_one, make_request
from worker.cli.exits import CommandError
from worker.cli.order import OrderError, parse_order
from worker.cli.sendmail import Call, invoke, parse_arguments
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.delivery.settings import DeliverySettings
from worker.queue.records import Submission
from worker.queue.settings import QueueSettings
from worker.queue.submission import decode_envelope, encode_envelope
from worker.status.events import (
    MessageExpired,
    MessageRemoved,
    NoticeQueued,
    RecipientProbed,
    RecipientSettled,
)
from worker.status.log import render, to_json

LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")


def probe(*addresses: str, protocol: Protocol = Protocol.SMTP) -> DeliveryRequest:
    return replace(make_request(*addresses, protocol=protocol), flags=RequestFlags.USER_PROBE)


# --- the worker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP])
@trio_test
async def test_s163_a_probe_ends_behind_rcpt(
    extensions: tuple[str, ...], autojump_clock: MockClock
) -> None:
    peer = Peer(
        {Phase.RCPT: {"no@example.com": "550 5.1.1 nobody", "yes@example.com": "250 2.1.5 fine"}},
        extensions=extensions,
    )
    world = World(peer)
    result = await deliver_one(world, probe("yes@example.com", "no@example.com", "ok@example.com"))
    assert actions(result) == {
        "yes@example.com": Action.SENT,
        "no@example.com": Action.BOUNCED,
        "ok@example.com": Action.SENT,
    }
    first = result.outcomes[0]
    assert (first.dsn, first.reason) == ("2.1.5", "250 2.1.5 fine")
    assert first.relay == "mx1.example.com[192.0.2.1]:25"
    assert peer.verbs == ["EHLO", "MAIL", "RCPT", "RCPT", "RCPT", "QUIT"]
    assert not peer.accepted
    assert not world.open_streams


@trio_test
async def test_s163_an_unsure_server_is_not_the_last_word(autojump_clock: MockClock) -> None:
    first, second = Peer({Phase.RCPT: "450 4.2.0 greylisted"}), Peer()
    result = await deliver_one(World(first, second), probe())
    assert actions(result) == {"a@example.com": Action.SENT}
    assert "DATA" not in first.verbs + second.verbs


@pytest.mark.parametrize(
    ("phase", "answer", "action"),
    [
        (Phase.MAIL, "550 5.7.1 not you", Action.BOUNCED),
        (Phase.MAIL, "450 4.7.1 not now", Action.DEFERRED),
        (Phase.RCPT, Fault.CUT, Action.DEFERRED),
        (Phase.GREETING, Fault.SILENCE, Action.DEFERRED),
    ],
)
@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP])
@trio_test
async def test_s163_what_keeps_a_probe_from_its_answer_is_its_answer(
    extensions: tuple[str, ...],
    phase: Phase,
    answer: Answer,
    action: Action,
    autojump_clock: MockClock,
) -> None:
    peer = Peer({phase: answer}, extensions=extensions)
    result = await deliver_one(World(peer), probe())
    assert actions(result) == {"a@example.com": action}
    assert "DATA" not in peer.verbs


@trio_test
async def test_s163_lmtp_can_be_probed(autojump_clock: MockClock) -> None:
    peer = Peer(lmtp=True)
    recipients = ("a@example.com", "b@example.com")
    result = await deliver_one(World(peer), probe(*recipients, protocol=Protocol.LMTP))
    assert set(actions(result).values()) == {Action.SENT}
    assert peer.verbs[:4] == ["LHLO", "MAIL", "RCPT", "RCPT"]
    assert "DATA" not in peer.verbs


@pytest.mark.parametrize("steady", [True, False])
@trio_test
async def test_s163_probes_and_mail_share_a_session_and_rset_is_between_them(
    *, steady: bool, autojump_clock: MockClock
) -> None:
    requests = [
        replace(request, queue_id=f"Q{number}")
        for number, request in enumerate(
            [make_request(), make_request(), probe(), probe(), make_request(), make_request()]
        )
    ]
    peer = Peer()
    world = World(peer)
    results: list[DeliveryResult] = []

    async def scenario() -> None:
        results.extend(await world.deliver_in_a_row(requests, steady=steady))

    await world.play(scenario)
    assert [set(actions(result).values()) for result in results] == [{Action.SENT}] * 6
    assert len(peer.links) == 1
    assert len(peer.accepted) == 4
    words = " ".join(peer.verbs)
    assert "MAIL RCPT RSET MAIL RCPT RSET MAIL RCPT DATA" in words


# --- smtp_address_verify_target = data -----------------------------------------------------------

ASKS_DATA = DeliverySettings(hostname="client.example", helo_name="helo.example", probe_data=True)
RCPTS: Mapping[str, Answer] = {
    "no@example.com": "550 5.1.1 nobody",
    "yes@example.com": "250 2.1.5 fine",
}
EITHER = pytest.mark.parametrize("protocol", [Protocol.SMTP, Protocol.LMTP])
BOTH_WAYS = pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP])


DATA_PROBE = {
    protocol: probe("yes@example.com", "no@example.com", "ok@example.com", protocol=protocol)
    for protocol in Protocol
}


@EITHER
@BOTH_WAYS
@trio_test
async def test_s163_a_probe_up_to_data_ends_the_session_and_sends_no_message(
    extensions: tuple[str, ...], protocol: Protocol, autojump_clock: MockClock
) -> None:
    peer = Peer({Phase.RCPT: RCPTS}, lmtp=protocol is Protocol.LMTP, extensions=extensions)
    world = World(peer, settings=ASKS_DATA)
    result = await deliver_one(world, DATA_PROBE[protocol])
    refused = result.outcomes[1].reason
    assert "said: 550 5.1.1 nobody" in refused
    assert [(each.action, each.dsn, each.reason) for each in result.outcomes] == [
        (Action.SENT, "2.0.0", "354 go"),
        (Action.BOUNCED, "5.1.1", refused),
        (Action.SENT, "2.0.0", "354 go"),
    ]
    assert peer.verbs[1:] == ["MAIL", "RCPT", "RCPT", "RCPT", "DATA"]
    (link,) = peer.links
    assert b"".join(link.segments).endswith(b"DATA\r\n")  # no dot, no QUIT, nothing
    assert link.ended
    assert not world.open_streams
    assert not result.session_kept


@EITHER
@BOTH_WAYS
@pytest.mark.parametrize(
    ("answer", "action", "dsn"),
    [
        ("550 5.7.1 not for her", Action.BOUNCED, "5.7.1"),
        ("450 4.7.1 not now", Action.DEFERRED, "4.7.1"),
        ("250 2.0.0 what?", Action.DEFERRED, "4.5.0"),
        ("421 4.3.2 going", Action.DEFERRED, "4.3.2"),
        (Fault.CUT, Action.DEFERRED, "4.4.2"),
        (Fault.SILENCE, Action.DEFERRED, "4.4.2"),
    ],
)
@trio_test
async def test_s163_what_a_server_says_to_data_is_for_those_it_had_accepted(
    answer: Answer,
    action: Action,
    dsn: str,
    extensions: tuple[str, ...],
    protocol: Protocol,
    autojump_clock: MockClock,
) -> None:
    script: dict[Phase, Script] = {Phase.RCPT: RCPTS, Phase.DATA: answer}
    peer = Peer(script, lmtp=protocol is Protocol.LMTP, extensions=extensions)
    world = World(peer, settings=ASKS_DATA)
    result = await deliver_one(world, DATA_PROBE[protocol])
    assert [(each.action, each.dsn) for each in result.outcomes] == [
        (action, dsn),
        (Action.BOUNCED, "5.1.1"),
        (action, dsn),
    ]
    assert not any(each.in_doubt for each in result.outcomes)
    assert not peer.accepted
    assert not world.open_streams


@EITHER
@BOTH_WAYS
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT])
@trio_test
async def test_s163_a_probe_that_nobody_was_accepted_for_gives_no_content_either(
    phase: Phase, extensions: tuple[str, ...], protocol: Protocol, autojump_clock: MockClock
) -> None:
    script = {phase: "550 5.1.1 nobody", Phase.DATA: "354 go"}
    peer = Peer(script, lmtp=protocol is Protocol.LMTP, extensions=extensions)
    result = await deliver_one(World(peer, settings=ASKS_DATA), DATA_PROBE[protocol])
    assert {each.dsn for each in result.outcomes} == {"5.1.1"}
    assert set(actions(result).values()) == {Action.BOUNCED}
    # It travels with the RCPTs; in lock-step it is not asked.
    asked = b"DATA" in peer.links[0].segments[-1]
    assert asked is (extensions is EXTENSIONS)
    assert not any(link.dots for link in peer.links)
    assert "QUIT" in peer.verbs or asked


@BOTH_WAYS
@trio_test
async def test_s163_who_was_not_accepted_for_now_is_asked_for_elsewhere(
    extensions: tuple[str, ...], autojump_clock: MockClock
) -> None:
    first = Peer({Phase.RCPT: {"b@example.com": "450 4.2.0 later"}}, extensions=extensions)
    second = Peer({Phase.DATA: "554 5.7.1 not her"}, extensions=extensions)
    world = World(first, second, settings=ASKS_DATA)
    result = await deliver_one(world, probe("a@example.com", "b@example.com"))
    assert actions(result) == {"a@example.com": Action.SENT, "b@example.com": Action.BOUNCED}
    assert second.offered == ["b@example.com"]


@EITHER
@trio_test
async def test_s163_a_probe_up_to_data_costs_the_session_that_mail_would_have_used(
    protocol: Protocol, autojump_clock: MockClock
) -> None:
    mail = make_request(protocol=protocol)
    requests = [
        replace(request, queue_id=f"Q{number}")
        for number, request in enumerate([mail, mail, probe(protocol=protocol), mail, mail])
    ]
    peer = Peer(lmtp=protocol is Protocol.LMTP)
    world = World(peer, settings=ASKS_DATA)
    results: list[DeliveryResult] = []

    async def scenario() -> None:
        results.extend(await world.deliver_in_a_row(requests))

    await world.play(scenario)
    assert [set(actions(result).values()) for result in results] == [{Action.SENT}] * 5
    assert [len(link.contents) for link in peer.links] == [2, 2]
    assert len(peer.accepted) == 4


@EITHER
@trio_test
async def test_s163_the_target_holds_for_its_protocol_and_for_probes_only(
    protocol: Protocol, autojump_clock: MockClock
) -> None:
    name = f"{protocol.value}_address_verify_target"
    config = Config.from_mapping({name: "data"})
    for each in Protocol:
        assert DeliverySettings.from_config(config, each).probe_data is (each is protocol)
    with pytest.raises(ConfigError, match="expected rcpt, data"):
        Config.from_mapping({name: "dot"})
    peer = Peer(lmtp=protocol is Protocol.LMTP)
    await deliver_one(World(peer, settings=ASKS_DATA), make_request(protocol=protocol))
    assert len(peer.accepted) == 1


# --- the queue -----------------------------------------------------------------------------------


def submit_probe(node: Node, *addresses: str, sender: str = "me@here.example") -> str:
    submission = Submission(
        sender=sender,
        recipients=tuple(Recipient(address=address) for address in addresses),
        probe=True,
    )
    return node.store.put(submission, b"Subject: probe\r\n\r\n", wall())


def by_name(request: DeliveryRequest) -> Scripted:
    """Servers for a probe, and one that takes reports."""
    if not request.flags & RequestFlags.USER_PROBE:
        return SENT
    return {"no": BOUNCED, "later": DEFERRED}.get(request.nexthop.partition(".")[0], SENT)


@trio_test
async def test_s163_a_probe_is_one_attempt_and_one_report(autojump_clock: MockClock) -> None:
    node = Node(by_name)
    queue_id = submit_probe(node, "u@yes.example", "u@no.example", "u@later.example")
    await node.run()
    assert trio.current_time() < 60.0  # nobody waited for another attempt
    assert len(node.of(MessageRemoved)) == 2  # the probe, and its report
    probes = [request for request in node.workers.requests if request.queue_id == queue_id]
    assert len(probes) == 3
    assert all(request.probe for request in probes)
    (report,) = node.of(NoticeQueued)
    assert isinstance(report, NoticeQueued)
    assert report.kind == "sender delivery status notification"
    (mailed,) = [request for request in node.workers.requests if not request.probe]
    assert (mailed.sender, mailed.recipients[0].address) == ("", "me@here.example")
    assert not node.of(MessageExpired)
    assert {
        event.queue_id for event in node.of(RecipientSettled) if hasattr(event, "queue_id")
    } == {report.notice_id}


@trio_test
async def test_s163_the_report_tells_of_each_recipient(autojump_clock: MockClock) -> None:
    node = Node(by_name)
    submit_probe(node, "u@yes.example", "u@no.example", "u@later.example")
    await node.run()
    (report,) = node.store.drafts
    text = report.content.decode()
    assert "Subject: Report on the addresses you asked about" in text
    for action, status, address in (
        ("deliverable", "2.0.0", "yes"),
        ("undeliverable", "5.1.1", "no"),
        ("undeliverable", "4.2.2", "later"),
    ):
        fields = text.partition(f"Final-Recipient: rfc822; u@{address}.example\r\n")[2]
        assert fields.startswith(f"Action: {action}\r\nStatus: {status}\r\n")


@trio_test
async def test_s163_the_log_says_deliverable_or_undeliverable(autojump_clock: MockClock) -> None:
    node = Node(by_name, QueueSettings(soft_bounce=True))
    submit_probe(node, "u@yes.example", "u@no.example", "u@later.example")
    await node.run()
    lines = {
        event.outcome.recipient.address: render(event)[0].text.partition(" dsn=")[2]
        for event in node.of(RecipientProbed)
        if isinstance(event, RecipientProbed)
    }
    assert lines == {
        "u@yes.example": "2.0.0, status=deliverable (said so)",
        "u@no.example": "5.1.1, status=undeliverable (no such user)",
        "u@later.example": "4.2.2, status=undeliverable (mailbox full)",
    }
    assert {to_json(event)["status"] for event in node.of(RecipientProbed)} == {
        "deliverable",
        "undeliverable",
    }


@trio_test
async def test_s163_a_probe_without_a_sender_is_told_to_nobody(autojump_clock: MockClock) -> None:
    node = Node(by_name)
    submit_probe(node, "u@yes.example", "u@no.example", "u@later.example", sender="")
    await node.run()
    assert not node.store.messages
    assert not node.of(NoticeQueued)
    assert len(node.of(RecipientProbed)) == 3


@trio_test
async def test_s163_a_probe_that_a_worker_was_lost_with_is_undeliverable(
    autojump_clock: MockClock,
) -> None:
    def script(request: DeliveryRequest) -> Scripted:
        return replace(SENT, lost=True) if request.probe else SENT

    node = Node(script)
    submit_probe(node, "u@yes.example")
    await node.run()
    (event,) = node.of(RecipientProbed)
    assert isinstance(event, RecipientProbed)
    assert event.outcome.action is Action.BOUNCED
    assert not event.outcome.in_doubt
    assert "more than once" not in event.outcome.reason  # nothing was sent
    assert not node.store.messages


@trio_test
async def test_s163_a_probe_that_is_under_way_in_a_crash_is_not_in_doubt(
    autojump_clock: MockClock,
) -> None:
    node = Node(lambda _: replace(SENT, delay=100.0))
    submit_probe(node, "u@yes.example")
    async with trio.open_nursery() as nursery:
        await nursery.start(node.scheduler.run)
        await trio.sleep(1.0)
        assert node.workers.requests
        nursery.cancel_scope.cancel()
    again = node.store.reopened()
    assert await again.in_doubt() == []
    assert [message.probe for message in await again.claim(wall(), 10)] == [True]


@trio_test
async def test_s163_of_a_probe_that_was_cut_short_by_our_end_nothing_is_said(
    autojump_clock: MockClock,
) -> None:
    cut = replace(DEFERRED, delay=2.0, stopped=True, accepted=False)
    node = Node(lambda _: cut)
    submit_probe(node, "u@yes.example")
    async with node.running():
        await trio.sleep(1.0)  # its worker answers so when we stop
    assert not node.of(RecipientProbed)
    assert [event.outcome.action for event in node.settled("u@yes.example")] == [Action.DEFERRED]
    assert [message.probe for message in await node.store.reopened().claim(wall(), 10)] == [True]


# --- the commands --------------------------------------------------------------------------------


def test_s163_the_envelope_of_a_probe_crosses_the_submission_socket() -> None:
    submission = Submission(
        sender="a@x.example", recipients=(Recipient(address="b@y.example"),), probe=True
    )
    assert decode_envelope(encode_envelope(submission)) == submission
    ordinary = replace(submission, probe=False)
    assert decode_envelope(encode_envelope(ordinary)) == ordinary


def test_s163_sendmail_bv_is_understood() -> None:
    assert parse_arguments(["-bv", "b@y"]) == Call(mode="v", recipients=["b@y"])
    assert parse_arguments(["-bv", "-N", "never", "b@y"]).notify is Notify.NEVER


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["-bv", "-t", "b@y.example"], "-bv reads no message: it does not go with -t"),
        (["-bv", "-f", "", "b@y.example"], "-bv mails its answers to the sender"),
        (["-bv"], "no recipient was given"),
    ],
)
def test_s163_a_probe_that_cannot_be_answered_is_refused(
    arguments: list[str], refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_CONFIG", os.devnull)
    with pytest.raises(CommandError) as caught:
        invoke(arguments)
    assert str(caught.value).startswith(refusal)


def test_s163_a_json_request_may_ask_for_a_probe() -> None:
    asked = b'{"sender": "a@x.example", "recipients": [{"address": "b@y.example"}], "probe": %s}'
    assert parse_order(asked % b"true").probe
    assert not parse_order(asked % b"false").probe
    with pytest.raises(OrderError, match="probe"):
        parse_order(asked % b'"yes"')
