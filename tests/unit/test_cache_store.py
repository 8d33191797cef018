"""The cache's store against a plain model, and its decisions one by one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scache.counts import Counts
from scache.deadlines import NEVER
from scache.store import Held, Store, StoreLimits

LIMITS = StoreLimits(ttl=5, connections=4, endpoint_connections=2)
LABELS = st.sampled_from(["a", "b", "c"])
DESTINATIONS = st.sampled_from(["x", "y"])
TTLS = st.integers(1, 7)


def handles(connections: Iterator[Held] | list[Held] | tuple[Held, ...]) -> list[int]:
    return [held.handle for held in connections]


def filled(limits: StoreLimits = LIMITS, *labels: str, ttl: int = 2) -> Store:
    """A store with one connection for each label, with handles from 1, saved at time 0."""
    store = Store(limits)
    for handle, label in enumerate(labels, 1):
        store.save_endpoint(handle, ttl, label, f"property {handle}", 0.0)
    return store


# --- examples ------------------------------------------------------------------------------------


def test_an_endpoints_connections_are_handed_out_oldest_first_and_once() -> None:
    store = filled(StoreLimits(), "a", "a", "b")
    found = [store.find_endpoint("a", 1.0) for _ in range(3)]
    assert [held and (held.handle, held.property) for held in found] == [
        (1, "property 1"),
        (2, "property 2"),
        None,
    ]
    assert len(store) == 1


def test_a_destination_gets_the_first_binding_whose_endpoint_has_a_connection() -> None:
    store = filled(StoreLimits(), "b", "c")
    for endpoint in "abc":
        store.save_destination(2, "x", f"for {endpoint}", endpoint, 0.0)
    found = [store.find_destination("x", 1.0) for _ in range(3)]
    assert [pair and (pair[0].handle, pair[1]) for pair in found] == [
        (1, "for b"),
        (2, "for c"),
        None,
    ]


def test_a_binding_survives_its_use() -> None:
    store = filled(StoreLimits(), "a", "a")
    store.save_destination(2, "x", "for a", "a", 0.0)
    assert store.find_destination("x", 1.0) is not None
    assert store.find_destination("x", 1.0) is not None


def test_saving_a_binding_again_restarts_its_timer_and_not_its_place() -> None:
    store = filled(StoreLimits(ttl=10), "a", "b", ttl=10)
    store.save_destination(2, "x", "", "a", 0.0)
    store.save_destination(9, "x", "", "b", 0.0)
    store.save_destination(2, "x", "", "a", 1.5)
    store.expire(2.5)
    found = store.find_destination("x", 2.5)
    assert found is not None
    assert found[0].label == "a"


def test_bindings_with_different_properties_are_different() -> None:
    store = filled(StoreLimits(), "a", "a")
    store.save_destination(1, "x", "first", "a", 0.0)
    store.save_destination(2, "x", "second", "a", 0.0)
    found = [store.find_destination("x", now) for now in (0.5, 1.0)]
    assert [pair and pair[1] for pair in found] == ["first", "second"]


def test_s141_a_time_to_live_is_clipped_to_the_limit() -> None:
    store = filled(StoreLimits(ttl=2), "a", ttl=60)
    assert store.expire(1.9) == []
    assert store.next_expiry == 2.0
    assert handles(store.expire(2.0)) == [1]
    assert store.next_expiry == NEVER


def test_what_has_expired_is_not_found_even_before_expire_is_called() -> None:
    store = filled(StoreLimits(), "a")
    store.save_destination(9, "x", "", "a", 0.0)
    assert store.find_endpoint("a", 2.0) is None
    assert store.find_destination("x", 2.0) is None
    assert handles(store.expire(2.0)) == [1]


def test_the_oldest_of_an_endpoint_makes_room_at_its_limit() -> None:
    store = filled(LIMITS, "b", "a", "a")
    _, evicted = store.save_endpoint(9, 2, "a", "", 0.0)
    assert handles(evicted) == [2]
    assert store.counts.evicted == 1


def test_the_oldest_of_all_makes_room_at_the_total_limit() -> None:
    store = filled(LIMITS, "b", "a", "a", "c")
    _, evicted = store.save_endpoint(9, 2, "b", "", 0.0)
    assert handles(evicted) == [1]
    assert len(store) == LIMITS.connections


def test_the_binding_that_was_saved_longest_ago_makes_room() -> None:
    store = filled(LIMITS, "a")
    for label in "vwxy":
        store.save_destination(2, label, "", "a", 0.0)
    store.save_destination(2, "v", "", "a", 0.0)
    store.save_destination(2, "z", "", "a", 0.0)
    assert {label for label, _, _ in store.destinations()} == {"v", "x", "y", "z"}
    assert store.counts.bindings_evicted == 1


def test_a_dropped_connection_is_gone_and_counted_once() -> None:
    store = filled(StoreLimits(), "a", "a")
    dropped = store.drop(1)
    assert dropped is not None
    assert dropped.handle == 1
    assert store.drop(1) is None
    assert store.counts.dropped == 1
    assert handles(store.clear()) == [2]


def test_clearing_forgets_bindings_too() -> None:
    store = filled(StoreLimits(), "a")
    store.save_destination(2, "x", "", "a", 0.0)
    assert handles(store.clear()) == [1]
    assert store.next_expiry == NEVER
    assert not list(store.destinations())


def test_s142_statistics_are_postfixs_lines_without_what_is_zero() -> None:
    assert list(Counts().lines("Nov 22 13:22:57")) == []
    counts = Counts(destination_hits=2, destination_misses=1, endpoint_misses=1)
    counts.max_destinations = counts.max_endpoints = counts.max_connections = 1
    assert list(counts.lines("Nov 22 13:22:57")) == [
        "statistics: start interval Nov 22 13:22:57",
        "statistics: domain lookup hits=2 miss=1 success=66%",
        "statistics: address lookup hits=0 miss=1 success=0%",
        "statistics: max simultaneous domains=1 addresses=1 connection=1",
    ]
    assert list(Counts(endpoint_hits=1).lines("t")) == [
        "statistics: start interval t",
        "statistics: address lookup hits=1 miss=0 success=100%",
    ]


# --- against a model -----------------------------------------------------------------------------


@dataclass(slots=True)
class Model:
    """The store as lists that are searched from the front."""

    connections: list[tuple[int, str, str, float]] = field(default_factory=list)
    bindings: list[tuple[str, str, str, float]] = field(default_factory=list)  # as made
    ages: list[tuple[str, str, str]] = field(default_factory=list)  # as last saved

    def take(self, label: str, now: float) -> int | None:
        for entry in self.connections:
            handle, of, _, expires = entry
            if of == label and expires > now:
                self.connections.remove(entry)
                return handle
        return None


class StoreMachine(RuleBasedStateMachine):
    """Any calls in any order: store and model say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(LIMITS)
        self.model = Model()
        self.now = 0.0
        self.handle = 0

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds: int) -> None:
        self.now += seconds / 4

    @rule(label=LABELS, ttl=TTLS)
    def save_endpoint(self, label: str, ttl: int) -> None:
        self.handle += 1
        model = self.model.connections
        same = [entry for entry in model if entry[1] == label]
        evicted = same[:1] if len(same) >= LIMITS.endpoint_connections else []
        for entry in evicted:
            model.remove(entry)
        if len(model) >= LIMITS.connections:
            evicted.append(model.pop(0))
        _, made_room = self.store.save_endpoint(
            self.handle, ttl, label, f"p{self.handle}", self.now
        )
        assert handles(made_room) == [entry[0] for entry in evicted]
        model.append((self.handle, label, f"p{self.handle}", self.now + min(ttl, LIMITS.ttl)))

    @rule(label=LABELS)
    def find_endpoint(self, label: str) -> None:
        held = self.store.find_endpoint(label, self.now)
        assert (held and held.handle) == self.model.take(label, self.now)

    @rule(label=DESTINATIONS, endpoint=LABELS, ttl=TTLS, text=st.sampled_from(["p", "q"]))
    def save_destination(self, label: str, endpoint: str, ttl: int, text: str) -> None:
        self.store.save_destination(ttl, label, text, endpoint, self.now)
        model, key = self.model, (label, endpoint, text)
        entry = (*key, self.now + min(ttl, LIMITS.ttl))
        places = [place for place, old in enumerate(model.bindings) if old[:3] == key]
        if places:
            model.bindings[places[0]] = entry
            model.ages.remove(key)
        else:
            model.bindings.append(entry)
        model.ages.append(key)
        if len(model.ages) > LIMITS.bindings:
            oldest = model.ages.pop(0)
            model.bindings = [old for old in model.bindings if old[:3] != oldest]

    @rule(label=DESTINATIONS)
    def find_destination(self, label: str) -> None:
        found = self.store.find_destination(label, self.now)
        for of, endpoint, text, expires in self.model.bindings:
            if of != label or expires <= self.now:
                continue
            handle = self.model.take(endpoint, self.now)
            if handle is not None:
                assert found is not None
                assert (found[0].handle, found[1]) == (handle, text)
                break
        else:
            assert found is None

    @rule()
    def expire(self) -> None:
        gone = [entry for entry in self.model.connections if entry[3] <= self.now]
        assert sorted(handles(self.store.expire(self.now))) == [entry[0] for entry in gone]
        for entry in gone:
            self.model.connections.remove(entry)
        for binding in [old for old in self.model.bindings if old[3] <= self.now]:
            self.model.bindings.remove(binding)
            self.model.ages.remove(binding[:3])

    @precondition(lambda self: self.model.connections)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.model.connections))
        dropped = self.store.drop(entry[0])
        assert dropped is not None
        assert dropped.property == entry[2]
        self.model.connections.remove(entry)

    @invariant()
    def the_same_is_held(self) -> None:
        model = self.model
        assert len(self.store) == len(model.connections) <= LIMITS.connections
        counted = {label: count for label, count, _ in self.store.endpoints()}
        assert sum(counted.values()) == len(model.connections)
        assert max(counted.values(), default=0) <= LIMITS.endpoint_connections
        assert set(counted) == {entry[1] for entry in model.connections}
        assert sorted(self.store.destinations()) == sorted(
            (label, endpoint, expires) for label, endpoint, _, expires in model.bindings
        )
        ends = [entry[3] for entry in model.connections] + [old[3] for old in model.bindings]
        assert self.store.next_expiry == min(ends, default=NEVER)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
