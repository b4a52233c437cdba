"""GLoRA: a low-rank change and another that goes through the weight, ``scale * (W A + B)``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.contract import DependentModule, read_finite
from paramerge.adapters.family import CORE, FACTOR, Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.loha import tucker
from paramerge.adapters.lora import stored_of_lora
from paramerge.adapters.parts import NAMES_ALONE
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class GloraModule(DependentModule):
    """``W' = W + scale * (W A1 A2 + B1 B2)``; A acts on input channels, at each place of a kernel alike.

    Attributes
    ----------
    a1, a2:
        (in channels, r) and (r, in channels), perhaps with axes of 1 behind them.
    b1, b2:
        (out, r) and (r, in), the latter with the kernel of a convolution.
    core:
        (r, r, kh, kw): B's Tucker form, b2 then without kernel; or None.
    alpha:
        The file's alpha; None stands for alpha = rank.
    """

    name: ModuleName
    a1: StoredTensor
    a2: StoredTensor
    b1: StoredTensor
    b2: StoredTensor
    core: StoredTensor | None = None
    alpha: float | None = None
    alpha_key: str | None = None
    family: str = "glora"

    @property
    def rank(self) -> int:
        """The rank r of A and of B."""
        return self.a2.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def out_features(self) -> int:
        return self.b1.shape[0]

    @property
    def in_features(self) -> int:
        kernel = (self.core or self.b2).shape[2:]
        return self.b2.shape[1] * math.prod(kernel)

    @property
    def rank_bound(self) -> int:
        """``W A`` has at most A's rank, at each place of a kernel."""
        places = math.prod((self.core or self.b2).shape[2:])
        return min(self.rank * places + self.b2.shape[0], self.out_features, self.in_features)

    def transform(self, W: np.ndarray) -> np.ndarray:
        """The weight with both changes, in float64."""
        a1, a2, b1, b2 = (_matrix(tensor) for tensor in (self.a1, self.a2, self.b1, self.b2))
        if self.core is not None:
            b2 = tucker(read_finite(self.core), b2)
        channels = W.reshape(len(W), len(a1), -1)
        through = np.einsum("rj,ork->ojk", a2, np.einsum("oik,ir->ork", channels, a1, optimize=True))
        return np.asarray(W + self.scale * (through.reshape(W.shape) + b1 @ b2))


def _matrix(tensor: StoredTensor) -> np.ndarray:
    values = read_finite(tensor)
    return values.reshape(values.shape[0], -1)


def _build(group: Group, rules: Rules) -> Iterator[GloraModule]:
    a1, a2 = group.need("a1"), group.need("a2")
    b1, b2, core = group.need("b1"), group.need("b2"), group.take("bm")
    today = a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]
    early = a1.shape[0] == a2.shape[1] == b1.shape[0] == b2.shape[1]
    if early and (not today or a1.shape[0] < a1.shape[1]):  # in a square layer the rank is the smaller size
        a1, a2, b1, b2 = a2, a1, b2, b1  # early files: the outer factor is the second
    fits = (
        a1.shape[:2] == a2.shape[1::-1]
        and b1.shape[1] == b2.shape[0]
        and all(math.prod(t.shape[2:]) == 1 for t in (a1, a2, b1))
        and (core is None or (core.shape[:2] == (b1.shape[1], b2.shape[0]) and math.prod(b2.shape[2:]) == 1))
        and b2.shape[1] == a1.shape[0]
    )
    group.check(fits, "a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in), a kernel in b2 or bm only")
    alpha, key = rules.alpha(group, a2.shape[0])
    yield GloraModule(group.name, a1, a2, b1, b2, core, alpha, key)


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return settings.rank * 2 * shape[1] + stored_of_lora(shape, settings)


_AXES = {"a1": FACTOR, "a2": FACTOR, "b1": FACTOR, "b2": FACTOR, "bm": CORE}
_ROLES = {f"{role}.weight": role for role in _AXES}
FAMILY = Family(
    key="glora",
    label="GLoRA",
    formula="W + s (W a1 a2 + b1 b2)",
    forms=(Form("GLoRA", _ROLES, _build, _AXES, unread=("bm1.weight", "bm2.weight")),),
    stored=_stored,
    ranked=True,
    parts=NAMES_ALONE,
)
