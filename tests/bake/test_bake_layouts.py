"""One model in every layout gives one result: the layouts are told apart and mapped by diffusers' converters.

The folder's own result is checked in :mod:`test_bake_reference`; here the other layouts are compared with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from baking import (
    check_close,
    load,
    lora_file,
    para_file,
    plan_of,
    random_bases,
    random_factors,
    shapes_of,
)

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake

Tensors = dict[str, np.ndarray]


def steps_for(base: Path, folder: Path, architecture: str) -> tuple[Step, Step]:
    """A PaRa and a LoRA over every layer of every component."""
    shapes = shapes_of(base)
    layers = list(shapes)
    para = para_file(folder / "a.safetensors", random_bases(shapes, layers, 2), architecture)
    factors = random_factors(shapes, layers, 2)
    lora = lora_file(folder / "b.safetensors", factors, 1.0, two_encoders=architecture == "sdxl")
    return Step("para", para), Step("lora", lora, 0.7)


def bake_to(base: Path, output: Path, steps: tuple[Step, ...], **options: object) -> Path:
    bake(plan_of(base, *steps, **options), output)
    return output


@pytest.fixture(params=["sd15", "sdxl"])
def baked_folder(
    request: pytest.FixtureRequest, models, tmp_path: Path
) -> tuple[str, tuple[Step, Step], Path]:
    base = models(request.param, layout="diffusers-folder")
    steps = steps_for(base, tmp_path, request.param)
    return request.param, steps, bake_to(base, tmp_path / "folder", steps)


def unet_by_diffusers(tensors: Tensors, config: dict) -> Tensors:
    """diffusers' converter on the LDM keys of a UNet."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ldm = {key: torch.from_numpy(array.copy()) for key, array in tensors.items()}
    return {key: value.numpy() for key, value in convert_ldm_unet_checkpoint(ldm, config).items()}


def openclip_by_hand(tensors: Tensors, prefix: str) -> Tensors:
    """OpenCLIP's layout undone: q, k and v are stacked, the projection is transposed."""
    names = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    result: Tensors = {}
    for key, array in tensors.items():
        name = key.removeprefix(prefix)
        if name == key:
            continue
        if name == "text_projection":
            result["text_projection.weight"] = array.T
        if not name.startswith("transformer.resblocks."):
            continue
        number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
        layer = f"text_model.encoder.layers.{number}"
        if rest == "attn.in_proj_weight":
            for part, rows in zip("qkv", np.split(array, 3), strict=True):
                result[f"{layer}.self_attn.{part}_proj.weight"] = rows
        for theirs, ours in names.items():
            if rest == f"{theirs}.weight":
                result[f"{layer}.{ours}.weight"] = array
    return result


def close_enough(found: Tensors, expected: Tensors) -> None:
    """As the promise has it: rows of a stacked tensor may be summed in another order."""
    assert found
    shares = [check_close(found[key], expected[key].astype(np.float64), key) for key in found]
    assert np.mean(shares) < 0.0005


def test_single_file_equals_folder(baked_folder, models, tmp_path: Path) -> None:
    architecture, steps, folder = baked_folder
    output = bake_to(models(architecture), tmp_path / "single.safetensors", steps)
    single = load(output).tensors
    config = json.loads((folder / "unet" / "config.json").read_text())
    unet = unet_by_diffusers(single, config)
    expected = load(folder / "unet").tensors
    assert unet.keys() == expected.keys()
    for key, array in expected.items():
        assert np.array_equal(unet[key], array), key

    if architecture == "sd15":
        prefix = "cond_stage_model.transformer."
    else:
        prefix = "conditioner.embedders.0.transformer."
        second = openclip_by_hand(single, "conditioner.embedders.1.model.")
        assert len(second) == 32 * 6 + 1
        close_enough(second, load(folder / "text_encoder_2").tensors)
    encoder = load(folder / "text_encoder").tensors
    for key, array in encoder.items():
        assert np.array_equal(single[prefix + key], array), key


def test_bare_unet_equals_folder(baked_folder, models, tmp_path: Path) -> None:
    """With LDM keys and prefix, and with diffusers' keys as a folder's UNet file has them."""
    architecture, steps, folder = baked_folder
    expected = load(folder / "unet").raw
    base = models(architecture, layout="unet-file")
    output = bake_to(base, tmp_path / "unet.safetensors", steps, only=("unet",))
    config = json.loads((folder / "unet" / "config.json").read_text())
    found = unet_by_diffusers(load(output).tensors, config)
    assert {key: array.tobytes() for key, array in found.items()} == expected

    file = models(architecture, layout="diffusers-folder") / "unet" / "diffusion_pytorch_model.safetensors"
    output = bake_to(file, tmp_path / "unet2.safetensors", steps, only=("unet",))
    assert load(output).raw == expected


