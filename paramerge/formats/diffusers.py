"""diffusers' dialects, old and new; both are dotted paths with the component in front or left out.

Old (attention processors, before PEFT)::

    [unet.]down_blocks.0....attn1.processor.to_q_lora.down.weight      to_out_lora is the layer to_out.0
    text_encoder.text_model....self_attn.to_q_lora.down.weight         to_q_lora is the layer q_proj

New::

    unet.down_blocks.0....attn1.to_q.lora.down.weight
    unet.down_blocks.0....attn1.to_q.lora_A.weight                     as PEFT names it
    text_encoder.text_model....self_attn.q_proj.lora_linear_layer.down.weight
    unet.down_blocks.0....attn1.to_q.lora_down.weight                  as OneTrainer names it

There is no alpha (scale 1), or one beside the layer (``....to_q.alpha``) or one of its factors, or since
diffusers 0.34 the PEFT configuration in the file's metadata under ``lora_adapter_metadata``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paramerge.adapters.peft_config import LoraSettings, read_settings
from paramerge.adapters.scaling import Scaling, scale_by_rank
from paramerge.errors import AdapterError, FamilyError
from paramerge.formats.dialect import Dialect, Place, WrittenLayer
from paramerge.formats.layers import bare_layer, bare_norm, dotted_layer, dotted_norm
from paramerge.formats.peft import AI_TOOLKIT
from paramerge.models.names import COMPONENTS, MODEL, ModuleName
from paramerge.strict_json import object_from
from paramerge.wording import option

METADATA_KEY = "lora_adapter_metadata"

_OLD_STEM = re.compile(r"(?P<path>.+?)(?:\.processor)?\.to_(?P<layer>q|k|v|out)_lora")
_OLD_ENDINGS = {"up": "up.weight", "down": "down.weight"}
_OLD_KEY = re.compile(
    r"(?P<stem>.+\.to_(?:q|k|v|out)_lora)\.(?:(?P<alpha>(?:(?:up|down)\.weight\.)?alpha)|(?P<side>up|down)\.weight)"
)


def _claims_old(key: str) -> bool:
    return "_lora" in key and (_OLD_KEY.fullmatch(key) or _OLD_STEM.fullmatch(key)) is not None


def _cut_old(key: str) -> tuple[str, str] | None:
    match = _OLD_KEY.fullmatch(key)
    return (match["stem"], match["side"] or "alpha") if match else None


def _old_place(stem: str) -> Place | None:
    match = _OLD_STEM.fullmatch(stem)
    return _place(_modern_path(match["path"], match["layer"]), "diffusers-old") if match else None


def _old_stem(name: ModuleName, architecture: str | None) -> str:
    attention, _, last = name.path.removesuffix(".0").rpartition(".")
    return f"{name.component}.{attention}.processor.{last}_lora"


def _any(key: str) -> bool:
    """Any key: one that no other dialect claims is a dotted name, or none."""
    return True


def _place(path: str, dialect: str = "diffusers") -> Place | None:
    path = path.replace(".processor.", ".")
    if norm := dotted_norm(path) or bare_norm(path):
        return Place(norm, False, dialect)
    layer = dotted_layer(path) or bare_layer(path)
    return Place(layer, True, dialect) if layer else None


def _stem(name: ModuleName, architecture: str | None) -> str:
    # a model that is no component of a pipeline has its own names alone
    return name.path if name.component == MODEL else str(name)


def scaling_from_metadata(
    metadata: Mapping[str, str], path: Path, *, dora: bool = False
) -> Callable[[ModuleName, int], Scaling]:
    """The scaling that ``lora_adapter_metadata`` states, component by component; scale 1 without it.

    ``dora`` says whether the file has magnitudes.

    Raises
    ------
    AdapterError
        It is not a JSON object.
    FamilyError
        It asks for something that the file is not: another tuner, or DoRA where there are no magnitudes.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return scale_by_rank
    where = f"{path}: metadata {METADATA_KEY}"
    entries = object_from(text, where, what="this text of the metadata", error=AdapterError)
    settings = {
        component: read_settings(config, where)
        for component in COMPONENTS
        if (config := _unpacked(entries, component))
    }
    if not settings and entries:
        # a file of one model alone (save_lora_adapter) has no component before its options
        settings = dict.fromkeys(COMPONENTS, read_settings(entries, where))
    if not dora and any(each.dora for each in settings.values()):
        raise FamilyError(
            "these metadata say DoRA, and the file has no magnitudes",
            where=where,
            expected="lora_magnitude_vector for every layer",
            found="LoRA's factors alone",
        )
    return _Scalings(settings)


