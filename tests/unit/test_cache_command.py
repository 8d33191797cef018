"""The options of the cache daemon, made of the configuration."""

import sys
from collections.abc import Sequence
from pathlib import Path

from scache.command import scache
from worker.config.config import Config
from worker.pool.cache_command import cache_command, cache_socket

PROGRAM = [sys.executable, "-P", "-m", "scache"]


def config(*overrides: str) -> Config:
    return Config.load(Path("/dev/null"), overrides)


def options_of(command: Sequence[str]) -> dict[str, object]:
    """What the daemon understands of a command line."""
    assert list(command[:4]) == PROGRAM
    return scache.make_context("scache", list(command[4:])).params


def test_the_socket_is_below_the_queue_directory_or_where_it_is_said_to_be() -> None:
    queue = "queue_directory=/q"
    assert cache_socket(config(queue)) == Path("/q/private/scache")
    assert cache_socket(config(queue, "connection_cache_service_name=x")) == Path("/q/private/x")
    assert cache_socket(config("connection_cache_service_name=/run/x")) == Path("/run/x")
    assert cache_socket(config("connection_cache_service_name=")) is None


def test_every_option_comes_from_its_parameter() -> None:
    found = options_of(
        cache_command(
            config(
                "queue_directory=/q",
                "connection_cache_ttl_limit=3s",
                "connection_cache_protocol_timeout=4s",
                "connection_cache_status_update_time=1h",
                "postrio_connection_cache_limit=6",
                "postrio_connection_cache_endpoint_limit=7",
                "syslog_name=site",
                "syslog_facility=local3",
                "maillog_file=/var/log/x",
            )
        )
    )
    expected = {
        "path": Path("/q/private/scache"),
        "ttl_limit": 3,
        "protocol_timeout": 4.0,
        "status_update_time": 3600.0,
        "connection_limit": 6,
        "endpoint_limit": 7,
        "syslog_name": "site",
        "syslog_facility": "local3",
        "log_file": Path("/var/log/x"),
    }
    assert {name: found[name] for name in expected} == expected


def test_the_defaults_of_both_sides_are_the_same() -> None:
    found = options_of(cache_command(config()))
    default = scache.make_context("scache", []).params
    assert {name for name in found if found[name] != default[name]} == {"path"}


def test_an_inherited_socket_takes_the_place_of_a_path() -> None:
    found = options_of(cache_command(config(), ["--lifeline"], listen_fd=9))
    assert (found["listen_fd"], found["path"], found["lifeline"]) == (9, None, True)


def test_options_given_by_hand_win() -> None:
    found = options_of(cache_command(config(), ["--socket", "/x", "--ttl-limit", "9"]))
    assert (found["path"], found["ttl_limit"]) == (Path("/x"), 9)
