"""What the manual says of the agent as a whole: rows that no other test shows.

Deterministic: scripted servers in memory and virtual time.
"""

import os
import random
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import Protocol
from tests.unit.test_log_lines import settled
from tests.worker.peer import EXTENSIONS, Answer, Fault, Late, Peer, Phase
from tests.worker.world import CONTENT, World, actions, deliver_one, make_request
from worker.config.config import Config
from worker.config.expander import Facts
from worker.content import InlineContent
from worker.delivery.deliver import deliver
from worker.delivery.reuse import ReusePolicy
from worker.delivery.settings import DeliverySettings
from worker.delivery.slot import DeliverySlot
from worker.network.endpoints import EndpointSettings
from worker.network.network import Network, NetworkSettings
from worker.queue.settings import QueueSettings
from worker.sasl.client import SaslClient
from worker.sasl.refusals import Refusal
from worker.status.events import Event, MessageActive, MessageRemoved, UnexpectedError, Warned
from worker.status.sinks import DescriptorSink, FileSink, LogSettings, Sink, Stamp, SyslogSink
from worker.status.writer import LogWriter

DAY = 86_400.0
SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")


def a_peer(protocol: Protocol, script: dict[Phase, object] | None = None, **more: object) -> Peer:
    """A server of this protocol."""
    return Peer(script, lmtp=protocol is Protocol.LMTP, **more)  # type: ignore[arg-type]  # Peer's own


def configured(protocol: Protocol, *overrides: str) -> DeliverySettings:
    """The settings of a process that was started with these -o options and no main.cf."""
    config = Config.load(Path("/dev/null"), ["myhostname=client.example", *overrides], {})
    return DeliverySettings.from_config(config, protocol)


# --- reuse ----------------------------------------------------------------------------------------


async def share_of_the_slow_one(settings: DeliverySettings) -> tuple[float, int]:
    """How much of the connections two equal exchangers have is the ten times slower one's; how many
    were made.

    The choices between the two are seeded, and the slots are alike: it is the same in every run.
    """
    peers = [Peer({Phase.DOT: Late(seconds, "250 ok")}) for seconds in (5.0, 50.0)]
    world = World(*peers, settings=settings)
    world.resolver.exchangers["example.com"] = [(10, "mx1.example.com"), (10, "mx2.example.com")]
    network = Network(
        NetworkSettings(endpoints=EndpointSettings()),
        world.resolver,
        world.dialer,
        random.Random(1),
    )
    world.environment = replace(world.environment, networks={Protocol.SMTP: network})
    open_at: list[tuple[int, int]] = []  # (fast, slow)

    async def one_slot() -> None:
        slot = DeliverySlot()
        while True:
            result = await deliver(make_request(), InlineContent(CONTENT), world.environment, slot)
            assert result.outcomes[0].action is Action.SENT

    async def look() -> None:
        while True:
            await trio.sleep(10.0)
            fast, slow = (sum(not link.ended for link in peer.links) for peer in peers)
            open_at.append((fast, slow))

    async def scenario() -> None:
        with trio.move_on_after(1000.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                for _ in range(10):
                    nursery.start_soon(one_slot)

    await world.play(scenario)
    late = open_at[len(open_at) // 2 :]
    share = sum(slow for _, slow in late) / sum(map(sum, late))
    return share, sum(len(peer.links) for peer in peers)


@trio_test
async def test_s146_a_limit_of_time_gives_a_slow_server_no_more_connections_than_its_equal(
    autojump_clock: MockClock,
) -> None:
    by_time = replace(SETTINGS, reuse_time_limit=100.0)
    share, made = await share_of_the_slow_one(by_time)
    assert share < 0.7  # half of them, as chance has it
    assert made > 50  # 10 slots, each with a new one after 100 s of 1,000
    by_count = replace(SETTINGS, reuse_time_limit=1e9, reuse_count_limit=10)
    share, _ = await share_of_the_slow_one(by_count)
    assert share > 0.8  # ten of eleven


@pytest.mark.parametrize("text", ["yes", "no"])
def test_s148_lmtp_cache_connection_changes_nothing_and_is_warned_of(text: str) -> None:
    config = Config.from_mapping({"lmtp_cache_connection": text})
    usual = ReusePolicy.from_config(Config.from_mapping({}), Protocol.LMTP)
    assert ReusePolicy.from_config(config, Protocol.LMTP) == usual
    (warning,) = config.warnings
    assert "lmtp_cache_connection is deprecated" in warning


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 90 * DAY), ("2", 2 * DAY), ("2h", DAY / 12), ("1d", DAY)]
)
@trio_test
async def test_s095_a_refused_log_in_is_believed_for_so_many_days(
    autojump_clock: MockClock, text: str, seconds: float
) -> None:
    limit = {"smtp_sasl_auth_cache_time": text} if text else {}
    sasl = SaslClient.from_config(
        Config.from_mapping(
            {
                "smtp_sasl_auth_enable": "yes",
                "smtp_sasl_password_maps": "static:u:p",
                "smtp_sasl_auth_cache_name": "proxy:btree:/x",
                **limit,
            }
        ),
        Protocol.SMTP,
    )
    assert sasl is not None
    assert sasl.refusals is not None
    key = await sasl.refusals.key("mx.example", ("u", ""), "p")
    sasl.refusals.refused(key, Refusal("5.7.8", "535 no"))
    await trio.sleep(seconds - 1)
    assert sasl.refusals.find(key) is not None
    await trio.sleep(1)
    assert sasl.refusals.find(key) is None


