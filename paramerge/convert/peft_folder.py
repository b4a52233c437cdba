"""PEFT's folders: the configuration that says what the tensors of a model's adapter mean.

PEFT builds its layers from the configuration before it loads tensors into them, so what it would build must
be what there is: a LoKr whose factors PEFT would divide otherwise cannot be held.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from paramerge.adapters import registry
from paramerge.adapters.parts import Part
from paramerge.adapters.sizes import factor_pair
from paramerge.errors import FamilyError, UsageError
from paramerge.wording import call

__all__ = ["one_rank", "peft_config"]


def peft_config(parts: Sequence[Part]) -> dict[str, object]:
    """``adapter_config.json`` for the layers of one model.

    Raises
    ------
    FamilyError
        PEFT has one tuner a folder, and these are of several families; a LoKr or LoHa that PEFT cannot build.
    """
    families = {part.family for part in parts}
    if len(families) > 1:
        raise FamilyError(
            "a folder of PEFT holds one kind of adapter for a model",
            where=parts[0].name.component,
            expected="one family",
            found=", ".join(sorted(families)),
            hint="convert to kohya, which can hold several",
        )
    (family,) = families
    ranks = Counter(part.rank for part in parts)
    on = [part for part in parts if _alpha(part)] or parts  # layers that are off are exceptions
    alphas = Counter(_alpha(part) for part in on)
    rank, alpha = (counts.most_common(1)[0][0] for counts in (ranks, alphas))
    config: dict[str, object] = {
        "peft_type": registry.family(family).tuner,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha" if family in ("lora", "dora") else "alpha": alpha,
        "rank_pattern": {part.name.path: part.rank for part in parts if part.rank != rank},
        "alpha_pattern": {part.name.path: _alpha(part) for part in parts if _alpha(part) != alpha},
        "target_modules": sorted(part.name.path for part in parts),
    }
    if family in ("lora", "dora"):
        return config | {"bias": "none", "use_dora": family == "dora", "use_rslora": False}
    if family == "loha":
        return config | {"use_effective_conv2d": _uses_cores(parts, "hada_t1")}
    return config | _lokr_options(parts)


def _alpha(part: Part) -> float:
    alpha = float(part.rank) if part.alpha is None else part.alpha
    return int(alpha) if alpha == int(alpha) else alpha


def _uses_cores(parts: Sequence[Part], role: str) -> bool:
    """Whether convolutions have cores: in PEFT all of a model that are larger than 1 x 1, or none."""
    cores = [part for part in parts if role in part.tensors]
    flat = [part for part in parts if part not in cores and _is_large_convolution(part)]
    if cores and flat:
        raise FamilyError(
            "PEFT has cores in all convolutions of a model or in none",
            where=flat[0].name,
            found=f"{len(cores)} with a core, {len(flat)} without",
            hint="convert to kohya, which can hold both",
        )
    return bool(cores)


def _is_large_convolution(part: Part) -> bool:
    words = part.name.path.split(".")
    return words[-1] in ("conv1", "conv2", "conv_in", "conv_out", "conv")


def _lokr_options(parts: Sequence[Part]) -> dict[str, object]:
    """``decompose_factor`` and ``decompose_both`` under which PEFT divides every layer as it is divided."""
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
    cores = _uses_cores(parts, "lokr_t2")
    return {"decompose_factor": factor, "decompose_both": both, "use_effective_conv2d": cores}


def _factors(part: Part) -> tuple[tuple[int, int], tuple[int, int]]:
    """How the layer's outputs and input channels are divided: ((a, c), (b, e))."""
    sides = []
    for stem in ("lokr_w1", "lokr_w2"):
        if stem in part.tensors:
            sides.append(part.tensors[stem].shape[:2])
        else:
            a, b = part.tensors[f"{stem}_a"], part.tensors[f"{stem}_b"]
            turned = stem == "lokr_w2" and "lokr_t2" in part.tensors
            sides.append((a.shape[1 if turned else 0], math.prod(b.shape[1:])))
    (a, b), (c, e) = sides
    if "lokr_w2" not in part.tensors and "lokr_t2" not in part.tensors and _is_large_convolution(part):
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


def one_rank(parts: Sequence[Part]) -> int:
    """The rank that all layers have.

    Raises
    ------
    UsageError
        They have several.
    """
    ranks = Counter(part.rank for part in parts)
    if len(ranks) > 1:
        raise UsageError(
            "DEFT has one rank for all layers of a model",
            where=parts[0].name.component,
            expected="one rank",
            found=", ".join(f"rank {rank} in {count} layers" for rank, count in sorted(ranks.items())),
            hint=f"make them equal first: {call('resize', rank='')}, with the smallest",
        )
    return next(iter(ranks))
