"""What every mechanism is: a conversation of octets, begun and continued by the client."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from protocol.sasl.secret import Secret

# Octets of a challenge. The reply parser keeps 2048 of a line, so that a longer one is cut already.
CHALLENGE_LIMIT: Final = 16_384


Step = Callable[[], bytes | None]


class SaslError(Exception):
    """The exchange cannot go on. Its text is one line for people, without any secret."""


@dataclass(frozen=True, slots=True)
class ChannelBinding:
    """What ties an exchange to the TLS connection below it (RFC 5056).

    `kind`: "tls-exporter" (RFC 9266) or "tls-server-end-point" (RFC 5929).
    """

    kind: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who logs in, where, and with what."""

    user: str
    secret: Secret  # a password, or a token
    authzid: str = ""  # whom to act for; empty: for `user`
    host: str = ""  # the server's name, for OAUTHBEARER and GSSAPI
    port: int = 0  # 0: not told
    service: str = "smtp"  # or "lmtp": the first part of the server's name in Kerberos
    binding: ChannelBinding | None = None
    # The server offers mechanisms with channel binding (-PLUS): not to use them is our own choice.
    server_binds: bool = False


class Mechanism(ABC):
    """One exchange: `begin()` once, then `respond()` to each challenge.

    Nothing that these raise, and no traceback of it, holds the secret.
    """

    name: ClassVar[str]
    # Why the server's word that it worked is not enough, where `complete` is false then.
    unproved: ClassVar[str] = "the server has not proved that it knows the password"

    def __init__(self, login: Login) -> None:
        self._login = login

    @classmethod
    def lacks(cls) -> str:
        """What is missing here to use it, in a few words; empty: nothing."""
        return ""

    @property
    def complete(self) -> bool:
        """The server may say that it worked. Mechanisms that prove the server override this."""
        return True

    def is_slow(self, challenge: bytes | None) -> bool:
        """Whether `respond(challenge)` takes longer than an event loop should stand still.

        None: whether `begin()` does.
        """
        return False

    def begin(self) -> bytes | None:
        """The initial response; None: the server speaks first. Raises SaslError."""
        return self._guarded(self._begin)

    def respond(self, challenge: bytes) -> bytes:
        """The response to a challenge. Raises SaslError."""
        if len(challenge) > CHALLENGE_LIMIT:
            raise SaslError(f"{self.name} challenge of {len(challenge)} octets is too long")
        answer = self._guarded(lambda: self._respond(challenge))
        assert answer is not None
        return answer

    def _guarded(self, step: Step) -> bytes | None:
        """Take one step; whatever it raises is raised anew, without the frames of the step."""
        try:
            return step()
        except SaslError as exc:
            why = str(exc)
        except Exception as exc:  # noqa: BLE001  # its text and its frames may hold the secret
            why = f"{self.name} failed with {type(exc).__name__}"
        raise SaslError(why)

    @abstractmethod
    def _begin(self) -> bytes | None:
        """See begin()."""

    @abstractmethod
    def _respond(self, challenge: bytes) -> bytes:
        """See respond()."""
