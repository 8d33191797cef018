"""The DNS client against a server that the test scripts, on loopback and a virtual clock.

The sockets are real, the time is not: what is sent on loopback is there at once, so the clock only
jumps when nobody has anything left to do.
"""

import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
import trio.testing
from dns.rdatatype import RdataType
from trio.testing import MockClock, trio_test

from tests.cancel_everywhere import cancel_everywhere
from worker.network.dns_resolver import DnsResolver, read_reply
from worker.network.resolver import (
    HostAddress,
    LookupFailure,
    LookupTrouble,
    MxAnswer,
    MxRecord,
    NameNotFound,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
SOA = "example. 600 IN SOA ns.example. admin.example. 1 3600 600 86400 300"

Answer = Callable[[dns.message.Message], bytes | None]  # query -> reply as octets, None: silence


class Server:
    """A DNS server on UDP and TCP of one port. `questions` is what it was asked, in order."""

    def __init__(self, udp: socket.socket, tcp: socket.socket, answer: Answer) -> None:
        self.questions: list[str] = []
        self.over_tcp = 0
        self.answer = answer
        self._udp = trio.socket.from_stdlib_socket(udp)
        self._tcp = trio.SocketListener(_listening(tcp))

    async def serve_udp(self) -> None:
        while True:
            wire, peer = await self._udp.recvfrom(65_535)
            reply = self._reply(wire)
            if reply is not None:
                await self._udp.sendto(reply, peer)

    async def serve_tcp(self) -> None:
        while True:
            async with await self._tcp.accept() as stream:
                (length,) = struct.unpack("!H", await stream.receive_some(2))
                self.over_tcp += 1
                reply = self._reply(bytes(await stream.receive_some(length)))
                if reply is not None:
                    await stream.send_all(struct.pack("!H", len(reply)) + reply)

    def _reply(self, wire: bytes) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        self.questions.append(f"{question.name} {dns.rdatatype.to_text(question.rdtype)}")
        return self.answer(query)


def _listening(tcp: socket.socket) -> trio.socket.SocketType:
    tcp.listen()
    return trio.socket.from_stdlib_socket(tcp)


def bound_pair() -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket of the same port; what is free for one may be taken for the other."""
    for _ in range(100):
        udp, tcp = socket.socket(V4, socket.SOCK_DGRAM), socket.socket()
        udp.bind(("127.0.0.1", 0))
        try:
            tcp.bind(udp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
        else:
            return udp, tcp
    raise AssertionError("no port is free for both")


@contextmanager
def loopback_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP and a TCP socket of the same port."""
    udp, tcp = bound_pair()
    with udp, tcp:
        udp.settimeout(0)
        tcp.settimeout(0)
        yield udp, tcp


@asynccontextmanager
async def serving(answer: Answer, **settings: float) -> AsyncIterator[tuple[Server, DnsResolver]]:
    """A server with this behaviour, and a resolver that asks it.

    Its nursery spans the `yield`, so what fails inside comes out in a group: enough for a test.
    """
    with loopback_sockets() as (udp, tcp):
        server = Server(udp, tcp, answer)
        entries = int(settings.get("max_entries", 100))
        timeout = settings.get("timeout", 30.0)
        resolver = DnsResolver(udp.getsockname(), timeout, max_entries=entries)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_udp)
            nursery.start_soon(server.serve_tcp)
            yield server, resolver
            nursery.cancel_scope.cancel()


def zone(*lines: str, negative: str = SOA) -> Answer:
    """A server that knows these records: answers by name and type, CNAMEs along, NXDOMAIN."""
    records = [dns.rrset.from_text(*_fields(line)) for line in lines]

    def answer(query: dns.message.Message) -> bytes:
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        name, kind = query.question[0].name, query.question[0].rdtype
        reply.answer = [rr for rr in records if rr.name == name and rr.rdtype in (kind, 5)]
        if not reply.answer:
            if negative:
                reply.authority = [dns.rrset.from_text(*_fields(negative))]
            if all(rr.name != name for rr in records):
                reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()

    return answer


