"""Logging in as configured: mistakes of configuration, the order of keys, tokens, their command."""

import os
import stat
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.request import Protocol
from protocol.sasl.secret import Secret
from worker.config.config import Config, ConfigError
from worker.config.table import TableError
from worker.sasl import tokens as tokens_module
from worker.sasl.client import SaslClient
from worker.sasl.credentials import Credentials, read_entry
from worker.sasl.refusals import LIMIT, Refusal, Refusals
from worker.sasl.tokens import OUTPUT_LIMIT, TokenError, Tokens, command_tokens, read_output

ON = {"smtp_sasl_auth_enable": "yes", "lmtp_sasl_auth_enable": "yes"}


def client(
    passwords: str, settings: Mapping[str, str] | None = None, protocol: Protocol = Protocol.SMTP
) -> SaslClient:
    tables = {f"{name}_sasl_password_maps": f"inline:{{{passwords}}}" for name in ("smtp", "lmtp")}
    config = Config.from_mapping({**ON, **tables, **(settings or {})})
    sasl = SaslClient.from_config(config, protocol)
    assert sasl is not None
    return sasl


async def user(
    sasl: SaslClient, sender: str = "a@from.example", nexthop: str = "[relay.example]:587"
) -> str | None:
    found = await sasl.credentials(sender=sender, host="mx.example", nexthop=nexthop)
    return None if found is None else found.user


# --- mistakes ------------------------------------------------------------------------------------


def test_s085_without_the_switch_there_is_no_logging_in() -> None:
    config = Config.from_mapping({"smtp_sasl_password_maps": "static:u:p"})
    assert SaslClient.from_config(config, Protocol.SMTP) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "smtp_sasl_auth_enable = yes: needs smtp_sasl_password_maps, which is empty"),
        (
            {"smtp_sasl_type": "postrio", "smtp_sasl_path": "helper"},
            "smtp_sasl_path = helper: not an absolute path",
        ),
        (
            {"smtp_sasl_type": "postrio", "smtp_sasl_path": "/nonexistent/x -a"},
            "/nonexistent/x cannot be executed",
        ),
        ({"smtp_sasl_type": "postrio", "smtp_sasl_path": "/"}, "/ cannot be executed"),
        ({"smtp_sasl_type": "postrio", "smtp_sasl_path": "'/x"}, "No closing quotation"),
        ({"smtp_sasl_type": "dovecot"}, "cyrus, postrio"),
        ({"smtp_sasl_security_options": "nothing"}, '"nothing" is not known here'),
        ({"smtp_sasl_password_result_delimiter": "::"}, "one character, no white space"),
        ({"smtp_sasl_auth_cache_time": "0"}, "too small"),
    ],
)
def test_s085_a_mistake_is_told_with_what_would_be_right(
    settings: dict[str, str], words: str
) -> None:
    maps = {"smtp_sasl_password_maps": "static:u:p"} if settings else {}
    with pytest.raises(ConfigError) as caught:
        SaslClient.from_config(
            Config.from_mapping({"smtp_sasl_auth_enable": "yes", **maps, **settings}),
            Protocol.SMTP,
        )
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "tables",
    [
        "inline:{mx=user:canary",
        "inline:{{mx=user:x} canary}",
        "texthash:/nonexistent inline:{canary}",
        "static:{user:canary",
        "$mine",
    ],
)
def test_mistakes_in_tables_that_hold_passwords_do_not_show_them(tables: str) -> None:
    settings = {"smtp_sasl_password_maps": tables, "mine": "inline:{canary}"}
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({**ON, **settings})
    assert "smtp_sasl_password_maps = " in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_mistake_in_other_tables_is_shown_as_ever() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({**ON, "smtp_sasl_password_maps": "dbm:/etc/x"})
    assert 'smtp_sasl_password_maps = dbm:/etc/x: the table type "dbm" is not' in str(caught.value)


def test_s088_the_path_of_cyrus_sasl_means_nothing() -> None:
    assert client("a=b:c", {"smtp_sasl_path": "/nonexistent"}).tokens is None


def test_lmtp_has_parameters_of_its_own() -> None:
    settings = {
        "smtp_sasl_auth_soft_bounce": "no",
        "lmtp_sasl_security_options": "mutual_auth",
        "smtp_sender_dependent_authentication": "yes",
    }
    sasl = client("a=b:c", settings, Protocol.LMTP)
    assert sasl.soft_bounce
    assert sasl.clear_demands == sasl.verified_demands
    assert sasl.clear_demands.name == "MUTUAL_AUTH"
    assert not sasl.by_sender
    assert client("a=b:c", settings).by_sender


# --- which entry ---------------------------------------------------------------------------------


