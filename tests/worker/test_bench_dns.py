"""The DNS responder: its answers as a pure function of the zone, then once over real sockets."""

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
import trio
from trio.testing import trio_test

from bench.dns import NEGATIVE_TTL, Zone, ZoneError, respond, serve_dns

ZONE = """\
# the scene
example.com        MX 10 mx.example.com
Example.com    60  MX 20 mx2.example.com.   # a final dot does no harm
mx.example.com     A  127.0.0.2
mx.example.com     AAAA ::1
alias.example.com  CNAME other.example.com
other.example.com  CNAME example.com
loop.example.com   CNAME loop.example.com
null.example       MX 0 .
broken.example     SERVFAIL
partly.example     SERVFAIL AAAA
partly.example     A 127.0.0.3
silent.example     SILENT MX
"""


def ask(name: str, kind: str, zone: Zone | None = None) -> dns.message.Message | None:
    """The answer to one question, through the wire format and back."""
    query = dns.message.make_query(name, kind)
    wire = respond(zone or Zone.from_text(ZONE), query.to_wire(), limit=512)
    return None if wire is None else dns.message.from_wire(wire)


def rdata(message: dns.message.Message | None) -> list[str]:
    """The records of an answer's last set, sorted."""
    assert message is not None
    return sorted(record.to_text() for record in message.answer[-1])


def test_records_of_one_name_make_one_set() -> None:
    assert rdata(ask("example.com", "MX")) == ["10 mx.example.com.", "20 mx2.example.com."]
    assert rdata(ask("mx.example.com", "AAAA")) == ["::1"]
    assert rdata(ask("null.example", "MX")) == ["0 ."]


def test_names_match_in_any_letter_case() -> None:
    assert len(rdata(ask("EXAMPLE.com", "MX"))) == 2


def test_aliases_are_followed_and_shown() -> None:
    answer = ask("alias.example.com", "MX")
    assert answer is not None
    assert [rrset.rdtype for rrset in answer.answer] == [
        dns.rdatatype.CNAME,
        dns.rdatatype.CNAME,
        dns.rdatatype.MX,
    ]
    assert rdata(ask("alias.example.com", "CNAME")) == ["other.example.com."]


def test_a_loop_of_aliases_ends() -> None:
    answer = ask("loop.example.com", "A")
    assert answer is not None
    assert {rrset.rdtype for rrset in answer.answer} == {dns.rdatatype.CNAME}


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("absent.example.com", "A", dns.rcode.NXDOMAIN),
        ("example.com", "A", dns.rcode.NOERROR),  # the name exists, the type does not
        ("com", "A", dns.rcode.NOERROR),  # an empty non-terminal exists too
        ("broken.example", "MX", dns.rcode.SERVFAIL),
        ("partly.example", "AAAA", dns.rcode.SERVFAIL),
        ("partly.example", "MX", dns.rcode.NOERROR),
    ],
)
def test_a_no_has_its_code_and_its_lifetime(name: str, kind: str, code: dns.rcode.Rcode) -> None:
    answer = ask(name, kind)
    assert answer is not None
    assert (answer.rcode(), answer.answer) == (code, [])
    if code is not dns.rcode.SERVFAIL:
        assert [soa.ttl for soa in answer.authority] == [NEGATIVE_TTL]


def test_silence_is_for_the_named_type_only() -> None:
    assert ask("silent.example", "MX") is None
    assert ask("silent.example", "A") is not None


def test_garbage_gets_no_answer() -> None:
    assert respond(Zone.from_text(""), b"garbage", limit=512) is None


def test_queries_are_counted() -> None:
    zone = Zone.from_text(ZONE)
    ask("Example.com", "MX", zone)
    ask("example.com", "MX", zone)
    assert zone.queries == {("example.com", "MX"): 2}


@pytest.mark.parametrize("line", ["a.example", "a.example NOVEL x", "a.example A nonsense"])
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(ZoneError, match="line 2"):
        Zone.from_text(f"ok.example A 127.0.0.1\n{line}")


@trio_test
async def test_an_answer_too_long_for_udp_is_truncated_and_complete_over_tcp() -> None:
    zone = Zone.from_text("".join(f"many.example MX {n} mx{n}.many.example\n" for n in range(60)))
    query = dns.message.make_query("many.example", "MX", use_edns=False)
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(serve_dns, zone)
        with trio.fail_after(5):
            short = await dns.asyncquery.udp(query, "127.0.0.1", port=port)
            assert short.flags & dns.flags.TC
            complete = await dns.asyncquery.tcp(query, "127.0.0.1", port=port)
            assert len(complete.answer[0]) == 60
        nursery.cancel_scope.cancel()
