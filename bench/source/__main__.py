"""`python -m bench.source`."""

from bench.source.command import main
from worker.cli.exits import run_command

run_command(
    "source", lambda words: main.main(list(words), prog_name="source", standalone_mode=False)
)
