"""PaRa + PaRa: the joint span of every layer, whatever the order, and what stays within a rank boundary."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from baking import load, shapes_of, small_model
from blueprints import sd15
from hypothesis import given
from hypothesis import strategies as st
from merging import (
    ATTENTION,
    CONV,
    CROSS,
    SHAPES,
    TEXT,
    as_stored,
    draw_bases,
    merge,
    name_of,
    projector,
    projectors,
    rng_of,
    write_bases,
)
from strategies import law, pairs

from paramerge import algebra
from paramerge.checkpoints.layout import open_base
from paramerge.errors import AdapterError, NonFiniteError, ShapeError, UnmatchedError, UsageError
from paramerge.files.hashing import file_sha256
from paramerge.formats import open_adapter
from paramerge.merge.combine import MERGE_KEY
from paramerge.resolve.weights import BaseWeights

FP32 = 1e-5
"""Projectors of bases that were rounded to float32 agree to this, with the few columns used here."""


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three PaRas; the second shares two directions with the first, in one layer."""
    bases = [draw_bases(seed, rank) for seed, rank in enumerate((2, 3, 4))]
    bases[1][ATTENTION][:, :2] = bases[0][ATTENTION] @ np.array([[1.0, 2.0], [0.5, -1.0]])
    return [write_bases(tmp_path / f"{i}.safetensors", content) for i, content in enumerate(bases)]


