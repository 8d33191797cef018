"""Which sessions are written down for the postmaster, and what is in the transcripts."""

import socket
from dataclasses import replace

import pytest
from trio.testing import MockClock, trio_test

from protocol.command import Auth, Data, EndOfData, Mail, Quit, Rcpt
from protocol.outcome import Action
from protocol.reply import Reply
from protocol.request import Protocol
from protocol.transcript import MAX_LINE, MAX_LINES, MAX_TRANSCRIPTS, Transcript, Trouble
from tests.worker.peer import Answer, Fault, Peer, Phase, Script
from tests.worker.world import World, deliver_one, make_request
from worker.config.config import Config
from worker.content import FileContent
from worker.delivery.debug_peers import DebugPeers
from worker.delivery.recorder import FIRST_LINES, Recorder, RecordingRules
from worker.delivery.security import SecurityRules
from worker.delivery.settings import DeliverySettings
from worker.sasl.client import SaslClient
from worker.tls.policies import TlsPolicies

EVERYTHING = RecordingRules(
    troubles=frozenset(Trouble), double_bounce="double-bounce@client.example"
)
PROTOCOL = frozenset({Trouble.PROTOCOL})


def recording(world: World, rules: RecordingRules = EVERYTHING) -> World:
    """The same world, whose sessions are written down."""
    world.environment = replace(world.environment, recording=rules)
    return world


def both(transcript: Transcript) -> str:
    return "\n".join(transcript.lines)


@trio_test
async def test_s155_a_syntax_error_is_told_with_the_whole_session(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: "502 5.5.1 what is RCPT?"}, extensions=("X-ODD",))
    result = await deliver_one(recording(World(peer)))
    (transcript,) = result.transcripts
    assert transcript.peer == "mx1.example.com[192.0.2.1]:25"
    assert transcript.troubles == PROTOCOL
    assert transcript.lines == (
        "In:  220 mx.example.com ESMTP",
        "Out: EHLO helo.example",
        "In:  250-mx.example.com hi",
        "In:  250 X-ODD",
        "Out: MAIL FROM:<sender@client.example>",
        "In:  250 2.1.0 ok",
        "Out: RCPT TO:<a@example.com>",
        "In:  502 5.5.1 what is RCPT?",
        *transcript.lines[8:],  # how the session ends is not the point
    )
    assert result.outcomes[0].action is Action.BOUNCED


@pytest.mark.parametrize(
    ("phase", "answer"),
    [
        (Phase.GREETING, "500 what?"),
        (Phase.MAIL, "555 5.5.4 no such parameter"),
        (Phase.RCPT, "350 come on"),
        (Phase.DATA, "250 thanks"),
        (Phase.DOT, "hello there\r\n250 2.0.0 taken"),
        (Phase.DOT, Fault.ENDLESS),
        (Phase.HELO, "501 no"),
    ],
)
@trio_test
async def test_s155_what_nobody_should_say_is_protocol_trouble(
    phase: Phase, answer: Answer, autojump_clock: MockClock
) -> None:
    script = {phase: answer}
    if phase is Phase.HELO:
        script[Phase.EHLO] = "502 no"
    result = await deliver_one(recording(World(Peer(script))))
    (transcript,) = result.transcripts
    assert transcript.troubles == PROTOCOL
    assert "In:  220 " in both(transcript) or phase is Phase.GREETING


@pytest.mark.parametrize(
    ("phase", "answer"),
    [
        (Phase.GREETING, "554 5.7.1 go away"),
        (Phase.EHLO, "502 HELO will do"),
        (Phase.MAIL, "451 4.3.0 later"),
        (Phase.RCPT, "550 5.1.1 no such user"),
        (Phase.RCPT, "421 4.3.2 closing"),
        (Phase.DOT, "552 5.3.4 too large"),
        (Phase.DOT, Fault.CUT),
        (Phase.MAIL, Fault.SILENCE),
    ],
)
@trio_test
async def test_s155_a_refusal_or_a_lost_connection_is_none(
    phase: Phase, answer: Answer, autojump_clock: MockClock
) -> None:
    result = await deliver_one(recording(World(Peer({phase: answer}))))
    assert result.transcripts == ()


@trio_test
async def test_s155_only_the_classes_that_are_listed_are_told(autojump_clock: MockClock) -> None:
    script = {Phase.MAIL: "502 no"}
    others = RecordingRules(troubles=frozenset(Trouble) - PROTOCOL)
    assert (await deliver_one(recording(World(Peer(script)), others))).transcripts == ()
    assert (await deliver_one(World(Peer(script)))).transcripts == ()  # off by default


