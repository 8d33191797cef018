"""The commands in this process, on a queue of their own: statuses, output, what people are told."""

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

import worker.cli
from worker.cli import COMMANDS, commands, sendmail
from worker.cli.exits import DEBUG_VARIABLE, Entry, run_command
from worker.network.ports import ServicePorts

MESSAGE = b"Subject: hello\nTo: Bob <b@y.example>\nBcc: c@y.example\n\n.dot\nHello.\n"


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str


class Shell:
    """Runs commands as a user would, with a main.cf of its own."""

    def __init__(
        self, directory: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.queue = directory / "queue"
        self.main_cf = directory / "main.cf"
        self.main_cf.write_text(
            f"queue_directory = {self.queue}\nmyhostname = mail.x.example\nmyorigin = x.example\n"
        )
        self._capsys = capsys
        self._patch = patch
        patch.setenv("MAIL_CONFIG", str(directory))

    def postrio(self, *arguments: str, stdin: bytes | None = b"") -> Ended:
        """`postrio ARGUMENTS`."""
        return self._run("postrio", worker.cli.invoke, arguments, stdin)

    def sendmail(self, *arguments: str, stdin: bytes | None = b"") -> Ended:
        """`postrio-sendmail ARGUMENTS`."""
        return self._run("postrio-sendmail", sendmail.invoke, arguments, stdin)

    def _run(self, name: str, entry: Entry, arguments: Sequence[str], stdin: bytes | None) -> Ended:
        closed = stdin is None  # then Python has none
        self._patch.setattr(
            sys, "stdin", None if closed else io.TextIOWrapper(io.BytesIO(stdin or b""))
        )
        with pytest.raises(SystemExit) as ended:
            run_command(name, entry, arguments)
        captured = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    def listed(self) -> list[dict[str, object]]:
        """The queue."""
        lines = self.postrio("queue", "list", "--json").out.splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """Commands on a machine with nothing but a main.cf."""
    return Shell(tmp_path, capsys, monkeypatch)


# --- what all commands share -------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["queue", "list"]])
def test_every_command_explains_itself(shell: Shell, command: list[str]) -> None:
    ended = shell.postrio(*command, "--help")
    assert ended.status == 0
    assert "--debug" in ended.out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_help_of_a_command_has_examples_or_says_what_it_is(shell: Shell, command: str) -> None:
    assert "Examples:" in shell.postrio(command, "--help").out or command == "worker"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["bogus"], "postrio: No such command 'bogus'."),
        (["config", "--bogus"], "postrio: No such option '--bogus'."),
        (["config", "-d", "-n"], "postrio: -d and -n exclude each other"),
        (["send"], "postrio: no recipient was given, and no -t"),
        (["send", "b@@"], "postrio: recipient: "),
        (["queue", "hold"], "postrio: Missing argument"),
        (["queue", "hold", "ALL", "x"], "postrio: ALL stands alone"),
        (["queue", "flush", "x", "--domain", "y"], "postrio: --domain and queue ids exclude"),
        (["deliver", "-r", "b@y"], "postrio: --sender is missing"),
        (["deliver", "-f", "a@x"], "postrio: --recipient is missing"),
        (["deliver", "-f", "", "-r", "b@y", "--nexthop", "[x"], "postrio: nexthop: "),
        (["deliver", "-f", "", "-r", "b@y", "--resolver", "x:y:z"], "postrio: resolver: "),
        (["deliver", "--request", "-", "-f", ""], "postrio: --request replaces every other"),
        (["deliver", "--request", "-"], "postrio: no JSON"),
    ],
)
def test_wrong_use_is_status_64_and_one_line(
    shell: Shell, arguments: list[str], complaint: str
) -> None:
    shell.queue.mkdir()
    ended = shell.postrio(*arguments)
    assert ended.status == 64
    assert ended.err.startswith(complaint)
    assert "Traceback" not in ended.err


def entries(*found: EntryPoint) -> Callable[..., EntryPoints]:
    """What importlib.metadata says when these are the entry points of all installed packages."""
    return lambda **which: EntryPoints(found).select(**which)


