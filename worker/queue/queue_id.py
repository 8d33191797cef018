"""Queue ids: the name of a message in logs, commands and notices.

The form is that of Postfix's long queue ids (`enable_long_queue_ids`), so that log tools that know
those know ours: time of arrival, then `z`, then a number. The number is the message's row id, which
a queue never hands out twice; the time keeps ids apart when a queue directory is made anew. Ids of
one queue sort by time of arrival, as text too (those of the same microsecond do not).
"""

from typing import Final

# Digits and consonants: an id never spells a word. Base 51 lacks the `z` that ends the time.
_DIGITS: Final = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"
_TIME_BASE: Final = len(_DIGITS)
_ROW_BASE: Final = len(_DIGITS) - 1
_VALUES: Final = {digit: value for value, digit in enumerate(_DIGITS)}
_SECONDS_WIDTH: Final = 6  # enough for six hundred years
_MICROSECONDS_WIDTH: Final = 4
_LONGEST: Final = 32  # characters; no id of ours is longer


def make_queue_id(arrival: float, row: int) -> str:
    """The queue id of the message in row `row`, arrived at `arrival` (seconds since the epoch)."""
    seconds, microseconds = divmod(int(arrival * 1_000_000), 1_000_000)
    return (
        _encode(seconds, _TIME_BASE).rjust(_SECONDS_WIDTH, "0")
        + _encode(microseconds, _TIME_BASE).rjust(_MICROSECONDS_WIDTH, "0")
        + "z"
        + _encode(row, _ROW_BASE)
    )


def row_of(queue_id: str) -> int:
    """The row id inside a queue id; 0, which is no row, if this is no queue id at all."""
    if len(queue_id) > _LONGEST:
        return 0
    row = 0
    for digit in queue_id[queue_id.rfind("z") + 1 :]:
        value = _VALUES.get(digit)
        if value is None:
            return 0
        row = row * _ROW_BASE + value
    return row if row < 2**63 else 0


def _encode(number: int, base: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, base)
        digits = _DIGITS[digit] + digits
    return digits or _DIGITS[0]
