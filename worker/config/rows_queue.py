"""Rows of the parameter table: the queue, its scheduler and what it tells senders."""

import re

from worker.config.parameter import Parameter
from worker.config.rows import boolean, filled, integer, tables, text, time, words

_FEEDBACK = re.compile(
    r"[0-9]+(\.[0-9]+)?(\s*/\s*([0-9]+(\.[0-9]+)?|concurrency|sqrt_concurrency))?",
    re.IGNORECASE,
)
_FEEDBACK_FORM = (
    "a number from 0 to 1, or number/number, number/concurrency, number/sqrt_concurrency"
)


def _feedback_trouble(text: str) -> str:
    number, _, divisor = text.partition("/")
    below = float(divisor) if divisor.strip()[:1].isdigit() else 1.0
    return "" if below and float(number) / below <= 1 else "is not in the range from 0 to 1"


STORE: tuple[Parameter, ...] = (
    text(
        "queue_directory",
        "/var/spool/postrio",
        "Where the embedded queue lives; relative names in socket paths start here.",
        pattern=re.compile(r"[^\0]+"),
        expected="a directory",
    ),
    integer(
        "queue_minfree",
        "0",
        "Octets that must be free on the queue's disk before a message is taken; 0: any.",
    ),
    integer(
        "message_size_limit",
        "10240000",
        "Octets of the largest message taken, envelope included; 0: no limit.",
    ),
    integer("hopcount_limit", "50", "Received: headers from which a message is a loop.", minimum=1),
    text(
        "recipient_delimiter",
        "",
        "Characters that set an extension off the user name in a local part. None is in"
        " mailer-daemon, postmaster and double-bounce, nor, at a hyphen, in owner-... and"
        " ...-request.",
    ),
    words(
        "propagate_unmatched_extensions",
        "canonical, virtual",
        "Kinds of table whose result gets the address extension that the key did not have.",
        choices=("canonical", "virtual", "alias", "forward", "include", "generic"),
    ),
    words(
        "parent_domain_matches_subdomains",
        "debug_peer_list,fast_flush_domains,mynetworks,permit_mx_backup_networks,"
        "qmqpd_authorized_clients,relay_domains,smtpd_access_maps",
        "Names of the features where a domain also matches its subdomains without a dot.",
    ),
)

ROUTING: tuple[Parameter, ...] = (
    tables(
        "transport_maps",
        "",
        "By recipient or domain, the transport and nexthop: transport:nexthop.",
    ),
    text("relayhost", "", "Nexthop of all mail that transport_maps leaves alone; nothing: MX."),
    text("default_transport", "smtp", "Transport, or transport:nexthop, of remaining mail."),
    words("defer_transports", "", "Transports whose mail stays queued until it is flushed."),
)

RETRIES: tuple[Parameter, ...] = (
    time("queue_run_delay", "300s", "Interval of looking for deferred messages that are due."),
    time("minimal_backoff_time", "300s", "Shortest wait between attempts for a message."),
    time("maximal_backoff_time", "4000s", "Longest wait between attempts for a message."),
    time(
        "maximal_queue_lifetime",
        "5d",
        "Age at which an undelivered message is returned; 0: after one attempt.",
        unit="d",
        minimum=0,
    ),
    time(
        "bounce_queue_lifetime",
        "5d",
        "The same for messages from the null sender.",
        unit="d",
        minimum=0,
    ),
    time(
        "delay_warning_time",
        "0h",
        "Age at which the sender is told of a delay; 0: never.",
        unit="h",
        minimum=0,
    ),
    boolean(
        "confirm_delay_cleared",
        "no",
        "Tell a sender who got a delay warning when the message was delivered after all.",
        source="Postfix 3.3",
    ),
    time(
        "transport_retry_time",
        "60s",
        "Wait before a transport that failed as a whole is tried again.",
    ),
    boolean("soft_bounce", "no", "Keep mail queued that would be returned, for trying things out."),
)

