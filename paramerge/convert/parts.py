"""One layer of an adapter as the tensors that a format will hold, still without their keys.

Tensors are passed on bit for bit wherever the format has the same ones. Where it has not, the same change is
written otherwise (an alpha folded into the factors, a Tucker core contracted): computed in float64, rounded
once, and told in the part's ``notes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from paramerge.adapters import (
    Adapter,
    DifferenceModule,
    DoraModule,
    Ia3Module,
    LayerModule,
    LohaModule,
    LokrFactor,
    LokrModule,
    LoraModule,
    ParaModule,
)
from paramerge.adapters.changes import product_norm
from paramerge.adapters.contract import read_stored
from paramerge.adapters.folding import folded
from paramerge.adapters.registry import label
from paramerge.adapters.rounding import rounded
from paramerge.errors import FamilyError
from paramerge.files.dtypes import NUMPY
from paramerge.files.header import Header
from paramerge.files.tensors import StoredTensor, stored
from paramerge.formats.roles import read_role
from paramerge.models.names import ModuleName
from paramerge.wording import call, option

__all__ = ["HOLDS", "Part", "part_of"]

HOLDS = {
    "kohya": ("lora", "loha", "lokr", "dora", "oft", "boft", "glora", "ia3", "full", "norm"),
    "kohya-sgm": ("lora", "loha", "lokr", "dora", "oft", "boft", "glora", "ia3", "full", "norm"),
    "diffusers": ("lora", "dora"),
    "peft": ("lora", "loha", "lokr", "dora"),
    "para": ("para",),
    "deft": ("para",),
}
"""The families that each format can hold. kohya's names hold what LyCORIS saves, too."""

_FOLDED = "alphas folded into the factors: the format has no place for them"
_TUCKER = "Tucker cores contracted with their down factors: the format has no place for them"
_RSLORA = "rank-stabilised scales written as plain alphas"
_WHOLE = "scales of LoKr layers with two whole factors folded into the first: LyCORIS has none for them"


@dataclass(frozen=True)
class Part:
    """The tensors of one layer, by their roles.

    Attributes
    ----------
    name:
        The layer; of a norm, without ``.weight``.
    alpha:
        What the format will say; None where it says nothing (scale 1).
    rounding:
        What rounding lost of a change that had to be written otherwise, relative to it; else 0.
    """

    name: ModuleName
    family: str
    tensors: Mapping[str, np.ndarray]
    alpha: float | None = None
    rank: int = 0
    rounding: float = 0.0
    notes: tuple[str, ...] = ()


def part_of(module: LayerModule, adapter: Adapter, header: Header, to: str, dtype: str | None) -> Part:
    """The tensors that ``to`` holds for a layer (see :data:`HOLDS`).

    Raises
    ------
    FamilyError
        The format has no such family, or not this form of it.
    """
    if module.family not in HOLDS[to]:
        raise FamilyError(
            f"{to} has no way to hold {label(module.family)}",
            where=f"{adapter.path}: {module.name}",
            expected=", ".join(label(family) for family in HOLDS[to]),
            found=label(module.family),
            hint=_hint(module.family, to),
        )
    if to.startswith("kohya") and adapter.dialect.startswith("kohya") and not _is_cut(module):
        return _cast(_renamed(module, header), dtype)
    if isinstance(module, LoraModule):
        return _lora(module, to, dtype)
    if isinstance(module, LohaModule):
        return _cast(_loha(module, to), dtype)
    if isinstance(module, LokrModule):
        return _cast(_lokr(module, to), dtype)
    if isinstance(module, DoraModule):
        return _dora(module, adapter, header, to, dtype)
    if isinstance(module, ParaModule):
        part = Part(module.name, "para", {"basis": read_stored(module.basis)}, rank=module.rank)
        return _cast(part, dtype)
    raise _formless(module, adapter, to)


def _hint(family: str, to: str) -> str:
    if family == "para":
        return f"a PaRa becomes a LoRA for one base: give {option('base')}"
    holding = [name for name, families in HOLDS.items() if family in families and name != to]
    if holding:
        return f"convert it to {' or '.join(holding)}"
    return f"bake it, and extract a LoRA from the result: {call('extract', tuned='BAKED', base='BASE')}"


def _is_cut(module: LayerModule) -> bool:
    """Whether it is some rows of what its keys hold."""
    return isinstance(module, LoraModule) and module.rows is not None


def _renamed(module: LayerModule, header: Header) -> Part:
    """All tensors as they are, whatever the family: only their keys will change."""
    keys = module.keys
    if isinstance(module, Ia3Module):
        keys = (*keys, keys[0].removesuffix(".weight") + ".on_input")
    roles = [role for key in keys if (role := read_role(key)) is not None]
    tensors = {role.role: read_stored(stored(header, role.key)) for role in roles}
    path = module.name.path
    if isinstance(module, DifferenceModule):
        path = path.removesuffix(".weight").removesuffix(".bias")
    return Part(ModuleName(module.name.component, path), module.family, tensors, rank=module.rank)


