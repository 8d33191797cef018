"""Where mail goes when its destination is of no use, and what is logged, beside Postfix's smtp(8).

Both deliver to the same servers: S026 (best_mx_transport), S028 (fallback relays), S066 (PIX
workarounds) and S153 (debug_peer_list). Compared are outcomes, what the server got, and log lines.
"""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.recording_server import RecordingServer
from tests.integration.smtp_agent import Transport, ending, log_of_postfix
from worker.cli import invoke

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd")

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
def said_by_postfix(servers: Servers) -> str:
    """What it says of one message for each case."""
    return log_of_postfix(
        {
            name: Transport(
                servers.named(case.nexthop),
                {key: servers.named(value) for key, value in case.main_cf.items()},
            )
            for name, case in CASES.items()
        }
    )


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
    said_by_postfix: str, servers: Servers, name: str
) -> None:
    case = CASES[name]
    expected = tuple(servers.named(text) for text in case.said)
    about = [line for line in said_by_postfix.splitlines() if f"postfix/{name}/" in line]
    assert said("\n".join(about), expected) == list(expected)
    assert ending(name, said_by_postfix) == case.outcome


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
    assert ending(name, log) == case.outcome
    server = {"fallback": servers.up, "masked": servers.masked}.get(name)
    if server is not None:
        assert server.contents[name].endswith(b"\r\n\r\nhello\r\n")
