"""The manual pages beside the programs that show them: groff(1) and mandoc(1)."""

import subprocess
from pathlib import Path

import pytest

from worker.config.manual_html import MAN, html, html_path

TOP = Path(__file__).parents[2]

EVERY_PAGE = pytest.mark.parametrize(
    "page", sorted((TOP / MAN).iterdir()), ids=lambda page: page.name
)


@pytest.mark.peer("groff")
@EVERY_PAGE
def test_groff_has_no_warning_for_a_manual_page(page: Path) -> None:
    for device in ("utf8", "ascii"):
        done = subprocess.run(
            ["groff", "-ww", "-z", "-man", f"-T{device}", page],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""


@pytest.mark.peer("mandoc")
@EVERY_PAGE
def test_the_html_is_the_one_that_mandoc_makes(page: Path) -> None:
    same = html(page) == (TOP / html_path(page)).read_text(encoding="utf-8")
    assert same, "run python -m worker.config.manual_html"
