"""Parts of the scenarios slow and dead-mx: what they read off logs and /proc, and their world.

The turns themselves need minutes and Postfix; `postrio bench NAME --quick` runs them.
"""

import errno
import os
import select
import socket
from pathlib import Path

import pytest

from bench.dns_zone import Zone
from bench.harness.costs import share_of_memory
from bench.harness.scenario import LoadError
from bench.postfix_instance import free_port
from bench.scenarios import dead_mx, slow
from bench.server_process import ServerProcess
from bench.silent_hosts import SilentHosts

POSTFIX_LINE = (
    "Nov 26 15:25:56 vm postfix/smtp[4464]: 4F1: to=<user@d3.dead.example>,"
    " relay=mx5.dead.example[127.0.0.5]:2525, delay=60, delays=0.06/0.1/60/0.01, dsn=2.0.0,"
    " status=sent (250 2.0.0 Ok: taken)\n"
)


def test_a_silent_host_answers_nobody() -> None:
    port = free_port()
    with SilentHosts(["127.0.0.1"], port), socket.socket() as client:
        client.setblocking(False)  # noqa: FBT003  # its parameter has no name
        assert client.connect_ex(("127.0.0.1", port)) == errno.EINPROGRESS
        assert select.select([], [client], [], 0) == ([], [], [])


def test_a_host_cannot_be_silent_where_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LoadError, match=f"127.0.0.1:{port}: Address already in use"):
            SilentHosts(["127.0.0.1"], port).__enter__()


def test_a_server_process_is_listening_when_it_is_entered_and_gone_afterwards(
    tmp_path: Path,
) -> None:
    (tmp_path / "zone").write_text("a.example A 127.0.0.1\n")
    with ServerProcess("bench.dns", ["--zone", str(tmp_path / "zone")]) as server:
        host, _, port = server.addresses[0].rpartition(":")
        socket.create_connection((host, int(port)), 5).close()
        path = Path(f"/proc/{server.pid}")
        assert path.exists()
    assert not path.exists()


def test_a_server_that_ends_at_once_is_quoted() -> None:
    with pytest.raises(LoadError, match=r"bench.dns ended: .*No such file"):
        ServerProcess("bench.dns", ["--zone", "/nonexistent"]).__enter__()


# --- dead-mx ------------------------------------------------------------------------------------


def test_every_domain_has_every_host_with_one_preference() -> None:
    zone = Zone.from_text(dead_mx.zone_text(["127.0.0.1", "127.0.0.2"], ["a.example", "b.example"]))
    names = {name.to_text(): rrsets for name, rrsets in zone.records.items()}
    for domain in ("a.example.", "b.example."):
        (mx,) = names[domain].values()
        assert sorted(record.to_text() for record in mx) == [
            "10 mx1.dead.example.",
            "10 mx2.dead.example.",
        ]
    (address,) = names["mx2.dead.example."].values()
    assert [record.to_text() for record in address] == ["127.0.0.2"]


def test_delays_are_read_off_the_lines_of_what_was_sent() -> None:
    deferred = POSTFIX_LINE.replace("status=sent", "status=deferred")
    assert dead_mx.SENT.findall(deferred + POSTFIX_LINE) == ["60"]


def test_the_ninetieth_percentile_is_a_delay_that_was_seen() -> None:
    delays = [float(number) for number in range(10, 0, -1)]
    assert dead_mx.figures_of(delays) == {"median": 5.5, "p90": 9.0}
    assert dead_mx.figures_of([2.0]) == {"median": 2.0, "p90": 2.0}


@pytest.mark.parametrize("wrong", [{"dead": 5}, {"messages": 0}, {"stagger": 0.0}])
def test_a_load_of_dead_hosts_alone_or_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(LoadError, match="dead-mx: "):
        dead_mx.Load(**wrong)


# --- slow ---------------------------------------------------------------------------------------

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0100007F:8000 0200007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0
   2: 0200007F:1F90 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0
   3: 0100007F:8001 0300007F:1F91 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0
   4: 0100007F:8002 0300007F:1F91 06 00000000:00000000 00:00000000 00000000     0        0 5 1 0
   5: 0100007F:8003 0300007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 6 1 0
"""


def test_established_connections_to_the_sinks_are_counted_at_the_clients_end() -> None:
    assert slow.connections(TABLE, {8080, 8081}) == 2
    assert slow.connections(TABLE, {8081}) == 1


def test_memory_is_that_of_a_process_and_nothing_when_it_is_gone() -> None:
    assert share_of_memory(2**22 + 1) == 0
    assert share_of_memory(os.getpid()) > 1_000_000


def test_a_load_of_nothing_is_refused() -> None:
    for wrong in ({"messages": 0}, {"destinations": 0}, {"workers": 0}):
        with pytest.raises(LoadError, match="slow: "):
            slow.Load(**wrong)


def test_more_messages_than_fit_at_once_have_more_time() -> None:
    load = slow.Load(latency=1.0)
    once, twice, thrice = (load.limit(messages, 100) for messages in (100, 101, 300))
    assert once < twice < thrice
