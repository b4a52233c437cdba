"""DiffuseKronA: attention's change as a Kronecker product of two small matrices.

The file is that of the method's public code: LoRA-looking keys ``...processor.to_q_lora.{down,up}.weight``
with down (a2, a1) and up (b1, b2), ``a1 b1 = d_out`` and ``a2 b2 = d_in``, and no alpha. The change of the
weight is ``dW[p a1 + q, i b2 + j] = up[p, j] down[i, q]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramerge.errors import UsageError
from paramerge.files.writer import write_safetensors
from paramerge.training.config import TrainConfig
from paramerge.training.methods.parametrized import parametrized
from paramerge.training.methods.trained import Trained, layers_of

__all__ = ["KronaChange", "attach"]

_PROJECTIONS = r"(?:.+\.)?attn[12]\.to_(?:q|k|v|out\.0)"
_LAYER = re.compile(r"(?P<attention>.+\.attn[12])\.to_(?P<part>q|k|v|out)(?:\.0)?")


class KronaChange(nn.Module):
    """``W + dW`` with dW from ``up`` (b1, b2) and ``down`` (a2, a1); it starts at 0, with up = 0."""

    def __init__(self, weight: Tensor, a1: int, a2: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.up = nn.Parameter(torch.zeros(rows // a1, columns // a2, device=weight.device))
        self.down = nn.Parameter(torch.randn(a2, a1).to(weight.device) / a1)

    def forward(self, W: Tensor) -> Tensor:
        """The changed weight, in the dtype of ``W``."""
        change = torch.einsum("pj,iq->pqij", self.up, self.down).reshape(W.shape)
        return W + change.to(W.dtype)


def attach(pipeline: Any, config: TrainConfig) -> Trained:
    """On all q, k, v and o of the UNet, as the paper has it."""
    a1, a2 = config.krona_factors
    layers = layers_of(pipeline.unet, _PROJECTIONS)
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        if rows % a1 or columns % a2:
            raise UsageError(
                "these factors do not divide a layer",
                where=f"krona_factors: {name}",
                expected=f"a1 that divides {rows} and a2 that divides {columns}",
                found=f"{a1}, {a2}",
            )
    models = {"unet": pipeline.unet}
    made = parametrized(models, {"unet": layers}, lambda layer: KronaChange(layer.weight, a1, a2))["unet"]
    parameters = {
        f"unet.{name}.{part}": getattr(change, part)
        for name, change in made.items()
        for part in ("up", "down")
    }

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        path = folder / "adapter.safetensors"
        tensors = {}
        for name, change in sorted(made.items()):
            for part in ("down", "up"):
                value: Tensor = getattr(change, part)
                tensors[f"{_key(name)}.{part}.weight"] = value.detach().cpu().numpy()
        write_safetensors(path, tensors, {"format": "pt", **metadata})
        return [path]

    return Trained(parameters, save)


def _key(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        raise UsageError("this layer has no name in a DiffuseKronA file", where=name)
    return f"unet.{match['attention']}.processor.to_{match['part']}_lora"
