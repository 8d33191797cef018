"""The resolver and the MX search against Knot DNS: an own instance on a loopback port.

Knot answers with authority only. That is harder for us than a recursive server: an alias that
leaves its zone is ours to follow, and a zone it does not have is REFUSED.
"""

import random
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from protocol.destination import parse_destination
from protocol.request import Protocol
from tests.integration.peers import find_program
from worker.errors import ResolveError
from worker.network.dns_resolver import DnsResolver
from worker.network.endpoints import EndpointSettings, search
from worker.network.resolver import LookupTrouble, MxAnswer, MxRecord, NameNotFound

pytestmark = pytest.mark.peer("knotd")

V4, V6 = socket.AF_INET, socket.AF_INET6
START_LIMIT = 20.0  # seconds for knotd to come up

ZONE = """\
$TTL 300
@           SOA   ns admin 1 3600 600 86400 60
            NS    ns
            MX    20 backup
            MX    10 mx1
            MX    10 mx2
ns          A     127.0.0.1
mx1         A     127.0.0.11
            AAAA  ::1
mx2         A     127.0.0.12
backup      A     127.0.0.13
bare        A     127.0.0.14
null        MX    0 .
text        TXT   "neither MX nor address"
alias       CNAME bare
out         CNAME mail.other.test.
broken      MX    10 gone
            MX    20 backup
void        MX    10 gone
            MX    20 away
*.wild      MX    10 mx1
{many}
"""
OTHER = """\
$TTL 300
@           SOA   ns admin 1 3600 600 86400 60
            NS    ns
ns          A     127.0.0.1
mail        MX    5 mx1.example.test.
"""
CONFIG = """\
server:
    listen: {place}
    rundir: {directory}
    pidfile: {directory}/knot.pid
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
control:
    listen: {directory}/knot.sock
database:
    storage: {directory}
log:
  - target: {directory}/knot.log
    any: info
template:
  - id: default
    storage: {directory}
    zonefile-load: whole
    journal-content: none
zone:
  - domain: example.test
    file: example.zone
  - domain: other.test
    file: other.zone
  - domain: broken.test
    file: missing.zone
"""


