"""``resize``: a lower rank, against NumPy's SVD; a PaRa by what it takes from the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from baking import load, para_file, random_bases, shapes_of, small_model
from family_cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import CONV, SHAPES, dense_deltas, draw_factors, write_bases, write_factors

from paramerge.checkpoints.layout import open_base
from paramerge.errors import FamilyError, UsageError
from paramerge.formats import open_adapter
from paramerge.resize.resize import resize
from paramerge.resolve.weights import BaseWeights


@given(seed=st.integers(0, 1000), rank=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_a_resized_lora_is_the_nearest_of_its_rank(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rank: int
) -> None:
    folder = tmp_path_factory.mktemp("resize")
    source = write_factors(folder / "l.safetensors", draw_factors(seed, 4), 3.0)
    report = resize(open_adapter(source), folder / "o.safetensors", rank=rank, dtype="F32")
    before, after = dense_deltas(source), dense_deltas(folder / "o.safetensors")
    assert CONV in after
    for layer in report.layers:
        D = before[str(layer.name)]
        s = np.linalg.svd(D, compute_uv=False)
        best = np.sqrt(np.sum(s[rank:4] ** 2)) / np.linalg.norm(s)
        assert layer.rank == min(rank, 4)
        assert np.linalg.norm(after[str(layer.name)] - D) / np.linalg.norm(D) == pytest.approx(best, abs=1e-6)


def test_energy_gives_each_layer_its_own_rank(tmp_path: Path) -> None:
    factors = draw_factors(0, 4)
    for i, (up, _) in enumerate(factors.values()):
        np.multiply(up, np.array([1.0, 0.5, 0.25, 0.1]) ** i, out=up)
    source = write_factors(tmp_path / "l.safetensors", factors, 4.0)
    report = resize(open_adapter(source), tmp_path / "o.safetensors", energy=0.9, dtype="F32")
    before = dense_deltas(source)
    for layer in report.layers:
        held = np.cumsum(np.linalg.svd(before[str(layer.name)], compute_uv=False)[:4] ** 2)
        assert layer.rank == int(np.sum(held < 0.9 * held[-1] * (1 - 1e-12))) + 1
    assert len({layer.rank for layer in report.layers}) > 1


@pytest.mark.parametrize("by", ["rank", "energy"])
def test_a_resized_para_keeps_what_takes_most(tmp_path: Path, by: str) -> None:
    base = small_model(tmp_path / "base.safetensors", "sd15", dtype="F32")
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if layer.endswith(("attn2.to_v", "conv2")) and "mid_block" in layer]
    bases = random_bases(shapes, layers, 4)
    source = para_file(tmp_path / "p.safetensors", bases, dtype="F32")
    options = {"rank": 2} if by == "rank" else {"energy": 0.7}
    report = resize(
        open_adapter(source), tmp_path / "o.safetensors", dtype="F32", base=open_base(base), **options
    )
    weights, stored = BaseWeights(open_base(base)), load(tmp_path / "o.safetensors").tensors
    for layer in report.layers:
        W = weights.matrix(layer.name)
        Q = np.linalg.qr(bases[str(layer.name)])[0]
        s = np.linalg.svd(Q.T @ W, compute_uv=False) ** 2
        wanted = 2 if by == "rank" else int(np.sum(np.cumsum(s) < 0.7 * s.sum())) + 1
        kept = stored[f"{layer.name}.para_B"].astype(float)
        assert layer.rank == kept.shape[1] == wanted
        P = np.linalg.qr(kept)[0]
        assert np.linalg.norm(P.T @ W) ** 2 == pytest.approx(s[:wanted].sum(), rel=1e-5)
        np.testing.assert_allclose(Q @ (Q.T @ P), P, atol=1e-6)  # inside of the old span
        assert layer.kept_energy == pytest.approx(s[:wanted].sum() / s.sum(), rel=1e-5)


def test_refusals(tmp_path: Path) -> None:
    lora = open_adapter(write_factors(tmp_path / "l.safetensors", draw_factors(0, 2), 1.0))
    para = open_adapter(write_bases(tmp_path / "p.safetensors", {CONV: np.eye(SHAPES[CONV][0])[:, :3]}))
    output = tmp_path / "o.safetensors"
    for options in ({}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 2.0}):
        with pytest.raises(UsageError):
            resize(lora, output, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="base"):
        resize(para, output, energy=0.5)
    case = next(case for case in CASES if case.name == "lokr-whole")
    path, _ = case.write(tmp_path / "k", {CONV: SHAPES[CONV]})
    with pytest.raises(FamilyError, match="LoKr"):
        resize(open_adapter(path), output, rank=1)
    assert resize(para, output, rank=2, dtype="F32").layers[0].rank == 2
