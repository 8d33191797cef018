"""Delays in the log: two significant digits (S152)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.status.delays import format_delay


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0"),
        (0.004, "0"),
        (0.005, "0.01"),
        (0.0123, "0.01"),
        (0.095, "0.1"),
        (0.126, "0.13"),
        (0.996, "1"),
        (1.04, "1"),
        (1.26, "1.3"),
        (9.87, "9.9"),
        (9.96, "10"),
        (12.3, "12"),
        (12.6, "13"),
        (99.99, "100"),
        (123.0, "123"),
        (123.4, "123"),
        (432000.0, "432000"),
        (-3.0, "0"),
    ],
)
def test_s152_a_delay_has_two_significant_digits(seconds: float, text: str) -> None:
    assert format_delay(seconds) == text


@pytest.mark.parametrize(
    ("resolution", "texts"),
    [
        (0, ["0", "1", "1", "12"]),
        (1, ["0", "0.5", "1.2", "12"]),
        (3, ["0.001", "0.51", "1.2", "12"]),
        (6, ["0.0012", "0.51", "1.2", "12"]),
    ],
)
def test_s152_the_resolution_limits_the_digits(resolution: int, texts: list[str]) -> None:
    assert [format_delay(value, resolution) for value in (0.00123, 0.512, 1.234, 12.3)] == texts


@given(st.floats(0, 1e7), st.integers(0, 6))
def test_what_is_written_is_near_the_truth_and_never_negative(value: float, limit: int) -> None:
    text = format_delay(value, limit)
    step = max(10.0**-limit, 10.0 ** -(2 if value < 1 else 1 if value < 10 else 0))
    assert abs(float(text) - value) <= max(step / 2, value * 0.051) + 1e-6
    assert not text.startswith("-")
    assert "e" not in text