def _lora(module: LoraModule, to: str, dtype: str | None) -> Part:
    alpha = float(module.rank) if module.alpha is None else module.alpha
    notes = []
    if module.rslora:
        alpha = module.scale * module.rank
        notes.append(_RSLORA)
    contracted = module.mid is not None and not to.startswith("kohya")
    into_factors = to == "diffusers" and alpha != module.rank
    if not contracted and not into_factors and module.rows is None:
        tensors = {"up": read_stored(module.up), "down": read_stored(module.down)}
        if module.mid is not None:
            tensors["mid"] = read_stored(module.mid)
        part = Part(module.name, "lora", tensors, alpha, module.rank, notes=tuple(notes))
        return _cast(part, dtype)
    up, down = (factor.astype(np.float64) for factor in module.factors())
    notes += [_TUCKER] * contracted + [_FOLDED] * into_factors
    stored_as = dtype or module.dtype
    if into_factors:
        up, down = folded(up, down, alpha / module.rank, stored_as)
        alpha = float(module.rank)
    new_up, new_down = (rounded(module.name, factor, stored_as) for factor in (up, down))
    tensors = {"up": new_up, "down": new_down}
    if module.kernel:
        tensors = {
            "up": new_up.reshape(*new_up.shape, *(1,) * len(module.kernel)),
            "down": new_down.reshape(len(new_down), -1, *module.kernel),
        }
    lost = _lost(up, down, new_up, new_down)
    return Part(module.name, "lora", tensors, alpha, module.rank, lost, tuple(notes))


def _lost(up: np.ndarray, down: np.ndarray, new_up: np.ndarray, new_down: np.ndarray) -> float:
    """``||B'A' - BA|| / ||BA||``, from thin factors."""
    B, A = new_up.astype(np.float64), new_down.astype(np.float64)
    lost = product_norm(np.concatenate([B - up, up], axis=1), np.concatenate([A, A - down], axis=0))
    norm = product_norm(up, down)
    return lost / norm if norm else 0.0


def _loha(module: LohaModule, to: str) -> Part:
    pairs = {"w1_a": module.w1_a, "w1_b": module.w1_b, "w2_a": module.w2_a, "w2_b": module.w2_b}
    cores = {"t1": module.t1, "t2": module.t2}
    tensors = {f"hada_{role}": read_stored(t) for role, t in {**pairs, **cores}.items() if t is not None}
    if to == "peft":  # whose pairs are matrices
        tensors |= {
            f"hada_{role}": tensors[f"hada_{role}"].reshape(t.shape[0], -1) for role, t in pairs.items()
        }
    return Part(module.name, "loha", tensors, module.scale * module.rank, module.rank)


def _lokr(module: LokrModule, to: str) -> Part:
    tensors = {**_factor("lokr_w1", module.w1), **_factor("lokr_w2", module.w2)}
    if not module.is_whole:
        rank = module.w2.rank or module.w1.rank or 1
        return Part(module.name, "lokr", tensors, module.scale * rank, rank)
    if to == "peft":
        # PEFT keeps factors whole from half their size on, and scales them all the same
        rank = max(1, -(-max(module.w2.shape[0], tensors["lokr_w2"].shape[1]) // 2))
        return Part(module.name, "lokr", tensors, module.scale * rank, rank)
    if module.scale == 1:
        return Part(module.name, "lokr", tensors, 1.0, module.rank)
    whole = tensors["lokr_w1"]
    exact = module.scale * whole.astype(np.float64)
    tensors["lokr_w1"] = rounded(module.name, exact, module.w1.tensors[0].dtype)
    norm = float(np.linalg.norm(exact))
    lost = float(np.linalg.norm(tensors["lokr_w1"].astype(np.float64) - exact)) / norm if norm else 0.0
    return Part(module.name, "lokr", tensors, 1.0, module.rank, lost, (_WHOLE,))


def _factor(stem: str, factor: LokrFactor) -> dict[str, np.ndarray]:
    if factor.whole is not None:
        return {stem: read_stored(factor.whole)}
    named: dict[str, StoredTensor | None] = {f"{stem}_a": factor.a, f"{stem}_b": factor.b}
    named[f"{stem.replace('w', 't')}"] = factor.core
    return {key: read_stored(tensor) for key, tensor in named.items() if tensor is not None}


def _dora(module: DoraModule, adapter: Adapter, header: Header, to: str, dtype: str | None) -> Part:
    """The inner change and its magnitudes: one for each row in all formats but kohya's, which know both."""
    if not isinstance(module.inner, LoraModule) and not to.startswith("kohya"):
        raise _formless(module, adapter, to)
    if module.axis == "in" and not to.startswith("kohya"):
        raise _formless(module, adapter, to)
    inner = part_of(module.inner, adapter, header, to, dtype)
    magnitude = read_stored(module.magnitude)
    convolution = inner.tensors["up"].ndim == 4 if "up" in inner.tensors else False
    if to.startswith("kohya"):
        ones = (1,) * (3 if convolution else 1)
        shaped = magnitude.reshape((-1, *ones) if module.axis == "out" else (1, -1, *ones[1:]))
        tensors = {**inner.tensors, "dora_scale": shaped}
    else:
        tensors = {**inner.tensors, "magnitude": magnitude.reshape((1, -1, 1, 1) if convolution else -1)}
    return _cast(replace(inner, family="dora", tensors=tensors), dtype)


def _cast(part: Part, dtype: str | None) -> Part:
    if dtype is None:
        return part
    wanted = NUMPY[dtype]
    tensors = {
        role: value if role == "alpha" or value.dtype == wanted else rounded(part.name, value, dtype)
        for role, value in part.tensors.items()
    }
    return replace(part, tensors=tensors)


def _formless(module: LayerModule, adapter: Adapter, to: str) -> FamilyError:
    form = f" ({module.form})" if module.form else ""
    what = "a whole difference" if isinstance(module, DifferenceModule) else label(module.family)
    return FamilyError(
        f"{to} has no way to hold this form of {what}",
        where=f"{adapter.path}: {module.name}",
        found=f"{label(module.family)}{form}, as {adapter.dialect} has it",
        hint=f"bake it, and extract a LoRA from the result: {call('extract', tuned='BAKED', base='BASE')}",
    )
