"""Port numbers of services: known_tcp_ports first, then the system's services file."""

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


class UnknownServiceError(ValueError):
    """Neither known_tcp_ports nor the services file has this name, or it is no port number."""


def system_service(name: str) -> int:
    """Return the TCP port of `name` in the system's services file. Raises OSError."""
    return socket.getservbyname(name, "tcp")


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """Turns what stands after a destination's colon into a port."""

    known: Mapping[str, int] = field(default_factory=dict)  # known_tcp_ports
    system: Callable[[str], int] = system_service

    def number(self, service: int | str) -> int:
        """Return a port in 1..65535. Raises UnknownServiceError; never falls back on a default."""
        port = service if isinstance(service, int) else self._look_up(service)
        if not 1 <= port <= 65_535:
            raise UnknownServiceError(f"port {port} is not in the range 1 to 65535")
        return port

    def of_system(self, service: str) -> int | None:
        """Return the services file's own entry, known_tcp_ports left aside; None: it has none."""
        try:
            return self.system(service)
        except (OSError, ValueError):
            return None

    def _look_up(self, service: str) -> int:
        if service.isascii() and service.isdigit() and len(service) <= 6:
            return int(service)
        port = self.known.get(service)
        if port is None:
            port = self.of_system(service)
        if port is None:
            raise UnknownServiceError(f"unknown service {service}")
        return port


def parse_known_ports(items: Iterable[str]) -> dict[str, int]:
    """Return the ports by name of known_tcp_ports, whose items look like `smtps=submissions=465`.

    Raises UnknownServiceError for an item that does not end in a port number.
    """
    ports: dict[str, int] = {}
    for item in items:
        *names, number = (part.strip() for part in item.split("="))
        if not names or not all(names) or not (number.isascii() and number.isdigit()):
            raise UnknownServiceError(f"{item!r} does not look like name=number")
        if not 1 <= int(number) <= 65_535:
            raise UnknownServiceError(f"{item!r}: the port is not in the range 1 to 65535")
        ports |= dict.fromkeys(names, int(number))
    return ports
