"""From a destination to its endpoints: order, limits, families, loops and every way to fail.

Deterministic: a scripted resolver, a seeded random source, a virtual clock.
"""

import random
import socket
from collections import Counter
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.destination import parse_destination
from protocol.request import Protocol
from tests.worker.fake_dns import NULL_MX, UNUSABLE_MX, FakeResolver, servfail
from worker.errors import ResolveError
from worker.network.address import Endpoint
from worker.network.endpoints import (
    AddressPreference,
    EndpointSettings,
    Found,
    arrange,
    search,
)
from worker.network.own import OwnAddresses, canonical
from worker.network.ports import ServicePorts
from worker.network.resolver import NameNotFound

PLAIN = EndpointSettings(randomize=False)
LMTP = replace(PLAIN, protocol=Protocol.LMTP, default_port="24", hostname="client.example")
NO_SERVICE = ServicePorts({"smtp": 25}, system=lambda name: (_ for _ in ()).throw(OSError()))
THREE = FakeResolver(
    mx={"example.com": [(20, "c.example"), (10, "a.example"), (10, "b.example")]},
    hosts={"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"], "c.example": ["192.0.2.3"]},
)


def own(*addresses: str) -> OwnAddresses:
    """Own addresses, as inet_interfaces would list them."""
    return OwnAddresses(frozenset(map(canonical, addresses)))


async def found(
    nexthop: str,
    resolver: FakeResolver,
    settings: EndpointSettings = PLAIN,
    rng: random.Random | None = None,
) -> Found:
    destination = parse_destination(nexthop, settings.protocol)
    return await search(destination, settings, resolver, rng or random.Random(1))


async def addresses(
    nexthop: str, resolver: FakeResolver, settings: EndpointSettings = PLAIN
) -> list[str]:
    return [endpoint.address for endpoint in (await found(nexthop, resolver, settings)).endpoints]


async def failure(
    nexthop: str, resolver: FakeResolver, settings: EndpointSettings = PLAIN
) -> tuple[str, str]:
    with pytest.raises(ResolveError) as caught:
        await found(nexthop, resolver, settings)
    return caught.value.dsn, caught.value.reason


def endpoint(address: str, preference: int = 0) -> Endpoint:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return Endpoint(host="h", address=address, port=25, family=family, preference=preference)


# --- the MX search ---------------------------------------------------------------------------


@trio_test
async def test_exchangers_come_best_first_with_host_port_and_preference() -> None:
    result = await found("example.com", THREE)
    assert [(e.preference, e.host, e.relay) for e in result.endpoints] == [
        (10, "a.example", "a.example[192.0.2.1]:25"),
        (10, "b.example", "b.example[192.0.2.2]:25"),
        (20, "c.example", "c.example[192.0.2.3]:25"),
    ]
    assert not result.own_mx


@trio_test
async def test_all_exchangers_are_resolved_at_once_and_keep_their_order(
    autojump_clock: MockClock,
) -> None:
    hosts = {f"mx{n}.example": [f"192.0.2.{n}"] for n in range(1, 6)}
    delays = {f"mx{n}.example": 10.0 - n for n in range(1, 6)}  # the best is the slowest
    records = [(n, f"mx{n}.example") for n in range(1, 6)]
    resolver = FakeResolver(mx={"example.com": records}, hosts=hosts, delays=delays)
    assert await addresses("example.com", resolver) == [f"192.0.2.{n}" for n in range(1, 6)]
    assert trio.current_time() == 9.0


@trio_test
async def test_s001_a_domain_without_mx_is_its_own_exchanger() -> None:
    resolver = FakeResolver(hosts={"example.com": ["192.0.2.7", "2001:db8::7"]})
    listed = (await found("example.com", resolver)).endpoints
    assert [(e.host, e.address, e.preference) for e in listed] == [
        ("example.com", "192.0.2.7", 0),
        ("example.com", "2001:db8::7", 0),
    ]


@trio_test
async def test_a_domain_without_any_dns_may_still_have_an_address_in_the_hosts_file() -> None:
    resolver = FakeResolver(
        mx={"intern": NameNotFound("no such domain")}, hosts={"intern": ["192.0.2.8"]}
    )
    assert await addresses("intern", resolver) == ["192.0.2.8"]


