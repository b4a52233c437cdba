"""What is worked out for a pair of adapters at a layer, against dense matrices and scipy's angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from baking import load
from hypothesis import given
from hypothesis import strategies as st
from merging import (
    ATTENTION,
    CONV,
    SHAPES,
    TEXT,
    dense_deltas,
    draw_bases,
    draw_factors,
    name_of,
    rng_of,
    write_bases,
    write_factors,
)
from scipy.linalg import subspace_angles
from strategies import law, orthogonal, pair_at, pairs, projector

from paramerge.compare.compare import LayerPair, compare
from paramerge.compare.pairs import LoraPair, MixedPair, ParaPair, random_cosine, relation_of
from paramerge.compare.spaces import read_spaces
from paramerge.errors import ArchitectureError, NonFiniteError, ShapeError, UsageError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter


def layers_of(*paths: Path) -> Sequence[LayerPair]:
    """The only pair's layers."""
    (pair,) = compare([open_adapter(path) for path in paths]).pairs
    return pair.layers


def one(*paths: Path) -> LayerPair:
    (layer,) = layers_of(*paths)
    return layer


def stored_basis(path: Path, layer: str) -> np.ndarray:
    return load(path).tensors[f"{layer}.para_B"].astype(np.float64)


# PaRa and PaRa


@law
@given(pair=pairs(("shared", "generic", "right"), most=3))
def test_paras_at_chosen_angles(tmp_path_factory: pytest.TempPathFactory, pair) -> None:
    """Angles, shared directions, both ranks; and T3e: c is the 2-norm distance of the two merges."""
    if 0 in pair.ranks:
        return
    folder = tmp_path_factory.mktemp("pair")
    paths = [write_bases(folder / f"{i}.safetensors", {TEXT: Q}) for i, Q in enumerate((pair.Q1, pair.Q2))]
    found = one(*paths)
    assert isinstance(found, ParaPair)
    assert found.ranks == pair.ranks and found.shared == pair.shared
    assert found.joint_rank == sum(pair.ranks) - pair.shared
    np.testing.assert_allclose(found.angles, np.degrees(pair.angles), atol=1e-3)
    Q1, Q2 = (np.linalg.qr(stored_basis(path, TEXT))[0] for path in paths)
    d = Q1.shape[0]
    sequence = (np.eye(d) - projector(Q2)) @ (np.eye(d) - projector(Q1))
    joint = np.eye(d) - projector(pair.joint)
    assert found.friedrichs == pytest.approx(np.linalg.norm(sequence - joint, 2), abs=1e-5)


def test_small_angles_keep_their_digits(tmp_path: Path) -> None:
    """1e-3 to 1e-5 radians between float32 files: a cosine would see none of it, nor would Cholesky."""
    angles = [1e-5, 1e-4, 1e-3]
    pair = pair_at(rng_of(0), 12, angles)
    paths = [
        write_bases(tmp_path / f"{i}.safetensors", {TEXT: Q}, "F32") for i, Q in enumerate((pair.Q1, pair.Q2))
    ]
    found = one(*paths)
    assert isinstance(found, ParaPair)
    expected = np.sort(np.degrees(subspace_angles(*(stored_basis(path, TEXT) for path in paths))))
    np.testing.assert_allclose(found.angles, expected, rtol=1e-7)
    assert found.shared == 0 and found.friedrichs > 0.9999


def test_the_same_span_in_another_basis_is_shared(tmp_path: Path) -> None:
    B = draw_bases(0, 3, [TEXT])[TEXT]
    a = write_bases(tmp_path / "a.safetensors", {TEXT: B}, "F16")
    b = write_bases(
        tmp_path / "b.safetensors", {TEXT: B @ (orthogonal(rng_of(1), 3) * [1.0, 2.0, 3.0])}, "F16"
    )
    found = one(a, b)
    assert isinstance(found, ParaPair)
    assert (found.shared, found.joint_rank, found.sequential_rank, found.friedrichs) == (3, 3, 3, 0.0)


# PaRa and LoRA


@law
@given(rank=st.integers(1, 5), lora_rank=st.integers(1, 5), alpha=st.sampled_from([0.5, 4.0, -3.0]))
def test_the_share_of_a_lora_that_is_lost(
    tmp_path_factory: pytest.TempPathFactory, rank: int, lora_rank: int, alpha: float
) -> None:
    """T6 by dense matrices: ``||P B A|| / ||B A||``, whatever the scale; in either order of the arguments."""
    folder = tmp_path_factory.mktemp("mixed")
    para = write_bases(folder / "p.safetensors", draw_bases(0, rank, [CONV]))
    lora = write_factors(folder / "l.safetensors", draw_factors(1, lora_rank, [CONV]), alpha)
    D = dense_deltas(lora)[CONV]
    P = projector(np.linalg.qr(stored_basis(para, CONV))[0])
    for paths in ((para, lora), (lora, para)):
        (pair,) = compare([open_adapter(path) for path in paths]).pairs
        (found,) = pair.layers
        assert isinstance(found, MixedPair) and pair.kind == "para-lora"
        assert paths[pair.first] == para
        assert found.ranks == (rank, lora_rank)
        assert found.norm == pytest.approx(np.linalg.norm(D), rel=1e-9)
        assert found.lost == pytest.approx(np.linalg.norm(P @ D) / np.linalg.norm(D), rel=1e-9)


