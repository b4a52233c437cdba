"""Gradients through the algebra, against finite differences; decisions carry none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from strategies import bound, pair_at

from paramerge import algebra

torch.manual_seed(0)


def leaf(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def projector(Q: torch.Tensor) -> torch.Tensor:
    return Q @ Q.T


def graded(merged: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    Q, weights = merged
    return (Q * weights) @ Q.T


W, B, C = leaf(6, 5), leaf(6, 2), leaf(6, 3)
UP, DOWN = leaf(6, 3), leaf(3, 5)
FIXED = algebra.orthonormalise(B.detach()).Q

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "reduce by the weight": (lambda W: algebra.reduce(W, FIXED, 0.7), (W,)),
    "reduce by the basis": (lambda W, B: algebra.reduce(W, algebra.orthonormalise(B).Q), (W, B)),
    "reduce by gram-schmidt": (
        lambda W, B: algebra.reduce(W, algebra.orthonormalise(B, method="gram-schmidt").Q),
        (W, B),
    ),
    "project": (lambda W: algebra.project(FIXED, W), (W,)),
    "joint merge": (lambda B, C: projector(algebra.joint_basis([B, C]).Q), (B, C)),
    "joint merge of one": (lambda B: projector(algebra.joint_basis([B]).Q), (B,)),
    "joint merge of unequal ranks": (lambda B, C: projector(algebra.joint_basis([B, C]).Q), (leaf(6, 1), C)),
    "graded merge": (lambda B, C: graded(algebra.graded_joint_basis([B, C], [1.0, 0.5])), (B, C)),
    "sequence": (lambda W, B, C: algebra.iterate_sequential([B, C], W, 2), (W, B, C)),
    "principal angles": (algebra.principal_angles, (B, C)),
    "para to lora": (lambda W: algebra.para_to_lora(FIXED, W), (W,)),
    "para then lora": (
        lambda W, up, down: algebra.para_then_lora(FIXED, W, up, down, scale=0.5, strength=0.9),
        (W, UP, DOWN),
    ),
    "naive": (
        lambda W, up, down: algebra.naive_combination(FIXED, W, up, down, alpha_para=0.3, alpha_lora=2.0),
        (W, leaf(6, 2), leaf(2, 5)),
    ),
    "concatenation": (lambda up, down: algebra.concat_loras([up, up], [down, down], [1.0, -3.0]), (UP, DOWN)),
    "null space": (lambda up, down, B: algebra.null_space_projection(up, down, B, 0.8), (UP, DOWN, B)),
    "flattening": (lambda W: algebra.unflatten_conv(algebra.flatten_conv(W), (4, 2, 3)), (leaf(4, 2, 3),)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    assert torch.autograd.gradcheck(function, arguments)


def test_numbers_and_decisions_do_not_need_a_gradient() -> None:
    """They come back as plain numbers, also from tensors that require one."""
    up, down = leaf(6, 2), leaf(2, 5)
    assert isinstance(algebra.friedrichs_cosine(B, C), float)
    assert isinstance(algebra.sequential_error([B, C]), float)
    assert isinstance(algebra.lora_cosine(up, down, UP, DOWN), float)
    assert isinstance(algebra.lora_loss(FIXED, up, down), float)
    assert isinstance(algebra.lora_survival(FIXED, up, down), float)
    assert isinstance(algebra.truncate_lora(up, down, energy=0.9).error, float)
    assert isinstance(algebra.removed_rank(FIXED, W), int)
    assert isinstance(algebra.rank_boundary(FIXED, 0.2, W).rank, int)
    assert isinstance(algebra.compare_subspaces(B, C).shared, int)


def test_the_gradient_is_of_the_span_alone() -> None:
    """The span does not change along ``B G``, so the gradient of a function of it has no part there."""
    basis = leaf(6, 2)
    (algebra.reduce(W.detach(), algebra.orthonormalise(basis).Q) ** 2).sum().backward()
    assert basis.grad is not None
    assert float((basis.detach().T @ basis.grad).abs().max()) < 1e-13 * float(basis.grad.abs().max()) * 100


def test_merging_a_with_a_has_a_gradient() -> None:
    """Equal singular values, and columns that are dependent: the derivative of an SVD would be NaN."""
    basis = leaf(6, 2)
    joint = algebra.joint_basis([basis, basis]).Q
    (joint.T @ W.detach()).square().sum().backward()
    alone = leaf(6, 2)
    (algebra.orthonormalise(alone).Q.T @ W.detach()).square().sum().backward()
    assert basis.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(basis.grad, alone.grad)


@pytest.mark.parametrize("angle", [None, 1e-3, 1e-6])
def test_a_gradient_does_not_change_the_answer(angle: float | None) -> None:
    """Nor how well it is known: to eps over the smallest singular value, about half of the angle."""
    first, second = (B, C)
    if angle is not None:
        pair = pair_at(np.random.default_rng(5), 6, [angle, 0.7])
        first, second = (torch.from_numpy(Q.copy()).requires_grad_() for Q in (pair.Q1, pair.Q2))
    with_grad = algebra.joint_basis([first, second])
    without = algebra.joint_basis([first.detach(), second.detach()])
    limit = bound((6, 6), norm=2.0 / float(without.singular_values[without.rank - 1]))
    assert float((with_grad.Q.detach() - without.Q).abs().max()) <= limit
    torch.testing.assert_close(with_grad.singular_values, without.singular_values)
    assert with_grad.Q.requires_grad
    assert not with_grad.singular_values.requires_grad


def test_the_choice_within_the_boundary_is_not_differentiated() -> None:
    """Also for a weight of zeros, among whose directions nothing chooses."""
    for weight in (W.detach(), torch.zeros(6, 5, dtype=torch.float64)):
        basis = leaf(6, 3)
        bounded = algebra.rank_boundary(algebra.orthonormalise(basis).Q, 0.5, weight, rank_W=4)
        assert bounded.rank == 2
        bounded.Q.square().sum().backward()
        assert basis.grad is not None
        assert bool(torch.isfinite(basis.grad).all())