def _fields(line: str) -> tuple[str, int, str, str, str]:
    name, ttl, rdclass, kind, text = line.split(" ", 4)
    return name, int(ttl), rdclass, kind, text


def whole(*lines: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, authority: str = "") -> Answer:
    """A server whose one answer to everything has these lines, in this order."""

    def answer(query: dns.message.Message) -> bytes:
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        reply.answer = [dns.rrset.from_text(*_fields(line)) for line in lines]
        if authority:
            reply.authority = [dns.rrset.from_text(*_fields(authority))]
        return reply.to_wire()

    return answer


async def mx_of(answer: Answer, domain: str = "x.example") -> MxAnswer:
    async with serving(answer) as (_, resolver):
        return await resolver.mx(domain)


async def failure_of(answer: Answer, domain: str = "x.example") -> LookupFailure:
    async with serving(answer) as (_, resolver):
        try:
            found = await resolver.mx(domain)
        except LookupFailure as exc:
            return exc
        raise AssertionError(f"found {found}")


# --- answers ---------------------------------------------------------------------------------


@trio_test
async def test_exchangers_come_sorted_by_preference(autojump_clock: MockClock) -> None:
    answer = whole(
        "x.example. 60 IN MX 20 c.example.",
        "x.example. 60 IN MX 5 b.example.",
        "x.example. 60 IN MX 10 A.example.",
    )
    assert (await mx_of(answer)).records == (
        MxRecord(5, "b.example"),
        MxRecord(10, "A.example"),
        MxRecord(20, "c.example"),
    )


@trio_test
async def test_s001_no_more_than_a_hundred_exchangers_are_used_and_the_best_ones(
    autojump_clock: MockClock,
) -> None:
    lines = [f"x.example. 60 IN MX {1000 - n} m{n}.example." for n in range(300)]
    records = (await mx_of(whole(*lines))).records
    assert len(records) == 100
    assert records[0] == MxRecord(701, "m299.example")


@trio_test
async def test_a_lone_root_exchanger_is_a_null_mx(autojump_clock: MockClock) -> None:
    assert await mx_of(whole("x.example. 60 IN MX 0 .")) == MxAnswer(null_mx=True)


@trio_test
async def test_a_root_exchanger_beside_others_is_ignored(autojump_clock: MockClock) -> None:
    answer = whole("x.example. 60 IN MX 0 .", "x.example. 60 IN MX 5 b.example.")
    assert await mx_of(answer) == MxAnswer((MxRecord(5, "b.example"),))


@trio_test
async def test_exchangers_that_cannot_be_host_names_are_unusable(
    autojump_clock: MockClock,
) -> None:
    answer = whole(r"x.example. 60 IN MX 0 a\032b.example.", r"x.example. 60 IN MX 5 \@.example.")
    assert await mx_of(answer) == MxAnswer(unusable=True)


@trio_test
async def test_an_existing_name_without_mx_says_so(autojump_clock: MockClock) -> None:
    assert await mx_of(zone("x.example. 60 IN A 192.0.2.1")) == MxAnswer()


@trio_test
async def test_both_families_are_asked_at_once(autojump_clock: MockClock) -> None:
    answer = zone("h.example. 60 IN A 192.0.2.1", "h.example. 60 IN AAAA 2001:db8::1")
    async with serving(answer) as (server, resolver):
        assert await resolver.addresses("h.example", (V6, V4)) == (
            HostAddress(V6, "2001:db8::1"),
            HostAddress(V4, "192.0.2.1"),
        )
        assert sorted(server.questions) == ["h.example. A", "h.example. AAAA"]


@trio_test
async def test_one_family_is_enough_even_if_the_other_is_in_trouble(
    autojump_clock: MockClock,
) -> None:
    good = zone("h.example. 60 IN A 192.0.2.1")

    def answer(query: dns.message.Message) -> bytes | None:
        return good(query) if query.question[0].rdtype == RdataType.A else None

    async with serving(answer) as (_, resolver):
        assert await resolver.addresses("h.example", (V4, V6)) == (HostAddress(V4, "192.0.2.1"),)


