"""Users by name, giving up root's rights, and room for open files."""

import os
import pwd
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_OTHERS: Final = 32  # descriptors besides connections and clients: log, epoll, signals


@dataclass(frozen=True, slots=True)
class User:
    """An account."""

    name: str
    uid: int
    gid: int


def find_user(name: str) -> User:
    """The account of this name or number. Raises LookupError, which says what is wrong."""
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise LookupError(f"there is no user {name!r}") from None
    return User(found.pw_name, found.pw_uid, found.pw_gid)


@contextmanager
def borrowed(user: User | None) -> Iterator[None]:
    """Root acts with the rights of `user`, groups included, and is root again afterwards.

    For what is opened or made by name where the user may have planted links: they lead root no
    further than the user gets. Anybody but root keeps its own rights, and so does None.
    """
    if user is None or os.geteuid() != 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        os.initgroups(user.name, user.gid)
        os.setegid(user.gid)
        os.seteuid(user.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def give_up_rights(user: User | None, chroot: Path | None) -> None:
    """Go into `chroot` and become `user`, for good. Raises OSError."""
    if user is not None:
        os.initgroups(user.name, user.gid)  # reads /etc/group, so before the jail is shut
    if chroot is not None:
        os.chroot(chroot)
        os.chdir("/")
    if user is not None:
        os.setgid(user.gid)
        os.setuid(user.uid)


def connections_that_fit(wanted: int, clients: int) -> int:
    """How many connections we can hold besides so many clients, at most `wanted`; at least one.

    Raises the limit of open files as far as we may.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # an unlimited hard limit that the kernel does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - clients - _OTHERS))
