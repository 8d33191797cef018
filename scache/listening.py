"""The socket that clients come to: made at a safe path, inherited, or passed by systemd.

Whoever can replace the socket can read every session that is cached, so its path must be out of
others' reach: no component may belong to a stranger or be writable for others, the directory itself
not even readable for them (unless trusted users have to pass), and nothing may be a symbolic link
that somebody could turn elsewhere. The peer's user id is checked besides (`server.py`).

With `--user` root starts us, and the directory's owner can replace what is in it at any moment. So
root makes things with the rights of that owner, its own only where nobody else could interfere; and
nothing is given its mode by name afterwards.
"""

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scache.rights import User, borrowed, find_user

BACKLOG: Final = 1024  # every smtp(8) of a busy host may come at once; the kernel may allow fewer
_FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_PATH_LIMIT: Final = 100  # octets of a socket address; Linux takes 107


class UnsafePath(Exception):
    """The socket must not be put there: why, and what to do."""


class NoListener(Exception):
    """There is no socket to listen on: why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """Who the socket is for."""

    user: User | None = None  # who the daemon will run as; None: we ourselves
    trusted: frozenset[int] = frozenset()  # further user ids that may be clients

    @property
    def accepted(self) -> frozenset[int]:
        """User ids that may own the directory."""
        user = () if self.user is None else (self.user.uid,)
        return self.trusted | {0, os.geteuid(), *user}


# --- a socket of our own -------------------------------------------------------------------------


def open_socket(path: Path, owners: Owners) -> socket.socket:
    """Listen at `path`, for us, root and the trusted. Raises UnsafePath, NoListener, OSError.

    A socket that nobody listens on any more is replaced.
    """
    path = _safe_path(path, owners)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        maker = _maker_in(path.parent, owners)
        with borrowed(maker):
            _make_room(path)
            with _address(path) as address, _made_with(0o666 if owners.trusted else 0o600):
                listener.bind(address)
        if owners.user is not None and maker is None:  # in root's directory
            os.chown(path, owners.user.uid, owners.user.gid, follow_symlinks=False)
        listener.listen(BACKLOG)
        listener.setblocking(False)  # noqa: FBT003  # its parameter has no name
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def removed_at_end(path: Path) -> Iterator[None]:
    """Unlink the socket at the end, if it is still the one that is there now."""
    made = path.lstat().st_ino
    try:
        yield
    finally:
        with suppress(OSError):  # a chroot(2) may have taken it out of sight
            if path.lstat().st_ino == made:
                path.unlink()


def _safe_path(path: Path, owners: Owners) -> Path:
    """The path with its parents resolved, its directory made if missing.

    Raises UnsafePath, NoListener, OSError.
    """
    given = path.absolute().parent
    if given.is_symlink():
        raise UnsafePath(f"{given} is a symbolic link: name the directory itself")
    directory = given.parent.resolve() / given.name
    try:
        for parent in directory.parents:
            _check_parent(parent, owners)
        _make_directory(directory, owners)
    except FileExistsError:
        _check_directory(directory, owners)
    except FileNotFoundError:
        raise NoListener(f"{directory.parent} does not exist: make it first") from None
    return directory / path.name


def _make_directory(directory: Path, owners: Owners) -> None:
    """Make it for its owner. Raises OSError."""
    maker = _maker_in(directory.parent, owners)
    with borrowed(maker), _made_with(0o711 if owners.trusted else 0o700):
        directory.mkdir()
    if owners.user is None or maker is not None:
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, owners.user.uid, owners.user.gid)
    finally:
        os.close(descriptor)


def _maker_in(directory: Path, owners: Owners) -> User | None:
    """With whose rights something is made in a safe directory; None: our own."""
    if owners.user is None:
        return None
    # Bottom up: if somebody else could replace one of them, an upper one tells.
    places = [one.lstat().st_uid for one in (directory, *directory.parents)]
    if {0, os.geteuid()}.issuperset(places):
        return None
    return find_user(str(places[0])) if places[0] in owners.trusted else owners.user


@contextmanager
def _made_with(mode: int) -> Iterator[None]:
    """Sockets and directories that are made meanwhile have exactly this mode.

    From the first moment: a chmod() afterwards would follow a link that has taken the name.
    """
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _check_directory(directory: Path, owners: Owners) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath(f"{directory} is not a directory")
    if found.st_uid not in owners.accepted:
        raise UnsafePath(
            f"{directory} belongs to user id {found.st_uid}, who could replace the socket:"
            " trust this user (--trust), or take another directory"
        )
    allowed = 0o755 if owners.trusted else 0o700
    if (mode := stat.S_IMODE(found.st_mode)) & 0o777 & ~allowed:
        raise UnsafePath(
            f"{directory} has mode {mode:04o}, too open: take a directory for the socket alone,"
            " of mode 0700"
        )


def _check_parent(directory: Path, owners: Owners) -> None:
    found = directory.lstat()
    if found.st_uid not in owners.accepted:
        raise UnsafePath(
            f"{directory} belongs to user id {found.st_uid}, who could replace what is in it:"
            " trust this user (--trust), or take another directory"
        )
    # With the sticky bit, as in /tmp, others cannot replace what is ours.
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise UnsafePath(f"others can write to {directory}: take another directory")


def _make_room(path: Path) -> None:
    """Remove a socket that its daemon left behind. Raises UnsafePath, NoListener."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UnsafePath(f"{path} exists and is no socket: remove it, or take another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, _address(path) as address:
        probe.setblocking(False)  # noqa: FBT003  # its parameter has no name
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    raise NoListener(f"another process serves {path}: stop it, or take another path")


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """What to bind or connect to for `path`, however long it is. Raises OSError.

    A socket address holds some hundred octets: what is deeper is named by way of a descriptor of
    its directory.
    """
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


# --- somebody else's -----------------------------------------------------------------------------


def inherited_socket(descriptor: int) -> socket.socket:
    """The listening socket that our parent left open as `descriptor`. Raises NoListener."""
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise NoListener(f"descriptor {descriptor} is no open socket: {exc.strerror}") from exc
    try:
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        listener.detach()
        raise NoListener(f"descriptor {descriptor}: {exc.strerror}") from exc
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        listener.detach()
        raise NoListener(f"descriptor {descriptor} is not a listening UNIX stream socket")
    listener.set_inheritable(False)
    listener.setblocking(False)  # noqa: FBT003  # its parameter has no name
    return listener


def passed_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """The socket of systemd's socket activation; None: there is none. Raises NoListener."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None  # meant for another process, if for any
    count = environment.get("LISTEN_FDS", "")
    if count != "1":
        raise NoListener(f"LISTEN_FDS is {count!r}: the unit must have exactly one ListenStream")
    try:
        return inherited_socket(_FIRST_PASSED)
    except NoListener as exc:
        raise NoListener(f"socket activation: {exc}") from exc