@trio_test
async def test_trouble_with_one_family_outweighs_that_the_other_has_no_address(
    autojump_clock: MockClock,
) -> None:
    good = zone("h.example. 60 IN TXT x")

    def answer(query: dns.message.Message) -> bytes | None:
        return good(query) if query.question[0].rdtype == RdataType.A else None

    async with serving(answer) as (_, resolver):
        with pytest.raises(LookupTrouble):
            await resolver.addresses("h.example", (V4, V6))


@trio_test
async def test_an_answer_that_was_cut_off_is_asked_for_again_over_tcp(
    autojump_clock: MockClock,
) -> None:
    full = whole(*(f"x.example. 60 IN MX {n} m{n}.example." for n in range(50)))
    async with serving(lambda query: None) as (server, resolver):

        def answer(query: dns.message.Message) -> bytes | None:
            if server.over_tcp:
                return full(query)
            cut = dns.message.make_response(query)
            cut.flags |= dns.flags.TC
            return cut.to_wire()

        server.answer = answer
        assert len((await resolver.mx("x.example")).records) == 50


# --- failures --------------------------------------------------------------------------------


@trio_test
async def test_a_name_that_does_not_exist_is_not_found(autojump_clock: MockClock) -> None:
    failure = await failure_of(zone("other.example. 60 IN A 192.0.2.1"))
    assert isinstance(failure, NameNotFound)
    assert failure.dsn == "5.4.4"
    assert failure.reason == (
        "Host or domain name not found. Name service error for name=x.example type=MX: "
        "Host not found"
    )


@trio_test
async def test_a_host_without_address_is_not_found(autojump_clock: MockClock) -> None:
    async with serving(zone("h.example. 60 IN TXT x")) as (_, resolver):
        with pytest.raises(NameNotFound) as caught:
            await resolver.addresses("h.example", (V4, V6))
    assert caught.value.reason.endswith(
        "name=h.example type=AAAA: Host found but no data record of requested type"
    )


@pytest.mark.parametrize("name", ["", "a..example", "a b.example", "x" * 64, "a\\.b", "ü.example"])
@trio_test
async def test_what_cannot_be_a_name_is_not_found_and_not_asked(
    name: str, autojump_clock: MockClock
) -> None:
    async with serving(zone()) as (server, resolver):
        with pytest.raises(NameNotFound, match="invalid host or domain name"):
            await resolver.mx(name)
        assert server.questions == []


@pytest.mark.parametrize(
    "rcode",
    [
        dns.rcode.SERVFAIL,
        dns.rcode.REFUSED,
        dns.rcode.NOTIMP,
        dns.rcode.FORMERR,
        dns.rcode.YXDOMAIN,
    ],
)
@trio_test
async def test_a_server_that_fails_is_trouble(
    rcode: dns.rcode.Rcode, autojump_clock: MockClock
) -> None:
    failure = await failure_of(whole(rcode=rcode))
    assert isinstance(failure, LookupTrouble)
    assert failure.dsn == "4.4.3"
    assert failure.reason == (
        "Host or domain name not found. Name service error for name=x.example type=MX: "
        "Host not found, try again"
    )


@trio_test
async def test_silence_is_trouble_after_several_questions_and_the_time_limit(
    autojump_clock: MockClock,
) -> None:
    async with serving(lambda query: None, timeout=12.0) as (server, resolver):
        with pytest.raises(LookupTrouble):
            await resolver.mx("x.example")
        assert trio.current_time() == 12.0
        assert len(server.questions) > 3


@trio_test
async def test_one_lost_answer_only_costs_time(autojump_clock: MockClock) -> None:
    good = whole("x.example. 60 IN MX 5 b.example.")
    async with serving(lambda query: None) as (server, resolver):
        server.answer = lambda query: good(query) if len(server.questions) > 1 else None
        assert (await resolver.mx("x.example")).records == (MxRecord(5, "b.example"),)


