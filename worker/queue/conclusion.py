"""The end of a run over a message: what is reported to whom, what stays, and until when.

conclude() decides; books.py stores the decision. Postfix's qmgr_active and bounce(8), in one place:

- Failed recipients: one notice to the sender for all of them, now, even if others still wait.
- Recipients to be confirmed (NOTIFY=SUCCESS, and no server took that over): one notice.
- Deferred recipients of a message older than its lifetime have failed, with 4.4.7.
- Deferred recipients otherwise: the message waits; once, after delay_warning_time, a notice.
- Recipients of a message that its sender was told is late, now delivered: one notice, if
  confirm_delay_cleared says so.
- A probe (S163) is one attempt, and one report about all recipients. Nothing of it is kept queued.

Who gets no notice: recipients with NOTIFY=NEVER, or a NOTIFY that does not name the case; the null
sender. Mail from the null sender that fails, ours or not, becomes a double bounce to the
postmaster, if notify_classes has 2bounce, or bounce, which implies it. A double bounce that fails
ends here: that is the end of every chain.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from protocol.outcome import Action, RecipientOutcome
from protocol.request import Notify, Protocol, Recipient
from worker.queue import retry
from worker.queue.notices import (
    NoticeKind,
    Occasion,
    ReportAction,
    Reported,
    compose,
    wants_original,
)
from worker.queue.records import Finish, NoticeDraft, QueuedMessage
from worker.queue.settings import NoticeSettings, QueueSettings
from worker.status.events import Event, MessageExpired, MessageRemoved, Warned


def is_double_bounce(message: QueuedMessage, settings: NoticeSettings) -> bool:
    """A notice about a notice: nobody is told when it fails."""
    sender = message.sender
    # A notice of ours that has a sender is one whatever the names were when it was written.
    return bool(sender) and (message.notice or sender.lower() == settings.double_bounce.lower())


def reports_failure(recipient: Recipient) -> bool:
    """NOTIFY asks for failures, or does not say (RFC 3461 section 4.1)."""
    return not recipient.notify or bool(recipient.notify & Notify.FAILURE)


def reports_delay(recipient: Recipient) -> bool:
    """NOTIFY asks for delays, or does not say."""
    return not recipient.notify or bool(recipient.notify & Notify.DELAY)


def is_reported(message: QueuedMessage, outcome: RecipientOutcome, settings: QueueSettings) -> bool:
    """Whether this outcome must be remembered for a notice at the end of the run."""
    if message.probe:
        return bool(message.sender)
    if outcome.action is Action.BOUNCED:
        return reports_failure(outcome.recipient)
    if outcome.action is not Action.SENT:
        return False
    return success_wanted(message, outcome) or (
        message.warned and confirms_delay(message, outcome, settings)
    )


def confirms_delay(
    message: QueuedMessage, outcome: RecipientOutcome, settings: QueueSettings
) -> bool:
    """The sender is to be told of the delivery of a late message, who was told of its delay."""
    return (
        settings.confirm_delay_cleared
        and bool(message.sender)
        and not message.notice
        and reports_delay(outcome.recipient)
        and not is_double_bounce(message, settings.notices)
    )


def success_wanted(message: QueuedMessage, outcome: RecipientOutcome) -> bool:
    """NOTIFY asks to confirm a delivery, and no other system has taken that over."""
    return (
        outcome.recipient.notify is not Notify.UNSPECIFIED  # flags are slow to combine
        and bool(outcome.recipient.notify & Notify.SUCCESS)
        and not outcome.dsn_announced
        and bool(message.sender)
    )


def concluded(outcome: RecipientOutcome) -> RecipientOutcome:
    """The outcome of a probe, which is not tried again: not reached is not deliverable."""
    if outcome.action is not Action.DEFERRED:
        return outcome
    return replace(outcome, action=Action.BOUNCED)  # its status stays: it may pass


def softened(outcome: RecipientOutcome) -> RecipientOutcome:
    """The outcome under soft_bounce: what would be returned stays queued."""
    if outcome.action is not Action.BOUNCED:
        return outcome
    return replace(outcome, action=Action.DEFERRED, dsn=f"4{outcome.dsn[1:]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """What a run came to: outcomes to be reported, recipients that stay, and the time."""

    message: QueuedMessage
    failed: Sequence[RecipientOutcome]
    confirm: Sequence[RecipientOutcome]
    deferred: Sequence[RecipientOutcome]
    now: float  # wall-clock seconds
    interrupted: bool = False  # an attempt was lost with its worker


@dataclass(slots=True, kw_only=True)
class Decision:
    """What is to be done: rows that change, notices to write, and how the run is closed."""

    expired: list[RecipientOutcome] = field(default_factory=list)  # deferred ones that have failed
    notices: list["Planned"] = field(default_factory=list)
    next_attempt: float | None = None
    warned: bool = False
    events: list[Event] = field(default_factory=list)  # after everything is durable

    @property
    def head_size(self) -> int:
        """Octets of the original that the notices need at most; 0: none."""
        return max((planned.head_size for planned in self.notices), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A notice that will be written as soon as the original's head was read."""

    kind: NoticeKind
    sender: str
    recipient: str
    reported: Sequence[Reported]
    head_size: int


