"""CLIP of transformers, or what stands in for it, as a scorer of pictures and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramerge import shipped
from paramerge.errors import CheckpointError, UsageError

__all__ = ["Clip", "load_clip"]

_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Clip:
    """A contrastive text-image model on a device.

    Attributes
    ----------
    name:
        The hub id, or the folder's name with the beginning of its weights' SHA-256; the shipped model says
        that it is not CLIP. It belongs beside every number that comes from it.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, processor: Any, device: str) -> None:
        self.name = name
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._processor = processor
        self._device = device

    def embed_pictures(self, pictures: np.ndarray) -> Tensor:
        """Unit vectors, float64 (n, d), of uint8 pictures (n, height, width, 3), in one batch."""
        values = self._processor(images=list(pictures), return_tensors="pt").pixel_values
        with torch.no_grad():
            seen = self._model.vision_model(pixel_values=values.to(self._device)).pooler_output
            return _unit(self._model.visual_projection(seen))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float64 (n, d), of texts; what is longer than the model reads is cut off."""
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self._device)
        with torch.no_grad():
            read = self._model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            return _unit(self._model.text_projection(read))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.cpu().double(), dim=-1)


def load_clip(source: str, device: str = "cpu") -> Clip:
    """The CLIP of a folder or a hub id; ``emoji-contrastive`` is the shipped stand-in.

    It computes in float32.

    Raises
    ------
    UsageError
        There is no such folder, and the hub has no such model or cannot be reached.
    CheckpointError
        It is no CLIP of transformers, or does not say how pictures are prepared for it.
    FileFormatError
        This installation came without the shipped model.
    """
    import transformers

    # a processor without torchvision is named in a warning, though it does the same
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = shipped.contrastive() if source == shipped.CONTRASTIVE else Path(source)
    local = folder.is_dir()
    if local and not (folder / _PROCESSOR).is_file():
        raise CheckpointError(
            "this model does not say how pictures are prepared for it",
            where=folder,
            expected=_PROCESSOR,
            hint="save the model's image processor beside it",
        )
    place = folder if local else source
    try:
        model = transformers.CLIPModel.from_pretrained(place, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        processor = transformers.AutoImageProcessor.from_pretrained(place)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if local:
            raise CheckpointError(f"this is no CLIP of transformers ({first})", where=folder) from error
        raise UsageError(
            f"this CLIP cannot be had ({first})",
            where=f"--clip {source}",
            expected="a folder, or the id of a model on the hub such as openai/clip-vit-large-patch14",
            hint=f"download it first, or use {shipped.CONTRASTIVE} for the shipped model's own pictures",
        ) from error
    return Clip(_name(source, folder if local else None), model, tokenizer, processor, device)


def _name(source: str, folder: Path | None) -> str:
    if folder is None:
        return source
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    mark = f", sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}" if file is not None else ""
    if source == shipped.CONTRASTIVE:
        return f"{source} (not CLIP{mark})"
    return f"{folder.resolve().name} (local{mark})"
