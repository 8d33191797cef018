"""Tables made of others: unionmap and pipemap.

Both ask their tables in the order in which they are written. A table in trouble ends the lookup:
what it would have said is not known. As in Postfix, the first table says whether the whole is of
use with parts of an address.
"""

from collections.abc import Callable, Sequence

from worker.config.table import Table, TableConfigError
from worker.config.table_memory import braced_items

OpenTable = Callable[[str], Table]  # raises TableConfigError

# Tables within tables within tables: more braces than this are a slip, and would only cost stack.
DEPTH_LIMIT = 20


class _Combined(Table):
    """Some tables, at least one."""

    def __init__(self, spec: str, tables: Sequence[Table]) -> None:
        super().__init__(spec)
        self._tables = tuple(tables)
        self.whole_keys_only = tables[0].whole_keys_only

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Table."""
        return tuple(text for table in self._tables for text in table.warnings)


class Union(_Combined):
    """`unionmap:{type:name, ...}`: what all tables have for the key, with commas between."""

    async def lookup(self, key: str) -> str | None:
        """See Table. An empty text in front leaves no comma, and nothing but that is not found."""
        joined = ""
        for table in self._tables:
            text = await table.lookup(key)
            if text is not None:
                joined = f"{joined},{text}" if joined else text
        return joined or None


class Pipe(_Combined):
    """`pipemap:{type:name, ...}`: the text from each table is the key for the next one."""

    async def lookup(self, key: str) -> str | None:
        """See Table. None as soon as one table has nothing."""
        for table in self._tables:
            text = await table.lookup(key)
            if text is None:
                return None
            key = text
        return key


def open_union(spec: str, name: str, open_one: OpenTable) -> Table:
    """`unionmap:{...}`. `open_one` opens each table. Raises TableConfigError."""
    return Union(spec, _open_all(spec, name, open_one))


def open_pipe(spec: str, name: str, open_one: OpenTable) -> Table:
    """`pipemap:{...}`. `open_one` opens each table. Raises TableConfigError."""
    return Pipe(spec, _open_all(spec, name, open_one))


def _open_all(spec: str, name: str, open_one: OpenTable) -> list[Table]:
    if name.count("{") > DEPTH_LIMIT and _depth(name) > DEPTH_LIMIT:
        raise TableConfigError(f"tables within tables, over {DEPTH_LIMIT} deep")
    kind = spec.partition(":")[0]
    items = braced_items(name)
    if not items:
        raise TableConfigError(f"{kind} without a table", f"{kind}:{{type:name, ...}}")
    return [open_one(item) for item in items]


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        deepest = max(deepest, depth)
    return deepest
