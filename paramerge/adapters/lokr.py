"""LoKr: a Kronecker product, ``scale * (w1 (x) w2)``, each factor whole or of low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.changes import Kronecker
from paramerge.adapters.contract import AdditiveModule, LayerModule, read_finite, read_stored
from paramerge.adapters.family import CORE, FACTOR, MATRIX, Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.loha import tucker
from paramerge.adapters.lokr_options import lokr_options
from paramerge.adapters.parts import KOHYA, Part
from paramerge.adapters.peft_config import read_ranked
from paramerge.adapters.rounding import rounded
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings, factor_pair
from paramerge.adapters.tuner import Tuner
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class LokrFactor:
    """One side of the product: ``whole``, or ``a @ b`` of rank r, or ``a^T core b`` (Tucker).

    Attributes
    ----------
    whole:
        (rows, columns), or (rows, columns, kh, kw) for a convolution.
    a, b:
        (rows, r) and (r, columns), a convolution's kernel in the columns; with a ``core`` (r, rows) and
        (r, columns).
    core:
        (r, r, kh, kw).
    """

    whole: StoredTensor | None = None
    a: StoredTensor | None = None
    b: StoredTensor | None = None
    core: StoredTensor | None = None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""
        return tuple(t for t in (self.whole, self.a, self.b, self.core) if t is not None)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, a kernel flattened into the columns."""
        if self.whole is not None:
            return self.whole.shape[0], math.prod(self.whole.shape[1:])
        a, b = self._pair
        if self.core is not None:
            return a.shape[1], b.shape[1] * math.prod(self.core.shape[2:])
        return a.shape[0], math.prod(b.shape[1:])

    @property
    def rank(self) -> int | None:
        """The rank of a factor that is not whole."""
        return None if self.b is None else self.b.shape[0]

    @property
    def rank_bound(self) -> int:
        """The most that its rank can be."""
        return min(size for size in (*self.shape, self.rank) if size is not None)

    def read(self) -> np.ndarray:
        """The factor as a matrix, float64."""
        if self.whole is not None:
            return read_finite(self.whole).reshape(self.shape)
        a, b = self._pair
        A, B = read_finite(a), read_finite(b)
        if self.core is not None:
            return np.asarray(A.T @ tucker(read_finite(self.core), B))
        return np.asarray(A @ B.reshape(B.shape[0], -1))

    @property
    def _pair(self) -> tuple[StoredTensor, StoredTensor]:
        if self.a is None or self.b is None:
            raise ValueError("a factor is neither whole nor a pair of a and b")
        return self.a, self.b

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape))
        if self.rank is None:
            return f"{size} whole"
        return f"{size} of rank {self.rank}{' (Tucker)' if self.core is not None else ''}"


@dataclass(frozen=True)
class LokrModule(AdditiveModule):
    """One layer of a LoKr. The split is that of the shapes; either factor may be the larger one.

    Attributes
    ----------
    alpha:
        The file's alpha; None stands for alpha = rank, that is scale 1.
    configured_rank:
        The trainer's rank where alpha / rank also scales two whole factors, which have none in their shapes
        (PEFT); None where two whole factors are not scaled at all (LyCORIS and user interfaces).
    whole_scale:
        The user's scale for two whole factors, in place of either rule.
    """

    name: ModuleName
    w1: LokrFactor
    w2: LokrFactor
    alpha: float | None = None
    alpha_key: str | None = None
    configured_rank: int | None = None
    whole_scale: float | None = None
    family: str = "lokr"

    @property
    def is_whole(self) -> bool:
        """Whether neither factor has a rank: trainers disagree on the meaning of alpha then."""
        return self.w1.rank is None and self.w2.rank is None

    @property
    def rank(self) -> int:
        """The rank of the factors; of two whole ones the configured rank, or the bound of the change."""
        return self.w2.rank or self.w1.rank or self.configured_rank or self.rank_bound

    @property
    def rank_bound(self) -> int:
        """Ranks multiply in a Kronecker product."""
        return self.w1.rank_bound * self.w2.rank_bound

    @property
    def scale(self) -> float:
        """alpha / r; of two whole factors as the file's trainer, or the user, has it."""
        if self.is_whole:
            if self.whole_scale is not None:
                return self.whole_scale
            if self.alpha is None or self.configured_rank is None:
                return 1.0
            return self.alpha / self.configured_rank
        rank = self.w2.rank or self.w1.rank
        return 1.0 if self.alpha is None or rank is None else self.alpha / rank

    @property
    def out_features(self) -> int:
        return self.w1.shape[0] * self.w2.shape[0]

    @property
    def in_features(self) -> int:
        return self.w1.shape[1] * self.w2.shape[1]

    @property
    def form(self) -> str:
        text = f"{self.w1} (x) {self.w2}"
        return f"{text}, scale {self._rule}" if self.is_whole else text

    @property
    def _rule(self) -> str:
        if self.whole_scale is not None:
            return "given by the user"
        return "1 as LyCORIS trains it" if self.configured_rank is None else "alpha / r as PEFT trains it"

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (*self.w1.tensors, *self.w2.tensors)

    def change(self) -> Kronecker:
        """Read both factors."""
        return Kronecker(self.w1.read(), self.w2.read(), self.scale)