def test_shards_and_index(baked_folder, models, tmp_path: Path) -> None:
    """The shards stay as they are cut, and the index still says where each tensor is."""
    architecture, steps, folder = baked_folder
    base = models(architecture, layout="diffusers-folder", max_shard_bytes=4_000_000)
    output = bake_to(base, tmp_path / "sharded", steps)
    index = json.loads((output / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for key, shard in index["weight_map"].items():
        assert key in load(output / "unet" / shard).tensors
    for component in ("unet", "text_encoder", "vae"):
        assert load(output / component).raw == load(folder / component).raw


def test_text_encoder_without_its_prefix(baked_folder, models, tmp_path: Path) -> None:
    """transformers 5 saves a CLIPTextModel without ``text_model.``; the output keeps the base's spelling."""
    architecture, steps, folder = baked_folder
    base = models(architecture, layout="diffusers-folder", text_model_prefix=False)
    output = bake_to(base, tmp_path / "bare", steps)
    found = load(output / "text_encoder").raw
    assert not any(key.startswith("text_model.") for key in found)
    expected = load(folder / "text_encoder").raw
    assert {f"text_model.{key}": raw for key, raw in found.items()} == {
        key: raw for key, raw in expected.items() if "position_ids" not in key
    }


def test_companions_come_along(baked_folder, models, tmp_path: Path) -> None:
    architecture, _, folder = baked_folder
    base = models(architecture, layout="diffusers-folder")
    names = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    baked = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert baked == names | {"paramerge_recipe.json"}
    weights = {f"{part}/{file}" for part in ("unet", "text_encoder", "text_encoder_2") for file in names}
    for name in names - weights:
        if not name.endswith(".safetensors"):
            assert (folder / name).read_bytes() == (base / name).read_bytes(), name
    # a component that no adapter touches keeps its file, header and all
    vae = Path("vae") / "diffusion_pytorch_model.safetensors"
    assert (folder / vae).read_bytes() == (base / vae).read_bytes()


def test_variant(models, tmp_path: Path) -> None:
    base = models("sd15", layout="diffusers-folder", variant="fp16")
    layers = [layer for layer in shapes_of(base) if layer.startswith("unet.") and ".attn1.to_q" in layer]
    para = para_file(tmp_path / "a.safetensors", random_bases(shapes_of(base), layers, 2))
    output = bake_to(base, tmp_path / "out", (Step("para", para),))
    assert (output / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()


@pytest.mark.parametrize(("choice", "stored"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
@pytest.mark.parametrize("layout", ["single-file", "diffusers-folder"])
def test_dtype(models, tmp_path: Path, layout: str, choice: str, stored: str) -> None:
    """All floats of the known components are converted; integers and unknown keys keep dtype and bytes."""
    base = models("sd15", layout=layout, max_shard_bytes=4_000_000) if layout != "single-file" else models()
    layers = [layer for layer in shapes_of(base) if layer.endswith("attn1.to_q")]
    para = para_file(tmp_path / "a.safetensors", random_bases(shapes_of(base), layers, 2))
    out = tmp_path / ("out.safetensors" if layout == "single-file" else "out")
    bake_to(base, out, (Step("para", para),), dtype=choice)
    dtype = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32)}
    for part in [None] if layout == "single-file" else ["unet", "text_encoder", "vae"]:
        before, after = (load(path / part if part else path) for path in (base, out))
        for key, array in after.tensors.items():
            source = before.tensors[key]
            if source.dtype != np.float16:  # position_ids (I64) and the noise schedule (F32, of no component)
                assert after.raw[key] == before.raw[key], key
                continue
            assert array.dtype == dtype[stored], key
            if "attn" not in key:
                assert np.array_equal(array, source.astype(np.float32).astype(array.dtype)), key
    if layout == "diffusers-folder":
        index = json.loads((out / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(map(len, load(out / "unet").raw.values()))


def test_untouched_bytes_of_any_dtype_are_identical(models, tmp_path: Path) -> None:
    """fp8, I64, odd sizes, scalars, empty tensors and unknown keys between the weights."""
    from paramerge.files.writer import write_safetensors

    stored = load(models())
    rng = np.random.default_rng(0)
    strange: Tensors = {
        "strange.fp8": rng.integers(0, 255, (7, 3), np.uint8).view(ml_dtypes.float8_e4m3fn),
        "strange.bool": np.array([True, False, True]),
        "strange.u8": np.arange(5, dtype=np.uint8),
        "strange.empty": np.zeros((0, 4), np.float16),
        "strange.scalar": np.array(3.5, np.float64),
        "strange.nan": np.array([np.nan, np.inf], np.float32),
    }
    tensors = {}
    for i, (key, array) in enumerate(stored.tensors.items()):
        if i % 100 == 50 and strange:
            name = next(iter(strange))
            tensors[name] = strange.pop(name)
        tensors[key] = array
    base = tmp_path / "base.safetensors"
    write_safetensors(base, tensors, {"about": "keeps"})
    layers = [layer for layer in shapes_of(base) if ".attn2.to_k" in layer]
    para = para_file(tmp_path / "a.safetensors", random_bases(shapes_of(base), layers, 2))
    out = bake_to(base, tmp_path / "out.safetensors", (Step("para", para),))
    before, after = base.read_bytes(), out.read_bytes()
    assert len(after) - int.from_bytes(after[:8], "little") == len(before) - int.from_bytes(
        before[:8], "little"
    )
    found, wanted = _raw(out), _raw(base)
    assert list(found) == list(wanted)  # the order of the bytes, too
    changed = {key for key in found if found[key] != wanted[key]}
    assert len(changed) == len(layers)
    assert all("attn2.to_k" in key for key in changed)


def test_same_inputs_give_the_same_bytes(models, tmp_path: Path) -> None:
    base = models("sd15")
    steps = steps_for(base, tmp_path, "sd15")
    one = bake_to(base, tmp_path / "1.safetensors", steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = bake_to(base, tmp_path / "2.safetensors", steps)
    finally:
        torch.set_num_threads(threads)
    assert one.read_bytes() == two.read_bytes()
    os.utime(base)  # a file with another time stamp: the hash is computed again, in the pass
    three = bake_to(base, tmp_path / "3.safetensors", steps)
    assert one.read_bytes() == three.read_bytes()


def _raw(path: Path) -> dict[str, bytes]:
    """Keys and bytes in file order, of tensors of any dtype."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {
        key: data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        for key, entry in entries
    }
