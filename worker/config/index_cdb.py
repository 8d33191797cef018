"""Looking up a key in a cdb file, as D. J. Bernstein's cdb and tinycdb make it (cdb(5)).

256 pairs of (position, slots) of hash tables; records (key length, value length, key, value); the
tables, with slots (hash, position of a record). All numbers have 32 bits, little-endian.
"""

import struct
from typing import Final

from worker.config.index_octets import CorruptIndexError, Octets

_PAIR: Final = struct.Struct("<II")
_HEADER: Final = 256 * _PAIR.size


class Cdb:
    """An Index over an open file, good for as long as that stays open."""

    def __init__(self, octets: Octets) -> None:
        """Raises CorruptIndexError."""
        self._octets = octets
        if octets.size < _HEADER:
            raise CorruptIndexError("it is shorter than the header of a cdb file")

    def find(self, key: bytes) -> bytes | None:
        """See Index."""
        wanted = _hash(key)
        table, slots = self._pair(wanted % 256 * _PAIR.size)
        if not slots:
            return None
        if table < _HEADER or table + slots * _PAIR.size > self._octets.size:
            raise CorruptIndexError(f"it has a hash table at {table}, outside of it")
        first = (wanted >> 8) % slots
        for step in range(slots):
            slot = table + (first + step) % slots * _PAIR.size
            found, record = self._pair(slot)
            if not record:
                return None
            if found != wanted:
                continue
            key_size, value_size = self._pair(record)
            start = record + _PAIR.size
            if key_size == len(key) and self._octets.read(start, key_size) == key:
                return self._octets.read(start + key_size, value_size)
        return None

    def _pair(self, start: int) -> tuple[int, int]:
        first, second = _PAIR.unpack(self._octets.read(start, _PAIR.size))
        return first, second


def _hash(key: bytes) -> int:
    value = 5381
    for octet in key:
        value = (value * 33 & 0xFFFF_FFFF) ^ octet
    return value
