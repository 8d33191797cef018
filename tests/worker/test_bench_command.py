"""`postrio bench`: options, exit statuses, files, signals; with a scenario that costs nothing."""

import json
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

import bench
import bench.command
from bench.command import ended_in_good_order, invoke
from bench.harness import plot
from bench.harness.result import read_result
from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.scenarios import SCENARIOS, Definition
from worker.cli.exits import run_command

TOP = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the scenario of these tests is loaded with."""

    count: int = 100  # messages
    sizes: tuple[int, ...] = (1, 2)  # octets


def scenario_of(load: Load) -> Scenario:
    """Each contender measures its factor times the count; "broken" fails."""

    def turn(factor: float) -> Callable[[], Mapping[str, float]]:
        return lambda: {"rate": factor * load.count, "raw": 1.0}

    def broken() -> Mapping[str, float]:
        raise LoadError("it does not start")

    contenders = {"postrio": turn(2.0), "peer": turn(1.0)}
    if load.count == 13:
        contenders = {"postrio": broken}
    return Scenario(
        name="drain",
        about="nothing is done",
        figures=[Figure(name="rate", unit="messages/s")],
        contenders={} if load.count == 99 else contenders,
        missing={"other peer": "it is not installed"},
        targets=[Target(figure="rate", at_least=3, against="peer")],
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Bench = Callable[..., Ended]


@pytest.fixture
def run_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """`bench ARGUMENTS`, where every scenario is the one above."""

    def load(name: str) -> Definition:
        if name == "big":
            raise LoadError("the scenario big is not part of this installation")
        build: Callable[[object], Scenario] = lambda load: scenario_of(load)  # type: ignore[arg-type]  # noqa: E731
        return Definition(name=name, usual=Load(), quick=Load(count=5), build=build)

    monkeypatch.setattr(bench.command, "load_scenario", load)
    monkeypatch.setattr(bench.command, "machine", lambda: {"processors": 2, "versions": {}})
    monkeypatch.setattr(bench.command, "commit", lambda: "abc")

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command("bench", invoke, [str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return run


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_shows_figures_ratios_targets_and_who_was_left_out(run_bench: Bench) -> None:
    ended = run_bench("drain")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert ended.status == 0
    assert lines[0] == "drain: nothing is done"
    assert lines[1] == "count=100 sizes=1,2; turns: 5"
    assert "other peer is left out: it is not installed" in lines
    assert "rate: messages/s (more is better)" in lines
    assert "peer 100 100 100 0.500 (0.500 to 0.500)" in lines
    assert "rate at least 3 x peer 2.00 (2.00 to 2.00) missed by 33%" in lines
    assert ended.err.splitlines()[0] == "  1/5 postrio: 200 messages/s"


def test_the_file_holds_every_figure_of_every_turn_and_where_it_was_taken(
    run_bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    assert run_bench("drain", "--set", "count=7", "--repeats", 2, "--json", path).status == 0
    found = json.loads(path.read_text())
    assert found["load"] == {"count": 7, "sizes": [1, 2]}
    assert found["turns"] == {
        "postrio": [{"rate": 14.0, "raw": 1.0}] * 2,
        "peer": [{"rate": 7.0, "raw": 1.0}] * 2,
    }
    assert (found["commit"], found["machine"]["processors"]) == ("abc", 2)
    shown = run_bench("show", path)
    assert shown.status == 0
    assert "rate at least 3 x peer" in shown.out


@pytest.mark.parametrize(("load", "told"), [(1.01, True), (0.99, False), (None, False)])
def test_a_busy_machine_is_told(
    run_bench: Bench, monkeypatch: pytest.MonkeyPatch, load: object, *, told: bool
) -> None:
    monkeypatch.setattr(bench.command, "machine", lambda: {"processors": 2, "load_before": load})
    assert ("load average 1.01 on 2 processors" in run_bench("drain").out) is told


def test_a_quick_run_has_its_own_load_and_one_turn(run_bench: Bench, tmp_path: Path) -> None:
    run_bench("drain", "--quick", "--set", "sizes=9", "--json", tmp_path / "r.json")
    result = read_result(tmp_path / "r.json")
    assert result.load == {"count": 5, "sizes": [9]}
    assert [len(turns) for turns in result.turns.values()] == [1, 1]


def test_one_contender_can_be_run_alone(run_bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert run_bench("drain", "--contender", "peer", "--json", path).status == 0
    assert list(read_result(path).turns) == ["peer"]


def test_a_missed_target_is_a_failure_only_when_asked(run_bench: Bench) -> None:
    assert run_bench("drain").status == 0
    assert run_bench("drain", "--check").status == 1


def test_a_comparison_shows_what_changed(run_bench: Bench, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    run_bench("drain", "--json", old)
    ended = run_bench("drain", "--set", "count=50", "--compare", old, "--json", new)
    assert ended.status == 0
    assert "beware: another load: count 100 -> 50" in ended.out
    assert "worse" in ended.out
    assert "better" in run_bench("show", old, "--compare", new).out


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_result_that_cannot_be_kept_is_shown_all_the_same(
    run_bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "r.json.new").mkdir()  # in the way
    ended = run_bench("drain", "--json", tmp_path / "r.json")
    assert ended.status == os.EX_CANTCREAT
    assert "r.json: cannot be written: Is a directory" in ended.err
    assert "rate at least 3 x peer" in ended.out


def test_a_contender_that_fails_makes_the_status_and_the_rest_is_kept(
    run_bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    ended = run_bench("drain", "--set", "count=13", "--json", path, "--plot", tmp_path / "p.svg")
    assert ended.status == os.EX_SOFTWARE
    assert "postrio failed: turn 1: it does not start" in ended.out
    assert read_result(path).failed == {"postrio": "turn 1: it does not start"}


def test_where_nothing_can_be_run_the_command_says_why(run_bench: Bench) -> None:
    ended = run_bench("drain", "--set", "count=99")
    assert ended.status == os.EX_UNAVAILABLE
    assert ended.err == ("bench: drain: nothing can be run here: other peer: it is not installed\n")
    assert run_bench("drain", "--contender", "other peer").status == os.EX_UNAVAILABLE
    assert run_bench("big").status == os.EX_UNAVAILABLE


def test_without_a_command_the_help_is_shown_as_it_is(run_bench: Bench) -> None:
    ended = run_bench()
    assert ended.status == os.EX_USAGE
    assert ended.err.startswith("Usage: bench ")
    assert "bench: " not in ended.err


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--set", "cuont=1"], os.EX_USAGE, "--set cuont=1: no such parameter"),
        (["--contender", "nobody"], os.EX_USAGE, "there are: postrio; peer; other peer"),
        (["--repeats", "0"], os.EX_USAGE, "'--repeats': 0 is not in the range"),
        (["--plot", "x.gif"], os.EX_USAGE, "x.gif: a plot ends in .svg or .png"),
        (["--plot", "/none/x.svg"], os.EX_CANTCREAT, "/none/x.svg: there is no such directory"),
        (["--json", "/none/x.json"], os.EX_CANTCREAT, "/none/x.json: there is no such directory"),
        (["--json", "/proc/x.json"], os.EX_CANTCREAT, "/proc/x.json: cannot be written"),
        (["--json", "/"], os.EX_USAGE, "is a directory"),
        (["--compare", "/none.json"], os.EX_NOINPUT, "/none.json: No such file"),
        (["--compare", "/dev/null"], os.EX_DATAERR, "/dev/null: not JSON"),
        (["--bogus"], os.EX_USAGE, "No such option '--bogus'"),
        (["x"], os.EX_USAGE, "unexpected extra argument"),
    ],
)
def test_wrong_use_is_told_before_anything_is_measured(
    run_bench: Bench, arguments: list[str], status: int, complaint: str
) -> None:
    ended = run_bench("drain", *arguments)
    assert ended.status == status
    assert complaint in ended.err
    assert "1/5" not in ended.err
    assert ended.out == ""


def test_without_matplotlib_the_extra_is_named(
    run_bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    ended = run_bench("drain", "--plot", tmp_path / "x.svg")
    assert ended.status == os.EX_UNAVAILABLE
    assert "install the extra bench" in ended.err
    assert "1/5" not in ended.err


def test_a_result_of_another_scenario_is_not_compared(run_bench: Bench, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    run_bench("drain", "--json", old)
    ended = run_bench("engine", "--compare", old)
    assert ended.status == os.EX_DATAERR
    assert "a result of drain, not of engine" in ended.err


def test_a_file_that_is_no_result_is_bad_data(run_bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert run_bench("show", tmp_path / "x.json").status == os.EX_DATAERR
    assert run_bench("show", tmp_path / "none.json").status == os.EX_NOINPUT
    run_bench("drain", "--json", tmp_path / "y.json")
    ended = run_bench("show", tmp_path / "y.json", "--plot", "x.gif")
    assert (ended.status, ended.out) == (os.EX_USAGE, "")  # before anything is shown


def test_results_make_a_table_for_a_page(run_bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run_bench("drain", "--json", path)
    ended = run_bench("show", "--markdown", path, path)
    head, rule, *rows = ended.out.splitlines()
    assert head == "| scenario | figure | found | beside | ratio | target | taken |"
    assert rule == "|" + " --- |" * 7
    today = read_result(path).date[:10]
    assert rows == 2 * [
        "| `drain` | rate, messages/s | 200 (200 to 200) | peer: 100 | 2.00 (2.00 to 2.00) "
        f"| at least 3: missed by 33% | {today}, abc |"
    ]
    without = json.loads(path.read_text())
    path.write_text(json.dumps({**without, "targets": []}))
    (row,) = run_bench("show", "--markdown", path).out.splitlines()[2:]
    assert row.startswith(
        "| `drain` | rate, messages/s | peer: 100 (100 to 100) | postrio: 200 | 0.500 (0.500 to "
    )
    assert run_bench("show", path, path, "--plot", tmp_path / "x.svg").status == os.EX_USAGE


# --- plots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_plot_is_drawn_of_every_turn(
    run_bench: Bench, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"p.{suffix}"
    assert run_bench("drain", "--plot", path).status == 0
    drawn = path.read_bytes()
    assert drawn.startswith(magic)
    if suffix == "svg":  # text is drawn as shapes, each with its words in a comment
        for words in ("postrio", "peer", "messages/s (more is better)", "rate"):
            assert f"<!-- {words} -->".encode() in drawn


# --- all, list, help -----------------------------------------------------------------------------


def test_all_keeps_each_result_goes_on_after_a_failure_and_compares(
    run_bench: Bench, tmp_path: Path
) -> None:
    first, second = tmp_path / "a" / "first", tmp_path / "second"
    ended = run_bench("all", "--quick", "--results", first, "--plots", "svg")
    assert ended.status == os.EX_UNAVAILABLE  # one scenario is not there
    assert "big is not part of this installation" in ended.err
    kept = {path.name for path in first.iterdir()}
    there = [name for name in SCENARIOS if name != "big"]
    assert kept == {f"{name}.{suffix}" for name in there for suffix in ("json", "svg")}
    # Each is named after the scenario that these tests have in place of all.
    ended = run_bench("all", "--quick", "--results", second, "--compare", first, "--check")
    assert ended.out.count("compared with") == 1


def test_the_list_and_the_help_name_every_scenario_and_load_none(
    run_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Definition:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(bench.command, "load_scenario", load)
    listed = run_bench("list").out
    helped = run_bench("--help").out
    for name in SCENARIOS:
        assert f"{name} " in listed
        assert f"  {name} " in helped
    assert all(f"  {name} " in helped for name in ("all", "sink", "source", "dns", "demo"))
    assert run_bench("bogus").err.startswith("bench: No such command 'bogus'")


def test_the_help_of_a_scenario_lists_what_set_can_change(run_bench: Bench) -> None:
    text = " ".join(run_bench("drain", "--help").out.split())
    assert "Load (--set NAME=VALUE): count messages [100; quick: 5] sizes octets [1,2]" in text


# --- how postrio finds it ------------------------------------------------------------------------


def test_the_entry_point_leads_to_the_command() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["postrio.commands"].items()
    module, line = EntryPoint(name=name, value=value, group="postrio.commands").load()
    assert (name, (module, line)) == ("bench", bench.COMMAND)
    command = sys.modules[module].command
    assert isinstance(command, click.Group)


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_unwinds_what_runs_and_makes_the_status(number: signal.Signals) -> None:
    stopped = []
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    before = signal.getsignal(number)

    def interrupted() -> None:
        with ended_in_good_order():
            try:
                signal.raise_signal(number)
            finally:
                stopped.append("peer")

    with pytest.raises(expected) as caught:
        interrupted()
    assert stopped == ["peer"]
    assert signal.getsignal(number) is before
    if number != signal.SIGINT:
        assert caught.value.args == (128 + number,)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_in_good_order():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_ends_a_run_that_was_started_with_sigint_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `postrio bench all &` in a script
    try:
        with ended_in_good_order():
            signal.raise_signal(signal.SIGINT)  # still ignored
        with pytest.raises(SystemExit) as caught, ended_in_good_order():
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.args == (128 + signal.SIGTERM,)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
