"""Every merge method against its formula in NumPy float64, over dtypes and shapes; and its laws."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_formulas import FORMULAS, Array, added, dare, della_chances
from merge_trials import EPS, METHODS, SHAPES, count_of, merged, models_of, read

from paramerge.apply import kernel
from paramerge.errors import NonFiniteError, UsageError
from paramerge.files.header import read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors
from paramerge.merge.checkpoints import cuts as module_of_cuts
from paramerge.merge.methods.method import Draws, Method
from paramerge.merge.methods.parameters import Choice, OnOff, Within


def tolerance(models: Sequence[Array], dtype: str, compute: str) -> float:
    """One rounding into the output, and those of the arithmetic, on numbers as large as the models'."""
    size = sum(float(np.abs(m).max(initial=0)) for m in models)
    elements = models[0].size
    return EPS[dtype] * 1.01 * size * 2 + 60 * np.sqrt(elements) * EPS[compute] * size


CASES: dict[str, list[dict[str, Any]]] = {
    "weighted-sum": [{}, {"weights": (0.7, 0.2, 0.1)}, {"weights": (0.4, -0.3)}],
    "add-difference": [{}, {"strength": 0.5}, {"strength": -0.25}],
    "train-difference": [{}, {"strength": 0.5}, {"strength": -1}],
    "slerp": [{}, {"weights": (0.7, 0.2, 0.1)}],
    "cosine-a": [{}, {"strength": 0.2}, {"strength": 0.9}],
    "cosine-b": [{}, {"strength": 0.2}],
    "ties": [
        {},
        {"density": 0.5, "weights": (0.3, 0.8)},
        {"density": 1, "strength": 0.4},
        {"weights": (1, -0.5)},
    ],
    "breadcrumbs": [{}, {"density": 0.3, "outliers": 0.2}, {"signs": "elect", "weights": (0.5, 2)}],
    "model-stock": [{}],
    "geometric-median": [{}, {"weights": (0.2, 0.5, 0.3)}, {"weights": (0.8, 0.1, 0.1)}],
    "perpendicular": [{}, {"strength": -0.5}],
}


@pytest.mark.parametrize(
    "dtypes", [("F16",), ("F32",), ("BF16",), ("F64",), ("F16", "F32", "BF16")], ids="-".join
)
@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_its_formula(name: str, dtypes: tuple[str, ...], tmp_path: Path) -> None:
    method = METHODS[name]
    files = models_of(tmp_path, count_of(method), dtypes)
    compute = "F32" if set(dtypes) == {"F16"} else "F64"
    for given in CASES[name]:
        for tensor, shape in SHAPES.items():
            if name == "geometric-median" and np.prod(shape) < 3:
                continue  # points on a line: the least is a whole stretch
            models = read(files, tensor)
            parameters = method.at(method.read(given, len(files)), [1.0] * len(files))
            expected = FORMULAS[name](models, **parameters)
            found = merged(files, tensor, method, given).astype(np.float64)
            slack = 1e-6 if name == "geometric-median" else 0.0  # of the minimiser that it is compared with
            if name in ("ties", "breadcrumbs") and compute == "F32":
                continue  # equal magnitudes may fall on either side of a cut: the test below has no ties
            assert np.abs(found - expected).max() <= tolerance(models, dtypes[0], compute) + slack, (
                given,
                tensor,
            )


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_cuts_by_magnitude_in_half_precision(name: str, tmp_path: Path) -> None:
    """Differences of F16 are exact in float32 where the numbers are near: the same are cut."""
    method = METHODS[name]
    files = models_of(tmp_path, 3, ("F16",), spread=0.01)
    for given in CASES[name]:
        models = read(files, "conv")
        parameters = method.at(method.read(given, 3), [1.0] * 3)
        found = merged(files, "conv", method, given).astype(np.float64)
        assert np.abs(found - FORMULAS[name](models, **parameters)).max() <= tolerance(models, "F16", "F32")


def masks_of(
    method: Method, models: Sequence[Array], name: str, seed: int, chances: Sequence[Any]
) -> list[Array]:
    draws = Draws(f"unet.{name}")
    return [
        (draws.uniform(seed, index, models[0].size).reshape(models[0].shape) < chance).astype(np.float64)
        for index, chance in enumerate(chances, 1)
    ]


@pytest.mark.parametrize(
    "given", [{}, {"density": 0.2, "seed": 3}, {"signs": "elect"}, {"rescale": False, "density": 1}]
)
def test_dare_agrees_with_its_formula(given: dict[str, Any], tmp_path: Path) -> None:
    method = METHODS["dare"]
    files = models_of(tmp_path, 3, ("F32",))
    parameters = method.read(given, 3)
    for name in SHAPES:
        models = read(files, name)
        masks = masks_of(method, models, name, parameters["seed"], [parameters["density"]] * 2)  # type: ignore[arg-type]
        expected = dare(models, masks, **parameters)  # type: ignore[arg-type]
        assert (
            np.abs(merged(files, name, method, given) - expected).max() <= tolerance(models, "F32", "F64") * 5
        )


