"""Inputs in different layouts meet by layer: a model merges the same whatever layout it is stored in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import load
from blueprints import sd15, sdxl
from flux_models import as_single_file, flux_model, read
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file, save_file

import paramerge as pm
from paramerge.errors import CheckpointError
from paramerge.merge.call import plan_merge

BLUEPRINTS: dict[str, Callable[..., Any]] = {"sd15": sd15, "sdxl": sdxl}
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "folder": {"layout": "diffusers-folder"},
    "shards": {"layout": "diffusers-folder", "max_shard_bytes": 200_000, "text_model_prefix": False},
}
METHODS = {"weighted-sum": {}, "slerp": {"weights": (0.25, 0.75)}, "ties": {"density": 0.5}}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models a and b of one architecture in every layout."""
    folder = tmp_path_factory.mktemp(request.param)
    blueprint = BLUEPRINTS[request.param](32, vocabulary=40)
    found = {}
    for seed, name in enumerate("ab"):
        for layout, options in LAYOUTS.items():
            path = folder / f"{name}-{layout}"
            path = path if "layout" in options else path.with_suffix(".safetensors")
            write_random_checkpoint(blueprint, path, seed, **options)
            found[f"{name}-{layout}"] = path
    return found


def weights(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return load(path).raw
    return {
        f"{part.name}/{key}": raw
        for part in sorted(path.iterdir())
        if part.is_dir() and any(part.glob("*.safetensors"))
        for key, raw in load(part).raw.items()
    }


def test_a_model_merges_the_same_in_every_layout(places: dict[str, Path], tmp_path: Path) -> None:
    for first in ("single", "folder"):
        expected = None
        for second in ("single", "folder", "shards"):
            out = tmp_path / (f"{first}-{second}" + (".safetensors" if first == "single" else ""))
            pm.merge([places[f"a-{first}"], places[f"b-{second}"]], out)
            found = weights(out)
            assert expected is None or found == expected
            expected = found
            changed = sum(found[key] != raw for key, raw in weights(places[f"a-{first}"]).items())
            assert changed > 0.9 * len(found)
        plan = plan_merge([places[f"a-{first}"], places["b-shards"]])  # and nothing is missing
        assert plan.merged is not None and plan.merged.counts["missing"] == 0


def test_stacks_and_transposed_weights_of_openclip_meet_transformers(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """text_encoder_2 of SDXL: in_proj_weight against q, k and v, text_projection against its transpose."""
    if "sdxl" not in str(places["a-single"]):
        pytest.skip("only SDXL has both in layouts of the same layers")
    for method, parameters in METHODS.items():
        pm.merge(
            [places["a-folder"], places["b-single"]],
            tmp_path / method,
            method=method,
            only=["text_encoder_2"],
            **parameters,
        )
        pm.merge(
            [places["a-folder"], places["b-folder"]],
            tmp_path / f"{method}-2",
            method=method,
            only=["text_encoder_2"],
            **parameters,
        )
        assert weights(tmp_path / method) == weights(tmp_path / f"{method}-2")
        assert weights(tmp_path / method) != weights(places["a-folder"])


def test_a_folder_of_a_merge_has_its_recipe_and_index(places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    pm.merge([places["a-shards"], places["b-single"]], out, dtype="fp32", only=["unet"])
    recipe = json.loads((out / "paramerge_recipe.json").read_text())
    assert recipe["recipe"] == 2 and recipe["merge"]["models"][0]["layout"] == "single-file"
    index = json.loads((out / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(raw) for raw in load(out / "unet").raw.values())


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small FLUX transformers, each in shards and as a single file."""
    found = {}
    for seed, name in enumerate("ab"):
        folder = tmp_path_factory.mktemp(name)
        model, single, state = flux_model(folder)
        generator = torch.Generator().manual_seed(seed)
        other = {
            key: torch.randn(tensor.shape, generator=generator).to(tensor) for key, tensor in state.items()
        }
        for shard in model.glob("*.safetensors"):
            save_file({key: other[key] for key in load_file(shard)}, shard, {"format": "pt"})
        save_file(as_single_file(other), single)
        found[f"{name}-folder"], found[f"{name}-single"] = model, single
    return found


def test_fluxs_two_namings_meet(flux: dict[str, Path], tmp_path: Path) -> None:
    """Stacks against their parts, and the halves of the last modulation the other way round."""
    for first in ("folder", "single"):
        outs = []
        for second in ("folder", "single"):
            out = tmp_path / (f"{first}-{second}" + (".safetensors" if first == "single" else ""))
            pm.merge([flux[f"a-{first}"], flux[f"b-{second}"]], out, weights=(0.25, 0.75))
            outs.append(read(out))
        assert outs[0].keys() == outs[1].keys()
        assert all(torch.equal(outs[0][key], outs[1][key]) for key in outs[0])
    merged_single = as_single_file(read(tmp_path / "folder-folder"))
    assert all(torch.equal(merged_single[key], tensor) for key, tensor in outs[0].items())


def test_a_bare_unet_under_either_naming(places: dict[str, Path], tmp_path: Path) -> None:
    unet = tmp_path / "unet.safetensors"
    prefix = "model.diffusion_model."
    tensors = load_file(places["b-single"])
    save_file({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}, unet)
    diffusers = tmp_path / "diffusers.safetensors"
    save_file(
        {
            key: t
            for file in (places["b-folder"] / "unet").glob("*.safetensors")
            for key, t in load_file(file).items()
        },
        diffusers,
    )
    outs = []
    for other in (places["b-single"], unet, diffusers):
        outs.append(tmp_path / f"out-{other.name}")
        pm.merge([places["a-single"], other], outs[-1], only=["unet"])
    assert load(outs[0]).raw == load(outs[1]).raw == load(outs[2]).raw


def test_components_meet_in_any_layout(places: dict[str, Path], tmp_path: Path) -> None:
    a, b = places["a-single"], places["b-single"]
    sources = [b, places["b-folder"], places["b-folder"] / "vae" / "diffusion_pytorch_model.safetensors"]
    outs = []
    for number, source in enumerate(sources):
        outs.append(tmp_path / f"{number}.safetensors")
        pm.merge([a], outs[-1], components={"vae": source})
    assert load(outs[0]).raw == load(outs[1]).raw == load(outs[2]).raw
    found, theirs, ours = load(outs[0]).raw, load(b).raw, load(a).raw
    assert all(found[key] == (theirs if "first_stage" in key else ours)[key] for key in found)
    pm.merge([a], tmp_path / "u.safetensors", components={"unet": places["b-folder"]})
    found = load(tmp_path / "u.safetensors").raw
    assert all(found[key] == (theirs if key.startswith("model.diff") else ours)[key] for key in found)
    with pytest.raises(CheckpointError, match="lacks"):
        pm.merge(
            [a],
            tmp_path / "no.safetensors",
            components={"vae": sources[2].parents[1] / "unet" / sources[2].name},
        )


def test_old_names_of_a_vaes_attention(places: dict[str, Path], tmp_path: Path) -> None:
    """diffusers before 0.18: query, key, value and proj_attn."""
    file = places["b-folder"] / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, tensor in load_file(file).items():
        name = key
        for new, before in names.items():
            name = name.replace(new, before)
        old[name] = tensor
    save_file(old, tmp_path / "old.safetensors")
    for source, out in ((file, "new.safetensors"), (tmp_path / "old.safetensors", "out.safetensors")):
        pm.merge([places["a-single"]], tmp_path / out, components={"vae": source})
    assert load(tmp_path / "new.safetensors").raw == load(tmp_path / "out.safetensors").raw
    assert np.prod(load(file).tensors["decoder.conv_in.weight"].shape) > 0
