"""How long a reply takes: fixed, or drawn from a distribution. Plain data and its spelling."""

import math
from dataclasses import dataclass
from random import Random
from typing import Final

LONGEST: Final = 86_400.0  # seconds: what a distribution with a long tail is cut at
KINDS: Final = {  # kind -> its parameters, for people
    "uniform": ("LOW", "HIGH"),
    "normal": ("MEAN", "DEVIATION"),
    "exponential": ("MEAN",),
    "lognormal": ("MEDIAN", "SIGMA"),
}
SHAPES: Final = (
    "SECONDS, uniform:LOW:HIGH, normal:MEAN:DEVIATION, exponential:MEAN or lognormal:MEDIAN:SIGMA"
)


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds, never negative. `kind` is "fixed" or one of KINDS; `second` may be unused."""

    kind: str
    first: float
    second: float = 0.0

    def draw(self, random: Random) -> float:
        """One delay in seconds, from 0 to LONGEST."""
        match self.kind:
            case "uniform":
                seconds = random.uniform(self.first, self.second)
            case "normal":
                seconds = random.gauss(self.first, self.second)
            case "exponential":
                seconds = random.expovariate(1 / self.first) if self.first else 0.0
            case "lognormal":
                # The median is what people know of their network; the logarithm's mean follows.
                exponent = random.gauss(0.0, self.second)
                seconds = self.first * math.exp(min(exponent, 700.0))
            case _:
                seconds = self.first
        return min(max(0.0, seconds), LONGEST)


def seconds(value: object) -> float:
    """A number of seconds from a file, or its text. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("expected seconds, such as 0.05")  # noqa: TRY004 - bad input is one kind
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= LONGEST:  # false for NaN, too
        raise ValueError(f"expected seconds from 0 to {LONGEST:.0f}, such as 0.05")
    return number


def parse_delay(value: object) -> Delay:
    """`0.05`, "normal:0.05:0.01" and the like. Raises ValueError, which says what is known."""
    kind, *parameters = value.split(":") if isinstance(value, str) else ("",)
    if not parameters and kind not in KINDS:
        try:
            return Delay("fixed", seconds(value))
        except ValueError as exc:
            raise ValueError(f"expected {SHAPES}") from exc
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no distribution; expected {SHAPES}")
    names = KINDS[kind]
    if len(parameters) != len(names):
        raise ValueError(f"expected {':'.join((kind, *names))}")
    numbers = [seconds(parameter) for parameter in parameters]
    if kind == "uniform" and numbers[0] > numbers[1]:
        raise ValueError("expected uniform:LOW:HIGH with LOW at most HIGH")
    return Delay(kind, *numbers)
