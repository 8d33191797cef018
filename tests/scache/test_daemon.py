"""The daemon's clock: statistics at their interval, only when there are any, and at the end."""

import logging
import re
import signal
import socket
from pathlib import Path

import click
import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.cache_wire import FindDestination
from scache.command import scache
from scache.daemon import DaemonSettings, run_daemon
from scache.rights import connections_that_fit, find_user
from scache.server import ServerSettings
from scache.store import StoreLimits
from tests.scache.world import OURSELVES, Talker

MANUAL = Path(__file__).parents[2] / "docs/man/postrio-scache.1"


@trio_test
async def test_s142_statistics_are_logged_at_their_interval_and_at_the_end(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "scache")
    settings = DaemonSettings(
        server=ServerSettings(trusted=OURSELVES, limits=StoreLimits()), status_update_time=600.0
    )

    def said() -> list[str]:
        texts = [re.sub("interval .*", "interval", one.getMessage()) for one in caplog.records]
        caplog.clear()
        return texts

    async def miss() -> None:
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.connect(str(tmp_path / "socket"))
            talker = Talker(sock)
            await talker.hear()
            await talker.find(FindDestination("a"))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.setblocking(False)  # noqa: FBT003  # it has no name
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_daemon, listener, settings)
            await trio.sleep(599)
            assert said() == ["connection cache started"]
            await miss()
            await trio.sleep(2)
            once = [
                "statistics: start interval",
                "statistics: domain lookup hits=0 miss=1 success=0%",
            ]
            assert said() == once
            await trio.sleep(600)
            assert said() == []  # nothing happened
            await miss()
            signal.raise_signal(signal.SIGHUP)
            await trio.sleep(1)
            assert said() == [*once, "log reopened"]
            await miss()
            signal.raise_signal(signal.SIGTERM)
        assert said() == [*once, "connection cache stopped"]


def test_the_manual_describes_the_options_there_are_and_no_others() -> None:
    options = {
        word
        for parameter in scache.params
        if isinstance(parameter, click.Option)
        for word in parameter.opts
    }
    section = MANUAL.read_text().replace("\\-", "-").partition(".SH OPTIONS")[2]
    heads = re.findall(r"^\.TP\n(.+)$", section.partition(".SH ")[0], flags=re.MULTILINE)
    described = {word for head in heads for word in re.findall(r"\\fB(--?[a-z][a-z-]*)\\fR", head)}
    assert described == options | {"-h", "--help"}


def test_users_are_found_by_name_and_number() -> None:
    assert find_user("root") == find_user("0")
    with pytest.raises(LookupError, match="there is no user 'no-such-user'"):
        find_user("no-such-user")


def test_connections_are_as_many_as_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr("resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    assert connections_that_fit(2000, clients=1000) == 2000
    assert limits[-1] == (4096, 4096)
    assert connections_that_fit(4000, clients=1000) == 3064
    assert connections_that_fit(4000, clients=5000) == 1
