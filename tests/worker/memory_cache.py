"""A connection cache in memory: `worker.cache.SessionCache` for tests that need no daemon.

It has a daemon's manners: its own copies of the sockets, first in first out, a time to live on
trio's clock, and a peer that has spoken or closed is not handed out.
"""

import os
import select
import socket
from dataclasses import dataclass, field

import trio

from worker.cache.client import Found, Saving


@dataclass(slots=True)
class Kept:
    """One connection."""

    label: str
    property: str
    sock: socket.socket
    expires: float


@dataclass(slots=True)
class MemoryCache:
    """Counts what is asked of it. `usable = False`: every call says no, as without a daemon."""

    ttl_limit: int = 2  # seconds
    usable: bool = True
    saves: int = 0
    hits: int = 0
    misses: int = 0
    kept: list[Kept] = field(default_factory=list)
    bindings: dict[tuple[str, str, str], float] = field(default_factory=dict)  # in order of making

    async def find_destination(self, label: str) -> Found | None:
        await trio.lowlevel.checkpoint()
        for (of, text, endpoint), expires in self.bindings.items():
            if not self.usable or of != label or expires <= trio.current_time():
                continue
            if (kept := self._take(endpoint)) is not None:
                self.hits += 1
                return Found(kept.sock, kept.property, text)
        self.misses += 1
        return None

    async def find_endpoint(self, label: str) -> Found | None:
        await trio.lowlevel.checkpoint()
        if self.usable and (kept := self._take(label)) is not None:
            self.hits += 1
            return Found(kept.sock, kept.property, "")
        self.misses += 1
        return None

    async def save_endpoint(
        self,
        ttl: int,
        label: str,
        property: str,  # noqa: A002  # the protocol's word
        fd: int,
    ) -> Saving:
        await trio.lowlevel.checkpoint()
        if not self.usable or ttl < 1:
            return Saving.REFUSED
        sock = socket.socket(fileno=os.dup(fd))
        try:
            sock.getpeername()
        except OSError:
            sock.close()
            return Saving.REFUSED
        self.kept.append(Kept(label, property, sock, self._expires(ttl)))
        self.saves += 1
        return Saving.KEPT

    async def save_destination(
        self,
        ttl: int,
        label: str,
        property: str,  # noqa: A002  # the protocol's word
        endpoint: str,
    ) -> bool:
        await trio.lowlevel.checkpoint()
        if not self.usable or ttl < 1:
            return False
        self.bindings[label, property, endpoint] = self._expires(ttl)
        return True

    def close(self) -> None:
        """Close what is kept."""
        while self.kept:
            self.kept.pop().sock.close()

    def _expires(self, ttl: int) -> float:
        return trio.current_time() + min(ttl, self.ttl_limit)

    def _take(self, label: str) -> Kept | None:
        for kept in [one for one in self.kept if one.label == label]:
            self.kept.remove(kept)
            spoken = select.select([kept.sock], [], [], 0)[0]
            if kept.expires > trio.current_time() and not spoken:
                kept.sock.setblocking(False)  # noqa: FBT003  # it has no name
                return kept
            kept.sock.close()
        return None