def test_a_lora_inside_the_para_is_lost_whole(tmp_path: Path) -> None:
    up, down = draw_factors(0, 2, [ATTENTION])[ATTENTION]
    lora = write_factors(tmp_path / "l.safetensors", {ATTENTION: (up, down)}, 1.0)
    inside = write_bases(tmp_path / "p.safetensors", {ATTENTION: up})
    found = one(inside, lora)
    assert isinstance(found, MixedPair) and found.lost == pytest.approx(1.0, abs=1e-9)


# LoRA and LoRA


@law
@given(ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)), sign=st.sampled_from([1.0, -1.0]))
def test_loras_by_dense_matrices(
    tmp_path_factory: pytest.TempPathFactory, ranks: tuple[int, int], sign: float
) -> None:
    folder = tmp_path_factory.mktemp("loras")
    first = write_factors(folder / "a.safetensors", draw_factors(0, ranks[0], [CONV]), 3.0)
    second = write_factors(folder / "b.safetensors", draw_factors(1, ranks[1], [CONV]), sign * 0.5)
    found = one(first, second)
    assert isinstance(found, LoraPair)
    D1, D2 = (dense_deltas(path)[CONV] for path in (first, second))
    norms = np.linalg.norm(D1), np.linalg.norm(D2)
    assert found.ranks == ranks
    assert found.norms == pytest.approx(norms, rel=1e-9)
    assert found.cosine == pytest.approx(np.sum(D1 * D2) / np.prod(norms), abs=1e-9)
    eigenvalues = np.linalg.eigvalsh((D2.T @ D1 + D1.T @ D2) / 2) / np.prod(norms)
    assert found.reinforcing == pytest.approx(eigenvalues[eigenvalues > 0].sum(), abs=1e-9)
    assert found.cancelling == pytest.approx(-eigenvalues[eigenvalues < 0].sum(), abs=1e-9)
    assert found.cosine == pytest.approx(found.reinforcing - found.cancelling, abs=1e-9)
    spaces = [
        (np.linalg.svd(D)[0][:, :rank], np.linalg.svd(D)[2][:rank].T)
        for D, rank in zip((D1, D2), ranks, strict=True)
    ]
    for angles, overlap, side in (
        (found.output_angles, found.output_overlap, 0),
        (found.input_angles, found.input_overlap, 1),
    ):
        expected = np.sort(subspace_angles(spaces[0][side], spaces[1][side]))
        np.testing.assert_allclose(np.radians(angles), expected, atol=1e-7)
        assert overlap == pytest.approx(np.mean(np.cos(expected) ** 2), abs=1e-9)


def test_a_lora_with_itself_and_against_itself(tmp_path: Path) -> None:
    factors = draw_factors(0, 3, [TEXT])
    a = write_factors(tmp_path / "a.safetensors", factors, 3.0)
    b = write_factors(tmp_path / "b.safetensors", factors, 1.0)
    c = write_factors(tmp_path / "c.safetensors", {TEXT: (-factors[TEXT][0], factors[TEXT][1])}, 1.0)
    same, opposite = one(a, b), one(a, c)
    assert isinstance(same, LoraPair) and isinstance(opposite, LoraPair)
    assert (same.relation, opposite.relation) == ("reinforce", "cancel")
    assert same.cosine == pytest.approx(1.0) and same.cancelling == pytest.approx(0.0, abs=1e-12)
    assert opposite.cosine == pytest.approx(-1.0) and opposite.reinforcing == pytest.approx(0.0, abs=1e-12)
    for pair in (same, opposite):
        assert pair.output_overlap == pytest.approx(1.0) == pair.input_overlap
        assert max(pair.output_angles) <= 1e-5


def test_a_factor_of_lower_rank_narrows_the_other_side(tmp_path: Path) -> None:
    """Two equal rows of A: the change has rank 2, and so have its outputs, though B has 3 columns."""
    up, down = draw_factors(0, 3, [TEXT])[TEXT]
    down = np.stack([down[0], down[1], down[1]])
    a = write_factors(tmp_path / "a.safetensors", {TEXT: (up, down)}, 3.0)
    b = write_factors(tmp_path / "b.safetensors", draw_factors(1, 4, [TEXT]), 4.0)
    found = one(a, b)
    assert isinstance(found, LoraPair) and found.ranks == (2, 4)
    D = dense_deltas(a)[TEXT]
    U, V = np.linalg.svd(D)[0][:, :2], np.linalg.svd(dense_deltas(b)[TEXT])[0][:, :4]
    np.testing.assert_allclose(np.radians(found.output_angles), np.sort(subspace_angles(U, V)), atol=1e-6)


