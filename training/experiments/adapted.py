"""The model with a variant's adapters on it, in any form that a method saves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.plan import make_plan
from paramerge.checkpoints.layout import open_base
from paramerge.errors import UsageError
from paramerge.extract.from_lora import extract_para
from paramerge.formats import open_adapter, write_para
from paramerge.generation.adapting import apply_plan
from paramerge.generation.loading import load_pipeline
from paramerge.training.experiments.plan import PLACEHOLDER, Plan, Use, Variant
from paramerge.training.experiments.trained import kept
from paramerge.training.methods.krona import KronaChange
from paramerge.training.methods.parametrized import parametrized
from paramerge.training.methods.svdiff import SpectralShift

__all__ = ["adapter_steps", "load_variant"]

_PEFT_FOLDERS = ("dora", "oft", "boft", "loha", "lokr")
_BAKED = ("para", "lora")


def load_variant(plan: Plan, variant: Variant, trained: Path, dtype: torch.dtype, device: str) -> Any:
    """The pipeline of ``variant`` on ``device``.

    PaRa and LoRA are applied as ``paramerge bake`` does it, in float64 with one rounding; the others as their
    own libraries do.

    Raises
    ------
    UsageError
        Several adapters of which one is neither a PaRa nor a LoRA.
    """
    methods = {use.training.method for use in variant.uses}
    if not methods - set(_BAKED):
        base = open_base(plan.model)
        pipeline = _fresh(plan.model, dtype)
        if variant.uses:
            opened = [
                (step, open_adapter(step.path, family=step.kind))
                for step in adapter_steps(plan, variant, trained)
            ]
            options = BakeOptions(merge="sequential" if variant.merge == "sequential" else "joint")
            apply_plan(make_plan(base, opened, options), pipeline)
        return pipeline.to(device)
    if len(variant.uses) != 1:
        raise UsageError(
            "an adapter to be combined is neither a PaRa nor a LoRA",
            found=", ".join(sorted(methods)),
            where="experiment",
        )
    (use,) = variant.uses
    paths = kept(plan, use.training, trained, use.steps).paths
    if use.training.method == "dreambooth":
        return load_pipeline(open_base(paths[0]), dtype).to(device)
    pipeline = _fresh(plan.model, dtype)
    _put_on(pipeline, use, paths)
    return pipeline.to(device)


@lru_cache(maxsize=1)
def _base(model: Path, dtype: torch.dtype) -> Any:
    """The model as it is, which stays on the CPU: a copy is quicker than loading again."""
    return load_pipeline(open_base(model), dtype)


def _fresh(model: Path, dtype: torch.dtype) -> Any:
    return copy.deepcopy(_base(model, dtype))


def adapter_steps(plan: Plan, variant: Variant, trained: Path) -> list[Step]:
    """The PaRas and LoRAs of a variant as the steps of a bake."""
    steps = []
    for use in variant.uses:
        (path,) = kept(plan, use.training, trained, use.steps).paths
        if use.extracted is not None:
            steps.append(Step("para", _extracted(path, use.extracted), use.strength))
        else:
            steps.append(Step("para" if use.training.method == "para" else "lora", path, use.strength))
    return steps


def _extracted(lora: Path, rank: int) -> Path:
    """The PaRa of a LoRA's ``rank`` strongest output directions, beside it; the same bytes every time."""
    path = lora.with_name(f"extracted-r{rank}.safetensors")
    if not path.is_file():
        adapter = open_adapter(lora, family="lora")
        layers = extract_para(adapter, rank=rank).layers
        write_para(
            path,
            {layer.name: layer.directions for layer in layers},
            architecture=adapter.architecture,
            dtype="F32",
        )
    return path


def _put_on(pipeline: Any, use: Use, paths: Sequence[Path]) -> None:
    method, unet = use.training.method, pipeline.unet
    if method == "textual-inversion":
        _put_in_words(pipeline, _tensors(paths[0]))
    elif method == "svdiff":
        _put_on_shifts(unet, _tensors(paths[0]))
    elif method == "krona":
        _put_on_krona(unet, _tensors(paths[0]))
    elif method in _PEFT_FOLDERS:
        _put_on_peft(unet, paths[0])
    else:
        raise UsageError("no way is known to apply this method's adapters", where="experiment", found=method)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _put_in_words(pipeline: Any, tensors: dict[str, torch.Tensor]) -> None:
    second = tensors.get("clip_g")
    first = tensors["clip_l"] if second is not None else next(iter(tensors.values()))
    pipeline.load_textual_inversion({PLACEHOLDER: first}, token=PLACEHOLDER)
    if second is not None:
        pipeline.load_textual_inversion(
            {PLACEHOLDER: second},
            token=PLACEHOLDER,
            text_encoder=pipeline.text_encoder_2,
            tokenizer=pipeline.tokenizer_2,
        )


def _put_on_shifts(unet: Any, deltas: dict[str, torch.Tensor]) -> None:
    layers = {key.removesuffix(".delta"): unet.get_submodule(key.removesuffix(".delta")) for key in deltas}
    made = parametrized({"unet": unet}, {"unet": layers}, lambda layer: SpectralShift(layer.weight))["unet"]
    with torch.no_grad():
        for name, shift in made.items():
            shift.get_parameter("delta").copy_(deltas[f"{name}.delta"])


def _put_on_krona(unet: Any, tensors: dict[str, torch.Tensor]) -> None:
    downs = {key: value for key, value in tensors.items() if key.endswith("_lora.down.weight")}
    for key, down in downs.items():
        up = tensors[key.replace(".down.", ".up.")]
        attention, _, part = key.removeprefix("unet.").partition(".processor.to_")
        part = part.removesuffix("_lora.down.weight")
        layer = unet.get_submodule(f"{attention}.to_{part}" + (".0" if part == "out" else ""))
        change = KronaChange(layer.weight, down.shape[1], down.shape[0])
        with torch.no_grad():
            change.up.copy_(up)
            change.down.copy_(down)
            layer.weight.copy_(change(layer.weight.float()))


def _put_on_peft(unet: Any, folder: Path) -> None:
    """A folder that PEFT wrote; its tensors are the adapter's alone."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    state = {
        key.removeprefix("base_model.model."): value
        for key, value in _tensors(folder / "adapter_model.safetensors").items()
    }
    inject_adapter_in_model(config, unet, "trained")
    found: Any = set_peft_model_state_dict(unet, state, adapter_name="trained")
    if found.unexpected_keys:
        raise UsageError(
            "this adapter does not fit the model", where=folder, found=", ".join(found.unexpected_keys[:3])
        )
