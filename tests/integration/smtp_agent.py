"""Postfix's smtp(8) beside our deliveries: a message for each case, by a transport of its own."""

import re
import smtplib
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.postfix_instance import PostfixInstance

LIMIT = 60.0  # seconds for Postfix to try what it took


@dataclass(frozen=True)
class Transport:
    """Where its message goes, and its parameters besides syslog_name, which is postfix/NAME."""

    nexthop: str
    main_cf: Mapping[str, str] = field(default_factory=dict)


def log_of_postfix(transports: Mapping[str, Transport]) -> str:
    """What Postfix has said when NAME@NAME.example was tried by each transport NAME."""
    routes = [
        f"{{ {name}.example = {name}:{transport.nexthop} }}"
        for name, transport in transports.items()
    ]
    master_cf = []
    for name, transport in transports.items():
        parameters = {"syslog_name": f"postfix/{name}", **transport.main_cf}
        options = " ".join(f"-o {{ {key} = {value} }}" for key, value in parameters.items())
        master_cf.append(f"{name} unix - - n - - smtp {options}")
    main_cf = {
        "transport_maps": f"inline:{{ {' '.join(routes)} }}",
        "relay_domains": "static:all",
        "virtual_mailbox_domains": "",
        "smtpd_relay_restrictions": "permit_mynetworks, reject",
    }
    with PostfixInstance(main_cf=main_cf, master_cf=master_cf) as postfix:
        with smtplib.SMTP(postfix.host, postfix.port, timeout=20) as client:
            for name in transports:
                client.sendmail("", [f"{name}@{name}.example"], "Subject: x\r\n\r\nhello\r\n")
        postfix.wait(
            lambda: all(ending(name, postfix.log()) for name in transports),
            LIMIT,
            "not all were tried",
        )
        return postfix.log()


def ending(name: str, log: str) -> str:
    """How the message of a transport ended: dsn, status, reason; empty: it did not yet."""
    line = re.search(rf" to=<{name}@.*dsn=([\d.]+), status=(\w+) (\(.*\))$", log, re.MULTILINE)
    return f"{line[1]} {line[2]} {line[3]}" if line else ""
