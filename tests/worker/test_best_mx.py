"""Mail whose best exchanger we are ourselves, given to another of our transports (S026).

Deterministic: scripted servers in memory, virtual time.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Protocol
from protocol.transcript import Trouble
from tests.cancel_everywhere import cancel_everywhere
from tests.worker.peer import Fault, Late, Peer, Phase, Script
from tests.worker.test_fallback import a_world, dialled
from tests.worker.world import REFUSED, Site, World, actions, deliver_one, make_request
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.delivery.recorder import RecordingRules
from worker.environment import make_environment
from worker.status.events import Event, PassedOn, UnexpectedError, Warned
from worker.status.log import render

SENT, DEFERRED, BOUNCED = Action.SENT, Action.DEFERRED, Action.BOUNCED
SMTP, LMTP = Protocol.SMTP, Protocol.LMTP
ABC = [f"{name}@example.com" for name in "abc"]
STUB = "/run/stub"
OURSELVES = "192.0.2.1"  # the best exchanger of example.com


def looping(transport: str, stub: Site, *, relayhost: str = "") -> World:
    """We are the best exchanger of example.com; `stub` is at /run/stub and at 192.0.2.9."""
    world = a_world(REFUSED, own=[OURSELVES], relayhost=relayhost)
    world.dialer.sites |= {STUB: stub, "192.0.2.9": stub}
    config = Config.from_mapping({"best_mx_transport": transport})
    made = make_environment(config, world.events.append, lambda: 0.0, random.Random(1))
    made.close()
    world.environment = replace(world.environment, hand_over=made.hand_over)
    return world


def lmtp(script: Mapping[Phase, Script] | None = None) -> Peer:
    return Peer(script, lmtp=True)


@trio_test
async def test_s026_what_would_loop_is_given_to_another_transport(
    autojump_clock: MockClock,
) -> None:
    stub = lmtp({Phase.RCPT: {ABC[1]: "550 5.1.1 who?", ABC[2]: "450 4.2.0 later"}})
    world = looping(f"lmtp:unix:{STUB}", stub)
    result = await deliver_one(world, make_request(*ABC))
    assert stub.offered == ABC
    assert actions(result) == {ABC[0]: SENT, ABC[1]: BOUNCED, ABC[2]: DEFERRED}
    assert [outcome.recipient.address for outcome in result.outcomes] == ABC
    assert {outcome.relay for outcome in result.outcomes} == {f"localhost[{STUB}]"}
    assert dialled(world) == [STUB]
    lines = [(line.program, line.text) for event in world.events for line in render(event)]
    assert lines == [("smtp", f"Q1: passing <{address}> to transport=lmtp") for address in ABC]


@trio_test
async def test_s026_without_it_a_loop_is_bounced(autojump_clock: MockClock) -> None:
    world = looping("", lmtp())
    result = await deliver_one(world)
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (BOUNCED, "5.4.6")
    assert not dialled(world)


@pytest.mark.parametrize(
    ("transport", "action", "dsn", "reason"),
    [
        ("error:5.1.2 not here", BOUNCED, "5.1.2", "not here"),
        ("retry:4.2.1 not now", DEFERRED, "4.2.1", "not now"),
        ("discard:gone", SENT, "2.0.0", "gone"),
        ("local", DEFERRED, "4.3.0", "mail transport unavailable"),
    ],
)
@trio_test
async def test_s026_a_transport_may_need_no_server_or_not_be_there(
    autojump_clock: MockClock, transport: str, action: Action, dsn: str, reason: str
) -> None:
    world = looping(transport, lmtp())
    result = await deliver_one(world, make_request(*ABC))
    for outcome in result.outcomes:
        assert (outcome.action, outcome.dsn, outcome.reason) == (action, dsn, reason)
        assert outcome.relay == ""
    assert not dialled(world)
    assert result.site_failure is None
    warned = [event.text for event in world.events if isinstance(event, Warned)]
    text = "best_mx_transport: there is no transport local: such mail will wait"
    assert warned == ([text] if transport == "local" else [])
    name = transport.partition(":")[0]
    passed = [event for event in world.events if isinstance(event, PassedOn)]
    assert passed == [PassedOn("Q1", address, name) for address in ABC]


@pytest.mark.parametrize("transport", ["smtp", "relay", "relay:example.com"])
@trio_test
async def test_s026_what_loops_in_the_other_transport_too_is_bounced(
    autojump_clock: MockClock, transport: str
) -> None:
    world = looping(transport, None)
    result = await deliver_one(world)
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (BOUNCED, "5.4.6")
    assert len([event for event in world.events if isinstance(event, PassedOn)]) == 1


@trio_test
async def test_s019_in_lmtp_our_own_address_is_no_loop(autojump_clock: MockClock) -> None:
    world = looping("error:no", None)
    world.dialer.sites[OURSELVES] = Peer(lmtp=True, name="client.example")  # our own name
    request = replace(make_request(protocol=LMTP), nexthop=f"inet:[{OURSELVES}]:25")
    result = await deliver_one(world, request)
    assert result.outcomes[0].action is SENT
    assert not [event for event in world.events if isinstance(event, PassedOn)]


@trio_test
async def test_s026_a_relayhost_that_loops_is_a_mistake_of_ours_first(
    autojump_clock: MockClock,
) -> None:
    world = looping(f"lmtp:unix:{STUB}", lmtp(), relayhost="example.com")
    result = await deliver_one(world)
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (DEFERRED, "4.3.5")
    assert not dialled(world)


@trio_test
async def test_s026_a_backup_exchanger_passes_nothing_on(autojump_clock: MockClock) -> None:
    world = a_world(REFUSED, REFUSED, own=["192.0.2.2"])
    other = looping("error:no", None)
    world.environment = replace(world.environment, hand_over=other.environment.hand_over)
    result = await deliver_one(world)
    assert (result.outcomes[0].action, result.outcomes[0].dsn) == (DEFERRED, "4.4.1")


@trio_test
async def test_s026_a_transport_that_cannot_be_reached_is_a_failure_of_the_site(
    autojump_clock: MockClock,
) -> None:
    world = looping(f"lmtp:unix:{STUB}", REFUSED)
    result = await deliver_one(world)
    (outcome,) = result.outcomes
    assert outcome.action is DEFERRED
    assert f"connect to localhost[{STUB}]: Connection refused" in outcome.reason
    assert result.site_failure is not None


@trio_test
async def test_s026_what_is_lost_after_the_dot_is_in_doubt(autojump_clock: MockClock) -> None:
    world = looping(f"lmtp:unix:{STUB}", lmtp({Phase.DOT: Fault.CUT}))
    result = await deliver_one(world)
    assert result.outcomes[0].in_doubt


@trio_test
async def test_s026_what_went_wrong_there_is_told_as_of_any_session(
    autojump_clock: MockClock,
) -> None:
    world = looping(f"lmtp:unix:{STUB}", lmtp({Phase.RCPT: "502 5.5.1 what is RCPT?"}))
    rules = RecordingRules(troubles=frozenset({Trouble.PROTOCOL}))
    world.environment = replace(world.environment, recording=rules)
    (transcript,) = (await deliver_one(world)).transcripts
    assert transcript.peer == f"localhost[{STUB}]"
    assert "In:  502 5.5.1 what is RCPT?" in transcript.lines


@pytest.mark.parametrize("kept", [True, False])
@trio_test
async def test_s026_no_session_stays_open_and_each_request_finds_its_own_way(
    autojump_clock: MockClock, *, kept: bool
) -> None:
    stub = Peer()
    world = looping("relay:[192.0.2.9]", stub)

    async def scenario() -> None:
        for _ in range(3):
            await world.deliver(make_request(), kept=kept)

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT, SENT]
    assert not world.open_streams
    assert len(stub.accepted) == 3


@trio_test
async def test_s026_requests_in_a_row_are_all_passed_on(autojump_clock: MockClock) -> None:
    stub = Peer()
    world = looping("relay:[192.0.2.9]", stub)

    async def scenario() -> None:
        await world.deliver_in_a_row([make_request() for _ in range(3)])

    await world.play(scenario)
    assert [result.outcomes[0].action for result in world.results] == [SENT, SENT, SENT]
    assert len([event for event in world.events if isinstance(event, PassedOn)]) == 3


@pytest.mark.parametrize(
    "value",
    [
        "smtp:[example.com",
        "lmtp:inet:a:b:c",
        "smtp:a:no-such-service",
        "smtp:unix:/x",
        "relay:a, b:c:d",
        ":[192.0.2.9]",
    ],
)
def test_s026_what_names_no_transport_or_no_destination_stops_the_start(value: str) -> None:
    config = Config.from_mapping({"best_mx_transport": value})
    with pytest.raises(ConfigError, match="best_mx_transport = "):
        make_environment(config, lambda _: None, lambda: 0.0, random.Random(1))


# --- interrupted ----------------------------------------------------------------------------------


def slow() -> Peer:
    return lmtp({Phase.RCPT: {ABC[1]: "550 5.1.1 who?"}, Phase.DOT: Late(1.0, "250 2.0.0 ok")})


def request() -> DeliveryRequest:
    return make_request(*ABC)


def test_s026_what_is_passed_on_may_be_cancelled_at_any_step() -> None:
    async def scenario(world: World) -> None:
        async def deliver() -> None:
            await world.deliver(request())

        await world.play(deliver)

    steps = 0
    for run in cancel_everywhere(lambda: looping(f"lmtp:unix:{STUB}", slow()), scenario):
        steps = run.step
        assert not run.world.open_streams, f"leaked when cancelled at step {run.step}"
        assert not [e for e in run.world.events if isinstance(e, UnexpectedError)]
        for result in run.world.results:
            assert [o.action for o in result.outcomes] == [SENT, BOUNCED, SENT]
    assert steps > 30


@pytest.mark.parametrize(("seconds", "sent"), [(0.0, False), (0.5, True)])
@trio_test
async def test_s026_a_slot_that_stops_ends_what_is_passed_on_as_any_delivery(
    autojump_clock: MockClock, seconds: float, *, sent: bool
) -> None:
    stub = slow()
    world = looping(f"lmtp:unix:{STUB}", stub)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deliver, request())
            await stub.until(lambda: "LHLO" in stub.verbs)
            await trio.sleep(seconds)
            world.slot.stop()

    await world.play(scenario)
    (result,) = world.results
    assert result.stopped is not sent
    expected = [SENT, BOUNCED, SENT] if sent else [DEFERRED, DEFERRED, DEFERRED]
    assert [outcome.action for outcome in result.outcomes] == expected
    assert sorted(stub.served) == ([ABC[0], ABC[2]] if sent else [])
    assert not any(outcome.in_doubt for outcome in result.outcomes)


def test_s026_what_is_told_holds_no_more_than_the_request() -> None:
    event: Event = PassedOn("Q1", "a b@example.com", "x\n")
    [line] = render(event)
    assert line.text == 'Q1: passing <"a b"@example.com> to transport=x?'
