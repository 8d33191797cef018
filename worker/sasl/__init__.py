"""SASL: with which name and secret we log in at a server, by which mechanism, and who failed."""
