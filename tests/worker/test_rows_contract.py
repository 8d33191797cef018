"""What the manual says of the agent as a whole: rows that no other test shows.

Deterministic: scripted servers in memory and virtual time.
"""

from dataclasses import replace

import pytest
from trio.testing import MockClock, trio_test

from protocol.outcome import Action
from protocol.request import Protocol
from tests.worker.peer import Peer, Phase
from tests.worker.world import World, actions, deliver_one, make_request
from worker.delivery.settings import DeliverySettings

SETTINGS = DeliverySettings(hostname="client.example", helo_name="helo.example")


def a_peer(protocol: Protocol, script: dict[Phase, object] | None = None, **more: object) -> Peer:
    """A server of this protocol."""
    return Peer(script, lmtp=protocol is Protocol.LMTP, **more)  # type: ignore[arg-type]  # Peer's own


# --- standards ------------------------------------------------------------------------------------

MANY = [f"u{number}@example.com" for number in range(101)]
FULL = "552 5.2.2 too many"


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("defer", "action", "dsn"), [(False, Action.BOUNCED, "5.2.2"), (True, Action.DEFERRED, "4.2.2")]
)
@trio_test
async def test_s188_552_for_the_101st_recipient_is_final_unless_it_is_to_be_deferred(
    autojump_clock: MockClock, protocol: Protocol, defer: bool, action: Action, dsn: str
) -> None:
    peer = a_peer(protocol, {Phase.RCPT: {MANY[-1]: FULL}})
    world = World(peer, settings=replace(SETTINGS, defer_rcpt_552=defer))
    result = await deliver_one(world, make_request(*MANY, protocol=protocol))
    assert peer.served == MANY[:-1]
    last = result.outcomes[-1]
    assert (last.recipient.address, last.action, last.dsn) == (MANY[-1], action, dsn)
    assert last.reason.endswith(f"said: {FULL} (in reply to RCPT TO command)")


@pytest.mark.parametrize("refused", [MANY[:1], MANY[:2]], ids=len)
@trio_test
async def test_s188_552_before_anybody_was_accepted_is_about_that_recipient(
    autojump_clock: MockClock, refused: list[str]
) -> None:
    peer = Peer({Phase.RCPT: dict.fromkeys(refused, FULL)})
    world = World(peer, settings=replace(SETTINGS, defer_rcpt_552=True))
    result = await deliver_one(world, make_request(*MANY[:3]))
    assert actions(result) == {
        address: Action.BOUNCED if address in refused else Action.SENT for address in MANY[:3]
    }
