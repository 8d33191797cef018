"""The DNS responder: its answers as a pure function of the zone, then over real sockets.

Lateness is seen on the virtual clock: loopback sockets are real, the pauses between them are not.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path

import dns.asyncquery
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
import trio
from trio.testing import MockClock, trio_test

from bench.dns import main, serve_dns
from bench.dns_zone import DEFAULT_TTL, NAMES_COUNTED, NEGATIVE_TTL, OTHER, Zone, ZoneError, respond
from worker.cli.exits import CommandError

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


def ask(
    name: str, kind: str, zone: Zone | None = None, limit: int | None = 512
) -> dns.message.Message | None:
    """The answer to one question, through the wire format and back."""
    query = dns.message.make_query(name, kind)
    response = respond(zone or Zone.from_text(ZONE), query.to_wire(), limit=limit)
    return None if response is None else dns.message.from_wire(response[0])


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
    assert zone.counts.queries == {("example.com", "MX"): 2}


@pytest.mark.parametrize("line", ["a.example", "a.example NOVEL x", "a.example A nonsense"])
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(ZoneError, match="scene, line 2"):
        Zone.from_text(f"ok.example A 127.0.0.1\n{line}", file="scene")


MASTER = """\
$TTL 1h
$ORIGIN example.org.
@       IN SOA  ns hostmaster ( 2024010101 ; serial
                7200 900 1209600
                86400 )
        IN NS   ns              ; the owner of the line above
        MX      10 mx.example.net.
ns      60 IN A 127.0.0.53
text    TXT     "a # b" "c ; d"
$GENERATE 1-3 d$ A 127.0.1.$
*.wild  MX      5 ns
sub.wild A      127.0.0.4
*.late  LATENCY 2 MX
"""


def test_a_master_file_is_read_as_everywhere() -> None:
    zone = Zone.from_text(MASTER)
    answer = ask("example.org", "MX", zone)
    assert rdata(answer) == ["10 mx.example.net."]
    assert answer is not None
    assert answer.answer[0].ttl == 3600
    assert rdata(ask("d3.example.org", "A", zone)) == ["127.0.1.3"]
    assert rdata(ask("text.example.org", "TXT", zone)) == ['"a # b" "c ; d"']
    refusal = ask("none.example.org", "A", zone)
    assert refusal is not None
    assert [soa.name.to_text() for soa in refusal.authority] == ["example.org."]


def test_an_origin_completes_names_without_a_final_dot() -> None:
    zone = Zone.from_text("@ MX 1 mx\nmx A 127.0.0.1\n", origin="example.org")
    assert rdata(ask("example.org", "MX", zone)) == ["1 mx.example.org."]
    answer = ask("mx.example.org", "A", zone)
    assert answer is not None
    assert answer.answer[0].ttl == DEFAULT_TTL


def test_what_is_outside_of_its_zone_is_no_silent_loss() -> None:
    with pytest.raises(ZoneError, match=r"line 14: elsewhere\.example\. is not below"):
        Zone.from_text(f"{MASTER}elsewhere.example. A 127.0.0.1\n")


def test_a_wildcard_answers_for_names_that_do_not_exist() -> None:
    zone = Zone.from_text(MASTER)
    answer = ask("a.b.wild.example.org", "MX", zone)
    assert answer is not None
    assert (answer.answer[0].name.to_text(), rdata(answer)) == (
        "a.b.wild.example.org.",
        ["5 ns.example.org."],
    )
    for exists in ("sub.wild.example.org", "wild.example.org"):
        no = ask(exists, "MX", zone)
        assert no is not None
        assert (no.rcode(), no.answer) == (dns.rcode.NOERROR, [])
    below = ask("x.sub.wild.example.org", "MX", zone)  # its closest encloser has no wildcard
    assert below is not None
    assert below.rcode() == dns.rcode.NXDOMAIN


FAULTS = """\
gone.example       NXDOMAIN
gone.example       A 127.0.0.1
short.example      TRUNCATED MX
short.example      MX 10 mx.example
short.example      A 127.0.0.1
late.example       LATENCY 3
late.example       LATENCY 4 MX
late.example       A 127.0.0.1
alias.late.example CNAME late.example
drip.example       SLOW-TCP 5
drip.example       A 127.0.0.1
*.deaf.example     TIMEOUT
"""


def test_a_name_that_exists_can_be_denied() -> None:
    answer = ask("gone.example", "A", Zone.from_text(FAULTS))
    assert answer is not None
    assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])
    assert [soa.ttl for soa in answer.authority] == [NEGATIVE_TTL]


def test_truncation_is_for_the_named_type_over_udp() -> None:
    zone = Zone.from_text(FAULTS)
    truncated = ask("short.example", "MX", zone)
    assert truncated is not None
    assert truncated.flags & dns.flags.TC
    assert not truncated.answer
    assert rdata(ask("short.example", "A", zone)) == ["127.0.0.1"]
    assert rdata(ask("short.example", "MX", zone, limit=None)) == ["10 mx.example."]
    assert zone.counts.answers["truncated"] == 1


def test_a_wildcard_failure_is_for_every_name_below() -> None:
    assert ask("any.deaf.example", "MX", Zone.from_text(FAULTS)) is None
    assert ask("deaf.example", "MX", Zone.from_text(FAULTS)) is not None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a.example LATENCY", "line 2: LATENCY needs a time"),
        ("a.example LATENCY soon", "line 2: LATENCY needs a time"),
        ("a.example SLOW-TCP -1", "line 2: SLOW-TCP needs a time"),
        ("a.example SERVFAIL NOVEL", "line 2: NOVEL is no record type"),
        ("a.example SILENT MX often", "line 2: what does 'often' mean"),
        ("a..example A 127.0.0.1", "line 2: 'a..example' is no domain name"),
        ("$INCLUDE other", "line 2: .*INCLUDE"),
    ],
)
def test_a_line_without_sense_says_what_is_missing(line: str, complaint: str) -> None:
    with pytest.raises(ZoneError, match=complaint):
        Zone.from_text(f"ok.example A 127.0.0.1\n{line}\nok.example A 127.0.0.2")


def test_a_response_is_not_answered() -> None:
    query = dns.message.make_query("example.com", "MX")
    query.flags |= dns.flags.QR
    assert respond(Zone.from_text(ZONE), query.to_wire(), limit=512) is None


def test_made_up_names_do_not_fill_memory() -> None:
    zone = Zone()
    zone.counts.queries.update({(str(n), "A"): 1 for n in range(NAMES_COUNTED)})
    ask("one.more.example", "A", zone)
    ask("0", "A", zone)
    assert len(zone.counts.queries) == NAMES_COUNTED + 1
    assert zone.counts.queries[OTHER, "A"] == 1
    assert zone.counts.queries["0", "A"] == 2


async def seconds_of(answer: Awaitable[object]) -> float:
    """How long an answer takes on trio's clock."""
    began = trio.current_time()
    await answer
    return trio.current_time() - began


