"""DoRA: a weight with another family's change in it, its rows or columns brought to trained lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from paramerge.adapters import loha, lokr, lora
from paramerge.adapters.contract import (
    AdditiveModule,
    DependentModule,
    LayerModule,
    in_order,
    read_finite,
    read_stored,
)
from paramerge.adapters.family import Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.loha import LohaModule
from paramerge.adapters.lokr import LokrModule
from paramerge.adapters.lora import LoraModule, stored_of_lora
from paramerge.adapters.parts import KOHYA, Part
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class DoraModule(DependentModule):
    """``W' = m o (W + D) / ||W + D||``, the norm of each row or of each input channel.

    Attributes
    ----------
    inner:
        The change D: LoRA, LoHa or LoKr, its own scale in it.
    magnitude:
        m, one number for each row (``axis`` is ``out``) or for each input channel (``in``).
    eps:
        The number that the file's trainer adds to the norm: 2^-23 (LyCORIS), 0 (PEFT).
    rows:
        The runs ``(start, stop)`` of the magnitude's rows that are this layer's; None for all.
    """

    name: ModuleName
    inner: AdditiveModule
    magnitude: StoredTensor
    axis: Literal["out", "in"] = "out"
    eps: float = 0.0
    family: str = "dora"
    rows: tuple[tuple[int, int], ...] | None = None

    @property
    def rank(self) -> int:
        """The rank of the inner change."""
        return self.inner.rank

    @property
    def out_features(self) -> int | None:
        return self.inner.out_features

    @property
    def in_features(self) -> int | None:
        return self.inner.in_features

    @property
    def scale(self) -> float | None:
        """The inner change's."""
        return self.inner.scale

    @property
    def alpha(self) -> float | None:
        """The inner change's."""
        alpha: float | None = getattr(self.inner, "alpha", None)
        return alpha

    @property
    def form(self) -> str:
        return f"{_AROUND[self.inner.family].label} by {'rows' if self.axis == 'out' else 'input channels'}"

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (*self.inner.tensors, self.magnitude)

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.inner.keys, self.magnitude.key)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """The inner change must fit, and the magnitude the rows or input channels."""
        count = math.prod(self.magnitude.shape)
        if self.rows is not None:
            count = sum(stop - start for start, stop in self.rows)
        return self.inner.fits(shape) and count == shape[0 if self.axis == "out" else 1]

    def misfit(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """The inner change's words, or how many magnitudes there should be."""
        if not self.inner.fits(shape):
            return self.inner.misfit(shape)
        of = f"{shape[0]} rows" if self.axis == "out" else f"{shape[1]} input channels"
        return f"one magnitude for each of {of}", f"{self.magnitude.key} {list(self.magnitude.shape)}"

    @property
    def is_cut(self) -> bool:
        return self.rows is not None

    def renamed(self, name: ModuleName) -> DoraModule:
        """The same around the same change, both of the layer ``name``."""
        return replace(self, name=name, inner=self.inner.renamed(name))

    def part(self, name: ModuleName, runs: tuple[tuple[int, int], ...]) -> DoraModule | None:
        """The DoRA of these rows, where each row has a length of its own; None where input channels have."""
        if self.axis == "in":
            return None
        return replace(self, name=name, inner=self.inner.part(name, runs), rows=runs)

    def transform(self, W: np.ndarray) -> np.ndarray:
        """``m o (W + D) / (||W + D|| + eps)``."""
        V = self.inner.transform(W)
        m = in_order(read_finite(self.magnitude).reshape(-1), self.rows)
        if self.axis == "out":
            return np.asarray(V * (m / (np.linalg.norm(V, axis=1) + self.eps))[:, None])
        channels = V.reshape(len(V), len(m), -1)
        lengths = np.sqrt(np.einsum("oik,oik->i", channels, channels)) + self.eps
        return np.asarray(channels * (m / lengths)[:, None]).reshape(V.shape)


_LYCORIS_EPS = 2.0**-23
"""The number that LyCORIS adds to norms: the distance from 1 to the next float32."""

_AROUND = {each.key: each for each in (lora.FAMILY, loha.FAMILY, lokr.FAMILY)}
"""The families whose change it can have in it."""

_INNER = (lora.FORM, loha.FORM, lokr.FORM)


def _build(group: Group, rules: Rules) -> Iterator[LayerModule]:
    form = next((form for form in _INNER if group.roles & form.own), lora.FORM)
    for inner in () if form.build is None else form.build(group, rules):
        if isinstance(inner, LoraModule | LohaModule | LokrModule):
            yield _with_magnitude(group, inner)
        else:
            yield inner  # its magnitude is left, and refused


def _with_magnitude(group: Group, inner: LoraModule | LohaModule | LokrModule) -> LayerModule:
    """``inner``, or the DoRA that it is part of."""
    if scale := group.take("dora_scale"):  # a second kind of magnitude beside it is left, and refused
        by_input = len(scale.shape) > 1 and scale.shape[0] == 1 < scale.shape[1]
        axis: Literal["out", "in"] = "in" if by_input else "out"
        group.check(max(scale.shape) == math.prod(scale.shape), "one magnitude for each row or input channel")
        return DoraModule(group.name, inner, scale, axis, _LYCORIS_EPS)
    magnitude = group.take("magnitude")
    if magnitude is None:
        return inner
    group.check(math.prod(magnitude.shape) == inner.out_features, "one magnitude for each row")
    return DoraModule(group.name, inner, magnitude)


def _part(module: LayerModule, to: str, dtype: str | None) -> Part | None:
    """The inner change and its magnitudes: one for each row in all formats but kohya's, which know both."""
    if not isinstance(module, DoraModule):
        return None
    if to != KOHYA and (module.axis == "in" or not isinstance(module.inner, LoraModule)):
        return None
    make = _AROUND[module.inner.family].parts[KOHYA]
    inner = None if make is None else make(module.inner, to, dtype)
    if inner is None:
        return None
    magnitude = in_order(read_stored(module.magnitude).reshape(-1), module.rows)
    convolution = inner.tensors["up"].ndim == 4 if "up" in inner.tensors else False
    if to == KOHYA:
        ones = (1,) * (3 if convolution else 1)
        shaped = magnitude.reshape((-1, *ones) if module.axis == "out" else (1, -1, *ones[1:]))
        tensors = {**inner.tensors, "dora_scale": shaped}
    else:
        tensors = {**inner.tensors, "magnitude": magnitude.reshape((1, -1, 1, 1) if convolution else -1)}
    return replace(inner, family="dora", tensors=tensors)


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return stored_of_lora(shape, settings) + shape[0]


FAMILY = Family(
    key="dora",
    label="DoRA",
    formula="m o (W + D) / (norm(W + D) + eps), D a LoRA, LoHa or LoKr",
    forms=(
        Form(
            "DoRA",
            {
                "dora_scale": "dora_scale",
                "lora_magnitude_vector.<name>": "magnitude",
                "lora_magnitude_vector.<name>.weight": "magnitude",
            },
            _build,
            around=frozenset().union(*(form.own for form in _INNER)),
            unread=("magnitude.<name>",),  # ai-toolkit's, which its dialects read where the scale is known
        ),
    ),
    stored=_stored,
    ranked=True,
    parts=dict.fromkeys((KOHYA, "diffusers", "peft"), _part),
    tuner=lora.FAMILY.tuner,
)