@pytest.mark.parametrize(
    "sender", ["", "double-bounce@client.example", "Double-Bounce@Client.Example"]
)
@trio_test
async def test_s155_nobody_is_told_of_mail_of_the_null_sender_or_of_our_own_notices(
    sender: str, autojump_clock: MockClock
) -> None:
    world = recording(World(Peer({Phase.MAIL: "502 no"})))
    assert (await deliver_one(world, make_request(sender=sender))).transcripts == ()


@trio_test
async def test_s155_the_classes_come_from_notify_classes_and_are_off_by_default(
    autojump_clock: MockClock,
) -> None:
    assert not RecordingRules.from_config(Config.from_mapping({})).troubles
    rules = RecordingRules.from_config(
        Config.from_mapping({"notify_classes": "bounce, software, data", "myorigin": "o.example"})
    )
    assert rules.troubles == {Trouble.SOFTWARE, Trouble.DATA}
    assert rules.double_bounce == "double-bounce@client.example"


@trio_test
async def test_s155_each_message_of_a_session_has_a_transcript_of_its_own(
    autojump_clock: MockClock,
) -> None:
    requests = [
        replace(make_request(f"{name}@example.com"), queue_id=f"Q{name}")
        for name in ("first", "second", "third", "fourth")
    ]
    peer = Peer({Phase.DOT: ["250 2.0.0 ok", "250 2.0.0 ok", "350 odd", "250 2.0.0 ok"]})
    world = recording(World(peer))
    await world.play(lambda: world.deliver_in_a_row(requests))
    assert len(peer.links) == 2  # the first three in one session
    told = [result.transcripts for result in world.results]
    assert [len(transcripts) for transcripts in told] == [0, 0, 1, 0]
    text = both(told[2][0])
    assert "Out: MAIL FROM:<sender@client.example>" in text  # though it was sent before its turn
    assert "Out: RCPT TO:<third@example.com>" in text
    assert "In:  350 odd" in text
    assert not any(other in text for other in ("first", "second", "fourth"))


@trio_test
async def test_s155_a_message_that_cannot_be_read_is_resource_trouble(
    autojump_clock: MockClock,
) -> None:
    reading, writing = socket.socketpair()
    with reading, writing:
        content = FileContent(reading.fileno())  # a socket cannot be read at a place
        result = await deliver_one(recording(World(Peer())), content=content)
        reading.detach()
    (transcript,) = result.transcripts
    assert transcript.troubles == {Trouble.RESOURCE}
    assert transcript.lines[-1] == "In:  354 go"


