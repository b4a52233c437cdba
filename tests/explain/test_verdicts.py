"""Verdicts of ``explain`` where it is not plain: copies, unknown content, coarse dtypes, other families."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from baking import DTYPES, load
from random_mixtures import SHAPES, Matrix, Mixture, Workshop, bake, mixed, workshop, write_lora, write_model

import paramerge as pm
from paramerge.explain.findings import AdapterFinding, Explanation
from paramerge.files.writer import write_safetensors


@pytest.fixture
def made(tmp_path: Path) -> Workshop:
    return workshop(tmp_path / "shop", seed=3)


def findings(found: Explanation) -> dict[str, AdapterFinding]:
    return {finding.name.removesuffix(".safetensors"): finding for finding in found.adapters}


def explained(made: Workshop, mixture: Mixture, tmp_path: Path) -> Explanation:
    tuned = bake(made, mixture, tmp_path / "tuned")
    return pm.explain(tuned, made.base(mixture.dtype), made.adapters)


def written(made: Workshop, weights: dict[str, Matrix], dtype: str, tmp_path: Path) -> Path:
    write_model(tmp_path / "tuned", weights, dtype)
    return tmp_path / "tuned"


def test_nothing_is_in_the_base_and_bounds_are_those_of_rounding(made: Workshop, tmp_path: Path) -> None:
    base = made.base("F16")
    shutil.copytree(base, tmp_path / "same")
    found = pm.explain(tmp_path / "same", base, made.adapters)
    assert {finding.verdict for finding in found.adapters} == {"absent"}
    assert not found.layers and found.unexplained == 0 and not found.order.steps
    most = findings(found)["l"].most
    assert 0 < most < 0.1
    for factor, changed in ((0.999, False), (1.001, True)):
        strengths = (("l", factor * most),)
        weights = {k: mixed(made, Mixture(strengths, True, "F16"), k) for k in SHAPES}
        moved = any(
            np.any(W.astype(np.float16) != made.weights[k].astype(np.float16)) for k, W in weights.items()
        )
        assert moved == changed


def test_a_copy_is_left_out_and_a_scaled_one_cannot_be_told(made: Workshop, tmp_path: Path) -> None:
    shutil.copy(made.adapters / "l.safetensors", made.adapters / "z.safetensors")
    tensors = load(made.adapters / "l.safetensors").tensors
    doubled = {k: (2 * v.astype(np.float32) if "lora_B" in k else v) for k, v in tensors.items()}
    write_safetensors(made.adapters / "double.safetensors", doubled, {})
    found = explained(made, Mixture((("l", 0.7), ("m", 0.4)), True, "F16"), tmp_path)
    assert found.left_out == {"z.safetensors": "the same file as l.safetensors"}
    by_name = findings(found)
    for name, other in (("l", "double"), ("double", "l")):
        assert by_name[name].verdict == "unclear" and by_name[name].like == (f"{other}.safetensors",)
    assert by_name["m"].verdict == "there" and abs(by_name["m"].strength - 0.4) < 2 * by_name["m"].bar
    assert found.unexplained == 0


def test_a_near_copy_is_told_where_the_dtype_allows(made: Workshop, tmp_path: Path) -> None:
    tensors = load(made.adapters / "l.safetensors").tensors
    rng = np.random.default_rng(0)
    near = {
        k: v.astype(np.float32) * (1 + 3e-5 * rng.normal(size=v.shape)).astype(np.float32)
        for k, v in tensors.items()
    }
    write_safetensors(made.adapters / "near.safetensors", near, {})
    mixture = Mixture((("l", 0.7),), True, "F32")
    by_name = findings(explained(made, mixture, tmp_path))
    assert (by_name["l"].verdict, by_name["near"].verdict) == ("there", "absent")
    coarse = findings(explained(made, Mixture((("l", 0.7),), True, "BF16"), tmp_path))
    assert coarse["near"].verdict == "unclear" and coarse["near"].like == ("l.safetensors",)
    assert coarse["l"].bar > 0.05, "what the two do together is known, each by itself is not"


def test_unknown_content_widens_bars_and_is_said(made: Workshop, tmp_path: Path) -> None:
    hidden = write_lora(tmp_path / "hidden.safetensors", np.random.default_rng(9), 0.1)
    places = list(SHAPES)[:3]
    mixture = Mixture((("l", 0.6),), True, "F16")
    weights = {k: mixed(made, mixture, k) + (hidden[k] if k in places else 0) for k in SHAPES}
    found = pm.explain(written(made, weights, "F16", tmp_path), made.base("F16"), made.adapters)
    by_name = findings(found)
    assert by_name["l"].verdict == "there" and abs(by_name["l"].strength - 0.6) < 2 * by_name["l"].bar
    assert all(by_name[name].verdict == "absent" for name in "mnpq")
    left = {str(layer.name).removeprefix("model."): layer for layer in found.layers if layer.unexplained}
    assert set(left) == set(places)
    for place in places:
        # of a random change the fit of five others takes a little away
        assert left[place].unexplained == pytest.approx(np.linalg.norm(hidden[place]), rel=0.05)
    clean = findings(explained(made, mixture, tmp_path))
    assert by_name["l"].bar > clean["l"].bar


def test_other_strengths_in_other_layers(made: Workshop, tmp_path: Path) -> None:
    low = list(SHAPES)[:2]
    weights = {k: mixed(made, Mixture((("l", 0.2 if k in low else 0.8),), True, "F16"), k) for k in SHAPES}
    finding = findings(pm.explain(written(made, weights, "F16", tmp_path), made.base("F16"), made.adapters))[
        "l"
    ]
    assert finding.verdict == "there" and finding.uneven
    assert (round(finding.lowest, 2), round(finding.highest, 2)) == (0.2, 0.8)
    assert 0.2 < finding.strength < 0.8 and finding.bar > 0.1


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_changes_smaller_than_the_steps_are_found_again(dtype: str, tmp_path: Path) -> None:
    made = workshop(tmp_path / "shop", seed=4, size=0.00025 if dtype == "BF16" else 0.004)
    weights = {k: mixed(made, Mixture((("l", 0.9),), True, dtype), k) for k in SHAPES}
    steps = np.concatenate(
        [
            (W.astype(DTYPES[dtype]) != made.weights[k].astype(DTYPES[dtype])).ravel()
            for k, W in weights.items()
        ]
    )
    assert 0.01 < np.mean(steps) < 0.5, "rounding swallows most of the change"
    by_name = findings(pm.explain(written(made, weights, dtype, tmp_path), made.base(dtype), made.adapters))
    assert by_name["l"].verdict == "there"
    assert abs(by_name["l"].strength - 0.9) < min(by_name["l"].bar, 0.1)
    assert all(by_name[name].verdict == "absent" for name in "mn")


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_a_rank_boundary_is_seen(made: Workshop, tmp_path: Path, dtype: str) -> None:
    weights = {}
    for layer in SHAPES:
        W, Q = made.weight(layer, dtype), made.bases["p"][layer]
        U = Q @ np.linalg.svd(Q.T @ W)[0][:, :1]
        weights[layer] = W - U @ (U.T @ W)
    found = pm.explain(written(made, weights, dtype, tmp_path), made.base(dtype), made.adapters)
    finding = findings(found)["p"]
    assert finding.verdict == "there" and finding.strength == pytest.approx(1, abs=2 * finding.bar)
    directions = finding.directions
    assert directions is not None
    assert (directions.gone, directions.all, directions.cut) == (len(SHAPES), 3 * len(SHAPES), len(SHAPES))
    assert found.unexplained == 0
