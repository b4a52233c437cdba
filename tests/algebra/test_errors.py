"""Every refusal of the algebra: its kind, what is wrong, where, what was expected and found, what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from paramerge import algebra
from paramerge.errors import NonFiniteError, ParamergeError, ShapeError, UsageError

e = np.eye(3)
Q, W = e[:, :1], np.ones((3, 4))
up, down = np.ones((3, 2)), np.ones((2, 4))
nan = np.full((3, 1), np.nan)

FLOATS = "float16, bfloat16, float32, float64"

Case = tuple[Callable[[], object], str | None, str, str | None]

# fmt: off
REFUSALS: list[tuple[type[ParamergeError], str, list[Case]]] = [
    (NonFiniteError, "bases[1] has values that are not finite", [
        (lambda: algebra.compare_subspaces(Q, nan), "bases[1]", "finite numbers", "3 of 3 are NaN or Inf"),
    ]),
    (UsageError, "W is not of a dtype that the algebra works on", [
        (lambda: algebra.flatten_conv(np.eye(2, dtype=np.int64)), "W", FLOATS, "int64"),
        (lambda: algebra.iterate_sequential([Q], np.eye(3, dtype=np.int8)), "W", FLOATS, "int8"),
    ]),
    (UsageError, "M is not of a dtype that the algebra works on", [
        (lambda: algebra.unflatten_conv(np.eye(2, dtype=bool), (2, 2)), "M", FLOATS, "bool"),
    ]),
    (NonFiniteError, "ups[0] has values that are not finite", [
        (lambda: algebra.concat_loras([nan], [down[:1]], [1.0]),
         "ups[0]", "finite numbers", "3 of 3 are NaN or Inf"),
    ]),
    (NonFiniteError, "downs[0] has values that are not finite", [
        (lambda: algebra.concat_loras([up], [nan[:2, :] * down], [1.0]),
         "downs[0]", "finite numbers", "8 of 8 are NaN or Inf"),
    ]),
    (NonFiniteError, "up1 has values that are not finite", [
        (lambda: algebra.lora_cosine(nan, down[:1], up, down),
         "up1", "finite numbers", "3 of 3 are NaN or Inf"),
    ]),
    (NonFiniteError, "down1 has values that are not finite", [
        (lambda: algebra.lora_cosine(up, down * np.inf, up, down),
         "down1", "finite numbers", "8 of 8 are NaN or Inf"),
    ]),
    (NonFiniteError, "up2 has values that are not finite", [
        (lambda: algebra.lora_cosine(up, down, nan, down[:1]),
         "up2", "finite numbers", "3 of 3 are NaN or Inf"),
    ]),
    (NonFiniteError, "down2 has values that are not finite", [
        (lambda: algebra.lora_cosine(up, down, up, down * np.inf),
         "down2", "finite numbers", "8 of 8 are NaN or Inf"),
    ]),
    (UsageError, "no arrays were given", [
        (lambda: algebra.joint_basis([]), None, "at least one", None),
        (lambda: algebra.concat_loras([], [], []), None, "at least one", None),
    ]),
    (ShapeError, "B is not a matrix with at least one row", [
        (lambda: algebra.orthonormalise([[1.0]]), "B", "shape (d, n), d >= 1", "shape ()"),
        (lambda: algebra.orthonormalise(np.ones(3)), "B", "shape (d, n), d >= 1", "shape (3,)"),
        (lambda: algebra.orthonormalise(np.ones((0, 2))), "B", "shape (d, n), d >= 1", "shape (0, 2)"),
    ]),
    (UsageError, "the inputs are not arrays of one library", [
        (lambda: algebra.numerical_rank([[1.0]]), "W", "all NumPy arrays, or all torch tensors", "list"),
        (lambda: algebra.reduce(torch.ones(3, 4), Q),
         "Q, W", "all NumPy arrays, or all torch tensors", "Tensor, ndarray"),
        (lambda: algebra.joint_basis([Q, torch.eye(3)]),
         "bases[0], bases[1]", "all NumPy arrays, or all torch tensors", "Tensor, ndarray"),
    ]),
    (UsageError, "the inputs are on several devices", [
        (lambda: algebra.joint_basis([torch.eye(3), torch.eye(3, device="meta")]),
         "bases[0], bases[1]", "one device", "cpu, meta"),
    ]),
    (UsageError, "B is not of a dtype that the algebra works on", [
        (lambda: algebra.orthonormalise(np.eye(2, dtype=np.int64)), "B", FLOATS, "int64"),
    ]),
    (UsageError, "W is not of a dtype that the algebra works on", [
        (lambda: algebra.reduce(np.eye(3, dtype=np.complex128), Q), "W", FLOATS, "complex128"),
        (lambda: algebra.iterate_sequential([Q], np.eye(3, dtype=np.int8)), "W", FLOATS, "int8"),
    ]),
    (NonFiniteError, "B has values that are not finite", [
        (lambda: algebra.orthonormalise(np.array([[1.0, np.nan], [np.inf, 0.0]])),
         "B", "finite numbers", "2 of 4 are NaN or Inf"),
    ]),
    (ShapeError, "bases[1] is not a matrix with at least one row", [
        (lambda: algebra.joint_basis([Q, np.ones((3, 1, 1))]),
         "bases[1]", "shape (d, n), d >= 1", "shape (3, 1, 1)"),
    ]),
    (ShapeError, "the bases have different numbers of rows", [
        (lambda: algebra.joint_basis([Q, np.eye(4)[:, :2]]), "bases[1]", "3 rows, as bases[0]", "4 rows"),
        (lambda: algebra.principal_angles(Q, np.eye(4)), "bases[1]", "3 rows, as bases[0]", "4 rows"),
    ]),
    (UsageError, "the relative cut of a rank decision is out of range", [
        (lambda: algebra.joint_basis([Q], rtol=1.0),
         "rtol", "0 <= rtol < 1, or None for a few roundings", "1.0"),
        (lambda: algebra.numerical_rank(W, rtol=-1e-09),
         "rtol", "0 <= rtol < 1, or None for a few roundings", "-1e-09"),
        (lambda: algebra.orthonormalise(W, rtol=math.nan),
         "rtol", "0 <= rtol < 1, or None for a few roundings", "nan"),
        (lambda: algebra.truncate_lora(up, down, rtol=2.0),
         "rtol", "0 <= rtol < 1, or None for a few roundings", "2.0"),
    ]),
    (UsageError, "unknown way to orthonormalise", [
        (lambda: algebra.orthonormalise(W, method="lu"), "method", "qr or gram-schmidt", "lu"),
    ]),
    (UsageError, "no storage tolerance is known for this dtype", [
        (lambda: algebra.storage_tolerance("int8", 4),
         "dtype", f"{FLOATS}, float8_e4m3fn, float8_e5m2", "int8"),
    ]),
    (UsageError, "the columns of B are not independent, so B has no QR factorisation to train with", [
        (lambda: algebra.require_full_rank(np.ones((3, 2))), "B", "rank 2", "rank 1"),
        (lambda: algebra.require_full_rank(np.ones((3, 2)), where="down_blocks.0"),
         "down_blocks.0", "rank 2", "rank 1"),
    ]),
    (UsageError, "the columns of a basis are not orthonormal", [
        (lambda: algebra.require_orthonormal(2 * Q), "Q", "||Q^T Q - I|| <= 5.4e-15", "3.0e+00"),
        (lambda: algebra.lora_survival(2 * e, up, down), "Q", "||Q^T Q - I|| <= 9.4e-15", "5.2e+00"),
    ]),
    (NonFiniteError, "a strength is not a finite number", [
        (lambda: algebra.reduce(W, Q, math.nan), "strength", "a number", "nan"),
        (lambda: algebra.para_to_lora(Q, W, math.inf), "strength", "a number", "inf"),
        (lambda: algebra.para_then_lora(Q, W, up, down, scale=math.nan), "scale", "a number", "nan"),
        (lambda: algebra.para_then_lora(Q, W, up, down, strength=math.inf), "strength", "a number", "inf"),
        (lambda: algebra.concat_loras([up], [down], [math.inf]), "scales[0]", "a number", "inf"),
        (lambda: algebra.naive_combination(e[:, :2], W, up, down, alpha_para=math.nan, alpha_lora=1.0),
         "alpha_para", "a number", "nan"),
        (lambda: algebra.naive_combination(e[:, :2], W, up, down, alpha_para=1.0, alpha_lora=math.nan),
         "alpha_lora", "a number", "nan"),
    ]),
    (ShapeError, "the basis does not fit the weight", [
        (lambda: algebra.reduce(np.ones((4, 2)), Q),
         "Q, W", "W of shape (3, ...), rows as Q", "Q (3, 1), W (4, 2)"),
        (lambda: algebra.project(Q, np.ones(3)),
         "Q, W", "W of shape (3, ...), rows as Q", "Q (3, 1), W (3,)"),
        (lambda: algebra.rank_boundary(e, 0.4, np.ones((4, 3)), rank_W=3),
         "Q, W", "W of shape (3, ...), rows as Q", "Q (3, 3), W (4, 3)"),
        (lambda: algebra.iterate_sequential([Q], np.ones((4, 2)), 0),
         "Q, W", "W of shape (3, ...), rows as Q", "Q (3, 0), W (4, 2)"),
    ]),
    (ShapeError, "the weight has fewer than two axes", [
        (lambda: algebra.flatten_conv(np.ones(3)), "W", "(out, in) or (out, in, ...)", "(3,)"),
    ]),
    (ShapeError, "the matrix is not a flattened weight of this shape", [
        (lambda: algebra.unflatten_conv(np.ones((2, 3)), (2, 4, 2)), "M", "(2, 8)", "(2, 3)"),
        (lambda: algebra.unflatten_conv(np.ones((2, 3)), ()), "M", "a shape of two or more axes", "(2, 3)"),
    ]),
    (UsageError, "the norm to count a rank against is out of range", [
        (lambda: algebra.numerical_rank(W, reference=math.inf), "reference", "0 or more", "inf"),
        (lambda: algebra.numerical_rank(W, reference=-1.0), "reference", "0 or more", "-1.0"),
    ]),
    (NonFiniteError, "W has values that are not finite", [
        (lambda: algebra.numerical_rank(nan), "W", "finite numbers", "3 of 3 are NaN or Inf"),
    ]),
    (UsageError, "a rank is negative", [
        (lambda: algebra.adjusted_rank(-1, 0.5, 3), "r", "0 or more", "-1"),
        (lambda: algebra.adjusted_rank(1, 0.5, -3), "rank_W", "0 or more", "-3"),
        (lambda: algebra.truncate_lora(up, down, rank=-1), "rank", "0 or more", "-1"),
    ]),
    (UsageError, "the rank boundary is out of range", [
        (lambda: algebra.adjusted_rank(1, 1.5, 3), "gamma", "0 to 1", "1.5"),
        (lambda: algebra.rank_boundary(Q, math.nan, W), "gamma", "0 to 1", "nan"),
    ]),
    (UsageError, "unknown way to choose directions", [
        (lambda: algebra.rank_boundary(Q, 0.5, W, keep="all"), "keep", "energy, consensus or order", "all"),
    ]),
    (UsageError, "a single basis was given, and a consensus needs several", [
        (lambda: algebra.rank_boundary(Q, 0.5, W, keep="consensus"),
         "keep", "several bases, one for each adapter", "one basis"),
    ]),
    (UsageError, "no weight was given to place the rank boundary by", [
        (lambda: algebra.rank_boundary(Q, 0.5), "rank_W", "W", "no W"),
        (lambda: algebra.rank_boundary(Q, 0.0, rank_W=3), "keep", "W", "no W"),
    ]),
    (UsageError, "the rank is larger than a weight of this shape can have", [
        (lambda: algebra.rank_boundary(Q, 0.5, W, rank_W=4), "rank_W", "at most 3", "4"),
        (lambda: algebra.rank_boundary(Q, 0.5, W[:, :2], rank_W=3), "rank_W", "at most 2", "3"),
        (lambda: algebra.rank_boundary(Q, 0.5, rank_W=4, keep="order"), "rank_W", "at most 3", "4"),
    ]),
    (UsageError, "the numbers of strengths and bases differ", [
        (lambda: algebra.graded_joint_basis([Q, Q], [1.0]), "strengths", "2", "1"),
    ]),
    (UsageError, "a strength is out of range for a joint merge", [
        (lambda: algebra.sequential_error([Q, Q], [1.0, 1.5]), "strengths[1]", "0 to 1", "1.5"),
        (lambda: algebra.graded_joint_basis([Q], [-0.1]), "strengths[0]", "0 to 1", "-0.1"),
        (lambda: algebra.graded_joint_basis([Q], [math.nan]), "strengths[0]", "0 to 1", "nan"),
    ]),
    (UsageError, "the number of rounds of a sequence is negative", [
        (lambda: algebra.iterate_sequential([Q], W, -1), "times", "0 or more", "-1"),
    ]),
    (ShapeError, "the factors of a LoRA do not fit together", [
        (lambda: algebra.truncate_lora(up, np.ones((3, 4))),
         "up, down", "up (d, r) and down (r, k)", "up (3, 2), down (3, 4)"),
        (lambda: algebra.concat_loras([up, up], [down, np.ones((3, 4))], [1.0, 1.0]),
         "ups[1], downs[1]", "up (d, r) and down (r, k)", "up (3, 2), down (3, 4)"),
        (lambda: algebra.lora_cosine(up, down, up, np.ones((3, 4))),
         "up2, down2", "up (d, r) and down (r, k)", "up (3, 2), down (3, 4)"),
        (lambda: algebra.lora_cosine(up, np.ones((3, 4)), up, down),
         "up1, down1", "up (d, r) and down (r, k)", "up (3, 2), down (3, 4)"),
    ]),
    (NonFiniteError, "up has values that are not finite", [
        (lambda: algebra.lora_loss(Q, nan, np.ones((1, 2))), "up", "finite numbers", "3 of 3 are NaN or Inf"),
    ]),
    (ShapeError, "the directions and the LoRA have different numbers of rows", [
        (lambda: algebra.lora_loss(np.eye(4), up, down), "Q, up", "3 rows, as up", "4 rows"),
        (lambda: algebra.null_space_projection(up, down, np.eye(4)),
         "other_up, up", "3 rows, as up", "4 rows"),
        (lambda: algebra.para_then_lora(Q, W, np.ones((4, 2)), down), "Q, up", "4 rows, as up", "3 rows"),
    ]),
    (UsageError, "a share is out of range", [
        (lambda: algebra.leading_output_directions(up, down, energy=1.5), "energy", "0 to 1", "1.5"),
        (lambda: algebra.truncate_lora(up, down, energy=math.nan), "energy", "0 to 1", "nan"),
    ]),
    (ShapeError, "down is not a matrix", [
        (lambda: algebra.truncate_lora(up, np.ones(4)), "down", "shape (d, n), d >= 0", "shape (4,)"),
    ]),
    (UsageError, "the numbers of factors and scales differ", [
        (lambda: algebra.concat_loras([up], [down], []),
         "ups, downs, scales", "one of each for every LoRA", "1, 1, 0"),
    ]),
    (ShapeError, "the LoRAs are for weights of different shapes", [
        (lambda: algebra.concat_loras([up, up], [down, np.ones((2, 5))], [1.0, 1.0]),
         "ups[1], downs[1]", "(3, 4)", "(3, 5)"),
        (lambda: algebra.concat_loras([up, np.ones((4, 2))], [down, down], [1.0, 1.0]),
         "ups[1], downs[1]", "(3, 4)", "(4, 4)"),
        (lambda: algebra.lora_cosine(up, down, np.ones((4, 2)), down), "up2, down2", "(3, 4)", "(4, 4)"),
    ]),
    (ShapeError, "the LoRA does not fit the weight", [
        (lambda: algebra.para_then_lora(Q, W, up, np.ones((2, 5))),
         "down, W", "down of shape (n, 4)", "(2, 5)"),
    ]),
    (ShapeError, "the ranks differ, and the naive combination adds factors", [
        (lambda: algebra.naive_combination(Q, W, up, down, alpha_para=1.0, alpha_lora=1.0),
         "up", "rank 1, as Q", "rank 2"),
    ]),
]
# fmt: on
"""The error, its sentence, and the calls that raise it with the place, the expected and the found."""

FLAT = [(error, what, *case) for error, what, cases in REFUSALS for case in cases]


@pytest.mark.parametrize(("error", "what", "call", "where", "expected", "found"), FLAT)
def test_a_refusal_says_what_where_and_why(
    error: type[ParamergeError],
    what: str,
    call: Callable[[], object],
    where: str | None,
    expected: str,
    found: str | None,
) -> None:
    with pytest.raises(ParamergeError) as caught:
        call()
    assert type(caught.value) is error
    assert (caught.value.what, caught.value.where) == (what, where)
    assert (caught.value.expected, caught.value.found) == (expected, found)
    assert caught.value.hint
    for text in (caught.value.what, caught.value.hint):
        assert not text.endswith(".") and (text[0].islower() or len(text.split()[0]) == 1)


def test_what_is_just_within_is_not_refused() -> None:
    assert algebra.joint_basis([Q], rtol=0.0).rank == 1
    assert algebra.adjusted_rank(0, 0.0, 0) == 0
    assert algebra.adjusted_rank(2, 1, 3) == 2
    assert algebra.numerical_rank(W, reference=0.0) >= 1
    assert algebra.truncate_lora(up, down, rank=0, energy=1.0).rank == 0
    assert algebra.graded_joint_basis([Q], [0.0])[0].shape == (3, 0)
    assert algebra.rank_boundary(Q, 1.0, rank_W=3, keep="order").rank == 1
