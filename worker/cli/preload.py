"""Loading beforehand what a jailed worker would look for when it is needed.

In a jail there is no Python library, no time zone, no name service. Whatever of these is found late
is found here early; everything else is imported with the modules that use it.
"""

import codecs
import importlib
import os
import pkgutil
import socket
import time
from contextlib import suppress
from typing import Final

import dns.asyncbackend
import dns.rdtypes.ANY
import dns.rdtypes.IN

# Imported by the standard library, by idna and by dnspython at their first use.
_LATE: Final = ("idna.uts46data", "dns._trio_backend")
_CODECS: Final = ("ascii", "idna", "latin-1", "punycode", "utf-8", "utf-16")


def preload() -> None:
    """Load modules, the time zone and the C library's resolver."""
    for name in _LATE:
        importlib.import_module(name)
    for name in _CODECS:
        codecs.lookup(name)
    # A record type whose module is not found would be taken for an unknown one.
    for package in (dns.rdtypes.ANY, dns.rdtypes.IN):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    dns.asyncbackend.get_backend("trio")
    # With TZ set, the C library does not look at the file again.
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()
    with suppress(OSError):
        socket.getaddrinfo("localhost", 25)
    with suppress(OSError):
        socket.getservbyname("smtp", "tcp")
