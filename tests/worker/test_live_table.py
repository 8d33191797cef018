"""The live table: what it shows, and that it stays bounded."""

import io

import trio
from rich.console import Console
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import Recipient
from worker.status.events import (
    MessageRemoved,
    MessageSubmitted,
    NoticeQueued,
    RecipientSettled,
    SessionOpened,
    Warned,
)
from worker.status.live import NOTES, REFRESH, ROWS, Deliveries, draw, show_live


def settled(number: int, action: Action = Action.SENT) -> RecipientSettled:
    outcome = RecipientOutcome(
        recipient=Recipient(address=f"user{number}@y.example"),
        action=action,
        dsn="2.0.0",
        reason="250 [bold]ok[/bold]\x1b[2J",
        relay="mx[192.0.2.1]:25",
        delays=Delays(1.0, 0.5, 0.0, 0.0),
    )
    return RecipientSettled(f"Q{number}", "smtp", outcome)


def drawn(deliveries: Deliveries) -> str:
    console = Console(file=io.StringIO(), width=160)
    with console.capture() as capture:
        console.print(draw(deliveries))
    return capture.get()


def test_the_table_shows_attempts_notes_and_counts() -> None:
    deliveries = Deliveries()
    for event in (
        MessageSubmitted("Q1", 0, "", ""),
        settled(1),
        settled(2, Action.DEFERRED),
        MessageRemoved("Q1"),
        NoticeQueued("Q2", "sender delay notification", "Q3"),
        Warned("disk is nearly full"),
    ):
        deliveries.emit(event)
    text = drawn(deliveries)
    assert "user1@y.example" in text
    assert "1.5s" in text
    assert "warning: disk is nearly full" in text
    assert (
        "1 messages submitted, 1 done; attempts: 1 sent, 1 deferred, 0 bounced; 1 notices" in text
    )


def test_what_a_peer_says_is_shown_as_text() -> None:
    deliveries = Deliveries()
    deliveries.emit(settled(1))
    text = drawn(deliveries)
    assert "[bold]ok[/bold]?[2J" in text
    assert "\x1b" not in text


def test_only_the_newest_are_kept() -> None:
    deliveries = Deliveries()
    for number in range(1_000):
        deliveries.emit(settled(number))
        deliveries.emit(Warned(f"{number}"))
    assert (len(deliveries.newest), len(deliveries.notes)) == (ROWS, NOTES)
    assert "Q999" in drawn(deliveries)
    assert "1000 sent" in deliveries.summary


def test_an_event_that_is_not_shown_asks_for_no_drawing() -> None:
    deliveries = Deliveries(changed=False)
    deliveries.emit(SessionOpened("mx[192.0.2.1]:25"))
    assert not deliveries.changed


@trio_test
async def test_changes_are_drawn_together_and_the_last_state_stays(
    autojump_clock: MockClock,
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=160, force_terminal=True)
    deliveries = Deliveries()
    async with trio.open_nursery() as nursery:
        await nursery.start(show_live, deliveries, console)
        for number in range(3):
            deliveries.emit(settled(number))
        assert "Q0" not in screen.getvalue()
        await trio.sleep(2 * REFRESH)
        assert "Q2" in screen.getvalue()
        assert not deliveries.changed
        deliveries.emit(settled(7))
        nursery.cancel_scope.cancel()
    assert "Q7" in screen.getvalue()
