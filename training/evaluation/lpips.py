"""The perceptual distances by name, and 1 - LPIPS between pictures and those of a subject."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramerge.errors import UsageError
from paramerge.training.evaluation.stlpips import ShiftTolerantLPIPS, find_weights

__all__ = ["DISTANCES", "Perceptual", "load_perceptual"]

DISTANCES = {
    "stlpips-alex": "shift-tolerant LPIPS on AlexNet, not LPIPS itself (stlpips-pytorch 0.0.2)",
    "lpips-alex": "LPIPS on AlexNet (torchmetrics; needs torchvision and fetches its weights)",
    "lpips-vgg": "LPIPS on VGG (torchmetrics; needs torchvision and fetches its weights)",
    "lpips-squeeze": "LPIPS on SqueezeNet (torchmetrics; needs torchvision and fetches its weights)",
}
"""The distances by name, each with its description."""


class Perceptual:
    """A perceptual distance on a device.

    Attributes
    ----------
    name:
        One of :data:`DISTANCES`; it belongs beside every number that comes from it.
    """

    def __init__(self, name: str, distance: Callable[[Tensor, Tensor], Tensor], device: str) -> None:
        self.name = name
        self._distance = distance
        self._device = device

    def similarity(self, pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The mean of 1 - LPIPS between each picture and all references, float64 (n,).

        Both are uint8 (n, height, width, 3) of the same height and width.
        """
        with torch.no_grad():
            a, b = (
                torch.from_numpy(part).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
                for part in (pictures, references)
            )
            distances = [self._distance(a, y.expand_as(a)).reshape(len(a)) for y in b]
        return 1 - torch.stack(distances).double().mean(dim=0).cpu().numpy()


_WEIGHTS = {
    "lpips-alex": ("alexnet-owt-7be5be79.pth", "0.24 GB"),
    "lpips-vgg": ("vgg16-397923af.pth", "0.55 GB"),
    "lpips-squeeze": ("squeezenet1_1-b8a52dc0.pth", "5 MB"),
}
"""Torchvision's weights of each network among torch's files, and their size."""


def load_perceptual(
    name: str, device: str = "cpu", download: Callable[[str], None] | None = None
) -> Perceptual:
    """The distance ``name``, one of :data:`DISTANCES`.

    Parameters
    ----------
    download:
        Called with a line that announces a download, and its size; None for nothing to be fetched.

    Raises
    ------
    UsageError
        There is none of that name, its package is not installed, or its weights are not on this machine.
    """
    if name == "stlpips-alex":
        return Perceptual(name, ShiftTolerantLPIPS(find_weights()).to(device), device)
    if name not in DISTANCES:
        raise UsageError(
            "there is no such perceptual distance", where="--lpips", expected=", ".join(DISTANCES), found=name
        )
    if find_spec("torchvision") is None:
        raise UsageError(
            "this distance needs a package that is not installed",
            where=f"--lpips {name}",
            expected="torchvision",
            hint="pip install torchvision of the version that belongs to your torch, or use stlpips-alex",
        )
    _check_weights(name, download)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    kind: Any = name.removeprefix("lpips-")
    metric = LearnedPerceptualImagePatchSimilarity(net_type=kind)
    return Perceptual(name, metric.to(device).net, device)


def _check_weights(name: str, download: Callable[[str], None] | None) -> None:
    """Refuse a download that was not asked for, and announce the others."""
    file, size = _WEIGHTS[name]
    if (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file():
        return
    if download is None:
        raise UsageError(
            "this distance's weights are not on this machine, and nothing is downloaded unasked",
            where=f"lpips {name}",
            expected=f"{file} ({size}) from download.pytorch.org",
            hint="allow the download, or use stlpips-alex",
        )
    download(f"downloading {file} from download.pytorch.org, {size}")
