"""One algebra for NumPy and torch: the same answers, precisions and types, and all of it exported."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from strategies import DTYPES, WORKING_EPS, bound, orthogonal, pair_at, stored, widened

from paramerge import algebra

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
INTERNAL = {"arrays", "decomposition"}  # of which only storage_tolerance is for users


def inputs(dtype: str, library: str) -> dict[str, Any]:
    """One of everything, from one seed."""
    rng = np.random.default_rng(7)
    pair = pair_at(rng, 8, [0.0, 0.6, 1.1], (1, 0))
    arrays = {
        "Q1": pair.Q1,
        "Q2": pair.Q2,
        "B": rng.standard_normal((8, 3)),
        "W": rng.standard_normal((8, 10)),
        "conv": rng.standard_normal((8, 2, 3, 3)),
        "up": rng.standard_normal((8, 4)),
        "down": rng.standard_normal((4, 10)),
        "up2": rng.standard_normal((8, 2)),
        "down2": rng.standard_normal((2, 10)),
    }
    given = {name: stored(array, dtype, library) for name, array in arrays.items()}
    Q = algebra.orthonormalise(given["Q1"]).Q  # what was stored in half precision is not orthonormal
    return given | {
        "Q": Q,
        "W4": stored(orthogonal(rng, 8)[:, :4] @ rng.standard_normal((4, 10)), "float64", library),
    }


CALLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adjusted_rank": lambda x: algebra.adjusted_rank(8, 0.5, 9),
    "compare_subspaces": lambda x: algebra.compare_subspaces(x["Q1"], x["Q2"]),
    "concat_loras": lambda x: algebra.concat_loras([x["up"], x["up2"]], [x["down"], x["down2"]], [1.0, -2.0]),
    "flatten_conv": lambda x: algebra.flatten_conv(x["conv"]),
    "friedrichs_cosine": lambda x: algebra.friedrichs_cosine(x["Q1"], x["Q2"]),
    "graded_joint_basis": lambda x: spanned(*algebra.graded_joint_basis([x["Q1"], x["Q2"]], [1.0, 0.5])),
    "iterate_sequential": lambda x: algebra.iterate_sequential([x["Q1"], x["Q2"]], x["W"], 2),
    "joint_basis": lambda x: spanned(algebra.joint_basis([x["Q1"], x["Q2"]]).Q),
    "leading_output_directions": lambda x: spanned(
        algebra.leading_output_directions(x["up"], x["down"], rank=2)
    ),
    "lora_cosine": lambda x: algebra.lora_cosine(x["up"], x["down"], x["up2"], x["down2"]),
    "lora_loss": lambda x: algebra.lora_loss(x["Q"], x["up"], x["down"]),
    "lora_survival": lambda x: algebra.lora_survival(x["Q"], x["up"], x["down"]),
    "naive_combination": lambda x: algebra.naive_combination(
        x["Q"], x["W"], x["up"], x["down"], alpha_para=0.5, alpha_lora=2.0
    ),
    "null_space_projection": lambda x: algebra.null_space_projection(x["up"], x["down"], x["up2"], 0.7),
    "numerical_rank": lambda x: algebra.numerical_rank(x["conv"]),
    "orthonormalise": lambda x: algebra.orthonormalise(x["B"]),
    "orthonormalise by gram-schmidt": lambda x: algebra.orthonormalise(x["B"], method="gram-schmidt"),
    "para_then_lora": lambda x: algebra.para_then_lora(
        x["Q"], algebra.unflatten_conv(x["W"], (8, 5, 2)), x["up"], x["down"], scale=2.0, strength=0.5
    ),
    "para_to_lora": lambda x: algebra.para_to_lora(x["Q"], x["conv"], 0.5),
    "principal_angles": lambda x: algebra.principal_angles(x["Q1"], x["Q2"]),
    "project": lambda x: algebra.project(x["Q"], x["conv"]),
    "rank_boundary": lambda x: spanned(algebra.rank_boundary([x["Q1"], x["Q2"]], 0.5, x["W"]).Q),
    "reduce": lambda x: algebra.reduce(x["conv"], x["Q"], 0.5),
    "removed_rank": lambda x: algebra.removed_rank(x["Q"], x["W"]),
    "removed_rank_joint": lambda x: algebra.removed_rank_joint([x["Q1"], x["Q2"]]),
    "removed_rank_sequential": lambda x: algebra.removed_rank_sequential([x["Q1"], x["Q2"]]),
    "require_full_rank": lambda x: algebra.require_full_rank(x["B"]),
    "require_orthonormal": lambda x: algebra.require_orthonormal(x["Q"]),
    "sequential_error": lambda x: algebra.sequential_error([x["Q1"], x["Q2"]], [1.0, 0.5]),
    "shared_dimension": lambda x: algebra.shared_dimension(x["Q1"], x["Q2"]),
    "storage_tolerance": lambda x: algebra.storage_tolerance("float16", 7),
    "truncate_lora": lambda x: truncated(algebra.truncate_lora(x["up"], x["down"], rank=2)),
    "unflatten_conv": lambda x: algebra.unflatten_conv(algebra.flatten_conv(x["conv"]), (8, 2, 3, 3)),
}


def spanned(Q: Any, weights: Any = 1.0) -> Any:
    """The projector: a basis from an SVD is only known up to signs."""
    return (Q * weights) @ Q.T


def truncated(cut: algebra.TruncatedLora[Any]) -> Any:
    return cut.up @ cut.down, cut.rank, cut.error, cut.singular_values


def leaves(answer: Any) -> list[Any]:
    """Arrays and numbers of an answer, in order."""
    if is_dataclass(answer):
        answer = tuple(getattr(answer, field.name) for field in fields(answer))
    if isinstance(answer, tuple):
        return [leaf for part in answer for leaf in leaves(part)]
    return [answer]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_numpy_and_torch_give_the_same_answer(name: str, dtype: str, device: str) -> None:
    """In float64 and in working precision; decisions and plain numbers have plain types in both."""
    ours = leaves(CALLS[name](inputs(dtype, "numpy")))
    given = {key: tensor.to(device) for key, tensor in inputs(dtype, "torch").items()}
    theirs = leaves(CALLS[name](given))
    assert len(ours) == len(theirs)
    views = {"flatten_conv", "unflatten_conv"}  # no arithmetic: the dtype stays
    expected = dtype if name in views or dtype == "float64" else "float32"
    for first, second in zip(ours, theirs, strict=True):
        if isinstance(second, torch.Tensor):
            assert isinstance(first, np.ndarray)
            assert str(first.dtype) == str(second.dtype).removeprefix("torch.") == expected
            assert first.shape == tuple(second.shape)
            assert second.device.type == device
        else:
            assert type(first) is type(second)
            assert type(first) in (int, float, type(None))
        if first is not None:
            scale = max(1.0, float(np.abs(widened(first)).max()))
            limit = bound((18, 8), norm=4 * scale, eps=WORKING_EPS[dtype])
            np.testing.assert_allclose(widened(first), widened(second), rtol=0, atol=limit)


def test_every_function_is_compared() -> None:
    functions = {name for name in algebra.__all__ if not isinstance(getattr(algebra, name), type)}
    assert functions <= set(CALLS)


def test_everything_public_is_exported() -> None:
    public: set[str] = set()
    for module in pkgutil.iter_modules(algebra.__path__):
        found = importlib.import_module(f"paramerge.algebra.{module.name}")
        if module.name not in INTERNAL:
            public |= set(found.__all__)
    assert public | {"storage_tolerance"} == set(algebra.__all__)
    assert list(algebra.__all__) == sorted(algebra.__all__)
    assert all(getattr(algebra, name).__doc__ for name in algebra.__all__)


def test_inputs_are_left_as_they_are() -> None:
    """No function writes into what it was given."""
    for library in ("numpy", "torch"):
        given = inputs("float64", library)
        before = {name: widened(array).copy() for name, array in given.items()}
        for call in CALLS.values():
            call(given)
        for name, array in given.items():
            np.testing.assert_array_equal(widened(array), before[name])


def test_mixed_precisions_work_in_the_widest() -> None:
    rng = np.random.default_rng(8)
    W = rng.standard_normal((6, 5))
    Q = orthogonal(rng, 6)[:, :2]
    reduced = algebra.reduce(stored(W, "float16"), Q)
    assert reduced.dtype == np.float64
    narrow = algebra.orthonormalise(stored(Q, "float32", "torch")).Q
    assert algebra.reduce(stored(W, "bfloat16", "torch"), narrow).dtype == torch.float32
    assert algebra.joint_basis([stored(Q, "float32"), Q]).Q.dtype == np.float64
    joint = algebra.concat_loras([stored(Q, "float16"), Q], [np.eye(2), np.eye(2)], [1.0, 1.0])
    assert joint[0].dtype == joint[1].dtype == np.float64


def test_nan_goes_through_a_reduction_but_into_no_decision() -> None:
    Q = np.eye(3)[:, :1]
    W = np.array([[1.0, np.nan], [2.0, 3.0], [5.0, 4.0]])
    reduced = algebra.reduce(W, Q)
    assert np.isnan(reduced[:, 1]).all()
    np.testing.assert_array_equal(reduced[:, 0], [0.0, 2.0, 5.0])
