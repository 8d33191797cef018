"""The scenario scale: what it subtracts, what it demands, and which loads it refuses."""

import pytest

from bench.harness.scenario import LoadError
from bench.postrio_instance import PostrioInstance
from bench.scenarios import scale
from bench.scenarios.scale import QUICK, Load, scenario

LOAD = Load(queued=(1_000, 50_000, 200_000), fixed=200, enough=5_000)


def test_what_every_drain_costs_is_no_part_of_the_cost_of_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drained: list[int] = []

    def drain(_queues: object, count: int) -> scale._Drained:
        drained.append(count)
        return scale._Drained(
            messages=count - 10,
            took=2.0,
            cpu=0.5 + (count - 10) * 0.0004,
            memory={"queue": 80_000_000, "worker": 40_000_000, "cache": 30_000_000},
            start=0.25,
        )

    monkeypatch.setattr(scale, "_drain", drain)
    turns = scenario(LOAD).contenders
    for name, rounds in (("1,000 queued", 5), ("200,000 queued", 1)):
        drained.clear()
        figures = turns[name]()
        assert figures["cpu_ms"] == pytest.approx(0.4)
        assert len(drained) == 2 * rounds
        assert (figures["queue_peak_memory"], figures["worker_peak_memory"]) == (80.0, 40.0)
    assert figures["rate"] == pytest.approx(199_990 / 2.0)


def test_cost_and_memory_of_the_longest_queues_are_bounded() -> None:
    demands = {
        (target.figure, target.contender, target.against, target.at_most)
        for target in scenario(LOAD).targets
    }
    assert demands == {
        ("cpu_ms", "200,000 queued", "1,000 queued", 1.25),
        ("queue_peak_memory", "200,000 queued", "50,000 queued", 1.1),
        ("worker_peak_memory", "200,000 queued", "50,000 queued", 1.1),
    }
    # Queues that fit into the active set need the more memory the longer they are.
    assert [target.figure for target in scenario(QUICK).targets] == ["cpu_ms"]


@pytest.mark.parametrize("queued", [(), (200, 1_000)])
def test_a_queue_that_is_not_longer_than_what_is_subtracted_is_refused(
    queued: tuple[int, ...],
) -> None:
    with pytest.raises(LoadError, match="longer than `fixed`"):
        scenario(Load(queued=queued, fixed=200))


def test_messages_that_left_are_counted_once_however_often_one_looks() -> None:
    postrio = PostrioInstance()
    try:
        assert postrio.removed() == 0
        with postrio.log_file.open("wb") as log:
            log.write(b"qmgr[1]: A: removed\nqmgr[1]: B: from=<>\nqmgr[1]: B: remo")
            log.flush()
            assert postrio.removed() == 1
            log.write(b"ved\nqmgr[1]: C: removed\n")
            log.flush()
            assert postrio.removed() == postrio.removed() == 3
    finally:
        postrio.remove()
