"""What the demonstration knows and shows: the log of `postrio run`, read line by line.

Answers for the state of every delivery, from log lines alone (so any program that logs in
Postfix's format could be watched), and for the table drawn from it. No I/O.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from rich.table import Table
from rich.text import Text

DELIVERY: Final = re.compile(
    r": (?P<queue_id>[0-9A-Za-z]+): to=<(?P<recipient>.*?)>, (?:orig_to=<.*?>, )?"
    r"relay=(?P<relay>[^,]+),.* status=(?P<status>sent|deferred|bounced|expired)"
    r" \((?P<reason>.*)\)$"
)
REMOVED: Final = re.compile(r": (?P<queue_id>[0-9A-Za-z]+): removed$")
NOTICE: Final = re.compile(
    r": (?P<queue_id>[0-9A-Za-z]+): (?P<kind>(?:sender|postmaster) [a-z -]*notification): "
    r"(?P<notice_id>[0-9A-Za-z]+)$"
)
COLOURS: Final = {"sent": "green", "deferred": "yellow", "bounced": "red", "expired": "red"}


@dataclass(slots=True)
class Delivery:
    """One recipient of one message, as of its last attempt."""

    recipient: str
    attempts: int = 0
    status: str = "queued"
    relay: str = ""
    reason: str = ""


@dataclass(slots=True)
class Deliveries:
    """Everything seen in the log so far. Queue ids may show up here before they are submitted."""

    submitted: dict[str, str] = field(default_factory=dict)  # queue id -> name of the example
    notices: dict[str, tuple[str, str]] = field(default_factory=dict)  # id -> kind, about which id
    removed: set[str] = field(default_factory=set)
    rows: dict[tuple[str, str], Delivery] = field(default_factory=dict)
    deferrals: int = 0  # attempts that ended with "try again later"

    def submit(self, queue_id: str, name: str) -> None:
        """An example was accepted under this id."""
        self.submitted[queue_id] = name

    def feed(self, line: str) -> bool:
        """Take one log line; True when it changed something worth showing."""
        if match := DELIVERY.search(line):
            self._attempted(match)
        elif match := REMOVED.search(line):
            self.removed.add(match["queue_id"])
        elif match := NOTICE.search(line):
            kind = match["kind"].removesuffix("notification") + "notice"
            self.notices[match["notice_id"]] = (kind, match["queue_id"])
        else:
            return False
        return True

    def _attempted(self, match: re.Match[str]) -> None:
        key = (match["queue_id"], match["recipient"])
        row = self.rows.setdefault(key, Delivery(match["recipient"]))
        row.attempts += 1
        row.status, row.relay, row.reason = match["status"], match["relay"], match["reason"]
        self.deferrals += row.status == "deferred"

    def name(self, queue_id: str) -> str:
        """What people call this message, as far as it is known by now."""
        if queue_id in self.notices:
            kind, about = self.notices[queue_id]
            return f"{kind}: {self.name(about)}"
        return self.submitted.get(queue_id, queue_id)

    @property
    def unsettled(self) -> list[str]:
        """Names of the examples, and of the notices about them, that are still queued."""
        awaited = (*self.submitted, *self.notices)
        return [self.name(queue_id) for queue_id in awaited if queue_id not in self.removed]

    def summary(self) -> str:
        """One line: how many recipients came to which end."""
        ends = [row.status for row in self.rows.values()]
        words = [f"{ends.count('sent')} sent", f"{ends.count('deferred')} still deferred"]
        words.append(f"{ends.count('bounced') + ends.count('expired')} bounced")
        return (
            f"{len(self.submitted)} examples and {len(self.notices)} notices, "
            f"{len(ends)} recipients: {', '.join(words)}; "
            f"{self.deferrals} attempts were deferred on the way"
        )

    def table(self) -> Table:
        """The deliveries as a table for a terminal, oldest first."""
        table = Table("message", "recipient", "tries", "status", "relay", "what was said")
        for (queue_id, _), row in self.rows.items():
            table.add_row(
                Text(self.name(queue_id)),
                Text(row.recipient),
                str(row.attempts),
                Text(row.status, style=COLOURS.get(row.status, "")),
                Text(row.relay),
                Text(row.reason, overflow="ellipsis", no_wrap=True),
            )
        for queue_id, name in self.submitted.items():
            if not any(known == queue_id for known, _ in self.rows):
                table.add_row(Text(name), "", "0", "queued", "", "")
        return table