def test_the_joint_span_in_every_order(tmp_path: Path, three: list[Path]) -> None:
    """T3o and T3r: five directions of ranks 2 and 3 with two shared are three; the order changes nothing."""
    expected = {
        layer: projector(*(load(path).tensors[f"{layer}.para_B"].astype(np.float64) for path in three))
        for layer in SHAPES
    }
    for order in itertools.permutations(three):
        report = merge(tmp_path / "out.safetensors", *order)
        assert {str(layer.name): layer.rank for layer in report.layers} == {
            ATTENTION: 7, CROSS: 9, CONV: 9, TEXT: 9
        }  # fmt: skip
        for layer, P in projectors(report.output).items():
            assert np.linalg.norm(P - expected[layer], 2) <= FP32


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_t4_merging_a_with_a_gives_a(tmp_path: Path, dtype: str) -> None:
    a = write_bases(tmp_path / "a.safetensors", draw_bases(0, 4), dtype)
    report = merge(tmp_path / "out.safetensors", a, a, a, dtype=dtype)
    assert [layer.rank for layer in report.layers] == [4] * len(SHAPES)
    assert all(layer.ranks == (4, 4, 4) for layer in report.layers)
    tolerance = 8 * algebra.storage_tolerance(
        {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[dtype], 4
    )
    before, after = projectors(a), projectors(report.output)
    assert all(np.linalg.norm(before[layer] - after[layer], 2) <= tolerance for layer in SHAPES)


def test_the_same_adapter_in_two_dtypes_is_one(tmp_path: Path) -> None:
    """Spans that differ by rounding alone: the directions of the difference are nobody's."""
    bases = draw_bases(0, 4)
    narrow = write_bases(tmp_path / "a.safetensors", bases, "BF16")
    wide = write_bases(tmp_path / "b.safetensors", bases, "F32")
    report = merge(tmp_path / "out.safetensors", narrow, wide)
    assert [layer.rank for layer in report.layers] == [4] * len(SHAPES)


@law
@given(pair=pairs(("shared", "generic", "right"), most=3), dtype=st.sampled_from(["F16", "F32"]))
def test_the_rank_is_that_of_the_sum(tmp_path_factory: pytest.TempPathFactory, pair, dtype: str) -> None:
    """Shared, generic and orthogonal directions, rotated and stored: the joint rank is exactly theirs."""
    if 0 in pair.ranks:
        return
    folder = tmp_path_factory.mktemp("pair")
    files = [
        write_bases(folder / f"{i}.safetensors", {TEXT: Q}, dtype) for i, Q in enumerate((pair.Q1, pair.Q2))
    ]
    (layer,) = merge(folder / "out.safetensors", *files, dtype=dtype).layers
    assert layer.ranks == pair.ranks
    assert layer.rank == layer.full_rank == sum(pair.ranks) - pair.shared


def test_a_layer_of_one_adapter_is_kept(tmp_path: Path) -> None:
    a = write_bases(tmp_path / "a.safetensors", draw_bases(0, 2, [ATTENTION, TEXT]))
    b = write_bases(tmp_path / "b.safetensors", draw_bases(1, 3, [ATTENTION, CONV]))
    report = merge(tmp_path / "out.safetensors", a, b)
    ranks = {str(layer.name): (layer.ranks, layer.rank) for layer in report.layers}
    assert ranks == {ATTENTION: ((2, 3), 5), CONV: ((0, 3), 3), TEXT: ((2, 0), 2)}
    kept, given_ = projectors(report.output), projectors(b)
    assert np.linalg.norm(kept[CONV] - given_[CONV], 2) <= FP32


def test_the_order_of_layers_does_not_depend_on_the_inputs(tmp_path: Path) -> None:
    a = write_bases(tmp_path / "a.safetensors", draw_bases(0, 2, [TEXT, CONV]))
    b = write_bases(tmp_path / "b.safetensors", draw_bases(1, 2, [CROSS, ATTENTION]))
    keys = [list(load(merge(tmp_path / "o.safetensors", *two).output).tensors) for two in ((a, b), (b, a))]
    assert keys[0] == keys[1]
    assert set(keys[0]) == {f"{layer}.para_B" for layer in SHAPES}


# the rank boundary


def test_gamma_takes_the_sizes_of_the_published_architecture(tmp_path: Path) -> None:
    """T11 without a base: rank(W0) = min(d, k) of SD1.5's own layers."""
    sizes = {part: shape for spec in sd15().component("unet") for part, shape in spec.parts}
    layers = [ATTENTION, CROSS, CONV]
    full = {layer: sizes[f"{layer}.weight"] for layer in layers}
    rng = rng_of(0)
    files = [
        write_bases(
            tmp_path / f"{i}.safetensors",
            {layer: rng.standard_normal((full[layer][0], 12)) for layer in layers},
        )
        for i in range(2)
    ]
    report = merge(tmp_path / "out.safetensors", *files, gamma=1 / 40)
    for layer in report.layers:
        limit = math.floor(min(full[str(layer.name)][0], math.prod(full[str(layer.name)][1:])) / 40)
        assert (layer.limit, layer.full_rank, layer.rank) == (limit, 24, min(24, limit))
    assert open_adapter(report.output).metadata["paramerge.gamma"] == repr(1 / 40)


def test_gamma_without_any_sizes_asks_for_the_base(tmp_path: Path, three: list[Path]) -> None:
    with pytest.raises(UsageError, match="needs the sizes") as caught:
        merge(tmp_path / "out.safetensors", *three, gamma=0.1)
    assert "base" in str(caught.value)
    unknown = write_bases(tmp_path / "u.safetensors", draw_bases(0, 2, [ATTENTION]), architecture=None)
    with pytest.raises(UsageError, match="no known architecture"):
        merge(tmp_path / "out.safetensors", unknown, gamma=0.1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", dtype="F32")


@pytest.fixture(scope="module")
def on_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str]]:
    """Two PaRas for a few layers of the base that share one direction, and those layers."""
    folder = tmp_path_factory.mktemp("on_base")
    shapes = shapes_of(base)
    layers = [
        layer
        for layer in shapes
        if layer.endswith(("mid_block.resnets.1.conv2", "blocks.1.attentions.0.proj_in", "layers.2.mlp.fc1"))
    ]
    rng = rng_of(3)
    shared = {layer: rng.standard_normal((shapes[layer][0], 1)) for layer in layers}
    files = []
    for i in range(2):
        bases = {
            layer: np.concatenate([rng.standard_normal((shapes[layer][0], 4)), shared[layer]], axis=1)
            for layer in layers
        }
        files.append(write_bases(folder / f"{i}.safetensors", bases))
    assert len(layers) >= 4
    return files, layers


def weight_of(base: Path, layer: str) -> np.ndarray:
    return BaseWeights(open_base(base)).matrix(name_of(layer))


def energy(path: Path, layer: str, W: np.ndarray) -> float:
    """``||P W||^2`` of the stored directions, by NumPy alone."""
    Q = np.linalg.svd(load(path).tensors[f"{layer}.para_B"].astype(np.float64), full_matrices=False)[0]
    return float(np.sum((Q.T @ W) ** 2))


