"""LoRA + LoRA -> LoRA: the sum of the changes, exactly, then truncated if that was asked for.

``sum_i f_i B_i A_i`` with ``f_i = scale_i * alpha_i / r_i`` is one LoRA of rank ``r_1 + ... + r_n``. Its
alpha holds the largest ``|f_i|``, so inputs with the same factor are put together bit for bit, and a single
one at scale 1 is given back as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge import algebra
from paramerge.adapters import LoraModule
from paramerge.adapters.changes import product_loss, product_norm
from paramerge.adapters.overflow import beyond_float64
from paramerge.adapters.rounding import rounded
from paramerge.errors import ShapeError
from paramerge.formats.lora_writer import LoraFactors
from paramerge.models.names import ModuleName

_EPS = 2.0**-52


@dataclass(frozen=True)
class Block:
    """One term of the sum: ``factor * up @ down``, (d, r) and (r, k) float64."""

    up: np.ndarray
    down: np.ndarray
    factor: float


@dataclass(frozen=True)
class SummedLayer:
    """One layer of the sum.

    Attributes
    ----------
    factors:
        The factors to write, float64; None where nothing is left (the sum is zero).
    ranks:
        The rank of each input; 0 where an input has no such layer.
    full_rank:
        Their sum.
    norm:
        ``||sum_i f_i B_i A_i||_F``.
    error:
        The error of truncation, relative to ``norm``.
    rounding:
        The error of rounding to the output's dtype, relative to ``norm``.
    """

    name: ModuleName
    factors: LoraFactors | None
    ranks: tuple[int, ...]
    full_rank: int
    norm: float
    error: float
    rounding: float

    @property
    def rank(self) -> int:
        """The rank that is written."""
        return 0 if self.factors is None else self.factors.rank


def sum_layer(
    modules: Mapping[int, LoraModule],
    scales: Sequence[float],
    rank: int | None,
    energy: float | None,
    dtype: str,
) -> SummedLayer:
    """Add one layer of several LoRAs; ``modules`` are those that have it, by the input's place in ``scales``.

    Raises
    ------
    ShapeError
        They are for weights of different shapes.
    NonFiniteError
        NaN or Inf in a factor, or numbers that ``dtype`` cannot hold.
    """
    name = next(iter(modules.values())).name
    kernel = _common_kernel(modules.values())
    ranks = tuple(modules[i].rank if i in modules else 0 for i in range(len(scales)))
    blocks = [
        read_block(module, scales[place])
        for place, module in modules.items()
        if scales[place] and module.scale
    ]
    full_rank = sum(block.up.shape[1] for block in blocks)
    if not blocks:
        return SummedLayer(name, None, ranks, 0, 0.0, 0.0, 0.0)
    whole, error = concatenated(blocks, kernel), 0.0
    factors: LoraFactors | None = whole
    norm = _sum_norm(blocks)
    if not math.isfinite(norm):
        raise beyond_float64(name)
    if energy is not None or (rank is not None and rank < full_rank):
        factors, error = _truncated(whole, rank, energy, _noise(blocks))
    if factors is None:
        return SummedLayer(name, None, ranks, full_rank, norm, error, 0.0)
    rounding = rounding_error(name, factors, dtype)
    return SummedLayer(name, factors, ranks, full_rank, norm, error, rounding)


def read_block(module: LoraModule, scale: float) -> Block:
    """The factors of a layer, a ``mid`` folded in, and the factor on their product.

    Raises
    ------
    NonFiniteError
        NaN or Inf.
    """
    up, down = (factor.astype(np.float64) for factor in module.factors())
    return Block(up, down, scale * module.scale)


def concatenated(blocks: Sequence[Block], kernel: tuple[int, ...]) -> LoraFactors:
    """The blocks side by side, without any loss: ``alpha / r`` is the largest of their factors."""
    largest = max(abs(block.factor) for block in blocks)
    terms = [_weighted(block, block.factor / largest) for block in blocks]
    up, down = algebra.concat_loras([up for up, _ in terms], [down for _, down in terms], [1.0] * len(terms))
    return LoraFactors(up, down, largest * up.shape[1], kernel)


def rounding_error(name: ModuleName, factors: LoraFactors, dtype: str) -> float:
    """``||B'A' - BA|| / ||BA||`` for the factors as ``dtype`` stores them; 0 where it stores them exactly."""
    up, down = (rounded(name, factor, dtype) for factor in (factors.up, factors.down))
    return product_loss(factors.up, factors.down, up, down)


def _weighted(block: Block, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """The block with ``weight`` (at most 1 in size) spread evenly over both factors, so that neither becomes
    tiny.

    The part that goes to ``down`` is a power of two: it costs no accuracy.
    """
    if abs(weight) == 1:
        return weight * block.up, block.down
    half = round(-math.log2(abs(weight)) / 2)
    return weight * 2.0**half * block.up, 2.0**-half * block.down


def _truncated(
    factors: LoraFactors, rank: int | None, energy: float | None, noise: float
) -> tuple[LoraFactors | None, float]:
    """The leading directions of a sum, without those that are ``noise`` alone (A - A is nothing)."""
    scale = factors.alpha / factors.rank
    cut = algebra.truncate_lora(scale * factors.up, factors.down, rank=rank, energy=energy)
    above_noise = int(np.sum(cut.singular_values > noise))
    if above_noise < cut.rank:
        cut = algebra.truncate_lora(scale * factors.up, factors.down, rank=above_noise)
    if cut.rank == 0:
        return None, 0.0
    return LoraFactors(cut.up, cut.down, float(cut.rank), factors.kernel), cut.error


def _noise(blocks: Sequence[Block]) -> float:
    """The rounding error of terms of these sizes where they cancel."""
    size: int = max(blocks[0].up.shape[0], blocks[0].down.shape[1], 16)
    terms = math.fsum(abs(block.factor) * product_norm(block.up, block.down) for block in blocks)
    return size * _EPS * terms


def _sum_norm(blocks: Sequence[Block]) -> float:
    return product_norm(
        np.concatenate([block.factor * block.up for block in blocks], axis=1),
        np.concatenate([block.down for block in blocks], axis=0),
    )


def _common_kernel(modules: Iterable[LoraModule]) -> tuple[int, ...]:
    """The kernel that all inputs agree on; a 1 x 1 convolution may be stored as a linear layer.

    Raises
    ------
    ShapeError
        They are for weights of different shapes.
    """
    first, *others = modules
    kernel = first.kernel
    for module in others:
        if _dense_shape(module) != _dense_shape(first):
            raise ShapeError(
                "two adapters have different shapes for this layer",
                where=f"{module.up.path}: {module.name}",
                expected=f"{_dense_shape(first)}, as {first.up.path.name} has it",
                found=_dense_shape(module),
                hint="they were made for different models, and cannot be merged",
            )
        kernel = kernel or module.kernel
    return kernel


def _dense_shape(module: LoraModule) -> tuple[int, ...]:
    """``(d, k)``, and the kernel where it is larger than 1 x 1."""
    kernel = module.kernel if math.prod(module.kernel) > 1 else ()
    return (module.out_features, module.in_features, *kernel)
