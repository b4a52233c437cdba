"""A layer of any family as the LoRA of a rank that comes nearest to its change (Eckart and Young)."""

from __future__ import annotations

import math

import numpy as np

from paramerge.adapters import LayerModule
from paramerge.adapters.parts import Part
from paramerge.adapters.registry import label
from paramerge.errors import FamilyError
from paramerge.extract.families import nearest_lora
from paramerge.files.dtype_names import parse_dtype
from paramerge.models.names import ModuleName
from paramerge.models.registry import published, published_shapes
from paramerge.resolve.weights import BaseWeights
from paramerge.wording import option


def lora_part(
    module: LayerModule,
    rank: int,
    dtype: str | None,
    weights: BaseWeights | None,
) -> Part | None:
    """The part with ``up`` (out, r) and ``down`` (r, in), 4-D with the kernel in ``down`` of a convolution.

    Parameters
    ----------
    rank:
        The largest r; a change of a lower rank has its own.
    dtype:
        Of the factors; None for ``F16``.
    weights:
        The base, for families whose change depends on the weight, and for the kernels of convolutions.

    Returns
    -------
    Part | None
        None for what is no matrix, such as a norm. ``truncation`` is what the stored factors miss of the
        change, relative to it.

    Raises
    ------
    FamilyError
        The change, or the kernel of a convolution, is not known without a base.
    NonFiniteError
        The change holds NaN or Inf, or is beyond the range of ``dtype``.
    """
    if module.in_features in (None, 1) and module.name.path.endswith((".weight", ".bias")):
        return None
    if module.depends_on_weight and weights is None:
        raise _no_base(module, f"what {label(module.family)} changes depends on the weights of a base")
    W = weights.matrix(module.name) if module.depends_on_weight and weights else np.zeros((1, 1))
    D = module.delta(W)
    kernel = _kernel(module.name, weights)
    if kernel is None or D.shape[1] % math.prod(kernel):
        raise _no_base(module, "the kernel of this layer is not in the file")
    wanted = parse_dtype(dtype or "F16")
    found = nearest_lora(module.name, D, kernel, wanted, rank if D.any() else 1)
    note = f"{label(module.family)} as a LoRA of rank {rank} or less"
    return Part(
        module.name,
        "lora",
        found.tensors,
        float(found.rank),
        found.rank,
        truncation=found.error,
        notes=(note,),
    )


def _kernel(name: ModuleName, weights: BaseWeights | None) -> tuple[int, ...] | None:
    """``(kh, kw)`` of a convolution, ``()`` of a linear layer; None where it is not known.

    Without a base it is that of a published model's layer of this name: widths differ, kernels do not.
    """
    if weights is not None:
        return weights.kernel(name)
    shapes = (published_shapes(architecture).get(name) for architecture in published())
    return next((shape[2:] for shape in shapes if shape is not None), None)


def _no_base(module: LayerModule, why: str) -> FamilyError:
    return FamilyError(
        f"no base was given, and {why}",
        where=module.name,
        expected=option("base"),
        found="the adapter alone",
        hint="give the checkpoint that the adapter is for",
    )
