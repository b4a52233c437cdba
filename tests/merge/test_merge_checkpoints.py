"""Checkpoints into one checkpoint: what is copied, what is merged, what is said and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baking import DTYPES, Array, add, load, lora_file, random_factors, shapes_of, small_model
from blueprints import sd15, sdxl
from random_checkpoint import write_random_checkpoint

import paramerge as pm
from paramerge.apply import kernel
from paramerge.bake import stream, tasks, workers
from paramerge.errors import (
    ArchitectureError,
    CheckpointError,
    InputChangedError,
    NonFiniteError,
    OutputError,
    ShapeError,
    UsageError,
)
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.files.writer import write_safetensors
from paramerge.merge.call import plan_merge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of SD1.5's keys at a sixteenth of the widths."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        write_random_checkpoint(sd15(16, vocabulary=50), folder / f"{name}.safetensors", seed=seed)
    return folder


def models(folder: Path, names: str) -> list[Path]:
    return [folder / f"{name}.safetensors" for name in names]


def changed(path: Path, source: Path, **tensors: Array | None) -> Path:
    """A copy with other tensors under these keys (``.`` written ``__``); None leaves one out."""
    content = dict(load(source).tensors)
    for name, array in tensors.items():
        key = name.replace("__", ".")
        content.pop(key, None)
        if array is not None:
            content[key] = array
    write_safetensors(path, content)
    return path


def recipe_of(path: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = json.loads(load(path).metadata[RECIPE_KEY])
    return recipe


def same_bytes(one: Path, other: Path) -> bool:
    return load(one).raw == load(other).raw


SAMPLE = (
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    "model.diffusion_model.out.2.bias",
    "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight",
    "first_stage_model.decoder.conv_in.weight",
)


def test_a_weighted_sum_with_a_lora_is_rounded_once(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = random_factors(shapes_of(a), [layer], 2)
    lora = lora_file(tmp_path / "l.safetensors", factors)
    out = tmp_path / "m.safetensors"
    report = pm.merge([a, b], out, weights=[0.7, 0.3], adapters=[pm.Lora(lora, 0.6)])
    assert report.output == out
    one, two, found = (load(path).tensors for path in (a, b, out))
    assert list(found) == list(one)
    for key in SAMPLE:
        expected = 0.7 * one[key].astype(float) + 0.3 * two[key].astype(float)
        if key == SAMPLE[0]:
            expected = add(expected, *(f.astype(np.float16) for f in factors[layer]), 0.6)
        spacing = np.spacing(np.abs(expected).astype(np.float16)).astype(float)
        assert (np.abs(found[key] - expected) <= 0.502 * spacing + 1e-6).all(), key
    for key in ("cond_stage_model.transformer.text_model.embeddings.position_ids", "betas"):
        assert found[key].tobytes() == one[key].tobytes()


def test_weights_of_one_and_nothing_give_the_first_ones_bytes(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    for method in ("weighted-sum", "slerp", "geometric-median"):
        out = tmp_path / f"{method}.safetensors"
        pm.merge([a, b], out, method=method, weights=[1, 0])
        assert same_bytes(out, a)
    pm.merge([b, a], tmp_path / "other.safetensors", weights=[0, 1])
    keys = [key for key in load(a).raw if not key.endswith("position_ids")]
    assert all(load(tmp_path / "other.safetensors").raw[key] == load(a).raw[key] for key in keys)


def test_a_difference_of_equal_models_adds_nothing(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    pm.merge([a, b, b], tmp_path / "m.safetensors", method="add-difference", strength=0.7)
    assert same_bytes(tmp_path / "m.safetensors", a)


@pytest.mark.parametrize("method", ["weighted-sum", "ties", "slerp", "dare", "cosine-b"])
def test_threads_and_pieces_do_not_matter(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = models(folder, "ab")
    pm.merge(inputs, tmp_path / "one.safetensors", method=method)
    monkeypatch.setattr(workers, "WORKERS", 1)
    for module in (tasks, stream):
        monkeypatch.setattr(module, "BUFFER_BYTES", 1 << 14)
    pm.merge(inputs, tmp_path / "two.safetensors", method=method)
    assert same_bytes(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert threading.active_count() >= 1


def test_the_recipe_says_it_all(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    inputs = models(folder, "abc")
    pm.merge(inputs, out, method="add-difference", strength=0.5, blocks={"MID": 0.25})
    recipe = recipe_of(out)
    assert recipe["recipe"] == 2
    merge = recipe["merge"]
    (step,) = merge["steps"]
    assert step["method"] == "add-difference" and step["strength"] == 0.5
    assert step["inputs"] == ["model 1", "model 2", "model 3"]
    assert step["blocks"]["input 3"]["MID"] == 0.25 and step["blocks"]["input 3"]["IN00"] == 1
    hashes = [file["sha256"] for model in (recipe["base"], *merge["models"]) for file in model["files"]]
    from hashlib import sha256

    assert hashes == [sha256(path.read_bytes()).hexdigest() for path in inputs]
    assert merge["tensors"]["merged"] > 1000
    assert load(out).metadata["modelspec.title"] == "a + b + c (add-difference)"


def test_the_recipe_of_a_bake_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    (a,) = models(folder, "a")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes_of(a), [layer], 2))
    pm.bake(a, [lora], tmp_path / "m.safetensors")
    assert recipe_of(tmp_path / "m.safetensors")["recipe"] == 1
    assert "merge" not in recipe_of(tmp_path / "m.safetensors")


def test_a_private_merge_names_nobody(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "secret-one.safetensors"
    second = tmp_path / "secret-two.safetensors"
    for path, source in zip((first, second), models(folder, "ab"), strict=True):
        path.write_bytes(source.read_bytes())
    pm.merge([first, second], tmp_path / "m.safetensors")
    pm.merge([tmp_path / "m.safetensors", second], tmp_path / "n.safetensors", private=True)
    header = (tmp_path / "n.safetensors").read_bytes()[:400_000]
    assert b"secret" not in header
    assert (
        recipe_of(tmp_path / "n.safetensors")["base_recipe"]["merge"]["steps"][0]["method"] == "weighted-sum"
    )


def test_dtypes_may_differ_and_the_output_may_have_another(folder: Path, tmp_path: Path) -> None:
    (a,) = models(folder, "a")
    b = tmp_path / "b.safetensors"
    write_random_checkpoint(sd15(16, vocabulary=50), b, seed=5, dtype="BF16")
    pm.merge([a, b], tmp_path / "m.safetensors")
    pm.merge([a, b], tmp_path / "n.safetensors", dtype="fp32")
    one, two = load(a).tensors, load(b).tensors
    for key in SAMPLE:
        expected = (one[key].astype(float) + two[key].astype(float)) / 2
        assert (
            load(tmp_path / "m.safetensors").tensors[key].tobytes()
            == expected.astype(DTYPES["F16"]).tobytes()
        )
        assert (
            load(tmp_path / "n.safetensors").tensors[key].tobytes()
            == expected.astype(DTYPES["F32"]).tobytes()
        )


def test_only_what_is_chosen_is_merged(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    pm.merge([a, b], tmp_path / "m.safetensors", only=["unet"])
    one, found = load(a).raw, load(tmp_path / "m.safetensors").raw
    assert {key for key in one if one[key] != found[key]} <= {
        k for k in one if k.startswith("model.diffusion_model.")
    }
    assert found[SAMPLE[0]] != one[SAMPLE[0]]
    with pytest.raises(UsageError, match="nothing of these models is selected"):
        pm.merge([a, b], tmp_path / "n.safetensors", only=["prior"])


def test_blocks_multiply_the_weight_and_the_first_has_the_rest(folder: Path, tmp_path: Path) -> None:
    """The vectors that people share: each number is the second model's share in that block."""
    a, b = models(folder, "ab")
    pm.merge([a, b], tmp_path / "m.safetensors", blocks="WRAP12")
    one, two, found = (load(path).raw for path in (a, b, tmp_path / "m.safetensors"))
    unet = "model.diffusion_model."
    second = [f"input_blocks.{i}." for i in range(6)] + [f"output_blocks.{i}." for i in range(6, 12)]
    for key in one:
        if not key.endswith("position_ids") and found[key] != one[key]:
            assert found[key] == two[key] and key.removeprefix(unet).startswith(tuple(second)), key
    assert (
        found[f"{unet}input_blocks.1.0.in_layers.2.weight"]
        == two[f"{unet}input_blocks.1.0.in_layers.2.weight"]
    )
    vector = ",".join(["0.5"] * 26)
    pm.merge([a, f"{b}@1:{vector}"], tmp_path / "n.safetensors")
    pm.merge([a, b], tmp_path / "o.safetensors", weights=[0.5, 0.5])
    assert same_bytes(tmp_path / "n.safetensors", tmp_path / "o.safetensors")


