"""Tokens in place of passwords: OAUTHBEARER (RFC 7628) and its forerunner XOAUTH2.

A server that takes no liking to the token first says why in a challenge, and refuses only when that
is answered.
"""

import re
from typing import ClassVar, Final

from protocol.sasl.mechanism import Login, Mechanism, SaslError

TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*", re.ASCII)  # RFC 6750 section 2.1


class _Bearer(Mechanism):
    """One message, and a short answer to the challenge that comes with a refusal."""

    answer: ClassVar[bytes]

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self._refused = False

    @property
    def complete(self) -> bool:
        """After a complaint about the token, success would be a contradiction."""
        return not self._refused

    def _begin(self) -> bytes | None:
        if not TOKEN.fullmatch(self._login.secret.reveal()):
            raise SaslError("the token is empty or has characters that no token has")
        if "\1" in self._login.user:
            raise SaslError(f"{self.name} cannot carry control characters in the user name")
        return self._message().encode()

    def _message(self) -> str:
        raise NotImplementedError

    def _respond(self, challenge: bytes) -> bytes:
        if self._refused:
            raise SaslError(f"server asks for more than {self.name} has to say")
        self._refused = True
        return self.answer


class OAuthBearer(_Bearer):
    """OAUTHBEARER (RFC 7628 section 3.1)."""

    name: ClassVar[str] = "OAUTHBEARER"
    answer: ClassVar[bytes] = b"\1"

    def _message(self) -> str:
        login = self._login
        user = (login.authzid or login.user).replace("=", "=3D").replace(",", "=2C")
        pairs = [f"auth=Bearer {login.secret.reveal()}"]
        if login.port:
            pairs.insert(0, f"port={login.port}")
        if login.host:
            pairs.insert(0, f"host={login.host}")
        fields = "".join([f"{pair}\1" for pair in pairs])
        return f"n,a={user},\1{fields}\1"


class XOAuth2(_Bearer):
    """XOAUTH2, as Google and Microsoft document it."""

    name: ClassVar[str] = "XOAUTH2"
    answer: ClassVar[bytes] = b""

    def _message(self) -> str:
        return f"user={self._login.user}\1auth=Bearer {self._login.secret.reveal()}\1\1"
