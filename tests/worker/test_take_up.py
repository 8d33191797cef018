"""Messages on their way into the active set: routing beside each other, hops, deferred transports.

On the virtual clock, with a store in memory and scripted workers (see test_scheduler.py).
"""

import gc
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Notify
from tests.worker.scripted_slots import DEFERRED, SENT, Answer, site_failure
from tests.worker.test_scheduler import Node, transports, wall
from worker.config.config import Config
from worker.config.tables import TableError
from worker.queue.active import ActiveMessage
from worker.queue.records import MessageState
from worker.queue.routing import Router
from worker.queue.scheduler import ROUTING_LIMIT, ROUTING_PATIENCE
from worker.queue.settings import NoticeSettings, QueueSettings
from worker.status.events import MessageActive, NoticeQueued, RecipientSettled, UnexpectedError

HANG = 100.0  # seconds until a lookup at a server that hangs fails


class Tables:
    """transport_maps whose server hangs for addresses that begin with `hang`."""

    def __init__(self) -> None:
        self.hanging = 0
        self.most = 0

    async def find(self, key: str, *, partial: bool = False) -> str | None:
        """Nothing, TableError after a long time, or a mistake."""
        if key.startswith("bug"):
            raise ZeroDivisionError
        if key.startswith("slow"):
            await trio.sleep(ROUTING_PATIENCE / 2)
        if not key.startswith("hang"):
            return None
        self.hanging += 1
        self.most = max(self.most, self.hanging)
        try:
            await trio.sleep(HANG)
        finally:
            self.hanging -= 1
        raise TableError("socketmap:inet:192.0.2.9:24:x: no answer")


def outcomes(node: Node, address: str) -> list[tuple[Action, str, str]]:
    return [
        (event.outcome.action, event.outcome.dsn, event.outcome.reason)
        for event in node.settled(address)
    ]


@trio_test
async def test_a_lookup_that_hangs_holds_up_no_other_message(autojump_clock: MockClock) -> None:
    node = Node(router=Router(tables=Tables()))
    node.submit("hang@one.example")
    for number in range(50):
        node.submit(f"u{number}@two.example")
    async with node.running():
        await trio.sleep(10.0)
        assert len(node.workers.accepted) == 50
        assert not node.settled("hang@one.example")
        await trio.sleep(HANG)
        ((action, dsn, reason),) = outcomes(node, "hang@one.example")
        assert (action, dsn) == (Action.DEFERRED, "4.3.0")
        assert reason == "transport_maps: socketmap:inet:192.0.2.9:24:x: no answer"
        (left,) = node.store.messages.values()
        assert left.state is MessageState.DEFERRED


@trio_test
async def test_mail_that_comes_while_a_lookup_hangs_goes_on_as_well(
    autojump_clock: MockClock,
) -> None:
    node = Node(router=Router(tables=Tables()))
    node.submit("hang@one.example")
    async with node.running():
        await trio.sleep(1.0)
        for _ in range(20):
            node.submit("u@two.example")
            node.scheduler.wake()
            await trio.sleep(1.0)
        assert len(node.workers.accepted) == 20
        assert not node.settled("hang@one.example")


@trio_test
async def test_messages_of_one_claim_are_queued_in_their_order(autojump_clock: MockClock) -> None:
    node = Node(
        settings=QueueSettings(transports=transports(initial_concurrency=1, concurrency_limit=1)),
        router=Router(tables=Tables()),
    )
    names = ["slow", "quick"] * 20
    submitted = [node.submit(f"{name}@two.example") for name in names]
    await node.run(60.0)
    assert [request.queue_id for request in node.workers.requests] == submitted


@trio_test
async def test_lookups_that_hang_are_bounded_and_so_is_the_active_set(
    autojump_clock: MockClock,
) -> None:
    tables = Tables()
    node = Node(settings=QueueSettings(active_limit=5000), router=Router(tables=tables))
    for number in range(ROUTING_LIMIT + 200):
        node.submit(f"hang{number}@one.example")
    node.submit("u@two.example")
    async with node.running():
        await trio.sleep(HANG / 2)
        assert tables.most == ROUTING_LIMIT
        await trio.sleep(HANG * 3)
        assert tables.most == ROUTING_LIMIT
        assert node.workers.accepted  # behind them all, and not lost
        assert node.scheduler.active_messages == 0
        assert len(node.of(RecipientSettled)) == ROUTING_LIMIT + 201


@trio_test
async def test_the_active_set_counts_what_is_being_routed(autojump_clock: MockClock) -> None:
    node = Node(settings=QueueSettings(active_limit=10), router=Router(tables=Tables()))
    for number in range(30):
        node.submit(f"hang{number}@one.example")
    async with node.running():
        await trio.sleep(HANG / 2)
        assert node.scheduler.active_messages == 10
        assert len(node.of(MessageActive)) == 10


