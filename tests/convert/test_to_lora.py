"""``convert --rank``: layers of any family as the nearest LoRA of a rank, against NumPy's SVD."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES
from tiny_pipelines import sd_pipeline

import paramerge as pm
from paramerge.adapters import LoraModule
from paramerge.cli.main import main
from paramerge.errors import FamilyError, UsageError
from paramerge.formats import open_adapter

ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "unet.mid_block.resnets.0.conv1"
SHAPES = {ATTENTION: (24, 20), CONV: (12, 8, 3, 3)}
ADDED = ("loha", "lokr-whole-factor", "full", "glora-b")
EPS = 2.0**-23


def cases() -> list[str]:
    """Forms whose change does not depend on the weight, in kohya's names, for both shapes."""
    return [
        case.name
        for case in CASES
        if not case.dependent
        and case.config is None
        and case.family not in ("lora", "norm", "para", "svdiff", "krona")
        and all(map(case.suits, SHAPES.values()))
    ]


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("rank", [2, 100])
def test_the_nearest_lora_and_its_error(name: str, rank: int, tmp_path: Path) -> None:
    """The error that is told is the one of the best rank-r matrix, and what the file then misses."""
    source, _ = next(case for case in CASES if case.name == name).write(tmp_path / "in", SHAPES, "F32")
    report = pm.convert([source], tmp_path / "out", to="kohya", rank=rank, dtype="fp32")
    before, after = open_adapter(source).modules, open_adapter(report.outputs[0]).modules
    told = {str(layer.name): layer for layer in report.layers}
    assert after.keys() == before.keys()
    for layer, module in before.items():
        made = after[layer]
        assert isinstance(made, LoraModule) and made.rank <= rank
        assert made.kernel == SHAPES[str(layer)][2:]
        D = module.delta(np.zeros((1, 1)))
        s = np.linalg.svd(D, compute_uv=False)
        best = float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))
        missed = float(np.linalg.norm(D - made.delta(np.zeros((1, 1)))) / np.linalg.norm(D))
        # factors are rounded to float32: half a unit in each of their products
        assert told[str(layer)].truncation == pytest.approx(missed, abs=8 * EPS)
        assert best - 8 * EPS <= missed <= best + 8 * EPS


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_formats_that_hold_loras_alone(to: str, tmp_path: Path) -> None:
    source, _ = next(case for case in CASES if case.name == cases()[0]).write(tmp_path / "in", SHAPES, "F32")
    out = tmp_path / "out"
    report = pm.convert([source], out, to=to, rank=3)
    made = open_adapter(report.outputs[0].parent if to == "peft" else report.outputs[0])
    assert {module.family for module in made.modules.values()} == {"lora"}
    assert report.truncation > 0.01  # random changes have no rank of 3


def test_families_that_depend_on_the_weight_need_a_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = sd_pipeline(tmp_path / "model")
    weights = pm.open_base(model)
    name = next(n for file in weights.files for n in file.reachable if str(n).endswith("attn1.to_q"))
    shape = next(file.reachable[name].shape for file in weights.files if name in file.reachable)
    case = next(case for case in CASES if case.dependent and case.config is None and case.suits(shape))
    source, _ = case.write(tmp_path / "in", {str(name): shape}, "F32")
    with pytest.raises(FamilyError, match="depends on the weights of a base"):
        pm.convert([source], tmp_path / "none", to="kohya", rank=2)
    words = ["convert", source, "--to", "kohya", "--rank", "100", "--base", model, "-o", tmp_path / "out"]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--dtype", "fp32", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert not stop.value.code
    assert content["truncation_error"] < 1e-5  # all of the change is in it
    pm.bake(model, [source], tmp_path / "one")
    pm.bake(model, [tmp_path / "out.safetensors"], tmp_path / "two")
    one, two = (_weight(tmp_path / folder, str(name).removeprefix("unet.")) for folder in ("one", "two"))
    assert np.abs(one - two).max() <= 1e-4 * np.abs(one).max()


def _weight(folder: Path, layer: str) -> np.ndarray:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return tensors[f"{layer}.weight"].astype(np.float64)


def test_a_rank_that_lowers_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lowers none") as caught:
        pm.convert(["blueprint"], tmp_path / "out", to="kohya", rank=4)
    assert "resize" in str(caught.value.hint)
    with pytest.raises(UsageError, match="rank is out of range"):
        pm.convert(["blueprint"], tmp_path / "out", to="kohya", rank=0)


def test_what_a_format_cannot_hold_is_offered_as_a_lora(tmp_path: Path) -> None:
    source, _ = next(case for case in CASES if case.family == "loha").write(tmp_path / "in", SHAPES, "F32")
    with pytest.raises(FamilyError) as caught:
        pm.convert([source], tmp_path / "out", to="diffusers")
    assert "rank=32" in str(caught.value.hint)
