"""Sets of pictures that are measured together, and how their files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from paramerge.errors import FileFormatError, UsageError
from paramerge.training.pictures import picture_stream, read_picture

__all__ = ["PictureSet", "read_pictures", "read_references"]


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one prompt and one run.

    Attributes
    ----------
    label:
        The name of the row of a table; the runs of a label are summed up together.
    run:
        The run, from 0: runs differ by their seeds alone.
    pictures:
        The files, in the order of their seeds; all of one size.
    text:
        The text that the text score compares the pictures with; empty for none.
    references:
        The subject's own pictures, for the image scores; empty for none.
    """

    label: str
    run: int
    pictures: tuple[Path, ...]
    text: str = ""
    references: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """A name that no other set has."""
        return f"{self.label} run {self.run}"


def read_pictures(files: Sequence[Path]) -> np.ndarray:
    """The pictures as they are, uint8 (n, height, width, 3).

    Raises
    ------
    FileFormatError
        One cannot be read.
    UsageError
        They have different sizes.
    """
    found = []
    for path in files:
        try:
            with picture_stream(path) as stream, Image.open(stream) as image:
                found.append(np.asarray(image.convert("RGB"), dtype=np.uint8))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FileFormatError(
                f"this picture cannot be read ({str(error) or type(error).__name__})", where=path
            ) from error
        if found[-1].shape != found[0].shape:
            raise UsageError(
                "the pictures of a set have different sizes",
                where=path,
                expected=f"{files[0].name}'s {found[0].shape[1]} x {found[0].shape[0]}",
                found=f"{found[-1].shape[1]} x {found[-1].shape[0]}",
            )
    return np.stack(found)


def read_references(files: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """A subject's pictures, cut and scaled as training does to the ``size`` (height, width) of the others.

    Raises
    ------
    FileFormatError
        One cannot be read.
    UsageError
        The others are not square.
    """
    if size[0] != size[1]:
        raise UsageError(
            "the pictures are not square, and cannot be compared with the subject's",
            found=f"{size[1]} x {size[0]}",
        )
    return np.stack([read_picture(path, size[0]).pixels for path in files])
