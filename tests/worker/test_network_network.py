"""The network as delivery code sees it, and what the configuration makes of it."""

import random
import socket
from pathlib import Path

import pytest
import trio
import trio.abc
from trio.testing import MockClock, memory_stream_pair, trio_test

from protocol.request import Protocol
from tests.worker.fake_dns import FakeResolver, servfail
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.errors import ConnectError, ResolveError
from worker.network.address import Endpoint
from worker.network.connect import SocketDialer
from worker.network.endpoints import AddressPreference, EndpointSettings
from worker.network.native_resolver import NativeResolver
from worker.network.network import (
    Choice,
    DnsSettings,
    Network,
    NetworkSettings,
    destination_of,
    make_dialer,
    make_dns,
    make_resolver,
    parse_dns_server,
)
from worker.network.resolver import HostLookup

V4, V6 = socket.AF_INET, socket.AF_INET6
LOCAL = ["127.0.0.1", "192.0.2.1", "2001:db8::1"]


class SlowDialer:
    """Connects every address after ten seconds; knows when it was asked."""

    def __init__(self) -> None:
        self.dialled: list[tuple[float, str]] = []

    async def dial(self, endpoint: Endpoint) -> trio.abc.Stream:
        self.dialled.append((trio.current_time(), endpoint.address))
        await trio.sleep(10.0)
        return memory_stream_pair()[0]


def network(
    resolver: FakeResolver,
    *,
    connect_timeout: float = 30.0,
    stagger: float = 0.0,
    protocol: Protocol = Protocol.SMTP,
    fallback: tuple[str, ...] = (),
) -> Network:
    settings = NetworkSettings(
        endpoints=EndpointSettings(randomize=False, protocol=protocol),
        connect_timeout=connect_timeout,
        stagger=stagger,
        fallback=fallback,
    )
    return Network(settings, resolver, SlowDialer(), random.Random(1))


def from_config(
    parameters: dict[str, str] | None = None, protocol: Protocol = Protocol.SMTP
) -> NetworkSettings:
    parameters = parameters or {}
    return NetworkSettings.from_config(
        Config.from_mapping(parameters), protocol, local=lambda: LOCAL, look_up=lambda name: []
    )


# --- endpoints -------------------------------------------------------------------------------


async def endpoints(net: Network, nexthop: str) -> list[Endpoint]:
    """Of all choices for a nexthop, in order."""
    return [e for choice in net.choices(nexthop) for e in (await net.find(choice)).endpoints]


@trio_test
async def test_a_list_of_nexthops_gives_the_endpoints_of_each_in_order() -> None:
    resolver = FakeResolver(
        mx={"a.example": [(10, "mx.example")], "b.example": [(1, "mx.example")]},
        hosts={"mx.example": ["192.0.2.1"]},
    )
    listed = await endpoints(network(resolver), "a.example, b.example:26 [192.0.2.9]")
    assert [e.relay for e in listed] == [
        "mx.example[192.0.2.1]:25",
        "mx.example[192.0.2.1]:26",
        "192.0.2.9[192.0.2.9]:25",
    ]
    preferences = [e.preference for e in listed]
    assert preferences == sorted(set(preferences))
    assert preferences[0] == 10


@trio_test
async def test_an_endpoint_knows_which_destination_it_belongs_to() -> None:
    resolver = FakeResolver(
        mx={"a.example": [(65_535, "mx.example"), (0, "mx0.example")]},
        hosts={"mx.example": ["192.0.2.1"], "mx0.example": ["192.0.2.2"]},
    )
    nexthop, fallback = "a.example,[192.0.2.8]:26 , a.example:27", ("[192.0.2.9]", "a.example")
    listed = await endpoints(network(resolver, fallback=fallback), nexthop)
    assert [destination_of(nexthop, endpoint, fallback) for endpoint in listed] == [
        *("a.example", "a.example", "[192.0.2.8]:26", "a.example:27", "a.example:27"),
        *("[192.0.2.9]", "a.example", "a.example"),
    ]


@trio_test
async def test_s028_a_socket_has_no_fallback_relay() -> None:
    path = "unix:/a, b"
    net = network(FakeResolver(), protocol=Protocol.LMTP, fallback=("[192.0.2.9]",))
    assert net.choices(path) == [Choice(path)]
    (unix,) = await endpoints(net, path)
    assert destination_of(path, unix, ("[192.0.2.9]",)) == path


@pytest.mark.parametrize("nexthop", ["", " , ", "[mx.example", "mx.example:70000x", "unix:/x"])
@trio_test
async def test_what_is_no_destination_is_a_configuration_problem(nexthop: str) -> None:
    with pytest.raises(ResolveError) as caught:
        await endpoints(network(FakeResolver()), nexthop)
    assert caught.value.dsn == "4.3.5"
    assert caught.value.reason.startswith("mail system configuration error: ")


