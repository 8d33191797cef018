"""What the cache holds: connections under endpoints, bindings of destinations to endpoints. Pure.

Decides, and does nothing: a connection is a handle here, and every call returns what has to be
closed. `now` comes in as an argument. The semantics are those of Postfix's scache_multi: two
independent tables; an endpoint's connections are handed out oldest first; a destination's bindings
are walked oldest first, and the first whose endpoint has a connection wins; saving the same
binding again restarts its timer and nothing else. What Postfix does not have: limits, with the
oldest making room, and `drop()` for a connection whose peer closed or spoke.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from scache.counts import Counts
from scache.deadlines import Deadlines


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """What the store keeps at most. Field comments name the parameter and its default."""

    ttl: int = 2  # seconds: connection_cache_ttl_limit
    connections: int = 2000  # postrio_connection_cache_limit
    endpoint_connections: int = 100  # postrio_connection_cache_endpoint_limit

    @property
    def bindings(self) -> int:
        """Bindings at most. One without a connection is of no use, so one number serves both."""
        return self.connections


@dataclass(frozen=True, slots=True)
class Held:
    """One connection in the cache."""

    handle: int  # the server's name for it
    label: str  # of its endpoint
    property: str
    ttl: int  # seconds
    expires: float


_Binding = tuple[str, str]  # label of the endpoint, property of the destination


@dataclass(slots=True)
class _Timer:
    """When a binding ends; saving it again makes a new one."""

    ttl: int
    expires: float


@dataclass(slots=True)
class _Bindings:
    """All bindings, twice: by destination in the order of their making, and by last saving."""

    by_label: dict[str, OrderedDict[_Binding, _Timer]] = field(default_factory=dict)
    by_age: OrderedDict[tuple[str, _Binding], None] = field(default_factory=OrderedDict)
    deadlines: Deadlines[tuple[str, _Binding]] = field(default_factory=Deadlines)

    def save(self, label: str, binding: _Binding, ttl: int, now: float) -> float:
        bindings = self.by_label.setdefault(label, OrderedDict())
        key = (label, binding)
        if (timer := bindings.get(binding)) is not None:
            self.deadlines.remove(key, timer.ttl)
        expires = self.deadlines.set(key, ttl, now)
        bindings[binding] = _Timer(ttl, expires)
        self.by_age[key] = None
        self.by_age.move_to_end(key)
        return expires

    def remove(self, key: tuple[str, _Binding]) -> None:
        label, binding = key
        bindings = self.by_label[label]
        self.deadlines.remove(key, bindings.pop(binding).ttl)
        del self.by_age[key]
        if not bindings:
            del self.by_label[label]


class Store:
    """Endpoints and destinations. `counts` may be replaced at any time: a new interval begins."""

    def __init__(self, limits: StoreLimits) -> None:
        self.counts = Counts()
        self._limits = limits
        self._endpoints: dict[str, OrderedDict[int, Held]] = {}
        self._by_age: OrderedDict[int, Held] = OrderedDict()  # all connections, oldest first
        self._deadlines: Deadlines[int] = Deadlines()
        self._bindings = _Bindings()

    def __len__(self) -> int:
        """How many connections it holds."""
        return len(self._by_age)

    # --- connections ----------------------------------------------------------------------------

    def save_endpoint(
        self, handle: int, ttl: int, label: str, text: str, now: float
    ) -> tuple[Held, list[Held]]:
        """Hold a connection as the youngest of its endpoint, `text` being its property.

        Returns it, with the connections that had to make room for it.
        """
        limits, evicted = self._limits, list[Held]()
        queue = self._endpoints.get(label)
        if queue is not None and len(queue) >= limits.endpoint_connections:
            evicted.append(self._remove(next(iter(queue))))
        if len(self._by_age) >= limits.connections:
            evicted.append(self._remove(next(iter(self._by_age))))
        ttl = min(ttl, limits.ttl)
        held = Held(handle, label, text, ttl, self._deadlines.set(handle, ttl, now))
        self._endpoints.setdefault(label, OrderedDict())[handle] = held
        self._by_age[handle] = held
        counts = self.counts
        counts.saved += 1
        counts.evicted += len(evicted)
        counts.max_endpoints = max(counts.max_endpoints, len(self._endpoints))
        counts.max_connections = max(counts.max_connections, len(self._by_age))
        return held, evicted

    def find_endpoint(self, label: str, now: float) -> Held | None:
        """Take the endpoint's oldest connection out; None: it has none."""
        held = self._take(label, now)
        if held is None:
            self.counts.endpoint_misses += 1
        else:
            self.counts.endpoint_hits += 1
        return held

    def drop(self, handle: int) -> Held | None:
        """Forget a connection whose peer closed or spoke; None if it is not held."""
        if handle not in self._by_age:
            return None
        self.counts.dropped += 1
        return self._remove(handle)

    def clear(self) -> list[Held]:
        """Forget all connections and return them, oldest first; bindings are of no use then."""
        held = [self._remove(handle) for handle in list(self._by_age)]
        self._bindings = _Bindings()
        return held

    # --- destinations ---------------------------------------------------------------------------

    def save_destination(self, ttl: int, label: str, text: str, endpoint: str, now: float) -> float:
        """Bind a destination, with its property, to an endpoint, or restart that timer.

        Returns when the binding expires.
        """
        bindings = self._bindings
        expires = bindings.save(label, (endpoint, text), min(ttl, self._limits.ttl), now)
        if len(bindings.by_age) > self._limits.bindings:
            bindings.remove(next(iter(bindings.by_age)))
            self.counts.bindings_evicted += 1
        self.counts.max_destinations = max(self.counts.max_destinations, len(bindings.by_label))
        return expires

    def find_destination(self, label: str, now: float) -> tuple[Held, str] | None:
        """Take a connection out that serves the destination, with its binding's property.

        The binding stays. None: there is no connection.
        """
        for (endpoint, text), timer in self._bindings.by_label.get(label, {}).items():
            if timer.expires <= now:
                continue  # expire() has not come to it yet
            if (held := self._take(endpoint, now)) is not None:
                self.counts.destination_hits += 1
                return held, text
        self.counts.destination_misses += 1
        return None

    # --- time -----------------------------------------------------------------------------------

    @property
    def next_expiry(self) -> float:
        """When expire() has something to do; infinite: nothing is held."""
        return min(self._deadlines.next, self._bindings.deadlines.next)

    def expire(self, now: float) -> list[Held]:
        """Forget what has outlived its time; returns the connections, to be ended politely."""
        for key in self._bindings.deadlines.due(now):
            self._bindings.remove(key)
        expired = [self._remove(handle) for handle in self._deadlines.due(now)]
        self.counts.expired += len(expired)
        return expired

    # --- for people -----------------------------------------------------------------------------

    def endpoints(self) -> Iterator[tuple[str, int, float]]:
        """Each endpoint: label, number of connections, when the first one expires."""
        for label, queue in self._endpoints.items():
            yield label, len(queue), min(held.expires for held in queue.values())

    def destinations(self) -> Iterator[tuple[str, str, float]]:
        """Each binding: label of the destination, label of the endpoint, when it expires."""
        for label, bindings in self._bindings.by_label.items():
            for (endpoint, _), timer in bindings.items():
                yield label, endpoint, timer.expires

    # --- parts ----------------------------------------------------------------------------------

    def _take(self, label: str, now: float) -> Held | None:
        for held in self._endpoints.get(label, {}).values():
            if held.expires > now:  # else expire() has not come to it yet
                return self._remove(held.handle)
        return None

    def _remove(self, handle: int) -> Held:
        held = self._by_age.pop(handle)
        queue = self._endpoints[held.label]
        del queue[handle]
        if not queue:
            del self._endpoints[held.label]
        self._deadlines.remove(handle, held.ttl)
        return held
