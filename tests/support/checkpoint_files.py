"""Checkpoint files for the tests: by keys and shapes alone (a header and a hole), and models of diffusers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from blueprint_configs import folder_configs
from blueprints import Blueprint, TensorSpec, blueprint_of

from paramerge.files.dtypes import BITS
from paramerge.files.header import encode_header
from paramerge.models.registry import published

Shape = tuple[int, ...]

ARCHITECTURES = tuple(published())


@cache
def blueprint(architecture: str, shrink: int = 1) -> Blueprint:
    """A published architecture, at its true size or with every width divided by ``shrink``."""
    return blueprint_of(architecture, shrink, vocabulary=49408 if shrink == 1 else 50)


def shapes_of(specs: Iterable[TensorSpec]) -> dict[str, Shape]:
    """Key to shape."""
    return {spec.key: spec.shape for spec in specs}


def write_holes(
    path: Path, shapes: Mapping[str, Shape], dtype: str = "F16", dtypes: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file of these tensors: the header is true, the numbers are a hole of zeros."""
    kinds = {key: (dtypes or {}).get(key, dtype) for key in shapes}
    entries = [
        (key, kinds[key], shape, math.prod(shape) * BITS[kinds[key]] // 8) for key, shape in shapes.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(encode_header(entries, {"format": "pt"}))
        stream.truncate(stream.tell() + sum(entry[3] for entry in entries))
    return path


def write_folder(
    folder: Path, architecture: str = "sd15", shrink: int = 16, skip: Iterable[str] = (), **names: str
) -> Path:
    """Write a diffusers folder of holes; ``names`` replaces the weights' file name of a component."""
    plan = blueprint(architecture, shrink)
    for relative, config in folder_configs(plan).items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_text(json.dumps(config))
    for component in plan.components:
        if component in skip:
            continue
        stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        name = names.get(component, f"{stem}.safetensors")
        write_holes(folder / component / name, shapes_of(plan.component(component)))
    return folder


def write_shards(
    folder: Path,
    shapes: Mapping[str, Shape],
    count: int = 3,
    stem: str = "diffusion_pytorch_model",
    variant: str | None = None,
) -> Path:
    """Write holes in ``count`` shards as diffusers names them, and return the index."""
    dotted = f".{variant}" if variant else ""
    keys = list(shapes)
    weight_map = {}
    for i in range(count):
        name = f"{stem}{dotted}-{i + 1:05d}-of-{count:05d}.safetensors"
        here = keys[i * len(keys) // count : (i + 1) * len(keys) // count]
        write_holes(folder / name, {key: shapes[key] for key in here})
        weight_map |= dict.fromkeys(here, name)
    index = folder / f"{stem}.safetensors.index{dotted}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@cache
def configs(architecture: str, shrink: int = 1) -> dict[str, Any]:
    """The configuration of each component of an architecture's folder."""
    files = folder_configs(blueprint(architecture, shrink))
    return {Path(name).parts[0]: config for name, config in files.items() if "/" in name}


@cache
def meta_model(architecture: str, component: str, shrink: int = 1) -> Any:
    """The model that diffusers or transformers builds from the configuration, without memory for weights."""
    import torch

    with torch.device("meta"):
        return _build(configs(architecture, shrink)[component], component)


def _build(config: dict[str, Any], component: str) -> Any:
    if component.startswith("text_encoder"):
        import transformers

        kind = getattr(transformers, config["architectures"][0])
        return kind(transformers.CLIPTextConfig.from_dict(config))
    import diffusers

    kind = getattr(diffusers, config["_class_name"])
    return kind.from_config(config)


def parameter_shapes(model: Any) -> dict[str, Shape]:
    """Key to shape of what the model saves."""
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def layers(model: Any) -> dict[str, Shape]:
    """The path and the weight's shape of every Linear and Conv2d."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }
