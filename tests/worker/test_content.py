"""A content in a file: the same blocks whether the kernel has them at hand or not."""

import os
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from worker.content import BLOCK_SIZE, FileContent

OCTETS = bytes(range(256)) * (BLOCK_SIZE // 256 * 2) + b"the rest"
PREADV = os.preadv


@contextmanager
def content(directory: Path) -> Iterator[FileContent]:
    """An open content of OCTETS."""
    file = directory / "content"
    file.write_bytes(OCTETS)
    content = FileContent(os.open(file, os.O_RDONLY))
    try:
        yield content
    finally:
        content.close()


def at_hand(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
    """All of it, whatever this file system can tell."""
    return PREADV(fd, buffers, offset)


def in_part(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
    """A page, and the next one would have to be fetched."""
    if offset % 8192:
        raise BlockingIOError
    return PREADV(fd, [memoryview(buffer)[:4096] for buffer in buffers], offset)


def as_in_linux_5_10(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
    """Nothing, where it should say that it would have to wait."""
    return 0 if offset else PREADV(fd, buffers, offset)


def unsupported(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
    """As file systems without RWF_NOWAIT answer."""
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("preadv", [PREADV, at_hand, in_part, as_in_linux_5_10, unsupported])
@trio_test
async def test_a_file_is_read_as_it_is_however_much_is_at_hand(
    preadv: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", preadv)
    with content(tmp_path) as file:
        async with aclosing(file.blocks()) as blocks:
            found = [block async for block in blocks]
    assert b"".join(found) == OCTETS
    assert max(map(len, found)) <= BLOCK_SIZE


@trio_test
async def test_what_is_at_hand_needs_no_thread_and_still_lets_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object) -> bytes:
        raise AssertionError("read in a thread")

    monkeypatch.setattr(os, "preadv", at_hand)
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    with content(tmp_path) as file:
        async with aclosing(file.blocks()) as blocks:
            for _ in range(len(OCTETS) // BLOCK_SIZE + 1):
                with trio.testing.assert_checkpoints():
                    await anext(blocks)


@trio_test
async def test_a_read_that_fails_says_why(tmp_path: Path) -> None:
    content = FileContent(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    try:
        async with aclosing(content.blocks()) as blocks:
            with pytest.raises(IsADirectoryError):
                await anext(blocks)
    finally:
        content.close()
