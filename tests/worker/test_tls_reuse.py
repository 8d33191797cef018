"""Sessions over TLS, and as somebody: who may use whose (S149, S150, S093, B07).

Deterministic: scripted servers with the standard library's TLS on socket pairs, an in-memory cache,
virtual time. Certificates are real ones.
"""

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Protocol, RequestFlags
from tests.descriptors import open_descriptors
from tests.integration.pki import Pki
from tests.worker.memory_cache import MemoryCache
from tests.worker.peer import EXTENSIONS, Answer, Fault, Peer, Phase, Script
from tests.worker.tls_server import Break, Harm, ServerTls, server_context
from tests.worker.world import World, make_request
from worker.config.config import Config
from worker.delivery.reuse import endpoint_label
from worker.delivery.security import Security, SecurityRules
from worker.delivery.session import SessionKey
from worker.delivery.settings import DeliverySettings
from worker.environment import make_rules
from worker.network.address import Endpoint
from worker.status.events import Event, SessionReused, TlsEstablished, TlsStep
from worker.tls.policy import Anchors, Identity, Level, TlsPolicy, Version

BOTH = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE
FULL = {"smtp_tls_security_level": "encrypt"}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


def rules(**main_cf: str) -> SecurityRules:
    return make_rules(Config.from_mapping(main_cf), Protocol.SMTP, lambda event: None)


def server(pki: Pki, case: str = "good", script: dict[Phase, Answer] | None = None) -> Peer:
    tls = ServerTls(server_context(pki.leaf(case)))
    extensions = (*EXTENSIONS, "AUTH PLAIN")
    return Peer(script, tls=tls, real_sockets=True, extensions=extensions)


def handshakes(peer: Peer) -> int:
    assert peer.tls is not None
    return len(peer.tls.seen)


def request(number: int, sender: str = "sender@client.example") -> DeliveryRequest:
    return replace(make_request(f"b{number}@example.com"), flags=BOTH, sender=sender)


async def in_own_slots(world: World, *batch: DeliveryRequest) -> None:
    for each in batch:
        await wait_all_tasks_blocked()
        await world.deliver(each)
        await world.slot.release()


def tls_words(world: World) -> list[str]:
    assert {o.action for result in world.results for o in result.outcomes} == {Action.SENT}
    return [result.outcomes[0].tls for result in world.results]


def uses(world: World) -> list[int]:
    return [result.outcomes[0].conn_use for result in world.results]


@trio_test
async def test_s149_one_slot_sends_message_after_message_over_one_tls_session(pki: Pki) -> None:
    peer = server(pki)
    world = World(peer, rules=rules(**FULL))

    async def scenario() -> None:
        await world.deliver_in_a_row([request(n) for n in range(5)])

    await world.play(scenario)
    assert tls_words(world) == ["encrypt"] * 5
    assert uses(world) == [1, 2, 3, 4, 5]
    assert handshakes(peer) == 1
    assert all(message.encrypted for message in peer.accepted)


@pytest.mark.parametrize("lines", [False, True])
@trio_test
async def test_a_yes_that_came_before_the_content_is_no_answer_to_it(
    pki: Pki, autojump_clock: MockClock, lines: bool
) -> None:
    """However the server cuts what it says into records."""
    tls = ServerTls(server_context(pki.leaf("good")), lines=lines)
    script: dict[Phase, Script] = {
        Phase.DATA: ["354 go", "354 go", ("354 go", "250 2.0.0 queued"), "354 go"],
        Phase.DOT: ["250 ok", "250 ok", Fault.CUT],
    }
    peer = Peer(script, tls=tls, glued=True)
    world = World(peer, rules=rules(**FULL))

    async def scenario() -> None:
        await world.deliver_in_a_row([request(n) for n in range(4)])

    await world.play(scenario)
    assert [o.action for result in world.results for o in result.outcomes][2] is Action.DEFERRED


