"""Our own addresses: which endpoints are ourselves, and from which address we connect.

Answers for inet_interfaces and proxy_interfaces (requirements S019, S031, S032). Own addresses are
found once, at start and at reload: an interface that comes up later is not known until then, as in
Postfix.
"""

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_SIOCGIFCONF = 0x8912  # linux/sockios.h
_NAME = 16  # octets of the name in struct ifreq; the address union follows
_IFREQ = _NAME + (24 if struct.calcsize("P") == 8 else 16)
_MAX_INTERFACES = 4096
_IF_INET6 = Path("/proc/net/if_inet6")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str], Collection[str]]  # name -> numeric addresses; raises OSError


class OwnAddressError(ValueError):
    """A name in inet_interfaces or proxy_interfaces has no address: a configuration error."""


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """The addresses at which a connection would reach ourselves (or a proxy in front of us)."""

    addresses: frozenset[IPAddress] = frozenset()

    def __contains__(self, address: str) -> bool:
        """Whether `address` (numeric) is ours, in any spelling.

        The unspecified address is: the kernel connects 0.0.0.0 and :: to this host, and a domain
        whose MX points there would otherwise be a loop that no list of interfaces shows.
        """
        try:
            own = canonical(address)
        except ValueError:
            return False
        return own in self.addresses or own.is_unspecified


def canonical(address: str) -> IPAddress:
    """Return the address that `address` stands for. Raises ValueError.

    Without its scope, and an IPv4 address that is wrapped into IPv6 as itself.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def interface_addresses(
    words: Sequence[str], local: Callable[[], Iterable[str]], look_up: LookUp
) -> list[IPAddress]:
    """Return the addresses of inet_interfaces or proxy_interfaces, each once.

    `words`: addresses (brackets optional), names, `all`, `loopback-only`. `local` tells the
    addresses of this host. Raises OwnAddressError for a name without address.
    """
    found: dict[IPAddress, None] = {}
    for word in words:
        found |= dict.fromkeys(_of_word(word, local, look_up))
    return list(found)


def source_addresses(
    words: Sequence[str], addresses: Iterable[IPAddress]
) -> dict[socket.AddressFamily, str]:
    """Return the source address of each family for which inet_interfaces names just one (S031).

    A loopback address is none: from there, nobody else can be reached. `all` and `loopback-only`
    describe the machine instead of choosing, so the kernel chooses.
    """
    if {word.lower() for word in words} & {"all", "loopback-only"}:
        return {}
    of_family: dict[socket.AddressFamily, list[IPAddress]] = {}
    for address in addresses:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        of_family.setdefault(family, []).append(address)
    return {
        family: str(only[0])
        for family, only in of_family.items()
        if len(only) == 1 and not only[0].is_loopback
    }


def local_addresses() -> list[str]:
    """Return the addresses of this host's interfaces, as Linux tells them.

    Two old interfaces instead of netlink: they answer in one call each, and also in a service
    that is confined to the address families it needs. No IPv6 in the kernel: no such addresses.
    """
    return [*_local_ipv4(), *_local_ipv6()]


def system_look_up(name: str) -> list[str]:
    """Return the addresses of a name from the system's resolver. Blocks: for start-up only."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _of_word(word: str, local: Callable[[], Iterable[str]], look_up: LookUp) -> Iterator[IPAddress]:
    if word.lower() == "all":
        yield from map(canonical, local())
        return
    if word.lower() == "loopback-only":
        yield from (address for address in map(canonical, local()) if address.is_loopback)
        return
    literal = word.removeprefix("[").removesuffix("]")
    if literal.lower().startswith("ipv6:"):
        literal = literal[len("ipv6:") :]
    try:
        addresses = [canonical(literal)]
    except ValueError:  # a name, then
        try:
            addresses = [canonical(address) for address in look_up(word)]
        except (OSError, UnicodeError) as exc:
            raise OwnAddressError(f"{word} has no address: {exc}") from exc
    yield from addresses


def _local_ipv4() -> Iterator[str]:
    """Ask for the list of `struct ifreq`, one per IPv4 address (netdevice(7))."""
    entries = array.array("B", bytes(_MAX_INTERFACES * _IFREQ))
    start, _ = entries.buffer_info()
    request = struct.pack("iP", len(entries), start)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, request)
    (length, _) = struct.unpack("iP", answer)
    for entry in range(0, length, _IFREQ):
        # struct sockaddr_in: family, port, address
        address = entries[entry + _NAME + 4 : entry + _NAME + 8]
        yield socket.inet_ntop(socket.AF_INET, address.tobytes())


def _local_ipv6() -> Iterator[str]:
    try:
        lines = _IF_INET6.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        yield str(ipaddress.IPv6Address(bytes.fromhex(line.split(maxsplit=1)[0])))
