"""What ties a login to its TLS connection: octets that nobody but its two ends has."""

import trio

from protocol.sasl.mechanism import ChannelBinding
from worker.tls.stream import TlsStream

_KIND = "tls-exporter"
_LABEL = b"EXPORTER-Channel-Binding"
_LENGTH = 32


def channel_binding(stream: trio.abc.Stream) -> ChannelBinding | None:
    """The binding of a connection with TLS 1.3 (RFC 9266); None: there is none to use.

    For older versions servers disagree about which one they mean, and nobody can ask; and a
    connection that another process holds the keys of has none here.
    """
    if not isinstance(stream, TlsStream) or stream.facts.protocol != "TLSv1.3":
        return None
    return ChannelBinding(_KIND, stream.keying_material(_LABEL, _LENGTH))
