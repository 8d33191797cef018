"""The HTML of the manual pages says what the manual pages say. What mandoc makes of them is in
tests/integration/test_manual_pages.py.
"""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from worker.config.manual_html import HTML, MAN, html_path

TOP = Path(__file__).parents[2]
PAGES = sorted((TOP / MAN).iterdir())

EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
AGAIN = "run python -m worker.config.manual_html"


class Reader(HTMLParser):
    """The text of a page without head and foot, its identifiers, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self._outside = 0  # tables of head and foot, styles, title

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.identifiers += filter(None, [given.get("id")])
        self.links += filter(None, [given.get("href")])
        self.open.append(tag)
        self._outside += tag in {"head", "table"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """<br/>: nothing is opened."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._outside -= tag in {"head", "table"}

    def handle_data(self, data: str) -> None:
        if not self._outside:
            self.text += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed((TOP / html_path(page)).read_text(encoding="utf-8"))
    reader.close()
    return reader


def words_of(roff: str) -> str:
    """The text of a manual page's source without white space."""
    lines = [
        re.sub(r"^\.(?:SH|SS|\\\".*|[A-Za-z]+) ?", "", line)
        for line in roff.splitlines()
        if not re.match(r"\.(?:TH|ad|nh|\\\")", line)
    ]
    text = re.sub(r"\\(?:f[BIRP]|&|:)", "", " ".join(lines)).replace("\\-", "-")
    return "".join(text.replace("\\e", "\\").split())


def test_there_is_html_for_each_manual_page_and_nothing_else() -> None:
    assert sorted((TOP / HTML).iterdir()) == [TOP / html_path(page) for page in PAGES], AGAIN


@EVERY_PAGE
def test_the_html_has_the_words_of_the_manual_page(page: Path) -> None:
    shown = "".join(read(page).text.split())
    # No assertion on the texts themselves: pytest would compare them for minutes.
    same = shown == words_of(page.read_text(encoding="utf-8"))
    assert same, AGAIN


@EVERY_PAGE
def test_tags_are_closed_names_are_given_once_and_links_lead_somewhere(page: Path) -> None:
    reader = read(page)
    assert reader.open == []
    assert len(reader.identifiers) == len(set(reader.identifiers))
    for link in reader.links:
        name, _, place = link.partition("#")
        assert not name or (TOP / HTML / name).exists(), link
        assert not place or place in reader.identifiers, link
