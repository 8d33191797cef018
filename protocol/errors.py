"""Whose fault a breach of protocol is: ours (a bug) or the peer's (an answer to live with)."""


class ProtocolError(Exception):
    """A rule of a wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """Our own call was illegal: wrong order, or a value that must not reach the wire."""


class RemoteProtocolError(ProtocolError):
    """The peer's octets were illegal: the connection is of no further use."""
