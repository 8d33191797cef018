"""Delivery status filters (S181): what tables make of outcomes, and what trouble with them costs.

Deterministic: scripted servers in memory, virtual time. What Postfix makes of the same texts is in
`tests/integration/test_status_filter_postfix.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, DeliveryResult
from protocol.request import Protocol
from tests.worker.main_cf_world import MainCfWorld, deliver_to
from tests.worker.peer import Fault, Late, Peer, Phase, Script
from tests.worker.test_best_mx import STUB, looping
from tests.worker.world import World, actions, deliver_one, make_request
from worker.config.config import Config
from worker.config.table import Table, TableError
from worker.config.tables import Maps
from worker.delivery.settings import DeliverySettings
from worker.delivery.status_filter import StatusFilter
from worker.status.events import Event, UnexpectedError, Warned

SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
ABC = [f"{name}@example.com" for name in "abc"]
SERVER = "192.0.2.1"
REFUSED_FOR_GOOD = "host 192.0.2.1[192.0.2.1] said: 550 5.1.1 who? (in reply to RCPT TO command)"


class Scripted(Table):
    """Answers from a mapping; an exception is raised, and None hangs. Notes what it is asked."""

    def __init__(self, answers: Mapping[str, str | Exception | None]) -> None:
        super().__init__("scripted:x")
        self.answers = answers
        self.asked: list[str] = []

    async def lookup(self, key: str) -> str | None:
        """See Table; answers are found by the key's first word."""
        self.asked.append(key)
        answer = self.answers.get(key.partition(" ")[0], "")
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return answer or None


def filtering(world: World, table: Table) -> World:
    """The world with this table as its filter, for both protocols."""
    status_filter = StatusFilter(parameter="smtp_delivery_status_filter", maps=Maps([table]))
    settings = {
        protocol: replace(each, status_filter=status_filter)
        for protocol, each in world.environment.settings.items()
    }
    world.environment = replace(world.environment, settings=settings)
    return world


def outcomes(result: DeliveryResult) -> list[tuple[Action, str, str]]:
    return [(outcome.action, outcome.dsn, outcome.reason) for outcome in result.outcomes]


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warned)]


# --- what a text does -----------------------------------------------------------------------------

HARD: Mapping[Phase, Script] = {Phase.RCPT: "550 5.1.1 who?"}
SOFT: Mapping[Phase, Script] = {Phase.RCPT: "450 4.2.0 later"}
TAKEN: Mapping[Phase, Script] = {Phase.DOT: "250 2.0.0 queued"}


@pytest.mark.parametrize(
    ("script", "text", "action", "dsn", "reason"),
    [
        (HARD, "4.1.1", DEFERRED, "4.1.1", REFUSED_FOR_GOOD),
        (HARD, "4.7.0 in a while", DEFERRED, "4.7.0", "in a while"),
        (HARD, "5.7.1 nobody you know", BOUNCED, "5.7.1", "nobody you know"),
        (SOFT, "5.2.0 never", BOUNCED, "5.2.0", "never"),
        (SOFT, "4.2.2   later,   perhaps  ", DEFERRED, "4.2.2", "later,   perhaps"),
        (SOFT, "5.01.001\tzeros", BOUNCED, "5.01.001", "zeros"),
        (SOFT, "5.1.1 two\nlines\0", BOUNCED, "5.1.1", "two?lines?"),
        (SOFT, f"5.1.1 {'x' * 5000}", BOUNCED, "5.1.1", "x" * 1024),
        (TAKEN, "2.1.5 delivered", SENT, "2.1.5", "delivered"),
        (TAKEN, "2.1.5", SENT, "2.1.5", "250 2.0.0 queued"),
    ],
)
@trio_test
async def test_s181_a_filter_replaces_status_and_text(
    autojump_clock: MockClock,
    script: Mapping[Phase, Script],
    text: str,
    action: Action,
    dsn: str,
    reason: str,
) -> None:
    world = MainCfWorld({}, {SERVER: Peer(script)})
    plain = await deliver_to(world, f"[{SERVER}]")
    table = Scripted({plain.outcomes[0].dsn: text})
    result = await deliver_to(filtering(world, table), f"[{SERVER}]")
    assert outcomes(result) == [(action, dsn, reason)]
    assert table.asked == [f"{plain.outcomes[0].dsn} {plain.outcomes[0].reason}"]
    assert result.outcomes[0].reply == plain.outcomes[0].reply  # diagnostic code of a notice
    assert not warnings(world.events)


