"""Families on pipelines with several text encoders: each lands in the model that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import torch
from baking import check_close, plan_of, shapes_of
from family_cases import CASES
from flux_models import read
from safetensors.torch import load_file, save_file
from tiny_pipelines import sdxl_pipeline

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import UsageError
from paramerge.generation.adapting import apply_plan
from paramerge.generation.loading import load_pipeline

ROUNDED = 4 * 2.0**-24
NAMED = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl_pipeline(tmp_path_factory.mktemp("xl"))[0]


def test_sdxl_folder_baked_and_generated_from(sdxl: Path, tmp_path: Path) -> None:
    """LoKr on both encoders and the UNet, DoRA on one, in one plan: files and loaded pipeline agree."""
    shapes = shapes_of(sdxl)
    layers = (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj",
    )
    chosen = {layer: shapes[layer] for layer in layers}
    lokr, one = NAMED["lokr-w1-whole"].write(tmp_path / "lokr", chosen)
    rename(lokr, "lora_te_", "lora_te1_")
    dora, two = NAMED["dora-out"].write(tmp_path / "dora", {layers[2]: shapes[layers[2]]}, seed=1)
    plan = plan_of(sdxl, Step("adapter", lokr, 0.7), Step("adapter", dora))
    bake(plan, tmp_path / "out")
    pipeline = load_pipeline(open_base(sdxl), torch.float32)
    apply_plan(plan, pipeline)
    for layer in layers:
        component, _, path = layer.partition(".")
        before, after = (
            load_file(next((folder / component).glob("*.safetensors"))) for folder in (sdxl, tmp_path / "out")
        )
        W = before[f"{path}.weight"].double().numpy()
        wanted = NAMED["lokr-w1-whole"].expected(one[layer], W, chosen[layer], 0.7)
        if layer in two:
            wanted = NAMED["dora-out"].expected(two[layer], wanted, chosen[layer])
        check_close(after[f"{path}.weight"].numpy(), wanted, layer)
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed == {f"{path}.weight"}
        model = getattr(pipeline, component)
        loaded = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
        found = loaded[f"{path.removeprefix('text_model.')}.weight"]
        assert torch.equal(found, after[f"{path}.weight"])


def test_flux_with_clip_and_t5(tmp_path: Path) -> None:
    """kohya's numbers of the encoders (T5 is the third), a family each; and one component chosen."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    clip = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                       vocab_size=32)
    )  # fmt: skip
    models = {
        "transformer": zoo.random_model("flux"),
        "text_encoder": clip,
        "text_encoder_2": zoo.random_model("t5"),
    }
    folder = zoo.save_pipeline(tmp_path / "p", models)
    places = {
        "unet.double_blocks.0.img_attn.proj": (
            "oft",
            "transformer",
            "transformer_blocks.0.attn.to_out.0",
            "lora_unet_",
        ),
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj": (
            "loha",
            "text_encoder",
            "text_model.encoder.layers.1.self_attn.q_proj",
            "lora_te1_",
        ),
        "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q": (
            "dora-in",
            "text_encoder_2",
            "encoder.block.1.layer.0.SelfAttention.q",
            "lora_te3_",
        ),
    }
    tensors: dict[str, torch.Tensor] = {}
    wanted: dict[str, dict[str, Any]] = {}
    for seed, (layer, (name, component, path, prefix)) in enumerate(places.items()):
        case = NAMED[name]
        W = weight(read(folder / component), path).double().numpy()
        file, stored = case.write(tmp_path / name, {layer: W.shape}, seed=seed)
        written = (
            "lora_"
            + {"unet": "unet_", "text_encoder": "te_", "text_encoder_2": "te2_"}[layer.partition(".")[0]]
        )
        rename(file, written, prefix)
        tensors |= load_file(file)
        wanted[component] = {path: case.expected(stored[layer], W, W.shape)}
    save_file(tensors, tmp_path / "all.safetensors")
    plan = plan_of(folder, Step("adapter", tmp_path / "all.safetensors"))
    assert plan.steps[0].adapter.family == "mixed"
    bake(plan, tmp_path / "out")
    for component, layers in wanted.items():
        before, after = read(folder / component), read(tmp_path / "out" / component)
        ((path, expected),) = layers.items()
        found = weight(after, path).double().numpy()
        assert np.linalg.norm(found - expected) <= ROUNDED * np.linalg.norm(expected), component
        assert sum(not torch.equal(after[key], before[key]) for key in after) == 1
    only = plan_of(folder, Step("adapter", tmp_path / "all.safetensors"), only=("text_encoder_2",))
    assert [name.component for name in only.steps[0].matched] == ["text_encoder_2"]
    assert len(only.steps[0].excluded) == 2
    with pytest.raises(UsageError, match="nothing of this adapter is selected"):
        plan_of(folder, Step("adapter", tmp_path / "all.safetensors"), only=("text_encoder_3",))


def weight(tensors: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    """A layer's weight; transformers 5 drops the prefix of CLIP's."""
    found = tensors.get(f"{path}.weight")
    return found if found is not None else tensors[f"{path.removeprefix('text_model.')}.weight"]


def rename(file: Path, old: str, new: str) -> None:
    """Spell a component of kohya's in another way."""
    save_file({key.replace(old, new): tensor for key, tensor in load_file(file).items()}, file)
