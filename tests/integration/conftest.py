"""The `peer` marker: a test that needs programs of other projects names them.

Without them the test is skipped with the name of the Debian package; with POSTRIO_REQUIRE_PEERS=1
(.ci/run) it fails, so that nothing is left out unseen. `peer("root")` names our own rights.
"""

import os

import pytest

from tests.integration.peers import PACKAGES, missing_packages, read_packages

ROOT = "root"  # as a peer: the program can only be run by root (Postfix's master)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for the peers of a test before any fixture starts one."""
    marks = list(item.iter_markers("peer"))
    if not marks:
        return
    programs = [program for mark in marks for program in mark.args]
    if ROOT in programs and os.geteuid() != 0:
        pytest.skip("needs root")
    named = [program for program in programs if program != ROOT]
    missing = missing_packages(named, read_packages(PACKAGES.read_text()))
    if not missing:
        return
    reason = f"not installed: Debian package {', '.join(missing)}"
    if os.environ.get("POSTRIO_REQUIRE_PEERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