# --- the log --------------------------------------------------------------------------------------

EVENTS: tuple[Event, ...] = (
    MessageActive("3kQ1", "a@b.example", 5012, 2),
    settled(),
    Warned("bad key", "3kQ1"),
    UnexpectedError("delivering", "Traceback:\n  x\nKeyError: 1\n", "3kQ1"),
    MessageRemoved("3kQ1"),
)


def test_s158_every_sink_receives_the_same_lines(tmp_path: Path) -> None:
    stamp = Stamp("postfix", host="mail", pid=7)
    file, path = tmp_path / "maillog", str(tmp_path / "dev-log")
    receiving, sending = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        sinks: list[Sink] = [FileSink(file, stamp), DescriptorSink(sending, stamp)]
        for sink in (*sinks, SyslogSink("mail", stamp, path)):
            log = LogWriter(sink, LogSettings(), wall=lambda: 1_700_000_000.0)
            for event in EVENTS:
                log.emit(event)
            log.flush()
            log.close()
        in_file = file.read_text().splitlines()
        datagrams = [daemon.recv(10_000).decode() for _ in in_file]
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        assert pipe.read().decode().splitlines() == in_file
    assert len(in_file) >= len(EVENTS)

    def told(line: str) -> str:  # syslog lines have no host, it is the daemon's to add
        return line[line.index("postfix/") :]

    assert list(map(told, datagrams)) == list(map(told, in_file))


def test_s162_transports_can_be_told_apart_by_a_syslog_name_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "maillog"
    overrides = ["syslog_name=postfix/bulk", f"maillog_file={file}"]
    settings = LogSettings.from_config(Config.load(Path("/dev/null"), overrides, {}))
    log = LogWriter(FileSink(file, Stamp(settings.syslog_name)), settings)
    log.emit(settled())
    log.close()
    assert f" postfix/bulk/smtp[{os.getpid()}]: 3kQ1: to=<" in file.read_text()


# --- processes ------------------------------------------------------------------------------------


def assert_without_effect(name: str, text: str) -> None:
    """A parameter of processes under master(8): told of, and nothing changes with it."""
    config, usual = Config.from_mapping({name: text}), Config.from_mapping({})
    (warning,) = config.warnings
    assert warning.startswith(f"configuration: {name} has no effect: ")
    for protocol in Protocol:
        found, expected = (DeliverySettings.from_config(each, protocol) for each in (config, usual))
        assert found == expected
    assert QueueSettings.from_config(config) == QueueSettings.from_config(usual)


def test_s167_max_idle_has_no_effect_without_a_master() -> None:
    assert_without_effect("max_idle", "1s")


def test_s168_max_use_has_no_effect_without_a_master() -> None:
    assert_without_effect("max_use", "1")


@pytest.mark.parametrize(
    ("argument", "name"),
    [("/usr/bin/postrio", "postrio"), ("/x/worker/__main__.py", "postrio"), ("lmtp", "lmtp")],
)
def test_s170_the_process_name_is_that_of_the_program(
    argument: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argument])
    facts = Facts.of_this_process()
    config = Config.from_mapping({"smtp_helo_name": "h.$process_name"}, facts=facts)
    assert config.text("smtp_helo_name") == f"h.{name}"


@trio_test
async def test_s171_one_engine_speaks_both_protocols_as_the_request_says(
    autojump_clock: MockClock,
) -> None:
    said = {}
    for protocol in Protocol:
        peer = a_peer(protocol)
        result = await deliver_one(World(peer), make_request(protocol=protocol))
        assert actions(result) == {"a@example.com": Action.SENT}
        said[protocol] = peer.verbs[0]
    assert said == {Protocol.SMTP: "EHLO", Protocol.LMTP: "LHLO"}


