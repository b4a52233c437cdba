"""diffusers' dialects: files that diffusers itself saves and converts, and the metadata with their scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import Array, deltas, random_factors, relative_distance, save
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from lora_oracles import SmallTextEncoder, merged_deltas, randomise, small_unet
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from paramerge.adapters import LoraModule
from paramerge.errors import AdapterError, FamilyError
from paramerge.formats import open_adapter

ALLOWED = 16 * np.finfo(np.float32).eps
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 1},
    "patterns": {"r": 2, "lora_alpha": 6, "rank_pattern": {"to_k": 3}, "alpha_pattern": {"attn2.to_q": 1}},
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True},
}


def trained_unet(**options: Any) -> Any:
    model = small_unet()
    model.add_adapter(LoraConfig(**{"target_modules": ["to_q", "to_k", "to_out.0", "conv2"], **options}))
    randomise(model)
    return model


def trained_text_encoder() -> Any:
    model = get_peft_model(
        SmallTextEncoder(), LoraConfig(r=2, lora_alpha=2, target_modules=["v_proj", "fc1"])
    )
    randomise(model)
    return model.base_model.model


def compare(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert relative_distance(found[name], delta) < ALLOWED


def prefixed(component: str, changes: dict[str, Array]) -> dict[str, Array]:
    return {f"{component}.{name}": delta for name, delta in changes.items()}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_a_pipeline_saves_with_its_metadata(case: str, tmp_path: Path) -> None:
    unet = trained_unet(**CONFIGS[case])
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        **_collate_lora_metadata({"unet": unet}),
    )
    adapter = open_adapter(tmp_path)
    assert (adapter.dialect, adapter.path.name) == ("diffusers", "pytorch_lora_weights.safetensors")
    compare(deltas(adapter), prefixed("unet", merged_deltas(unet)))


def test_what_a_unet_saves_alone(tmp_path: Path) -> None:
    unet = trained_unet(r=4, lora_alpha=2)
    unet.save_lora_adapter(tmp_path)
    compare(deltas(open_adapter(tmp_path)), prefixed("unet", merged_deltas(unet)))


def test_both_components_in_one_file(tmp_path: Path) -> None:
    unet, encoder = trained_unet(r=2, lora_alpha=2), trained_text_encoder()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(encoder)),
    )
    adapter = open_adapter(tmp_path)
    assert any(".lora_linear_layer." in key for m in adapter.modules.values() for key in m.keys)
    expected = prefixed("unet", merged_deltas(unet)) | prefixed("text_encoder", merged_deltas(encoder))
    compare(deltas(adapter), expected)


def test_what_diffusers_converts_to_kohya(tmp_path: Path) -> None:
    unet, encoder = trained_unet(r=2, lora_alpha=2), trained_text_encoder()
    both = {f"unet.{key}": value for key, value in get_peft_model_state_dict(unet).items()}
    both |= {f"text_encoder.{key}": value for key, value in get_peft_model_state_dict(encoder).items()}
    save_file(convert_state_dict_to_kohya(both), tmp_path / "kohya.safetensors")
    adapter = open_adapter(tmp_path / "kohya.safetensors")
    assert adapter.dialect == "kohya"
    expected = prefixed("unet", merged_deltas(unet)) | prefixed("text_encoder", merged_deltas(encoder))
    compare(deltas(adapter), expected)


SPELLINGS = {
    "peft": ("{}.lora_B.weight", "{}.lora_A.weight"),
    "peft with adapter name": ("{}.lora_B.default.weight", "{}.lora_A.default.weight"),
    "dotted": ("{}.lora.up.weight", "{}.lora.down.weight"),
    "linear layer": ("{}.lora_linear_layer.up.weight", "{}.lora_linear_layer.down.weight"),
    "underscored": ("{}.lora_up.weight", "{}.lora_down.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("written", "layer"),
    [
        (f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_q"),
        (f"{ATTENTION}.to_out.0", f"unet.{ATTENTION}.to_out.0"),
        (f"unet.{ATTENTION}.processor.to_k", f"unet.{ATTENTION}.to_k"),
        (
            "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
            "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
        ),
        (
            "text_encoder.encoder.layers.0.self_attn.q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        ("text_encoder_2.text_projection", "text_encoder_2.text_projection"),
    ],
)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_spellings(spelling: str, written: str, layer: str, alpha: float | None, tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 5, 4, 3)
    tensors = dict(zip((key.format(written) for key in SPELLINGS[spelling]), (up, down), strict=True))
    if alpha is not None:
        tensors[f"{written}.alpha"] = np.array(alpha, np.float32)
    adapter = open_adapter(save(tmp_path / "l.safetensors", tensors))
    ((name, module),) = adapter.modules.items()
    assert isinstance(module, LoraModule)
    assert str(name) == layer
    assert module.scale == (1.0 if alpha is None else 2.0)
    compare(deltas(adapter), {layer: module.scale * (up.astype(np.float64) @ down.astype(np.float64))})


@pytest.mark.parametrize("side", ["processor.", ""])
@pytest.mark.parametrize(
    "alpha_key", ["to_out_lora.alpha", "to_out_lora.down.weight.alpha", "to_out.0.alpha"]
)
def test_the_places_of_an_old_alpha(side: str, alpha_key: str, tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 5, 4, 2)
    stem = f"unet.{ATTENTION}.{side}"
    tensors: dict[str, Array] = {
        f"{stem}to_out_lora.up.weight": up,
        f"{stem}to_out_lora.down.weight": down,
        f"{stem if 'lora' in alpha_key else f'unet.{ATTENTION}.'}{alpha_key}": np.array([8.0], np.float16),
    }
    adapter = open_adapter(save(tmp_path / "l.safetensors", tensors))
    ((name, module),) = adapter.modules.items()
    assert isinstance(module, LoraModule)
    assert (str(name), module.scale, adapter.leftovers) == (f"unet.{ATTENTION}.to_out.0", 4.0, ())
    assert adapter.dialect == "diffusers-old"


def test_old_names_of_a_text_encoder(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 6, 6, 2)
    stem = "text_encoder.text_model.encoder.layers.4.self_attn"
    tensors = {
        f"{stem}.to_{x}_lora.{side}.weight": t
        for x in ("q", "out")
        for side, t in (("up", up), ("down", down))
    }
    adapter = open_adapter(save(tmp_path / "l.safetensors", tensors))
    assert [str(name) for name in adapter.modules] == [f"{stem}.q_proj", f"{stem}.out_proj"]


def one_layer(path: Path, metadata: dict[str, str]) -> Path:
    up, down = random_factors(np.random.default_rng(0), 5, 4, 2)
    layer = f"unet.{ATTENTION}.to_q"
    return save(path, {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}, metadata)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "null", '{"unet.r": 2, "unet.lora_alpha": NaN}', '{"unet.r": 2}']
)
def test_broken_metadata_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        open_adapter(one_layer(tmp_path / "l.safetensors", {"lora_adapter_metadata": text}))


def test_metadata_that_ask_for_more_than_lora_are_refused(tmp_path: Path) -> None:
    config = {"unet.r": 2, "unet.lora_alpha": 2, "unet.use_dora": True}
    with pytest.raises(FamilyError, match="DoRA"):
        open_adapter(one_layer(tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(config)}))


def test_metadata_of_the_other_component_leave_this_one_alone(tmp_path: Path) -> None:
    config = {"text_encoder.r": 9, "text_encoder.lora_alpha": 1}
    adapter = open_adapter(
        one_layer(tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    )
    assert [module.scale for module in adapter.modules.values() if isinstance(module, LoraModule)] == [1.0]


def test_numbers_of_every_dtype_mean_the_same(tmp_path: Path) -> None:
    scales = []
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32):
        tensors = {
            f"unet.{ATTENTION}.to_q.lora_B.weight": torch.ones(3, 2),
            f"unet.{ATTENTION}.to_q.lora_A.weight": torch.ones(2, 3),
            f"unet.{ATTENTION}.to_q.alpha": torch.tensor(3, dtype=dtype),
        }
        save_file(tensors, tmp_path / "l.safetensors")
        (module,) = open_adapter(tmp_path / "l.safetensors").modules.values()
        assert isinstance(module, LoraModule)
        scales.append(module.scale)
    assert scales == [1.5] * 6
