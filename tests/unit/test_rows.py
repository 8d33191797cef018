"""docs/manual-rows.md, the table of parameters and the tests say the same of every row of smtp(8).

A row that is said to be there has a test named after it: `test_s017_...`, or `test_s017_s023_...`
for several rows. Names are read from the sources of the tests; nothing is imported.
"""

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.config.parameters import PARAMETERS, find

TOP = Path(__file__).parents[2]
ROWS = TOP / "docs/manual-rows.md"
FOR_POSTFIX_USERS = TOP / "docs/coming-from-postfix.md"

IDS = [f"S{number:03}" for number in range(1, 204)]
ON_THE_PAGE = 123  # parameters that the manual page names
OURS = {"same", "changed", "not taken", "later"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the page. `parameter`: its name, if the row is about one and nothing else."""

    id: str
    name: str
    ours: str
    why: str

    @property
    def parameter(self) -> str | None:
        match = re.fullmatch(r"`(\w*_\w*)`", self.name)
        return match[1] if match else None


def rows() -> Iterator[Row]:
    for line in ROWS.read_text(encoding="utf-8").splitlines():
        if re.match(r"\| S\d", line):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            row_id, name, ours, *why = cells
            yield Row(id=row_id, name=name, ours=ours, why=" | ".join(why))


def ids_of(function: str) -> list[str]:
    """The rows that the name of a test says it is for."""
    match = re.match(r"test((?:_s\d{3})+)_", function)
    return [f"S{number}" for number in re.findall(r"\d{3}", match[1])] if match else []


@functools.cache
def named_tests() -> dict[str, list[str]]:
    """Row -> the tests of its name."""
    found: dict[str, list[str]] = {}
    for path in sorted((TOP / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for row_id in ids_of(node.name):
                    found.setdefault(row_id, []).append(f"{path.name}::{node.name}")
    return found


def without_effect_yet() -> list[str]:
    """The parameters of which coming-from-postfix.md says that they have no effect yet."""
    listed = FOR_POSTFIX_USERS.read_text(encoding="utf-8").partition("<!-- no effect: begin -->")[2]
    return re.findall(r"`(\w+)`", listed.partition("<!-- no effect: end -->")[0])


def test_s185_every_row_is_on_the_page_once_in_order_with_what_became_of_it() -> None:
    found = list(rows())
    assert [row.id for row in found] == IDS
    assert {row.ours for row in found} == OURS
    for row in found:
        assert row.why or row.ours == "same", f"{row.id} does not say why"


def test_s185_every_parameter_of_the_page_is_in_the_table() -> None:
    named = [row.parameter for row in rows() if row.parameter is not None]
    assert len(named) == len(set(named)) == ON_THE_PAGE
    assert [name for name in named if find(name) is None] == []


@pytest.mark.parametrize("row", [row for row in rows() if row.parameter], ids=lambda row: row.id)
def test_the_table_says_so_where_a_parameter_is_not_taken(row: Row) -> None:
    assert row.parameter is not None
    known = PARAMETERS[row.parameter]
    silent = known.no_effect or known.deprecated or "no effect" in known.summary.lower()
    without = silent or known.summary.startswith("Without effect")
    if row.ours == "not taken":
        assert without
    if known.no_effect or known.summary.startswith("Without effect"):
        assert row.ours in {"not taken", "later"}


def test_what_is_said_to_be_there_is_not_said_to_have_no_effect() -> None:
    there = {row.parameter: row.id for row in rows() if row.ours in {"same", "changed"}}
    listed = {there[name] for name in without_effect_yet() if name in there}
    assert listed == set()


def test_every_row_that_is_there_has_a_test_of_its_name() -> None:
    there = {row.id for row in rows() if row.ours in {"same", "changed"}}
    assert there - named_tests().keys() == set()


def test_tests_are_named_after_rows_that_exist() -> None:
    unknown = {row_id: names for row_id, names in named_tests().items() if row_id not in IDS}
    assert unknown == {}


def test_rows_that_the_page_refers_to_exist() -> None:
    text = ROWS.read_text(encoding="utf-8")
    assert set(re.findall(r"\bS\d{3}\b", text)) == set(IDS)


@pytest.mark.parametrize(
    ("function", "ids"),
    [
        ("test_s017_the_best_first", ["S017"]),
        ("test_s017_s023_both", ["S017", "S023"]),
        ("test_something_of_s017_else", []),
        ("test_s17_short", []),
        ("test_s0170_long", []),
    ],
)
def test_a_name_tells_its_rows(function: str, ids: list[str]) -> None:
    assert ids_of(function) == ids


def test_s187_the_licence_is_the_same_wherever_it_is_named() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    assert (TOP / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    (row,) = [row for row in rows() if row.id == "S187"]
    assert row.why.startswith("MIT;")
