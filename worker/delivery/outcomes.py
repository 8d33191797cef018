"""One outcome per recipient, always: the ledger of one delivery.

A recipient is undecided until it is sent, refused for good, or the delivery ends; what happened
to it last is remembered, because that becomes its reason when no endpoint is left to try.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.outcome import Action, Delays, RecipientOutcome
from protocol.reply import Reply
from protocol.request import DeliveryRequest, Recipient
from worker.errors import DeliveryError


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """What an outcome tells about the session it was reached in."""

    relay: str = ""  # empty: there was none
    conn_use: int = 1
    dsn_announced: bool = False
    tls: str = ""  # as in RecipientOutcome
    setup: float = 0.0  # seconds since the request came until the session was ready


class Outcomes:
    """The recipients of one request and what became of each.

    `undecided` keeps the order of the request. `started` is a clock reading in seconds, as are
    the `now` arguments.
    """

    def __init__(self, request: DeliveryRequest, handed_off: float, started: float) -> None:
        self._request = request
        self._before_active = max(request.active - request.arrival, 0.0)
        self._in_active = max(handed_off - request.active, 0.0)
        self._started = started
        self._decided: dict[Recipient, RecipientOutcome] = {}
        self._last: dict[Recipient, tuple[DeliveryError, SessionFacts]] = {}
        self.undecided: list[Recipient] = list(dict.fromkeys(request.recipients))

    @property
    def any_sent(self) -> bool:
        """Some server took responsibility for some recipient."""
        return any(outcome.action is Action.SENT for outcome in self._decided.values())

    def sent(self, recipient: Recipient, reply: Reply, facts: SessionFacts, now: float) -> None:
        """The server took responsibility (2xx after the final dot), or would (a probe)."""
        self._decide(
            RecipientOutcome(
                recipient=recipient,
                action=Action.SENT,
                # The 354 that a probe may end with has no class in RFC 3463.
                dsn="2.0.0" if reply.intermediate else reply.dsn,
                reason=reply.text,
                reply=reply.text,
                relay=facts.relay,
                conn_use=facts.conn_use,
                dsn_announced=facts.dsn_announced,
                tls=facts.tls,
                delays=self._delays(facts, now),
            )
        )

    def settled(self, action: Action, why: DeliveryError, facts: SessionFacts, now: float) -> None:
        """Decide all that are undecided, alike."""
        for recipient in list(self.undecided):
            self._decide(self._failure(recipient, action, why, facts, now))

    def failed(
        self, recipients: Iterable[Recipient], error: DeliveryError, facts: SessionFacts, now: float
    ) -> None:
        """Hard: bounced, now. Soft: undecided still, for the next endpoint to try."""
        for recipient in list(recipients):
            if error.hard:
                self._decide(self._failure(recipient, Action.BOUNCED, error, facts, now))
            else:
                self._last[recipient] = (error, facts)

    def deferred(
        self,
        recipients: Iterable[Recipient],
        error: DeliveryError,
        facts: SessionFacts,
        now: float,
        *,
        in_doubt: bool = False,
    ) -> None:
        """Not to be tried at another endpoint: try again later."""
        for recipient in list(recipients):
            self._decide(
                self._failure(recipient, Action.DEFERRED, error, facts, now, in_doubt=in_doubt)
            )

    def postponed(self, error: DeliveryError, facts: SessionFacts) -> None:
        """Whatever its class, `error` counts for the undecided only if nothing better comes.

        A hard one does not make up for a soft one: what failed for now may work later.
        """
        for recipient in self.undecided:
            if not (error.hard and recipient in self._last and not self._last[recipient][0].hard):
                self._last[recipient] = (error, facts)

    def reasons(self) -> list[str]:
        """Why the undecided are undecided, each reason once."""
        last = [self._last[recipient] for recipient in self.undecided if recipient in self._last]
        return list(dict.fromkeys(error.reason for error, _ in last))

    def result(self, now: float, unexplained: DeliveryError) -> tuple[RecipientOutcome, ...]:
        """Decide the undecided by what happened to them last, or by `unexplained`.

        One outcome per recipient of the request, in its order.
        """
        for recipient in list(self.undecided):
            error, facts = self._last.get(recipient, (unexplained, SessionFacts()))
            action = Action.BOUNCED if error.hard else Action.DEFERRED
            self._decide(self._failure(recipient, action, error, facts, now))
        return tuple([self._decided[recipient] for recipient in self._request.recipients])

    def _decide(self, outcome: RecipientOutcome) -> None:
        self.undecided.remove(outcome.recipient)  # ValueError: decided twice, a bug that must raise
        self._decided[outcome.recipient] = outcome

    def _failure(
        self,
        recipient: Recipient,
        action: Action,
        error: DeliveryError,
        facts: SessionFacts,
        now: float,
        *,
        in_doubt: bool = False,
    ) -> RecipientOutcome:
        return RecipientOutcome(
            recipient=recipient,
            action=action,
            dsn=error.dsn,
            reason=error.reason,
            reply=error.reply.text if error.reply else "",
            mta=error.mta,
            relay=facts.relay,
            conn_use=facts.conn_use,
            dsn_announced=facts.dsn_announced,
            tls=facts.tls,
            delays=self._delays(facts, now),
            in_doubt=in_doubt,
        )

    def _delays(self, facts: SessionFacts, now: float) -> Delays:
        """The four parts of `delays=`, as Postfix cuts them."""
        transmission = max(now - self._started - facts.setup, 0.0)
        return Delays(self._before_active, self._in_active, facts.setup, transmission)
