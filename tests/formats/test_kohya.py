"""kohya's dialect in both spellings: whole SDXL files, LoCon, Tucker cores, and an alpha for each layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import (
    BF16,
    Array,
    deltas,
    factors,
    inventory,
    kohya_layer,
    product_distance,
    random_factors,
    relative_distance,
    save,
)
from blueprints import sdxl
from lora_oracles import by_diffusers
from lycoris.modules.locon import LoConModule
from random_checkpoint import write_random_checkpoint

from paramerge.adapters import LoraModule
from paramerge.checkpoints.layout import open_base
from paramerge.formats import open_adapter
from paramerge.models.unet_keys import UNetKeyMap
from paramerge.models.unet_structure import standard_structure

RANK = 2
SGM_LISTS = ("sdxl_kohya_lora_unet_keys", "sdxl_kohya_locon_unet_keys", "sdxl_kohya_lora_clip_keys")
TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def at_rank(shapes: dict[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, ...]]:
    """The same layers at another rank, whatever theirs is."""

    def resized(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if key.endswith("lora_up.weight"):
            return (shape[0], rank, *shape[2:])
        return (rank, *shape[1:]) if key.endswith("lora_down.weight") else shape

    return {key: resized(key, shape) for key, shape in shapes.items()}


def filled(shapes: dict[str, tuple[int, ...]], alpha: float, seed: int = 0) -> dict[str, Array]:
    """Random tensors in bfloat16; every alpha the same."""
    rng = np.random.default_rng(seed)
    return {
        key: np.full(shape, alpha, BF16)
        if key.endswith(".alpha")
        else rng.standard_normal(shape).astype(BF16)
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def sdxl_layers(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All layers of SDXL that an adapter can reach, from a checkpoint of its true keys."""
    path = tmp_path_factory.mktemp("sdxl") / "small.safetensors"
    write_random_checkpoint(sdxl(16, vocabulary=64), path, seed=0)
    return {str(name) for file in open_base(path).files for name in file.targets}


def test_every_key_of_a_real_sdxl_lora_lands_as_in_diffusers(
    shared_dir: Path, tmp_path: Path, sdxl_layers: set[str]
) -> None:
    shapes = at_rank(inventory(shared_dir, "sdxl_kohya_lora_alienstyle"), RANK)
    path = save(tmp_path / "alien.safetensors", filled(shapes, alpha=0.5))
    adapter = open_adapter(path, family="lora")
    expected = by_diffusers(path, "sdxl", ("unet", "text_encoder", "text_encoder_2"))
    assert (adapter.dialect, adapter.architecture, adapter.leftovers) == ("kohya-sgm", "sdxl", ())
    assert len(shapes) == 2958
    assert sum(len(module.keys) for module in adapter.modules.values()) == 2958
    assert {str(name) for name in adapter.modules} == expected.keys() <= sdxl_layers
    for name, module in adapter.modules.items():
        assert isinstance(module, LoraModule)
        assert module.scale == 0.25
        assert product_distance(factors(module), expected[str(name)]) < 1e-12


@pytest.mark.parametrize("name", SGM_LISTS)
def test_every_key_of_the_sgm_lists_lands(
    name: str, shared_dir: Path, tmp_path: Path, sdxl_layers: set[str]
) -> None:
    shapes = at_rank(inventory(shared_dir, name), 1)
    if name == "sdxl_kohya_locon_unet_keys":  # the list begins in the middle of its first layer
        shapes["lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight"] = (1, 320, 3, 3)
    adapter = open_adapter(save(tmp_path / "sgm.safetensors", filled(shapes, alpha=1.0)))
    assert adapter.leftovers == ()
    assert sum(len(module.keys) for module in adapter.modules.values()) == len(shapes)
    assert {str(name) for name in adapter.modules} <= sdxl_layers
    assert adapter.architecture == "sdxl"


@pytest.mark.parametrize(
    ("architecture", "attention"), [("sd15", (True, True, True, False)), ("sdxl", (False, True, True))]
)
def test_both_spellings_of_every_unet_layer_are_the_same_layer(
    architecture: str, attention: tuple[bool, ...], tmp_path: Path
) -> None:
    names = UNetKeyMap(standard_structure(attention))
    blocks = [pair for pair in names.structure.blocks() if "norm" not in pair[1]]
    inner = {
        ".attentions.": (
            "proj_in",
            "transformer_blocks.0.attn2.to_out.0",
            "transformer_blocks.0.ff.net.0.proj",
        ),
        ".resnets.": ("conv1", "conv2", "time_emb_proj", "conv_shortcut"),
    }
    spelled: dict[str, list[str]] = {"ldm": [], "diffusers": []}
    for ldm, diffusers in blocks:
        kind = next((kind for kind in inner if kind in diffusers), None)
        for path in (f"{diffusers}.{layer}" for layer in inner[kind]) if kind else (diffusers,):
            spelled["diffusers"].append(path)
            spelled["ldm"].append(names.to_ldm(path) or "")
            assert names.to_diffusers(names.to_ldm(path) or "") == path, ldm
    up, down = np.ones((2, 1), np.float32), np.ones((1, 2), np.float32)
    for spelling, paths in spelled.items():
        tensors: dict[str, Array] = {}
        for path in paths:
            tensors |= kohya_layer(f"lora_unet_{path.replace('.', '_')}", up, down)
        adapter = open_adapter(save(tmp_path / f"{spelling}.safetensors", tensors))
        assert [f"unet.{path}" for path in spelled["diffusers"]] == [str(name) for name in adapter.modules]
        assert adapter.dialect == ("kohya-sgm" if spelling == "ldm" else "kohya")


