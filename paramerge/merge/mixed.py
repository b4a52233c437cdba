"""PaRa + LoRA -> the LoRA that does the same to one base (T5): up ``[-Q, s B]``, down ``[Q^T W0; A]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from paramerge import algebra
from paramerge.adapters import LoraModule, ParaModule
from paramerge.adapters.changes import product_norm
from paramerge.formats.lora_writer import LoraFactors
from paramerge.merge.lora import SummedLayer, rounding_error, sum_layer
from paramerge.merge.para import JointLayer, join_layer
from paramerge.merge.request import CombineOptions
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights, LayerShapes


def as_one_lora(
    name: ModuleName,
    paras: Mapping[int, ParaModule],
    loras: Mapping[int, LoraModule],
    scales: Sequence[float],
    options: CombineOptions,
    base: BaseWeights,
    shapes: LayerShapes,
) -> tuple[SummedLayer, JointLayer | None]:
    """One layer of ``W0 - Q Q^T W0 + sum_i f_i B_i A_i`` as a LoRA for this ``W0``; and the joint basis.

    Raises as :func:`join_layer`, :func:`sum_layer` and :meth:`BaseWeights.matrix`.
    """
    summed = sum_layer(loras, scales, None, None, options.dtype) if loras else None
    joint = join_layer(paras, len(scales), options, base, shapes) if paras else None
    if joint is None or joint.rank == 0:
        return summed or SummedLayer(name, None, (0,) * len(scales), 0, 0.0, 0.0, 0.0), joint
    factors = summed.factors if summed else None
    W = base.matrix(name)
    if factors is None:
        up, down = algebra.para_to_lora(joint.Q, W)
    else:
        scale = factors.alpha / factors.rank
        up, down = algebra.para_then_lora(joint.Q, W, factors.up, factors.down, scale=scale)
    up, down = _balanced(up, down)
    written = LoraFactors(up, down, float(up.shape[1]), base.kernel(name))
    ranks = summed.ranks if summed else (0,) * len(scales)
    return (
        SummedLayer(
            name,
            written,
            tuple(max(pair) for pair in zip(ranks, joint.ranks, strict=True)),
            up.shape[1],
            product_norm(up, down),
            0.0,
            rounding_error(name, written, options.dtype),
        ),
        joint,
    )


def _balanced(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Even out columns of ``up`` and rows of ``down`` by powers of two: no accuracy is lost."""
    norms = np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)
    nonzero = (norms[0] > 0) & (norms[1] > 0)
    ratio = np.divide(norms[1], norms[0], where=nonzero, out=np.ones_like(norms[0]))
    shift = np.exp2(np.round(np.log2(ratio) / 2))
    return up * shift, down / shift[:, None]
