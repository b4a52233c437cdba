"""SVDiff: the singular values of each weight are shifted, ``U diag(relu(s + delta)) V^T``.

The file is that of the method's public implementation: a vector ``<layer>.delta`` for each layer of the UNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramerge.files.writer import write_safetensors
from paramerge.peft.bases import no_autocast
from paramerge.training.config import TrainConfig
from paramerge.training.methods.parametrized import parametrized
from paramerge.training.methods.trained import Trained, layers_of, unet_layers

__all__ = ["SpectralShift", "attach"]


class SpectralShift(nn.Module):
    """``W + U diag(relu(s + delta) - s) V^T`` with delta (min(d, k),) starting at 0."""

    U: Tensor
    s: Tensor
    Vh: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        U, s, Vh = torch.linalg.svd(weight.detach().float().flatten(1), full_matrices=False)
        for name, value in (("U", U), ("s", s), ("Vh", Vh)):
            self.register_buffer(name, value, persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(s))

    def forward(self, W: Tensor) -> Tensor:
        """The shifted weight, in the dtype of ``W``; a change is added, so delta = 0 gives ``W`` itself."""
        with no_autocast(W):  # what is saved is float32, too
            change = (self.U * (torch.relu(self.s + self.delta) - self.s)) @ self.Vh
        return W + change.reshape(W.shape).to(W.dtype)


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """On the UNet's layers of the subset."""
    layers = layers_of(pipeline.unet, unet_layers(config))
    models = {"unet": pipeline.unet}
    made = parametrized(models, {"unet": layers}, lambda layer: SpectralShift(layer.weight))["unet"]
    parameters: dict[str, Any] = {f"unet.{name}.delta": shift.delta for name, shift in made.items()}

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        path = folder / "adapter.safetensors"
        tensors = {
            key.removeprefix("unet."): value.detach().cpu().numpy()
            for key, value in sorted(parameters.items())
        }
        write_safetensors(path, tensors, {"format": "pt", **metadata})
        return [path]

    return Trained(parameters, save)