@trio_test
async def test_an_exchanger_that_is_listed_twice_counts_with_its_better_preference() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(5, "a.example"), (7, "b.example"), (9, "A.example")]},
        hosts={"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]},
    )
    result = await found("example.com", resolver)
    assert [(e.preference, e.address) for e in result.endpoints] == [
        (5, "192.0.2.1"),
        (7, "192.0.2.2"),
    ]


@trio_test
async def test_an_exchanger_that_is_a_number_is_dialled_without_a_question() -> None:
    resolver = FakeResolver(mx={"example.com": [(10, "192.0.2.9")]})
    assert await addresses("example.com", resolver) == ["192.0.2.9"]
    assert resolver.questions == [("MX", "example.com")]


@trio_test
async def test_s001_an_internationalised_domain_is_asked_by_its_a_labels() -> None:
    resolver = FakeResolver(
        mx={"xn--bcher-kva.example": [(1, "mx.example")]}, hosts={"mx.example": ["192.0.2.1"]}
    )
    assert await addresses("Bücher.example", resolver) == ["192.0.2.1"]
    assert await addresses("[mx.example]", resolver) == ["192.0.2.1"]


@trio_test
async def test_a_domain_that_no_a_label_can_spell_is_not_found() -> None:
    dsn, reason = await failure("bad\u200d.example", FakeResolver())
    assert dsn == "5.4.4"
    assert reason == "Name service error for bad\u200d.example: invalid host or domain name"


@trio_test
async def test_exchangers_that_do_not_resolve_are_left_out() -> None:
    resolver = FakeResolver(
        mx={"example.com": [(1, "gone.example"), (2, "flaky.example"), (3, "a.example")]},
        hosts={"a.example": ["192.0.2.1"], "flaky.example": servfail("flaky.example", "A")},
    )
    assert await addresses("example.com", resolver) == ["192.0.2.1"]


# --- hosts, literals, sockets ----------------------------------------------------------------


@trio_test
async def test_s004_a_bracketed_host_is_not_searched_for_exchangers() -> None:
    resolver = FakeResolver(
        mx={"mail.example": [(1, "other.example")]},
        hosts={"mail.example": ["192.0.2.5"], "other.example": ["192.0.2.6"]},
    )
    listed = (await found("[mail.example]:2525", resolver)).endpoints
    assert [e.relay for e in listed] == ["mail.example[192.0.2.5]:2525"]
    assert ("MX", "mail.example") not in resolver.questions


@pytest.mark.parametrize(
    ("nexthop", "relay", "family"),
    [
        ("[192.0.2.1]", "192.0.2.1[192.0.2.1]:25", socket.AF_INET),
        ("[192.0.2.1]:2525", "192.0.2.1[192.0.2.1]:2525", socket.AF_INET),
        ("[ipv6:2001:db8::1]", "2001:db8::1[2001:db8::1]:25", socket.AF_INET6),
        ("[2001:db8::1]:2525", "2001:db8::1[2001:db8::1]:2525", socket.AF_INET6),
    ],
)
@trio_test
async def test_s005_an_address_asks_nobody(
    nexthop: str, relay: str, family: socket.AddressFamily
) -> None:
    resolver = FakeResolver()
    listed = (await found(nexthop, resolver)).endpoints
    assert [(e.relay, e.family) for e in listed] == [(relay, family)]
    assert resolver.questions == []


@trio_test
async def test_s005_an_address_of_a_disabled_family_fails_clearly() -> None:
    only4 = replace(PLAIN, families=(socket.AF_INET,))
    dsn, reason = await failure("[2001:db8::1]", FakeResolver(), only4)
    assert dsn == "5.4.4"
    assert reason == "unable to look up host 2001:db8::1: IPv6 is not enabled in inet_protocols"


@trio_test
async def test_s030_a_disabled_family_is_not_asked_for() -> None:
    resolver = FakeResolver(hosts={"h.example": ["192.0.2.1", "2001:db8::1"]})
    only4 = replace(PLAIN, families=(socket.AF_INET,))
    assert await addresses("[h.example]", resolver, only4) == ["192.0.2.1"]
    assert resolver.questions == [("A", "h.example")]


