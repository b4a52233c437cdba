"""DreamBooth itself: the whole UNet, and the text encoders if asked for; saved as a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from paramerge.errors import OutputError
from paramerge.files.staging import new_folder, write_recipe
from paramerge.training.config import TrainConfig
from paramerge.training.methods import text_encoders
from paramerge.training.methods.trained import Trained, trainable

__all__ = ["attach"]


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """Every parameter of the UNet."""
    models = {"unet": pipeline.unet}
    if config.train_text_encoder:
        models |= text_encoders(pipeline)
    for model in models.values():
        model.requires_grad_(True)

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        place = folder / "model"
        with new_folder(place, overwrite=True) as stage:
            try:
                pipeline.save_pretrained(stage, safe_serialization=True)
            except SafetensorError as error:  # what the system says of its files
                raise OutputError(f"the model cannot be written ({error})", where=place) from error
            write_recipe(stage, dict(metadata))
        return [place]

    return Trained(trainable(models), save, text=config.train_text_encoder)
