"""The part of each step's change that the output keeps, against float64; warnings, refusals, lifts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import (
    DTYPES,
    add,
    load,
    lora_file,
    para_file,
    plan_of,
    random_bases,
    random_factors,
    remove,
    rounded,
)
from family_cases import CASES
from numpy.typing import NDArray

import paramerge as pm
from paramerge.apply import kernel, survival
from paramerge.apply.sampling import Grid
from paramerge.apply.steps import Step
from paramerge.apply.stochastic import StochasticRounder
from paramerge.apply.survival import Probe, pooled
from paramerge.bake import stream, tasks, workers
from paramerge.bake.bake import BakeReport, bake
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.errors import LossError, UsageError
from paramerge.files.writer import write_safetensors
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights

Matrix = NDArray[np.float64]
NARROW = ("F16", "BF16", "F8_E4M3", "F8_E5M2")
TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TO_V = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
CONV = "unet.down_blocks.1.resnets.0.conv1"


def kept(written: Matrix, meant: Matrix, change: Matrix) -> float:
    """``<Y - (W_n - d), d> / <d, d>``."""
    return float(np.sum((written - (meant - change)) * change) / np.sum(change * change))


def by_layer(report: BakeReport) -> dict[str, dict[str, Any]]:
    return {layer["name"]: layer for layer in report.as_dict()["layers"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["F32", *NARROW])
def test_each_of_several_steps(models, tmp_path: Path, dtype: str) -> None:
    """A PaRa, a LoRA, a family that depends on the weight, and a LoRA once more, on the same layers."""
    base = models("sd15", layout="diffusers-folder", dtype=dtype)
    shapes = {layer: shape for layer, shape in _shapes(base).items() if layer in (TO_Q, TO_V, CONV)}
    bases = random_bases(shapes, list(shapes), 2)
    first, second = (random_factors(shapes, list(shapes), 2, seed, 0.002) for seed in (1, 2))
    case = next(case for case in CASES if case.name == "ia3-out")
    some = {TO_V: shapes[TO_V], CONV: shapes[CONV]}  # TO_Q is streamed, these are held as a whole
    path, stored = case.write(tmp_path / "ia3", some)
    steps = (
        Step("para", para_file(tmp_path / "p.safetensors", bases, dtype="F32"), 0.4),
        Step("lora", lora_file(tmp_path / "a.safetensors", first, dtype="F32"), 0.8),
        Step("adapter", path, 0.02),
        Step("lora", lora_file(tmp_path / "b.safetensors", second, dtype="F32"), -0.3),
    )
    report = bake(plan_of(base, *steps, accept_loss=True), tmp_path / "out")
    before, after, layers = (
        matrices(base, shapes),
        matrices(tmp_path / "out", shapes),
        by_layer(report),
    )
    for layer, shape in shapes.items():
        W = [before[layer]]
        W.append(remove(W[-1], rounded(bases[layer], "F32"), 0.4))
        W.append(add(W[-1], *first[layer], 0.8))
        W.append(case.expected(stored[layer], W[-1], shape, 0.02) if layer in some else W[-1])
        W.append(add(W[-1], *second[layer], -0.3))
        wanted = {
            str(step + 1): kept(after[layer], W[-1], W[step + 1] - W[step])
            for step in range(4)
            if layer in some or step != 2
        }
        assert layers[layer]["sampled"] == 1
        assert layers[layer]["survival"] == pytest.approx(wanted, abs=1e-5 if dtype == "F32" else 0.004)
        error = np.linalg.norm(after[layer] - W[-1]) / np.linalg.norm(W[-1] - W[0])
        assert layers[layer]["error"] == pytest.approx(error, rel=0.01)
    if dtype.startswith("F8"):
        assert any(
            not 0.95 < value < 1.05 for layer in layers.values() for value in layer["survival"].values()
        )


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BF16"])
def test_every_form_of_every_family(models, tmp_path: Path, dtype: str) -> None:
    base = models("sd15", layout="diffusers-folder", dtype=dtype)
    steps, wanted = [], {}
    left = _shapes(base)
    for place, case in enumerate(CASES):
        layers = [layer for layer, shape in left.items() if layer.startswith("unet") and case.suits(shape)]
        shapes = {layer: left.pop(layer) for layer in layers[:2]}
        path, stored = case.write(tmp_path / str(place), shapes, "F32", seed=place)
        strength = 0.05 if case.linear_strength else 1.0
        steps.append(Step("adapter", path, strength))
        wanted |= {layer: (place, case, stored[layer], shape, strength) for layer, shape in shapes.items()}
    report = bake(plan_of(base, *steps, accept_loss=True), tmp_path / "out")
    before, after, layers = (
        matrices(base, wanted),
        matrices(tmp_path / "out", wanted),
        by_layer(report),
    )
    sums = np.zeros((len(steps), 2))
    for layer, (place, case, tensors, shape, strength) in wanted.items():
        meant = case.expected(tensors, before[layer], shape, strength)
        change = meant - before[layer]
        found = layers[layer]["survival"]
        assert found == {str(place + 1): pytest.approx(kept(after[layer], meant, change), abs=0.005)}, case
        sums[place] += kept(after[layer], meant, change) * np.sum(change**2), np.sum(change**2)
    for step, (carried, size) in zip(report.survival.steps, sums, strict=True):
        if len(step.layers) == sum(
            wanted[name][0] == report.survival.steps.index(step) for name in step.layers
        ):
            assert step.survival == pytest.approx(carried / size, abs=0.005)  # without biases beside them


def test_all_of_a_change_is_in_float32(models, tmp_path: Path) -> None:
    """To eps times how much larger the weight is than the change."""
    base = models("sd15", dtype="F32")
    factors = random_factors(_shapes(base), [TO_Q, CONV], 2)
    report = pm.bake(base, [lora_file(tmp_path / "l.safetensors", factors)], tmp_path / "out.safetensors")
    assert report.survival.steps[0].survival == pytest.approx(1, abs=1e-6)
    assert not report.warnings
    assert report.survival.error is not None
    assert report.survival.error < 1e-4


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F32"])
def test_changes_too_small_for_the_arithmetic_are_lost(tmp_path: Path, dtype: str) -> None:
    """A billionth of the weight: float32 knows nothing of it in a sum, and the factors do."""
    base, lora = _model(tmp_path, {"a": dtype}, percent=1e-7)
    report = pm.bake(base, [lora], tmp_path / "out", accept_loss=True)
    assert report.survival.steps[0].survival == pytest.approx(0, abs=0.3)
    if dtype != "F32":  # which rounds some up, and by as much more
        assert report.survival.steps[0].survival == 0
        assert report.survival.error == pytest.approx(1)


def test_nothing_to_keep_is_no_loss(tmp_path: Path) -> None:
    """Factors that are zero, and a strength of 0."""
    base, lora = _model(tmp_path, {"a": "F8_E4M3", "b": "F8_E4M3"}, percent=0)
    for adapter in (lora, pm.Lora(lora, 0.0)):
        report = pm.bake(base, [adapter], tmp_path / "out", overwrite=True)
        assert report.survival.steps[0].survival is None
        assert report.survival.error is None
        assert not report.warnings
        assert load(tmp_path / "out").raw == load(base).raw


@pytest.mark.parametrize("dtype", NARROW)
def test_directions_that_are_gone_already_are_no_loss(models, tmp_path: Path, dtype: str) -> None:
    """The same PaRa into its own output: rounding is all that is left to remove."""
    base = models("sd15", dtype=dtype)
    para = para_file(tmp_path / "p.safetensors", random_bases(_shapes(base), [TO_Q, CONV], 3))
    once = pm.bake(base, [para], tmp_path / "once.safetensors").survival.steps[0]
    assert once.survival == pytest.approx(1, abs=0.1)
    twice = pm.bake(tmp_path / "once.safetensors", [para], tmp_path / "twice.safetensors")
    assert twice.survival.steps[0].survival is None
    assert not twice.warnings


def test_a_sample_says_its_error_and_keeps_to_it(tmp_path: Path) -> None:
    """A layer of two million elements; the exact figure is within the deviation stated, or twice that."""
    base, lora = _model(tmp_path, {"a": "F8_E4M3", "b": "F16"}, percent=3, shape=(2048, 1024))
    report = pm.bake(base, [lora], tmp_path / "out")
    before, after, layers = load(base).tensors, load(tmp_path / "out").tensors, by_layer(report)
    for name in "ab":
        layer = layers[f"model.model.layers.0.{name}"]
        key = f"model.layers.0.{name}.weight"
        change = _change(lora, name)
        exact = kept(after[key].astype(np.float64), before[key].astype(np.float64) + change, change)
        assert 0.005 < layer["sampled"] < 0.5
        assert 0 < layer["deviation"]["1"] < 0.02
        assert abs(layer["survival"]["1"] - exact) < 2 * layer["deviation"]["1"]
    assert layers["model.model.layers.0.a"]["survival"]["1"] < 0.8
    assert report.survival.steps[0].deviation > 0


@pytest.mark.parametrize("size", [(100, 64, 500), (37, 53, 100), (320, 720, 9000), (5, 1, 3), (64, 48, 1000)])
def test_samples_are_runs_of_every_row(size: tuple[int, int, int]) -> None:
    rows, columns, wanted = size
    grid = Grid.of(rows, columns, wanted)
    M = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = [row % grid.groups * grid.width for row in range(rows)]
    expected = torch.stack([M[row, start : start + grid.width] for row, start in enumerate(starts)])
    assert wanted / 3 <= grid.size <= max(3 * wanted, rows)
    assert len({*starts}) * grid.width > 0.75 * min(columns, rows * grid.width)  # of every column
    assert torch.equal(grid.taken(M), expected)
    found = torch.zeros_like(expected)
    for start in range(0, rows, 13):
        grid.take(M[start : start + 13].clone(), start, found)
    assert torch.equal(found, expected)
    left, right = M[:, : min(3, columns)].clone(), M[: min(3, columns)].clone()
    assert torch.allclose(grid.of_product(left, right), grid.taken(left @ right))


def test_deviations_are_those_of_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 layers the spread of samples about the whole is what each of them states."""
    monkeypatch.setitem(survival._ELEMENTS, "F16", 1024)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        before = torch.from_numpy(rng.normal(size=(128, 64)))
        change = torch.from_numpy(rng.normal(size=(128, 64)))
        written = before + change + torch.from_numpy(rng.normal(size=(128, 64)))
        probe = Probe("", [(0,)], [0.0], (0, 128, 64), "F16", torch.float64)
        probe.before(before, 0)
        probe.after(written, 0)
        result = probe.result(lambda grid, change=change: [grid.taken(change)])
        assert result is not None
        assert result.sampled == 1 / 8
        ratio, deviation = pooled(result.shares)
        assert ratio is not None
        exact = kept(written.numpy(), (before + change).numpy(), change.numpy())
        found.append((ratio - exact, deviation))
    off, stated = np.array(found).T
    assert np.std(off) * survival.SURE == pytest.approx(np.mean(stated), rel=0.2)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_same_bytes_whatever_the_threads_and_blocks(
    models, tmp_path: Path, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = models("sd15", dtype="F8_E4M3")
    shapes = _shapes(base)
    layers = [layer for layer in shapes if "mid_block.attentions" in layer or "conv1" in layer]
    steps = (
        Step("para", para_file(tmp_path / "p.safetensors", random_bases(shapes, layers, 2)), 0.1),
        Step("lora", lora_file(tmp_path / "l.safetensors", random_factors(shapes, layers, 2, size=0.005))),
    )

    def digest(name: str) -> str:
        bake(plan_of(base, *steps, rounding=rounding, accept_loss=True), tmp_path / name)
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    wanted = digest("four.safetensors")
    monkeypatch.setattr(workers, "WORKERS", 1)
    assert digest("one.safetensors") == wanted
    if rounding == "stochastic":
        monkeypatch.setattr(tasks, "BUFFER_BYTES", 20_000)
        monkeypatch.setattr(stream, "BUFFER_BYTES", 20_000)
        monkeypatch.setattr(kernel, "_BLOCK_ELEMENTS", 3_000)
        digest("small.safetensors")
        one, small = (load(tmp_path / f"{name}.safetensors").raw for name in ("one", "small"))
        pairs = [(np.frombuffer(one[key], np.uint8), np.frombuffer(small[key], np.uint8)) for key in one]
        off = sum(np.count_nonzero(a != b) for a, b in pairs)  # a sum of float32 in another order
        assert off < 1e-5 * sum(len(a) for a, _ in pairs)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BF16"])
def test_stochastic_rounding_is_unbiased_over_keys(dtype: str) -> None:
    """Survival over many keys is 1, within four standard errors of their mean; of nearest it is not."""
    rng = np.random.default_rng(1)
    W = torch.from_numpy(rng.normal(0, 0.02, (64, 64)).astype(DTYPES[dtype]).astype(np.float64))
    change = torch.from_numpy(rng.normal(0, 0.02 * (0.005 if dtype == "F8_E4M3" else 0.0003), (64, 64)))

    def found(rounder: Any, *place: int) -> float:
        target = torch.empty((64, 64), dtype=kernel.torch_dtype(dtype))
        rounder.put(W + change, target, *place)
        return kept(target.to(torch.float64).numpy(), (W + change).numpy(), change.numpy())

    values = [found(StochasticRounder(f"key {n}", dtype), 0) for n in range(150)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - 1) < 4 * standard_error
    assert standard_error < 0.05
    assert found(kernel.Rounder()) < 0.5


def test_stochastic_rounding_touches_only_what_changes(tmp_path: Path) -> None:
    """A conversion of layers that no step changes is to nearest."""
    base, lora = _model(tmp_path, {"a": "F32", "b": "F32"}, percent=1, of="a")
    for rounding in ("nearest", "stochastic"):
        pm.bake(base, [lora], tmp_path / rounding, dtype="fp16", rounding=rounding)  # type: ignore[arg-type]
    one, other = (load(tmp_path / rounding).raw for rounding in ("nearest", "stochastic"))
    assert [key for key in one if one[key] != other[key]] == ["model.layers.0.a.weight"]


def test_plain_fp8_is_refused(tmp_path: Path) -> None:
    """What was called changed before: a LoRA of one percent leaves a thousandth of itself."""
    base, lora = _model(tmp_path, {"a": "F8_E4M3", "b": "F8_E4M3"}, percent=1, shape=(256, 256))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LossError) as caught:
        pm.bake(base, [lora], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert caught.value.exit_code == 12
    assert "lora.safetensors" in str(caught.value.where)
    assert "over 2 layers" in str(caught.value.found)
    report = pm.bake(base, [lora], tmp_path / "out", accept_loss=True)
    assert report.survival.steps[0].survival == pytest.approx(0.015, abs=0.01)
    (warning,) = report.warnings
    assert "2 of 2 layers" in warning
    assert "lift" in warning


def test_an_output_that_is_there_is_kept_when_it_is_refused(tmp_path: Path) -> None:
    base, lora = _model(tmp_path, {"a": "F8_E4M3"}, percent=1)
    pm.bake(base, [lora], tmp_path / "out", lift="bf16")
    before = load(tmp_path / "out").raw
    there = sorted(tmp_path.iterdir())
    with pytest.raises(LossError):
        pm.bake(base, [lora], tmp_path / "out", overwrite=True)
    assert load(tmp_path / "out").raw == before
    assert sorted(tmp_path.iterdir()) == there


def test_the_whole_step_decides(tmp_path: Path) -> None:
    """One layer of three is lost, and it is a third of the change: said, not refused."""
    base, lora = _model(tmp_path, {"a": "F16", "b": "F8_E4M3", "c": "F16"}, percent=1)
    report = pm.bake(base, [lora], tmp_path / "out")
    (step,) = report.survival.steps
    assert list(step.low) == ["model.model.layers.0.b"]
    assert step.survival is not None
    assert 0.5 < step.survival < 0.8
    assert "1 of 3 layers" in report.warnings[0]
    assert "model.model.layers.0.b 0.0" in report.warnings[0]


def test_paras_that_are_merged_jointly_have_one_survival(tmp_path: Path, models) -> None:
    base = models("sd15", dtype="F8_E4M3")
    bases = [random_bases(_shapes(base), [TO_Q], 2, seed) for seed in (0, 1)]
    paras = [para_file(tmp_path / f"{n}.safetensors", found) for n, found in enumerate(bases)]
    report = pm.bake(base, paras, tmp_path / "out.safetensors")
    one, other = report.survival.steps
    assert one.survival == other.survival
    assert one.layers == other.layers


def test_lift_raises_the_layers_that_need_it_and_no_others(tmp_path: Path) -> None:
    sizes = {"a": 0.5, "b": 30, "c": 3, "d": 40}
    base, lora = _model(tmp_path, dict.fromkeys(sizes, "F8_E4M3"), percent=sizes)
    plain = by_layer(pm.bake(base, [lora], tmp_path / "plain", accept_loss=True))
    low = {name for name, layer in plain.items() if layer["survival"]["1"] < 0.9}
    assert len(low) == 2
    plan = pm.plan_bake(base, [lora], lift="bf16")
    assert {layer.name for layer in plan.lifted} == low
    assert {layer.name: layer.survival for layer in plan.lifted} == {
        name: pytest.approx(plain[name]["survival"]["1"]) for name in low
    }
    report = plan.write(tmp_path / "out")
    for name, layer in by_layer(report).items():
        assert layer["dtype"] == ("BF16" if name in low else "F8_E4M3")
        assert layer["survival"]["1"] > 0.9
    assert not report.warnings
    found, before = load(tmp_path / "out"), load(base)
    for key, tensor in found.tensors.items():
        lifted = f"model.{key.removesuffix('.weight')}" in low
        assert tensor.dtype == (DTYPES["BF16"] if lifted else before.tensors[key].dtype)
    recipe = json.loads(found.metadata["paramerge.recipe"])
    assert recipe["options"]["lift"] == "bf16"
    assert recipe["lifted"]["layers"] == 2
    assert set(recipe["lifted"]["worst"]) == low
    pm.replay(tmp_path / "out", tmp_path / "again", models=[tmp_path])
    assert load(tmp_path / "again").raw == found.raw


def test_lift_counts_the_index_of_a_folder_anew(tmp_path: Path) -> None:
    base, lora = _model(tmp_path, {"a": "F8_E4M3"}, percent=1)
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    index["weight_map"] = dict.fromkeys(load(base).tensors, "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    pm.bake(base, [lora], tmp_path / "out", lift="bf16")
    total = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(len(raw) for raw in load(tmp_path / "out").raw.values())


def test_a_lift_that_cannot_raise_anything_says_so(tmp_path: Path) -> None:
    base, lora = _model(tmp_path, {"a": "F16"}, percent=1)
    plan = pm.plan_bake(base, [lora], lift="bf16")
    assert not plan.lifted
    assert any("raises nothing" in warning for warning in plan.warnings)
    with pytest.raises(UsageError, match="lift"):
        pm.plan_bake(base, [lora], lift="F64")
    with pytest.raises(UsageError, match="rounding"):
        pm.plan_bake(base, [lora], rounding="up")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"lift": "bf16"}, {"accept_loss": True}])
