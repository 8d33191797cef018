"""Workers that do as they are told: each request is answered after a while, or its slot is cut.

What the "servers" accepted is recorded when they accept it, not when the answer is read: a slot
that is cut in between makes a real duplicate.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from protocol.delivery_wire import encode_request
from protocol.outcome import Action, DeliveryResult, RecipientOutcome, SiteFailure
from protocol.request import DeliveryRequest, Recipient
from protocol.transcript import Transcript
from worker.content import Content
from worker.queue.slot import DestinationKey, Slot, WorkerLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request comes to. `lost`: the worker dies instead of answering."""

    action: Action = Action.SENT
    dsn: str = ""
    reason: str = "said so"
    delay: float = 0.1  # seconds the delivery takes
    site_failure: SiteFailure | None = None
    session_kept: bool = True
    stopped: bool = False  # the worker was told to stop before it could try
    lost: bool = False
    accepted: bool = True  # the server took the message, although the worker died
    per_recipient: dict[str, Action] = field(default_factory=dict)  # by address
    dsn_announced: bool = False
    transcripts: tuple[Transcript, ...] = ()

    def outcome(self, recipient: Recipient) -> RecipientOutcome:
        """The outcome of one recipient."""
        action = self.per_recipient.get(recipient.address, self.action)
        classes = {Action.SENT: "2", Action.DEFERRED: "4", Action.BOUNCED: "5"}
        return RecipientOutcome(
            recipient=recipient,
            action=action,
            dsn=self.dsn or f"{classes[action]}.0.0",
            reason=self.reason,
            reply="" if action is Action.SENT else f"{classes[action]}50 {self.reason}",
            mta="mx.example",
            relay="mx.example[192.0.2.1]:25",
            dsn_announced=self.dsn_announced,
        )


SENT = Answer()
BOUNCED = Answer(action=Action.BOUNCED, dsn="5.1.1", reason="no such user")
DEFERRED = Answer(action=Action.DEFERRED, dsn="4.2.2", reason="mailbox full")


def site_failure(reason: str = "connect: refused", delay: float = 0.1) -> Answer:
    """Nobody answers there."""
    return Answer(
        action=Action.DEFERRED,
        dsn="4.4.1",
        reason=reason,
        delay=delay,
        site_failure=SiteFailure(dsn="4.4.1", reason=reason),
        session_kept=False,
    )


class ScriptedWorkers:
    """A SlotOpener whose slots answer what `script` says for a request."""

    def __init__(self, script: Callable[[DeliveryRequest], Answer] = lambda _: SENT) -> None:
        self.script = script
        self.requests: list[DeliveryRequest] = []  # in the order in which they came
        self.times: list[float] = []  # trio's, when they came
        self.accepted: Counter[tuple[str, str]] = Counter()  # by (queue id, address)
        self.busy: Counter[str] = Counter()  # open slots by nexthop
        self.busiest: Counter[str] = Counter()
        self.open_slots = 0
        self.most_slots = 0
        self.deepest = 0  # unanswered requests in one slot
        self.ready = 0.0  # no slot can be had before
        self.unreachable = 0  # so many of the next slots cannot be opened
        self.opened: list[DestinationKey] = []  # for whom, in order
        self.busy_all_the_time = False  # see saturated()
        self.misplaced = False  # whether slots say that another worker has less to do

    async def open_slot(self, destination: DestinationKey) -> Slot:
        """See SlotOpener."""
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.ready:
            await trio.sleep_until(self.ready)
        if self.unreachable:
            self.unreachable -= 1
            raise WorkerLost("no worker listens")
        self.opened.append(destination)
        return ScriptedSlot(self)

    def saturated(self) -> bool:
        """See SlotOpener."""
        return self.busy_all_the_time

    def accept(self, request: DeliveryRequest, answer: Answer) -> None:
        """The server has taken the message for these recipients."""
        for recipient in request.recipients:
            if answer.per_recipient.get(recipient.address, answer.action) is Action.SENT:
                self.accepted[request.queue_id, recipient.address] += 1


class ScriptedSlot:
    """One slot: answers in order, each delivery begins when the last has ended."""

    def __init__(self, workers: ScriptedWorkers) -> None:
        self._workers = workers
        self._unanswered: deque[tuple[DeliveryRequest, Answer]] = deque()
        self._nexthop = ""
        self._free = 0.0  # when the worker has finished what it has
        self._ready: deque[float] = deque()
        self._dead = False
        workers.open_slots += 1
        workers.most_slots = max(workers.most_slots, workers.open_slots)

    @property
    def misplaced(self) -> bool:
        """See Slot."""
        return self._workers.misplaced

    async def send(self, request: DeliveryRequest, content: Content) -> None:
        """See Slot."""
        workers = self._workers
        try:
            await trio.lowlevel.checkpoint()
            encode_request(request)  # refuses what a real slot refuses
            if self._dead:
                raise WorkerLost("worker closed the slot")
            if not self._nexthop:
                self._nexthop = request.nexthop
                workers.busy[request.nexthop] += 1
                workers.busiest[request.nexthop] = max(
                    workers.busiest[request.nexthop], workers.busy[request.nexthop]
                )
            assert request.nexthop == self._nexthop, "a slot belongs to one destination"
            workers.requests.append(request)
            workers.times.append(trio.current_time())
            answer = workers.script(request)
            self._unanswered.append((request, answer))
            workers.deepest = max(workers.deepest, len(self._unanswered))
            self._free = max(self._free, trio.current_time()) + answer.delay
            self._ready.append(self._free)
        finally:
            content.close()

    async def receive(self) -> DeliveryResult:
        """See Slot."""
        request, answer = self._unanswered[0]
        await trio.sleep_until(max(self._ready[0], trio.current_time()))
        if answer.accepted:
            self._workers.accept(request, answer)
        await trio.lowlevel.checkpoint()  # what happens here is in doubt
        self._unanswered.popleft()
        self._ready.popleft()
        if answer.lost:
            self._dead = True
            raise WorkerLost("worker closed the slot")
        return DeliveryResult(
            outcomes=tuple(answer.outcome(recipient) for recipient in request.recipients),
            site_failure=answer.site_failure,
            session_kept=answer.session_kept,
            stopped=answer.stopped,
            transcripts=answer.transcripts,
        )

    async def aclose(self) -> None:
        """See Slot."""
        self._workers.open_slots -= 1
        if self._nexthop:
            self._workers.busy[self._nexthop] -= 1
        await trio.lowlevel.checkpoint()
