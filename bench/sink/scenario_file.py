"""A scenario file of the sink: listeners and their behaviour, in TOML.

    seed = 7                                     # chances and delays are the same in each run

    [default]                                    # for every listener
    latency = "lognormal:0.05:0.5"

    [[listener]]
    address = "127.0.1.1-127.0.1.250:2525"
    rcpt = ["10% 451 4.7.1 try later", "1% 550 5.1.1 no such user"]
    latency = {end = 0.5}

The keys are the words of the command line (`words.py`), with "_" or "-".
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.sink.behaviour import Behaviour, BehaviourError
from bench.sink.listen import Listen, parse_addresses
from bench.sink.words import SETTINGS, apply_setting, parse_behaviour

LARGEST: Final = 1_000_000  # octets of a scenario file
KEYS: Final = ("seed", "default", "listener")


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkScenario:
    """What a file says."""

    seed: int | None = None
    default: Behaviour = field(default_factory=Behaviour)
    listens: Sequence[Listen] = ()


def read_scenario(path: Path, words: Sequence[str] = ()) -> SinkScenario:
    """The scenario in this file; `words` come after its default and before each listener's own.

    Raises OSError, and BehaviourError, which names file, table, key, what is wrong and what is
    known.
    """
    with path.open("rb") as file:
        octets = file.read(LARGEST + 1)
    if len(octets) > LARGEST:
        raise BehaviourError(f"{path}: larger than {LARGEST} octets")
    try:
        # Neither UTF-8 nor TOML: both are ValueError. Too deep is RecursionError.
        tables: Mapping[str, object] = tomllib.loads(octets.decode())
    except (ValueError, RecursionError) as exc:
        raise BehaviourError(f"{path}: {exc}") from exc
    for key in tables:
        if key not in KEYS:
            raise BehaviourError(f"{path}: {key!r} is unknown; known are {', '.join(KEYS)}")
    seed = tables.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise BehaviourError(f"{path}: seed: expected a whole number")
    default = _behaviour(f"{path}: [default]", tables.get("default", {}), Behaviour())
    default = parse_behaviour(words, default)
    listeners = tables.get("listener", [])
    if not isinstance(listeners, list):
        raise BehaviourError(f"{path}: listener: each is a table of its own, under [[listener]]")
    listens: list[Listen] = []
    for number, table in enumerate(listeners, 1):
        listens += _listens(f"{path}: [[listener]] {number}", table, default)
    return SinkScenario(seed=seed, default=default, listens=listens)


def _listens(where: str, table: object, default: Behaviour) -> list[Listen]:
    """The addresses of one listener's table."""
    if not isinstance(table, dict) or "address" not in table:
        raise BehaviourError(f'{where}: address is missing, such as address = "127.0.0.1:2525"')
    own = {key: value for key, value in table.items() if key != "address"}
    behaviour = _behaviour(where, own, default)
    listens: list[Listen] = []
    for address in _as_list(table["address"]):
        try:
            listens += parse_addresses(str(address), behaviour)
        except BehaviourError as exc:
            raise BehaviourError(f"{where}: address: {exc}") from exc
    return listens


def _behaviour(where: str, table: object, base: Behaviour) -> Behaviour:
    """`base` changed by the keys of one table."""
    if not isinstance(table, dict):
        raise BehaviourError(f"{where}: expected a table")
    behaviour = base
    for key, value in table.items():
        name = key.replace("_", "-")
        setting = SETTINGS.get(name)
        whole = setting is not None and setting.whole_list
        for behind, one in value.items() if isinstance(value, dict) else [("", value)]:
            place = f"{where}: {key}.{behind}" if behind else f"{where}: {key}"
            for single in [one] if whole else _as_list(one):
                try:
                    behaviour = apply_setting(behaviour, name, behind, single)
                except ValueError as exc:
                    raise BehaviourError(f"{place} = {single!r}: {exc}") from exc
    return behaviour


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
