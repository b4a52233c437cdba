"""Schemes that are known by name alone: their layers keep their bytes, and are refused where needed."""

from __future__ import annotations

from collections.abc import Callable

from paramerge.storage.layer import StoredLayer
from paramerge.storage.scheme import Scheme


class Unread(Scheme):
    """A scheme that is only recognised.

    Parameters
    ----------
    parts:
        The names of parts of which a layer has at least one.
    also:
        A further sign, in the place of a part.
    """

    def __init__(
        self,
        name: str,
        title: str,
        parts: set[str],
        *,
        weightless: bool = True,
        also: Callable[[StoredLayer], bool] = lambda layer: False,
    ) -> None:
        self.name, self.title, self.weightless = name, title, weightless
        self._parts, self._also = frozenset(parts), also

    def fits(self, layer: StoredLayer) -> bool:
        """Whether a layer has one of the scheme's parts and no mark of ComfyUI, or the further sign."""
        unmarked = layer.listed is None and "comfy_quant" not in layer.parts
        return unmarked and (not self._parts.isdisjoint(layer.parts) or self._also(layer))


def _is_sdnq(layer: StoredLayer) -> bool:
    stated = str(layer.config.get("quant_method") or layer.config.get("quant_type")).lower()
    return "sdnq" in stated or ({"scale", "zero_point"} <= layer.parts.keys() and layer.weight is not None)


def _is_mlx(layer: StoredLayer) -> bool:
    return layer.dtype == "U32" and "scales" in layer.parts


UNREAD = (
    Unread("sdnq", "SDNQ", {"svd_up", "svd_down", "zero_point_scale"}, also=_is_sdnq),
    Unread(
        "svdquant",
        "SVDQuant (nunchaku)",
        {"wscales", "smooth_factor", "smooth", "smooth_factor_orig"}
        | {"lora_up", "lora_down", "proj_up", "proj_down"},
    ),
    Unread("gptq", "GPTQ or AWQ", {"qweight"}),
    Unread("compressed-tensors", "compressed-tensors", {"weight_packed", "weight_global_scale"}),
    Unread("quanto", "optimum-quanto", {"_data", "_scale", "_shift"}),
    Unread("torchao", "torchao", {"qdata", "int_data"}),
    Unread("hqq", "HQQ", {"W_q"}),
    Unread("mlx", "MLX", set(), weightless=False, also=_is_mlx),
)
"""In the order in which they are tried."""
