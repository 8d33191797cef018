"""The `peer` marker: a test that needs programs of other projects names them.

Without them the test is skipped with the name of the Debian package; with POSTRIO_REQUIRE_PEERS=1
(.ci/run) it fails, so that nothing is left out unseen.
"""

import os

import pytest

from tests.integration.peers import PACKAGES, missing_packages, read_packages


@pytest.fixture(autouse=True)
def _peers(request: pytest.FixtureRequest) -> None:
    marks = list(request.node.iter_markers("peer"))
    if not marks:
        return
    programs = [program for mark in marks for program in mark.args]
    missing = missing_packages(programs, read_packages(PACKAGES.read_text()))
    if not missing:
        return
    reason = f"not installed: Debian package {', '.join(missing)}"
    if os.environ.get("POSTRIO_REQUIRE_PEERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
