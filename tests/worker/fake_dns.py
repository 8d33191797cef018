"""A scripted resolver: what each name answers, how long it takes, and what was asked.

For every test that needs names without a network. A fake with behaviour: it answers like a
`Resolver`, it expects nothing.
"""

import ipaddress
import socket
from collections.abc import Collection, Mapping, Sequence

import trio

from worker.network.resolver import (
    HostAddress,
    LookupFailure,
    LookupTrouble,
    MxAnswer,
    MxRecord,
    NameNotFound,
)

NULL_MX = MxAnswer(null_mx=True)
UNUSABLE_MX = MxAnswer(unusable=True)


def servfail(name: str, kind: str = "MX") -> LookupTrouble:
    """What asking for `name` comes to when its servers fail."""
    return LookupTrouble(_text(name, kind, "Host not found, try again"))


class FakeResolver:
    """A `Resolver` whose world is two tables; a name in neither of them does not exist.

    `mx`: a domain's exchangers as (preference, host), or a whole answer, or a failure. `hosts`:
    a host's numeric addresses, or a failure. `delays`: seconds before anything about a name is
    answered. The tables may be changed at any time.
    """

    def __init__(
        self,
        *,
        mx: Mapping[str, Sequence[tuple[int, str]] | MxAnswer | LookupFailure] | None = None,
        hosts: Mapping[str, Sequence[str] | LookupFailure] | None = None,
        delays: Mapping[str, float] | None = None,
    ) -> None:
        self.exchangers = dict(mx or {})
        self.hosts = dict(hosts or {})
        self.delays = dict(delays or {})
        self.questions: list[tuple[str, str]] = []  # ("MX" | "A" | "AAAA", name), as asked

    async def mx(self, domain: str) -> MxAnswer:
        """Return the scripted exchangers; see `Resolver.mx`."""
        self.questions.append(("MX", domain))
        await trio.sleep(self.delays.get(domain, 0))
        scripted = self.exchangers.get(domain)
        if isinstance(scripted, LookupFailure):
            raise type(scripted)(scripted.reason, scripted.dsn)
        if isinstance(scripted, MxAnswer):
            return scripted
        if scripted is None:
            if domain not in self.hosts:
                raise NameNotFound(_text(domain, "MX", "Host not found"))
            return MxAnswer()
        return MxAnswer(tuple(sorted((MxRecord(*pair) for pair in scripted), key=lambda r: r[0])))

    async def addresses(
        self, host: str, families: Collection[socket.AddressFamily]
    ) -> tuple[HostAddress, ...]:
        """Return the scripted addresses; see `Resolver.addresses`."""
        kinds = ["A" if family == socket.AF_INET else "AAAA" for family in families]
        self.questions += [(kind, host) for kind in kinds]
        await trio.sleep(self.delays.get(host, 0))
        scripted = self.hosts.get(host)
        if isinstance(scripted, LookupFailure):
            raise type(scripted)(scripted.reason, scripted.dsn)
        if scripted is None and host not in self.exchangers:
            raise NameNotFound(_text(host, kinds[-1], "Host not found"))
        known = [_host_address(text) for text in scripted or ()]
        found = [address for family in families for address in known if address.family == family]
        if not found:
            no_data = "Host found but no data record of requested type"
            raise NameNotFound(_text(host, kinds[-1], no_data))
        return tuple(found)


def _host_address(text: str) -> HostAddress:
    version = ipaddress.ip_address(text).version
    return HostAddress(socket.AF_INET if version == 4 else socket.AF_INET6, text)


def _text(name: str, kind: str, why: str) -> str:
    return f"Host or domain name not found. Name service error for name={name} type={kind}: {why}"
