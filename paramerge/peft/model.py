"""PaRa as a PEFT tuner: its layers, and its place in a nest of adapters."""

from __future__ import annotations

import warnings
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from paramerge.errors import UsageError
from paramerge.listing import listed
from paramerge.peft.config import PaRaConfig
from paramerge.peft.layer import PaRaConv2d, PaRaLayer, PaRaLinear
from paramerge.peft.nesting import wrap
from paramerge.peft.types import PREFIX, register

_BASE = ".base_layer."


class PaRaModel(BaseTuner):
    """A model with PaRas on its layers; ``peft.get_peft_model`` and ``inject_adapter_in_model`` make one."""

    prefix = PREFIX
    tuner_layer_cls = PaRaLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.left_alone: list[str] = []

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not self.left_alone:
            return
        found = any(isinstance(m, PaRaLayer) and adapter_name in m.para_B for m in model.modules())
        if not found:
            raise UsageError(
                "the rank boundary leaves every layer alone",
                where=adapter_name,
                expected=f"a layer whose rank times gamma = {config.gamma} is 1 or more",
                found=listed(self.left_alone),
                hint="raise gamma, or set it to None",
            )
        warnings.warn(
            f"{len(self.left_alone)} layers are left alone, as gamma = {config.gamma} of their rank, or the "
            f"rank_pattern, is no direction: {listed(self.left_alone)}",
            stacklevel=2,
        )

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        others = {c.merge for c in self.peft_config.values() if isinstance(c, PaRaConfig) and c is not config}
        if others and config.merge not in others:
            raise UsageError(
                "the PaRas of this model are to be merged in different ways",
                where="merge",
                expected=", ".join(sorted(others)),
                found=config.merge,
            )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Put the adapter directly on the base layer, inside of the adapters that the layer has already."""
        outer: list[Any] = []
        while _is_around(target):
            outer.append(target)
            parent, target_name, target = target, "base_layer", target.base_layer
        base = target.base_layer if isinstance(target, PaRaLayer) else target
        kind = _kind(base, current_key)
        rank = peft_config.rank_for(current_key, base.weight.shape)
        if rank == 0:
            self.left_alone.append(current_key)
            return
        if merged := [layer for layer in outer if layer.merged]:
            raise UsageError(
                "an adapter around this layer is merged into its weight",
                where=current_key,
                found=", ".join(merged[0].merged_adapters),
                hint="unmerge it before adding a PaRa inside",
            )
        if isinstance(target, PaRaLayer):
            target.update_layer(adapter_name, rank, peft_config)
            return
        layer = kind(base, adapter_name, rank, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        layer.train(base.training)
        setattr(parent, target_name, layer)
        for around in outer:
            wrap(around)

    # --- keys of saved adapters -----------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """This adapter's B's alone, also where the layers of other adapters are around."""
        ending = f".{PREFIX}B.{adapter_name}"
        return {key: value for key, value in state_dict.items() if key.endswith(ending)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The key in a file: without the adapter's name, and as if no other adapter were around the layer."""
        found: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return found.replace(_BASE, ".")


def _is_around(layer: object) -> bool:
    """Whether this is the layer of another kind of adapter."""
    return isinstance(layer, BaseTunerLayer) and not isinstance(layer, PaRaLayer)


def _kind(base: nn.Module, where: str) -> type[PaRaLinear] | type[PaRaConv2d]:
    if isinstance(base, nn.Linear):
        return PaRaLinear
    if isinstance(base, nn.Conv2d) and base.groups == 1:
        return PaRaConv2d
    raise UsageError(
        "PaRa cannot work on this layer",
        where=where,
        expected="torch.nn.Linear, or torch.nn.Conv2d with groups = 1",
        found=f"{type(base).__name__}"
        + (f" with groups = {base.groups}" if isinstance(base, nn.Conv2d) else ""),
        hint="leave it out by exclude_modules",
    )


register(PaRaConfig, PaRaModel)
