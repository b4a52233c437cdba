"""What an adapter was made for: its architecture and its base, told by shapes, names and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from paramerge.adapters import LayerModule
from paramerge.formats.layers import clip_path, unet_path
from paramerge.formats.native import ARCHITECTURE_KEY, BASE_HASH_KEY
from paramerge.models.blueprint import BLUEPRINTS
from paramerge.models.model_names import allows
from paramerge.models.names import ModuleName

__all__ = ["base_hashes", "guess_architecture", "possible_architectures"]

_BY_CONTEXT = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Width of the text features that cross-attention reads."""

_MODELSPEC = (
    ("stable-diffusion-xl-v1-refiner", "sdxl-refiner"),
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-v1", "sd15"),
    ("stable-diffusion-v2", "sd2"),
    ("stable-diffusion-3", "sd3"),
    ("flux-1", "flux"),
)
_KOHYA_VERSIONS = (
    ("sdxl", "sdxl"),
    ("sd_v1", "sd15"),
    ("sd_1.5", "sd15"),
    ("sd_v2", "sd2"),
    ("sd_2", "sd2"),
    ("flux1", "flux"),
    ("sd3", "sd3"),
)

_SHA256 = re.compile(r"(?:0x)?([0-9a-f]{64})")
_SHORT_HASH = re.compile(r"[0-9a-f]{8,10}")


def guess_architecture(modules: Mapping[ModuleName, LayerModule], metadata: Mapping[str, str]) -> str | None:
    """``sd15``, ``sd2``, ``sdxl`` or ``sdxl-refiner``; ``flux`` or ``sd3`` if the trainer noted it.

    Shapes prove it; else names show it, else a PaRa states it, else the trainer noted it: structure decides,
    and what is stated of layers that cannot be of that model is not believed. None where they leave it open
    (the first text encoder is the same in SD1.5 and SDXL), or where shapes contradict each other.
    """
    proven = set(_from_shapes(modules.values()))
    if proven:
        return proven.pop() if len(proven) == 1 else None
    if named := _from_names(modules):
        return named
    stated = metadata.get(ARCHITECTURE_KEY) or _from_metadata(metadata)
    return stated if stated and allows((name.path for name in modules), stated) else None


def possible_architectures(modules: Mapping[ModuleName, LayerModule]) -> tuple[str, ...]:
    """The published architectures that have all these layers, of these sizes; of any, if none is of them."""
    having = {name: _shapes(name) for name in BLUEPRINTS if modules.keys() <= _shapes(name).keys()}
    sized = [
        name for name, shapes in having.items() if all(m.fits(shapes[layer]) for layer, m in modules.items())
    ]
    return tuple(sized or having)


@cache
def _shapes(architecture: str) -> Mapping[ModuleName, tuple[int, ...]]:
    """The shape of every weight, norm and bias of a published architecture."""
    blueprint = BLUEPRINTS[architecture]()
    found = {}
    for component in blueprint.components:
        for spec in blueprint.component(component):
            for part, shape in spec.parts:
                name = part.removesuffix(".weight") if len(shape) > 1 and "embeddings." not in part else part
                found[ModuleName.parse(name)] = shape
    return found


def base_hashes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Hashes of the checkpoint that ``metadata`` name: SHA-256 first, then short hashes of older tools.

    ``modelspec.hash_sha256`` and ``sshs_model_hash`` are not among them: those are of the adapter itself.
    """
    named = [*metadata.get(BASE_HASH_KEY, "").split(","), metadata.get("ss_new_sd_model_hash", "")]
    long = [match[1] for text in named if (match := _SHA256.fullmatch(text.strip().lower()))]
    short = metadata.get("ss_sd_model_hash", "").lower()
    return (*dict.fromkeys(long), *([short] if _SHORT_HASH.fullmatch(short) else []))


def _from_shapes(modules: Iterable[LayerModule]) -> Iterable[str]:
    for module in modules:
        component, path = module.name
        if component == "unet" and path.endswith(("attn2.to_k", "attn2.to_v")):
            if module.in_features in _BY_CONTEXT:
                yield _BY_CONTEXT[module.in_features]
        elif component == "text_encoder" and path.endswith("self_attn.q_proj") and module.in_features == 1024:
            yield "sd2"


def _from_names(modules: Iterable[ModuleName]) -> str | None:
    names = list(modules)
    if any(name.component == "text_encoder_2" and clip_path(name.path) for name in names):
        return "sdxl"
    paths = [name.path for name in names if name.component == "unet" and unet_path(name.path)]
    if any(
        path.startswith("add_embedding.") or re.search(r"transformer_blocks\.(?:[4-9]|\d\d)\.", path)
        for path in paths
    ):
        return "sdxl"
    return None


def _from_metadata(metadata: Mapping[str, str]) -> str | None:
    for key, table in (("ss_base_model_version", _KOHYA_VERSIONS), ("modelspec.architecture", _MODELSPEC)):
        for beginning, architecture in table:
            if metadata.get(key, "").lower().startswith(beginning):
                return architecture
    return "sd2" if metadata.get("ss_v2") == "True" else None
