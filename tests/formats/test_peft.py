"""PEFT's folders and files: patterns of ranks and alphas, rslora, prefixes; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import deltas, relative_distance, save
from lora_oracles import SmallTextEncoder, merged_deltas, randomise, small_unet
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file

from paramerge.adapters import LoraModule
from paramerge.errors import AdapterError, FamilyError, FileFormatError, ParamergeError
from paramerge.formats import open_adapter

TARGETS = ["to_q", "to_v", "to_out.0", "conv1", "ff.net.0.proj", "proj_in", "time_emb_proj"]
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 1},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 2,
        "rank_pattern": {"to_q": 2, "mid_block.attentions.0.proj_in": 3, r"up_blocks\..*\.to_v": 5},
        "alpha_pattern": {"attn1.to_q": 7, "conv1": 0.5},
    },
    "patterns and rslora": {
        "r": 3,
        "lora_alpha": 2,
        "use_rslora": True,
        "rank_pattern": {"^down_blocks.*to_v": 2},
        "alpha_pattern": {"to_v": 5},
    },
}
ALLOWED = 16 * np.finfo(np.float32).eps
"""PEFT forms the product in float32."""


def unet_lora(folder: Path, **options: Any) -> Any:
    """A UNet with a LoRA as PEFT makes it, saved in ``folder``."""
    model = get_peft_model(small_unet(), LoraConfig(**{"target_modules": TARGETS, **options}))
    randomise(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", CONFIGS)
def test_deltas_are_those_that_peft_merges(case: str, tmp_path: Path) -> None:
    expected = merged_deltas(unet_lora(tmp_path, **CONFIGS[case]).base_model.model)
    adapter = open_adapter(tmp_path, family="lora")
    found = deltas(adapter)
    assert (adapter.dialect, adapter.leftovers) == ("peft", ())
    assert found.keys() == {f"unet.{name}" for name in expected}
    assert len(expected) > 20
    for name, delta in expected.items():
        assert relative_distance(found[f"unet.{name}"], delta) < ALLOWED


def test_a_file_finds_the_configuration_beside_it(tmp_path: Path) -> None:
    expected = merged_deltas(unet_lora(tmp_path, r=2, lora_alpha=5).base_model.model)
    found = deltas(open_adapter(tmp_path / "adapter_model.safetensors"))
    name = "mid_block.attentions.0.proj_in"
    assert relative_distance(found[f"unet.{name}"], expected[name]) < ALLOWED


def test_a_text_encoder_and_its_patterns(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj", "fc2"],
        alpha_pattern={"text_model.encoder.layers.0.self_attn.q_proj": 9, "layers.1.mlp.fc2": 1},
    )
    model = get_peft_model(SmallTextEncoder(), config)
    randomise(model)
    model.save_pretrained(tmp_path)
    expected = merged_deltas(model.base_model.model)
    found = deltas(open_adapter(tmp_path))
    assert found.keys() == {f"text_encoder.{name}" for name in expected}
    for name, delta in expected.items():
        assert relative_distance(found[f"text_encoder.{name}"], delta) < ALLOWED


def test_patterns_of_a_text_encoder_that_was_wrapped_without_its_prefix(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], alpha_pattern={"^encoder.layers.0.self_attn.q_proj": 9}
    )
    model = get_peft_model(SmallTextEncoder().text_model, config)
    randomise(model)
    model.save_pretrained(tmp_path)
    expected = merged_deltas(model.base_model.model)
    found = deltas(open_adapter(tmp_path))
    assert found.keys() == {f"text_encoder.text_model.{name}" for name in expected}
    for name, delta in expected.items():
        assert relative_distance(found[f"text_encoder.text_model.{name}"], delta) < ALLOWED


@pytest.mark.parametrize(("width", "component"), [(768, "text_encoder"), (1280, "text_encoder_2")])
def test_the_width_tells_which_text_encoder(width: int, component: str, tmp_path: Path) -> None:
    stem = "base_model.model.text_model.encoder.layers.0"
    tensors = {}
    for layer, (out, wide) in {"self_attn.k_proj": (width, width), "mlp.fc2": (width, 4 * width)}.items():
        tensors[f"{stem}.{layer}.lora_A.weight"] = np.ones((1, wide), np.float32)
        tensors[f"{stem}.{layer}.lora_B.weight"] = np.ones((out, 1), np.float32)
    save(tmp_path / "adapter_model.safetensors", tensors)
    write_config(tmp_path, {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    assert {name.component for name in open_adapter(tmp_path).modules} == {component}


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))


def changed_config(folder: Path, **options: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    unet_lora(folder, r=2, lora_alpha=2)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_fan_in_fan_out_changes_nothing_as_in_peft(tmp_path: Path) -> None:
    class Transposed(torch.nn.Module):
        """PEFT reads fan_in_fan_out for layers that store their weight as (in, out)."""

        def __init__(self) -> None:
            super().__init__()
            from transformers.pytorch_utils import Conv1D

            self.conv_in = Conv1D(5, 3)

    model = get_peft_model(
        Transposed(), LoraConfig(r=2, lora_alpha=3, target_modules=["conv_in"], fan_in_fan_out=True)
    )
    randomise(model)
    model.save_pretrained(tmp_path)
    (found,) = deltas(open_adapter(tmp_path)).values()
    layer = model.base_model.model.conv_in
    assert relative_distance(found, layer.get_delta_weight("default").detach().numpy().T) < ALLOWED


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3},
        {"rank_pattern": {"to_q": 7}},
        {"rank_pattern": {"to_q": "2"}},
        {"rank_pattern": ["to_q"]},
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": {"(?i)to_q": 2}},
        {"alpha_pattern": {"to_q": float("nan")}},
        {"lora_alpha": 0},
        {"lora_alpha": None},
        {"lora_alpha": float("inf")},
        {"lora_alpha": 10**400},
        {"lora_alpha": True},
        {"lora_alpha": "8"},
        {"r": 0},
        {"r": -2},
        {"r": 2.0},
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(options: dict[str, Any], folder: Path) -> None:
    changed_config(folder, **options)
    with pytest.raises((AdapterError, FileFormatError)):  # NaN, Infinity and 10**400 are no JSON
        open_adapter(folder)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"peft_type": "FOURIERFT"}, "FOURIERFT"),
        ({"peft_type": "DEFT"}, "DEFT"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"use_qalora": True}, "QALoRA"),
        ({"layer_replication": [[0, 4]]}, "layer replication"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(options: dict[str, Any], named: str, folder: Path) -> None:
    changed_config(folder, **options)
    with pytest.raises(FamilyError, match=named):
        open_adapter(folder)


def test_weights_without_their_configuration_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"alpha is in adapter_config\.json"):
        open_adapter(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"r": NaN', "[" * 100_000, "\xff"])
def test_a_broken_configuration_is_refused(content: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(FileFormatError):
        open_adapter(folder)


def test_what_was_saved_with_the_adapter_is_left_over_with_its_reason(folder: Path) -> None:
    tensors = dict(load_file(folder / "adapter_model.safetensors"))
    one = np.ones(1, np.float32)
    tensors["base_model.model.conv_norm_out.weight"] = one
    tensors["base_model.model.conv_in.bias"] = one
    tensors["base_model.model.conv_in.lora_B.bias"] = one
    save(folder / "adapter_model.safetensors", tensors)
    reasons = {key: left.reason for left in open_adapter(folder).leftovers for key in left.keys}
    assert reasons["base_model.model.conv_norm_out.weight"].startswith("a whole weight")
    assert reasons["base_model.model.conv_in.bias"] == "a trained bias"
    assert "lora_bias" in reasons["base_model.model.conv_in.lora_B.bias"]
    assert len(reasons) == 3


def test_pickled_weights_are_refused_with_the_reason(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileFormatError, match="loading a pickle can run any code"):
        open_adapter(folder)


def test_a_folder_of_adapters_names_them(folder: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    inner = outer / "unet"
    inner.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / file).rename(inner / file)
    with pytest.raises(FileFormatError, match="holds no adapter") as caught:
        open_adapter(outer)
    assert str(inner) in str(caught.value.hint)


def test_an_empty_or_missing_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(ParamergeError):
            open_adapter(path)


def test_a_stranger_beside_a_configuration_is_read_on_its_own(folder: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{stem}.lora_up.weight": np.ones((4, 1), np.float32),
        f"{stem}.lora_down.weight": np.ones((1, 4), np.float32),
    }
    adapter = open_adapter(save(folder / "other.safetensors", tensors))
    (module,) = adapter.modules.values()
    assert isinstance(module, LoraModule)
    assert (adapter.dialect, adapter.sources, module.scale) == ("kohya", (folder / "other.safetensors",), 1.0)
