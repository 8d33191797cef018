"""How one server must be talked to for one request: the TLS policy, and as whom we log in.

`SecurityRules` evaluates it for a request and an endpoint, with the tables that the configuration
names; `Security` is what comes out, and what sessions are compared by: a session serves only who
would have got an equal one. DANE, MTA-STS and TLSRPT will join where the policy is evaluated; what
they decide on becomes part of the policy, and so of the key.
"""

import socket
from dataclasses import dataclass, replace
from typing import Final

from protocol.request import DeliveryRequest
from protocol.sasl.secret import Secret
from worker.config.tables import TableError
from worker.errors import SiteError
from worker.network.address import Endpoint
from worker.network.network import destination_of
from worker.sasl.client import SaslClient
from worker.sasl.credentials import Credentials
from worker.status.events import Emit, Warned
from worker.tls.contexts import TlsFilesError
from worker.tls.handshake import TlsEngine
from worker.tls.policies import TlsPolicies, TlsPolicyError
from worker.tls.policy import PLAINTEXT, Level, TlsPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What holds for one server and one request."""

    policy: TlsPolicy = PLAINTEXT
    credentials: Credentials | None = None  # None: no log-in
    clear: bool = False  # in the clear this time, because the server's TLS is broken

    @property
    def key(self) -> str:
        """Equal for sessions that may take each other's mail, in every process. No secret in it."""
        login = self.credentials.identity if self.credentials is not None else "-"
        return f"{self.policy.fingerprint} {login}{' clear' if self.clear else ''}"

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What must not be seen in anything that the server says."""
        return (self.credentials.secret,) if self.credentials is not None else ()

    def in_the_clear(self) -> "Security":
        """The same without TLS. Such a session serves nobody else: they may fare better."""
        assert self.policy.level is Level.MAY
        return replace(self, clear=True)


UNSECURED: Final = Security()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityRules:
    """One protocol's rules, and the means to follow them. Without any: all goes in the clear."""

    policies: TlsPolicies | None = None
    engine: TlsEngine | None = None  # there is one if there are policies
    sasl: SaslClient | None = None  # None: no log-in anywhere (smtp_sasl_auth_enable = no)
    emit: Emit = lambda event: None
    fallback: tuple[str, ...] = ()  # smtp_fallback_relay: destinations behind those of a nexthop

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd in the configuration; a line each."""
        policies = self.policies.warnings if self.policies is not None else ()
        return (*policies, *(self.sasl.warnings if self.sasl is not None else ()))

    def close(self) -> None:
        """Give back what is held open: TLS sessions, refused logins. All goes on without it."""
        if self.engine is not None:
            self.engine.close()
        if self.sasl is not None:
            self.sasl.close()

    async def security(self, request: DeliveryRequest, endpoint: Endpoint) -> Security:
        """What holds for `request` at `endpoint`. Raises SiteError: it cannot be said, so wait.

        A broken policy or table must never weaken what was meant (S100).
        """
        if self.policies is None and self.sasl is None:
            return UNSECURED
        policy, credentials = PLAINTEXT, None
        nexthop = destination_of(request.nexthop, endpoint, self.fallback)
        local = endpoint.family == socket.AF_UNIX
        try:
            if self.policies is not None:
                policy = await self.policies.policy(nexthop, endpoint.host, unix=local)
                if self.engine is not None:
                    self.engine.check(policy)  # files that a table names are not read before
            if self.sasl is not None:
                credentials = await self.sasl.credentials(
                    sender=request.sender, host=endpoint.host, nexthop=nexthop
                )
        except (TlsPolicyError, TlsFilesError) as exc:
            # What is wrong is for who can mend it, not for the sender.
            self.emit(Warned(f"TLS policy: {exc}", request.queue_id))
            raise SiteError(TlsPolicyError.dsn, TlsPolicyError.reason) from exc
        except TableError as exc:
            where = endpoint.name_and_address
            reason = f"local data error while talking to {where}: {exc}"
            raise SiteError("4.3.0", reason) from exc
        return Security(policy=policy, credentials=credentials)


NO_RULES: Final = SecurityRules()
