"""Rows S036 to S055 of the manual: the dialogue, and how long each part of it may take.

A row whose point is shown best elsewhere has its test there, under the same kind of name; what may
go wrong in each phase is in `test_phases.py`. Here are whole deliveries, set up by parameters of
main.cf. Deterministic: scripted servers and resolver, by a virtual clock.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import ClientFacts, Protocol
from tests.worker.main_cf_world import MainCfWorld, deliver_request, deliver_to
from tests.worker.peer import EXTENSIONS, Answer, Fault, Late, Peer, Phase
from tests.worker.world import Site, actions, make_request
from worker.config.config import Config
from worker.content import InlineContent
from worker.status.events import EndpointFailed

SMTP, LMTP = Protocol.SMTP, Protocol.LMTP
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
LOCK_STEP = tuple(word for word in EXTENSIONS if word != "PIPELINING")
HOSTS = {"h.example": ["192.0.2.1", "192.0.2.2"]}
NEXTHOP = "[h.example]:2525"
MTA = "h.example[192.0.2.1]"
FIRST, SECOND = "192.0.2.1", "192.0.2.2"
BOTH = pytest.mark.parametrize("protocol", Protocol)
LARGE = InlineContent(b"x" * 62 + b"\r\n" + b"y" * 62 + b"\r\n" * 400_000)
CLIENT = ClientFacts(name="c.example", address="198.51.100.7", helo="c")


def world_of(
    protocol: Protocol,
    main_cf: Mapping[str, str],
    first: Site,
    second: Site = None,
    *,
    secured: bool = False,
) -> MainCfWorld:
    """One host with two addresses, tried in this order. `main_cf`: without `smtp_` or `lmtp_`."""
    settings = {f"{protocol.value}_{name}": text for name, text in main_cf.items()}
    settings[f"{protocol.value}_randomize_addresses"] = "no"
    sites = {FIRST: first} | ({SECOND: second} if second else {})
    hosts = HOSTS if second else {"h.example": [FIRST]}
    return MainCfWorld(settings, sites, hosts=hosts, secured=secured)


def peer_of(
    protocol: Protocol, script: Mapping[Phase, Answer] | None = None, **options: object
) -> Peer:
    """A server of this protocol; `options` are those of a `Peer`."""
    return Peer(script, lmtp=protocol is LMTP, **options)  # type: ignore[arg-type]  # as they came


# --- the dialogue -------------------------------------------------------------------------------


@BOTH
@trio_test
async def test_s036_with_pipelining_the_envelope_is_there_before_any_of_its_replies(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for extensions in (EXTENSIONS, LOCK_STEP):
        script: dict[Phase, Answer] = {
            Phase.MAIL: Late(1.0, "250 2.1.0 ok"),
            Phase.RCPT: Late(1.0, "250 2.1.5 ok"),
        }
        peer = peer_of(protocol, script, extensions=extensions)
        await deliver_to(world_of(protocol, {}, peer), NEXTHOP, protocol=protocol)
        (link,) = peer.links
        # The peer answers nothing before it has waited: what it reads at once was sent at once.
        if extensions is EXTENSIONS:
            assert link.segments[1].startswith(b"MAIL FROM:")
            assert link.segments[1].endswith(b"\r\nDATA\r\n")
        else:
            assert [segment.split()[0] for segment in link.segments[1:4]] == [
                *(b"MAIL", b"RCPT", b"DATA"),
            ]
            assert [seen - link.began for seen in link.times[1:4]] == [0.0, 1.0, 2.0]
        assert len(peer.accepted) == 1


@BOTH
@trio_test
async def test_s037_each_protocol_has_its_own_hello_and_its_own_final_replies(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    names = [f"{name}@example.com" for name in "abcd"]
    peer = peer_of(protocol)
    peer.script[Phase.RCPT] = {names[1]: "550 5.1.1 who?"}
    if protocol is LMTP:
        peer.script[Phase.DOT] = {names[2]: "450 4.2.2 full", names[3]: "550 5.2.0 no"}
    else:
        peer.script[Phase.DOT] = "450 4.2.2 full"
    result = await deliver_to(world_of(protocol, {}, peer), NEXTHOP, *names, protocol=protocol)
    if protocol is LMTP:
        assert peer.verbs[0] == "LHLO"
        assert list(actions(result).values()) == [SENT, BOUNCED, DEFERRED, BOUNCED]
    else:
        assert peer.verbs[0] == "EHLO"
        assert list(actions(result).values()) == [DEFERRED, BOUNCED, DEFERRED, DEFERRED]


@BOTH
@trio_test
async def test_s038_a_dot_that_is_not_answered_is_logged_as_a_possible_duplicate(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    other = peer_of(protocol)
    world = world_of(protocol, {}, peer_of(protocol, {Phase.DOT: Fault.CUT}), other)
    (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
    assert (outcome.action, outcome.dsn, outcome.in_doubt) == (DEFERRED, "4.4.2", True)
    assert outcome.reason == (
        f"lost connection with {MTA} while sending end of data"
        " -- message may be sent more than once"
    )
    assert other.links == []


@BOTH
@trio_test
async def test_s039_a_long_line_is_cut_and_an_odd_one_costs_the_session(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for said, action, dsn, text, kept in (
        ("550 5.1.1 " + "x" * 3000, BOUNCED, "5.1.1", "550 5.1.1 " + "x" * 2038, True),
        ("550 5.1.1 a\x1b[2J", BOUNCED, "5.1.1", "550 5.1.1 a?[2J", True),
        ("450 5.1.1 no", DEFERRED, "4.0.0", "450 5.1.1 no", True),
        ("550 4.1.1 no", BOUNCED, "5.0.0", "550 4.1.1 no", True),
        (
            "550-5.1.1 no\n550 5.1.1 such user",
            BOUNCED,
            "5.1.1",
            "550 5.1.1 no 5.1.1 such user",
            True,
        ),
        ("what?\n550 5.1.1 no", BOUNCED, "5.1.1", "550 what? 5.1.1 no", False),
    ):
        peer = peer_of(protocol, {Phase.RCPT: said}, extensions=LOCK_STEP)
        world = world_of(protocol, {}, peer)
        request = replace(make_request(protocol=protocol), nexthop=NEXTHOP)

        async def scenario() -> None:
            await world.deliver(request)  # noqa: B023  # it is played at once

        await world.play(scenario)
        (outcome,) = world.results[0].outcomes
        assert (outcome.action, outcome.dsn, outcome.reply) == (action, dsn, text)
        assert world.results[0].session_kept is kept


@BOTH
@trio_test
async def test_s040_a_5xx_greeting_sends_on_or_bounces(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for setting, action, served in (({}, SENT, 1), ({"skip_5xx_greeting": "no"}, BOUNCED, 0)):
        unwilling, good = peer_of(protocol, {Phase.GREETING: "554 5.7.1 never"}), peer_of(protocol)
        world = world_of(protocol, setting, unwilling, good)
        (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
        assert outcome.action is action
        assert len(good.accepted) == served


@BOTH
@trio_test
async def test_s041_a_4xx_greeting_sends_on_whatever_is_set(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    unwilling, good = peer_of(protocol, {Phase.GREETING: "450 4.3.0 busy"}), peer_of(protocol)
    sites = {FIRST: unwilling, SECOND: good}
    main_cf = {"smtp_skip_4xx_greeting": "no"}
    order = {f"{protocol.value}_randomize_addresses": "no"}
    world = MainCfWorld({**main_cf, **order}, sites, hosts=HOSTS)
    (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
    assert outcome.action is SENT
    assert unwilling.verbs == ["QUIT"]
    (warning,) = Config.from_mapping(main_cf).warnings
    assert "smtp_skip_4xx_greeting is deprecated" in warning


@BOTH
@trio_test
async def test_s042_the_reply_to_quit_is_awaited_in_lmtp_unless_set(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for setting, waits in (({}, protocol is LMTP), ("yes", False), ("no", True)):
        main_cf = {"skip_quit_response": setting} if isinstance(setting, str) else {}
        world = world_of(protocol, main_cf, peer_of(protocol, {Phase.QUIT: Fault.SILENCE}))
        await deliver_to(world, NEXTHOP, protocol=protocol)
        assert world.results[0].outcomes[0].action is SENT
        assert world.took == [300.0 if waits else 0.0]


@BOTH
@pytest.mark.parametrize(
    ("address", "quoted", "bare"),
    [
        ("a b@x.example", '"a b"@x.example', "a b@x.example"),
        ("a.@x.example", '"a."@x.example', "a.@x.example"),
        (".a@x.example", '".a"@x.example', ".a@x.example"),
        ("a..b@x.example", '"a..b"@x.example', "a..b@x.example"),
        ("a,b(c)@x.example", '"a,b(c)"@x.example', "a,b(c)@x.example"),
        ("a.b+c@x.example", "a.b+c@x.example", "a.b+c@x.example"),
    ],
)
@trio_test
async def test_s043_local_parts_are_quoted_unless_told_not_to(
    autojump_clock: MockClock, protocol: Protocol, address: str, quoted: str, bare: str
) -> None:
    for main_cf, path in (({}, quoted), ({"quote_rfc821_envelope": "no"}, bare)):
        peer = peer_of(protocol, extensions=())
        world = world_of(protocol, main_cf, peer)
        request = make_request(address, protocol=protocol, sender=address)
        await deliver_request(world, replace(request, nexthop=NEXTHOP))
        assert peer.commands[1:3] == [f"MAIL FROM:<{path}>", f"RCPT TO:<{path}>"]


@BOTH
@pytest.mark.parametrize("setting", ["yes", "no"])
@pytest.mark.parametrize("control", ["\r\n", "\n", "\r", "\0", "\x1b", "\x7f", "\x85"])
@trio_test
async def test_s043_no_control_character_reaches_the_wire(
    autojump_clock: MockClock, protocol: Protocol, setting: str, control: str
) -> None:
    evil = f"a{control}DATA@x.example"
    for sender, recipient in (("s@x.example", evil), (evil, "r@x.example")):
        peer = peer_of(protocol)
        world = world_of(protocol, {"quote_rfc821_envelope": setting}, peer)
        request = make_request(recipient, protocol=protocol, sender=sender)
        (outcome,) = (await deliver_request(world, replace(request, nexthop=NEXTHOP))).outcomes
        assert outcome.action is BOUNCED
        assert outcome.dsn in ("5.1.3", "5.1.7")
        assert b"DATA" not in b"".join(peer.links[0].segments)


# --- time limits --------------------------------------------------------------------------------


@BOTH
@trio_test
async def test_s044_an_address_that_does_not_answer_costs_the_limit_of_a_connect(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    # Without a limit the system's counts, here that of the fake: 5000 s.
    default = 30.0 if protocol is SMTP else 5000.0
    for main_cf, limit in (
        ({}, default),
        ({"connect_timeout": "7s"}, 7.0),
        ({"connect_timeout": "0"}, 5000.0),
    ):
        peer = peer_of(protocol)
        world = world_of(protocol, main_cf, peer)
        world.dialer.seconds = 5000.0
        (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
        if limit == 5000.0:
            assert outcome.action is SENT
        else:
            assert outcome.reason == f"connect to {MTA}:2525: Connection timed out"
        assert outcome.delays.setup == limit
    world = world_of(protocol, {"connect_timeout": "7s"}, None, peer_of(protocol))
    (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
    assert (outcome.action, outcome.delays.setup) == (SENT, 7.0)


async def check_limit(
    protocol: Protocol, phase: Phase, parameter: str, default: float, doing: str
) -> None:
    """The limit of a phase: a silent server meets it; one that drips only if it holds for all.

    `parameter`: without `smtp_` or `lmtp_`. `doing`: as the reason tells.
    """
    yes = {Phase.GREETING: "220 mx ESMTP", Phase.DATA: "354 go"}.get(phase, "250 ok")
    in_doubt = phase is Phase.DOT
    script: dict[Phase, Answer] = {Phase.EHLO: "502 no"} if phase is Phase.HELO else {}
    for main_cf, limit in (({}, default), ({parameter: "77s"}, 77.0)):
        for whole in ("no", "yes"):
            settings = {**main_cf, "per_request_deadline": whole, "send_xforward_command": "yes"}
            extensions = (*EXTENSIONS, "XFORWARD NAME")
            silent = peer_of(protocol, {**script, phase: Fault.SILENCE}, extensions=extensions)
            dripping = peer_of(protocol, {**script, phase: yes}, extensions=extensions)
            dripping.drip, dripping.drip_in = limit - 1, phase
            for peer in (silent, dripping):
                world = world_of(protocol, settings, peer)
                request = replace(make_request(protocol=protocol), nexthop=NEXTHOP, client=CLIENT)
                (outcome,) = (await deliver_request(world, request)).outcomes
                if peer is dripping and whole == "no":
                    assert outcome.action is SENT
                    assert world.took == [(limit - 1) * (len(yes) + 2)]
                    continue
                assert (outcome.action, outcome.dsn) == (DEFERRED, "4.4.2")
                assert outcome.reason == f"conversation with {MTA} timed out while {doing}"
                assert outcome.in_doubt is in_doubt
                assert world.took == [limit]
                assert world.results[0].site_failure is not None


@pytest.mark.parametrize(
    ("phase", "doing"),
    [
        (Phase.GREETING, "receiving the initial server greeting"),
        (Phase.EHLO, "performing the EHLO handshake"),
        (Phase.HELO, "performing the HELO handshake"),
    ],
    ids=lambda value: value.value if isinstance(value, Phase) else "",
)
@trio_test
async def test_s045_the_limit_of_greeting_and_hello(
    autojump_clock: MockClock, phase: Phase, doing: str
) -> None:
    await check_limit(SMTP, phase, "helo_timeout", 300.0, doing)


@pytest.mark.parametrize(
    ("phase", "doing"),
    [
        (Phase.GREETING, "receiving the initial server greeting"),
        (Phase.LHLO, "performing the LHLO handshake"),
    ],
    ids=lambda value: value.value if isinstance(value, Phase) else "",
)
@trio_test
async def test_s046_the_limit_of_greeting_and_lhlo(
    autojump_clock: MockClock, phase: Phase, doing: str
) -> None:
    await check_limit(LMTP, phase, "lhlo_timeout", 300.0, doing)


@BOTH
@pytest.mark.parametrize(
    ("level", "action", "dsn"),
    [("may", SENT, "2.0.0"), ("encrypt", DEFERRED, "4.7.5")],
)
@trio_test
async def test_s047_a_server_that_is_silent_in_the_handshake(
    autojump_clock: MockClock, protocol: Protocol, level: str, action: Action, dsn: str
) -> None:
    for main_cf, limit in (({}, 300.0), ({"starttls_timeout": "77s"}, 77.0)):
        peer = peer_of(
            protocol,
            {Phase.STARTTLS: ("220 2.0.0 go ahead", Fault.SILENCE)},
            extensions=(*EXTENSIONS, "STARTTLS"),
        )
        settings = {**main_cf, "tls_security_level": level}
        # New mail waits at either level; what has waited for long goes in the clear at may.
        for arrival, new in ((990.0, True), (0.0, False)):
            world = world_of(protocol, settings, peer, secured=True)
            request = replace(make_request(protocol=protocol), nexthop=NEXTHOP, arrival=arrival)
            (outcome,) = (await deliver_request(world, request)).outcomes
            assert world.took == [limit]
            assert f"SSL_connect error to {MTA}:2525: Connection timed out" in world.log
            if new:
                assert (outcome.action, outcome.dsn) == (DEFERRED, "4.7.5")
            else:
                assert (outcome.action, outcome.dsn) == (action, dsn)


@BOTH
@trio_test
async def test_s047_a_server_that_does_not_answer_starttls(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for main_cf, limit in (({}, 300.0), ({"starttls_timeout": "77s"}, 77.0)):
        for level in ("may", "encrypt"):
            script = {Phase.STARTTLS: Fault.SILENCE}
            peer = peer_of(protocol, script, extensions=("STARTTLS",))
            settings = {**main_cf, "tls_security_level": level}
            world = world_of(protocol, settings, peer, secured=True)
            (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
            assert world.took == [limit]
            assert (outcome.action, outcome.dsn) == (DEFERRED, "4.4.2")
            assert outcome.reason == (
                f"conversation with {MTA} timed out while receiving the STARTTLS response"
            )


@BOTH
@trio_test
async def test_s048_the_limit_of_xforward(autojump_clock: MockClock, protocol: Protocol) -> None:
    await check_limit(
        protocol, Phase.XFORWARD, "xforward_timeout", 300.0, "sending XFORWARD command"
    )


@BOTH
@trio_test
async def test_s049_the_limit_of_mail(autojump_clock: MockClock, protocol: Protocol) -> None:
    await check_limit(protocol, Phase.MAIL, "mail_timeout", 300.0, "sending MAIL FROM")


@BOTH
@trio_test
async def test_s050_the_limit_of_rcpt(autojump_clock: MockClock, protocol: Protocol) -> None:
    await check_limit(protocol, Phase.RCPT, "rcpt_timeout", 300.0, "sending RCPT TO")


@BOTH
@pytest.mark.parametrize("extensions", [EXTENSIONS, LOCK_STEP], ids=["pipelined", "lock-step"])
@trio_test
async def test_s050_without_an_answer_to_the_second_the_first_is_deferred_too(
    autojump_clock: MockClock, protocol: Protocol, extensions: tuple[str, ...]
) -> None:
    peer = peer_of(protocol, extensions=extensions)
    peer.script[Phase.RCPT] = {"b@example.com": Fault.SILENCE}
    names = ["a@example.com", "b@example.com"]
    world = world_of(protocol, {}, peer)
    result = await deliver_to(world, NEXTHOP, *names, protocol=protocol)
    assert [(o.action, o.dsn, o.in_doubt) for o in result.outcomes] == [
        (DEFERRED, "4.4.2", False)
    ] * 2
    assert world.took == [300.0]
    assert peer.links[0].contents == []


@BOTH
@trio_test
async def test_s051_the_limit_of_data(autojump_clock: MockClock, protocol: Protocol) -> None:
    await check_limit(protocol, Phase.DATA, "data_init_timeout", 120.0, "sending DATA command")


@BOTH
@trio_test
async def test_s052_the_limit_of_a_write_of_content(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for main_cf, limit in (({}, 180.0), ({"data_xfer_timeout": "77s"}, 77.0)):
        peer = peer_of(protocol, {Phase.CONTENT: Fault.STOP_READING}, window=4096)
        world = world_of(protocol, main_cf, peer)
        result = await deliver_to(world, NEXTHOP, protocol=protocol, content=LARGE)
        (outcome,) = result.outcomes
        assert (outcome.action, outcome.dsn, outcome.in_doubt) == (DEFERRED, "4.4.2", False)
        assert outcome.reason == f"conversation with {MTA} timed out while sending message body"
        assert world.took == [limit]


@BOTH
@trio_test
async def test_s052_a_slow_reader_is_too_slow_only_under_the_request_deadline(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    content = InlineContent(b"z" * 62 + b"\r\n" * 20_000)
    for main_cf, action in (
        ({}, SENT),
        ({"per_request_deadline": "yes"}, DEFERRED),
        ({"per_request_deadline": "yes", "min_data_rate": "50"}, SENT),
    ):
        peer = peer_of(protocol, window=4096)
        peer.reads_per_second = 100
        world = world_of(protocol, main_cf, peer)
        (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol, content=content)).outcomes
        assert outcome.action is action
        if action is DEFERRED:
            assert outcome.reason.endswith("timed out while sending message body")
            assert 180.0 <= world.took[0] < 250.0


@BOTH
@trio_test
async def test_s053_the_limit_of_the_dot(autojump_clock: MockClock, protocol: Protocol) -> None:
    doing = "sending end of data -- message may be sent more than once"
    await check_limit(protocol, Phase.DOT, "data_done_timeout", 600.0, doing)


@BOTH
@trio_test
async def test_s053_an_answer_at_601_s_comes_too_late_and_a_retry_makes_a_second_copy(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    peer = peer_of(protocol)
    peer.script[Phase.DOT] = [Late(601.0, "250 2.0.0 queued"), "250 2.0.0 queued"]
    world = world_of(protocol, {}, peer)
    (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
    assert (outcome.action, outcome.in_doubt) == (DEFERRED, True)
    assert outcome.reason.endswith("-- message may be sent more than once")
    (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
    assert outcome.action is SENT
    assert [len(link.contents) for link in peer.links] == [1, 1]


@BOTH
@trio_test
async def test_s054_the_limit_of_a_probe_in_front_of_a_session_that_was_idle(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for main_cf, limit in (({}, 20.0), ({"rset_timeout": "7s"}, 7.0)):
        peer = peer_of(protocol, {Phase.RSET: Fault.SILENCE})
        world = world_of(protocol, main_cf, peer)
        request = replace(make_request(protocol=protocol), nexthop=NEXTHOP)

        async def scenario() -> None:
            await world.deliver(request)  # noqa: B023  # it is played at once
            await trio.sleep(30.0)
            await world.deliver(request)  # noqa: B023

        await world.play(scenario)
        assert [result.outcomes[0].action for result in world.results] == [SENT, SENT]
        assert world.took == [0.0, limit]
        assert len(peer.links) == 2
        assert not [event for event in world.events if isinstance(event, EndpointFailed)]


@BOTH
@trio_test
async def test_s055_the_limit_of_quit_where_its_reply_is_awaited(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for main_cf, limit in (({}, 300.0), ({"quit_timeout": "77s"}, 77.0)):
        peer = peer_of(protocol, {Phase.QUIT: Fault.SILENCE})
        world = world_of(protocol, {**main_cf, "skip_quit_response": "no"}, peer)
        (outcome,) = (await deliver_to(world, NEXTHOP, protocol=protocol)).outcomes
        assert outcome.action is SENT
        assert world.took == [limit]
