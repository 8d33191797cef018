"""A DNS responder for scenario zones, over UDP and TCP on one port.

Answers for names in one zone text: any record type, CNAME chains, NXDOMAIN, "no data", truncation,
and failures on purpose. It delegates nothing and knows no DNSSEC. The zone is pure (`Zone.answer`);
the sockets are below it.

A zone is lines of `NAME [TTL] TYPE RDATA`, e.g. `example.com MX 10 mx.example.com`; names need no
final dot; `#` starts a comment. In place of a type: `SERVFAIL [TYPE]`, `REFUSED [TYPE]`,
`SILENT [TYPE]` (no answer at all), for every type or one.

Run it: `python -m bench.dns --listen 127.0.0.1:5353 --zone FILE`.
"""

import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

DEFAULT_TTL: Final = 300  # seconds
NEGATIVE_TTL: Final = 5  # seconds: in the SOA of an answer that says no
MAX_CHAIN: Final = 16  # CNAMEs followed for one question
PORT_ATTEMPTS: Final = 20  # UDP's free port may be taken for TCP
SILENT: Final = "SILENT"
FAILURES: Final = {"SERVFAIL": dns.rcode.SERVFAIL, "REFUSED": dns.rcode.REFUSED, SILENT: None}


class ZoneError(ValueError):
    """A line of a zone that cannot be read: which and why."""


