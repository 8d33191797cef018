"""TLS: which policy holds for a server, the handshake, what it proved, and connections lent out."""