SCHEDULER: tuple[Parameter, ...] = (
    integer(
        "qmgr_message_active_limit",
        "20000",
        "Messages in the active set, and so in memory, at most.",
        minimum=1,
    ),
    integer(
        "qmgr_message_recipient_limit",
        "20000",
        "Recipients in memory at most.",
        minimum=1,
    ),
    integer(
        "initial_destination_concurrency",
        "5",
        "Parallel deliveries to a destination to begin with.",
        minimum=1,
    ),
    integer(
        "default_destination_concurrency_limit",
        "20",
        "Parallel deliveries to one destination at most; 0: no limit."
        " <transport>_destination_concurrency_limit for one transport.",
    ),
    text(
        "default_destination_concurrency_positive_feedback",
        "1",
        "How much a success raises the concurrency of its destination.",
        pattern=_FEEDBACK,
        check=_feedback_trouble,
        expected=_FEEDBACK_FORM,
    ),
    text(
        "default_destination_concurrency_negative_feedback",
        "1",
        "How much a failed connection or handshake lowers the concurrency of its destination.",
        pattern=_FEEDBACK,
        check=_feedback_trouble,
        expected=_FEEDBACK_FORM,
    ),
    integer(
        "default_destination_concurrency_failed_cohort_limit",
        "1",
        "Rounds of failed connections or handshakes after which a destination counts as dead;"
        " 0: never.",
    ),
    boolean(
        "destination_concurrency_feedback_debug",
        "no",
        "Log each change of a destination's concurrency.",
    ),
    integer(
        "default_destination_recipient_limit",
        "50",
        "Recipients of one delivery at most; 1: each recipient is a destination of its own;"
        " 0: as many as one request holds, 1000.",
    ),
    time(
        "default_destination_rate_delay",
        "0s",
        "Pause between deliveries to one destination; above 0 they come one at a time.",
        minimum=0,
    ),
    time(
        "default_transport_rate_delay",
        "0s",
        "Pause between deliveries by one transport; above 0 they come one at a time.",
        source="Postfix 3.1",
        minimum=0,
    ),
    integer(
        "default_process_limit",
        "100",
        "Deliveries at one time by one transport, where it is set; else only postrio_slot_limit"
        " counts.",
        minimum=1,
    ),
)

NOTICES: tuple[Parameter, ...] = (
    integer(
        "bounce_size_limit",
        "50000",
        "Octets of the original message that a notice returns at most.",
        minimum=1,
    ),
    filled(
        "double_bounce_sender",
        "double-bounce",
        "Sender of notices that must never bounce, at $myhostname; mail to it is discarded.",
    ),
    filled(
        "empty_address_recipient", "MAILER-DAEMON", "Who stands for the null sender in notices."
    ),
    words(
        "notify_classes",
        "2bounce",
        "What the postmaster is told of: bounce (implies 2bounce), 2bounce, data, delay, policy,"
        " protocol, resource, software.",
        choices=(
            "bounce",
            "2bounce",
            "data",
            "delay",
            "policy",
            "protocol",
            "resource",
            "software",
        ),
    ),
    filled("bounce_notice_recipient", "postmaster", "Who gets copies of bounces."),
    filled(
        "2bounce_notice_recipient",
        "postmaster",
        "Who gets what bounced and has no sender to be told: bounces, and other mail from the null"
        " sender.",
    ),
    filled("delay_notice_recipient", "postmaster", "Who gets copies of delay warnings."),
    text("error_notice_recipient", "postmaster", "Who gets the reports of all other trouble."),
    words(
        "internal_mail_filter_classes",
        "",
        "Which notices Postfix's filters of incoming mail look at: bounce, notify.",
        choices=("bounce", "notify"),
        no_effect="postrio has no filters of incoming mail",
    ),
)

# The columns that <transport>_... names exist for, by the default's name (see patterns.py).
QUEUE: tuple[Parameter, ...] = (*STORE, *ROUTING, *RETRIES, *SCHEDULER, *NOTICES)
