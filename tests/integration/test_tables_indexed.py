"""Indexed files that real postmap makes: ours finds in them what postmap -q does."""

import fcntl
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.integration.peers import find_program
from tests.integration.postmap import TROUBLE, Answer, postmap_make, postmap_query
from worker.config.index_octets import LONGEST
from worker.config.table_indexed import FORMATS, LOCK_LIMIT
from worker.config.tables import Table, TableError, open_table

pytestmark = pytest.mark.peer("postfix", "postfix-cdb.so", "postfix-lmdb.so")

KINDS = sorted(FORMATS)
TEXT = """\
# a comment
a@b.c     x@y
Upper@B.C some  text
 and more
long@b.c  {long}
\u00fc@b.c   \u00e4
"""
LONG = "y" * 20_000  # on pages of its own


def opened(spec: str) -> Table:
    return open_table(spec, environ={}, clock=lambda: 0.0)


def ours(table: Table, key: str) -> Answer:
    try:
        return trio.run(table.lookup, key)
    except TableError:
        return TROUBLE


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "table"
    path.write_text(TEXT.format(long=LONG))
    return path


def file_of(spec: str) -> Path:
    kind, _, name = spec.partition(":")
    return Path(name + FORMATS[kind].suffix)


@pytest.mark.parametrize("kind", KINDS)
def test_s084_indexed_tables_answer_as_postmap(text: Path, kind: str) -> None:
    spec = postmap_make(text, kind)
    table = opened(spec)
    for key in ("a@b.c", "A@b.c", "upper@b.c", "UPPER@b.c", "long@b.c", "\u00fc@b.c", "a@b", "a"):
        assert ours(table, key) == postmap_query(text.parent, spec, key), key
    assert ours(table, "UPPER@b.c") == "some  text and more"
    assert ours(table, "long@b.c") == LONG
    assert ours(table, "nobody") is None


