"""Folders that PEFT saves, of every tuner that can be baked: the weights that PEFT itself merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from lora_oracles import small_unet
from peft.tuners.boft import layer as boft_layer

from paramerge.errors import AdapterError, FamilyError
from paramerge.formats import open_adapter

TARGETS = ["to_q", "to_v", "conv1"]
LINEAR = ["to_q", "to_v", "ff.net.2"]
_OFT = {"r": 0, "oft_block_size": 4, "target_modules": TARGETS}

TUNERS: list[tuple[str, dict[str, Any], str]] = [
    ("LoHaConfig", {"r": 4, "alpha": 2, "target_modules": TARGETS}, "loha"),
    ("LoHaConfig", {"r": 4, "alpha": 2, "target_modules": TARGETS, "use_effective_conv2d": True}, "loha"),
    ("LoHaConfig", {"r": 4, "alpha": 2, "target_modules": TARGETS, "alpha_pattern": {"to_q": 7}}, "loha"),
    ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": TARGETS}, "lokr"),
    ("LoKrConfig", {"r": 64, "alpha": 3, "target_modules": TARGETS}, "lokr"),
    ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": TARGETS, "use_effective_conv2d": True}, "lokr"),
    ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": TARGETS, "decompose_both": True}, "lokr"),
    ("OFTConfig", _OFT, "oft"),
    (
        "OFTConfig",
        {**_OFT, "num_cayley_neumann_terms": 3},
        "oft",
    ),
    (
        "OFTConfig",
        {**_OFT, "use_cayley_neumann": False},
        "oft",
    ),
    ("OFTConfig", {**_OFT, "block_share": True}, "oft"),
    ("BOFTConfig", {"boft_block_size": 4, "target_modules": TARGETS}, "boft"),
    ("BOFTConfig", {"boft_block_size": 4, "boft_n_butterfly_factor": 2, "target_modules": TARGETS}, "boft"),
    ("BOFTConfig", {"boft_block_size": 2, "boft_n_butterfly_factor": 3, "target_modules": LINEAR}, "boft"),
    ("IA3Config", {"target_modules": [*TARGETS, "ff.net.2"], "feedforward_modules": ["ff.net.2"]}, "ia3"),
    ("IA3Config", {"target_modules": ["conv1", "conv2"], "feedforward_modules": ["conv2"]}, "ia3"),
    ("LoraConfig", {"r": 3, "lora_alpha": 6, "use_dora": True, "target_modules": TARGETS}, "dora"),
    (
        "LoraConfig",
        {"r": 3, "lora_alpha": 6, "use_dora": True, "use_rslora": True, "target_modules": LINEAR},
        "dora",
    ),
]


@pytest.fixture
def butterflies(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's butterflies of several stages without a GPU: its CUDA kernel is a block diagonal matrix."""

    class BlockDiagonal:
        @staticmethod
        def apply(blocks: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.block_diag(*stage) for stage in blocks])

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)


def trained(config: str, options: dict[str, Any], folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """PEFT's model with random weights, saved; and the weights of the base."""
    base = small_unet()
    original = {key: value.clone() for key, value in base.state_dict().items()}
    model = peft.get_peft_model(base, getattr(peft, config)(**options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if any(word in name for word in ("boft_s", "ia3_l", "magnitude")) else 0.0
            size = 0.5 if "hada" in name else 0.1
            parameter.data = (centre + size * noise).to(parameter.dtype)
    model.save_pretrained(folder)
    return model, original


@pytest.mark.usefixtures("butterflies")
@pytest.mark.parametrize(("config", "options", "family"), TUNERS)
def test_weights_are_those_that_peft_merges(
    config: str, options: dict[str, Any], family: str, tmp_path: Path
) -> None:
    model, original = trained(config, options, tmp_path)
    adapter = open_adapter(tmp_path)
    assert (adapter.family, adapter.dialect) == (family, "peft")
    assert not adapter.leftovers
    merged = model.merge_and_unload().state_dict()
    changed = {key for key, value in merged.items() if not torch.equal(value, original[key])}
    found = {f"{name.path}.weight": module for name, module in adapter.modules.items() if not is_bias(name)}
    found |= {name.path: module for name, module in adapter.modules.items() if is_bias(name)}
    there = {key: module for key, module in found.items() if key in original}
    assert all(module.optional for key, module in found.items() if key not in original)
    assert there.keys() == changed
    for key, module in there.items():
        before = original[key].double().numpy()
        assert module.fits(before.shape)
        W = module.transform(before.reshape(len(before), -1)).reshape(before.shape)
        gap = np.linalg.norm(W - merged[key].double().numpy())
        assert gap < 1e-5 * np.linalg.norm(W), key
        assert np.linalg.norm(W - before) > 1e-3 * np.linalg.norm(before)


def is_bias(name: Any) -> bool:
    return str(name.path).endswith(".bias")


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("LoHaConfig", {"target_modules": ["to_q"]}),
        ("LoKrConfig", {"target_modules": ["to_q"]}),
        ("OFTConfig", {"target_modules": ["to_q"]}),
        ("BOFTConfig", {"boft_block_size": 4, "target_modules": ["to_q"]}),
        ("IA3Config", {"target_modules": ["to_q"], "feedforward_modules": []}),
        ("LoraConfig", {"target_modules": ["to_q"], "use_dora": True}),
    ],
)
@pytest.mark.usefixtures("butterflies")
def test_without_its_configuration_it_is_refused(
    config: str, options: dict[str, Any], tmp_path: Path
) -> None:
    trained(config, options, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="its alpha is in"):
        open_adapter(tmp_path / "adapter_model.safetensors")


def test_a_dora_without_magnitudes_is_refused(tmp_path: Path) -> None:
    trained("LoraConfig", {"target_modules": ["to_q"], "r": 2}, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(AdapterError, match="says DoRA, and layers have no magnitude"):
        open_adapter(tmp_path)


def test_a_configuration_of_another_tuner_is_refused(tmp_path: Path) -> None:
    trained("LoHaConfig", {"target_modules": ["to_q"], "r": 2}, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LOKR"}))
    with pytest.raises(AdapterError, match="they are of different families"):
        open_adapter(tmp_path)


def test_trained_biases_are_refused(tmp_path: Path) -> None:
    trained("OFTConfig", {"target_modules": ["to_q"]}, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "bias": "all"}))
    with pytest.raises(FamilyError, match="trained biases"):
        open_adapter(tmp_path)
