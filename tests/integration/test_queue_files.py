"""The queue on a real disk: killed processes, a full disk, a read-only one, large contents."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import trio_test

from tests.integration.queue_child import LARGE, NOW, is_whole, make_content, put
from worker.content import Content
from worker.queue.sqlite import open_store
from worker.queue.store import StoreError

ROOT = Path(__file__).parents[2]
KILLS = 20
MEMORY_LIMIT = 80_000  # kilobytes, interpreter included


def command(mode: str, directory: Path) -> list[str]:
    return [sys.executable, "-m", "tests.integration.queue_child", mode, str(directory)]


def run(arguments: list[str]) -> list[list[str]]:
    """What a child says, line by line, in words."""
    done = subprocess.run(
        arguments, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return [line.split() for line in done.stdout.splitlines()]


def run_and_kill(directory: Path, after: int) -> Iterator[tuple[str, str]]:
    """Let a child work until it has said `after` lines, then kill -9; all that it said."""
    with subprocess.Popen(
        command("work", directory), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for number, line in enumerate(child.stdout):
            word, queue_id = line.split()
            yield word, queue_id
            if number == after:
                child.kill()  # goes on working until then: the moment is any moment


async def read(content: Content | None) -> bytes:
    assert content is not None
    try:
        return b"".join([block async for block in content.blocks()])
    finally:
        content.close()


@trio_test
async def test_killed_at_random_moments_the_queue_keeps_its_word(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    choose = random.Random(7)
    queued, sending, sent, doubted = set[str](), set[str](), Counter[str](), set[str]()
    for _ in range(KILLS):
        for word, queue_id in run_and_kill(directory, choose.randint(0, 150)):
            if word == "sent":
                sent[queue_id] += 1
            else:
                {"queued": queued, "sending": sending, "doubt": doubted}[word].add(queue_id)
    async with await open_store(directory) as store:
        doubted |= {queue_id for queue_id, _ in await store.in_doubt()}
        left: set[str] = set()
        after = ""
        while page := await store.summaries(after=after):
            left |= {one.queue_id for one in page}
            after = page[-1].queue_id
        for queue_id in left:
            assert is_whole(await read(await store.read_content(queue_id)))
        files = sum(path.is_file() for path in (directory / "content").rglob("*"))
        assert files <= len(left)
    assert sent
    assert max(sent.values()) == 1  # nothing acknowledged as sent is sent again
    assert not left & sent.keys()
    # Whatever is gone was sent; if nobody was told so, the end of a process came in between.
    assert queued - left <= sending
    assert len(queued - left - sent.keys()) <= KILLS * 5  # at most what was under way
    assert left & sending <= doubted | left


@trio_test
async def test_contents_too_large_for_the_database_are_counted_right(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    async with await open_store(directory) as store:
        queue_ids = [await put(store, make_content(number)) for number in range(8)]
        assert sum(path.is_file() for path in (directory / "content").rglob("*")) == 2
        for number, queue_id in enumerate(queue_ids):
            assert await read(await store.read_content(queue_id)) == make_content(number)
        assert len(await store.claim(NOW, 100)) == 8


def mounting(script: str) -> list[str]:
    """A command that runs a shell script where it may mount what it likes, unseen by others."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "sh", "-ec", script]


def can_mount(directory: Path) -> bool:
    """Whether this machine lets us (containers often do not)."""
    script = f"mount -t tmpfs -o size=1m tmpfs {directory}"
    try:
        return subprocess.run(mounting(script), check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A directory to mount a small disk on."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if not can_mount(directory):
        # Not left out unseen: the same is shown in tests/worker with a database that must not grow.
        pytest.xfail("this machine does not let us mount a small disk")
    return directory


def test_on_a_full_disk_the_queue_can_still_be_emptied(mounted: Path) -> None:
    child = " ".join(command("fill", mounted / "queue"))
    said = run(mounting(f"mount -t tmpfs -o size=6m tmpfs {mounted}; exec {child}"))
    words = Counter(line[0] for line in said)
    assert words["full"] == 2
    assert words["sent"] == words["queued"] - 1 > 20
    assert said[-1][0] == "queued"  # there is room again
    assert not words["warning"]


def test_a_queue_on_a_read_only_disk_says_so(mounted: Path) -> None:
    child = " ".join(command("read-only", mounted / "queue"))
    [said] = run(mounting(f"mount -t tmpfs -o size=1m,ro tmpfs {mounted}; exec {child}"))
    assert said[0] == "error"
    assert "Read-only file system" in " ".join(said)


@trio_test
async def test_where_nothing_can_be_made_the_error_names_the_place() -> None:
    with pytest.raises(StoreError, match="cannot open the queue /proc/postrio"):
        await open_store(Path("/proc/postrio"))


def test_a_large_message_takes_little_memory(tmp_path: Path) -> None:
    (_, octets, size), (_, memory) = run(command("large", tmp_path / "queue"))
    assert int(octets) == int(size) > LARGE
    assert int(memory) < MEMORY_LIMIT
