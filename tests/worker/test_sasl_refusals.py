"""Refused logins in a file that processes share (S094, S095). Each `Refusals` here is a process.

What is done in threads is waited for: no clock jumps by itself here.
"""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.request import Protocol
from worker.config.config import Config
from worker.environment import make_rules
from worker.sasl import refusal_file
from worker.sasl.refusal_file import Name, RefusalFile
from worker.sasl.refusals import Key, Refusal, Refusals, refusal_path
from worker.status.events import Event, Warned

DAYS = 86_400.0
NO = Refusal("5.7.8", "535 5.7.8 no")
LOGIN = ("mx.example", ("user", ""), "canary-password")
LIMIT = 60.0


@dataclass
class Host:
    """A host, its clock, and what its processes say."""

    path: Path
    now: float = 1_000_000.0
    events: list[Event] = field(default_factory=list)
    _started: list[Refusals] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.path / "refused.sqlite"

    def process(self) -> Refusals:
        """One more that shares."""
        refusals = Refusals(90 * DAYS)
        refusals.share(self.file, self.events.append, lambda: self.now)
        self._started.append(refusals)
        return refusals

    def end(self) -> None:
        for each in self._started:
            each.close()

    def warning(self) -> str:
        (told,) = self.events
        assert isinstance(told, Warned)
        return told.text


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host where guessing is cheap."""
    monkeypatch.setattr(refusal_file, "ROUNDS", 1)
    found = Host(tmp_path)
    yield found
    found.end()


@pytest.fixture
def still_clock() -> MockClock:
    """A virtual clock that stands still, so that threads have all the time they need."""
    return MockClock()


async def refuse(refusals: Refusals, secret: str = LOGIN[2]) -> Key:
    """A process tries a login, and is refused."""
    key = await refusals.key(*LOGIN[:2], secret)
    assert await refusals.claim(key) is None
    refusals.refused(key, NO)
    await refusals.settle(key)
    return key


async def known(refusals: Refusals, secret: str = LOGIN[2]) -> Refusal | None:
    """What a process finds before it tries; it gives up the trial."""
    key = await refusals.key(*LOGIN[:2], secret)
    found = await refusals.claim(key)
    if found is None:
        await refusals.settle(key)
    return found


@trio_test
async def test_s094_what_one_process_was_refused_no_other_tries(host: Host) -> None:
    first, second = host.process(), host.process()
    await refuse(first)
    assert await known(second) == NO
    assert await known(second, "other") is None
    third = host.process()  # started later
    assert await known(third) == NO
    assert host.events == []


class Waiting:
    """Counts how often a process was told that another one is trying; see `until`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._told: set[int] = set()
        self._begin = RefusalFile.begin
        monkeypatch.setattr(RefusalFile, "begin", lambda file, name: self(file, name))

    def __call__(self, file: RefusalFile, name: Name) -> tuple[Refusal, float] | bool:
        answer = self._begin(file, name)
        if answer is False:
            self._told.add(id(file))
        return answer

    async def until(self, count: int) -> None:
        """Until so many processes wait."""
        with trio.fail_after(LIMIT):
            while len(self._told) < count:  # noqa: ASYNC110  # they are told in threads
                await trio.sleep(0.01)


@trio_test
async def test_s094_while_one_process_tries_the_others_wait_for_its_verdict(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = host.process(), host.process(), host.process()
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    found, waiting = [], Waiting(monkeypatch)

    async def look(refusals: Refusals) -> None:
        found.append(await known(refusals))

    async with trio.open_nursery() as nursery:
        for each in (second, third):
            nursery.start_soon(look, each)
        await waiting.until(2)
        assert found == []
        first.refused(key, NO)
        await first.settle(key)
    assert found == [NO, NO]


@trio_test
async def test_s094_a_trial_without_a_verdict_leaves_it_to_the_next_one(host: Host) -> None:
    first, second = host.process(), host.process()
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known, second)
        await first.settle(key)
    # What has worked in one process is no news for others, who find out for themselves.
    assert await first.claim(key) is None
    first.accepted(key)
    await first.settle(key)
    assert await known(second) is None


