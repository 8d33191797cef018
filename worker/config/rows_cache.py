"""Rows of the parameter table: keeping connections for later messages, and the cache of them."""

from worker.config.parameter import Parameter
from worker.config.rows import boolean, integer, matches, text, time

REUSE: tuple[Parameter, ...] = (
    boolean(
        "smtp_connection_cache_on_demand",
        "yes",
        "Keep connections to a destination while there is much mail for it; no: only to those in"
        " smtp_connection_cache_destinations.",
    ),
    matches(
        "smtp_connection_cache_destinations",
        "",
        "Destinations whose connections are always kept: domains, hosts and addresses without"
        " brackets and port. /file stands for what it lists, so a UNIX socket's path is listed as a"
        " key of a table: inline:{/path=yes}.",
    ),
    time(
        "smtp_connection_cache_time_limit",
        "2s",
        "How long an idle connection is kept in the cache.",
    ),
    time(
        "smtp_connection_reuse_time_limit",
        "300s",
        "Age, counted from its connect, from which a session takes no further message.",
    ),
    integer(
        "smtp_connection_reuse_count_limit",
        "0",
        "How often a session is used again at most; 0: no limit.",
        source="Postfix 2.11",
    ),
    boolean(
        "lmtp_cache_connection",
        "yes",
        "Without effect since Postfix 2.3.",
        deprecated="use lmtp_connection_cache_on_demand",
    ),
)

DAEMON: tuple[Parameter, ...] = (
    text(
        "connection_cache_service_name",
        "scache",
        "The connection cache: a socket below $queue_directory/private, which postrio run serves;"
        " an absolute path, served by another program; nothing: no cache.",
    ),
    time(
        "connection_cache_protocol_timeout",
        "5s",
        "Limit of one exchange with the connection cache, on either side.",
    ),
    time(
        "connection_cache_ttl_limit",
        "2s",
        "How long the cache keeps an idle connection at most, whatever its owner asks for.",
    ),
    time(
        "connection_cache_status_update_time",
        "600s",
        "Interval at which the cache logs hits, misses and sizes.",
    ),
    integer(
        "postrio_connection_cache_limit",
        "2000",
        "Idle connections in the cache at most; beyond, the oldest one is ended.",
        source="postrio",
        minimum=1,
    ),
    integer(
        "postrio_connection_cache_endpoint_limit",
        "100",
        "Idle connections to one server in the cache at most.",
        source="postrio",
        minimum=1,
    ),
)

CACHE: tuple[Parameter, ...] = (*REUSE, *DAEMON)
