"""Published checkpoints of Stable Diffusion from hyperparameters: each tensor of their models, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paramerge.models.blueprint_inventory import ClipConfig, UNetConfig, clip_shapes, unet_shapes


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder of a checkpoint: its component and where single files have it."""

    component: str
    prefix: str
    config: ClipConfig


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A checkpoint's hyperparameters; ``architecture`` is the name that paramerge reports for it."""

    architecture: str
    unet: UNetConfig
    encoders: tuple[Encoder, ...]

    @property
    def components(self) -> tuple[str, ...]:
        """The components that adapters reach, as a diffusers folder names its subfolders."""
        return ("unet", *(encoder.component for encoder in self.encoders))

    def shapes(self, component: str) -> Mapping[str, tuple[int, ...]]:
        """The tensors of one component as diffusers and transformers have it: keys and shapes, in order."""
        if component == "unet":
            return dict(unet_shapes(self.unet))
        config = next(encoder.config for encoder in self.encoders if encoder.component == component)
        if component == "text_encoder":  # a CLIPTextModel, whatever the single file has besides
            config = replace(config, projection=0)
        return dict(clip_shapes(config, config.layers - config.unused_layers))
