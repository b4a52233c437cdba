"""Adapters that people trained, baked into an SD1.5 checkpoint of true keys and shapes.

The reference parses each file by itself, asks diffusers' converter where a layer lies in the checkpoint, and
computes in NumPy float64.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import DTYPES, LARGEST_SHARE_OFF, add, check_close, plan_of, remove
from blueprints import sd15
from checkpoint_files import configs
from lora_oracles import full_name, hollow, layers_of_class, unet, walk_of_2023
from random_checkpoint import write_random_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.errors import FamilyError
from paramerge.extract.from_lora import extract_para
from paramerge.formats import open_adapter, write_para

Factors = dict[str, tuple[np.ndarray, np.ndarray]]

ADAPTERS = [
    "cloneofsimo_lora_disney.safetensors",
    "cloneofsimo_analog_svd_rank4.safetensors",
    "diffusers_old_catundchat_sd15.safetensors",
    "peft_sd15_text_encoder",
]
TEXT_ENCODER = "cond_stage_model.transformer."


class Tensors:
    """A large file's tensors, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._data = np.memmap(path, np.uint8, "r")
        (length,) = struct.unpack("<Q", self._data[:8].tobytes())
        self.header: dict[str, Any] = json.loads(self._data[8 : 8 + length].tobytes())
        self.header.pop("__metadata__", None)
        self._start = 8 + length

    def raw(self, key: str) -> np.ndarray:
        begin, end = self.header[key]["data_offsets"]
        return self._data[self._start + begin : self._start + end]

    def __getitem__(self, key: str) -> np.ndarray:
        entry = self.header[key]
        return self.raw(key).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SD1.5 at its true size, 2.1 GB; random weights."""
    path = tmp_path_factory.mktemp("sd15") / "base.safetensors"
    write_random_checkpoint(sd15(), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def places(base: Path) -> dict[str, str]:
    """Layer to key of the checkpoint: the UNet's from diffusers' converter, by numbers as tags."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    keys = [key for key in Tensors(base).header if key.startswith("model.diffusion_model.")]
    tagged = {key: torch.tensor([float(i)]) for i, key in enumerate(keys)}
    converted = convert_ldm_unet_checkpoint(tagged, configs("sd15")["unet"])
    unet = {f"unet.{key.removesuffix('.weight')}": keys[int(tag)] for key, tag in converted.items()}
    encoder = {
        f"text_encoder.{key.removeprefix(TEXT_ENCODER).removesuffix('.weight')}": key
        for key in Tensors(base).header
        if key.startswith(TEXT_ENCODER)
    }
    return unet | encoder


def factors_of(path: Path) -> Factors:
    """Each layer's up and down, with the scale in up; none of these files scales by anything but 1."""
    if path.is_dir():
        config = json.loads((path / "adapter_config.json").read_text())
        assert config["lora_alpha"] == config["r"]
        tensors = load_file(path / "adapter_model.safetensors")
        stems = [key.removesuffix(".lora_B.weight") for key in tensors if key.endswith(".lora_B.weight")]
        return {
            f"text_encoder.{stem.removeprefix('base_model.model.')}": (
                tensors[f"{stem}.lora_B.weight"],
                tensors[f"{stem}.lora_A.weight"],
            )
            for stem in stems
        }
    tensors = load_file(path)
    if path.name.startswith("diffusers_old"):
        ups = [key for key in tensors if key.endswith("_lora.up.weight")]
        result: Factors = {}
        for key in ups:
            name = key.removesuffix("_lora.up.weight").replace(".processor.", ".")
            name = name.replace(".to_out", ".to_out.0")
            result[f"unet.{name}"] = (tensors[key], tensors[key.replace(".up.", ".down.")])
        return result
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    result = {}
    for component in ("unet", "text_encoder"):
        classes = frozenset(json.loads(metadata[component]))
        walk = walk_of_2023(classes) if component == "unet" else layers_of_class(component, classes)
        for index, (layer, _) in enumerate(walk):
            name = layer if component == "unet" else full_name(layer)
            up, down = (tensors[f"{component}:{index}:{side}"] for side in ("up", "down"))
            result[f"{component}.{name}"] = (up, down)
    return result


