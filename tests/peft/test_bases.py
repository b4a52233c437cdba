"""From B to the basis, the starts, ranks, and the configuration's refusals."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import inject_adapter_in_model
from rounding import U64, dot_error, forward_error
from small_models import distance, inputs, outputs_with, random_para, reduced, small, weights, with_para

from paramerge.algebra.arrays import orthonormal_bound
from paramerge.errors import NonFiniteError, UsageError
from paramerge.models.subsets import SUBSETS, subset
from paramerge.peft import (
    PaRaConfig,
    harden,
    hoist_bases,
    least_energy_directions,
    paper_config,
    para_bases,
    para_layers,
    set_gate,
)
from paramerge.peft.bases import basis_of, cholesky_qr2, nearest_projector, soft_factor


@given(st.integers(1, 6), st.integers(0, 30), st.integers(0, 2**31), st.floats(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_cholesky_qr2_spans_the_same_and_stays_orthonormal(r, extra, seed, decades, batched):
    """Also where the columns are nearly dependent: the fallback is Householder QR."""
    generator = torch.Generator().manual_seed(seed)
    B = torch.linalg.qr(torch.randn(r + extra, r, generator=generator))[0]
    B = (
        B
        @ torch.diag(10.0 ** -torch.linspace(0, decades, r))
        @ torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
    )
    Q, R = cholesky_qr2(torch.stack([B, B.flip(0)])) if batched else cholesky_qr2(B)
    Q, R = (Q[0], R[0]) if batched else (Q, R)
    near = 4 * dot_error(r + len(B))  # of a QR of these sizes, twice
    assert float((Q @ R - B).norm()) < near * float(B.norm())
    assert float((Q.mT @ Q - torch.eye(r)).norm()) < near * r**0.5
    condition = float(torch.linalg.cond(B.double()))
    leak = B - Q @ (Q.mT @ B)
    assert float(leak.norm()) < near * float(B.norm())
    if condition < 1e4:
        P = torch.linalg.qr(B.double())[0]
        assert float((Q.double() @ Q.double().mT - P @ P.mT).norm()) < near * condition


@given(st.integers(1, 8), st.integers(0, 200), st.integers(0, 2**31), st.floats(0, 4.5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_cholesky_that_waits_for_nothing(r, extra, seed, decades, batched):
    """The same span up to a condition of 3e4, without a look at its numbers; else it may be NaN."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(r + extra, r, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
    B = left @ torch.diag(10.0 ** -torch.linspace(0, decades, r)) @ right
    Q, R = cholesky_qr2(torch.stack([B, 2 * B]) if batched else B, checked=False)
    Q, R = (Q[0], R[0]) if batched else (Q, R)
    near = 4 * dot_error(r + len(B))
    assert float((Q @ R - B).norm()) < near * float(B.norm())
    assert float((Q.mT @ Q - torch.eye(r)).norm()) <= orthonormal_bound(B.shape, 2.0**-23)
    if r > 1:
        B[:, 1] = B[:, 0]
        Q = cholesky_qr2(B, checked=False)[0]  # as in a QR one direction is arbitrary, or there is none
        orthonormal = float((Q.mT @ Q - torch.eye(r)).norm()) <= orthonormal_bound(B.shape, 2.0**-23)
        assert orthonormal or bool(Q.isnan().all())


@pytest.mark.parametrize("method", ["qr", "cholesky"])
def test_the_gradient_is_that_of_the_projector(method):
    """Of anything that depends on K K^T alone, as autograd gives it for torch's own QR."""
    B = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    C = torch.randn(2, 7, 7, dtype=torch.float64)
    grads = []
    for K in (basis_of(B, method, 0), torch.linalg.qr(B)[0]):
        (grad,) = torch.autograd.grad((K @ K.mT * C).sum(), B)
        grads.append(grad)
    torch.testing.assert_close(*grads)
    inside = B.detach().mT @ grads[0]
    # orthogonal to B: its norm is a hidden learning rate
    size = float(B.detach().norm() * grads[0].norm() * torch.linalg.cond(B.detach()).max() ** 2)
    assert float(inside.norm()) < 8 * dot_error(B.numel(), U64) * size