@trio_test
async def test_s094_a_process_that_dies_while_it_tries_holds_up_nobody(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, sys; from pathlib import Path; from worker.sasl import refusal_file\n"
        "refusal_file.ROUNDS = 1\n"
        "file = refusal_file.RefusalFile.opened(Path(sys.argv[1]), 1e6, lambda: 1_000_000.0)\n"
        "assert file.begin(file.name(sys.argv[2], (sys.argv[3], ''), sys.argv[4])) is True\n"
        "print('trying', flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", script, str(host.file), "mx.example", "user", LOGIN[2]]
    second, waiting = host.process(), Waiting(monkeypatch)
    async with trio.open_nursery() as nursery:
        other = await trio.lowlevel.open_process(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout is not None
        try:
            with trio.fail_after(LIMIT):
                assert await other.stdout.receive_some()
                nursery.start_soon(known, second)
                await waiting.until(1)
        finally:
            other.kill()
            await other.wait()
        # And now known() comes to its end.


@trio_test
async def test_s094_a_trial_that_takes_too_long_is_waited_for_no_longer(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = host.process(), host.process(), host.process()
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    waiting = Waiting(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.claim, await second.key(*LOGIN))
        await waiting.until(1)
        host.now += refusal_file.TRIAL
    await first.settle(key)  # too late: it is not its trial any more
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known, third)
        await waiting.until(2)
        nursery.cancel_scope.cancel()


@trio_test
async def test_s095_after_its_time_a_refused_login_is_tried_again(
    host: Host, still_clock: MockClock
) -> None:
    first, second = host.process(), host.process()
    await refuse(first)

    def later(seconds: float) -> None:
        still_clock.jump(seconds)
        host.now += seconds

    later(30 * DAYS)
    assert await known(second) == NO  # from the file, and as old as it is there
    later(60 * DAYS - 1)
    for each in (first, second, host.process()):
        assert await known(each) == NO
    later(1)
    for each in (first, second, host.process()):
        assert await known(each) is None


@trio_test
async def test_what_works_later_is_no_more_refused_to_anybody(host: Host) -> None:
    first = host.process()
    await refuse(first)
    host.now += 90 * DAYS
    second = host.process()
    key = await second.key(*LOGIN)
    assert await second.claim(key) is None
    second.accepted(key)
    await second.settle(key)
    host.now -= 1.0  # a clock that is set back brings nothing back
    assert await known(host.process()) is None


@trio_test
async def test_what_worked_here_and_was_refused_elsewhere_is_not_tried_again(host: Host) -> None:
    first, second = host.process(), host.process()
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    first.accepted(key)
    await first.settle(key)
    await refuse(second)
    assert await first.claim(key) == NO
    # And the other way round: what this process learns, it tells.
    other = await first.key(*LOGIN[:2], "second")
    assert await first.claim(other) is None
    first.accepted(other)
    await first.settle(other)
    assert await first.claim(other) is None
    first.refused(other, NO)
    await first.settle(other)
    assert await known(second, "second") == NO


@trio_test
async def test_nobody_but_the_owner_can_read_the_file_and_no_password_is_in_it(host: Host) -> None:
    before = os.umask(0)
    try:
        first = host.process()
        key = await refuse(first)
    finally:
        os.umask(before)
    found = list(host.path.iterdir())
    assert host.file in found
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.geteuid()
        assert b"canary" not in path.read_bytes()
    assert key.shared is not None
    assert "canary" not in repr(key)
    # The same login has another name in another file.
    host.file.rename(host.path / "elsewhere")
    again = await host.process().key(*LOGIN)
    assert again.shared is not None
    assert again.shared.refusal != key.shared.refusal


def test_a_trial_is_no_clue_to_the_password_that_may_be_right(host: Host) -> None:
    file = RefusalFile.opened(host.file, 1e6)
    names = [file.name("mx.example", ("user", ""), secret) for secret in ("a", "b")]
    assert names[0].trial == names[1].trial
    assert names[0].refusal != names[1].refusal
    assert file.begin(names[0]) is True
    database = sqlite3.connect(host.file)
    assert names[0].refusal not in database.execute("SELECT * FROM trial").fetchone()
    database.close()
    file.close()


def test_guessing_a_password_from_the_file_is_slow() -> None:
    assert refusal_file.ROUNDS >= 200_000


@trio_test
async def test_the_file_is_bounded_and_the_oldest_go(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_file, "ROWS", 5)
    first, second = host.process(), host.process()
    for number in range(8):
        await refuse(first, str(number))
        host.now += 1.0
    found = [number for number in range(8) if await known(second, str(number)) is not None]
    assert found == [3, 4, 5, 6, 7]
    long = Refusal("5.7.8", "535 " + "x" * 100_000)
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    first.refused(key, long)
    await first.settle(key)
    told = await known(host.process())
    assert told is not None
    assert len(told.text) == refusal_file.TEXT


@trio_test
async def test_a_file_that_breaks_is_told_once_and_memory_goes_on(host: Host) -> None:
    first = host.process()
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("DROP TABLE refusal")
    other.close()
    for secret in ("a", "b"):
        await refuse(first, secret)
        assert await known(first, secret) == NO
    assert "refused.sqlite: no such table: refusal: refused logins are not shared" in host.warning()
    assert await known(first) is None


@trio_test
async def test_a_file_that_others_keep_busy_costs_an_attempt_and_no_mail(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_file, "BUSY", 0.01)
    first, second = host.process(), host.process()
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    await refuse(first)
    assert await known(first) == NO
    assert await known(second) is None
    other.execute("COMMIT")
    other.close()
    await refuse(second)
    assert await known(host.process()) == NO
    assert host.events == []


def link(host: Host) -> None:
    (host.path / "target").touch()
    host.file.symlink_to(host.path / "target")


def open_folder(host: Host) -> None:
    host.path.chmod(0o777)


def no_folder(host: Host) -> None:
    host.path.rename(host.path.with_name("elsewhere"))


def folder(host: Host) -> None:
    host.file.mkdir()


@pytest.mark.parametrize("trap", [link, open_folder, no_folder, folder])
@trio_test
async def test_a_file_that_is_not_ours_alone_is_not_used_and_that_is_told(
    host: Host, trap: Callable[[Host], None]
) -> None:
    trap(host)
    first = host.process()
    assert str(host.file) in host.warning()
    await refuse(first)
    assert await known(first) == NO


@trio_test
async def test_a_file_that_is_no_database_is_made_anew(host: Host) -> None:
    host.file.write_bytes(b"not a database at all" * 100)
    host.file.chmod(0o600)
    await refuse(host.process())
    assert await known(host.process()) == NO
    assert host.events == []


@trio_test
async def test_a_file_whose_damage_is_no_text_is_made_anew(host: Host) -> None:
    first = host.process()
    await refuse(first)
    first.close()
    octets = host.file.read_bytes()
    # SQLite's error quotes the name.
    damaged = octets.replace(b"refusalrefusal", b"\xffefusalrefusal")
    damaged = damaged.replace(b"CREATE TABLE refusal", b"CREATX TABLE refusal")
    assert damaged != octets
    host.file.write_bytes(damaged)
    second = host.process()
    assert await known(second) is None
    await refuse(second)
    assert await known(host.process()) == NO
    assert host.events == []


@trio_test
async def test_damage_that_is_no_text_is_told_once_and_memory_goes_on(host: Host) -> None:
    first = host.process()
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("PRAGMA writable_schema = ON")
    other.execute(
        "UPDATE sqlite_schema SET sql = 'CREATX', name = CAST(X'FF' AS TEXT) WHERE name = 'refusal'"
    )
    other.execute("PRAGMA schema_version = 99")
    other.close()
    await refuse(first)
    assert await known(first) == NO
    assert "refused logins are not shared" in host.warning()


@pytest.mark.parametrize(("process", "since"), [(1 << 62, 1e6), (0.5, 1e6), ("x", 1e6), (1, "x")])
@trio_test
async def test_a_trial_that_nobody_could_have_written_holds_up_nobody(
    host: Host, process: object, since: object
) -> None:
    first = host.process()
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    other = sqlite3.connect(host.file, isolation_level=None)
    other.execute("UPDATE trial SET process = ?, since = ?", (process, since))
    other.close()
    assert await known(host.process()) is None


@trio_test
async def test_who_closes_in_the_middle_of_a_trial_still_tells_its_end(host: Host) -> None:
    """As a reload does: what was begun goes on under the old configuration."""
    first, second = host.process(), host.process()
    key = await first.key(*LOGIN)
    assert await first.claim(key) is None
    first.close()
    first.refused(key, NO)
    await first.settle(key)
    assert await known(second) == NO
    # From now on it has its memory alone.
    assert await known(first) == NO
    assert await known(first, "other") is None
    await refuse(first, "third")
    assert await known(second, "third") is None
    assert host.events == []


def test_a_kill_in_the_middle_does_not_break_the_file(host: Host) -> None:
    script = (
        "import sys; from pathlib import Path; from worker.sasl import refusal_file\n"
        "refusal_file.ROUNDS = 1\n"
        "file = refusal_file.RefusalFile.opened(Path(sys.argv[1]), 1e6)\n"
        "refusal = refusal_file.Refusal('5.7.8', 'x' * 900)\n"
        "number = int(sys.argv[2])\n"
        "while True:\n"
        "    name = file.name('mx.example', ('user', ''), str(number))\n"
        "    assert file.begin(name) is True\n"
        "    file.end(name, refusal, accepted=False)\n"
        "    print(number, flush=True)\n"
        "    number += 1\n"
    )
    for round_ in range(1, 4):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(host.file), str(round_ * 1_000_000)],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            for _ in range(7 * round_):
                last = int(process.stdout.readline())
            process.kill()
            process.wait(LIMIT)
        file = RefusalFile.opened(host.file, 1e6)
        for number in range(round_ * 1_000_000, last + 1):
            assert file.find(file.name("mx.example", ("user", ""), str(number))) is not None
        file.close()
        database = sqlite3.connect(host.file)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


