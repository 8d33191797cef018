"""Fixtures shared by all tests."""

import pytest
from trio.testing import MockClock


@pytest.fixture
def autojump_clock() -> MockClock:
    """A virtual clock that jumps to the next deadline as soon as every task is blocked."""
    return MockClock(autojump_threshold=0)
