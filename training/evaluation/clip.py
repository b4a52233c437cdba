"""CLIP of transformers, or its stand-in, as a scorer of pictures and texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramerge import shipped
from paramerge.errors import CheckpointError, UsageError
from paramerge.files.header import PICKLE_SUFFIXES
from paramerge.files.source import Source
from paramerge.generation.small_files import small_files_of
from paramerge.listing import listed
from paramerge.regular_files import is_there
from paramerge.system_faults import reading

__all__ = ["Clip", "load_clip"]

_PROCESSOR = "preprocessor_config.json"
_ADAPTER = "adapter_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_FETCHED = (".safetensors", ".json", ".txt")


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
        """Unit vectors, float64 (n, d), of texts; a text that is too long for the model is cut off."""
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


def load_clip(source: str, device: str = "cpu", download: Callable[[str], None] | None = None) -> Clip:
    """The CLIP of a folder or a hub id; ``emoji-contrastive`` is the shipped stand-in.

    It computes in float32, and reads safetensors alone: a pickle can run any code.

    Parameters
    ----------
    download:
        Called with a line that announces a download from the hub, and its size; None for nothing to be
        fetched.

    Raises
    ------
    UsageError
        There is no such folder, and the model is not on this machine, or the hub does not have it.
    CheckpointError
        It is no CLIP of transformers, has its weights as a pickle, or does not say how pictures are prepared
        for it.
    FileFormatError
        This installation came without the shipped model.
    """
    import transformers

    # a processor without torchvision is named in a warning, though it does the same
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = shipped.contrastive() if source == shipped.CONTRASTIVE else Path(source)
    if folder.is_dir():
        _check_folder(folder)
        try:
            with small_files_of(folder) as copies:
                parts = _parts(str(folder), local=True, beside=str(copies))
        except _FAULTS as error:
            _refuse_unreadable(folder)
            raise CheckpointError(
                f"this is no CLIP that transformers can load ({_first_line(error)})",
                where=folder,
                hint="see that it is a whole CLIP, and that its files can be read",
            ) from error
        return Clip(_name(source, folder), *parts, device)
    return Clip(_name(source, None), *_from_hub(source, download), device)


_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError)


def _parts(place: str, *, local: bool, beside: str | None = None) -> tuple[Any, Any, Any]:
    """The model, its tokenizer and its picture processor; ``local``: without the network.

    The latter two are read in ``beside``, where it is given.
    """
    import transformers

    where: Any = {"local_files_only": local}
    model = transformers.CLIPModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True, **where)
    tokenizer = transformers.AutoTokenizer.from_pretrained(beside or place, **where)
    processor = transformers.AutoImageProcessor.from_pretrained(beside or place, **where)  # type: ignore[no-untyped-call]
    return model, tokenizer, processor


def _from_hub(source: str, download: Callable[[str], None] | None) -> tuple[Any, Any, Any]:
    """The model that the hub calls ``source``: fetched before, or fetched now."""
    try:
        return _parts(source, local=True)
    except _FAULTS as error:
        if download is None:
            raise UsageError(
                "this CLIP cannot be had: it is not on this machine, and nothing is downloaded unasked",
                where=f"clip {source}",
                expected="a folder, or the id of a model that was downloaded before",
                hint=f"allow the download (openai/clip-vit-large-patch14 is 1.7 GB), "
                f"or use {shipped.CONTRASTIVE} for the shipped model's own pictures",
            ) from error
    download(f"downloading {source} from huggingface.co, {_size_on_hub(source)}")
    try:
        return _parts(source, local=False)
    except _FAULTS as error:
        raise UsageError(
            f"this CLIP cannot be had ({_first_line(error)})",
            where=f"clip {source}",
            expected="a folder, or the id of a model on the hub with its weights as safetensors",
            hint=f"download it first, or use {shipped.CONTRASTIVE} for the shipped model's own pictures",
        ) from error


def _size_on_hub(source: str) -> str:
    """The size of the download, in words."""
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):  # an estimate: faults of the hub are reported by the download
        files = HfApi().model_info(source, files_metadata=True, timeout=10).siblings or []
        total = sum(file.size or 0 for file in files if file.rfilename.endswith(_FETCHED))
        return f"{total / 1e9:.2f} GB"
    return "how much is not known"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that transformers would read otherwise than as one model in safetensors."""
    if not (folder / _PROCESSOR).is_file():
        raise CheckpointError(
            "this model does not say how pictures are prepared for it",
            where=folder,
            expected=_PROCESSOR,
            hint="save the model's image processor beside it",
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles and not any((folder / name).is_file() for name in _WEIGHTS):
        raise CheckpointError(
            "the weights of this CLIP are there as pickles alone, and pickles are never opened",
            where=folder,
            expected=" or ".join(_WEIGHTS),
            found=listed(pickles),
            hint="save it again with save_pretrained, in a sandbox",
        )
    if is_there(folder / _ADAPTER):
        raise CheckpointError(
            "an adapter of PEFT is in the folder of this CLIP, and would be loaded with it",
            where=folder / _ADAPTER,
            hint="merge it into the model, or move it away",
        )


def _refuse_unreadable(folder: Path) -> None:
    """Name the file that the system does not give: to libraries it is missing, or of another kind."""
    with reading(folder):
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    for path in files:
        Source.open(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _name(source: str, folder: Path | None) -> str:
    if folder is None:
        return source
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    mark = f", sha256 {Source.open(file).sha256()[:8]}" if file is not None else ""
    if source == shipped.CONTRASTIVE:
        return f"{source} (not CLIP{mark})"
    return f"{folder.resolve().name} (local{mark})"
