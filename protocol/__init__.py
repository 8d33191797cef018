"""Facts of the wire, no I/O: what is said in SMTP, LMTP, DSN and between our own processes."""
