"""The PaRa of a model or pipeline into the file that ``paramerge bake`` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from paramerge.algebra import orthonormalise
from paramerge.errors import AdapterError, CheckpointError, UsageError
from paramerge.formats import write_para
from paramerge.models.architecture import UNKNOWN, detect_architecture
from paramerge.models.names import ModuleName
from paramerge.peft.bases import nearest_projector
from paramerge.peft.layer import PaRaLayer
from paramerge.peft.places import components_of, layer_name, para_layers, plain_path


def save_para(
    pipe_or_model: Any,
    file: str | os.PathLike[str],
    *,
    adapter_name: str | None = None,
    dtype: str = "F16",
    architecture: str | None = None,
    base_sha256: str | Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    component: str | None = None,
) -> None:
    """Write one PaRa of a pipeline or model as a native file, all its parts into one.

    The file holds orthonormal bases. A soft PaRa is hardened: of each layer those directions are written
    that count one half or more. Strengths are not in the file; an annealed gate must be open.

    Parameters
    ----------
    adapter_name:
        The PaRa's name; may be left out where there is only one.
    dtype:
        ``F16``, ``BF16`` or ``F32``.
    architecture:
        By default read off the UNet's blocks, where there is a UNet.
    base_sha256, metadata:
        As :func:`~paramerge.formats.write_para`.
    component:
        The part of a pipeline that a bare model is, where its class leaves that open.

    Raises
    ------
    UsageError
        There is no such PaRa, or a gate that is not open yet.
    AdapterError
        A basis is not finite or has dependent columns.
    OutputError
        The file cannot be written.
    """
    components = components_of(pipe_or_model, component)
    name = adapter_name or _only_adapter(components)
    configs = [getattr(model, "peft_config", {}).get(name) for model in components.values()]
    config = next((found for found in configs if found is not None), None)
    write_para(
        file,
        para_bases(pipe_or_model, name, component=component),
        architecture=architecture or architecture_of(components.get("unet")),
        base_sha256=base_sha256,
        gamma=getattr(config, "gamma", None),
        dtype=dtype,
        metadata=metadata,
    )


def para_bases(
    pipe_or_model: Any, adapter_name: str, *, component: str | None = None
) -> dict[ModuleName, np.ndarray]:
    """The orthonormal basis (d, r) of each layer of a PaRa, float64; raises as :func:`save_para`."""
    bases: dict[ModuleName, np.ndarray] = {}
    found = False
    for part, model in components_of(pipe_or_model, component).items():
        for path, layer in para_layers(model):
            if adapter_name not in layer.para_B:
                continue
            found = True
            Q = _hard_basis(layer, adapter_name)
            if Q.shape[1]:
                bases[layer_name(part, path)] = Q.cpu().numpy()
    if not found:
        raise UsageError("the model has no such PaRa", where="adapter_name", found=adapter_name)
    if not bases:
        raise UsageError(
            "no direction of this soft PaRa counts one half: there is nothing to save",
            where=adapter_name,
            hint="train it longer, with a higher rate, or with a smaller soft_epsilon",
        )
    return bases


@torch.no_grad()
def _hard_basis(layer: PaRaLayer, name: str) -> torch.Tensor:
    where = f"{layer.where}: {name}"
    B = layer.para_B[name].detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(B).all()):
        raise AdapterError("this PaRa holds NaN or Inf", where=where, hint="its training diverged")
    if layer.para_gate[name] != 1:
        raise UsageError(
            "the gate of this PaRa is not open: its effect now is not that of its file",
            where=where,
            expected="a gate of 1",
            found=layer.para_gate[name],
            hint="finish the annealing, or open it by paramerge.peft.set_gate(model, 1)",
        )
    if layer.para_method[name] == "soft":
        return nearest_projector(B, layer.para_epsilon[name])
    found = orthonormalise(B)
    if found.deficiency:
        raise AdapterError(
            "columns of this PaRa depend on each other",
            where=where,
            expected=f"{found.columns} directions",
            found=found.rank,
            hint="its training broke down: use an earlier checkpoint",
        )
    Q: torch.Tensor = found.Q
    return Q


def _only_adapter(components: Mapping[str, nn.Module]) -> str:
    names = {
        name for model in components.values() for _, layer in para_layers(model) for name in layer.para_B
    }
    if len(names) != 1:
        raise UsageError(
            "the PaRa to save is not named, and there is not one alone",
            where="adapter_name",
            expected="the name of a PaRa",
            found=", ".join(sorted(names)) or "no PaRa at all",
        )
    return names.pop()


def architecture_of(unet: nn.Module | None) -> str | None:
    """The architecture of a UNet, with or without adapters, by its blocks; None where it is not known."""
    if unet is None:
        return None
    shapes = {
        f"{plain_path(path)}.{name}": tuple(value.shape)
        for path, module in unet.named_modules()
        for name, value in module.named_parameters(recurse=False)
        if name in ("weight", "bias") and not _inside_adapter(path)
    }
    try:
        found = detect_architecture(shapes).name
    except CheckpointError:
        return None
    return None if found == UNKNOWN else found


def _inside_adapter(path: str) -> bool:
    """Whether a module belongs to an adapter: its own layers have a container's name in their path."""
    return any(word.startswith(("lora_", "para_", "hada_", "lokr_")) for word in path.split("."))
