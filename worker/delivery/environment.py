"""What deliveries need from outside: one Environment for all under one configuration.

`worker/environment.py` makes it of a configuration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf

from protocol.request import Protocol
from worker.delivery.debug_peers import DebugPeers
from worker.delivery.handover import HandOver
from worker.delivery.plain_peers import PlainPeers
from worker.delivery.recorder import NO_RECORDING, RecordingRules
from worker.delivery.reuse import CachedSessions, ReusePolicy, Wishes
from worker.delivery.security import NO_RULES, SecurityRules
from worker.delivery.session import SessionKey
from worker.delivery.settings import DeliverySettings
from worker.delivery.slot import Save
from worker.network.network import Network
from worker.status.events import Emit


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a delivery needs from outside; one for all deliveries under one configuration."""

    settings: Mapping[Protocol, DeliverySettings]
    networks: Mapping[Protocol, Network]
    emit: Emit
    wall: Callable[[], float]  # seconds since the epoch, for the `delays` in the log
    reuse: Mapping[Protocol, ReusePolicy]
    cached: CachedSessions | None = None  # None: there is no connection cache
    plain: PlainPeers = field(default_factory=PlainPeers)
    security: Mapping[Protocol, SecurityRules] = field(
        default_factory=lambda: dict.fromkeys(Protocol, NO_RULES)
    )
    # minimal_backoff_time (300s): how long a message must have waited before it may go in the
    # clear to a server whose TLS is broken
    downgrade_after: float = 300.0
    hand_over: HandOver | None = None  # best_mx_transport (); None: such mail is bounced
    debug: DebugPeers | None = None  # debug_peer_list (); None: nobody is watched
    recording: RecordingRules = NO_RECORDING
    time_limit: float = inf  # daemon_timeout (18000s): seconds that one request may take

    def close(self) -> None:
        """Another one has taken its place: give back what it holds open.

        Deliveries that are under way go on, without the cache and without TLS sessions to resume.
        """
        if self.cached is not None:
            self.cached.close()
        for rules in self.security.values():
            rules.close()

    def saving(self, key: SessionKey, wishes: Wishes, *, first: bool) -> Save | None:
        """How a session is given to the cache, if it may be.

        `first`: it was the first that served its request.
        """
        if self.cached is None or not wishes.save:
            return None
        limit = self.reuse[key.settings.protocol].time_limit
        return partial(self.cached.save, key, limit=limit, for_destination=first)
