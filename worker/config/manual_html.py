"""Writes the manual pages as HTML: docs/html/*.html, from docs/man/*.

`python -m worker.config.manual_html` in the top directory of the sources writes them; mandoc(1)
does the work. Tests compare what is there with what would be written, and, without mandoc, the
words on both sides.
"""

import re
import subprocess
import sys
from pathlib import Path

MAN = Path("docs/man")
HTML = Path("docs/html")

_REFERENCE = re.compile(r"<b>([\w.-]+)</b>\((\d)\)")


def html_path(page: Path) -> Path:
    """Where the HTML of a manual page is, below the top directory."""
    return HTML / f"{page.name}.html"


def html(page: Path) -> str:
    """A manual page as an HTML document. Names of our other pages lead to them.

    Raises FileNotFoundError where there is no mandoc, CalledProcessError where it finds a mistake.
    """
    done = subprocess.run(
        ["mandoc", "-T", "html", "-W", "error", page],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    )
    beside = {path.name for path in page.parent.iterdir()}

    def linked(match: re.Match[str]) -> str:
        name = f"{match[1]}.{match[2]}"
        return f'<a href="{name}.html">{match[0]}</a>' if name in beside else match[0]

    return _REFERENCE.sub(linked, done.stdout)


def main(top: Path) -> None:
    """Write a page for each manual page below `top`."""
    (top / HTML).mkdir(parents=True, exist_ok=True)
    for page in sorted((top / MAN).iterdir()):
        (top / html_path(page)).write_text(html(page), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path.cwd())
    except FileNotFoundError:
        sys.exit("mandoc is not installed: install the Debian package mandoc")
