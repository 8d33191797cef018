"""The content of one message: small ones in memory, large ones behind a file descriptor.

Blocks are raw octets as stored; `protocol.data` makes wire octets of them. Nobody holds a large
message as a whole.
"""

import os
import sys
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
    """A content in an open regular file. Owns `fd`: whoever holds this object calls close().

    It was written by a `ContentScanner` (in the queue, or by `postrio deliver`), so it is canonical
    unless somebody has tampered with it since.
    """

    fd: int

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """The content in blocks of at most BLOCK_SIZE octets; OSError if it cannot be read.

        Who stops early closes the generator (`contextlib.aclosing`). Each block is a checkpoint.

        What the kernel has in memory is read at once: that is the rule for mail on its way, and a
        thread costs more than the read and the send together. What it must fetch is read in a
        thread, because a slow disk must not stall other deliveries. By offset, so that several
        readers can share one file.
        """
        offset = 0
        while True:
            block = _read_cached(self.fd, offset)
            if block is None:
                block = await trio.to_thread.run_sync(os.pread, self.fd, BLOCK_SIZE, offset)
            else:
                await trio.lowlevel.checkpoint()
            if not block:
                return
            yield block
            offset += len(block)

    def close(self) -> None:
        """Close the descriptor, once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _read_cached(fd: int, offset: int) -> bytes | None:
    """What the kernel has at hand; None: nothing, the end of the file, or it cannot tell.

    Linux has had RWF_NOWAIT since 4.14; not every file system knows it. A read that fails is left
    to the one in a thread, which fails in the same way, and so is the end of the file: Linux 5.9
    and 5.10 answer 0 where they mean EAGAIN (preadv2(2), BUGS), and the message would be truncated.
    """
    if sys.platform != "linux":
        return None
    buffer = bytearray(BLOCK_SIZE)
    try:
        octets = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return bytes(memoryview(buffer)[:octets]) if octets else None


Content = InlineContent | FileContent
