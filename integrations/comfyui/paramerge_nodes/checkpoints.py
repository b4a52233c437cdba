"""Nodes on checkpoint files: plans, bakes and merges, which write what the paramerge command writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui

import paramerge as pm
from paramerge.cli.bake_view import show_plan
from paramerge.cli.render import out
from paramerge.merge.methods.registry import REGISTRY as METHODS

from .adapters import CATEGORY, Stack, merge_inputs
from .files import NONE, checkpoint_names, checkpoint_path, new_output, stamp

DTYPES = ("keep", "fp16", "bf16", "fp32")


def text_of(plan: pm.Plan, output: Path) -> str:
    """The plan, as the command shows it."""
    with out.captured() as text:
        show_plan(pm.summarise(plan), output)
    return text.getvalue()


def written(plan: pm.Plan, prefix: str) -> io.NodeOutput:
    """Carry a plan out, with ComfyUI's progress bar and its button to stop."""
    output = new_output(prefix)
    report = plan.write(output, progress_bar())
    text = f"{report.output}\n{len(report.layers)} layers changed in {report.seconds:.1f} s"
    return io.NodeOutput(str(report.output), ui=ui.PreviewText("\n".join([text, *plan.warnings])))


def progress_bar() -> Callable[[int, int], None]:
    """Progress for ComfyUI; a stop that the user asked for ends the work, and nothing is written."""
    bar = comfy.utils.ProgressBar(1)

    def update(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return update


class Plan(io.ComfyNode):
    """What a bake would do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergePlan",
            display_name="Plan a bake",
            category=CATEGORY,
            description="What a bake would do, from the headers alone: layers, ranks, sizes and warnings.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("checkpoint", options=checkpoint_names()),
                Stack.Input("adapters"),
                *merge_inputs(),
                io.Combo.Input("dtype", options=list(DTYPES)),
            ],
            outputs=[io.String.Output(display_name="plan")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **_: Any) -> object:
        """What makes the node run anew."""
        return stamp(checkpoint_path(checkpoint))

    @classmethod
    def execute(
        cls, checkpoint: str, adapters: tuple[pm.Adapter, ...], merge: Any, gamma: float, dtype: str
    ) -> io.NodeOutput:
        """The plan as text."""
        path = checkpoint_path(checkpoint)
        plan = pm.plan_bake(path, adapters, merge=merge, gamma=gamma or None, dtype=dtype)
        text = text_of(plan, Path(f"{path.stem}_baked.safetensors"))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class Bake(io.ComfyNode):
    """A bake."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeBake",
            display_name="Bake and save checkpoint",
            category=CATEGORY,
            description="Bake adapters into a checkpoint file, one rounding in all, with its recipe inside: "
            "the bytes are those of `paramerge bake`. The model is not loaded; a few hundred MB of memory "
            "suffice.",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Combo.Input("checkpoint", options=checkpoint_names()),
                Stack.Input("adapters"),
                *merge_inputs(),
                io.Combo.Input("dtype", options=list(DTYPES)),
                io.String.Input("filename_prefix", default="checkpoints/baked"),
            ],
            outputs=[io.String.Output(display_name="path")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **_: Any) -> object:
        """What makes the node run anew."""
        return stamp(checkpoint_path(checkpoint))

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        adapters: tuple[pm.Adapter, ...],
        merge: Any,
        gamma: float,
        dtype: str,
        filename_prefix: str,
    ) -> io.NodeOutput:
        """Write it."""
        path = checkpoint_path(checkpoint)
        plan = pm.plan_bake(path, adapters, merge=merge, gamma=gamma or None, dtype=dtype)
        return written(plan, filename_prefix)


class Merge(io.ComfyNode):
    """A merge of checkpoints."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeMerge",
            display_name="Merge checkpoints",
            category=CATEGORY,
            description="Merge checkpoint files, and bake adapters into the result, with one rounding in "
            "all: the bytes are those of `paramerge merge`. No model is loaded.",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                *(io.Combo.Input(f"checkpoint_{place}", options=checkpoint_names()) for place in "ab"),
                io.Combo.Input("checkpoint_c", options=[NONE, *checkpoint_names()]),
                Stack.Input("adapters", optional=True),
                io.Combo.Input("method", options=[method.name for method in METHODS.all()]),
                io.String.Input("parameters", default="", tooltip="the method's, such as weights=0.7,0.3 or "
                                "strength=0.5 density=0.4 seed=1; docs/merge.md has them all"),
                io.String.Input("blocks", default="", advanced=True),
                io.Combo.Input("dtype", options=list(DTYPES)),
                io.String.Input("filename_prefix", default="checkpoints/merged"),
            ],
            outputs=[io.String.Output(display_name="path")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, checkpoint_a: str, checkpoint_b: str, checkpoint_c: str, **_: Any) -> object:
        """What makes the node run anew."""
        names = (checkpoint_a, checkpoint_b, checkpoint_c)
        return tuple(stamp(checkpoint_path(name)) for name in names if name != NONE)

    @classmethod
    def execute(
        cls,
        checkpoint_a: str,
        checkpoint_b: str,
        checkpoint_c: str,
        method: str,
        parameters: str,
        dtype: str,
        filename_prefix: str,
        blocks: str = "",
        adapters: tuple[pm.Adapter, ...] = (),
    ) -> io.NodeOutput:
        """Write it."""
        names = [name for name in (checkpoint_a, checkpoint_b, checkpoint_c) if name != NONE]
        given = dict(word.partition("=")[::2] for word in parameters.split())
        plan = pm.plan_merge(
            [checkpoint_path(name) for name in names], method=method, blocks=blocks or None,
            adapters=adapters, dtype=None if dtype == "keep" else dtype, **given,
        )  # fmt: skip
        return written(plan, filename_prefix)