@trio_test
async def test_a_server_that_goes_on_talking_in_another_record_proves_nothing(
    pki: Pki, autojump_clock: MockClock
) -> None:
    no = "554 5.5.1 no valid recipients"
    tls = ServerTls(server_context(pki.leaf("good")), lines=True)
    script: dict[Phase, Script] = {
        Phase.RCPT: {"b1@example.com": "550 5.1.1 who?"},
        Phase.DATA: ["354 go", f"{no}\n250 2.0.0 more", no, "354 go"],
    }
    peer = Peer(script, tls=tls, glued=True)
    world = World(peer, rules=rules(**FULL))

    async def scenario() -> None:
        await world.deliver_in_a_row([request(n) for n in range(3)])

    await world.play(scenario)
    actions = [o.action for result in world.results for o in result.outcomes]
    assert actions == [Action.SENT, Action.BOUNCED, Action.SENT]
    assert len(peer.links) == 2


@trio_test
async def test_b07_another_slot_finds_the_tls_session_in_the_cache(pki: Pki) -> None:
    peer, cache = server(pki), MemoryCache()
    world = World(peer, rules=rules(**FULL), cache=cache)

    async def scenario() -> None:
        await in_own_slots(world, *(request(n) for n in range(4)))
        assert world.holder.lent == 1

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert tls_words(world) == ["encrypt"] * 4
    assert uses(world) == [1, 2, 3, 4]
    assert handshakes(peer) == 1


@trio_test
async def test_another_process_uses_it_through_the_one_that_holds_it(pki: Pki) -> None:
    peer, cache = server(pki), MemoryCache()
    world = World(peer, rules=rules(**FULL), cache=cache)
    other = World(peer, rules=rules(**FULL), cache=cache)  # has lent nothing itself

    async def scenario() -> None:
        async def elsewhere() -> None:
            await in_own_slots(other, request(1), request(2))

        await in_own_slots(world, request(0))
        await other.play(elsewhere)
        await in_own_slots(world, request(3))

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert (tls_words(world), tls_words(other)) == (["encrypt"] * 2, ["encrypt"] * 2)
    assert (uses(world), uses(other)) == ([1, 4], [2, 3])
    assert handshakes(peer) == 1
    assert SessionReused("mx1.example.com[192.0.2.1]:25", 2) in other.events


@trio_test
async def test_a_policy_may_keep_its_sessions_from_other_processes(pki: Pki) -> None:
    peer, cache = server(pki), MemoryCache()
    world = World(peer, rules=rules(**FULL, smtp_tls_connection_reuse="no"), cache=cache)

    async def scenario() -> None:
        await in_own_slots(world, request(0), request(1))

    await world.play(scenario)
    assert uses(world) == [1, 1]
    assert handshakes(peer) == 2


@pytest.mark.parametrize("first", ["may", "encrypt"])
@trio_test
async def test_a_session_never_serves_a_stricter_policy(pki: Pki, first: str) -> None:
    peer, cache = server(pki, "self-signed"), MemoryCache()
    world = World(peer, rules=rules(smtp_tls_security_level=first), cache=cache)
    strict = rules(smtp_tls_security_level="verify", smtp_tls_CAfile=str(pki.ca_file("root")))

    async def scenario() -> None:
        await in_own_slots(world, request(0))
        assert world.holder.lent == 1
        world.environment = replace(world.environment, security=dict.fromkeys(Protocol, strict))
        await world.deliver(request(1))

    try:
        await world.play(scenario)
    finally:
        cache.close()
    sent, waits = (result.outcomes[0] for result in world.results)
    assert (sent.action, sent.tls) == (Action.SENT, first)
    assert (waits.action, waits.dsn) == (Action.DEFERRED, "4.7.5")
    assert len(peer.accepted) == 1


@trio_test
async def test_a_slot_s_own_session_is_left_when_the_policy_changes(pki: Pki) -> None:
    peer = server(pki)
    world = World(peer, rules=rules(**FULL))

    async def scenario() -> None:
        await world.deliver(request(0))
        world.environment = replace(
            world.environment,
            security=dict.fromkeys(Protocol, rules(**FULL, smtp_tls_mandatory_ciphers="high")),
        )
        await world.deliver(request(1))

    await world.play(scenario)
    assert uses(world) == [1, 1]
    assert handshakes(peer) == 2


