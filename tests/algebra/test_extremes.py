"""Where arithmetic ends: factors of extreme scales, products that cancel, roundings that are small, gradients
beside a shared direction, and bytes whatever the order."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.algebra import (
    concat_loras,
    graded_joint_basis,
    joint_basis,
    leading_output_directions,
    lora_loss,
    lora_survival,
    orthonormalise,
    principal_angles,
    require_orthonormal,
    truncate_lora,
)
from paramerge.errors import UsageError


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- orthonormal to working precision -----------------------------------------------------------------------


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("d", [16, 320, 1280, 5120])
def test_a_basis_that_was_stored_in_half_precision_is_refused_at_every_width(stored: Any, d: int) -> None:
    Q = orthonormalise(drawn(d, d, 8).astype(np.float32)).Q
    require_orthonormal(Q)
    with pytest.raises(UsageError, match="not orthonormal"):
        require_orthonormal(Q.astype(stored).astype(np.float32))


@law
@given(st.integers(1, 2000), st.integers(1, 24), st.sampled_from([np.float32, np.float64]), st.integers(0, 4))
def test_every_qr_is_accepted(d: int, r: int, dtype: Any, spread: int) -> None:
    B = drawn(d + r, d, min(d, r)) * np.logspace(0, -spread, min(d, r))
    require_orthonormal(np.linalg.qr(B.astype(dtype))[0])
    require_orthonormal(torch.linalg.qr(torch.from_numpy(B.astype(dtype)))[0])


# --- what cancels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0, 3])
def test_a_lora_less_itself_is_nothing(dtype: Any, spread: int) -> None:
    up, down = (drawn(1, 80, 16) * np.logspace(0, -spread, 16)).astype(dtype), drawn(2, 16, 60).astype(dtype)
    B, A = concat_loras([up, up], [down, down], [1.0, -1.0])
    assert truncate_lora(B, A).rank == 0
    assert leading_output_directions(B, A).shape == (80, 0)
    small = (1e-3 * drawn(3, 80, 1)).astype(dtype), drawn(4, 1, 60).astype(dtype)
    B, A = concat_loras([up, small[0], up], [down, small[1], down], [1.0, 1.0, -1.0])
    found = truncate_lora(B, A)
    assert found.rank == 1
    rest = found.up @ found.down - small[0] @ small[1]
    assert np.linalg.norm(rest) < 300 * np.finfo(dtype).eps * np.linalg.norm(up) * np.linalg.norm(down)


@law
@given(st.integers(0, 10**6), st.integers(-40, 40))
def test_no_direction_is_lost_by_the_scales_of_factors(seed: int, gauge: int) -> None:
    """``(B g) (g^-1 A)`` is the same LoRA."""
    g = 2.0 ** np.linspace(-gauge, gauge, 4)
    up, down = drawn(seed, 20, 4), drawn(seed + 1, 4, 12)
    assert truncate_lora(up * g, down / g[:, None]).rank == 4


# --- extreme scales -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(1e160, 1e140), (1e-170, 1.0), (1e-170, 1e-130), (1e-300, 1e300)])
def test_extreme_scales(scales: tuple[float, float]) -> None:
    Q = orthonormalise(drawn(0, 30, 3)).Q
    up, down = drawn(1, 30, 4), drawn(2, 4, 20)
    b, a = up * scales[0], down * scales[1]
    assert lora_loss(Q, b, a) == pytest.approx(lora_loss(Q, up, down), rel=1e-12)
    assert lora_survival(Q, b, a) == pytest.approx(lora_survival(Q, up, down), rel=1e-12)
    found, want = truncate_lora(b, a, energy=0.9), truncate_lora(up, down, energy=0.9)
    assert (found.rank, found.error) == (want.rank, pytest.approx(want.error, rel=1e-12))
    half = np.sqrt(scales[0]) * np.sqrt(scales[1])
    np.testing.assert_allclose(found.up @ (found.down / half), want.up @ want.down * half, rtol=1e-9)


# --- gradients and order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))  # a cosine may come out as 1 or beside it
def test_the_gradient_of_angles_beside_a_shared_direction(seed: int) -> None:
    first = torch.from_numpy(orthonormalise(drawn(seed, 12, 3)).Q)
    second = torch.cat([first[:, :1], torch.from_numpy(drawn(seed + 9, 12, 2))], 1).requires_grad_()
    angles = principal_angles(first, second)
    assert float(angles[0].detach()) < 1e-7
    angles[1:].sum().backward()
    grad = second.grad
    assert grad is not None
    assert bool(torch.isfinite(grad).all())
    step = 1e-6 * torch.from_numpy(drawn(2, 12, 3))
    step[:, 0] = 0
    with torch.no_grad():
        change = principal_angles(first, second + step)[1:] - principal_angles(first, second - step)[1:]
    assert float(change.sum()) / 2 == pytest.approx(float((grad * step).sum()), rel=1e-4)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_joint_merge_has_the_same_bytes_in_every_order(library: str) -> None:
    bases: list[Any] = [drawn(seed, 40, rank) for seed, rank in enumerate((3, 2, 3, 1))]
    bases.append(bases[0] + 1e-9 * drawn(9, 40, 3))
    if library == "torch":
        bases = [torch.from_numpy(basis) for basis in bases]
    joint, graded = set(), set()
    for order in permutations(range(5)):
        chosen = [bases[i] for i in order]
        joint.add(np.asarray(joint_basis(chosen).Q).tobytes())
        Q, weights = graded_joint_basis(chosen, [(1.0, 0.5)[i % 2] for i in order])
        graded.add(np.asarray(Q).tobytes() + np.asarray(weights).tobytes())
    assert (len(joint), len(graded)) == (1, 1)
