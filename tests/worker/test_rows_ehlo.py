"""Rows S056 to S065 of the manual: how we introduce ourselves, and what is made of the answer.

A row whose point is shown best elsewhere has its test there, under the same kind of name. Here are
whole deliveries, set up by parameters of main.cf. Deterministic: scripted servers and resolver, by
a virtual clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import ClientFacts, DeliveryRequest, Protocol, Ret, SendOptions
from tests.worker.main_cf_world import MainCfWorld, deliver_request, deliver_to
from tests.worker.peer import EXTENSIONS, Answer, Fault, Peer, Phase
from tests.worker.world import make_request
from worker.config.config import Config
from worker.config.problems import ConfigError

SMTP, LMTP = Protocol.SMTP, Protocol.LMTP
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
NEXTHOP = "[h.example]:2525"
FIRST, SECOND = "192.0.2.1", "192.0.2.2"
BOTH = pytest.mark.parametrize("protocol", Protocol)
HELLO = {SMTP: "EHLO", LMTP: "LHLO"}
# The parameters that list keywords to overlook: by protocol, the list and the tables.
DISCARD = {
    SMTP: ("smtp_discard_ehlo_keywords", "smtp_discard_ehlo_keyword_address_maps"),
    LMTP: ("lmtp_discard_lhlo_keywords", "lmtp_discard_lhlo_keyword_address_maps"),
}
OTHER = {SMTP: LMTP, LMTP: SMTP}


def world_of(main_cf: Mapping[str, str], *peers: Peer, secured: bool = False) -> MainCfWorld:
    """One host with an address for each server, tried in this order."""
    addresses = [FIRST, SECOND][: len(peers)]
    orders = {f"{protocol.value}_randomize_addresses": "no" for protocol in Protocol}
    return MainCfWorld(
        {**orders, **main_cf},
        dict(zip(addresses, peers, strict=True)),
        hosts={"h.example": addresses},
        secured=secured,
    )


# --- who we are ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "greeting", "verb"),
    [
        ("yes", "220 mx.example.com", "EHLO"),
        ("no", "220 mx.example.com", "HELO"),
        ("no", "220 mx.example.com ESMTP", "EHLO"),
    ],
)
@trio_test
async def test_s056_ehlo_is_said_always_or_if_the_greeting_says_esmtp(
    autojump_clock: MockClock, setting: str, greeting: str, verb: str
) -> None:
    peer = Peer({Phase.GREETING: greeting})
    await deliver_to(world_of({"smtp_always_send_ehlo": setting}, peer), NEXTHOP)
    assert peer.verbs[0] == verb
    # LMTP has no such choice.
    peer = Peer({Phase.GREETING: greeting}, lmtp=True)
    world = world_of({"smtp_always_send_ehlo": setting}, peer)
    await deliver_to(world, NEXTHOP, protocol=LMTP)
    assert peer.verbs[0] == "LHLO"


@trio_test
async def test_s057_ehlo_may_be_said_never_and_then_there_is_no_tls(
    autojump_clock: MockClock,
) -> None:
    main_cf = {"smtp_never_send_ehlo": "yes", "smtp_always_send_ehlo": "yes"}
    peer = Peer(extensions=(*EXTENSIONS, "STARTTLS"))
    await deliver_to(world_of(main_cf, peer, secured=True), NEXTHOP)
    assert peer.commands[:3] == [
        "HELO client.example",
        "MAIL FROM:<sender@client.example>",
        "RCPT TO:<a@example.com>",
    ]
    peer = Peer(extensions=(*EXTENSIONS, "STARTTLS"))
    world = world_of({**main_cf, "smtp_tls_security_level": "encrypt"}, peer, secured=True)
    (outcome,) = (await deliver_to(world, NEXTHOP)).outcomes
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.7.4")
    assert peer.verbs == ["HELO", "QUIT"]
    peer = Peer(lmtp=True)  # LMTP has no such choice
    await deliver_to(world_of(main_cf, peer), NEXTHOP, protocol=LMTP)
    assert peer.verbs[0] == "LHLO"


@pytest.mark.parametrize(
    ("answer", "first", "second"),
    [
        ("502 5.5.1 what?", ["EHLO", "HELO", "MAIL", "RCPT", "DATA", "QUIT"], False),
        ("450 4.3.0 not now", ["EHLO", "HELO", "MAIL", "RCPT", "DATA", "QUIT"], False),
        ("421 4.3.2 bye", ["EHLO", "QUIT"], True),
        (Fault.CUT, ["EHLO"], True),
        (Fault.RESET, ["EHLO"], True),
    ],
    ids=str,
)
@trio_test
async def test_s058_after_a_failed_ehlo_come_helo_or_the_next_server(
    autojump_clock: MockClock, answer: Answer, first: list[str], second: bool
) -> None:
    peer, other = Peer({Phase.EHLO: answer}), Peer()
    (outcome,) = (await deliver_to(world_of({}, peer, other), NEXTHOP)).outcomes
    assert outcome.action is SENT
    assert peer.verbs == first
    assert len(other.accepted) == second


NAMES = pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "client.example"),
        ("mail.out.test", "mail.out.test"),
        ("$mydomain", "example"),
        ("out.$myhostname", "out.client.example"),
        ("[192.0.2.25]", "[192.0.2.25]"),
    ],
)


@NAMES
@trio_test
async def test_s059_the_name_in_ehlo_and_helo(
    autojump_clock: MockClock, text: str, name: str
) -> None:
    main_cf = {"smtp_helo_name": text} if text else {}
    peer = Peer({Phase.EHLO: "502 what?"})
    await deliver_to(world_of({**main_cf, "lmtp_lhlo_name": "no.example"}, peer), NEXTHOP)
    assert peer.commands[:2] == [f"EHLO {name}", f"HELO {name}"]


@NAMES
@trio_test
async def test_s060_the_name_in_lhlo(autojump_clock: MockClock, text: str, name: str) -> None:
    main_cf = {"lmtp_lhlo_name": text} if text else {}
    peer = Peer(lmtp=True)
    world = world_of({**main_cf, "smtp_helo_name": "no.example"}, peer)
    await deliver_to(world, NEXTHOP, protocol=LMTP)
    assert peer.commands[0] == f"LHLO {name}"


@pytest.mark.parametrize("text", ["two words", "a\tb", "a\r\nMAIL", "$empty", "a\0"])
@pytest.mark.parametrize(
    "parameter",
    [
        pytest.param("smtp_helo_name", id="s059"),
        pytest.param("lmtp_lhlo_name", id="s060"),
    ],
)
def test_s059_what_is_no_name_is_a_configuration_error(parameter: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({parameter: text, "empty": ""})
    assert f"{parameter} = " in str(caught.value)
    assert "expected a host name or address literal, in one word" in str(caught.value)


# --- keywords to overlook -----------------------------------------------------------------------


def in_lock_step(peer: Peer) -> bool:
    """MAIL came alone, and so the server seemed to know no PIPELINING."""
    (mail,) = [part for part in peer.links[0].segments if part.startswith(b"MAIL ")]
    return b"RCPT" not in mail


async def check_discarded(protocol: Protocol) -> None:
    """The list of a protocol: in any case, unknown words, the line in the log, the other's list."""
    listed, _ = DISCARD[protocol]
    others, _ = DISCARD[OTHER[protocol]]
    for setting, lock_step, lines in (
        ("", False, []),
        ("PipeLining, NoSuchWord, chunking", True, ["PIPELINING"]),
        ("pipelining, silent-discard", True, []),
        ("pipelining DSN", True, ["PIPELINING DSN"]),
        ("etrn vrfy", False, []),
    ):
        peer = Peer(lmtp=protocol is LMTP)
        world = world_of({listed: setting, others: "size"}, peer)
        await deliver_to(world, NEXTHOP, protocol=protocol)
        assert len(peer.accepted) == 1
        assert in_lock_step(peer) is lock_step
        assert "SIZE=" in peer.commands[1]
        assert [line for line in world.log if "discarding" in line] == [
            f"Q1: discarding EHLO keywords: {words}" for words in lines
        ]


