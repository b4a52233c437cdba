"""The parameters of merge methods: the range of a value, in the annotation of a method's signature."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from paramerge.apply.strengths import LARGEST_STRENGTH
from paramerge.errors import UsageError
from paramerge.wording import option


@dataclass(frozen=True, slots=True)
class Within:
    """A number between two others, which belong to it; the lower one does not where ``above``."""

    low: float
    high: float
    says: str
    above: bool = False
    whole: bool = False

    def read(self, name: str, value: object) -> float | int:
        """``value`` as a number of this range; raises UsageError."""
        number = _number(name, value)
        above = self.low < number if self.above else self.low <= number
        if not above or number > self.high or (self.whole and number != int(number)):
            kind = "a whole number" if self.whole else "a number"
            start = "above" if self.above else "from"
            raise UsageError(
                f"{name} is out of range: it is {self.says}",
                where=option(name),
                expected=f"{kind} {start} {self.low:g} to {self.high:g}",
                found=value,
            )
        return int(number) if self.whole else number


@dataclass(frozen=True, slots=True)
class Weights:
    """A weight for each model, or for each after the first."""

    first: bool
    says: str

    def read(self, name: str, value: object) -> tuple[float, ...]:
        """``value`` as numbers; how many there must be is :meth:`Method.weights`'s."""
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, Iterable):
            value = [value]
        weights = tuple(_number(name, each) for each in value)
        for weight in weights:
            if abs(weight) > LARGEST_STRENGTH:
                raise UsageError(
                    "a weight is too large",
                    where=option(name),
                    expected=f"at most {LARGEST_STRENGTH:g}, and usually a share of 1",
                    found=f"{weight:g}",
                )
        return weights


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]
    says: str

    def read(self, name: str, value: object) -> str:
        """``value``, if it is one of them; raises UsageError."""
        if value not in self.words:
            raise UsageError(
                "no such choice", where=option(name), expected=", ".join(self.words), found=value
            )
        return str(value)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Yes or no."""

    says: str

    def read(self, name: str, value: object) -> bool:
        """``value`` as a bool; raises UsageError."""
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        found = known.get(str(value).lower())
        if found is None:
            raise UsageError("this value is neither yes nor no", where=option(name), found=value)
        return found


Kind = Within | Weights | Choice | OnOff


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method: its name, its range, and its default."""

    name: str
    kind: Kind
    default: object


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(f"{name} is not a number", where=option(name), found=value) from None
    if not math.isfinite(number):
        raise UsageError(f"{name} is not a finite number", where=option(name), found=value)
    return number


Strength = Annotated[
    float, Within(-LARGEST_STRENGTH, LARGEST_STRENGTH, "what the change is multiplied by, usually about 1")
]
Density = Annotated[float, Within(0, 1, "the share of each model's differences that is kept")]
Seed = Annotated[int, Within(0, 2**63 - 1, "what the random choice goes by", whole=True)]
Shares = Annotated[
    tuple[float, ...], Weights(True, "a weight for each model, or for all but the first, which has the rest")
]
Each = Annotated[tuple[float, ...], Weights(False, "a weight for each model after the first")]
RandomShare = Annotated[float, Within(0, 1, "the share of each model's differences that is kept", above=True)]
Rescale = Annotated[bool, OnOff("whether what is kept is divided by the chance it had")]
Signs = Annotated[
    str, Choice(("all", "elect"), "whether differences of either sign are added, or as in ties")
]
