"""What every `SessionCache` does, whoever keeps the connections: steps that test modules run.

The caches differ in clocks: a step that lets time pass takes the function that does.
"""

import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from worker.cache.client import Found, Saving, SessionCache

Step = Callable[[SessionCache], Awaitable[None]]
Wait = Callable[[float], Awaitable[None]]


def pair() -> tuple[socket.socket, socket.socket]:
    """A connection to save and its peer."""
    return socket.socketpair()


async def save(cache: SessionCache, label: str, text: str, ttl: int = 2) -> socket.socket:
    """Save a new connection; returns its peer, which the caller closes."""
    connection, peer = pair()
    with connection, ExitStack() as stack:
        stack.enter_context(peer)
        kept = await cache.save_endpoint(ttl, label, text, connection.fileno())
        assert kept is Saving.KEPT
        stack.pop_all()
    return peer


def belongs_together(found: Found | None, peer: socket.socket) -> bool:
    """Whether a found connection leads to this peer; both are closed."""
    assert found is not None
    with found.sock, peer:
        assert not found.sock.getblocking()
        assert not found.sock.get_inheritable()
        found.sock.send(b"RSET\r\n")
        peer.settimeout(5)
        return peer.recv(100) == b"RSET\r\n"


async def keeps_connections_by_endpoint(cache: SessionCache) -> None:
    assert await cache.find_endpoint("e1\n") is None
    first = await save(cache, "e1\n", "first\n")
    second = await save(cache, "e1\n", "second\n")
    found = await cache.find_endpoint("e1\n")
    assert found is not None
    assert (found.endpoint, found.destination) == ("first\n", "")
    assert belongs_together(found, first)
    found = await cache.find_endpoint("e1\n")
    assert found is not None
    assert found.endpoint == "second\n"
    assert belongs_together(found, second)
    assert await cache.find_endpoint("e1\n") is None


async def finds_by_destination(cache: SessionCache) -> None:
    assert await cache.find_destination("d2\n") is None
    assert await cache.save_destination(2, "d2\n", "empty\n", "e2-none\n")
    assert await cache.save_destination(2, "d2\n", "dest\n", "e2\n")
    assert await cache.find_destination("d2\n") is None
    for text in ("one\n", "two\n"):
        peer = await save(cache, "e2\n", text)
        found = await cache.find_destination("d2\n")
        assert found is not None
        assert (found.endpoint, found.destination) == (text, "dest\n")
        assert belongs_together(found, peer)


async def takes_any_octets(cache: SessionCache) -> None:
    label, text = (
        "".join(map(chr, range(1, 128))),
        b"\xff\xfe\n{}\n".decode(errors="surrogateescape"),
    )
    peer = await save(cache, label, text)
    found = await cache.find_endpoint(label)
    assert found is not None
    assert found.endpoint == text
    assert belongs_together(found, peer)


async def forgets_in_time(cache: SessionCache, wait: Wait) -> None:
    with await save(cache, "e3\n", "", ttl=1):
        await wait(1.1)
        assert await cache.find_endpoint("e3\n") is None


async def refuses_a_time_to_live_that_is_none(cache: SessionCache) -> None:
    connection, peer = pair()
    with connection, peer:
        assert not await cache.save_endpoint(0, "e4\n", "", connection.fileno())
    assert not await cache.save_destination(0, "d4\n", "", "e4\n")
    assert await cache.find_endpoint("e4\n") is None


async def refuses_what_is_not_connected(cache: SessionCache) -> None:
    with socket.socket() as unconnected:
        assert not await cache.save_endpoint(2, "e5\n", "", unconnected.fileno())
    assert await cache.find_endpoint("e5\n") is None


async def drops_a_connection_whose_peer_spoke(cache: SessionCache) -> None:
    with await save(cache, "e6\n", "") as spoken, await save(cache, "e6\n", "fresh\n") as fresh:
        spoken.send(b"421 bye\r\n")
        found = await cache.find_endpoint("e6\n")
        assert found is not None
        assert found.endpoint == "fresh\n"
        assert belongs_together(found, fresh)


EVERYWHERE: list[Step] = [
    keeps_connections_by_endpoint,
    finds_by_destination,
    takes_any_octets,
    refuses_a_time_to_live_that_is_none,
]
# A real scache(8) takes any descriptor, and does not look at what it holds.
OURS: list[Step] = [refuses_what_is_not_connected, drops_a_connection_whose_peer_spoke]