def test_installed_packages_may_add_commands(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.addfinalizer(commands.cache_clear)
    (tmp_path / "broken_package.py").write_text("1 / 0\n")
    (tmp_path / "shapeless_package.py").write_text(
        "TEXT, TRIPLE, NUMBERS = 'xy', ('a', 'b', 'c'), (1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    more = "postrio.commands"
    monkeypatch.setattr(
        worker.cli,
        "entry_points",
        entries(
            EntryPoint("bench", "bench:COMMAND", more),
            EntryPoint("send", "bench:COMMAND", more),  # ours stays
            EntryPoint("gone", "no_such_package:COMMAND", more),  # half removed
            EntryPoint("empty", "bench:NO_SUCH_NAME", more),
            EntryPoint("raises", "broken_package:COMMAND", more),
            EntryPoint("text", "shapeless_package:TEXT", more),
            EntryPoint("triple", "shapeless_package:TRIPLE", more),
            EntryPoint("numbers", "shapeless_package:NUMBERS", more),
            EntryPoint("other", "bench:COMMAND", "other.group"),
        ),
    )
    commands.cache_clear()
    assert list(commands()) == [*COMMANDS, "bench"]
    assert commands()["send"] == COMMANDS["send"]
    assert "  bench " in shell.postrio("--help").out
    listed = shell.postrio("bench", "list")
    assert (listed.status, listed.out[:6]) == (0, "drain ")
    wrong = shell.postrio("bench", "engine", "--set", "x=1")
    assert wrong.status == 64
    assert "'postrio bench engine --help' says" in wrong.err
    assert shell.postrio("gone").status == 64


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "b@y.example", "-m"],
        ["deliver", "-f", "", "-r", "b@y.example"],
        ["deliver", "--request"],
    ],
)
def test_a_file_that_is_not_there_is_status_66(shell: Shell, arguments: list[str]) -> None:
    ended = shell.postrio(*arguments, "/nonexistent")
    assert ended.status == 66
    assert ended.err == "postrio: /nonexistent: No such file or directory\n"


def test_a_bad_configuration_is_status_78_and_names_every_mistake(shell: Shell) -> None:
    shell.main_cf.write_text("smtp_helo_timeout = soon\nsmtp_always_send_ehlo = perhaps\n")
    ended = shell.postrio("send", "b@y.example", stdin=MESSAGE)
    assert ended.status == 78
    assert f"{shell.main_cf}:1: smtp_helo_timeout = soon: " in ended.err
    assert f"{shell.main_cf}:2: smtp_always_send_ehlo = perhaps: " in ended.err


def test_configuration_options_stand_before_or_after_the_command(shell: Shell) -> None:
    before = shell.postrio("-o", "mydomain=z.example", "config", "mydomain")
    after = shell.postrio("config", "-o", "mydomain=z.example", "mydomain")
    assert before == after == Ended(0, "mydomain = z.example\n", "")


def test_a_bug_is_one_line_unless_debugging(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: Sequence[str]) -> int:
        raise ExceptionGroup("nursery", [KeyError(len(arguments))])

    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(worker.cli, "invoke", broken)
    ended = shell.postrio("x")
    assert (ended.status, ended.err) == (
        70,
        "postrio: internal error: KeyError: 1 (with --debug: where)\n",
    )
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    assert "in broken" in shell.postrio("x").err


# --- config and check --------------------------------------------------------------------------


def test_config_shows_values_defaults_and_changes(shell: Shell) -> None:
    assert shell.postrio("config", "-d", "myorigin").out == "myorigin = $myhostname\n"
    assert shell.postrio("config", "-h", "myorigin").out == "x.example\n"
    assert shell.postrio("config", "-n").out.splitlines() == [
        "myhostname = mail.x.example",
        "myorigin = x.example",
        f"queue_directory = {shell.queue}",
    ]