def test_processes_that_start_together_all_get_the_same_file(host: Host) -> None:
    script = (
        "import sys; from pathlib import Path; from worker.sasl import refusal_file\n"
        "refusal_file.ROUNDS = 1\n"
        "sys.stdin.readline()\n"
        "file = refusal_file.RefusalFile.opened(Path(sys.argv[1]), 1e6)\n"
        "print(file.name('mx.example', ('user', ''), 'x').refusal.hex(), flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(host.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=LIMIT)[0] for process in processes}
    assert len(said) == 1
    assert len(said.pop()) == 65


# --- as configured -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("proxy:btree:/var/lib/postfix/sasl_auth_cache", "/var/lib/postfix/sasl_auth_cache.sqlite"),
        ("lmdb:/x/a:b", "/x/a:b.sqlite"),
        ("sqlite:/x", "/x.sqlite"),
        ("memcache:/etc/postfix/x.cf", "/etc/postfix/x.cf.sqlite"),
        ("/x", None),
        ("btree:", None),
        ("btree:x", None),
        ("proxy:btree:", None),
        ("any", None),
    ],
)
def test_the_file_is_named_after_the_table_of_whatever_type(name: str, path: str | None) -> None:
    assert refusal_path(name) == (None if path is None else Path(path))


@trio_test
async def test_s094_the_file_is_made_for_who_delivers_and_not_for_who_checks(
    tmp_path: Path,
) -> None:
    settings = {
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": "static:user:secret",
        "smtp_sasl_auth_cache_name": f"proxy:btree:{tmp_path}/refused",
    }
    config = Config.from_mapping(settings)
    told: list[Event] = []
    make_rules(config, Protocol.SMTP, told.append, files=False).close()
    assert not (tmp_path / "refused.sqlite").exists()
    rules = make_rules(config, Protocol.SMTP, told.append)
    assert (tmp_path / "refused.sqlite").exists()
    rules.close()
    assert told == []
    config = Config.from_mapping({**settings, "smtp_sasl_auth_cache_name": "any"})
    make_rules(config, Protocol.SMTP, told.append).close()
    (warned,) = told
    assert isinstance(warned, Warned)
    assert "smtp_sasl_auth_cache_name = any: not type:/path/name; each process" in warned.text