def test_a_vae_from_another_checkpoint_or_by_itself(folder: Path, tmp_path: Path) -> None:
    a, b, c = models(folder, "abc")
    vae = {k.removeprefix("first_stage_model."): v for k, v in load(c).tensors.items() if "first_stage" in k}
    write_safetensors(tmp_path / "v.safetensors", vae)
    for source in (c, tmp_path / "v.safetensors"):
        out = tmp_path / f"with-{source.name}"
        pm.merge([a, b], out, weights=[1, 0], components={"vae": source})
        one, three, found = (load(path).raw for path in (a, c, out))
        for key in one:
            assert found[key] == (three if key.startswith("first_stage_model.") else one)[key]
        assert recipe_of(out)["merge"]["components"] == {"vae": "model 3"}
    alone = tmp_path / "alone.safetensors"
    pm.merge([a], alone, components={"vae": tmp_path / "v.safetensors"})
    assert same_bytes(alone, out)


def test_ema_and_a_trainers_state_are_left_out_on_request(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    extra: Mapping[str, Any] = {
        "model_ema__diffusion_modelinput_blocks00weight": np.ones((3, 3), np.float16),
        "optimizer__exp_avg": np.ones(3, np.float32),
    }
    with_ema = changed(tmp_path / "a.safetensors", a, **extra)
    pm.merge([with_ema, b], tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").raw.keys() == load(with_ema).raw.keys()
    pm.merge([with_ema, b], tmp_path / "n.safetensors", prune=True)
    pm.merge([a, b], tmp_path / "o.safetensors")
    assert sorted(load(tmp_path / "n.safetensors").raw.items()) == sorted(
        load(tmp_path / "o.safetensors").raw.items()
    )
    assert recipe_of(tmp_path / "n.safetensors")["merge"]["tensors"]["pruned"] == 2


def test_what_a_model_lacks_is_named_or_taken_from_the_first(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    less = changed(tmp_path / "less.safetensors", b, **{SAMPLE[0].replace(".", "__"): None})
    with pytest.raises(CheckpointError, match="lacks 1 tensors") as caught:
        pm.merge([a, less], tmp_path / "m.safetensors")
    assert "attn1.to_q" in str(caught.value)
    pm.merge([a, less], tmp_path / "m.safetensors", allow_unmatched=True)
    assert load(tmp_path / "m.safetensors").raw[SAMPLE[0]] == load(a).raw[SAMPLE[0]]
    assert recipe_of(tmp_path / "m.safetensors")["merge"]["tensors"]["missing"] == 1
    plan = plan_merge([less, a])
    assert any(
        "1 tensors of a.safetensors are not in less.safetensors" in warning for warning in plan.warnings
    )


def test_a_model_without_a_whole_component_says_which(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    unet = tmp_path / "unet.safetensors"
    write_safetensors(
        unet, {k: v for k, v in load(b).tensors.items() if k.startswith("model.diffusion_model.")}
    )
    with pytest.raises(CheckpointError, match="it has no text_encoder and no vae") as caught:
        pm.merge([a, unet], tmp_path / "m.safetensors")
    assert "unet" in str(caught.value.hint)
    pm.merge([a, unet], tmp_path / "m.safetensors", only=["unet"])
    pm.merge([a, b], tmp_path / "n.safetensors", only=["unet"])
    assert same_bytes(tmp_path / "m.safetensors", tmp_path / "n.safetensors")


def test_another_architecture_or_shape_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (a,) = models(folder, "a")
    other = tmp_path / "sdxl.safetensors"
    write_random_checkpoint(sdxl(32, vocabulary=50), other, zeros=True)
    with pytest.raises(ArchitectureError, match="sdxl and sd15 cannot be merged"):
        pm.merge([a, other], tmp_path / "m.safetensors")
    odd = changed(
        tmp_path / "odd.safetensors", a, **{SAMPLE[0].replace(".", "__"): np.ones((3, 20), np.float16)}
    )
    with pytest.raises(ShapeError, match="another shape") as caught:
        pm.merge([a, odd], tmp_path / "m.safetensors")
    assert SAMPLE[0] in str(caught.value)


def test_an_inpainting_model_keeps_its_extra_channels(folder: Path, tmp_path: Path) -> None:
    """inpaint + (custom - base): the mask's channels stay, the others get the difference."""
    a, b, c = models(folder, "abc")
    key = "model.diffusion_model.input_blocks.0.0.weight"
    conv = load(a).tensors[key]
    wide = np.concatenate(
        [conv, np.random.default_rng(0).normal(size=(len(conv), 5, 3, 3)).astype(np.float16)], 1
    )
    inpaint = changed(tmp_path / "inpaint.safetensors", a, **{key.replace(".", "__"): wide})
    for method in ("add-difference", "train-difference"):
        pm.merge([inpaint, b, c], tmp_path / f"{method}.safetensors", method=method)
        found = load(tmp_path / f"{method}.safetensors").tensors[key]
        assert found[:, 4:].tobytes() == wide[:, 4:].tobytes()
        pm.merge([a, b, c], tmp_path / f"plain-{method}.safetensors", method=method)
        assert found[:, :4].tobytes() == load(tmp_path / f"plain-{method}.safetensors").tensors[key].tobytes()
    for inputs, method in (
        ([inpaint, b], "weighted-sum"),
        ([a, inpaint, c], "add-difference"),
        ([inpaint, inpaint, c], "add-difference"),
    ):
        with pytest.raises(ShapeError, match="another shape"):
            pm.merge(inputs, tmp_path / "no.safetensors", method=method)


def test_nan_in_an_input_is_refused_where_it_is_touched(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    bad = np.array(load(b).tensors[SAMPLE[0]])
    bad[1, 1] = np.nan
    path = changed(tmp_path / "nan.safetensors", b, **{SAMPLE[0].replace(".", "__"): bad})
    with pytest.raises(NonFiniteError, match="NaN or Inf") as caught:
        pm.merge([a, path], tmp_path / "m.safetensors")
    assert f"nan.safetensors: {SAMPLE[0]}" in str(caught.value)
    assert not (tmp_path / "m.safetensors").exists()
    pm.merge([a, path], tmp_path / "m.safetensors", only=["text_encoder"])


def test_the_same_model_twice_and_weights_beside_one_are_said(folder: Path) -> None:
    a, b = models(folder, "ab")
    assert any("the same model is given twice" in text for text in plan_merge([a, a]).warnings)
    assert any("sum to 1.2" in text for text in plan_merge([a, b], weights=[0.6, 0.6]).warnings)
    assert not plan_merge([a, b], weights=[0.6, 0.4]).warnings


def test_adapters_among_checkpoints_say_where_they_go(folder: Path, tmp_path: Path) -> None:
    (a,) = models(folder, "a")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes_of(a), [layer], 2))
    with pytest.raises(UsageError, match="not merged with each other") as caught:
        pm.merge([a, lora], tmp_path / "m.safetensors")
    assert "Lora" in str(caught.value)
    with pytest.raises(CheckpointError, match="adapter"):
        pm.merge([lora, lora], tmp_path / "m.safetensors", method="ties")
    with pytest.raises(UsageError, match="does not apply to a merge of checkpoints"):
        pm.merge([a, a], tmp_path / "m.safetensors", energy=0.5)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("a", {"method": "ties"}, "cannot merge this many models"),
        ("ab", {"method": "nonsense"}, "no such merge method"),
        ("ab", {"density": 0.5}, "weighted-sum has no parameter density"),
        ("ab", {"weights": [1, 2, 3]}, "the numbers of weights"),
        ("ab", {"method": "model-stock", "blocks": "MID=1"}, "cannot merge this many models"),
        ("abc", {"method": "model-stock", "blocks": "MID=1"}, "neither weights nor a strength"),
        ("ab", {"components": {"head": "x"}}, "no such component"),
        ("ab", {"blocks": "MID=1,IN20=0"}, "no such block"),
        ("a", {"weights": [1]}, "nothing to merge it with"),
        ("a", {}, "nothing to do with it"),
    ],
)
def test_what_cannot_be_asked_for(
    inputs: str, options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        pm.merge(models(folder, inputs), tmp_path / "m.safetensors", **options)


def test_an_input_is_never_the_output(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    own = tmp_path / "b.safetensors"
    own.write_bytes(b.read_bytes())
    with pytest.raises(OutputError, match="one of the inputs"):
        pm.merge([a, own], own, overwrite=True)


def test_an_input_that_changes_meanwhile_is_refused(folder: Path, tmp_path: Path) -> None:
    a, b = models(folder, "ab")
    other = tmp_path / "b.safetensors"
    other.write_bytes(b.read_bytes())
    plan = plan_merge([a, other])
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    with pytest.raises(InputChangedError):
        plan.write(tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_blocks_of_rows_are_small(folder: Path) -> None:
    assert kernel._BLOCK_ELEMENTS * 8 <= 4 << 20
    assert small_model.__name__ and folder.exists()
