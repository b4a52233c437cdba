"""Hypothesis strategies for weights, bases and pairs of subspaces whose true ranks and angles are known.

Everything is built from a drawn seed in float64, around singular values that are clearly there or clearly
not: what is under test is the law, not how a rank decision falls at the edge of rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

Matrix = npt.NDArray[np.float64]

DTYPES = ("float64", "float32", "float16", "bfloat16")
LIBRARIES = ("numpy", "torch")
EPS = 2.0**-52
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
WORKING_EPS = {"float64": EPS, "float32": 2.0**-23, "float16": 2.0**-23, "bfloat16": 2.0**-23}

law = settings(
    max_examples=int(os.environ.get("PARAMERGE_EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""How the laws are run: the same examples every time, ``PARAMERGE_EXAMPLES`` of them."""

search = settings(law, max_examples=2000)
"""How counterexamples are searched."""


def bound(*shapes: Sequence[int], norm: float = 1.0, eps: float = EPS, c: float = 16.0) -> float:
    """``c * max(m, n) * eps * norm``: what a few backward stable steps on these shapes may be off by."""
    return c * max(1, *(n for shape in shapes for n in shape)) * eps * norm


def norm2(M: Matrix) -> float:
    """Spectral norm; 0 for a matrix without entries."""
    return float(np.linalg.norm(M, 2)) if M.size else 0.0


def projector(Q: Matrix) -> Matrix:
    """The dense projector: for the tests only."""
    return Q @ Q.T


def complement(Q: Matrix) -> Matrix:
    """The dense ``I - Q Q^T``."""
    return np.eye(Q.shape[0]) - projector(Q)


def stored(array: npt.ArrayLike, dtype: str = "float64", library: str = "numpy") -> Any:
    """The array rounded to a dtype, in a library."""
    values = np.asarray(array, dtype=np.float64)
    if library == "numpy":
        return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    import torch

    return torch.from_numpy(values.copy()).to(getattr(torch, dtype))


def widened(array: Any) -> Matrix:
    """An array of either library and any dtype as NumPy float64, exactly."""
    if hasattr(array, "detach"):
        array = array.detach().double().cpu().numpy()
    return np.asarray(array, dtype=np.float64)


def orthogonal(rng: np.random.Generator, n: int) -> Matrix:
    """A random n x n rotation or reflection."""
    Q, R = np.linalg.qr(rng.standard_normal((n, n)))
    return np.asarray(Q * np.where(np.diagonal(R) < 0, -1.0, 1.0))


