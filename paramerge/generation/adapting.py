"""A plan carried out on loaded modules instead of files: the same chains, and one rounding too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from paramerge.apply.dense import LayerResult, apply_ops
from paramerge.apply.operations import Edit
from paramerge.apply.rounding import Rounder
from paramerge.bake.plan import Plan
from paramerge.errors import CheckpointError, NonFiniteError
from paramerge.files.source import check_unchanged
from paramerge.models.names import ModuleName, split_kind


def apply_plan(
    plan: Plan, pipeline: Any, progress: Callable[[int, int], None] | None = None
) -> list[LayerResult]:
    """Change the layers of ``pipeline``, loaded from the plan's base, as baking would; in place.

    Each layer is worked out in float64 and rounded once, to the dtype it is loaded in.

    Raises
    ------
    CheckpointError
        The pipeline has no such layer, or one of another size.
    NonFiniteError
        NaN or Inf in an adapter, or a result beyond the dtype's range.
    InputChangedError
        A file of the plan was written to or replaced since it was opened.
    """
    results = []
    edits = plan.edits
    for done, edit in enumerate(edits, start=1):
        weight = _weight(pipeline, edit.target.module, edit.target.shape)
        results.append(_apply(edit, weight))
        if progress is not None:
            progress(done, len(edits))
    check_unchanged(plan.base, *(step.adapter for step in plan.steps))
    return results


def _weight(pipeline: Any, name: ModuleName, shape: tuple[int, ...]) -> torch.Tensor:
    component = getattr(pipeline, name.component, None)
    # transformers 5 has the text encoder's layers without the prefix that files carry
    for path in (name.path, name.path.removeprefix("text_model.")):
        try:
            weight: torch.Tensor = component.get_parameter(_parameter(path))  # type: ignore[union-attr]
        except AttributeError:
            continue
        if tuple(weight.shape) != shape:
            raise CheckpointError(
                "a layer was loaded in another shape than the file has it",
                where=name,
                expected=list(shape),
                found=list(weight.shape),
            )
        return weight
    raise CheckpointError("the loaded pipeline has no such layer", where=name)


def _parameter(path: str) -> str:
    """The name of a layer's weight; norms and biases are named with their parameter already."""
    return path if split_kind(path)[1] else f"{path}.weight"


def _apply(edit: Edit, weight: torch.Tensor) -> LayerResult:
    name = str(edit.target.module)
    with torch.no_grad():
        W = weight.detach().to("cpu", torch.float64).reshape(len(weight), -1)
        result, removed, rank = apply_ops(edit.target.module, edit.ops, W)
        if rank == 0:
            return LayerResult(name, 0, 0)
        largest = float(result.abs().amax())
        limit = torch.finfo(weight.dtype).max
        if not largest <= limit:
            raise NonFiniteError(
                "the result is not finite",
                where=name,
                expected=f"values within {limit:g}, the range of {weight.dtype}",
                found=f"{largest:g}",
                hint="the base holds NaN or Inf there, or the adapter's scale is far too large",
            )
        rounded = torch.empty_like(result, dtype=weight.dtype)
        Rounder().put(result.contiguous(), rounded)
        weight.copy_(rounded.view(weight.shape))
    return LayerResult(name, removed, rank)
