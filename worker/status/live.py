"""The live table of deliveries for a terminal (`postrio run --live`), drawn from events.

`Deliveries` is the state, pure; `draw` makes a table of it; `show_live` keeps it on the terminal.
Memory is bounded: the newest attempts are kept, the rest are counts.
"""

import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protocol.outcome import Action
from worker.status.events import (
    Event,
    MessageRemoved,
    MessageSubmitted,
    Noted,
    NoticeQueued,
    RecipientSettled,
    UnexpectedError,
    Warned,
)
from worker.status.log import escape, render

ROWS: Final = 20  # attempts on the screen
NOTES: Final = 3  # warnings and notes under them
REFRESH: Final = 0.25  # seconds between drawings, however fast events come
COLOURS: Final = {Action.SENT: "green", Action.DEFERRED: "yellow", Action.BOUNCED: "red"}


@dataclass(slots=True)
class Deliveries:
    """What has happened, as far as it is shown. A subscriber of events."""

    newest: deque[RecipientSettled] = field(default_factory=lambda: deque(maxlen=ROWS))
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES))
    ends: Counter[Action] = field(default_factory=Counter)
    submitted: int = 0
    removed: int = 0
    notices: int = 0
    changed: bool = True  # since it was drawn last

    def emit(self, event: Event) -> None:
        """Take an event; never blocks or raises."""
        match event:
            case RecipientSettled():
                self.newest.append(event)
                self.ends[event.outcome.action] += 1
            case MessageSubmitted():
                self.submitted += 1
            case MessageRemoved():
                self.removed += 1
            case NoticeQueued():
                self.notices += 1
            case Warned() | Noted() | UnexpectedError():
                self.notes.extend(line.text for line in render(event)[:1])
            case _:
                return
        self.changed = True

    @property
    def summary(self) -> str:
        """The counts on one line."""
        ends = ", ".join(f"{self.ends[action]} {action.value}" for action in Action)
        return (
            f"{self.submitted} messages submitted, {self.removed} done; attempts: {ends}; "
            f"{self.notices} notices"
        )


def draw(deliveries: Deliveries) -> Group:
    """The table, the notes and the counts."""
    table = Table("queue id", "recipient", "status", "relay", "delay", "reason", expand=True)
    for event in deliveries.newest:
        outcome = event.outcome
        table.add_row(
            Text(event.queue_id, no_wrap=True),
            Text(escape(outcome.recipient.address), overflow="ellipsis", no_wrap=True),
            Text(outcome.action.value, style=COLOURS[outcome.action]),
            Text(escape(outcome.relay) or "none", overflow="ellipsis", no_wrap=True),
            Text(f"{outcome.delays.total:.1f}s", justify="right"),
            Text(escape(outcome.reason), overflow="ellipsis", no_wrap=True),
        )
    notes = [
        Text(note, style="dim", overflow="ellipsis", no_wrap=True) for note in deliveries.notes
    ]
    return Group(table, *notes, Text(deliveries.summary))


async def show_live(
    deliveries: Deliveries,
    console: Console | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep the drawing on the terminal until cancelled; the last one stays there."""
    console = Console(file=sys.stderr) if console is None else console
    with Live(draw(deliveries), console=console, auto_refresh=False) as live:
        task_status.started()
        try:
            while True:
                await trio.sleep(REFRESH)
                if deliveries.changed:
                    deliveries.changed = False
                    live.update(draw(deliveries), refresh=True)
        finally:
            live.update(draw(deliveries), refresh=True)
