"""GSSAPI (RFC 4752): a Kerberos ticket says who we are, and the server's key who the server is.

The exchange is python-gssapi's, an extra of ours (`gssapi`), which is imported when it is used.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from protocol.sasl.mechanism import Login, Mechanism, SaslError

PACKAGE: Final = "gssapi"
NO_LAYER: Final = 1  # a bit of the octet that lists security layers (RFC 4752, 3.3)
ERROR_LIMIT: Final = 300  # characters of the library's words

_MINOR: Final = re.compile(r"\bMinor \(\d+\): (.*\S)")


class Gssapi(Mechanism):
    """One exchange: tokens until the context stands, then the word that nothing will be wrapped.

    As whom, the credentials of the process say: `Login.user` and its secret are not used.
    """

    name: ClassVar[str] = "GSSAPI"
    unproved: ClassVar[str] = "the server has not proved who it is"

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self._context: Any = None
        self._complete = False

    @classmethod
    def lacks(cls) -> str:
        """See Mechanism."""
        # Looked for, not imported: that may take some time, and is done where waiting is free.
        try:
            found = PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE) is not None
        except (ImportError, ValueError):
            found = False
        return "" if found else "GSSAPI needs python-gssapi, postrio's extra gssapi"

    @property
    def complete(self) -> bool:
        """The server has shown that it has the key of its name."""
        return self._complete

    def is_slow(self, challenge: bytes | None) -> bool:
        """See Mechanism: the library may have to read files and to ask a KDC."""
        return True

    def _begin(self) -> bytes | None:
        login = self._login
        with _in_a_sentence() as library:
            flags = library.RequirementFlag
            self._context = library.SecurityContext(
                name=library.Name(
                    f"{login.service}@{login.host}", library.NameType.hostbased_service
                ),
                mech=library.MechType.kerberos,
                flags=[flags.mutual_authentication, flags.integrity],
                usage="initiate",
            )
            return self._stepped(library, None)

    def _respond(self, challenge: bytes) -> bytes:
        if self._context is None or self._complete:
            raise SaslError("server asks for more than GSSAPI has to say")
        with _in_a_sentence() as library:
            if not self._context.complete:
                return self._stepped(library, challenge)
            offer = self._context.unwrap(challenge).message
            if len(offer) != 4:
                raise SaslError("GSSAPI: the server's list of security layers is malformed")
            if not offer[0] & NO_LAYER:
                raise SaslError("GSSAPI: the server insists on a security layer of its own")
            # The other octets should be 0 where there is no layer; Dovecot has 255 there.
            answer = bytes((NO_LAYER, 0, 0, 0)) + self._login.authzid.encode()
            wrapped: bytes = self._context.wrap(answer, False).message  # noqa: FBT003
            self._complete = True
            return wrapped

    def _stepped(self, library: Any, token: bytes | None) -> bytes:
        """Our next token; empty: we have none, and the server goes on."""
        context = self._context
        answer: bytes | None = context.step(token)
        mutual = library.RequirementFlag.mutual_authentication
        if context.complete and mutual not in context.actual_flags:
            raise SaslError(f"GSSAPI: {self.unproved}")
        return answer or b""


@contextmanager
def _in_a_sentence() -> Iterator[Any]:
    """python-gssapi, whose errors become a SaslError."""
    try:
        library = importlib.import_module(PACKAGE)
    except (ImportError, OSError) as exc:  # it is there, and its shared library is not
        raise SaslError(f"GSSAPI: python-gssapi cannot be loaded: {_line(exc)}") from None
    try:
        yield library
    except library.exceptions.GSSError as exc:
        text = _line(exc)
        # Of its two texts the one that knows more.
        minor = _MINOR.search(text)
        raise SaslError(f"GSSAPI: {minor[1] if minor else text}") from None


def _line(exc: Exception) -> str:
    """What it says, in one line that is not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(exc)).split())
    return text if len(text) <= ERROR_LIMIT else text[:ERROR_LIMIT] + "..."
