"""PaRa + LoRA with a base: the one LoRA that does the same to this base, and to no other (T5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from baking import load, lora_file, para_file, random_bases, random_factors, shapes_of, small_model
from merging import dense_deltas, merge, name_of, projector, relative

from paramerge.checkpoints.layout import open_base
from paramerge.errors import ShapeError, UsageError
from paramerge.files.hashing import file_sha256
from paramerge.formats import open_adapter
from paramerge.resolve.weights import BaseWeights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base with two PaRas and two LoRAs on some of its layers, stacked and transposed ones among them."""
    folder = tmp_path_factory.mktemp("mixed")
    base = small_model(folder / "base.safetensors", "sdxl", dtype="F32")
    shapes = shapes_of(base)
    ends = ("mid_block.attentions.0.transformer_blocks.1.attn2.to_v", "mid_block.resnets.0.conv2")
    stacked = (
        "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj",
        "text_encoder_2.text_projection",
    )
    layers = [layer for layer in shapes if layer.endswith(ends) or layer in stacked]
    assert len(layers) == 4
    return {
        "base": base,
        "p": para_file(folder / "p.safetensors", random_bases(shapes, layers, 2, seed=0), "sdxl", "F32"),
        "q": para_file(folder / "q.safetensors", random_bases(shapes, layers[:3], 1, seed=1), "sdxl", "F32"),
        "l": lora_file(
            folder / "l.safetensors", random_factors(shapes, layers[1:], 3, seed=2), 1.5, "F32", True
        ),
        "m": lora_file(folder / "m.safetensors", random_factors(shapes, layers, 2, seed=3), 2.0, "F32", True),
    }


def test_t5_the_lora_does_what_both_do(tmp_path: Path, files: dict[str, Path]) -> None:
    """``W + D = (I - Pm) W + 0.8 D1 + 0.6 D2`` for every layer, by NumPy."""
    report = merge(
        tmp_path / "out.safetensors",
        files["p"],
        files["q"],
        f"{files['l']}@0.8",
        f"{files['m']}@0.6",
        base=files["base"],
    )
    assert report.family == "lora" and not report.warnings
    weights = BaseWeights(open_base(files["base"]))
    found = dense_deltas(report.output)
    loras = [dense_deltas(files[name]) for name in "lm"]
    for layer in report.layers:
        name = str(layer.name)
        W = weights.matrix(layer.name)
        bases = [m[layer.name].basis.read_exact().astype(np.float64) for m in paras(files) if layer.name in m]
        change = 0.8 * loras[0].get(name, 0.0) + 0.6 * loras[1].get(name, 0.0)
        expected = change - projector(*bases) @ W
        assert relative(found[name], expected) <= 1e-5
        assert layer.rounding <= 1e-6


def test_weights_are_read_as_layers_see_them(files: dict[str, Path]) -> None:
    """A row slice of OpenCLIP's stacked projection, its transposed one, a flattened convolution."""
    content = {key: value.astype(np.float64) for key, value in load(files["base"]).tensors.items()}
    weights = BaseWeights(open_base(files["base"]))
    model = "conditioner.embedders.1.model"
    stacked = content[f"{model}.transformer.resblocks.1.attn.in_proj_weight"]
    width = stacked.shape[1]
    expected = {
        "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj": stacked[width : 2 * width],
        "text_encoder_2.text_projection": content[f"{model}.text_projection"].T,
        "unet.conv_in": content["model.diffusion_model.input_blocks.0.0.weight"].reshape(20, 36),
    }
    for layer, W in expected.items():
        np.testing.assert_array_equal(weights.matrix(name_of(layer)), W)
        assert weights.shape(name_of(layer)) == W.shape
    assert weights.kernel(name_of("unet.conv_in")) == (3, 3)


def paras(files: dict[str, Path]):
    return [open_adapter(files[name]).modules for name in "pq"]


def test_it_is_tied_to_its_base(tmp_path: Path, files: dict[str, Path]) -> None:
    report = merge(tmp_path / "out.safetensors", files["p"], files["l"], base=files["base"])
    assert open_adapter(report.output).base_hashes == (file_sha256(files["base"]),)
    other = small_model(tmp_path / "other.safetensors", "sd15")
    with pytest.raises(Exception, match="made for sdxl"):
        merge(tmp_path / "out2.safetensors", files["p"], files["l"], base=other)


def test_order_is_told_and_does_not_matter(tmp_path: Path, files: dict[str, Path]) -> None:
    first = merge(tmp_path / "a.safetensors", files["p"], files["l"], base=files["base"])
    second = merge(tmp_path / "b.safetensors", files["l"], files["p"], base=files["base"])
    assert not first.warnings and "PaRa first" in second.warnings[0]
    one, other = dense_deltas(first.output), dense_deltas(second.output)
    assert all(np.array_equal(one[layer], other[layer]) for layer in one)


def test_a_boundary_holds_for_the_para_in_it(tmp_path: Path, files: dict[str, Path]) -> None:
    report = merge(
        tmp_path / "a.safetensors", files["p"], files["q"], files["l"], base=files["base"], gamma=1 / 20
    )
    assert report.options.keep == "energy"
    for layer in report.layers:
        lora = layer.ranks[2]
        assert layer.limit is not None
        assert layer.rank == lora + min(layer.limit, layer.rank - lora) and layer.rank - lora <= layer.limit


def test_options_that_would_cut_into_the_para_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    for options in ({"rank": 2}, {"energy": 0.9}):
        with pytest.raises(UsageError, match="cut into the PaRa"):
            merge(tmp_path / "a.safetensors", files["p"], files["l"], base=files["base"], **options)


def test_a_lora_of_another_size_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    name = next(iter(open_adapter(files["p"]).modules))
    odd = para_file(tmp_path / "odd.safetensors", {str(name): np.ones((7, 1))}, "sdxl")
    with pytest.raises(ShapeError):
        merge(tmp_path / "a.safetensors", odd, files["l"], base=files["base"])
    assert name_of(str(name)) == name
