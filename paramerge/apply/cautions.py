"""Warnings of quiet losses: odd strengths, adapters that are applied twice, plain fp8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from paramerge.adapters import Adapter
from paramerge.apply.strengths import USUAL_STRENGTH
from paramerge.apply.tensor_plan import FilePlan
from paramerge.wording import Worded, option


def unusual_strengths(strengths: Sequence[tuple[str, float]]) -> Iterator[str]:
    """A warning for each adapter, by name, whose strength is larger than any that a trainer has in mind."""
    for name, strength in strengths:
        if abs(strength) > USUAL_STRENGTH:
            yield (
                f"{name} is applied at {strength:g}, and adapters are made for about 1: "
                f"beyond {USUAL_STRENGTH:g} pictures fall apart"
            )


def given_twice(adapters: Sequence[Adapter]) -> Iterator[str]:
    """A warning for each pair of adapters that are the same file, or have the same bytes."""
    for one, other in combinations(adapters, 2):
        if one.opened[0].size == other.opened[0].size and _sha256(one) == _sha256(other):
            names = one.path.name if one.path == other.path else f"{one.path.name} and {other.path.name}"
            yield f"{names}: the same adapter is given twice"


def already_baked(recipe: Mapping[str, object] | None, adapters: Sequence[Adapter]) -> Iterator[str]:
    """A warning for each adapter that ``recipe``, which the base carries, says is in it already."""
    known = set(_baked(recipe))
    if not known:
        return
    for adapter in adapters:
        if _sha256(adapter) in known:
            yield f"by the base's recipe {adapter.path.name} is baked into it already: it is added again"


def lost_in_fp8(files: Sequence[FilePlan]) -> Iterator[str]:
    """A warning where changes are rounded to plain 8-bit floats: most are smaller than half a step."""
    touched = [
        tensor for file in files for tensor in file.tensors if tensor.edits and tensor.dtype.startswith("F8_")
    ]
    if touched:
        yield Worded(
            f"{len(touched)} tensors that change are stored as plain {touched[0].dtype}, which keeps little "
            "of a small change (of a LoRA of 1 percent a thousandth in F8_E4M3, a fifth in "
            f"F8_E5M2): bake into the fp16 or bf16 model, or add {option('dtype', 'bf16')}"
        )


def _sha256(adapter: Adapter) -> str:
    return adapter.opened[0].sha256()


def _baked(recipe: object) -> Iterator[str]:
    """The hashes of all adapters in a recipe and in those that it was made from."""
    while isinstance(recipe, Mapping):
        steps = recipe.get("steps")
        for step in steps if isinstance(steps, Sequence) else ():
            files = step.get("files") if isinstance(step, Mapping) else None
            for file in files if isinstance(files, Sequence) else ():
                if isinstance(file, Mapping) and isinstance(file.get("sha256"), str):
                    yield file["sha256"]
        recipe = recipe.get("base_recipe")
