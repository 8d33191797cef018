"""How delays are written in the log: two significant digits, no false precision (S152)."""

from typing import Final

DEFAULT_RESOLUTION: Final = 2  # delay_logging_resolution_limit: digits after the decimal point
MAX_RESOLUTION: Final = 6
MICROSECONDS: Final = 1_000_000

# What nearly every delay comes to: hundredths of a second below 1 s, tenths below 10 s.
_HUNDREDTHS: Final = tuple(f"{n / 100:.2f}".rstrip("0").rstrip(".") for n in range(101))
_TENTHS: Final = tuple(f"{n / 10:.1f}".removesuffix(".0") for n in range(101))


def format_delay(seconds: float, resolution: int = DEFAULT_RESOLUTION) -> str:
    """Return a delay as Postfix's log has it: "0", "0.01", "1.3", "13", "123".

    `seconds` below 0 (the wall clock was set back) count as 0. `resolution` is
    delay_logging_resolution_limit, 0 to 6: what is smaller is 0. Below 100 s two significant
    digits are kept, above whole seconds; zeros at the end of a fraction are dropped.
    """
    if seconds >= 10.0:
        return str(int(seconds + 0.5))
    if seconds <= 0.0:
        return "0"
    if resolution == DEFAULT_RESOLUTION:
        if seconds < 1.0:
            return _HUNDREDTHS[int(seconds * 100 + 0.5)]
        return _TENTHS[int(seconds * 10 + 0.5)]
    micros = int(seconds * MICROSECONDS + 0.5)
    unit = 10 ** (MAX_RESOLUTION - resolution)  # of the last digit shown, in microseconds
    if micros >= MICROSECONDS:
        unit = max(unit, MICROSECONDS // 10)
    else:
        while micros >= 100 * unit:
            unit *= 10
    rounded = (micros + unit // 2) // unit * unit
    whole, fraction = divmod(rounded, MICROSECONDS)
    if not fraction:
        return str(whole)
    return f"{whole}.{fraction:06}".rstrip("0")
