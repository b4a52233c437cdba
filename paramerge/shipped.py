"""The model that comes with paramerge, emoji-diffusion, small and really trained, and adapters of it.

All of it was made by the project's own commands (``paramerge.training.tiny``); its model card says how, and
``CREDITS.md`` beside it whose pictures it learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paramerge.errors import FileFormatError

MODEL_NAME = "emoji-diffusion"
"""The model's name, which commands take in place of a path."""

CONTRASTIVE = "emoji-contrastive"
"""The name of the contrastive text-image model, a stand-in for CLIP on this model's pictures alone."""

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, slots=True)
class ShippedAdapter:
    """An adapter of the shipped model.

    Attributes
    ----------
    word:
        The word of prompts for the thing it taught; None where it acts on every prompt.
    shows:
        The thing itself, for people.
    """

    name: str
    kind: Literal["para", "lora"]
    word: str | None
    shows: str


ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        ShippedAdapter("butterfly", "para", "<v1>", "the twemoji butterfly, a subject the model never saw"),
        ShippedAdapter("tree", "para", "<v2>", "the noto fir tree, a subject the model never saw"),
        ShippedAdapter("blueprint", "lora", None, "white drawings on blue paper, a style it never saw"),
    )
}
"""The adapters by name."""


def model() -> Path:
    """The diffusers folder of the shipped model.

    Raises
    ------
    FileFormatError
        This installation came without it.
    """
    return _present(_ASSETS / MODEL_NAME)


def named_model(path: Path) -> Path:
    """``path``, or the shipped model where ``path`` is its name and nothing of that name is here.

    Raises
    ------
    FileFormatError
        This installation came without it.
    """
    return model() if str(path) == MODEL_NAME and not path.exists() else path


def named_adapter(path: Path) -> Path:
    """``path``, or a shipped adapter's file where ``path`` is its name and nothing of that name is here.

    Raises
    ------
    FileFormatError
        This installation came without it.
    """
    name = str(path)
    return adapter_file(name) if name in ADAPTERS and not path.exists() else path


def folder() -> Path | None:
    """The folder of all that ships; None where this installation came without it."""
    return _ASSETS if _ASSETS.is_dir() else None


def contrastive() -> Path:
    """The folder of the shipped contrastive model (transformers' CLIP).

    Raises
    ------
    FileFormatError
        This installation came without it.
    """
    return _present(_ASSETS / "contrastive")


def adapter_file(name: str) -> Path:
    """The file of the shipped adapter ``name``, one of :data:`ADAPTERS`.

    Raises
    ------
    FileFormatError
        This installation came without it.
    """
    return _present(_ASSETS / "adapters" / f"{name}.safetensors")


def _present(path: Path) -> Path:
    if not path.exists():
        raise FileFormatError(
            "this installation of paramerge came without its model",
            where=path,
            hint="install the whole package, or make the model: python -m paramerge.training.tiny",
        )
    return path
