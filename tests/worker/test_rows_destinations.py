"""Rows S001 to S034 of the manual: where mail goes, in which order, and from which address.

A row whose point is shown best elsewhere has its test there, under the same kind of name. Here are
whole deliveries, set up by parameters of main.cf. Deterministic: scripted servers and resolver, by
a virtual clock; tests of source addresses and of IPv6 use sockets on loopback, and no clock.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, Delays
from protocol.request import Protocol
from tests.integration.tls_peers import Client
from tests.worker.fake_dns import NULL_MX, servfail
from tests.worker.main_cf_world import MainCfWorld, deliver_to
from tests.worker.peer import Peer, Phase
from tests.worker.world import REFUSED, Site, actions, make_request
from worker.content import InlineContent
from worker.delivery.deliver import deliver
from worker.status.events import EndpointFailed, RecipientSettled
from worker.status.log import render

SMTP, LMTP = Protocol.SMTP, Protocol.LMTP
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
ABC = [f"{name}@example.com" for name in "abc"]
GREYLIST = "450 4.7.1 greylisted"
THREE_MX = {"example.com": [(20, "c.example"), (10, "a.example"), (10, "b.example")]}
THREE_HOSTS = {
    "a.example": ["192.0.2.1"],
    "b.example": ["192.0.2.2"],
    "c.example": ["192.0.2.3"],
}
# A name with exchangers and with an address of its own: each way leads elsewhere.
BOTH_MX = {"both.example": [(10, "mx.example")]}
BOTH_HOSTS = {"mx.example": ["192.0.2.1"], "both.example": ["192.0.2.9"]}


def both_ways(main_cf: Mapping[str, str] | None = None, *, lmtp: bool = False) -> MainCfWorld:
    sites = {"192.0.2.1": Peer(lmtp=lmtp), "192.0.2.9": Peer(lmtp=lmtp)}
    return MainCfWorld(main_cf or {}, sites, mx=BOTH_MX, hosts=BOTH_HOSTS)


def relay(world: MainCfWorld) -> str:
    """Where the only recipient of the last delivery was sent to."""
    (outcome,) = world.results[-1].outcomes
    assert outcome.action is SENT
    return outcome.relay


def numbered(count: int) -> tuple[dict[str, list[tuple[int, str]]], dict[str, list[str]]]:
    """MX records and addresses of so many exchangers, the first one best; and lmtp.example."""
    mx = {"example.com": [(number, f"mx{number}.example") for number in range(1, count + 1)]}
    hosts = {f"mx{number}.example": [f"192.0.2.{number}"] for number in range(1, count + 1)}
    hosts["lmtp.example"] = [address for (address,) in hosts.values()]
    return mx, hosts


NEXTHOPS = {SMTP: "example.com", LMTP: "inet:lmtp.example"}


@asynccontextmanager
async def serving(peer: Peer, host: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Serve on a loopback address; yields the port, and a list that gets the clients' addresses."""
    seen: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        seen.append(str(stream.socket.getpeername()[0]))
        await peer.serve(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host=host, handler_nursery=nursery)
        )
        yield listener.socket.getsockname()[1], seen
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving_unix(peer: Peer, path: Path) -> AsyncIterator[None]:
    """Serve on a UNIX socket."""
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                trio.serve_listeners,
                peer.serve,
                [trio.SocketListener(listening)],
                handler_nursery=nursery,
            )
        )
        yield
        nursery.cancel_scope.cancel()


# --- destinations of SMTP -----------------------------------------------------------------------


@trio_test
async def test_s001_exchangers_are_tried_best_first_and_the_first_that_answers_serves(
    autojump_clock: MockClock,
) -> None:
    good: Site = Peer()
    for sites, dialled in (
        ({"192.0.2.3": good}, {"192.0.2.1", "192.0.2.2", "192.0.2.3"}),
        ({"192.0.2.1": good, "192.0.2.2": good, "192.0.2.3": good}, None),
    ):
        world = MainCfWorld({}, sites, mx=THREE_MX, hosts=THREE_HOSTS)
        await deliver_to(world, "example.com")
        order = [address for _, address in world.dialer.dialled]
        if dialled:
            assert (set(order), order[-1]) == (dialled, "192.0.2.3")
            assert relay(world) == "c.example[192.0.2.3]:25"
        else:
            assert len(order) == 1
            assert order[0] in ("192.0.2.1", "192.0.2.2")


