"""`postrio deliver` finds its way by the MX records of Knot DNS, to sinks on 127.0.0.x.

The search itself is tried against Knot in test_knot.py; here mail has to arrive.
"""

import json
import os
import random
import socket
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from tests.integration.corpus import CORPUS, canonical
from tests.integration.node import SENDER, Mailbox, Node, open_sink, run_command
from tests.integration.peers import find_program
from tests.integration.test_knot import free_place, wait_until_up

pytestmark = pytest.mark.peer("knotd")

STOP_LIMIT = 20.0  # seconds
PORT_ATTEMPTS = 50

# 127.0.0.21: nobody listens. 22 and 23 take everything; 24 defers, 25 refuses every recipient;
# 26 refuses to talk.
HOSTS = {
    "127.0.0.22": ["hostname=first.mx.test"],
    "127.0.0.23": ["hostname=second.mx.test"],
    "127.0.0.24": ["rcpt=450 4.2.1 not now"],
    "127.0.0.25": ["refuse=550 5.1.1 nobody here"],
    "127.0.0.26": ["connect=554 5.7.1 go away"],
}
ZONE = """\
$TTL 300
@           SOA   ns admin 1 3600 600 86400 60
            NS    ns
ns          A     127.0.0.1
dead.mx     A     127.0.0.21
first.mx    A     127.0.0.22
second.mx   A     127.0.0.23
busy.mx     A     127.0.0.24
strict.mx   A     127.0.0.25
closed.mx   A     127.0.0.26
byname.mx   CNAME second.mx
ordered     MX    20 second.mx
            MX    10 first.mx
            MX    30 dead.mx
backup      MX    10 dead.mx
            MX    20 second.mx
closed      MX    10 closed.mx
            MX    20 first.mx
equal       MX    10 dead.mx
            MX    10 second.mx
busy        MX    10 busy.mx
            MX    20 second.mx
strict      MX    10 strict.mx
            MX    20 second.mx
dead        MX    10 dead.mx
busyonly    MX    10 busy.mx
null        MX    0 .
plain       A     127.0.0.22
alias       CNAME ordered
aliased     MX    10 byname.mx
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
  - domain: test
    file: test.zone
"""


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """ADDR:PORT of a running knotd with the zone above."""
    directory = tmp_path_factory.mktemp("knot")
    address, port = free_place()
    (directory / "test.zone").write_text(ZONE)
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
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait(STOP_LIMIT)


def common_port() -> int:
    """A port that is free on every address of HOSTS, and on the one where nobody listens."""
    rng = random.Random()
    for _ in range(PORT_ATTEMPTS):
        port = rng.randrange(20_000, 30_000)
        probes: list[socket.socket] = []
        try:
            for address in ("127.0.0.21", *HOSTS):
                probes.append(socket.socket())
                probes[-1].bind((address, port))
        except OSError:
            continue
        else:
            return port
        finally:
            for probe in probes:
                probe.close()
    raise OSError("no port is free on all addresses")


async def open_hosts(nursery: trio.Nursery, mailbox: Mailbox) -> int:
    """All HOSTS on one port; what they take goes to `mailbox`. Returns the port."""
    port = common_port()
    for address, words in HOSTS.items():
        await open_sink(nursery, mailbox, *words, host=address, port=port)
    return port


class Deliver:
    """`postrio deliver` under these hosts and this DNS server."""

    def __init__(self, dns: str, port: int) -> None:
        self.status = -1
        self.log = ""
        self._options = ["--resolver", dns, "-o", f"smtp_tcp_port={port}"]
        self._options += ["-o", "inet_protocols=ipv4", "-o", "myhostname=client.test"]

    async def __call__(self, *recipients: str, content: bytes = CORPUS["plain"]) -> list[object]:
        """Deliver; what each recipient's JSON line says, as (status, dsn, relay without port)."""
        arguments = ["deliver", "--json", "--sender", SENDER, *self._options]
        for recipient in recipients:
            arguments += ["--recipient", recipient]
        done = await run_command(*arguments, stdin=content)
        self.status, self.log = done.returncode, done.stderr.decode()
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["recipient"] for line in lines] == list(recipients), self.log
        for line in lines:
            keys = ["recipient", "status", "dsn", "relay", "reply", "delays", "conn_use", "tls"]
            assert list(line) == keys
            assert len(line["delays"]) == 4
        return [(line["status"], line["dsn"], _short(line["relay"])) for line in lines]


def _short(relay: str | None) -> str | None:
    return None if relay is None else relay.rpartition(":")[0]


@trio_test
async def test_mail_takes_the_best_exchanger_that_works(dns: str) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        deliver = Deliver(dns, await open_hosts(nursery, mailbox))
        names = ["ordered", "backup", "closed", "equal", "busy", "plain", "alias", "aliased"]
        found = await deliver(*(f"{name}@{name}.test" for name in names))
        first, second = "first.mx.test[127.0.0.22]", "second.mx.test[127.0.0.23]"
        assert dict(zip(names, found, strict=True)) == {
            "ordered": ("sent", "2.0.0", first),
            "backup": ("sent", "2.0.0", second),
            "closed": ("sent", "2.0.0", first),
            "equal": ("sent", "2.0.0", second),
            "busy": ("sent", "2.0.0", second),
            "plain": ("sent", "2.0.0", "plain.test[127.0.0.22]"),
            "alias": ("sent", "2.0.0", first),
            "aliased": ("sent", "2.0.0", "byname.mx.test[127.0.0.23]"),
        }
        assert deliver.status == os.EX_OK
        # Once each, whole, and from the client that we are.
        assert sorted(item.recipients[0].partition("@")[0] for item in mailbox.messages) == sorted(
            names
        )
        for received in mailbox.messages:
            assert received.content == canonical(CORPUS["plain"])
            assert received.helo == "client.test"
        assert "connect to dead.mx.test[127.0.0.21]" in deliver.log
        assert "host busy.mx.test[127.0.0.24] said: 450 4.2.1 not now" in deliver.log
        nursery.cancel_scope.cancel()


