"""`postrio table`: lookup tables, as postmap(1) asks them."""

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Final

import click
import trio

from worker.cli.exits import CommandError, complain
from worker.cli.message import standard_input
from worker.cli.options import config_choice, configured
from worker.config.config import Config
from worker.config.parameter import Kind
from worker.config.parameters import find
from worker.config.tables import Maps, TableConfigError, TableError, open_maps
from worker.config.values import BadValueError, split_list

NOT_FOUND: Final = 1  # as postmap -q
KEY_LIMIT: Final = 65_536  # characters of a line with a key

EPILOG = """\b
TABLE is type:name, a list of them, or the name of a parameter that holds one:
the first table that has the key answers. Found: status 0; not found: 1;
a table in trouble: 75. With several keys, 0 if any was found.

\b
Examples:
  postrio table query texthash:/etc/postrio/transport example.com
  postrio table query transport_maps - < keys
  postrio table query --json 'regexp:{{/^(.*)@/ $1}}' a@example.com
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@configured
def command() -> None:
    """Look at lookup tables."""


@command.command(epilog=EPILOG)
@click.argument("table")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each key.")
@configured
@click.pass_context
def query(context: click.Context, table: str, keys: tuple[str, ...], *, as_json: bool) -> int:
    """Say what TABLE has for each KEY; "-" stands for the lines of standard input.

    The text alone for a single key, else key, tab, text for each that was found.
    """
    config = config_choice(context).load_without_tables()  # but for the one that is asked
    try:
        maps = _maps(config, table)
    except (TableConfigError, BadValueError) as exc:
        raise CommandError(str(exc), os.EX_CONFIG) from exc
    for warning in maps.warnings:
        complain("postrio", f"warning: {warning}")
    try:
        return trio.run(partial(_query_all, maps, keys, as_json=as_json))
    except TableError as exc:
        raise CommandError(str(exc), os.EX_TEMPFAIL) from exc


def _maps(config: Config, table: str) -> Maps:
    """The tables that this means. Raises TableConfigError, BadValueError, CommandError."""
    if ":" not in table:
        row = find(table)
        if row is None or row.kind is not Kind.TABLES:
            raise CommandError(
                f'"{table}" is neither a table nor a parameter that holds tables;'
                " expected type:name",
                os.EX_USAGE,
            )
        table = config.text(table)
    return open_maps(split_list(table), environ=os.environ, clock=monotonic)


async def _query_all(maps: Maps, keys: Sequence[str], *, as_json: bool) -> int:
    found_any = False
    alone = len(keys) == 1 and keys[0] != "-"
    for key in _each(keys):
        text = await maps.find(key)
        found_any = found_any or text is not None
        if as_json:
            click.echo(json.dumps({"key": key, "text": text}))
        elif text is not None:
            line = text if alone else f"{key}\t{text}"
            click.echo(line.encode("utf-8", "surrogateescape"))  # keys may be any octets
    return os.EX_OK if found_any else NOT_FOUND


def _each(keys: Sequence[str]) -> Iterator[str]:
    for word in keys:
        if word != "-":
            yield word
            continue
        lines = standard_input()
        # In the loop: nothing else runs in this process.
        while line := lines.readline(KEY_LIMIT):
            text = line.rstrip(b"\n").decode("utf-8", "surrogateescape")
            if len(line) >= KEY_LIMIT and not line.endswith(b"\n"):
                raise CommandError(
                    f"a line of {KEY_LIMIT} octets or more on standard input", os.EX_DATAERR
                )
            if text:
                yield text