@given(st.integers(1, 4), st.integers(0, 8), st.floats(1e-4, 10))
@settings(max_examples=30, deadline=None)
def test_the_soft_projector(r, extra, epsilon):
    torch.manual_seed(r + extra)
    B = torch.randn(r + extra, r, dtype=torch.float64)
    K = soft_factor(B, epsilon)
    softened = B.mT @ B + epsilon * torch.eye(r, dtype=B.dtype)
    want = B @ torch.linalg.inv(softened) @ B.mT
    near = 8 * dot_error(r * len(B), U64) * float(torch.linalg.cond(softened))
    assert torch.allclose(K @ K.mT, want, rtol=0, atol=near)
    assert torch.linalg.matrix_norm(K @ K.mT, 2) < 1
    Q = nearest_projector(B, epsilon)
    U, s, _ = torch.linalg.svd(B, full_matrices=False)
    counts = s**2 / (s**2 + epsilon)
    chosen = U[:, counts >= 0.5]
    assert Q.shape == chosen.shape
    assert torch.allclose(Q @ Q.mT, chosen @ chosen.mT, rtol=0, atol=2 * dot_error(r, U64))


@pytest.mark.parametrize("shape", [(8, 20), (12, 5), (9, 3, 3, 3), (6, 6)])
def test_least_energy_directions_remove_least(shape):
    torch.manual_seed(1)
    W = torch.randn(shape, dtype=torch.float64)
    Q = least_energy_directions(W, 3)
    s = torch.linalg.svdvals(W.flatten(1))
    rows, least = shape[0], sorted([*s.tolist(), *[0.0] * (shape[0] - len(s))])[:3]
    near = 4 * dot_error(W.numel(), U64)
    assert torch.allclose(Q.mT @ Q, torch.eye(3, dtype=Q.dtype), rtol=0, atol=near)
    # energies, not norms, are exact to rounding: they are eigenvalues of W W^T
    energy, all_energy = sum(x * x for x in least), float(s.square().sum())
    assert float((Q.mT @ W.flatten(1)).norm()) ** 2 == pytest.approx(energy, abs=near * all_energy)
    other = torch.linalg.qr(torch.randn(rows, 3, dtype=torch.float64))[0]
    assert float((other.mT @ W.flatten(1)).norm()) > float((Q.mT @ W.flatten(1)).norm())


def test_starts():
    damage = {}
    for init in ("least-energy", "orthonormal", "gate", "soft"):
        model = with_para(small(), init=init)
        damage[init] = distance([model.lin(inputs()[0])], [small().lin(inputs()[0])])
        model.train()
        sum(part.square().sum() for part in model(*inputs())).backward()
        for path, layer in para_layers(model):
            B = layer.para_B["para"]
            norm = 2**0.5 * (0.01 if init == "soft" else 1)
            assert float(B.detach().norm()) == pytest.approx(norm, rel=4 * dot_error(B.numel())), path
            assert bool(torch.isfinite(B.grad).all())
            if init != "least-energy":
                assert (float(B.grad.norm()) > 0) == (init != "gate")
    assert damage["gate"] == 0
    assert damage["soft"] < 0.02
    assert damage["least-energy"] < damage["orthonormal"]


def test_least_energy_starts_with_a_gradient_also_where_nothing_is_removed():
    """Of a tall weight the first directions are those that it never writes to."""
    model = with_para(small())
    model = with_para(small(), init="least-energy")
    model.train()
    x = inputs()[0][..., :4]
    y = model.tall(x)
    want = small().tall(x)
    W = small().tall.weight
    # energies are told apart to rounding of the largest, so norms to the root of it
    off = dot_error(W.numel()) ** 0.5 * float(torch.linalg.matrix_norm(W, 2))
    assert float((y - want).norm()) < off * float(x.norm())
    (y - torch.randn_like(y)).square().sum().backward()
    assert float(model.tall.para_B["para"].grad.norm()) > 0.1


def test_a_gate_is_opened_by_hand():
    model = with_para(small(), init="gate")
    full = {
        path: reduced(weights(model)[path], layer.para_B["para"], 0.25) for path, layer in para_layers(model)
    }
    set_gate(model, 0.25)
    with torch.no_grad():
        assert distance(model(*inputs()), outputs_with(full)) < 1e-5
    with pytest.raises(UsageError, match="gate"):
        para_bases(model, "para", component="unet")
    set_gate(model, 1.0, "para")
    model.train()
    sum(part.square().sum() for part in model(*inputs())).backward()
    assert all(float(layer.para_B["para"].grad.norm()) > 0 for _, layer in para_layers(model))


def test_a_soft_para_is_hardened():
    model = with_para(small(), init="soft")
    with pytest.raises(UsageError, match="one half"):
        para_bases(model, "para", component="unet")
    grown = {}
    for path, layer in para_layers(model):
        if path != "lin":
            layer.para_B["para"].data *= 100  # to columns of norm 1, far above sqrt(0.01)
            grown[path] = layer.para_B["para"].detach().clone()
    harden(model)
    assert "para" not in model.lin.para_B  # nothing there counted one half
    want = outputs_with({path: reduced(weights(model)[path], B) for path, B in grown.items()})
    with torch.no_grad():
        assert distance(model(*inputs()), want) < 1e-5