@trio_test
async def test_recipients_that_cannot_be_served_decide_the_exit_status(dns: str) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        port = await open_hosts(nursery, mailbox)
        bouncing, deferring = Deliver(dns, port), Deliver(dns, port)
        found: dict[str, list[object]] = {}

        async def run(deliver: Deliver, *recipients: str) -> None:
            found["+".join(recipients)] = await deliver(*recipients)

        async with trio.open_nursery() as both:
            both.start_soon(
                run, bouncing, "a@null.test", "b@strict.test", "c@nowhere.test", "d@plain.test"
            )
            both.start_soon(
                run, deferring, "a@null.test", "b@dead.test", "c@busyonly.test", "d@plain.test"
            )
        assert found["a@null.test+b@strict.test+c@nowhere.test+d@plain.test"] == [
            ("bounced", "5.1.0", None),
            ("bounced", "5.1.1", "strict.mx.test[127.0.0.25]"),
            ("bounced", "5.4.4", None),
            ("sent", "2.0.0", "plain.test[127.0.0.22]"),
        ]
        assert bouncing.status == os.EX_UNAVAILABLE
        assert found["a@null.test+b@dead.test+c@busyonly.test+d@plain.test"] == [
            ("bounced", "5.1.0", None),
            ("deferred", "4.4.1", None),
            ("deferred", "4.2.1", "busy.mx.test[127.0.0.24]"),
            ("sent", "2.0.0", "plain.test[127.0.0.22]"),
        ]
        assert deferring.status == os.EX_TEMPFAIL
        assert len(mailbox.messages) == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--sender", "a@b.test"], os.EX_USAGE, "--recipient"),
        (["--sender", "", "--recipient", "a b@"], os.EX_USAGE, "--recipient"),
        (["--sender", "", "--recipient", "a@b.test", "--resolver", "x"], os.EX_USAGE, "resolver"),
        (["--request", "/dev/null"], os.EX_USAGE, "JSON"),
        (
            ["--sender", "", "--recipient", "a@b.test", "-o", "smtp_mail_timeout=soon"],
            os.EX_CONFIG,
            "smtp_mail_timeout",
        ),
    ],
)
@trio_test
async def test_wrong_use_and_wrong_configuration_have_statuses_of_their_own(
    arguments: list[str], status: int, complaint: str
) -> None:
    done = await run_command("deliver", *arguments)
    assert done.returncode == status
    assert complaint in done.stderr.decode()
    assert not done.stdout


@trio_test
async def test_a_request_in_json_is_delivered_with_all_it_says(dns: str, tmp_path: Path) -> None:
    mailbox = Mailbox()
    message = tmp_path / "message"
    message.write_bytes(CORPUS["eight-bit"])
    async with trio.open_nursery() as nursery:
        port = await open_hosts(nursery, mailbox)
        request = {
            "message": str(message),
            "sender": "",
            "recipients": [
                {"address": "x@plain.test", "notify": "success,failure", "orcpt": "rfc822;y+z@q"},
                {"address": "v@plain.test", "notify": "never"},
            ],
            "envid": "id+1",
            "ret": "hdrs",
            "body": "8bitmime",
            "age": 100,
            "config": {"smtp_tcp_port": port, "inet_protocols": "ipv4"},
            "resolver": dns,
        }
        done = await run_command(
            "deliver", "--request", "-", "--json", stdin=json.dumps(request).encode()
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(100 <= line["delays"][0] < 200 for line in lines)
        (received,) = mailbox.messages
        assert received.sender == ""
        assert received.mail_parameters.split()[1:] == ["BODY=8BITMIME", "RET=HDRS", "ENVID=id+2B1"]
        assert received.rcpt_parameters == [
            "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;y+2Bz@q",
            "NOTIFY=NEVER ORCPT=rfc822;v@plain.test",
        ]
        assert received.content == canonical(CORPUS["eight-bit"])
        nursery.cancel_scope.cancel()


@trio_test
async def test_the_queue_finds_the_same_way(dns: str, tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        port = await open_hosts(nursery, mailbox)
        main_cf = {
            "postrio_dns_server": dns,
            "smtp_tcp_port": str(port),
            "relayhost": "",
        }
        async with Node(tmp_path, main_cf) as node:
            await node.send(CORPUS["plain"], "a@backup.test", "b@equal.test", "c@null.test")
            await node.wait_for("to=<a@backup.test>.* relay=second.mx.test.* status=sent")
            await node.wait_for("to=<b@equal.test>.* relay=second.mx.test.* status=sent")
            await node.wait_for("to=<c@null.test>, relay=none.* dsn=5.1.0, status=bounced")
        nursery.cancel_scope.cancel()