def test_t12_energy_keeps_what_no_other_choice_beats(tmp_path: Path, base: Path, on_base) -> None:
    """With a base the default: the top singular values of ``Qm^T W0``, and the share that is reported."""
    files, layers = on_base
    reports = {
        keep: merge(tmp_path / f"{keep}.safetensors", *files, base=base, rank=3, keep=keep)
        for keep in ("energy", "consensus", "order")
    }
    default = merge(tmp_path / "default.safetensors", *files, base=base, rank=3)
    assert default.options.keep == "energy"
    assert load(default.output).raw == load(reports["energy"].output).raw
    for layer in layers:
        W = weight_of(base, layer)
        P = projector(*(load(path).tensors[f"{layer}.para_B"].astype(np.float64) for path in files))
        top = np.linalg.svd(P @ W, compute_uv=False)
        found = {keep: energy(report.output, layer, W) for keep, report in reports.items()}
        assert found["energy"] == pytest.approx(np.sum(top[:3] ** 2), rel=1e-5)
        assert found["energy"] > max(found["consensus"], found["order"])
        (reported,) = (one for one in default.layers if str(one.name) == layer)
        assert reported.kept_energy == pytest.approx(found["energy"] / np.sum(top**2), rel=1e-5)


def test_t12_consensus_keeps_what_is_shared_and_order_the_first_adapter(tmp_path: Path, on_base) -> None:
    files, layers = on_base
    one = merge(tmp_path / "one.safetensors", *files, rank=1)
    five = merge(tmp_path / "five.safetensors", *files, rank=5, keep="order")
    assert (one.options.keep, five.options.keep) == ("consensus", "order")
    kept, first = projectors(one.output), projectors(five.output)
    before = [projectors(path) for path in files]
    for layer in layers:
        both = before[0][layer] @ before[1][layer]
        assert np.linalg.norm(kept[layer] - both @ kept[layer], 2) <= FP32  # the shared direction
        assert np.linalg.norm(first[layer] - before[0][layer], 2) <= FP32


def test_gamma_with_a_base_takes_its_shapes(tmp_path: Path, base: Path, on_base) -> None:
    files, layers = on_base
    shapes = shapes_of(base)
    report = merge(tmp_path / "out.safetensors", *files, base=base, gamma=0.05)
    for layer in report.layers:
        shape = shapes[str(layer.name)]
        limit = math.floor(min(shape[0], math.prod(shape[1:])) * 0.05 + 1e-9)
        assert (layer.limit, layer.rank) == (limit, min(9, limit))
    assert {str(layer.name) for layer in report.layers} == set(layers)


def test_the_tighter_of_gamma_and_rank_holds(tmp_path: Path, base: Path, on_base) -> None:
    files, _ = on_base
    report = merge(tmp_path / "out.safetensors", *files, base=base, gamma=0.05, rank=5)
    alone = merge(tmp_path / "alone.safetensors", *files, base=base, gamma=0.05)
    limits = {layer.name: layer.limit for layer in alone.layers}
    assert min(limits.values()) < 5 < max(limits.values())
    assert all(layer.limit == min(5, limits[layer.name]) for layer in report.layers)
    roomy = merge(tmp_path / "roomy.safetensors", *files, base=base, rank=9)
    assert all(layer.rank == 9 and layer.kept_energy is None for layer in roomy.layers)


def test_a_boundary_of_nothing_leaves_the_layer_out(tmp_path: Path, base: Path, on_base) -> None:
    files, _ = on_base
    shapes = shapes_of(base)
    report = merge(tmp_path / "out.safetensors", *files, base=base, gamma=1 / 100)
    expected = {
        layer.name
        for layer in report.layers
        if min(shapes[str(layer.name)][0], math.prod(shapes[str(layer.name)][1:])) < 100
    }
    assert set(report.left_out) == expected and expected
    assert set(open_adapter(report.output).modules) == {layer.name for layer in report.layers} - expected
    with pytest.raises(UsageError, match="nothing is left"):
        merge(tmp_path / "none.safetensors", *files, base=base, gamma=1e-6)
    assert not (tmp_path / "none.safetensors").exists()


