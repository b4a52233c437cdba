"""Names of layers in adapter files, read into the one naming of :mod:`paramerge.models.names`.

Files spell a layer's path with dots or with underscores, and a UNet's blocks in diffusers' numbering or in
LDM's. Underscores are ambiguous (``to_out_0``), so a name is cut into the words that paths are made of; what
comes out must then be a layer that such a model can have.

A name that is none of Stable Diffusion's is kept as it is: the layer of another model, whose checkpoint will
say whether it has it (:mod:`paramerge.resolve.naming`). In a file for a Stable Diffusion UNet it is no layer:
:func:`strays`. A name that cannot be any module's path is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from paramerge.formats import comfyui
from paramerge.models.names import COMPONENTS, MODEL, ModuleName
from paramerge.models.unet_keys import ldm_to_diffusers

_UNET = re.compile(
    r"""
    conv_in | conv_out | (?:time|add|class)_embedding\.linear_[12]
    | (?: (?:down|up)_blocks\.\d+ | mid_block ) \.
      (?: attentions\.\d+\. (?: proj_in | proj_out
              | transformer_blocks\.\d+\. (?: attn[12]\.(?:to_[qkv]|to_out\.0) | ff\.net\.(?:0\.proj|2) ) )
        | resnets\.\d+\. (?: conv1 | conv2 | time_emb_proj | conv_shortcut ) )
    | down_blocks\.\d+\.downsamplers\.0\.conv | up_blocks\.\d+\.upsamplers\.0\.conv
    """,
    re.VERBOSE | re.ASCII,
)
_UNET_NORM = re.compile(
    r"""
    conv_norm_out
    | (?: (?:down|up)_blocks\.\d+ | mid_block ) \.
      (?: attentions\.\d+\. (?: norm | transformer_blocks\.\d+\.norm[123] ) | resnets\.\d+\.norm[12] )
    """,
    re.VERBOSE | re.ASCII,
)
_CLIP_NORM = re.compile(
    r"""
    text_model\. (?: encoder\.layers\.\d+\.layer_norm[12] | final_layer_norm
        | embeddings\.(?:token|position)_embedding )
    """,
    re.VERBOSE | re.ASCII,
)
_CLIP = re.compile(
    r"""
    text_model\.encoder\.layers\.\d+\.(?: self_attn\.(?:q|k|v|out)_proj | mlp\.fc[12] ) | text_projection
    """,
    re.VERBOSE | re.ASCII,
)

_WORDS = (
    "down_blocks up_blocks mid_block input_blocks middle_block output_blocks transformer_blocks attentions "
    "resnets downsamplers upsamplers attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out conv "
    "conv1 conv2 conv_in conv_out conv_shortcut time_embedding add_embedding class_embedding linear_1 "
    "linear_2 time_emb_proj time_embed label_emb in_layers out_layers emb_layers skip_connection op out "
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection "
    "norm norm1 norm2 norm3 conv_norm_out layer_norm1 layer_norm2 final_layer_norm embeddings "
    "token_embedding position_embedding"
)
_WORD = re.compile(rf"({'|'.join(sorted(_WORDS.split(), key=len, reverse=True))}|[0-9]{{1,4}})(?:_|$)")
_LDM_FIRST_WORDS = {"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}

_UNDERSCORED_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
    "lycoris_": "unet",  # LyCORIS around a bare UNet
    "oft_unet_": "unet",  # kohya's OFT
}
_DOTTED_COMPONENTS = tuple(name for name in COMPONENTS if name not in (MODEL, "vae"))

_LDM_BLOCK = re.compile(r"(?:input_blocks|middle_block|output_blocks)\.")
_LDM_NAME = re.compile(r"(?:input_blocks|middle_block|output_blocks|out)\.")
_PATH = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_UNET_BLOCK = re.compile(r"(?:down_blocks|mid_block|up_blocks)\.")


class Spelled(NamedTuple):
    """A name that kohya spelled.

    Attributes
    ----------
    ldm:
        Whether it was in LDM's numbering (the "sgm" spelling of kohya's SDXL files).
    layer:
        False for a norm or an embedding, whose name is then without ``.weight``.
    """

    name: ModuleName
    ldm: bool
    layer: bool = True


def unet_path(path: str) -> str | None:
    """``path`` if a UNet has such a layer (linear or convolution), in diffusers' numbering."""
    return path if _UNET.fullmatch(path) else None


def clip_path(path: str) -> str | None:
    """The text encoder's layer ``path`` with its ``text_model.`` prefix, which some files leave out."""
    if path.startswith("encoder."):
        path = f"text_model.{path}"
    return path if _CLIP.fullmatch(path) else None


def dotted_layer(path: str) -> ModuleName | None:
    """Read a dotted name that begins with its component: ``unet.mid_block.attentions.0.proj_in``.

    The UNet's may go on in LDM's names (OneTrainer), text encoders may be named as ComfyUI bundles them.
    """
    component, rest = _component_of(path)
    if component is None:
        return None
    found = _any_unet_path(rest) if component == "unet" else clip_path(rest)
    return ModuleName(component, found or rest) if found or _PATH.fullmatch(rest) else None


