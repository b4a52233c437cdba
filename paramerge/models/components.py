"""The component and the canonical name of each tensor of a file: UNet, text encoders, VAE or something else.

Files differ in prefixes and in naming (LDM or diffusers, OpenCLIP or transformers). :func:`locate` undoes
both for every key of a file; the targets of adapters and the architecture follow from its answer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

from paramerge.kinds import followed
from paramerge.models.clip_keys import BUNDLED_ENCODERS, EncoderPrefix, canonical_key, from_openclip
from paramerge.models.key_map import Rows, named
from paramerge.models.names import COMPONENTS, MODEL
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import records
from paramerge.models.unet_keys import (
    LDM_UNET_PREFIX,
    UNetKeyMap,
    is_diffusers_unet_key,
    is_ldm_unet_key,
)
from paramerge.models.unet_structure import infer_structure
from paramerge.models.vae_keys import LDM_VAE_PREFIX


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor's component and canonical name.

    ``parts`` are canonical keys (diffusers for the UNet, transformers with ``text_model.`` for encoders):
    one; three for a stacked q, k, v; none for a tensor that has no canonical name.

    Attributes
    ----------
    rows:
        The number of rows of each of several parts.
    own:
        A name of its own by which adapters reach the whole tensor, where ``parts`` do not name just that.
    """

    component: str
    parts: tuple[str, ...] = ()
    transposed: bool = False
    rows: Rows = "equal"
    own: str | None = None


_VAE, _EMA, _OTHER = Located("vae"), Located("ema"), Located("other")
_UNET_PREFIXES = (LDM_UNET_PREFIX, "diffusion_model.", "unet.", "")
_VAE_PREFIXES = (LDM_VAE_PREFIX, "vae.")
_EMA_PREFIX = "model_ema."
_CLIP_L = EncoderPrefix("text_encoders.clip_l.transformer.", "text_encoder")
_CLIP_G = EncoderPrefix("text_encoders.clip_g.transformer.", "text_encoder_2")
_T5 = "text_encoders.t5xxl.transformer."
_BUNDLED = re.compile(r"text_encoders\.\w+\.transformer\.")
_ENCODERS = tuple(name for name in COMPONENTS if name.startswith("text_encoder"))
_CLIP_LIKE = re.compile(r"\b(encoder\.layers|resblocks)\.\d+\.(self_attn|attn|mlp)\.")
"""Keys of a CLIP text encoder, under any prefix: its names are canonical or unknown, never its own."""


@followed
@cache
def _unet_encoders() -> tuple[EncoderPrefix, ...]:
    """The text encoders in files with a UNet of Stable Diffusion."""
    of_files = [encoder for record in records() if record.unet is not None for encoder in record.encoders]
    apart = (
        EncoderPrefix("text_encoder.", "text_encoder"),
        EncoderPrefix("text_encoder_2.", "text_encoder_2"),
    )
    return (*dict.fromkeys(of_files), *BUNDLED_ENCODERS, *apart)


def locate(
    keys: Mapping[str, tuple[int, ...]],
    component: str | None = None,
    known: ArchitectureRecord | None = None,
) -> dict[str, Located]:
    """The component and the canonical name of every key of a file.

    Parameters
    ----------
    keys:
        All keys of the file, with their shapes; of all shards together, if it is one of several.
    component:
        The component of the file's folder, or None for a single file, whose components are known from the
        keys (``ema`` for a second set of weights, ``other`` for what belongs to none).
    known:
        The model that it was recognised as, if it is no UNet of Stable Diffusion.

    Raises
    ------
    CheckpointError
        There is a UNet with LDM's names in the file and blocks of it are missing.
    """
    if component is None and known is not None:
        return _locate_model(keys, known)
    if component is None and (alone := stands_alone(keys)) is not None:
        return _locate_alone(keys, alone)
    if component == "vae":
        return dict.fromkeys(keys, _VAE)
    if component is not None and (component != "unet" or known is not None):
        if component.startswith("text_encoder") and any(_CLIP_LIKE.search(key) for key in keys):
            return {key: _named(component, canonical_key(key)) for key in keys}
        if known is not None and component == known.component:
            return {key: _locate_layer(key, key, keys, known) for key in keys}
        return {key: Located(component, (key,)) for key in keys}
    unet = _find_unet(keys)
    if component is None:
        return {key: _locate_single(key, unet) for key in keys}
    return {key: unet.locate(key) if unet else Located("unet") for key in keys}


_MODEL_PREFIXES = (LDM_UNET_PREFIX, "diffusion_model.", "model.", "net.")
_NUMBERED = re.compile(r"\.\d+\.")
_WIDTH_OF_SECOND_ENCODER = 1280
_CLIP_LAYER = re.compile(r"(text_model\.)?encoder\.layers\.\d+\.self_attn\.q_proj\.weight")
_OPENCLIP_LAYER = re.compile(r"transformer\.resblocks\.\d+\.attn\.in_proj_weight")


