"""The client's side of a connection cache. Start at `client.py`; the daemon is `scache/`."""
