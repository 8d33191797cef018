"""Looking up a key in the data file of an LMDB environment (format 1, 64 bits).

Two meta pages tell the page size and the root of a B-tree; the one with the higher transaction
counts. A page is a header and offsets of nodes, sorted by key; in a branch a node leads to a page,
in a leaf it has a value, or the number of the page where a long value begins.
"""

import struct
from typing import Final

from worker.config.index_octets import CorruptIndexError, Octets

MAGIC: Final = 0xBEEF_C0DE
FORMAT: Final = 1  # LMDB's MDB_DATA_VERSION

# All in the byte order of the machine that wrote it, and after a page's header of 16 octets:
# magic, version, address, size of the map; of the free list the page size and more;
# of the tree flags, depth, numbers of pages, entries, root; last page, transaction.
_HEADER: Final = struct.Struct("=QHHHH")  # page number, padding, flags, end and start of free room
_META: Final = struct.Struct("=IIQQ I44x IHHQQQQQ QQ")
_NODE: Final = struct.Struct("=HHHH")  # three parts of a number, size of the key
_BRANCH: Final = 0x01
_LEAF: Final = 0x02
_OVERFLOW: Final = 0x04
_LONG: Final = 0x01  # flag of a leaf's node: the value is elsewhere
_PLAIN: Final = 0x00
_NO_PAGE: Final = 0xFFFF_FFFF_FFFF_FFFF
_DEEPEST: Final = 32  # pages from root to leaf, as LMDB's own limit
_PAGE_SIZES: Final = frozenset(1 << bits for bits in range(8, 17))


class Lmdb:
    """An Index over an open file, good for as long as that is open and locked against writers."""

    def __init__(self, octets: Octets) -> None:
        """Raises CorruptIndexError, OSError."""
        self._octets = octets
        size, root, transaction = self._meta(0)
        self._page_size = size
        _, other, later = self._meta(size)
        self._root = other if later > transaction else root

    def _meta(self, start: int) -> tuple[int, int, int]:
        """Page size, root and transaction of the meta page there."""
        found = _META.unpack(self._octets.read(start + _HEADER.size, _META.size))
        magic, version, size, flags = found[0], found[1], found[4], found[6]
        root, transaction = found[12], found[14]
        if magic != MAGIC:
            raise CorruptIndexError("it is no LMDB file of this kind of machine")
        if version != FORMAT:
            raise CorruptIndexError(f"it has format {version} of LMDB; expected {FORMAT}")
        if size not in _PAGE_SIZES:
            raise CorruptIndexError(f"it has pages of {size} octets")
        if flags != _PLAIN:
            raise CorruptIndexError(f"it is no plain LMDB table (flags {flags:#x})")
        return size, root, transaction

    def find(self, key: bytes) -> bytes | None:
        """See Index."""
        number = self._root
        if number == _NO_PAGE:
            return None
        for _ in range(_DEEPEST):
            page = _Page(self._octets.read(number * self._page_size, self._page_size), number)
            at = page.place(key)
            if page.is_leaf:
                if at < 0 or page.key(at) != key:
                    return None
                return self._value(page, at)
            number = page.child(max(at, 0))
        raise CorruptIndexError("its tree has no end")

    def _value(self, page: "_Page", at: int) -> bytes:
        size, is_long, value = page.value(at)
        if not is_long:
            return value
        (number,) = struct.unpack("=Q", value)
        start = number * self._page_size
        found, _, flags, _, _ = _HEADER.unpack(self._octets.read(start, _HEADER.size))
        if found != number or not flags & _OVERFLOW:
            raise CorruptIndexError(f"page {number} is not what it should be")
        return self._octets.read(start + _HEADER.size, size)


class _Page:
    """A branch or a leaf."""

    def __init__(self, octets: bytes, number: int) -> None:
        found, _, flags, lower, _ = _HEADER.unpack_from(octets)
        kind = flags & (_BRANCH | _LEAF)
        if found != number or kind not in {_BRANCH, _LEAF} or not 16 <= lower <= len(octets):
            raise CorruptIndexError(f"page {number} is not what it should be")
        self.is_leaf = kind == _LEAF
        self._octets = octets
        self._number = number
        self._count = (lower - _HEADER.size) // 2
        if not self._count and not self.is_leaf:
            raise CorruptIndexError(f"page {number} is empty")

    def place(self, key: bytes) -> int:
        """The last node whose key is not after this one; -1: all are. A branch's first has none."""
        low, high = 0 if self.is_leaf else 1, self._count
        while low < high:
            middle = (low + high) // 2
            if self.key(middle) <= key:
                low = middle + 1
            else:
                high = middle
        return low - 1

    def key(self, at: int) -> bytes:
        start, node = self._node(at)
        return self._slice(start, node[3])

    def child(self, at: int) -> int:
        """The page that a branch's node leads to."""
        _, (low, middle, high, _) = self._node(at)
        return low | middle << 16 | high << 32

    def value(self, at: int) -> tuple[int, bool, bytes]:
        """The size of a leaf's value, whether it is elsewhere, and the value or its page."""
        start, (low, high, flags, key_size) = self._node(at)
        if flags & ~_LONG:
            raise CorruptIndexError(f"page {self._number} has more than plain values")
        size, is_long = low | high << 16, bool(flags & _LONG)
        return size, is_long, self._slice(start + key_size, 8 if is_long else size)

    def _node(self, at: int) -> tuple[int, tuple[int, int, int, int]]:
        """Where the key of a node begins, and its numbers."""
        (offset,) = struct.unpack_from("=H", self._octets, _HEADER.size + 2 * at)
        if offset + _NODE.size > len(self._octets):
            raise CorruptIndexError(f"page {self._number} has a node outside of it")
        return offset + _NODE.size, _NODE.unpack_from(self._octets, offset)

    def _slice(self, start: int, size: int) -> bytes:
        if start + size > len(self._octets):
            raise CorruptIndexError(f"page {self._number} has a node outside of it")
        return self._octets[start : start + size]
