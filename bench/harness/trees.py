"""Directories that a turn makes go when it ends, whatever ends it."""

import shutil
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, as far as it can be; a signal meanwhile comes afterwards.

    A signal is an exception (`command.py`), also in the middle of this.
    """
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        shutil.rmtree(path, ignore_errors=True)  # nothing is left to do, unless that was cut short