def generators() -> st.SearchStrategy[np.random.Generator]:
    """Random generators from drawn seeds."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@dataclass(frozen=True)
class Weight:
    """A d x k weight of known rank. ``column_scale`` is what its columns were multiplied by."""

    W: Matrix
    rank: int
    kind: str
    column_space: Matrix
    column_scale: Matrix

    @property
    def norm(self) -> float:
        return norm2(self.W)


KINDS = ("wide", "square", "tall", "deficient", "zero", "duplicated", "scaled")


@st.composite
def weights(draw: st.DrawFn, kinds: Sequence[str] = KINDS, most: int = 8) -> Weight:
    """Weights of every kind: see ``KINDS``; singular values (before column scaling) within 1 to 10."""
    kind = draw(st.sampled_from(kinds))
    small, large = sorted((draw(st.integers(1, most)), draw(st.integers(1, most))))
    d, k = {"wide": (small, large), "tall": (large, small), "square": (large, large)}.get(
        kind, (small, large)
    )
    if kind in ("deficient", "zero", "scaled") and draw(st.booleans()):
        d, k = k, d
    rank = min(d, k)
    if kind == "deficient":
        rank = draw(st.integers(0, max(0, min(d, k) - 1)))
    rng = draw(generators())
    U, V = orthogonal(rng, d)[:, :rank], orthogonal(rng, k)[:, :rank]
    W = (U * rng.uniform(1.0, 10.0, rank)) @ V.T * 10.0 ** draw(st.integers(-3, 3))
    if kind == "zero":
        W, U, rank = np.zeros((d, k)), U[:, :0], 0
    if kind == "duplicated":
        W = W[:, rng.integers(0, k, 2 * k)] if draw(st.booleans()) else np.concatenate([W, W], axis=1)
        kept = np.linalg.matrix_rank(W, rtol=1e-9)
        U, rank = np.linalg.svd(W)[0][:, :kept], int(kept)
    scale = np.ones(W.shape[1])
    if kind == "scaled":
        scale = 10.0 ** rng.uniform(-8.0, 8.0, W.shape[1])
    return Weight(W * scale, rank, kind, U, scale)


@dataclass(frozen=True)
class Reduction:
    """A weight and a basis: ``inside`` directions lie in col(W), ``outside`` are orthogonal to it."""

    weight: Weight
    Q: Matrix
    inside: int
    outside: int

    @property
    def mixed(self) -> int:
        """Directions that are neither in col(W) nor orthogonal to it."""
        return self.Q.shape[1] - self.inside - self.outside


@st.composite
def reductions(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> Reduction:
    """A weight with a basis of any rank from 0 to d whose intersection with col(W) is known."""
    weight = draw(weights(kinds))
    d, rank = weight.W.shape[0], weight.rank
    mixed = draw(st.integers(0, min(rank, d - rank)))
    inside = draw(st.integers(0, rank - mixed))
    outside = draw(st.integers(0, d - rank - mixed))
    rng = draw(generators())
    space = np.concatenate([weight.column_space, rng.standard_normal((d, d - rank))], axis=1)
    space = np.linalg.qr(space)[0]
    U = space[:, :rank] @ orthogonal(rng, rank)
    V = space[:, rank:] @ orthogonal(rng, d - rank)
    t = rng.uniform(0.2, 1.37, mixed)
    blend = np.cos(t) * U[:, inside : inside + mixed] + np.sin(t) * V[:, outside : outside + mixed]
    Q = np.concatenate([U[:, :inside], V[:, :outside], blend], axis=1)
    return Reduction(weight, Q @ orthogonal(rng, Q.shape[1]), inside, outside)


ANGLES = {
    "shared": st.just(0.0),
    "near": st.floats(-12.0, -4.0).map(lambda exponent: 10.0**exponent),
    "generic": st.floats(0.05, 1.5),
    "nearly right": st.floats(-10.0, -4.0).map(lambda exponent: math.pi / 2 - 10.0**exponent),
    "right": st.just(math.pi / 2),
}


@dataclass(frozen=True)
class Pair:
    """Two orthonormal bases at chosen principal angles, and a basis of their joint span."""

    Q1: Matrix
    Q2: Matrix
    angles: Matrix
    joint: Matrix

    @property
    def ranks(self) -> tuple[int, int]:
        return self.Q1.shape[1], self.Q2.shape[1]

    @property
    def shared(self) -> int:
        return int(np.sum(self.angles == 0.0))

    @property
    def crossed(self) -> int:
        return int(np.sum(self.angles == math.pi / 2))

    @property
    def cosine(self) -> float:
        """Of the Friedrichs angle, by construction."""
        unshared = self.angles[self.angles > 0.0]
        return max(0.0, math.cos(unshared.min())) if self.shared + self.crossed < len(self.angles) else 0.0


def pair_at(
    rng: np.random.Generator, d: int, angles: Sequence[float], extra: tuple[int, int] = (0, 0)
) -> Pair:
    """Two subspaces of R^d at these angles, each with ``extra`` directions orthogonal to all else."""
    t = np.asarray(sorted(angles), dtype=np.float64)
    m, opened = len(t), int(np.sum(t > 0.0))
    frame = orthogonal(rng, d)
    E, F = frame[:, :m], np.zeros((d, m))
    F[:, t > 0.0] = frame[:, m : m + opened]
    cosines = np.where(t == math.pi / 2, 0.0, np.cos(t))
    rest = frame[:, m + opened :]
    more1, more2 = rest[:, : extra[0]], rest[:, extra[0] : sum(extra)]
    Q1 = np.concatenate([E, more1], axis=1)
    Q2 = np.concatenate([cosines * E + np.sin(t) * F, more2], axis=1)
    joint = np.concatenate([E, F[:, t > 0.0], more1, more2], axis=1)
    all_angles = np.concatenate([t, np.full(min(extra), math.pi / 2)])
    return Pair(
        Q1 @ orthogonal(rng, Q1.shape[1]), Q2 @ orthogonal(rng, Q2.shape[1]), np.sort(all_angles), joint
    )


@st.composite
def pairs(draw: st.DrawFn, kinds: Sequence[str] = tuple(ANGLES), most: int = 4) -> Pair:
    """Pairs of subspaces, wherever the angles of the given kinds put them; ranks from 0."""
    angle = st.sampled_from(kinds).flatmap(lambda kind: ANGLES[kind])
    angles = draw(st.lists(angle, max_size=most))
    extra = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    needed = 2 * len(angles) - angles.count(0.0) + sum(extra)
    d = max(1, needed) + draw(st.integers(0, 3))
    return pair_at(draw(generators()), d, angles, extra)


@st.composite
def families(draw: st.DrawFn, least: int = 2, most: int = 5) -> list[Matrix]:
    """Orthonormal bases of 2 to 5 subspaces in general position in one space, some sharing directions."""
    rng = draw(generators())
    n, d = draw(st.integers(least, most)), draw(st.integers(4, 12))
    pool = orthogonal(rng, d)[:, : d // 2]
    bases = []
    for _ in range(n):
        chosen = pool[:, rng.permutation(pool.shape[1])[: draw(st.integers(0, 2))]]
        fresh = rng.standard_normal((d, draw(st.integers(0, 2))))
        bases.append(np.linalg.qr(np.concatenate([chosen, fresh], axis=1))[0])
    return bases


@st.composite
def commuting(draw: st.DrawFn) -> list[Matrix]:
    """Bases whose projectors commute: subsets of one orthonormal frame."""
    rng = draw(generators())
    n, d = draw(st.integers(2, 5)), draw(st.integers(1, 8))
    frame = orthogonal(rng, d)
    return [
        frame[:, chosen] @ orthogonal(rng, len(chosen))
        for chosen in (rng.permutation(d)[: draw(st.integers(0, d))] for _ in range(n))
    ]


@st.composite
def columns(draw: st.DrawFn, most: int = 7) -> Matrix:
    """Independent columns ``B`` (d, r) with r from 0 to d: a basis times a mixing of condition 1 to 10."""
    rng = draw(generators())
    d = draw(st.integers(1, most))
    return orthogonal(rng, d)[:, : (r := draw(st.integers(0, d)))] @ invertible(rng, r)


def invertible(rng: np.random.Generator, r: int, condition: float = 10.0) -> Matrix:
    """A random r x r matrix with singular values from 1 to ``condition``."""
    return (orthogonal(rng, r) * rng.uniform(1.0, condition, r)) @ orthogonal(rng, r)


@dataclass(frozen=True)
class Lora:
    """Factors of a LoRA of full rank."""

    up: Matrix
    down: Matrix

    @property
    def product(self) -> Matrix:
        return self.up @ self.down


def lora(rng: np.random.Generator, d: int, k: int, r: int) -> Lora:
    """Random factors for a d x k weight."""
    return Lora(rng.standard_normal((d, r)), rng.standard_normal((r, k)))