@trio_test
async def test_a_failed_search_is_one_plain_exception() -> None:
    hosts = {f"m{n}.example": servfail(f"m{n}.example", "A") for n in range(5)}
    resolver = FakeResolver(mx={"x.example": [(1, host) for host in hosts]}, hosts=hosts)
    with pytest.raises(ResolveError) as caught:
        await endpoints(network(resolver), "x.example")
    assert caught.value.dsn == "4.4.3"


# --- connect ---------------------------------------------------------------------------------


def candidates() -> list[Endpoint]:
    return [Endpoint(host="h", address=a, port=25, family=V4) for a in ("a", "b")]


@trio_test
async def test_without_stagger_connects_follow_one_another(autojump_clock: MockClock) -> None:
    net = network(FakeResolver(), connect_timeout=5.0)
    with pytest.raises(ConnectError) as caught:
        await net.connect(candidates())
    assert isinstance(net.dialer, SlowDialer)
    assert net.dialer.dialled == [(0.0, "a"), (5.0, "b")]
    assert [failure.endpoint for failure in caught.value.failures] == candidates()


@trio_test
async def test_with_stagger_connects_race(autojump_clock: MockClock) -> None:
    net = network(FakeResolver(), stagger=2.0)
    winner, stream = await net.connect(candidates())
    await stream.aclose()
    assert winner == candidates()[0]
    assert isinstance(net.dialer, SlowDialer)
    assert net.dialer.dialled == [(0.0, "a"), (2.0, "b")]


# --- configuration ---------------------------------------------------------------------------


def test_defaults_are_those_of_the_parameter_table() -> None:
    smtp, lmtp = from_config(), from_config(protocol=Protocol.LMTP)
    assert smtp.connect_timeout == 30.0
    assert lmtp.connect_timeout == 0.0
    assert smtp.endpoints.default_port == "smtp"
    assert lmtp.endpoints.default_port == "24"
    assert smtp.endpoints.protocol is Protocol.SMTP
    plain = EndpointSettings()
    for name in ("families", "randomize", "address_limit", "preference", "balance"):
        assert getattr(smtp.endpoints, name) == getattr(plain, name)
    assert smtp.endpoints.ports.known == plain.ports.known
    assert (smtp.stagger, smtp.sources, smtp.dns, smtp.host_lookup) == (0.0, {}, True, ("dns",))
    assert "192.0.2.1" in smtp.endpoints.own


def test_every_parameter_arrives() -> None:
    made = from_config(
        {
            "myhostname": "mail.example",
            "inet_protocols": "ipv6",
            "inet_interfaces": "192.0.2.5",
            "proxy_interfaces": "192.0.2.6",
            "smtp_bind_address6": "[ipv6:2001:db8::5]",
            "smtp_bind_address_enforce": "yes",
            "smtp_tcp_port": "2525",
            "known_tcp_ports": "odd=99",
            "smtp_randomize_addresses": "no",
            "smtp_mx_address_limit": "7",
            "smtp_address_preference": "ipv4",
            "smtp_balance_inet_protocols": "no",
            "smtp_defer_if_no_mx_address_found": "yes",
            "ignore_mx_lookup_error": "yes",
            "smtp_host_lookup": "native, dns",
            "smtp_connect_timeout": "12s",
            "postrio_connect_stagger": "0.5s",
            "queue_directory": "/var/spool/elsewhere",
            "lmtp_connect_timeout": "99s",
        }
    )
    endpoints = made.endpoints
    assert endpoints.hostname == "mail.example"
    assert endpoints.families == (V6,)
    assert "192.0.2.5" in endpoints.own
    assert "192.0.2.6" in endpoints.own
    assert "192.0.2.1" not in endpoints.own
    assert made.sources == {V4: "192.0.2.5", V6: "2001:db8::5"}
    assert made.enforce_source
    assert endpoints.default_port == "2525"
    assert endpoints.ports.known == {"odd": 99}
    assert not endpoints.randomize
    assert endpoints.address_limit == 7
    assert endpoints.preference is AddressPreference.IPV4
    assert not endpoints.balance
    assert endpoints.defer_if_no_mx_address
    assert endpoints.ignore_mx_lookup_error
    assert set(made.host_lookup) == {"dns", "native"}
    assert made.connect_timeout == 12.0
    assert made.stagger == 0.5
    assert made.socket_directory == Path("/var/spool/elsewhere")


def test_an_explicit_source_address_comes_before_the_only_interface() -> None:
    made = from_config({"inet_interfaces": "192.0.2.5", "smtp_bind_address": "192.0.2.8"})
    assert made.sources == {V4: "192.0.2.8"}


@pytest.mark.parametrize(
    ("parameters", "dns"),
    [
        ({}, True),
        ({"disable_dns_lookups": "yes"}, False),
        ({"smtp_dns_support_level": "disabled"}, False),
        ({"smtp_dns_support_level": "enabled", "disable_dns_lookups": "yes"}, True),
    ],
)
def test_s029_dns_can_be_disabled_by_its_new_and_its_old_name(
    parameters: dict[str, str], dns: bool
) -> None:
    assert from_config(parameters).dns is dns