class _Scalings:
    """The scaling of a layer from the settings of its component."""

    def __init__(self, settings: Mapping[str, LoraSettings]) -> None:
        self.settings = settings

    def __call__(self, name: ModuleName, rank: int) -> Scaling:
        settings = self.settings.get(name.component)
        return settings.scaling(name.path, rank) if settings else Scaling()


def _unpacked(entries: Mapping[str, object], component: str) -> dict[str, object]:
    """The options of ``component``: those whose names begin with it."""
    prefix = f"{component}."
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}


def _modern_path(attention: str, layer: str) -> str:
    """The path of an attention's layer from the old name of its LoRA."""
    if attention.endswith("self_attn"):
        return f"{attention}.{layer}_proj"
    return f"{attention}.to_out.0" if layer == "out" else f"{attention}.to_{layer}"


SEVERAL_RANKS = (
    "ranks differ: written with lora_adapter_metadata, which diffusers reads from 0.34 on; older versions "
    "scale such layers wrongly"
)


_TEXT_MODEL = "text_model."
"""The part of paths that transformers 5 leaves out in a text encoder; PEFT matches the end of a path."""


def has_several_ranks(parts: Sequence[WrittenLayer]) -> bool:
    """Whether layers of one model differ in their ranks."""
    ranks: dict[str, set[int]] = {}
    for part in parts:
        ranks.setdefault(part.name.component, set()).add(part.rank)
    return any(len(found) > 1 for found in ranks.values())


def lora_metadata(parts: Sequence[WrittenLayer], architecture: str | None) -> dict[str, str]:
    """The configuration of each model for the file's metadata; empty where all its layers have one rank.

    Without it diffusers makes the configuration out of the tensors. Before August 2026 it then took the rank
    of the first layer as the alpha of all, so that layers of other ranks were scaled wrongly.
    """
    if not has_several_ranks(parts):
        return {}
    entries: dict[str, object] = {}
    for component in dict.fromkeys(part.name.component for part in parts):
        own = [part for part in parts if part.name.component == component]
        prefix = "" if component == MODEL else f"{component}."
        entries |= {f"{prefix}{option}": value for option, value in _configuration(own).items()}
    return {METADATA_KEY: json.dumps(entries, sort_keys=True)}


def _configuration(parts: Sequence[WrittenLayer]) -> dict[str, object]:
    """The configuration of one model: scale 1 in every layer, since alphas are in the factors."""
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


def _pattern(part: WrittenLayer) -> str:
    """PEFT's regular expression for the layer, which it looks for at the end of a path."""
    path = part.name.path
    return ("" if path.startswith(_TEXT_MODEL) else "^") + re.escape(path.removeprefix(_TEXT_MODEL))


DIFFUSERS_OLD = Dialect(
    key="diffusers-old",
    names="diffusers' old names, which are those of attention processors",
    claims=_claims_old,
    place=_old_place,
    cut=_cut_old,
    endings=_OLD_ENDINGS,
    spell=_old_stem,
    variant_of="diffusers",
)
DIFFUSERS = Dialect(
    key="diffusers",
    names=f"a component of a pipeline and the path of a module; give {option('base')}",
    claims=_any,
    place=_place,
    endings={"up": "lora_B.weight", "down": "lora_A.weight", "magnitude": "lora_magnitude_vector"},
    also_read=AI_TOOLKIT,
    spell=_stem,
    parts="diffusers",
    alpha="folded",
    metadata=lora_metadata,
)
