"""The real adapters: every key accounted for, and each layer's change as diffusers and PEFT have it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapter_files import REAL_LOKRS, REAL_LORAS, factors, product_distance
from lora_oracles import OldTextEncoder, by_diffusers, full_name, layers_of_class, loaded, walk_of_2023
from safetensors import safe_open
from safetensors.numpy import load_file

from paramerge.adapters import Adapter, LoraModule
from paramerge.errors import FamilyError
from paramerge.files.header import read_header
from paramerge.formats import open_adapter

EXACT = 1e-12
"""The same stored numbers in float64: what is left is the rounding of two QR factorisations."""


@pytest.fixture(params=REAL_LORAS)
def real(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    return shared_dir / "fixtures" / "adapters" / request.param


def lora(adapter: Adapter, name: str) -> LoraModule:
    module = {str(key): value for key, value in adapter.modules.items()}[name]
    assert isinstance(module, LoraModule)
    return module


def test_every_key_is_in_a_layer_or_left_over(real: Path) -> None:
    adapter = open_adapter(real, family="lora")
    used = [key for module in adapter.modules.values() for key in module.keys]
    left = [key for leftover in adapter.leftovers for key in leftover.keys]
    assert sorted(used + left) == sorted(read_header(adapter.path).tensors)
    assert all(key.startswith("<s") for key in left), "only disney's token embeddings change no layer"


def test_old_diffusers_file_is_what_diffusers_loads(shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "adapters" / "diffusers_old_catundchat_sd15.safetensors"
    adapter = open_adapter(path)
    expected = by_diffusers(path, "sd15", ("unet",))
    assert (adapter.dialect, adapter.architecture) == ("diffusers-old", "sd15")
    assert {str(name) for name in adapter.modules} == expected.keys()
    assert len(expected) == 128
    worst = max(product_distance(factors(lora(adapter, name)), pair) for name, pair in expected.items())
    assert worst < EXACT


def test_peft_text_encoder_is_what_peft_loads(shared_dir: Path) -> None:
    from peft import PeftModel

    path = shared_dir / "fixtures" / "adapters" / "peft_sd15_text_encoder"
    adapter = open_adapter(path)
    model = PeftModel.from_pretrained(OldTextEncoder("text_encoder"), str(path), low_cpu_mem_usage=True)
    expected = {f"text_encoder.{name}": pair for name, pair in loaded(model.base_model.model)}
    assert adapter.dialect == "peft"
    assert adapter.sources == (path / "adapter_model.safetensors", path / "adapter_config.json")
    assert {str(name) for name in adapter.modules} == expected.keys()
    assert len(expected) == 24
    worst = max(product_distance(factors(lora(adapter, name)), pair) for name, pair in expected.items())
    assert worst < EXACT


@pytest.mark.parametrize("name", [name for name in REAL_LORAS if name.startswith("cloneofsimo")])
def test_numbered_layers_are_those_of_the_walk_over_the_models(name: str, shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "adapters" / name
    adapter = open_adapter(path)
    tensors = load_file(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    expected = {}
    for component in ("unet", "text_encoder"):
        classes = frozenset(json.loads(metadata[component]))
        walk = walk_of_2023(classes) if component == "unet" else layers_of_class(component, classes)
        numbers = [key for key in tensors if key.startswith(f"{component}:") and key.endswith(":up")]
        assert len(walk) == len(numbers)
        for index, (layer, shape) in enumerate(walk):
            B, A = (tensors[f"{component}:{index}:{side}"].astype(np.float64) for side in ("up", "down"))
            assert (B.shape[0], A.shape[1]) == shape
            expected[f"{component}.{layer if component == 'unet' else full_name(layer)}"] = (B, A)
    assert (adapter.dialect, adapter.architecture) == ("cloneofsimo", "sd15")
    assert {str(n) for n in adapter.modules} == expected.keys()
    worst = max(product_distance(factors(lora(adapter, name)), pair) for name, pair in expected.items())
    assert worst < EXACT


@pytest.mark.parametrize("name", REAL_LOKRS)
def test_lokr_is_read_whole(name: str, shared_dir: Path) -> None:
    """Each layer's Kronecker product in NumPy, from the keys alone."""
    path = shared_dir / "fixtures" / "adapters" / name
    adapter = open_adapter(path)
    assert (adapter.family, adapter.dialect, adapter.architecture) == ("lokr", "kohya", "sd15")
    assert (len(adapter.modules), adapter.leftovers) == (350, ())
    tensors = load_file(path)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    for module in list(adapter.modules.values())[::35]:
        stem = f"{prefixes[module.name.component]}_{module.name.path.replace('.', '_')}"
        a, b, c, d = (
            tensors[f"{stem}.lokr_{f}"].astype(np.float64) for f in ("w1_a", "w1_b", "w2_a", "w2_b")
        )
        expected = float(tensors[f"{stem}.alpha"]) / len(d) * np.kron(a @ b, c @ d)
        found = module.delta(np.zeros((1, 1)))
        assert np.linalg.norm(found - expected) <= EXACT * np.linalg.norm(expected)
        assert module.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-9)


def test_norm_is_that_of_the_formed_product(real: Path) -> None:
    adapter = open_adapter(real)
    for module in list(adapter.modules.values())[::16]:
        assert isinstance(module, LoraModule)
        B, A = factors(module)
        assert module.norm() == pytest.approx(float(np.linalg.norm(B @ A)), rel=1e-7)


def test_a_lora_given_as_para_is_refused(real: Path) -> None:
    with pytest.raises(FamilyError, match="this is a LoRA, not a PaRa"):
        open_adapter(real, family="para")
