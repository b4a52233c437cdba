"""A merged or resized LoRA has its inputs' own dialect, and the same change."""

from __future__ import annotations

from pathlib import Path

import diffusion_transformers as small
import numpy as np
import pytest
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, write_lora
from lora_factors import changes, factors_of
from safetensors.numpy import load_file
from single_files import namings, single_shapes

import paramerge
from paramerge.apply.steps import Step

KEPT = {
    "sd-scripts": "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
    "ComfyUI with alpha": "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight",
    "diffusers, SimpleTuner": "transformer.transformer_blocks.0.attn.to_q.lora_B.weight",
    "OneTrainer, old": "lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight",
}


@pytest.mark.parametrize("who", KEPT)
def test_the_dialect_stays_and_the_sum_is_exact(who: str, tmp_path: Path) -> None:
    shapes = small.small_shapes("flux")
    key_map = namings("flux", shapes)[0]
    own, single = factors_of(key_map, shapes)
    spelling = SPELLINGS[who]
    lora = write_lora(tmp_path / "l.safetensors", spelling, single if spelling.original else own)
    base = write_holes(tmp_path / "base.safetensors", single_shapes(key_map, shapes), "F32")
    paramerge.merge([paramerge.Lora(lora, 0.5), lora], tmp_path / "m.safetensors", dtype="fp32")
    paramerge.resize(lora, tmp_path / "r.safetensors", rank=2, dtype="fp32")
    for name, strength in (("m", 1.5), ("r", 1.0)):
        path = tmp_path / f"{name}.safetensors"
        assert KEPT[who] in load_file(path)
        found = changes(plan_of(base, Step("lora", path)))
        for layer, (up, down) in single.items():
            wanted = strength * (up.astype(np.float64) @ down)
            assert np.abs(found[f"{layer}.weight"] - wanted).max() <= 2.0**-18 * np.abs(wanted).max()


def test_a_merge_of_both_namings_is_diffusers(tmp_path: Path) -> None:
    """kohya's readers would not know diffusers' names of FLUX's layers."""
    shapes = small.small_shapes("flux")
    own, single = factors_of(namings("flux", shapes)[0], shapes)
    one = write_lora(tmp_path / "a.safetensors", SPELLINGS["sd-scripts"], single)
    other = write_lora(tmp_path / "b.safetensors", SPELLINGS["ai-toolkit"], own)
    paramerge.merge([one, other], tmp_path / "m.safetensors", dtype="fp32")
    written = {key.partition(".lora_")[0] for key in load_file(tmp_path / "m.safetensors")}
    assert written == {f"transformer.{path}" for path in own}
