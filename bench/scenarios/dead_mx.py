"""MX hosts that are down: most of a domain's equal hosts never answer a SYN.

Each message goes to a domain of its own, so that none profits from what another has found out;
all domains share the hosts, of which one lives. Peers that try one host after another wait out the
connect timeout of each dead one that comes before it, in random order; a race begins with the next
host after `stagger`. What counts is each message's time from its arrival in the queue to the reply
to its final dot, as both sides write it in their logs (`delay=`).

MX records come from our DNS responder. postrio is told where it is. Postfix knows /etc/resolv.conf
only, so its smtp(8) runs chrooted, as on a Debian system, in a queue directory with a file of that
name; that needs port 53 of an address in 127.0.0.0/8, and root, as Postfix does anyway.
"""

import random
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from bench.drain import POSTFIX, POSTRIO, fill_postfix
from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.postfix_instance import PostfixInstance, free_port, missing_program
from bench.postrio_instance import PostrioInstance, submit_concurrently
from bench.server_process import ServerProcess
from bench.silent_hosts import SilentHosts

ONE_AFTER_ANOTHER: Final = "postrio, one after another"
DNS_PORT: Final = 53
POLL: Final = 0.1  # seconds between two looks at a log
SLACK: Final = 60.0  # seconds for everything but the waiting for dead hosts
READY: Final = re.compile(r": worker process \d+ is ready")
SENT: Final = re.compile(r"\bdelay=([0-9.]+), .*\bstatus=sent\b")
JAILED: Final = "smtp unix - - y - - smtp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each contender gets in a turn, and who answers."""

    messages: int = 20  # each to a domain of its own, all at once
    size: int = 4096  # octets of one message
    hosts: int = 5  # MX hosts of equal preference, the same for every domain
    dead: int = 4  # of these
    stagger: float = 0.25  # seconds: postrio_connect_stagger of "postrio"
    connect_timeout: int = 30  # seconds: smtp_connect_timeout of everybody (Postfix's default)

    def __post_init__(self) -> None:
        """Raises LoadError."""
        if not 0 <= self.dead < self.hosts <= 100:
            raise LoadError("dead-mx: 0 <= dead < hosts <= 100, or nothing is ever delivered")
        if self.messages < 1 or self.connect_timeout < 1 or self.stagger <= 0:
            raise LoadError("dead-mx: messages, connect_timeout and stagger must be positive")

    @property
    def domains(self) -> list[str]:
        """One for each message."""
        return [f"d{number}.dead.example" for number in range(1, self.messages + 1)]

    @property
    def limit(self) -> float:
        """Seconds after which every message must have found the host that lives."""
        return self.dead * self.connect_timeout + SLACK


QUICK: Final = Load(messages=4, connect_timeout=1)


def scenario(load: Load) -> Scenario:
    """postrio with and without its race, beside Postfix."""
    contenders: dict[str, Callable[[], Mapping[str, float]]] = {
        POSTRIO: partial(_postrio_turn, load, load.stagger),
        ONE_AFTER_ANOTHER: partial(_postrio_turn, load, 0.0),
    }
    missing = {}
    if why := _postfix_missing():
        missing[POSTFIX] = why
    else:
        contenders[POSTFIX] = partial(_postfix_turn, load)
    return Scenario(
        name="dead-mx",
        about=f"{load.dead} of {load.hosts} equal MX hosts never answer a SYN",
        figures=[
            Figure(name="median", unit="s to delivered", more_is_better=False),
            Figure(name="p90", unit="s to delivered", more_is_better=False),
        ],
        contenders=contenders,
        missing=missing,
        targets=[Target(figure="median", at_most=1.0)],
    )


def _postfix_missing() -> str:
    """Why Postfix cannot take part; empty: it can."""
    if missing := missing_program():
        return f"missing: {missing}"
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((_network() + "53", DNS_PORT))
        except OSError as exc:
            return f"it knows DNS servers on port 53 only, which is not to be had: {exc.strerror}"
    return ""


