"""The algebra's working precision is that of its inputs, under torch's autocast too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from paramerge import algebra
from paramerge.peft import bases
from paramerge.training.methods.krona import KronaChange
from paramerge.training.methods.svdiff import SpectralShift


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Q, P = (torch.linalg.qr(drawn(24, n))[0] for n in (3, 4))
W, UP, DOWN = drawn(24, 16), drawn(24, 4), drawn(4, 16)
PRODUCT = UP @ DOWN

CALLS: dict[str, Callable[[], Any]] = {
    "compare_subspaces": lambda: algebra.compare_subspaces(Q, P).angles,
    "concat_loras": lambda: torch.cat([p.flatten() for p in algebra.concat_loras([UP], [DOWN], [0.3])]),
    "friedrichs_cosine": lambda: algebra.friedrichs_cosine(Q, P),
    "graded_joint_basis": lambda: algebra.graded_joint_basis([Q, P], [1.0, 0.5])[0],
    "iterate_sequential": lambda: algebra.iterate_sequential([Q, P], W, 2),
    "joint_basis": lambda: algebra.joint_basis([Q, P]).Q,
    "leading_output_directions": lambda: algebra.leading_output_directions(UP, DOWN, rank=2),
    "lora_cosine": lambda: algebra.lora_cosine(UP, DOWN, UP[:, :2], DOWN[:2]),
    "lora_loss": lambda: algebra.lora_loss(Q, UP, DOWN),
    "lora_survival": lambda: algebra.lora_survival(Q, UP, DOWN),
    "naive_combination": lambda: algebra.naive_combination(
        Q, W, UP[:, :3], DOWN[:3], alpha_para=1.0, alpha_lora=1.0
    )[1],
    "null_space_projection": lambda: algebra.null_space_projection(UP, DOWN, P)[0],
    "numerical_rank": lambda: algebra.numerical_rank(PRODUCT),
    "orthonormalise": lambda: algebra.orthonormalise(UP).Q,
    "para_then_lora": lambda: algebra.para_then_lora(Q, W, UP, DOWN)[1],
    "para_to_lora": lambda: algebra.para_to_lora(Q, W)[1],
    "principal_angles": lambda: algebra.principal_angles(Q, P),
    "project": lambda: algebra.project(Q, W),
    "rank_boundary": lambda: algebra.rank_boundary([Q, P], 0.25, W).Q,
    "reduce": lambda: algebra.reduce(W, Q),
    "removed_rank": lambda: algebra.removed_rank(Q, W),
    "removed_rank_joint": lambda: algebra.removed_rank_joint([Q, P]),
    "removed_rank_sequential": lambda: algebra.removed_rank_sequential([Q, P]),
    "require_full_rank": lambda: algebra.require_full_rank(UP).Q,
    "require_orthonormal": lambda: algebra.require_orthonormal(Q),
    "sequential_error": lambda: algebra.sequential_error([Q, P]),
    "shared_dimension": lambda: algebra.shared_dimension(Q, P),
    "truncate_lora": lambda: algebra.truncate_lora(UP, DOWN, rank=2).up,
}
WITHOUT_PRODUCTS = {"adjusted_rank", "flatten_conv", "storage_tolerance", "unflatten_conv"}


def test_every_function_of_the_algebra_is_among_them() -> None:
    functions = {name for name in algebra.__all__ if name[0].islower()}
    assert set(CALLS) == functions - WITHOUT_PRODUCTS


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name: str) -> None:
    with torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        want = CALLS[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CALLS[name]()
    assert torch.equal(found, want) if isinstance(want, torch.Tensor) else found == want


def test_a_joint_basis_made_under_autocast_is_orthonormal() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        K = algebra.graded_joint_basis([Q, P], [1.0, 1.0])[0]
    assert float((K.double().mT @ K.double() - torch.eye(7)).abs().max()) < 1e-6


# --- what else has a precision of its own -------------------------------------------------------------------


def changes() -> dict[str, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    krona, shift = KronaChange(W, 4, 4), SpectralShift(W)
    with torch.no_grad():
        krona.up.normal_()
        shift.delta.normal_()
    return {
        "krona": lambda: krona(W),
        "svdiff": lambda: shift(W),
        "qr": lambda: bases.basis_of(UP, "qr", 0.0),
        "cholesky": lambda: bases.basis_of(UP, "cholesky", 0.0),
        "soft": lambda: bases.basis_of(UP, "soft", 0.1),
        "nearest": lambda: bases.nearest_projector(UP, 0.1),
    }


@pytest.mark.parametrize("name", ["krona", "svdiff", "qr", "cholesky", "soft", "nearest"])
def test_autocast_changes_no_adapter_weight(name: str) -> None:
    change = changes()[name]
    want = change()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change(), want)
