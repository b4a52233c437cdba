"""All pictures, cut out and aligned: the same subject fills the same square in each style.

A :class:`Gallery` comes from the packages, or is drawn here for smoke runs, which need no network.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from paramerge.errors import FileFormatError
from paramerge.strict_json import parse
from paramerge.training.tiny.packages import PACKAGES, Package, fetch, read_members
from paramerge.training.tiny.subjects import STYLES, Subject

__all__ = ["SIZE", "Gallery", "align", "drawn_gallery", "emoji_gallery"]

SIZE = 64
"""The side of every picture, in pixels."""
_DRAWN_AT = 256
_LEFT_OUT = ("Flags", "Component", "Symbols")


@dataclass(frozen=True)
class Gallery:
    """Pictures by subject and style: RGBA images of :data:`SIZE` pixels that touch their frame.

    ``others`` are emoji without a name here, from which only the autoencoder learns.
    """

    pictures: Mapping[tuple[str, str], Image.Image]
    others: tuple[Image.Image, ...] = ()

    def picture(self, subject: Subject, style: str) -> Image.Image:
        """The picture of ``subject`` in ``style``."""
        return self.pictures[subject.name, style]


def align(picture: Image.Image) -> Image.Image:
    """Cut ``picture`` to its opaque part, scale it to fill the square, and centre it."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    square = Image.new("RGBA", (SIZE, SIZE))
    if box is None:
        return square
    cut = picture.crop(box)
    scale = SIZE / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    # Pillow multiplies alpha in before it scales: colours of transparent pixels do not bleed into the edge
    small = cut.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(small, ((SIZE - width) // 2, (SIZE - height) // 2))
    return square


def emoji_gallery(
    subjects: Iterable[Subject],
    folder: Path,
    packages: Mapping[str, Package] = PACKAGES,
    *,
    with_others: bool = True,
) -> Gallery:
    """The gallery of the packages, which are fetched into ``folder`` where they are not there yet.

    Raises
    ------
    OutputError
        A package could not be downloaded.
    FileFormatError
        A package is damaged or another one, or lacks a subject.
    """
    archives = {style: fetch(package, folder) for style, package in packages.items()}
    index = read_members(archives["noto"], lambda name: name == "emoji.json")
    if not index:
        raise FileFormatError("the package does not name its emoji", where=archives["noto"])
    emoji = [e for e in parse(index["emoji.json"]) if e["category"] not in _LEFT_OUT]
    codes = {entry["short_name"]: _plain(entry["unified"]) for entry in emoji}
    by_style = {style: _files(archives[style], style) for style in STYLES}
    subjects = tuple(subjects)
    pictures = {}
    for subject in subjects:
        for style in STYLES:
            data = by_style[style].get(codes.get(subject.code, ""))
            if data is None:
                raise FileFormatError(
                    f"the package has no picture of {subject.phrase}",
                    where=archives[style],
                    found=subject.code,
                )
            pictures[subject.name, style] = _open(data)
    named = {codes[subject.code] for subject in subjects}
    rest = [code for code in codes.values() if code not in named] if with_others else []
    others = [_open(by_style[s][code]) for code in rest for s in STYLES if code in by_style[s]]
    return Gallery(pictures, tuple(others))


def _plain(code: str) -> str:
    """A code point sequence without the variation selector, which styles write or leave out."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _files(archive: Path, style: str) -> dict[str, bytes]:
    folder = {"noto": "img/google/64/", "twemoji": "img/twitter/64/", "fluent": "assets/"}[style]
    members = read_members(archive, lambda name: name.startswith(folder))
    return {_plain(Path(name).stem): data for name, data in members.items()}


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return align(picture)


def drawn_gallery(subjects: Iterable[Subject]) -> Gallery:
    """Polygons in place of emoji: each subject has its own corners and colour, each style its own finish."""
    pictures = {}
    for number, subject in enumerate(subjects):
        for style in STYLES:
            pictures[subject.name, style] = align(_drawn(number, style))
    return Gallery(pictures)


def _drawn(number: int, style: str) -> Image.Image:
    picture = Image.new("RGBA", (_DRAWN_AT, _DRAWN_AT))
    draw = ImageDraw.Draw(picture)
    hue = np.array([0.0, 2.1, 4.2]) + 2.4 * number
    red, green, blue = (int(128 + 110 * math.sin(angle)) for angle in hue)
    outline = (40, 40, 40) if style == "noto" else None
    draw.polygon(_corners(number), fill=(red, green, blue), outline=outline, width=16)
    if style == "fluent":
        middle = _DRAWN_AT // 2
        draw.ellipse((middle - 40, middle - 40, middle + 40, middle + 40), fill=(255, 255, 255))
    return picture


def _corners(number: int) -> list[tuple[float, float]]:
    points = 3 + number % 5
    middle, inner = _DRAWN_AT / 2, (1.0, 0.45)[number // 5 % 2]
    corners = []
    for i in range(2 * points):
        radius = (middle - 4) * (inner if i % 2 else 1.0)
        angle = math.pi * i / points
        corners.append((middle + radius * math.sin(angle), middle - radius * math.cos(angle)))
    return corners
