"""The system's lookup in threads, and which source is asked when (smtp_host_lookup)."""

import socket
import threading
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, trio_test

from tests.worker.fake_dns import FakeResolver, servfail
from worker.network.native_resolver import NativeResolver, system_addresses
from worker.network.resolver import (
    HostAddress,
    HostLookup,
    LookupFailure,
    LookupTrouble,
    MxAnswer,
    NameNotFound,
)

V4, V6 = socket.AF_INET, socket.AF_INET6


def hosts_file(host: str) -> Sequence[HostAddress]:
    """A hosts file with one name, its address listed twice."""
    if host != "intern":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [HostAddress(V6, "::1"), HostAddress(V4, "192.0.2.1"), HostAddress(V4, "192.0.2.1")]


# --- native ----------------------------------------------------------------------------------


@trio_test
async def test_the_systems_addresses_come_in_the_order_of_the_families() -> None:
    native = NativeResolver(get_addresses=hosts_file)
    assert await native.addresses("intern", (V4, V6)) == (
        HostAddress(V4, "192.0.2.1"),
        HostAddress(V6, "::1"),
    )
    assert await native.addresses("intern", (V6,)) == (HostAddress(V6, "::1"),)


@trio_test
async def test_the_system_knows_no_exchangers() -> None:
    assert await NativeResolver(get_addresses=hosts_file).mx("intern") == MxAnswer()


def failing(error: Exception) -> NativeResolver:
    def get_addresses(host: str) -> Sequence[HostAddress]:
        raise error

    return NativeResolver(get_addresses=get_addresses)


@pytest.mark.parametrize(
    ("error", "failure", "dsn", "text"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            NameNotFound,
            "5.4.4",
            "unable to look up host h: Name or service not known",
        ),
        (
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            LookupTrouble,
            "4.4.4",
            "unable to look up host h: Temporary failure in name resolution",
        ),
        (
            OSError(24, "Too many open files"),
            LookupTrouble,
            "4.4.4",
            "unable to look up host h: Too many open files",
        ),
        (
            UnicodeError("label too long"),
            NameNotFound,
            "5.4.4",
            "unable to look up host h: invalid host or domain name",
        ),
    ],
)
@trio_test
async def test_the_systems_failures_are_told_apart(
    error: Exception, failure: type[LookupFailure], dsn: str, text: str
) -> None:
    with pytest.raises(failure) as caught:
        await failing(error).addresses("h", (V4, V6))
    assert (caught.value.dsn, caught.value.reason) == (dsn, text)


@trio_test
async def test_a_name_without_address_of_the_wanted_family_is_not_found() -> None:
    native = NativeResolver(get_addresses=lambda host: [HostAddress(V6, "::1")])
    with pytest.raises(NameNotFound):
        await native.addresses("intern", (V4,))


@trio_test
async def test_s022_a_lookup_that_hangs_ends_at_its_limit_and_holds_only_its_thread(
    autojump_clock: MockClock,
) -> None:
    release = threading.Event()

    def get_addresses(host: str) -> Sequence[HostAddress]:
        if host == "hangs":
            release.wait(10)
        return [HostAddress(V4, "192.0.2.1")]

    native = NativeResolver(30.0, max_threads=2, get_addresses=get_addresses)
    try:
        with pytest.raises(LookupTrouble, match="timed out"):
            await native.addresses("hangs", (V4,))
        assert trio.current_time() == 30.0
        assert native._threads.borrowed_tokens == 1
    finally:
        release.set()


@trio_test
async def test_the_real_system_is_asked() -> None:
    assert await NativeResolver(get_addresses=system_addresses).addresses("localhost", (V4, V6))


# --- which source when -----------------------------------------------------------------------


@trio_test
async def test_s022_native_is_asked_for_what_dns_does_not_know() -> None:
    lookup = HostLookup(FakeResolver(), (FakeResolver(), NativeResolver(get_addresses=hosts_file)))
    assert await lookup.addresses("intern", (V4,)) == (HostAddress(V4, "192.0.2.1"),)


@trio_test
async def test_s022_native_is_not_asked_after_trouble() -> None:
    dns = FakeResolver(hosts={"intern": servfail("intern", "A")})
    lookup = HostLookup(dns, (dns, NativeResolver(get_addresses=hosts_file)))
    with pytest.raises(LookupTrouble):
        await lookup.addresses("intern", (V4,))


@trio_test
async def test_native_is_not_asked_for_what_dns_knows() -> None:
    dns = FakeResolver(hosts={"intern": ["192.0.2.99"]})
    lookup = HostLookup(dns, (dns, NativeResolver(get_addresses=hosts_file)))
    assert await lookup.addresses("intern", (V4,)) == (HostAddress(V4, "192.0.2.99"),)


@trio_test
async def test_exchangers_always_come_from_dns() -> None:
    dns = FakeResolver(mx={"x.example": [(1, "intern")]})
    lookup = HostLookup(dns, (NativeResolver(get_addresses=hosts_file),))
    assert (await lookup.mx("x.example")).records == ((1, "intern"),)
    assert await lookup.addresses("intern", (V4,)) == (HostAddress(V4, "192.0.2.1"),)
    assert dns.questions == [("MX", "x.example")]
