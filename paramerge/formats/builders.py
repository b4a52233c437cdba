"""From the keys of a layer to the module of its family, every shape checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

from paramerge.adapters import (
    AdditiveModule,
    BoftModule,
    DifferenceModule,
    DoraModule,
    GloraModule,
    Ia3Module,
    KronaModule,
    LayerModule,
    LohaModule,
    LokrFactor,
    LokrModule,
    LoraModule,
    OftModule,
    PeftBoftModule,
    PeftOftModule,
    SvdiffModule,
)
from paramerge.adapters.group import Group
from paramerge.adapters.oft import block_size
from paramerge.adapters.rules import Rules
from paramerge.errors import AdapterError
from paramerge.files.tensors import StoredTensor
from paramerge.formats.pairs import check_shapes
from paramerge.models.names import MODEL

__all__ = ["build"]

_LYCORIS_EPS = 2.0**-23
"""What LyCORIS adds to DoRA's norms: the distance from 1 to the next float32."""


def build(group: Group, rules: Rules) -> list[LayerModule]:
    """The modules that a layer's keys are: of its weight, and of its bias where there is one.

    Raises
    ------
    AdapterError
        Keys are missing, or of several families.
    ShapeError
        They do not fit together.
    """
    families = {family for role in group.roles if (family := _FAMILY_OF.get(role))}
    if len(families) > 1:
        raise AdapterError(
            "one layer has keys of several families",
            where=group.name,
            expected="one family a layer",
            found=", ".join(sorted(families)),
            hint="the file was probably joined from several: take one of its parts",
        )
    modules = list(_BUILDERS[families.pop()](group, rules)) if families else []
    if bias := group.take("diff_b"):
        group.check(len(bias.shape) == 1, "a bias of one dimension")
        modules.append(DifferenceModule(group.bias, bias))
    group.finish()
    return modules


def _lora(group: Group, rules: Rules) -> Iterator[LayerModule]:
    if group.key_of("up") in rules.krona:
        yield _krona(group, rules)
        return
    up, down, mid = group.need("up"), group.need("down"), group.take("mid")
    check_shapes(up, down, mid)
    alpha, rslora = rules.scaling(group.name, down.shape[0])
    stated = group.number("alpha")
    alpha = alpha if stated is None else stated
    yield _with_magnitude(group, LoraModule(group.name, up, down, mid, alpha, rslora, group.key_of("alpha")))


def _krona(group: Group, rules: Rules) -> KronaModule:
    up, down = group.need("up"), group.need("down")
    group.check(len(up.shape) == len(down.shape) == 2, "two matrices, down (a2, a1) and up (b1, b2)")
    return KronaModule(group.name, up, down, shuffled=not rules.paper_order)


def _loha(group: Group, rules: Rules) -> Iterator[LayerModule]:
    w1_a, w1_b = group.need("hada_w1_a"), group.need("hada_w1_b")
    w2_a, w2_b = group.need("hada_w2_a"), group.need("hada_w2_b")
    t1, t2 = group.take("hada_t1"), group.take("hada_t2")
    inner = 1 if t1 is None else 0
    fits = (t1 is None) == (t2 is None) and _is_matrix(w1_a) and _is_matrix(w2_a)
    fits = fits and w1_a.shape[1 - inner] == w2_a.shape[1 - inner] and w1_b.shape[1:] == w2_b.shape[1:]
    for a, b, core in ((w1_a, w1_b, t1), (w2_a, w2_b, t2)):
        ranks = (a.shape[inner], b.shape[0]) if fits else ()
        fits = fits and (len(set(ranks)) == 1 if core is None else core.shape[:2] == ranks)
    if t1 is not None and t2 is not None:
        fits = fits and t1.shape[2:] == t2.shape[2:] and _is_matrix(w1_b)
    group.check(fits, "w_a (out, r) and w_b (r, in) twice; with t (r, r, kh, kw) w_a is (r, out)")
    alpha, key = rules.alpha(group, w1_b.shape[0])
    yield _with_magnitude(group, LohaModule(group.name, w1_a, w1_b, w2_a, w2_b, t1, t2, alpha, key))


def _is_matrix(tensor: StoredTensor) -> bool:
    """Whether it has rows and columns, and at most a kernel of one element beside them."""
    return len(tensor.shape) >= 2 and math.prod(tensor.shape[2:]) == 1


