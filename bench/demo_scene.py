"""The small world around the demonstration: example domains, their hosts, and a main.cf for it.

Answers for what each example domain does to its mail, and for the configuration that sends
postrio there. Everything is on loopback, at ports above 1024 that are chosen free at run time.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.sink.listen import Listen
from bench.sink.words import parse_behaviour

FIRST_ADDRESS: Final = 2  # 127.0.0.2; Linux answers on all of 127.0.0.0/8
PORT_ATTEMPTS: Final = 50


@dataclass(frozen=True, slots=True)
class Host:
    """One mail host of the scene: an address, and words of behaviour (None: nobody listens)."""

    address: str
    words: tuple[str, ...] | None


HOSTS: Final = (
    Host("127.0.0.2", ("hostname=mx.landlord.example",)),  # the senders' home: notices come here
    Host("127.0.0.3", ("hostname=mx.tenants.example", "latency=0.05")),
    Host("127.0.0.4", ("hostname=mx.court.example", "greylist=1")),
    Host("127.0.0.5", ("hostname=mx.refuses.example", "refuse=550 5.1.1 no such mailbox here")),
    Host("127.0.0.6", None),  # the better one of twin.example's two
    Host("127.0.0.7", ("hostname=mx2.twin.example",)),
    Host("127.0.0.8", ("hostname=store.mailbox.example", "lmtp")),
    Host("127.0.0.9", ("hostname=mx.xn--bcher-kva.example", "latency=0.02")),
)

ZONE: Final = """\
landlord.example        MX 10 mx.landlord.example
mx.landlord.example     A  127.0.0.2
demo.example            MX 10 mx.landlord.example
tenants.example         MX 10 mx.tenants.example
mx.tenants.example      A  127.0.0.3
court.example           MX 10 mx.court.example      # greylists
mx.court.example        A  127.0.0.4
refuses.example         MX 10 mx.refuses.example    # refuses every recipient
mx.refuses.example      A  127.0.0.5
twin.example            MX 10 mx1.twin.example      # nobody listens there
twin.example            MX 20 mx2.twin.example
mx1.twin.example        A  127.0.0.6
mx2.twin.example        A  127.0.0.7
xn--bcher-kva.example   MX 10 mx.xn--bcher-kva.example
mx.xn--bcher-kva.example A 127.0.0.9
nomail.example          MX 0 .                      # takes no mail at all (RFC 7505)
plain.example           A  127.0.0.3                # no MX: the name itself is the host
"""


def listens(port: int) -> list[Listen]:
    """The sinks of the scene, all on one port."""
    return [
        Listen(host=host.address, port=port, behaviour=parse_behaviour(host.words))
        for host in HOSTS
        if host.words is not None
    ]


def free_common_port() -> int:
    """A port that was free a moment ago on every address of the scene. OSError: there is none."""
    for _ in range(PORT_ATTEMPTS):
        probes: list[socket.socket] = []
        try:
            port = 0
            for host in HOSTS:
                probes.append(socket.socket())
                probes[-1].bind((host.address, port))
                port = probes[-1].getsockname()[1]
        except OSError:
            continue
        else:
            return port
        finally:
            for probe in probes:
                probe.close()
    raise OSError("no port is free on all of 127.0.0.2 to 127.0.0.9")


def write_main_cf(directory: Path, *, dns_port: int, smtp_port: int) -> Path:
    """Write the scene's main.cf into `directory` (made if needed) and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "main.cf"
    path.write_text(f"""\
# Written by `make run`, anew each time.
myhostname = demo.example
myorigin = $myhostname
queue_directory = {directory.absolute() / "queue"}
inet_protocols = ipv4

# The little world on loopback: its DNS, and the port of all its mail hosts.
postrio_dns_server = 127.0.0.1:{dns_port}
smtp_tcp_port = {smtp_port}
transport_maps = inline:{{ mailbox.example=lmtp:inet:[127.0.0.8]:{smtp_port} }}

# Nobody wants to watch for five minutes until a greylisted message is tried again.
queue_run_delay = 1s
minimal_backoff_time = 2s
maximal_backoff_time = 10s
""")
    return path
