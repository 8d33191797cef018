"""How many messages a sink took so far, in a file that others look at while it works.

For those who watch a sink and want nothing but a number: a message costs two additions in memory,
where a line of a record costs a digest, JSON and a write.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Final

# Of each process: messages taken, connections that brought at least one. Native order and size:
# nobody but this machine reads it.
_FIELDS: Final = struct.Struct("@QQ")


class CountFile:
    """A file of so many octets for each process, mapped and so never written to.

    Nothing is synchronised: a reader may see the two numbers of a process a message apart.
    """

    def __init__(self, path: Path, processes: int) -> None:
        """Make it, or begin it anew at zero. Raises OSError."""
        size = _FIELDS.size * processes
        try:
            with path.open("wb+") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not as SIGBUS
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as exc:
            raise OSError(exc.errno, f"cannot count: {exc.strerror}", str(path)) from exc
        self._numbers = memoryview(self._map).cast("Q")
        self._at = 0

    def leave_to(self, process: int) -> None:
        """Count as this process, from 0; each of those that share the file has to say so."""
        self._at = 2 * process

    def add(self) -> None:
        """A message more."""
        self._numbers[self._at] += 1

    def add_connection(self) -> None:
        """A connection more that brought one."""
        self._numbers[self._at + 1] += 1

    def close(self) -> None:
        """Let go of it; the file stays."""
        self._numbers.release()
        self._map.close()


def read_count(path: Path) -> tuple[int, int]:
    """Messages, and connections that brought one, of all processes. Raises OSError."""
    rows = list(_FIELDS.iter_unpack(path.read_bytes()))
    return sum(row[0] for row in rows), sum(row[1] for row in rows)
