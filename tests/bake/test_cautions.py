"""Strengths that nobody means, adapters that are in it twice, and plain fp8: said, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from baking import plan_of

from paramerge.apply.steps import Kind, Step, parse_step
from paramerge.bake.bake import bake
from paramerge.errors import UsageError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.merge.combine import combine
from paramerge.merge.request import CombineOptions, Input, parse_input

KEY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    rng = np.random.default_rng(0)
    shapes = {"lora_A": (2, 8), "lora_B": (8, 2)}
    tensors = {f"{KEY}.{end}.weight": rng.normal(size=s).astype(np.float32) for end, s in shapes.items()}
    write_safetensors(path, tensors, {})
    return path


def of_a_unet(path: Path) -> Path:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    sides = {"lora_down": np.ones((2, 8), np.float32), "lora_up": np.ones((8, 2), np.float32)}
    write_safetensors(
        path, {f"{stem}.{side}.weight": value for side, value in sides.items()}, {}, overwrite=True
    )
    return path


def model(folder: Path, dtype: str = "F16") -> Path:
    from baking import DTYPES

    folder.mkdir()
    W = np.ones((8, 8)).astype(DTYPES[dtype])
    write_safetensors(folder / "model.safetensors", {f"{KEY}.weight": W, "model.embed_tokens.weight": W}, {})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize("kind", ["lora", "adapter"])
@pytest.mark.parametrize("text", ["@101", "@-500", "@80:IN04=2", "@1:MID=1e3", "@nan", "@inf"])
def test_strengths_that_nobody_means_are_refused(kind: Kind, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_step(kind, f"x.safetensors{text}")
    assert caught.value.found


@pytest.mark.parametrize("text", ["@80000", "@-101"])
def test_a_merge_refuses_them_too(text: str) -> None:
    with pytest.raises(UsageError, match="too large"):
        parse_input(f"x.safetensors{text}")


@pytest.mark.parametrize(
    ("strength", "warned"), [(4, False), (-4, False), (4.5, True), (-80, True), (1, False)]
)
def test_strengths_beyond_the_usual_are_warned_of(
    tmp_path: Path, lora: Path, strength: float, warned: bool
) -> None:
    plan = plan_of(model(tmp_path / "base"), Step("adapter", lora, strength))
    assert any(f"style.safetensors is applied at {strength:g}" in text for text in plan.warnings) == warned
    named = of_a_unet(tmp_path / "style.safetensors")
    report = combine(
        [Input(named, strength)], [open_adapter(named)], tmp_path / "m.safetensors", CombineOptions()
    )
    assert any("is applied at" in text for text in report.warnings) == warned


def test_the_same_adapter_twice(tmp_path: Path, lora: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(lora, copy)
    base = model(tmp_path / "base")
    for other in (lora, copy):
        plan = plan_of(base, Step("adapter", lora), Step("adapter", other, 0.5))
        assert any("given twice" in text for text in plan.warnings)
    assert not any("twice" in text for text in plan_of(base, Step("adapter", lora)).warnings)
    named = of_a_unet(tmp_path / "unet.safetensors")
    report = combine(
        [Input(named)] * 2, [open_adapter(named)] * 2, tmp_path / "m.safetensors", CombineOptions()
    )
    assert any("given twice" in text for text in report.warnings)


def test_an_adapter_that_is_in_the_base_already(tmp_path: Path, lora: Path) -> None:
    base = model(tmp_path / "base")
    bake(plan_of(base, Step("adapter", lora)), tmp_path / "once")
    again = plan_of(tmp_path / "once", Step("adapter", lora))
    assert any("baked into it already" in text for text in again.warnings)
    bake(again, tmp_path / "twice")  # and through the recipe of a recipe
    assert any("already" in text for text in plan_of(tmp_path / "twice", Step("adapter", lora)).warnings)
    assert not any("already" in text for text in plan_of(base, Step("adapter", lora)).warnings)


def test_plain_fp8_keeps_little(tmp_path: Path, lora: Path) -> None:
    step = Step("adapter", lora)
    assert any("keeps little" in t for t in plan_of(model(tmp_path / "f8", "F8_E4M3"), step).warnings)
    assert not any("keeps little" in t for t in plan_of(model(tmp_path / "f16"), step).warnings)
