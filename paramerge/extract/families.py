"""One changed layer in the form of a family: the tensors to write, and their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from paramerge import algebra
from paramerge.adapters.rounding import rounded
from paramerge.adapters.sizes import factor_pair
from paramerge.extract.difference import ChangedLayer
from paramerge.extract.kronecker import nearest_kronecker
from paramerge.extract.lowrank import leading
from paramerge.extract.projector import nearest_para
from paramerge.files.dtype_names import parse_dtype
from paramerge.files.dtypes import NUMPY
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class ExtractOptions:
    """The options of ``paramerge extract --from``.

    Attributes
    ----------
    family:
        ``para``, ``lora``, ``lokr`` or ``krona``.
    rank:
        LoRA: the rank. PaRa: at most so many directions. LoKr: of the second factor.
    energy:
        The share of each layer's squared norm to hold instead.
    gamma:
        PaRa: the rank boundary of the paper's equation 8.
    factor:
        LoKr: the division of sides, as LyCORIS' ``factor``.
    kronecker:
        DiffuseKronA: (a1, a2).
    only:
        Components; all without.
    partial:
        Leave out changes that the family cannot hold, instead of refusing.
    dtype:
        ``F16``, ``BF16`` or ``F32``.
    """

    family: str
    rank: int | None = None
    energy: float | None = None
    gamma: float | None = None
    factor: int = -1
    kronecker: tuple[int, int] = (64, 4)
    only: tuple[str, ...] = ()
    partial: bool = False
    dtype: str = "F16"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", parse_dtype(self.dtype))


@dataclass(frozen=True)
class Extracted:
    """A layer that was extracted.

    Attributes
    ----------
    tensors:
        By the roles of :mod:`paramerge.formats.roles`, in the output's dtype.
    norm:
        ``||W' - W||``.
    error:
        The part of that which the stored tensors miss, relative to it.
    excess:
        The most by which the error could be smaller, for this rank or these factors, before rounding.
    exact:
        PaRa: whether rounding the tuned weights explains the error.
    rounding:
        PaRa: the part of the error that rounding can make.
    strength:
        PaRa: the strength at which the projector comes nearest.
    """

    name: ModuleName
    tensors: dict[str, np.ndarray]
    rank: int
    norm: float
    error: float
    excess: float = 0.0
    exact: bool = True
    rounding: float = 0.0
    strength: float = 1.0


def holds(layer: ChangedLayer, options: ExtractOptions) -> str | None:
    """Why the family cannot hold this layer; None where it can."""
    if options.family != "krona":
        return None
    if layer.kernel or not layer.name.path.endswith(("to_q", "to_k", "to_v", "to_out.0")):
        return "DiffuseKronA is for the projections of attention"
    a1, a2 = options.kronecker
    if layer.shape[0] % a1 or layer.shape[1] % a2:
        return f"its sides cannot be divided by {a1} and {a2}"
    return None


def nearest_lora(
    name: ModuleName,
    D: np.ndarray,
    kernel: tuple[int, ...],
    dtype: str,
    rank: int | None = None,
    energy: float | None = None,
) -> Extracted:
    """The LoRA nearest to ``D`` (d, k) float64, of a ``rank`` or a share ``energy`` of its norm."""
    found = leading(D, rank, energy)
    kept = _rank_above_rounding(found.s)
    if energy is not None:
        kept = min(kept, found.rank_for(energy) or kept)
    kept = kept if rank is None else min(kept, rank)
    root = np.sqrt(found.s[:kept])
    up = rounded(name, found.U[:, :kept] * root, dtype)
    down = rounded(name, root[:, None] * found.Vh[:kept], dtype)
    B, A = up.astype(np.float64), down.astype(np.float64)
    error = _missing_product(D, B, A, found.norm)
    tensors = {
        "up": up.reshape(*up.shape, *(1,) * len(kernel)),
        "down": down.reshape(kept, -1, *kernel) if kernel else down,
    }
    return Extracted(name, tensors, kept, found.norm, error, found.excess(kept))


def _lora(layer: ChangedLayer, options: ExtractOptions) -> Extracted | None:
    D = layer.take_difference()
    return nearest_lora(layer.name, D, layer.kernel, options.dtype, options.rank, options.energy)


def _para(layer: ChangedLayer, options: ExtractOptions) -> Extracted | None:
    cap = options.rank
    if options.gamma is not None:
        full = min(layer.base.shape)
        allowed = algebra.adjusted_rank(full, Fraction(options.gamma).limit_denominator(10**6), full)
        cap = allowed if cap is None else min(cap, allowed)
    found = nearest_para(layer.base, layer.tuned, layer.dtype, cap, options.energy)
    if not found.Q.shape[1]:
        return None
    basis = rounded(layer.name, found.Q, options.dtype)
    Q = algebra.orthonormalise(
        basis.astype(np.float64), rtol=algebra.storage_tolerance(NUMPY[options.dtype].name, basis.shape[1])
    ).Q
    D = layer.tuned - layer.base
    removed = Q.T @ layer.base
    norm = float(np.linalg.norm(D))
    error = _missing_product(D, -Q, removed, norm)
    return Extracted(
        layer.name,
        {"basis": basis},
        Q.shape[1],
        norm,
        error,
        0.0,
        found.is_para,
        found.rounding,
        found.strength,
    )


def _lokr(layer: ChangedLayer, options: ExtractOptions) -> Extracted | None:
    D = layer.take_difference()
    (a1, b1), (a2, b2) = (factor_pair(size, options.factor) for size in layer.shape[:2])
    found = nearest_kronecker(D, a1, a2)
    w1 = rounded(layer.name, found.A, options.dtype)
    tensors, rank = {"lokr_w1": w1}, min(found.B.shape)
    excess = found.excess
    if options.rank is not None or options.energy is not None:
        second = leading(found.B, options.rank, options.energy)
        rank = _rank_above_rounding(second.s)
        if options.energy is not None:
            rank = min(rank, second.rank_for(options.energy) or rank)
        rank = rank if options.rank is None else min(rank, options.rank)
        excess += second.excess(rank)
    if rank < max(b1, b2) / 2 and (options.rank is not None or options.energy is not None):
        root = np.sqrt(second.s[:rank])
        a = rounded(layer.name, second.U[:, :rank] * root, options.dtype)
        b = rounded(layer.name, root[:, None] * second.Vh[:rank], options.dtype)
        tensors |= {"lokr_w2_a": a, "lokr_w2_b": b}
        B = a.astype(np.float64) @ b.astype(np.float64)
    else:
        whole = rounded(layer.name, found.B, options.dtype)
        tensors["lokr_w2"] = whole.reshape(b1, b2, *layer.kernel)
        B, rank = whole.astype(np.float64), min(whole.shape)
    A, norm = w1.astype(np.float64), float(np.linalg.norm(D))
    lost = _missing(D, lambda start, stop: _kronecker_rows(A, B, start, stop, shuffled=False), norm)
    return Extracted(layer.name, tensors, rank, norm, lost, excess)


def _krona(layer: ChangedLayer, options: ExtractOptions) -> Extracted | None:
    D = layer.take_difference()
    found = nearest_kronecker(D, *options.kronecker, shuffled=True)
    up = rounded(layer.name, found.B, options.dtype)
    down = rounded(layer.name, found.A.T, options.dtype)
    A, B, norm = down.T.astype(np.float64), up.astype(np.float64), float(np.linalg.norm(D))
    lost = _missing(D, lambda start, stop: _kronecker_rows(A, B, start, stop, shuffled=True), norm)
    return Extracted(layer.name, {"up": up, "down": down}, options.kronecker[0], norm, lost, found.excess)


EXTRACTORS: dict[str, Callable[[ChangedLayer, ExtractOptions], Extracted | None]] = {
    "para": _para,
    "lora": _lora,
    "lokr": _lokr,
    "krona": _krona,
}
"""Each family's way; None where rounding alone explains the layer's difference."""


def _rank_above_rounding(s: np.ndarray) -> int:
    """Number of singular values that rounding does not explain; one at least."""
    return max(1, int(np.sum(s > s[0] * 1e-12)))


def _missing(D: np.ndarray, rows: Callable[[int, int], np.ndarray], norm: float) -> float:
    """``||D - found|| / ||D||``, ``found`` made some rows at a time."""
    step = max(1, (1 << 18) // D.shape[1])
    squared = 0.0
    for start in range(0, len(D), step):
        block = D[start : start + step]
        squared += float(np.sum((block - rows(start, start + len(block))) ** 2))
    return float(np.sqrt(squared)) / norm if norm else 0.0


def _missing_product(D: np.ndarray, B: np.ndarray, A: np.ndarray, norm: float) -> float:
    """``||D - B A|| / ||D||`` by ``||D||^2 - 2 <B^T D, A> + ||B A||^2``: to 1e-8, and without forming B A."""
    squared = norm**2 - 2 * float(np.sum((B.T @ D) * A)) + float(np.sum((B.T @ B) * (A @ A.T)))
    return math.sqrt(max(squared, 0.0)) / norm if norm else 0.0


def _kronecker_rows(A: np.ndarray, B: np.ndarray, start: int, stop: int, *, shuffled: bool) -> np.ndarray:
    index = np.arange(start, stop)
    left, right = np.divmod(index, len(B)) if not shuffled else np.divmod(index, len(A))[::-1]
    return np.asarray((A[left][:, :, None] * B[right][:, None, :]).reshape(len(index), -1))
