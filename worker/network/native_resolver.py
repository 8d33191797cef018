"""The system's own lookup (getaddrinfo: hosts file, NSS) as a `Resolver`.

For smtp_host_lookup = native and for disabled DNS. It blocks, so it runs in threads, and their
number is bounded: a name service that hangs costs that many threads and no more.
"""

import socket
from collections.abc import Callable, Collection, Sequence

import trio

from worker.network.resolver import (
    MAX_RECORDS,
    HostAddress,
    LookupTrouble,
    MxAnswer,
    NameNotFound,
)

GetAddrInfo = Callable[[str], Sequence[HostAddress]]  # raises OSError; may block

# What asking again can change. A name that does not exist is EAI_NONAME or EAI_NODATA.
_LASTING = {socket.EAI_NONAME, socket.EAI_NODATA}


def system_addresses(host: str) -> Sequence[HostAddress]:
    """Return the addresses of `host` in both families. Blocks; raises socket.gaierror."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [
        HostAddress(family, str(sockaddr[0]))
        for family, _, _, _, sockaddr in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


class NativeResolver:
    """A `Resolver` that asks the system and remembers nothing (the system has its own caches)."""

    def __init__(
        self,
        timeout: float = 30.0,
        *,
        max_threads: int = 20,
        get_addresses: GetAddrInfo = system_addresses,
    ) -> None:
        """`timeout`: seconds for one name. `max_threads`: lookups that may block at once."""
        self._timeout = timeout
        self._threads = trio.CapacityLimiter(max_threads)
        self._get_addresses = get_addresses

    async def mx(self, domain: str) -> MxAnswer:
        """Return "no MX": the domain itself is the only exchanger (S029)."""
        return MxAnswer()

    async def addresses(
        self, host: str, families: Collection[socket.AddressFamily]
    ) -> tuple[HostAddress, ...]:
        """Return the addresses of `host`; see `Resolver.addresses`."""
        with trio.move_on_after(self._timeout):
            try:
                found = await trio.to_thread.run_sync(
                    self._get_addresses,
                    host,
                    # A thread that hangs keeps its place in the limiter until it returns.
                    abandon_on_cancel=True,
                    limiter=self._threads,
                )
            except (OSError, UnicodeError) as exc:
                raise _failure(host, exc) from exc
            # In the order of the families, and each address once: the system lists an address
            # for every line of the hosts file.
            wanted = dict.fromkeys(a for family in families for a in found if a.family == family)
            if not wanted:
                raise NameNotFound(f"unable to look up host {host}: no address of a wanted family")
            return tuple(wanted)[:MAX_RECORDS]
        raise LookupTrouble(f"unable to look up host {host}: timed out", "4.4.4")


def _failure(host: str, error: OSError | UnicodeError) -> NameNotFound | LookupTrouble:
    """Tell "no such name" from trouble; a name that cannot even be encoded does not exist."""
    if isinstance(error, UnicodeError):
        return NameNotFound(f"unable to look up host {host}: invalid host or domain name")
    text = f"unable to look up host {host}: {error.strerror or error}"
    if isinstance(error, socket.gaierror) and error.errno in _LASTING:
        return NameNotFound(text)
    return LookupTrouble(text, "4.4.4")
