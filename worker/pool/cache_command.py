"""The command line of the cache daemon, made of the configuration: the daemon knows no main.cf.

`postrio scache` executes it, `postrio run` starts it. The daemon is a program of its own, which
nothing of `worker` imports: its options are the interface.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.config.config import Config


def cache_socket(config: Config) -> Path | None:
    """Where clients find the cache; None: connection_cache_service_name is empty."""
    name = config.text("connection_cache_service_name")
    if not name:
        return None
    path = Path(name)
    return path if path.is_absolute() else Path(config.text("queue_directory"), "private", name)


def cache_command(
    config: Config, options: Sequence[str] = (), *, listen_fd: int | None = None
) -> list[str]:
    """The program and its arguments; `options` come last and win.

    listen_fd: the socket that the daemon inherits. None: it makes the socket at cache_socket(),
    unless an option says otherwise.
    """
    # -P: what lies in the current directory is not the program.
    arguments = [sys.executable, "-P", "-m", "scache"]
    if listen_fd is not None:
        arguments += ["--listen-fd", str(listen_fd)]
    elif (path := cache_socket(config)) is not None:
        arguments += ["--socket", str(path)]
    if log_file := config.text("maillog_file"):
        arguments += ["--log-file", log_file]
    return [
        *arguments,
        *("--ttl-limit", str(math.ceil(config.seconds("connection_cache_ttl_limit")))),
        *("--protocol-timeout", _seconds(config, "connection_cache_protocol_timeout")),
        *("--status-update-time", _seconds(config, "connection_cache_status_update_time")),
        *("--connection-limit", str(config.integer("postrio_connection_cache_limit"))),
        *("--endpoint-limit", str(config.integer("postrio_connection_cache_endpoint_limit"))),
        *("--syslog-name", config.text("syslog_name")),
        *("--syslog-facility", config.choice("syslog_facility")),
        *options,
    ]


def _seconds(config: Config, name: str) -> str:
    return f"{config.seconds(name):g}"