@trio_test
async def test_s001_a_null_mx_bounces_and_nobody_is_dialled(autojump_clock: MockClock) -> None:
    hosts = {"x.example": ["192.0.2.1"]}
    world = MainCfWorld({}, {"192.0.2.1": Peer()}, mx={"x.example": NULL_MX}, hosts=hosts)
    (outcome,) = (await deliver_to(world, "x.example")).outcomes
    assert (outcome.action, outcome.dsn) == (BOUNCED, "5.1.0")
    assert world.dialer.dialled == []


@trio_test
async def test_s002_exchangers_are_dialled_at_the_port_that_is_named(
    autojump_clock: MockClock,
) -> None:
    for nexthop, port in (("both.example:2525", 2525), ("both.example:submission", 587)):
        world = both_ways()
        await deliver_to(world, nexthop)
        assert relay(world) == f"mx.example[192.0.2.1]:{port}"


@pytest.mark.parametrize("port", ["nosuch", "0", "65536", "70000", "99999999", "-1", "25x", ""])
@pytest.mark.parametrize("form", ["{}:", "[{}]:"])
@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s002_what_is_no_port_is_a_configuration_error_and_nothing_is_dialled(
    autojump_clock: MockClock, protocol: Protocol, form: str, port: str
) -> None:
    nexthop = form.format("both.example") + port
    world = both_ways(lmtp=protocol is LMTP)
    (outcome,) = (await deliver_to(world, nexthop, protocol=protocol)).outcomes
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.3.5")
    assert outcome.reason.startswith("mail system configuration error: destination ")
    assert nexthop in outcome.reason
    assert (world.dialer.dialled, world.resolver.questions) == ([], [])


@trio_test
async def test_s003_a_bracketed_host_is_dialled_at_its_own_address(
    autojump_clock: MockClock,
) -> None:
    world = both_ways()
    await deliver_to(world, "[both.example]")
    assert world.dialer.relays == ["both.example[192.0.2.9]:25"]
    assert {kind for kind, _ in world.resolver.questions} == {"A", "AAAA"}


