"""TLS sessions as octets, so that another process can resume them.

pyOpenSSL has no call for this. What its binding has is not promised to anybody, so it is looked
for, and where it is missing (cryptography 43, for one) sessions stay in the process that made them.
"""

from typing import Any, Final

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

LARGEST: Final = 65_536  # octets of one session; the server's certificate is in it
_NEEDED: Final = ("i2d_SSL_SESSION", "d2i_SSL_SESSION", "SSL_SESSION_free", "ERR_clear_error")

_lib: Any = Binding.lib
_ffi: Any = Binding.ffi


def can_encode() -> bool:
    """Whether this installation can do it at all."""
    return all(hasattr(_lib, name) for name in _NEEDED) and hasattr(_ffi, "gc")


def encode_session(session: SSL.Session) -> bytes | None:
    """The session in OpenSSL's DER, which holds secrets; None: it cannot be done."""
    pointer = getattr(session, "_session", None)
    if pointer is None or not can_encode():
        return None
    size = _lib.i2d_SSL_SESSION(pointer, _ffi.NULL)
    if not 0 < size <= LARGEST:
        _lib.ERR_clear_error()
        return None
    octets = _ffi.new("unsigned char[]", size)
    written = _lib.i2d_SSL_SESSION(pointer, _ffi.new("unsigned char **", octets))
    return bytes(_ffi.buffer(octets, written))


def decode_session(der: bytes, context: SSL.Context) -> SSL.Session | None:
    """The session for connections of `context`; None: it is none that this OpenSSL knows.

    The caller knows that `context` has the policy that the session was made under.
    """
    if not can_encode():
        return None
    octets = _ffi.new("unsigned char[]", der)
    position = _ffi.new("const unsigned char **", octets)
    pointer = _lib.d2i_SSL_SESSION(_ffi.NULL, position, len(der))
    if pointer == _ffi.NULL:
        _lib.ERR_clear_error()  # or the next call of pyOpenSSL would fail for it
        return None
    session = SSL.Session.__new__(SSL.Session)
    session._session = _ffi.gc(pointer, _lib.SSL_SESSION_free)  # noqa: SLF001  # no public way
    session._context = context  # noqa: SLF001  # pyOpenSSL compares it where it knows it
    return session
