"""Several PaRas on a layer, and PaRas among LoRA, LoHa and LoKr: the traps of PEFT's nesting, one by one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from rounding import U64, forward_error
from small_models import (
    LAYERS,
    Small,
    distance,
    inputs,
    outputs_with,
    random_para,
    reduced,
    small,
    weights,
    with_para,
)
from torch import Tensor, nn

from paramerge.algebra import graded_joint_basis
from paramerge.errors import UsageError
from paramerge.peft import PaRaLayer, PaRaModel, fuse, para_layers, unfuse

OTHERS = {
    "lora": lambda: LoraConfig(r=2, target_modules=list(LAYERS), init_lora_weights=False),
    "loha": lambda: LoHaConfig(r=2, target_modules=list(LAYERS), init_weights=False),
    "lokr": lambda: LoKrConfig(r=2, target_modules=list(LAYERS), init_weights=False),
}


def tuner_layers(model: nn.Module) -> Iterator[BaseTunerLayer]:
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def activate(model: nn.Module, *names: str) -> None:
    for layer in tuner_layers(model):
        layer.set_adapter(list(names))


def nested(other: str, para_first: bool) -> Small:
    model = small()
    torch.manual_seed(3)
    for name in ("para", other) if para_first else (other, "para"):
        config = random_para() if name == "para" else OTHERS[name]()
        inject_adapter_in_model(config, model, name)
    return model.eval()


def para_then(model: Small, other: str) -> dict[str, Tensor]:
    """``W0 - Q Q^T W0 + delta`` with the other adapter's own delta."""
    before = weights(small())
    result = {}
    for path in LAYERS:
        layer = model.get_submodule(path)
        delta = layer.get_delta_weight(other).detach().double()
        inner = layer.base_layer
        assert isinstance(inner, PaRaLayer)
        result[path] = reduced(before[path], inner.para_B["para"]) + delta
    return result


# --- several PaRas ------------------------------------------------------------------------------------------


def two_paras(merge: str, strengths: tuple[float, float] = (1.0, 1.0)) -> Small:
    model = small()
    for name, rank, strength in zip("ab", (2, 3), strengths, strict=True):
        torch.manual_seed(rank)
        inject_adapter_in_model(random_para(r=rank, merge=merge), model, name)
        for _, layer in para_layers(model):
            layer.set_scale(name, strength)
    activate(model, "a", "b")
    return model.eval()


def together(model: Small, merge: str, strengths: tuple[float, float]) -> dict[str, Tensor]:
    before = weights(small())
    result = {}
    for path, layer in para_layers(model):
        bases = [layer.para_B[name].detach().double() for name in "ab"]
        if merge == "sequential":
            first = reduced(before[path], bases[0], strengths[0])
            result[path] = reduced(first, bases[1], strengths[1])
        elif strengths == (1.0, 1.0):
            result[path] = reduced(before[path], torch.cat(bases, 1))
        else:
            Q, w = graded_joint_basis(bases, strengths)
            W = before[path].double().flatten(1)
            result[path] = (W - (Q * w) @ (Q.mT @ W)).view(before[path].shape)
    return result


@pytest.mark.parametrize("merge", ["joint", "sequential"])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.4, 0.9)])
def test_two_paras_together(merge: str, strengths: tuple[float, float]) -> None:
    model = two_paras(merge, strengths)
    before = weights(model)
    want = together(model, merge, strengths)
    with torch.no_grad():
        assert distance(model(*inputs()), outputs_with(want)) < 5e-6
    fuse(model, component="unet")
    assert distance([weights(model)[path] for path in LAYERS], [want[path] for path in LAYERS]) < 1e-7
    unfuse(model, component="unet")
    assert all(torch.equal(value, before[path]) for path, value in weights(model).items())
    activate(model, "b")
    alone = {
        path: reduced(before[path], layer.para_B["b"], strengths[1]) for path, layer in para_layers(model)
    }
    with torch.no_grad():
        assert distance(model(*inputs()), outputs_with(alone)) < 5e-6


