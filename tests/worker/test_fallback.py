"""Fallback relays, and what leads nowhere by our own choice (S027, S028).

Deterministic: scripted servers in memory, a scripted resolver, virtual time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, DeliveryResult
from protocol.request import Protocol, RequestFlags
from tests.cancel_everywhere import cancel_everywhere
from tests.worker.fake_dns import NULL_MX, servfail
from tests.worker.memory_cache import MemoryCache
from tests.worker.peer import Fault, Peer, Phase
from tests.worker.world import REFUSED, Site, World, actions, deliver_one, make_request
from worker.config.config import Config
from worker.delivery.security import SecurityRules
from worker.delivery.settings import DeliverySettings
from worker.network.endpoints import EndpointSettings
from worker.network.network import NetworkSettings
from worker.network.own import OwnAddresses, canonical
from worker.network.resolver import LookupFailure, MxAnswer
from worker.sasl.client import SaslClient
from worker.status.events import EndpointFailed, UnexpectedError, Warned

SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
SMTP, LMTP = Protocol.SMTP, Protocol.LMTP
ABC = [f"{name}@example.com" for name in "abc"]
RELAY = "192.0.2.9"
GREYLIST = "450 4.7.1 greylisted"
Mx = Sequence[tuple[int, str]] | MxAnswer | LookupFailure


def a_world(
    *sites: Site,
    fallback: Mapping[str, Site] | None = None,
    relayhost: str = "",
    own: Sequence[str] = (),
    mx: Mapping[str, Mx] | None = None,
    session_limit: int = 2,
    cache: MemoryCache | None = None,
    rules: SecurityRules | None = None,
    settings: DeliverySettings | None = None,
) -> World:
    """`sites` are the exchangers of example.com, `fallback` the relays by destination.

    Their addresses are 192.0.2.9, .10, ... in this order.
    """
    relays = dict(fallback or {})
    world = World(*sites, session_limit=session_limit, cache=cache, settings=settings)
    for number, site in enumerate(relays.values(), start=9):
        world.dialer.sites[f"192.0.2.{number}"] = site
    world.resolver.exchangers.update(mx or {})
    world.resolver.hosts |= {"relay.example": [RELAY], "other.example": ["192.0.2.10"]}
    networks = {
        protocol: replace(
            world.environment.networks[protocol],
            settings=NetworkSettings(
                endpoints=EndpointSettings(
                    protocol=protocol,
                    randomize=False,
                    own=OwnAddresses(frozenset(map(canonical, own))),
                ),
                fallback=tuple(relays),
                relayhost=relayhost if protocol is SMTP else "",
            ),
        )
        for protocol in Protocol
    }
    rules = rules or SecurityRules()
    security = dict.fromkeys(Protocol, replace(rules, fallback=tuple(relays)))
    world.environment = replace(world.environment, networks=networks, security=security)
    return world


def warnings(world: World) -> list[str]:
    return [event.text for event in world.events if isinstance(event, Warned)]


def relays(result: DeliveryResult) -> list[str]:
    return [outcome.relay for outcome in result.outcomes]


def dialled(world: World) -> list[str]:
    return [address for _, address in world.dialer.dialled]


# --- when it is used ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mx", "reason"),
    [
        ({"example.com": servfail("example.com")}, "Host not found, try again"),
        ({"example.com": NULL_MX}, "does not accept mail"),
        ({"example.com": [(10, "gone.example")]}, "gone.example"),
    ],
)
@trio_test
async def test_s028_a_destination_that_is_not_found_leaves_it_to_the_relay(
    autojump_clock: MockClock, mx: Mapping[str, Mx], reason: str
) -> None:
    world = a_world(fallback={"[relay.example]": Peer()}, mx=mx)
    result = await deliver_one(world)
    assert actions(result) == {"a@example.com": SENT}
    assert relays(result) == [f"relay.example[{RELAY}]:25"]
    assert result.site_failure is None
    [passed] = [event for event in world.events if isinstance(event, EndpointFailed)]
    assert reason in passed.reason
    assert passed.queue_id == "Q1"


@trio_test
async def test_s028_a_domain_that_does_not_exist_goes_to_the_relay(
    autojump_clock: MockClock,
) -> None:
    world = a_world(fallback={"relay.example": Peer()})
    world.resolver.exchangers.clear()
    result = await deliver_one(world)
    assert actions(result) == {"a@example.com": SENT}
    assert relays(result) == [f"relay.example[{RELAY}]:25"]


@pytest.mark.parametrize(
    "site",
    [
        REFUSED,
        None,
        Peer({Phase.GREETING: "421 4.3.2 busy"}),
        Peer({Phase.MAIL: GREYLIST}),
        Peer({Phase.RCPT: GREYLIST}),
        Peer({Phase.DOT: "451 4.3.0 later"}),
        Peer({Phase.DATA: Fault.CUT}),
    ],
    ids=["refused", "silent", "greeting", "mail", "rcpt", "dot", "cut"],
)
@trio_test
async def test_s028_a_destination_that_fails_for_now_leaves_it_to_the_relay(
    autojump_clock: MockClock, site: Site
) -> None:
    relay = Peer()
    world = a_world(site, fallback={f"[{RELAY}]:2525": relay})
    result = await deliver_one(world)
    assert actions(result) == {"a@example.com": SENT}
    assert relays(result) == [f"{RELAY}[{RELAY}]:2525"]
    assert len(relay.accepted) == 1


@trio_test
async def test_s028_only_who_is_left_over_goes_to_the_relay(autojump_clock: MockClock) -> None:
    first = Peer({Phase.RCPT: {ABC[1]: "550 5.1.1 who?", ABC[2]: GREYLIST}})
    relay = Peer()
    world = a_world(first, fallback={"[relay.example]": relay})
    result = await deliver_one(world, make_request(*ABC))
    assert actions(result) == {ABC[0]: SENT, ABC[1]: BOUNCED, ABC[2]: SENT}
    assert relay.offered == [ABC[2]]


@pytest.mark.parametrize(
    "script",
    [
        {Phase.RCPT: "550 5.1.1 who?"},
        {Phase.MAIL: "550 5.7.1 not you"},
        {Phase.DOT: "554 5.7.1 spam"},
    ],
)
@trio_test
async def test_s028_a_hard_refusal_is_final(
    autojump_clock: MockClock, script: dict[Phase, str]
) -> None:
    world = a_world(Peer(dict(script)), fallback={"[relay.example]": Peer()})
    result = await deliver_one(world)
    assert actions(result) == {"a@example.com": BOUNCED}
    assert dialled(world) == ["192.0.2.1"]


@trio_test
async def test_s028_a_message_in_doubt_is_not_given_to_the_relay(autojump_clock: MockClock) -> None:
    world = a_world(Peer({Phase.DOT: Fault.CUT}), fallback={"[relay.example]": Peer()})
    result = await deliver_one(world)
    assert result.outcomes[0].in_doubt
    assert dialled(world) == ["192.0.2.1"]


@trio_test
async def test_s028_nothing_is_asked_about_a_relay_that_is_not_needed(
    autojump_clock: MockClock,
) -> None:
    world = a_world(Peer(), fallback={"[relay.example]": Peer()})
    assert actions(await deliver_one(world)) == {"a@example.com": SENT}
    assert not [question for question in world.resolver.questions if "relay" in question[1]]


@trio_test
async def test_s028_relays_are_tried_in_their_order_in_all_forms_of_destinations(
    autojump_clock: MockClock,
) -> None:
    last = Peer()
    world = a_world(
        REFUSED,
        fallback={
            "mx.relay": REFUSED,  # by its MX
            "other.example:2525": REFUSED,  # 192.0.2.10, a domain without MX
            "[third.example]": REFUSED,  # 192.0.2.11
            "gone.example": None,
            "[192.0.2.13]:26": last,
        },
        mx={"mx.relay": [(5, "relay.example")]},
    )
    world.resolver.hosts["third.example"] = ["192.0.2.11"]
    result = await deliver_one(world)
    assert dialled(world) == [
        *("192.0.2.1", RELAY, "192.0.2.10", "192.0.2.11", "192.0.2.13"),
    ]
    assert relays(result) == ["192.0.2.13[192.0.2.13]:26"]
    assert ("MX", "third.example") not in world.resolver.questions


@trio_test
async def test_s028_lmtp_has_fallback_relays_of_its_own(autojump_clock: MockClock) -> None:
    relay = Peer(lmtp=True)
    world = a_world(REFUSED, fallback={"relay.example:24": relay})
    result = await deliver_one(world, make_request(protocol=LMTP))
    assert actions(result) == {"a@example.com": SENT}
    assert relays(result) == [f"relay.example[{RELAY}]:24"]


@trio_test
async def test_s028_a_socket_has_no_fallback_and_the_log_says_so(autojump_clock: MockClock) -> None:
    world = a_world(fallback={"relay.example:24": Peer(lmtp=True)})
    request = replace(make_request(protocol=LMTP), nexthop="unix:/run/lmtp")
    result = await deliver_one(world, request)
    assert actions(result) == {"a@example.com": DEFERRED}
    assert dialled(world) == ["/run/lmtp"]
    assert warnings(world) == ["lmtp_fallback_relay is for TCP, and not used for unix:/run/lmtp"]


# --- an exchanger of the domain -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "mx", "tried", "action", "dsn"),
    [
        ("192.0.2.1", None, [], BOUNCED, "5.4.6"),
        ("192.0.2.2", None, ["192.0.2.1"], DEFERRED, "4.4.1"),
        (
            "192.0.2.2",
            {"example.com": [(10, "gone.example"), (20, "mx2.example.com")]},
            *([], DEFERRED, "4.4.4"),
        ),
    ],
    ids=["the best", "a backup", "a backup of one without address"],
)
@trio_test
async def test_s028_an_exchanger_of_the_domain_has_no_fallback(
    autojump_clock: MockClock,
    own: str,
    mx: Mapping[str, Mx] | None,
    tried: list[str],
    action: Action,
    dsn: str,
) -> None:
    relay = Peer()
    world = a_world(REFUSED, REFUSED, fallback={"[relay.example]": relay}, own=[own], mx=mx)
    result = await deliver_one(world)
    assert dialled(world) == tried
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (action, dsn)
    assert not relay.links


# --- what is our own mistake ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unknown", "Host not found"),
        ("null", "does not accept mail"),
        ("loop", "mail for relay.example loops back to myself"),
        ("greeting", "refused to talk to me: 554 5.3.2 no"),
        ("hello", "loops back to myself"),
    ],
)
@pytest.mark.parametrize("culprit", ["relayhost", "smtp_fallback_relay"])
@trio_test
async def test_s028_a_relay_of_our_choice_that_cannot_be_used_bounces_nothing(
    autojump_clock: MockClock, culprit: str, kind: str, reason: str
) -> None:
    relay: Site = Peer(name="client.example" if kind == "hello" else "mx.example")
    if kind == "greeting":
        relay = Peer({Phase.GREETING: "554 5.3.2 no"})
    mx: dict[str, Mx] = {"relay.example": NULL_MX} if kind == "null" else {}
    own = [RELAY] if kind == "loop" else []
    fallback = {"relay.example": relay} if culprit == "smtp_fallback_relay" else {}
    relayhost = "relay.example" if culprit == "relayhost" else ""
    world = a_world(REFUSED, fallback=fallback, relayhost=relayhost, mx=mx, own=own)
    world.dialer.sites[RELAY] = relay
    settings = DeliverySettings(
        hostname="client.example", helo_name="helo.example", skip_5xx_greeting=False
    )
    world.environment = replace(world.environment, settings=dict.fromkeys(Protocol, settings))
    if kind == "unknown":
        del world.resolver.hosts["relay.example"]
    request = replace(make_request(), nexthop=relayhost or "example.com")
    result = await deliver_one(world, request)
    (outcome,) = result.outcomes
    assert (outcome.action, outcome.dsn) == (DEFERRED, "4.3.5")
    assert reason in outcome.reason
    text = f"{culprit} configuration problem"
    assert [w for w in warnings(world) if "configuration" in w] == [text]
    if kind == "greeting":
        assert outcome.reply.startswith("554 5.3.2")
        assert outcome.mta


@pytest.mark.parametrize("culprit", ["relayhost", "smtp_fallback_relay"])
@trio_test
async def test_s028_a_relay_that_will_serve_later_is_no_mistake_in_the_configuration(
    autojump_clock: MockClock, culprit: str
) -> None:
    relay = Peer({Phase.GREETING: "421 4.3.2 too busy"})
    fallback = {"relay.example": relay} if culprit == "smtp_fallback_relay" else {}
    relayhost = "relay.example" if culprit == "relayhost" else ""
    world = a_world(REFUSED, fallback=fallback, relayhost=relayhost)
    world.dialer.sites[RELAY] = relay
    result = await deliver_one(world, replace(make_request(), nexthop=relayhost or "example.com"))
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (DEFERRED, "4.3.2")
    assert not warnings(world)


@trio_test
async def test_s028_a_nexthop_that_is_no_relayhost_bounces(autojump_clock: MockClock) -> None:
    world = a_world(relayhost="[relay.example]")
    result = await deliver_one(world, replace(make_request(), nexthop="gone.example"))
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (BOUNCED, "5.4.4")
    assert not warnings(world)


@trio_test
async def test_s028_a_relayhost_that_is_not_found_leaves_it_to_the_fallback(
    autojump_clock: MockClock,
) -> None:
    world = a_world(fallback={"[relay.example]": Peer()}, relayhost="[gone.example]")
    result = await deliver_one(world, replace(make_request(), nexthop="[gone.example]"))
    assert actions(result) == {"a@example.com": SENT}


@pytest.mark.parametrize(("soft_bounce", "action"), [("yes", DEFERRED), ("no", BOUNCED)])
@trio_test
async def test_s028_a_refused_log_in_is_what_its_own_parameter_makes_of_it(
    autojump_clock: MockClock, soft_bounce: str, action: Action
) -> None:
    config = Config.from_mapping(
        {
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_password_maps": "static:user:secret",
            "smtp_sasl_security_options": "noanonymous",
            "smtp_sasl_auth_soft_bounce": soft_bounce,
        }
    )
    rules = SecurityRules(sasl=SaslClient.from_config(config, SMTP))
    relay = Peer({Phase.AUTH: "535 5.7.8 no"}, extensions=("AUTH PLAIN",))
    world = a_world(relayhost="[relay.example]", rules=rules)
    world.dialer.sites[RELAY] = relay
    result = await deliver_one(world, replace(make_request(), nexthop="[relay.example]"))
    assert result.outcomes[0].action is action
    assert not [text for text in warnings(world) if "configuration problem" in text]


# --- limits, policies, reuse ----------------------------------------------------------------------


@trio_test
async def test_s028_each_destination_has_its_own_number_of_sessions(
    autojump_clock: MockClock,
) -> None:
    sites = [Peer({Phase.RCPT: GREYLIST}) for _ in range(3)]
    relay = Peer()
    world = a_world(*sites, fallback={"[relay.example]": relay}, session_limit=2)
    result = await deliver_one(world)
    assert [len(site.links) for site in sites] == [1, 1, 0]
    assert actions(result) == {"a@example.com": SENT}
    assert len(relay.links) == 1


@trio_test
async def test_s028_a_session_at_hand_may_use_up_the_limit_of_the_nexthop_alone(
    autojump_clock: MockClock,
) -> None:
    first = Peer({Phase.RCPT: ["250 2.1.5 ok", GREYLIST]})
    world = a_world(first, Peer(), fallback={"[relay.example]": Peer()}, session_limit=1)

    async def scenario() -> None:
        await world.deliver(make_request())
        await world.deliver(make_request())

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT]
    assert relays(world.results[1]) == [f"relay.example[{RELAY}]:25"]


@trio_test
async def test_s028_who_comes_next_tries_his_own_destination_first(
    autojump_clock: MockClock,
) -> None:
    relay = Peer()
    world = a_world(REFUSED, fallback={"[relay.example]": relay})

    async def scenario() -> None:
        await world.deliver_in_a_row([make_request(), make_request()])
        assert not world.slot.holds_session

    await world.play(scenario)
    assert dialled(world) == ["192.0.2.1", RELAY, "192.0.2.1", RELAY]
    ends = [s for link in relay.links for s in link.segments if s.endswith(b".\r\nQUIT\r\n")]
    assert len(ends) == 2
    assert not any(result.session_kept for result in world.results)


@trio_test
async def test_s028_the_cache_knows_a_session_with_a_relay_by_its_endpoint_only(
    autojump_clock: MockClock,
) -> None:
    cache, relay = MemoryCache(), Peer(real_sockets=True)
    world = a_world(REFUSED, fallback={"[relay.example]": relay}, cache=cache)
    flags = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE
    request = replace(make_request(), flags=flags)

    async def scenario() -> None:
        await world.deliver_in_a_row([request, request])

    try:
        await world.play(scenario)
    finally:
        cache.close()
    assert not cache.bindings
    # The second one's envelope did not follow the first one's dot.
    assert [verb for verb in relay.verbs if verb != "QUIT"] == [
        *("EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA"),
    ]
    assert [result.outcomes[0].conn_use for result in world.results] == [1, 2]
    assert dialled(world) == ["192.0.2.1", RELAY, "192.0.2.1"]
    assert len(relay.links) == 1


@trio_test
async def test_s028_a_relay_is_logged_in_at_as_its_own_entry_says(
    autojump_clock: MockClock,
) -> None:
    config = Config.from_mapping(
        {
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_password_maps": "inline:{ {[relay.example]:25 = user:secret} }",
            "smtp_sasl_security_options": "noanonymous",
        }
    )
    rules = SecurityRules(sasl=SaslClient.from_config(config, SMTP))
    offer = ("AUTH PLAIN",)
    first = Peer({Phase.MAIL: GREYLIST}, extensions=offer)
    relay = Peer(extensions=offer)
    world = a_world(first, fallback={"[relay.example]:25": relay}, rules=rules)
    assert actions(await deliver_one(world)) == {"a@example.com": SENT}
    assert "AUTH" not in first.verbs
    assert "AUTH" in relay.verbs


# --- a list of destinations -----------------------------------------------------------------------


@trio_test
async def test_a_destination_of_a_list_that_leads_nowhere_is_left_out(
    autojump_clock: MockClock,
) -> None:
    world = a_world(Peer())
    result = await deliver_one(world, replace(make_request(), nexthop="gone.example, example.com"))
    assert actions(result) == {"a@example.com": SENT}


@pytest.mark.parametrize(
    ("nexthop", "dsn"),
    [
        ("gone.example", "5.4.4"),
        ("gone.example, flaky.example", "4.4.3"),
        ("flaky.example, gone.example", "4.4.3"),
        ("gone.example, away.example", "5.4.4"),
    ],
)
@trio_test
async def test_a_list_that_leads_nowhere_is_hard_only_if_every_part_is(
    autojump_clock: MockClock, nexthop: str, dsn: str
) -> None:
    world = a_world(mx={"flaky.example": servfail("flaky.example")})
    result = await deliver_one(world, replace(make_request(), nexthop=nexthop))
    assert result.outcomes[0].dsn == dsn


# --- at any step ----------------------------------------------------------------------------------


def test_s028_a_delivery_by_a_relay_may_be_cancelled_at_any_step() -> None:
    def make_world() -> World:
        return a_world(Peer({Phase.RCPT: GREYLIST}), fallback={"[relay.example]": Peer()})

    async def scenario(world: World) -> None:
        async def deliver() -> None:
            await world.deliver(make_request())
            await world.deliver(make_request())

        await world.play(deliver)

    steps = 0
    for run in cancel_everywhere(make_world, scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
        assert all(result.outcomes[0].action is SENT for result in run.world.results)
    assert steps > 50
