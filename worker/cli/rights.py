"""Giving up root's rights: `--user` and `--chroot` of long-running commands.

Rights are given up before anything is opened by name, not after: what is opened again later (a new
log file, a restarted worker's socket) must be within the user's reach anyway, and root that opens
names in a directory of the user's follows whatever was planted there. Only what needs root is done
as root: finding the account, making the queue directory, going into the jail.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.cli.exits import CommandError

ROOT = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Who a process becomes."""

    name: str
    uid: int
    gid: int


def find_account(name: str) -> Account:
    """The account of this name. Raises CommandError: there is none, or it is root."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise CommandError(
            f"--user {name}: there is no such user; make one (adduser --system) or name another",
            os.EX_NOUSER,
        ) from None
    if found.pw_uid == ROOT:
        raise CommandError(f"--user {name}: that keeps every right; name a user", os.EX_USAGE)
    return Account(name, found.pw_uid, found.pw_gid)


def check_jail(jail: Path, account: Account) -> None:
    """Raises CommandError if `jail` is no directory that only root can change."""
    where = f"--chroot {jail}"
    try:
        found = jail.stat()
    except OSError as exc:
        raise CommandError(f"{where}: {exc.strerror}", os.EX_CONFIG) from exc
    if not jail.is_absolute():
        raise CommandError(f"{where}: not an absolute path", os.EX_CONFIG)
    if not stat.S_ISDIR(found.st_mode):
        raise CommandError(f"{where}: not a directory", os.EX_CONFIG)
    if found.st_uid != ROOT or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = (
            f"must belong to root and be writable for nobody else, or {account.name} owns the jail"
        )
        raise CommandError(f"{where}: {why}", os.EX_CONFIG)


def require_root(what: str) -> None:
    """Raises CommandError unless we are root."""
    if os.geteuid() != ROOT:
        raise CommandError(f"{what} works only for root", os.EX_NOPERM)


def make_queue_directory(path: Path, account: Account) -> None:
    """Make the queue directory, if there is none, for its owner. Raises CommandError."""
    try:
        path.mkdir(mode=0o711)
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as exc:
        raise CommandError(f"queue_directory {path}: {exc.strerror}", os.EX_CANTCREAT) from exc


@contextmanager
def borrowed(account: Account) -> Iterator[None]:
    """Root acts with the rights of `account`, its groups included, and is root again afterwards."""
    groups = os.getgroups()
    os.initgroups(account.name, account.gid)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(ROOT)
        os.setegid(ROOT)
        os.setgroups(groups)


def become(account: Account) -> None:
    """Be `account` and nobody else, for good. Raises CommandError if that fails."""
    if (os.getuid(), os.geteuid()) == (account.uid, account.uid):
        return  # somebody else has seen to it
    require_root(f"--user {account.name}")
    try:
        os.initgroups(account.name, account.gid)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as exc:
        raise CommandError(f"cannot become {account.name}: {exc.strerror}", os.EX_OSERR) from exc


def enter_jail(jail: Path, account: Account) -> None:
    """See nothing but `jail` from now on, as `account`. Raises CommandError."""
    # The groups' names are in a file that the jail does not have.
    groups = os.getgrouplist(account.name, account.gid)
    try:
        os.chroot(jail)
        os.chdir("/")
        os.setgroups(groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as exc:
        raise CommandError(f"cannot go into {jail}: {exc.strerror}", os.EX_OSERR) from exc


def inside(jail: Path, path: Path) -> Path | None:
    """The name of `path` for who lives in `jail`; None: it cannot be seen from there."""
    try:
        return "/" / path.resolve().relative_to(jail.resolve())
    except ValueError:
        return None
