"""PEFT's folders: the configuration that gives the tensors of a model's adapter their meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from paramerge.adapters import registry
from paramerge.adapters.parts import Part
from paramerge.errors import FamilyError


def peft_config(parts: Sequence[Part]) -> dict[str, object]:
    """``adapter_config.json`` for the layers of one model.

    Raises
    ------
    FamilyError
        PEFT has one tuner a folder, and these are of several families; or it cannot
        build them.
    """
    families = {part.family for part in parts}
    if len(families) > 1:
        raise FamilyError(
            "the layers are of several families, and a PEFT folder holds one",
            where=parts[0].name.component,
            expected="one family",
            found=", ".join(sorted(families)),
            hint="convert to kohya, which can hold several",
        )
    tuner = registry.family(parts[0].family).tuner
    if tuner is None or tuner.options is None:
        raise FamilyError("PEFT has no folder for this family", where=parts[0].name, found=parts[0].family)
    ranks = Counter(part.rank for part in parts)
    on = [part for part in parts if _alpha(part)] or parts  # layers that are off are exceptions
    alphas = Counter(_alpha(part) for part in on)
    rank, alpha = (counts.most_common(1)[0][0] for counts in (ranks, alphas))
    return {
        "peft_type": tuner.peft_type,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        tuner.alpha: alpha,
        "rank_pattern": {part.name.path: part.rank for part in parts if part.rank != rank},
        "alpha_pattern": {part.name.path: _alpha(part) for part in parts if _alpha(part) != alpha},
        "target_modules": sorted(part.name.path for part in parts),
        **tuner.options(parts),
    }


def _alpha(part: Part) -> float:
    alpha = float(part.rank) if part.alpha is None else part.alpha
    return int(alpha) if alpha == int(alpha) else alpha
