"""How a source secures a connection and says who it is: TLS by the standard library's ssl, AUTH."""

import base64
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What is wanted of each connection. Without `starttls` and `wrapper` it is in the clear."""

    starttls: bool = False
    wrapper: bool = False  # TLS from the first octet
    insecure: bool = False  # take any certificate
    server_name: str = ""  # that a certificate must be for; also sent (SNI)
    user: str = ""  # empty: no AUTH
    password: str = field(default="", repr=False)

    def context(self) -> ssl.SSLContext | None:
        """For all connections of a load, None in the clear; it trusts whom the system trusts."""
        if not (self.starttls or self.wrapper):
            return None
        context = ssl.create_default_context()
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


async def secure(
    stream: trio.abc.Stream, context: ssl.SSLContext, server_name: str
) -> trio.abc.Stream:
    """The stream inside TLS, after the handshake. Raises trio.BrokenResourceError; see why()."""
    # Compatible: a server that closes without close_notify closes.
    secured = trio.SSLStream(
        stream, context, server_hostname=server_name or None, https_compatible=True
    )
    await secured.do_handshake()
    return secured


def why(error: ssl.SSLError) -> str:
    """What is wrong with TLS, in OpenSSL's words without its numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()


def mechanism(offered: Sequence[str]) -> str:
    """PLAIN, or LOGIN where that is not offered; empty: neither is."""
    return next((name for name in ("PLAIN", "LOGIN") if name in offered), "")


def answers(name: str, user: str, password: str) -> Iterator[bytes]:
    """The command of a mechanism, then what answers each 334; lines with their ends."""
    if name == "PLAIN":
        yield b"AUTH PLAIN " + _encoded(f"\0{user}\0{password}")
        return
    yield b"AUTH LOGIN\r\n"
    yield _encoded(user)
    yield _encoded(password)


def _encoded(text: str) -> bytes:
    return base64.b64encode(text.encode()) + b"\r\n"
