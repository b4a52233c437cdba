"""ComfyUI's prefixes of dotted names: of the model that removes the noise, and of text encoders beside it.

What follows them is a path in diffusers', LDM's or the model's own names, so files with them are read as
diffusers' dialect is.
"""

from __future__ import annotations

import re

_MODEL = re.compile(r"(?:model\.)?diffusion_model\.")
_ENCODER = re.compile(r"text_encoders\.(?P<encoder>\w+)\.(?:transformer\.)?")
_COMPONENTS = {
    "clip_l": "text_encoder",
    "clip_h": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5xxl": "text_encoder_3",
}
"""The text encoders as ComfyUI and Forge name them beside a model; any other is a language model on its own,
the first of its pipeline."""


BUNDLED = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
"""The names that are written for text encoders."""


def without_prefix(path: str) -> str | None:
    """The path in the model that removes the noise; None where there is no such prefix."""
    match = _MODEL.match(path)
    return path[match.end() :] if match else None


def bundled_encoder(path: str) -> tuple[str, str] | None:
    """The component and the path in it of a layer of a text encoder; None where it is named otherwise."""
    match = _ENCODER.match(path)
    return (_COMPONENTS.get(match["encoder"], "text_encoder"), path[match.end() :]) if match else None
