"""One PaRa on linear and convolution layers: forward, gradients, strengths, merging, dtypes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from small_models import (
    LAYERS,
    distance,
    inputs,
    outputs_with,
    random_para,
    reduced,
    small,
    weights,
    with_para,
)
from torch import nn

from paramerge.errors import AdapterError, NonFiniteError, UsageError
from paramerge.peft import PaRaLayer, fuse, para_layers, projection, unfuse
from paramerge.peft.bases import basis_of
from paramerge.peft.projection import (
    can_let_go,
    convolve_and_project_out,
    project_out,
    project_out_channels,
)

EPS = {torch.float32: 2e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float64: 3e-16}
STRENGTHS = (1.0, 0.35, -0.5)


def expected(model: nn.Module, strength: float = 1.0, name: str = "para") -> dict[str, torch.Tensor]:
    before = weights(model)
    return {path: reduced(before[path], layer.para_B[name], strength) for path, layer in para_layers(model)}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_that_of_the_reduced_weights(dtype: torch.dtype, strength: float) -> None:
    model = with_para(small(dtype))
    for _, layer in para_layers(model):
        layer.set_scale("para", strength)
    want = outputs_with(expected(model, strength))
    with torch.no_grad():
        assert distance(model(*inputs(dtype)), want) < 30 * EPS[dtype]
    assert {path for path, _ in para_layers(model)} == set(LAYERS)


def test_any_convolution_without_groups() -> None:
    torch.manual_seed(2)
    plain = nn.Conv2d(
        5, 7, (3, 2), stride=2, padding=(2, 0), dilation=(2, 1), padding_mode="circular"
    ).double()
    model = inject_adapter_in_model(
        random_para(target_modules=["0"]), nn.Sequential(copy.deepcopy(plain)), "p"
    )
    plain.weight.data = reduced(plain.weight, model[0].para_B["p"])
    image = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    assert distance([model(image), model(image[0])], [plain(image), plain(image[0])]) < 1e-14
    assert distance([model(image.to(memory_format=torch.channels_last))], [plain(image)]) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_float32_bases(dtype: torch.dtype) -> None:
    model = with_para(small(dtype))
    assert {layer.para_B["para"].dtype for _, layer in para_layers(model)} == {torch.float32}
    want = outputs_with(expected(model), dtype)
    with torch.no_grad():
        assert distance(model(*inputs(dtype)), want) < 10 * EPS[dtype]


def test_casting_the_model_later_does_not_cast_the_bases() -> None:
    model = with_para(small())
    kept = {path: layer.para_B["para"].detach().clone() for path, layer in para_layers(model)}
    model.to(torch.bfloat16)
    for path, layer in para_layers(model):
        assert layer.base_layer.weight.dtype == torch.bfloat16
        assert torch.equal(layer.para_B["para"], kept[path])
        assert layer.para_B["para"].requires_grad
    model.half().double()
    assert {layer.para_B["para"].dtype for _, layer in para_layers(model)} == {torch.float64}


def test_autocast_does_not_reach_the_projection() -> None:
    """In bfloat16 3e-3 of the removed part would leak back; here only rounding is left."""
    K = torch.linalg.qr(torch.randn(64, 4))[0]
    y = torch.randn(512, 64)
    with torch.autocast("cpu", torch.bfloat16):
        left = project_out(y, K, None, 1.0) @ K.double().float()
        assert left.dtype == torch.bfloat16  # autocast is on
        exact = project_out(y, K, None, 1.0)
        channels = project_out_channels(y.T.reshape(1, 64, 16, 32), K, None, 1.0)
    bound = 1e-6 * float(y.norm())
    assert float((exact.double() @ K.double()).norm()) < bound
    assert float((channels.double()[0].flatten(1).T @ K.double()).norm()) < bound
    model = with_para(small())
    with torch.autocast("cpu", torch.bfloat16):
        result = model(*inputs())
    assert {part.dtype for part in result} == {torch.bfloat16}
    sum(part.float().square().sum() for part in result).backward()
    assert all(layer.para_B["para"].grad.dtype == torch.float32 for _, layer in para_layers(model))


OUTPUTS = {
    "rows": (5, 6),
    "tokens": (2, 3, 6),
    "picture": (6, 3, 2),
    "one": (1, 6, 3, 2),
    "pictures": (2, 6, 3, 2),
    "channels last": (2, 6, 3, 2),
}
"""Layers' outputs, with 6 features."""


