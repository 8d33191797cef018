"""`python -m worker` is `postrio`."""

from worker.cli import main

main()
