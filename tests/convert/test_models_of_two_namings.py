"""LoRAs of every model from one naming to the other: read back, loaded by diffusers, and the same change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import diffusion_transformers as small
import numpy as np
import pytest
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, Factors, write_lora
from lora_factors import changes, factors_of
from safetensors.torch import load_file
from single_files import namings, single_shapes

import paramerge
from paramerge.apply.steps import Step
from paramerge.models.key_map import single_key

NAMES = [*small.MODELS]
STEPS = {
    "from ComfyUI": "ComfyUI, diffusion-pipe",
    "from kohya": "sd-scripts",
    "from OneTrainer": "OneTrainer, old",
    "from diffusers": "diffusers, SimpleTuner",
}

NOT_TOLD = ("sana",)
"""Models that kohya's names of linear layers do not tell from another (PixArt): a base does."""


def written(name: str, who: str, to: str, folder: Path) -> tuple[Path, Factors, Factors]:
    """The LoRA as ``who`` writes it, converted without a base; and its factors in both namings."""
    shapes = small.small_shapes(name)
    key_map = namings(name, shapes)[0]
    own, single = factors_of(key_map, shapes)
    spelling = SPELLINGS[who]
    given = write_lora(folder / "given.safetensors", spelling, single if spelling.original else own)
    output = folder / "out.safetensors"
    base = None
    if name in NOT_TOLD:
        base = write_holes(folder / "told.safetensors", single_shapes(key_map, shapes), "F32")
    paramerge.convert([given], output, to=to, base=base, overwrite=True)
    return output, own, single


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pixart"])  # has no adapters there
def test_diffusers_loads_what_is_written_for_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With no unexpected and no missing key, and every layer's change."""
    who = [*STEPS.values()][NAMES.index(name) % 2]
    path, own, _ = written(name, who, "diffusers", tmp_path)
    model = small.small_model(name)
    state = load_file(path)
    with caplog.at_level(logging.WARNING):
        model.load_lora_adapter(state, prefix="transformer")
    assert "unexpected" not in caplog.text.lower() and "missing" not in caplog.text.lower()
    found = loaded(model)
    assert found.keys() == own.keys()
    for layer, (up, down) in own.items():
        wanted = up.astype(np.float64) @ down
        assert np.abs(found[layer] - wanted).max() <= 4 * 2.0**-23 * np.abs(wanted).max(), layer


def loaded(model: Any) -> dict[str, np.ndarray]:
    """The change of each layer that PEFT has a LoRA on."""
    found = {}
    for layer, module in model.named_modules():
        if hasattr(module, "lora_A") and "default_0" in module.lora_A:
            up, down = (
                getattr(module, side)["default_0"].weight.detach().double() for side in ("lora_B", "lora_A")
            )
            found[layer] = (module.scaling["default_0"] * up @ down).numpy()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_single_files_names_are_written_and_change_the_same(name: str, tmp_path: Path) -> None:
    shapes = small.small_shapes(name)
    key_map = namings(name, shapes)[0]
    real = single_shapes(key_map, shapes)
    base = write_holes(tmp_path / "base.safetensors", real, "F32")
    who = [*STEPS.values()][2 + NAMES.index(name) % 2]
    for to in ("comfyui", "kohya"):
        path, _, single = written(name, who, to, tmp_path)
        stems = {key.split(".lora_")[0].removesuffix(".alpha") for key in load_file(path)}
        layers = set(single) if to == "comfyui" or name != "z-image" else set(factors_of(key_map, shapes)[0])
        prefix = "diffusion_model." if to == "comfyui" else "lora_unet_"
        wanted = {layer if to == "comfyui" else layer.replace(".", "_") for layer in layers}
        assert {stem.removeprefix(prefix) for stem in stems} == wanted
        found = changes(plan_of(base, Step("lora", path)))
        for layer, (up, down) in single.items():
            change = up.astype(np.float64) @ down
            assert np.abs(found[f"{layer}.weight"] - change).max() <= 2.0**-22 * np.abs(change).max(), layer


def test_a_layer_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    shapes = small.small_shapes("wan")
    own, _ = factors_of(namings("wan", shapes)[0], shapes)
    given = {"blocks.0.attn1.to_z" if path == "blocks.0.attn1.to_q" else path: f for path, f in own.items()}
    lora = write_lora(tmp_path / "l.safetensors", SPELLINGS["diffusers, SimpleTuner"], given)
    base = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    write_holes(base, shapes, "F32")
    base.with_name("config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    with pytest.raises(paramerge.errors.ParamergeError, match="to_z"):
        paramerge.convert([lora], tmp_path / "out.safetensors", to="comfyui", base=base.parent)


def test_what_of_a_stack_is_untrained_stays_as_it_is(tmp_path: Path) -> None:
    """Queries and values alone, of scales that differ, in one stacked layer: its other rows are zeros."""
    shapes = small.small_shapes("flux")
    own, _ = factors_of(namings("flux", shapes)[0], shapes)
    some = {path: f for path, f in own.items() if path.endswith(("attn.to_q", "attn.to_v", "ff.net.2"))}
    given = write_lora(tmp_path / "l.safetensors", SPELLINGS["diffusers, SimpleTuner"], some)
    paramerge.convert([given], tmp_path / "out.safetensors", to="kohya")
    written = load_file(tmp_path / "out.safetensors")
    up, down = (
        written[f"lora_unet_double_blocks_0_img_attn_qkv.lora_{side}.weight"].double().numpy()
        for side in ("up", "down")
    )
    wanted = np.zeros((48, 16))
    for row, letter in ((0, "q"), (32, "v")):
        B, A = own[f"transformer_blocks.0.attn.to_{letter}"]
        wanted[row : row + 16] = B.astype(np.float64) @ A
    assert np.allclose(up @ down, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert single_key(namings("flux", shapes)[0], "transformer_blocks.0.attn.to_q.weight") is not None
