"""PaRa and other adapters on one layer: PaRa innermost, and merged before the adapters around it.

``W0 - Q Q^T W0 + s B A`` (the order that the paper has) is a LoRA wrapped around a PaRa that wraps the layer.
PEFT's own ways to merge take the outermost adapter alone (``merge_and_unload``, which so would drop the PaRa
without a word) or the outermost first (``merge_adapter``, which so would project the LoRA away). Therefore a
PEFT layer that wraps a PaRa gets a class of its own, which merges the PaRa before itself. Torch's hook on the
registration of submodules finds it, whichever adapter came first; every other module is left as it is.

Some adapters never call the layer that they wrap but compute with its weight (HRA, and BOFT on convolutions);
around a PaRa they would drop it, so that is refused at the first call.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.modules.module import register_module_module_registration_hook

from paramerge.errors import UsageError


class MergesInnerFirst:
    """Mixed into the class of a PEFT layer that wraps a PaRa, directly or with others between."""

    base_layer: Any

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward pass.

        Raises
        ------
        UsageError
            The layer did not call the layer that it wraps, so that the PaRa inside had no effect.
        """
        para = innermost(self.base_layer)
        para.reached = False
        result = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        if not para.reached:
            raise UsageError(
                "this kind of adapter does not work around a PaRa: it goes by the weight and past the layer",
                where=para.where,
                found=type(self).__name__,
                hint="bake the PaRa, and add the other adapter to the result",
            )
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the adapters inside, then this one.

        Raises
        ------
        UsageError
            An adapter inside is active and would not be merged: this layer's change would be projected by it.
            Or this is a DoRA, whose norms are of the weight that it finds, so that merging would change it.
        """
        if getattr(self, "lora_variant", None):
            raise UsageError(
                "a DoRA around a PaRa cannot be merged: merged, it would take its norms from another weight",
                where=innermost(self.base_layer).where,
                hint="bake the PaRa first and train or load the DoRA on the result",
            )
        inner: Any = self.base_layer
        inner.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        para = innermost(inner)
        if waiting := para.waiting():
            raise UsageError(
                "an adapter around a PaRa cannot be merged without it",
                where=para.where,
                expected=f"a merge of {', '.join(waiting)} first or at once",
                found=f"a merge of {', '.join(adapter_names or self.active_adapters)}",  # type: ignore[attr-defined]
                hint="merge without adapter_names, name the PaRa too, or make it inactive first",
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)  # type: ignore[misc]
        para.covered = bool(self.merged_adapters)  # type: ignore[attr-defined]

    def unmerge(self) -> None:
        """Unmerge this adapter; the ones inside are left to their own calls, in any order."""
        super().unmerge()  # type: ignore[misc]
        innermost(self.base_layer).covered = isinstance(self.base_layer, MergesInnerFirst) and bool(
            self.base_layer.merged_adapters  # type: ignore[attr-defined]
        )


def innermost(layer: Any) -> Any:
    """The tuner layer directly on the base layer, ``layer`` itself if there is no other."""
    while isinstance(layer.base_layer, BaseTunerLayer):
        layer = layer.base_layer
    return layer


@cache
def watch(para_layer: type[BaseTunerLayer]) -> None:
    """From now on give every PEFT layer that comes to wrap a ``para_layer`` a class that merges it first."""

    def note(parent: Any, name: str, child: Any) -> None:
        if name != "base_layer" or not isinstance(child, BaseTunerLayer):
            return
        if isinstance(parent, BaseTunerLayer) and isinstance(innermost(child), para_layer):
            wrap(parent)

    register_module_module_registration_hook(note)


def wrap(layer: Any) -> None:
    """Give ``layer`` the class that merges its inner PaRa first (twice is harmless)."""
    if not isinstance(layer, MergesInnerFirst):
        layer.__class__ = _aware(layer.__class__)


@cache
def _aware(kind: Any) -> Any:
    """``kind`` with :class:`MergesInnerFirst` before it; named as ``kind``, since PEFT reads names."""
    return type(kind.__name__, (MergesInnerFirst, kind), {"__module__": kind.__module__})
