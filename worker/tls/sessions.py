"""TLS sessions that can be resumed: what a handshake agreed on and proved, for the next one.

Resuming spares the server's certificate, and with it everything that was to be checked: the verify
callback is silent then, the chain empty, and the result "all is well". A ticket is even good under
another name. So nothing in a resumed handshake proves who the server is, and

- the key under which a session is kept holds the whole policy that its verdict was made under;
- the verdict is kept with it, and is all that counts;
- it is good for the configured time from the last handshake with a certificate. The tickets that a
  resumed connection brings prolong nothing: a certificate is looked at again every hour or so,
  however busy the server is.

Here is what one process remembers; what processes tell each other is in `session_file.py`.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import Final

import trio
from OpenSSL import SSL

from worker.status.events import Emit, Warned
from worker.tls.policy import TlsFacts
from worker.tls.session_der import decode_session, encode_session
from worker.tls.session_file import SessionFile

LIMIT: Final = 1_000  # sessions in memory; the one not used longest goes
SHORTEST: Final = 120.0  # seconds; Postfix raises a shorter time to this
LONGEST: Final = 100 * 86_400.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """A session, and what its handshake with a certificate had come to."""

    facts: TlsFacts  # `resumed` is False: it tells of that handshake
    # In DER if that can be done. A copy: OpenSSL's own object is good for nothing once a connection
    # that had it was closed without close_notify, which says nothing about the server. Whoever
    # reads it can read what is resumed from it, so it is shown nowhere.
    _session: SSL.Session | bytes = field(repr=False)

    def offer(self, connection: SSL.Connection) -> bool:
        """Have the handshake of `connection` offer it; False: it cannot be, and none is.

        Whether the server resumes it is not known before the handshake is over.
        """
        session = self._session
        if isinstance(session, bytes):
            found = decode_session(session, connection.get_context())
            if found is None:
                return False
            session = found
        try:
            connection.set_session(session)
        except (ValueError, SSL.Error):  # its Context has left the cache of Contexts since
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Entry:
    remembered: Remembered
    proved: float  # when a certificate was seen; seconds of the store's clock


class SessionStore:
    """What one process remembers, at most LIMIT sessions. One for each key, the last one."""

    def __init__(
        self,
        timeout: float,
        file: SessionFile | None = None,
        *,
        clock: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = time,
        limit: int = LIMIT,
    ) -> None:
        """`timeout`: seconds. `file`: what other processes remember. `wall`: of its times."""
        self._timeout = timeout
        self._file = file
        self._clock = clock
        self._wall = wall
        self._limit = limit
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # used longest ago first

    @classmethod
    def opened(
        cls,
        timeout: float,
        database: str,
        emit: Emit,
        *,
        clock: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = time,
    ) -> "SessionStore | None":
        """As smtp_tls_session_cache_timeout and ..._database have it; None: nothing is kept.

        Of `database` (type:name) the file NAME.sqlite is ours and holds what the processes of this
        host share. Without a name, or if that file cannot be used, which is told, each process
        remembers its own.
        """
        if timeout <= 0:
            return None
        timeout = min(max(timeout, SHORTEST), LONGEST)
        file = None
        if database:
            path = session_file(database)
            if path is not None:
                file = SessionFile.opened(path, timeout, emit, wall)
            else:
                emit(
                    Warned(
                        f"smtp_tls_session_cache_database = {database}: not type:/path/name; "
                        "TLS sessions are not shared between processes"
                    )
                )
        return cls(timeout, file, clock=clock, wall=wall)

    def close(self) -> None:
        """Forget all, and let go of the file."""
        self._entries.clear()
        if self._file is not None:
            self._file.close()

    def find(self, key: str) -> Remembered | None:
        """The session to offer; it stays. `key` tells server and policy, and all of it."""
        now = self._clock()
        entry = self._entries.get(key)
        if entry is None and self._file is not None:
            entry = self._load(key, now)
        if entry is None:
            return None
        if not self._good(entry.proved, now):
            self.forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.remembered

    def save(self, key: str, session: SSL.Session, facts: TlsFacts) -> None:
        """Remember a session that can be resumed, in place of an earlier one.

        Of TLS 1.3 that is one taken after its ticket was read. `facts`: of its connection; if that
        one was resumed itself, the session is as old as what it was made from.
        """
        now = proved = self._clock()
        if facts.resumed:
            before = self._entries.get(key)
            if before is None or not self._good(before.proved, now):
                return  # too old, or we do not know how old
            proved, facts = before.proved, replace(facts, resumed=False)
        der = encode_session(session)
        self._keep(key, _Entry(Remembered(facts, der or session), proved))
        if self._file is not None and der:
            self._file.save(key, self._wall() - (now - proved), der, facts)

    def forget(self, key: str) -> None:
        """It was refused in a way that cost the handshake, or its time is over."""
        self._entries.pop(key, None)
        if self._file is not None:
            self._file.forget(key)

    def _load(self, key: str, now: float) -> _Entry | None:
        assert self._file is not None
        row = self._file.find(key)
        if row is None:
            return None
        age = self._wall() - row.proved
        if age < 0:
            return None  # the clock was set back: who knows how old it is
        entry = _Entry(Remembered(row.facts, row.der), now - age)
        self._keep(key, entry)
        return entry

    def _keep(self, key: str, entry: _Entry) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def _good(self, proved: float, now: float) -> bool:
        return now - proved < self._timeout


def session_file(database: str) -> Path | None:
    """The file that smtp_tls_session_cache_database (type:/path/name) means; None: it means none.

    Whatever the type, it is ours.
    """
    path = Path(f"{database.partition(':')[2]}.sqlite")
    return path if path.is_absolute() else None
