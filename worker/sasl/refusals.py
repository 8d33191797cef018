"""Logins that a server refused, so that it is not asked the same again (smtp_sasl_auth_cache_name).

A login is a server, a user and a secret. While nobody knows what becomes of it, one session tries
and the others wait for its verdict; whatever has worked once, any number of sessions may do at the
same time. That holds within a process, and where there is a file (`refusal_file.py`) among all
processes of the host.

The file is a help and no more: one that is busy, damaged or gone costs an attempt, never mail.
"""

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Final, TypeVar

import trio

from worker.sasl.refusal_file import Name, Refusal, RefusalFile, packed
from worker.shared_file import TROUBLE, in_words, is_busy
from worker.status.events import Emit, Warned

__all__ = ["LIMIT", "Key", "Refusal", "Refusals", "refusal_path"]

LIMIT: Final = 10_000  # logins that are remembered, of each sort
POLL: Final = 0.1  # seconds between two looks at what another process is trying
# Any types, of which proxy: is a usual one, and a path.
_TABLE: Final = re.compile(r"(?:[A-Za-z0-9_-]+:)+(/.+)", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key:
    """One login. It tells the secret to nobody."""

    own: bytes  # in this process
    shared: Name | None  # in the file; None: there is none


class Refusals:
    """All logins that were tried, by key. For one run of an event loop."""

    def __init__(self, lifetime: float) -> None:
        """`lifetime`: seconds that a refusal is believed (smtp_sasl_auth_cache_time)."""
        self._lifetime = lifetime
        self._salt = secrets.token_bytes(32)
        self._refused: OrderedDict[bytes, tuple[float, Refusal]] = OrderedDict()
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        self._trials: dict[bytes, trio.Event] = {}
        self._file: RefusalFile | None = None
        self._leaving = False  # to be closed with the last trial
        self._emit: Emit = lambda event: None
        self._names: OrderedDict[bytes, Name] = OrderedDict()  # they are slow to make
        self._naming = trio.Lock()
        self._threads = trio.CapacityLimiter(1)

    def share(self, path: Path, emit: Emit, wall: Callable[[], float] = time) -> None:
        """Share them with all who name the same file; `emit` is told if that cannot be."""
        self._emit = emit
        try:
            self._file = RefusalFile.opened(path, self._lifetime, wall)
        except (OSError, *TROUBLE) as exc:
            self._complain(path, exc)

    def close(self) -> None:
        """Let go of the file, once no trial is left: others wait for its end.

        Whoever still uses this object remembers for itself.
        """
        self._leaving = True
        if not self._trials:
            self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    async def key(self, host: str, login: tuple[str, str], secret: str) -> Key:
        """The key of a login: server name, (user, authorization identity), secret."""
        message = packed(host.lower(), *login, secret)
        own = hmac.new(self._salt, message, hashlib.sha256).digest()
        if self._file is None:
            return Key(own, None)
        async with self._naming:  # of many who want the same, one makes it
            if own not in self._names:
                name = await self._in_thread(lambda file: file.name(host, login, secret))
                if name is None:
                    return Key(own, None)
                self._names[own] = name
                if len(self._names) > LIMIT:
                    self._names.popitem(last=False)
            self._names.move_to_end(own)
            return Key(own, self._names[own])

    def find(self, key: Key) -> Refusal | None:
        """The refusal of this login, unless it is too old or not known in this process."""
        entry = self._refused.get(key.own)
        if entry is None:
            return None
        until, refusal = entry
        if trio.current_time() < until:
            return refusal
        del self._refused[key.own]
        return None

    async def claim(self, key: Key) -> Refusal | None:
        """A refusal that is known, or None: the caller tries, and says so with settle().

        Waits while somebody else tries the same login, unless it has worked before.
        """
        while True:
            refusal = self.find(key)
            if refusal is not None:
                return refusal
            if key.own in self._accepted:
                return await self._look(key)
            trial = self._trials.get(key.own)
            if trial is not None:
                await trial.wait()
                continue
            self._trials[key.own] = trio.Event()
            try:
                refusal = await self._begin(key)
            except BaseException:
                self._wake(key)
                raise
            if refusal is not None:
                self._wake(key)
            return refusal

    def accepted(self, key: Key) -> None:
        """The login worked. Call settle() all the same."""
        self._refused.pop(key.own, None)
        self._accepted[key.own] = None
        self._accepted.move_to_end(key.own)
        if len(self._accepted) > LIMIT:
            self._accepted.popitem(last=False)

    def refused(self, key: Key, refusal: Refusal) -> None:
        """The server said no, for good. Call settle() all the same."""
        self._remember(key, refusal, self._lifetime)

    async def settle(self, key: Key) -> None:
        """The trial is over, however it went: of those who wait, whoever must, tries next.

        Cannot be cancelled, and takes no longer than another process keeps the file busy (BUSY):
        others would wait for a trial that is over.
        """
        name, refusal, accepted = key.shared, self.find(key), key.own in self._accepted
        try:
            # Of what has worked before there is no trial, and nothing new to tell.
            if name is not None and (key.own in self._trials or refusal is not None):
                with trio.CancelScope(shield=True):
                    await self._in_thread(lambda file: file.end(name, refusal, accepted=accepted))
        finally:
            self._wake(key)

    def _wake(self, key: Key) -> None:
        trial = self._trials.pop(key.own, None)
        if trial is not None:
            trial.set()
        if self._leaving and not self._trials:
            self._let_go()

    def _remember(self, key: Key, refusal: Refusal, lifetime: float) -> None:
        self._accepted.pop(key.own, None)
        self._refused[key.own] = (trio.current_time() + lifetime, refusal)
        self._refused.move_to_end(key.own)
        if len(self._refused) > LIMIT:
            self._refused.popitem(last=False)

    # --- the file ----------------------------------------------------------------------------

    async def _look(self, key: Key) -> Refusal | None:
        """What other processes know of a login that has worked here."""
        name = key.shared
        if name is None:
            return None
        return self._learnt(key, await self._in_thread(lambda file: file.find(name)))

    async def _begin(self, key: Key) -> Refusal | None:
        """A refusal that other processes know; None: none of them is trying any more."""
        name = key.shared
        if name is None:
            return None
        while True:
            found = await self._in_thread(lambda file: file.begin(name))
            if found is None or found is True:
                return None
            if found is not False:
                return self._learnt(key, found)
            await trio.sleep(POLL)

    def _learnt(self, key: Key, found: tuple[Refusal, float] | None) -> Refusal | None:
        if found is None:
            return None
        self._remember(key, *found)
        return found[0]

    async def _in_thread(self, work: Callable[[RefusalFile], T]) -> T | None:
        """What `work` returns; None: it could not be done, which must not matter."""
        file = self._file
        if file is None:
            return None
        try:
            return await trio.to_thread.run_sync(work, file, limiter=self._threads)
        except (OSError, *TROUBLE) as exc:
            if not is_busy(exc):
                self._complain(file.path, exc)
                self._let_go()
            return None

    def _complain(self, path: Path, error: Exception) -> None:
        text = "refused logins are not shared between processes"
        self._emit(Warned(f"{path}: {in_words(error)}: {text}"))


def refusal_path(table: str) -> Path | None:
    """The file that smtp_sasl_auth_cache_name means, type:/path/name; None: it means none.

    Whatever the types (proxy:btree:, say), it is ours.
    """
    found = _TABLE.fullmatch(table)
    return Path(f"{found[1]}.sqlite") if found is not None else None