def test_hoisted_bases_are_the_same_and_their_gradients_too():
    results = []
    for hoisted in (False, True):
        model = with_para(small(), method="cholesky" if hoisted else "qr")
        handle = hoist_bases(model) if hoisted else None
        model.train()
        for _ in range(2):  # the second step sees new bases
            model.zero_grad()
            loss = sum(part.square().sum() for part in model(*inputs()))
            loss.backward()
            grads = [layer.para_B["para"].grad.clone() for _, layer in para_layers(model)]
            with torch.no_grad():
                for _, layer in para_layers(model):
                    layer.para_B["para"].sub_(layer.para_B["para"].grad, alpha=0.01)
        results.append((float(loss.detach()), grads))
        if handle is not None:
            layer = model.lin  # called by itself after the step it has new bases
            torch.testing.assert_close(layer(inputs()[0]), copy.deepcopy(layer).eval()(inputs()[0]))
            assert all(layer._hoisted for _, layer in para_layers(model))
            inject_adapter_in_model(random_para(target_modules=["lin"]), model, "later")
            model(*inputs())  # the hook finds it
            assert "later" in model.lin._hoisted
            model.lin.set_basis("later", torch.randn(12, 3))
            assert model.lin.basis("later").shape == (12, 3)
            handle.remove()
    near = 2 * forward_error(small())
    assert results[0][0] == pytest.approx(results[1][0], rel=2 * near)  # a square
    assert distance(results[1][1], results[0][1]) < 4 * near  # forwards and backwards, twice


def test_zero_is_refused_with_the_reason():
    with pytest.raises(UsageError, match="arbitrary") as caught:
        PaRaConfig(init="zero")
    assert "NaN" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"init": "lora"},
        {"merge": "sum"},
        {"method": "svd"},
        {"gamma_layers": "linear"},
        {"r": 0},
        {"r": True},
        {"rank_pattern": {"x": -1}},
        {"gamma": 0.0},
        {"gamma": 1.5},
        {"gamma": float("nan")},
        {"soft_epsilon": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError) as caught:
        PaRaConfig(**wrong)
    assert caught.value.where == next(iter(wrong))


def test_ranks_by_pattern_and_boundary():
    config = PaRaConfig(r=4, rank_pattern={"a.b": 2, "to_q": 1, "gone": 0}, gamma=0.25)
    assert config.rank_for("a.b", (100, 100)) == 2
    assert config.rank_for("x.to_q", (100, 100)) == 1
    assert config.rank_for("x.a.b", (100, 100)) == 2  # as PEFT matches patterns
    assert config.rank_for("x.gone", (100, 100)) == 0
    assert config.rank_for("other", (100, 12)) == 3
    assert config.rank_for("other", (8, 2, 3, 3)) == 2
    conv = PaRaConfig(r=4, gamma=0.25, gamma_layers="conv")
    assert (conv.rank_for("x", (8, 8)), conv.rank_for("x", (8, 2, 3, 3))) == (4, 2)
    with pytest.raises(UsageError, match="output features"):
        PaRaConfig(r=9).rank_for("conv_out", (4, 320, 3, 3))


def test_layers_below_the_boundary_are_left_alone_and_said_so():
    with pytest.warns(UserWarning, match="left alone.*strided"):
        model = with_para(small(), r=4, gamma=0.13)  # floor(0.13 * 8) = 1, floor(0.13 * 6) = 0
    assert {path: layer.r["para"] for path, layer in para_layers(model)} == {"lin": 1, "bare": 1, "conv": 1}
    with pytest.raises(UsageError, match="every layer"):
        with_para(small(), gamma=0.01)


@pytest.mark.parametrize("name", SUBSETS)
def test_the_papers_subsets_as_configurations(name):
    config = paper_config(name, r=8, init="orthonormal")
    assert config.target_modules == subset(name).pattern
    assert (config.gamma, config.gamma_layers, config.init) == (0.025, "conv", "orthonormal")
    assert config.rank_for("mid_block.resnets.1.conv2", (1280, 1280, 3, 3)) == 8
    assert paper_config(name, 64).rank_for("mid_block.resnets.1.conv2", (1280, 1280, 3, 3)) == 32


def test_a_damaged_base_is_refused_at_the_start():
    model = small()
    model.lin.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="lin"):
        inject_adapter_in_model(PaRaConfig(r=2, target_modules=["lin"]), model)


def test_saved_configurations_are_read_again(tmp_path):
    config = paper_config("sao", r=3, rank_pattern={"x": 1})
    config.save_pretrained(tmp_path)
    again = PaRaConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from peft import PeftConfig

        assert isinstance(PeftConfig.from_pretrained(tmp_path), PaRaConfig)
