"""Rows of the parameter table: who we are, logging, processes, and postrio's own additions."""

from worker.config.parameter import Parameter
from worker.config.rows import boolean, choice, filled, hosts, integer, text, time

_FACILITIES = (
    *("auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "syslog"),
    *("user", "uucp", *(f"local{number}" for number in range(8))),
)

UNDER_MASTER = "only a process under Postfix's master(8) reads it"

IDENTITY: tuple[Parameter, ...] = (
    filled(
        "myhostname",
        "",
        "Full name of this host. Computed when not set: the system's name, completed with $mydomain"
        " where it has no dot.",
    ),
    filled(
        "mydomain",
        "",
        "Domain of this host. Computed when not set: $myhostname without its first label, or"
        " localdomain.",
    ),
    filled(
        "myorigin",
        "$myhostname",
        "Domain that completes addresses without one; /file: the first line of that file, as"
        " Debian's /etc/mailname.",
    ),
    filled("mail_name", "postrio", "What the mail system calls itself in notices."),
    text("mail_version", "", "Version of postrio.", read_only=True),
    text("process_id", "", "Number of this process.", read_only=True),
    text("process_name", "", "Name of this process.", read_only=True),
    text(
        "config_directory",
        "/etc/postrio",
        "Where main.cf is. Computed when not set: the directory that was read.",
    ),
    text(
        "compatibility_level",
        "3.7",
        "The Postfix release whose defaults a configuration was written for; read, with no effect"
        " on defaults.",
        source="Postfix 3.0",
    ),
    text(
        "default_database_type",
        "texthash",
        "Table type meant for $default_database_type in table names.",
    ),
    boolean(
        "smtputf8_enable",
        "yes",
        "Take and send internationalised mail (RFC 6531).",
        source="Postfix 3.0",
    ),
)

LOGGING: tuple[Parameter, ...] = (
    filled(
        "syslog_name", "postfix", "First part of the program name in the log: $syslog_name/smtp."
    ),
    choice("syslog_facility", "mail", "Facility of log records.", choices=_FACILITIES),
    text(
        "maillog_file",
        "",
        "Where the log goes: a file, or /dev/stdout; nothing: where the command says.",
        source="Postfix 3.4",
    ),
    integer(
        "delay_logging_resolution_limit",
        "2",
        "Digits after the decimal point of delays in the log.",
        maximum=6,
    ),
    hosts(
        "debug_peer_list",
        "",
        "Servers and nexthops whose sessions are logged in detail: names, domains, addresses,"
        " networks, tables, files.",
    ),
    integer(
        "debug_peer_level",
        "2",
        "How much more detail those get. 0: none; 1: commands and replies; 2: besides, what each"
        " reply answers, and after how long.",
    ),
)

PROCESSES: tuple[Parameter, ...] = (
    time(
        "daemon_timeout",
        "18000s",
        "How long one delivery may take before it is cancelled, and how long the event loop of a"
        " process may stand still (at least 3s) before the process is ended.",
    ),
    time("ipc_timeout", "3600s", "Limit of one exchange between our own processes."),
    time(
        "max_idle",
        "100s",
        "How long a process without work goes on under Postfix's master(8).",
        no_effect=UNDER_MASTER,
    ),
    integer(
        "max_use",
        "100",
        "How many requests a process serves under Postfix's master(8) before it ends.",
        minimum=1,
        no_effect=UNDER_MASTER,
    ),
    integer(
        "postrio_worker_processes",
        "0",
        "Worker processes that deliver; 0: one for each processor.",
        source="postrio",
    ),
    integer(
        "postrio_slot_limit",
        "1000",
        "Deliveries at one time in one worker process.",
        source="postrio",
        minimum=1,
    ),
    time(
        "postrio_shutdown_timeout",
        "10s",
        "How long deliveries under way may finish after a signal to stop.",
        source="postrio",
        fraction=True,
        minimum=0,
    ),
    text(
        "postrio_dns_server",
        "",
        "DNS server to ask: an address, or address:port with brackets around an IPv6 address;"
        " nothing: those of /etc/resolv.conf.",
        source="postrio",
    ),
    time(
        "postrio_dns_timeout",
        "30s",
        "Limit of one DNS question, all repetitions included.",
        source="postrio",
        fraction=True,
    ),
    time(
        "postrio_connect_stagger",
        "0s",
        "Dial the next address of equal preference when the last has not answered for this long;"
        " 0: strictly one after another.",
        source="postrio",
        fraction=True,
        minimum=0,
    ),
)

GENERAL: tuple[Parameter, ...] = (*IDENTITY, *LOGGING, *PROCESSES)