def test_options_that_do_not_fit(tmp_path: Path, three: list[Path]) -> None:
    out = tmp_path / "out.safetensors"
    for options, word in (
        ({"rank": 2, "keep": "energy"}, "depends on its weights"),
        ({"keep": "order"}, "without a boundary"),
        ({"energy": 0.9}, "energy does not apply"),
        ({"merge": "sequential"}, "a product of projectors is no projector"),
        ({"rank": 0}, "the rank is out of range"),
        ({"gamma": 1.5}, "gamma is out of range"),
        ({"keep": "most"}, "no such choice"),
    ):
        with pytest.raises(UsageError, match=word):
            merge(out, *three, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a strength was given for a PaRa"):
        merge(out, three[0], f"{three[1]}@0.5")
    assert not out.exists()


def test_a_rank_cap_alone_cuts_a_single_adapter(tmp_path: Path, three: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", three[2], rank=2)
    before, after = projectors(three[2]), projectors(report.output)
    for layer in report.layers:
        assert (layer.ranks, layer.full_rank, layer.limit, layer.rank) == ((4,), 4, 2, 2)
        P, kept = before[str(layer.name)], after[str(layer.name)]
        assert np.linalg.norm(P @ kept - kept, 2) <= FP32


# what the file says, and what is refused


def test_the_file_says_what_it_was_made_of(tmp_path: Path, three: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", *three[:2], rank=3)
    adapter = open_adapter(report.output)
    recipe = json.loads(adapter.metadata[MERGE_KEY])
    assert [entry["files"][0]["sha256"] for entry in recipe["inputs"]] == [
        file_sha256(path) for path in three[:2]
    ]
    assert [entry["scale"] for entry in recipe["inputs"]] == [1.0, 1.0]
    assert recipe["options"] == {"rank": 3, "keep": "consensus", "dtype": "F32"}
    assert adapter.architecture == "sd15"
    again = merge(tmp_path / "again.safetensors", *three[:2], rank=3)
    assert report.output.read_bytes() == again.output.read_bytes()


def test_bases_are_kept_where_the_inputs_agree_and_warned_about_where_not(tmp_path: Path) -> None:
    bases = draw_bases(0, 2, [ATTENTION])
    hashes = {"a": "a" * 64, "b": "b" * 64, "c": None}
    files = {
        name: write_bases(tmp_path / f"{name}.safetensors", bases, base_sha256=digest)
        for name, digest in hashes.items()
    }
    files["d"] = write_bases(tmp_path / "d.safetensors", draw_bases(1, 2, [ATTENTION]), base_sha256="a" * 64)
    same = merge(tmp_path / "same.safetensors", files["a"], files["d"])
    assert not same.warnings
    assert open_adapter(same.output).base_hashes == ("a" * 64,)
    different = merge(tmp_path / "different.safetensors", files["a"], files["b"])
    assert "different bases" in different.warnings[0] and "aaaaaaaaaaaa" in different.warnings[0]
    assert open_adapter(different.output).base_hashes == ()


def test_a_boundary_of_an_input_that_is_not_asked_for_again_is_warned_about(tmp_path: Path) -> None:
    bases = draw_bases(0, 2, [ATTENTION])
    a = write_bases(tmp_path / "a.safetensors", bases, gamma=0.025)
    b = write_bases(tmp_path / "b.safetensors", bases)
    assert "rank boundary gamma 0.025" in merge(tmp_path / "o.safetensors", a, b).warnings[0]
    assert not merge(tmp_path / "o.safetensors", a).warnings


def test_dependent_columns_are_counted_and_zero_bases_refused(tmp_path: Path) -> None:
    B = draw_bases(0, 2, [ATTENTION])[ATTENTION]
    dependent = write_bases(tmp_path / "a.safetensors", {ATTENTION: np.concatenate([B, B[:, :1]], axis=1)})
    (layer,) = merge(tmp_path / "out.safetensors", dependent).layers
    assert (layer.ranks, layer.rank, layer.dependent) == ((2,), 2, 1)
    path = write_bases(tmp_path / "b.safetensors", {ATTENTION: B})
    data = bytearray(path.read_bytes())
    raw = as_stored(B).astype(np.float32).tobytes()
    for damaged, error, word in (
        (bytes(len(raw)), AdapterError, "is zero"),
        (np.full(B.shape, np.nan, np.float32).tobytes(), NonFiniteError, "NaN"),
    ):
        path.write_bytes(bytes(data[: len(data) - len(raw)]) + damaged)
        with pytest.raises(error, match=word):
            merge(tmp_path / "out.safetensors", path, dependent)


def test_layers_of_different_sizes_are_refused(tmp_path: Path, base: Path) -> None:
    a = write_bases(tmp_path / "a.safetensors", {ATTENTION: np.ones((24, 1))})
    b = write_bases(tmp_path / "b.safetensors", {ATTENTION: np.ones((25, 1))})
    with pytest.raises(ShapeError, match="different sizes"):
        merge(tmp_path / "out.safetensors", a, b)
    with pytest.raises(ShapeError, match="does not fit the base"):
        merge(tmp_path / "out.safetensors", a, base=base)
    elsewhere = "unet.down_blocks.3.attentions.0.proj_in"
    c = write_bases(tmp_path / "c.safetensors", {elsewhere: np.ones((24, 1))})
    with pytest.raises(UnmatchedError, match="not in the base"):
        merge(tmp_path / "out.safetensors", c, base=base)
