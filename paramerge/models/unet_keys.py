"""The names of UNet layers: those of single files (LDM) and those of diffusers, as a bijection.

The structure of a UNet pairs its blocks; inside a block only the resnets' layers have two names.
:class:`UNetKeyMap` translates exactly for one structure. Where only a name is at hand,
:func:`ldm_to_diffusers` computes the other from the numbers in it.
"""

from __future__ import annotations

import re
from functools import cached_property

from paramerge.models.unet_structure import UNetStructure

LDM_UNET_PREFIX = "model.diffusion_model."
"""The prefix of the UNet's keys in a single file."""

_RESNET_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_LAYERS_BACK = {new: old for old, new in _RESNET_LAYERS.items()}

_LDM_KEY = re.compile(r"(input_blocks|output_blocks|middle_block)\.\d+\.|(time_embed|label_emb|out)\.\d\.")
_DIFFUSERS_KEY = re.compile(
    r"(down_blocks|up_blocks)\.\d+\.\w+\.\d+\.|mid_block\.\w+\.\d+\."
    r"|(conv_in|conv_norm_out|conv_out)\.(weight|bias)$|(time|add|class)_embedding\."
)


def is_ldm_unet_key(key: str) -> bool:
    """Whether ``key`` (without any prefix) is named as the UNet's in a single file."""
    return _LDM_KEY.match(key) is not None


def is_diffusers_unet_key(key: str) -> bool:
    """Whether ``key`` (without any prefix) is named as in a diffusers UNet."""
    return _DIFFUSERS_KEY.match(key) is not None


class UNetKeyMap:
    """Translates layer paths and keys between LDM and diffusers for one structure.

    Both directions take a module path (``input_blocks.4.1.proj_in``) or a key (with ``.weight``) without
    prefix and return None where the structure has no such block.
    """

    def __init__(self, structure: UNetStructure) -> None:
        self.structure = structure

    @cached_property
    def _forward(self) -> dict[str, str]:
        return dict(self.structure.blocks())

    @cached_property
    def _backward(self) -> dict[str, str]:
        return {new: old for old, new in self.structure.blocks()}

    def to_diffusers(self, path: str) -> str | None:
        """The diffusers name of the LDM ``path``."""
        found = _split(path, self._forward)
        return found and _join(*found, _RESNET_LAYERS)

    def to_ldm(self, path: str) -> str | None:
        """The LDM name of the diffusers ``path``."""
        found = _split(path, self._backward)
        return found and _join(*found, _RESNET_LAYERS_BACK)


def _split(path: str, blocks: dict[str, str]) -> tuple[str, str, bool] | None:
    """Split ``path`` after its block: (the block's other name, the rest, whether it is a resnet)."""
    end = len(path)
    while end > 0:
        block = path[:end]
        if block in blocks:
            return blocks[block], path[end + 1 :], ".resnets." in block or ".resnets." in blocks[block]
        end = path.rfind(".", 0, end)
    return None


def _join(block: str, rest: str, resnet: bool, layers: dict[str, str]) -> str | None:
    if not rest or not resnet:
        return f"{block}.{rest}" if rest else block
    for old, new in layers.items():
        if rest == old or rest.startswith(f"{old}."):
            return f"{block}.{new}{rest[len(old) :]}"
    return None


_UNNUMBERED = UNetKeyMap(UNetStructure((), ()))
_LDM_NUMBERED = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)(?:\.(.+))?$")


def ldm_to_diffusers(path: str, layers_per_block: int = 2) -> str | None:
    """The diffusers name of an LDM layer by arithmetic on its numbers alone.

    Equals :meth:`UNetKeyMap.to_diffusers` for every structure of
    :func:`~paramerge.models.unet_structure.standard_structure` with the same ``layers_per_block``; needs
    no key set. None for a name that is not of a UNet's layer.
    """
    match = _LDM_NUMBERED.match(path)
    if match is None or path.startswith("input_blocks.0."):
        return _UNNUMBERED.to_diffusers(path)
    way, index, position, rest = match[1], int(match[2]), int(match[3]), match[4] or ""
    if way == "input_blocks":
        level, layer = divmod(index - 1, layers_per_block + 1)
        block, resampler, word = f"down_blocks.{level}", "downsamplers.0.conv", "op"
    else:
        level, layer = divmod(index, layers_per_block + 1)
        block, resampler, word = f"up_blocks.{level}", "upsamplers.0.conv", "conv"
    first, _, tail = rest.partition(".")
    if first == word:
        return _join(f"{block}.{resampler}", tail, False, {})
    if position > 1:
        return None
    kind = ("resnets", "attentions")[position]
    return _join(f"{block}.{kind}.{layer}", rest, position == 0, _RESNET_LAYERS)