def test_joint_and_sequential_differ_and_the_order_counts_for_one_of_them() -> None:
    with torch.no_grad():
        joint, sequence = two_paras("joint"), two_paras("sequential")
        y, z = joint(*inputs()), sequence(*inputs())
        assert distance(y, z) > 1e-3
        activate(joint, "b", "a")
        activate(sequence, "b", "a")
        assert distance(joint(*inputs()), y) < 1e-5
        assert distance(sequence(*inputs()), z) > 1e-3


@pytest.mark.parametrize("merge", ["joint", "sequential"])
def test_merging_one_after_the_other_is_merging_both(merge: str) -> None:
    model = two_paras(merge)
    before, want = weights(model), together(model, merge, (1.0, 1.0))
    for name in "ab":
        fuse(model, [name], component="unet")
    assert distance([weights(model)[path] for path in LAYERS], [want[path] for path in LAYERS]) < 1e-7
    assert all(layer.merged_adapters == ["a", "b"] for layer in tuner_layers(model))
    unfuse(model, component="unet")
    assert all(torch.equal(value, before[path]) for path, value in weights(model).items())


def test_one_way_to_merge_for_all_paras_of_a_model() -> None:
    model = with_para(small(), "a", merge="joint")
    with pytest.raises(UsageError, match="different ways"):
        inject_adapter_in_model(random_para(merge="sequential"), model, "b")


def test_training_two_at_once_has_the_gradient_of_the_joint_span() -> None:
    model = two_paras("joint").double()
    for _, layer in para_layers(model):
        layer.para_B.requires_grad_(True)
    model.train()
    sum(part.square().sum() for part in model(*inputs(torch.float64))).backward()
    layer = model.tall
    step = 1e-6 * torch.randn_like(layer.para_B["a"])
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            layer.para_B["a"].add_(step, alpha=sign)
            values.append(sum(part.square().sum() for part in model(*inputs(torch.float64))))
            layer.para_B["a"].sub_(step, alpha=sign)
    expected = float((layer.para_B["a"].grad * step).sum())
    # rounding of the two values, and the third term of the series, smaller by the square of the step
    near = forward_error(model, U64) * float(values[0]) + float(step.norm()) * abs(expected)
    assert float((values[0] - values[1]) / 2) == pytest.approx(expected, abs=near)


def test_spans_that_only_their_storage_tells_apart_are_one() -> None:
    """As in a bake: the same directions stored twice in half precision are not twice as many."""
    model = two_paras("joint")
    with torch.no_grad():
        for _, layer in para_layers(model):
            Q = torch.linalg.qr(layer.para_B["b"])[0]
            layer.set_basis("a", torch.linalg.qr(Q[:, :2].half().float())[0], "float16")
            layer.set_basis("b", Q, "float32")
            assert layer._steps(["a", "b"])[0].K.shape[1] == 3


# --- PaRa among others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("para_first", [True, False])
def test_para_lies_inside_whichever_came_first(other: str, para_first: bool) -> None:
    model = nested(other, para_first)
    activate(model, "para", other)
    want = para_then(model, other)
    with torch.no_grad():
        assert distance(model(*inputs()), outputs_with(want)) < 5e-6
        activate(model, other)
        lone = {p: want[p] - reduced(W, model.get_submodule(p).base_layer.para_B["para"]) + W
                for p, W in weights(small()).items()}  # fmt: skip
        assert distance(model(*inputs()), outputs_with(lone)) < 5e-6
        activate(model, "para")
        assert distance(model(*inputs()), with_alone(model)) < 5e-6
        for layer in tuner_layers(model):
            layer.enable_adapters(False)
        assert distance(model(*inputs()), small()(*inputs())) < 1e-6


def with_alone(model: Small) -> tuple[Tensor, ...]:
    before = weights(small())
    bases = {p: model.get_submodule(p).base_layer.para_B["para"] for p in LAYERS}
    return outputs_with({p: reduced(before[p], B) for p, B in bases.items()})


