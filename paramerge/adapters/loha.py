"""LoHa: the element-wise product of two low-rank matrices, ``scale * (B1 A1) o (B2 A2)`` (FedPara)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.changes import Hadamard
from paramerge.adapters.contract import AdditiveModule, LayerModule, read_finite, read_stored
from paramerge.adapters.family import CORE, FACTOR, Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.lora import stored_of_lora
from paramerge.adapters.parts import KOHYA, Part
from paramerge.adapters.peft_config import read_ranked
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.adapters.tuner import Tuner, uses_cores
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class LohaModule(AdditiveModule):
    """One layer of a LoHa.

    Attributes
    ----------
    w1_a, w2_a:
        B1, B2: (out, r); (r, out) where there are cores. Each may have two more axes of 1.
    w1_b, w2_b:
        A1, A2: (r, in), a convolution flattened; (r, in channels) where there are cores.
    t1, t2:
        The cores (r, r, kh, kw) of the Tucker form, or None.
    alpha:
        The file's alpha; None stands for alpha = rank, that is scale 1.
    """

    name: ModuleName
    w1_a: StoredTensor
    w1_b: StoredTensor
    w2_a: StoredTensor
    w2_b: StoredTensor
    t1: StoredTensor | None = None
    t2: StoredTensor | None = None
    alpha: float | None = None
    alpha_key: str | None = None
    family: str = "loha"

    @property
    def rank(self) -> int:
        """The rank r of both factors."""
        return self.w1_b.shape[0]

    @property
    def rank_bound(self) -> int:
        """An element-wise product of rank-r matrices has at most rank r squared."""
        return min(self.rank * self.w2_b.shape[0], self.out_features, self.in_features)

    @property
    def scale(self) -> float:
        """alpha / r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def out_features(self) -> int:
        return self.w1_a.shape[0 if self.t1 is None else 1]

    @property
    def in_features(self) -> int:
        kernel = () if self.t1 is None else self.t1.shape[2:]
        return math.prod(self.w1_b.shape[1:]) * math.prod(kernel)

    @property
    def form(self) -> str:
        return "Tucker" if self.t1 is not None else ""

    def change(self) -> Hadamard:
        """Read the factors; cores are contracted with the input side."""
        B1, A1 = _factors(self.w1_a, self.w1_b, self.t1)
        B2, A2 = _factors(self.w2_a, self.w2_b, self.t2)
        return Hadamard(B1, A1, B2, A2, self.scale)


def _factors(a: StoredTensor, b: StoredTensor, core: StoredTensor | None) -> tuple[np.ndarray, np.ndarray]:
    A = read_finite(b)
    if core is None:
        return _matrix(read_finite(a)), A.reshape(A.shape[0], -1)
    return _matrix(read_finite(a)).T, tucker(read_finite(core), _matrix(A))


def _matrix(factor: np.ndarray) -> np.ndarray:
    """A factor that may be stored as a convolution of one element."""
    return factor.reshape(factor.shape[:2])


def tucker(core: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """A core (r, s, kh, kw) with the input factor (s, in) in it: (r, in * kh * kw)."""
    return np.asarray(np.einsum("ij...,jk->ik...", core, inputs).reshape(core.shape[0], -1))


def _build(group: Group, rules: Rules) -> Iterator[LohaModule]:
    w1_a, w1_b = group.need("hada_w1_a"), group.need("hada_w1_b")
    w2_a, w2_b = group.need("hada_w2_a"), group.need("hada_w2_b")
    t1, t2 = group.take("hada_t1"), group.take("hada_t2")
    inner = 1 if t1 is None else 0
    fits = (t1 is None) == (t2 is None) and _is_matrix(w1_a) and _is_matrix(w2_a)
    fits = fits and w1_a.shape[1 - inner] == w2_a.shape[1 - inner] and w1_b.shape[1:] == w2_b.shape[1:]
    for a, b, core in ((w1_a, w1_b, t1), (w2_a, w2_b, t2)):
        ranks = (a.shape[inner], b.shape[0]) if fits else ()
        fits = fits and (len(set(ranks)) == 1 if core is None else core.shape[:2] == ranks)
    if t1 is not None and t2 is not None:
        fits = fits and t1.shape[2:] == t2.shape[2:] and _is_matrix(w1_b)
    group.check(fits, "w_a (out, r) and w_b (r, in) twice; with t (r, r, kh, kw) w_a is (r, out)")
    alpha, key = rules.alpha(group, w1_b.shape[0])
    yield LohaModule(group.name, w1_a, w1_b, w2_a, w2_b, t1, t2, alpha, key)


def _is_matrix(tensor: StoredTensor) -> bool:
    """Whether it has rows and columns, and at most a kernel of one element beside them."""
    return len(tensor.shape) >= 2 and math.prod(tensor.shape[2:]) == 1


def _part(module: LayerModule, to: str, dtype: str | None) -> Part | None:
    if not isinstance(module, LohaModule):
        return None
    pairs = {"w1_a": module.w1_a, "w1_b": module.w1_b, "w2_a": module.w2_a, "w2_b": module.w2_b}
    cores = {"t1": module.t1, "t2": module.t2}
    tensors = {f"hada_{role}": read_stored(t) for role, t in {**pairs, **cores}.items() if t is not None}
    if to == "peft":  # whose pairs are matrices
        tensors |= {
            f"hada_{role}": tensors[f"hada_{role}"].reshape(t.shape[0], -1) for role, t in pairs.items()
        }
    return Part(module.name, "loha", tensors, module.scale * module.rank, module.rank)


def _options(parts: Sequence[Part]) -> dict[str, object]:
    return {"use_effective_conv2d": uses_cores(parts, "hada_t1")}


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    return 2 * stored_of_lora(shape, settings)


_PAIRS, _CORES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2")
FORM = Form(
    "LoHa",
    {f"{role}.<name>": role for role in (*_PAIRS, *_CORES)},
    _build,
    {**dict.fromkeys(_PAIRS, FACTOR), **dict.fromkeys(_CORES, CORE)},
)
FAMILY = Family(
    key="loha",
    label="LoHa",
    formula="W + s (B1 A1) o (B2 A2), Tucker cores within",
    forms=(FORM,),
    stored=_stored,
    ranked=True,
    parts=dict.fromkeys((KOHYA, "peft"), _part),
    tuner=Tuner("LOHA", read_ranked, _options),
)
