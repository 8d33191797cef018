"""confirm_delay_cleared: who was told of a delay is told of its end. Virtual clock."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.request import DeliveryRequest, Notify
from tests.worker.scripted_slots import BOUNCED, DEFERRED, SENT, Answer
from tests.worker.test_scheduler import HOUR, Node
from worker.queue.routing import Router
from worker.queue.settings import QueueSettings
from worker.status.events import NoticeQueued

CONFIRMING = QueueSettings(delay_warning=HOUR, confirm_delay_cleared=True)


def late(seconds: float, settings: QueueSettings, then: Answer = SENT) -> Node:
    """Servers that defer all mail but notices until then."""

    def script(request: DeliveryRequest) -> Answer:
        if not request.sender or request.sender.startswith("double-bounce"):
            return SENT
        return then if trio.current_time() >= seconds else DEFERRED

    return Node(script, settings)


def kinds(node: Node) -> list[str]:
    return [event.kind for event in node.of(NoticeQueued) if isinstance(event, NoticeQueued)]


DELAYED = "sender delay notification"
CLEARED = "sender delivery status notification"


@trio_test
async def test_the_end_of_a_delay_is_told_to_who_was_told_of_it(autojump_clock: MockClock) -> None:
    node = late(3 * HOUR, CONFIRMING)
    node.submit("a@one.example", "b@two.example")
    await node.run()
    assert kinds(node) == [DELAYED, CLEARED]
    told = node.store.drafts[1].content.decode()
    assert "Subject: Your delayed message was relayed" in told
    assert told.count("Action: relayed") == 2
    assert "You were told that your message is delayed" in told


@pytest.mark.parametrize("wanted", [True, False])
@trio_test
async def test_nobody_is_told_who_was_not_late_or_did_not_ask(
    *, wanted: bool, autojump_clock: MockClock
) -> None:
    soon, settings = (0.5 * HOUR, CONFIRMING) if wanted else (
        3 * HOUR, replace(CONFIRMING, confirm_delay_cleared=False)
    )  # fmt: skip
    node = late(soon, settings)
    node.submit("a@one.example")
    await node.run()
    assert CLEARED not in kinds(node)


@pytest.mark.parametrize("notify", [Notify.NEVER, Notify.FAILURE])
@trio_test
async def test_who_did_not_want_to_hear_of_the_delay_does_not_hear_of_its_end(
    notify: Notify, autojump_clock: MockClock
) -> None:
    node = late(3 * HOUR, CONFIRMING)
    node.submit("a@one.example", notify=notify)
    await node.run()
    assert kinds(node) == []


@trio_test
async def test_who_asked_for_success_gets_that_report_and_no_other(
    autojump_clock: MockClock,
) -> None:
    node = late(3 * HOUR, CONFIRMING)
    node.submit("a@one.example", notify=Notify.SUCCESS | Notify.DELAY)
    await node.run()
    assert kinds(node) == [DELAYED, CLEARED]  # the phrase of the log is the same


@trio_test
async def test_a_late_message_that_is_refused_is_a_failure(autojump_clock: MockClock) -> None:
    node = late(3 * HOUR, CONFIRMING, BOUNCED)
    node.submit("a@one.example")
    await node.run()
    assert kinds(node) == [DELAYED, "sender non-delivery notification"]


@pytest.mark.parametrize("sender", ["", "double-bounce@localhost"])
@trio_test
async def test_no_notice_is_confirmed(sender: str, autojump_clock: MockClock) -> None:
    node = Node(lambda _: SENT if trio.current_time() >= 3 * HOUR else DEFERRED, CONFIRMING)
    node.submit("a@one.example", sender=sender)
    await node.run()
    assert kinds(node) == []


@trio_test
async def test_s184_a_reload_changes_it(autojump_clock: MockClock) -> None:
    node = late(3 * HOUR, replace(CONFIRMING, confirm_delay_cleared=False))
    node.submit("a@one.example")
    async with node.running():
        await trio.sleep(2 * HOUR)
        node.scheduler.reload(CONFIRMING, Router())
        await trio.sleep(2 * HOUR)
    assert kinds(node) == [DELAYED, CLEARED]