def _build(group: Group, rules: Rules) -> Iterator[LokrModule]:
    w1, w2 = _factor(group, "lokr_w1", None), _factor(group, "lokr_w2", group.take("lokr_t2"))
    group.check(w1.whole is None or len(w1.whole.shape) == 2, "a first factor that is a matrix")
    rank = w2.rank or w1.rank
    configured = None if rules.configuration is None else rules.configuration.rank_of(group.name.path)
    alpha, key = rules.alpha(group, rank if rank is not None else configured)
    whole_scale = rules.interpretation.lokr_scale
    yield LokrModule(group.name, w1, w2, alpha, key, configured, whole_scale)


def _factor(group: Group, stem: str, core: StoredTensor | None) -> LokrFactor:
    whole = group.take(stem)
    if whole is not None and core is None and not group.has(f"{stem}_a") and not group.has(f"{stem}_b"):
        return LokrFactor(whole)
    a, b = group.need(f"{stem}_a"), group.need(f"{stem}_b")
    fits = whole is None and len(a.shape) == 2
    inner = (a.shape[-1 if core is None else 0], b.shape[0])
    fits = fits and (inner[0] == inner[1] if core is None else core.shape[:2] == inner and len(b.shape) == 2)
    group.check(fits, f"{stem} whole, or a (rows, r), b (r, columns); with t (r, r, kh, kw) a is (r, rows)")
    return LokrFactor(None, a, b, core)


_WHOLE = "scales of LoKr layers with two whole factors folded into the first: LyCORIS has none for them"


def _part(module: LayerModule, to: str, dtype: str | None) -> Part | None:
    if not isinstance(module, LokrModule):
        return None
    tensors = {**_tensors_of("lokr_w1", module.w1), **_tensors_of("lokr_w2", module.w2)}
    if not module.is_whole:
        rank = module.w2.rank or module.w1.rank or 1
        return Part(module.name, "lokr", tensors, module.scale * rank, rank)
    if to == "peft":
        # PEFT keeps factors whole from half their size on, and scales them all the same
        rank = max(1, -(-max(module.w2.shape[0], tensors["lokr_w2"].shape[1]) // 2))
        return Part(module.name, "lokr", tensors, module.scale * rank, rank)
    if module.scale == 1:
        return Part(module.name, "lokr", tensors, 1.0, module.rank)
    whole = tensors["lokr_w1"]
    exact = module.scale * whole.astype(np.float64)
    tensors["lokr_w1"] = rounded(module.name, exact, module.w1.tensors[0].dtype)
    norm = float(np.linalg.norm(exact))
    lost = float(np.linalg.norm(tensors["lokr_w1"].astype(np.float64) - exact)) / norm if norm else 0.0
    return Part(module.name, "lokr", tensors, 1.0, module.rank, lost, notes=(_WHOLE,))


def _tensors_of(stem: str, factor: LokrFactor) -> dict[str, np.ndarray]:
    if factor.whole is not None:
        return {stem: read_stored(factor.whole)}
    named: dict[str, StoredTensor | None] = {f"{stem}_a": factor.a, f"{stem}_b": factor.b}
    named[f"{stem.replace('w', 't')}"] = factor.core
    return {key: read_stored(tensor) for key, tensor in named.items() if tensor is not None}


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    """A small full factor, and a large one that is full, too, where the rank is at least half its side."""
    out_small, out_large = factor_pair(shape[0], settings.lokr_factor)
    in_small, in_large = factor_pair(shape[1], settings.lokr_factor)
    kernel = math.prod(shape[2:])
    if settings.rank >= max(out_large, in_large) / 2:
        return out_small * in_small + out_large * in_large * kernel
    return out_small * in_small + settings.rank * (out_large + in_large * kernel)


_AXES = {
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w2_a"), MATRIX),
    **dict.fromkeys(("lokr_w2", "lokr_w1_b", "lokr_w2_b"), FACTOR),
    **dict.fromkeys(("lokr_t1", "lokr_t2"), CORE),
}
FORM = Form("LoKr", {f"{role}.<name>": role for role in _AXES}, _build, _AXES)
FAMILY = Family(
    key="lokr",
    label="LoKr",
    formula="W + s (w1 (x) w2), each factor whole, a b, or Tucker",
    forms=(FORM,),
    stored=_stored,
    ranked=True,
    parts=dict.fromkeys((KOHYA, "peft"), _part),
    tuner=Tuner("LOKR", read_ranked, lokr_options),
)
