"""Chains with families among PaRas and LoRAs: equal to their steps one after the other, densely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators, law

from paramerge.adapters.changes import Change, Difference, Hadamard, Kronecker, Product, ShuffledKronecker
from paramerge.apply.chain import Chain, DeltaLink, LoraLink, ParaLink
from paramerge.apply.operations import FamilyOp, LoraOp
from paramerge.formats import open_adapter
from paramerge.models.names import ModuleName

EPS = float(np.finfo(np.float64).eps)


def change_of(rng: np.random.Generator, kind: str, sizes: tuple[int, int, int, int]) -> Change:
    """A change of shape (a c, b e)."""
    a, b, c, e = sizes
    d, k = a * c, b * e
    if kind == "hadamard":
        return Hadamard(*(rng.standard_normal(shape) for shape in ((d, 2), (2, k), (d, 3), (3, k))), 0.5)  # type: ignore[arg-type]
    if kind == "difference":
        return Difference(rng.standard_normal((d, k)))
    if kind == "product":
        return Product(rng.standard_normal((d, 2)), rng.standard_normal((2, k)), -0.5)
    factors = rng.standard_normal((a, b)), rng.standard_normal((c, e))
    return (Kronecker if kind == "kronecker" else ShuffledKronecker)(*factors, 2.0)


KINDS = ("hadamard", "difference", "product", "kronecker", "shuffled")


@law
@given(
    rng=generators(), kind=st.sampled_from(KINDS), sizes=st.tuples(*[st.integers(1, 5)] * 4), data=st.data()
)
def test_rows_blocks_and_norms_agree(
    rng: np.random.Generator, kind: str, sizes: tuple[int, int, int, int], data: st.DataObject
) -> None:
    change = change_of(rng, kind, sizes)
    whole = change.whole()
    assert change.shape == whole.shape == (sizes[0] * sizes[2], sizes[1] * sizes[3])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert np.allclose(change.rows(start, stop), whole[start:stop], rtol=0, atol=1e-13)
    assert np.array_equal(np.concatenate([block for _, block in change.blocks()]), whole)
    assert change.norm() == pytest.approx(np.linalg.norm(whole), rel=1e-12)


@law
@given(
    rng=generators(),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    steps=st.lists(st.sampled_from(("para", "lora", *KINDS)), min_size=1, max_size=6),
)
def test_a_chain_with_changes_is_its_steps_one_after_the_other(
    rng: np.random.Generator, sizes: tuple[int, int, int, int], steps: list[str]
) -> None:
    d, k = sizes[0] * sizes[2], sizes[1] * sizes[3]
    W = rng.standard_normal((d, k))
    links: list[ParaLink | LoraLink | DeltaLink] = []
    expected, size = W, np.linalg.norm(W)
    for step in steps:
        if step == "para":
            Q = np.linalg.qr(rng.standard_normal((d, int(rng.integers(1, d + 1)))))[0]
            links.append(ParaLink(torch.from_numpy(Q), torch.full((Q.shape[1],), 0.5, dtype=torch.float64)))
            expected = expected - 0.5 * Q @ (Q.T @ expected)
        elif step == "lora":
            B, A = rng.standard_normal((d, 2)), rng.standard_normal((2, k))
            links.append(LoraLink(torch.from_numpy(B), torch.from_numpy(A), 0.25))
            expected = expected + 0.25 * B @ A
        else:
            change = change_of(rng, step, sizes)
            links.append(DeltaLink(change, -0.75, d))
            expected = expected - 0.75 * change.whole()
        size += np.linalg.norm(expected)
    chain = Chain(ModuleName("unet", "conv_in"), tuple(links))
    basis = chain.basis
    change_found = chain.change(None if basis is None else basis.T @ torch.from_numpy(W))
    assert change_found is not None
    found = change_found.applied_to(torch.from_numpy(W)).numpy()
    assert np.linalg.norm(found - expected) <= 60 * max(d, k) * EPS * size


def test_a_lora_as_a_family_is_the_lora(tmp_path: Path) -> None:
    """The same module through both roads of the engine."""
    from adapter_files import kohya_layer, save

    from paramerge.apply.dense import apply_ops

    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((6, 2)).astype(np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    (module,) = open_adapter(
        save(tmp_path / "l.safetensors", kohya_layer(stem, up, down, 3.0))
    ).modules.values()
    W = torch.from_numpy(rng.standard_normal((6, 5)))
    one, _, rank = apply_ops(module.name, [LoraOp(0, module, 0.5)], W)  # type: ignore[arg-type]
    other, _, same = apply_ops(module.name, [FamilyOp(0, module, 0.5)], W)
    torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)
    assert rank == same == 2
