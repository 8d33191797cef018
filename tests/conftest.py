"""Fixtures shared by all tests."""

import signal

import pytest
from trio.testing import MockClock


def pytest_configure() -> None:
    """Signals mean the same whoever started the tests: under nohup SIGHUP would be ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def autojump_clock() -> MockClock:
    """A virtual clock that jumps to the next deadline as soon as every task is blocked."""
    return MockClock(autojump_threshold=0)
