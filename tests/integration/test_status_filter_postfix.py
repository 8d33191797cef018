"""What delivery status filters make of outcomes, beside Postfix's smtp(8) (S181).

Both deliver to one server with the same tables; compared are status, text, warnings and what is
sent. Where we differ is in the cases: a table in trouble.
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

HARD, SOFT = "550 5.1.1 no such user", "450 4.2.0 later"
SAID = "host @PEER@ said: {} (in reply to RCPT TO command)"
SAID_HARD, SAID_SOFT = SAID.format(HARD), SAID.format(SOFT)


@dataclass(frozen=True)
class Case:
    """How one recipient is answered, by which line of a regexp table that is filtered, and what
    comes of it. @PEER@ and @DOWN@ are names in a log.
    """

    reply: str  # to RCPT; empty: the server is down
    line: str  # of the table; empty: the table always fails
    outcome: str  # dsn, status, reason
    warning: str = ""  # behind the parameter's name
    soft_bounce: bool = False
    ours: str = ""  # the outcome where ours is another one


CASES = {
    "hard-soft": Case(HARD, "/^5(.*)/ 4$1", f"4.1.1 deferred ({SAID_HARD})"),
    "soft-hard": Case(SOFT, "/^4(.*)/ 5$1", f"5.2.0 bounced ({SAID_SOFT})"),
    "text": Case(SOFT, "/^4/ 5.7.1   our   policy  ", "5.7.1 bounced (our   policy)"),
    "no-text": Case(SOFT, "/^4/ 5.7.1", f"5.7.1 bounced ({SAID_SOFT})"),
    "zeros": Case(SOFT, "/^4/ 5.01.001 x", "5.01.001 bounced (x)"),
    "no-match": Case(HARD, "/^4(.*)/ 5$1", f"5.1.1 bounced ({SAID_HARD})"),
    "sent-text": Case("250 ok", "/^2/ 2.1.5 there", "2.1.5 sent (there)"),
    "down": Case(
        "",
        "/^4(.*)/ 5$1",
        "5.4.1 bounced (connect to 127.0.0.1[127.0.0.1]:@DOWN@: Connection refused)",
    ),
    "sent-soft": Case("250 ok", "/^2/ 4.0.0 x", "2.0.0 sent (250 ok)", "bad status code: 4.0.0 x"),
    "hard-sent": Case(
        HARD, "/^5/ 2.0.0 x", f"5.1.1 bounced ({SAID_HARD})", "bad status code: 2.0.0 x"
    ),
    "soft-sent": Case(
        SOFT, "/^4/ 2.0.0 x", f"4.2.0 deferred ({SAID_SOFT})", "bad status code: 2.0.0 x"
    ),
    "two-parts": Case(
        SOFT, "/^4/ 5.1 x", f"4.2.0 deferred ({SAID_SOFT})", "bad status code: 5.1 x"
    ),
    "long-part": Case(
        SOFT, "/^4/ 5.1234.1 x", f"4.2.0 deferred ({SAID_SOFT})", "bad status code: 5.1234.1 x"
    ),
    "colon": Case(
        SOFT, "/^4/ 5.1.1: x", f"4.2.0 deferred ({SAID_SOFT})", "bad status code: 5.1.1: x"
    ),
    "soft-bounce": Case(HARD, "/^5/ 5.7.9 x", "4.7.9 SOFTBOUNCE (x)", "", soft_bounce=True),
    "soft-first": Case(SOFT, "/^4/ 5.7.9 x", "4.7.9 SOFTBOUNCE (x)", "", soft_bounce=True),
    "fail-sent": Case("250 ok", "", "2.0.0 sent (250 ok)"),
    "fail-soft": Case(SOFT, "", f"4.2.0 deferred ({SAID_SOFT})"),
    "fail-hard": Case(
        HARD,
        "",
        f"5.1.1 bounced ({SAID_HARD})",
        ours="4.3.0 deferred"
        f" (no answer from smtp_delivery_status_filter, so not bounced: {SAID_HARD})",
    ),
}


@dataclass
class Place:
    """The server, and where the tables are."""

    server: RecordingServer
    down: int
    tables: Path

    def nexthop(self, case: Case) -> str:
        """Where the mail of a case goes."""
        return f"[127.0.0.1]:{self.server.port if case.reply else self.down}"

    def filter(self, name: str) -> str:
        """The table of a case, as the parameter has it."""
        return f"regexp:{self.tables / name}" if CASES[name].line else "fail:x"

    def named(self, text: str) -> str:
        """The text with names in place."""
        return text.replace("@PEER@", "127.0.0.1[127.0.0.1]").replace("@DOWN@", str(self.down))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tables = tmp_path_factory.mktemp("tables")
    for directory in (tables, tables.parent, tables.parent.parent):
        directory.chmod(0o755)  # smtp(8) reads them with the rights of another user
    for name, case in CASES.items():
        (tables / name).write_text(f"{case.line}\n")
    refusals = {name: case.reply for name, case in CASES.items()}
    with RecordingServer(refusals=refusals) as server, socket.socket() as down:
        down.bind(("127.0.0.1", 0))  # nobody else can have it, and nobody listens
        yield Place(server, down.getsockname()[1], tables)


@pytest.fixture(scope="module")
def said_by_postfix(place: Place) -> str:
    """What it says of one message for each case."""
    return log_of_postfix(
        {
            name: Transport(
                place.nexthop(case),
                {
                    "smtp_delivery_status_filter": place.filter(name),
                    "soft_bounce": "yes" if case.soft_bounce else "no",
                },
            )
            for name, case in CASES.items()
        }
    )


def warnings(log: str) -> list[str]:
    """The warnings of a filter that are not about a table in trouble."""
    return re.findall(r"smtp_delivery_status_filter: (bad .*)$", log, re.MULTILINE)


@pytest.mark.parametrize("name", CASES)
def test_postfix_does_and_says_what_is_expected(
    said_by_postfix: str, place: Place, name: str
) -> None:
    case = CASES[name]
    about = [line for line in said_by_postfix.splitlines() if f"postfix/{name}/" in line]
    assert ending(name, "\n".join(about)) == place.named(case.outcome)
    assert warnings("\n".join(about)) == [case.warning] * bool(case.warning)


@pytest.mark.parametrize("name", CASES)
def test_s181_so_do_we_but_for_a_bounce_that_no_table_answers_for(
    place: Place, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    (tmp_path / "main.cf").write_text(
        f"default_delivery_status_filter = {place.filter(name)}\nmyhostname = peer.example\n"
        f"soft_bounce = {'yes' if case.soft_bounce else 'no'}\n"
    )
    (tmp_path / "message").write_bytes(b"Subject: x\r\n\r\nhello\r\n")
    arguments = ["deliver", "-c", str(tmp_path / "main.cf"), str(tmp_path / "message")]
    arguments += ["--sender", "", "--recipient", f"{name}@{name}.example"]
    status = invoke([*arguments, "--nexthop", place.nexthop(case)])
    log = capfd.readouterr().err
    expected = place.named(case.ours or case.outcome).replace("SOFTBOUNCE", "deferred")
    assert ending(name, log) == expected
    assert status == {"sent": 0, "bounced": 69, "deferred": 75}[expected.split()[1]]
    assert warnings(log) == [case.warning] * bool(case.warning)