WALKS = {
    "parents first (PEFT's merge_adapter)": lambda model: list(model.modules()),
    "children first (diffusers' fuse_lora)": lambda model: list(reversed(list(model.modules()))),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("para_first", [True, False])
@pytest.mark.parametrize("walk", WALKS)
def test_merging_in_any_order_merges_para_first(other: str, para_first: bool, walk: str) -> None:
    """Merged first, a LoRA would be projected along with the weight."""
    model = nested(other, para_first)
    activate(model, "para", other)
    want, before = para_then(model, other), weights(small())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for layer in WALKS[walk](model):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    found = {path: model.get_submodule(path).get_base_layer().weight for path in LAYERS}
    assert distance([found[path] for path in LAYERS], [want[path] for path in LAYERS]) < 1e-6
    with torch.no_grad():
        assert distance(model(*inputs()), outputs_with(want)) < 5e-6
    for layer in WALKS[walk](model):
        if isinstance(layer, BaseTunerLayer) and layer.merged:
            layer.unmerge()
    found = {path: model.get_submodule(path).get_base_layer().weight for path in LAYERS}
    assert distance([found[path] for path in LAYERS], [before[path] for path in LAYERS]) < 1e-6
    with torch.no_grad():
        assert distance(model(*inputs()), outputs_with(want)) < 5e-6


@pytest.mark.parametrize("para_first", [True, False])
def test_merge_and_unload_of_a_lora_does_not_drop_the_para(para_first: bool) -> None:
    model = small()
    tuner: LoraModel | None = None
    if not para_first:
        tuner = LoraModel(model, OTHERS["lora"](), "lora")
    PaRaModel(model, random_para(), "para")
    if para_first:
        tuner = LoraModel(model, OTHERS["lora"](), "lora")
    assert tuner is not None
    activate(model, "para", "lora")
    want = para_then(model, "lora")
    plain = tuner.merge_and_unload()
    assert not list(tuner_layers(plain))
    with torch.no_grad():
        assert distance(plain(*inputs()), outputs_with(want)) < 5e-6


def test_merging_a_lora_without_the_active_para_is_refused() -> None:
    model = nested("lora", True)
    activate(model, "para", "lora")
    before = weights(small())
    with pytest.raises(UsageError, match="without it") as caught:
        model.lin.merge(adapter_names=["lora"])
    assert caught.value.where == "lin"
    assert torch.equal(model.lin.get_base_layer().weight, before["lin"])
    activate(model, "lora")  # inactive, the PaRa is in nobody's way
    model.lin.merge()
    assert model.lin.merged_adapters == ["lora"]
    activate(model, "para", "lora")
    with pytest.raises(UsageError, match="merged already"):
        model.lin.base_layer.merge()
    with pytest.raises(UsageError, match="project along"):
        model(*inputs())
    model.lin.unmerge()
    model.lin.merge()
    assert model.lin.base_layer.merged


@pytest.mark.parametrize("order", ["para lora loha", "lora para loha", "lora loha para"])
def test_three_deep(order: str) -> None:
    model = small()
    torch.manual_seed(3)
    for name in order.split():
        inject_adapter_in_model(random_para() if name == "para" else OTHERS[name](), model, name)
    activate(model, "para", "lora", "loha")
    with torch.no_grad():
        want = model(*inputs())
        for layer in list(tuner_layers(model)):  # outermost first
            layer.merge()
        assert all(layer.merged for layer in tuner_layers(model))
        assert distance(model(*inputs()), want) < 5e-6
        unfuse(model, component="unet")
        assert distance(model(*inputs()), want) < 5e-6


@pytest.mark.parametrize("kind", ["boft", "hra"])
def test_adapters_that_go_past_the_layer_are_refused_around_a_para(kind: str) -> None:
    """They compute with the weight and never call what they wrap: the PaRa would be dropped silently."""
    boft = BOFTConfig(boft_block_size=3, target_modules=["conv"])
    config = boft if kind == "boft" else HRAConfig(r=2, target_modules=["lin"])
    model = with_para(small())
    inject_adapter_in_model(config, model, kind)
    activate(model, "para", kind)
    with pytest.raises(UsageError, match="past the layer"):
        model(*inputs())


def test_oft_around_a_para_turns_the_reduced_weight() -> None:
    model = with_para(small())
    inject_adapter_in_model(OFTConfig(r=0, oft_block_size=5, target_modules=["lin"]), model, "oft")
    with torch.no_grad():
        model.lin.oft_R["oft"].weight.normal_(0, 0.3)
        activate(model, "para", "oft")
        want = model(*inputs())
        assert distance(want, with_para(small())(*inputs())) > 1e-2
        fuse(model, component="unet")
        assert distance(model(*inputs()), want) < 5e-6


def test_a_dora_around_a_para_is_not_merged() -> None:
    """Its norms are of the weight that it finds; after the PaRa that is another one."""
    model = with_para(small())
    dora = LoraConfig(r=2, target_modules=["lin"], use_dora=True, init_lora_weights=False)
    inject_adapter_in_model(dora, model, "dora")
    activate(model, "para", "dora")
    with pytest.raises(UsageError, match="DoRA"):
        fuse(model, component="unet")


def test_a_copied_nest_merges_itself_and_not_the_original() -> None:
    model = nested("lora", True)
    activate(model, "para", "lora")
    with torch.no_grad():
        want = model(*inputs())
        twin = copy.deepcopy(model)
        for layer in tuner_layers(twin):
            layer.merge()
        assert not any(layer.merged for layer in tuner_layers(model))
        assert all(layer.merged for layer in tuner_layers(twin))
        assert distance(twin(*inputs()), want) < 5e-6


def test_layers_without_a_para_keep_pefts_own_class() -> None:
    model = small()
    inject_adapter_in_model(OTHERS["lora"](), model, "lora")
    inject_adapter_in_model(random_para(target_modules=["lin"]), model, "para")
    assert type(model.lin).__mro__[1].__name__ == "MergesInnerFirst"
    assert type(model.conv).__mro__[1] is not type(model.lin).__mro__[1]
    assert type(model.conv).__module__ == "peft.tuners.lora.layer"


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("para_first", [True, False])
def test_saved_keys_do_not_tell_of_the_nest(other: str, para_first: bool) -> None:
    """``lin.base_layer.para_B`` of a nest is ``lin.para_B`` in a file, and is loaded into another nest."""
    model = nested(other, para_first)
    state = get_peft_model_state_dict(model, adapter_name="para")
    assert set(state) == {f"{path}.para_B" for path in LAYERS}
    theirs = get_peft_model_state_dict(model, adapter_name=other)
    assert not any("para_B" in key for key in theirs)
    assert len(theirs) >= 2 * len(LAYERS)
    for target in (with_para(small()), nested(other, not para_first)):
        for _, layer in para_layers(target):
            layer.para_B["para"].data.zero_()
        result = set_peft_model_state_dict(target, state, adapter_name="para")
        assert not result.unexpected_keys
        for path, layer in para_layers(target):
            assert torch.equal(layer.para_B["para"], state[f"{path}.para_B"])


def test_a_para_is_not_put_under_a_merged_lora() -> None:
    model = small()
    inject_adapter_in_model(OTHERS["lora"](), model, "lora")
    model.lin.merge()
    with pytest.raises(UsageError, match="merged into its weight"):
        inject_adapter_in_model(random_para(), model, "para")


def test_adding_a_para_does_not_freeze_or_thaw_others() -> None:
    model = small()
    inject_adapter_in_model(OTHERS["lora"](), model, "lora")
    assert model.lin.lora_A["lora"].weight.requires_grad
    inject_adapter_in_model(random_para(), model, "para")
    assert model.lin.lora_A["lora"].weight.requires_grad
    assert model.lin.base_layer.para_B["para"].requires_grad
    assert not model.lin.get_base_layer().weight.requires_grad