def stands_alone(keys: Mapping[str, tuple[int, ...]]) -> EncoderPrefix | None:
    """The component that a file holds by itself and of which no architecture is known, and its prefix.

    A CLIP text encoder under transformers' or OpenCLIP's names, or any model with numbered matrices, whose
    layers go by the names that the file has. None where there is a UNet of Stable Diffusion, or no such
    matrix.
    """
    bundled = tuple(encoder.prefix for encoder in _unet_encoders())
    if _find_unet(keys) is not None or any(key.startswith(bundled) for key in keys):
        return None
    for key, shape in keys.items():
        for pattern, openclip in ((_CLIP_LAYER, False), (_OPENCLIP_LAYER, True)):
            if len(shape) == 2 and pattern.fullmatch(key):
                second = shape[1] == _WIDTH_OF_SECOND_ENCODER
                return EncoderPrefix("", "text_encoder_2" if second else "text_encoder", openclip)
    if not any(len(shape) == 2 and _NUMBERED.search(key) for key, shape in keys.items()):
        return None
    prefix = next((start for start in _MODEL_PREFIXES if all(key.startswith(start) for key in keys)), "")
    return EncoderPrefix(prefix, MODEL, own=True)


def _locate_alone(keys: Collection[str], alone: EncoderPrefix) -> dict[str, Located]:
    return {key: _locate_encoder(key.removeprefix(alone.prefix), alone) for key in keys}


def _locate_model(keys: Mapping[str, tuple[int, ...]], known: ArchitectureRecord) -> dict[str, Located]:
    """A single file of a model with names of its own, and the encoders it may be bundled with."""
    prefix = next((start for start in known.file_prefixes if any(key.startswith(start) for key in keys)), "")
    encoders = known.encoders or _bundled_encoders(keys)
    located = {}
    for key in keys:
        bundled = next((encoder for encoder in encoders if key.startswith(encoder.prefix)), None)
        if bundled is not None:
            located[key] = _locate_encoder(key.removeprefix(bundled.prefix), bundled)
        elif key.startswith(_VAE_PREFIXES):
            located[key] = _VAE
        elif key.startswith("text_encoders.") or not key.startswith(prefix):
            located[key] = _OTHER
        else:
            located[key] = _locate_layer(key.removeprefix(prefix), key, keys, known)
    return located


def _bundled_encoders(keys: Collection[str]) -> tuple[EncoderPrefix, ...]:
    """The encoders that ComfyUI saves beside a transformer."""
    two_clips = any(key.startswith(_CLIP_G.prefix) for key in keys)
    t5 = EncoderPrefix(_T5, "text_encoder_3" if two_clips else "text_encoder_2", own=True)
    known = [each for each in (_CLIP_L, _CLIP_G, t5) if any(key.startswith(each.prefix) for key in keys)]
    prefixes = dict.fromkeys(match[0] for key in keys if (match := _BUNDLED.match(key)))
    others = [prefix for prefix in prefixes if prefix not in {each.prefix for each in known}]
    free = [name for name in _ENCODERS if name not in {each.component for each in known}]
    return (*known, *(EncoderPrefix(*each, own=True) for each in zip(others, free, strict=False)))


def _locate_layer(
    name: str, key: str, shapes: Mapping[str, tuple[int, ...]], known: ArchitectureRecord
) -> Located:
    """The tensor ``key``, which is called ``name`` without the file's prefix."""
    found = next((found for each in known.key_maps if (found := named(each, name))), None)
    if found is None or found.keys == (name,):
        return Located(known.component, (name,))
    weight = f"{key.rpartition('.')[0]}.weight"
    layer = found.layer.of_shape(shapes.get(weight, shapes[key]))
    if layer.swapped:
        return Located(known.component, own=name)
    own = name if len(found.keys) > 1 else None
    return Located(known.component, found.keys, rows=layer.rows, own=own)


@dataclass(frozen=True, slots=True)
class _UNetNames:
    """The prefix of a UNet's keys in a file, and the map from LDM's names (None: diffusers' own)."""

    prefix: str
    ldm: UNetKeyMap | None

    def locate(self, key: str) -> Located:
        name = key.removeprefix(self.prefix)
        return _named("unet", self.ldm.to_diffusers(name) if self.ldm else name)

    def owns(self, key: str) -> bool:
        if self.prefix:
            return key.startswith(self.prefix)
        return is_ldm_unet_key(key) if self.ldm else is_diffusers_unet_key(key)


def _named(component: str, name: str | None) -> Located:
    return Located(component, (name,) if name else ())


def _find_unet(keys: Collection[str]) -> _UNetNames | None:
    """The UNet of the file, known by its first and its last convolution."""
    for prefix in _UNET_PREFIXES:
        if f"{prefix}input_blocks.0.0.weight" in keys and f"{prefix}out.2.weight" in keys:
            names = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
            return _UNetNames(prefix, UNetKeyMap(infer_structure(names)))
        if f"{prefix}conv_in.weight" in keys and f"{prefix}conv_out.weight" in keys:
            return _UNetNames(prefix, None)
    return None


def _locate_single(key: str, unet: _UNetNames | None) -> Located:
    if unet and unet.owns(key):
        return unet.locate(key)
    for encoder in _unet_encoders():
        if key.startswith(encoder.prefix):
            return _locate_encoder(key.removeprefix(encoder.prefix), encoder)
    if key.startswith(_VAE_PREFIXES):
        return _VAE
    if key.startswith(_EMA_PREFIX):
        return _EMA
    return _OTHER


def _locate_encoder(name: str, encoder: EncoderPrefix) -> Located:
    if encoder.own:
        return _named(encoder.component, name)
    if not encoder.openclip:
        return _named(encoder.component, canonical_key(name))
    tensor = from_openclip(name)
    if tensor is None:
        return Located(encoder.component)
    return Located(encoder.component, tensor.parts, tensor.transposed)