def conclude(end: RunEnd, settings: QueueSettings) -> Decision:
    """Decide what follows from a run."""
    message, decision = end.message, Decision()
    if message.probe:
        return _conclude_probe(end, settings.notices)
    failed = list(end.failed)
    lifetime = give_up(message, settings)
    if end.deferred:
        if retry.expired(end.now, message.arrival, lifetime):
            decision.expired = [_expire(item, message, end.now) for item in end.deferred]
            decision.events.append(MessageExpired(message.queue_id, message.sender))
            failed += (item for item in decision.expired if is_reported(message, item, settings))
        else:
            # Soon, however old it is, if we interrupted it; not at once, for the message may be
            # what killed the worker.
            longest = settings.minimal_backoff if end.interrupted else settings.maximal_backoff
            decision.next_attempt = retry.next_attempt(
                end.now, message.arrival, settings.minimal_backoff, longest
            )
            _plan_warning(end, settings, decision)
    if failed:
        _plan_failure(message, failed, settings.notices, decision)
    for kind, outcomes in _confirmed(end):
        reported = [Reported(item, ReportAction.RELAYED) for item in outcomes]
        _plan(decision, message, kind, reported, settings.notices)
    if decision.next_attempt is None:
        decision.events.append(MessageRemoved(message.queue_id))
    return decision


def _confirmed(end: RunEnd) -> Iterator[tuple[NoticeKind, Sequence[RecipientOutcome]]]:
    """Delivered recipients that the sender is told of: who asked for it, and who was late."""
    if not end.message.sender:
        return
    asked: list[RecipientOutcome] = []
    late: list[RecipientOutcome] = []
    for item in end.confirm:
        (asked if success_wanted(end.message, item) else late).append(item)
    if asked:
        yield NoticeKind.SUCCESS, asked
    if late:
        yield NoticeKind.DELAY_CLEARED, late


def _conclude_probe(end: RunEnd, settings: NoticeSettings) -> Decision:
    """One report about all; there are no deferred ones, see concluded()."""
    decision = Decision(events=[MessageRemoved(end.message.queue_id)])
    found = [
        *(Reported(item, ReportAction.DELIVERABLE) for item in end.confirm),
        *(Reported(item, ReportAction.UNDELIVERABLE) for item in end.failed),
    ]
    if found:  # of a probe without a sender nothing is, see is_reported()
        found.sort(key=lambda item: item.outcome.recipient.key)
        _plan(decision, end.message, NoticeKind.PROBE, found, settings)
    return decision


def give_up(message: QueuedMessage, settings: QueueSettings) -> float:
    """The lifetime of a message in seconds; notices and other null-sender mail have their own."""
    own = message.notice or not message.sender
    return settings.bounce_lifetime if own else settings.queue_lifetime


def finish_of(decision: Decision, drafts: Sequence[NoticeDraft], message_id: int) -> Finish:
    """The store's record of a decision."""
    return Finish(
        message_id=message_id,
        reported=True,
        notices=drafts,
        next_attempt=decision.next_attempt,
        warned=decision.warned,
    )