@pytest.mark.parametrize("given", [{}, {"density": 0.3, "epsilon": 0.4, "signs": "all"}, {"rescale": False}])
def test_della_agrees_with_its_formula(given: dict[str, Any], tmp_path: Path) -> None:
    method = METHODS["della"]
    files = models_of(tmp_path, 3, ("F64",))
    p: Any = method.read(given, 3)
    for name in SHAPES:
        models = read(files, name)
        differences = [m - models[0] for m in models[1:]]
        chances = [della_chances(d, p["density"], p["epsilon"]) for d in differences]
        masks = masks_of(method, models, name, p["seed"], chances)
        kept = [
            d * k / (c if p["rescale"] else 1) for d, k, c in zip(differences, masks, chances, strict=True)
        ]
        expected = added(models, kept, p["weights"], p["strength"], elect=p["signs"] == "elect")
        assert (
            np.abs(merged(files, name, method, given) - expected).max()
            <= tolerance(models, "F64", "F64") * 10
        )


def test_dare_and_della_keep_the_mean_over_seeds(tmp_path: Path) -> None:
    """E[k / p] = 1: over n seeds the mean is off by at most six standard errors, element by element."""
    files = models_of(tmp_path, 3, ("F64",))
    first, *others = read(files, "matrix")
    total = sum(m - first for m in others)
    seeds = 400
    for name, least in (("dare", 0.5), ("della", 0.4)):
        runs = [
            merged(files, "matrix", METHODS[name], {"seed": seed, "signs": "all", "density": 0.5}) - first
            for seed in range(seeds)
        ]
        error = np.sqrt(sum((m - first) ** 2 for m in others) * (1 - least) / least / seeds)
        assert (np.abs(np.mean(runs, axis=0) - total) <= 6 * error).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("elements", [1, 7, 64])
