"""FLUX's names in single files and in diffusers, against diffusers' own converter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import parameter_shapes, write_holes
from flux_shapes import WIDTH, single_file_keys, true_shape

from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError
from paramerge.models.architectures.flux import KEY_MAP
from paramerge.models.key_map import runs_of
from paramerge.models.names import ModuleName


def by_diffusers(keys: list[str]) -> dict[str, tuple[str, list[int]]]:
    """diffusers' key to the single file's and its rows, found out by giving each row a number of its own."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    tagged, owner, count = {}, [], 0
    for key in keys:
        rows = true_shape(key)[0]
        tagged[key] = torch.arange(count, count + rows, dtype=torch.float64)
        owner.append((count, key))
        count += rows
    found = {}
    for key, tensor in convert_flux_transformer_checkpoint_to_diffusers(tagged).items():
        first = int(tensor.min())
        start, name = next((s, k) for s, k in reversed(owner) if s <= first)
        found[key] = name, [int(value) - start for value in tensor]
    return found


@pytest.fixture(scope="module")
def theirs() -> dict[str, tuple[str, list[int]]]:
    return by_diffusers(single_file_keys())


def test_every_key_and_row_is_where_diffusers_puts_it(theirs: Any) -> None:
    ours = {}
    for key in single_file_keys():
        path, _, kind = key.rpartition(".")
        layer = KEY_MAP.layer(path)
        assert layer is not None
        assert kind in KEY_MAP.kinds
        rows = true_shape(key)[0]
        runs = runs_of(layer.rows, len(layer.parts), rows, WIDTH)
        assert runs is not None
        for part, (start, stop) in zip(layer.parts, runs, strict=True):
            order = list(range(start, stop))
            if layer.swapped:
                order = order[rows // 2 :] + order[: rows // 2]
            ours[f"{part}.{KEY_MAP.kinds[kind]}"] = key, order
    assert ours == theirs


def test_back_is_the_reverse(theirs: Any) -> None:
    for key, (name, _) in theirs.items():
        assert KEY_MAP.path(key.rpartition(".")[0]) == name.rpartition(".")[0]


def test_diffusers_names_are_those_of_its_model(theirs: Any) -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=3, guidance_embeds=True)
    assert parameter_shapes(model).keys() == theirs.keys()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_the_targets_of_a_file_of_true_size(prefix: str, theirs: Any, tmp_path: Path) -> None:
    """Every linear layer of diffusers' is the rows that its converter takes; the stacks are reached, too."""
    shapes = {prefix + key: true_shape(key) for key in single_file_keys()}
    base = open_base(write_holes(tmp_path / "flux.safetensors", shapes, "BF16"))
    assert (base.layout, base.architecture) == ("model-file", "flux")
    targets = base.files[0].targets
    for key, (name, rows) in theirs.items():
        if name.endswith(".weight"):
            module = ModuleName("transformer", key.removesuffix(".weight"))
            if key == "norm_out.linear.weight":
                assert module not in targets  # its rows are swapped: reached by the file's own name
                continue
            target = targets[module]
            start, stop = target.rows or (0, target.shape[0])
            assert (prefix + name, list(range(start, stop))) == (target.key, rows)
            assert target.shape == (len(rows), *true_shape(name)[1:])
    stacks = {name.path for name, target in targets.items() if target.stack}
    assert stacks == {
        *(f"double_blocks.{i}.{way}_attn.qkv" for i in range(2) for way in ("img", "txt")),
        *(f"single_blocks.{i}.linear1" for i in range(3)),
    }
    assert targets[ModuleName("transformer", "final_layer.adaLN_modulation.1")].shape == (2 * WIDTH, WIDTH)


def test_a_stack_that_is_too_small_is_refused(tmp_path: Path) -> None:
    shapes = {key: true_shape(key) for key in single_file_keys()}
    shapes["single_blocks.0.linear1.weight"] = (3 * WIDTH, WIDTH)
    with pytest.raises(CheckpointError, match="cannot be divided"):
        open_base(write_holes(tmp_path / "flux.safetensors", shapes))
    assert runs_of("square", 4, 3 * WIDTH, WIDTH) is None
    assert runs_of("square", 1, 5, 7) == ((0, 5),)


@pytest.mark.parametrize(
    "path", ["double_blocks.0.img_attn.norm", "single_blocks.linear1", "transformer_blocks.0.attn.to_q", ""]
)
def test_what_is_no_layer_of_the_single_file(path: str) -> None:
    assert KEY_MAP.layer(path) is None


@pytest.mark.parametrize(
    "path", ["single_transformer_blocks.0.attn", "double_blocks.0.img_mlp.0", "norm_out"]
)
def test_what_is_no_layer_of_diffusers(path: str) -> None:
    assert KEY_MAP.path(path) is None


def test_a_file_bundled_with_its_encoders_and_vae(tmp_path: Path) -> None:
    """As ComfyUI bundles a checkpoint: each part under a prefix of its own."""
    shapes: dict[str, tuple[int, ...]] = {
        f"model.diffusion_model.{key}": (4,) if len(true_shape(key)) == 1 else (28, 4)
        for key in single_file_keys()
    }
    shapes |= {
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 4),
        "text_encoders.clip_l.logit_scale": (),
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": (8, 4),
        "text_encoders.t5xxl.transformer.shared.weight": (9, 4),
        "vae.decoder.conv_in.weight": (4, 4, 3, 3),
    }
    base = open_base(write_holes(tmp_path / "all.safetensors", shapes))
    assert (base.layout, base.architecture) == ("single-file", "flux")
    reached = {str(name) for name in base.files[0].targets if name.component != "transformer"}
    assert reached == {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    }
    components = base.files[0].components
    assert components["vae.decoder.conv_in.weight"] == "vae"
    assert components["text_encoders.clip_l.logit_scale"] == "other"
    assert math.prod(base.files[0].targets[ModuleName("transformer", "x_embedder")].shape) == 28 * 4
