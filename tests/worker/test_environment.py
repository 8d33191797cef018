"""What a configuration opens is closed when another one takes its place, or when it will not do.

The collector of cycles is off: a worker calls it rarely.
"""

import gc
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from protocol.request import Protocol
from tests.descriptors import open_descriptors
from worker.cli.options import ConfigChoice
from worker.cli.worker import _Process
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.delivery.environment import Environment
from worker.environment import make_environment
from worker.pool.worker import Worker
from worker.status.events import Event, Noted
from worker.status.sinks import LogFormat


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def main_cf(tmp_path: Path) -> dict[str, str]:
    """Both protocols have a file of TLS sessions."""
    tmp_path.chmod(0o700)
    return {
        "smtp_tls_session_cache_database": f"btree:{tmp_path}/smtp",
        "lmtp_tls_session_cache_database": f"btree:{tmp_path}/lmtp",
    }


def environment(main_cf: dict[str, str]) -> Environment:
    return make_environment(
        Config.from_mapping(main_cf), lambda event: None, lambda: 0.0, random.Random(1)
    )


@trio_test
async def test_a_worker_that_reads_its_configuration_anew_closes_what_the_old_one_had_opened(
    main_cf: dict[str, str],
) -> None:
    told: list[Event] = []
    place = str(main_cf["smtp_tls_session_cache_database"]).removesuffix("/smtp")
    more = {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": "static:user:secret",
        "smtp_sasl_auth_cache_name": f"{place}/refused",
        "smtp_tls_loglevel": "4",
        "postrio_tls_trace_file": f"{place.partition(':')[2]}/trace",
    }
    worker = Worker(lambda: environment(main_cf | more), told.append)
    worker.reload()  # of a file that is open twice SQLite keeps a descriptor, to use it again
    before = names()
    assert [name for name in before if name.endswith("/trace")]
    assert [name for name in before if name.endswith("/refused.sqlite")]
    for _ in range(5):
        worker.reload()
    assert told == [Noted("configuration reloaded")] * 6
    assert names() <= before


def names() -> "Counter[str]":
    """What is open, without numbers: the new ones are opened before the old ones are closed."""
    return Counter(name for _, name in open_descriptors())


@trio_test
async def test_a_log_that_cannot_be_opened_leaves_nothing_else_open(
    main_cf: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.from_mapping(main_cf)
    choice = ConfigChoice()
    monkeypatch.setattr(ConfigChoice, "load", lambda _: config)
    process = _Process(choice, config, LogFormat.TEXT, syslog=False)
    first = process._load()

    def fail(_config: Config) -> None:
        raise OSError("no log")

    monkeypatch.setattr(process.log, "reopen", fail)
    with pytest.raises(OSError, match="no log"):
        process._load()  # SQLite keeps a descriptor, as above
    before = open_descriptors()
    with pytest.raises(OSError, match="no log"):
        process._load()
    assert open_descriptors() <= before
    first.close()
    process.log.writer.close()


@trio_test
async def test_one_that_will_not_do_leaves_nothing_open(main_cf: dict[str, str]) -> None:
    before = open_descriptors()
    for broken in ("smtp_sasl_auth_enable", "lmtp_sasl_auth_enable"):
        with pytest.raises(ConfigError):
            environment({**main_cf, broken: "yes"})
        assert open_descriptors() <= before


def test_s028_endpoints_and_their_policies_know_the_same_fallback_relays() -> None:
    made = environment({"smtp_fallback_relay": "[a.example]", "lmtp_fallback_relay": "b.example"})
    for protocol, relays in ((Protocol.SMTP, ("[a.example]",)), (Protocol.LMTP, ("b.example",))):
        assert made.networks[protocol].settings.fallback == relays
        assert made.security[protocol].fallback == relays
    made.close()


def test_s153_peers_are_watched_where_some_are_listed() -> None:
    for main_cf, watches in (({}, False), ({"debug_peer_list": "a.example"}, True)):
        made = environment(main_cf)
        assert (made.debug is not None) is watches
        made.close()