@trio_test
async def test_s181_no_more_of_a_reply_without_end_is_looked_up_than_is_told(
    autojump_clock: MockClock,
) -> None:
    table = Scripted({})
    reply = f"550 5.1.1 {'x' * 1500}"
    result = await deliver_one(filtering(World(Peer({Phase.RCPT: reply})), table))
    assert table.asked == [f"5.1.1 {result.outcomes[0].reason[:1024]}"]
    assert len(result.outcomes[0].reason) > 1500


@pytest.mark.parametrize(
    ("script", "text"),
    [
        *((TAKEN, text) for text in ("4.0.0 no", "5.0.0 no")),
        *(
            (HARD, text)
            for text in ("2.0.0 yes", "nonsense", "5.1", "5.1 x", "5.1.1: x", "3.1.1 x")
        ),
        *((SOFT, text) for text in ("2.0.0 yes", "5.1234.1 x", "5.1.1.1 x", "5.\u0661.1 x", " ")),
    ],
)
@trio_test
async def test_s181_what_is_no_status_or_of_a_wrong_class_is_one_warning_and_has_no_effect(
    autojump_clock: MockClock, script: Mapping[Phase, Script], text: str
) -> None:
    world = World(Peer(script))
    plain = await deliver_one(world, make_request(*ABC))
    world = filtering(World(Peer(script)), Scripted({plain.outcomes[0].dsn: text}))
    result = await deliver_one(world, make_request(*ABC))
    assert outcomes(result) == outcomes(plain)
    shown = text.strip()
    assert warnings(world.events) == [f"smtp_delivery_status_filter: bad status code: {shown}"]


@pytest.mark.parametrize(
    ("main_cf", "dsn"),
    [
        ({"default_delivery_status_filter": "static:{4.7.9 x}"}, ["4.7.9", "4.7.9"]),
        ({"smtp_delivery_status_filter": "static:{4.7.9 x}"}, ["4.7.9", "5.1.1"]),
        ({"lmtp_delivery_status_filter": "static:{4.7.9 x}"}, ["5.1.1", "4.7.9"]),
        (
            {
                "default_delivery_status_filter": "static:{4.7.9 x}",
                "smtp_delivery_status_filter": "inline:{{no = 4.0.0 x}}, static:{5.7.8 y}",
                "lmtp_delivery_status_filter": "",
            },
            ["5.7.8", "5.1.1"],
        ),
    ],
)
@trio_test
async def test_s181_smtp_and_lmtp_have_a_filter_each_and_a_default_for_both(
    autojump_clock: MockClock, main_cf: dict[str, str], dsn: list[str]
) -> None:
    found = []
    for protocol in Protocol:
        world = MainCfWorld(main_cf, {SERVER: Peer(HARD, lmtp=protocol is Protocol.LMTP)})
        nexthop = f"[{SERVER}]" if protocol is Protocol.SMTP else f"inet:{SERVER}:24"
        result = await deliver_to(world, nexthop, protocol=protocol)
        found.append(result.outcomes[0].dsn)
    assert found == dsn


