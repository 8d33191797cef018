"""The content of one message: small ones in memory, large ones behind a file descriptor.

Blocks are raw octets as stored; `protocol.data` makes wire octets of them. Nobody holds a large
message as a whole.
"""

import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import trio

INLINE_LIMIT: Final = 65_536  # octets; larger contents are files and travel as descriptors
BLOCK_SIZE: Final = 262_144  # octets read from a file at a time


@dataclass(frozen=True, slots=True)
class InlineContent:
    """A content that fits in memory."""

    data: bytes

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """The content, in one block."""
        yield self.data

    def close(self) -> None:
        """Nothing to release."""


@dataclass(slots=True)
class FileContent:
    """A content in an open regular file. Owns `fd`: whoever holds this object calls close()."""

    fd: int

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """The content in blocks of at most BLOCK_SIZE octets; OSError if it cannot be read.

        Who stops early closes the generator (`contextlib.aclosing`).

        Reads happen in a thread (a slow disk must not stall other deliveries) and by offset, so
        that several readers can share one file.
        """
        offset = 0
        while block := await trio.to_thread.run_sync(os.pread, self.fd, BLOCK_SIZE, offset):
            yield block
            offset += len(block)

    def close(self) -> None:
        """Close the descriptor, once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Content = InlineContent | FileContent
