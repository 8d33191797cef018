"""A file that tells what TLS connections do, message by message (smtp_tls_loglevel 3 and 4).

    2026-11-26T22:16:00.123Z 4711.3 - smtp: handshake with mx.example[192.0.2.1]:25, level may, ...
    2026-11-26T22:16:00.124Z 4711.3 > handshake: client_hello, 228 octets
    2026-11-26T22:16:00.140Z 4711.3 < handshake: server_hello, 118 octets
    2026-11-26T22:16:00.140Z 4711.3 < encrypted, 1201 octets

`>` is what we send, `<` what the server sends; `4711.3` is the third connection of process 4711. At
level 3 that ends with the handshake, at level 4 all records follow. What is shown is what anybody
on the way can see: kinds and sizes. No contents are shown, neither of mail nor of messages of TLS.

All processes of a host append to one file, a line at a time. It is opened once, by who may (before
a jail); it is for its owner alone, grows up to LIMIT, and whatever is wrong with it ends the trace
and nothing else.
"""

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

from OpenSSL import SSL

from worker.status.events import Emit, Noted, Warned
from worker.status.log import escape
from worker.tls.policy import TlsFacts

LIMIT: Final = 16 * 1024 * 1024  # octets in the file; processes may exceed it by a line each
LONGEST: Final = 500  # characters of a line
HEADER: Final = 5  # octets: type, version, length (RFC 8446 section 5.1)
CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, HEARTBEAT = range(20, 25)
_RECORDS: Final = {
    CHANGE_CIPHER_SPEC: "change_cipher_spec",
    ALERT: "alert",
    HANDSHAKE: "handshake",
    APPLICATION_DATA: "application_data",
    HEARTBEAT: "heartbeat",
}
CLIENT_HELLO, SERVER_HELLO = 1, 2
# RFC 8446 section B.3, and what earlier versions had besides.
_MESSAGES: Final = {
    0: "hello_request",
    CLIENT_HELLO: "client_hello",
    SERVER_HELLO: "server_hello",
    4: "new_session_ticket",
    8: "encrypted_extensions",
    11: "certificate",
    12: "server_key_exchange",
    13: "certificate_request",
    14: "server_hello_done",
    15: "certificate_verify",
    16: "client_key_exchange",
    20: "finished",
    22: "certificate_status",
    24: "key_update",
}
# RFC 8446 section B.2, and what earlier versions had besides.
_ALERTS: Final = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    21: "decryption_failed",
    22: "record_overflow",
    30: "decompression_failure",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}

# Of connections of this process, whatever the protocol and the configuration.
_numbers = count(1)


class TraceFile:
    """An open file. No call raises for what is wrong with it."""

    def __init__(
        self,
        path: Path,
        emit: Emit,
        wall: Callable[[], float],
        *,
        program: str,
        whole: bool,
    ) -> None:
        """Open or make it. `program`: "smtp" or "lmtp". `whole`: level 4. Raises OSError."""
        self._path = path
        self._emit = emit
        self._wall = wall
        self._program = program
        self._whole = whole
        self._fd: int | None = _open(path)

    @classmethod
    def opened(
        cls, path: Path, emit: Emit, wall: Callable[[], float], *, program: str, whole: bool
    ) -> "TraceFile | None":
        """The file, and a line in the log that names it; None, and told why: there is none."""
        try:
            file = cls(path, emit, wall, program=program, whole=whole)
        except OSError as exc:
            emit(Warned(f"{path}: {exc.strerror or exc}: TLS is not traced"))
            return None
        emit(Noted(f"{program}: TLS is traced in {path}"))
        return file

    def close(self) -> None:
        """Nothing is written from now on."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def connection(self, context: SSL.Context, peer: str) -> "TracedConnection":
        """A connection whose handshake with `peer` (and so on) begins now."""
        trace = Trace(self, next(_numbers), whole=self._whole)
        trace.say(f"{self._program}: handshake with {peer}")
        return TracedConnection(context, trace)

    def write(self, number: int, text: str) -> None:
        """A line about a connection. Into the page cache, so it takes no time to speak of."""
        if self._fd is None:
            return
        now = datetime.fromtimestamp(self._wall(), UTC)
        head = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03}Z {os.getpid()}.{number} "
        try:
            full = os.fstat(self._fd).st_size >= LIMIT
            if not full:
                os.write(self._fd, f"{head}{escape(text)[:LONGEST]}\n".encode())
        except OSError as exc:
            self._end(exc.strerror or str(exc))
        else:
            if full:
                self._end(f"it has reached {LIMIT} octets; remove it and reload to go on")

    def _end(self, why: str) -> None:
        self._emit(Warned(f"{self._path}: {why}: TLS is no longer traced"))
        self.close()


def _open(path: Path) -> int:
    """A descriptor to append with, of a plain file that only its owner can read. Raises OSError."""
    if not path.is_absolute():
        raise PermissionError("not a path from the root")
    folder, us = path.parent.stat(), os.geteuid()
    # Root may look into the matter, too, with `postrio deliver`.
    if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or (us and folder.st_uid not in {0, us}):
        raise PermissionError(f"other users may write to the directory {path.parent}")
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd, is_new = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileExistsError:
        fd, is_new = os.open(path, flags), False
    try:
        if is_new and not us:  # or the processes of that user could not use it
            os.fchown(fd, folder.st_uid, folder.st_gid)
        _make_private(fd, us or folder.st_uid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_private(fd: int, owner: int) -> None:
    """Root gives away only what it has made: another file of root's may have been put there by the
    owner of the directory, who must not get it.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise PermissionError("not a plain file of its own")
    if found.st_uid != owner:
        raise PermissionError("it belongs to another user")
    os.fchmod(fd, 0o600)


