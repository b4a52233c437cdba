"""diffusers' dialects, old and new; both are dotted paths with the component in front or left out.

Old (attention processors, before PEFT)::

    [unet.]down_blocks.0....attn1.processor.to_q_lora.down.weight      to_out_lora is the layer to_out.0
    text_encoder.text_model....self_attn.to_q_lora.down.weight         to_q_lora is the layer q_proj

New::

    unet.down_blocks.0....attn1.to_q.lora.down.weight
    unet.down_blocks.0....attn1.to_q.lora_A.weight                     as PEFT names it
    text_encoder.text_model....self_attn.q_proj.lora_linear_layer.down.weight
    unet.down_blocks.0....attn1.to_q.lora_down.weight                  as OneTrainer names it

There is no alpha (scale 1), or one beside the layer (``....to_q.alpha``), or since diffusers 0.34 the PEFT
configuration in the file's metadata under ``lora_adapter_metadata``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from paramerge.adapters.rules import Scaling, scale_by_rank
from paramerge.errors import AdapterError, FamilyError
from paramerge.formats.layers import bare_layer, dotted_layer
from paramerge.formats.pairs import Part
from paramerge.formats.peft_config import LoraSettings, read_settings
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.strict_json import object_from

__all__ = ["METADATA_KEY", "dialect_of", "is_dotted_lora", "modern_path", "read_key", "scaling_from_metadata"]

METADATA_KEY = "lora_adapter_metadata"

_NEW = re.compile(
    r"(?P<path>.+)\.(?:(?:lora\.|lora_linear_layer\.|lora_)(?P<side>up|down|mid)|lora_(?P<peft>[AB])(?:\.\w+)?)"
    r"\.weight"
)
_OLD = re.compile(
    r"(?P<path>.+?)(?:\.processor)?\.to_(?P<layer>q|k|v|out)_lora\.(?:(?P<side>up|down)\.weight|alpha)"
)
_ALPHA = re.compile(r"(?P<of>.+)\.alpha")


def is_dotted_lora(key: str) -> bool:
    """Whether ``key`` has a form of these dialects (or PEFT's); its layer need not be known."""
    return _NEW.fullmatch(key) is not None or _OLD.fullmatch(key) is not None


def read_key(key: str) -> Part | None:
    """Understand one key; None if it names no layer or no part of a LoRA."""
    if match := _OLD.fullmatch(key):
        name = _layer(modern_path(match["path"], match["layer"]))
        return Part(name, match["side"] or "alpha", key) if name else None
    if match := _ALPHA.fullmatch(key):
        # diffusers' converters hang an alpha on a layer, or on the whole key of one of its factors
        of = read_key(match["of"])
        name = of.name if of else _layer(match["of"])
        return Part(name, "alpha", key) if name else None
    if match := _NEW.fullmatch(key):
        name = _layer(match["path"])
        side = match["side"] or {"A": "down", "B": "up"}[match["peft"]]
        return Part(name, side, key) if name else None
    return None


def dialect_of(keys: Iterable[str]) -> str:
    """``diffusers-old`` if any layer is named through its attention processor, else ``diffusers``."""
    return "diffusers-old" if any(_OLD.fullmatch(key) for key in keys) else "diffusers"


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


def _layer(path: str) -> ModuleName | None:
    path = path.replace(".processor.", ".")
    return dotted_layer(path) or bare_layer(path)


def modern_path(attention: str, layer: str) -> str:
    """The path of an attention's layer from the old name of its LoRA."""
    if attention.endswith("self_attn"):
        return f"{attention}.{layer}_proj"
    return f"{attention}.to_out.0" if layer == "out" else f"{attention}.to_{layer}"
