"""What a result was measured on: the machine, the tree, the versions of everybody who took part."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("postrio", "trio", "dnspython", "pyOpenSSL", "aiosmtplib")
COMMAND_LIMIT: Final = 10.0  # seconds for a program that only says its version
_HERE: Final = Path(__file__).parent


def machine() -> dict[str, object]:
    """Processors, model, memory, kernel, Python, versions, and how busy it was beforehand."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "model": _model(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),  # octets
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {**{name: _installed(name) for name in PACKAGES}, "Postfix": _postfix()},
        "load_before": round(os.getloadavg()[0], 2),
    }


def now() -> str:
    """The date of a result."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """The commit of the tree that this code is in; "…, changed" if it was; None: it is in none."""
    # An installed copy may lie in somebody else's tree: it must be one that holds this very file.
    if _said(["git", "ls-files", "--error-unmatch", Path(__file__).name]) is None:
        return None
    head = _said(["git", "rev-parse", "HEAD"])
    changed = _said(["git", "status", "--porcelain", "--untracked-files=no"])
    return f"{head}, changed" if head and changed else head


def _model() -> str | None:
    """The name of the processor; None: the kernel does not say (not every architecture's does)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _postfix() -> str | None:
    return _said(["/usr/sbin/postconf", "-d", "-h", "mail_version"])


def _said(command: Sequence[str]) -> str | None:
    """What a program says, stripped; None: it cannot be run, or fails."""
    try:
        done = subprocess.run(
            command,
            cwd=_HERE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_LIMIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