def stated_layer(path: str) -> ModuleName | None:
    """Read a dotted name that always begins with a component: as :func:`dotted_layer`, or ``model``'s.

    Where the component may be left out, ``model.layers.0.mlp.up_proj`` is the whole path in a language model.
    """
    component, _, rest = path.partition(".")
    if component == MODEL and _PATH.fullmatch(rest):
        return ModuleName(MODEL, rest)
    return dotted_layer(path)


def bare_layer(path: str) -> ModuleName | None:
    """Read a dotted name without component: a text encoder's as ``text_encoder``'s, others as ``model``'s."""
    of_unet = _any_unet_path(path) if _LDM_BLOCK.match(path) else unet_path(path)
    if of_unet:
        return ModuleName("unet", of_unet)
    found = clip_path(path)
    if found:
        return ModuleName("text_encoder", found)
    rest = comfyui.without_prefix(path)
    if rest is not None and _PATH.fullmatch(rest):
        unet = _any_unet_path(rest)
        return ModuleName("unet", unet) if unet else ModuleName("transformer", rest)
    return ModuleName(MODEL, path) if _PATH.fullmatch(path) else None


def strays(names: Iterable[ModuleName]) -> frozenset[ModuleName]:
    """The ``names`` that can be no layers, because the others are of a Stable Diffusion UNet.

    Its models' layers are all known, so a name that is not is a misspelled or an unsupported one.
    """
    names = set(names)
    known = {name for name in names if unet_path(name.path) or clip_path(name.path)}
    # outside the blocks, layers are called so in other models, too
    unet = any(name.component == "unet" and _UNET_BLOCK.match(name.path) for name in known)
    return frozenset(names - known) if unet else frozenset()


def _underscored_prefix(stem: str) -> str | None:
    return next((prefix for prefix in _UNDERSCORED_PREFIXES if stem.startswith(prefix)), None)


def underscored(stem: str) -> Spelled | None:
    """The name that kohya and LyCORIS spell ``lora_unet_mid_block_attentions_0_proj_in``; None for another.

    The underscores of a name that is none of Stable Diffusion's stay: only its checkpoint can tell which of
    them are dots. The last dots of a stem are underscores that a conversion forgot: diffusers' converter to
    kohya's names counts two dots behind the layer, and a magnitude has one.
    """
    prefix = _underscored_prefix(stem)
    if prefix is None:
        return None
    component, rest = _UNDERSCORED_PREFIXES[prefix], stem.removeprefix(prefix).replace(".", "_")
    path = _cut_into_words(rest)
    ldm = path is not None and component == "unet" and path.partition(".")[0] in _LDM_FIRST_WORDS
    translated = (ldm_to_diffusers(path) if ldm else path) if path is not None else None
    if translated is not None:
        if norm := _norm(component, translated):
            return Spelled(norm, ldm, layer=False)
        if found := unet_path(translated) if component == "unet" else clip_path(translated):
            return Spelled(ModuleName(component, found), ldm)
    return Spelled(ModuleName(component, rest), False) if _PATH.fullmatch(rest) else None


def dotted_norm(path: str) -> ModuleName | None:
    """Read the dotted name of a norm or an embedding, with its component: ``unet.conv_norm_out``."""
    component, rest = _component_of(path)
    return _norm(component, rest) if component is not None else None


def bare_norm(path: str) -> ModuleName | None:
    """Read the dotted name of a norm or an embedding without component, as :func:`bare_layer` does."""
    rest = comfyui.without_prefix(path)
    if rest is not None:
        return _norm("unet", rest)
    return _norm("unet", path) or _norm("text_encoder", path)


def _component_of(path: str) -> tuple[str | None, str]:
    """The component that a dotted name begins with, and the rest; None where it begins with none."""
    if bundled := comfyui.bundled_encoder(path):
        return bundled
    component, _, rest = path.partition(".")
    return (component, rest) if component in _DOTTED_COMPONENTS else (None, path)


def _any_unet_path(path: str) -> str | None:
    """The path of a UNet's layer from its name in diffusers' or in LDM's numbering."""
    return unet_path(ldm_to_diffusers(path) or path)


def _norm(component: str, path: str) -> ModuleName | None:
    if component == "unet":
        path = (ldm_to_diffusers(path) or path) if _LDM_NAME.match(path) else path
        return ModuleName(component, path) if _UNET_NORM.fullmatch(path) else None
    if path.startswith(("encoder.", "final_layer_norm", "embeddings.")):
        path = f"text_model.{path}"
    return ModuleName(component, path) if _CLIP_NORM.fullmatch(path) else None


def folded(name: ModuleName) -> str:
    """A name in the one spelling in which kohya's underscores and dotted names of one layer are equal.

    ``unet``, ``transformer`` and no component at all may all mean the model that removes the noise.
    """
    component = MODEL if name.component in ("unet", "transformer") else name.component
    return f"{component}:{name.path.replace('.', '_')}"


def is_read_back(found: ModuleName, name: ModuleName) -> bool:
    """Whether ``found`` is what ``name`` was written as: the same, or of another model than Stable Diffusion
    the same but for underscores, which the checkpoint tells from dots."""
    return found == name or (folded(found) == folded(name) and not _UNET_BLOCK.match(name.path))


def _cut_into_words(name: str) -> str | None:
    words, position = [], 0
    while position < len(name):
        match = _WORD.match(name, position)
        if match is None:
            return None
        words.append(match[1])
        position = match.end()
    return ".".join(words) or None
