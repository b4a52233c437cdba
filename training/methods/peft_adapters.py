"""LoRA, DoRA, OFT, BOFT, LoHa and LoKr, by PEFT's own tuners.

A LoRA is saved as kohya's trainers do, which every user interface reads; the others as PEFT's folders, one
for each model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from paramerge.errors import UsageError
from paramerge.files.staging import new_folder, write_recipe
from paramerge.files.writer import write_bytes, write_safetensors
from paramerge.formats.lora_writer import LoraFactors, write_lora
from paramerge.models.names import ModuleName
from paramerge.peft.places import layer_name
from paramerge.peft.saving import architecture_of
from paramerge.training.config import TrainConfig
from paramerge.training.methods import text_encoders
from paramerge.training.methods.trained import (
    TEXT_LAYERS,
    Trained,
    inject,
    layers_of,
    layers_to_train,
    trainable,
)
from paramerge.training.models import kind_of

__all__ = ["attach"]

_NAME = "default"


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """An adapter on the model's layers of the subset, and on the text encoders' attention if asked for."""
    kind = kind_of(pipeline)
    models = {kind.component: getattr(pipeline, kind.component)}
    patterns = {kind.component: layers_to_train(config, kind)}
    if config.train_text_encoder:
        models |= text_encoders(pipeline)
        patterns |= dict.fromkeys(text_encoders(pipeline), TEXT_LAYERS)
    for component, model in models.items():
        inject(_config(config, model, patterns[component]), model, _NAME)

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        if config.method == "lora":
            write = _save_lora if kind.component == "unet" else _save_transformer_lora
            return [write(folder / "adapter.safetensors", models, metadata)]
        place = folder / "adapter"
        with new_folder(place, overwrite=True) as stage:
            for name, model in models.items():
                _save_peft(stage / name, model, metadata)
            write_recipe(stage, dict(metadata))
        return [place / name for name in models]

    return Trained(trainable(models), save, text=config.train_text_encoder)


def _config(config: TrainConfig, model: Any, target: str) -> Any:
    rank, alpha = config.rank, config.alpha or config.rank
    if config.method in ("lora", "dora"):
        use_dora = config.method == "dora"
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=target, use_dora=use_dora)  # type: ignore[arg-type]
    if config.method == "loha":
        return LoHaConfig(r=rank, alpha=_integer_alpha(alpha), target_modules=target)
    if config.method == "lokr":
        return LoKrConfig(r=rank, alpha=_integer_alpha(alpha), target_modules=target)
    _check_blocks(config, model, target)
    if config.method == "oft":
        return OFTConfig(oft_block_size=rank, target_modules=target, use_cayley_neumann=False)
    return BOFTConfig(boft_block_size=rank, target_modules=target)


def _integer_alpha(alpha: float) -> int:
    """PEFT's LoHa and LoKr take whole alphas alone."""
    if alpha != int(alpha):
        raise UsageError("alpha is not a whole number", where="alpha", expected="a whole number", found=alpha)
    return int(alpha)


def _check_blocks(config: TrainConfig, model: Any, target: str) -> None:
    """OFT and BOFT turn blocks of inputs, so their size must divide the inputs' number."""
    for name, layer in layers_of(model, target).items():
        inputs = layer.weight[0].numel()
        if config.method == "oft" and layer.weight.dim() == 4:
            inputs = layer.weight.shape[1]
        if inputs % config.rank:
            raise UsageError(
                f"the blocks of {config.method} do not fit this layer",
                where=f"rank: {name}",
                expected=f"a divisor of its {inputs} inputs",
                found=config.rank,
                hint="choose another rank, or a subset without the layer",
            )


def _save_lora(path: Path, models: Mapping[str, Any], metadata: Mapping[str, str]) -> Path:
    layers: dict[ModuleName, LoraFactors] = {}
    for component, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                up, down = (getattr(module, part)[_NAME].weight for part in ("lora_B", "lora_A"))
                arrays = [value.detach().cpu().numpy() for value in (up, down)]
                layers[layer_name(component, name)] = LoraFactors(
                    arrays[0].reshape(len(arrays[0]), -1),
                    arrays[1].reshape(len(arrays[1]), -1),
                    float(module.lora_alpha[_NAME]),
                    arrays[1].shape[2:],
                )
    write_lora(path, layers, architecture=architecture_of(models["unet"]), metadata=metadata)
    return path


def _save_transformer_lora(path: Path, models: Mapping[str, Any], metadata: Mapping[str, str]) -> Path:
    """A LoRA under diffusers' keys, which have no alpha: ``alpha / r`` is in the up factor."""
    tensors = {}
    for component, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                scale = float(module.lora_alpha[_NAME]) / module.r[_NAME]
                for part, factor in (("lora_A", 1.0), ("lora_B", scale)):
                    value = getattr(module, part)[_NAME].weight.detach().cpu() * factor
                    tensors[f"{component}.{name}.{part}.weight"] = value.numpy().astype(np.float16)
    write_safetensors(path, _sorted(tensors), {"format": "pt", **metadata})
    return path


def _save_peft(folder: Path, model: Any, metadata: Mapping[str, str]) -> None:
    """The two files of PEFT's ``save_pretrained``."""
    state = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    tensors = {f"base_model.model.{key}": value.detach().cpu().numpy() for key, value in state.items()}
    settings = model.peft_config[_NAME].to_dict() | {"inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    text = json.dumps(plain, indent=2, sort_keys=True, default=str)
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", _sorted(tensors), {"format": "pt", **metadata})
    write_bytes(folder / "adapter_config.json", text.encode())


def _sorted(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: tensors[key] for key in sorted(tensors, key=lambda text: re.split(r"(\d+)", text))}
