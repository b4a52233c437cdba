"""One LoRA for one model in every spelling that its layers have; nothing here reads a name with paramerge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramerge.files.writer import write_safetensors

Array = NDArray[np.float32]
Factors = Mapping[str, tuple[Array, Array]]
"""Up and down factor, by a layer's path."""

PEFT_ENDS, KOHYA_ENDS = ("lora_B.weight", "lora_A.weight"), ("lora_up.weight", "lora_down.weight")


class Spelling(NamedTuple):
    """A way to write a LoRA: whose names, the stem of a path, the ends of its factors, whether with alpha."""

    original: bool
    stem: Callable[[str], str]
    ends: tuple[str, str]
    alpha: bool


def _dotted(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path


def _underscored(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.replace(".", "_")


SPELLINGS: dict[str, Spelling] = {
    "diffusers, SimpleTuner": Spelling(False, _dotted("transformer."), PEFT_ENDS, False),
    "save_lora_adapter": Spelling(
        False, _dotted(""), ("lora_B.default.weight", "lora_A.default.weight"), False
    ),
    "DiffSynth, OneTrainer's original": Spelling(True, _dotted(""), KOHYA_ENDS, True),
    "ai-toolkit": Spelling(False, _dotted("diffusion_model."), PEFT_ENDS, False),
    "ComfyUI, diffusion-pipe": Spelling(True, _dotted("diffusion_model."), PEFT_ENDS, False),
    "ComfyUI with alpha": Spelling(True, _dotted("diffusion_model."), KOHYA_ENDS, True),
    "OMI, HunyuanVideo": Spelling(True, _dotted("transformer."), KOHYA_ENDS, True),
    "sd-scripts": Spelling(True, _underscored("lora_unet_"), KOHYA_ENDS, True),
    "musubi-tuner": Spelling(False, _underscored("lora_unet_"), KOHYA_ENDS, True),
    "OneTrainer, old": Spelling(False, _underscored("lora_transformer_"), KOHYA_ENDS, True),
    "LyCORIS": Spelling(False, _underscored("lycoris_"), KOHYA_ENDS, True),
    "PEFT": Spelling(False, _dotted("base_model.model."), PEFT_ENDS, False),
    "PEFT, original names": Spelling(True, _dotted("base_model.model."), PEFT_ENDS, False),
    "VideoX-Fun": Spelling(True, _underscored("lora_unet__"), KOHYA_ENDS, True),
    "HunyuanVideo-I2V's trainer": Spelling(True, _underscored("Hunyuan_video_I2V_lora_"), KOHYA_ENDS, True),
}
"""By who writes it."""


def write_lora(path: Path, spelling: Spelling, factors: Factors) -> Path:
    """A LoRA of these factors, of scale 1; an alpha that is written is twice the rank, and ``up`` half."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer, (up, down) in factors.items():
        stem = spelling.stem(layer)
        if spelling.alpha:
            tensors[f"{stem}.alpha"] = np.array(2 * len(down), np.float32)
        tensors[f"{stem}.{spelling.ends[0]}"] = up / 2 if spelling.alpha else up
        tensors[f"{stem}.{spelling.ends[1]}"] = down
    write_safetensors(path, tensors, {})
    return path
