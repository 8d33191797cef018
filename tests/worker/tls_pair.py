"""Both ends of a TLS connection in one test: our client, and a server that is told what to do.

The server's end is a TlsStream too, so a test can have it say and leave out what no real server
would. That ours fits other implementations, the integration tests show.
"""

from dataclasses import dataclass, field

import trio
from OpenSSL import SSL

from tests.integration.pki import Leaf
from worker.tls.contexts import Contexts
from worker.tls.handshake import HandshakeError, TlsEngine, shake
from worker.tls.policy import Level, TlsFacts, TlsPolicy, Trust
from worker.tls.stream import TlsStream

MAY = TlsPolicy(level=Level.MAY)
UNKNOWN = TlsFacts(trust=Trust.ANONYMOUS, protocol="", cipher="", bits=0)


def server_context(leaf: Leaf | None, *, ciphers: str = "", tls12: bool = False) -> SSL.Context:
    """A context for servers: with the certificate of `leaf`, if there is one."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    if tls12:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    if ciphers:
        context.set_cipher_list(ciphers.encode())
    if leaf is not None:
        context.use_certificate_chain_file(str(leaf.chain))
        context.use_privatekey_file(str(leaf.key))
    context.set_session_id(b"test")
    return context


@dataclass
class Server:
    """Shakes hands as a server; what it saw of the client stays."""

    context: SSL.Context
    reason: str = ""  # why the handshake failed, at the server
    connections: list[SSL.Connection] = field(default_factory=list)

    async def handshake(self, transport: trio.abc.Stream) -> TlsStream | None:
        """The server's end, or None if it came to nothing."""
        connection = SSL.Connection(self.context)
        connection.set_accept_state()
        self.connections.append(connection)
        try:
            intake = await shake(connection, transport)
        except HandshakeError as exc:
            self.reason = exc.reason
            await transport.aclose()
            return None
        return TlsStream(transport, intake, MAY, UNKNOWN)


async def connect(
    near: trio.abc.Stream,
    far: trio.abc.Stream,
    server: Server,
    policy: TlsPolicy = MAY,
    engine: TlsEngine | None = None,
) -> tuple[TlsStream, TlsStream]:
    """Both ends, after the handshake. Raises HandshakeError, of the client."""
    engine = engine or TlsEngine(Contexts(), None, lambda _event: None)
    ends: list[TlsStream | None] = []
    failure: HandshakeError | None = None

    async def serve() -> None:
        ends.append(await server.handshake(far))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            client = await engine.handshake(
                near, policy, host="mx.good.example", address="127.0.0.1", port=25, nexthop="n"
            )
        except HandshakeError as exc:
            failure = exc
            await near.aclose()
    if failure is not None:
        raise failure
    [end] = ends
    assert end is not None, server.reason
    return client, end
