"""The starter of jailed workers, as a real process, where things go wrong for it."""

import errno
import os
import signal
import socket
import sys
import threading

import pytest
from trio.testing import trio_test

from worker.pool.starter import Starter


def refuse(_thread: threading.Thread) -> None:
    """What the system says when a limit of processes is reached."""
    raise RuntimeError("can't start new thread")


def test_a_starter_that_is_stopped_holds_up_nobody_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pool.starter.END_LIMIT", 0.01)
    starter = Starter(["true"])
    try:
        os.kill(starter.pid, signal.SIGSTOP)
        os.waitpid(starter.pid, os.WUNTRACED)
        starter.close()
        os.kill(starter.pid, signal.SIGCONT)
        assert os.waitpid(starter.pid, 0)[1] == 0  # by itself
    except BaseException:
        os.kill(starter.pid, signal.SIGKILL)
        raise


@trio_test
async def test_a_starter_without_a_thread_for_a_worker_says_so_and_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        starter = Starter([sys.executable, "-c", "input()"])
    listener, lifeline = socket.socketpair()
    try:
        with listener, lifeline:
            for _ in range(2):
                with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
                    await starter([], listener.fileno(), lifeline.fileno())
    finally:
        starter.close()