@pytest.mark.parametrize(
    ("key", "nexthop", "names"),
    [
        ("{[both.example]:587}", "[both.example]:587", True),
        ("both.example", "[both.example]:587", True),  # as a host, not as a nexthop
        ("both.example", "both.example:587", False),  # where the host is mx.example
        ("{both.example:587}", "both.example:587", True),
        ("{[both.example]:587}", "both.example:587", False),
        ("{[both.example]}", "[both.example]:587", False),
        ("{both.example:587}", "[both.example]:587", False),
    ],
)
@trio_test
async def test_s004_brackets_and_port_are_part_of_the_key_of_a_password(
    autojump_clock: MockClock, key: str, nexthop: str, names: bool
) -> None:
    entry = key.strip("{}")
    main_cf = {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_security_options": "noanonymous",
        "smtp_sasl_password_maps": f"inline:{{ {{{entry} = user:word}} }}",
    }
    peers = {a: Peer(extensions=("AUTH PLAIN",)) for a in ("192.0.2.1", "192.0.2.9")}
    world = MainCfWorld(main_cf, peers, mx=BOTH_MX, hosts=BOTH_HOSTS, secured=True)
    await deliver_to(world, nexthop)
    assert relay(world).endswith(":587")
    assert [verb for peer in peers.values() for verb in peer.verbs if verb == "AUTH"] == (
        ["AUTH"] if names else []
    )


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s005_an_address_is_dialled_and_no_question_is_asked(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    world = MainCfWorld({}, {"192.0.2.1": Peer(lmtp=protocol is LMTP)})
    await deliver_to(world, "[192.0.2.1]", protocol=protocol)
    assert relay(world) == f"192.0.2.1[192.0.2.1]:{25 if protocol is SMTP else 24}"
    assert world.resolver.questions == []


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s006_an_address_is_dialled_at_the_port_that_is_named(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    world = MainCfWorld({}, {"192.0.2.1": Peer(lmtp=protocol is LMTP)})
    await deliver_to(world, "[192.0.2.1]:2525", protocol=protocol)
    assert relay(world) == "192.0.2.1[192.0.2.1]:2525"
    assert world.resolver.questions == []


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("literal", ["ipv6:::1", "IPv6:::1", "IPV6:0::1", "::1"])
@trio_test
async def test_s007_an_ipv6_address_may_have_its_tag_in_any_case_or_none(
    literal: str, protocol: Protocol
) -> None:
    peer = Peer(lmtp=protocol is LMTP)
    async with serving(peer, "::1") as (port, _):
        attempt = await Client({}).attempt(f"[{literal}]:{port}", protocol=protocol)
    assert attempt.outcome.relay == f"::1[::1]:{port}"
    assert len(peer.accepted) == 1


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s007_a_bad_address_is_named(autojump_clock: MockClock, protocol: Protocol) -> None:
    for nexthop, named in (("[ipv6:zz]", "'zz'"), ("[ipv6:192.0.2.1]:25", "'192.0.2.1'")):
        world = MainCfWorld({}, {})
        (outcome,) = (await deliver_to(world, nexthop, protocol=protocol)).outcomes
        assert (outcome.action, outcome.dsn) == (DEFERRED, "4.3.5")
        assert outcome.reason == (
            f"mail system configuration error: destination '{nexthop}': bad IPv6 address {named}"
        )
        assert world.dialer.dialled == []


@trio_test
async def test_s007_the_two_spellings_are_two_keys(autojump_clock: MockClock) -> None:
    main_cf = {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_security_options": "noanonymous",
        "smtp_sasl_password_maps": "inline:{ {[ipv6:2001:db8::1] = user:word} }",
    }
    for nexthop, verbs in (("[ipv6:2001:db8::1]", ["AUTH"]), ("[2001:db8::1]", [])):
        peer = Peer(extensions=("AUTH PLAIN",))
        world = MainCfWorld(main_cf, {"2001:db8::1": peer}, secured=True)
        await deliver_to(world, nexthop)
        assert relay(world) == "2001:db8::1[2001:db8::1]:25"
        assert [verb for verb in peer.verbs if verb == "AUTH"] == verbs


# --- destinations of LMTP -----------------------------------------------------------------------


@trio_test
async def test_s008_a_unix_socket_settles_each_recipient_by_its_own_reply(tmp_path: Path) -> None:
    peer = Peer({Phase.DOT: {ABC[1]: "550 5.2.1 disabled"}}, lmtp=True)
    path = tmp_path / "lmtp"
    client = Client({"lmtp_tls_security_level": "may"})
    request = replace(
        make_request(ABC[0], ABC[1], protocol=LMTP), nexthop=f"unix:{path}", queue_id="Q1"
    )
    async with serving_unix(peer, path):
        result = await deliver(request, InlineContent(b"Subject: x\r\n"), client.environment)
    lines = [
        line.text
        for outcome in result.outcomes
        for line in render(RecipientSettled("Q1", "lmtp", replace(outcome, delays=Delays())))
    ]
    said = f"host client.example[{path}] said: 550 5.2.1 disabled (in reply to end of DATA command)"
    assert lines == [
        f"Q1: to=<a@example.com>, relay=client.example[{path}], delay=0, delays=0/0/0/0, tls=none,"
        " dsn=2.0.0, status=sent (250 2.0.0 queued)",
        f"Q1: to=<b@example.com>, relay=client.example[{path}], delay=0, delays=0/0/0/0, tls=none,"
        f" dsn=5.2.1, status=bounced ({said})",
    ]


@trio_test
async def test_s009_only_a_relative_path_starts_at_the_queue_directory(tmp_path: Path) -> None:
    peer = Peer(lmtp=True)
    (tmp_path / "private").mkdir()
    client = Client({"queue_directory": str(tmp_path)})
    async with serving_unix(peer, tmp_path / "private/lmtp"):
        attempt = await client.attempt("unix:private/lmtp", protocol=LMTP)
        assert attempt.outcome.action is SENT
        assert attempt.outcome.relay == "client.example[private/lmtp]"
        attempt = await client.attempt("unix:/private/lmtp", protocol=LMTP)
    assert attempt.brief == (
        "4.4.1 deferred (connect to client.example[/private/lmtp]: No such file or directory)"
    )


@pytest.mark.parametrize("nexthop", ["inet:both.example", "both.example"])
@trio_test
async def test_s010_a_host_of_lmtp_is_dialled_at_its_own_address_and_port_24(
    autojump_clock: MockClock, nexthop: str, no_service: None
) -> None:
    world = both_ways(lmtp=True)
    await deliver_to(world, nexthop, protocol=LMTP)
    assert world.dialer.relays == ["both.example[192.0.2.9]:24"]
    assert "MX" not in {kind for kind, _ in world.resolver.questions}
    peer = world.dialer.sites["192.0.2.9"]
    assert isinstance(peer, Peer)
    assert peer.commands[0] == "LHLO client.example"


@trio_test
async def test_s011_a_host_of_lmtp_is_dialled_at_the_port_that_is_named(
    autojump_clock: MockClock,
) -> None:
    for nexthop in ("inet:both.example:2003", "both.example:2003"):
        world = both_ways(lmtp=True)
        await deliver_to(world, nexthop, protocol=LMTP)
        assert world.dialer.relays == ["both.example[192.0.2.9]:2003"]


@trio_test
async def test_s012_an_address_of_lmtp_is_dialled_at_the_default_port(
    autojump_clock: MockClock, no_service: None
) -> None:
    world = MainCfWorld({}, {"192.0.2.1": Peer(lmtp=True)})
    await deliver_to(world, "inet:[192.0.2.1]", protocol=LMTP)
    assert relay(world) == "192.0.2.1[192.0.2.1]:24"
    assert world.resolver.questions == []


@trio_test
async def test_s013_an_address_of_lmtp_is_dialled_at_the_port_that_is_named(
    autojump_clock: MockClock,
) -> None:
    for nexthop, address in (
        ("inet:[192.0.2.1]:2003", "192.0.2.1"),
        ("inet:[ipv6:2001:db8::1]:2003", "2001:db8::1"),
    ):
        world = MainCfWorld({}, {address: Peer(lmtp=True)})
        await deliver_to(world, nexthop, protocol=LMTP)
        assert relay(world) == f"{address}[{address}]:2003"


# --- default ports ------------------------------------------------------------------------------


@pytest.fixture
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose services file has no entry lmtp."""
    services(monkeypatch, {})


def services(monkeypatch: pytest.MonkeyPatch, known: Mapping[str, int]) -> None:
    """Let the services file be this."""

    def look_up(name: str, protocol: str) -> int:
        assert protocol == "tcp"
        if name not in known:
            raise OSError("service/proto not found")
        return known[name]

    monkeypatch.setattr(socket, "getservbyname", look_up)


@pytest.mark.parametrize(
    ("main_cf", "port"),
    [({}, 25), ({"smtp_tcp_port": "2525"}, 2525), ({"smtp_tcp_port": "submission"}, 587)],
)
@trio_test
async def test_s014_the_default_port_is_that_of_smtp_tcp_port(
    autojump_clock: MockClock, main_cf: dict[str, str], port: int
) -> None:
    world = both_ways(main_cf)
    await deliver_to(world, "both.example")
    assert relay(world) == f"mx.example[192.0.2.1]:{port}"


@pytest.mark.parametrize(("known", "port"), [({"lmtp": 2003}, 2003), ({}, 2424)])
@trio_test
async def test_s015_the_services_file_comes_before_lmtp_tcp_port(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, known: dict[str, int], port: int
) -> None:
    services(monkeypatch, known)
    world = both_ways({"lmtp_tcp_port": "2424"}, lmtp=True)
    await deliver_to(world, "inet:both.example", protocol=LMTP)
    assert relay(world) == f"both.example[192.0.2.9]:{port}"


@pytest.mark.parametrize(
    ("main_cf", "port"),
    [({}, 24), ({"lmtp_tcp_port": "2424"}, 2424), ({"lmtp_tcp_port": "submission"}, 587)],
)
@trio_test
async def test_s016_lmtp_tcp_port_is_a_number_or_a_service(
    autojump_clock: MockClock, no_service: None, main_cf: dict[str, str], port: int
) -> None:
    world = both_ways(main_cf, lmtp=True)
    await deliver_to(world, "inet:both.example", protocol=LMTP)
    assert relay(world) == f"both.example[192.0.2.9]:{port}"


# --- order, limits, loops -----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s018_the_undecided_go_on_and_who_is_settled_stays_so(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    lmtp = protocol is LMTP
    script = {ABC[1]: GREYLIST, ABC[2]: "550 5.1.1 who?"}
    first, second = Peer({Phase.RCPT: script}, lmtp=lmtp), Peer(lmtp=lmtp)
    mx, hosts = numbered(2)
    main_cf = {f"{protocol.value}_randomize_addresses": "no"}
    world = MainCfWorld(main_cf, {"192.0.2.1": first, "192.0.2.2": second}, mx=mx, hosts=hosts)
    result = await deliver_to(world, NEXTHOPS[protocol], *ABC, protocol=protocol)
    assert actions(result) == {ABC[0]: SENT, ABC[1]: SENT, ABC[2]: BOUNCED}
    assert (first.served, second.offered) == ([ABC[0]], [ABC[1]])
    assert ["192.0.2.1" in o.relay for o in result.outcomes] == [True, False, True]
    told = [event.reason for event in world.events if isinstance(event, EndpointFailed)]
    assert len(told) == 1
    assert GREYLIST in told[0]


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s018_a_soft_error_of_the_last_server_defers(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    lmtp = protocol is LMTP
    peers = [Peer({Phase.RCPT: {ABC[1]: GREYLIST}}, lmtp=lmtp) for _ in range(2)]
    mx, hosts = numbered(2)
    sites = {"192.0.2.1": peers[0], "192.0.2.2": peers[1]}
    world = MainCfWorld({f"{protocol.value}_randomize_addresses": "no"}, sites, mx=mx, hosts=hosts)
    result = await deliver_to(world, NEXTHOPS[protocol], ABC[0], ABC[1], protocol=protocol)
    assert actions(result) == {ABC[0]: SENT, ABC[1]: DEFERRED}
    assert "[192.0.2.2]" in result.outcomes[1].relay
    assert result.outcomes[1].dsn == "4.7.1"


@trio_test
async def test_s019_nobody_is_dialled_who_is_no_better_than_ourselves(
    autojump_clock: MockClock,
) -> None:
    mx, hosts = numbered(3)
    for own, action, dsn, dialled in (
        ("192.0.2.1", BOUNCED, "5.4.6", []),
        ("192.0.2.2", DEFERRED, "4.4.1", ["192.0.2.1"]),
        ("192.0.2.3", SENT, "2.0.0", ["192.0.2.1", "192.0.2.2"]),
    ):
        sites: dict[str, Site] = {"192.0.2.1": REFUSED, "192.0.2.2": Peer(), "192.0.2.3": Peer()}
        world = MainCfWorld({"inet_interfaces": own}, sites, mx=mx, hosts=hosts)
        (outcome,) = (await deliver_to(world, "example.com")).outcomes
        assert (outcome.action, outcome.dsn) == (action, dsn)
        assert [address for _, address in world.dialer.dialled] == dialled
        if dsn == "5.4.6":
            assert outcome.reason == "mail for example.com loops back to myself"


@pytest.mark.parametrize(
    ("setting", "action", "dsn"), [("no", DEFERRED, "4.4.3"), ("yes", SENT, "2.0.0")]
)
@trio_test
async def test_s020_trouble_with_mx_defers_or_is_ignored(
    autojump_clock: MockClock, setting: str, action: Action, dsn: str
) -> None:
    world = MainCfWorld(
        {"ignore_mx_lookup_error": setting},
        {"192.0.2.1": Peer()},
        mx={"x.example": servfail("x.example")},
        hosts={"x.example": ["192.0.2.1"]},
    )
    (outcome,) = (await deliver_to(world, "x.example")).outcomes
    assert (outcome.action, outcome.dsn) == (action, dsn)


@pytest.mark.parametrize(
    ("setting", "action", "dsn"), [("no", BOUNCED, "5.4.4"), ("yes", DEFERRED, "4.4.4")]
)
@trio_test
async def test_s021_exchangers_without_address_bounce_or_defer(
    autojump_clock: MockClock, setting: str, action: Action, dsn: str
) -> None:
    main_cf = {"smtp_defer_if_no_mx_address_found": setting}
    world = MainCfWorld(main_cf, {}, mx={"x.example": [(10, "gone.example")]})
    (outcome,) = (await deliver_to(world, "x.example")).outcomes
    assert (outcome.action, outcome.dsn) == (action, dsn)
    backup = MainCfWorld(
        {**main_cf, "inet_interfaces": "192.0.2.1"},
        {},
        mx={"x.example": [(10, "gone.example"), (20, "us.example")]},
        hosts={"us.example": ["192.0.2.1"]},
    )
    (outcome,) = (await deliver_to(backup, "x.example")).outcomes
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.4.4")


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s022_a_name_of_the_hosts_file_is_found_by_native_lookup_alone(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for setting, action, dsn in (("dns", BOUNCED, "5.4.4"), ("native, dns", SENT, "2.0.0")):
        world = MainCfWorld(
            {f"{protocol.value}_host_lookup": setting},
            {"192.0.2.1": Peer(lmtp=protocol is LMTP)},
            hosts={"known.example": ["192.0.2.1"], "ill.example": servfail("ill.example", "A")},
            hosts_file={"intern": ["192.0.2.1"], "ill.example": ["192.0.2.1"]},
        )
        (outcome,) = (await deliver_to(world, "[intern]", protocol=protocol)).outcomes
        assert (outcome.action, outcome.dsn) == (action, dsn)
        asked = len(world.native.questions)
        await deliver_to(world, "[known.example]", protocol=protocol)
        (outcome,) = (await deliver_to(world, "[ill.example]", protocol=protocol)).outcomes
        assert (outcome.action, outcome.dsn) == (DEFERRED, "4.4.3")
        assert len(world.native.questions) == asked  # neither for what DNS knows, nor in trouble


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s023_equal_addresses_are_shuffled_unless_told_not_to(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    addresses = [f"192.0.2.{number}" for number in range(1, 5)]
    for setting, shuffled in (("no", False), ("yes", True)):
        world = MainCfWorld(
            {f"{protocol.value}_randomize_addresses": setting},
            dict.fromkeys(addresses, REFUSED),
            hosts={"h.example": addresses},
        )
        orders = set()
        for _ in range(50):
            del world.dialer.dialled[:]
            await deliver_to(world, "[h.example]", protocol=protocol)
            orders.add(tuple(address for _, address in world.dialer.dialled))
        if shuffled:
            assert len(orders) > 10  # of 24 orders
            assert {order[0] for order in orders} == set(addresses)
        else:
            assert orders == {tuple(addresses)}


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("main_cf", "dialled"), [({}, 5), ({"limit": "0"}, 12), ({"limit": "7"}, 7)]
)
@trio_test
async def test_s024_so_many_addresses_are_dialled(
    autojump_clock: MockClock, protocol: Protocol, main_cf: dict[str, str], dialled: int
) -> None:
    mx, hosts = numbered(12)
    parameters = {f"{protocol.value}_mx_address_{word}": text for word, text in main_cf.items()}
    world = MainCfWorld(parameters, {}, mx=mx, hosts=hosts)
    (outcome,) = (await deliver_to(world, NEXTHOPS[protocol], protocol=protocol)).outcomes
    assert outcome.dsn == "4.4.1"
    assert len(world.dialer.dialled) == dialled


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("main_cf", "asked"), [({}, 2), ({"limit": "3"}, 3), ({"limit": "0"}, 4)])
@trio_test
async def test_s025_so_many_sessions_may_end_in_a_soft_refusal(
    autojump_clock: MockClock, protocol: Protocol, main_cf: dict[str, str], asked: int
) -> None:
    peers = [Peer({Phase.RCPT: GREYLIST}, lmtp=protocol is LMTP) for _ in range(4)]
    mx, hosts = numbered(4)
    parameters = {f"{protocol.value}_mx_session_{word}": text for word, text in main_cf.items()}
    sites = dict(zip(hosts["lmtp.example"], peers, strict=True))
    world = MainCfWorld(parameters, sites, mx=mx, hosts=hosts)
    (outcome,) = (await deliver_to(world, NEXTHOPS[protocol], protocol=protocol)).outcomes
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.7.1")
    assert sum(bool(peer.offered) for peer in peers) == asked


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s025_connects_and_handshakes_that_fail_are_not_counted(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    lmtp = protocol is LMTP
    sites: dict[str, Site] = {
        "192.0.2.1": REFUSED,
        "192.0.2.2": REFUSED,
        "192.0.2.3": Peer({Phase.GREETING: "450 busy"}, lmtp=lmtp),
        "192.0.2.4": Peer({Phase.EHLO: "421 busy", Phase.LHLO: "421 busy"}, lmtp=lmtp),
        "192.0.2.5": Peer(lmtp=lmtp),
    }
    mx, hosts = numbered(5)
    main_cf = {
        f"{protocol.value}_mx_session_limit": "1",
        f"{protocol.value}_randomize_addresses": "no",
    }
    world = MainCfWorld(main_cf, sites, mx=mx, hosts=hosts)
    await deliver_to(world, NEXTHOPS[protocol], protocol=protocol)
    assert "[192.0.2.5]" in relay(world)
    assert len(world.dialer.dialled) == 5


# --- names and addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "main_cf", [{"disable_dns_lookups": "yes"}, {"smtp_dns_support_level": "disabled"}]
)
@pytest.mark.parametrize("nexthop", ["both.example", "[both.example]"])
@trio_test
async def test_s029_without_dns_the_system_is_asked_whatever_the_destination(
    autojump_clock: MockClock, nexthop: str, main_cf: dict[str, str]
) -> None:
    world = MainCfWorld(
        main_cf,
        {"192.0.2.1": Peer(), "192.0.2.9": Peer(), "192.0.2.77": Peer()},
        mx=BOTH_MX,
        hosts=BOTH_HOSTS,
        hosts_file={"both.example": ["192.0.2.77"]},
    )
    await deliver_to(world, nexthop)
    assert relay(world) == "both.example[192.0.2.77]:25"
    assert world.resolver.questions == []


@pytest.mark.parametrize(
    ("setting", "kinds", "dialled"),
    [
        ("ipv4", {"A"}, {"192.0.2.1"}),
        ("ipv6", {"AAAA"}, {"2001:db8::1"}),
        ("all", {"A", "AAAA"}, {"192.0.2.1", "2001:db8::1"}),
    ],
)
@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s030_only_families_that_are_enabled_are_asked_for_and_dialled(
    autojump_clock: MockClock, protocol: Protocol, setting: str, kinds: set[str], dialled: set[str]
) -> None:
    hosts = {"h.example": ["192.0.2.1", "2001:db8::1"]}
    world = MainCfWorld({"inet_protocols": setting}, {}, hosts=hosts)
    await deliver_to(world, "[h.example]", protocol=protocol)
    assert {kind for kind, _ in world.resolver.questions} == kinds
    assert {address for _, address in world.dialer.dialled} == dialled


@trio_test
async def test_s032_an_address_of_a_proxy_in_front_of_us_is_ours(
    autojump_clock: MockClock,
) -> None:
    mx, hosts = numbered(2)
    sites = {address: Peer() for address in ("192.0.2.1", "192.0.2.2")}
    world = MainCfWorld({"proxy_interfaces": "192.0.2.1"}, sites, mx=mx, hosts=hosts)
    (outcome,) = (await deliver_to(world, "example.com")).outcomes
    assert (outcome.action, outcome.dsn) == (BOUNCED, "5.4.6")
    assert world.dialer.dialled == []


# --- source addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("text", ["127.0.0.2", "[127.0.0.2]"])
@trio_test
async def test_s033_the_server_sees_the_source_address_that_is_set(
    text: str, protocol: Protocol
) -> None:
    peer = Peer(lmtp=protocol is LMTP)
    client = Client({f"{protocol.value}_bind_address": text})
    async with serving(peer, "127.0.0.1") as (port, seen):
        attempt = await client.attempt(f"[127.0.0.1]:{port}", protocol=protocol)
    assert attempt.outcome.action is SENT
    assert seen == ["127.0.0.2"]


async def with_an_unusable_source(
    protocol: Protocol, parameter: str, source: str, server: str
) -> None:
    """An address that no interface has: a warning, unless the parameter is enforced."""
    why = f"cannot bind to source address {source}: Cannot assign requested address"
    peer = Peer(lmtp=protocol is LMTP)
    async with serving(peer, server) as (port, seen):
        attempt = await Client({parameter: source}).attempt(f"[{server}]:{port}", protocol=protocol)
        assert attempt.outcome.action is SENT
        assert f"warning: {why}" in attempt.log
        assert seen == [server]
        strict = Client({parameter: source, f"{protocol.value}_bind_address_enforce": "yes"})
        attempt = await strict.attempt(f"[{server}]:{port}", protocol=protocol)
        assert attempt.brief == f"4.4.0 deferred (connect to {server}[{server}]:{port}: {why})"
        assert len(seen) == 1


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s033_a_source_address_that_is_not_ours_is_a_warning_unless_enforced(
    protocol: Protocol,
) -> None:
    parameter = f"{protocol.value}_bind_address"
    await with_an_unusable_source(protocol, parameter, "203.0.113.9", "127.0.0.1")


@pytest.mark.parametrize("protocol", Protocol)
@trio_test
async def test_s034_the_same_for_ipv6(protocol: Protocol) -> None:
    parameter = f"{protocol.value}_bind_address6"
    await with_an_unusable_source(protocol, parameter, "2001:db8::9", "::1")