def write_notices(
    decision: Decision,
    end: RunEnd,
    head: bytes,
    settings: QueueSettings,
    protocols: Sequence[Protocol] = (),
) -> list[NoticeDraft]:
    """The planned notices. `protocols`: of the first ones in end.confirm, in their order.

    What a server took that knows nothing of DSN was "relayed". An LMTP server's answer may come
    from the mailbox itself: it was "delivered", with lmtp_assume_final.
    """
    drafts = []
    final = Protocol.LMTP if settings.notices.assume_final else None
    delivered = {
        item.recipient.key
        for item, protocol in zip(end.confirm, protocols, strict=False)
        if protocol is final
    }
    expires = end.message.arrival + give_up(end.message, settings)
    for planned in decision.notices:
        reported = [
            Reported(item.outcome, ReportAction.DELIVERED)
            if item.action is ReportAction.RELAYED and item.outcome.recipient.key in delivered
            else item
            for item in planned.reported
        ]
        occasion = Occasion(
            kind=planned.kind,
            message=end.message,
            reported=reported,
            head=head[: planned.head_size],
            now=end.now,
            give_up=expires,
        )
        drafts.append(compose(occasion, planned.sender, planned.recipient, settings.notices))
    return drafts


def _expire(outcome: RecipientOutcome, message: QueuedMessage, now: float) -> RecipientOutcome:
    # 4.4.7, delivery time expired (RFC 3463): the last reason says why nothing worked.
    age = retry.for_people(round((now - message.arrival) / 60) * 60)
    reason = f"message expired after {age} in the queue; last attempt: {outcome.reason}"
    return replace(outcome, action=Action.BOUNCED, dsn="4.4.7", reason=reason)


def _plan_warning(end: RunEnd, settings: QueueSettings, decision: Decision) -> None:
    message = end.message
    if message.warned or message.notice or not message.sender:
        return
    if not retry.warning_due(end.now, message.arrival, settings.delay_warning):
        return
    decision.warned = True  # even if nobody wants to know: it is not asked again
    if is_double_bounce(message, settings.notices):
        return
    reported = [
        Reported(item, ReportAction.DELAYED)
        for item in end.deferred
        if reports_delay(item.recipient)
    ]
    if reported:
        _plan(decision, message, NoticeKind.DELAY, reported, settings.notices)
        if "delay" in settings.notices.classes:
            _plan(decision, message, NoticeKind.POSTMASTER_DELAY, reported, settings.notices)


def _plan_failure(
    message: QueuedMessage,
    failed: Sequence[RecipientOutcome],
    settings: NoticeSettings,
    decision: Decision,
) -> None:
    reported = [Reported(item, ReportAction.FAILED) for item in failed]
    if is_double_bounce(message, settings):
        text = "undeliverable postmaster notice: nobody is told"
        decision.events.append(Warned(text, message.queue_id))
    elif message.sender:
        _plan(decision, message, NoticeKind.FAILURE, reported, settings)
        if "bounce" in settings.classes:
            _plan(decision, message, NoticeKind.POSTMASTER_FAILURE, reported, settings)
    elif settings.classes & {"2bounce", "bounce"}:
        _plan(decision, message, NoticeKind.DOUBLE_BOUNCE, reported, settings)
    else:
        what = "notice" if message.notice else "mail from the null sender"
        text = f"undeliverable {what} dropped (notify_classes has no 2bounce)"
        decision.events.append(Warned(text, message.queue_id))


def _plan(
    decision: Decision,
    message: QueuedMessage,
    kind: NoticeKind,
    reported: Sequence[Reported],
    settings: NoticeSettings,
) -> None:
    double_bounce = settings.double_bounce
    sender, recipient = {
        NoticeKind.FAILURE: ("", message.sender),
        NoticeKind.DELAY: ("", message.sender),
        NoticeKind.SUCCESS: ("", message.sender),
        NoticeKind.DELAY_CLEARED: ("", message.sender),
        NoticeKind.PROBE: ("", message.sender),
        NoticeKind.POSTMASTER_FAILURE: (double_bounce, settings.bounce_recipient),
        NoticeKind.POSTMASTER_DELAY: (double_bounce, settings.delay_recipient),
        NoticeKind.DOUBLE_BOUNCE: (double_bounce, settings.double_bounce_recipient),
    }[kind]
    whole = wants_original(message, kind, settings.size_limit)
    planned = Planned(
        kind=kind,
        sender=sender,
        recipient=settings.address(recipient),
        reported=reported,
        head_size=message.size if whole else settings.size_limit,
    )
    decision.notices.append(planned)
