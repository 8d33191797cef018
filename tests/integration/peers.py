"""Programs of other projects that tests talk to: where they are, which package has them."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PACKAGES: Final = Path(__file__).with_name("packages.txt")
DIRECTORIES: Final = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/lib/postfix/sbin",
    "/usr/lib/dovecot",
    "/usr/lib/postgresql/15/bin",
    "/usr/lib/postfix",
)


class UnknownPeerError(LookupError):
    """A test names a program that packages.txt does not list."""


def read_packages(text: str) -> dict[str, str]:
    """The package of each program, from the text of packages.txt."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        package, colon, programs = line.partition("#")[0].partition(":")
        if colon:
            found |= {program: package.strip() for program in programs.split()}
    return found


def find_program(name: str) -> str | None:
    """Path of a program, on PATH or where Debian keeps daemons; None: not installed.

    Also of a part of Postfix that is in a package of its own (.so), which cannot be executed.
    """
    mode = os.F_OK if name.endswith(".so") else os.F_OK | os.X_OK
    path = os.pathsep.join((os.environ.get("PATH", ""), *DIRECTORIES))
    return shutil.which(name, mode=mode, path=path)


def missing_packages(programs: Iterable[str], packages: dict[str, str]) -> list[str]:
    """The packages to install for these programs, sorted. Raises UnknownPeerError."""
    missing = set()
    for program in programs:
        if program not in packages:
            raise UnknownPeerError(f"{program} is in no package of {PACKAGES.name}")
        if find_program(program) is None:
            missing.add(packages[program])
    return sorted(missing)
