"""The rank boundary of PaRas one after the other: that of the merge, not of each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from baking import plan_of, small_model
from hypothesis import given
from hypothesis import strategies as st
from strategies import law

from paramerge.apply.chain import Chain, ParaLink
from paramerge.apply.steps import Step
from paramerge.bake.diagnose import diagnose
from paramerge.formats import write_para
from paramerge.models.names import ModuleName

NAME = ModuleName("unet", "a")


def bases(kind: str, seed: int, d: int = 24) -> list[torch.Tensor]:
    """Two bases of rank 3: orthogonal, generic, or sharing two directions."""
    Q = torch.linalg.qr(
        torch.randn(d, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )[0]
    if kind == "generic":
        return [Q[:, :3], torch.linalg.qr(Q[:, 2:5] + Q[:, :3])[0]]
    return [Q[:, :3], Q[:, 3:6] if kind == "orthogonal" else Q[:, 1:4]]


@law
@given(st.sampled_from(["orthogonal", "generic", "shared"]), st.integers(0, 10**6), st.integers(1, 7))
def test_no_more_rank_goes_than_the_boundary_allows(kind: str, seed: int, limit: int) -> None:
    found = bases(kind, seed)
    W = torch.randn(24, 24, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    links = tuple(ParaLink(Q, torch.ones(3, dtype=torch.float64), limit) for Q in found)
    chain = Chain(NAME, links)
    basis = chain.basis
    assert basis is not None
    change = chain.change(basis.T @ W)
    assert change is not None
    result = change.applied_to(W)
    removed = 24 - int(torch.linalg.matrix_rank(result, rtol=1e-10))
    whole = {"orthogonal": 6, "generic": 3, "shared": 4}[kind]
    assert removed == change.removed == min(limit, whole)
    if limit >= whole:  # nothing else changes
        plain = Chain(
            NAME, tuple(ParaLink(Q, link.weights, None) for Q, link in zip(found, links, strict=True))
        )
        same = plain.change(basis.T @ W)
        assert same is not None
        assert torch.equal(same.applied_to(W), result)


@pytest.mark.parametrize("gamma", [None, 0.1])
def test_the_diagnosis_counts_within_the_boundary(gamma: float | None, tmp_path: Path) -> None:
    model = small_model(tmp_path / "m.safetensors")
    name = ModuleName("unet", "mid_block.attentions.0.proj_in")
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((160, 40)))[0]
    for file, part in (("a", Q[:, :20]), ("b", Q[:, 20:])):
        write_para(tmp_path / f"{file}.safetensors", {name: part}, architecture="sd15", dtype="F32")
    steps = [Step("para", tmp_path / f"{file}.safetensors") for file in "ab"]
    found = diagnose(plan_of(model, *steps, merge="sequential", gamma=gamma)).sequence
    assert found is not None
    assert (found.sequential_rank, found.joint_rank) == ((40, 40) if gamma is None else (16, 16))
