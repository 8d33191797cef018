"""SASL without I/O: what a client says to log in, mechanism by mechanism (RFC 4422, RFC 4954).

The exception is GSSAPI, whose library reads files and asks a KDC by itself: see `is_slow`.
Start at `mechanisms.py`, which knows all of them and chooses one. Base64 and the AUTH command are
SMTP's own: `protocol/command.py`.
"""