def test_config_refuses_an_unknown_name_with_a_suggestion(shell: Shell) -> None:
    ended = shell.postrio("config", "myorigine")
    assert ended.status == 64
    assert "did you mean myorigin?" in ended.err


def test_config_explains_a_parameter(shell: Shell) -> None:
    assert "relayhost: " in shell.postrio("config", "--explain", "relayhost").out


def test_check_finds_nothing_and_makes_nothing_on_a_fresh_machine(shell: Shell) -> None:
    ended = shell.postrio("check")
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert "does not exist; 'postrio run' will make it" in ended.err
    assert not shell.queue.exists()


def test_check_says_what_would_be_wrong(shell: Shell, tmp_path: Path) -> None:
    shell.queue.write_text("not a directory")
    (tmp_path / "log").mkdir()
    ended = shell.postrio("check", "-o", f"maillog_file={tmp_path / 'log'}")
    assert ended.status == 78
    assert f"queue_directory {shell.queue} is not a directory" in ended.err
    assert "maillog_file: " in ended.err
    assert "2 problems found" in ended.err


def test_check_refuses_a_queue_of_postfix(shell: Shell) -> None:
    (shell.queue / "maildrop").mkdir(parents=True)
    ended = shell.postrio("check")
    assert ended.status == 78
    assert f"queue_directory {shell.queue} is a queue of Postfix" in ended.err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["relayhost=[ipv6:zz]"], "relayhost: destination '[ipv6:zz]': bad IPv6 address 'zz'"),
        (["relayhost=[a.example], b:65536"], "relayhost: destination 'b:65536': bad port '65536'"),
        (["relayhost=[a.example]:x-y"], "destination [a.example]:x-y: unknown service x-y"),
        (
            ["relayhost=[a", "default_transport=lmtp:unix:"],
            "default_transport: destination 'unix:': bad path ''",
        ),
        (["relayhost=[a.example]:587", "default_transport=relay:"], ""),
        (["relayhost=unix:/a, b", "default_transport=lmtp"], ""),
        (["relayhost=[a", "default_transport=retry"], ""),
        (["best_mx_transport=relay:[a"], "best_mx_transport = relay:[a: "),
        (["best_mx_transport=lmtp:[a.example]:x-y"], "unknown service x-y"),
        (["smtp_tcp_port=65536"], "smtp_tcp_port = 65536: port 65536 is not in the range 1 to"),
        (["lmtp_tcp_port=x-y"], "lmtp_tcp_port = x-y: unknown service x-y"),
        (["smtp_helo_name=two words"], "smtp_helo_name = two words: not of the right form"),
    ],
)
def test_s002_check_tells_what_is_no_destination_or_port(
    shell: Shell, settings: list[str], told: str
) -> None:
    options = [word for setting in settings for word in ("-o", setting)]
    ended = shell.postrio("check", *options)
    assert ended.status == (78 if told else 0)
    assert told in ended.err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["lmtp_tcp_port=25"], "lmtp_tcp_port"),
        (["lmtp_tcp_port=smtp", "default_transport=lmtp:[a.example]"], "lmtp_tcp_port, default_tr"),
        (["default_transport=lmtp:inet:a.example:25"], "default_transport"),
        (["default_transport=lmtp", "relayhost=[a.example]:smtp"], "relayhost"),
        (["lmtp_fallback_relay=[a.example]:26, [b.example]:25"], "lmtp_fallback_relay"),
        (["best_mx_transport = lmtp : [a.example]:25"], "best_mx_transport"),
        (["default_transport=lmtp:unix:/run/25", "relayhost=[a.example]:25"], ""),
        (["default_transport=smtp:[a.example]:25", "best_mx_transport=smtp:[a.example]"], ""),
        (["default_transport=lmtp", "lmtp_tcp_port=24", "best_mx_transport=lmtp"], ""),
    ],
)
def test_s193_check_warns_of_lmtp_at_the_port_of_smtp(
    shell: Shell, settings: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServicePorts, "of_system", lambda ports, service: None)
    ended = shell.postrio("check", *(word for each in settings for word in ("-o", each)))
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert ended.err.count("must not be used at port 25") == bool(told)
    if told:
        assert f"warning: {told}" in ended.err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("default_transport=smpt", "default_transport: there is no transport smpt: such mail will"),
        ("default_transport=smpt:[a.example]", "there is no transport smpt: such mail will wait"),
        ("best_mx_transport=smpt", "best_mx_transport: there is no transport smpt: such mail will"),
        ("defer_transports=relay, smpt", "defer_transports: smpt is none of smtp, relay, lmtp: no"),
    ],
)
def test_check_tells_of_transports_that_are_none(shell: Shell, setting: str, told: str) -> None:
    ended = shell.postrio("check", "-o", setting)
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert ended.err.count(f"{setting.partition('=')[0]}: ") == 1
    assert told in ended.err
    right = setting.replace("smpt", "lmtp")
    assert setting.partition("=")[0] not in shell.postrio("check", "-o", right).err


