"""Where a session can be opened: physical endpoints, and how they are written in logs."""

import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of one host (or a UNIX socket). Equal preference: same class of exchangers."""

    host: str  # the MX host or the name we were given; $myhostname for a UNIX socket
    address: str  # numeric, without brackets; the path of a UNIX socket
    port: int  # 0 for a UNIX socket
    family: socket.AddressFamily
    preference: int = 0  # MX preference: lower is better

    @property
    def name_and_address(self) -> str:
        """`host[address]`, as in "host H[A] said"."""
        return f"{self.host}[{self.address}]"

    @property
    def relay(self) -> str:
        """`host[address]:port` as in `relay=`; no port for a UNIX socket."""
        return f"{self.name_and_address}:{self.port}" if self.port else self.name_and_address
