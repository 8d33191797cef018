"""Mechanisms that prove nothing about the server: PLAIN, LOGIN, CRAM-MD5, EXTERNAL."""

import hmac
from typing import ClassVar

from protocol.sasl.mechanism import Login, Mechanism, SaslError


class _OneMessage(Mechanism):
    """All is said in the initial response."""

    def _respond(self, challenge: bytes) -> bytes:
        raise SaslError(f"server asks for more than {self.name} has to say")


class Plain(_OneMessage):
    """PLAIN (RFC 4616): authorization identity, user and password, separated by NUL."""

    name: ClassVar[str] = "PLAIN"

    def _begin(self) -> bytes | None:
        login = self._login
        parts = (login.authzid, login.user, login.secret.reveal())
        if any("\0" in part for part in parts):
            raise SaslError("PLAIN cannot carry a NUL character in user or password")
        return "\0".join(parts).encode()


class External(_OneMessage):
    """EXTERNAL (RFC 4422 appendix A): who we are, our TLS certificate says."""

    name: ClassVar[str] = "EXTERNAL"

    def _begin(self) -> bytes | None:
        return self._login.authzid.encode()


class LoginMechanism(Mechanism):
    """LOGIN (draft-murchison-sasl-login): two questions, whatever their words are."""

    name: ClassVar[str] = "LOGIN"

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self._answered = 0

    def _begin(self) -> bytes | None:
        return None

    def _respond(self, challenge: bytes) -> bytes:
        self._answered += 1
        if self._answered == 1:
            return self._login.user.encode()
        if self._answered == 2:
            return self._login.secret.reveal().encode()
        raise SaslError("server asks for more than LOGIN has to say")


class CramMd5(Mechanism):
    """CRAM-MD5 (RFC 2195): the challenge, signed with the password."""

    name: ClassVar[str] = "CRAM-MD5"

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self._answered = False

    def _begin(self) -> bytes | None:
        return None

    def _respond(self, challenge: bytes) -> bytes:
        if self._answered:
            raise SaslError("server asks for more than CRAM-MD5 has to say")
        if not challenge:
            raise SaslError("CRAM-MD5 challenge is empty")
        self._answered = True
        key = self._login.secret.reveal().encode()
        return b"%s %s" % (
            self._login.user.encode(),
            hmac.new(key, challenge, "md5").hexdigest().encode(),
        )