@trio_test
async def test_s008_a_unix_socket_is_its_own_endpoint() -> None:
    resolver = FakeResolver()
    listed = (await found("unix:private/lmtp", resolver, LMTP)).endpoints
    assert [e.relay for e in listed] == ["client.example[private/lmtp]"]
    assert listed[0].family == socket.AF_UNIX
    assert resolver.questions == []


@trio_test
async def test_s010_lmtp_never_searches_for_exchangers() -> None:
    resolver = FakeResolver(
        mx={"h.example": [(1, "other.example")]}, hosts={"h.example": ["192.0.2.1"]}
    )
    settings = replace(LMTP, ports=NO_SERVICE)
    for nexthop in ("inet:h.example", "h.example", "inet:[h.example]"):
        assert await addresses(nexthop, resolver, settings) == ["192.0.2.1"]
    assert {kind for kind, _ in resolver.questions} == {"A", "AAAA"}


# --- ports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "nexthop", "port"),
    [
        (PLAIN, "[192.0.2.1]", 25),
        (replace(PLAIN, default_port="2525"), "[192.0.2.1]", 2525),
        (PLAIN, "[192.0.2.1]:submission", 587),
        (replace(PLAIN, ports=ServicePorts({}, system=lambda name: 999)), "[192.0.2.1]:odd", 999),
        (replace(LMTP, ports=NO_SERVICE), "inet:[192.0.2.1]", 24),
        (replace(LMTP, ports=NO_SERVICE, default_port="2424"), "inet:[192.0.2.1]", 2424),
        (
            replace(LMTP, ports=ServicePorts({"lmtp": 24}, system=lambda name: 2003)),
            "inet:[192.0.2.1]",
            2003,  # the services file comes before lmtp_tcp_port
        ),
        (replace(LMTP, ports=NO_SERVICE), "inet:[192.0.2.1]:2004", 2004),
    ],
)
@trio_test
async def test_the_port_is_the_named_one_or_the_default(
    settings: EndpointSettings, nexthop: str, port: int
) -> None:
    listed = (await found(nexthop, FakeResolver(), settings)).endpoints
    assert [e.port for e in listed] == [port]


@trio_test
async def test_s002_an_unknown_service_is_a_configuration_problem_and_nothing_is_asked() -> None:
    settings = replace(PLAIN, ports=NO_SERVICE)
    dsn, reason = await failure("example.com:nosuch", THREE, settings)
    assert dsn == "4.3.5"
    assert reason == (
        "mail system configuration error: destination example.com:nosuch: unknown service nosuch"
    )


# --- failures --------------------------------------------------------------------------------


@trio_test
async def test_s001_a_domain_that_does_not_exist_is_hard() -> None:
    assert await failure("nowhere.example", FakeResolver()) == (
        "5.4.4",
        "Host or domain name not found. Name service error for name=nowhere.example type=MX: "
        "Host not found",
    )


@trio_test
async def test_a_domain_with_neither_mx_nor_address_is_hard() -> None:
    resolver = FakeResolver(hosts={"empty.example": []})
    assert await failure("empty.example", resolver) == (
        "5.4.4",
        "Host or domain name not found. Name service error for name=empty.example type=AAAA: "
        "Host found but no data record of requested type",
    )


@trio_test
async def test_s020_mx_trouble_is_soft() -> None:
    resolver = FakeResolver(
        mx={"x.example": servfail("x.example")}, hosts={"x.example": ["192.0.2.1"]}
    )
    assert await failure("x.example", resolver) == (
        "4.4.3",
        "Host or domain name not found. Name service error for name=x.example type=MX: "
        "Host not found, try again",
    )


@trio_test
async def test_s020_mx_trouble_can_be_ignored() -> None:
    resolver = FakeResolver(
        mx={"x.example": servfail("x.example")}, hosts={"x.example": ["192.0.2.1"]}
    )
    settings = replace(PLAIN, ignore_mx_lookup_error=True)
    assert await addresses("x.example", resolver, settings) == ["192.0.2.1"]


