"""All keys and values of a Berkeley DB file, of its kinds hash and btree (as of libdb 3.3 to 6).

The file is a row of pages. Each has a header, with the number of its items and its type, and the
places of the items. In the leaves of a tree and in the pages of a hash table keys and values take
turns; an item that is too long is on overflow pages, each of which names the next one. The pages
are read one after another, whatever leads to them: so nothing needs to be known of hash functions
and the order of keys, and a file that is not whole is noticed. But a hash table has pages that were
never used and are all zeros: one that was lost in that way cannot be told from these.
"""

import struct
from collections.abc import Iterator
from typing import Final

from worker.config.index_octets import LONGEST, CorruptIndexError, Octets

MAGIC: Final = {0x0006_1561: "hash", 0x0005_3162: "btree"}

_META_SIZE: Final = 512  # octets that all kinds of first page have
_PAGE_HEADER: Final = 26
_FREE: Final = 0
_HASH_PAGES: Final = frozenset({2, 13})  # unsorted, sorted
_BRANCH: Final = 3
_LEAF: Final = 5
_OVERFLOW: Final = 7
_PAGES: Final = {  # that a file may have, behind the first
    "hash": _HASH_PAGES | {_FREE, _OVERFLOW},
    "btree": frozenset({_FREE, _BRANCH, _LEAF, _OVERFLOW}),
}
_DELETED: Final = 0x80
_PLAIN: Final = 1
_LONG: Final = 3
_PAGE_SIZES: Final = frozenset(1 << bits for bits in range(9, 17))


class Berkeley:
    """An Index in memory; the file may be closed."""

    def __init__(self, octets: Octets, kind: str) -> None:
        """`kind`: hash or btree. Raises CorruptIndexError, OSError."""
        self.values: dict[bytes, bytes] = dict(_Reader(octets, kind).pairs())

    def find(self, key: bytes) -> bytes | None:
        """See Index."""
        return self.values.get(key)


class _Reader:
    def __init__(self, octets: Octets, kind: str) -> None:
        self._octets = octets
        self._kind = kind
        meta = octets.read(0, _META_SIZE)
        self._order = next(
            (order for order in "<>" if struct.unpack_from(f"{order}I", meta, 12)[0] in MAGIC), ""
        )
        if not self._order:
            raise CorruptIndexError("it is no Berkeley DB file")
        magic, _, self._page_size, encryption, _, flags = self._unpack("IIIBBB", meta, 12)
        if MAGIC[magic] != kind:
            raise CorruptIndexError(f"it is of type {MAGIC[magic]}, not {kind}")
        if self._page_size not in _PAGE_SIZES:
            raise CorruptIndexError(f"it has pages of {self._page_size} octets")
        if encryption or flags & 0x01:
            raise CorruptIndexError("it has encrypted pages, or checksums, which are not supported")
        (self._last,) = self._unpack("I", meta, 32)

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each entry."""
        for number in range(1, self._last + 1):
            page = self._page(number)
            if page[25] in _HASH_PAGES:
                items = self._hash_items(page)
            elif page[25] == _LEAF:
                items = self._leaf_items(page)
            else:
                continue
            for key, value in zip(items[::2], items[1::2], strict=True):
                if key is not None and value is not None:
                    yield key, value

    def _page(self, number: int) -> bytes:
        if not 0 < number <= self._last:
            raise CorruptIndexError(f"page {number} is not there")
        page = self._octets.read(number * self._page_size, self._page_size)
        # In a hash table a page that was never used is all zeros, and has no number.
        may_be_unused = self._kind == "hash" and page[25] == _FREE
        is_itself = self._unpack("I", page, 8) == (number,) or may_be_unused
        if not is_itself or page[25] not in _PAGES[self._kind]:
            raise CorruptIndexError(f"page {number} is not what it should be")
        return page

    def _places(self, page: bytes) -> tuple[int, ...]:
        """Where the items are: an even number of places, each inside of the page."""
        (count,) = self._unpack("H", page, 20)
        if _PAGE_HEADER + 2 * count > len(page) or count % 2:
            raise CorruptIndexError(f"a page has {count} items")
        places = self._unpack(f"{count}H", page, _PAGE_HEADER)
        if any(not _PAGE_HEADER + 2 * count <= place < len(page) for place in places):
            raise CorruptIndexError("a page has an item outside of it")
        return places

    def _hash_items(self, page: bytes) -> list[bytes | None]:
        """Each item ends where the one before begins, the first one with the page."""
        items: list[bytes | None] = []
        end = len(page)
        for place in self._places(page):
            if place >= end:
                raise CorruptIndexError("a page has items in disorder")
            if page[place] == _PLAIN:
                items.append(page[place + 1 : end])
            elif page[place] == _LONG:
                items.append(self._long(page, place))
            else:
                raise CorruptIndexError(f"it has items of kind {page[place]}")
            end = place
        return items

    def _leaf_items(self, page: bytes) -> list[bytes | None]:
        """None: a deleted one."""
        items: list[bytes | None] = []
        for place in self._places(page):
            size, kind = self._unpack("HB", page, place)
            if kind & _DELETED:
                items.append(None)
            elif kind == _PLAIN:
                if place + 3 + size > len(page):
                    raise CorruptIndexError("a page has an item outside of it")
                items.append(page[place + 3 : place + 3 + size])
            elif kind == _LONG:
                items.append(self._long(page, place))
            else:
                raise CorruptIndexError(f"it has items of kind {kind}")
        return items

    def _long(self, page: bytes, place: int) -> bytes:
        """The text on overflow pages that an item names."""
        number, size = self._unpack("II", page, place + 4)
        if size > LONGEST:
            raise CorruptIndexError(f"it has an item of {size} octets")
        found = bytearray()
        while len(found) < size:
            page = self._page(number)
            (here,) = self._unpack("H", page, 22)
            if page[25] != _OVERFLOW or not 0 < here <= len(page) - _PAGE_HEADER:
                raise CorruptIndexError(f"page {number} is not what it should be")
            found += page[_PAGE_HEADER : _PAGE_HEADER + here]
            (number,) = self._unpack("I", page, 16)
        return bytes(found[:size])

    def _unpack(self, form: str, octets: bytes, start: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + form, octets, start)
        except struct.error as exc:
            raise CorruptIndexError("a page has an item outside of it") from exc