def _lokr(group: Group, rules: Rules) -> Iterator[LayerModule]:
    w1, w2 = _lokr_factor(group, "lokr_w1", None), _lokr_factor(group, "lokr_w2", group.take("lokr_t2"))
    group.check(w1.whole is None or len(w1.whole.shape) == 2, "a first factor that is a matrix")
    rank = w2.rank or w1.rank
    configured = None if rules.configuration is None else rules.configuration.rank_of(group.name.path)
    alpha, key = rules.alpha(group, rank if rank is not None else configured)
    whole_scale = rules.interpretation.lokr_scale
    module = LokrModule(group.name, w1, w2, alpha, key, configured, whole_scale)
    yield _with_magnitude(group, module)


def _lokr_factor(group: Group, stem: str, core: StoredTensor | None) -> LokrFactor:
    whole = group.take(stem)
    if whole is not None and core is None and not group.has(f"{stem}_a") and not group.has(f"{stem}_b"):
        return LokrFactor(whole)
    a, b = group.need(f"{stem}_a"), group.need(f"{stem}_b")
    fits = whole is None and len(a.shape) == 2
    inner = (a.shape[-1 if core is None else 0], b.shape[0])
    fits = fits and (inner[0] == inner[1] if core is None else core.shape[:2] == inner and len(b.shape) == 2)
    group.check(fits, f"{stem} whole, or a (rows, r), b (r, columns); with t (r, r, kh, kw) a is (r, rows)")
    return LokrFactor(None, a, b, core)


def _oft(group: Group, rules: Rules) -> Iterator[LayerModule]:
    blocks, rescale = group.need("oft_blocks"), group.take("rescale")
    constraint = group.number("alpha", positive=True)
    key = group.key_of("alpha")
    square = len(blocks.shape) in (3, 4) and blocks.shape[-1] == blocks.shape[-2]
    group.check(square, "blocks (n, b, b), or (m, n, b, b) for BOFT")
    kind = OftModule if len(blocks.shape) == 3 else BoftModule
    module = kind(group.name, blocks, rescale, constraint, key)
    if rescale is not None:
        count = math.prod(rescale.shape)
        group.check(count == module.out_features == rescale.shape[0], "as many numbers as rows to rescale")
    if isinstance(module, BoftModule):
        group.check(blocks.shape[-1] % 2 == 0, "blocks with two halves")
        _check_butterfly(group, blocks)
    yield module


