"""Where mail goes when its destination is of no use, and what is logged, beside Postfix's smtp(8).

Both deliver to the same servers: S026 (best_mx_transport), S028 (fallback relays), S066 (PIX
workarounds) and S153 (debug_peer_list). Compared are outcomes, what the server got, and log lines.
"""

import re
import smtplib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.postfix_instance import PostfixInstance
from tests.integration.recording_server import RecordingServer
from worker.cli import invoke

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd")

LIMIT = 60.0  # seconds for Postfix to try what it took
OURSELVES = "[127.0.0.1]:25"
MASKED = "220 ***2**0***"


@dataclass(frozen=True)
class Case:
    """How one message is sent. @DOWN@, @UP@ and @MASKED@ are ports."""

    nexthop: str
    main_cf: dict[str, str]
    said: tuple[str, ...]  # of the log, without the final line
    outcome: str  # dsn, status and the beginning of the reason


CASES = {
    "fallback": Case(
        "[127.0.0.1]:@DOWN@",
        {"smtp_fallback_relay": "[127.0.0.1]:@UP@"},
        ("connect to 127.0.0.1[127.0.0.1]:@DOWN@: Connection refused",),
        "2.0.0 sent (250 ok)",
    ),
    "fallback-loop": Case(
        "[127.0.0.1]:@DOWN@",
        {"smtp_fallback_relay": OURSELVES},
        (
            "connect to 127.0.0.1[127.0.0.1]:@DOWN@: Connection refused",
            "warning: smtp_fallback_relay configuration problem",
        ),
        "4.3.5 deferred (mail for 127.0.0.1 loops back to myself)",
    ),
    "relayhost-loop": Case(
        OURSELVES,
        {"relayhost": OURSELVES},
        ("warning: relayhost configuration problem",),
        "4.3.5 deferred (mail for 127.0.0.1 loops back to myself)",
    ),
    "loop": Case(
        OURSELVES,
        {"smtp_fallback_relay": "[127.0.0.1]:@UP@"},
        (),
        "5.4.6 bounced (mail for 127.0.0.1 loops back to myself)",
    ),
    "best-mx": Case(
        OURSELVES,
        {"best_mx_transport": "error:5.1.2 not here"},
        ("passing <best-mx@best-mx.example> to transport=error",),
        "5.1.2 bounced (not here)",
    ),
    "masked": Case(
        "[127.0.0.1]:@MASKED@",
        {
            "smtp_pix_workaround_threshold_time": "0",
            "smtp_pix_workaround_delay_time": "1s",
            "debug_peer_list": "127.0.0.0/8",
            "debug_peer_level": "1",
        },
        (
            "< @PEER@: 220 ***2**0***",
            "enabling PIX workarounds: disable_esmtp delay_dotcrlf for @PEER@",
            "> @PEER@: HELO peer.example",
            "< @PEER@: 250 ok",
            "> @PEER@: MAIL FROM:<>",
            "< @PEER@: 250 ok",
            "> @PEER@: RCPT TO:<masked@masked.example>",
            "< @PEER@: 250 ok",
            "> @PEER@: DATA",
            "< @PEER@: 354 go on",
            "> @PEER@: .",
            "< @PEER@: 250 ok",
            "> @PEER@: QUIT",
        ),
        "2.0.0 sent (250 ok)",
    ),
}


@dataclass
class Servers:
    """The servers of one client, and how texts name them."""

    up: RecordingServer
    masked: RecordingServer
    down: int

    def named(self, text: str) -> str:
        """The text with ports in place."""
        text = text.replace("@PEER@", "127.0.0.1[127.0.0.1]:@MASKED@")
        for name, port in (("DOWN", self.down), ("UP", self.up.port), ("MASKED", self.masked.port)):
            text = text.replace(f"@{name}@", str(port))
        return text


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with (
        RecordingServer() as up,
        RecordingServer(greeting=MASKED) as masked,
        socket.socket() as down,
    ):
        down.bind(("127.0.0.1", 0))  # nobody else can have it, and nobody listens
        yield Servers(up, masked, down.getsockname()[1])


@pytest.fixture(scope="module")
def log_of_postfix(servers: Servers) -> str:
    """What it says of one message for each case, each by a transport of its own."""
    routes = [
        f"{{ {name}.example = {name}:{servers.named(case.nexthop)} }}"
        for name, case in CASES.items()
    ]
    master_cf = []
    for name, case in CASES.items():
        options = [
            f"-o {{ {parameter} = {servers.named(value)} }}"
            for parameter, value in {"syslog_name": f"postfix/{name}", **case.main_cf}.items()
        ]
        master_cf.append(f"{name} unix - - n - - smtp {' '.join(options)}")
    main_cf = {
        "transport_maps": f"inline:{{ {' '.join(routes)} }}",
        "relay_domains": "static:all",
        "virtual_mailbox_domains": "",
        "smtpd_relay_restrictions": "permit_mynetworks, reject",
    }
    with PostfixInstance(main_cf=main_cf, master_cf=master_cf) as postfix:
        with smtplib.SMTP(postfix.host, postfix.port, timeout=20) as client:
            for name in CASES:
                client.sendmail("", [f"{name}@{name}.example"], "Subject: x\r\n\r\nhello\r\n")
        postfix._wait(
            lambda: all(delivery(name, postfix.log()) for name in CASES),
            LIMIT,
            "not all were tried",
        )
        return postfix.log()


def delivery(name: str, log: str) -> str:
    """How the message of a case ended; empty: it did not yet."""
    line = re.search(rf" to=<{name}@.*dsn=([\d.]+), status=(\w+) (\(.*\))$", log, re.MULTILINE)
    return f"{line[1]} {line[2]} {line[3]}" if line else ""


def said(log: str, expected: tuple[str, ...]) -> list[str]:
    """The lines of the log that are like one that is expected, without what is in front of it."""
    found = []
    for line in log.splitlines():
        text = re.sub(r"^.*?: (?:[0-9A-F]{6,}: |NOQUEUE: )?", "", line)
        if text in expected:
            found.append(text)
    return found


@pytest.mark.parametrize("name", CASES)
def test_postfix_does_and_says_what_is_expected(
    log_of_postfix: str, servers: Servers, name: str
) -> None:
    case = CASES[name]
    expected = tuple(servers.named(text) for text in case.said)
    about = [line for line in log_of_postfix.splitlines() if f"postfix/{name}/" in line]
    assert said("\n".join(about), expected) == list(expected)
    assert delivery(name, log_of_postfix) == case.outcome


@pytest.mark.parametrize("name", CASES)
def test_so_do_we(
    servers: Servers, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    settings = {"myhostname": "peer.example", "mydestination": "", **case.main_cf}
    lines = [f"{parameter} = {servers.named(value)}\n" for parameter, value in settings.items()]
    (tmp_path / "main.cf").write_text("".join(lines))
    (tmp_path / "message").write_bytes(b"Subject: x\r\n\r\nhello\r\n")
    arguments = ["deliver", "-c", str(tmp_path / "main.cf"), str(tmp_path / "message")]
    arguments += ["--sender", "", "--recipient", f"{name}@{name}.example"]
    assert invoke([*arguments, "--nexthop", servers.named(case.nexthop)]) in (0, 69, 75)
    log = capfd.readouterr().err
    expected = tuple(servers.named(text) for text in case.said)
    assert said(log, expected) == list(expected)
    assert delivery(name, log) == case.outcome
    server = {"fallback": servers.up, "masked": servers.masked}.get(name)
    if server is not None:
        assert server.contents[name].endswith(b"\r\n\r\nhello\r\n")