def test_blocks_do_not_matter(
    name: str, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values by whatever blocks of rows; random choices to the bit."""
    method = METHODS[name]
    files = models_of(tmp_path, count_of(method), ("F64",))
    whole = {tensor: merged(files, tensor, method, {}) for tensor in SHAPES}
    monkeypatch.setattr(kernel, "_BLOCK_ELEMENTS", elements)
    for tensor, expected in whole.items():
        found = merged(files, tensor, method, {})
        if method.sees in ("elements", "tensor"):
            assert found.tobytes() == expected.tobytes()
        else:  # sums over blocks, in another order
            assert np.abs(found - expected).max() <= tolerance(read(files, tensor), "F64", "F64")


@pytest.mark.parametrize("name", METHODS)
def test_a_model_with_itself_is_that_model(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    (file,) = models_of(tmp_path, 1, ("F32",))
    files = [file] * count_of(method)
    for tensor in SHAPES:
        found, (expected, *_) = merged(files, tensor, method, {}), read(files, tensor)
        assert np.abs(found - expected).max() <= 2 * EPS["F32"] * np.abs(expected).max()
        if name == "add-difference":
            assert found.tobytes() == expected.astype(np.float32).tobytes()


def test_a_difference_of_nothing_leaves_every_byte(tmp_path: Path) -> None:
    """Zeros keep their signs, at strengths of either sign."""
    rng = np.random.default_rng(0)
    a = np.where(rng.random((8, 8)) < 0.5, -0.0, rng.normal(size=(8, 8))).astype(np.float16)
    b = rng.normal(size=(8, 8)).astype(np.float16)
    for name, array in (("a", a), ("b", b)):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": array})
    files = [tmp_path / "a.safetensors", *[tmp_path / "b.safetensors"] * 2]
    for strength in (1.0, 0.3, -0.3):
        assert merged(files, "w", METHODS["add-difference"], {"strength": strength}).tobytes() == a.tobytes()


def test_a_weighted_sum_commutes(tmp_path: Path) -> None:
    files = models_of(tmp_path, 2, ("F32",))
    one = merged(files, "conv", METHODS["weighted-sum"], {"weights": (0.3, 0.7)})
    other = merged(files[::-1], "conv", METHODS["weighted-sum"], {"weights": (0.7, 0.3)})
    assert one.tobytes() == other.tobytes()


def test_random_choices_go_by_seed_model_and_name() -> None:
    draws = Draws("unet.conv_in.weight")
    whole = draws.uniform(0, 1, 1000)
    assert whole.dtype == np.float32 and whole.min() >= 0 and whole.max() < 1
    for first in (0, 1, 7, 8, 9, 500):
        assert (Draws("unet.conv_in.weight", first).uniform(0, 1, 100) == whole[first : first + 100]).all()
    for other in (
        Draws("unet.conv_in.bias").uniform(0, 1, 1000),
        draws.uniform(1, 1, 1000),
        draws.uniform(0, 2, 1000),
    ):
        assert not np.isclose(other, whole).sum() > 10
    # uniform: the largest distance of the empirical distribution, at a level of 1e-6
    many = np.sort(draws.uniform(5, 1, 100_000))
    assert np.abs(many - np.linspace(0, 1, len(many))).max() < np.sqrt(np.log(2e6) / 2 / len(many))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_is_and_what_it_refuses(name: str) -> None:
    """The contract over the list: documented, deterministic in its signature, ranges by name."""
    method = METHODS[name]
    text = inspect.getdoc(method.function) or ""
    assert text.partition(": ")[0].lower().replace(" ", "-").split("-of")[0] in (
        name,
        "dare",
        "spherical-interpolation",
    )
    assert method.source
    low, high = method.models
    with pytest.raises(UsageError, match="cannot merge this many models"):
        method.check_count(low - 1)
    if high is not None:
        with pytest.raises(UsageError, match="cannot merge this many models"):
            method.check_count(high + 1)
    with pytest.raises(UsageError, match="has no parameter wrong"):
        method.read({"wrong": 1}, low)
    for parameter in method.parameters:
        assert parameter.kind.says
        bad: list[Any] = ["nonsense"]
        if isinstance(parameter.kind, Within):
            bad += [float("nan"), parameter.kind.low - 1, parameter.kind.high * 2 + 1]
            assert parameter.kind.low <= parameter.default <= parameter.kind.high
        elif not isinstance(parameter.kind, (Choice, OnOff)):
            bad += [[1.0] * 9, [float("inf")] * (low - 1), [1e6] * low]
        for value in bad:
            with pytest.raises(UsageError) as caught:
                method.read({parameter.name: value}, low)
            assert parameter.name in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(name: str, value: float, tmp_path: Path) -> None:
    method = METHODS[name]
    files = models_of(tmp_path, count_of(method), ("F32",))
    bad = np.array(stored(read_header(files[-1]), "matrix").read())
    bad[3, 4] = value
    write_safetensors(files[-1], {"matrix": bad})
    with pytest.raises(NonFiniteError, match="NaN or Inf") as caught:
        merged(files, "matrix", method, {})
    assert f"{files[-1].name}: matrix" in str(caught.value)


def test_cuts_where_rows_are_unlike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows differ, and those that are sampled do not: the cut is that of all."""
    monkeypatch.setattr(kernel, "_BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(module_of_cuts, "_SAMPLES", 16)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 8))
    for blocks in (1, 8):  # every eighth row, or the first rows of each block, as they were
        b = a + rng.normal(size=a.shape) * (np.arange(200) % 8 >= blocks)[:, None]
        for name, array in (("a", a), ("b", b)):
            write_safetensors(tmp_path / f"{name}.safetensors", {"w": array})
        files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for density in (0.01, 0.3, 0.9):
            expected = FORMULAS["ties"]([a, b], (1.0,), density, 1.0)
            assert np.allclose(
                merged(files, "w", METHODS["ties"], {"density": density}), expected, atol=1e-12
            )


def test_della_refuses_chances_beyond_certainty() -> None:
    with pytest.raises(UsageError, match="no chance, or more than certainty"):
        METHODS["della"].read({"density": 0.9, "epsilon": 0.3}, 2)


@pytest.mark.parametrize("name", ["slerp", "geometric-median"])
def test_shares_are_not_negative(name: str) -> None:
    with pytest.raises(UsageError, match="a weight is negative"):
        METHODS[name].at(METHODS[name].read({"weights": (1, -0.5)}, 2), [1.0, 1.0])


def test_slerp_of_opposite_or_missing_directions_is_the_weighted_sum(tmp_path: Path) -> None:
    a = np.random.default_rng(0).normal(size=(4, 4))
    for other in (-a, np.zeros((4, 4))):
        for name, array in (("a", a), ("b", other)):
            write_safetensors(tmp_path / f"{name}.safetensors", {"w": array})
        found = merged(
            [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
            "w",
            METHODS["slerp"],
            {"weights": (0.75, 0.25)},
        )
        assert np.allclose(found, 0.75 * a + 0.25 * other, atol=1e-12)


def test_the_median_may_be_a_model(tmp_path: Path) -> None:
    """One whose weight is more than the pull of the others, and the one in the middle of a line."""
    files = models_of(tmp_path, 3, ("F64",))
    found = merged(files, "matrix", METHODS["geometric-median"], {"weights": (0.1, 0.8, 0.1)})
    assert np.allclose(found, read(files, "matrix")[1], atol=1e-9)
    assert torch.get_num_threads() >= 1
