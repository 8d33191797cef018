"""Every scenario runs, in its quick form, with its peers; no thresholds here.

Also what the table of scenarios promises of their modules.
"""

import json
import subprocess
import sys
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
