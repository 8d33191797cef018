"""A TLS connection as a stream: OpenSSL between two memory BIOs, over any other stream.

What is sent is encrypted at once; the ciphertext leaves in the order it was made, by one task at a
time. Ciphertext that the transport did not take at once is kept, and goes out first at the next
send or receive. As with `QuickStream`, a call that need not wait is no checkpoint.

A stream that failed, or whose send was cancelled, is broken for good: half a record may be on the
wire, and not even a close_notify may follow it.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final

import trio
from OpenSSL import SSL

from worker.network.socket_stream import EagerStream
from worker.tls.policy import TlsFacts, TlsPolicy

# Octets of plaintext that are encrypted before the transport is offered the result: what one record
# holds at most. It bounds what send_nowait() may leave behind.
PIECE: Final = 16_384
# A record and what it adds (RFC 5246 section 6.2.3: up to 2048 octets, and its header).
RECORD: Final = PIECE + 2_048 + 5
HEADER: Final = 5  # octets: type, version, length (RFC 8446 section 5.1)
RECORD_TYPES: Final = range(20, 25)
MAJOR_VERSION: Final = 3
WORDLESS: Final = 16  # reads that may bring no word, as tickets do, before others have their turn
GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
ALERT: Final = re.compile(r"^(?:sslv3|tlsv1|tlsv13|ssl/tls|tls) alert ")  # by release
CLOSE_LIMIT: Final = 1.0  # seconds for close_notify, where it cannot go out at once


class Intake:
    """Gives OpenSSL whole records only, so that it is known when it has nothing left to read.

    Asking OpenSSL costs an exception, and that for every message; to know is a matter of counting.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        """For all that `connection` receives, from the first octet on."""
        self.connection = connection
        self._rest = b""  # a record that has come in part; 64 kB at most

    def feed(self, raw: bytes | bytearray) -> int:
        """What was received, none at the end; how many records OpenSSL has got of it.

        At the end, and of what is no TLS, it gets all there is, and 2 is returned: it has to say
        what is wrong.
        """
        if not raw:
            self.connection.bio_shutdown()
            return 2
        if self._rest:
            raw = self._rest + raw
        end = records = 0
        while len(raw) - end >= HEADER:
            if raw[end] not in RECORD_TYPES or raw[end + 1] != MAJOR_VERSION:
                end, records = len(raw), 2
                break
            after = end + HEADER + int.from_bytes(raw[end + 3 : end + HEADER], "big")
            if after > len(raw):
                break
            end = after
            records += 1
        self._rest = bytes(raw[end:])
        if end:
            self.connection.bio_write(raw[:end])
        return records


