"""Logins that a server refused, so that it is not asked the same again (smtp_sasl_auth_cache_name).

A login is a server, a user and a secret. While nobody knows what becomes of it, one session tries
and the others wait for its verdict; whatever has worked once, any number of sessions may do at the
same time.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import trio

LIMIT: Final = 10_000  # logins that are remembered, of each sort


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the server said, without our secret: enhanced status and the whole reply."""

    dsn: str
    text: str


class Refusals:
    """All logins that were tried, by key. The key tells the secret to nobody."""

    def __init__(self, lifetime: float) -> None:
        """`lifetime`: seconds that a refusal is believed (smtp_sasl_auth_cache_time)."""
        self._lifetime = lifetime
        self._salt = secrets.token_bytes(32)
        self._refused: OrderedDict[bytes, tuple[float, Refusal]] = OrderedDict()
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        self._trials: dict[bytes, trio.Event] = {}

    def key(self, host: str, login: tuple[str, str], secret: str) -> bytes:
        """The key of a login: server name, (user, authorization identity), secret."""
        texts = (host.lower(), *login, secret)
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        message = b"".join(b"%d:%s" % (len(part), part) for part in parts)
        return hmac.new(self._salt, message, hashlib.sha256).digest()

    def find(self, key: bytes) -> Refusal | None:
        """The refusal of this login, unless it is too old."""
        entry = self._refused.get(key)
        if entry is None:
            return None
        until, refusal = entry
        if trio.current_time() < until:
            return refusal
        del self._refused[key]
        return None

    async def claim(self, key: bytes) -> Refusal | None:
        """A refusal that is known, or None: the caller tries, and says so with settle().

        Waits while somebody else tries the same login, unless it has worked before.
        """
        while True:
            refusal = self.find(key)
            if refusal is not None or key in self._accepted:
                return refusal
            trial = self._trials.get(key)
            if trial is None:
                self._trials[key] = trio.Event()
                return None
            await trial.wait()

    def accepted(self, key: bytes) -> None:
        """The login worked. Call settle() all the same."""
        self._refused.pop(key, None)
        self._accepted[key] = None
        self._accepted.move_to_end(key)
        if len(self._accepted) > LIMIT:
            self._accepted.popitem(last=False)

    def refused(self, key: bytes, refusal: Refusal) -> None:
        """The server said no, for good. Call settle() all the same."""
        self._accepted.pop(key, None)
        self._refused[key] = (trio.current_time() + self._lifetime, refusal)
        self._refused.move_to_end(key)
        if len(self._refused) > LIMIT:
            self._refused.popitem(last=False)

    def settle(self, key: bytes) -> None:
        """The trial is over, however it went: of those who wait, whoever must, tries next."""
        trial = self._trials.pop(key, None)
        if trial is not None:
            trial.set()