@trio_test
async def test_s061_keywords_of_ehlo_are_overlooked(autojump_clock: MockClock) -> None:
    await check_discarded(SMTP)


@trio_test
async def test_s063_keywords_of_lhlo_are_overlooked(autojump_clock: MockClock) -> None:
    await check_discarded(LMTP)


KNOWN = {
    "8bitmime": (" BODY=8BITMIME", "8BITMIME"),
    "size": (" SIZE=", "SIZE"),
    "dsn": (" RET=", "DSN"),
    "xforward": ("XFORWARD", "XFORWARD"),
    "auth": ("AUTH", "AUTH"),
    "starttls": ("STARTTLS", "STARTTLS"),
    "smtputf8": (" SMTPUTF8", "SMTPUTF8"),
}


@BOTH
@pytest.mark.parametrize("keyword", KNOWN)
@trio_test
async def test_s061_what_is_overlooked_is_not_used(
    autojump_clock: MockClock, protocol: Protocol, keyword: str
) -> None:
    name = protocol.value
    main_cf = {
        f"{name}_send_xforward_command": "yes",
        f"{name}_sasl_auth_enable": "yes",
        f"{name}_sasl_security_options": "noanonymous",
        f"{name}_sasl_password_maps": "static:user:word",
        f"{name}_tls_security_level": "may",
    }
    words, _ = KNOWN[keyword]
    tls: Sequence[str] = ("STARTTLS",) if keyword == "starttls" else ()
    extensions = (*EXTENSIONS, "XFORWARD NAME", "AUTH PLAIN", *tls)
    for discarded in ("", keyword):
        peer = Peer({Phase.STARTTLS: "454 no"}, lmtp=protocol is LMTP, extensions=extensions)
        world = world_of({**main_cf, DISCARD[protocol][0]: discarded}, peer, secured=True)
        request = replace(request_with_everything(protocol), nexthop=NEXTHOP)
        await deliver_request(world, request)
        said = "\n".join(peer.commands)
        assert (words in said) is (not discarded)


