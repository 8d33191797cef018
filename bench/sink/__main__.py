"""`python -m bench.sink`."""

from bench.sink.command import main
from worker.cli.exits import run_command

if __name__ == "__main__":
    run_command("sink", lambda arguments: main.main(list(arguments), standalone_mode=False))
