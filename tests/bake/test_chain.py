"""All steps on a layer as one low-rank change: equal to applying them one by one, densely, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from baking import (
    load,
    lora_file,
    para_file,
    plan_of,
    random_bases,
    random_factors,
    rounded,
    shapes_of,
    span,
)
from family_cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from paramerge.apply.chain import Chain, LoraLink, ParaLink
from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.bake.diagnose import diagnose, needs_diagnosis
from paramerge.errors import AdapterError
from paramerge.models.names import ModuleName

EPS = float(np.finfo(np.float64).eps)


@st.composite
def chains(draw: st.DrawFn) -> tuple[np.ndarray, list[ParaLink | LoraLink]]:
    """A weight and up to five steps on it, of any ranks, strengths and rank boundaries."""
    rows, columns = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    links: list[ParaLink | LoraLink] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            rank = draw(st.integers(1, rows))
            Q = torch.from_numpy(np.linalg.qr(rng.standard_normal((rows, rank)))[0])
            strong = draw(st.integers(0, rank))
            weights = torch.tensor([1.0] * strong + [draw(st.sampled_from([0.25, 0.5]))] * (rank - strong))
            limit = draw(st.none() | st.integers(1, rows))
            links.append(ParaLink(Q, weights.double(), limit))
        else:
            rank = draw(st.integers(1, 4))
            B, A = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((rows, rank), (rank, columns)))
            links.append(LoraLink(B, A, draw(st.sampled_from([-1.0, 0.5, 2.0]))))
    return rng.standard_normal((rows, columns)), links


def dense(W: np.ndarray, link: ParaLink | LoraLink) -> np.ndarray:
    if isinstance(link, LoraLink):
        return W + link.scale * link.B.numpy() @ link.A.numpy()
    Q, weights = link.Q.numpy(), link.weights.numpy()
    if link.limit is None or link.limit >= Q.shape[1]:
        return W - (Q * weights) @ Q.T @ W
    # the directions of most removed energy, within each strength: strength^2 times what they hold of W
    found = []
    for weight in np.unique(weights):
        P = Q[:, weights == weight]
        U, S, _ = np.linalg.svd(P.T @ W, full_matrices=False)
        found += [(weight * s, weight, P @ u) for s, u in zip(S, U.T, strict=True)]
    found.sort(key=lambda item: -item[0])
    for _, weight, u in found[: link.limit]:
        W = W - weight * np.outer(u, u @ W)
    return W


@settings(max_examples=150, deadline=None, derandomize=True)
@given(chains())
def test_a_chain_is_its_steps_one_after_the_other(case: tuple[np.ndarray, list[ParaLink | LoraLink]]) -> None:
    W, links = case
    chain = Chain(ModuleName("unet", "conv_in"), tuple(links))
    basis = chain.basis
    change = chain.change(None if basis is None else basis.T @ torch.from_numpy(W))
    found = W if change is None else W + (change.up @ change.down).numpy()
    expected = W
    size = np.linalg.norm(W)
    for link in links:
        expected = dense(expected, link)
        size += np.linalg.norm(expected)
    # each step is a few products of sums over at most max(shape) terms
    assert np.linalg.norm(found - expected) <= 40 * max(W.shape) * EPS * size


@pytest.fixture
def inputs(models, tmp_path: Path) -> tuple[Path, list[str]]:
    base = models(layout="diffusers-folder")
    return base, [layer for layer in shapes_of(base) if ".attn2.to_v" in layer]


def test_the_share_that_a_lora_loses(inputs: tuple[Path, list[str]], tmp_path: Path) -> None:
    """T6: ``||Q^T B A|| / ||B A||``, by layer and over all."""
    base, layers = inputs
    shapes = shapes_of(base)
    bases, factors = random_bases(shapes, layers, 6), random_factors(shapes, layers, 2)
    factors[layers[0]] = (bases[layers[0]][:, :2].astype(np.float32), factors[layers[0]][1])
    para = para_file(tmp_path / "p.safetensors", bases, dtype="F32")
    lora = lora_file(tmp_path / "l.safetensors", factors, dtype="F32")
    assert not needs_diagnosis(plan_of(base, Step("para", para), Step("lora", lora)))
    (loss,) = diagnose(plan_of(base, Step("lora", lora, 0.3), Step("para", para))).order
    lost = total = 0.0
    for layer in layers:
        up, down = factors[layer]
        change = up.astype(np.float64) @ down.astype(np.float64)
        here = np.linalg.norm(span(rounded(bases[layer], "F32")).T @ change)
        assert loss.layers[layer] == pytest.approx(here / np.linalg.norm(change), rel=1e-9)
        lost, total = lost + here**2, total + np.linalg.norm(change) ** 2
    assert loss.overall == pytest.approx(np.sqrt(lost / total), rel=1e-9)
    assert loss.layers[layers[0]] == pytest.approx(1, abs=1e-6)  # its span lies in that of the PaRa


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, 1.0), (0.9, 0.3)])
def test_the_distance_of_a_sequence_from_the_joint_merge(
    inputs: tuple[Path, list[str]], tmp_path: Path, strengths: tuple[float, float]
) -> None:
    """T3e, and what it becomes at other strengths: the 2-norm of the difference of the two operators."""
    base, layers = inputs
    shapes = shapes_of(base)
    one, two = (random_bases(shapes, layers, 3, seed=i) for i in range(2))
    files = [para_file(tmp_path / f"{i}.safetensors", b, dtype="F32") for i, b in enumerate((one, two))]
    steps = [Step("para", file, strength) for file, strength in zip(files, strengths, strict=True)]
    found = diagnose(plan_of(base, *steps, merge="sequential")).sequence
    assert found is not None
    for layer in layers:
        Q1, Q2 = span(rounded(one[layer], "F32")), span(rounded(two[layer], "F32"))
        P1, P2, Pm = (Q @ Q.T for Q in (Q1, Q2, span(np.hstack([Q1, Q2]))))
        eye = np.eye(len(P1))
        sequence = (eye - strengths[1] * P2) @ (eye - strengths[0] * P1)
        strongest = P1 if strengths[0] > strengths[1] else P2
        high, low = max(strengths), min(strengths)
        joint = eye - high * strongest - low * (Pm - strongest)
        assert found.layers[layer] == pytest.approx(np.linalg.norm(sequence - joint, 2), rel=1e-6, abs=1e-9)
    assert found.largest == max(found.layers.values())
    assert found.mean == pytest.approx(np.mean(list(found.layers.values())))


def test_a_zero_basis_is_refused(inputs: tuple[Path, list[str]], tmp_path: Path) -> None:
    """T9: a basis of zeros names no direction; QR would make some up."""
    from paramerge.files.writer import write_safetensors

    base, layers = inputs
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    stored = load(para)
    key = next(iter(stored.tensors))
    write_safetensors(para, {**stored.tensors, key: np.zeros_like(stored.tensors[key])}, stored.metadata)
    with pytest.raises(AdapterError, match="zero"):
        bake(plan_of(base, Step("para", para)), tmp_path / "out")


def test_one_span_stored_twice_is_one_span(inputs: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The same PaRa in another basis, each rounded to 16 bits: rounding does not make it two (T4, T7)."""
    base, layers = inputs
    bases = random_bases(shapes_of(base), layers, 3)
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((3, 3)))[0]
    files = [
        para_file(
            tmp_path / f"{i}.safetensors", {layer: np.linalg.qr(B)[0] @ G for layer, B in bases.items()}
        )
        for i, G in enumerate((np.eye(3), turn))
    ]
    steps = [Step("para", file) for file in files]
    found = diagnose(plan_of(base, *steps, merge="sequential")).sequence
    assert found is not None
    assert found.largest < 0.01  # not 1, as for two spans that touch
    assert found.joint_rank == found.sequential_rank == 3 * len(layers)
    report = bake(plan_of(base, *steps), tmp_path / "out")
    assert {layer.removed for layer in report.layers} == {3}


