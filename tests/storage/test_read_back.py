"""What is written loads in transformers, and the loaded model has the values that paramerge wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from baking import plan_of
from quantised_adapters import lora_on
from quantised_models import LAYERS
from safetensors.torch import load_file, save_file

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base

transformers = pytest.importorskip("transformers")
BLOCK = 16


def fine_grained_llama(folder: Path) -> Path:
    """A Llama of one layer, its projections fp8 with a scale for each block, as transformers stores it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=50, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(str(path))
    for key in [key for key in tensors if key.endswith("proj.weight")]:
        blocks = tensors[key].float().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
        tensors[key] = codes.contiguous()
        tensors[f"{key}_scale_inv"] = scale
    save_file(tensors, str(path), {"format": "pt"})
    entries = json.loads((folder / "config.json").read_text())
    entries["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "activation_scheme": "dynamic",
    }
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("requantise", [False, True])
def test_transformers_reads_the_written_values(requantise: bool, tmp_path: Path) -> None:
    base = fine_grained_llama(tmp_path / "base")
    lora, _ = lora_on(tmp_path / "lora", LAYERS[:2])
    bake(plan_of(base, Step("lora", lora), requantise=requantise), tmp_path / "out")
    config = transformers.FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True)
    if not requantise:
        config.modules_to_not_convert = [*LAYERS[:2]]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=config, dtype=torch.float32
    )
    (file,) = open_base(tmp_path / "out").files
    for layer in LAYERS:
        found = loaded.get_parameter(f"{layer}.weight").detach().float().numpy()
        wanted = file.tensor(f"{layer}.weight").read_exact().astype(np.float32)
        # where transformers multiplies in bfloat16 its values are near
        assert np.allclose(found, wanted, rtol=2.0**-7, atol=1e-7), layer
