"""The options under which PEFT builds a LoKr's factors as they are.

PEFT builds its layers from the configuration before it loads tensors into them, so a LoKr whose factors PEFT
would divide otherwise cannot be held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from paramerge.adapters.parts import Part
from paramerge.adapters.sizes import factor_pair
from paramerge.adapters.tuner import is_large_convolution, uses_cores
from paramerge.errors import FamilyError


def lokr_options(parts: Sequence[Part]) -> dict[str, object]:
    """``decompose_factor`` and ``decompose_both`` under which PEFT divides every layer as it is divided.

    Raises
    ------
    FamilyError
        There are none.
    """
    split = {part.name: _factors(part) for part in parts}
    both = any("lokr_w1" not in part.tensors for part in parts)
    factors = [-1, *sorted({size for (left, _), (right, _) in split.values() for size in (left, right)})]
    for factor in factors:
        if all(_divides_so(pair, factor) for pairs in split.values() for pair in pairs):
            break
    else:
        odd = next(
            (part for part in parts if not all(_divides_so(pair, -1) for pair in split[part.name])), parts[0]
        )
        raise _unbuilt(odd, "one decompose_factor for all layers", f"sides divided as {split[odd.name]}")
    for part in parts:
        (small_out, large_out), (small_in, large_in) = split[part.name]
        low1 = both and part.rank < max(small_out, small_in) / 2
        low2 = part.rank < max(large_out, large_in) / 2
        if low1 == ("lokr_w1" in part.tensors) or low2 == ("lokr_w2" in part.tensors):
            whole = [role for role in ("lokr_w1", "lokr_w2") if role in part.tensors]
            expected = [role for role, low in (("lokr_w1", low1), ("lokr_w2", low2)) if not low]
            raise _unbuilt(part, f"whole at rank {part.rank}: {expected}", f"whole: {whole}")
        inner = {part.tensors[role].shape[0] for role in ("lokr_w1_b", "lokr_w2_b") if role in part.tensors}
        if inner - {part.rank}:
            raise _unbuilt(part, "one rank for both factors", f"ranks {sorted(inner)}")
    cores = uses_cores(parts, "lokr_t2")
    return {"decompose_factor": factor, "decompose_both": both, "use_effective_conv2d": cores}


def _factors(part: Part) -> tuple[tuple[int, int], tuple[int, int]]:
    """The division of the layer's outputs and input channels: ((a, c), (b, e))."""
    sides = []
    for stem in ("lokr_w1", "lokr_w2"):
        if stem in part.tensors:
            sides.append(part.tensors[stem].shape[:2])
        else:
            a, b = part.tensors[f"{stem}_a"], part.tensors[f"{stem}_b"]
            turned = stem == "lokr_w2" and "lokr_t2" in part.tensors
            sides.append((a.shape[1 if turned else 0], math.prod(b.shape[1:])))
    (a, b), (c, e) = sides
    if "lokr_w2" not in part.tensors and "lokr_t2" not in part.tensors and is_large_convolution(part):
        e = e // 9 if e % 9 == 0 else e  # the kernel, which PEFT leaves in the second factor's columns
    return (int(a), int(c)), (int(b), int(e))


def _divides_so(pair: tuple[int, int], factor: int) -> bool:
    small, large = pair
    if factor > 0 and (small * large) % factor == 0:
        return pair == (factor, small * large // factor)
    return pair == factor_pair(small * large, factor)


def _unbuilt(part: Part, expected: str, found: str) -> FamilyError:
    return FamilyError(
        "PEFT would build this LoKr with factors of other shapes",
        where=part.name,
        expected=expected,
        found=found,
        hint="convert to kohya",
    )