@trio_test
async def test_s181_the_table_of_the_manual_page_makes_a_bounce_of_a_missing_starttls(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (file := tmp_path / "filter").write_text(
        r"/^4(\.[0-9]+\.[0-9]+ TLS is required, but was not offered by host .+)/ 5$1" "\n"
    )
    main_cf = {
        "smtp_delivery_status_filter": f"pcre:{file}",
        "smtp_tls_security_level": "encrypt",
    }
    world = MainCfWorld(main_cf, {SERVER: Peer()}, secured=True)
    [outcome] = (await deliver_to(world, f"[{SERVER}]")).outcomes
    text = "TLS is required, but was not offered by host 192.0.2.1[192.0.2.1]"
    assert (outcome.action, outcome.dsn, outcome.reason) == (BOUNCED, "5.7.4", text)


# --- when -----------------------------------------------------------------------------------------


@trio_test
async def test_s181_only_the_end_is_filtered_and_not_each_attempt(
    autojump_clock: MockClock,
) -> None:
    first, second = Peer(SOFT), Peer({Phase.RCPT: {ABC[1]: "450 4.2.1 full"}})
    table = Scripted({"4.2.0": "5.2.0 never", "4.2.1": "5.2.1 full for ever"})
    result = await deliver_one(filtering(World(first, second), table), make_request(*ABC[:2]))
    assert actions(result) == {ABC[0]: SENT, ABC[1]: BOUNCED}
    assert [key.partition(" ")[0] for key in table.asked] == ["2.0.0", "4.2.1"]


@trio_test
async def test_s181_a_destination_that_is_down_is_left_alone_though_its_mail_is_bounced(
    autojump_clock: MockClock,
) -> None:
    table = Scripted({"4.4.1": "5.4.1 down"})
    result = await deliver_one(filtering(World(ConnectionRefusedError(111, "x")), table))
    assert outcomes(result) == [(BOUNCED, "5.4.1", "down")]
    assert result.site_failure is not None
    assert result.site_failure.dsn == "4.4.1"


@trio_test
async def test_s181_recipients_that_share_a_reason_are_one_question(
    autojump_clock: MockClock,
) -> None:
    table = Scripted({"5.1.1": TableError("broken")})
    world = filtering(World(Peer(HARD)), table)
    result = await deliver_one(world, make_request(*ABC))
    assert actions(result) == dict.fromkeys(ABC, DEFERRED)
    assert len(table.asked) == 1
    assert warnings(world.events) == ["smtp_delivery_status_filter: broken"]


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s181_every_message_of_a_busy_session_is_filtered(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    peer = Peer(TAKEN, lmtp=protocol is Protocol.LMTP)
    peer.script[Phase.RCPT] = {ABC[2]: "550 5.1.1 who?"}
    world = filtering(World(peer), Scripted({"2.0.0": "2.1.5 there", "5.1.1": "4.1.1 wait"}))
    requests = [make_request(ABC[n % 3], protocol=protocol) for n in range(9)]

    async def scenario() -> None:
        await world.deliver_in_a_row(requests)

    await world.play(scenario)
    assert len(peer.accepted) == 6
    assert len(peer.links) == 1  # the session is used on
    found = [(result.outcomes[0].action, result.outcomes[0].dsn) for result in world.results]
    assert found == [(SENT, "2.1.5"), (SENT, "2.1.5"), (DEFERRED, "4.1.1")] * 3


@pytest.mark.parametrize(
    ("transport", "expected"),
    [
        ("error:5.1.2 not here", (BOUNCED, "5.1.2")),  # error(8) has no filter
        (f"lmtp:unix:{STUB}", (DEFERRED, "4.0.1")),
    ],
)
@trio_test
async def test_s181_what_another_transport_took_over_goes_through_its_filter(
    autojump_clock: MockClock, transport: str, expected: tuple[Action, str]
) -> None:
    world = looping(transport, Peer(HARD, lmtp=True))
    config = Config.from_mapping(
        {
            "smtp_delivery_status_filter": "static:{5.0.2 smtp}",
            "lmtp_delivery_status_filter": "static:{4.0.1 lmtp}",
        }
    )
    settings = {each: DeliverySettings.from_config(config, each) for each in Protocol}
    world.environment = replace(world.environment, settings=settings)
    [outcome] = (await deliver_one(world)).outcomes
    assert (outcome.action, outcome.dsn) == expected


# --- trouble --------------------------------------------------------------------------------------


def three_ways() -> Peer:
    """An LMTP server that takes a, refuses b for good, and c for now."""
    replies: dict[str, object] = {ABC[1]: "550 5.1.1 who?", ABC[2]: "450 4.2.0 later"}
    return Peer({Phase.RCPT: replies}, lmtp=True)  # type: ignore[dict-item]  # a Script


WAITS = (
    "no answer from smtp_delivery_status_filter, so not bounced: host lmtp.example.com[192.0.2.1]"
    " said: 550 5.1.1 who? (in reply to RCPT TO command)"
)


@pytest.mark.parametrize("trouble", [TableError("broken"), RuntimeError("bug"), None])
@trio_test
async def test_s181_a_table_in_trouble_bounces_nobody_and_what_was_delivered_stays_delivered(
    autojump_clock: MockClock, trouble: Exception | None
) -> None:
    plain = await deliver_one(World(three_ways()), make_request(*ABC, protocol=Protocol.LMTP))
    table = Scripted(dict.fromkeys(("2.0.0", "5.1.1", "4.2.0"), trouble))
    world = filtering(World(three_ways()), table)
    world.environment = replace(world.environment, time_limit=600.0)
    result = await deliver_one(world, make_request(*ABC, protocol=Protocol.LMTP))
    sent, bounced, deferred = outcomes(plain)
    assert (sent[0], bounced[0], deferred[0]) == (SENT, BOUNCED, DEFERRED)
    assert outcomes(result) == [sent, (DEFERRED, "4.3.0", WAITS), deferred]
    assert not result.stopped
    assert world.took == [600.0 if trouble is None else 0.0]  # daemon_timeout, all in all
    unexpected = [event for event in world.events if isinstance(event, UnexpectedError)]
    told = {
        TableError: (["smtp_delivery_status_filter: broken"] * 3, 0),
        RuntimeError: ([], 1),
        type(None): (["delivery status filter: no answer within daemon_timeout"], 0),
    }
    assert (warnings(world.events), len(unexpected)) == told[type(trouble)]


@trio_test
async def test_s181_a_stop_waits_for_no_lookup(autojump_clock: MockClock) -> None:
    world = filtering(World(three_ways()), Scripted({"2.0.0": None}))

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, make_request(*ABC, protocol=Protocol.LMTP))
            await trio.sleep(5.0)
            world.slot.stop()

    await world.play(scenario)
    assert world.took == [5.0]
    assert actions(world.results[0]) == {ABC[0]: SENT, ABC[1]: DEFERRED, ABC[2]: DEFERRED}
    assert not warnings(world.events)


@trio_test
async def test_s181_what_our_own_stop_left_undone_is_not_made_a_bounce(
    autojump_clock: MockClock,
) -> None:
    # The first server refuses b; a is to go on to the second, which is silent.
    first = Peer({Phase.RCPT: {ABC[0]: "450 4.2.0 later", ABC[1]: "550 5.1.1 who?"}})
    second = Peer({Phase.GREETING: Fault.SILENCE})
    answers = {"4.2.0": "5.2.0 never", "4.3.2": "5.3.2 never", "5.1.1": "5.7.1 filtered"}
    world = filtering(World(first, second), Scripted(answers))

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, make_request(*ABC[:2]))
            await trio.sleep(5.0)
            world.slot.stop()

    await world.play(scenario)
    [result] = world.results
    assert result.stopped
    assert actions(result) == {ABC[0]: DEFERRED, ABC[1]: BOUNCED}
    assert result.outcomes[1].dsn == "5.7.1"  # that one was decided


@trio_test
async def test_s181_a_stop_during_the_transfer_leaves_time_for_tables_in_memory(
    autojump_clock: MockClock,
) -> None:
    peer = Peer({Phase.RCPT: {ABC[1]: "550 5.1.1 who?"}, Phase.DOT: Late(10.0, "250 2.0.0 queued")})
    table = Scripted({"2.0.0": "2.1.5 there", "5.1.1": "4.7.0 wait"})
    world = filtering(World(peer), table)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, make_request(*ABC[:2]))
            await trio.sleep(5.0)
            world.slot.stop()

    await world.play(scenario)
    found = [(action, dsn) for action, dsn, _ in outcomes(world.results[0])]
    assert found == [(SENT, "2.1.5"), (DEFERRED, "4.7.0")]
