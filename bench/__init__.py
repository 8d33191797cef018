"""Sinks, sources, scenarios and figures: what load-tests mail servers, and what keeps us fast."""

from typing import Final

# For the entry point group postrio.commands: the module with the `command`, and its line of help.
COMMAND: Final = ("bench.command", "Load mail servers, stand in for them, and compare figures.")
