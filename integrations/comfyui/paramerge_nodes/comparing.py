"""The comparison of adapters, as a picture and as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont

import paramerge as pm
from paramerge.cli.compare_table import show_comparison
from paramerge.cli.render import out
from paramerge.compare.compare import Comparison
from paramerge.compare.heatmap import Cell, HeatMap, Panel, heat_maps

from .adapters import CATEGORY, Stack
from .checkpoints import progress_bar
from .files import NONE, checkpoint_names, checkpoint_path

_CELL = (52, 20)
_MARGIN = (150, 96)
_WHITE, _INK = (255, 255, 255), (20, 20, 20)
_POSITIVE, _NEGATIVE = (200, 40, 30), (30, 80, 190)


class Compare(io.ComfyNode):
    """Adapters compared in pairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ParamergeCompare",
            display_name="Compare adapters",
            category=CATEGORY,
            description="How much adapters stand in each other's way, layer by layer: a heat map for each "
            "pair, and the table and advice of `paramerge compare`. Strengths are not looked at.",
            inputs=[
                Stack.Input("adapters"),
                io.Combo.Input("checkpoint", options=[NONE, *checkpoint_names()],
                               tooltip="compare their effects on this one's weights too"),
            ],
            outputs=[io.Image.Output(display_name="heat maps"), io.String.Output(display_name="text")],
        )  # fmt: skip

    @classmethod
    def execute(cls, adapters: tuple[pm.Adapter, ...], checkpoint: str) -> io.NodeOutput:
        """The maps as pictures of one size, and the text."""
        base = None if checkpoint == NONE else checkpoint_path(checkpoint)
        comparison = pm.compare([adapter.path for adapter in adapters], base, progress_bar())
        with out.captured() as text:
            show_comparison(comparison, all_layers=False)
        return io.NodeOutput(as_batch(list(_pictures(comparison))), text.getvalue())


def _pictures(comparison: Comparison) -> Iterator[Image.Image]:
    for pair in comparison.pairs:
        names = " and ".join(comparison.adapters[place].path.stem for place in (pair.first, pair.second))
        for heat_map in heat_maps(pair):
            yield drawn(heat_map, f"{names}: {heat_map.metric.title}")


def as_batch(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures (RGB) as ComfyUI has them, (n, height, width, 3) from 0 to 1, on white of the largest size."""
    if not pictures:
        pictures = [Image.new("RGB", (320, 40), _WHITE)]
        ImageDraw.Draw(pictures[0]).text((8, 12), "these adapters have no layer in common", fill=_INK)
    size = tuple(max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    batch = np.full((len(pictures), size[1], size[0], 3), 255, np.uint8)
    for page, picture in zip(batch, pictures, strict=True):
        page[: picture.height, : picture.width] = np.asarray(picture)
    return torch.from_numpy(batch).float() / 255


def drawn(heat_map: HeatMap, title: str) -> Image.Image:
    """A heat map with its numbers; the scale's end is written beside the title."""
    width = _MARGIN[0] + _CELL[0] * max(len(panel.columns) for panel in heat_map.panels) + 16
    heights = [_MARGIN[1] + _CELL[1] * len(panel.rows) for panel in heat_map.panels]
    picture = Image.new("RGB", (max(width, 640), 40 + sum(heights)), _WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((8, 8), f"{title}   (full colour: {heat_map.end:g})", fill=_INK, font=_font(14))
    top = 32
    for panel, height in zip(heat_map.panels, heights, strict=True):
        _draw_panel(picture, draw, panel, top)
        top += height
    return picture


def _draw_panel(picture: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, top: int) -> None:
    draw.text((8, top), panel.title, fill=_INK, font=_font(13))
    for place, name in enumerate(panel.columns):
        _draw_turned(picture, name, (_MARGIN[0] + place * _CELL[0], top + 4))
    for place, name in enumerate(panel.rows):
        draw.text((8, top + _MARGIN[1] - 12 + place * _CELL[1]), name, fill=_INK, font=_font(11))
    for cell in panel.cells:
        left = _MARGIN[0] + cell.column * _CELL[0]
        upper = top + _MARGIN[1] - 16 + cell.row * _CELL[1]
        draw.rectangle((left, upper, left + _CELL[0] - 2, upper + _CELL[1] - 2), fill=_colour(cell))
        ink = _WHITE if cell.shade > 0.6 else _INK
        draw.text((left + 6, upper + 3), cell.text, fill=ink, font=_font(10))


def _draw_turned(picture: Image.Image, text: str, at: tuple[int, int]) -> None:
    strip = Image.new("RGB", (76, 14), _WHITE)
    ImageDraw.Draw(strip).text((0, 0), text, fill=_INK, font=_font(10))
    picture.paste(strip.rotate(90, expand=True), (at[0] + 16, at[1]))


def _colour(cell: Cell) -> tuple[int, int, int]:
    full = _NEGATIVE if cell.negative else _POSITIVE
    shade = min(1.0, max(0.0, cell.shade))
    return tuple(round(255 + (part - 255) * shade) for part in full)  # type: ignore[return-value]


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
