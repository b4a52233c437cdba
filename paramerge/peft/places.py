"""The places of a model's layers in a pipeline, by the names in files; and the PaRa layers among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from paramerge.errors import UsageError
from paramerge.formats.layers import clip_path
from paramerge.models.names import ModuleName
from paramerge.peft.layer import PaRaLayer

_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
_CLASSES = {
    "UNet2DConditionModel": "unet",
    "FluxTransformer2DModel": "transformer",
    "SD3Transformer2DModel": "transformer",
    "ZImageTransformer2DModel": "transformer",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}


def components_of(pipe_or_model: Any, component: str | None = None) -> dict[str, nn.Module]:
    """The parts that a PaRa can reach by component: a pipeline's, or the model itself.

    ``component`` says which one a bare model is, where its class does not (SDXL's first text encoder and
    SD1.5's are of one class and one name; SDXL's second has a projection).

    Raises
    ------
    UsageError
        It is neither a pipeline nor a model of a known class.
    """
    model = _unwrapped(pipe_or_model)
    if isinstance(model, nn.Module):
        name = component or _CLASSES.get(type(model).__name__)
        if name not in _COMPONENTS:
            raise UsageError(
                "it is not clear which part of a pipeline this model is",
                where="component",
                expected=", ".join(_COMPONENTS),
                found=component or type(model).__name__,
            )
        return {name: model}
    found = {
        name: _unwrapped(part)
        for name in _COMPONENTS
        if isinstance(part := getattr(pipe_or_model, name, None), nn.Module)
    }
    if not found:
        raise UsageError(
            "the model has no UNet, no transformer and no text encoder",
            where="pipe_or_model",
            expected="a diffusers pipeline, a UNet, a transformer or a CLIP text encoder",
            found=type(pipe_or_model).__name__,
        )
    return found


def _unwrapped(model: Any) -> Any:
    """The model inside of the wrappers of torch.compile, PEFT and DistributedDataParallel."""
    while isinstance(model, nn.Module):
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        elif isinstance(model, BaseTuner):
            model = model.model
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ == "DistributedDataParallel":
            model = model.module
        else:
            break
    return model


def para_layers(model: nn.Module) -> Iterator[tuple[str, PaRaLayer]]:
    """Each PaRa layer of ``model`` with its path, as if no adapter were around it."""
    for path, module in model.named_modules():
        if isinstance(module, PaRaLayer):
            yield plain_path(path), module


def plain_path(path: str) -> str:
    """A module's path without the ``base_layer`` steps that adapters around it add."""
    return ".".join(word for word in path.split(".") if word not in ("base_layer", "_orig_mod"))


def layer_name(component: str, path: str) -> ModuleName:
    """The name that files have for the layer ``path`` of a component.

    transformers 5 dropped the ``text_model.`` that files have before CLIP's layers.
    """
    return ModuleName(component, path if component in ("unet", "transformer") else clip_path(path) or path)


def find_layer(components: Mapping[str, nn.Module], name: ModuleName) -> str | None:
    """The path in its model of the layer that a file calls ``name``; None if there is no such layer."""
    model = components.get(name.component)
    for path in (name.path, name.path.removeprefix("text_model.")):
        try:
            if model is not None and model.get_submodule(path) is not None:
                return path
        except AttributeError:
            continue
    return None