def _peft_oft(group: Group, rules: Rules) -> Iterator[LayerModule]:
    weight = group.need("oft_R")
    size = block_size(weight.shape[1]) if len(weight.shape) == 2 else 0
    group.check(size > 1 and size * (size - 1) // 2 == weight.shape[1], "vectors (n, b (b - 1) / 2)")
    if rules.configuration is None and group.name.component != MODEL:
        # OneTrainer saves PEFT's tensors under names of its own and without a configuration: PEFT's series,
        # and one block for all where there is but one
        yield PeftOftModule(group.name, weight, weight.shape[0] == 1)
        return
    tuner = rules.tuner(group, "OFT")
    yield PeftOftModule(group.name, weight, tuner.shared_block, tuner.series_terms)


def _peft_boft(group: Group, rules: Rules) -> Iterator[LayerModule]:
    blocks, s = group.need("boft_R"), group.need("boft_s")
    square = len(blocks.shape) == 4 and blocks.shape[-1] == blocks.shape[-2]
    group.check(square and max(s.shape) == math.prod(s.shape), "blocks (m, n, b, b) and s (out, 1)")
    _check_butterfly(group, blocks)
    rules.tuner(group, "BOFT")
    yield PeftBoftModule(group.name, blocks, s)


def _check_butterfly(group: Group, blocks: StoredTensor) -> None:
    stages, count, size, _ = blocks.shape
    fits = stages == 1 or (size % 2 == 0 and (count * size) % (2**stages * (size // 2)) == 0)
    group.check(fits, "stages that a butterfly of this size has")


def _glora(group: Group, rules: Rules) -> Iterator[LayerModule]:
    a1, a2 = group.need("a1"), group.need("a2")
    b1, b2, core = group.need("b1"), group.need("b2"), group.take("bm")
    today = a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]
    early = a1.shape[0] == a2.shape[1] == b1.shape[0] == b2.shape[1]
    if early and (not today or a1.shape[0] < a1.shape[1]):  # in a square layer the rank is the smaller size
        a1, a2, b1, b2 = a2, a1, b2, b1  # early files: the outer factor is the second
    fits = (
        a1.shape[:2] == a2.shape[1::-1]
        and b1.shape[1] == b2.shape[0]
        and all(math.prod(t.shape[2:]) == 1 for t in (a1, a2, b1))
        and (core is None or (core.shape[:2] == (b1.shape[1], b2.shape[0]) and math.prod(b2.shape[2:]) == 1))
        and b2.shape[1] == a1.shape[0]
    )
    group.check(fits, "a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in), a kernel in b2 or bm only")
    alpha, key = rules.alpha(group, a2.shape[0])
    yield GloraModule(group.name, a1, a2, b1, b2, core, alpha, key)


def _ia3(group: Group, rules: Rules) -> Iterator[LayerModule]:
    vector, on_input = group.need("weight"), group.number("on_input", positive=True)
    if on_input is None:
        group.need("on_input")
    _check_vector(group, vector)
    axis: Literal["out", "in"] = "in" if on_input else "out"
    yield Ia3Module(group.name, vector, axis, around_one=True)


def _peft_ia3(group: Group, rules: Rules) -> Iterator[LayerModule]:
    vector = group.need("ia3_l")
    _check_vector(group, vector)
    tuner = rules.tuner(group, "IA3")
    linear = len(vector.shape) == 2
    scales_inputs = tuner.scales_inputs(group.name.path)
    if linear and vector.shape[0] != vector.shape[1]:
        group.check(scales_inputs == (vector.shape[0] == 1), "(1, in) for feedforward_modules, else (out, 1)")
    yield Ia3Module(group.name, vector, "in" if scales_inputs else "out", around_one=False)
    if not scales_inputs:  # PEFT scales the outputs, and with them the bias
        yield Ia3Module(group.bias, vector, "out", around_one=False, on_bias=True)


def _check_vector(group: Group, vector: StoredTensor) -> None:
    group.check(max(vector.shape, default=0) == math.prod(vector.shape), "one number for each channel")


def _full(group: Group, rules: Rules) -> Iterator[LayerModule]:
    diff = group.need("diff")
    # a vector is a norm's, also in models whose norms are not known by their names
    yield DifferenceModule(group.weight if len(diff.shape) == 1 else group.parameter, diff)


def _norm(group: Group, rules: Rules) -> Iterator[LayerModule]:
    weight, bias = group.need("w_norm"), group.take("b_norm")
    vectors = [tensor for tensor in (weight, bias) if tensor is not None]
    group.check(all(len(t.shape) == 1 for t in vectors), "vectors, of a norm")
    yield DifferenceModule(group.weight, weight, "norm")
    if bias is not None:
        yield DifferenceModule(group.bias, bias, "norm")


def _svdiff(group: Group, rules: Rules) -> Iterator[LayerModule]:
    shift = group.need("delta")
    group.check(len(shift.shape) == 1, "a vector of shifts")
    yield SvdiffModule(group.parameter, shift)


def _with_magnitude(group: Group, inner: AdditiveModule) -> LayerModule:
    """``inner``, or the DoRA that it is part of."""
    if scale := group.take("dora_scale"):  # a second kind of magnitude beside it is left, and refused
        by_input = len(scale.shape) > 1 and scale.shape[0] == 1 < scale.shape[1]
        axis: Literal["out", "in"] = "in" if by_input else "out"
        group.check(max(scale.shape) == math.prod(scale.shape), "one magnitude for each row or input channel")
        return DoraModule(group.name, inner, scale, axis, _LYCORIS_EPS)
    magnitude = group.take("magnitude")
    if magnitude is None:
        return inner
    group.check(math.prod(magnitude.shape) == inner.out_features, "one magnitude for each row")
    return DoraModule(group.name, inner, magnitude)


_Builder = Callable[[Group, Rules], Iterator[LayerModule]]
_BUILDERS: dict[str, _Builder] = {
    "LoRA": _lora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "OFT or BOFT": _oft,
    "OFT of PEFT": _peft_oft,
    "BOFT of PEFT": _peft_boft,
    "GLoRA": _glora,
    "IA3": _ia3,
    "IA3 of PEFT": _peft_ia3,
    "full difference": _full,
    "norm": _norm,
    "SVDiff": _svdiff,
}
_FAMILY_OF = {
    **dict.fromkeys(("up", "down", "mid"), "LoRA"),
    **{f"hada_{end}": "LoHa" for end in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{w}{end}": "LoKr" for w in ("w1", "w2") for end in ("", "_a", "_b")},
    **dict.fromkeys(("lokr_t1", "lokr_t2"), "LoKr"),
    **dict.fromkeys(("oft_blocks", "rescale"), "OFT or BOFT"),
    **dict.fromkeys(("a1", "a2", "b1", "b2", "bm"), "GLoRA"),
    **dict.fromkeys(("weight", "on_input"), "IA3"),
    **dict.fromkeys(("boft_R", "boft_s"), "BOFT of PEFT"),
    **dict.fromkeys(("w_norm", "b_norm"), "norm"),
    "oft_R": "OFT of PEFT",
    "ia3_l": "IA3 of PEFT",
    "diff": "full difference",
    "delta": "SVDiff",
}
"""Which family a role speaks for; alpha, magnitudes and ``diff_b`` go with several."""
