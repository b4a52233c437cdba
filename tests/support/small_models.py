"""A small model with every kind of layer that a PaRa works on, and what its weights should become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

from paramerge.peft import PaRaConfig

LAYERS = ("lin", "bare", "tall", "conv", "strided")


class Small(nn.Module):
    """Linear layers with and without bias, wide and tall, and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(10, 12)
        self.bare = nn.Linear(12, 9, bias=False)
        self.tall = nn.Linear(4, 16)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 6, (3, 1), stride=2, padding=(1, 0), bias=False)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        hidden = self.bare(torch.tanh(self.lin(x)))
        return hidden, self.tall(hidden[..., :4]), self.strided(torch.tanh(self.conv(image)))


def small(dtype: torch.dtype = torch.float32, seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small().to(dtype).eval()


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 7, 10, generator=generator)
    return x.to(dtype), torch.randn(2, 3, 9, 7, generator=generator).to(dtype)


def random_para(**settings: Any) -> PaRaConfig:
    return PaRaConfig(**{"r": 2, "target_modules": list(LAYERS), "init": "orthonormal", **settings})


def with_para(model: Small, name: str = "para", **settings: Any) -> Small:
    inject_adapter_in_model(random_para(**settings), model, name)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Each layer's weight now, by its plain name."""
    return {
        name.replace(".base_layer", "").removesuffix(".weight"): value.detach().clone()
        for name, value in model.named_parameters()
        if name.endswith("weight") and "lora_" not in name
    }


def reduced(W: Tensor, B: Tensor, strength: float = 1.0) -> Tensor:
    """``W - s Q Q^T W`` in float64, by pseudo-inverse and not by QR."""
    flat, basis = W.double().flatten(1), B.detach().double()
    return (flat - strength * (basis @ (torch.linalg.pinv(basis) @ flat))).view(W.shape)


def outputs_with(changed: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """What the model gives with these weights, in float64."""
    model = small(dtype).double()
    for name, value in changed.items():
        model.get_submodule(name).weight.data = value.double()
    with torch.no_grad():
        result: tuple[Tensor, ...] = model(*inputs(torch.float64))
    return result


def distance(found: Any, expected: Any) -> float:
    """The largest relative Frobenius distance of two tuples of tensors."""
    return max(
        float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())
        for a, b in zip(found, expected, strict=True)
    )
