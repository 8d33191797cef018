"""Greeting and EHLO, HELO or LHLO: which of them is said, and what follows from the answers.

Deterministic: scripted servers in memory, virtual time.
"""

from dataclasses import replace

import pytest
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import Protocol
from tests.worker.peer import Peer, Phase
from tests.worker.world import World, actions, deliver_one, make_request
from worker.delivery.introduction import WRAPPER_NEEDED
from worker.delivery.settings import DeliverySettings
from worker.status.events import Warned

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")
SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED


@trio_test
async def test_s058_helo_follows_a_refused_ehlo(autojump_clock: MockClock) -> None:
    for refusal in ("502 5.5.1 what?", "450 4.0.0 not now"):
        peer = Peer({Phase.EHLO: refusal})
        result = await deliver_one(World(peer))
        assert peer.commands[:3] == [
            "EHLO helo.example",
            "HELO helo.example",
            "MAIL FROM:<sender@client.example>",
        ]
        assert actions(result) == {"a@example.com": SENT}


@trio_test
async def test_s058_421_to_ehlo_ends_the_session_and_the_next_server_is_tried(
    autojump_clock: MockClock,
) -> None:
    peer, other = Peer({Phase.EHLO: "421 4.3.2 bye"}), Peer()
    result = await deliver_one(World(peer, other))
    assert peer.verbs == ["EHLO", "QUIT"]
    assert actions(result) == {"a@example.com": SENT}


@pytest.mark.parametrize(("code", "action"), [("450", DEFERRED), ("550", BOUNCED)])
@trio_test
async def test_s058_a_refused_helo_ends_the_endpoint(
    autojump_clock: MockClock, code: str, action: Action
) -> None:
    peer = Peer({Phase.EHLO: "502 what?", Phase.HELO: f"{code} {code[0]}.7.1 no"})
    result = await deliver_one(World(peer))
    outcome = result.outcomes[0]
    assert (outcome.action, outcome.dsn) == (action, f"{code[0]}.7.1")
    assert outcome.reason == (
        f"host mx1.example.com[192.0.2.1] refused to talk to me: {code} {code[0]}.7.1 no"
    )


@trio_test
async def test_lhlo_has_no_fallback(autojump_clock: MockClock) -> None:
    peer = Peer({Phase.LHLO: "502 what?"}, lmtp=True)
    result = await deliver_one(World(peer), make_request(protocol=Protocol.LMTP))
    assert peer.verbs == ["LHLO", "QUIT"]
    assert result.outcomes[0].action is BOUNCED


@pytest.mark.parametrize(
    ("always", "never", "greeting", "verb"),
    [
        (True, False, "220 mx.example.com", "EHLO"),
        (False, False, "220 mx.example.com", "HELO"),
        (False, False, "220 mx.example.com esmtp ready", "EHLO"),
        (False, False, "220 myesmtphost.example.com", "HELO"),
        (True, True, "220 mx.example.com ESMTP", "HELO"),
    ],
)
@trio_test
async def test_s056_ehlo_or_helo_is_a_matter_of_settings_and_greeting(
    autojump_clock: MockClock, always: bool, never: bool, greeting: str, verb: str
) -> None:
    peer = Peer({Phase.GREETING: greeting})
    settings = replace(SETTINGS, always_send_ehlo=always, never_send_ehlo=never)
    await deliver_one(World(peer, settings=settings))
    assert peer.verbs[0] == verb


@pytest.mark.parametrize("port", [25, 2525])
@trio_test
async def test_s019_a_server_with_our_own_name_is_a_loop_on_the_mail_port(
    autojump_clock: MockClock, port: int
) -> None:
    peer = Peer(name="Client.Example")
    world = World(peer)
    nexthop = "example.com" if port == 25 else "[mx1.example.com]:2525"
    result = await deliver_one(world, replace(make_request(), nexthop=nexthop))
    outcome = result.outcomes[0]
    if port == 25:
        assert (outcome.action, outcome.dsn) == (BOUNCED, "5.4.6")
        assert outcome.reason == "mail for example.com loops back to myself"
        assert peer.verbs == ["EHLO", "QUIT"]
    else:
        assert outcome.action is SENT
    warnings = [event.text for event in world.events if isinstance(event, Warned)]
    warning = "host mx1.example.com[192.0.2.1] greeted me with my own hostname Client.Example"
    # Behind another port may be a content filter of this host: each of its sessions would warn.
    assert warnings == ([warning] if port == 25 else [])


@pytest.mark.parametrize("port", [465, 587])
@trio_test
async def test_who_talks_plainly_to_the_port_for_tls_is_told_what_to_set(
    autojump_clock: MockClock, port: int
) -> None:
    world = World(Peer())
    request = replace(make_request(), nexthop=f"[mx1.example.com]:{port}")
    await deliver_one(world, request)
    assert (Warned(WRAPPER_NEEDED, request.queue_id) in world.events) is (port == 465)
