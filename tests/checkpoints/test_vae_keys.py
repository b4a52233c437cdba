"""The VAE's names in single files, against diffusers' own converter."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from checkpoint_files import blueprint, configs, meta_model, parameter_shapes

from paramerge.models.vae_keys import LDM_VAE_PREFIX, vae_to_ldm


def converted_by_diffusers(keys: list[str], architecture: str) -> dict[str, str]:
    """Single-file key by diffusers key, found out by giving each tensor a number of its own."""
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    tagged = {key: torch.full((1, 1, 1, 1), float(i)) for i, key in enumerate(keys)}
    converted = convert_ldm_vae_checkpoint(tagged, configs(architecture)["vae"])
    return {key: keys[int(tensor.item())] for key, tensor in converted.items()}


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_agrees_with_the_converter_of_diffusers_on_tagged_values(architecture: str) -> None:
    model = parameter_shapes(meta_model(architecture, "vae"))
    levels = len(blueprint(architecture).vae.channels)
    ours = {key: LDM_VAE_PREFIX + vae_to_ldm(key, levels) for key in model}
    assert len(set(ours.values())) == 248
    assert converted_by_diffusers(list(ours.values()), architecture) == ours


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_names_exactly_the_keys_of_real_files(architecture: str, shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "inventories" / f"{architecture}_single_file.json.gz"
    inventory = json.loads(gzip.decompress(path.read_bytes()))
    model = parameter_shapes(meta_model(architecture, "vae"))
    ours = {LDM_VAE_PREFIX + vae_to_ldm(key, 4) for key in model}
    assert ours == {key for key in inventory if key.startswith(LDM_VAE_PREFIX)}
