"""A labelled grid of pictures: a row for each label, a column for each seed."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

_GAP = 8
_TEXT = 14
_LINE = 18
_CELL = 160
_LETTER = 7.5
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """Pictures, uint8 (height, width, 3), and their label."""

    label: str
    pictures: Sequence[np.ndarray]


def labelled_grid(rows: Sequence[Row], columns: Sequence[str]) -> Image.Image:
    """The rows under each other, each below its label; small pictures are enlarged by a whole factor."""
    height, width = rows[0].pictures[0].shape[:2]
    factor = max(1, _CELL // width)
    cell = (width * factor, height * factor)
    across = _GAP + len(columns) * (cell[0] + _GAP)
    labels = [textwrap.wrap(row.label, max(8, int((across - 2 * _GAP) / _LETTER))) or [""] for row in rows]
    titles = [textwrap.wrap(text, max(8, int(cell[0] / _LETTER))) or [""] for text in columns]
    head = max(len(lines) for lines in titles) * _LINE + _GAP // 2
    down = head + sum(len(lines) * _LINE + cell[1] + _GAP for lines in labels)
    grid = Image.new("RGB", (across, down), _PAPER)
    pen = ImageDraw.Draw(grid)
    font = ImageFont.load_default(_TEXT)
    lefts = [_GAP + i * (cell[0] + _GAP) for i in range(len(columns))]
    for left, lines in zip(lefts, titles, strict=True):
        for number, line in enumerate(lines):
            pen.text((left, 4 + number * _LINE), line, fill=_INK, font=font)
    top = head
    for row, lines in zip(rows, labels, strict=True):
        for line in lines:
            pen.text((_GAP, top), line, fill=_INK, font=font)
            top += _LINE
        for left, picture in zip(lefts, row.pictures, strict=True):
            grid.paste(Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST), (left, top))
        top += cell[1] + _GAP
    return grid


def png(image: Image.Image, notes: Mapping[str, str]) -> bytes:
    """The image as PNG, with ``notes`` as its text entries."""
    info = PngImagePlugin.PngInfo()
    for key, text in notes.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