@trio_test
async def test_s001_a_null_mx_is_hard_and_no_address_is_asked_for() -> None:
    resolver = FakeResolver(mx={"x.example": NULL_MX}, hosts={"x.example": ["192.0.2.1"]})
    settings = replace(PLAIN, ignore_mx_lookup_error=True)
    assert await failure("x.example", resolver, settings) == (
        "5.1.0",
        "Domain x.example does not accept mail (nullMX)",
    )
    assert resolver.questions == [("MX", "x.example")]


@trio_test
async def test_s001_unusable_mx_records_are_hard_unless_ignored() -> None:
    resolver = FakeResolver(mx={"x.example": UNUSABLE_MX}, hosts={"x.example": ["192.0.2.1"]})
    assert await failure("x.example", resolver) == (
        "5.4.3",
        "Name service error for name=x.example type=MX: Malformed or unexpected name server reply",
    )
    settings = replace(PLAIN, ignore_mx_lookup_error=True)
    assert await addresses("x.example", resolver, settings) == ["192.0.2.1"]


@pytest.mark.parametrize(("defer", "dsn"), [(False, "5.4.4"), (True, "4.4.4")])
@trio_test
async def test_s021_exchangers_without_any_address_bounce_or_defer_as_configured(
    defer: bool, dsn: str
) -> None:
    resolver = FakeResolver(mx={"x.example": [(1, "gone.example"), (2, "away.example")]})
    settings = replace(PLAIN, defer_if_no_mx_address=defer)
    got, reason = await failure("x.example", resolver, settings)
    assert got == dsn
    assert "Host not found" in reason


@trio_test
async def test_trouble_with_one_exchanger_outweighs_that_the_others_do_not_exist() -> None:
    resolver = FakeResolver(
        mx={"x.example": [(1, "gone.example"), (2, "flaky.example"), (3, "away.example")]},
        hosts={"flaky.example": servfail("flaky.example", "A")},
    )
    dsn, reason = await failure("x.example", resolver)
    assert dsn == "4.4.3"
    assert "name=flaky.example" in reason


# --- loops -----------------------------------------------------------------------------------


@trio_test
async def test_s019_the_best_exchanger_being_ourselves_is_a_loop() -> None:
    settings = replace(PLAIN, own=own("192.0.2.2"))
    assert await failure("example.com", THREE, settings) == (
        "5.4.6",
        "mail for example.com loops back to myself",
    )


@trio_test
async def test_s019_our_own_preference_cuts_everything_that_is_not_better() -> None:
    result = await found("example.com", THREE, replace(PLAIN, own=own("192.0.2.3")))
    assert [e.address for e in result.endpoints] == ["192.0.2.1", "192.0.2.2"]
    assert result.own_mx


@trio_test
async def test_s019_a_better_exchanger_without_address_makes_the_loop_soft() -> None:
    resolver = FakeResolver(
        mx={"x.example": [(1, "gone.example"), (2, "us.example")]},
        hosts={"us.example": ["192.0.2.1"]},
    )
    assert await failure("x.example", resolver, replace(PLAIN, own=own("192.0.2.1"))) == (
        "4.4.4",
        "unable to find primary relay for x.example",
    )


@pytest.mark.parametrize("nexthop", ["[192.0.2.1]", "[us.example]", "us.example"])
@trio_test
async def test_a_single_host_that_is_ourselves_is_a_loop(nexthop: str) -> None:
    resolver = FakeResolver(hosts={"us.example": ["192.0.2.1", "192.0.2.44"]})
    dsn, reason = await failure(nexthop, resolver, replace(PLAIN, own=own("192.0.2.1")))
    assert dsn == "5.4.6"
    assert reason == f"mail for {nexthop.strip('[]')} loops back to myself"


