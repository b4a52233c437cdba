"""A PaRa file onto a model or pipeline: the file, and the directions, that ``paramerge bake`` applies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

from paramerge.adapters import Adapter, ParaModule
from paramerge.apply.chain import orthonormal_basis
from paramerge.errors import FamilyError, ShapeError, UnmatchedError, UsageError
from paramerge.files.dtypes import NUMPY
from paramerge.files.source import check_unchanged
from paramerge.formats import open_adapter
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.peft.config import PaRaConfig
from paramerge.peft.layer import PaRaLayer
from paramerge.peft.places import components_of, find_layer, para_layers


def load_para(
    pipe_or_model: Any,
    file: str | os.PathLike[str],
    *,
    adapter_name: str | None = None,
    strength: float = 1.0,
    merge: str = "joint",
    trainable: bool = False,
    component: str | None = None,
) -> str:
    """Put the PaRa of ``file`` onto a diffusers pipeline, UNet or CLIP text encoder, and make it active.

    It becomes active beside the PaRas that are active already, in the order of loading, as the steps of
    ``paramerge bake`` do; afterwards ``pipe.set_adapters``, ``disable_lora``, ``delete_adapters`` and so on
    of diffusers work on it by its name. Bases are orthonormalised again in float64 and kept in float32, for
    any dtype of the model.

    Parameters
    ----------
    adapter_name:
        By default the file's name without its ending.
    strength:
        ``W - s Q Q^T W``; 1 removes the whole span. For a joint merge from 0 to 1.
    merge:
        ``joint`` or ``sequential``, for this and every other PaRa of the model.
    trainable:
        Whether training goes on with it.
    component:
        The part of a pipeline that a bare model is, where its class leaves that open.

    Returns
    -------
    str
        The adapter's name.

    Raises
    ------
    FamilyError
        The file holds no PaRa.
    UnmatchedError
        Layers of the file are not in the model: nothing is loaded then.
    ShapeError
        A layer has another size.
    UsageError
        The name is taken.
    """
    components = components_of(pipe_or_model, component)
    adapter = open_adapter(file, family="para")
    name = adapter_name or _name_of(adapter)
    parts = _placed(adapter, components)
    for part, model in components.items():
        if name in getattr(model, "peft_config", {}):
            raise UsageError(
                "this model has an adapter of that name already",
                where=f"{part}: {name}",
                hint="pass another adapter_name, or delete the adapter first",
            )
    bases = {
        part: {path: _read_basis(module) for path, module in layers.items()} for part, layers in parts.items()
    }
    check_unchanged(adapter)
    for part in parts:
        _inject(components[part], name, bases[part], merge, trainable)
        for _, layer in para_layers(components[part]):
            layer.set_scale(name, strength)
    return name


def _name_of(adapter: Adapter) -> str:
    return adapter.path.stem.replace(".", "_")  # a dot would end the name of a torch module


def _placed(adapter: Adapter, components: Mapping[str, nn.Module]) -> dict[str, dict[str, ParaModule]]:
    """The file's layers by component and by path in the model; each is checked before any is loaded."""
    parts: dict[str, dict[str, ParaModule]] = {}
    missing: list[ModuleName] = []
    for name, module in adapter.modules.items():
        if not isinstance(module, ParaModule):
            raise FamilyError("this layer is no PaRa", where=f"{adapter.path}: {name}", expected="a PaRa")
        path = find_layer(components, name)
        if path is None:
            missing.append(name)
            continue
        weight: Any = components[name.component].get_submodule(path).weight
        if weight.shape[0] != module.out_features:
            raise ShapeError(
                "a layer of this PaRa does not fit the model's weight",
                where=f"{adapter.path}: {name}",
                expected=f"{weight.shape[0]} rows, as the weight {list(weight.shape)} has",
                found=module.out_features,
                hint="the adapter was made for another model",
            )
        parts.setdefault(name.component, {})[path] = module
    unknown = [key for leftover in adapter.leftovers for key in leftover.keys]
    if missing or unknown:
        raise UnmatchedError(
            f"{len(missing) + len(unknown)} keys of this PaRa are no layers of the model",
            where=adapter.path,
            expected=f"layers of {', '.join(components)}",
            found=listed([*map(str, missing), *unknown]),
            hint="pass the whole pipeline, or a PaRa for this model",
        )
    return parts


def _read_basis(module: ParaModule) -> tuple[Tensor, str]:
    """An orthonormal basis (d, rank) in float64, and the dtype it was stored in."""
    return orthonormal_basis(module), NUMPY[module.basis.dtype].name


def _inject(
    model: Any, name: str, bases: Mapping[str, tuple[Tensor, str]], merge: str, trainable: bool
) -> None:
    active = list(dict.fromkeys(n for _, layer in para_layers(model) for n in layer._present()))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    config = PaRaConfig(
        target_modules=sorted(bases),
        rank_pattern={path: B.shape[1] for path, (B, _) in bases.items()},
        merge=merge,
        inference_mode=True,  # B is NaN until it is set just below
    )
    inject_adapter_in_model(
        config, model, name, state_dict={f"{path}.para_B": B for path, (B, _) in bases.items()}
    )
    model._hf_peft_config_loaded = True  # what diffusers and transformers ask before they list adapters
    for path, layer in para_layers(model):
        if name in layer.para_B:
            layer.set_basis(name, *bases[path])
        _activate(layer, [*active, name])
    config.inference_mode = not trainable
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    for _, layer in para_layers(model):
        if name in layer.para_B:
            layer.para_B[name].requires_grad_(trainable)


def _activate(layer: PaRaLayer, names: list[str]) -> None:
    with torch.no_grad():
        layer.set_adapter(names, inference_mode=True)
