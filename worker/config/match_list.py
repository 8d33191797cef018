"""Lists that a key is on or not: names, tables and files in one value, as Postfix's string lists.

The items are asked in order, and the first that fits the key decides:

    text         fits a key that is equal to it, in any case of letters
    type:table   fits every key that the table has, whatever the text there
    /file        stands for the items in the file, which may name further files
    !item        fits the same keys and takes them off the list

What does not fit any item is not on the list. In a list of hosts (`HostList`) a text may also be a
network, and fits the names below a domain; there a key is a host with all its names.

Files are read when the list is opened and again when they changed (`table_files.py`). A file or
table in trouble makes the list fail where it is reached: what it would have said is not known.
"""

import ipaddress
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worker.config.table import Table, TableConfigError
from worker.config.table_files import Clock, WatchedFile
from worker.config.tables import open_table
from worker.config.values import BadValueError, split_list


@dataclass(frozen=True, slots=True)
class _Key:
    """What items are compared with: an item fits if it fits one of the texts."""

    whole: tuple[str, ...]  # the key, or a host's name and address
    parents: tuple[str, ...] = ()  # what a host's name is below, as items name it

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.whole, *self.parents)


class _Item(ABC):
    """One item of a list."""

    @abstractmethod
    async def decide(self, key: _Key) -> bool | None:
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
        return await self.decide(_Key((key,))) is True

    async def decide(self, key: _Key) -> bool | None:
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

    async def decide(self, key: _Key) -> bool | None:
        return True if any(text.casefold() in self.folded for text in key.texts) else None


class _Network(_Item):
    """The addresses of a network."""

    def __init__(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
        self._network = network

    async def decide(self, key: _Key) -> bool | None:
        return True if any(map(self._holds, key.whole)) else None

    def _holds(self, text: str) -> bool:
        try:
            return ipaddress.ip_address(text) in self._network
        except ValueError:  # a name
            return False


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

    async def decide(self, key: _Key) -> bool | None:
        for text in key.whole if self._table.whole_keys_only else key.texts:
            if await self._table.lookup(text) is not None:
                return True
        return None

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._table.warnings


class _ListFile(_Item):
    """The items of a file in its place."""

    def __init__(self, file: WatchedFile[StringList]) -> None:
        self._file = file

    async def decide(self, key: _Key) -> bool | None:
        return await self._file.contents().decide(key)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._file.warnings)


class _Not(_Item):
    """An item the other way round: what it has on the list is off, and back."""

    def __init__(self, item: _Item) -> None:
        self._item = item

    async def decide(self, key: _Key) -> bool | None:
        verdict = await self._item.decide(key)
        return None if verdict is None else not verdict

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._item.warnings


@dataclass(frozen=True, slots=True)
class HostList:
    """A list of hosts, by name, domain, address or network.

    `below`: a domain on the list has all that is below it on the list, too; else it must be written
    with a leading dot for that (parent_domain_matches_subdomains).
    """

    items: StringList
    below: bool

    async def matches(self, name: str, address: str = "") -> bool:
        """Whether a host is on the list. Raises TableError.

        `address`: numeric, without brackets; empty: not known.
        """
        _, *parents = name.split(".")
        dot = "" if self.below else "."
        domains = [dot + ".".join(parents[start:]) for start in range(len(parents))]
        whole = tuple(filter(None, (name, address)))
        return await self.items.decide(_Key(whole, tuple(domains))) is True

    @property
    def warnings(self) -> tuple[str, ...]:
        """As StringList.warnings."""
        return self.items.warnings


def open_host_list(
    items: Sequence[str], *, environ: Mapping[str, str], clock: Clock, below: bool
) -> HostList:
    """The list of these items. Raises TableConfigError; see HostList and open_string_list()."""
    return HostList(StringList(*_Opener(environ, clock, networks=True).open(items)), below)


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
    """Opens items; `within`: the files that we are reading, each named by the one before it.

    `networks`: an item may be one.
    """

    environ: Mapping[str, str]
    clock: Clock
    within: tuple[str, ...] = ()
    networks: bool = False

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
        if self.networks and (network := _network(text)) is not None:
            return _Network(network)
        # A bracket begins an address literal. An IPv6 address without brackets is a table of an
        # unknown type to Postfix; no table type looks like one, so here it is an address.
        if ":" in text and not text.startswith("[") and not _is_address(text):
            return _Listed(open_table(text, environ=self.environ, clock=self.clock))
        return _Words([text])

    def _file(self, path: str) -> _Item:
        if path in self.within:
            raise TableConfigError(f"{path} names itself, directly or through another file")
        inside = replace(self, within=(*self.within, path))
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


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network or address that a text is: 192.0.2.0/24, [2001:db8::]/32. None: it is a name.

    Raises TableConfigError.
    """
    bare = text.replace("[", "", 1).replace("]", "", 1)
    address, slash, _ = bare.partition("/")
    if not _is_address(address):
        return None
    try:
        return ipaddress.ip_network(bare)
    except ValueError as exc:
        if not slash:
            return None
        raise TableConfigError(str(exc), "address/bits, no bit of the address behind them") from exc
