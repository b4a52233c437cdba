"""PEFT's dialect: a folder of ``adapter_model.safetensors`` and ``adapter_config.json``.

Keys are ``base_model.model.<layer>.lora_A.weight`` without a component: the layer's name tells the UNet from
a text encoder, and the width one text encoder from the other. Alpha stands in the configuration only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from paramerge.errors import AdapterError
from paramerge.files.header import Header
from paramerge.files.source import Source
from paramerge.formats.layers import bare_layer
from paramerge.formats.pairs import Part
from paramerge.models.names import ModuleName
from paramerge.strict_json import MAX_BYTES, object_from

__all__ = [
    "CONFIG_NAME",
    "PREFIX",
    "WEIGHTS_NAME",
    "WIDTH_OF_SECOND_ENCODER",
    "is_copy_of_base",
    "leftover_reason",
    "missing_config",
    "read_config",
    "read_key",
    "text_encoders_by_width",
]

PREFIX = "base_model.model."
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

_KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(?P<path>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")
WIDTH_OF_SECOND_ENCODER = 1280
"""By which SDXL's two text encoders are told apart, where names do not."""

_EXTRAS = (
    (re.compile(r".*\.lora_B\.(?:\w+\.)?bias"), "a bias trained beside the factors (lora_bias)"),
    (re.compile(r".*\.lora_embedding_[AB](?:\.\w+)?"), "a LoRA on an embedding"),
    (re.compile(r".*\btrainable_tokens_\w+(?:\.\w+){0,2}"), "trained token embeddings"),
    (
        re.compile(r".*\.base_layer\.weight"),
        "a copy of the base's own weight (PEFT's save_embedding_layers), which changes nothing",
    ),
    (re.compile(r".*\.bias"), "a trained bias"),
    (re.compile(r".*\.weight"), "a whole weight saved with the adapter (modules_to_save)"),
)


def read_key(key: str) -> Part | None:
    """Understand one key; None if it names no layer or no factor. See :func:`text_encoders_by_width`."""
    match = _KEY.fullmatch(key)
    name = bare_layer(match["path"]) if match else None
    if match is None or name is None:
        return None
    return Part(name, {"A": "down", "B": "up"}[match["side"]], key)


def text_encoders_by_width(header: Header, parts: Iterable[Part]) -> list[Part]:
    """``parts`` with the layers of a text encoder as wide as SDXL's second given to ``text_encoder_2``."""
    parts = list(parts)
    widths = {_width(header, part) for part in parts if part.name.component == "text_encoder"}
    if WIDTH_OF_SECOND_ENCODER not in widths:
        return parts
    return [
        part._replace(name=ModuleName("text_encoder_2", part.name.path))
        if part.name.component == "text_encoder"
        else part
        for part in parts
    ]


def is_copy_of_base(key: str) -> bool:
    """Whether the key is a copy of the base's own weight, which PEFT saves beside a trained embedding."""
    return key.endswith(".base_layer.weight")


def leftover_reason(key: str) -> str | None:
    """What a key that is no factor holds, where PEFT has a meaning for it."""
    return next((reason for pattern, reason in _EXTRAS if pattern.fullmatch(key)), None)


def read_config(source: Source) -> Mapping[str, object]:
    """Read ``adapter_config.json``, which was opened.

    Raises
    ------
    FileFormatError
        It cannot be read or is no JSON object.
    """
    data = source.read(0, min(source.size, MAX_BYTES + 1))
    return object_from(data, source.path, what="this configuration")


def missing_config(path: Path) -> AdapterError:
    """The error for PEFT's weights alone: without alpha they have no size."""
    return AdapterError(
        "the scale of this PEFT adapter is not known: its alpha stands in adapter_config.json",
        where=path,
        expected=f"{CONFIG_NAME} beside it",
        found="the weights alone",
        hint=f"give the folder that holds {WEIGHTS_NAME} and {CONFIG_NAME}",
    )


def _width(header: Header, part: Part) -> int | None:
    """The text encoder's width, where this key shows it: the input of every layer but the MLP's second."""
    shape = header.tensors[part.key].shape
    if part.role != "down" or part.name.path.endswith("fc2") or len(shape) < 2:
        return None
    return shape[1]
