"""Text files of the configuration: reading, noticing changes; tables in them; the type texthash.

A file is read when the table is opened and again when a lookup finds it changed; it is looked at
once a second at most. It is read in place, not in a thread: such files are small, and a lookup then
never sees two states. A file that is gone or broken makes lookups fail (TableError) until it is
right again: an old answer or "not found" could send mail the wrong way.

A file that a process has left outside its jail (chroot) is neither: it is known to be out of sight,
and keeps the contents that were read before (`keep_out_of_sight`).
"""

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from worker.config.main_cf import logical_lines
from worker.config.table import Table, TableConfigError, TableError

Clock = Callable[[], float]  # seconds, from any beginning
Contents = TypeVar("Contents")
Read = Callable[[str, str], tuple[Contents, list[str]]]  # (text, place) -> contents, warnings
Find = Callable[[Contents, str], str | None]

LOOK_AGAIN = 1.0  # seconds between two looks at a file

_Signature = tuple[int, int, int]

# All that this process watches: a jail is of a process, too.
_watched: "weakref.WeakSet[WatchedFile[Any]]" = weakref.WeakSet()


def keep_out_of_sight() -> list[str]:
    """To be called by a process that has gone into a jail; the files that it has left outside.

    They keep the contents that they had. One that is also there in the jail, under the same name,
    is watched as ever.
    """
    return sorted({str(file.path) for file in list(_watched) if file.keep_if_out_of_sight()})


class WatchedFile(Generic[Contents]):
    """What `read` makes of a file's text, kept up with the file. `spec` names it in errors."""

    def __init__(self, spec: str, path: Path, clock: Clock, read: Read[Contents]) -> None:
        """Raises TableConfigError if the file cannot be read now."""
        if not path.is_absolute():
            raise TableConfigError(
                f'"{path}" depends on the working directory',
                f"a path from the root, as $config_directory/{path}",
            )
        self._spec = spec
        self.path = path
        self._clock = clock
        self._read = read
        self._looked = clock()
        self._out_of_sight = False  # outside our jail: it is not gone
        self._signature, self._contents, self.warnings = self._load()
        _watched.add(self)

    def contents(self) -> Contents:
        """The contents as of a second ago or later. Raises TableError while it cannot be read."""
        now = self._clock()
        if now - self._looked >= LOOK_AGAIN:
            self._look(now)
        return self._contents

    def keep_if_out_of_sight(self) -> bool:
        """See keep_out_of_sight(). If there is no such file now, there never was: it is outside."""
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._out_of_sight = True
        except OSError:
            pass  # something is there, and in trouble: the next lookup says so
        return self._out_of_sight

    def _look(self, now: float) -> None:
        if self._out_of_sight:
            self._looked = now
            return
        try:
            status = self.path.stat()
            if _signature(status) != self._signature:
                self._signature, self._contents, self.warnings = self._load()
        except (OSError, TableConfigError) as exc:
            why = exc.why if isinstance(exc, TableConfigError) else f"{exc.strerror or exc}"
            raise TableError(f"{self._spec} cannot be used: {why}") from exc
        self._looked = now  # not after trouble: then each lookup looks, until it is right

    def _load(self) -> tuple[_Signature, Contents, list[str]]:
        try:
            with self.path.open("rb") as file:
                # The signature of what is read, and from before: a change while we read is seen.
                signature = _signature(os.fstat(file.fileno()))
                text = file.read().decode("utf-8")
        except OSError as exc:
            raise TableConfigError(
                f"{self.path} cannot be read: {exc.strerror or exc}", "a file that can be read"
            ) from exc
        except UnicodeDecodeError as exc:
            line = exc.object[: exc.start].count(b"\n") + 1
            raise TableConfigError(f"{self.path}:{line}: not UTF-8 text", "UTF-8") from exc
        contents, warnings = self._read(text, str(self.path))
        return signature, contents, warnings


class FileTable(Table, Generic[Contents]):
    """A table whose contents `read` makes of a file's text, and in which `find` finds a key."""

    def __init__(
        self, spec: str, path: Path, clock: Clock, read: Read[Contents], find: Find[Contents]
    ) -> None:
        """Raises TableConfigError if the file cannot be read now."""
        super().__init__(spec)
        self._file = WatchedFile(spec, path, clock, read)
        self._find = find

    async def lookup(self, key: str) -> str | None:
        """See Table. Raises TableError while the file cannot be read."""
        return self._find(self._file.contents(), key)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Table."""
        return tuple(self._file.warnings)


def _signature(status: os.stat_result) -> _Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _TextHash(FileTable[dict[str, str]]):
    def entries(self) -> Mapping[str, str]:
        return self._file.contents()


def open_texthash(spec: str, name: str, clock: Clock) -> Table:
    """`texthash:/file`: lines of key, white space, text; keys in any case of letters.

    The format of postmap(1). The first of equal keys holds; a line that is not of the form is left
    out with a warning. Raises TableConfigError.
    """
    return _TextHash(spec, Path(name), clock, _read_texthash, _find_text)


def _find_text(texts: dict[str, str], key: str) -> str | None:
    return texts.get(key.casefold())


def _read_texthash(text: str, place: str) -> tuple[dict[str, str], list[str]]:
    texts: dict[str, str] = {}
    warnings: list[str] = []
    for number, line in logical_lines(text):
        key, value = _split_key(line)
        if line[0] in " \t":
            warnings.append(f"{place}:{number}: a line that continues none is left out")
        elif not value:
            warnings.append(f"{place}:{number}: left out; expected key, white space, text")
        elif key.casefold() in texts:
            warnings.append(f"{place}:{number}: left out; an earlier line has this key")
        else:
            if key.endswith(":"):
                warnings.append(f'{place}:{number}: the key ends in ":"; is this an alias file?')
            texts[key.casefold()] = value
    return texts, warnings


def _split_key(line: str) -> tuple[str, str]:
    """Key and text. White space inside quotes or after a backslash belongs to the key."""
    quoted, at = False, 0
    while at < len(line):
        char = line[at]
        if char == "\\":
            at += 1
        elif char == '"':
            quoted = not quoted
        elif char in " \t" and not quoted:
            break
        at += 1
    return line[:at], "" if quoted else line[at:].strip()
