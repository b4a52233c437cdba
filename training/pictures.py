"""The folder of pictures: found, checked, cut to squares."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from paramerge.errors import FileFormatError, UsageError
from paramerge.listing import listed

__all__ = [
    "CAPTION_SUFFIX",
    "PICTURE_SUFFIXES",
    "Picture",
    "captions_of",
    "data_hash",
    "find_pictures",
    "read_picture",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_SRGB = ImageCms.createProfile("sRGB")

CAPTION_SUFFIX = ".txt"
"""The ending of a caption beside a picture, which replaces the instance prompt."""


@dataclass(frozen=True)
class Picture:
    """A square of a picture: uint8 (side, side, 3), the whole picture's size, and where the square began.

    ``size`` is (height, width) before anything was done, ``corner`` (top, left) after it was resized.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    corner: tuple[int, int]


def find_pictures(folder: Path, option: str) -> list[Path]:
    """The picture files of ``folder``, by name.

    Raises
    ------
    UsageError
        There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", where=option, expected="a folder of pictures", found=folder
        )
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    )
    if not found:
        raise UsageError(
            "there is no picture in this folder",
            where=option,
            expected=f"files that end in {', '.join(PICTURE_SUFFIXES)}",
            found=listed(sorted(path.name for path in folder.iterdir())) or f"nothing in {folder}",
        )
    return found


def captions_of(files: Sequence[Path]) -> tuple[str, ...]:
    """The text beside each picture (``dog.txt`` for ``dog.png``); empty where there is none at all.

    Raises
    ------
    UsageError
        Only some of the pictures have one.
    FileFormatError
        One is empty or no text.
    """
    texts = [path.with_suffix(CAPTION_SUFFIX) for path in files]
    missing = [text.name for text in texts if not text.is_file()]
    if len(missing) == len(texts):
        return ()
    if missing:
        raise UsageError(
            "only some of the pictures have a caption",
            where=files[0].parent,
            expected="one beside each picture, or none (then the instance prompt counts)",
            found=f"without: {listed(missing)}",
        )
    return tuple(_read_caption(text) for text in texts)


def _read_caption(path: Path) -> str:
    try:
        caption = path.read_text(encoding="utf-8-sig").strip()  # some editors begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"this caption cannot be read ({error})", where=path) from error
    if not caption:
        raise FileFormatError("this caption is empty", where=path, hint="write what the picture shows")
    return caption


def read_picture(path: Path, side: int) -> Picture:
    """The middle square of a picture in sRGB, resized to ``side``; transparency becomes white.

    Grey of 16 bits and numbers from 0 to 1 keep their meaning; a colour profile is applied.

    Raises
    ------
    FileFormatError
        The file is no picture, is damaged, or has numbers of which it is not known what is white.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            rgba = _in_srgb(_as_bytes(image, path), image.info.get("icc_profile"), path).convert("RGBA")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileFormatError(
            f"this picture cannot be read ({str(error) or type(error).__name__})",
            where=path,
            hint="remove it from the folder, or save it again as PNG",
        ) from error
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    rgb = Image.alpha_composite(white, rgba).convert("RGB")
    width, height = rgb.size
    scale = side / min(width, height)
    resized = (max(side, round(width * scale)), max(side, round(height * scale)))
    rgb = rgb.resize(resized, Image.Resampling.LANCZOS)
    left, top = (resized[0] - side) // 2, (resized[1] - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return Picture(np.asarray(square, dtype=np.uint8), (height, width), (top, left))


def _as_bytes(image: Image.Image, path: Path) -> Image.Image:
    """The picture with 8 bits a channel; Pillow itself would cut wider numbers off at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise FileFormatError(
            "the numbers of this picture go beyond black and white",
            where=path,
            expected=f"0 to {white:g}",
            found=f"{values.min():g} to {values.max():g}",
            hint="save it as a PNG of 8 or 16 bits",
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """The picture by its colour profile; as it is, with a warning, where that cannot be read."""
    if not profile:
        return image
    plain = image.convert("RGBA") if image.mode in ("P", "PA") else image  # a palette is of RGB
    alpha = plain.getchannel("A") if "A" in plain.getbands() else None
    coloured = plain if alpha is None else plain.convert(plain.mode.removesuffix("A"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(coloured, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path.name}: its colour profile is not applied ({error})", stacklevel=2)
        return plain
    found: Image.Image = converted or coloured
    if alpha is not None:
        found.putalpha(alpha)
    return found


def data_hash(files: Sequence[Path]) -> str:
    """SHA-256 (hex) of the files' contents, in order; their names do not count."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
