"""Hostile and random files: understood, left over with a reason, or refused; no key is ever lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapter_files import BF16, Array, kohya_layer, save
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.errors import AdapterError, NonFiniteError, ParamergeError, ShapeError
from paramerge.formats import open_adapter
from paramerge.inspect.inspection import AdapterFacts, inspect_path

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = f"lora_unet_{TO_Q.replace('.', '_')}"
KEYS = {
    "kohya": (f"{STEM}.lora_up.weight", f"{STEM}.lora_down.weight"),
    "diffusers": (f"unet.{TO_Q}.lora.up.weight", f"unet.{TO_Q}.lora.down.weight"),
    "diffusers-old": (
        f"unet.{TO_Q[:-5]}.processor.to_q_lora.up.weight",
        f"unet.{TO_Q[:-5]}.processor.to_q_lora.down.weight",
    ),
}

# pieces that names of layers, parts and families are made of, in and out of their places
LAYERS = (
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_input_blocks_4_1_proj_in",
    "lora_unet_input_blocks_999999_1_proj_in",
    "lora_unet_output_blocks_2_7_conv",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te2_text_projection",
    "lora_unet_",
    "lycoris_",
    "lora_transformer_blocks_0",
    f"unet.{TO_Q}",
    TO_Q,
    f"unet.{TO_Q[:-5]}.processor",
    "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.0.self_attn",
    "text_encoder_2.text_projection",
    "unet:0",
    "unet:1",
    "unet:99999999999",
    "text_encoder:0",
    "<s1>",
    "vae.decoder.conv_in",
    "unet",
    "",
)
PARTS = (
    ".lora_up.weight",
    ".lora_down.weight",
    ".lora_mid.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_B.bias",
    ".lora.up.weight",
    ".lora.down.weight",
    ".to_q_lora.up.weight",
    ".to_q_lora.down.weight",
    ".to_q_lora.alpha",
    ":up",
    ":down",
    ".alpha",
    ".weight",
    ".para_B",
    ".dora_scale",
    ".hada_w1_a",
    ".lokr_w1",
    ".diff",
    "",
)
SHAPES = (
    (),
    (1,),
    (0, 2),
    (2, 0),
    (1, 2),
    (2, 1),
    (2, 2),
    (4, 2),
    (2, 4),
    (3, 2, 1, 1),
    (2, 3, 3, 3),
    (2, 2, 3, 3),
)
METADATA = {
    "unet": st.sampled_from(['["CrossAttention"]', '["GEGLU"]', "[]", "{", "[1]", '{"a": 1}']),
    "unet:0:rank": st.sampled_from(["1", "2", "x"]),
    "text_encoder": st.sampled_from(['["CLIPAttention"]', "null"]),
    "lora_adapter_metadata": st.sampled_from(
        [
            "{}",
            "[]",
            "{",
            '{"unet.r": 2, "unet.lora_alpha": 1}',
            '{"r": 2, "lora_alpha": 3}',
            '{"unet.r": []}',
        ]
    ),
    "paramerge.format_version": st.sampled_from(["1.0", "2.0", "x"]),
    "paramerge.ranks": st.sampled_from(["{}", "[]", "{"]),
    "<s1>": st.just("<embed>"),
    "ss_v2": st.just("True"),
    "ss_tag_frequency": st.sampled_from(["{}", "[]", "{", '{"a": {"b": "c"}, "d": 1}']),
    "ss_training_finished_at": st.sampled_from(["0", "1e400", "nan", "x"]),
    "ss_sd_model_hash": st.sampled_from(["abcdef0123", "none"]),
    "paramerge.recipe": st.sampled_from(["{}", "[", '{"steps": [1], "base": []}']),
}


@st.composite
def keys(draw: st.DrawFn) -> str:
    """Mostly pieces that belong together, sometimes anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=12))
    stem, part = draw(st.sampled_from(LAYERS)), draw(st.sampled_from(PARTS))
    noise = draw(st.sampled_from(["", "", "", "", "x.", "_", "٣", "\n"]))
    return draw(st.sampled_from([stem + part, noise + stem + part, stem + noise + part]))


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a made-up file: whole layers and single keys."""
    tensors: dict[str, Array] = {}
    for _ in range(draw(st.integers(0, 2))):
        up, down = KEYS[draw(st.sampled_from(list(KEYS)))]
        rank = draw(st.integers(1, 3))
        tensors |= {up: np.ones((4, rank), np.float16), down: np.ones((rank, 5), np.float16)}
    for key in draw(st.lists(keys(), max_size=6)):
        dtype = draw(st.sampled_from([np.float32, np.float16, BF16, np.int64, np.float64]))
        value = draw(st.sampled_from([1.0, 1.0, 0.0, 2.5]))
        tensors[key] = np.full(draw(st.sampled_from(SHAPES)), value, dtype)
    metadata = draw(st.fixed_dictionaries({}, optional=METADATA))
    return {key: array for key, array in tensors.items() if key != "__metadata__"}, metadata


@law
@given(content=files())
def test_a_file_is_understood_counted_or_refused(
    content: tuple[dict[str, Array], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, metadata = content
    path = save(tmp_path_factory.getbasetemp() / "fuzz.safetensors", tensors, metadata)
    try:
        adapter = open_adapter(path)
    except ParamergeError as error:
        assert error.what and error.where
        return
    used = [key for module in adapter.modules.values() for key in module.keys]
    left = [key for leftover in adapter.leftovers for key in leftover.keys]
    assert sorted(used + left) == sorted(tensors), "every key is used or left over, once"
    assert all(leftover.reason for leftover in adapter.leftovers)


@law
@given(content=files())
def test_inspect_tells_what_it_is_or_refuses(
    content: tuple[dict[str, Array], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from paramerge.cli.inspect import as_data

    tensors, metadata = content
    path = save(tmp_path_factory.getbasetemp() / "fuzz.safetensors", tensors, metadata)
    try:
        facts = inspect_path(path)
    except ParamergeError:
        return
    json.loads(json.dumps(as_data(facts), allow_nan=False))


@law
@given(data=st.data())
def test_a_lora_with_one_key_lost_or_renamed_is_never_read_as_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors: dict[str, Array] = {}
    for number in range(3):
        name = f"lora_unet_down_blocks_{number}_resnets_0_conv1"
        up, down = np.ones((4, 2, 1, 1), np.float32), np.ones((2, 3, 3, 3), np.float32)
        tensors |= kohya_layer(name, up, down, 2.0)
    victim = data.draw(st.sampled_from(sorted(tensors)))
    array = tensors.pop(victim)
    renamed = data.draw(st.none() | st.text(min_size=1, max_size=20))
    if renamed is not None and renamed not in tensors and renamed != victim:
        tensors[renamed] = array
    path = save(tmp_path_factory.getbasetemp() / "lost.safetensors", tensors)
    if victim.endswith(".alpha"):
        adapter = open_adapter(path)  # alpha may be left out; under another name it is left over
        assert len(adapter.leftovers) == (renamed in tensors)
        return
    with pytest.raises(ParamergeError):
        open_adapter(path)


@pytest.mark.parametrize(
    ("alpha", "error"),
    [
        (np.array(np.nan, np.float32), NonFiniteError),
        (np.array(np.inf, np.float16), NonFiniteError),
        (np.array(True), AdapterError),
        (np.ones(2, np.float32), ShapeError),
        (np.ones((0,), np.float32), ShapeError),
    ],
)
def test_alphas_that_are_none_are_refused(alpha: Array, error: type[ParamergeError], tmp_path: Path) -> None:
    tensors = kohya_layer(STEM, np.ones((4, 2), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(error, match="an alpha is"):
        open_adapter(save(tmp_path / "l.safetensors", {**tensors, f"{STEM}.alpha": alpha}))


@pytest.mark.parametrize(
    ("up", "down", "mid", "error"),
    [
        ((4, 0), (0, 4), None, AdapterError),
        ((0, 2), (2, 4), None, AdapterError),
        ((4, 2), (3, 4), None, ShapeError),
        ((4, 2, 3, 3), (2, 4, 3, 3), None, ShapeError),
        ((4,), (2, 4), None, ShapeError),
        ((4, 2, 1), (2, 4), None, ShapeError),
        ((4, 2, 1, 1), (2, 4, 1, 1), (3, 2, 3, 3), ShapeError),
        ((4, 2, 1, 1), (2, 4, 3, 3), (2, 2, 3, 3), ShapeError),
        ((4, 2), (2, 4), (2, 2), ShapeError),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    up: tuple[int, ...],
    down: tuple[int, ...],
    mid: tuple[int, ...] | None,
    error: type[ParamergeError],
    tmp_path: Path,
) -> None:
    arrays = [None if shape is None else np.ones(shape, np.float32) for shape in (up, down, mid)]
    tensors = kohya_layer(STEM, arrays[0], arrays[1], mid=arrays[2])  # type: ignore[arg-type]
    with pytest.raises(error):
        open_adapter(save(tmp_path / "l.safetensors", tensors))


def test_whole_numbers_are_no_factors(tmp_path: Path) -> None:
    tensors = kohya_layer(STEM, np.ones((4, 2), np.int64), np.ones((2, 4), np.int64))
    with pytest.raises(AdapterError, match="not stored as floating-point"):
        open_adapter(save(tmp_path / "l.safetensors", tensors))


def test_a_layer_named_twice_is_refused(tmp_path: Path) -> None:
    up, down = np.ones((4, 2), np.float32), np.ones((2, 4), np.float32)
    both = {
        **kohya_layer("lora_unet_mid_block_attentions_0_proj_in", up, down),
        **kohya_layer("lora_unet_middle_block_1_proj_in", up, down),
    }
    with pytest.raises(AdapterError, match="two keys of this file name the same tensor"):
        open_adapter(save(tmp_path / "l.safetensors", both))


def test_an_incomplete_layer_is_listed(tmp_path: Path) -> None:
    tensors = kohya_layer(STEM, np.ones((4, 2), np.float32), np.ones((2, 4), np.float32), 1.0)
    del tensors[f"{STEM}.lora_down.weight"]
    with pytest.raises(AdapterError, match="1 of 1 layers are incomplete") as caught:
        open_adapter(save(tmp_path / "l.safetensors", tensors))
    assert "without down" in str(caught.value.found)


def test_a_numbered_file_with_a_gap_is_refused(shared_dir: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    real = shared_dir / "fixtures" / "adapters" / "cloneofsimo_lora_disney.safetensors"
    with safe_open(real, "np") as file:
        metadata = file.metadata()
    tensors = load_file(real)
    swapped = dict(tensors)
    for side in ("up", "down"):
        swapped[f"unet:3:{side}"], swapped[f"unet:4:{side}"] = (
            tensors[f"unet:4:{side}"],
            tensors[f"unet:3:{side}"],
        )
    broken = {
        "a gap": ({k: v for k, v in tensors.items() if not k.startswith("unet:7:")}, metadata, AdapterError),
        "another walk": (swapped, metadata, ShapeError),
        "no classes": (tensors, {k: v for k, v in metadata.items() if k != "unet"}, AdapterError),
        "other classes": (tensors, {**metadata, "unet": '["ResnetBlock2D"]'}, AdapterError),
        "another rank": (tensors, {**metadata, "unet:0:rank": "4"}, ShapeError),
    }
    for case, (content, entries, error) in broken.items():
        with pytest.raises(error):
            open_adapter(save(tmp_path / f"{case}.safetensors", content, entries))


def test_nan_in_a_factor_shows_in_the_norm(tmp_path: Path) -> None:
    up = np.ones((4, 2), np.float32)
    up[0, 0] = np.nan
    facts = inspect_path(save(tmp_path / "l.safetensors", kohya_layer(STEM, up, np.ones((2, 4), np.float32))))
    assert isinstance(facts, AdapterFacts)
    assert np.isnan(facts.layers[0].norm or 0.0)
