"""How sure a median is: the interval of the sign test, and what is called noise."""

from itertools import product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.spread import Spread, spread_of


@pytest.mark.parametrize(
    ("turns", "left_out"),
    [(1, 0), (2, 0), (4, 0), (5, 0), (7, 0), (8, 1), (10, 1), (11, 2), (20, 5), (1000, 473)],
)
def test_so_many_values_are_left_out_at_either_end(turns: int, left_out: int) -> None:
    spread = spread_of([float(value) for value in range(turns)])
    assert (spread.low, spread.high) == (left_out, turns - 1 - left_out)
    assert spread.turns == turns


@pytest.mark.parametrize("turns", [5, 8, 11, 12])
def test_the_interval_holds_the_true_median_in_nine_runs_of_ten_and_no_narrower_one_does(
    turns: int,
) -> None:
    # Which side of the true median each turn falls on, in every possible run.
    spread = spread_of([float(value) for value in range(turns)])
    held = sum(
        int(spread.low) < sum(below) <= int(spread.high) for below in product((0, 1), repeat=turns)
    )
    assert held / 2**turns >= 0.9
    cut = int(spread.low) + 1
    narrower = 1 - 2 * sum(comb(turns, k) for k in range(cut + 1)) / 2**turns
    assert narrower < 0.9


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_the_median_lies_within_its_interval(values: list[float]) -> None:
    spread = spread_of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)


@pytest.mark.parametrize(
    ("spread", "doubt"),
    [
        (Spread(1.2, 1.1, 1.3, 5), ""),
        (Spread(1.2, 0.9, 1.3, 5), "noise"),
        (Spread(1.2, 1.0, 1.3, 5), "noise"),
        (Spread(0.8, 0.7, 0.9, 5), ""),
        (Spread(1.2, 1.1, 1.3, 4), "too few turns"),
    ],
)
def test_what_covers_the_bound_is_noise_and_four_turns_say_nothing(
    spread: Spread, doubt: str
) -> None:
    assert spread.doubt(1.0) == doubt