class TlsStream(EagerStream):
    """Owns `transport`, on which the connection of `intake` has finished its handshake."""

    receives_all: ClassVar[bool] = False  # but one record, of those that have come together

    def __init__(
        self,
        transport: trio.abc.Stream,
        intake: "Intake",
        policy: TlsPolicy,
        facts: TlsFacts,
    ) -> None:
        """Under `policy`, which the peer meets as far as `facts` say."""
        self.transport = transport
        self.policy = policy
        self.facts = facts
        self._intake = intake
        self._connection = intake.connection
        self._eager = transport if isinstance(transport, EagerStream) else None
        # Called once, when the server has said something. By then a server of TLS 1.3 has sent the
        # tickets that this session can be resumed with.
        self.on_first_read: Callable[[], None] | None = None
        # Called once, at the end, if it never has.
        self.on_no_word: Callable[[], None] | None = None
        self._plain = b""  # decrypted by is_quiet(), and not yet received
        self._unsent = b""  # encrypted, and not yet taken by the transport
        # OpenSSL has nothing to decrypt: asking it would cost an exception.
        self._dry = False
        self._one_record = False  # it has one record at most
        self._has_answers = False  # it may have made some: to a KeyUpdate, say
        self._ended = False  # close_notify came
        self._broken = False
        self._closed = False
        self._sending = False
        self._receiving = False
        self._flushing = False
        self._flushed: trio.Event | None = None  # for who waits until it is done

    # --- sending -----------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it; when cancelled, the stream is broken.

        Raises trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError.
        """
        self._claim_send()
        try:
            if len(data) <= PIECE:
                self._encrypt(data)
                await self._flush()
                return
            with memoryview(data) as view:
                for start in range(0, len(view), PIECE):
                    self._encrypt(view[start : start + PIECE])
                    await self._flush()
        except BaseException:
            # Also where it only waited for a receiver that was flushing: it must not go out later.
            self._broken = True
            raise
        finally:
            self._sending = False

    def send_nowait(self, data: bytes) -> int:
        """See EagerStream.send_nowait(). At most one record of it waits to be sent afterwards."""
        eager = self._eager
        if (
            eager is None
            or self._sending
            or self._broken
            or self._closed
            or self._flushing
            or (self._unsent and not self._push(eager))
        ):
            return 0
        if len(data) <= PIECE:
            try:
                self._encrypt(data)
            except trio.BrokenResourceError:
                return 0
            self._push(eager)
            return len(data)
        view = memoryview(data)
        done = 0
        while done < len(view):
            piece = view[done : done + PIECE]
            try:
                self._encrypt(piece)
            except trio.BrokenResourceError:
                break
            done += len(piece)
            if not self._push(eager):
                break
        return done

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something can be sent."""
        self._claim_send()
        try:
            await self._flush()
            await self.transport.wait_send_all_might_not_block()
        except trio.BrokenResourceError:
            self._broken = True
            raise
        finally:
            self._sending = False

    def _claim_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this TLS connection")
        self._check()
        self._sending = True

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was already closed")
        if self._broken:
            raise trio.BrokenResourceError("this TLS connection is broken")

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Raises trio.BrokenResourceError; renegotiation being off, it never has to read first."""
        if not data:
            return
        try:
            # All of it: what fits into a record is never taken in parts.
            self._connection.send(data)
        except SSL.Error as exc:
            raise self._failure(exc) from exc

    def _collect(self) -> bytes:
        """All ciphertext that waits to be sent; from now on it is the caller's."""
        out, self._unsent = self._unsent, b""
        self._has_answers = False
        try:
            while True:
                made = self._connection.bio_read(RECORD)
                out = out + made if out else made
                if len(made) < RECORD:
                    return out
        except SSL.WantReadError:
            return out

    def _push(self, eager: EagerStream) -> bool:
        """Send what can be sent at once; whether that was all."""
        out = self._collect()
        sent = eager.send_nowait(out)
        if sent == len(out):
            return True
        self._unsent = out[sent:]
        return False

    async def _flush(self) -> None:
        """Send all ciphertext, after whoever is at it has finished; a failure breaks the stream."""
        while self._flushing:
            self._flushed = self._flushed or trio.Event()
            await self._flushed.wait()
            self._check()
        self._flushing = True
        try:
            if out := self._collect():
                await self.transport.send_all(out)
            while self._has_answers:  # the receiver has left them to us meanwhile
                if out := self._collect():
                    await self.transport.send_all(out)
        except BaseException:
            self._broken = True
            raise
        finally:
            self._flushing = False
            if self._flushed is not None:
                self._flushed.set()
                self._flushed = None

    # --- receiving ---------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one octet, or none after close_notify; of one record, 16 kB, at most.

        Raises trio.BrokenResourceError, also where the transport ends without a close_notify;
        trio.ClosedResourceError, trio.BusyResourceError.
        """
        self._claim_receive(max_bytes)
        try:
            if (plain := self._decrypt(max_bytes)) is not None:
                return plain
            while True:
                if self._unsent or self._has_answers:
                    await self._flush_first()
                self._feed(await self.transport.receive_some(RECORD))
                if (plain := self._decrypt(max_bytes)) is not None:
                    return plain
                # A peer that sends records without a word must not keep others from their turn.
                await trio.lowlevel.checkpoint()
        except trio.BrokenResourceError:
            self._broken = True
            raise
        finally:
            self._receiving = False

    async def wait_and_receive(self, max_bytes: int) -> bytes:
        """See EagerStream.wait_and_receive()."""
        eager = self._eager
        try:
            if eager is None:
                return await self.receive_some(max_bytes)
            self._claim_receive(max_bytes)
        except trio.BrokenResourceError:
            return b""
        try:
            if (plain := self._decrypt(max_bytes)) is not None:
                return plain
            while True:
                if self._unsent or self._has_answers:
                    await self._flush_first()
                self._feed(await eager.wait_and_receive(RECORD))
                if (plain := self._decrypt(max_bytes)) is not None:
                    return plain
        except trio.BrokenResourceError:
            self._broken = True
            return b""
        finally:
            self._receiving = False

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """See EagerStream.receive_nowait()."""
        if self._receiving:
            return None  # it is somebody else's
        try:
            self._check()
            if (plain := self._decrypt(max_bytes)) is not None or self._eager is None:
                return plain
            for _ in range(WORDLESS):
                raw = self._eager.receive_nowait(RECORD)
                if raw is None:
                    return None
                self._feed(raw)
                if (plain := self._decrypt(max_bytes)) is not None:
                    return plain
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
            return b""
        return None

    def is_quiet(self) -> bool:
        """See EagerStream.is_quiet(). Records that say nothing, as tickets, are no speech."""
        if self._plain or self._ended or self._broken or self._closed:
            return False
        if self._dry and self._eager is not None and self._eager.is_quiet():
            return True
        plain = self.receive_nowait(PIECE)
        self._plain = plain or b""
        return plain is None

    def _claim_receive(self, max_bytes: int | None) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this TLS connection")
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        self._check()
        self._receiving = True

    def _decrypt(self, max_bytes: int | None) -> bytes | None:
        """What is there, none at the end; None: more is needed. Raises trio.BrokenResourceError."""
        size = PIECE if max_bytes is None or max_bytes > PIECE else max_bytes
        if self._plain:
            plain, self._plain = self._plain[:size], self._plain[size:]
            return plain
        if self._dry:
            return None
        try:
            plain = self._connection.recv(size)
        except SSL.WantReadError:
            self._dry = self._has_answers = True
            return None
        except SSL.ZeroReturnError:
            self._ended = True
            return b""
        except SSL.Error as exc:
            raise self._failure(exc) from exc
        if self._one_record and len(plain) < size:
            self._dry = True
        self.on_no_word = None
        if self.on_first_read is not None:
            on_first_read, self.on_first_read = self.on_first_read, None
            on_first_read()
        return plain

    def _feed(self, raw: bytes | bytearray) -> None:
        """Ciphertext from the transport; none: it has ended."""
        records = self._intake.feed(raw)
        self._one_record = self._dry and records == 1
        self._dry = not records

    async def _flush_first(self) -> None:
        """Send what waits before we wait: what the peer says next may depend on it."""
        if self._flushing:
            return  # it goes out together with what is being sent
        await self._flush()

    def _failure(self, error: SSL.Error) -> trio.BrokenResourceError:
        self._broken = True
        if isinstance(error, SSL.SysCallError):
            return trio.BrokenResourceError("the TLS connection ended without a close_notify")
        return trio.BrokenResourceError(f"TLS connection broken: {in_words(error)}")

    # --- what only the two ends know ---------------------------------------------------------

    def channel_binding(self) -> bytes | None:
        """What ties a log-in to this connection: tls-exporter (RFC 9266); None: not below TLS 1.3.

        Of earlier versions it is only safe with an extension that pyOpenSSL does not tell of.
        """
        if self.facts.protocol != "TLSv1.3":
            return None
        return self._connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    # --- the end -----------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Say close_notify, if that is still possible, and close the transport.

        Whoever waits for it gets trio.ClosedResourceError.
        """
        if not self._closed:
            self._closed = True
            on_no_word, self.on_no_word = self.on_no_word, None
            try:
                if on_no_word is not None:
                    on_no_word()
                if not (self._broken or self._sending or self._flushing):
                    await self._say_goodbye()
            finally:
                await self.transport.aclose()
        else:
            await trio.lowlevel.checkpoint()

    async def _say_goodbye(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.Error:
            return
        if self._eager is not None:
            self._push(self._eager)  # a peer that does not read will not miss it
            return
        with trio.move_on_after(CLOSE_LIMIT), suppress(*GONE):
            await self.transport.send_all(self._collect())


def in_words(error: SSL.Error) -> str:
    """OpenSSL's reasons in one line."""
    errors = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [ALERT.sub("alert from the peer: ", entry[-1]) for entry in errors if entry[-1]]
    return "; ".join(dict.fromkeys(reasons)) or "unknown error"
