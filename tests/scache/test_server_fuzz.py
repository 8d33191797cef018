"""Whatever clients say, and whatever they pass: the daemon lives, serves and leaks nothing."""

import os
import socket
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from protocol.cache_wire import (
    DUMMY_WIRE,
    FindDestination,
    FindEndpoint,
    SaveDestination,
    SaveEndpoint,
    Status,
)
from tests.scache.world import Talker, World, play, settle

LABELS = st.sampled_from(["a", "b"])
SENSIBLE = st.one_of(
    st.builds(SaveEndpoint, st.integers(1, 3), LABELS, LABELS).map(lambda one: one.encode()),
    st.builds(FindEndpoint, LABELS).map(lambda one: one.encode()),
    st.builds(SaveDestination, st.integers(1, 3), LABELS, LABELS, LABELS).map(
        lambda one: one.encode()
    ),
    st.builds(FindDestination, LABELS).map(lambda one: one.encode()),
    st.sampled_from([DUMMY_WIRE, b"\0"]),
)
OCTETS = SENSIBLE | st.binary(min_size=1, max_size=40)
# One thing that one of three clients does: octets, with so many descriptors; or it leaves; or time.
ACTS = st.lists(
    st.tuples(st.integers(0, 2), OCTETS, st.integers(0, 3))
    | st.tuples(st.integers(0, 2), st.just(b""), st.just(0))
    | st.tuples(st.just(-1), st.just(b""), st.integers(1, 3)),
    max_size=25,
)
Act = tuple[int, bytes, int]


def drain(sock: trio.socket.SocketType) -> bool:
    """Throw away what the server has said, descriptors included; False: it has hung up."""
    try:
        while True:
            plain = socket.socket(fileno=os.dup(sock.fileno()))
            with plain:
                data, fds, _, _ = socket.recv_fds(plain, 65_536, 4, socket.MSG_DONTWAIT)
            for fd in fds:
                os.close(fd)
            if not data:
                return False
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


async def scenario(world: World, acts: list[Act]) -> None:
    connection, _ = world.pair()
    clients: dict[int, Talker] = {}
    for number, octets, count in acts:
        if number < 0:
            await trio.sleep(count)
            continue
        if number not in clients:
            clients[number] = Talker(await world.connect())
        client = clients[number]
        if octets:
            with suppress(BrokenPipeError):
                await client.pass_descriptors(*[connection.fileno()] * count, octets=octets)
        await settle()
        if not octets or not drain(client.sock):
            clients.pop(number).sock.close()
    other = await world.client()
    assert await other.save("mine", connection) == "0"
    reply, found = await other.find(FindEndpoint("mine"))
    assert reply.status is Status.OK
    assert found is not None
    found.close()


@settings(max_examples=150, deadline=None)
@given(ACTS)
def test_any_octets_and_descriptors_leave_the_daemon_serving(acts: list[Act]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(
            partial(play, lambda world: scenario(world, acts), Path(directory)),
            clock=MockClock(autojump_threshold=0),
        )
