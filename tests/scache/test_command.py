"""Start-up: what root opens by name before it gives up its rights."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import scache.command
from scache.command import StartError
from scache.rights import User, find_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can borrow rights")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that others can pass through; pytest's `tmp_path` is not."""
    with tempfile.TemporaryDirectory(prefix="scache-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def home(place: Path) -> Path:
    """The user's own directory."""
    nobody = find_user("nobody")
    path = place / "home"
    path.mkdir(mode=0o700)
    os.chown(path, nobody.uid, nobody.gid)
    return path


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The daemon's logger, put back afterwards as it was."""
    log = logging.getLogger("scache")
    before = (log.handlers, log.level, log.propagate, logging.raiseExceptions)
    yield log
    if log.handlers is not before[0]:
        for handler in log.handlers:
            handler.close()
    log.handlers, log.level, log.propagate, logging.raiseExceptions = before


def complaint_of_start(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Start as far as rights are given up for good, which this process must not do."""

    def stop(user: User | None, chroot: Path | None) -> None:
        raise OSError("here the test stops")

    monkeypatch.setattr(scache.command, "give_up_rights", stop)
    path = log_file.with_name("private") / "scache"
    options = ["--socket", str(path), "--user", "nobody", "--log-file", str(log_file)]
    with pytest.raises(StartError) as caught:
        scache.command.scache.main(options, standalone_mode=False)
    return str(caught.value)


@as_root
def test_a_log_that_the_user_turns_to_a_place_of_roots_is_not_opened(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = place / "roots"
    (home / "log").symlink_to(target)
    said = complaint_of_start(home / "log", monkeypatch)
    assert not target.exists()
    assert said == f"cannot open the log {home}/log as nobody: Permission denied"


@as_root
def test_the_log_file_is_the_users_who_opens_it_again_later(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = complaint_of_start(home / "log", monkeypatch)
    assert said == "cannot give up rights: here the test stops"
    assert (home / "log").owner() == "nobody"
