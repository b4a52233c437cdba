"""Latents and embeddings on disk, so that the next training of the same pictures need not work them out.

A file for each, whose name is a hash of all that decides its numbers: the picture's or text's content, the
encoder's weights, the size and the cut, the device and torch's version. So nothing there is ever out of date,
and trainings may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from paramerge.files.writer import make_folder, write_bytes

__all__ = ["Kept", "weights_sha256"]


class Kept:
    """Tensors by the facts that decide them, in ``folder``; without one nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            make_folder(folder)

    @property
    def is_on(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def get(self, facts: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors for ``facts`` (plain values), read or made and written; on the CPU.

        A file that is damaged is made again, with a warning.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        if self._folder is None:
            return {key: value.cpu() for key, value in make().items()}
        versions = {"torch": torch.__version__, "form": 1}
        key = hashlib.sha256(json.dumps({**facts, **versions}, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{key}.safetensors"
        if path.is_file():
            try:
                return load(path.read_bytes())
            except (SafetensorError, OSError, ValueError) as error:
                warnings.warn(f"{path.name} is damaged and made again ({error})", stacklevel=2)
        made = {key: value.cpu().contiguous() for key, value in make().items()}
        write_bytes(path, save(made))
        return made


def weights_sha256(models: Iterable[nn.Module]) -> str:
    """SHA-256 (hex) of the names, dtypes and bytes of all weights."""
    digest = hashlib.sha256()
    for model in models:
        for name, value in sorted(model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
