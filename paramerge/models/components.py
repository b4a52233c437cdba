"""Whose each tensor of a file is, and what it is called there: UNet, text encoders, VAE or something else.

Files differ in prefixes and in naming (LDM or diffusers, OpenCLIP or transformers). :func:`locate` undoes
both for every key of a file; what adapters can reach and which architecture it is follow from its answer.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from paramerge.models.clip_keys import (
    BUNDLED_ENCODERS,
    SINGLE_FILE_ENCODERS,
    EncoderPrefix,
    canonical_key,
    from_openclip,
)
from paramerge.models.flux_keys import is_single_file_key, single_file_layer
from paramerge.models.model_names import KnownModel
from paramerge.models.names import MODEL
from paramerge.models.unet_keys import (
    LDM_UNET_PREFIX,
    UNetKeyMap,
    is_diffusers_unet_key,
    is_ldm_unet_key,
)
from paramerge.models.unet_structure import infer_structure
from paramerge.models.vae_keys import LDM_VAE_PREFIX

__all__ = ["Located", "locate"]


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor's component and canonical name.

    ``parts`` are canonical keys (diffusers for the UNet, transformers with ``text_model.`` for encoders):
    one; three for a stacked q, k, v; none for a tensor that has no canonical name.

    Attributes
    ----------
    square:
        Whether all parts but the last have as many rows as the tensor has columns; else they are equal.
    own:
        A name of its own by which adapters reach the whole tensor, where ``parts`` do not name just that.
    """

    component: str
    parts: tuple[str, ...] = ()
    transposed: bool = False
    square: bool = False
    own: str | None = None


_UNET_PREFIXES = (LDM_UNET_PREFIX, "diffusion_model.", "unet.", "")
_ENCODERS = (
    *SINGLE_FILE_ENCODERS,
    *BUNDLED_ENCODERS,
    EncoderPrefix("text_encoder.", "text_encoder", False),
    EncoderPrefix("text_encoder_2.", "text_encoder_2", False),
)
_VAE_PREFIXES = (LDM_VAE_PREFIX, "vae.")
_EMA_PREFIX = "model_ema."
_MODEL_PREFIXES = (LDM_UNET_PREFIX, "diffusion_model.", "transformer.", "")
_BUNDLED_ENCODERS = (
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
)
_CLIP_LIKE = re.compile(r"\b(encoder\.layers|resblocks)\.\d+\.(self_attn|attn|mlp)\.")
"""Keys of a CLIP text encoder, under whatever prefix: its names are canonical or unknown, never its own."""

_BUNDLED_T5 = "text_encoders.t5xxl.transformer."


def locate(
    keys: Collection[str], component: str | None = None, known: KnownModel | None = None
) -> dict[str, Located]:
    """The component and the canonical name of every key of a file.

    Parameters
    ----------
    keys:
        All keys of the file; of all shards together, if it is one of several.
    component:
        The component whose folder the file lies in, or None for a single file, whose components are told
        apart by the keys (``ema`` for a second set of weights, ``other`` for what belongs to none).
    known:
        The model that it was recognised as, if it is no UNet of Stable Diffusion.

    Raises
    ------
    CheckpointError
        There is a UNet with LDM's names in the file and blocks of it are missing.
    """
    if component is None and known is not None:
        return _locate_model(keys, known)
    if component == "vae":
        return {key: Located("vae") for key in keys}
    if component is not None and (component != "unet" or known is not None):
        if component.startswith("text_encoder") and any(_CLIP_LIKE.search(key) for key in keys):
            return {key: _named(component, canonical_key(key)) for key in keys}
        return {key: Located(component, (key,)) for key in keys}
    unet = _find_unet(keys)
    if component is None:
        return {key: _locate_single(key, unet) for key in keys}
    return {key: unet.locate(key) if unet else Located("unet") for key in keys}


def _locate_model(keys: Collection[str], known: KnownModel) -> dict[str, Located]:
    """A single file of a model whose layers go by their own names, and what it may be bundled with."""
    prefixes = ("",) if known.component == MODEL else _MODEL_PREFIXES
    prefix = next(prefix for prefix in prefixes if any(key.startswith(prefix) for key in keys))
    two_clips = any(key.startswith(_BUNDLED_ENCODERS[1][0]) for key in keys)
    encoders = (*_BUNDLED_ENCODERS, (_BUNDLED_T5, "text_encoder_3" if two_clips else "text_encoder_2"))
    located = {}
    for key in keys:
        bundled = next(((start, name) for start, name in encoders if key.startswith(start)), None)
        if bundled is not None:
            name = key.removeprefix(bundled[0])
            clip = bundled[0] != _BUNDLED_T5
            located[key] = _named(bundled[1], canonical_key(name) if clip else name)
        elif key.startswith(_VAE_PREFIXES):
            located[key] = Located("vae")
        elif key.startswith("text_encoders.") or not key.startswith(prefix):
            located[key] = Located("other")
        else:
            located[key] = _locate_layer(key.removeprefix(prefix), known)
    return located


def _locate_layer(name: str, known: KnownModel) -> Located:
    if known.name != "flux" or not is_single_file_key(name):
        return Located(known.component, (name,))
    path, _, kind = name.rpartition(".")
    layer = single_file_layer(path)
    if layer is None or layer.swapped:
        return Located(known.component, own=name)
    kind = "weight" if kind == "scale" else kind
    parts = tuple(f"{part}.{kind}" for part in layer.parts)
    stacked = len(parts) > 1
    return Located(known.component, parts, square=stacked, own=name if stacked else None)


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
    for encoder in _ENCODERS:
        if key.startswith(encoder.prefix):
            return _locate_encoder(key.removeprefix(encoder.prefix), encoder)
    if key.startswith(_VAE_PREFIXES):
        return Located("vae")
    if key.startswith(_EMA_PREFIX):
        return Located("ema")
    return Located("other")


def _locate_encoder(name: str, encoder: EncoderPrefix) -> Located:
    if not encoder.openclip:
        return _named(encoder.component, canonical_key(name))
    tensor = from_openclip(name)
    if tensor is None:
        return Located(encoder.component)
    return Located(encoder.component, tensor.parts, tensor.transposed)