def figures_of(delays: list[float]) -> Mapping[str, float]:
    """Median and 90th percentile of at least one delay in seconds."""
    return {
        "median": statistics.median(delays),
        "p90": sorted(delays)[max(0, -(-len(delays) * 9 // 10) - 1)],
    }


@dataclass(frozen=True, slots=True)
class _World:
    """Where the hosts and the DNS responder are."""

    port: int  # of all MX hosts
    dns_host: str
    dns_port: int

    def main_cf(self, load: Load) -> dict[str, str]:
        """What both sides are configured with."""
        routes = ", ".join(f"{domain}=smtp:{domain}:{self.port}" for domain in load.domains)
        return {
            "transport_maps": f"inline:{{ {routes} }}",
            "smtp_connect_timeout": f"{load.connect_timeout}s",
        }


def _network() -> str:
    """The first three octets of addresses of our own: two runs must not meet."""
    return f"127.{random.randint(64, 250)}.{random.randint(1, 250)}."


@contextmanager
def _world(load: Load, *, dns_port: int) -> Iterator[_World]:
    """A living host, dead ones, and the DNS responder (on `dns_port`; 0: any). Raises LoadError."""
    network = _network()
    hosts = [f"{network}{number}" for number in range(101, 101 + load.hosts)]
    dead, alive = hosts[: load.dead], hosts[load.dead :]
    port = free_port(hosts[0])
    with ExitStack() as opened:
        zone = Path(opened.enter_context(TemporaryDirectory(prefix="dead-mx-"))) / "zone"
        zone.write_text(zone_text(hosts, load.domains))
        dns = ServerProcess(
            "bench.dns", ["--listen", f"{network}53:{dns_port}", "--zone", str(zone)]
        )
        opened.enter_context(dns)
        opened.enter_context(SilentHosts(dead, port))
        listening = [word for host in alive for word in ("--listen", f"{host}:{port}")]
        opened.enter_context(ServerProcess("bench.sink", listening, listeners=len(alive)))
        yield _World(port, f"{network}53", int(dns.addresses[0].rpartition(":")[2]))


def zone_text(hosts: list[str], domains: list[str]) -> str:
    """All hosts are MX hosts of all domains, with the same preference."""
    lines = [f"mx{number}.dead.example A {host}" for number, host in enumerate(hosts, 1)]
    lines += [
        f"{domain} MX 10 mx{number}.dead.example"
        for domain in domains
        for number, _ in enumerate(hosts, 1)
    ]
    return "\n".join(lines) + "\n"


def _postrio_turn(load: Load, stagger: float) -> Mapping[str, float]:
    with _world(load, dns_port=0) as world:
        main_cf = {
            **world.main_cf(load),
            "postrio_dns_server": f"{world.dns_host}:{world.dns_port}",
            "postrio_connect_stagger": f"{stagger}s",
            "postrio_worker_processes": "1",
        }
        with PostrioInstance(main_cf=main_cf) as postrio:

            def log() -> str:
                return postrio.log_file.read_text(errors="replace")

            _wait_for(READY, 1, log, SLACK, "no worker is ready")
            trio.run(
                submit_concurrently,
                *(postrio.queue_directory, load.messages, load.messages),
                *(load.domains, load.size),
            )
            return _delivered(load, log)


def _postfix_turn(load: Load) -> Mapping[str, float]:
    with _world(load, dns_port=DNS_PORT) as world:
        postfix = PostfixInstance(main_cf=world.main_cf(load), master_cf=[JAILED])
        resolver = postfix.queue_directory / "etc" / "resolv.conf"
        resolver.parent.mkdir(parents=True)
        resolver.write_text(f"nameserver {world.dns_host}\n")
        resolver.chmod(0o644)
        with postfix:
            fill_postfix(postfix, load.messages, load.domains, load.size)
            return _delivered(load, postfix.log)


def _delivered(load: Load, log: Callable[[], str]) -> Mapping[str, float]:
    """The figures, as soon as every message was sent. Raises LoadError."""
    complaint = f"not all of {load.messages} messages were delivered"
    delays = _wait_for(SENT, load.messages, log, load.limit, complaint)
    return figures_of([float(delay) for delay in delays])


def _wait_for(
    pattern: re.Pattern[str], count: int, log: Callable[[], str], limit: float, complaint: str
) -> list[str]:
    """What the log has of a pattern, as soon as that is `count` of them. Raises LoadError."""
    deadline = time.monotonic() + limit
    while len(found := pattern.findall(text := log())) < count:
        if time.monotonic() > deadline:
            last = "\n  ".join(text.splitlines()[-5:])
            raise LoadError(f"{complaint} after {limit:.0f} s; the log's end:\n  {last}")
        time.sleep(POLL)
    return found
