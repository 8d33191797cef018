"""Imports point one way. Read from the source with ast, so nothing is imported to find out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "scache", "worker", "bench")

# What each package must not import: top-level names.
FORBIDDEN = {
    "protocol": {"trio", "socket", "time", "logging", "worker", "scache", "bench"},
    "scache": {"worker", "bench"},
    "worker": {"scache", "bench"},
    "bench": set[str](),
}


def imported(source: str) -> Iterator[str]:
    """Top-level names of everything that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays within its package, unless it climbs out of it.
            yield (node.module or "").split(".")[0] if not node.level else "." * node.level
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"__import__", "importlib.import_module"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).split(".")[0]


def breaches(root: Path, package: str) -> list[str]:
    """Every forbidden import in `package`, as "file: name"."""
    return [
        f"{path.relative_to(root)}: {name}"
        for path in sorted((root / package).rglob("*.py"))
        for name in sorted(set(imported(path.read_text(encoding="utf-8"))))
        if name in FORBIDDEN[package]
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    assert (ROOT / package).is_dir()
    assert breaches(ROOT, package) == []


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "protocol" / "deep" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import os, time as t\n"
        "from trio.abc import Stream\n"
        "def later():\n"
        "    import socket\n"
        "    __import__('worker.cli')\n"
        "    importlib.import_module('bench.demo')\n",
        encoding="utf-8",
    )
    found = {breach.split(": ")[1] for breach in breaches(tmp_path, "protocol")}
    assert found == {"time", "trio", "socket", "worker", "bench"}


def test_relative_imports_are_not_used() -> None:
    relative = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if any(name.startswith(".") for name in imported(path.read_text(encoding="utf-8")))
    ]
    assert relative == []


def test_an_empty_package_breaks_no_rule(tmp_path: Path) -> None:
    (tmp_path / "scache").mkdir()
    assert breaches(tmp_path, "scache") == []
