"""What figures are made of: ratios, costs, and what is said of them."""

import os

import click
import pytest
from click.testing import CliRunner

from bench import first, reuse
from bench.drain import Drained
from bench.load import LoadError, interleaved, paired_ratios, ratio_table


def test_ratios_are_taken_turn_by_turn() -> None:
    slowed = [100.0, 50.0, 100.0]  # in the second turn the machine was busy
    assert paired_ratios([150.0, 80.0, 180.0], slowed) == [1.5, 1.6, 1.8]


def test_contenders_take_turns_and_small_figures_keep_their_decimals() -> None:
    said: list[str] = []
    order = iter([0.5, 1200.0, 0.25, 1100.4])
    contenders = {"one": lambda: next(order), "two": lambda: next(order)}
    figures = interleaved(contenders, 2, said.append)
    assert figures == {"one": [0.5, 0.25], "two": [1200.0, 1100.4]}
    assert said == ["  1/2 one: 0.500", "  1/2 two: 1200", "  2/2 one: 0.250", "  2/2 two: 1100"]
    line = ratio_table(figures, "messages", "one").splitlines()[1]
    assert line.split() == ["one", "0.375", "0.250", "0.500", "1.00"]


def test_cost_is_a_median_of_each_process_and_a_share_of_the_machine() -> None:
    runs = [
        Drained(rate=rate, cpu={"queue": queue, "worker 1": 0.2}, sink_cpu=0.1, others=0.0)
        for rate, queue in ((1000.0, 0.3), (2000.0, 0.1), (1000.0, 0.2))
    ]
    assert reuse.cost(runs) == (
        "CPU ms per message: queue 0.20, worker 1 0.20, sink 0.10; "
        f"all together 0.60 of {os.cpu_count()} processors"
    )


def test_a_process_that_the_last_run_had_in_addition_is_not_forgotten() -> None:
    runs = [
        Drained(rate=1000.0, cpu=cpu, sink_cpu=0.0, others=0.0)
        for cpu in ({"queue": 1.0}, {"worker 1": 2.0})
    ]
    assert "queue 1.00, worker 1 2.00, sink" in reuse.cost(runs)


def drained(rate: float, others: float) -> Drained:
    return Drained(rate=rate, cpu={}, sink_cpu=0.0, others=others)


def test_turns_in_which_others_were_busy_are_told_apart() -> None:
    one = [drained(100.0, 0.0), drained(100.0, 0.5), drained(100.0, 0.0), drained(100.0, 0.09)]
    two = [drained(150.0, 0.0), drained(400.0, 0.0), drained(300.0, 0.1), drained(170.0, -0.01)]
    assert reuse.ratio_in_words(two, one).splitlines() == [
        "two / one, median of 4 all turns: 2.35 (1.50 to 4.00)",
        "two / one, median of 2 undisturbed turns: 1.60 (1.50 to 1.70)",
    ]
    assert reuse.ratio_in_words(two[1:2], one[1:2]).endswith("0 undisturbed turns: no figure")


@pytest.mark.parametrize("arguments", [["latency"], ["workers", "--no-postfix"]])
def test_without_its_package_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(reuse, "SMTP_SOURCE", "/nowhere")
    done = CliRunner().invoke(reuse.main, arguments)
    assert done.exit_code == os.EX_UNAVAILABLE
    assert "install the Debian package postfix" in done.output


def test_a_measurement_that_fails_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_names: object, _domains: int, _repeats: int) -> None:
        raise LoadError("the sink does not run")

    monkeypatch.setattr(reuse, "workers", fails)
    monkeypatch.setattr(reuse, "SMTP_SOURCE", "/")
    done = CliRunner().invoke(reuse.main, ["workers"])
    assert done.exit_code == os.EX_SOFTWARE
    assert done.output.splitlines()[-1] == "reuse: the sink does not run"


@pytest.mark.parametrize(("command", "scenario"), [(first.main, "drain"), (reuse.main, "latency")])
@pytest.mark.parametrize("option", ["--count", "--destinations", "--repeats"])
def test_there_is_nothing_to_measure_in_no_turn_and_no_message(
    command: click.Command, scenario: str, option: str
) -> None:
    done = CliRunner().invoke(command, [scenario, option, "0"])
    assert done.exit_code == 2  # click's own
    assert "0 is not in the range x>=1" in done.output