@pytest.mark.parametrize("kind", ["btree", "hash"])
def test_tables_that_are_read_as_a_whole_list_their_entries(text: Path, kind: str) -> None:
    assert opened(postmap_make(text, kind)).entries() == {
        "a@b.c": "x@y",
        "upper@b.c": "some  text and more",
        "long@b.c": LONG,
        "\u00fc@b.c": "\u00e4",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_s084_every_key_of_a_large_table_is_found_and_no_deleted_one(
    tmp_path: Path, kind: str
) -> None:
    sizes = random.Random(7)
    texts = {f"key{n}@{n % 7}.example": "v" * sizes.choice([1, 30, 3000]) for n in range(1500)}
    path = tmp_path / "table"
    path.write_text("".join(f"{key} {value}\n" for key, value in texts.items()))
    spec = postmap_make(path, kind)
    if kind != "cdb":  # which cannot be changed
        gone = list(texts)[::3]
        postmap_make(path, kind, "-d", "-", keys="\n".join(gone))
        texts |= dict.fromkeys(gone, "")
    table = opened(spec)

    async def find_all() -> dict[str, str]:
        return {key: await table.lookup(key) or "" for key in texts}

    assert trio.run(find_all) == texts


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_table_has_no_key(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "table"
    path.write_text("")
    assert ours(opened(postmap_make(path, kind)), "a") is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_made_anew_is_seen(text: Path, kind: str) -> None:
    table = opened(postmap_make(text, kind))
    assert ours(table, "a@b.c") == "x@y"
    text.write_text("a@b.c another text\n")
    postmap_make(text, kind)
    assert ours(table, "a@b.c") == "another text"
    file_of(table.spec).unlink()
    assert ours(table, "a@b.c") == TROUBLE


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_is_newer_than_its_table_is_warned_of(text: Path, kind: str) -> None:
    table = opened(postmap_make(text, kind))
    assert not table.warnings
    file = file_of(table.spec)
    status = file.stat()
    later = status.st_mtime_ns + 10**9
    os.utime(text, ns=(later, later))
    assert list(table.warnings) == [f"database {file} is older than source file {text}"]


DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda _octets: b"",
    lambda octets: octets[:100],
    lambda octets: octets[: len(octets) // 2],
    lambda octets: octets[:-4096] if len(octets) > 20_000 else octets[:-1],
    lambda octets: b"junk" * (len(octets) // 4),
    lambda octets: octets[:16] + b"\xff" * (len(octets) - 16),
]


@pytest.mark.parametrize("damage", range(len(DAMAGE)))
@pytest.mark.parametrize("kind", KINDS)
def test_s084_a_table_that_is_not_whole_is_trouble(text: Path, kind: str, damage: int) -> None:
    table = opened(postmap_make(text, kind))
    file = file_of(table.spec)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    answers = {ours(table, key) for key in ("a@b.c", "long@b.c")}
    assert TROUBLE in answers
    assert None not in answers


@pytest.mark.parametrize("page", [bytes(4096), b"\x0c"])
def test_s084_a_page_that_is_lost_is_no_empty_one(text: Path, page: bytes) -> None:
    """As zeros, which a crash may leave, or of a kind that has no place there."""
    table = opened(postmap_make(text, "btree"))
    file = file_of(table.spec)
    octets = bytearray(file.read_bytes())
    root = 4096  # and leaf: the page behind the first
    assert octets[root + 25] == 5
    at = root if len(page) > 1 else root + 25
    octets[at : at + len(page)] = page
    file.write_bytes(octets)
    assert ours(table, "a@b.c") == TROUBLE


@pytest.mark.parametrize("kind", ["cdb", "lmdb"])
def test_s084_a_value_of_any_length_does_not_fill_the_memory(tmp_path: Path, kind: str) -> None:
    text, longest = tmp_path / "table", "y" * (LONGEST - 1)  # and perhaps a NUL
    text.write_text(f"long {longest}\nlonger {longest}yy\n")
    table = opened(postmap_make(text, kind))
    assert ours(table, "long") == longest
    assert ours(table, "longer") == TROUBLE


@pytest.mark.parametrize("kind", KINDS)
def test_s084_a_broken_table_never_answers_with_more_than_trouble(text: Path, kind: str) -> None:
    """Whatever octets are wrong: an answer or trouble, and an end."""
    table = opened(postmap_make(text, kind))
    file = file_of(table.spec)
    good = file.read_bytes()
    used = [at for at, octet in enumerate(good) if octet]  # most of a file is empty
    draw = random.Random(11)

    async def ask_all() -> set[type[BaseException] | None]:
        seen: set[type[BaseException] | None] = set()
        for turn in range(300):
            octets = bytearray(good)
            for _ in range(draw.randint(1, 8)):
                octets[draw.choice(used)] = draw.choice([0, 1, 0xFF, draw.randrange(256)])
            file.write_bytes(octets[: draw.randrange(len(octets))] if turn % 3 == 0 else octets)
            for key in ("a@b.c", "long@b.c", "nobody"):
                try:
                    await table.lookup(key)
                    seen.add(None)
                except TableError as exc:
                    seen.add(type(exc))
        return seen

    assert trio.run(ask_all) == {None, TableError}


def flocked(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def record_locked(descriptor: int) -> None:
    # By the opening and not by the process, which could not lock itself out.
    whole_file = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole_file)


@pytest.mark.parametrize(
    ("kind", "lock"), [("btree", flocked), ("hash", flocked), ("lmdb", record_locked)]
)
def test_s084_a_lookup_waits_for_who_writes(
    text: Path, kind: str, lock: Callable[[int], None]
) -> None:
    spec = postmap_make(text, kind)

    async def main() -> None:
        with file_of(spec).open("r+b") as writer:
            lock(writer.fileno())
            table = opened(spec)  # which does not wait
            with pytest.raises(TableError, match="is locked by who writes it"):
                await table.lookup("a@b.c")
            assert trio.current_time() == pytest.approx(LOCK_LIMIT)
            async with trio.open_nursery() as nursery:
                answers: list[str | None] = []

                async def look_up() -> None:
                    answers.append(await table.lookup("a@b.c"))

                nursery.start_soon(look_up)
                await trio.sleep(LOCK_LIMIT / 2)
                assert not answers
                writer.close()
            assert answers == ["x@y"]

    trio.run(main, clock=MockClock(autojump_threshold=0))


# Of lmdb it was seen with strace: fcntl(F_WRLCK) while it writes, of the whole file.
@pytest.mark.parametrize("kind", ["btree", "hash"])
def test_s084_the_lock_of_postmap_is_seen(text: Path, kind: str) -> None:
    spec = postmap_make(text, kind)
    postmap = find_program("postmap")
    assert postmap is not None
    command = [postmap, "-c", str(text.parent), "-i", spec]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as writer,
        file_of(spec).open("rb") as reader,
    ):
        try:
            until = time.monotonic() + 60
            while not is_locked(kind, reader.fileno()):  # it has just been started
                assert time.monotonic() < until
                fcntl.flock(reader, fcntl.LOCK_UN)
                time.sleep(0.01)
        finally:
            writer.communicate(b"new@b.c new\n")
    assert ours(opened(spec), "new@b.c") == "new"


def is_locked(kind: str, descriptor: int) -> bool:
    try:
        FORMATS[kind].lock(descriptor)
    except BlockingIOError:
        return True
    return False