POLICY = TlsPolicy(level=Level.VERIFY, match=("mx.example.com",))
OTHERS: dict[str, object] = {
    "level": Level.SECURE,
    "wrapper": True,
    "versions": frozenset({Version.TLSV1_3}),
    "ciphers": "HIGH",
    "match": ("mx.example.com", ".example.com"),
    "digest": "sha1",
    "servername": "mx.example.com",
    "anchors": Anchors(file="/etc/ca.pem"),
    "identity": Identity(pairs=(("/etc/c.pem", "/etc/k.pem"),)),
    "depth": 2,
    "many_labels": False,
    "shared": False,
}
KEY = SessionKey(transport="smtp", nexthop="example.com", settings=DeliverySettings())
ENDPOINT = Endpoint(host="mx.example.com", address="192.0.2.1", port=25, family=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [item.name for item in fields(TlsPolicy)])
def test_each_part_of_a_policy_alone_makes_another_key(part: str) -> None:
    other = replace(POLICY, **{part: OTHERS[part]})  # type: ignore[arg-type]  # its own type
    ours, theirs = Security(policy=POLICY), Security(policy=other)
    assert ours.key != theirs.key
    assert endpoint_label(KEY, ENDPOINT, ours) != endpoint_label(KEY, ENDPOINT, theirs)
    assert Security(policy=replace(POLICY)).key == ours.key


def login(pki: Pki, **main_cf: str) -> dict[str, str]:
    return {
        **FULL,
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_tls_security_options": "noanonymous",
        "smtp_tls_CAfile": str(pki.ca_file("root")),
        **main_cf,
    }


def logins(peer: Peer) -> list[str]:
    return [word for link in peer.links for word in link.commands if word.startswith("AUTH")]


@trio_test
async def test_s093_senders_with_names_of_their_own_never_share(pki: Pki) -> None:
    peer, cache = server(pki), MemoryCache()
    main_cf = login(
        pki,
        smtp_sender_dependent_authentication="yes",
        smtp_sasl_password_maps="inline:{ann@here.example=ann:a, bob@here.example=bob:b}",
    )
    settings = DeliverySettings.from_config(Config.from_mapping(main_cf), Protocol.SMTP)
    world = World(peer, rules=rules(**main_cf), cache=cache, settings=settings)
    ann, bob = "ann@here.example", "bob@here.example"

    async def scenario() -> None:
        await in_own_slots(
            world, *(request(n, sender) for n, sender in enumerate((ann, bob, ann, bob)))
        )

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert uses(world) == [1, 1, 2, 2]
    assert len(logins(peer)) == 2


@trio_test
async def test_s093_in_a_slot_too(pki: Pki) -> None:
    peer = server(pki)
    main_cf = login(
        pki,
        smtp_sender_dependent_authentication="yes",
        smtp_sasl_password_maps="inline:{ann@here.example=ann:a, bob@here.example=bob:b}",
    )
    settings = DeliverySettings.from_config(Config.from_mapping(main_cf), Protocol.SMTP)
    world = World(peer, rules=rules(**main_cf), settings=settings)
    senders = ["ann@here.example"] * 2 + ["bob@here.example"] * 2

    async def scenario() -> None:
        await world.deliver_in_a_row([request(n, sender) for n, sender in enumerate(senders)])

    await world.play(scenario)
    assert uses(world) == [1, 2, 1, 2]
    assert len(logins(peer)) == 2


@trio_test
async def test_s150_two_nexthops_at_one_address_with_names_of_their_own(pki: Pki) -> None:
    peer, cache = server(pki), MemoryCache()
    table = "inline:{[192.0.2.1]:25=one:a, [192.0.2.1]=two:b}"
    main_cf = login(pki, smtp_sasl_password_maps=table)
    world = World(peer, rules=rules(**main_cf), cache=cache)
    hops = ("[192.0.2.1]:25", "[192.0.2.1]", "[192.0.2.1]:25", "[192.0.2.1]")

    async def scenario() -> None:
        await in_own_slots(world, *(replace(request(n), nexthop=hop) for n, hop in enumerate(hops)))

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert uses(world) == [1, 1, 2, 2]
    assert len(logins(peer)) == 2


# --- in the clear after all (S099) ----------------------------------------------------------------


def broken(pki: Pki) -> Peer:
    tls = ServerTls(server_context(pki.leaf("good")), broken=Break(0, Harm.ALERT))
    return Peer(tls=tls, real_sockets=True)


