"""IA3: rows or input channels of a weight multiplied by trained numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paramerge.adapters.contract import DependentModule, read_finite
from paramerge.adapters.family import Family, Form
from paramerge.adapters.group import NUMBER, Group
from paramerge.adapters.layer_patterns import check_patterns, whole_match
from paramerge.adapters.parts import NAMES_ALONE
from paramerge.adapters.peft_config import TunerSettings, bad_option
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.adapters.tuner import Tuner
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class Ia3Module(DependentModule):
    """``W' = W o l`` (PEFT) or ``W' = W o (1 + l)`` (LyCORIS).

    Attributes
    ----------
    vector:
        l, one number for each row (``axis`` is ``out``) or for each input channel (``in``).
    around_one:
        Whether l is stored as its distance from 1, as LyCORIS does.
    on_bias:
        Whether this is the bias of a layer whose outputs are scaled (PEFT); the base may have none.
    axis_key:
        The key of the axis, where it is a tensor of the file (LyCORIS).
    """

    name: ModuleName
    vector: StoredTensor
    axis: Literal["out", "in"]
    around_one: bool
    on_bias: bool = False
    axis_key: str | None = None
    family: str = "ia3"

    @property
    def rank(self) -> int:
        """The number of trained numbers."""
        return math.prod(self.vector.shape)

    @property
    def out_features(self) -> int | None:
        return self.rank if self.axis == "out" else None

    @property
    def in_features(self) -> int | None:
        return 1 if self.on_bias else None

    @property
    def form(self) -> str:
        return "on outputs" if self.axis == "out" else "on inputs"

    @property
    def optional(self) -> bool:
        return self.on_bias

    @property
    def keys(self) -> tuple[str, ...]:
        return super().keys if self.axis_key is None else (*super().keys, self.axis_key)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there are as many numbers as rows, or as input channels."""
        if self.axis == "in":
            return len(shape) > 1 and shape[1] == self.rank
        return super().fits(shape)

    def misfit(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """The numbers expected and found, in words."""
        if self.axis == "out":
            return super().misfit(shape)
        channels = shape[1] if len(shape) > 1 else 0
        return f"one number for each of {channels} input channels", f"{self.rank} numbers"

    def transform(self, W: np.ndarray) -> np.ndarray:
        """Scale the rows, or the columns of each input channel."""
        factors = read_finite(self.vector).reshape(-1) + (1.0 if self.around_one else 0.0)
        if self.axis == "out":
            return np.asarray(W * factors[:, None])
        return np.asarray(W * np.repeat(factors, W.shape[1] // len(factors)))


def _build(group: Group, rules: Rules) -> Iterator[Ia3Module]:
    vector, on_input = group.need("weight"), group.number("on_input", positive=True)
    if on_input is None:
        group.need("on_input")
    _check_vector(group, vector)
    axis: Literal["out", "in"] = "in" if on_input else "out"
    yield Ia3Module(group.name, vector, axis, around_one=True, axis_key=group.key_of("on_input"))


def _build_peft(group: Group, rules: Rules) -> Iterator[Ia3Module]:
    vector = group.need("ia3_l")
    _check_vector(group, vector)
    settings = rules.tuner(group, "IA3", Ia3Settings)
    linear = len(vector.shape) == 2
    scales_inputs = settings.scales_inputs(group.name.path)
    if linear and vector.shape[0] != vector.shape[1]:
        group.check(scales_inputs == (vector.shape[0] == 1), "(1, in) for feedforward_modules, else (out, 1)")
    yield Ia3Module(group.name, vector, "in" if scales_inputs else "out", around_one=False)
    if not scales_inputs:  # PEFT scales the outputs, and with them the bias
        yield Ia3Module(group.bias, vector, "out", around_one=False, on_bias=True)


def _check_vector(group: Group, vector: StoredTensor) -> None:
    group.check(max(vector.shape, default=0) == math.prod(vector.shape), "one number for each channel")


@dataclass(frozen=True)
class Ia3Settings(TunerSettings):
    """PEFT's configuration: the layers whose inputs are scaled, as names or a regular expression."""

    feedforward: str | tuple[str, ...] = ()

    def scales_inputs(self, path: str) -> bool:
        """Whether the inputs of the layer ``path`` are scaled: PEFT's rule by the module's name."""
        for spelling in (path, path.removeprefix("text_model.")):
            if isinstance(self.feedforward, str):
                if whole_match(self.feedforward, spelling):
                    return True
            elif spelling.endswith(self.feedforward):
                return True
        return False


def _read_tuner(config: Mapping[str, object], where: str) -> Ia3Settings:
    option = "feedforward_modules"
    named = config.get(option) or ()
    if isinstance(named, str):
        check_patterns(option, [named], where)
        return Ia3Settings("IA3", where, feedforward=named)
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise bad_option(option, named, where, "a list of names or a regular expression")
    check_patterns(option, list(named), where, names=True)
    return Ia3Settings("IA3", where, feedforward=tuple(named))


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return shape[0]


FAMILY = Family(
    key="ia3",
    label="IA3",
    formula="W o (1 + l); PEFT: W o l and b o l",
    forms=(
        Form(
            "IA3",
            {"weight": "weight", "on_input": "on_input"},
            _build,
            {"on_input": NUMBER},
            vague=frozenset({"weight"}),  # whole weights saved along have this ending, too
        ),
        Form("IA3 of PEFT", {"ia3_l.<name>": "ia3_l"}, _build_peft),
    ),
    stored=_stored,
    counted="numbers",
    tuner=Tuner("IA3", _read_tuner),
    parts=NAMES_ALONE,
)
