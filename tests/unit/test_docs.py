"""What README, docs/ and the manual pages say is there: commands, options, files, parameters.

The sentences cannot be checked; names can. What is shown to be typed is parsed by the real
commands, without being run.
"""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bench.command import command as bench
from bench.harness.markdown import table
from bench.harness.result import read_result
from bench.scenarios import SCENARIOS
from worker.cli import COMMANDS, postrio
from worker.cli.sendmail import USAGE, parse_arguments
from worker.config.parameters import PARAMETERS, TRANSPORT_SUFFIXES, find

TOP = Path(__file__).parents[2]
PAGES = [
    TOP / name for name in ("README.md", "CHANGELOG.md", "bench/README.md", "examples/README.md")
] + sorted((TOP / "docs").glob("*.md"))
MANUAL = TOP / "docs/man/postrio.1"
SENDMAIL_MANUAL = TOP / "docs/man/postrio-sendmail.1"
FOR_POSTFIX_USERS = TOP / "docs/coming-from-postfix.md"
COMMON = {"-c", "--config", "-o", "--option", "--debug", "-h", "--help"}

# Words in code quotes that have the form of a parameter: keys of JSON objects, mostly.
NOT_PARAMETERS = {
    *("conn_use", "message_id", "mail_parameters", "rcpt_parameters"),
    "policy_failure",  # an attribute of TLS policies
    *("dbpath", "query", "result_format", "expansion_limit", "name_query"),  # of sqlite_table(5)
    *("idle_interval", "retry_interval", "option_file", "server_host"),  # of its kin
    *("dbname", "hosts", "password", "user"),
    "dns_canonicalize_hostname",  # of krb5.conf(5)
    *("tls_config_file", "tls_ssl_options"),  # said not to be there yet
}

EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def leaves(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Each command that does something, by its words: ("queue list", command)."""
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from leaves(below, (*words, name))


def own_commands() -> click.Group:
    """`postrio` without what installed packages add: that differs from machine to machine."""
    context = click.Context(postrio)
    found = {name: postrio.get_command(context, name) for name in COMMANDS}
    return click.Group("postrio", commands={name: each for name, each in found.items() if each})


LEAVES = dict(leaves(own_commands()))


def bench_command(name: str) -> click.Command:
    """A command of `postrio bench`, which loads it now: scenarios are not loaded for nothing."""
    found = bench.get_command(click.Context(bench), name)
    assert found is not None, f"there is no command bench {name}"
    return found


def options_of(command: click.Command) -> set[str]:
    """The options that a command has besides those of every command."""
    options = {
        word
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for word in (*parameter.opts, *parameter.secondary_opts)
    }
    # -h is help everywhere else.
    return options - (COMMON - {"-h"})


def plain(roff: str) -> str:
    """The text of a manual page's source, its escapes taken out."""
    return re.sub(r"\\f[BIRP]", "", roff).replace("\\-", "-")


def manual_sections() -> dict[str, str]:
    """Command -> its part of postrio(1)."""
    parts = re.split(r"^\.SS (.+)$", MANUAL.read_text(), flags=re.MULTILINE)
    return {
        name: plain(text.partition("\n.SH ")[0])
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def options_described(roff: str) -> set[str]:
    """The options that begin an entry of a list."""
    heads = re.findall(r"^\.TP\n(.+)$", roff, flags=re.MULTILINE)
    return {word for head in heads for word in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", head)}


def code_blocks(page: Path) -> Iterator[str]:
    """The fenced blocks of a page, continued lines joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield block.replace("\\\n", " ")


def typed_lines(page: Path) -> Iterator[list[str]]:
    """What is shown to be typed, as words: from a program of ours on, without redirections."""
    shown = [line for block in code_blocks(page) for line in block.splitlines()]
    shown += re.findall(r"`(postrio [^`]+)`", page.read_text().replace("\n", " "))
    for line in shown:
        text = line.rpartition(" | ")[2] if "printf" in line else line
        if not re.match(r"(\$ )?(\S*/)?postrio(-sendmail)? ", text):
            continue
        words = shlex.split(text.removeprefix("$ "), comments=True)
        ends = [number for number, word in enumerate(words) if word in {"<", ">", "|", "&"}]
        words = words[: min(ends, default=len(words))]
        yield [words[0].rpartition("/")[2], *words[1:]]


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """("queue list", arguments) of the words after `postrio`."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in LEAVES:
            return name, words[count:]
    raise AssertionError(f"there is no command {' '.join(words)!r}")


# --- the manual pages ----------------------------------------------------------------------------


def test_the_manual_has_a_section_for_each_command_in_their_order() -> None:
    found = list(manual_sections())
    assert sorted(found) == sorted([*LEAVES, "bench"])
    assert list(dict.fromkeys(name.split()[0] for name in found)) == [*COMMANDS, "bench"]


@pytest.mark.parametrize("name", LEAVES)
def test_the_manual_describes_the_options_that_a_command_has_and_no_others(name: str) -> None:
    assert options_described(manual_sections()[name]) == options_of(LEAVES[name])


def test_the_manual_describes_the_options_of_running_scenarios() -> None:
    options = options_of(bench_command("engine")) | options_of(bench_command("all"))
    assert options_described(manual_sections()["bench"]) == options


def test_the_bench_readme_names_every_scenario() -> None:
    text = (TOP / "bench/README.md").read_text()
    for name in SCENARIOS:
        assert f"`{name}`" in text


def test_the_manual_describes_the_options_of_all_commands() -> None:
    options = plain(MANUAL.read_text()).partition(".SH OPTIONS")[2].partition(".SH ")[0]
    assert options_described(options) == COMMON | {"--version"}


def test_the_sendmail_manual_describes_the_flags_of_its_help() -> None:
    flags, _, _ = USAGE.partition("Other flags")
    named = set(re.findall(r"(?:^ +|, +| {2,})(--?[A-Za-z]+)", flags, flags=re.MULTILINE))
    assert {"-f", "-t", "-bp", "-q", "--help"} <= named
    assert named - options_described(plain(SENDMAIL_MANUAL.read_text())) == set()


@pytest.mark.parametrize("page", sorted((TOP / "docs/man").iterdir()), ids=lambda page: page.name)
def test_no_line_of_a_manual_page_is_taken_for_a_request(page: Path) -> None:
    macros = {".TH", ".ad", ".nh", ".SH", ".SS", ".TP", ".PP", ".br", '.\\"'}
    controls = [line for line in page.read_text().splitlines() if line.startswith((".", "'"))]
    assert {line.split()[0] for line in controls} <= macros


# --- what is typed -------------------------------------------------------------------------------


@EVERY_PAGE
def test_what_is_shown_to_be_typed_is_understood(page: Path) -> None:
    for words in typed_lines(page):
        program, *arguments = words
        if program == "postrio-sendmail":
            parse_arguments(arguments)
            continue
        if not arguments[0].islower():
            assert arguments[0] in {"--version", "COMMAND"}
            continue
        if arguments in (["queue"], ["bench"]) or arguments[:2] == ["bench", "NAME"]:
            continue
        if arguments[0] == "bench":
            below = bench_command(arguments[1])
            if arguments[2:]:
                below.make_context(arguments[1], arguments[2:])
            continue
        name, rest = split_command(arguments)
        if rest:  # a command named alone is no call of it
            rest = ["1" if word in {"N", "..."} else word for word in rest]
            LEAVES[name].make_context(name, rest)


def test_lines_to_type_are_found_at_all() -> None:
    found = [words for page in PAGES for words in typed_lines(page)]
    assert ["postrio", "config", "--explain", "relayhost"] in found  # after a prompt
    assert ["postrio", "queue", "delete", "ID"] in found  # in a sentence
    assert {"deliver", "check", "queue", "run"} <= {words[1] for words in found}


@EVERY_PAGE
def test_programs_and_targets_named_exist(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module) is not None, module
    targets = re.findall(r"^\.PHONY: (.+)$", (TOP / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^|\$ )make (\w+)", text, flags=re.MULTILINE):
        assert target in targets[0].split()


def test_the_readme_names_every_command() -> None:
    table = (TOP / "README.md").read_text().partition("## Commands")[2].partition("##")[0]
    for name in [*LEAVES, "bench"]:
        assert f"`postrio {name}`" in table or f"`{name.split()[-1]}`" in table


def test_the_figures_of_the_readme_are_those_that_are_kept() -> None:
    shown = (TOP / "README.md").read_text().partition("<!-- figures: begin -->\n")[2]
    kept = [read_result(path) for path in sorted((TOP / "bench/results").glob("*.json"))]
    assert kept
    # It is made by `postrio bench show --markdown bench/results/*.json`.
    assert table(kept) == shown.partition("<!-- figures: end -->")[0]


# --- what is referred to -------------------------------------------------------------------------


@EVERY_PAGE
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


@EVERY_PAGE
def test_parameters_named_exist(page: Path) -> None:
    text = page.read_text()
    quoted = re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)(?: = [^`]*)?`", text)
    set_in_code = [
        name
        for block in code_blocks(page)
        for name in re.findall(r"^([a-z0-9_]+) = ", block, re.MULTILINE)
    ]
    on_command_lines = re.findall(r"-o ([a-z0-9_]+)=", text)
    for name in {*quoted, *set_in_code, *on_command_lines} - NOT_PARAMETERS - {"name"}:
        assert find(name) is not None, name
    for suffix in re.findall(r"<transport>_([a-z_]+)", text):
        assert suffix in TRANSPORT_SUFFIXES


def test_parameters_said_to_have_no_effect_are_read_by_nobody() -> None:
    listed = FOR_POSTFIX_USERS.read_text().partition("<!-- no effect: begin -->")[2]
    names = re.findall(r"`(\w+)`", listed.partition("<!-- no effect: end -->")[0])
    assert len(names) > 1
    modules = [
        path
        for path in (TOP / "worker").rglob("*.py")
        if path.parent.name != "config" or path.name == "config.py"
    ]
    code = "".join(path.read_text() for path in modules)
    for name in names:
        assert name in PARAMETERS
        # Read by its whole name, or, of one transport's own, by its ending.
        assert f'"{name}"' not in code, f"{name} is read now: take it off the list"
        assert f'"{name.removeprefix("default_")}"' not in code, name