@trio_test
async def test_s086_sender_then_host_then_nexthop_is_asked_for() -> None:
    everything = {
        "a@from.example": "s:1",
        "@from.example": "d:1",
        "mx.example": "h:1",
        "[relay.example]:587": "n:1",
    }
    order = list(everything.items())
    for number, (_, entry) in enumerate(order):
        rest = ", ".join(f"{{{key}={value}}}" for key, value in order[number:])
        sasl = client(rest, {"smtp_sender_dependent_authentication": "yes"})
        assert await user(sasl) == entry[0]
        # Without the switch, for LMTP, and for the null sender, senders do not count.
        expected = entry[0] if entry[0] in "hn" else "h"
        assert await user(client(rest)) == expected
        assert await user(sasl, sender="") == expected
    assert await user(client("other=x:y")) is None


@trio_test
async def test_s093_an_extension_of_the_sender_need_not_be_in_the_table() -> None:
    settings = {"smtp_sender_dependent_authentication": "yes", "recipient_delimiter": "+"}
    sasl = client("a@from.example=s:1, b+x@from.example=t:1", settings)
    assert await user(sasl, "a+x@from.example") == "s"
    assert await user(sasl, "b+x@from.example") == "t"
    assert await user(sasl, "+a@from.example") is None
    assert await user(sasl, "a") is None


@trio_test
async def test_s093_addresses_of_a_list_have_no_extension() -> None:
    settings = {"smtp_sender_dependent_authentication": "yes", "recipient_delimiter": "-"}
    sasl = client("list@from.example=s:1", settings)
    assert await user(sasl, "list-x@from.example") == "s"
    assert await user(sasl, "list-request@from.example") is None


@trio_test
async def test_s086_the_first_delimiter_splits_and_passwords_may_have_more() -> None:
    found = await client("mx.example=u:p:q:").credentials(sender="", host="mx.example", nexthop="")
    assert found == Credentials("u", Secret("p:q:"))
    settings = {"smtp_sasl_password_result_delimiter": "|"}
    other = await client("mx.example=u:v|p|q", settings).credentials(
        sender="", host="MX.example", nexthop=""
    )
    assert other == Credentials("u:v", Secret("p|q"))


@pytest.mark.parametrize("value", [":canary", "u:ca\0nary", "u:canary\n", "\udcffcanary:x"])
def test_an_entry_that_cannot_be_used_defers_and_is_not_shown(value: str) -> None:
    with pytest.raises(
        TableError, match=r"the entry for mx\.example in the password table"
    ) as caught:
        read_entry(value, ":", "mx.example")
    assert "canary" not in str(caught.value)


@trio_test
async def test_a_broken_table_defers() -> None:
    sasl = SaslClient.from_config(
        Config.from_mapping({**ON, "smtp_sasl_password_maps": "fail:x"}), Protocol.SMTP
    )
    assert sasl is not None
    with pytest.raises(TableError):
        await user(sasl)


def test_the_identity_is_that_of_the_user_and_says_nothing_of_the_secret() -> None:
    first = Credentials("user", Secret("one"))
    assert first.identity == Credentials("user", Secret("two")).identity
    assert first.identity != Credentials("users", Secret("one")).identity
    assert first.identity != Credentials("user", Secret("one"), "user").identity
    assert len(first.identity) == 32


# --- refused logins ------------------------------------------------------------------------------


@trio_test
async def test_the_memory_of_logins_is_bounded_and_its_keys_are_this_processs() -> None:
    refusals = Refusals(10.0)
    keys = [await refusals.key("h", ("u", ""), str(number)) for number in range(LIMIT + 1)]
    assert len(set(keys)) == len(keys)
    assert await refusals.key("H", ("u", ""), "1") == keys[1]
    assert await refusals.key("h", ("u", "1"), "") != keys[1]
    assert await Refusals(10.0).key("h", ("u", ""), "1") != keys[1]
    for key in keys:
        refusals.refused(key, Refusal("5.7.8", "535 no"))
    assert refusals.find(keys[0]) is None
    assert refusals.find(keys[1]) is not None
    for key in keys:
        refusals.accepted(key)
    assert len(refusals._accepted) == LIMIT
    assert not refusals._refused


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "token", "lifetime"),
    [
        (b"ya29.abc-_~+/==\n", "ya29.abc-_~+/==", 60.0),
        (b'{"access_token": "abc", "expires_in": 3599}', "abc", 3599.0),
        (b'{"access_token": "abc", "expires_in": 0.5, "x": [1]}', "abc", 0.5),
        (b'{"access_token": "abc"}', "abc", 60.0),
        (b'{"access_token": "abc", "expires_in": 1' + b"0" * 400 + b"}", "abc", 86_400.0),
    ],
)
def test_a_command_may_print_json_or_the_token(output: bytes, token: str, lifetime: float) -> None:
    assert read_output(output) == (Secret(token), lifetime)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"two words",
        b"{}",
        b"{",
        b'{"access_token": 5}',
        b'{"access_token": ""}',
        b'{"access_token": "canary", "expires_in": "soon"}',
        b'{"access_token": "canary", "expires_in": true}',
        b'{"access_token": "canary", "expires_in": -1}',
        b'{"access_token": "canary", "expires_in": NaN}',
        b'{"access_token": "canary canary"}',
        b"canary\xff",
        b"canary\0",
        b"c" * 8_193,
        b"{" * 60_000,
        b"error: no such user canary",
    ],
)
def test_what_is_no_token_is_not_shown_either(output: bytes) -> None:
    with pytest.raises(TokenError, match="expected JSON") as caught:
        read_output(output)
    report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [line for frame in report.stack[1:] for line in (frame.locals or {}).values()]
    assert "canary" not in str(caught.value) + "".join(frames)


