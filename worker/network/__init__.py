"""Resolver, MX, connecting: from a destination to an open stream. Start in endpoints.py."""
