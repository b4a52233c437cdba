"""The folder of pictures: found, checked, cut to squares."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from paramerge.errors import FileFormatError, UsageError
from paramerge.files.source import Source
from paramerge.listing import listed
from paramerge.regular_files import is_there, open_regular, read_text
from paramerge.system_faults import reading

__all__ = [
    "CAPTION_SUFFIX",
    "CENTRE",
    "PICTURE_SUFFIXES",
    "Picture",
    "WholePicture",
    "captions_of",
    "cut",
    "data_hash",
    "find_pictures",
    "mask_of",
    "open_picture",
    "picture_stream",
    "read_picture",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_SRGB = ImageCms.createProfile("sRGB")

CAPTION_SUFFIX = ".txt"
"""The ending of a caption beside a picture, which replaces the instance prompt."""


MASK_ENDING = "-masklabel.png"
"""The ending of a mask beside a picture, as in ``dog-masklabel.png``: white counts, black does not."""

CENTRE = (0.5, 0.5)
"""The place of a cut, as shares of what is cut off above and left."""


@dataclass(frozen=True)
class Picture:
    """A part of a picture: uint8 (height, width, 3), the whole picture's size, and where the part began.

    ``size`` is (height, width) before anything was done, ``corner`` (top, left) after it was resized.
    ``mask`` is uint8 (height, width), 255 where the picture counts; None where all of it does.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    corner: tuple[int, int]
    mask: np.ndarray | None = None


def find_pictures(folder: Path, option: str) -> list[Path]:
    """The picture files of ``folder``, by name.

    Raises
    ------
    UsageError
        There is no such folder, or no picture in it.
    FileFormatError
        A name is a picture's, and what has it is no regular file, or may not be read.
    """
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", where=option, expected="a folder of pictures", found=folder
        )
    with reading(folder):
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.endswith(MASK_ENDING)
        )
    if not found:
        raise UsageError(
            "there is no picture in this folder",
            where=option,
            expected=f"files that end in {', '.join(PICTURE_SUFFIXES)}",
            found=listed(sorted(path.name for path in folder.iterdir())) or f"nothing in {folder}",
        )
    for path in found:
        with picture_stream(path):  # what cannot be read is said, not left out
            pass
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
    missing = [text.name for text in texts if not is_there(text)]
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
    caption = read_text(path, what="this caption").strip()
    if not caption:
        raise FileFormatError("this caption is empty", where=path, hint="write what the picture shows")
    return caption


def picture_stream(path: Path) -> IO[bytes]:
    """The file of a picture, to be closed by the caller; a pipe or a device is refused."""
    descriptor, _ = open_regular(path, what="this picture")
    return os.fdopen(descriptor, "rb")


def read_picture(path: Path, side: int) -> Picture:
    """The middle square of a picture in sRGB, resized to ``side``; transparency becomes white.

    Grey of 16 bits and numbers from 0 to 1 keep their meaning; a colour profile is applied.

    Raises
    ------
    FileFormatError
        The file is no picture, is damaged, or has numbers of which it is not known what is white.
    """
    return cut(open_picture(path), (side, side))


@dataclass(frozen=True)
class WholePicture:
    """A picture in sRGB without transparency, and its mask, of the same size, where there is one."""

    image: Image.Image
    mask: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.size[1], self.image.size[0]


def open_picture(path: Path, mask: str = "none") -> WholePicture:
    """The whole picture; with ``mask`` ``alpha`` its opacity is the mask, with ``files`` the one beside it.

    Raises
    ------
    FileFormatError
        As :func:`read_picture`; or the mask is missing, of another size, or black everywhere.
    """
    rgba = _read(path)
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, rgba).convert("RGB")
    if mask == "none":
        return WholePicture(image)
    found = rgba.getchannel("A") if mask == "alpha" else _mask_beside(path, rgba.size)
    if found.getextrema()[1] == 0:
        raise FileFormatError("this mask leaves nothing of the picture", where=path)
    return WholePicture(image, found)


def _mask_beside(path: Path, size: tuple[int, int]) -> Image.Image:
    place = mask_of(path)
    if not place.is_file():
        raise FileFormatError("there is no mask beside this picture", where=path, expected=place.name)
    found = _read(place).convert("L")
    if found.size != size:
        raise FileFormatError(
            "this mask is not of its picture's size",
            where=place,
            expected=f"{size[0]} x {size[1]}",
            found=f"{found.size[0]} x {found.size[1]}",
        )
    return found


def mask_of(path: Path) -> Path:
    """The place of a picture's mask."""
    return path.with_name(path.stem + MASK_ENDING)


def _read(path: Path) -> Image.Image:
    try:
        with picture_stream(path) as stream, Image.open(stream) as file:
            image = ImageOps.exif_transpose(file)
            return _in_srgb(_as_bytes(image, path), image.info.get("icc_profile"), path).convert("RGBA")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileFormatError(
            f"this picture cannot be read ({str(error) or type(error).__name__})",
            where=path,
            hint="remove it from the folder, or save it again as PNG",
        ) from error


def cut(picture: WholePicture, size: tuple[int, int], place: tuple[float, float] = CENTRE) -> Picture:
    """The part of ``size`` (height, width) at ``place`` of the picture, made as small as that allows."""
    height, width = picture.size
    scale = max(size[0] / height, size[1] / width)
    tall, wide = (max(side, round(whole * scale)) for side, whole in zip(size, (height, width), strict=True))
    top, left = (
        min(int(share * (whole - side + (share != 0.5))), whole - side)
        for share, whole, side in zip(place, (tall, wide), size, strict=True)
    )
    box = (left, top, left + size[1], top + size[0])
    parts = [
        None if image is None else image.resize((wide, tall), Image.Resampling.LANCZOS).crop(box)
        for image in (picture.image, picture.mask)
    ]
    mask = None if parts[1] is None else np.asarray(parts[1], dtype=np.uint8)
    return Picture(np.asarray(parts[0], dtype=np.uint8), (height, width), (top, left), mask)


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
        digest.update(bytes.fromhex(Source.open(path).sha256()))
    return digest.hexdigest()