@pytest.mark.parametrize("layout", OUTPUTS)
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_of_the_projection(layout: str, biased: bool) -> None:
    y = torch.randn(OUTPUTS[layout], dtype=torch.float64)
    if layout == "channels last":
        y = y.to(memory_format=torch.channels_last)
    y.requires_grad_()
    K = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)  # not orthonormal: the soft start's is not
    b = torch.randn(6, dtype=torch.float64, requires_grad=True) if biased else None
    rows = layout in ("rows", "tokens")
    function = project_out if rows else project_out_channels
    flat = y if rows else y.movedim(-3, -1)
    want = flat - 0.7 * ((flat if b is None else flat - b) @ K @ K.mT)
    found = function(y, K, b, 0.7)
    assert found.stride() == y.stride()
    torch.testing.assert_close(found, want if rows else want.movedim(-1, -3))
    assert torch.autograd.gradcheck(lambda *a: function(a[0], a[1], b, 0.7), (y, K))
    if b is not None:
        assert torch.autograd.gradcheck(lambda c: function(y, K, c, 0.7), (b,))


@pytest.mark.parametrize("layout", OUTPUTS)
@pytest.mark.parametrize("method", ["qr", "cholesky", "soft"])
def test_gradients_of_b_need_what_lies_across_its_span_alone(layout: str, method: str) -> None:
    """But a soft projector's K has a gradient within its span, too."""
    y = torch.randn(OUTPUTS[layout], dtype=torch.float64)
    B = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6, dtype=torch.float64)
    function = project_out if layout in ("rows", "tokens") else project_out_channels
    grads = []
    for across_only in (False, True):
        K = basis_of(B, method, 0.3)
        result = function(y, K, b, 0.7, across_only=across_only)
        (grad,) = torch.autograd.grad(result.sin().sum(), B)
        grads.append(grad)
    assert (distance([grads[1]], [grads[0]]) < 1e-13) == (method != "soft")


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_a_frozen_convolution_lets_its_input_go(
    kernel: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients are those of the layer with the projection after it; less is kept."""
    monkeypatch.setattr(projection, "WORTH_LETTING_GO", 0)
    torch.manual_seed(3)
    conv = nn.Conv2d(5, 6, kernel, stride=2, padding=kernel // 2, dilation=kernel // 2 + 1, bias=biased)
    conv = conv.double().requires_grad_(False)
    K = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0].requires_grad_()
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64, requires_grad=True)
    assert can_let_go(conv, x)
    assert torch.autograd.gradcheck(lambda x, K: convolve_and_project_out(x, conv, K, 0.7), (x, K))
    want = project_out_channels(conv(x), K, conv.bias, 0.7)
    kept: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = convolve_and_project_out(x, conv, K, 0.7)
    torch.testing.assert_close(found, want, rtol=0, atol=0)
    weights = {part.untyped_storage().data_ptr() for part in (conv.weight, conv.bias) if part is not None}
    assert x.untyped_storage().data_ptr() not in kept
    assert len(kept - weights) == 3  # the result, K and its coordinates


def test_what_needs_the_layers_own_call_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_let_go(nn.Conv2d(3, 8, 3).requires_grad_(False), torch.randn(2, 3, 9, 7).requires_grad_())
    monkeypatch.setattr(projection, "WORTH_LETTING_GO", 0)
    x = torch.randn(2, 3, 9, 7, requires_grad=True)
    frozen = nn.Conv2d(3, 8, 3).requires_grad_(False)
    assert can_let_go(frozen, x)
    assert not can_let_go(frozen, x.detach())
    assert not can_let_go(frozen, x[0])
    assert not can_let_go(frozen, x.to(memory_format=torch.channels_last))
    assert not can_let_go(nn.Conv2d(3, 8, 3), x)
    assert not can_let_go(nn.Conv2d(3, 8, 3, bias=False), x)
    assert not can_let_go(nn.Conv2d(3, 8, 3, padding="same").requires_grad_(False), x)
    assert not can_let_go(nn.Conv2d(3, 8, 3, padding_mode="circular").requires_grad_(False), x)
    assert not can_let_go(nn.Linear(7, 8).requires_grad_(False), x)
    with torch.no_grad():
        assert not can_let_go(frozen, x)
    frozen.register_forward_hook(lambda *_: None)
    assert not can_let_go(frozen, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_go_through_frozen_convolutions(
    dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the input and of B, as with the layer's own call, also in bfloat16 and under autocast."""
    monkeypatch.setattr(projection, "WORTH_LETTING_GO", 0)
    results = []
    for own_call in (False, True):
        model = with_para(small(dtype)).train()
        if own_call:
            model.conv.base_layer.register_forward_hook(lambda *_: None)
        image = inputs(dtype)[1].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model.conv(image)
        assert y.dtype == (torch.bfloat16 if autocast else dtype)
        y.float().sin().sum().backward()
        results.append((y, image.grad, model.conv.para_B["para"].grad))
        assert image.grad.dtype == dtype
    assert distance(results[0], results[1]) < 2 * EPS[torch.bfloat16 if autocast else dtype]


@pytest.mark.parametrize("method", ["qr", "cholesky"])
def test_training_gradients_are_those_of_the_plain_formula(method: str) -> None:
    model = with_para(small(torch.float64), method=method)
    model.train()
    x, image = inputs(torch.float64)
    loss = sum(part.square().sum() for part in model(x, image))
    loss.backward()
    found = {path: layer.para_B["para"].grad.clone() for path, layer in para_layers(model)}
    plain = small(torch.float64)
    bases = {
        path: layer.para_B["para"].detach().clone().requires_grad_() for path, layer in para_layers(model)
    }
    state = dict(plain.named_parameters())
    for path, B in bases.items():
        W = state[f"{path}.weight"]
        projector = B @ torch.linalg.solve(B.mT @ B, B.mT)
        state[f"{path}.weight"] = (W.flatten(1) - projector @ W.flatten(1)).view(W.shape)
    sum(part.square().sum() for part in torch.func.functional_call(plain, state, (x, image))).backward()
    assert distance(list(found.values()), [B.grad for B in bases.values()]) < 1e-11


def test_only_the_bases_are_trained_and_base_layers_stay() -> None:
    model = with_para(small())
    before = weights(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(trained) == sorted(f"{path}.para_B.para" for path in LAYERS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05, weight_decay=0)
    model.train()
    losses = []
    for _ in range(15):
        loss = sum(part.square().mean() for part in model(*inputs()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(value, before[path]) for path, value in weights(model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("strength", [1.0, 0.35])
def test_merge_is_rounded_once_and_unmerge_is_exact(dtype: torch.dtype, strength: float) -> None:
    model = with_para(small(dtype))
    for _, layer in para_layers(model):
        layer.set_scale("para", strength)
    before, want = weights(model), expected(model, strength)
    unmerged = model(*inputs(dtype))
    for path, layer in para_layers(model):
        layer.merge()
        W = layer.base_layer.weight
        nearest = want[path].to(dtype)
        assert distance([W], [want[path]]) <= 1.01 * distance([nearest], [want[path]]) + EPS[torch.float64]
        assert layer.merged
        assert not torch.equal(W, before[path])
    with torch.no_grad():
        assert distance(model(*inputs(dtype)), unmerged) < 10 * EPS[dtype]
    for path, layer in para_layers(model):
        layer.unmerge()
        assert torch.equal(layer.base_layer.weight, before[path])


def test_unmerge_does_not_lean_on_the_basis() -> None:
    """A projection cannot be inverted: what it removed is kept, also when B goes on to change."""
    model = with_para(small())
    before = weights(model)
    for path, layer in para_layers(model):
        layer.merge()
        layer.para_B["para"].data.normal_()
        layer.unmerge()
        assert torch.equal(layer.base_layer.weight, before[path])


def test_other_changes_made_while_merged_stay() -> None:
    model = with_para(small())
    before = weights(model)
    for path, layer in para_layers(model):
        layer.merge()
        layer.base_layer.weight.data += 0.5
        layer.unmerge()
        assert distance([layer.base_layer.weight], [before[path] + 0.5]) < 10 * EPS[torch.float32]


def test_a_merge_beyond_the_range_leaves_the_weight_alone() -> None:
    model = with_para(small(torch.float16))
    layer = model.lin
    assert isinstance(layer, PaRaLayer)
    before = layer.base_layer.weight.detach().clone()
    layer.set_scale("para", -1e7)
    with pytest.raises(NonFiniteError, match="lin"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged


def test_disabled_adapters_are_not_there() -> None:
    model = with_para(small())
    with torch.no_grad():
        want = small()(*inputs())
        for _, layer in para_layers(model):
            layer.merge()
            layer.enable_adapters(False)  # unmerges at the next call, as PEFT's own layers do
        assert all(torch.equal(a, b) for a, b in zip(model(*inputs()), want, strict=True))
        for _, layer in para_layers(model):
            layer.enable_adapters(True)
        assert distance(model(*inputs()), want) > 1e-3


def test_kept_bases_follow_every_change_of_b() -> None:
    model = with_para(small())
    x, image = inputs()
    with torch.no_grad():
        first = model(x, image)[0]
        model.lin.para_B["para"].mul_(2)
        torch.testing.assert_close(model(x, image)[0], first)  # the span is the same
        model.lin.para_B["para"][:, 0].add_(1)
        changed = model(x, image)[0]
        assert distance([changed], [first]) > 1e-3
        model.lin.set_scale("para", 0)
        weaker = model(x, image)[0]
        assert distance([weaker], [changed]) > 1e-3
        model.lin.set_scale("para", 1)
        kept = model.lin.para_B["para"].data.clone()
        model.lin.para_B["para"].data = torch.flip(kept, (0,))
        assert distance([model(x, image)[0]], [changed]) > 1e-3
        model.train()
        model.lin.para_B["para"].data.copy_(kept)  # what an EMA does: only training mode is safe from it
        model.eval()
        torch.testing.assert_close(model(x, image)[0], changed)


def test_scaling_as_diffusers_does() -> None:
    layer = with_para(small()).lin
    layer.set_scale("para", 0.5)
    layer.set_scale("another", 0.1)  # not here: no harm
    layer.scale_layer(0.5)
    assert layer.strength("para") == 0.25
    layer.unscale_layer(0.5)
    assert layer.strength("para") == 0.5
    layer.unscale_layer()
    assert layer.strength("para") == 1
    assert layer.r == {"para": 2}


def test_delete() -> None:
    model = with_para(small())
    layer = model.conv
    layer.merge()
    with pytest.raises(UsageError, match="merged"):
        layer.delete_adapter("para")
    layer.unmerge()
    layer.delete_adapter("para")
    assert not layer.para_B
    assert not layer.r
    assert torch.equal(layer(inputs()[1]), small().conv(inputs()[1]))


def test_copies_and_peft_models() -> None:
    model = get_peft_model(small(), random_para())
    twin = copy.deepcopy(model)
    twin.base_model.model.lin.para_B["default"].data.normal_()
    with torch.no_grad():
        assert distance(twin(*inputs())[:1], model(*inputs())[:1]) > 1e-3
    want = model(*inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_adapter()
    assert distance(model(*inputs()), want) < 1e-6
    model.unmerge_adapter()
    plain = model.merge_and_unload()
    assert type(plain.conv) is nn.Conv2d
    assert distance(plain(*inputs()), want) < 1e-6


def test_a_peft_folder_round_trip(tmp_path) -> None:
    from peft import PeftModel

    model = get_peft_model(small(), random_para(rank_pattern={"conv": 3}))
    want = model(*inputs())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(), tmp_path).eval()
    assert again.peft_config["default"].peft_type == "PARA"
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again(*inputs()), want, strict=True))


def test_an_adapter_that_was_never_loaded_is_not_used() -> None:
    model = with_para(small(), inference_mode=True)
    with torch.no_grad(), pytest.raises(AdapterError, match="never loaded"):
        model(*inputs())
    with pytest.raises(AdapterError, match="never loaded"):
        fuse(model, component="unet")


def test_layers_that_are_not_for_a_para() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.LayerNorm(4))
    with pytest.raises(UsageError, match="groups"):
        inject_adapter_in_model(random_para(target_modules=["0"]), grouped)
    with pytest.raises(UsageError, match="LayerNorm"):
        inject_adapter_in_model(random_para(target_modules=["1"]), grouped)
    model = with_para(small())
    with pytest.raises(UsageError, match="sample of a batch"):
        model.lin(inputs()[0], adapter_names=["para"])


def test_the_whole_model_fused_and_unfused() -> None:
    model = with_para(small())
    before = weights(model)
    fuse(model, component="unet")
    assert all(layer.merged for _, layer in para_layers(model))
    unfuse(model, component="unet")
    assert all(torch.equal(value, before[path]) for path, value in weights(model).items())
