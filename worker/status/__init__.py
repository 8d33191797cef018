"""Typed events (events.py) and what subscribers make of them: log lines, the live table."""