@trio_test
async def test_s099_a_message_that_has_waited_goes_in_the_clear_and_serves_nobody_else(
    pki: Pki,
) -> None:
    peer, cache = broken(pki), MemoryCache()
    world = World(peer, rules=rules(smtp_tls_security_level="may"), cache=cache)

    async def scenario() -> None:
        await in_own_slots(
            world, *(replace(request(n), arrival=0.0, active=300.0) for n in range(2))
        )

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert tls_words(world) == ["may:none"] * 2
    assert uses(world) == [1, 1]
    assert not any(message.encrypted for message in peer.accepted)


@pytest.mark.parametrize("steady", [True, False])
@trio_test
async def test_s099_a_fresh_message_does_not_follow_it_in_the_clear(
    pki: Pki,
    steady: bool,  # a parameter
) -> None:
    peer = broken(pki)
    world = World(peer, rules=rules(smtp_tls_security_level="may"))
    fresh = [replace(request(n), arrival=299.0, active=300.0) for n in range(3)]
    waited = replace(request(3), arrival=0.0, active=300.0)

    async def scenario() -> None:
        await world.deliver_in_a_row([waited, *fresh, waited, waited], steady=steady)

    await world.play(scenario)
    sent = [result.outcomes[0].action is Action.SENT for result in world.results]
    assert sent == [True, False, False, False, True, True]
    assert [message.recipients for message in peer.accepted] == [("b3@example.com",)] * 3


@trio_test
async def test_s099_a_fresh_message_waits_and_the_site_is_not_blamed(pki: Pki) -> None:
    world = World(broken(pki), rules=rules(smtp_tls_security_level="may"))

    async def scenario() -> None:
        await world.deliver(replace(request(0), arrival=0.0, active=299.0))

    await world.play(scenario)
    result = world.results[0]
    assert result.outcomes[0].action is Action.DEFERRED
    assert result.outcomes[0].reason == "Cannot start TLS: handshake failure"
    assert result.site_failure is None


@trio_test
async def test_s099_a_name_and_a_secret_never_go_in_the_clear(pki: Pki) -> None:
    peer = broken(pki)
    main_cf = login(pki, smtp_sasl_password_maps="static:ann:a", smtp_tls_security_level="may")
    world = World(peer, rules=rules(**main_cf))

    async def scenario() -> None:
        await world.deliver(replace(request(0), arrival=0.0, active=10_000.0))

    await world.play(scenario)
    assert world.results[0].outcomes[0].action is Action.DEFERRED
    assert not peer.accepted
    assert not logins(peer)


@trio_test
async def test_s099_a_tls_session_that_breaks_before_anybody_was_settled_counts_too(
    pki: Pki,
) -> None:
    tls = ServerTls(server_context(pki.leaf("good")))
    peer = Peer({Phase.MAIL: [Fault.CUT, "250 2.1.0 ok"]}, tls=tls, real_sockets=True)
    world = World(peer, rules=rules(smtp_tls_security_level="may"))

    async def scenario() -> None:
        await world.deliver(replace(request(0), arrival=0.0, active=300.0))

    await world.play(scenario)
    assert tls_words(world) == ["may:none"]
    assert [message.encrypted for message in peer.accepted] == [False]


@trio_test
async def test_s102_level_2_tells_the_steps_of_a_handshake(pki: Pki) -> None:
    told: list[Event] = []
    main_cf = Config.from_mapping(FULL | {"smtp_tls_loglevel": "2"})
    world = World(server(pki), rules=make_rules(main_cf, Protocol.SMTP, told.append))

    async def scenario() -> None:
        await world.deliver(request(0))

    await world.play(scenario)
    steps = [event.step for event in told if isinstance(event, TlsStep)]
    assert any("client hello" in step for step in steps)
    assert any(isinstance(event, TlsEstablished) for event in world.events)


def test_a_handshake_has_its_time_limit(pki: Pki, autojump_clock: MockClock) -> None:
    tls = ServerTls(server_context(pki.leaf("good")), broken=Break(0, Harm.SILENCE))
    peer = Peer(tls=tls)
    settings = DeliverySettings()
    world = World(peer, rules=rules(**FULL), settings=settings)

    async def scenario() -> None:
        await world.deliver(request(0))

    trio.run(world.play, scenario, clock=autojump_clock)
    outcome = world.results[0].outcomes[0]
    assert outcome.reason == "Cannot start TLS: handshake failure"
    assert world.took == [pytest.approx(settings.limits.starttls, abs=1)]