@trio_test
async def test_who_is_being_routed_when_the_scheduler_stops_is_still_queued(
    autojump_clock: MockClock,
) -> None:
    node = Node(router=Router(tables=Tables()))
    queue_id = node.submit("hang@one.example")
    async with node.running():
        await trio.sleep(1.0)
    assert trio.current_time() < HANG
    reopened = node.store.reopened()
    (message,) = await reopened.claim(wall(), 10)
    assert message.queue_id == queue_id
    assert [recipient.address for recipient in message.recipients] == ["hang@one.example"]


@trio_test
async def test_a_bug_in_routing_defers_its_message_alone(autojump_clock: MockClock) -> None:
    node = Node(router=Router(tables=Tables()))
    node.submit("bug@one.example")
    node.submit("u@two.example")
    async with node.running():
        await trio.sleep(5.0)
    assert outcomes(node, "bug@one.example") == [
        (Action.DEFERRED, "4.3.0", "internal error while routing")
    ]
    assert len(node.of(UnexpectedError)) == 1
    assert len(node.workers.accepted) == 1


class Flagging:
    """transport_maps that answers at once, and for an address late when `hangs` is set."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer
        self.hangs = False
        self.asked = 0

    async def find(self, key: str, *, partial: bool = False) -> str | None:
        """The answer."""
        self.asked += 1
        if self.hangs and "@" in key:
            await trio.sleep(HANG)
        return self.answer


@trio_test
async def test_s135_mail_whose_lookup_outlasts_the_death_of_its_destination_is_sent(
    autojump_clock: MockClock,
) -> None:
    tables = Flagging(None)
    failing = True
    node = Node(lambda _: site_failure() if failing else SENT, router=Router(tables=tables))
    for number in range(5):
        node.submit(f"u{number}@one.example")
    async with node.running():
        await trio.sleep(250.0)  # it is dead until 300 s
        failing, tables.hangs = False, True
        node.submit("late@one.example")
        node.scheduler.wake()
        await trio.sleep(HANG + 1.0)
    assert [action for action, _, _ in outcomes(node, "late@one.example")] == [Action.SENT]


@pytest.mark.parametrize("recipients", [1, 20])
@trio_test
async def test_outcomes_do_not_wait_for_a_lookup_that_hangs(
    recipients: int, autojump_clock: MockClock
) -> None:
    """Whether a confirmed recipient was reached over LMTP is looked up again at the end."""
    tables = Flagging("lmtp:inet:one.example:24")

    def script(request: DeliveryRequest) -> Answer:
        tables.hangs = True
        return SENT

    settings = QueueSettings(notices=NoticeSettings(assume_final=True))
    node = Node(script, settings, Router(tables=tables))
    addresses = [f"u{number}@one.example" for number in range(recipients)]
    node.submit(*addresses, notify=Notify.SUCCESS)
    async with node.running():
        await trio.sleep(5.0)
        assert [len(node.settled(address)) for address in addresses] == [1] * recipients
        assert node.store.drafts[0].content.count(b"Action: relayed") == recipients


@trio_test
async def test_nothing_is_looked_up_for_a_notice_that_does_not_depend_on_it(
    autojump_clock: MockClock,
) -> None:
    tables = Flagging("lmtp:inet:one.example:24")
    node = Node(router=Router(tables=tables))
    node.submit("u@one.example", notify=Notify.SUCCESS)
    await node.run(0.5)
    assert len(node.store.drafts) == 1
    assert tables.asked == 1 + 1  # for the message and its notice


@trio_test
async def test_a_lookup_that_hangs_does_not_keep_other_messages_in_memory(
    autojump_clock: MockClock,
) -> None:
    node = Node(router=Router(tables=Tables()))
    sender = "kept-in-memory@here.example"
    node.submit("hang@one.example", sender=sender)
    for number in range(20):
        node.submit(f"u{number}@two.example", sender=sender)
    async with node.running():
        await trio.sleep(10.0)
        assert len(node.workers.accepted) == 20
        assert node.scheduler.active_messages == 1
        node.submit("u@two.example")  # the last ones are forgotten for the next one
        node.scheduler.wake()
        await trio.sleep(1.0)
        gc.collect()
        active = [each for each in gc.get_objects() if isinstance(each, ActiveMessage)]
        assert sum(each.message.sender == sender for each in active) == 1


# --- hopcount_limit ------------------------------------------------------------------------------


def submit_with_hops(node: Node, hops: int, address: str = "u@one.example") -> str:
    message = node.submit(address)
    row = next(row for row in node.store.messages.values() if row.queue_id == message)
    row.content = b"Received: from somewhere\r\n" * hops + b"Subject: x\r\n\r\nbody\r\n"
    return message


@pytest.mark.parametrize(("hops", "bounces"), [(49, False), (50, True), (51, True)])
@trio_test
async def test_a_message_that_has_passed_hopcount_limit_hosts_is_returned(
    hops: int, *, bounces: bool, autojump_clock: MockClock
) -> None:
    node = Node()
    queue_id = submit_with_hops(node, hops)
    async with node.running():
        await trio.sleep(5.0)
    (event,) = node.settled("u@one.example")
    if not bounces:
        assert event.outcome.action is Action.SENT
        return
    assert event.protocol == "cleanup"
    assert outcomes(node, "u@one.example") == [(Action.BOUNCED, "5.4.0", "too many hops")]
    (notice,) = node.of(NoticeQueued)
    assert isinstance(notice, NoticeQueued)
    assert notice.queue_id == queue_id
    assert [request.sender for request in node.workers.requests] == [""]


@trio_test
async def test_s184_a_reload_changes_hopcount_limit(autojump_clock: MockClock) -> None:
    node = Node()
    node.scheduler.reload(replace(node.settings, hopcount_limit=3), Router())
    submit_with_hops(node, 3)
    await node.run(60.0)
    assert outcomes(node, "u@one.example")[0][1] == "5.4.0"


@trio_test
async def test_s181_soft_bounce_keeps_a_message_with_too_many_hops(
    autojump_clock: MockClock,
) -> None:
    node = Node(settings=QueueSettings(soft_bounce=True, hopcount_limit=1))
    submit_with_hops(node, 1)
    await node.run(60.0)
    assert outcomes(node, "u@one.example") == [(Action.DEFERRED, "4.4.0", "too many hops")]


# --- defer_transports ----------------------------------------------------------------------------

LATER = QueueSettings(defer_transports=frozenset({"smtp"}))


@trio_test
async def test_mail_of_a_deferred_transport_waits_until_it_is_flushed(
    autojump_clock: MockClock,
) -> None:
    node = Node(settings=LATER)
    node.submit("u@one.example")
    async with node.running():
        await trio.sleep(2 * 3600.0)
        assert set(outcomes(node, "u@one.example")) == {
            (Action.DEFERRED, "4.3.2", "deferred transport")
        }
        assert {event.protocol for event in node.settled("u@one.example")} == {"error"}
        assert not node.workers.requests
        node.submit("v@one.example")
        node.scheduler.wake()
        await trio.sleep(1.0)
        assert not node.workers.requests
        await node.store.make_due(None, wall())
        node.scheduler.flush()
        await trio.sleep(1.0)
        assert len(node.workers.accepted) == 2
        node.submit("w@one.example")
        node.scheduler.wake()
        await trio.sleep(1.0)
        assert outcomes(node, "w@one.example")[0][2] == "deferred transport"


@trio_test
async def test_a_flush_is_one_attempt(autojump_clock: MockClock) -> None:
    node = Node(lambda _: DEFERRED, LATER)
    node.submit("u@one.example")
    async with node.running():
        await trio.sleep(1.0)
        await node.store.make_due(None, wall())
        node.scheduler.flush()
        await trio.sleep(2 * 3600.0)
    assert len(node.workers.requests) == 1
    reasons = [reason for _, _, reason in outcomes(node, "u@one.example")]
    assert reasons[:2] == ["deferred transport", "mailbox full"]
    assert set(reasons[2:]) == {"deferred transport"}


@trio_test
async def test_other_transports_are_not_deferred(autojump_clock: MockClock) -> None:
    node = Node(settings=LATER, router=Router(default_transport="relay"))
    node.submit("u@one.example")
    await node.run(60.0)
    assert len(node.workers.accepted) == 1


@trio_test
async def test_s184_a_reload_changes_defer_transports(autojump_clock: MockClock) -> None:
    node = Node()
    node.scheduler.reload(LATER, Router())
    node.submit("u@one.example")
    async with node.running():
        await trio.sleep(1.0)
        assert not node.workers.requests
        node.scheduler.reload(QueueSettings(), Router())
        await trio.sleep(3600.0)
    assert len(node.workers.accepted) == 1


def test_the_new_settings_are_read_from_the_configuration() -> None:
    settings = QueueSettings.from_config(
        Config.from_mapping(
            {
                "hopcount_limit": "7",
                "defer_transports": "smtp, relay",
                "confirm_delay_cleared": "yes",
                "destination_concurrency_feedback_debug": "yes",
                "default_transport_rate_delay": "3s",
                "lmtp_transport_rate_delay": "5s",
                "default_process_limit": "20",
            }
        )
    )
    assert settings.hopcount_limit == 7
    assert settings.defer_transports == {"smtp", "relay"}
    assert settings.confirm_delay_cleared
    assert settings.feedback_debug
    assert settings.transports["smtp"].transport_rate_delay == 3.0
    assert settings.transports["lmtp"].transport_rate_delay == 5.0
    assert {each.process_limit for each in settings.transports.values()} == {20}
    defaults = QueueSettings.from_config(Config.from_mapping({}))
    assert not defaults.defer_transports
    assert {each.process_limit for each in defaults.transports.values()} == {0}
