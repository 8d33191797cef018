"""The socket's place: whoever owns the directory cannot turn root's rights against others."""

import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scache.listening import Owners, UnsafePath, open_socket
from scache.rights import User, borrowed, find_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can borrow rights")

Bind = Callable[[socket.socket, str], None]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that others can pass through; pytest's `tmp_path` is not."""
    with tempfile.TemporaryDirectory(prefix="scache-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def nobody() -> User:
    return find_user("nobody")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def listen(path: Path, user: User | None = None, trusted: frozenset[int] = frozenset()) -> None:
    open_socket(path, Owners(user=user, trusted=trusted)).close()


@pytest.mark.parametrize(
    ("trusted", "mode"), [(frozenset[int](), 0o600), (frozenset({12_345}), 0o666)]
)
def test_a_link_that_replaces_the_socket_at_once_gives_its_target_no_mode(
    trusted: frozenset[int], mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "private" / "scache"
    precious = tmp_path / "precious"
    precious.touch()
    precious.chmod(0o640)
    bind: Bind = socket.socket.bind

    def bind_and_replace(sock: socket.socket, address: str) -> None:
        bind(sock, address)
        path.rename(path.with_name("moved"))
        path.symlink_to(precious)

    monkeypatch.setattr(socket.socket, "bind", bind_and_replace)
    listen(path, trusted=trusted)
    assert mode_of(precious) == 0o640
    assert mode_of(path.with_name("moved")) == mode


def test_a_link_that_replaces_the_new_directory_at_once_gives_its_target_no_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    precious.chmod(0o750)
    mkdir = Path.mkdir

    def mkdir_and_replace(directory: Path, *arguments: Any, **options: Any) -> None:
        mkdir(directory, *arguments, **options)
        directory.rename(directory.with_name("moved"))
        directory.symlink_to(precious)

    monkeypatch.setattr(Path, "mkdir", mkdir_and_replace)
    listen(tmp_path / "private" / "scache")
    assert mode_of(precious) == 0o750
    assert mode_of(tmp_path / "moved") == 0o700


@pytest.mark.parametrize("umask", [0, 0o077])
def test_modes_do_not_depend_on_the_umask_and_leave_it_alone(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        listen(tmp_path / "alone" / "scache")
        listen(tmp_path / "shared" / "scache", trusted=frozenset({12_345}))
    finally:
        assert os.umask(before) == umask
    modes = [mode_of(tmp_path / name) for name in ("alone", "shared")]
    assert modes == [0o700, 0o711]
    modes = [mode_of(tmp_path / name / "scache") for name in ("alone", "shared")]
    assert modes == [0o600, 0o666]


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The user ids with whose rights sockets were bound."""
    bind: Bind = socket.socket.bind
    users: list[int] = []

    def watched(sock: socket.socket, address: str) -> None:
        users.append(os.geteuid())
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", watched)
    return users


@as_root
def test_root_makes_the_directory_and_the_user_the_socket(
    place: Path, nobody: User, makers: list[int]
) -> None:
    path = place / "private" / "scache"
    for _ in range(2):  # the second time what the first one left behind is replaced
        listen(path, nobody)
    assert makers == [nobody.uid] * 2
    assert (path.parent.owner(), path.owner()) == ("nobody", "nobody")
    assert path.lstat().st_gid == nobody.gid
    assert (mode_of(path.parent), mode_of(path)) == (0o700, 0o600)
    assert os.geteuid() == 0


@as_root
def test_in_roots_own_directory_root_makes_the_socket_for_the_user(
    place: Path, nobody: User, makers: list[int]
) -> None:
    (place / "private").mkdir(mode=0o700)
    listen(place / "private" / "scache", nobody)
    assert makers == [0]
    assert (place / "private" / "scache").owner() == "nobody"


@as_root
def test_in_a_trusted_users_directory_the_socket_is_made_as_that_one(
    place: Path, nobody: User, makers: list[int]
) -> None:
    daemon = find_user("daemon")
    (place / "private").mkdir(mode=0o700)
    os.chown(place / "private", nobody.uid, nobody.gid)
    listen(place / "private" / "scache", daemon, frozenset({nobody.uid}))
    assert makers == [nobody.uid]
    assert mode_of(place / "private" / "scache") == 0o666


@as_root
def test_root_makes_nothing_where_the_user_could_replace_a_directory_of_roots(
    place: Path, nobody: User
) -> None:
    (place / "home" / "private").mkdir(parents=True, mode=0o700)
    os.chown(place / "home", nobody.uid, nobody.gid)
    with pytest.raises(PermissionError):
        listen(place / "home" / "private" / "scache", nobody)
    assert not (place / "home" / "private" / "scache").exists()


@as_root
def test_in_the_users_directory_the_user_makes_the_one_for_the_socket(
    place: Path, nobody: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "home").mkdir(mode=0o755)
    os.chown(place / "home", nobody.uid, nobody.gid)
    mkdir = Path.mkdir
    users: list[int] = []

    def watched(directory: Path, *arguments: Any, **options: Any) -> None:
        users.append(os.geteuid())
        mkdir(directory, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", watched)
    listen(place / "home" / "private" / "scache", nobody)
    assert users == [nobody.uid]
    assert (place / "home" / "private").owner() == "nobody"


@as_root
def test_the_user_may_have_a_long_path(place: Path, nobody: User) -> None:
    path = place / ("long" * 40) / "scache"
    listen(path, nobody)
    assert path.owner() == "nobody"


@as_root
def test_a_file_in_the_place_of_the_socket_is_left_alone(place: Path, nobody: User) -> None:
    path = place / "private" / "scache"
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, nobody.uid, nobody.gid)
    path.touch()
    with pytest.raises(UnsafePath, match="is no socket"):
        listen(path, nobody)
    assert path.exists()


@as_root
def test_rights_are_borrowed_with_groups_and_given_back(nobody: User) -> None:
    def rights() -> tuple[int, int, set[int]]:
        return os.geteuid(), os.getegid(), set(os.getgroups())

    before = rights()
    with borrowed(nobody):
        groups = set(os.getgrouplist(nobody.name, nobody.gid))
        assert rights() == (nobody.uid, pwd.getpwuid(nobody.uid).pw_gid, groups)
    assert rights() == before
    with borrowed(None):
        assert rights() == before