def test_check_reads_the_files_of_tls_policies_and_tells_what_is_odd(
    shell: Shell, tmp_path: Path
) -> None:
    odd = ["-o", "smtp_tls_secure_cert_match=hostname", "-o", "smtp_tls_security_level=secure"]
    ended = shell.postrio("check", *odd)
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert ended.err.count("hostname comes from DNS") == 1
    (tmp_path / "ca.pem").write_text("nothing")
    # Trust anchors are needed only where tables may ask for them.
    anchors = ["-o", f"smtp_tls_trust_anchor_file={tmp_path / 'ca.pem'}"]
    assert shell.postrio("check", *anchors).status == 0
    ended = shell.postrio("check", *anchors, "-o", "smtp_tls_policy_maps=static:secure")
    assert ended.status == 78
    assert f"smtp_tls_trust_anchor_file = {tmp_path / 'ca.pem'}: " in ended.err


def test_check_says_each_file_once_and_counts_every_mistake(shell: Shell, tmp_path: Path) -> None:
    ended = shell.postrio("check", "-o", f"smtp_tls_CAfile={tmp_path / 'no.pem'}")
    assert f"smtp_tls_CAfile = {tmp_path / 'no.pem'}: cannot be read: No such file" in ended.err
    names = ["-o", "smtp_tls_ciphers=strong", "-o", "smtp_tls_fingerprint_digest=sha265"]
    ended = shell.postrio("check", *names)
    assert (ended.status, ended.err.splitlines()[-1]) == (78, "postrio: 2 problems found")


