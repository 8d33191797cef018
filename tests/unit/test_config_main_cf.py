"""The lines of main.cf."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config.main_cf import Setting, parse_main_cf, parse_setting
from worker.config.problems import Problem


def settings(text: str) -> dict[str, str]:
    return {setting.name: setting.value for setting in parse_main_cf(text, "main.cf").settings}


def test_names_and_values_are_trimmed_and_placed() -> None:
    read = parse_main_cf("# first\n\n a_ = no\nb   =  two words \nc=\n", "main.cf")
    assert read.settings == (
        Setting(name="b", value="two words", file="main.cf", line=4),
        Setting(name="c", value="", file="main.cf", line=5),
    )
    assert read.settings[0].place == "main.cf:4"
    assert read.warnings == ('main.cf:3: "a_ = no" continues no line and is left out',)


def test_comments_and_empty_lines_do_not_end_a_continued_value() -> None:
    assert settings("a =\n  x,\n# note\n\n   # note\n\ty\nb = z\n") == {"a": "x,\ty", "b": "z"}


def test_a_number_sign_inside_a_value_is_text() -> None:
    assert settings("a = x # y\n") == {"a": "x # y"}


def test_crlf_line_ends_are_understood() -> None:
    assert settings("a = x\r\n\r\n y\r\n z\r\nb = z\r\n") == {"a": "x y z", "b": "z"}


def test_a_file_may_lack_its_last_newline() -> None:
    assert settings("a = x\nb = y") == {"a": "x", "b": "y"}


def test_the_last_setting_of_a_name_holds_and_is_remarked() -> None:
    read = parse_main_cf("a = x\nb = y\na = z\n", "main.cf")
    assert settings("a = x\nb = y\na = z\n") == {"a": "z", "b": "y"}
    assert read.warnings == ("main.cf:3: a = z overrides the setting in line 1",)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("relayhost [a]:25", 'no "=" in "relayhost [a]:25"'),
        ("= x", 'no name in "= x"'),
        ("relay host = x", 'white space in the name "relay host"'),
    ],
)
def test_a_line_of_another_form_is_a_problem_with_its_place(line: str, why: str) -> None:
    read = parse_main_cf(f"\n{line}\nb = y\n", "main.cf")
    assert [str(problem) for problem in read.problems] == [
        f"main.cf:2: {why}; expected name = value"
    ]
    assert [setting.name for setting in read.settings] == ["b"]


def test_a_setting_of_the_command_line_has_no_line() -> None:
    setting = parse_setting("a=b=c", "-o")
    assert setting == Setting(name="a", value="b=c", file="-o")
    assert isinstance(parse_setting("a", "-o"), Problem)


@given(st.text())
def test_any_text_is_read_without_an_exception(text: str) -> None:
    read = parse_main_cf(text, "main.cf")
    for setting in read.settings:
        assert setting.name
        assert setting.line <= text.count("\n") + 1


NAMES = st.from_regex(r"[a-z_0-9]{1,6}", fullmatch=True)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n \t\f\v"), min_size=1)
VALUES = st.lists(WORDS.filter(lambda word: not word.startswith("#") and word == word.strip()))


@given(st.dictionaries(NAMES, VALUES))
def test_values_folded_over_lines_come_back_whole(values: dict[str, list[str]]) -> None:
    text = "".join(f"{name} =" + "\n  ".join(["", *words]) + "\n" for name, words in values.items())
    assert settings(text) == {name: "  ".join(words) for name, words in values.items()}


SPACES = st.sampled_from(["", " ", "\t", "  ", " \t "])
FEW = st.lists(
    st.sampled_from(["a", "b=c", "d#", "$e", "ä", "\u00a0", "\x85", "{", "}", "\\", '"f'])
    | WORDS.filter(lambda word: not word.startswith("#") and word == word.strip()),
    max_size=4,
)
# What may stand between two lines of a value and mean nothing.
NOTHING = st.lists(st.sampled_from(["", "  ", "# note", "\t# a = b", " #", "\f"]), max_size=2)


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[str, dict[str, list[str]]]:
    """A main.cf as somebody may have written it, and the words of its values."""
    values: dict[str, list[str]] = {}
    text = ""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    for name, words in draw(st.lists(st.tuples(NAMES, FEW), max_size=4)):
        values[name] = words  # the last one counts
        text += f"{name}{draw(SPACES)}={draw(SPACES)}"
        for word in words:
            if draw(st.booleans()):
                nothing = "".join(end + line for line in draw(NOTHING))
                text += f"{draw(SPACES)}{nothing}{end}{draw(st.sampled_from([' ', chr(9)]))}"
            text += f"{draw(SPACES)} {word}"
        text += "".join(draw(SPACES) + end + line for line in draw(NOTHING)) + end
    return text, values


@given(laid_out())
def test_the_layout_of_a_file_means_nothing(written: tuple[str, dict[str, list[str]]]) -> None:
    text, values = written
    read = parse_main_cf(text, "main.cf")
    assert not read.problems
    found = {each.name: re.split("[ \t]+", each.value) for each in read.settings}
    assert {name: [word for word in words if word] for name, words in found.items()} == values
