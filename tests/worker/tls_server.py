"""A server's side of TLS, over any stream, that can break at any record.

By the standard library's `ssl`, so that our own TLS code meets another implementation's wrapper and
another OpenSSL. `ServerTls` says how a server behaves; `Peer` (`peer.py`) uses it after STARTTLS,
or at once (`wrapper`). No clock, no sockets.
"""

import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from weakref import WeakKeyDictionary

import trio
from cryptography import x509

from tests.integration.pki import Leaf

RECORD_HEAD: Final = 5  # octets: type, version, length (RFC 8446 section 5.1)
FATAL_ALERT: Final = bytes([21, 3, 3, 0, 2, 2, 80])  # internal_error, not encrypted
GARBAGE: Final = b"500 5.5.2 what is this?\r\n"
ALERT: Final = 21  # type of a record
OLD: Final = "ALL:eNULL:@SECLEVEL=0"  # ciphers that OpenSSL would not let a server use today


class Harm(Enum):
    """What becomes of a connection in the middle of TLS."""

    CUT = "the connection is closed"
    HALF = "half a record is sent, then the connection is closed"
    GARBAGE = "SMTP instead of a record"
    FLIPPED = "one bit is wrong"
    ALERT = "a fatal alert that is not encrypted"
    SILENCE = "nothing more is sent"


@dataclass(frozen=True, slots=True)
class Break:
    """`harm` after `records` whole records of the server."""

    records: int
    harm: Harm


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the server knows of a handshake that came to its end on its side."""

    version: str  # "TLSv1.3"
    cipher: str
    servername: str  # SNI; empty: none
    resumed: bool
    subject: str  # common name of the client's certificate; empty: none


@dataclass(slots=True)
class ServerTls:
    """How a server does TLS, and what it saw."""

    context: ssl.SSLContext
    wrapper: bool = False  # TLS from the first octet
    again: bool = False  # STARTTLS is offered inside TLS, too
    broken: Break | None = None
    lines: bool = False  # each line is a record of its own, all of them under way at once
    seen: list[Seen] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # in OpenSSL's words
    records: list[int] = field(default_factory=list)  # lengths of those sent, all connections

    async def accept(self, transport: trio.abc.Stream) -> "ServerStream":
        """Shake hands. Raises trio.BrokenResourceError; the transport stays the caller's."""
        stream = ServerStream(transport, self)
        await stream.handshake()
        return stream


class ServerStream(trio.abc.Stream):
    """TLS over `transport`. Closing says nothing; `farewell()` says close_notify."""

    def __init__(self, transport: trio.abc.Stream, tls: ServerTls) -> None:
        self.transport = transport
        self._tls = tls
        self._sent = 0  # records
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = tls.context.wrap_bio(self._in, self._out, server_side=True)

    async def handshake(self) -> None:
        """Until it has come to its end on this side."""
        try:
            await self._until_done(self._object.do_handshake)
        except ssl.SSLError as exc:
            self._tls.failures.append(str(exc))
            raise trio.BrokenResourceError from exc
        cipher = self._object.cipher()
        certificate = self._object.getpeercert(binary_form=True)
        self._tls.seen.append(
            Seen(
                version=self._object.version() or "",
                cipher=cipher[0] if cipher else "",
                servername=_servernames.get(self._object, ""),
                resumed=bool(self._object.session_reused),
                subject=common_name(certificate) if certificate else "",
            )
        )

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        if self._tls.lines:
            for line in bytes(data).splitlines(keepends=True):
                self._object.write(line)
            await self.transport.send_all(self._out.read())
            return
        self._object.write(data)
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Not used."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive; nothing at the end, with or without close_notify."""
        while True:
            try:
                return self._object.read(max_bytes or 65_536)
            except ssl.SSLWantReadError:
                if not await self._feed():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as exc:
                self._tls.failures.append(str(exc))
                await self._flush()
                raise trio.BrokenResourceError from exc

    async def farewell(self) -> None:
        """Say close_notify."""
        with suppress(ssl.SSLError):  # it wants to read the other side's: we do not wait for that
            self._object.unwrap()
        await self._flush()

    async def aclose(self) -> None:
        """Close the transport."""
        await self.transport.aclose()

    async def _until_done(self, action: Callable[[], None]) -> None:
        while True:
            try:
                action()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    raise trio.BrokenResourceError from None
            except ssl.SSLError:
                await self._flush()
                raise
            else:
                await self._flush()
                return

    async def _feed(self) -> bool:
        data = await self.transport.receive_some(65_536)
        self._in.write(data)
        return bool(data)

    async def _flush(self) -> None:
        octets = self._out.read()
        while octets:
            size = RECORD_HEAD + int.from_bytes(octets[3:RECORD_HEAD], "big")
            record, octets = octets[:size], octets[size:]
            self._tls.records.append(size)
            await self._send_record(record)

    async def _send_record(self, record: bytes) -> None:
        broken = self._tls.broken
        if (
            broken is None
            or self._sent < broken.records
            # Behind a wrong bit all goes on as if nothing had happened.
            or (broken.harm is Harm.FLIPPED and self._sent > broken.records)
        ):
            self._sent += 1
            await self.transport.send_all(record)
            return
        match broken.harm:
            case Harm.SILENCE:
                return
            case Harm.HALF:
                await self.transport.send_all(record[: len(record) // 2])
            case Harm.GARBAGE:
                await self.transport.send_all(GARBAGE)
            case Harm.ALERT:
                await self.transport.send_all(FATAL_ALERT)
            case Harm.FLIPPED if record[0] != ALERT:
                # The last octet: of a signature, a checksum, or a tag.
                await self.transport.send_all(record[:-1] + bytes([record[-1] ^ 1]))
                self._sent += 1
                return
            case _:
                pass
        raise trio.BrokenResourceError


# `ssl` hands the name to nobody else.
_servernames: WeakKeyDictionary[ssl.SSLObject, str] = WeakKeyDictionary()


def server_context(
    leaf: Leaf,
    *,
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ciphers: str = "",
    client_ca: str = "",
    client_required: bool = False,
) -> ssl.SSLContext:
    """A server's context. `client_ca`: file of those whose client certificates are asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # By default weak certificates are no reason for a server to give up: they are a case.
    context.set_ciphers(ciphers or "DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        # That versions are old is why a test names them.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = oldest
        context.maximum_version = newest
    context.load_cert_chain(leaf.chain, leaf.key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL

    def note(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        _servernames[connection] = name or ""

    context.sni_callback = note
    return context


def common_name(certificate: bytes) -> str:
    """Of the subject of a certificate in DER."""
    names = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(
        x509.NameOID.COMMON_NAME
    )
    return str(names[0].value) if names else ""