def free_place() -> tuple[str, int]:
    """An address and a port that is free there, for UDP and TCP.

    Of loopback addresses there are millions: on 127.0.0.1 somebody else may have the port of one of
    the two, or take it before knotd does.
    """
    address = "127." + ".".join(str(random.randrange(1, 255)) for _ in range(3))
    with socket.socket(V4, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        udp.bind((address, 0))
        port = int(udp.getsockname()[1])
        tcp.bind((address, port))
    return address, port


@pytest.fixture(scope="module")
def knot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address and port of a running knotd with the zones above."""
    directory = tmp_path_factory.mktemp("knot")
    address, port = free_place()
    many = "\n".join(f"many        MX    {n} mx1.n{n}.quite-a-long-label.many" for n in range(150))
    (directory / "example.zone").write_text(ZONE.format(many=many))
    (directory / "other.zone").write_text(OTHER)
    config = directory / "knot.conf"
    config.write_text(
        textwrap.dedent(CONFIG.format(place=f"{address}@{port}", directory=directory))
    )
    process = subprocess.Popen(
        [find_program("knotd") or "knotd", "-c", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_up(process, (address, port), directory / "knot.log")
        yield address, port
    finally:
        process.terminate()
        process.wait(START_LIMIT)


def wait_until_up(process: "subprocess.Popen[bytes]", place: tuple[str, int], log: Path) -> None:
    """Return when knotd takes TCP connections; fail with its log when it does not."""
    deadline = time.monotonic() + START_LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(place, 1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    text = log.read_text() if log.exists() else "(no log)"
    pytest.fail(f"knotd did not start: {text}", pytrace=False)


@pytest.fixture
def resolver(knot: tuple[str, int]) -> DnsResolver:
    """A resolver with an empty cache that asks knotd."""
    return DnsResolver(knot, 10.0)


async def failure(nexthop: str, resolver: DnsResolver) -> tuple[str, str]:
    destination = parse_destination(nexthop, Protocol.SMTP)
    with pytest.raises(ResolveError) as caught:
        await search(destination, EndpointSettings(), resolver, random.Random(1))
    return caught.value.dsn, caught.value.reason


async def relays(nexthop: str, resolver: DnsResolver) -> list[str]:
    destination = parse_destination(nexthop, Protocol.SMTP)
    settings = EndpointSettings(randomize=False)
    found = (await search(destination, settings, resolver, random.Random(1))).endpoints
    return [endpoint.relay for endpoint in found]


@trio_test
async def test_exchangers_of_several_preferences_become_endpoints(resolver: DnsResolver) -> None:
    found = await relays("example.test:2525", resolver)
    assert sorted(found[:3]) == [
        "mx1.example.test[127.0.0.11]:2525",
        "mx1.example.test[::1]:2525",
        "mx2.example.test[127.0.0.12]:2525",
    ]
    assert found[3:] == ["backup.example.test[127.0.0.13]:2525"]


@trio_test
async def test_a_domain_without_mx_is_its_own_exchanger(resolver: DnsResolver) -> None:
    assert await resolver.mx("bare.example.test") == MxAnswer()
    assert await relays("bare.example.test", resolver) == ["bare.example.test[127.0.0.14]:25"]


@trio_test
async def test_a_null_mx_is_hard(resolver: DnsResolver) -> None:
    assert await failure("null.example.test", resolver) == (
        "5.1.0",
        "Domain null.example.test does not accept mail (nullMX)",
    )


@trio_test
async def test_an_alias_is_followed_inside_and_outside_its_zone(resolver: DnsResolver) -> None:
    assert await relays("alias.example.test", resolver) == ["alias.example.test[127.0.0.14]:25"]
    assert await resolver.mx("out.example.test") == MxAnswer((MxRecord(5, "mx1.example.test"),))


@trio_test
async def test_a_name_that_does_not_exist_is_hard(resolver: DnsResolver) -> None:
    assert await failure("nowhere.example.test", resolver) == (
        "5.4.4",
        "Host or domain name not found. Name service error for name=nowhere.example.test type=MX: "
        "Host not found",
    )


@trio_test
async def test_a_name_without_mx_and_address_is_hard(resolver: DnsResolver) -> None:
    dsn, reason = await failure("text.example.test", resolver)
    assert dsn == "5.4.4"
    assert reason.endswith("Host found but no data record of requested type")


@trio_test
async def test_exchangers_without_addresses_are_left_out_or_hard(resolver: DnsResolver) -> None:
    assert await relays("broken.example.test", resolver) == ["backup.example.test[127.0.0.13]:25"]
    dsn, _ = await failure("void.example.test", resolver)
    assert dsn == "5.4.4"


@pytest.mark.parametrize("domain", ["broken.test", "elsewhere.test"])
@trio_test
async def test_a_zone_that_did_not_load_and_a_zone_refused_are_soft(
    domain: str, resolver: DnsResolver
) -> None:
    dsn, reason = await failure(domain, resolver)
    assert dsn == "4.4.3"
    assert reason.endswith(f"name={domain} type=MX: Host not found, try again")
    with pytest.raises(LookupTrouble):
        await resolver.addresses(domain, (V4, V6))


@trio_test
async def test_an_answer_too_long_for_a_datagram_comes_over_tcp(resolver: DnsResolver) -> None:
    records = (await resolver.mx("many.example.test")).records
    assert len(records) == 100
    assert [record.preference for record in records] == list(range(100))


@trio_test
async def test_a_wildcard_is_no_special_case(resolver: DnsResolver) -> None:
    assert (await resolver.mx("any.wild.example.test")).records == (
        MxRecord(10, "mx1.example.test"),
    )


@trio_test
async def test_many_questions_at_once_are_all_answered(resolver: DnsResolver) -> None:
    async def ask(number: int) -> None:
        with pytest.raises(NameNotFound):
            await resolver.mx(f"n{number}.example.test")

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(ask, number)
