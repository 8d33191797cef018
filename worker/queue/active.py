"""The active set's members: a message being tried, and its entries at destinations.

An entry becomes one delivery request. Plain data with the few counts that must always agree.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.outcome import Action, RecipientOutcome
from protocol.request import DeliveryRequest, Protocol, Recipient, RequestFlags
from worker.queue.records import QueuedMessage


class ActiveMessage:
    """A claimed message until its run ends: the moment when no recipient is undecided.

    Outcomes come in through `inbox` and leave it as they become durable.
    """

    __slots__ = (
        "confirm",
        "deferred",
        "failed",
        "gone",
        "inbox",
        "interrupted",
        "message",
        "partial",
        "since",
        "undecided",
        "waiting",
    )

    def __init__(self, message: QueuedMessage, since: float, *, partial: bool = False) -> None:
        self.message = message
        self.partial = partial  # there may be recipients that this run does not take
        self.since = since  # wall-clock seconds: it entered the active set
        self.undecided = len(message.recipients)  # recipients without an outcome in this run
        self.inbox: list[tuple[str, RecipientOutcome]] = []  # (program, outcome), not yet durable
        self.waiting = False  # in the books' queue, or in a bookkeeper's hands
        self.gone = False  # deleted while active: nothing is left to report
        self.interrupted = False  # an attempt was lost with its worker: not the peer's failure
        self.failed: list[RecipientOutcome] = []  # durable, and to be reported as failed
        self.confirm: list[RecipientOutcome] = []  # durable, and to be reported as delivered
        self.deferred: list[RecipientOutcome] = []  # durable, to be tried again
        for outcome in message.settled:
            (self.confirm if outcome.action is Action.SENT else self.failed).append(outcome)


@dataclass(slots=True, eq=False)
class Entry:
    """Recipients of one message for one destination: what one delivery request carries."""

    active: ActiveMessage
    recipients: tuple[Recipient, ...]

    def attempt(self) -> tuple[int, list[int]]:
        """As Store.begin() takes it: message id, keys of the recipients that come into doubt."""
        message = self.active.message
        # A probe sends nothing.
        return message.id, [] if message.probe else [each.key for each in self.recipients]

    def request(
        self, transport: str, protocol: Protocol, nexthop: str, flags: RequestFlags
    ) -> DeliveryRequest:
        """The delivery request for this entry's destination."""
        message = self.active.message
        if message.probe:
            flags |= RequestFlags.USER_PROBE
        return DeliveryRequest(
            queue_id=message.queue_id,
            transport=transport,
            protocol=protocol,
            nexthop=nexthop,
            sender=message.sender,
            recipients=self.recipients,
            size=message.size,
            encoding=message.encoding,
            options=message.options,
            envelope_id=message.envelope_id,
            ret=message.ret,
            flags=flags,
            arrival=message.arrival,
            active=self.active.since,
            client=message.client,
        )


class Share:
    """What one message still has waiting at one destination. At least one recipient."""

    __slots__ = ("active", "cut", "waiting")

    def __init__(self, active: ActiveMessage, recipients: Sequence[Recipient]) -> None:
        self.active = active
        self.waiting = recipients
        self.cut = 0  # recipients already handed out

    def next_entry(self, limit: int) -> Entry:
        """The next at most `limit` (0: all) recipients."""
        start, end = self.cut, self.cut + limit if limit else len(self.waiting)
        self.cut = end
        if start == 0 and end >= len(self.waiting):
            return Entry(self.active, tuple(self.waiting))
        return Entry(self.active, tuple(self.waiting[start:end]))

    @property
    def empty(self) -> bool:
        """Everything was handed out."""
        return self.cut >= len(self.waiting)


class FairQueue:
    """Entries of one destination: the messages take turns, oldest first.

    So a letter behind a mailing list of 20,000 recipients waits for one request of the list, not
    for all of them.
    """

    __slots__ = ("_returned", "_shares")

    def __init__(self) -> None:
        self._shares: deque[Share] = deque()
        self._returned: deque[Entry] = deque()  # taken, but not sent: first again

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._shares or self._returned)

    def __len__(self) -> int:
        """Messages that wait here; with very many recipients, one may be more than one entry."""
        return len(self._shares) + len(self._returned)

    def add(self, share: Share) -> None:
        """Queue a message's recipients."""
        self._shares.append(share)

    def put_back(self, entry: Entry) -> None:
        """Return what could not be sent."""
        self._returned.appendleft(entry)

    def take(self, limit: int) -> Entry:
        """The next entry, of at most `limit` recipients (0: no limit). IndexError: none."""
        if self._returned:
            return self._returned.popleft()
        share = self._shares.popleft()
        entry = share.next_entry(limit)
        if not share.empty:
            self._shares.append(share)
        return entry

    def take_all(self) -> list[Entry]:
        """Everything, one entry per message; the queue is empty afterwards."""
        entries = [*self._returned, *(share.next_entry(0) for share in self._shares)]
        self._returned.clear()
        self._shares.clear()
        return entries
