"""Fixtures shared by all tests."""

import os
import signal

import pytest
from hypothesis import settings
from trio.testing import MockClock

# Property tests try the same examples in each run; with --hypothesis-profile=search they look for
# new ones. A busy machine must not make one fail.
settings.register_profile("postrio", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("postrio")


def pytest_configure() -> None:
    """The same surroundings whoever started the tests."""
    # Under nohup, and in the background of a shell script, they would be ignored, here and in all
    # that is started here.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests start hundreds of processes: without compiled files each would compile all sources
    # again, which takes four times as long as its start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def autojump_clock() -> MockClock:
    """A virtual clock that jumps to the next deadline as soon as every task is blocked."""
    return MockClock(autojump_threshold=0)