@trio_test
async def test_s002_our_own_address_at_another_port_is_no_loop() -> None:
    settings = replace(PLAIN, own=own("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert len(await addresses("example.com:2525", THREE, settings)) == 3


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:192.0.2.1"])
@trio_test
async def test_disguises_of_our_own_address_are_seen_through(address: str) -> None:
    resolver = FakeResolver(mx={"x.example": [(1, "m.example")]}, hosts={"m.example": [address]})
    dsn, _ = await failure("x.example", resolver, replace(PLAIN, own=own("192.0.2.1")))
    assert dsn == "5.4.6"


# --- order and limit -------------------------------------------------------------------------


@trio_test
async def test_s017_equal_exchangers_get_equal_shares_and_a_worse_one_is_never_first() -> None:
    hosts = {f"mx{n}.example": [f"192.0.2.{n}"] for n in range(1, 6)}
    records = [(10 if n < 5 else 20, f"mx{n}.example") for n in range(1, 6)]
    resolver = FakeResolver(mx={"example.com": records}, hosts=hosts)
    rng, first = random.Random(7), Counter[str]()
    for _ in range(1000):
        listed = (await found("example.com", resolver, EndpointSettings(), rng)).endpoints
        assert listed[-1].address == "192.0.2.5"
        first[listed[0].address] += 1
    assert sorted(first) == [f"192.0.2.{n}" for n in range(1, 5)]
    assert all(210 <= count <= 290 for count in first.values())


@trio_test
async def test_s023_without_shuffling_the_order_is_always_the_same() -> None:
    orders = {tuple(await addresses("example.com", THREE)) for _ in range(50)}
    assert orders == {("192.0.2.1", "192.0.2.2", "192.0.2.3")}


def test_no_preferred_family_means_that_both_are_mixed() -> None:
    both = [endpoint("192.0.2.1"), endpoint("2001:db8::1")]
    rng = random.Random(3)
    first = Counter(arrange(both, EndpointSettings(), rng)[0].family for _ in range(400))
    assert min(first.values()) > 150


@pytest.mark.parametrize(
    ("preference", "order"),
    [
        (AddressPreference.IPV4, ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"]),
        (AddressPreference.IPV6, ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"]),
    ],
)
def test_s017_the_preferred_family_goes_first_inside_its_mx_preference_only(
    preference: AddressPreference, order: list[str]
) -> None:
    both = [
        endpoint("192.0.2.1", 10),
        endpoint("2001:db8::1", 10),
        endpoint("192.0.2.2", 20),
        endpoint("2001:db8::2", 20),
    ]
    settings = EndpointSettings(preference=preference)
    assert [e.address for e in arrange(both, settings, random.Random(5))] == order


@pytest.mark.parametrize(("limit", "left"), [(5, 5), (0, 12), (12, 12), (20, 12), (1, 1)])
def test_s024_the_address_limit_bounds_the_endpoints(limit: int, left: int) -> None:
    many = [endpoint(f"192.0.2.{n}") for n in range(12)]
    settings = replace(PLAIN, address_limit=limit)
    assert arrange(many, settings, random.Random(1)) == many[:left]


@pytest.mark.parametrize(
    ("v6", "v4", "limit", "kept"),
    [
        (9, 1, 5, "66664"),
        (9, 2, 5, "66644"),
        (9, 9, 5, "66644"),
        (9, 9, 4, "6644"),
        (1, 9, 5, "64444"),
        (9, 0, 5, "66666"),
        (3, 3, 1, "6"),
        (1, 1, 5, "64"),
    ],
)
def test_s024_the_limit_keeps_half_of_itself_for_each_family(
    v6: int, v4: int, limit: int, kept: str
) -> None:
    both = [endpoint(f"2001:db8::{n + 1}") for n in range(v6)]
    both += [endpoint(f"192.0.2.{n + 1}") for n in range(v4)]
    settings = replace(PLAIN, address_limit=limit)
    arranged = arrange(both, settings, random.Random(1))
    assert "".join("6" if ":" in e.address else "4" for e in arranged) == kept
    unbalanced = arrange(both, replace(settings, balance=False), random.Random(1))
    assert unbalanced == both[:limit]


def test_balancing_never_puts_a_worse_preference_before_a_better_one() -> None:
    both = [endpoint(f"2001:db8::{n + 1}", 10) for n in range(6)] + [endpoint("192.0.2.1", 20)]
    arranged = arrange(both, replace(PLAIN, address_limit=3), random.Random(1))
    assert [e.preference for e in arranged] == [10, 10, 20]