@trio_test
async def test_no_server_at_all_is_trouble(autojump_clock: MockClock) -> None:
    with loopback_sockets() as (udp, _):
        address = udp.getsockname()
    with pytest.raises(LookupTrouble):
        await DnsResolver(address, 5.0).mx("x.example")


@trio_test
async def test_a_referral_is_trouble_and_not_an_absence(autojump_clock: MockClock) -> None:
    failure = await failure_of(whole(authority="example. 60 IN NS ns.example."))
    assert isinstance(failure, LookupTrouble)


# --- aliases and strangers -------------------------------------------------------------------


@trio_test
async def test_an_alias_is_followed_inside_one_answer(autojump_clock: MockClock) -> None:
    answer = whole("x.example. 60 IN CNAME y.example.", "y.example. 60 IN MX 5 b.example.")
    assert (await mx_of(answer)).records == (MxRecord(5, "b.example"),)


@trio_test
async def test_an_alias_that_leaves_the_answer_is_asked_for(autojump_clock: MockClock) -> None:
    answer = zone("x.example. 60 IN CNAME y.other.", "y.other. 60 IN MX 5 b.example.")
    async with serving(answer) as (server, resolver):
        assert (await resolver.mx("x.example")).records == (MxRecord(5, "b.example"),)
        assert server.questions == ["x.example. MX", "y.other. MX"]


@trio_test
async def test_an_alias_of_nothing_is_not_found_under_the_name_that_was_asked(
    autojump_clock: MockClock,
) -> None:
    failure = await failure_of(zone("x.example. 60 IN CNAME gone.example."))
    assert isinstance(failure, NameNotFound)
    assert "name=x.example type=MX: Host not found" in failure.reason


@pytest.mark.parametrize(
    "answer",
    [
        zone("x.example. 60 IN CNAME x.example."),
        whole("x.example. 60 IN CNAME y.example.", "y.example. 60 IN CNAME x.example."),
        zone("x.example. 60 IN CNAME y.example.", "y.example. 60 IN CNAME x.example."),
        whole(
            *(
                f"{'x' if n == 0 else f'n{n}'}.example. 60 IN CNAME n{n + 1}.example."
                for n in range(12)
            ),
            "n12.example. 60 IN MX 5 b.example.",
        ),
    ],
    ids=["itself", "circle", "circle over replies", "too long"],
)
@trio_test
async def test_chains_that_do_not_end_are_trouble_after_a_bounded_number_of_questions(
    answer: Answer, autojump_clock: MockClock
) -> None:
    async with serving(answer) as (server, resolver):
        with pytest.raises(LookupTrouble):
            await resolver.mx("x.example")
        assert len(server.questions) <= 11


@trio_test
async def test_records_of_another_name_are_not_used(autojump_clock: MockClock) -> None:
    answer = whole("y.example. 60 IN MX 5 evil.example.", authority=SOA)
    assert await mx_of(answer) == MxAnswer()


@trio_test
async def test_an_answer_to_another_question_is_waited_out(autojump_clock: MockClock) -> None:
    def answer(query: dns.message.Message) -> bytes:
        other = dns.message.make_query("y.example.", RdataType.MX, id=query.id)
        return whole("y.example. 60 IN MX 5 evil.example.")(other) or b""

    assert isinstance(await failure_of(answer), LookupTrouble)


# --- memory ----------------------------------------------------------------------------------


@trio_test
async def test_an_answer_is_remembered_until_its_ttl_is_over(autojump_clock: MockClock) -> None:
    async with serving(whole("x.example. 60 IN MX 5 b.example.")) as (server, resolver):
        await resolver.mx("x.example")
        await trio.sleep(59.9)
        await resolver.mx("X.EXAMPLE.")
        assert len(server.questions) == 1
        await trio.sleep(0.2)
        await resolver.mx("x.example")
        assert len(server.questions) == 2


