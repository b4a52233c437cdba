"""Adapters into the weights and out again, gates, hardening, and all bases before the step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from paramerge.peft.bases import basis_of, nearest_projector
from paramerge.peft.layer import PaRaLayer
from paramerge.peft.places import components_of, para_layers


def fuse(
    pipe_or_model: Any, adapter_names: Sequence[str] | None = None, *, component: str | None = None
) -> None:
    """Merge adapters (all active ones) into the weights: PaRas first, then the LoRAs around them.

    The forward pass then costs no more than the model's own; :func:`unfuse` takes them out again.

    Raises
    ------
    NonFiniteError
        A weight would hold NaN or Inf.
    UsageError
        A LoRA would be merged without the active PaRa inside of it.
    """
    names = None if adapter_names is None else list(adapter_names)
    for layer in _tuner_layers(pipe_or_model, component):
        layer.merge(adapter_names=names)


def unfuse(pipe_or_model: Any, *, component: str | None = None) -> None:
    """Take all merged adapters out of the weights: where only PaRas were merged, every value is as before."""
    # outer adapters were merged last and go first
    for layer in reversed(list(_tuner_layers(pipe_or_model, component))):
        if layer.merged:
            layer.unmerge()


def _tuner_layers(pipe_or_model: Any, component: str | None) -> Iterator[BaseTunerLayer]:
    """All layers with adapters, inner ones before those around them."""
    for model in components_of(pipe_or_model, component).values():
        yield from (m for m in reversed(list(model.modules())) if isinstance(m, BaseTunerLayer))


def set_gate(model: nn.Module, value: float, adapter_name: str | None = None) -> None:
    """Open the gate of ``init="gate"``: strengths are multiplied by ``value``, from 0 to 1 in a training.

    It is annealed and not learned: a learned gate at 0 has no gradient.
    """
    for _, layer in para_layers(model):
        for name in layer.para_gate:
            if adapter_name in (None, name):
                layer.para_gate[name] = value


def harden(model: nn.Module, adapter_name: str | None = None) -> None:
    """Turn soft PaRas into the nearest projectors, as saving them does; other PaRas are left as they are.

    A layer where no direction counts one half loses the adapter.
    """
    for _, layer in para_layers(model):
        for name in list(layer.para_B):
            if adapter_name not in (None, name) or layer.para_method[name] != "soft":
                continue
            Q = nearest_projector(layer.para_B[name], layer.para_epsilon[name])
            if Q.shape[1] == 0:
                layer.delete_adapter(name)
                continue
            layer.set_basis(name, Q)
            layer.para_method[name] = "qr"


def hoist_bases(model: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """From now on make the bases of all layers before each forward pass, in batches of equal shape.

    Hundreds of small factorisations one by one, each with a node of autograd's of its own, cost more than the
    products they feed; on a CPU too. Works with non-reentrant gradient checkpointing (diffusers' own), as the
    bases stay until the next forward pass. Only where there is a gradient to take; ``remove()`` the handle to
    end it.
    """
    return model.register_forward_pre_hook(_Hoisting())


class _Hoisting:
    """The hook. It goes through a model's modules only when a PaRa layer was made since it last did."""

    def __init__(self) -> None:
        self._layers: list[PaRaLayer] = []
        self._made = -1

    def __call__(self, model: nn.Module, inputs: object) -> None:
        if self._made != PaRaLayer.made:
            self._made = PaRaLayer.made
            self._layers = [layer for _, layer in para_layers(model)]
        groups: dict[tuple[object, ...], list[tuple[PaRaLayer, str]]] = defaultdict(list)
        for layer in self._layers:
            layer._hoisted.clear()
            if layer.disable_adapters or layer.merged or not torch.is_grad_enabled():
                continue
            for name in layer._present():
                B = layer.para_B[name]
                if B.requires_grad:
                    key = (B.shape, B.dtype, B.device, layer.para_method[name], layer.para_epsilon[name])
                    groups[key].append((layer, name))
        for members in groups.values():
            first, name = members[0]
            stacked = torch.stack([layer.para_B[name] for layer, name in members])
            bases = basis_of(stacked, first.para_method[name], first.para_epsilon[name], checked=False)
            for (layer, name), K in zip(members, bases.unbind(), strict=True):
                B = layer.para_B[name]
                layer._hoisted[name] = (B, B._version, K)
