"""`@value()`: a dataclass that never changes, by the word of the type checker.

`frozen=True` keeps that word at run time, too, and makes every instance three times as expensive
to create. What is created for every message and every reply is declared with this instead: mypy
refuses an assignment just the same, and there is nobody else who could assign.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """A dataclass with slots, equal and hashed by its fields, that must not be assigned to."""
    return dataclass(slots=True, kw_only=kw_only, unsafe_hash=True)
