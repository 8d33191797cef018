"""One AUTH exchange from the server's side: PLAIN (RFC 4616) or LOGIN. No I/O."""

import base64
import binascii
from typing import Final

MECHANISMS: Final = ("PLAIN", "LOGIN")
LONGEST: Final = 12_288  # octets of one answer (RFC 4954 section 4)
_PROMPTS: Final = ("VXNlcm5hbWU6", "UGFzc3dvcmQ6")  # "Username:", "Password:", as everybody asks


class Exchange:
    """What a client says about itself: ask `prompt`, take answer(), until that returns True."""

    __slots__ = ("_answers", "_plain", "line", "password", "user")

    def __init__(self, mechanism: str) -> None:
        """`mechanism`: one of MECHANISMS."""
        self._plain = mechanism == "PLAIN"
        self._answers: list[str] = []
        self.line = b""  # what has come of the answer under way, up to LONGEST octets
        self.user = ""
        self.password = ""

    @property
    def prompt(self) -> str:
        """What stands behind the 334 now: base64, of PLAIN nothing."""
        return "" if self._plain else _PROMPTS[len(self._answers)]

    def answer(self, line: bytes) -> bool:
        """Take a line of base64. True: `user` and `password` are known. Raises ValueError."""
        try:
            text = base64.b64decode(line, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("this is no base64 of UTF-8") from None  # without what it was
        if not self._plain:
            self._answers.append(text)
            if len(self._answers) < len(_PROMPTS):
                return False
            self.user, self.password = self._answers
            return True
        try:
            _, self.user, self.password = text.split("\0")
        except ValueError:
            raise ValueError("expected two NUL, as RFC 4616 has it") from None
        return True
