"""What --set takes: names, types, ranges, and the units that a load's comments tell."""

from dataclasses import dataclass, field
from typing import Literal

import click
import pytest

from bench.harness.parameters import parameters, with_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load with a parameter of every type."""

    count: int = 10  # messages
    pause: float = 0.5  # seconds; count: not a field
    none: int = 0
    # A line of its own is no unit.
    sizes: tuple[int, ...] = (1, 2)  # octets # each
    name: str = "x"
    fast: bool = False
    kind: Literal["a", "b"] = "a"
    limit: int | None = None  # octets
    few: int = field(default=3, metadata={"least": 2, "most": 4})

    def __post_init__(self) -> None:
        """Refuse what does not hang together."""
        if self.count < self.few:
            raise ValueError("few is more than count")


def test_units_are_in_the_comments_behind_the_fields() -> None:
    notes = {each.name: each.note for each in parameters(Load()) if each.note}
    assert notes == {
        "count": "messages",
        "pause": "seconds; count: not a field",
        "sizes": "octets # each",
        "limit": "octets",
    }
    assert [each.default for each in parameters(Load(count=7))][:2] == [7, 0.5]


def test_a_class_without_source_has_no_units() -> None:
    made: dict[str, type] = {}
    exec(  # noqa: S102 RUF100
        "from dataclasses import dataclass\n@dataclass\nclass Made:\n    x: int = 1  # s\n", made
    )
    assert [each.note for each in parameters(made["Made"]())] == [""]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("count=5", 5),
        ("pause=0", 0.0),
        ("pause=1e-3", 0.001),
        ("none=0", 0),
        ("sizes=5", (5,)),
        ("sizes=5,6,7", (5, 6, 7)),
        ("name=a=b", "a=b"),
        ("fast=yes", True),
        ("kind=b", "b"),
        ("limit=5", 5),
        ("limit=none", None),
        ("few=4", 4),
    ],
)
def test_a_setting_changes_one_parameter(setting: str, value: object) -> None:
    name = setting.partition("=")[0]
    changed = with_settings(Load(), [setting])
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    others = {each.name for each in parameters(changed)} - {name}
    assert all(getattr(changed, other) == getattr(Load(), other) for other in others)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("count", "--set count: expected NAME=VALUE"),
        (
            "cuont=5",
            "no such parameter (did you mean count?); there are count, pause, none, sizes, name, "
            "fast, kind, limit, few",
        ),
        ("=5", "no such parameter; there are count,"),
        ("count=x", "--set count=x: expected a whole number"),
        ("count=", "--set count=: expected a whole number"),
        ("count=1.5", "--set count=1.5: expected a whole number"),
        ("count=0", "0 is not in the range"),
        ("count=99999999999", "99999999999 is not in the range"),
        ("none=-1", "-1 is not in the range"),
        ("pause=-0.1", "-0.1 is not in the range"),
        ("pause=nan", "nan is not a finite number"),
        ("pause=inf", "inf is not a finite number"),
        ("sizes=", "--set sizes=: expected a whole number"),
        ("sizes=1,0", "0 is not in the range"),
        ("fast=perhaps", "'perhaps' is not a valid boolean"),
        ("kind=c", "'c' is not one of 'a', 'b'"),
        ("few=5", "5 is not in the range 2<=x<=4"),
        ("count=2", "--set count=2: few is more than count"),
    ],
)
def test_a_bad_setting_is_wrong_use_and_says_why(setting: str, complaint: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        with_settings(Load(), [setting])
    assert complaint in caught.value.format_message()


def test_a_type_that_has_no_words_is_a_mistake_of_the_scenario() -> None:
    @dataclass
    class Odd:
        x: complex = 1j

    with pytest.raises(TypeError, match="no parameters of type"):
        parameters(Odd())