@trio_test
async def test_s155_a_bug_of_ours_is_software_trouble(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("worker.delivery.transaction._Transaction._after_mail", broken)
    result = await deliver_one(recording(World(Peer())))
    assert [transcript.troubles for transcript in result.transcripts] == [{Trouble.SOFTWARE}]
    assert result.outcomes[0].action is Action.DEFERRED


@trio_test
async def test_s155_a_table_in_trouble_is_data_trouble(autojump_clock: MockClock) -> None:
    config = Config.from_mapping({"smtp_discard_ehlo_keyword_address_maps": "fail:always"})
    settings = DeliverySettings.from_config(config, Protocol.SMTP)
    result = await deliver_one(recording(World(Peer(), settings=settings)))
    assert [transcript.troubles for transcript in result.transcripts] == [{Trouble.DATA}]


@trio_test
async def test_s098_a_transcript_shows_no_secret_that_is_repeated_after_the_log_in(
    autojump_clock: MockClock,
) -> None:
    settings = {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": "static:user:canary-secret",
        "smtp_sasl_security_options": "noanonymous",
    }
    sasl = SaslClient.from_config(Config.from_mapping(settings), Protocol.SMTP)
    script: dict[Phase, Script] = {
        Phase.MAIL: "250 2.1.0 welcome, canary-secret",
        Phase.RCPT: "502-5.5.1 bad\n502-5.5.1 AHVzZXIAY2FuYX\n502 5.5.1 J5LXNlY3JldA==",
    }
    peer = Peer(script, extensions=("AUTH PLAIN",))
    result = await deliver_one(recording(World(peer, rules=SecurityRules(sasl=sasl))))
    (transcript,) = result.transcripts
    assert [line for line in transcript.lines if line.startswith("In:  ")][3:] == [
        "In:  235 2.7.0 [...]",
        "In:  250 [...]",
        *("In:  502-5.5.1 bad", "In:  502-[...]", "In:  502 [...]"),
    ]


@trio_test
async def test_s098_a_transcript_shows_a_placeholder_instead_of_a_log_in(
    autojump_clock: MockClock,
) -> None:
    config = Config.from_mapping(
        {
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_password_maps": "static:user:canary-secret",
            "smtp_sasl_security_options": "noanonymous",
            "smtp_tls_security_level": "none",
        }
    )
    rules = SecurityRules(
        policies=TlsPolicies.from_config(config, Protocol.SMTP),
        sasl=SaslClient.from_config(config, Protocol.SMTP),
    )
    blob = "AHVzZXIAY2FuYXJ5LXNlY3JldA=="
    peer = Peer(
        {Phase.AUTH: f"503 5.5.1 not now: AUTH PLAIN {blob}"}, extensions=("AUTH PLAIN", "SIZE")
    )
    result = await deliver_one(recording(World(peer, rules=rules)))
    assert f"AUTH PLAIN {blob}" in peer.commands  # it was said
    (transcript,) = result.transcripts
    assert "Out: AUTH PLAIN [...]" in transcript.lines
    assert "In:  503 5.5.1 [...]" in transcript.lines
    assert blob not in repr(result)
    assert "canary" not in repr(result)


@trio_test
async def test_s155_of_many_sessions_in_trouble_a_few_are_told(autojump_clock: MockClock) -> None:
    peers = [Peer({Phase.GREETING: "500 what?"}) for _ in range(3)]
    result = await deliver_one(recording(World(*peers)))
    assert len(result.transcripts) == 3 <= MAX_TRANSCRIPTS
    assert len({transcript.peer for transcript in result.transcripts}) == 3


def test_s155_of_a_long_dialogue_the_beginning_and_the_end_are_kept() -> None:
    recorder = Recorder()
    recorder.troubles.add(Trouble.PROTOCOL)
    for number in range(1000):
        recorder.heard(None, Reply(220, (f"{number} " + "x" * 5000,)))
    transcript = recorder.transcript("peer", PROTOCOL)
    assert transcript is not None
    assert len(transcript.lines) == MAX_LINES
    assert transcript.lines[0].startswith("In:  220 0 ")
    assert transcript.lines[FIRST_LINES] == f"[{1000 - MAX_LINES + 1} lines left out]"
    assert transcript.lines[-1].startswith("In:  220 999 ")
    assert max(map(len, transcript.lines)) == MAX_LINE


def test_s155_what_travels_behind_a_dot_belongs_to_the_next_message() -> None:
    recorder = Recorder()
    first, second = Mail("a@a.example"), Mail("b@b.example")
    for command in (first, Rcpt("c@c.example"), Data(), EndOfData(), second):
        recorder.said(command, command.to_wire())
    recorder.heard(EndOfData(), Reply(250, ("taken",)))
    recorder.troubles.add(Trouble.PROTOCOL)
    told = recorder.transcript("peer", PROTOCOL)
    assert told is not None
    assert told.lines[-1] == "In:  250 taken"
    assert "b@b.example" not in both(told)
    recorder.next_message()
    assert recorder.transcript("peer", PROTOCOL) is None
    recorder.troubles.add(Trouble.PROTOCOL)
    recorder.said(Auth("PLAIN"), b"")
    told = recorder.transcript("peer", PROTOCOL)
    assert told is not None
    assert told.lines == ("Out: MAIL FROM:<b@b.example>", "Out: AUTH PLAIN")
    recorder.said(EndOfData(), b"")
    recorder.said(Quit(), Quit().to_wire())
    told = recorder.transcript("peer", PROTOCOL)
    assert told is not None
    assert told.lines[-1] == "Out: QUIT"


@trio_test
async def test_s155_a_watched_peer_is_written_down_as_well(autojump_clock: MockClock) -> None:
    """debug_peer_list gives a session another dialogue, and anew for each message."""
    config = Config.from_mapping({"debug_peer_list": "192.0.2.1"})
    requests = [replace(make_request(), queue_id=f"Q{number}") for number in range(3)]
    peer = Peer({Phase.DOT: ["250 2.0.0 ok", "250 2.0.0 ok", "350 odd"]})
    world = recording(World(peer))
    debug = DebugPeers.from_config(config, world.events.append)
    world.environment = replace(world.environment, debug=debug)
    await world.play(lambda: world.deliver_in_a_row(requests))
    assert [len(result.transcripts) for result in world.results] == [0, 0, 1]
    assert len(peer.links) == 1
    text = both(world.results[2].transcripts[0])
    assert "Out: MAIL FROM:<sender@client.example>" in text
    assert text.count("In:  350 odd") == 1
