"""SCRAM (RFC 5802, RFC 7677): the password is never sent, and the server proves that it knows it.

The exchange itself is scramp's; here it is bounded, bound to TLS, and kept quiet.
"""

import re
from typing import ClassVar, Final

from scramp import ScramClient, ScramException

from protocol.sasl.mechanism import Login, Mechanism, SaslError

# RFC 5802 asks for 4096 at least (scramp refuses fewer), today's advice is some 600,000. More would
# be a server's way of keeping our processors busy: each costs half a microsecond.
MAX_ITERATIONS: Final = 1_000_000
SLOW_ITERATIONS: Final = 10_000  # several milliseconds

_ITERATIONS: Final = re.compile(rb"(?:^|,)i=([0-9]*)")


class Scram(Mechanism):
    """One exchange: client-first, server-first, client-final, server-final."""

    def __init__(self, login: Login, nonce: str | None = None) -> None:
        """`nonce`: for known examples only."""
        super().__init__(login)
        self._nonce = nonce
        self._client: ScramClient | None = None
        self._answered = 0
        self._verified = False

    @property
    def complete(self) -> bool:
        """The server has shown that it knows the password."""
        return self._verified

    def is_slow(self, challenge: bytes | None) -> bool:
        """See Mechanism: by the number of iterations that the server asks for."""
        return challenge is not None and SLOW_ITERATIONS < _iterations(challenge) <= MAX_ITERATIONS

    def _begin(self) -> bytes | None:
        login = self._login
        name = self.name.removesuffix("-PLUS")
        try:
            client = ScramClient([name], login.user, login.secret.reveal(), c_nonce=self._nonce)
        except ScramException:
            raise SaslError("user name or password is not fit for SCRAM (RFC 4013)") from None
        client.gs2_header = _Gs2Header(login, bound=name != self.name)
        self._client = client
        first: str = client.get_client_first()
        return first.encode()

    def _respond(self, challenge: bytes) -> bytes:
        client = self._client
        self._answered += 1
        if client is None or self._answered > 2:
            raise SaslError(f"server asks for more than {self.name} has to say")
        first = self._answered == 1
        if first and (count := _iterations(challenge)) > MAX_ITERATIONS:
            wanted = f"{count} iterations" if count < 10**12 else "a senseless number of iterations"
            raise SaslError(f"server asks for {wanted} of {self.name}, more than {MAX_ITERATIONS}")
        try:
            text = challenge.decode()
            if first:
                client.set_server_first(text)
                final: str = client.get_client_final()
                return final.encode()
            client.set_server_final(text)
        except (ScramException, UnicodeDecodeError):
            what = (
                "first message is wrong" if first else "proof that it knows the password is wrong"
            )
            raise SaslError(f"{self.name}: the server's {what}") from None
        self._verified = True
        return b""


class _Gs2Header:
    """The part of client-first in front of the user (RFC 5802 section 7).

    In place of scramp's own, which knows no authorization identity, and of the channel bindings
    not the one of TLS 1.3.
    """

    def __init__(self, login: Login, *, bound: bool) -> None:
        flag, self._data = "n", b""
        if bound and login.binding is not None:
            flag, self._data = f"p={login.binding.kind}", login.binding.data
        elif bound:
            raise SaslError("SCRAM with channel binding needs a TLS connection to bind to")
        elif login.binding is not None and not login.server_binds:
            # We could, and the server does not offer it: if it does after all, somebody has taken
            # that out of its offer, and it will notice.
            flag = "y"
        authzid = login.authzid.replace("=", "=3D").replace(",", "=2C")
        self._text = f"{flag},a={authzid}," if authzid else f"{flag},,"

    def __str__(self) -> str:
        return self._text

    def make_cbind_input(self, _binding: object) -> bytes:
        """What client-final repeats, signed."""
        return self._text.encode() + self._data


def _iterations(server_first: bytes) -> int:
    match = _ITERATIONS.search(server_first)
    if match is None:
        return 0
    return int(match[1] or b"0") if len(match[1]) <= 12 else 10**12


class ScramSha1(Scram):
    """SCRAM-SHA-1 (RFC 5802)."""

    name: ClassVar[str] = "SCRAM-SHA-1"


class ScramSha1Plus(Scram):
    """SCRAM-SHA-1, bound to the TLS connection."""

    name: ClassVar[str] = "SCRAM-SHA-1-PLUS"


class ScramSha256(Scram):
    """SCRAM-SHA-256 (RFC 7677)."""

    name: ClassVar[str] = "SCRAM-SHA-256"


class ScramSha256Plus(Scram):
    """SCRAM-SHA-256, bound to the TLS connection."""

    name: ClassVar[str] = "SCRAM-SHA-256-PLUS"
