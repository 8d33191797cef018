"""The commands as processes, against sinks on loopback: statuses, output, signals, the log."""

import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, run

import pytest
import trio
from trio.testing import trio_test

from bench.sink.listen import Listen
from bench.sink.record import Received
from bench.sink.sink import Sink
from bench.sink.trio_lane import serve_sinks
from bench.sink.words import parse_behaviour

POSTRIO = [sys.executable, "-m", "worker"]
LIMIT = 30.0  # seconds; a machine may be busy
MESSAGE = b"Subject: hello\r\n\r\n.dot\r\n\xe9\r\n"


class Sinks:
    """Some sinks, and what they took."""

    def __init__(self) -> None:
        self.taken: list[Received] = []
        self.sinks: list[Sink] = []
        self.names: list[str] = []

    @asynccontextmanager
    async def running(self, *behaviours: Sequence[str]) -> AsyncIterator[None]:
        """Sinks with these behaviours, around the block; `names` has their addresses."""
        listens = [
            Listen(host="127.0.0.1", behaviour=parse_behaviour(words)) for words in behaviours
        ]
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[list[Sink]]) -> None:
                await serve_sinks(
                    listens, take=self.taken.append, keep=True, task_status=task_status
                )

            self.sinks = await nursery.start(serve)
            self.names = [sink.name for sink in self.sinks]
            yield
            nursery.cancel_scope.cancel()

    def nexthop(self, number: int = 0) -> str:
        """The nexthop that leads to a sink: its address as it stands."""
        host, _, port = self.names[number].rpartition(":")
        return f"[{host}]:{port}"


async def postrio(
    *arguments: str, stdin: bytes = b"", check: bool = False
) -> CompletedProcess[bytes]:
    """Run a command to its end."""
    with trio.fail_after(LIMIT):
        return await trio.run_process(
            [*POSTRIO, *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=check,
            env=environment(),
        )


def environment() -> Mapping[str, str]:
    """Ours, without a main.cf of this machine."""
    return {**os.environ, "MAIL_CONFIG": os.devnull}


def redirected(
    *arguments: str, to: str, module: str = "worker", **variables: str
) -> CompletedProcess[str]:
    """Run a command whose streams a shell has redirected, as ">&-" says."""
    # Of the shell's own words nothing reaches the command.
    command = shlex.join([sys.executable, "-m", module, *arguments])
    return run(
        ["sh", "-c", f"{command} {to}"],
        stdin=DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**environment(), **variables},
    )


def envelope(*recipients: str) -> list[str]:
    words = ["--sender", "a@x.example", "--json"]
    for recipient in recipients:
        words += ["--recipient", recipient]
    return words


@trio_test
async def test_deliver_sends_a_message_and_reports_each_recipient(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    sinks = Sinks()
    async with sinks.running([]):
        nexthop = sinks.nexthop()
        done = await postrio(
            "deliver", "--nexthop", nexthop, *envelope("b@y.example", "c@y.example"), str(path)
        )
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["recipient"] for line in lines] == ["b@y.example", "c@y.example"]
    assert list(lines[0]) == [
        *("recipient", "status", "dsn", "relay", "reply", "delays", "conn_use", "tls"),
    ]
    assert (lines[0]["status"], lines[0]["dsn"], lines[0]["conn_use"]) == ("sent", "2.0.0", 1)
    assert lines[0]["relay"] == f"127.0.0.1[127.0.0.1]:{nexthop.rpartition(':')[2]}"
    assert lines[0]["reply"].startswith("250 ")
    assert len(lines[0]["delays"]) == 4
    assert b"status=sent (250 " in done.stderr
    (taken,) = sinks.taken
    assert (taken.sender, taken.recipients) == ("a@x.example", ["b@y.example", "c@y.example"])
    assert taken.content == MESSAGE
    assert "BODY=8BITMIME" in taken.mail_parameters


@pytest.mark.parametrize(
    ("words", "status", "states"),
    [
        (["to:b@y.example=450 4.2.1 later"], 75, ["deferred", "sent"]),
        (["to:b@y.example=550 5.1.1 never"], 69, ["bounced", "sent"]),
        (
            ["to:b@y.example=550 5.1.1 never", "to:c@y.example=450 4.2.1 later"],
            75,
            ["bounced", "deferred"],
        ),
        (["lmtp", "mailbox:c@y.example=550 5.2.2 full"], 69, ["sent", "bounced"]),
    ],
)
def test_the_status_of_deliver_tells_the_worst_that_happened(
    words: list[str], status: int, states: list[str]
) -> None:
    async def run() -> CompletedProcess[bytes]:
        sinks = Sinks()
        protocol = "lmtp" if "lmtp" in words else "smtp"
        async with sinks.running(words):
            nexthop = sinks.names[0] if protocol == "lmtp" else sinks.nexthop()
            where = ["--protocol", protocol, "--nexthop", nexthop]
            recipients = envelope("b@y.example", "c@y.example")
            return await postrio("deliver", *where, *recipients, stdin=MESSAGE)

    done = trio.run(run)
    assert done.returncode == status
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == states


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
@trio_test
async def test_s181_with_soft_bounce_deliver_reports_nobody_as_bounced(protocol: str) -> None:
    sinks = Sinks()
    words = ["to:b@y.example=550 5.1.1 never", *(["lmtp"] if protocol == "lmtp" else [])]
    async with sinks.running(words):
        nexthop = sinks.names[0] if protocol == "lmtp" else sinks.nexthop()
        where = ["--protocol", protocol, "--nexthop", nexthop, "-o", "soft_bounce=yes"]
        done = await postrio("deliver", *where, *envelope("b@y.example"), stdin=MESSAGE)
    assert done.returncode == os.EX_TEMPFAIL
    line = json.loads(done.stdout)
    assert (line["status"], line["dsn"]) == ("deferred", "4.1.1")
    assert line["reply"] == "550 5.1.1 never"
    assert b"dsn=4.1.1, status=deferred (host " in done.stderr


