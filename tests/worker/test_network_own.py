"""Own addresses, source addresses, ports: what the configuration says about this host."""

import ipaddress
import socket
from collections.abc import Sequence

import pytest

from worker.network.own import (
    OwnAddressError,
    OwnAddresses,
    canonical,
    interface_addresses,
    local_addresses,
    source_addresses,
    system_look_up,
)
from worker.network.ports import ServicePorts, UnknownServiceError, parse_known_ports

LOCAL = ["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "fe80::1"]
NAMES = {"mail.example": ["192.0.2.7", "2001:db8::7"], "localhost": ["127.0.0.1", "127.0.0.1"]}


def look_up(name: str) -> list[str]:
    try:
        return NAMES[name]
    except KeyError:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None


def interfaces(*words: str) -> list[str]:
    return [str(address) for address in interface_addresses(words, lambda: LOCAL, look_up)]


# --- inet_interfaces and proxy_interfaces ----------------------------------------------------


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        (("all",), LOCAL),
        (("ALL",), LOCAL),
        (("loopback-only",), ["127.0.0.1", "::1"]),
        (("192.0.2.9",), ["192.0.2.9"]),
        (("[192.0.2.9]", "[ipv6:2001:db8::9]", "[2001:db8::9]"), ["192.0.2.9", "2001:db8::9"]),
        (("mail.example", "localhost"), ["192.0.2.7", "2001:db8::7", "127.0.0.1"]),
        ((), []),
    ],
)
def test_s031_interfaces_are_addresses_names_or_a_word_for_several(
    words: Sequence[str], addresses: list[str]
) -> None:
    assert interfaces(*words) == addresses


def test_an_interface_whose_name_has_no_address_is_a_configuration_error() -> None:
    with pytest.raises(OwnAddressError, match=r"^nowhere\.example has no address: "):
        interfaces("nowhere.example")


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("2001:DB8:0::1", True),
        ("fe80::1%eth0", True),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.2", False),
        ("/private/lmtp", False),
        ("", False),
    ],
)
def test_an_own_address_is_known_in_any_spelling(address: str, ours: bool) -> None:
    own = OwnAddresses(frozenset(interface_addresses(["all"], lambda: LOCAL, look_up)))
    assert (address in own) is ours


def test_the_machine_tells_its_addresses() -> None:
    addresses = local_addresses()
    assert "127.0.0.1" in addresses
    for address in addresses:  # each can be bound: it is ours; link-local ones need their scope
        parsed = ipaddress.ip_address(address)
        if parsed.is_link_local:
            continue
        family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))


def test_the_system_knows_localhost() -> None:
    assert {"127.0.0.1", "::1"} & set(system_look_up("localhost"))


# --- source addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sources"),
    [
        (("192.0.2.9",), {socket.AF_INET: "192.0.2.9"}),
        (
            ("192.0.2.9", "2001:db8::9"),
            {socket.AF_INET: "192.0.2.9", socket.AF_INET6: "2001:db8::9"},
        ),
        (("192.0.2.9", "192.0.2.10", "2001:db8::9"), {socket.AF_INET6: "2001:db8::9"}),
        (("192.0.2.9", "127.0.0.1"), {}),
        (("127.0.0.1", "::1"), {}),
        (("loopback-only",), {}),
        ((), {}),
    ],
)
def test_s031_a_single_address_of_a_family_is_its_source_address(
    words: Sequence[str], sources: dict[socket.AddressFamily, str]
) -> None:
    addresses = interface_addresses(words, lambda: LOCAL, look_up)
    assert source_addresses(words, addresses) == sources


def test_s031_all_interfaces_choose_no_source_even_on_a_host_with_one_address() -> None:
    assert source_addresses(["all"], [canonical("192.0.2.1")]) == {}


# --- ports -----------------------------------------------------------------------------------


def test_known_ports_may_have_several_names_each() -> None:
    items = ["lmtp=24", "smtp=25", "smtps=submissions=465", "submission=587"]
    assert parse_known_ports(items) == {
        "lmtp": 24,
        "smtp": 25,
        "smtps": 465,
        "submissions": 465,
        "submission": 587,
    }


@pytest.mark.parametrize(
    "item", ["smtp", "25", "=25", "smtp=", "smtp=x", "a==25", "smtp=0", "x=65536"]
)
def test_a_known_port_that_is_none_is_refused(item: str) -> None:
    with pytest.raises(UnknownServiceError):
        parse_known_ports([item])


def test_known_ports_come_before_the_services_file() -> None:
    ports = ServicePorts({"smtp": 2525}, system=lambda name: 25)
    assert ports.number("smtp") == 2525
    assert ports.number("other") == 25
    assert ports.number("587") == 587
    assert ports.number(588) == 588


@pytest.mark.parametrize("service", ["0", "65536", "999999", "-1", "nosuch", "", "٢٥", 0, 65536])
def test_what_is_no_port_is_never_taken_for_one(service: int | str) -> None:
    def system(name: str) -> int:
        raise OSError("service/proto not found")

    with pytest.raises(UnknownServiceError):
        ServicePorts({"smtp": 25}, system).number(service)


def test_the_systems_services_file_is_asked() -> None:
    assert ServicePorts().number("smtp") == 25
    assert ServicePorts().of_system("no-such-service") is None