class Helper:
    """A command that takes its time and gives out numbered tokens."""

    def __init__(self, seconds: float = 1.0, lifetime: float = 1_000.0) -> None:
        self.calls = 0
        self.seconds = seconds
        self.lifetime = lifetime
        self.broken = False
        self.tokens = Tokens(self._call)

    async def _call(self, user: str, host: str) -> bytes:
        self.calls += 1
        number = self.calls
        await trio.sleep(self.seconds)
        if self.broken:
            raise TokenError("no")
        text = f'{{"access_token": "{user}{number}", "expires_in": {self.lifetime}}}'
        return text.encode()

    async def token(self) -> str:
        return (await self.tokens.token("u", "h")).reveal()


@trio_test
async def test_one_call_serves_all_who_wait(autojump_clock: MockClock) -> None:
    helper = Helper()
    found = []

    async def ask() -> None:
        found.append(await helper.token())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert found == ["u1"] * 20
    assert (await helper.tokens.token("v", "h")).reveal() == "v2"
    assert (await helper.tokens.token("u", "H")).reveal() == "u1"
    assert trio.current_time() == 2.0


@trio_test
async def test_a_token_is_renewed_before_its_end_and_only_one_waits(
    autojump_clock: MockClock,
) -> None:
    helper = Helper()
    await helper.token()
    await trio.sleep(799)
    assert await helper.token() == "u1"
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(helper.token)
        await wait_all_tasks_blocked()
        before = trio.current_time()
        assert await helper.token() == "u1"
        assert trio.current_time() == before
    assert await helper.token() == "u2"
    # While it cannot be renewed, the old one serves to its end, and not a moment longer.
    helper.broken = True
    await trio.sleep(900)
    assert await helper.token() == "u2"
    await trio.sleep(100)
    with pytest.raises(TokenError):
        await helper.token()


@trio_test
async def test_all_who_wait_for_a_failing_call_fail_with_it(autojump_clock: MockClock) -> None:
    helper = Helper()
    helper.broken = True
    failed = []

    async def ask() -> None:
        with pytest.raises(TokenError) as caught:
            await helper.token()
        failed.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert failed == ["no"] * 5
    assert helper.calls == 1


@trio_test
async def test_somebody_else_calls_when_the_caller_is_cancelled(autojump_clock: MockClock) -> None:
    helper = Helper()
    found = []

    async def ask() -> None:
        found.append(await helper.token())

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as inner:
                inner.start_soon(helper.token)
                await wait_all_tasks_blocked()
                nursery.start_soon(ask)
    assert found == ["u2"]


@trio_test
async def test_a_forgotten_token_is_not_used_again(autojump_clock: MockClock) -> None:
    helper = Helper()
    assert await helper.token() == "u1"
    helper.tokens.forget("u", "H")
    assert await helper.token() == "u2"


def program(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport sys, os, time\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@trio_test
async def test_the_command_is_told_user_and_host(tmp_path: Path) -> None:
    path = program(tmp_path / "helper", "print('-'.join(sys.argv[1:]))")
    sasl = client("x=y:", {"smtp_sasl_type": "postrio", "smtp_sasl_path": f"{path} 'one'"})
    assert sasl.tokens is not None
    token = await sasl.tokens.token("user", "mx.example")
    assert token.reveal() == "one-user-mx.example"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sys.exit(3)", "ended with status 3; run it by hand"),
        (
            f"os.write(1, b'x' * {OUTPUT_LIMIT + 1}); os.read(0, 1); time.sleep(60)",
            "printed more than 65536 octets",
        ),
        ("print('hello there')", "it printed no token"),
        ("os.kill(os.getpid(), 9)", "ended with status -9"),
    ],
)
@trio_test
async def test_a_command_that_fails_is_told_of_in_a_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    path = program(tmp_path / "helper", text)
    with pytest.raises(TokenError) as caught:
        await command_tokens([path]).token("u", "h")
    assert words in str(caught.value)


@trio_test
async def test_a_command_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "TIME_LIMIT", 2.0)
    path = program(
        tmp_path / "helper",
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)",
    )
    with pytest.raises(TokenError, match="took longer than"):
        await command_tokens([path]).token("u", "h")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@trio_test
async def test_a_command_that_is_gone_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot be run: No such file"):
        await command_tokens([str(tmp_path / "helper")]).token("u", "h")
