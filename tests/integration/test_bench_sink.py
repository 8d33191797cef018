"""The sink with Postfix's programs: smtp-source as its client, smtp-sink beside it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.scenarios.sinks import QUICK, SMTP_SOURCE, Client, Load, scenario

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds: whoever waits so long waits for ever
MESSAGES = 200


@pytest.mark.peer("smtp-source")
@pytest.mark.parametrize("lmtp", [False, True])
def test_smtp_source_delivers_everything_to_several_processes(tmp_path: Path, lmtp: bool) -> None:
    final, record = tmp_path / "report", tmp_path / "record"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.sink", "--processes", "2", "--json", str(final)),
            *("--listen", "127.0.0.1:0", "--record", str(record), *(["--lmtp"] if lmtp else [])),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as sink:
        try:
            assert sink.stdout is not None
            port = sink.stdout.readline().rpartition(":")[2].strip()
            subprocess.run(
                [
                    *(str(SMTP_SOURCE), *(["-L"] if lmtp else []), "-s", "10", "-r", "3"),
                    *("-l", "20000", "-m", str(MESSAGES), f"127.0.0.1:{port}"),
                ],
                check=True,
                timeout=LIMIT,
            )
            sink.send_signal(signal.SIGTERM)
            sink.communicate(timeout=LIMIT)
        finally:
            sink.kill()
    total = json.loads(final.read_text())["total"]
    assert (total["messages"], total["recipients"]) == (MESSAGES, 3 * MESSAGES)
    assert (total["connections"], total["refused"]) == (MESSAGES, 0)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [len(line["recipients"]) for line in lines] == [3] * MESSAGES
    assert len({line["sha256"] for line in lines}) == MESSAGES  # each has an id of its own
    assert all(line["message_id"] for line in lines)


@pytest.mark.peer("smtp-sink", "smtp-source")
@pytest.mark.parametrize("client", ["pipelined", "smtp-source"])
def test_the_scenario_measures_both_sinks(client: Client) -> None:
    built = scenario(Load(count=QUICK.count, client=client))
    assert list(built.contenders) == ["postrio sink", "smtp-sink"]
    for turn in built.contenders.values():
        figures = turn()
        assert list(figures) == [figure.name for figure in built.figures]
        assert all(value > 0 for value in figures.values())