def test_a_merge_of_adapters_refuses_what_is_of_checkpoints(
    tmp_path: Path, options: Mapping[str, Any]
) -> None:
    _, lora = _model(tmp_path, {"a": "F16"}, percent=1)
    with pytest.raises(UsageError, match="merge of adapters"):
        pm.merge([lora, lora], tmp_path / "out.safetensors", **options)


def test_a_merge_of_checkpoints_measures_the_steps_baked_into_it(tmp_path: Path) -> None:
    """In plain fp8: two models, and a LoRA of one percent into their mean."""
    base, lora = _model(tmp_path, {"a": "F8_E4M3", "b": "F8_E4M3"}, percent=1)
    with pytest.raises(LossError):
        pm.merge([base, base], tmp_path / "out", adapters=[lora])
    report = pm.merge([base, base], tmp_path / "out", adapters=[lora], lift="bf16")
    assert isinstance(report, BakeReport)
    assert report.survival.steps[0].survival == pytest.approx(1, abs=0.01)
    recipe = report.recipe
    assert recipe["options"]["lift"] == "bf16"  # type: ignore[index]


def test_the_command_says_warns_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, lora = _model(tmp_path, {"a": "F8_E4M3", "b": "F8_E4M3"}, percent=1)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, ("bake", "--base", base, "--lora", lora, "--overwrite", *arguments))])
        return int(caught.value.code or 0), *capsys.readouterr()

    code, _, err = run("-o", tmp_path / "out")
    assert code == 12
    assert "--accept-loss" in err
    assert "--lift bf16" in err
    assert not (tmp_path / "out").exists()
    code, out, err = run("-o", tmp_path / "out", "--accept-loss")
    assert code == 0
    assert "kept of each step's change: 1: 0.0" in out
    assert "2 of 2 layers" in " ".join(err.split())
    code, out, _ = run("-o", tmp_path / "out", "--accept-loss", "--json")
    report = json.loads(out)["report"]
    (step,) = report["survival"]["steps"]
    assert step["survival"] < 0.1
    assert step["layers"] == len(step["low"]) == 2
    assert report["survival"]["error"] == pytest.approx(1, abs=0.1)
    assert len(report["warnings"]) == 1
    recipe = report["recipe"]
    assert recipe["options"]["accept_loss"] is True
    assert recipe["survival"]["steps"][0]["low"] == 2
    assert len(recipe["survival"]["steps"][0]["worst"]) == 2
    code, out, err = run("-o", tmp_path / "out", "--rounding", "stochastic")
    assert code == 0
    assert "warning" not in err
    code, out, _ = run("-o", tmp_path / "l", "--lift", "bf16", "--dry-run")
    assert code == 0
    assert "2 layers raised to BF16" in out
    assert not (tmp_path / "l").exists()
    code, out, _ = run("-o", tmp_path / "l", "--lift", "bf16", "--json")
    assert [layer["after"] for layer in json.loads(out)["plan"]["lifted"]] == ["BF16", "BF16"]


