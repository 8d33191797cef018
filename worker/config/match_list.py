"""Lists that a key is on or not: names, tables and files in one value, as Postfix's string lists.

The items are asked in order, and the first that fits the key decides:

    text         fits a key that is equal to it, in any case of letters
    type:table   fits every key that the table has, whatever the text there
    /file        stands for the items in the file, which may name further files
    !item        fits the same keys and takes them off the list

What does not fit any item is not on the list. A list of hosts or of domains is the same but for
what a text fits: that is `_Words`, and the place to vary when a parameter needs it.

Files are read when the list is opened and again when they changed (`table_files.py`). A file or
table in trouble makes the list fail where it is reached: what it would have said is not known.
"""

import ipaddress
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.config.table import Table, TableConfigError
from worker.config.table_files import Clock, WatchedFile
from worker.config.tables import open_table
from worker.config.values import BadValueError, split_list


class _Item(ABC):
    """One item of a list."""

    @abstractmethod
    async def decide(self, key: str) -> bool | None:
        """True: on the list; False: off it; None: it does not fit. Raises TableError."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd in what it names; one line each, with its place."""
        return ()


class StringList(_Item):
    """The items of one value or file, asked in order."""

    def __init__(self, items: Iterable[_Item] = (), warnings: Sequence[str] = ()) -> None:
        self._items = tuple(_joined(items))
        self._warnings = tuple(warnings)

    async def matches(self, key: str) -> bool:
        """Whether `key` is on the list. Raises TableError when a table or file cannot say."""
        return await self.decide(key) is True

    async def decide(self, key: str) -> bool | None:
        """See _Item."""
        for item in self._items:
            verdict = await item.decide(key)
            if verdict is not None:
                return verdict
        return None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd in the list, and in the files and tables it names; one line each."""
        return (*self._warnings, *(text for item in self._items for text in item.warnings))


class _Words(_Item):
    """Texts that stand for themselves: one, or a run of them, which is looked up at once."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.folded = frozenset(text.casefold() for text in texts)

    async def decide(self, key: str) -> bool | None:
        return True if key.casefold() in self.folded else None


def _joined(items: Iterable[_Item]) -> Iterator[_Item]:
    """The same items, with neighbouring words in one: a file may list thousands."""
    for are_words, run in itertools.groupby(items, lambda item: isinstance(item, _Words)):
        if are_words:
            yield _Words(text for item in run if isinstance(item, _Words) for text in item.folded)
        else:
            yield from run


class _Listed(_Item):
    """The keys of a table."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def decide(self, key: str) -> bool | None:
        return True if await self._table.lookup(key) is not None else None

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._table.warnings


class _ListFile(_Item):
    """The items of a file in its place."""

    def __init__(self, file: WatchedFile[StringList]) -> None:
        self._file = file

    async def decide(self, key: str) -> bool | None:
        return await self._file.contents().decide(key)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._file.warnings)


class _Not(_Item):
    """An item the other way round: what it has on the list is off, and back."""

    def __init__(self, item: _Item) -> None:
        self._item = item

    async def decide(self, key: str) -> bool | None:
        verdict = await self._item.decide(key)
        return None if verdict is None else not verdict

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._item.warnings


def open_string_list(
    items: Sequence[str], *, environ: Mapping[str, str], clock: Clock
) -> StringList:
    """The list of these items, as `split_list` gives them. Raises TableConfigError.

    `environ` is what environ: looks into; `clock` gives seconds and bounds how often a file is
    looked at for changes.
    """
    return StringList(*_Opener(environ, clock).open(items))


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens items; `within`: the files that we are reading, each named by the one before it."""

    environ: Mapping[str, str]
    clock: Clock
    within: tuple[str, ...] = ()

    def open(self, texts: Sequence[str], place: str = "") -> tuple[list[_Item], list[str]]:
        """The items that these texts mean, and what is odd in them; `place` goes in front."""
        items: list[_Item] = []
        for text in texts:
            if text.startswith("#"):
                return items, [
                    f'{place}"{text}" and what follows is left out: a comment must be a line of'
                    " its own"
                ]
            items.append(self._item(text))
        return items, []

    def _item(self, text: str) -> _Item:
        bare = text.lstrip("!")
        if not bare:
            raise TableConfigError(f'nothing after "{text}"', '!name without a space, or no "!"')
        item = self._named(bare)
        return item if (len(text) - len(bare)) % 2 == 0 else _Not(item)

    def _named(self, text: str) -> _Item:
        if text.startswith("/"):
            return self._file(text)
        # A bracket begins an address literal. An IPv6 address without brackets is a table of an
        # unknown type to Postfix; no table type looks like one, so here it is an address.
        if ":" in text and not text.startswith("[") and not _is_address(text):
            return _Listed(open_table(text, environ=self.environ, clock=self.clock))
        return _Words([text])

    def _file(self, path: str) -> _Item:
        if path in self.within:
            raise TableConfigError(f"{path} names itself, directly or through another file")
        inside = _Opener(self.environ, self.clock, (*self.within, path))
        return _ListFile(WatchedFile(path, Path(path), self.clock, inside.read))

    def read(self, text: str, place: str) -> tuple[StringList, list[str]]:
        """The list in a file, and what is odd there. Raises TableConfigError."""
        items: list[_Item] = []
        warnings: list[str] = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.startswith("#"):
                continue
            try:
                more, odd = self.open(split_list(line), f"{place}:{number}: ")
            except (BadValueError, TableConfigError) as exc:
                raise TableConfigError(f"{place}:{number}: {exc.why}", exc.expected) from exc
            items += more
            warnings += odd
        listed = StringList(items, warnings)
        return listed, [*listed.warnings]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
