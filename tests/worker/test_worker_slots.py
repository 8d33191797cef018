"""A worker's slots: what goes wrong in one is none of the others' business.

Real UNIX sockets; no request is ever made.
"""

import random
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from worker.config.config import Config
from worker.delivery.slot import DeliverySlot
from worker.environment import make_environment
from worker.pool.worker import Worker
from worker.status.events import Event, UnexpectedError


@trio_test
async def test_a_fault_while_a_slot_ends_costs_no_other_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def release(self: DeliverySlot) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(DeliverySlot, "release", release)
    told: list[Event] = []
    worker = Worker(
        lambda: make_environment(
            Config.from_mapping({}), told.append, lambda: 0.0, random.Random(1)
        ),
        told.append,
    )
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(tmp_path / "slots"))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve, listener, 5.0)
        for _ in range(2):  # the second one finds the worker alive
            async with await trio.open_unix_socket(tmp_path / "slots") as slot:
                await slot.send_eof()
                assert await slot.receive_some() == b""
        worker.stop()
    errors = [event for event in told if isinstance(event, UnexpectedError)]
    assert len(errors) == 2
    assert "a bug" in errors[0].traceback