@pytest.fixture(params=[7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def every(request: pytest.FixtureRequest) -> int:
    """Every how many of the changed layers is held against float64, which takes minutes for all of them."""
    return int(request.param)


def check_output(base: Path, output: Path, expected: dict[str, Any], every: int) -> None:
    """Some changed layers against their references in float64; bytes of other tensors identical."""
    before, after = Tensors(base), Tensors(output)
    assert list(before.header) == list(after.header)
    off = elements = 0.0
    held = set(list(expected)[::every])
    for key, entry in before.header.items():
        assert entry == after.header[key]
        if key not in expected:
            assert np.array_equal(before.raw(key), after.raw(key)), key
            continue
        if key not in held:
            continue
        found = after[key]
        off += check_close(found, expected[key](before[key].astype(np.float64)), key) * found.size
        elements += found.size
    assert off / elements < LARGEST_SHARE_OFF


@pytest.mark.parametrize("name", ADAPTERS)
def test_against_float64(
    name: str, base: Path, places: dict[str, str], shared_dir: Path, tmp_path: Path, every: int
) -> None:
    path = shared_dir / "fixtures" / "adapters" / name
    has_embeddings = name == "cloneofsimo_lora_disney.safetensors"  # <s1> and <s2> change no layer
    plan = plan_of(base, Step("lora", path, 0.8), allow_unmatched=has_embeddings)
    output = tmp_path / "out.safetensors"
    bake(plan, output)
    factors = factors_of(path)
    assert len(plan.edits) == len(factors)
    expected = {places[layer]: lambda W, pair=pair: add(W, *pair, 0.8) for layer, pair in factors.items()}
    check_output(base, output, expected, every)
    output.unlink()


def test_a_para_extracted_from_one_then_another_lora(
    base: Path, places: dict[str, str], shared_dir: Path, tmp_path: Path, every: int
) -> None:
    """The sentence people type, with real files."""
    folder = shared_dir / "fixtures" / "adapters"
    source, lora = folder / "cloneofsimo_analog_svd_rank4.safetensors", folder / ADAPTERS[2]
    extracted = extract_para(open_adapter(source), rank=2)
    para = tmp_path / "p.safetensors"
    write_para(para, {layer.name: layer.directions for layer in extracted.layers}, architecture="sd15")
    output = tmp_path / "out.safetensors"
    bake(plan_of(base, Step("para", para), Step("lora", lora)), output)
    directions = {}
    for layer, (up, down) in factors_of(source).items():
        R = np.linalg.qr(down.astype(np.float64).T, mode="r")  # up R^T has the left vectors of up down
        U = np.linalg.svd(up.astype(np.float64) @ R.T, full_matrices=False)[0]
        directions[layer] = U[:, :2].astype(np.float16)
    added = factors_of(lora)

    def reference(layer: str) -> Any:
        def apply(W: np.ndarray) -> np.ndarray:
            W = remove(W, directions[layer]) if layer in directions else W
            return add(W, *added[layer]) if layer in added else W

        return apply

    layers = directions.keys() | added.keys()
    check_output(base, output, {places[layer]: reference(layer) for layer in layers}, every)
    output.unlink()


def test_as_diffusers_fuses_it(base: Path, places: dict[str, str], shared_dir: Path, tmp_path: Path) -> None:
    """diffusers' own loading and fusing of the file with uniform scale, on the weights that it touches."""
    path = shared_dir / "fixtures" / "adapters" / "diffusers_old_catundchat_sd15.safetensors"
    output = tmp_path / "out.safetensors"
    bake(plan_of(base, Step("lora", path)), output)
    before, after = Tensors(base), Tensors(output)
    model = hollow_unet()
    layers = dict(model.named_modules())
    touched = [layer.removeprefix("unet.") for layer in factors_of(path)]
    for layer in touched:
        weight = torch.from_numpy(before[places[f"unet.{layer}"]].astype(np.float32))
        layers[layer].weight = torch.nn.Parameter(weight, requires_grad=False)
    model.load_lora_adapter(str(path), prefix=None)
    model.fuse_lora()
    model.unload_lora()
    layers = dict(model.named_modules())
    for layer in touched:
        fused = layers[layer].weight.numpy()
        found = after[places[f"unet.{layer}"]].astype(np.float32)
        # float32 there, rounded once to float16 here: half a unit in the last place of each element
        assert np.all(np.abs(found - fused) <= 2.0**-11 * np.abs(fused) * 1.01 + 2.0**-25), layer
    output.unlink()


def hollow_unet() -> Any:
    """SD1.5's UNet of diffusers, without memory for the weights that no adapter touches."""
    return hollow(unet("sd15"))


@pytest.mark.parametrize(
    "name",
    [
        "lycoris_lokr_smart_falcon_8.safetensors",
        pytest.param("lycoris_lokr_smart_falcon_16.safetensors", marks=pytest.mark.slow),
    ],
)
def test_lokr_against_float64(
    name: str, base: Path, places: dict[str, str], shared_dir: Path, tmp_path: Path, every: int
) -> None:
    """350 layers of the UNet and the text encoder, linear and convolutions, both factors of low rank."""
    path = shared_dir / "fixtures" / "adapters" / name
    output = tmp_path / "out.safetensors"
    plan = plan_of(base, Step("adapter", path, 0.7))
    assert len(plan.edits) == 350
    bake(plan, output)
    tensors = load_file(path)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    stems = {}
    for layer in places:
        component, _, rest = layer.partition(".")
        stems[f"{prefixes[component]}_{rest.replace('.', '_')}"] = layer
    expected = {}
    for stem in {key.partition(".")[0] for key in tensors}:
        a, b, c, d = (
            tensors[f"{stem}.lokr_{factor}"].astype(np.float64) for factor in ("w1_a", "w1_b", "w2_a", "w2_b")
        )
        scale = 0.7 * float(tensors[f"{stem}.alpha"]) / len(d)
        # dense, and the product taken in the other order than the package does
        expected[places[stems[stem]]] = lambda W, a=a, b=b, c=c, d=d, scale=scale: (
            W + scale * (np.kron(a, c) @ np.kron(b, d)).reshape(W.shape)
        )
    assert len(expected) == 350
    check_output(base, output, expected, every)
    output.unlink()


def test_lokr_is_no_lora(base: Path, shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "adapters" / "lycoris_lokr_smart_falcon_8.safetensors"
    with pytest.raises(FamilyError, match="this is a LoKr, not a LoRA"):
        plan_of(base, Step("lora", path))
