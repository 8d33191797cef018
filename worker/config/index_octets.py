"""The octets of an open file, and what a reader of them says of a file that is not whole.

For the files that postmap(1) makes (`table_indexed.py`). They are read with pread() and not mapped
into memory: a read beyond the end of a file that was cut is an error here, and would be the end of
the process (SIGBUS) there. That is why the lmdb and berkeleydb libraries are not used: the one dies
so, the other takes a missing page for an empty one and answers "not found".
"""

import os
from dataclasses import dataclass
from typing import Final, Protocol

LONGEST: Final = 1_000_000  # octets of a key or value, or of whatever is read in one piece


class CorruptIndexError(Exception):
    """The file is not of its format, or not all of it is there. The text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Octets:
    """An open file; its owner closes it."""

    descriptor: int

    @property
    def size(self) -> int:
        """Octets in the file now."""
        return os.fstat(self.descriptor).st_size

    def read(self, start: int, count: int) -> bytes:
        """Exactly so many octets. Raises CorruptIndexError, OSError."""
        # Looked at first: a length in a broken file may be any number.
        if count > LONGEST:
            raise CorruptIndexError(f"it has an item of {count} octets")
        if start + count > self.size:
            raise CorruptIndexError(f"it ends before octet {start + count}")
        found = bytearray()
        while len(found) < count:
            piece = os.pread(self.descriptor, count - len(found), start + len(found))
            if not piece:
                raise CorruptIndexError(f"it ends before octet {start + count}")
            found += piece
        return bytes(found)


class Index(Protocol):
    """Values by key."""

    def find(self, key: bytes) -> bytes | None:
        """The value of exactly this key; None: not found. Raises CorruptIndexError, OSError."""