def test_s027_the_former_name_gives_the_fallback_relays_of_smtp() -> None:
    former = {"fallback_relay": "[a.example]:26, b.example"}
    assert from_config(former).fallback == ("[a.example]:26", "b.example")
    assert from_config(former, Protocol.LMTP).fallback == ()
    assert from_config({**former, "smtp_fallback_relay": "c.example"}).fallback == ("c.example",)


def test_s028_each_protocol_has_its_fallback_relays_and_smtp_alone_a_relayhost() -> None:
    set_up = {"lmtp_fallback_relay": "inet:a.example:24 b.example", "relayhost": "[r.example]"}
    assert from_config(set_up, Protocol.LMTP).fallback == ("inet:a.example:24", "b.example")
    assert from_config(set_up, Protocol.LMTP).relayhost == ""
    assert from_config(set_up).fallback == ()
    assert from_config(set_up).relayhost == "[r.example]"


@pytest.mark.parametrize(
    ("protocol", "value", "why"),
    [
        (Protocol.SMTP, "[a.example", "unbalanced brackets"),
        (Protocol.SMTP, "unix:/run/x", "unix: is for LMTP only"),
        (Protocol.LMTP, "unix:/run/x", "must be reached by TCP"),
        (Protocol.LMTP, "a.example:port:2", "more than one colon"),
        (Protocol.SMTP, "a.example:no-such-service", "unknown service no-such-service"),
    ],
)
def test_s028_a_fallback_relay_that_is_none_stops_the_start(
    protocol: Protocol, value: str, why: str
) -> None:
    name = f"{protocol.value}_fallback_relay"
    with pytest.raises(ConfigError, match=f"{name} = .*{why}"):
        from_config({name: f"good.example, {value}"}, protocol)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("smtp_bind_address", "::1"),
        ("smtp_bind_address", "mail.example"),
        ("smtp_bind_address6", "192.0.2.1"),
        ("known_tcp_ports", "smtp"),
    ],
)
def test_a_bad_value_is_an_error_that_names_parameter_and_value(parameter: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{parameter} = {value}: "):
        from_config({parameter: value})


def test_an_own_name_without_address_is_an_error_that_names_the_parameter() -> None:
    def look_up(name: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    config = Config.from_mapping({"proxy_interfaces": "nat.example"})
    with pytest.raises(ConfigError, match=r"proxy_interfaces = nat\.example: .*has no address"):
        NetworkSettings.from_config(config, Protocol.SMTP, local=lambda: LOCAL, look_up=look_up)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("[127.0.0.1]:54", ("127.0.0.1", 54)),
    ],
)
def test_a_dns_server_is_an_address_with_or_without_port(
    text: str, server: tuple[str, int]
) -> None:
    assert parse_dns_server(text) == server


@pytest.mark.parametrize(
    "text",
    ["ns.example", "127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:", "[::1", "[::1]x", "127.0.0.1:65536"],
)
def test_what_is_no_dns_server_is_refused_by_parameter_name(text: str) -> None:
    with pytest.raises(ConfigError, match="postrio_dns_server = "):
        DnsSettings.from_config(Config.from_mapping({"postrio_dns_server": text}))


def test_the_command_lines_resolver_comes_before_the_parameter() -> None:
    config = Config.from_mapping({"postrio_dns_server": "127.0.0.1", "postrio_dns_timeout": "2.5s"})
    assert DnsSettings.from_config(config) == DnsSettings(server=("127.0.0.1", 53), timeout=2.5)
    assert DnsSettings.from_config(config, resolver="127.0.0.2:54").server == ("127.0.0.2", 54)


def test_the_resolver_is_dns_or_the_system_or_both_with_dns_first() -> None:
    dns, native = FakeResolver(), NativeResolver()
    assert make_resolver(NetworkSettings(), dns, native) is dns
    assert make_resolver(NetworkSettings(dns=False), dns, native) is native
    both = NetworkSettings(host_lookup=("native", "dns"))
    assert make_resolver(both, dns, native) == HostLookup(dns, (dns, native))
    only = NetworkSettings(host_lookup=("native",))
    assert make_resolver(only, dns, native) == HostLookup(dns, (native,))


@trio_test
async def test_the_parts_are_made_from_their_settings() -> None:
    dns, native = make_dns(DnsSettings(server=("127.0.0.1", 54), timeout=3.0))
    assert (dns._timeout, native._timeout) == (3.0, 3.0)
    assert [str(server) for server in dns._client.nameservers] == ["Do53:127.0.0.1@54"]
    settings = NetworkSettings(sources={V4: "192.0.2.1"}, enforce_source=True)
    dialer = make_dialer(settings, lambda event: None)
    assert isinstance(dialer, SocketDialer)
    assert dialer.sources == {V4: "192.0.2.1"}
    assert dialer.enforce_source
