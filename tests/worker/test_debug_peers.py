"""Dialogues of listed peers in the log (debug_peer_list, debug_peer_level; S153, S154).

Deterministic: scripted servers in memory, virtual time.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import Protocol, RequestFlags
from tests.cancel_everywhere import cancel_everywhere
from tests.integration.pki import Pki
from tests.worker.memory_cache import MemoryCache
from tests.worker.peer import Fault, Late, Peer, Phase, Script
from tests.worker.tls_server import ServerTls, server_context
from tests.worker.world import REFUSED, World, deliver_one, make_request
from worker.config.config import Config, ConfigError
from worker.delivery.debug_peers import DebugPeers
from worker.delivery.security import SecurityRules
from worker.environment import make_rules
from worker.status.events import DialogueShown, Event, UnexpectedError, Warned
from worker.status.log import render, to_json

SENT, DEFERRED = Action.SENT, Action.DEFERRED
RELAY = "mx1.example.com[192.0.2.1]:25"
CANARY = "ca-na+ry/Zwitscher99"
LOGIN = {
    "smtp_sasl_auth_enable": "yes",
    "smtp_sasl_password_maps": f"static:user:{CANARY}",
    "smtp_sasl_security_options": "noanonymous",
}


def a_world(
    *sites: Peer | Exception,
    main_cf: Mapping[str, str],
    rules: SecurityRules | None = None,
    cache: MemoryCache | None = None,
) -> World:
    world = World(*sites, rules=rules or SecurityRules(), cache=cache)
    debug = DebugPeers.from_config(Config.from_mapping(main_cf), world.events.append)
    world.environment = replace(world.environment, debug=debug)
    return world


def shown(world: World) -> list[str]:
    """The lines of dialogues, as they are logged."""
    events = [event for event in world.events if isinstance(event, DialogueShown)]
    return [line.text for event in events for line in render(event)]


def everything(world: World) -> str:
    """All that any log, trace or result says."""
    lines = [line.text for event in world.events for line in render(event)]
    return repr((lines, [to_json(event) for event in world.events], world.events, world.results))


# --- who is watched -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "watched"),
    [
        ("", False),
        ("mx1.example.com", True),
        ("MX1.Example.COM", True),
        ("192.0.2.1", True),
        ("192.0.2.0/24", True),
        ("!192.0.2.1, 192.0.2.0/24", False),
        ("192.0.3.0/24, 2001:db8::/32, mx2.example.com", False),
        ("example.com", True),  # mx1 is below it, and it is the nexthop
        ("inline:{mx1.example.com=x}", True),
        ("inline:{192.0.2.1=x}", True),
        ("inline:{mx2.example.com=x}", False),
        ("cidr:{{192.0.2.0/30 x}}", True),
    ],
)
@trio_test
async def test_s153_the_dialogue_with_a_listed_peer_is_logged_and_no_other(
    autojump_clock: MockClock, listed: str, *, watched: bool
) -> None:
    world = a_world(Peer(), main_cf={"debug_peer_list": listed})
    result = await deliver_one(world)
    assert result.outcomes[0].action is SENT
    assert bool(shown(world)) is watched


@pytest.mark.parametrize(
    ("nexthop", "listed", "watched"),
    [
        ("[mx1.example.com]:2525", "[mx1.example.com]:2525", True),
        ("example.com:2525", "example.com", True),
        ("other.example, example.com", "other.example", True),
        ("example.com", "other.example", False),
    ],
)
@trio_test
async def test_s153_a_nexthop_may_be_listed(
    autojump_clock: MockClock, nexthop: str, listed: str, *, watched: bool
) -> None:
    main_cf = {"debug_peer_list": listed, "parent_domain_matches_subdomains": ""}
    world = a_world(Peer(), main_cf=main_cf)
    await deliver_one(world, replace(make_request(), nexthop=nexthop))
    assert bool(shown(world)) is watched


@trio_test
async def test_s153_only_the_listed_one_of_two_servers_is_shown(autojump_clock: MockClock) -> None:
    first, second = Peer({Phase.RCPT: "450 4.7.1 later"}), Peer()
    world = a_world(first, second, main_cf={"debug_peer_list": "192.0.2.2"})
    await deliver_one(world)
    lines = shown(world)
    assert first.accepted or second.accepted
    assert lines
    assert all("mx2.example.com[192.0.2.2]:25: " in line for line in lines)


@trio_test
async def test_s153_hosts_may_be_listed_in_a_file(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "peers").write_text("# watched\n192.0.2.0/28\n")
    world = a_world(Peer(), main_cf={"debug_peer_list": f"{tmp_path}/peers"})
    await deliver_one(world)
    assert shown(world)


@trio_test
async def test_s153_a_list_in_trouble_costs_lines_and_no_mail(autojump_clock: MockClock) -> None:
    world = a_world(Peer(), main_cf={"debug_peer_list": "fail:no"})
    result = await deliver_one(world)
    assert result.outcomes[0].action is SENT
    assert not shown(world)
    [warning] = [event for event in world.events if isinstance(event, Warned)]
    assert warning.text.startswith("debug_peer_list: fail:no lookup of ")


def test_s153_an_item_that_is_none_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"debug_peer_list = 192\.0\.2\.1/24: .*host bits"):
        Config.from_mapping({"debug_peer_list": "192.0.2.1/24"})


# --- how much is shown ----------------------------------------------------------------------------

LEVEL_1 = [
    f"< {RELAY}: 220 mx.example.com ESMTP",
    f"> {RELAY}: EHLO helo.example",
    f"< {RELAY}: 250-mx.example.com hi",
    f"< {RELAY}: 250-PIPELINING",
    f"< {RELAY}: 250 DSN",
    f"> {RELAY}: MAIL FROM:<sender@client.example>",
    f"> {RELAY}: RCPT TO:<a@example.com> ORCPT=rfc822;a@example.com",
    f"> {RELAY}: DATA",
    f"< {RELAY}: 250 2.1.0 ok",
    f"< {RELAY}: 250 2.1.5 ok",
    f"< {RELAY}: 354 go",
    f"> {RELAY}: .",
    f"< {RELAY}: 250 2.0.0 queued",
    f"> {RELAY}: QUIT",
]


@trio_test
async def test_s154_level_0_shows_nothing_1_what_is_said_and_2_what_it_answers(
    autojump_clock: MockClock,
) -> None:
    by_level: dict[str, list[str]] = {}
    for level in ("0", "1", "2", "9"):
        peer = Peer({Phase.DOT: Late(2.5, "250 2.0.0 queued")}, extensions=("PIPELINING", "DSN"))
        main_cf = {"debug_peer_list": "192.0.2.1", "debug_peer_level": level}
        world = a_world(peer, main_cf=main_cf)
        assert (await deliver_one(world)).outcomes[0].action is SENT
        by_level[level] = shown(world)
    assert by_level["0"] == []
    assert by_level["1"] == LEVEL_1
    assert [line for line in by_level["2"] if not line.startswith("= ")] == LEVEL_1
    assert [line for line in by_level["2"] if line.startswith("= ")] == [
        f"= {RELAY}: 250 after 0.000 s, in reply to EHLO command",
        f"= {RELAY}: 250 after 0.000 s, in reply to MAIL FROM command",
        f"= {RELAY}: 250 after 0.000 s, in reply to RCPT TO command",
        f"= {RELAY}: 354 after 0.000 s, in reply to DATA command",
        f"= {RELAY}: 250 after 2.500 s, in reply to end of DATA command",
    ]
    assert by_level["9"] == by_level["2"]


@trio_test
async def test_s154_each_reply_to_a_dot_is_explained(autojump_clock: MockClock) -> None:
    names = ["a@example.com", "b@example.com"]
    script: dict[Phase, Script] = {Phase.DOT: {names[1]: Late(1.0, "450 4.2.0 full")}}
    world = a_world(Peer(script, lmtp=True), main_cf={"debug_peer_list": "192.0.2.1"})
    await deliver_one(world, make_request(*names, protocol=Protocol.LMTP))
    relay = "lmtp.example.com[192.0.2.1]:24"
    about = [line for line in shown(world) if "end of DATA" in line]
    assert about == [
        f"= {relay}: 250 after 0.000 s, in reply to end of DATA command",
        f"= {relay}: 450 after 1.000 s, in reply to end of DATA command",
    ]
    [event, *_] = [event for event in world.events if isinstance(event, DialogueShown)]
    assert [line.program for line in render(event)] == ["lmtp"]


@trio_test
async def test_s154_garbage_is_shown_on_one_line_each(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.MAIL: "what?\x1b[31m\n250-2.1.0 well\n250 2.1.0 ok"})
    world = a_world(peer, main_cf={"debug_peer_list": "192.0.2.1"})
    await deliver_one(world)
    lines = shown(world)
    assert f"< {RELAY}: 250-what??[31m" in lines
    assert f"< {RELAY}: 250-2.1.0 well" in lines


@trio_test
async def test_s154_nothing_of_a_content_is_shown(autojump_clock: MockClock) -> None:
    world = a_world(Peer(), main_cf={"debug_peer_list": "192.0.2.1", "debug_peer_level": "9"})
    await deliver_one(world)
    assert "hello" not in everything(world)
    assert "world" not in everything(world)


# --- every kind of session ------------------------------------------------------------------------


@pytest.mark.parametrize("steady", [True, False])
@trio_test
async def test_s153_each_message_of_a_session_is_shown(
    autojump_clock: MockClock, *, steady: bool
) -> None:
    peer = Peer(real_sockets=True)
    world = a_world(peer, main_cf={"debug_peer_list": "192.0.2.1"})

    async def scenario() -> None:
        await world.deliver_in_a_row([make_request() for _ in range(4)], steady=steady)

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT] * 4
    assert len(peer.links) == 1
    lines = shown(world)
    said = [line.removeprefix(f"> {RELAY}: ") for line in lines if line.startswith("> ")]
    assert [line for line in said if line != "."] == peer.commands
    assert said.count(".") == 4
    assert len([line for line in lines if line.endswith("in reply to end of DATA command")]) == 4


@trio_test
async def test_s153_a_session_from_the_cache_is_shown(autojump_clock: MockClock) -> None:
    cache, peer = MemoryCache(), Peer(real_sockets=True)
    world = a_world(peer, main_cf={"debug_peer_list": ""}, cache=cache)
    watching = a_world(peer, main_cf={"debug_peer_list": "192.0.2.1"}).environment.debug
    flags = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE

    async def scenario() -> None:
        await world.deliver(replace(make_request(), flags=flags))
        await world.slot.release()
        assert not shown(world)
        assert watching is not None
        debug = replace(watching, emit=world.events.append)
        world.environment = replace(world.environment, debug=debug)
        await world.deliver(replace(make_request(), flags=flags))

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert world.results[1].outcomes[0].conn_use == 2
    assert shown(world)[0] == f"> {RELAY}: RSET"
    assert f"< {RELAY}: 250 2.0.0 queued" in shown(world)


@trio_test
async def test_s153_what_is_said_inside_tls_is_shown(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    peer = Peer(tls=ServerTls(server_context(Pki(tmp_path).leaf("good"))))
    config = Config.from_mapping({"smtp_tls_security_level": "encrypt"})
    rules = make_rules(config, Protocol.SMTP, lambda _: None)
    world = a_world(peer, main_cf={"debug_peer_list": "192.0.2.1"}, rules=rules)
    result = await deliver_one(world)
    assert result.outcomes[0].tls == "encrypt"
    said = [line.split()[2] for line in shown(world) if line.startswith("> ")]
    assert said == ["EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA", ".", "QUIT"]
    assert f"= {RELAY}: 220 after 0.000 s, in reply to STARTTLS command" in shown(world)


# --- secrets --------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


PLAIN = encoded(f"\0user\0{CANARY}")
BETRAYING: dict[str, tuple[str, dict[Phase, Script]]] = {
    "plain": ("PLAIN", {}),
    "login": ("LOGIN", {Phase.AUTH: f"334 {encoded('Username:')}"}),
    "cram": ("CRAM-MD5", {Phase.AUTH: f"334 {encoded('<1@mx.example.com>')}"}),
    "scram": ("SCRAM-SHA-256", {Phase.AUTH: f"334 {encoded('r=x,s=QUJD,i=4096')}"}),
    "refused": ("PLAIN", {Phase.AUTH: f"535 5.7.8 bad: AUTH PLAIN {PLAIN}"}),
    "gone": ("PLAIN", {Phase.AUTH: (f"421-4.3.2 {PLAIN}\n421 {CANARY}", Fault.CUT)}),
    "later": ("PLAIN", {Phase.MAIL: f"250-2.1.0 hello {CANARY[:12]}\n250 2.1.0 {PLAIN[:20]}"}),
    "folded": ("PLAIN", {Phase.MAIL: f"250-{PLAIN[:20]}\n250 {PLAIN[20:]}"}),
    "broken": ("PLAIN", {Phase.AUTH: f"{PLAIN}\n{CANARY}\n235 ok {CANARY}"}),
}


@pytest.mark.parametrize("case", BETRAYING)
@trio_test
async def test_s153_no_secret_of_a_log_in_is_shown(autojump_clock: MockClock, case: str) -> None:
    mechanism, script = BETRAYING[case]
    peer = Peer(script, extensions=(f"AUTH {mechanism}",))
    rules = make_rules(Config.from_mapping(LOGIN), Protocol.SMTP, lambda _: None)
    main_cf = {"debug_peer_list": "192.0.2.1", "debug_peer_level": "9"}
    world = a_world(peer, main_cf=main_cf, rules=rules)
    await deliver_one(world)
    said = [command for command in peer.commands if command.startswith("AUTH")]
    assert said
    lines = shown(world)
    response = " [hidden]" if " " in said[0].removeprefix("AUTH ") else ""
    assert f"> {RELAY}: AUTH {mechanism}{response}" in lines
    assert not any(line.startswith(f"< {RELAY}: 334 ") and "[hidden]" not in line for line in lines)
    text = everything(world)
    exchange = [c for c in peer.commands if c.split()[0] not in {"EHLO", "MAIL", "RCPT", "QUIT"}]
    responses = [command.split()[-1] for command in exchange if command.split()[-1] != "DATA"]
    assert responses
    for secret in (CANARY, PLAIN, encoded("user"), encoded(CANARY), *responses):
        assert secret in {mechanism, "*"} or secret[:10] not in text
    assert PLAIN[20:] not in text


# --- interrupted ----------------------------------------------------------------------------------


def test_s153_a_watched_delivery_may_be_cancelled_at_any_step() -> None:
    def make_world() -> World:
        main_cf = {"debug_peer_list": "static:all"}
        return a_world(REFUSED, Peer({Phase.RCPT: "450 4.7.1 later"}), Peer(), main_cf=main_cf)

    async def scenario(world: World) -> None:
        async def deliver() -> None:
            await world.deliver(make_request())

        await world.play(deliver)

    steps = 0
    for run in cancel_everywhere(make_world, scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
    assert steps > 30


def test_s154_a_line_of_the_log_cannot_be_forged() -> None:
    event: Event = DialogueShown(RELAY, "<", "250 ok\r\n> evil")
    [line] = render(event)
    assert line.text == f"< {RELAY}: 250 ok??> evil"