def test_check_names_the_parameter_where_the_system_has_no_authorities(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    ended = shell.postrio("check", "-o", "tls_append_default_CA=yes")
    assert ended.status == 78
    assert "postrio: -o: tls_append_default_CA = yes: no list of authorities was" in ended.err


@pytest.mark.parametrize("database", ["btree:/nowhere/sessions", "btree"])
def test_check_says_where_tls_sessions_cannot_be_shared(shell: Shell, database: str) -> None:
    ended = shell.postrio("check", "-o", f"smtp_tls_session_cache_database={database}")
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert "warning: smtp_tls_session_cache_database: " in ended.err
    inside = f"smtp_tls_session_cache_database=btree:{shell.queue / 'sessions'}"
    assert "session_cache" not in shell.postrio("check", "-o", inside).err


def test_check_says_where_refused_logins_cannot_be_shared(shell: Shell) -> None:
    cache = "/nowhere/refused"
    login = ["-o", "smtp_sasl_auth_enable=yes", "-o", "smtp_sasl_password_maps=static:u:p"]
    name = f"smtp_sasl_auth_cache_name=proxy:btree:{cache}"
    ended = shell.postrio("check", *login, "-o", name)
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert f"smtp_sasl_auth_cache_name: {cache}.sqlite cannot be written; refused" in ended.err
    inside = f"smtp_sasl_auth_cache_name=proxy:btree:{shell.queue / 'refused'}"
    assert "auth_cache" not in shell.postrio("check", *login, "-o", inside).err
    assert not (shell.queue / "refused.sqlite").exists()


def test_check_says_where_tls_cannot_be_traced(shell: Shell) -> None:
    nowhere = ["-o", "postrio_tls_trace_file=/nowhere/trace"]
    ended = shell.postrio("check", *nowhere, "-o", "lmtp_tls_loglevel=3")
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    told = "postrio_tls_trace_file: /nowhere/trace cannot be written; TLS will not be traced"
    assert told in ended.err
    assert "trace_file" not in shell.postrio("check", *nowhere, "-o", "smtp_tls_loglevel=2").err
    assert "trace_file" not in shell.postrio("check", "-o", "smtp_tls_loglevel=4").err
    none = ["-o", "postrio_tls_trace_file=", "-o", "smtp_tls_loglevel=4"]
    assert "trace_file" not in shell.postrio("check", *none).err


def test_check_tells_of_passwords_and_keys_that_nobody_uses(shell: Shell) -> None:
    passwords = ["-o", "smtp_sasl_password_maps=static:user:canary"]
    ended = shell.postrio("check", *passwords, "-o", "smtp_tls_key_file=/nowhere.pem")
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    warnings = [line for line in ended.err.splitlines() if "queue_directory" not in line]
    assert warnings == [
        "postrio: warning: -o: smtp_tls_key_file: has no effect without smtp_tls_cert_file, which"
        " is empty",
        "postrio: warning: smtp_sasl_password_maps is set, but smtp_sasl_auth_enable = no: there is"
        " no logging in",
    ]
    used = shell.postrio("check", *passwords, "-o", "smtp_sasl_auth_enable=yes")
    assert "there is no logging in" not in used.err


def test_a_level_that_is_none_is_answered_with_those_that_can_be_had(shell: Shell) -> None:
    ended = shell.postrio("check", "-o", "smtp_tls_security_level=dan")
    assert ended.status == 78
    assert (
        "smtp_tls_security_level = dan: not one of the choices; expected nothing, none, may,"
        " encrypt, fingerprint, verify or secure; dane and dane-only are not supported yet"
    ) in ended.err


def test_who_may_not_read_the_passwords_may_submit_and_look(shell: Shell, tmp_path: Path) -> None:
    # A test run as root can read everything: a table that is not there is as closed to it.
    with shell.main_cf.open("a") as main_cf:
        main_cf.write("smtp_sasl_auth_enable = yes\n")
        main_cf.write(f"smtp_sasl_password_maps = texthash:{tmp_path / 'closed'}\n")
    assert shell.postrio("send", "b@y.example", stdin=MESSAGE).status == 0
    assert shell.sendmail("b@y.example", stdin=MESSAGE).status == 0
    assert len(shell.listed()) == 2
    assert "closed" in shell.postrio("config", "-n").out
    asked = ("table", "query", "-o", "transport_maps=inline:{a.example=smtp:b}")
    assert shell.postrio(*asked, "transport_maps", "a.example").out == "smtp:b\n"
    assert shell.postrio(*asked, "smtp_sasl_password_maps", "a.example").status == 78
    assert shell.postrio("check").status == 78


def test_check_reads_the_entries_of_policy_maps_and_password_tables(
    shell: Shell, tmp_path: Path
) -> None:
    policies, passwords = tmp_path / "policies", tmp_path / "passwords"
    policies.write_text(
        "good.example secure match=mx.good.example\n"
        "[mx.bad.example]:25 secrue\n"
        "ta.example secure tafile=/nowhere.pem\n"
    )
    passwords.write_text("good.example ann:secret1\nbad.example :secret2\n")
    ended = shell.postrio(
        *("check", "-o", f"smtp_tls_policy_maps=texthash:{policies}"),
        *("-o", "smtp_sasl_auth_enable=yes"),
        *("-o", f"smtp_sasl_password_maps=texthash:{passwords}"),
    )
    assert (ended.status, ended.out) == (0, "nothing is wrong\n")
    assert [line for line in ended.err.splitlines() if "its mail will wait" in line] == [
        'postrio: warning: smtp_tls_policy_maps, next-hop destination "[mx.bad.example]:25":'
        ' invalid security level "secrue"; expected none, may, encrypt, fingerprint, verify,'
        " secure; its mail will wait",
        "postrio: warning: smtp_tls_policy_maps: /nowhere.pem: cannot be read: No such file or"
        " directory; its mail will wait",
        "postrio: warning: the entry for bad.example in the password table begins without a user"
        " name; its mail will wait",
    ]
    assert "secret" not in ended.err


def test_check_leaves_the_file_of_tls_sessions_alone(shell: Shell, tmp_path: Path) -> None:
    sessions = f"smtp_tls_session_cache_database=btree:{tmp_path / 'sessions'}"
    assert shell.postrio("check", "-o", sessions).status == 0
    assert list(tmp_path.glob("sessions*")) == []


def test_check_finds_a_damaged_queue(shell: Shell) -> None:
    shell.postrio("send", "b@y.example", stdin=MESSAGE)
    (shell.queue / "queue.sqlite3").write_bytes(b"garbage" * 1000)
    ended = shell.postrio("check")
    assert ended.status == 78
    assert "is not a queue database" in ended.err


def test_a_damaged_queue_ends_a_command_with_a_permanent_status(shell: Shell) -> None:
    shell.postrio("send", "b@y.example", stdin=MESSAGE)
    (shell.queue / "queue.sqlite3").write_bytes(b"garbage" * 1000)
    ended = shell.postrio("queue", "list")
    assert ended.status == os.EX_DATAERR
    assert "is not a queue database" in ended.err


def test_a_message_for_a_damaged_queue_is_to_be_sent_again_and_not_refused(shell: Shell) -> None:
    shell.postrio("send", "b@y.example", stdin=MESSAGE)
    (shell.queue / "queue.sqlite3").write_bytes(b"garbage" * 1000)
    ended = shell.postrio("send", "b@y.example", stdin=MESSAGE)
    assert ended.status == os.EX_TEMPFAIL
    assert "is not a queue database" in ended.err


# --- send --------------------------------------------------------------------------------------


def test_send_prints_the_queue_id_of_a_message_that_is_queued_as_it_is(shell: Shell) -> None:
    sent = shell.postrio("send", "-f", "a@x.example", "b@y.example", "c", stdin=MESSAGE)
    assert (sent.status, sent.err) == (0, "")
    (message,) = shell.listed()
    assert message["queue_id"] == sent.out.strip()
    assert message["sender"] == "a@x.example"
    assert [item["address"] for item in _recipients(message)] == ["b@y.example", "c@x.example"]
    shown = shell.postrio("queue", "show", "--content", sent.out.strip())
    assert shown.out.encode() == MESSAGE.replace(b"\n", b"\r\n")


def test_send_takes_recipients_from_the_header_and_bcc_out_of_it(shell: Shell) -> None:
    sent = shell.postrio("send", "-t", stdin=MESSAGE)
    (message,) = shell.listed()
    assert [item["address"] for item in _recipients(message)] == ["b@y.example", "c@y.example"]
    assert "Bcc" not in shell.postrio("queue", "show", "--content", sent.out.strip()).out


def test_send_without_a_recipient_in_the_header_is_wrong_use(shell: Shell) -> None:
    ended = shell.postrio("send", "-t", stdin=b"Subject: x\n\n")
    assert (ended.status, ended.err) == (64, "postrio: there is no recipient in the header\n")


def test_a_bad_address_in_the_header_is_bad_data(shell: Shell) -> None:
    ended = shell.postrio("send", "-t", stdin=b"To: b@@\n\n")
    assert ended.status == 65
    assert ended.err.startswith("postrio: to: field: ")


def test_a_message_that_is_too_large_is_refused(shell: Shell) -> None:
    ended = shell.postrio("send", "-o", "message_size_limit=10", "b@y.example", stdin=MESSAGE)
    assert ended.status == 65
    assert "message_size_limit" in ended.err


def test_a_held_message_is_on_hold(shell: Shell) -> None:
    shell.postrio("send", "--hold", "b@y.example", stdin=MESSAGE)
    assert [message["queue_name"] for message in shell.listed()] == ["hold"]


# --- queue -------------------------------------------------------------------------------------


def test_an_empty_queue_says_so_and_a_missing_one_is_not_made(shell: Shell) -> None:
    missing = shell.postrio("queue", "list")
    assert missing.status == 66
    assert not shell.queue.exists()
    sent = shell.postrio("send", "b@y.example", stdin=MESSAGE)
    assert shell.postrio("queue", "delete", sent.out.strip()).out == "1 message deleted\n"
    assert shell.postrio("queue", "list").out == "Mail queue is empty\n"


def test_a_directory_that_was_made_for_a_queue_is_left_as_it_is(shell: Shell) -> None:
    shell.queue.mkdir()
    ended = shell.postrio("queue", "list")
    assert (ended.status, ended.err) == (66, f"postrio: there is no queue in {shell.queue}\n")
    assert not list(shell.queue.iterdir())  # else they would belong to whoever looked


@pytest.mark.parametrize(("command", "status"), [("run", 73), ("send", 75)])
def test_a_queue_directory_that_cannot_be_made_is_said_to_be(
    shell: Shell, command: str, status: int
) -> None:
    shell.queue.write_text("")
    words = ["b@y.example"] if command == "send" else []
    ended = shell.postrio(command, *words, stdin=MESSAGE)
    expected = f"postrio: cannot open the queue {shell.queue}: Not a directory\n"
    assert (ended.status, ended.err) == (status, expected)


def test_a_queue_directory_without_a_name_is_a_bad_configuration(shell: Shell) -> None:
    ended = shell.postrio("check", "-o", "queue_directory=")
    assert (ended.status, "expected a directory" in ended.err) == (78, True)


def test_the_list_has_the_shape_of_mailq(shell: Shell) -> None:
    sent = shell.postrio("send", "--hold", "-f", "", "b@y.example", "c@y.example", stdin=MESSAGE)
    lines = shell.postrio("queue", "list").out.splitlines()
    assert lines[0].startswith("----Queue ID-----")
    assert lines[1].split()[0] == sent.out.strip() + "!"
    assert lines[1].endswith("MAILER-DAEMON")
    assert [line.strip() for line in lines[2:]] == [
        "b@y.example",
        "c@y.example",
        "",
        "-- 0 Kbytes in 1 Request.",
    ]


def test_messages_go_on_hold_and_off_again(shell: Shell) -> None:
    first = shell.postrio("send", "b@y.example", stdin=MESSAGE).out.strip()
    shell.postrio("send", "c@z.example", stdin=MESSAGE)
    assert shell.postrio("queue", "hold", first).out == "1 message put on hold\n"
    assert shell.postrio("queue", "hold", "ALL").out == "1 message put on hold\n"
    assert {message["queue_name"] for message in shell.listed()} == {"hold"}
    assert shell.postrio("queue", "release", "ALL").out == "2 messages released\n"
    assert shell.postrio("queue", "requeue", first).out == "1 message requeued\n"


def test_an_unknown_queue_id_is_named(shell: Shell) -> None:
    shell.postrio("send", "b@y.example", stdin=MESSAGE)
    for command in ("hold", "delete", "show", "list"):
        ended = shell.postrio("queue", command, "nosuch")
        assert ended.status == 66
        assert ended.err == "postrio: nosuch: no such message in the queue\n"
        assert "queue is empty" not in ended.out  # it is not


# --- sendmail ----------------------------------------------------------------------------------


def test_a_standard_input_that_is_closed_is_said_to_be(shell: Shell) -> None:
    for ended in (
        shell.postrio("send", "b@y.example", stdin=None),
        shell.postrio("table", "query", "static:x", "-", stdin=None),
        shell.sendmail("b@y.example", stdin=None),
        shell.sendmail("-t", stdin=None),
    ):
        assert ended.status == 66
        assert ended.err.endswith(": standard input is closed\n")
    assert not shell.queue.exists()


def test_s163_a_probe_needs_no_standard_input(shell: Shell) -> None:
    ended = shell.sendmail("-bv", "-f", "a@x.example", "b@y.example", stdin=None)
    assert ended.status == 0
    assert len(shell.listed()) == 1


def test_sendmail_queues_a_complete_message_and_says_nothing(shell: Shell) -> None:
    ended = shell.sendmail("-f", "a@x.example", "-t", "-i", "d@y.example", stdin=MESSAGE)
    assert ended == Ended(0, "", "")
    (message,) = shell.listed()
    assert [item["address"] for item in _recipients(message)] == [
        "d@y.example",
        "b@y.example",
        "c@y.example",
    ]
    content = shell.postrio("queue", "show", "--content", str(message["queue_id"])).out
    for name in ("From: ", "Date: ", "Message-ID: <"):
        assert f"\n{name}" in content
    assert "Bcc" not in content


def test_sendmail_lists_the_queue_and_flushes_it(shell: Shell) -> None:
    shell.sendmail("b@y.example", stdin=MESSAGE)
    assert "in 1 Request." in shell.sendmail("-bp").out
    flushed = shell.sendmail("-q")
    assert (flushed.status, flushed.out, flushed.err) == (0, "", "")  # cron would mail it
    assert shell.sendmail("-qRy.example").status == 0


@pytest.mark.parametrize(
    ("arguments", "status"), [(["-bs"], 64), ([], 64), (["-t"], 65), (["--help"], 0)]
)
def test_sendmail_ends_with_the_status_that_callers_know(
    shell: Shell, arguments: list[str], status: int
) -> None:
    assert shell.sendmail(*arguments, stdin=b"To: b@@\n\n").status == status


# --- table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "out"),
    [
        (["inline:{a=1}", "a"], 0, "1\n"),
        (["inline:{a=1}", "b"], 1, ""),
        (["inline:{a=1, b=2}", "A", "x", "b"], 0, "A\t1\nb\t2\n"),
        (["inline:{a=1}, static:rest", "b"], 0, "rest\n"),
        (["inline:{a=1}", "-"], 0, "a\t1\n"),
        (["static:1", "-"], 0, "a\t1\nb c\t1\n"),
        (["inline:{c=1}", "-"], 1, ""),
        (["transport_maps", "here.example"], 0, "smtp:[relay]\n"),
        (
            ["--json", "inline:{a=1}", "a", "b"],
            0,
            '{"key": "a", "text": "1"}\n{"key": "b", "text": null}\n',
        ),
    ],
)
def test_table_query_answers_as_postmap(
    shell: Shell, arguments: list[str], status: int, out: str
) -> None:
    with shell.main_cf.open("a") as main_cf:
        main_cf.write("transport_maps = inline:{here.example=smtp:[relay]}\n")
    ended = shell.postrio("table", "query", *arguments, stdin=b"a\n\nb c")
    assert ended == Ended(status, out, "")


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["fail:x", "a"], 75, "fail:x lookup of a fails as configured"),
        (["hsh:x", "a"], 78, 'there is no table type "hsh"'),
        (["inline:{a", "a"], 78, '"{" without "}"'),
        (
            ["relayhost", "a"],
            64,
            '"relayhost" is neither a table nor a parameter that holds tables',
        ),
        (["static:x"], 64, "Missing argument"),
        (["static:x", "-"], 65, "a line of 65536 octets or more"),
    ],
)
def test_table_query_says_what_is_wrong(
    shell: Shell, arguments: list[str], status: int, complaint: str
) -> None:
    ended = shell.postrio("table", "query", *arguments, stdin=b"x" * 70_000)
    assert (ended.status, ended.out) == (status, "")
    assert complaint in ended.err


def _recipients(message: dict[str, object]) -> list[dict[str, object]]:
    recipients = message["recipients"]
    assert isinstance(recipients, list)
    return recipients


# --- the manual --------------------------------------------------------------------------------
