"""Recipes in TOML: graphs of merges, worked out tensor by tensor, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import Array, add, load, random_factors

import paramerge as pm
from paramerge.errors import UsageError
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.files.writer import write_safetensors

LAYER = "transformer.double_blocks.0.img_attn.proj"


def model(path: Path, seed: int) -> Path:
    """A few tensors that are recognised as FLUX's."""
    rng = np.random.default_rng(seed)
    shapes = {
        "img_in.weight": (8, 4),
        "vector_in.in_layer.weight": (8, 8),
        "double_blocks.0.img_attn.qkv.weight": (24, 8),
        "double_blocks.0.img_attn.proj.weight": (8, 8),
        "double_blocks.0.img_attn.norm.query_norm.scale": (8,),
        "single_blocks.0.linear1.weight": (56, 8),
        "final_layer.linear.weight": (4, 8),
        "final_layer.linear.bias": (4,),
    }
    write_safetensors(path, {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()})
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate("abcd"):
        model(tmp_path / f"{name}.safetensors", seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, here: Path, **options: object) -> dict[str, Array]:
    recipe = here / "r.toml"
    recipe.write_text(text)
    pm.merge(recipe, here / "m.safetensors", overwrite=True, **options)  # type: ignore[arg-type]
    return load(here / "m.safetensors").tensors


def tensors(here: Path, name: str) -> dict[str, Array]:
    return {
        key: array.astype(np.float64) for key, array in load(here / f"{name}.safetensors").tensors.items()
    }


GRAPH = """
[models]
one = "a.safetensors"
[steps]
more = {merge = ["mix", "c.safetensors", "d.safetensors"], method = "add-difference", strength = 0.5}
mix = {merge = ["one", "b.safetensors"], weights = [0.6, 0.4]}
"""


def test_nested_merges_are_rounded_once(here: Path) -> None:
    """In whatever order they are written; the layout is that of the innermost first model."""
    found = written(GRAPH, here)
    a, b, c, d = (tensors(here, name) for name in "abcd")
    for key, array in found.items():
        expected = 0.6 * a[key] + 0.4 * b[key] + 0.5 * (c[key] - d[key])
        assert array.tobytes() == expected.astype(np.float32).tobytes(), key


def test_a_step_may_be_used_twice(here: Path) -> None:
    found = written(
        """
        [steps]
        m = {merge = ["a.safetensors", "b.safetensors"]}
        n = {merge = ["m", "c.safetensors"], method = "slerp", weights = [0.5, 0.5]}
        o = {merge = ["m", "n", "c.safetensors"], method = "add-difference"}
        """,
        here,
    )
    pm.merge(["a.safetensors", "b.safetensors"], "half.safetensors", dtype="fp32")
    pm.merge(["half.safetensors", "c.safetensors"], "n.safetensors", method="slerp")
    m, n, c = (tensors(here, name) for name in ("half", "n", "c"))
    for key, array in found.items():
        assert np.allclose(array, m[key] + n[key] - c[key], atol=1e-6)


def test_a_bake_ends_it(here: Path) -> None:
    factors = random_factors({LAYER: (8, 8)}, [LAYER], 2)
    up, down = factors[LAYER]
    write_safetensors(
        here / "l.safetensors",
        {f"{LAYER}.lora_A.weight": down.astype(np.float32), f"{LAYER}.lora_B.weight": up.astype(np.float32)},
    )
    found = written(
        GRAPH
        + 'out = {bake = "more", adapters = [{lora = "l.safetensors", strength = 0.5}], dtype = "fp16"}',
        here,
    )
    a, b, c, d = (tensors(here, name) for name in "abcd")
    for key, array in found.items():
        expected = 0.6 * a[key] + 0.4 * b[key] + 0.5 * (c[key] - d[key])
        if key == "double_blocks.0.img_attn.proj.weight":
            expected = add(expected, up, down, 0.5)
        assert array.dtype == np.float16
        assert (np.abs(array - expected) <= np.spacing(np.abs(expected).astype(np.float16))).all()
    recipe = json.loads(load(here / "m.safetensors").metadata[RECIPE_KEY])
    assert [step["inputs"] for step in recipe["merge"]["steps"]] == [
        ["model 1", "model 2"],
        ["step 1", "model 3", "model 4"],
    ]
    assert recipe["steps"][0]["strength"] == 0.5 and recipe["options"]["dtype"] == "fp16"


def test_options_beside_a_recipe_win(here: Path) -> None:
    found = written(GRAPH, here, dtype="bf16")
    assert {str(array.dtype) for array in found.values()} == {"bfloat16"}
    with pytest.raises(UsageError, match="method does not apply to a recipe"):
        written(GRAPH, here, method="ties")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[steps]\nm = {merge = ['n', 'a.safetensors']}\nn = {merge = ['m', 'a.safetensors']}", "circle"),
        ("[steps]\nm = {merge = ['m', 'a.safetensors']}", "circle"),
        (
            "[steps]\nm = {merge = ['a.safetensors', 'b.safetensors']}\nn = {merge = ['a.safetensors']}",
            "one result",
        ),
        ("steps = 3", "no table"),
        ("[models]\na = 'x'", "no step"),
        ("[steps]\nm = {mix = ['a']}", "merges models or bakes"),
        ("[steps]\nm = {merge = 'a'}", "a list of models"),
        ("[steps]\nm = {merge = []}", "a list of models"),
        ("[steps]\nm = {merge = ['a.safetensors', 'b.safetensors'], method = 3}", "no text"),
        ("[steps]\nm = {merge = ['a', 'b'], density = 0.5}", "no parameter density"),
        (
            "[steps]\nm = {merge = ['a', 'b'], blocks = {3 = 'MID=1'}}",
            "by its number",
        ),
        ("[steps]\nm = {bake = 'a.safetensors', what = 1}", "not understood"),
        ("[steps]\nm = {bake = 'a.safetensors', adapters = [{lokr = 'x'}]}", "a para, a lora"),
        ("[steps]\nm = {bake = 'a.safetensors'}\nn = {merge = ['m', 'b.safetensors']}", "not the last"),
        ("[other]", "not understood"),
        ("not toml", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, here: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        written(text, here)
    assert "r.toml" in str(caught.value) or "density" in message


def test_the_steps_of_a_circle_are_named(here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        written("[steps]\nm = {merge = ['n', 'a']}\nn = {merge = ['o', 'a']}\no = {merge = ['m', 'a']}", here)
    assert all(name in str(caught.value.where).rpartition(": ")[2] for name in "mno")