def test_relation_turns_at_a_tenth() -> None:
    assert [relation_of(c) for c in (-0.1, -0.099, 0.0, 0.099, 0.1)] == [
        "cancel", "independent", "independent", "independent", "reinforce"
    ]  # fmt: skip


# common


@pytest.mark.parametrize("ranks", [(1, 1), (4, 4), (1, 16), (30, 10), (60, 45)])
def test_what_unrelated_spans_would_show(ranks: tuple[int, int]) -> None:
    """Against the mean of spans drawn at random."""
    rng = rng_of(0)
    drawn = [[np.linalg.qr(rng.standard_normal((150, r)))[0] for r in ranks] for _ in range(60)]
    mean = np.mean([np.linalg.norm(Q1.T @ Q2, 2) for Q1, Q2 in drawn])
    assert random_cosine(*ranks, 150) == random_cosine(*ranks[::-1], 150) == pytest.approx(mean, rel=0.12)
    assert random_cosine(*ranks, sum(ranks)) == 1.0
    assert random_cosine(0, 3, 10) == 0.0


@law
@given(
    conditions=st.lists(st.sampled_from([1.0, 1e2, 1e4, 1e8]), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_small_coordinates_keep_all_inner_products(
    tmp_path_factory: pytest.TempPathFactory, conditions: list[float], seed: int
) -> None:
    """R^T R = X^T X for well and badly conditioned columns, by Cholesky or by QR."""
    rng = rng_of(seed)
    folder = tmp_path_factory.mktemp("spaces")
    columns = [
        (orthogonal(rng, 30)[:, :3] * np.geomspace(1.0, 1.0 / condition, 3)) @ orthogonal(rng, 3)
        for condition in conditions
    ]
    paths = [write_bases(folder / f"{i}.safetensors", {TEXT: X}) for i, X in enumerate(columns)]
    modules = [open_adapter(path).modules[name_of(TEXT)] for path in paths]
    X = np.concatenate([stored_basis(path, TEXT) for path in paths], axis=1)
    for outputs in (False, True):
        layer = read_spaces(modules, outputs=outputs)
        R = np.concatenate([space.columns for space in layer.spaces], axis=1)  # type: ignore[union-attr]
        scale = np.outer(np.linalg.norm(X, axis=0), np.linalg.norm(X, axis=0))
        assert np.abs((R.T @ R - X.T @ X) / scale).max() <= 1e-9
        if layer.outputs is not None:
            assert np.linalg.norm(layer.outputs @ R - X) <= 1e-12 * np.linalg.norm(X)


def test_three_adapters_make_three_pairs(tmp_path: Path) -> None:
    a = write_bases(tmp_path / "a.safetensors", draw_bases(0, 2, [ATTENTION, TEXT]))
    b = write_factors(tmp_path / "b.safetensors", draw_factors(1, 2, [ATTENTION, CONV]), 1.0)
    c = write_factors(tmp_path / "c.safetensors", draw_factors(2, 2, [ATTENTION, CONV, TEXT]), 1.0)
    comparison = compare([open_adapter(path) for path in (b, a, c)])
    assert [(p.first, p.second, p.kind) for p in comparison.pairs] == [
        (1, 0, "para-lora"), (0, 2, "lora-lora"), (1, 2, "para-lora")
    ]  # fmt: skip
    assert [len(pair.layers) for pair in comparison.pairs] == [1, 2, 2]
    assert [(pair.only_first, pair.only_second) for pair in comparison.pairs] == [(1, 1), (0, 1), (0, 1)]
    alone = {(str(p.layers[0].name)) for p in compare([open_adapter(b), open_adapter(c)]).pairs}
    assert alone == {ATTENTION}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = write_bases(tmp_path / "a.safetensors", draw_bases(0, 2, [ATTENTION]))
    b = write_bases(tmp_path / "b.safetensors", draw_bases(0, 2, [TEXT]))
    wide = write_bases(tmp_path / "c.safetensors", {ATTENTION: np.ones((25, 1))})
    other = write_bases(tmp_path / "d.safetensors", draw_bases(0, 2, [ATTENTION]), architecture="sdxl")
    for paths, error, word in (
        ([a], UsageError, "nothing to compare"),
        ([a, b], UsageError, "no layer in common"),
        ([a, wide], ShapeError, "different sizes"),
        ([a, other], ArchitectureError, "different architectures"),
    ):
        with pytest.raises(error, match=word):
            compare([open_adapter(path) for path in paths])
    key = f"{ATTENTION}.para_B"
    write_safetensors(
        tmp_path / "nan.safetensors", {key: np.full((SHAPES[ATTENTION][0], 1), math.nan, np.float32)}
    )
    with pytest.raises(NonFiniteError, match="NaN"):
        compare([open_adapter(path) for path in (a, tmp_path / "nan.safetensors")])
