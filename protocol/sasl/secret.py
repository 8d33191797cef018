"""A text that must not be seen: a password, a token, or what is sent to prove one."""

import hmac
from typing import NoReturn


class Secret:
    """Holds a text and shows it to nobody but who calls `reveal()`.

    Reprs, and with them the locals in a traceback, say `Secret(...)`. It cannot be pickled or
    copied. Keep what `reveal()` returns inside one expression, not in a variable.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __bool__(self) -> bool:
        """Whether there is any text."""
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        ours, theirs = (each.encode("utf-8", "surrogatepass") for each in (self._text, other._text))
        return hmac.compare_digest(ours, theirs)

    __hash__ = None  # type: ignore[assignment]  # a hash table would compare in the open

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")
