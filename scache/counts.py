"""What the daemon counts, and Postfix's words for it in the log."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """One interval of statistics; a new object begins the next one.

    Postfix calls a lookup by destination "domain", one by endpoint "address".
    """

    destination_hits: int = 0
    destination_misses: int = 0
    endpoint_hits: int = 0
    endpoint_misses: int = 0
    max_destinations: int = 0  # labels with a binding, at the same time
    max_endpoints: int = 0  # labels with a connection, at the same time
    max_connections: int = 0
    saved: int = 0  # connections taken in
    expired: int = 0  # connections whose time to live was up
    evicted: int = 0  # connections that had to make room
    dropped: int = 0  # connections whose peer closed or spoke
    bindings_evicted: int = 0  # destinations that had to make room

    def lines(self, begin: str) -> Iterator[str]:
        """scache(8)'s lines, without those that are all zero; `begin` is like `Nov  3 08:52:53`.

        The last one is ours: ends of connections that Postfix does not know.
        """
        found = [
            *_lookups("domain", self.destination_hits, self.destination_misses),
            *_lookups("address", self.endpoint_hits, self.endpoint_misses),
        ]
        if self.max_destinations or self.max_endpoints or self.max_connections:
            found.append(
                f"max simultaneous domains={self.max_destinations}"
                f" addresses={self.max_endpoints} connection={self.max_connections}"
            )
        if self.dropped or self.evicted or self.bindings_evicted:
            found.append(
                f"connections closed by peer={self.dropped} evicted={self.evicted},"
                f" domains evicted={self.bindings_evicted}"
            )
        if found:
            yield f"statistics: start interval {begin}"
            for line in found:
                yield f"statistics: {line}"


def _lookups(kind: str, hits: int, misses: int) -> Iterator[str]:
    if total := hits + misses:
        yield f"{kind} lookup hits={hits} miss={misses} success={hits * 100 // total}%"
