"""What the type checker refuses: a session that may be in a wrong state cannot be given away.

mypy runs over a few lines that try. The first lines show that the right thing is accepted, so that
a refusal further down is about what it seems to be about.
"""

import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]
ATTEMPTS = """
from worker.delivery.reuse import CachedSessions
from worker.delivery.session import Session, SessionKey
from worker.delivery.slot import DeliverySlot
from worker.delivery.transaction import CleanSession, PledgedSession

async def attempt(
    cached: CachedSessions, slot: DeliverySlot, key: SessionKey,
    clean: CleanSession, pledged: PledgedSession, session: Session,
) -> None:
    await cached.save(key, clean, 2.0, for_destination=True)
    slot.park(key, clean, None)
    slot.park(key, pledged, None)
    # From here on every line is wrong.
    await cached.save(key, pledged, 2.0, for_destination=True)
    await cached.save(key, session, 2.0, for_destination=True)
    slot.park(key, session, None)
    slot.park(key, None, None)
"""


def test_only_what_a_whole_transaction_returned_can_be_kept(tmp_path: Path) -> None:
    module = tmp_path / "attempts.py"
    module.write_text(ATTEMPTS)
    lines = ATTEMPTS.splitlines()
    wrong = range(lines.index("    # From here on every line is wrong.") + 2, len(lines) + 1)
    config, cache = ROOT / "pyproject.toml", tmp_path / "cache"
    said, complaint, _ = api.run(
        [
            *("--config-file", str(config), "--cache-dir", str(cache)),
            *("--python-executable", sys.executable, "--follow-imports", "silent"),
            *("--no-error-summary", "--hide-error-context", str(module)),
        ]
    )
    assert not complaint
    places = [int(line.split(":")[1]) for line in said.splitlines() if ": error: " in line]
    assert sorted(set(places)) == list(wrong), said