@pytest.mark.parametrize("server_kind", [whole, zone], ids=["in one reply", "over two replies"])
@trio_test
async def test_the_shortest_ttl_of_a_chain_counts(
    server_kind: Callable[..., Answer], autojump_clock: MockClock
) -> None:
    lines = ("x.example. 30 IN CNAME y.example.", "y.example. 600 IN MX 5 b.example.")
    async with serving(server_kind(*lines)) as (server, resolver):
        await resolver.mx("x.example")
        server.questions.clear()
        await trio.sleep(29)
        await resolver.mx("x.example")
        assert server.questions == []
        await trio.sleep(2)
        await resolver.mx("x.example")
        assert server.questions[0] == "x.example. MX"


@trio_test
async def test_a_ttl_of_years_is_kept_for_a_day(autojump_clock: MockClock) -> None:
    async with serving(whole("x.example. 99999999 IN MX 5 b.example.")) as (server, resolver):
        await resolver.mx("x.example")
        await trio.sleep_until(trio.current_time() + 86_401)
        await resolver.mx("x.example")
        assert len(server.questions) == 2


@trio_test
async def test_a_ttl_of_zero_is_not_remembered(autojump_clock: MockClock) -> None:
    async with serving(whole("x.example. 0 IN MX 5 b.example.")) as (server, resolver):
        await resolver.mx("x.example")
        await resolver.mx("x.example")
        assert len(server.questions) == 2


