"""What depends on the base's weights, against dense matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model
from merging import dense_deltas

from paramerge.checkpoints.layout import open_base
from paramerge.compare.compare import compare
from paramerge.compare.pairs import LoraPair, MixedPair, ParaPair
from paramerge.compare.summary import ParaTotals, totals_of
from paramerge.errors import UnmatchedError
from paramerge.formats import open_adapter
from paramerge.resolve.weights import BaseWeights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    base = small_model(folder / "base.safetensors", dtype="F32")
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if layer.endswith(("attn2.to_k", "1.conv2", "mlp.fc2"))][::3]
    return {
        "base": base,
        "p": para_file(folder / "p.safetensors", random_bases(shapes, layers, 3, seed=0), dtype="F32"),
        "q": para_file(folder / "q.safetensors", random_bases(shapes, layers, 2, seed=1), dtype="F32"),
        "l": lora_file(folder / "l.safetensors", random_factors(shapes, layers, 2, seed=2), 1.0, "F32"),
    }


def dense(files: dict[str, Path], name: str, layer: object) -> np.ndarray:
    """The dense projector of a PaRa."""
    modules = {str(n): module for n, module in open_adapter(files[name]).modules.items()}
    Q = np.linalg.qr(modules[str(layer)].basis.read_exact().astype(np.float64))[0]  # type: ignore[union-attr]
    return Q @ Q.T


def test_both_ways_of_merging_on_the_weights(files: dict[str, Path]) -> None:
    base = open_base(files["base"])
    (pair,) = compare([open_adapter(files[name]) for name in "pq"], base).pairs
    weights = BaseWeights(base)
    for layer in pair.layers:
        assert isinstance(layer, ParaPair)
        W = weights.matrix(layer.name)
        P1, P2 = dense(files, "p", layer.name), dense(files, "q", layer.name)
        U, s, _ = np.linalg.svd(np.concatenate([P1, P2], axis=1))
        Pm = U[:, : int(np.sum(s > 1e-6))] @ U[:, : int(np.sum(s > 1e-6))].T
        eye = np.eye(W.shape[0])
        off = (eye - P2) @ (eye - P1) @ W - (eye - Pm) @ W
        assert layer.on_base == pytest.approx(np.linalg.norm(off) / np.linalg.norm(W), rel=1e-6)
        assert layer.on_base <= layer.friedrichs
    totals = totals_of(pair.layers)
    assert isinstance(totals, ParaTotals)
    assert totals.on_base_largest == max(layer.on_base for layer in pair.layers)  # type: ignore[union-attr]


def test_what_a_lora_writes_back(files: dict[str, Path]) -> None:
    base = open_base(files["base"])
    (pair,) = compare([open_adapter(files[name]) for name in "pl"], base).pairs
    weights, deltas = BaseWeights(base), dense_deltas(files["l"])
    for layer in pair.layers:
        assert isinstance(layer, MixedPair)
        P = dense(files, "p", layer.name)
        back = np.linalg.norm(P @ deltas[str(layer.name)]) / np.linalg.norm(P @ weights.matrix(layer.name))
        assert layer.refilled == pytest.approx(back, rel=1e-6)


def test_without_a_base_there_are_no_such_numbers(files: dict[str, Path]) -> None:
    for names in ("pq", "pl"):
        (pair,) = compare([open_adapter(files[name]) for name in names]).pairs
        assert {getattr(layer, "on_base", None) for layer in pair.layers} == {None}
        assert {getattr(layer, "refilled", None) for layer in pair.layers} == {None}


def test_the_other_numbers_do_not_depend_on_the_base(files: dict[str, Path]) -> None:
    adapters = [open_adapter(files[name]) for name in "pql"]
    without, with_base = compare(adapters), compare(adapters, open_base(files["base"]))
    for one, other in zip(without.pairs, with_base.pairs, strict=True):
        for a, b in zip(one.layers, other.layers, strict=True):
            numbers = ("friedrichs", "lost", "norm", "joint_rank")
            assert [getattr(a, n, 0) for n in numbers] == pytest.approx([getattr(b, n, 0) for n in numbers])
            assert not isinstance(a, LoraPair)


def test_a_base_that_lacks_layers_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    small = small_model(tmp_path / "unet.safetensors", layout="unet-file")
    with pytest.raises(UnmatchedError, match="not in the base"):
        compare([open_adapter(files[name]) for name in "pq"], open_base(small))