@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"accept_loss": True}, {"lift": "fp32"}])
def test_replays_have_the_same_bytes(tmp_path: Path, options: Mapping[str, Any]) -> None:
    base, lora = _model(tmp_path, {"a": "F8_E4M3", "b": "F8_E4M3"}, percent=1)
    pm.bake(base, [lora], tmp_path / "once", **options)
    pm.replay(tmp_path / "once", tmp_path / "again", models=[tmp_path])
    for name in ("model.safetensors", "paramerge_recipe.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    if "accept_loss" in options:  # an older recipe says nothing of it
        content = json.loads((tmp_path / "once/paramerge_recipe.json").read_text())
        del content["options"]["accept_loss"]
        (tmp_path / "recipe.json").write_text(json.dumps(content))
        with pytest.raises(LossError):
            pm.replay(tmp_path / "recipe.json", tmp_path / "third")
        pm.replay(tmp_path / "recipe.json", tmp_path / "third", accept_loss=True)


def test_a_recipe_has_room_for_long_names_and_large_figures(tmp_path: Path) -> None:
    """The place of the data is known before the figures are: the header never grows."""
    name = "long" * 30
    base, lora = _model(tmp_path, {name: "F8_E4M3", "b": "F16"}, percent=0.001)
    pm.bake(base, [lora], tmp_path / "out", accept_loss=True)
    (step,) = json.loads(load(tmp_path / "out").metadata["paramerge.recipe"])["survival"]["steps"]
    assert any(name in layer for layer in step["worst"])
    assert load(tmp_path / "out").tensors.keys() == load(base).tensors.keys()


def matrices(base: Path, layers: Iterable[str]) -> dict[str, Matrix]:
    weights = BaseWeights(open_base(base))
    return {layer: weights.matrix(ModuleName.parse(layer)) for layer in layers}


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    from baking import shapes_of

    return shapes_of(base)


def _model(
    folder: Path,
    dtypes: Mapping[str, str],
    *,
    percent: float | Mapping[str, float],
    shape: tuple[int, int] = (96, 64),
    of: str = "",
) -> tuple[Path, Path]:
    """A model's folder with a layer of each dtype, and a LoRA of so many percent of their norms."""
    rng = np.random.default_rng(0)
    base, tensors, factors = folder / "base", {}, {}
    for name, dtype in dtypes.items():
        W = rng.normal(0, 0.02, shape).astype(DTYPES[dtype])
        up, down = rng.normal(size=(shape[0], 4)), rng.normal(size=(4, shape[1]))
        size = percent[name] if isinstance(percent, Mapping) else percent
        down *= size / 100 * np.linalg.norm(W.astype(np.float64)) / np.linalg.norm(up @ down)
        tensors[f"model.layers.0.{name}.weight"] = W
        if not of or name in of:
            for end, factor in (("lora_A", down), ("lora_B", up)):
                factors[f"model.layers.0.{name}.{end}.weight"] = factor.astype(np.float32)
    tensors["model.embed_tokens.weight"] = rng.normal(size=(8, shape[1])).astype(np.float16)
    lora = folder / "lora.safetensors"
    write_safetensors(lora, factors, {})
    base.mkdir()
    write_safetensors(base / "model.safetensors", tensors, {})
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return base, lora


def _change(lora: Path, name: str) -> Matrix:
    factors = load(lora).tensors
    up, down = (
        factors[f"model.layers.0.{name}.{end}.weight"].astype(np.float64) for end in ("lora_B", "lora_A")
    )
    return up @ down
