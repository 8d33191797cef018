"""The connection cache: a pure store and the server that passes sockets between processes."""