@pytest.mark.parametrize(
    ("negative", "kept"),
    [
        ("example. 600 IN SOA n. a. 1 3600 600 86400 300", 300),
        ("example. 200 IN SOA n. a. 1 3600 600 86400 300", 200),
        ("example. 99999 IN SOA n. a. 1 3600 600 86400 99999", 3600),
        ("stranger. 600 IN SOA n. a. 1 3600 600 86400 300", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
@trio_test
async def test_an_absence_is_remembered_as_long_as_its_soa_says(
    negative: str, kept: float, exists: bool, autojump_clock: MockClock
) -> None:
    records = ["x.example. 60 IN TXT x"] if exists else []
    async with serving(zone(*records, negative=negative)) as (server, resolver):

        async def ask() -> None:
            if exists:
                assert await resolver.mx("x.example") == MxAnswer()
            else:
                with pytest.raises(NameNotFound):
                    await resolver.mx("x.example")

        await ask()
        if kept:
            await trio.sleep(kept - 0.5)
            await ask()
            assert len(server.questions) == 1
            await trio.sleep(1.0)
        await ask()
        assert len(server.questions) == 2


@trio_test
async def test_trouble_is_not_remembered(autojump_clock: MockClock) -> None:
    async with serving(whole(rcode=dns.rcode.SERVFAIL)) as (server, resolver):
        with pytest.raises(LookupTrouble):
            await resolver.mx("x.example")
        server.answer = whole("x.example. 60 IN MX 5 b.example.")
        assert (await resolver.mx("x.example")).records


@trio_test
async def test_memory_is_bounded_and_the_oldest_answer_goes_first(
    autojump_clock: MockClock,
) -> None:
    async with serving(zone("a. 60 IN MX 1 h."), max_entries=3) as (server, resolver):
        for n in range(10):
            with pytest.raises(NameNotFound):
                await resolver.mx(f"n{n}.example")
        assert len(resolver._known) == 3
        server.questions.clear()
        for n in (7, 8, 9, 6):
            with pytest.raises(NameNotFound):
                await resolver.mx(f"n{n}.example")
        assert server.questions == ["n6.example. MX"]


# --- one flight for equal questions ----------------------------------------------------------


@trio_test
async def test_equal_questions_at_once_are_asked_once(autojump_clock: MockClock) -> None:
    results: list[MxAnswer] = []
    async with serving(whole("x.example. 0 IN MX 5 b.example.")) as (server, resolver):

        async def ask() -> None:
            results.append(await resolver.mx("x.example"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert server.questions == ["x.example. MX"]
    assert results == [MxAnswer((MxRecord(5, "b.example"),))] * 20


@trio_test
async def test_trouble_is_shared_by_those_who_waited(autojump_clock: MockClock) -> None:
    failures: list[LookupFailure] = []
    async with serving(lambda query: None, timeout=12.0) as (_, resolver):

        async def ask() -> None:
            try:
                await resolver.mx("x.example")
            except LookupTrouble as exc:
                failures.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert trio.current_time() == 12.0
    assert len({id(failure) for failure in failures}) == 5


@trio_test
async def test_when_the_asker_is_cancelled_another_one_asks(autojump_clock: MockClock) -> None:
    results: list[MxAnswer] = []
    impatient = trio.CancelScope()
    async with serving(lambda query: None) as (server, resolver):

        async def ask_impatiently() -> None:
            with impatient:
                await resolver.mx("x.example")

        async def ask() -> None:
            results.append(await resolver.mx("x.example"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_impatiently)
            while not server.questions:
                await trio.lowlevel.checkpoint()
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.sleep(1.0)
            assert len(server.questions) == 1
            server.answer = whole("x.example. 60 IN MX 5 b.example.")
            impatient.cancel()
        assert trio.current_time() == 1.0  # nobody waited for the retry of the lost question
        assert len(server.questions) == 2
        assert resolver._flights == {}
    assert results == [MxAnswer((MxRecord(5, "b.example"),))] * 3


def test_cancelled_at_any_step_no_flight_and_no_socket_stays_behind() -> None:
    held: list[DnsResolver] = []

    async def ask_twice(world: None) -> None:
        async with serving(whole("x.example. 60 IN MX 5 b.example.")) as (_, resolver):
            held.append(resolver)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(resolver.mx, "x.example")
                nursery.start_soon(resolver.mx, "x.example")

    for run in cancel_everywhere(lambda: None, ask_twice):
        assert all(resolver._flights == {} for resolver in held), f"at step {run.step}"
        assert all(resolver._sockets.borrowed_tokens == 0 for resolver in held)


# --- hostile servers -------------------------------------------------------------------------


def mangle(wire: bytes, rng: random.Random) -> bytes:
    """Change some octets behind the question's id, cut, or add."""
    octets = bytearray(wire)
    for _ in range(rng.randint(1, 4)):
        octets[rng.randrange(2, len(octets))] = rng.randrange(256)
    if rng.random() < 0.2:
        del octets[rng.randrange(12, len(octets)) :]
    if rng.random() < 0.1:
        octets += rng.randbytes(rng.randrange(40))
    return bytes(octets)


RICH = whole(
    "x.example. 60 IN CNAME y.example.",
    "y.example. 60 IN CNAME z.example.",
    "z.example. 60 IN MX 5 b.example.",
    "z.example. 60 IN MX 7 c.example.",
    "b.example. 60 IN A 192.0.2.1",
    authority=SOA,
)


@trio_test
async def test_s182_mangled_answers_never_raise_anything_but_lookup_failures(
    autojump_clock: MockClock,
) -> None:
    rng = random.Random(20)

    def answer(query: dns.message.Message) -> bytes:
        wire = RICH(query) or b""
        kind = rng.randrange(4)
        if kind == 0:
            return query.to_wire()[:2] + rng.randbytes(rng.randrange(60))
        if kind == 1:  # cut off: the rest of the garbage comes over TCP
            return wire[:2] + bytes([wire[2] | 0x02]) + wire[3:]
        return mangle(wire, rng)

    outcomes = set[str]()
    async with serving(answer, timeout=2.0, max_entries=1) as (_, resolver):
        for _ in range(150):
            resolver._known.clear()
            try:
                await resolver.mx("x.example")
                outcomes.add("found")
            except LookupFailure as exc:
                outcomes.add(type(exc).__name__)
    assert {"found", "LookupTrouble"} <= outcomes


def test_whatever_can_be_parsed_can_be_read() -> None:
    rng = random.Random(21)
    query = dns.message.make_query("x.example.", RdataType.MX, id=1)
    wire = RICH(query) or b""
    read = 0
    for _ in range(4000):
        try:
            reply = dns.message.from_wire(mangle(wire, rng), ignore_trailing=True)
        except dns.exception.DNSException:
            continue
        try:
            read_reply(reply, dns.name.from_text("x.example."), RdataType.MX, 0)
        except LookupTrouble:
            continue
        read += 1
    assert read > 200
