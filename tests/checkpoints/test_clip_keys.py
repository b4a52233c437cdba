"""The names of the text encoders' tensors, against diffusers' converters and transformers' models."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blueprints import to_openclip
from checkpoint_files import blueprint, configs, layers, meta_model, parameter_shapes
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.models.clip_keys import canonical_key, from_openclip
from paramerge.models.components import locate

OPENCLIP = [
    ("sdxl", "text_encoder_2", "conditioner.embedders.1.model."),
    ("sdxl-refiner", "text_encoder_2", "conditioner.embedders.0.model."),
    ("sd2", "text_encoder", "cond_stage_model.model."),
]
WIDTH = 3


def keys_of(architecture: str, prefix: str) -> list[str]:
    """The keys behind ``prefix`` in the single file, with it."""
    return [spec.key for spec in blueprint(architecture).single_file() if spec.key.startswith(prefix)]


def tagged(keys: list[str]) -> dict[str, Any]:
    """Small tensors of the real ranks, no two entries alike: a swap, a shifted row or a transpose shows."""
    import torch

    count = 0
    tensors = {}
    for key in keys:
        if key.endswith(("in_proj_weight", "in_proj_bias")):
            shape: tuple[int, ...] = (3 * WIDTH, WIDTH) if key.endswith("weight") else (3 * WIDTH,)
        else:
            shape = (WIDTH, WIDTH) if "projection" in key or ".c_" in key or "out_proj.w" in key else (WIDTH,)
        size = int(np.prod(shape))
        tensors[key] = torch.arange(count, count + size, dtype=torch.float64).reshape(shape)
        count += size
    return tensors


def located(tensors: dict[str, Any], component: str) -> dict[str, np.ndarray]:
    """What :func:`locate` says of the file, carried out on the tensors."""
    found: dict[str, np.ndarray] = {}
    for key, name in locate(tensors).items():
        assert name.component == component
        value = tensors[key].numpy()
        value = value.T if name.transposed else value
        found |= dict(zip(name.parts, np.split(value, len(name.parts)), strict=True)) if name.parts else {}
    return found


@pytest.mark.parametrize(("architecture", "component", "prefix"), OPENCLIP)
def test_openclip_agrees_with_the_converter_of_diffusers_on_tagged_values(
    architecture: str, component: str, prefix: str
) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    tensors = tagged(keys_of(architecture, prefix))
    model = meta_model(architecture, component)
    theirs = convert_open_clip_checkpoint(model, tensors, prefix=prefix)
    ours = located(tensors, component)
    if architecture == "sd2":  # the last layer, and the projection, are in the file and unused in the folder
        ours = {k: v for k, v in ours.items() if ".layers.23." not in k and k != "text_projection.weight"}
        theirs.pop("text_projection.weight", None)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key].numpy(), err_msg=key)


@pytest.mark.parametrize(("architecture", "component", "prefix"), OPENCLIP)
def test_openclip_reaches_every_parameter_of_the_model_of_transformers(
    architecture: str, component: str, prefix: str
) -> None:
    parts = {part for key in keys_of(architecture, prefix) for part in locate({key: ()})[key].parts}
    model = {canonical_key(key) for key in parameter_shapes(meta_model(architecture, component))}
    assert None not in model
    assert model <= parts
    beyond = parts - model
    assert all(".layers.23." in key or key == "text_projection.weight" for key in beyond)
    assert not beyond or architecture == "sd2"


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_clip_agrees_with_the_converter_of_diffusers_on_tagged_values(architecture: str) -> None:
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    prefix = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
    keys = keys_of(architecture, prefix[architecture])
    tensors = {key: torch.full((1,), float(i)) for i, key in enumerate(keys)}
    theirs = {key: keys[int(tag.item())] for key, tag in convert_ldm_clip_checkpoint(tensors).items()}
    names = locate(dict.fromkeys(keys, ()))
    assert {name.component for name in names.values()} == {"text_encoder"}
    assert {name.parts[0]: key for key, name in names.items()} == theirs
    model = {canonical_key(key) for key in parameter_shapes(meta_model(architecture, "text_encoder"))}
    assert {key for key in theirs if not key.endswith("position_ids")} == model


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_every_text_encoder_key_of_a_real_file_is_known(architecture: str, shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "inventories" / f"{architecture}_single_file.json.gz"
    names = locate(dict.fromkeys(json.loads(gzip.decompress(path.read_bytes())), ()))
    nameless = [key for key, n in names.items() if n.component.startswith("text_encoder") and not n.parts]
    assert nameless == (["conditioner.embedders.1.model.logit_scale"] if architecture == "sdxl" else [])


def test_q_k_and_v_are_the_rows_of_the_stacked_projection_in_this_order() -> None:
    tensor = from_openclip("transformer.resblocks.7.attn.in_proj_weight")
    assert tensor is not None
    stem = "text_model.encoder.layers.7.self_attn"
    assert tensor.parts == (f"{stem}.q_proj.weight", f"{stem}.k_proj.weight", f"{stem}.v_proj.weight")


@law
@given(
    st.integers(0, 99),
    st.sampled_from(["ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj", "attn.in_proj"]),
    st.sampled_from(["weight", "bias"]),
)
def test_openclip_names_go_there_and_back(number: int, layer: str, kind: str) -> None:
    joint = "_" if layer == "attn.in_proj" else "."
    key = f"transformer.resblocks.{number}.{layer}{joint}{kind}"
    tensor = from_openclip(key)
    assert tensor is not None
    assert {to_openclip(part) for part in tensor.parts} == {key}


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_canonical_keys_do_not_depend_on_the_prefix_text_model(component: str) -> None:
    for key in parameter_shapes(meta_model("sdxl", component)):
        canonical = canonical_key(key)
        assert canonical is not None
        assert canonical_key(canonical) == canonical
        assert canonical_key(canonical.removeprefix("text_model.")) == canonical
    assert configs("sdxl")["text_encoder_2"]["projection_dim"] == 1280


@pytest.mark.parametrize(
    "key",
    [
        "logit_scale",
        "visual.proj",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "lm_head.weight",
        "encoder",
    ],
)
def test_what_is_no_text_encoder_has_no_canonical_name(key: str) -> None:
    assert canonical_key(key) is None
    assert from_openclip(key) is None
    assert to_openclip(key) is None


def test_linear_layers_are_those_of_transformers() -> None:
    assert len(layers(meta_model("sdxl", "text_encoder_2"))) == 32 * 6 + 1
