"""A layer in its model: the row and the column of a heat map, and a name that fits a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from paramerge.models.layer_kinds import columns as layer_columns
from paramerge.models.layer_kinds import layer_kind
from paramerge.models.names import COMPONENTS, ModuleName

_TITLES = {
    "unet": "UNet",
    "transformer": "Transformer",
    "transformer_2": "Transformer 2",
    "model": "Model",
    "text_encoder": "Text encoder 1",
    "text_encoder_2": "Text encoder 2",
    "text_encoder_3": "Text encoder 3",
}
_SHORT = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_3": "te3"}

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")
_NUMBERED = re.compile(r"(?:\w+\.)*?(?P<blocks>\w*(?:blocks?|layers?)|h)\.(?P<number>\d+)\.")
_TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")

_ABBREVIATIONS = (
    ("down_blocks.", "down."),
    ("up_blocks.", "up."),
    ("mid_block.", "mid."),
    ("attentions.", "att."),
    ("resnets.", "res."),
    ("transformer_blocks.", "tb."),
    ("text_model.encoder.", ""),
)


class Place(NamedTuple):
    """A layer's cell: its component, the row (block) and the column (kind of layer)."""

    component: str
    row: str
    column: str


def place_of(name: ModuleName) -> Place:
    """The cell that a layer belongs to; the transformer blocks of one attention share theirs."""
    column = next(
        (short for end, short in layer_columns().items() if f".{name.path}".endswith(f".{end}")), "other"
    )
    return Place(name.component, _row(name.path), column)


def columns_in_order(columns: set[str]) -> list[str]:
    """The columns that are there, from a block's beginning to its end."""
    return [column for column in dict.fromkeys((*layer_columns().values(), "other")) if column in columns]


def sorted_rows(rows: Sequence[str]) -> list[str]:
    """Rows in the order in which data go through the model."""
    return sorted(set(rows), key=_row_order)


def group_of(name: ModuleName) -> tuple[int, str]:
    """The group of a layer in tables: component and kind, as ``(0, "unet self-attention")``."""
    kind = layer_kind(name).replace("transformer in/out", "proj in/out")
    return COMPONENTS.index(name.component), f"{_SHORT.get(name.component, name.component)} {kind}"


def component_title(component: str) -> str:
    """The component's name for people."""
    return _TITLES.get(component, component)


def short_name(name: ModuleName) -> str:
    """A name of about 40 characters: ``up.3.att.1.tb.0.attn1.to_v``, ``te1.layers.0.mlp.fc1``."""
    path = name.path
    for long, short in _ABBREVIATIONS:
        path = path.replace(long, short)
    return path if name.component == "unet" else f"{_SHORT.get(name.component, name.component)}.{path}"


def _row(path: str) -> str:
    if match := _BLOCK.match(path):
        way, level, what, index = match.groups()
        return f"{way} {level} sampler" if what.endswith("samplers") else f"{way} {level}.{index}"
    if match := _TEXT_LAYER.match(path):
        return f"layer {match[1]}"
    if path.startswith("mid_block."):
        return "mid"
    if match := _NUMBERED.match(path):
        return f"{match['blocks'].replace('_', ' ')} {match['number']}"
    return path.partition(".")[0].replace("_", " ")


def _row_order(row: str) -> tuple[int, list[float]]:
    stages = {"time": 0, "add": 0, "class": 0, "conv in": 1, "down": 2, "layer": 2, "mid": 3, "up": 4}
    stage = next((place for word, place in stages.items() if row.startswith(word)), 5)
    numbers = [float(text) for text in re.findall(r"\d+", row)]
    return stage, [*numbers, *([math.inf] if row.endswith("sampler") else [])]