def test_each_layer_has_its_own_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors, expected = {}, {}
    for index, (rank, alpha) in enumerate([(4, 1.0), (4, None), (8, 16.0), (3, -2.5)]):
        up, down = random_factors(rng, 6, 5, rank)
        tensors |= kohya_layer(f"lora_unet_down_blocks_{index}_resnets_0_time_emb_proj", up, down, alpha)
        scale = 1.0 if alpha is None else alpha / rank
        expected[f"unet.down_blocks.{index}.resnets.0.time_emb_proj"] = scale * (
            up.astype(np.float64) @ down.astype(np.float64)
        )
    found = deltas(open_adapter(save(tmp_path / "l.safetensors", tensors)))
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert relative_distance(found[name], delta) < 1e-14


CASES = {
    "linear": ((7, 2), (2, 5), None),
    "conv1x1": ((7, 2, 1, 1), (2, 5, 1, 1), None),
    "conv3x3": ((7, 2, 1, 1), (2, 5, 3, 3), None),
    "tucker": ((7, 2, 1, 1), (2, 5, 1, 1), (2, 2, 3, 3)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [0.75, 2.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_locon_and_tucker_as_in_lycoris(case: str, alpha: float, dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = CASES[case]
    up, down, mid = (None if s is None else rng.standard_normal(s).astype(dtype) for s in shapes)
    assert up is not None and down is not None
    kernel = (shapes[2] or shapes[1])[2:]
    layer = torch.nn.Conv2d(5, 7, kernel, padding=kernel[0] // 2) if kernel else torch.nn.Linear(5, 7)
    oracle = LoConModule.make_module_from_state_dict(
        "x",
        layer,
        torch.from_numpy(up).float(),
        torch.from_numpy(down).float(),
        None if mid is None else torch.from_numpy(mid).float(),
        torch.tensor(alpha),
        None,
    )
    expected = oracle.get_diff_weight(1.0)[0].detach().numpy().reshape(7, -1)
    stem = "lora_unet_mid_block_resnets_0_conv1" if kernel else f"lora_unet_{TO_Q}"
    adapter = open_adapter(save(tmp_path / "l.safetensors", kohya_layer(stem, up, down, alpha, mid)))
    (module,) = adapter.modules.values()
    assert isinstance(module, LoraModule)
    assert (module.kernel, module.rank, module.out_features) == (kernel, 2, 7)
    assert module.in_features == 5 * int(np.prod(kernel))
    (delta,) = deltas(adapter).values()
    assert relative_distance(delta, expected) < 8 * np.finfo(np.float32).eps
    assert module.norm() == pytest.approx(float(np.linalg.norm(delta)), rel=1e-12)


@pytest.mark.parametrize(
    ("stem", "layer"),
    [
        ("lora_te_text_model_encoder_layers_3_mlp_fc1", "text_encoder.text_model.encoder.layers.3.mlp.fc1"),
        (
            "lora_te1_text_model_encoder_layers_11_self_attn_out_proj",
            "text_encoder.text_model.encoder.layers.11.self_attn.out_proj",
        ),
        ("lora_te2_text_projection", "text_encoder_2.text_projection"),
        ("lora_unet_label_emb_0_2", "unet.add_embedding.linear_2"),
        ("lora_unet_time_embed_0", "unet.time_embedding.linear_1"),
        ("lora_unet_out_2", "unet.conv_out"),
        ("lora_unet_input_blocks_0_0", "unet.conv_in"),
        ("lora_unet_middle_block_2_out_layers_3", "unet.mid_block.resnets.1.conv2"),
        ("lora_unet_output_blocks_5_2_conv", "unet.up_blocks.1.upsamplers.0.conv"),
        (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        ("lycoris_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"),
    ],
)
def test_spellings_of_single_layers(stem: str, layer: str, tmp_path: Path) -> None:
    up, down = np.ones((2, 1), np.float32), np.ones((1, 2), np.float32)
    adapter = open_adapter(save(tmp_path / "l.safetensors", kohya_layer(stem, up, down)))
    assert [str(name) for name in adapter.modules] == [layer]