@pytest.mark.parametrize(
    ("name", "kind", "udp", "tcp"),
    [
        ("late.example", "A", 3, 3),
        ("late.example", "MX", 7, 7),
        ("alias.late.example", "A", 3, 3),
        ("drip.example", "A", 0, 5),
    ],
)
def test_answers_are_as_late_as_the_zone_says(name: str, kind: str, udp: int, tcp: int) -> None:
    async def look() -> tuple[float, float]:
        query = dns.message.make_query(name, kind)
        async with trio.open_nursery() as nursery:
            port: int = await nursery.start(serve_dns, Zone.from_text(FAULTS))
            took = (
                await seconds_of(dns.asyncquery.udp(query, "127.0.0.1", port=port)),
                await seconds_of(dns.asyncquery.tcp(query, "127.0.0.1", port=port)),
            )
            nursery.cancel_scope.cancel()
        return took

    # Real sockets need real moments, which an instant jump would not grant: 10 ms of them.
    took = trio.run(look, clock=MockClock(autojump_threshold=0.01))
    assert took == pytest.approx((udp, tcp), abs=0.01)


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


def test_the_command_serves_several_zones_and_addresses_and_reports(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a.example A 127.0.0.1\n")
    (tmp_path / "org").write_text("@ MX 1 mx\n")
    command = [sys.executable, "-m", "bench.dns", "--json", str(tmp_path / "report")]
    command += ["--zone", str(tmp_path / "words"), "--zone", f"example.org={tmp_path / 'org'}"]
    command += ["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            addresses = [server.stdout.readline().split()[-1] for _ in range(2)]
            for address, name, kind in zip(
                addresses, ["a.example", "example.org"], ["A", "MX"], strict=True
            ):
                host, _, port = address.rpartition(":")
                query = dns.message.make_query(name, kind)
                answer = dns.query.udp(query, host.strip("[]"), 5, int(port))
                assert answer.answer
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)
    assert server.returncode == 0
    report = json.loads((tmp_path / "report").read_text())
    assert report["transports"] == {"udp": 2}
    assert report["answers"] == {"NOERROR": 2}
    assert {"name": "example.org", "type": "MX", "questions": 1} in report["names"]


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--listen", "nowhere"], os.EX_USAGE, "expected ADDRESS:PORT"),
        (["--listen", "127.0.0.1:99999"], os.EX_USAGE, "expected ADDRESS:PORT"),
        (["--listen", "192.0.2.1:0"], os.EX_OSERR, "cannot listen on 192.0.2.1:0"),
        (["--zone", "x=/nonexistent"], os.EX_NOINPUT, "/nonexistent: No such file"),
        (["--json", "/none/x"], os.EX_CANTCREAT, "/none/x: No such file"),
    ],
)
def test_a_bad_argument_has_its_status(
    arguments: list[str], status: int, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "zone").write_text("a.example A 127.0.0.1\n")
    with pytest.raises(CommandError, match=complaint) as caught:
        main.main(["--zone", str(tmp_path / "zone"), *arguments], standalone_mode=False)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a.example A 127.0.0.1\nb.example A here\nc.example A 127.0.0.1\n", "z, line 2: "),
        ("a.example A 127.0.0.1\nb.example FOO here\n", "z, line 2: unknown rdatatype"),
        ("$GENERATE 1-4000000000 a$.x A 127.0.0.1\n", "z, line 1: more than 100000 names"),
        ("$GENERATE one a$.x A 127.0.0.1\n", "z, line 1: 'one': expected FIRST-LAST"),
    ],
)
def test_a_bad_line_is_named_by_its_number(text: str, complaint: str) -> None:
    with pytest.raises(ZoneError, match=complaint):
        Zone.from_text(text, file="z")