def test_the_share_that_another_family_loses(inputs: tuple[Path, list[str]], tmp_path: Path) -> None:
    """As for a LoRA, with the LoKr's dense change; of one that depends on the weight nothing is said."""
    base, layers = inputs
    shapes = {layer: shapes_of(base)[layer] for layer in layers[:3]}
    bases = random_bases(shapes, list(shapes), 6)
    para = para_file(tmp_path / "p.safetensors", bases, dtype="F32")
    lokr = next(case for case in CASES if case.name == "lokr-whole")
    path, tensors = lokr.write(tmp_path / "k", shapes)
    (loss,) = diagnose(plan_of(base, Step("adapter", path, 0.3), Step("para", para))).order
    for layer, shape in shapes.items():
        zero = np.zeros((shape[0], shape[1]))
        change = lokr.change(tensors[layer], zero, shape)
        here = np.linalg.norm(span(rounded(bases[layer], "F32")).T @ change)
        assert loss.layers[layer] == pytest.approx(here / np.linalg.norm(change), rel=1e-9)
    oft = next(case for case in CASES if case.name == "oft")
    path, _ = oft.write(tmp_path / "o", shapes)
    plan = plan_of(base, Step("adapter", path), Step("para", para))
    assert plan.order_warnings and diagnose(plan).order == ()
