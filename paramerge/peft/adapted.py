"""The adapters of a layer: B, settings and strength of each, as PEFT and diffusers handle them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from paramerge.errors import UsageError
from paramerge.peft.config import PaRaConfig
from paramerge.peft.initial import initial_basis
from paramerge.peft.parameters import Hoisted, WideParameters


class AdaptedLayer(BaseTunerLayer):
    """A layer and the parts of each adapter on it; their effect is :class:`PaRaLayer`'s."""

    adapter_layer_names = ("para_B",)
    other_param_names = (
        "r",
        "scaling",
        "para_gate",
        "para_method",
        "para_epsilon",
        "para_mode",
        "para_stored",
    )

    base_layer: nn.Linear | nn.Conv2d
    training: bool

    def __init__(self, base_layer: nn.Module, where: str) -> None:
        self.base_layer = base_layer  # type: ignore[assignment]
        self.where = where
        """The layer's name in its model, for messages."""
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        """The strength of each adapter."""
        self.para_gate: dict[str, float] = {}
        """Factors on the strength while a training opens the gate; 1 for all others."""
        self.para_method: dict[str, str] = {}
        self.para_epsilon: dict[str, float] = {}
        self.para_mode: dict[str, str] = {}
        self.para_stored: dict[str, str] = {}
        """The dtype that each basis was stored in: directions closer than its rounding are one."""
        self.para_B = WideParameters({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._kept: tuple[object, Any] | None = None
        """Bases that the forward pass keeps between calls, forgotten when an adapter changes."""
        self._hoisted = Hoisted()
        self.in_features, self.out_features = _features(self.base_layer)

    # --- adapters come and go -------------------------------------------------------------------------------

    def update_layer(self, adapter_name: str, rank: int, config: PaRaConfig) -> None:
        """Add an adapter of ``rank`` directions, started as ``config`` says.

        With ``config.inference_mode`` its B is NaN until it is loaded, so that nothing can use it before.
        """
        weight = self.base_layer.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.r[adapter_name] = rank
        self.scaling[adapter_name] = 1.0
        self.para_gate[adapter_name] = 0.0 if config.init == "gate" and not config.inference_mode else 1.0
        soft = config.init == "soft" and not config.inference_mode
        self.para_method[adapter_name] = "soft" if soft else config.method
        self.para_epsilon[adapter_name] = config.soft_epsilon
        self.para_mode[adapter_name] = config.merge
        self.para_stored[adapter_name] = str(dtype).removeprefix("torch.")
        B = torch.full((weight.shape[0], rank), torch.nan, dtype=dtype)  # on meta with low_cpu_mem_usage
        if not (B.is_meta or weight.is_meta or config.inference_mode):
            B = initial_basis(weight, rank, config.init, config.soft_epsilon, self.where).to(dtype)
        self.para_B[adapter_name] = nn.Parameter(B)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_basis(self, adapter_name: str, B: Tensor, stored: str = "float32") -> None:
        """Put ``B`` (d, r) in the place of an adapter's basis; ``stored`` is the dtype it comes from."""
        old = self.para_B[adapter_name]
        fresh = nn.Parameter(B.to(self.base_layer.weight.device, old.dtype), requires_grad=old.requires_grad)
        self.para_B[adapter_name] = fresh
        self.r[adapter_name] = B.shape[1]
        self.para_stored[adapter_name] = stored
        self._hoisted.pop(adapter_name, None)
        self._kept = None

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter.

        Raises
        ------
        UsageError
            It is merged into the weight.
        """
        if adapter_name in self.merged_adapters:
            raise UsageError(
                "a merged adapter cannot be deleted",
                where=f"{self.where}: {adapter_name}",
                hint="unmerge it first",
            )
        super().delete_adapter(adapter_name)
        self._hoisted.pop(adapter_name, None)
        self._kept = None

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move to the device only: B keeps its dtype under a half-precision model."""
        if adapter_name not in self.para_B:
            return  # PEFT asks every layer, with any adapters
        B = self.para_B[adapter_name]
        target = device or self.base_layer.weight.device
        if not B.is_meta and target.type != "meta":
            self.para_B[adapter_name] = B.to(target)
            self._hoisted.pop(adapter_name, None)

    # --- strengths ------------------------------------------------------------------------------------------

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of an adapter, if this layer has it: 1 removes all of its span, 0 nothing."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the strengths of the active adapters."""
        for name in self._present():
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strengths of the active adapters by ``scale``, or set them to 1."""
        for name in self._present():
            self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def strength(self, adapter: str) -> float:
        """The strength with which an adapter acts now, the gate included."""
        return self.scaling[adapter] * self.para_gate[adapter]

    def _present(self, names: Sequence[str] | None = None) -> list[str]:
        """The ``names`` (the active ones) that this layer has, in order, each once."""
        chosen = self.active_adapters if names is None else names
        here = self.r  # its keys are those of para_B, which is slower to ask
        return [name for name in dict.fromkeys(chosen) if name in here]


def _features(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return int(layer.in_features), int(layer.out_features)