class Trace:
    """What is told of one connection."""

    def __init__(self, file: TraceFile, number: int, *, whole: bool) -> None:
        self._file = file
        self._number = number
        self._whole = whole
        self._ended = False
        self._sent, self._received = Records(), Records()

    def say(self, text: str) -> None:
        """A remark of ours."""
        self._file.write(self._number, f"- {text}")

    def sent(self, octets: bytes) -> None:
        """What goes out, cut anywhere."""
        self._records(">", self._sent, octets)

    def received(self, octets: bytes) -> None:
        """What has come, cut anywhere."""
        self._records("<", self._received, octets)

    def established(self, facts: TlsFacts) -> None:
        """The handshake is over."""
        resumed = ", resumed" if facts.resumed else ""
        self.say(f"established: {facts.protocol}, {facts.cipher}, {facts.trust.value}{resumed}")
        self._ended = not self._whole

    def failed(self, why: str) -> None:
        """The handshake came to nothing."""
        self.say(f"no TLS: {why}")

    def _records(self, direction: str, records: "Records", octets: bytes) -> None:
        if not self._ended:
            for text in records.feed(octets):
                self._file.write(self._number, f"{direction} {text}")


class TracedConnection(SSL.Connection):
    """One that tells what passes through it, as it is on the wire."""

    def __init__(self, context: SSL.Context, trace: Trace) -> None:
        super().__init__(context)
        self.trace = trace

    def bio_read(self, bufsiz: int) -> bytes:
        """See SSL.Connection."""
        octets: bytes = super().bio_read(bufsiz)
        self.trace.sent(octets)
        return octets

    def bio_write(self, buf: Any) -> int:
        """See SSL.Connection."""
        self.trace.received(bytes(buf))
        return super().bio_write(buf)


class Records:
    """Names the records of one direction, as far as they can be read without any key.

    Keeps a few octets of what has come in part.
    """

    def __init__(self) -> None:
        self._header = b""
        self._kind = 0
        self._length = 0  # of the record under way
        self._left = 0  # of it
        self._begin = b""  # of a record that is read: an alert, or a message's head
        self._message = 0  # octets yet to come of a message that began in an earlier record
        self._head = b""  # of a message, in part
        self._ciphered = False  # change_cipher_spec has passed
        self._lost = False  # what comes is no TLS

    def feed(self, octets: bytes) -> list[str]:
        """What can be said now; a text for each record and message."""
        said: list[str] = []
        at = 0
        while at < len(octets) and not self._lost:
            if not self._left:
                missing = HEADER - len(self._header)
                self._header += octets[at : at + missing]
                at += missing
                if len(self._header) == HEADER:
                    self._start(said)
                continue
            piece = octets[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            self._content(piece, said)
        return said

    def _start(self, said: list[str]) -> None:
        header, self._header = self._header, b""
        self._kind, major = header[0], header[1]
        self._length = self._left = int.from_bytes(header[3:], "big")
        self._begin = b""
        if self._kind not in _RECORDS or major != 3:  # of all versions
            self._lost = True
            said.append("no TLS; the rest is not shown")
        elif self._kind == APPLICATION_DATA:
            said.append(f"encrypted, {self._length} octets")
        elif self._kind == CHANGE_CIPHER_SPEC:
            self._ciphered = True
            said.append("change_cipher_spec")

    def _content(self, piece: bytes, said: list[str]) -> None:
        if self._kind == ALERT:
            self._begin = (self._begin + piece)[:2]
            if not self._left:
                said.append(self._alert())
        elif self._kind == HANDSHAKE:
            self._handshake(piece, said)
        elif self._kind == HEARTBEAT and not self._left:
            said.append(f"heartbeat, {self._length} octets")

    def _alert(self) -> str:
        if self._length != 2:  # a level and a description
            return f"alert (encrypted), {self._length} octets"
        level = {1: "warning", 2: "fatal"}.get(self._begin[0], str(self._begin[0]))
        return f"alert: {level}, {_ALERTS.get(self._begin[1], str(self._begin[1]))}"

    def _handshake(self, piece: bytes, said: list[str]) -> None:
        """Messages in the clear; one may span records, and a record hold several."""
        if self._ciphered:
            self._begin = (self._begin + piece)[:4]
            if not self._left:
                said.append(self._late())
            return
        at = 0
        while at < len(piece):
            if self._message:
                skipped = min(self._message, len(piece) - at)
                self._message -= skipped
                at += skipped
                continue
            missing = 4 - len(self._head)
            self._head += piece[at : at + missing]
            at += missing
            if len(self._head) == 4:  # type and length
                head, self._head = self._head, b""
                self._message = int.from_bytes(head[1:], "big")
                said.append(_message(head))

    def _late(self) -> str:
        """A message behind change_cipher_spec: a second hello (RFC 8446 section 4.1.4), or secret.

        What is encrypted looks like a hello of just this length once in a billion times.
        """
        fits = int.from_bytes(self._begin[1:], "big") + 4 == self._length
        if fits and self._begin[0] in {CLIENT_HELLO, SERVER_HELLO}:
            return _message(self._begin)
        return f"handshake (encrypted), {self._length} octets"


def _message(head: bytes) -> str:
    name = _MESSAGES.get(head[0], f"message {head[0]}")
    return f"handshake: {name}, {int.from_bytes(head[1:], 'big')} octets"
