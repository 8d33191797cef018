"""The handshake: from an open stream to a TLS stream and what is known of its peer.

A session that was resumed proves only that the server is the one that an earlier handshake was
with: no certificate is shown again, and OpenSSL says that all is well whatever it was. So the
verdict of the handshake that made the session is kept with it, under a key that holds the whole
policy: what was good enough for level `may` serves no other level. So does whom we trust: an
authority that was struck off the list vouches for nobody any more.

Of TLS 1.3 the tickets come after the handshake, so a session is kept when the server has said
something. One that did not meet its policy is not kept: the next one may fare better.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

import trio
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from worker.status.events import Emit, TlsStep, UnexpectedError
from worker.tls.contexts import Contexts
from worker.tls.policy import TlsFacts, TlsPolicy
from worker.tls.sessions import Remembered, SessionStore
from worker.tls.stream import RECORD, Intake, TlsStream, in_words
from worker.tls.trace import TraceFile
from worker.tls.verdict import Finding, judge, resumed

# pyOpenSSL does not tell whether a session was resumed; OpenSSL does. Where its binding does not
# (it is promised to nobody), none is.
_session_reused: Any = getattr(Binding.lib, "SSL_session_reused", None)
MAX_OUT: Final = 65_536  # octets of a flight of ours; a chain of certificates may be long


class HandshakeError(Exception):
    """No TLS connection came about. `reason`: one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TlsEngine:
    """Shakes hands with servers under policies."""

    def __init__(
        self,
        contexts: Contexts,
        sessions: SessionStore | None,
        emit: Emit,
        *,
        steps_of: str = "",
        trace: TraceFile | None = None,
    ) -> None:
        """`sessions`: None: no session is resumed. `steps_of`: the program ("smtp", "lmtp") that
        tells the steps of each handshake (smtp_tls_loglevel 2); empty: none does. `trace`: where
        each of its messages is told (3 and 4).
        """
        self._trace = trace
        self._steps_of = steps_of
        self._contexts = contexts
        self._sessions = sessions if _session_reused is not None else None
        self._emit = emit

    def close(self) -> None:
        """Let go of the sessions to resume, and of the trace; handshakes go on without them."""
        if self._trace is not None:
            self._trace.close()
        if self._sessions is not None:
            self._sessions.close()

    def check(self, policy: TlsPolicy) -> None:
        """Read all files that `policy` names. Raises TlsFilesError."""
        self._contexts.check(policy)

    async def handshake(
        self,
        transport: trio.abc.Stream,
        policy: TlsPolicy,
        *,
        host: str,
        address: str,
        port: int,
        nexthop: str,
    ) -> TlsStream:
        """Agree with the server on TLS. The stream then owns `transport`; on failure nobody does.

        The caller limits the time, and judges by `stream.facts` whether the policy's level is met.
        Raises HandshakeError after the server was told why, and TlsFilesError for a policy whose
        files cannot be read.
        """
        context = self._contexts.context(policy)
        traced = None
        if self._trace is None:
            connection = SSL.Connection(context)
        else:
            versions = " ".join(version.name for version in sorted(policy.versions))
            peer = f"{host}[{address}]:{port}, level {policy.level.word}, {versions}"
            connection = traced = self._trace.connection(context, peer)
        connection.set_app_data(Finding())
        connection.set_connect_state()
        if name := _server_name(policy.servername):
            connection.set_tlsext_host_name(name)
            if traced is not None:
                traced.trace.say(f"server name {policy.servername}")
        trust = self._contexts.trust(policy.anchors) if self._sessions is not None else ""
        key = f"{policy.fingerprint} {trust} {nexthop} {host} {address} {port}"
        offered = self._offer(connection, key)
        try:
            intake = await shake(connection, transport, self._tell)
        except BaseException as exc:
            if traced is not None:
                traced.trace.failed(str(exc) if isinstance(exc, HandshakeError) else "given up")
            if offered is not None:
                # It may have been the session that the server did not like, or fell silent at.
                self._forget(key)
            raise
        if offered is not None and _session_reused(connection._ssl):  # noqa: SLF001
            facts = resumed(connection, offered.facts)
        else:
            if offered is not None:
                self._forget(key)
            facts = judge(connection, policy)
        if traced is not None:
            traced.trace.established(facts)
        stream = TlsStream(transport, intake, policy, facts)
        if self._sessions is not None and facts.meets(policy.level):
            stream.on_first_read = lambda: self._save(key, connection, facts)
        if facts.resumed:
            # In TLS 1.3 a server may find out only when the handshake is over, for us.
            stream.on_no_word = lambda: self._forget(key)
        return stream

    def _tell(self, step: str) -> None:
        if self._steps_of:
            self._emit(TlsStep(step, self._steps_of))

    def _offer(self, connection: SSL.Connection, key: str) -> Remembered | None:
        """The session that the server is asked to resume, if there is one."""
        remembered = self._sessions.find(key) if self._sessions is not None else None
        return remembered if remembered is not None and remembered.offer(connection) else None

    def _forget(self, key: str) -> None:
        if self._sessions is not None:
            self._sessions.forget(key)

    def _save(self, key: str, connection: SSL.Connection, facts: TlsFacts) -> None:
        """Called in the middle of a receive, which must not suffer from it."""
        try:
            session = connection.get_session()
            if session is not None and self._sessions is not None:
                self._sessions.save(key, session, facts)
        except Exception as exc:  # noqa: BLE001  # the next handshake will be a full one
            trace = "".join(traceback.format_exception(exc))
            self._emit(UnexpectedError("remembering a TLS session", trace))


def _server_name(name: str) -> bytes:
    """As it is sent: an address is no server name (RFC 6066 section 3). Raises HandshakeError."""
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        pass
    else:
        return b""
    if not name.isascii() or not name.isprintable():
        raise HandshakeError(f"{name!a} cannot be sent as a server name: it is not in ASCII")
    return name.encode()


async def shake(
    connection: SSL.Connection,
    transport: trio.abc.Stream,
    tell: Callable[[str], None] = lambda step: None,
) -> Intake:
    """Do the handshake of `connection`, of either side, over `transport`.

    `tell`: is told of each wait, in OpenSSL's words. Raises HandshakeError.
    """
    intake = Intake(connection)
    try:
        while not _step(connection):
            tell(connection.get_state_string().decode("ascii", "replace"))
            await _flush(connection, transport)
            records = 0
            while not records:  # in part it is nothing to OpenSSL
                # A server that always has something to say must not keep us from the clock.
                await trio.lowlevel.checkpoint()
                records = intake.feed(await transport.receive_some(RECORD))
        await _flush(connection, transport)
    except SSL.SysCallError as exc:
        raise HandshakeError("lost connection") from exc
    except SSL.Error as exc:
        with suppress(trio.BrokenResourceError):
            await _flush(connection, transport)  # it may want to know why
        raise HandshakeError(in_words(exc)) from exc
    except trio.BrokenResourceError as exc:
        raise HandshakeError("lost connection") from exc
    return intake


def _step(connection: SSL.Connection) -> bool:
    """Whether the handshake is done."""
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return False
    return True


async def _flush(connection: SSL.Connection, transport: trio.abc.Stream) -> None:
    try:
        out = connection.bio_read(MAX_OUT)
    except SSL.WantReadError:
        return
    await transport.send_all(out)
