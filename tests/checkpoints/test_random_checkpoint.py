"""Random checkpoints: reproducible, the same model in every layout, loadable, and written as a stream."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blueprints import sd15
from checkpoint_files import blueprint, configs, meta_model, shapes_of
from random_checkpoint import write_random_checkpoint

from paramerge.checkpoints.layout import open_base
from paramerge.errors import UsageError
from paramerge.files.dtypes import unit_roundoff
from paramerge.files.header import read_header
from paramerge.files.tensors import stored
from paramerge.models.clip_keys import canonical_key


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(
    tmp_path: Path, name: str = "a", seed: int = 0, architecture: str = "sd15", **options: Any
) -> Path:
    path = tmp_path / name
    write_random_checkpoint(blueprint(architecture, 16), path, seed, **options)
    return path


def folder_tensors(folder: Path, component: str) -> dict[str, np.ndarray]:
    tensors = {}
    for path in sorted((folder / component).glob("*.safetensors")):
        header = read_header(path)
        tensors |= {key: stored(header, key).read_exact() for key in header.tensors}
    return tensors


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first, again, other = (written(tmp_path, f"{i}.safetensors", seed) for i, seed in enumerate((3, 3, 4)))
    assert digest(first) == digest(again)
    header, other_header = read_header(first), read_header(other)
    for key in header.tensors:
        same = stored(header, key).read_bytes() == stored(other_header, key).read_bytes()
        buffer = key.endswith("position_ids") or header.tensors[key].shape == (1000,)
        assert same == buffer, key


def test_no_two_tensors_hold_the_same_numbers(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, "a.safetensors"))
    weights = [key for key, info in header.tensors.items() if len(info.shape) > 1 and info.dtype == "F16"]
    assert len({stored(header, key).read_bytes()[:64] for key in weights}) == len(weights) > 300


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_the_folder_is_the_single_file_as_diffusers_converts_it(architecture: str, tmp_path: Path) -> None:
    import torch
    from diffusers.loaders import single_file_utils as theirs
    from safetensors.torch import load_file

    single = load_file(written(tmp_path, "a.safetensors", 5, architecture))
    folder = written(tmp_path, "folder", 5, architecture, layout="diffusers-folder", max_shard_bytes=500_000)
    config = configs(architecture, 16)
    expected: dict[str, Mapping[str, torch.Tensor]] = {
        "unet": theirs.convert_ldm_unet_checkpoint(single, config["unet"]),
        "vae": theirs.convert_ldm_vae_checkpoint(single, config["vae"]),
        "text_encoder": theirs.convert_ldm_clip_checkpoint(single),
    }
    for component, tensors in expected.items():
        ours = folder_tensors(folder, component)
        named = {key: value for key, value in tensors.items() if "position_ids" not in key}
        assert named.keys() == {key for key in ours if "position_ids" not in key}
        for key, value in named.items():
            np.testing.assert_array_equal(ours[key], value.float().numpy(), err_msg=f"{component} {key}")


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [("sdxl", "conditioner.embedders.1.model."), ("sd2", "cond_stage_model.model.")],
)
def test_stacked_and_transposed_tensors_are_those_of_the_folder(
    architecture: str, prefix: str, tmp_path: Path
) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from safetensors.torch import load_file

    component = {"sdxl": "text_encoder_2", "sd2": "text_encoder"}[architecture]
    single = load_file(written(tmp_path, "a.safetensors", 5, architecture))
    folder = written(tmp_path, "folder", 5, architecture, layout="diffusers-folder")
    model = meta_model(architecture, component, 16)
    theirs = convert_open_clip_checkpoint(model, single, prefix=prefix)
    ours = {key: v for key, v in folder_tensors(folder, component).items() if "position_ids" not in key}
    assert ours.keys() <= theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key].float().numpy(), err_msg=key)


@pytest.mark.parametrize("prefix", [True, False])
def test_diffusers_and_transformers_load_the_folder_without_a_complaint(prefix: bool, tmp_path: Path) -> None:
    import diffusers
    import transformers

    folder = written(
        tmp_path,
        "folder",
        architecture="sdxl",
        layout="diffusers-folder",
        variant="fp16",
        max_shard_bytes=3_000_000,
        text_model_prefix=prefix,
    )
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    models: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    for component, kind in models.items():
        model, info = kind.from_pretrained(folder / component, variant="fp16", output_loading_info=True)
        assert not info["missing_keys"], component
        assert not info["unexpected_keys"], component
        assert not info["mismatched_keys"], component
        ours = folder_tensors(folder, component)
        loaded = {key: value for key, value in model.state_dict().items() if "position_ids" not in key}
        if component.startswith("text_encoder"):
            ours = {canonical_key(key) or key: value for key, value in ours.items()}
            loaded = {canonical_key(key) or key: value for key, value in loaded.items()}
        assert loaded.keys() == {key for key in ours if "position_ids" not in key}
        for key, value in loaded.items():
            np.testing.assert_array_equal(value.float().numpy(), ours[key], err_msg=key)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3"])
def test_weights_have_the_dtype_and_the_moments_that_are_promised(dtype: str, tmp_path: Path) -> None:
    header = read_header(written(tmp_path, "a.safetensors", dtype=dtype))
    key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    tensor = stored(header, key)
    assert tensor.dtype == dtype
    values = tensor.read_exact().astype(np.float64)
    count, deviation = values.size, 1 / np.sqrt(np.prod(tensor.shape[1:]))
    assert abs(values.mean()) < 5 * deviation / np.sqrt(count)
    spread = 5 / np.sqrt(2 * count) + unit_roundoff(dtype)
    assert values.std() == pytest.approx(deviation, rel=spread)
    norm = stored(header, "model.diffusion_model.out.0.weight").read_exact()
    assert abs(norm.mean() - 1) < 5 * 0.02 / np.sqrt(norm.size) + unit_roundoff(dtype)


def test_buffers_have_their_true_values(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, "a.safetensors"))
    ids = stored(header, "cond_stage_model.transformer.text_model.embeddings.position_ids")
    assert ids.dtype == "I64"
    np.testing.assert_array_equal(ids.read(), np.arange(77)[None])
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(configs("sd15")["scheduler"])
    ours = stored(header, "alphas_cumprod").read()
    np.testing.assert_allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=1000 * 2.0**-24)


@pytest.mark.parametrize("layout", ["single-file", "unet-file", "diffusers-folder"])
def test_every_layout_is_opened_as_what_it_is(layout: str, tmp_path: Path) -> None:
    name = "a" if layout == "diffusers-folder" else "a.safetensors"
    base = open_base(written(tmp_path, name, layout=layout))
    assert (base.layout, base.architecture) == (layout, "sd15")


def test_a_hole_has_the_header_of_the_real_file(tmp_path: Path) -> None:
    real, hole = written(tmp_path, "a.safetensors"), written(tmp_path, "b.safetensors", zeros=True)
    assert real.stat().st_size == hole.stat().st_size
    assert read_header(real).tensors == read_header(hole).tensors
    assert read_header(hole).metadata == {"format": "pt"}


def test_shards_hold_at_most_what_was_asked_unless_one_tensor_is_larger(tmp_path: Path) -> None:
    limit = 200_000
    folder = written(tmp_path, "folder", layout="diffusers-folder", max_shard_bytes=limit)
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 5
    for path in shards:
        tensors = read_header(path).tensors
        assert len(tensors) == 1 or sum(info.nbytes for info in tensors.values()) <= limit
    index = json.loads((folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    expected = shapes_of(blueprint("sd15", 16).component("unet"))
    assert index["weight_map"].keys() == expected.keys()
    total = sum(info.nbytes for path in shards for info in read_header(path).tensors.values())
    assert index["metadata"]["total_size"] == total


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    large = sd15(16, vocabulary=400_000)
    write_random_checkpoint(large, tmp_path / "warm.safetensors", zeros=True)
    tracemalloc.start()
    try:
        write_random_checkpoint(large, tmp_path / "a.safetensors", dtype="F32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    biggest = max(info.nbytes for info in read_header(tmp_path / "a.safetensors").tensors.values())
    assert biggest > 70e6
    assert peak < biggest / 4


@pytest.mark.parametrize(
    ("options", "what"),
    [({"dtype": "I64"}, "dtype"), ({"dtype": "F12"}, "dtype"), ({"layout": "folder"}, "unknown layout")],
)
def test_what_cannot_be_written_is_refused(options: dict[str, str], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        written(tmp_path, "a.safetensors", **options)
    assert not list(tmp_path.iterdir())
