"""``lora_adapter_metadata``: PEFT's configuration of each model, where diffusers would guess it wrongly.

Without it diffusers makes the configuration out of the tensors. Before August 2026 it then took the rank of
the first layer as the alpha of all, so that layers of other ranks were scaled wrongly. From 0.34 on it reads
the metadata instead.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from paramerge.convert.parts import Part
from paramerge.formats.diffusers import METADATA_KEY
from paramerge.models.names import MODEL

__all__ = ["SEVERAL_RANKS", "has_several_ranks", "lora_metadata"]

SEVERAL_RANKS = (
    "ranks differ: written with lora_adapter_metadata, which diffusers reads from 0.34 on; older versions "
    "scale such layers wrongly"
)


_TEXT_MODEL = "text_model."
"""What transformers 5 leaves out before a text encoder's layers; PEFT matches the end of a path."""


def has_several_ranks(parts: Sequence[Part]) -> bool:
    """Whether layers of one model differ in their ranks."""
    ranks: dict[str, set[int]] = {}
    for part in parts:
        ranks.setdefault(part.name.component, set()).add(part.rank)
    return any(len(found) > 1 for found in ranks.values())


def lora_metadata(parts: Sequence[Part]) -> dict[str, str]:
    """The entry of the file's metadata; empty where all layers of each model have one rank."""
    if not has_several_ranks(parts):
        return {}
    entries: dict[str, object] = {}
    for component in dict.fromkeys(part.name.component for part in parts):
        own = [part for part in parts if part.name.component == component]
        prefix = "" if component == MODEL else f"{component}."
        entries |= {f"{prefix}{option}": value for option, value in _configuration(own).items()}
    return {METADATA_KEY: json.dumps(entries, sort_keys=True)}


def _configuration(parts: Sequence[Part]) -> dict[str, object]:
    """Of one model: scale 1 in every layer, since alphas are in the factors."""
    rank = Counter(part.rank for part in parts).most_common(1)[0][0]
    others = {_pattern(part): part.rank for part in parts if part.rank != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(part.name.path.removeprefix(_TEXT_MODEL) for part in parts),
        "use_dora": any(part.family == "dora" for part in parts),
        "bias": "none",
    }


def _pattern(part: Part) -> str:
    """PEFT's regular expression for the layer, which it looks for at the end of a path."""
    path = part.name.path
    return ("" if path.startswith(_TEXT_MODEL) else "^") + re.escape(path.removeprefix(_TEXT_MODEL))