def request_with_everything(protocol: Protocol) -> DeliveryRequest:
    """It needs each extension that a server may announce."""
    return replace(
        make_request("jürgen@example.com", protocol=protocol),
        encoding="8bit",
        ret=Ret.HDRS,
        envelope_id="id",
        client=ClientFacts(name="c.example", address="198.51.100.7", helo="c"),
        options=SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_RECIPIENT,
    )


async def check_discarded_by_address(protocol: Protocol) -> None:
    """The tables of a protocol: by address and never by name, in place of the list; trouble."""
    lmtp = protocol is LMTP
    listed, tables = DISCARD[protocol]
    table = f"inline:{{ {{{FIRST} = pipelining}}, {{h.example = pipelining}} }}"
    first, second = Peer({Phase.RCPT: "450 4.2.0 later"}, lmtp=lmtp), Peer(lmtp=lmtp)
    world = world_of({listed: "size", tables: table}, first, second)
    await deliver_to(world, NEXTHOP, protocol=protocol)
    assert [in_lock_step(peer) for peer in (first, second)] == [True, False]
    assert ["SIZE=" in peer.commands[1] for peer in (first, second)] == [True, False]
    peer = Peer(lmtp=lmtp)
    (outcome,) = (
        await deliver_to(world_of({tables: "fail:broken"}, peer), NEXTHOP, protocol=protocol)
    ).outcomes
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.3.0")
    assert "MAIL" not in peer.verbs


@trio_test
async def test_s062_keywords_of_ehlo_are_overlooked_by_server_address(
    autojump_clock: MockClock,
) -> None:
    await check_discarded_by_address(SMTP)


@trio_test
async def test_s064_keywords_of_lhlo_are_overlooked_by_server_address(
    autojump_clock: MockClock,
) -> None:
    await check_discarded_by_address(LMTP)


# --- what the server says -----------------------------------------------------------------------


@BOTH
@trio_test
async def test_s065_a_message_larger_than_announced_bounces_and_mail_is_not_said(
    autojump_clock: MockClock, protocol: Protocol
) -> None:
    for size, announced, action in (
        (2000, "SIZE 1000", BOUNCED),
        (2000, "size 1000", BOUNCED),
        (1000, "SIZE 1000", SENT),
        (2000, "SIZE", SENT),
        (2000, "SIZE 0", SENT),
    ):
        peer = Peer(lmtp=protocol is LMTP, extensions=("8BITMIME", announced))
        other = Peer(lmtp=protocol is LMTP)
        request = replace(make_request(protocol=protocol), nexthop=NEXTHOP, size=size)
        (outcome,) = (await deliver_request(world_of({}, peer, other), request)).outcomes
        assert outcome.action is action
        assert ("MAIL" in peer.verbs) is (action is SENT)
        assert other.links == []
        if action is BOUNCED:
            assert outcome.dsn == "5.3.4"
            assert outcome.reason == (
                f"message size 2000 exceeds size limit 1000 of server h.example[{FIRST}]"
            )
        else:
            assert f" SIZE={size}" in peer.commands[1]


@BOTH
@pytest.mark.parametrize("line", ["AUTH PLAIN", "auth plain", "AUTH=PLAIN", "Auth=Login Plain"])
@trio_test
async def test_s065_auth_is_read_in_any_case_and_in_its_old_form(
    autojump_clock: MockClock, protocol: Protocol, line: str
) -> None:
    name = protocol.value
    main_cf = {
        f"{name}_sasl_auth_enable": "yes",
        f"{name}_sasl_security_options": "noanonymous",
        f"{name}_sasl_password_maps": "static:user:word",
    }
    peer = Peer(lmtp=protocol is LMTP, extensions=(line, "pipeLining"))
    await deliver_to(world_of(main_cf, peer, secured=True), NEXTHOP, protocol=protocol)
    assert peer.verbs[:2] == [HELLO[protocol], "AUTH"]
    assert not in_lock_step(peer)
