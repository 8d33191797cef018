"""Directories of a turn go, even if a signal comes while they do."""

import os
from pathlib import Path

import pytest

from bench.harness.trees import remove_tree


def test_a_signal_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        tree = tmp_path / "tree" / name
        tree.mkdir(parents=True)
        (tree / "file").touch()
    rmdir, calls = os.rmdir, []

    def interrupted(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rmdir(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
