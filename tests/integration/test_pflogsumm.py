"""A day of our log, read by the program that sites read their Postfix logs with."""

import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.request import Recipient
from tests.integration.peers import find_program
from worker.status.events import (
    ConnectFailed,
    MessageActive,
    MessageExpired,
    MessageRemoved,
    MessageSubmitted,
    Noted,
    NoticeQueued,
    RecipientSettled,
    Warned,
)
from worker.status.sinks import FileSink, LogSettings, Stamp
from worker.status.writer import LogWriter

MIDNIGHT = 1_699_920_000.0  # of some day
SIZE = 4_000
REPLIES = {
    Action.SENT: ("2.0.0", "250 2.0.0 Ok: queued as 4Zx (really)"),
    Action.DEFERRED: ("4.7.1", "host mx[192.0.2.1] said: 450 4.7.1 greylisted, status=sent (no)"),
    Action.BOUNCED: ("5.1.1", "host mx[192.0.2.1] said: 550 5.1.1 <x>: unknown (in reply to RCPT)"),
}


@dataclass(frozen=True)
class Attempt:
    """One delivery line."""

    recipient: str
    action: Action
    original: str
    conn_use: int


class Day:
    """The log of one day and what must be counted in it."""

    def __init__(self, path: Path) -> None:
        self.now = MIDNIGHT
        self.log = LogWriter(
            FileSink(path, Stamp("postfix", host="mail", pid=99)),
            LogSettings(),
            wall=lambda: self.now,
        )
        self.counts = dict.fromkeys(("received", "delivered", "deferred", "bounced"), 0)
        self.deferrals = 0
        self.warnings = 0

    def message(self, number: int, attempts: list[Attempt]) -> None:
        """A message from its submission to its removal."""
        self.now += 80
        queue_id = f"3k{number:05X}"
        sender = f"sender{number % 7}@from.example"
        emit = self.log.emit
        emit(MessageSubmitted(queue_id, 1000, sender, f"<{number}@from.example>"))
        emit(MessageActive(queue_id, sender, SIZE, len(attempts)))
        self.counts["received"] += 1
        for attempt in attempts:
            self.attempt(queue_id, attempt)
        self.counts["deferred"] += any(a.action is Action.DEFERRED for a in attempts)
        emit(MessageRemoved(queue_id))

    def attempt(self, queue_id: str, attempt: Attempt) -> None:
        """One delivery line."""
        dsn, reason = REPLIES[attempt.action]
        outcome = RecipientOutcome(
            recipient=Recipient(address=attempt.recipient, original=attempt.original),
            action=attempt.action,
            dsn=dsn,
            reason=reason,
            relay="mx.to.example[192.0.2.1]:25",
            conn_use=attempt.conn_use,
            delays=Delays(0.1, 0.02, 0.3, 1.5),
        )
        self.log.emit(RecipientSettled(queue_id, "smtp", outcome))
        match attempt.action:
            case Action.SENT:
                self.counts["delivered"] += 1
            case Action.DEFERRED:
                self.deferrals += 1
            case Action.BOUNCED:
                self.counts["bounced"] += 1


def write_day(path: Path) -> Day:
    """A thousand messages of all fates, and everything else that may stand between them."""
    rng = random.Random(1)
    day = Day(path)
    day.log.emit(Noted("started"))
    for number in range(1_000):
        attempts = [
            Attempt(
                recipient=rng.choice(("a@to.example", "b@to.example", "c d@other.example")),
                action=rng.choice(list(Action)),
                original=rng.choice(("", "alias@to.example")),
                conn_use=rng.choice((1, 2, 17)),
            )
            for _ in range(rng.randint(1, 4))
        ]
        day.message(number, attempts)
        if number % 100 == 0:
            day.log.emit(ConnectFailed("mx.to.example", "192.0.2.2", 25, "Connection refused"))
            day.log.emit(Warned("something is odd"))
            day.log.emit(NoticeQueued("3k00001", "sender non-delivery notification", "3kFFFFF"))
            day.log.emit(MessageExpired("3k00001", "sender1@from.example"))
            day.warnings += 1
    day.log.close()
    return day


@pytest.mark.peer("pflogsumm")
def test_s151_pflogsumm_counts_a_day_of_our_log_right(tmp_path: Path) -> None:
    day = write_day(tmp_path / "maillog")
    program = find_program("pflogsumm")
    assert program is not None
    report = subprocess.run(
        [program, str(tmp_path / "maillog")], capture_output=True, text=True, check=True
    ).stdout
    counted = dict(re.findall(r"^ +(\d+k?) +([a-z ]+?)(?: +\(.*)?$", report, re.MULTILINE))
    totals = {what: int(number) for number, what in counted.items() if not number.endswith("k")}
    assert {what: totals[what] for what in day.counts} == day.counts
    assert f"({day.deferrals}  deferrals)" in report
    assert totals["senders"] == 7
    assert totals["recipients"] == 3
    assert re.search(rf"^ +{day.warnings} +something is odd$", report, re.MULTILINE)