@trio_test
async def test_deliver_takes_a_json_request(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    sinks = Sinks()
    async with sinks.running([]):
        request = {
            "message": str(path),
            "sender": "",
            "recipients": [
                {"address": "b@y.example", "notify": "success,failure", "orcpt": "rfc822;o@y"},
                {"address": "c@y.example"},
            ],
            "nexthop": sinks.nexthop(),
            "envid": "QQ+1",
            "ret": "hdrs",
            "body": "8bitmime",
            "age": 7200,
            "config": {"smtp_helo_name": "helo.x.example"},
        }
        done = await postrio(
            "deliver", "--request", "-", "--json", stdin=json.dumps(request).encode()
        )
    assert done.returncode == 0
    (taken,) = sinks.taken
    assert taken.helo == "helo.x.example"
    assert taken.sender == ""
    assert "ENVID=QQ+2B1" in taken.mail_parameters
    assert "RET=HDRS" in taken.mail_parameters
    assert taken.rcpt_parameters[0] == "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o@y"
    assert json.loads(done.stdout.splitlines()[0])["delays"][0] == pytest.approx(7200, abs=1)


@trio_test
async def test_a_signal_ends_deliver_with_every_recipient_deferred() -> None:
    sinks = Sinks()
    async with sinks.running(["silent=mail"]):
        process = await trio.lowlevel.open_process(
            [
                *POSTRIO,
                "deliver",
                "--nexthop",
                sinks.nexthop(),
                *envelope("b@y.example", "c@y.example"),
                os.devnull,
            ],
            stdout=PIPE,
            stderr=DEVNULL,
            env=environment(),
        )
        assert process.stdout is not None
        with trio.fail_after(LIMIT):
            while not sinks.sinks[0].counters.connections:  # noqa: ASYNC110  # a counter
                await trio.sleep(0.02)
            process.terminate()
            output = b"".join([data async for data in process.stdout])
            status = await process.wait()
        await process.stdout.aclose()
    lines = [json.loads(line) for line in output.splitlines()]
    assert status == 75
    assert [line["status"] for line in lines] == ["deferred", "deferred"]
    assert {line["dsn"] for line in lines} == {"4.3.2"}
    assert not any("more than once" in line["reply"] for line in lines)  # nothing was under way


class Node:
    """`postrio run` with a queue of its own, its log in a file."""

    def __init__(self, directory: Path, nexthop: str) -> None:
        self.main_cf = directory / "main.cf"
        self.log = directory / "maillog"
        self.main_cf.write_text(
            f"queue_directory = {directory / 'queue'}\n"
            f"maillog_file = {self.log}\n"
            f"relayhost = {nexthop}\n"
            "myhostname = mail.x.example\n"
            "minimal_backoff_time = 1s\n"
            "queue_run_delay = 1s\n"
        )
        self.process: trio.Process

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The node around the block; SIGTERM at its end, and status 0 then."""
        self.process = await trio.lowlevel.open_process(
            [*POSTRIO, "run", "-c", str(self.main_cf)], stdin=DEVNULL, env=environment()
        )
        try:
            await self.logged("daemon started")
            yield
            self.process.terminate()
            with trio.fail_after(LIMIT):
                assert await self.process.wait() == 0
        finally:
            if self.process.poll() is None:
                self.process.kill()
                with trio.CancelScope(shield=True):
                    await self.process.wait()

    async def logged(self, text: str, count: int = 1) -> str:
        """Wait until the log has this `count` times; returns the log."""
        with trio.fail_after(LIMIT):
            while True:
                log = self.log.read_text() if self.log.exists() else ""
                if log.count(text) >= count:
                    return log
                await trio.sleep(0.02)  # another process writes it: there is nothing to wait on

    async def command(self, *arguments: str, stdin: bytes = b"") -> str:
        """A command for this node; its output."""
        done = await postrio(*arguments, "-c", str(self.main_cf), stdin=stdin, check=True)
        return done.stdout.decode()


@trio_test
async def test_a_message_that_is_sent_to_a_running_node_is_delivered_and_logged(
    tmp_path: Path,
) -> None:
    sinks = Sinks()
    async with sinks.running([]):
        node = Node(tmp_path, sinks.nexthop())
        async with node.running():
            queue_id = (
                await node.command("send", "-f", "a@x.example", "b@y.example", stdin=MESSAGE)
            ).strip()
            log = await node.logged(f"{queue_id}: removed")
            assert await node.command("queue", "list") == "Mail queue is empty\n"
    assert [taken.content for taken in sinks.taken] == [MESSAGE]
    texts = [line.split("]: ", 1)[1] for line in log.splitlines() if queue_id in line]
    assert texts[:3] == [
        f"{queue_id}: uid={os.getuid()} from=<a@x.example>",
        f"{queue_id}: message-id=<>",
        f"{queue_id}: from=<a@x.example>, size={len(MESSAGE)}, nrcpt=1 (queue active)",
    ]
    assert texts[3].startswith(f"{queue_id}: to=<b@y.example>, relay=127.0.0.1[127.0.0.1]:")
    assert texts[4:] == [f"{queue_id}: removed"]


@trio_test
async def test_the_queue_of_a_running_node_can_be_looked_at_and_changed(tmp_path: Path) -> None:
    sinks = Sinks()
    async with sinks.running([]):
        node = Node(tmp_path, sinks.nexthop())
        async with node.running():
            held = await node.command(
                "send", "--hold", "-f", "a@x.example", "b@y.example", stdin=MESSAGE
            )
            (line,) = (await node.command("queue", "list", "--json")).splitlines()
            assert (json.loads(line)["queue_id"], json.loads(line)["queue_name"]) == (
                held.strip(),
                "hold",
            )
            shown = await postrio(
                "queue", "show", "--content", held.strip(), "-c", str(node.main_cf), check=True
            )
            assert shown.stdout == MESSAGE
            assert await node.command("queue", "release", "ALL") == "1 message released\n"
            await node.logged(f"{held.strip()}: removed")
    assert len(sinks.taken) == 1


@trio_test
async def test_sighup_follows_a_renamed_log_and_a_new_configuration(tmp_path: Path) -> None:
    sinks = Sinks()
    async with sinks.running([], []):
        node = Node(tmp_path, sinks.nexthop(0))
        async with node.running():
            await node.command("send", "-f", "a@x.example", "b@y.example", stdin=MESSAGE)
            await node.logged(": removed")  # so the worker has started, too
            node.log.rename(tmp_path / "maillog.1")
            text = node.main_cf.read_text().replace(sinks.nexthop(0), sinks.nexthop(1))
            node.main_cf.write_text(text)
            node.process.send_signal(signal.SIGHUP)
            await node.logged("configuration reloaded", 2)  # the queue process and its worker
            await node.command("send", "-f", "a@x.example", "b@y.example", stdin=MESSAGE)
            await node.logged(": removed")
    assert [taken.listener for taken in sinks.taken] == sinks.names


@trio_test
async def test_a_second_node_on_the_same_queue_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path, "[127.0.0.1]:9")
    async with node.running():
        done = await postrio("run", "-c", str(node.main_cf))
        assert done.returncode == 75
        assert b"is in use by process" in done.stderr


# --- the streams of a command --------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["config", "myhostname"], ["--help"], ["config", "--help"]])
def test_a_standard_output_that_is_full_is_said_to_be(arguments: list[str]) -> None:
    ended = redirected(*arguments, to=">/dev/full")
    expected = "postrio: standard output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (os.EX_IOERR, expected)


def test_who_cannot_be_told_the_queue_id_is_told_that_the_message_is_queued(
    tmp_path: Path,
) -> None:
    queue = f"queue_directory={tmp_path}/queue"
    ended = redirected("send", "-o", queue, "b@y.example", to=">/dev/full")
    listed = redirected("queue", "list", "-o", queue, "--json", to="")
    queue_id = json.loads(listed.stdout)["queue_id"]
    assert ended.returncode == os.EX_IOERR
    assert ended.stderr.endswith(f"; the message is queued as {queue_id}\n")


@pytest.mark.parametrize("to", [">&-", "2>&-", ">&- 2>&-", "<&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["config", "myhostname"], os.EX_OK), (["config", "nosuch"], os.EX_USAGE)],
)
def test_a_stream_that_is_closed_changes_no_status(
    arguments: list[str], status: int, to: str
) -> None:
    ended = redirected(*arguments, to=to)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr


def test_what_a_locale_has_no_letter_for_is_shown_escaped() -> None:
    setting = "syslog_name=\u044b"
    ended = redirected("config", "-o", setting, "syslog_name", to="", PYTHONIOENCODING="latin-1")
    assert (ended.returncode, ended.stdout) == (os.EX_OK, "syslog_name = \\u044b\n")


def test_no_file_takes_the_number_of_a_stream_that_is_closed() -> None:
    code = (
        "import os; from worker.cli.exits import run_command;"
        "run_command('x', lambda _: os.open('/', os.O_RDONLY) < 3, [])"
    )
    ended = run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"],
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 0
