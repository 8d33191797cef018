"""What this process has open, to see that nothing that a test opened stays."""

import os

Descriptors = frozenset[tuple[str, str]]


def open_descriptors() -> Descriptors:
    """The numbers of all open descriptors, and what each of them is.

    Compare with `<=`: what was open before may end at any moment, where the garbage of another
    test is collected.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names, not paths
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))  # noqa: PTH115
        except FileNotFoundError:  # the one that listed them
            continue
    return frozenset(found)