@dataclass(slots=True)
class Zone:
    """All records, and what was asked. `failures` by name and type (None: every type)."""

    records: dict[dns.name.Name, dict[dns.rdatatype.RdataType, dns.rrset.RRset]]
    failures: dict[tuple[dns.name.Name, dns.rdatatype.RdataType | None], dns.rcode.Rcode | None]
    queries: Counter[tuple[str, str]] = field(default_factory=Counter)  # (name, type) -> times

    @classmethod
    def from_text(cls, text: str) -> "Zone":
        """Read a zone. Raises ZoneError."""
        zone = cls({}, {})
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                zone._add(words)
            except (dns.exception.DNSException, ValueError, IndexError) as exc:
                raise ZoneError(f"line {number}: {line.strip()!r}: {exc}") from exc
        return zone

    def _add(self, words: list[str]) -> None:
        """One line of the zone."""
        name = dns.name.from_text(words.pop(0))  # compares in any letter case
        ttl = int(words.pop(0)) if words[0].isdigit() else DEFAULT_TTL
        kind = words.pop(0).upper()
        if kind in FAILURES:
            rdtype = dns.rdatatype.from_text(words[0]) if words else None
            self.failures[name, rdtype] = FAILURES[kind]
            return
        rdtype = dns.rdatatype.from_text(kind)
        rdata = dns.rdata.from_text(
            dns.rdataclass.IN,
            rdtype,
            " ".join(words),
            origin=dns.name.root,  # names inside rdata need no final dot either
            relativize=False,
        )
        rrsets = self.records.setdefault(name, {})
        if rdtype not in rrsets:
            rrsets[rdtype] = dns.rrset.RRset(name, dns.rdataclass.IN, rdtype)
        rrsets[rdtype].add(rdata, ttl)

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """The response to a query; None: stay silent."""
        response = dns.message.make_response(query, recursion_available=True)
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
            return response
        question = query.question[0]
        name, rdtype = question.name.canonicalize(), question.rdtype
        self.queries[name.to_text(omit_final_dot=True), dns.rdatatype.to_text(rdtype)] += 1
        for _ in range(MAX_CHAIN):
            for key in ((name, rdtype), (name, None)):
                if key in self.failures:
                    code = self.failures[key]
                    if code is None:
                        return None
                    response.set_rcode(code)
                    return response
            rrsets = self.records.get(name, {})
            if rdtype in rrsets:
                response.answer.append(rrsets[rdtype])
                return response
            alias = rrsets.get(dns.rdatatype.CNAME)
            if alias is None:
                break
            response.answer.append(alias)
            name = dns.name.from_text(alias[0].to_text()).canonicalize()
        self._say_no(response, name)
        return response

    def _say_no(self, response: dns.message.Message, name: dns.name.Name) -> None:
        """Make it NXDOMAIN, or "no data" where the name exists, even as an empty non-terminal."""
        if not any(known.is_subdomain(name) for known in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        # RFC 2308 section 3: the SOA says how long the answer may be remembered.
        owner = dns.name.Name(name.labels[-2:]) if len(name.labels) > 1 else name
        soa = f"ns.invalid. postmaster.invalid. 1 3600 600 86400 {NEGATIVE_TTL}"
        response.authority.append(
            dns.rrset.from_text(owner, NEGATIVE_TTL, dns.rdataclass.IN, dns.rdatatype.SOA, soa)
        )


def respond(zone: Zone, wire: bytes, *, limit: int) -> bytes | None:
    """The octets that answer `wire`; None: none. `limit`: octets without EDNS (512 for UDP)."""
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return None
    response = zone.answer(query)
    if response is None:
        return None
    try:
        return response.to_wire(max_size=max(limit, query.payload))
    except dns.exception.TooBig:
        truncated = dns.message.make_response(query, recursion_available=True)
        truncated.flags |= dns.flags.TC
        return truncated.to_wire()


# --- sockets ------------------------------------------------------------------------------------


async def _serve_udp(zone: Zone, server: trio.socket.SocketType) -> None:
    while True:
        wire, peer = await server.recvfrom(65_535)
        if answer := respond(zone, wire, limit=512):
            await server.sendto(answer, peer)


async def _serve_tcp(zone: Zone, stream: trio.SocketStream) -> None:
    """Answer length-prefixed queries (RFC 1035 section 4.2.2) until the client leaves."""
    unread = b""
    async with stream:
        try:
            while data := await stream.receive_some():
                unread += data
                while len(unread) >= 2 and len(unread) >= 2 + int.from_bytes(unread[:2]):
                    end = 2 + int.from_bytes(unread[:2])
                    wire, unread = unread[2:end], unread[end:]
                    if answer := respond(zone, wire, limit=65_535):
                        await stream.send_all(len(answer).to_bytes(2) + answer)
        except trio.BrokenResourceError:
            return


async def _bind(host: str, port: int) -> tuple[trio.socket.SocketType, trio.SocketListener]:
    """A UDP socket and a TCP listener on the same port. The caller owns both. OSError."""
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    for attempt in range(PORT_ATTEMPTS):
        server = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
        try:
            await server.bind((host, port))
            chosen = server.getsockname()[1]
            listeners = await trio.open_tcp_listeners(chosen, host=host)
        except OSError:
            server.close()
            if port or attempt == PORT_ATTEMPTS - 1:
                raise
        except BaseException:
            server.close()
            raise
        else:
            return server, listeners[0]
    raise AssertionError("unreachable: the last attempt returns or raises")


async def serve_dns(
    zone: Zone,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer from `zone` until cancelled. Started: the port. OSError: the address is not free."""
    server, listener = await _bind(host, port)
    with server:
        async with listener, trio.open_nursery() as nursery:

            async def serve(stream: trio.SocketStream) -> None:
                await _serve_tcp(zone, stream)

            nursery.start_soon(_serve_udp, zone, server)
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            task_status.started(server.getsockname()[1])


async def _run(zone: Zone, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[int]) -> None:
                await serve_dns(zone, host, port, task_status=task_status)

            chosen = await nursery.start(serve)
            click.echo(f"listening on {host}:{chosen}")
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()


@click.command()
@click.option("--listen", default="127.0.0.1:0", metavar="ADDRESS:PORT", show_default=True)
@click.option("--zone", "path", required=True, metavar="FILE", help="The records to answer from.")
def main(listen: str, path: str) -> None:
    """Answer DNS queries from a small zone file, over UDP and TCP."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        click.echo(f"dns: {listen!r}: expected ADDRESS:PORT", err=True)
        sys.exit(os.EX_USAGE)
    try:
        zone = Zone.from_text(Path(path).read_text("utf-8"))
    except (OSError, ZoneError) as exc:
        click.echo(f"dns: {path}: {exc}", err=True)
        sys.exit(os.EX_NOINPUT if isinstance(exc, OSError) else os.EX_DATAERR)
    failed: list[BaseException] = []
    try:
        trio.run(_run, zone, host.strip("[]"), int(port))
    except* OSError as group:
        failed.append(group)
    if failed:
        click.echo(f"dns: cannot listen on {listen}", err=True)
        sys.exit(os.EX_OSERR)


if __name__ == "__main__":
    main()
