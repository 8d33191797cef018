"""What the queue manager needs of the configuration, read once. Times in seconds, sizes in octets.

A new configuration (SIGHUP) is a new object: see Scheduler.reload().
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final

from protocol.address import with_domain
from protocol.delivery_wire import MAX_RECIPIENTS
from protocol.request import Protocol
from worker.config.config import Config, double_bounce_address

# The transports we deliver by ourselves. "relay" is Postfix's name for smtp towards own relay
# domains: the same protocol, but limits of its own.
TRANSPORTS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {"smtp": Protocol.SMTP, "relay": Protocol.SMTP, "lmtp": Protocol.LMTP}
)


class FeedbackScale(Enum):
    """What the number of a feedback parameter is divided by; the values are its words."""

    ONE = ""
    CONCURRENCY = "concurrency"
    SQRT_CONCURRENCY = "sqrt_concurrency"


@dataclass(frozen=True, slots=True)
class Feedback:
    """How far one delivery moves the concurrency of its destination.

    (<transport>_destination_concurrency_positive_feedback, ..._negative_feedback.)
    """

    amount: float = 1.0
    scale: FeedbackScale = FeedbackScale.ONE

    @classmethod
    def parse(cls, text: str) -> "Feedback":
        """Of a number, number/number, number/concurrency or number/sqrt_concurrency.

        Raises ValueError for anything else.
        """
        number, slash, divisor = (part.strip().lower() for part in text.partition("/"))
        if divisor in {FeedbackScale.CONCURRENCY.value, FeedbackScale.SQRT_CONCURRENCY.value}:
            return cls(float(number), FeedbackScale(divisor))
        below = float(divisor) if slash else 1.0
        if below == 0:
            raise ValueError(f"feedback {text!r} divides by zero")
        return cls(float(number) / below)

    def at(self, concurrency: int) -> float:
        """The step at this concurrency (at least 1)."""
        if self.scale is FeedbackScale.CONCURRENCY:
            return self.amount / concurrency
        if self.scale is FeedbackScale.SQRT_CONCURRENCY:
            return self.amount / math.sqrt(concurrency)
        return self.amount


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """The limits of one transport; names as <transport>_..., defaults as default_..."""

    protocol: Protocol = Protocol.SMTP
    initial_concurrency: int = 5  # initial_destination_concurrency
    concurrency_limit: int = 20  # destination_concurrency_limit; 0: none
    positive_feedback: Feedback = Feedback()
    negative_feedback: Feedback = Feedback()
    failed_cohort_limit: int = 1  # destination_concurrency_failed_cohort_limit; 0: never dead
    recipient_limit: int = 50  # destination_recipient_limit; 0: none
    rate_delay: float = 0.0  # destination_rate_delay
    transport_rate_delay: float = 0.0  # transport_rate_delay
    process_limit: int = 0  # default_process_limit, where it is set; 0: none

    @property
    def request_limit(self) -> int:
        """Most recipients of one request: recipient_limit, within what a worker takes."""
        return min(self.recipient_limit or MAX_RECIPIENTS, MAX_RECIPIENTS)

    @classmethod
    def from_config(cls, config: Config, transport: str) -> "TransportSettings":
        """The settings of one of TRANSPORTS."""

        def name(suffix: str) -> str:
            return config.for_transport(suffix, transport)

        return cls(
            protocol=TRANSPORTS[transport],
            initial_concurrency=config.integer(name("initial_destination_concurrency")),
            concurrency_limit=config.integer(name("destination_concurrency_limit")),
            positive_feedback=Feedback.parse(
                config.text(name("destination_concurrency_positive_feedback"))
            ),
            negative_feedback=Feedback.parse(
                config.text(name("destination_concurrency_negative_feedback"))
            ),
            failed_cohort_limit=config.integer(name("destination_concurrency_failed_cohort_limit")),
            recipient_limit=config.integer(name("destination_recipient_limit")),
            rate_delay=config.seconds(name("destination_rate_delay")),
            transport_rate_delay=config.seconds(name("transport_rate_delay")),
            # Postfix's default is about processes, which cost more than our slots do: it would
            # keep us from what postrio_slot_limit allows.
            process_limit=config.integer("default_process_limit")
            if config.is_set("default_process_limit")
            else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeSettings:
    """Who speaks in notices, to whom, and how much of the original goes back."""

    hostname: str = "localhost"  # myhostname
    origin: str = "localhost"  # myorigin: completes the addresses below
    mail_name: str = "postrio"  # mail_name
    size_limit: int = 50_000  # bounce_size_limit
    double_bounce: str = "double-bounce@localhost"  # who sends them (double_bounce_sender)
    classes: frozenset[str] = frozenset({"2bounce"})  # notify_classes
    bounce_recipient: str = "postmaster"  # bounce_notice_recipient
    double_bounce_recipient: str = "postmaster"  # 2bounce_notice_recipient
    delay_recipient: str = "postmaster"  # delay_notice_recipient
    assume_final: bool = False  # lmtp_assume_final: what LMTP takes is delivered, not relayed
    error_recipient: str = "postmaster"  # error_notice_recipient; empty: nobody

    @classmethod
    def from_config(cls, config: Config) -> "NoticeSettings":
        """Read from the configuration."""
        return cls(
            hostname=config.text("myhostname"),
            origin=config.text("myorigin"),
            mail_name=config.text("mail_name"),
            size_limit=config.integer("bounce_size_limit"),
            double_bounce=double_bounce_address(config),
            classes=frozenset(config.words("notify_classes")),
            bounce_recipient=config.text("bounce_notice_recipient"),
            double_bounce_recipient=config.text("2bounce_notice_recipient"),
            delay_recipient=config.text("delay_notice_recipient"),
            assume_final=config.boolean("lmtp_assume_final"),
            error_recipient=config.text("error_notice_recipient"),
        )

    def address(self, name: str) -> str:
        """A configured address, completed with myorigin where it has no domain."""
        return with_domain(name, self.origin)


def _own_transports() -> Mapping[str, TransportSettings]:
    return MappingProxyType(
        {name: TransportSettings(protocol=protocol) for name, protocol in TRANSPORTS.items()}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Everything the scheduler obeys. The defaults are those of the parameters named."""

    active_limit: int = 20_000  # qmgr_message_active_limit
    recipient_limit: int = 20_000  # qmgr_message_recipient_limit
    slot_limit: int = 1000  # postrio_slot_limit, all worker processes together
    queue_run_delay: float = 300.0  # longest time between two looks into the store
    minimal_backoff: float = 300.0  # minimal_backoff_time
    maximal_backoff: float = 4000.0  # maximal_backoff_time
    queue_lifetime: float = 432_000.0  # maximal_queue_lifetime
    bounce_lifetime: float = 432_000.0  # bounce_queue_lifetime
    delay_warning: float = 0.0  # delay_warning_time; 0: none
    transport_retry: float = 60.0  # transport_retry_time
    shutdown_timeout: float = 10.0  # postrio_shutdown_timeout
    soft_bounce: bool = False  # soft_bounce
    hopcount_limit: int = 50  # hopcount_limit
    confirm_delay_cleared: bool = False  # confirm_delay_cleared
    defer_transports: frozenset[str] = frozenset()  # defer_transports
    feedback_debug: bool = False  # destination_concurrency_feedback_debug
    notices: NoticeSettings = field(default_factory=NoticeSettings)
    transports: Mapping[str, TransportSettings] = field(default_factory=_own_transports)

    @classmethod
    def from_config(cls, config: Config, workers: int | None = None) -> "QueueSettings":
        """Read from the configuration.

        `workers`: the worker processes that there are; None: as many as
        postrio_worker_processes says.
        """
        if workers is None:
            workers = config.integer("postrio_worker_processes") or os.cpu_count() or 1
        return cls(
            active_limit=config.integer("qmgr_message_active_limit"),
            recipient_limit=config.integer("qmgr_message_recipient_limit"),
            slot_limit=config.integer("postrio_slot_limit") * workers,
            queue_run_delay=config.seconds("queue_run_delay"),
            minimal_backoff=config.seconds("minimal_backoff_time"),
            maximal_backoff=config.seconds("maximal_backoff_time"),
            queue_lifetime=config.seconds("maximal_queue_lifetime"),
            bounce_lifetime=config.seconds("bounce_queue_lifetime"),
            delay_warning=config.seconds("delay_warning_time"),
            transport_retry=config.seconds("transport_retry_time"),
            shutdown_timeout=config.seconds("postrio_shutdown_timeout"),
            soft_bounce=config.boolean("soft_bounce"),
            hopcount_limit=config.integer("hopcount_limit"),
            confirm_delay_cleared=config.boolean("confirm_delay_cleared"),
            defer_transports=frozenset(config.words("defer_transports")),
            feedback_debug=config.boolean("destination_concurrency_feedback_debug"),
            notices=NoticeSettings.from_config(config),
            transports=MappingProxyType(
                {name: TransportSettings.from_config(config, name) for name in TRANSPORTS}
            ),
        )
