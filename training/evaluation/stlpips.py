"""Shift-tolerant LPIPS on AlexNet, from the weights that the package stlpips-pytorch brings along.

The package itself cannot be imported without torchvision, torchsummary and IPython; its weight file, a state
dict, can be read alone, and the network is small: five convolutions, of which three are preceded or followed
by a blur that halves the picture. (Ghildyal and Liu, Shift-tolerant perceptual similarity metric, 2022.)
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from paramerge.errors import FileFormatError, UsageError

__all__ = ["ShiftTolerantLPIPS", "find_weights"]

_PACKAGE = "stlpips_pytorch"
_FILE = "weights/vST0.0/alex_shift_tolerant.pth"
_CONVOLUTIONS = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")
_BLURS = ("net.slice1.1.filt", "net.slice2.4.filt", "net.slice3.8.filt")
_LINEAR = tuple(f"lin{i}.model.1.weight" for i in range(5))
_PADDING = (2, 2, 1, 1, 1)
_EPSILON = 1e-10


def find_weights() -> Path:
    """The weight file in the installed package, which is not imported.

    Raises
    ------
    UsageError
        The package is not installed.
    """
    spec = find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / _FILE).is_file():
            return path
    raise UsageError(
        "the weights of shift-tolerant LPIPS are not installed",
        expected=f"the package stlpips-pytorch with {_FILE}",
        hint="pip install --no-deps stlpips-pytorch==0.0.2 (its weights are all that is needed of it)",
    )


class ShiftTolerantLPIPS(nn.Module):
    """The distance of pictures: 0 for equal ones, and larger the more different they look.

    Raises
    ------
    FileFormatError
        The file is not that of the package.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        wanted = [*_BLURS, *_LINEAR, "scaling_layer.shift", "scaling_layer.scale"]
        wanted += [f"{name}.{part}" for name in _CONVOLUTIONS for part in ("weight", "bias")]
        if missing := [name for name in wanted if name not in state]:
            raise FileFormatError(
                "these are not the weights of shift-tolerant LPIPS on AlexNet",
                where=weights,
                expected=", ".join(missing),
                hint="install stlpips-pytorch 0.0.2 again",
            )
        for name in wanted:
            self.register_buffer(name.replace(".", "_"), state[name], persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distances (n,) of pictures (n, 3, height, width) in [-1, 1]."""
        total = torch.zeros(len(first), dtype=first.dtype, device=first.device)
        for name, a, b in zip(_LINEAR, self.features(first), self.features(second), strict=True):
            difference = (_normalised(a) - _normalised(b)) ** 2
            total = total + functional.conv2d(difference, self._weight(name)).mean(dim=(1, 2, 3))
        return total

    def features(self, pictures: Tensor) -> list[Tensor]:
        """The output of each of the five convolutions, after the rectification."""
        shift, scale = self._weight("scaling_layer.shift"), self._weight("scaling_layer.scale")
        first = self._convolved(0, (pictures - shift) / scale)
        found = [functional.relu(self._halved(0, first))]
        for layer in (1, 2):
            peaks = functional.max_pool2d(found[-1], 3, stride=1)
            found.append(functional.relu(self._convolved(layer, self._halved(layer, peaks))))
        for layer in (3, 4):
            found.append(functional.relu(self._convolved(layer, found[-1])))
        return found

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))

    def _convolved(self, layer: int, x: Tensor) -> Tensor:
        name = _CONVOLUTIONS[layer]
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return functional.conv2d(x, weight, bias, padding=_PADDING[layer])

    def _halved(self, layer: int, x: Tensor) -> Tensor:
        """Blurred and then halved, so that a shift by a pixel changes little."""
        blur = self._weight(_BLURS[layer])
        return functional.conv2d(
            functional.pad(x, (2, 2, 2, 2), mode="reflect"), blur, stride=2, groups=len(blur)
        )


def _normalised(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
