"""What Postfix's own postmap(1) makes of tables, and finds in them."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.integration.peers import find_program

TROUBLE: Final = "trouble"
Answer = str | None  # TROUBLE: no answer; None: not found


def age(path: Path) -> Path:
    """Make a file old: Postfix reads a young one again and again, for up to two seconds."""
    os.utime(path, (0, 0))
    return path


def postmap_query(directory: Path, spec: str, key: str) -> Answer:
    """What postmap -q says. `directory`: for a main.cf with nothing in it."""
    done = _run(directory, "-q", key, spec)
    if "fatal: " in done.stderr:
        assert f"unsupported dictionary type: {spec.partition(':')[0]}\n" not in done.stderr
        return TROUBLE
    return done.stdout.removesuffix("\n") if done.returncode == 0 else None


def postmap_queries(
    directory: Path, spec: str, keys: Iterable[str]
) -> tuple[dict[str, Answer], list[str]]:
    """As postmap_query(), for each of the keys (which hold no tab) at once; its complaints."""
    keys = list(keys)
    done = _run(directory, "-q", "-", spec, keys="".join(f"{key}\n" for key in keys))
    found = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    return {key: found.get(key) for key in keys}, done.stderr.splitlines()


def postmap_make(text: Path, kind: str, *options: str, keys: str = "") -> str:
    """Make a table of a text, or do what the options say. `keys`: for -d -. Its `type:name`."""
    spec = f"{kind}:{text}"
    done = _run(text.parent, *options, spec, keys=keys)
    assert done.returncode == 0, done.stderr
    return spec


def _run(directory: Path, *words: str, keys: str = "") -> "subprocess.CompletedProcess[str]":
    postmap = find_program("postmap")
    assert postmap is not None
    main_cf = directory / "main.cf"
    if not main_cf.exists():
        main_cf.write_text("")
        age(main_cf)
    command = [postmap, "-c", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=keys)
