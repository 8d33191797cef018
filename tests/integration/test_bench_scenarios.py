"""Every scenario runs, in its quick form, with its peers; no thresholds here.

Also what the table of scenarios promises of their modules.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.harness.parameters import parameters
from bench.scenarios import SCENARIOS, load_scenario

# Peers that scenarios use; without them, CI would measure us alone and not notice.
PEERS = pytest.mark.peer("root", "postfix", "master", "smtp-sink", "smtp-source")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_table_names_modules_that_build_what_they_are_named_after(name: str) -> None:
    definition = load_scenario(name)
    assert type(definition.quick) is type(definition.usual)
    assert definition.quick != definition.usual
    assert all(each.default is not None or each.note for each in parameters(definition.usual))
    scenario = definition.build(definition.usual)
    assert scenario.name == name
    assert scenario.figures
    assert not set(scenario.contenders) & set(scenario.missing)
    everybody = {*scenario.contenders, *scenario.missing}
    assert scenario.base in everybody
    named = {figure.name for figure in scenario.figures}
    for target in scenario.targets:
        assert target.figure in named
        assert target.contender in everybody
        assert target.against is None or target.against in everybody


@PEERS
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_quick_run_measures_every_contender(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--json", path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    definition = load_scenario(name)
    expected = definition.build(definition.quick).contenders
    assert list(found["turns"]) == list(expected)
    assert found["failed"] == {}
    figures = {figure["name"] for figure in found["figures"]}
    measured = {key for turns in found["turns"].values() for turn in turns for key in turn}
    assert figures <= measured


@pytest.mark.peer("smtp-sink")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_and_everything_that_it_started(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "bench", "drain", "--contender", "postrio"]
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as bench:
        deadline = time.monotonic() + 60
        while not [*tmp_path.glob("postrio-*/queue")] and time.monotonic() < deadline:
            assert bench.poll() is None
            os.sched_yield()
        assert [*tmp_path.glob("sink-*")]
        bench.send_signal(number)
        assert bench.wait() == 128 + number
    assert [*tmp_path.iterdir()] == []
    assert not [
        entry
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path).encode() in _octets(entry)
    ]


def _octets(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""