@pytest.mark.parametrize(
    ("protocol", "name"),
    [(Protocol.SMTP, "smtp_helo_timeout"), (Protocol.LMTP, "lmtp_lhlo_timeout")],
)
@trio_test
async def test_s177_an_option_of_the_command_line_takes_effect(
    autojump_clock: MockClock, protocol: Protocol, name: str
) -> None:
    peer = a_peer(protocol, {Phase.GREETING: Fault.SILENCE})
    world = World(peer, settings=configured(protocol, f"{name}=5s"))
    await deliver_one(world, make_request(protocol=protocol))
    assert world.took == [5.0]


# --- reports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("phase", "answer", "blamed"),
    [
        (Phase.GREETING, Fault.CUT, True),
        (Phase.GREETING, "421 4.3.2 busy", True),
        (Phase.EHLO, Fault.CUT, True),
        (Phase.MAIL, Late(1.0, Fault.CUT), True),
        (Phase.MAIL, "450 4.7.1 later", False),
        (Phase.RCPT, "450 4.2.0 later", False),
        (Phase.DATA, "451 4.3.0 later", False),
        (Phase.DOT, "452 4.3.1 full", False),
        (Phase.RCPT, "550 5.1.1 never", False),
    ],
)
@trio_test
async def test_s179_a_broken_session_is_the_sites_failure_and_a_refusal_is_not(
    autojump_clock: MockClock, protocol: Protocol, phase: Phase, answer: Answer, blamed: bool
) -> None:
    if phase is Phase.EHLO and protocol is Protocol.LMTP:
        phase = Phase.LHLO
    world = World(a_peer(protocol, {phase: answer}))
    result = await deliver_one(world, make_request(protocol=protocol))
    assert (result.site_failure is not None) == blamed
    if result.site_failure is not None:
        assert result.site_failure.dsn == result.outcomes[0].dsn


# --- standards ------------------------------------------------------------------------------------

MANY = [f"u{number}@example.com" for number in range(101)]
FULL = "552 5.2.2 too many"


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("defer", "action", "dsn"), [(False, Action.BOUNCED, "5.2.2"), (True, Action.DEFERRED, "4.2.2")]
)
@trio_test
async def test_s188_552_for_the_101st_recipient_is_final_unless_it_is_to_be_deferred(
    autojump_clock: MockClock, protocol: Protocol, defer: bool, action: Action, dsn: str
) -> None:
    peer = a_peer(protocol, {Phase.RCPT: {MANY[-1]: FULL}})
    world = World(peer, settings=replace(SETTINGS, defer_rcpt_552=defer))
    result = await deliver_one(world, make_request(*MANY, protocol=protocol))
    assert peer.served == MANY[:-1]
    last = result.outcomes[-1]
    assert (last.recipient.address, last.action, last.dsn) == (MANY[-1], action, dsn)
    assert last.reason.endswith(f"said: {FULL} (in reply to RCPT TO command)")


@pytest.mark.parametrize("refused", [MANY[:1], MANY[:2]], ids=len)
@trio_test
async def test_s188_552_before_anybody_was_accepted_is_about_that_recipient(
    autojump_clock: MockClock, refused: list[str]
) -> None:
    peer = Peer({Phase.RCPT: dict.fromkeys(refused, FULL)})
    world = World(peer, settings=replace(SETTINGS, defer_rcpt_552=True))
    result = await deliver_one(world, make_request(*MANY[:3]))
    assert actions(result) == {
        address: Action.BOUNCED if address in refused else Action.SENT for address in MANY[:3]
    }


ANSWERS: tuple[Answer, ...] = (
    *("399 what", "451 later", "451 5.7.1 later", "550 no", "550 4.7.1 no", "550 5.1.1 no"),
    *("what?", Fault.SILENCE, Fault.CUT, Fault.RESET, Fault.ENDLESS, "250 2.1.5 ok"),
)


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    "phase", [Phase.GREETING, Phase.EHLO, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT]
)
@trio_test
async def test_s202_every_outcome_has_a_code_of_its_class(
    autojump_clock: MockClock, protocol: Protocol, phase: Phase
) -> None:
    if phase is Phase.EHLO and protocol is Protocol.LMTP:
        phase = Phase.LHLO
    classes = {Action.SENT: "2", Action.DEFERRED: "4", Action.BOUNCED: "5"}
    for answer in ANSWERS:
        for extensions in (EXTENSIONS, ()):
            world = World(a_peer(protocol, {phase: answer}, extensions=extensions))
            request = make_request("a@example.com", "b@example.com", protocol=protocol)
            result = await deliver_one(world, request)
            for outcome in result.outcomes:
                assert re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", outcome.dsn), (answer, outcome)
                assert outcome.dsn[0] == classes[outcome.action], (answer, outcome)
