"""Nodes that put adapters on loaded models, without baking."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

import paramerge as pm

from .files import adapter_names, adapter_path, stamp
from .patching import patched

CATEGORY = "paramerge"
Stack = io.Custom("PARAMERGE_ADAPTERS")
"""A list of adapters with strengths, in the order in which they are applied."""

MERGES = ("joint", "sequential")


def merge_inputs() -> list[io.Input]:
    """The way in which neighbouring PaRas are combined."""
    return [
        io.Combo.Input("merge", options=list(MERGES), tooltip="PaRas beside each other: onto the sum of "
                       "what they remove (joint, whatever their order), or one after the other"),
        io.Float.Input("gamma", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
                       tooltip="rank boundary of the paper's equation 8: the most of a layer's rank that "
                       "PaRas may remove; 0 for none"),
    ]  # fmt: skip


class LoadPara(io.ComfyNode):
    """A PaRa as a patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeLoadPara",
            display_name="Load PaRa",
            category=CATEGORY,
            description="Take a PaRa's directions out of a model (W - s Q QᵀW). Nodes act in their order: "
            "LoRAs that come after it are kept whole.",
            search_aliases=["para", "parameter rank reduction"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", optional=True),
                io.Combo.Input("para", options=adapter_names()),
                io.Float.Input("strength_model", default=1.0, min=0.0, max=1.0, step=0.01),
                io.Float.Input("strength_clip", default=1.0, min=0.0, max=1.0, step=0.01),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, para: str, **_: Any) -> object:
        """What makes the node run anew."""
        return stamp(adapter_path(para))

    @classmethod
    def execute(
        cls, model: Any, para: str, strength_model: float, strength_clip: float, clip: Any = None
    ) -> io.NodeOutput:
        """Patch the models."""
        step = pm.Para(adapter_path(para))
        return io.NodeOutput(*patched(model, clip, [step], (strength_model, strength_clip)))


class LoadAdapter(io.ComfyNode):
    """An adapter of any family as a patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeLoadAdapter",
            display_name="Load any adapter",
            category=CATEGORY,
            description="Put an adapter of any family that paramerge reads onto a model: PaRa, LoRA, DoRA, "
            "LoHa, LoKr, OFT, BOFT, IA3, SVDiff, DiffuseKronA, GLoRA ... A key that lands nowhere is "
            "an error.",
            search_aliases=["lora", "ia3", "svdiff", "diffusekrona", "lokr", "dora"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", optional=True),
                io.Combo.Input("adapter", options=adapter_names()),
                io.Float.Input("strength_model", default=1.0, min=-20.0, max=20.0, step=0.01),
                io.Float.Input("strength_clip", default=1.0, min=-20.0, max=20.0, step=0.01),
                io.String.Input("blocks", default="", advanced=True,
                                tooltip="factors by block, such as IN04=0.5,OUT00=0, or a vector of numbers"),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, adapter: str, **_: Any) -> object:
        """What makes the node run anew."""
        return stamp(adapter_path(adapter))

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: str,
        strength_model: float,
        strength_clip: float,
        blocks: str = "",
        clip: Any = None,
    ) -> io.NodeOutput:
        """Patch the models."""
        step = pm.Adapter(adapter_path(adapter), 1.0, blocks or None)
        return io.NodeOutput(*patched(model, clip, [step], (strength_model, strength_clip)))


class AddAdapter(io.ComfyNode):
    """One more adapter for a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeAddAdapter",
            display_name="Add adapter",
            category=CATEGORY,
            description="Add an adapter to a list, for Apply adapters, Plan, Bake, Merge and Compare.",
            inputs=[
                Stack.Input("adapters", optional=True),
                io.Combo.Input("adapter", options=adapter_names()),
                io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.01),
                io.String.Input("blocks", default="", advanced=True),
            ],
            outputs=[Stack.Output("adapters_out", display_name="adapters")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str, **_: Any) -> object:
        """What makes the node run anew."""
        return stamp(adapter_path(adapter))

    @classmethod
    def execute(
        cls, adapter: str, strength: float, blocks: str = "", adapters: tuple[pm.Adapter, ...] = ()
    ) -> io.NodeOutput:
        """The longer list."""
        return io.NodeOutput((*adapters, pm.Adapter(adapter_path(adapter), strength, blocks or None)))


class ApplyAdapters(io.ComfyNode):
    """A list of adapters as patches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeApplyAdapters",
            display_name="Apply adapters",
            category=CATEGORY,
            description="Put a list of adapters onto a model in its order, PaRas beside each other merged.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", optional=True),
                Stack.Input("adapters"),
                *merge_inputs(),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(
        cls, model: Any, adapters: tuple[pm.Adapter, ...], merge: Any, gamma: float = 0.0, clip: Any = None
    ) -> io.NodeOutput:
        """Patch the models."""
        return io.NodeOutput(*patched(model, clip, adapters, merge=merge, gamma=gamma or None))
